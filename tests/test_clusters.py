"""The files of ``configs/clusters``: valid to Ray's own validators, to Docker's and KubeRay's rules, to shells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

CLUSTERS = ROOT / "configs/clusters"
LAUNCHERS = ("gcp.yaml", "on-premises.yaml")
KUBERAY = ("kuberay-job.yaml", "kuberay-cluster.yaml")
SCRIPTS = ("slurm.sbatch", "slurm-array.sbatch")
#: Keys of KubeRay's v1 resources that are used here, from its API reference (1.6).
_CLUSTER = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
_JOB = {
    "entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    "rayClusterSpec",
}  # fmt: skip


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / name).read_text(encoding="utf-8"))


def test_every_file_is_checked() -> None:
    assert {path.name for path in CLUSTERS.iterdir()} == {*LAUNCHERS, *KUBERAY, *SCRIPTS, "workstation.yaml"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_is_valid_to_ray(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] > 0
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert not any("0.0.0.0" in line for line in starts)
    with pytest.raises(Exception, match="no_such_key"):
        validate_config(dict(prepared, no_such_key=1))


def list_pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


@pytest.mark.parametrize("name", KUBERAY)
def test_a_kuberay_file_has_the_fields_of_its_kind(name: str) -> None:
    file = read(name)
    spec, is_job = file["spec"], file["kind"] == "RayJob"
    assert file["apiVersion"] == "ray.io/v1"
    assert set(spec) == (_JOB if is_job else _CLUSTER)
    cluster = spec["rayClusterSpec"] if is_job else spec
    assert set(cluster) == _CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for pod in list_pods(cluster):
        assert pod["terminationGracePeriodSeconds"] >= 30
        mounts = {mount["name"] for mount in pod["containers"][0].get("volumeMounts", [])}
        assert mounts == {volume["name"] for volume in pod.get("volumes", [])}
        resources = pod["containers"][0]["resources"]
        assert resources["limits"] == resources["requests"]  # Ray counts the limits, Kubernetes gives the requests


def test_a_job_on_kubernetes_ends_in_order_and_is_started_again() -> None:
    spec = read("kuberay-job.yaml")["spec"]
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) < head["terminationGracePeriodSeconds"]
    assert spec["backoffLimit"] > 0
    assert spec["entrypoint"].startswith("robustsweep run /study/study.yaml --address auto --storage s3://")


def test_the_workstation_listens_to_itself_alone() -> None:
    services = read("workstation.yaml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]
    assert services["study"]["stop_signal"] == "SIGTERM"
    shared = yaml.safe_load((ROOT / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services["database"] == shared["database"]
    server = services["mlflow"]
    hosts = server["command"][server["command"].index("--allowed-hosts") + 1].split(",")
    assert set(hosts) == {"mlflow:5000", "localhost:5000", "127.0.0.1:5000"}
    assert services["study"]["environment"]["MLFLOW_TRACKING_URI"] == f"http://{hosts[0]}"
    stores = [each["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"] for each in (services, shared)]
    assert stores[0] == stores[1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_valid_to_the_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTERS / name)], check=True)
    if shutil.which("shellcheck") is not None:
        subprocess.run(["shellcheck", str(CLUSTERS / name)], check=True)
    text = (CLUSTERS / name).read_text(encoding="utf-8")
    assert "scontrol requeue" in text
    inner = re.search(r"<<'NODE'\n(.*?)^NODE$", text, re.DOTALL | re.MULTILINE)
    if inner is not None:
        subprocess.run(["bash", "-n", "-c", inner[1]], check=True)


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        *((code, "RUNNING", code in (3, 5)) for code in range(6)),
        (5, "COMPLETING", False),  # scancel, or a preemption that SLURM itself puts back into the queue
    ],
)
def test_a_task_of_an_array_goes_back_into_the_queue_if_the_study_can_go_on(
    tmp_path: Path, code: int, state: str, requeued: bool
) -> None:
    programs = {
        "robustsweep": f'echo "$@" > {tmp_path}/asked; exit {code}',
        "scontrol": f'[ "$1" = show ] && echo "JobId=12 JobState={state}" || echo "$@" > {tmp_path}/requeued',
    }
    for program, line in programs.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / program).chmod(0o755)
    task = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "8"}
    settings = {
        **os.environ,
        **task,
        "SLURM_ARRAY_JOB_ID": "9",
        "SLURM_JOB_ID": "12",
        "STUDY": "a b.yaml",
        "STORAGE": "s3://b",
    }
    settings["PATH"] = f"{tmp_path}:{settings['PATH']}"
    done = subprocess.run(["bash", str(CLUSTERS / "slurm-array.sbatch")], env=settings, check=False)
    assert (tmp_path / "asked").read_text() == "run a b.yaml --storage s3://b --shard 4/8\n"
    assert (tmp_path / "requeued").exists() is requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 9_7\n"
    assert done.returncode == (0 if requeued else code)
