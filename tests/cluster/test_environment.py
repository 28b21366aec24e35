"""Ray in processes of their own whose environment is not what Ray expects."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

#: Starts Ray in a thread, as a run does, executes a task, and is asked to stop.
SCRIPT = """
import os, signal, threading, time

def stop(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
from orchestrator.cluster import connection

is_up, is_over = threading.Event(), threading.Event()
starting = threading.Thread(target=lambda: (connection.connect(None), is_up.set(), is_over.wait()), daemon=True)
starting.start()
assert is_up.wait(60)
print("folder", connection.ray._private.worker._global_node.temp_dir)
print("task", connection.ray.get(connection.ray.remote(lambda: "done").remote()))
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
connection.disconnect()
"""
NO_HOME = """
import os, pwd

def getpwuid(uid):
    raise KeyError(uid)

del os.environ["HOME"]
pwd.getpwuid = getpwuid
"""


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | variables
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_long_folder_for_temporary_files_and_a_home_without_room_for_ray(tmp_path: Path) -> None:
    long, home = tmp_path / ("x" * 72), tmp_path / "home"
    long.mkdir()
    home.mkdir()
    (home / ".ray").touch()  # root may write everywhere, but not below a file
    done = run(SCRIPT, TMPDIR=str(long), HOME=str(home))
    assert done.returncode == 0, done.stderr
    folder, *rest = done.stdout.splitlines()
    assert rest == ["task done", "stopped"]
    assert folder.endswith(f"/robustsweep-{os.getuid()}/ray")
    assert "SIGTERM" not in done.stderr, "Ray's own handler of signals has printed a stack trace"


def test_a_user_without_a_home_folder() -> None:
    done = run(NO_HOME + SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["task done", "stopped"]


def test_a_ray_that_cannot_write_its_files_is_one_error() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are too long
    (folder / "ray").touch()  # the name of the folder that Ray makes
    script = "from orchestrator.cluster import connection\nconnection.connect(None)"
    done = run(script, RAY_TMPDIR=str(folder))
    assert "InfrastructureError: could not start Ray on this machine" in done.stderr, done.stderr
