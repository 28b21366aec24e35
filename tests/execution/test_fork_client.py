"""One slot with real processes: whatever a trial does to itself, the slot knows how it ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.fork_client import (
    MAX_SOCKET_BYTES,
    ForkClient,
    ProcessLostError,
    make_command,
    make_socket_path,
)
from tests.support.processes import is_running, wait_until
from tests.support.scripted_fork_server import COMMAND
from trainables.errors import InfrastructureError
from trainables.storage.folder import Folder


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="slot-") as folder:  # pytest's own folders are too long for a socket
        yield Path(folder) / "z.sock"


@pytest.fixture
def client(path: Path) -> Iterator[ForkClient]:
    client = ForkClient(num_threads=3, path=path, command=COMMAND)
    yield client
    client.close()
    wait_until(lambda: not any(path.parent.iterdir()), "the fork server has left nothing")


def begin(client: ForkClient, act: str, folder: Path | str) -> None:
    client.begin({"folder": str(folder), "encoder": None, "execution": {}, "act": act})


def events_of(client: ForkClient) -> Iterator[dict[str, Any]]:
    """Yield the events of the running trial up to "done"."""
    while True:
        event = client.next_event(60.0)
        assert event is not None, "the trial gave no sign of life"
        yield event
        if event["event"] == "done":
            return


def run(client: ForkClient, act: str, folder: Path | str) -> list[dict[str, Any]]:
    begin(client, act, folder)
    return list(events_of(client))


def test_a_trial_that_finishes(client: ForkClient, tmp_path: Path) -> None:
    assert run(client, "finish", tmp_path) == [{"event": "epoch", "epoch": 1}, {"event": "done", "status": "complete"}]


def test_every_trial_is_a_process_of_its_own(client: ForkClient, tmp_path: Path) -> None:
    first, second = (run(client, "describe", tmp_path / str(number))[0] for number in range(2))
    assert first["pid"] != second["pid"]
    assert first["server"] == second["server"] != os.getpid()
    assert second["memory"] == []
    assert second["left"] is None
    assert second["cwd"] == first["cwd"]
    assert first["threads"] == "3"
    assert first["stdin"] == ""


def test_an_exception_is_a_failure_with_its_traceback(client: ForkClient, tmp_path: Path) -> None:
    (done,) = run(client, "fail", tmp_path)
    assert (done["event"], done["status"], done["reason"]) == ("done", "failed", "error")
    assert done["message"] == "ValueError: shape (3, 4) does not fit\nsecond line"
    assert "in fail" in done["traceback"]
    assert run(client, "finish", tmp_path)[-1]["status"] == "complete"


def test_a_divergence_is_called_one(client: ForkClient, tmp_path: Path) -> None:
    (done,) = run(client, "diverge", tmp_path)
    assert (done["reason"], done["message"]) == ("diverged", "the loss became nan in epoch 5")


def test_what_libraries_print_goes_to_the_log_and_not_into_the_protocol(client: ForkClient, tmp_path: Path) -> None:
    events = run(client, "chatter", tmp_path)
    assert events == [
        {"event": "epoch", "epoch": 1, "note": 'line\nbreak "quoted" é'},
        {"event": "done", "status": "complete"},
    ]
    log = (tmp_path / "log.txt").read_text()
    for text in ('"code": 7', "no newline", '{"event": "broken', "a child of the child", "its stderr", "progress"):
        assert text in log


def test_the_log_grows_over_attempts(client: ForkClient, tmp_path: Path) -> None:
    for _ in range(2):
        run(client, "chatter", tmp_path)
    assert (tmp_path / "log.txt").read_text().count("no newline") == 2


def test_the_log_reaches_a_remote_ledger(client: ForkClient) -> None:
    folder = Folder(f"memory://{uuid.uuid4()}/trial")
    run(client, "chatter", folder.uri)
    assert b"no newline" in folder.read("log.txt")


def test_large_events_arrive_whole(client: ForkClient, tmp_path: Path) -> None:
    events = run(client, "shout", tmp_path)
    assert events[0]["event"] == "started"
    assert [event["epoch"] for event in events[1:-1]] == list(range(200))
    assert events[-1]["message"] == "ValueError: " + "y" * 200_000


def test_no_event_in_time_is_none(client: ForkClient, tmp_path: Path) -> None:
    begin(client, "hang", tmp_path)
    assert next(events_of(client))["event"] == "about"
    assert client.next_event(0.05) is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_process_is_lost_and_the_slot_stays(
    client: ForkClient, tmp_path: Path, number: signal.Signals
) -> None:
    begin(client, "hang", tmp_path)
    os.kill(next(events_of(client))["pid"], number)
    with pytest.raises(ProcessLostError, match=rf"was killed by {number.name}.*{tmp_path}/log.txt") as caught:
        next(events_of(client))
    assert ("out of memory" in str(caught.value)) == (number == signal.SIGKILL)
    assert run(client, "finish", tmp_path)[-1]["status"] == "complete"


def test_a_process_that_leaves_without_a_word_is_lost(client: ForkClient, tmp_path: Path) -> None:
    begin(client, "leave", tmp_path)
    with pytest.raises(ProcessLostError, match="ended with exit code 1"):
        next(events_of(client))


def test_killing_a_hanging_trial_leaves_the_slot_usable(client: ForkClient, tmp_path: Path) -> None:
    client.kill()  # nothing runs
    begin(client, "hang", tmp_path)
    pid = next(events_of(client))["pid"]
    client.kill()
    with pytest.raises(ProcessLostError, match="SIGKILL"):
        next(events_of(client))
    assert not is_running(pid)
    assert run(client, "finish", tmp_path)[-1]["status"] == "complete"


def test_a_killed_fork_server_takes_its_trial_along(client: ForkClient, tmp_path: Path) -> None:
    begin(client, "hang", tmp_path)
    about = next(events_of(client))
    os.kill(about["server"], signal.SIGKILL)
    with pytest.raises(ProcessLostError, match=r"starts trials on this node has ended; .*was it killed"):
        next(events_of(client))
    wait_until(lambda: not is_running(about["pid"]), "the trial is gone")
    assert run(client, "finish", tmp_path)[-1]["status"] == "complete"  # by another fork server


def test_a_fork_server_killed_between_two_trials_is_replaced(client: ForkClient, tmp_path: Path) -> None:
    about = run(client, "describe", tmp_path)[0]
    os.kill(about["server"], signal.SIGKILL)
    wait_until(lambda: not is_running(about["server"]), "it is gone")
    assert run(client, "describe", tmp_path)[0]["server"] != about["server"]


def test_slots_of_a_node_share_a_fork_server_and_not_their_fate(client: ForkClient, path: Path, tmp_path: Path) -> None:
    other = ForkClient(num_threads=3, path=path, command=COMMAND)
    begin(client, "hang", tmp_path / "a")
    begin(other, "hang", tmp_path / "b")
    first, second = next(events_of(client)), next(events_of(other))
    assert first["server"] == second["server"]
    other.close()
    wait_until(lambda: not is_running(second["pid"]), "the trial of the closed slot is gone")
    assert is_running(first["pid"])
    client.kill()
    with pytest.raises(ProcessLostError, match="SIGKILL"):
        next(events_of(client))
    assert run(client, "finish", tmp_path)[-1]["status"] == "complete"


def test_closing_ends_a_running_trial_and_the_last_to_leave_ends_the_server(client: ForkClient, tmp_path: Path) -> None:
    begin(client, "hang", tmp_path)
    about = next(events_of(client))
    client.close()
    client.close()  # twice is harmless
    wait_until(lambda: not is_running(about["pid"]), "the trial is gone")
    wait_until(lambda: not is_running(about["server"]), "the fork server is gone")


def test_devices_of_the_slot_are_those_of_its_trials(
    client: ForkClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for devices in ("0", "1"):  # the fork server has seen neither
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        assert run(client, "describe", tmp_path)[0]["devices"] == devices


def test_a_fork_server_that_cannot_import_says_why(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys\nfrom orchestrator.execution import fork_server\n"
        "def load(): raise ModuleNotFoundError('No module named timm')\n"
        "fork_server.serve(sys.argv[1], lambda request, report: None, load_imports=load)\n"
    )
    client = ForkClient(num_threads=1, path=path, command=(sys.executable, str(broken)))
    with pytest.raises(ProcessLostError, match="No module named timm"):
        run(client, "finish", tmp_path)  # the server may have ended before it is connected to, or after


def test_a_fork_server_that_cannot_start_is_an_infrastructure_error(path: Path) -> None:
    client = ForkClient(num_threads=1, path=path, command=(sys.executable, "-c", "raise SystemExit('no room')"))
    with pytest.raises(InfrastructureError, match="no room"):
        client.connect()


PARENT = """
import sys, time
from pathlib import Path
from orchestrator.execution.fork_client import ForkClient
from tests.support.scripted_fork_server import COMMAND
client = ForkClient(num_threads=1, path=Path(sys.argv[2]), command=COMMAND)
client.begin({"folder": sys.argv[1], "encoder": None, "execution": {}, "act": "hang"})
event = client.next_event(60)
print(event["pid"], event["server"], flush=True)
time.sleep(600)
"""


def test_nothing_trains_on_when_the_parent_is_killed(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(map(is_running, pids)), "trial and fork server are gone")


@pytest.mark.parametrize("characters", [40, 72, 150])
def test_a_long_folder_for_temporary_files_is_no_obstacle(
    characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * characters)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    path = make_socket_path("0123456789abcdef")
    assert len(str(path)) <= MAX_SOCKET_BYTES
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.unlink()
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_folder_of_somebody_else_is_passed_over_and_no_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/t")
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # who owns none of the folders
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "y" * 200)
    with pytest.raises(InfrastructureError, match=r"too long for the name of a socket.*set TMPDIR .* at most \d+ char"):
        make_socket_path("0123456789abcdef")
    (Path("/tmp") / "robustsweep-12345").rmdir()


@pytest.mark.parametrize("name", ["random.py", "orchestrator/__init__.py", "json.py"])
def test_files_of_the_current_folder_are_not_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    client = ForkClient(num_threads=1, path=path, command=make_command("tests.support.scripted_fork_server"))
    assert run(client, "finish", tmp_path / "work")[-1]["status"] == "complete"
    client.close()
