"""A SLURM of our own on this machine: munge, slurmctld and slurmd, without systemd. Tests only; needs root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.processes import wait_until

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
_CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge/socket,cred_expire=10
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagateResourceLimits=NONE
ReturnToService=2
KillWait=30
MaxArraySize=11
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A cluster of one node; a context manager that ends it with all of its jobs.

    Skips the test where SLURM is not installed, or nobody may start it.

    Args:
        cpus: CPUs that the node says it has.
    """

    def __init__(self, cpus: int = 2) -> None:
        if os.geteuid() != 0 or any(shutil.which(program) is None for program in _PROGRAMS):
            pytest.skip("SLURM and munge are not installed, or this is not root")
        # Not below pytest's folders: munge refuses a key that others than its user could replace.
        self.folder = Path(tempfile.mkdtemp(prefix="robustsweep-slurm-"))
        self.folder.chmod(0o711)
        self._cpus, self._host = cpus, socket.gethostname().split(".")[0]
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "NO_COLOR": "1"}

    def __enter__(self) -> Slurm:
        for name in ("munge", "state", "spool", "log"):
            (self.folder / name).mkdir(mode=0o711)
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = []
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        text = _CONFIG.format(host=self._host, folder=self.folder, ports=ports, cpus=self._cpus)
        (self.folder / "slurm.conf").write_text(text)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.call("munged", *(f"--{option}={self.folder / 'munge' / name}" for option, name in files.items()))
        self.call("slurmctld", "-c")
        self.call("slurmd", "-N", self._host)
        wait_until(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"), "SLURM's node is idle")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, check=False)
        wait_until(lambda: not self.call("squeue", "--noheader").strip(), "all jobs have ended", 90.0)
        daemons = [int((self.folder / f"{name}.pid").read_text()) for name in ("slurmctld", "slurmd")]
        self.call("scontrol", "shutdown")
        self.call("munged", "--stop", f"--socket={self.folder / 'munge/socket'}")
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in daemons), "SLURM has ended")
        shutil.rmtree(self.folder)

    def call(self, *words: str, **variables: str) -> str:
        """Return what a command prints.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            words, env=self.environment | variables, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def find_state(self, job: str) -> str:
        """Return the state of a job (or of the tasks of an array, sorted and once each), e.g. ``RUNNING``."""
        rows = self.call("scontrol", "show", "job", job, "--oneliner").splitlines()
        found = {word.partition("=")[2] for row in rows for word in row.split() if word.startswith("JobState=")}
        return " ".join(sorted(found))

    def wait_for(self, job: str, state: str, seconds: float) -> None:
        """Wait until a job has a state; a job that was put back into the queue need not wait for its turn there."""
        deadline = time.monotonic() + seconds
        while (found := self.find_state(job)) != state:
            assert time.monotonic() < deadline, f"job {job} is {found} after {seconds:.0f} s, expected {state}"
            if "PENDING" in found:
                subprocess.run(
                    ["scontrol", "update", f"JobId={job}", "StartTime=now"], env=self.environment, check=False
                )
            time.sleep(1.0)
