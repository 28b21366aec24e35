"""All that has to be seen on a GPU, in one bounded run: ``make gpu-check``, eight minutes at most, JSON out.

    python benchmarks/gpu_check.py --out check.json            # on a GPU
    python benchmarks/gpu_check.py --small --out check.json    # the same lines on a CPU, small: what CI runs

Every stage is a process with a time limit; one that fails or is stopped does not keep the others from running. The
file is written anew after every stage. It holds the machine, and per stage its state, seconds, the measured lines and
the end of what it said. Exit code 0 if no stage failed; a bar that is not reached is a result, not a failure.

Needs torch, torchvision and the packages of ``trainables``, not Ray or MLflow. For a machine without a package index
``make gpu-wheelhouse`` collects the small wheels that a bare one lacks: ``pip install --no-index --find-links
build/wheelhouse pydantic safetensors filelock fsspec pytest``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, describe_machine

HERE = Path(__file__).resolve().parent
#: Seconds for everything, and characters of a stage's output that are kept.
LIMIT_SECONDS, KEPT = 480.0, 3000
#: Without the configuration and fixtures of the other tests, which need more packages.
_TESTS = (
    "-m", "pytest", "-q", "--noconftest", "-c", os.devnull, "--rootdir", str(ROOT), "-W", "ignore",
    "-p", "no:cacheprovider", str(ROOT / "tests/trainables/test_device.py"),
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One process of the check."""

    name: str
    #: Words after the Python; on a GPU, and on a CPU.
    full: Sequence[str]
    small: Sequence[str]
    limit_seconds: float


def _script(name: str, full: str, small: str) -> dict[str, tuple[str, ...]]:
    """Return the words of a benchmark on either device."""
    path = str(HERE / name)
    return {"full": (path, "--device", "cuda", *full.split()), "small": (path, "--device", "cpu", *small.split())}


STAGES = (
    Stage("tests", _TESTS, _TESTS, limit_seconds=110),
    Stage("speed", **_script("device_speed.py", "--repeat 5", "--images 2 --repeat 1"), limit_seconds=90),
    Stage(
        "training",
        **_script(
            "training.py",
            "--model resnet50 --image-size 224 --images 2048 --batch-size 128 --epochs 1 --repeat 3",
            "--images 64 --epochs 1 --repeat 1",
        ),
        limit_seconds=140,
    ),
    Stage(
        "packing",
        **_script("packing.py", "--epochs 2 --image-size 32", "--replicates 2 --label-fraction 0.1 --threads 1"),
        limit_seconds=120,
    ),
)


def run_stage(stage: Stage, *, is_small: bool, limit: float) -> dict[str, Any]:
    """Run one stage for at most ``limit`` seconds, with all processes that it starts; return its entry of the file."""
    words = [sys.executable, *(stage.small if is_small else stage.full)]
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "ROBUSTSWEEP_TEST_DEVICE": "cpu" if is_small else "cuda",
    }
    if is_small:
        settings["OMP_NUM_THREADS"] = "1"
    started = time.monotonic()
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | settings,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        state = "done" if process.returncode == 0 else f"failed with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        state = f"stopped after {limit:.0f} s"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"benchmark"')]
    seconds = round(time.monotonic() - started, 1)
    return {"name": stage.name, "state": state, "seconds": seconds, "lines": lines, "output": output[-KEPT:]}


def describe_gpu() -> dict[str, Any]:
    """Return what the figures depend on: GPU, memory, MIG, what of it this process may see, versions."""
    import torch

    seen = {
        name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY") if name in os.environ
    }
    found: dict[str, Any] = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), **seen}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "memory_mib": properties.total_memory // 2**20,
            "num_devices": torch.cuda.device_count(),
            "is_mig": "MIG" in properties.name or seen.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG"),
        }
    return found


def describe(entry: Mapping[str, Any]) -> str:
    """Return what is printed of a stage: its state, and each line that it measured beside its bar."""
    head = f"{entry['name']:<10} {entry['state']} in {entry['seconds']:.0f} s"
    rows = [
        f"  {line['benchmark']:<34} {line['ratio']:>8.2f}   bar {line['bar']:g}{'' if line['ok'] else '   not reached'}"
        for line in entry["lines"]
    ]
    return "\n".join([head, *rows])


def main() -> None:
    """Run all stages, print and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check.json")
    parser.add_argument("--small", action="store_true", help="small, on the CPU")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES], help="these stages alone")
    asked = parser.parse_args()
    machine = {**describe_machine(), **describe_gpu()}
    if not asked.small and "name" not in machine:
        parser.error("found no GPU that torch can use; expected one, or --small for the same on the CPU")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    deadline, stages = time.monotonic() + LIMIT_SECONDS, []
    for stage in STAGES:
        if asked.only and stage.name not in asked.only:
            continue
        limit = min(stage.limit_seconds, max(1.0, deadline - time.monotonic()))
        stages.append(run_stage(stage, is_small=asked.small, limit=limit))
        print(describe(stages[-1]), flush=True)
        asked.out.write_text(json.dumps({"machine": machine, "stages": stages}, indent=1) + "\n")
    failed = [entry for entry in stages if entry["state"] != "done"]
    for entry in failed:
        print(f"\n{entry['name']}: {entry['state']}; the end of what it said:\n{entry['output']}")
    print(f"written: {asked.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
