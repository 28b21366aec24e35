"""A study that trains for real in seconds, run as a user runs it: through the command line. Tests only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import find_marked, wait_until

STUDY = """\
study: tiny
question: Does strong augmentation help?
data: {kind: digits, image_size: 16}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: 3, batch_size: 32, learning_rate: 0.005}
evaluation: {shifts: [gaussian_noise, gamma_up], severities: [1, 3]}
factors:
  pretraining:
    scratch: {kind: scratch}
    contrastive: {kind: contrastive, epochs: 2, batch_size: 512, horizontal_flip: false}
  augmentation: [none, strong]
hypotheses:
- {name: strong, claim: It helps., treatment: {augmentation: strong}, control: {augmentation: none}, direction: higher,
   smallest_effect: 0.01, over: shifts}
execution: {cache_dir: CACHE}
"""
NUM_TRIALS, NUM_STAGES = 4, 1
#: Options of ``run``: the driver runs no trial itself, as it would while so short a study lasts.
IN_RAY = ("--set", "execution.local_executor=false")
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass(frozen=True)
class Place:
    """A study file and the ledger root that belongs to it."""

    study: Path
    storage: Path
    marker: str
    #: Words before the command, that run it on another host.
    prefix: tuple[str, ...] = ()

    @property
    def ledger(self) -> Path:
        return self.storage / "tiny"

    @property
    def flags(self) -> list[str]:
        return [str(self.study), "--storage", str(self.storage)]

    def start(self, command: str, *options: str, **variables: str) -> subprocess.Popen[str]:
        """Start ``robustsweep`` (a run with a line per epoch); the marker finds its processes, wherever they end up."""
        options = (*options, "--verbose") if command == "run" else options
        environment = {**os.environ, "ROBUSTSWEEP_TEST": self.marker, "COLUMNS": "200", "NO_COLOR": "1", **variables}
        environment.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "robustsweep", command, *self.flags, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.storage.parent,
        )  # fmt: skip

    def call(self, command: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``robustsweep`` to its end."""
        process = self.start(command, *options, **variables)
        out, err = process.communicate(timeout=280)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def survivors(self) -> dict[int, str]:
        """Return pid → command line of what is left of the study: driver, Ray, actors, fork servers, trials.

        Ray's two agents are not counted: when raylet and GCS are gone at once, they try for 60 s to tell the GCS.
        """
        return {pid: line for pid, line in find_marked(self.marker).items() if not line.startswith(RAY_AGENTS)}

    def training(self) -> dict[str, int]:
        """Return signature → pid of the processes in which stages and trials run now: each writes its own log."""
        found = {}
        for pid, line in find_marked(self.marker).items():
            if "orchestrator.driver.child_process" in line:
                with suppress(OSError):  # it has just ended
                    log = Path(os.readlink(f"/proc/{pid}/fd/1"))
                    found |= {log.parent.name: pid} if log.name == "log.txt" else {}
        return found

    def wait_for_silence(self) -> None:
        """Wait until nothing of the study is left."""
        wait_until(lambda: not self.survivors(), "no process of the study is left")


def make_place(folder: Path, cache_dir: Path) -> Place:
    """Write the study file into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    study = folder / "tiny.yaml"
    study.write_text(STUDY.replace("CACHE", str(cache_dir)))
    return Place(study, folder / "results", uuid.uuid4().hex)


def copy_place(place: Place, folder: Path) -> Place:
    """Copy a study and its ledger; MLflow's database stays behind, since its paths would lead to the original."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(place.study, folder / "tiny.yaml")
    shutil.copytree(
        place.ledger, folder / "results" / "tiny", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts")
    )
    return Place(folder / "tiny.yaml", folder / "results", uuid.uuid4().hex)


def stamps(place: Place, signatures: Sequence[str] | None = None) -> dict[str, int]:
    """Return the change time of every file of every stage and trial (of these signatures)."""
    return {
        str(path.relative_to(place.ledger)): path.stat().st_mtime_ns
        for kind in ("stages", "trials")
        for path in sorted((place.ledger / kind).rglob("*"))
        if path.is_file() and (signatures is None or path.relative_to(place.ledger).parts[1] in signatures)
    }
