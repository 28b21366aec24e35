"""Two drivers on two hosts that share only the file system: names, processes, network and memory are their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import wait_until

UNSHARE = ("unshare", "--uts", "--ipc", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
#: Takes the lease, as soon as it can if it is to wait; then does what it is told, until it is told to stop.
DRIVER = """
import sys, time
from orchestrator.ledger import lease as leases
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from trainables.errors import LeaseError
leases.HEARTBEAT_SECONDS, leases.LEASE_SECONDS = 0.3, 6.0
ledger, is_patient = Ledger(sys.argv[1], "s"), sys.argv[2] == "waits"
while True:
    try:
        Lease(ledger).__enter__()
        break
    except LeaseError as error:
        if not is_patient:
            print("refused:", error, flush=True)
            sys.exit()
        time.sleep(0.2)
print("took it", flush=True)
try:
    sys.stdin.readline()
except KeyboardInterrupt:
    print("interrupted", flush=True)
try:
    ledger.root.write("plan.json", b"{}")
    print("wrote", flush=True)
except LeaseError as error:
    print("refused:", error, flush=True)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Start a driver on a host of its own, by the host's name."""
    if subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs hosts of its own: unshare is not permitted here")
    drivers: list[subprocess.Popen[str]] = []

    def start(host: str, how: str) -> subprocess.Popen[str]:
        words = [*UNSHARE, "sh", "-c", 'hostname "$1"; shift; exec "$@"', "sh", host]
        words += [sys.executable, "-c", DRIVER, str(tmp_path), how]
        drivers.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()  # and with it whatever runs there
        driver.communicate()


def read_line(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    return driver.stdout.readline().rstrip("\n")


def find_child(driver: subprocess.Popen[str]) -> int:
    """Return the pid, as seen from here, of the driver itself: the first process of its host."""
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children")
    wait_until(lambda: children.read_text().split() != [], "the first process is there")
    return int(children.read_text().split()[0])


def test_the_second_host_is_refused_and_takes_over_from_one_that_is_silent(
    start: Callable[[str, str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = start("alpha", "at once")
    assert read_line(first) == "took it"
    second = start("beta", "at once")
    said = read_line(second)
    assert said.startswith("refused: the study in "), said
    assert "is being run by process 1 on alpha since" in said  # also the number of every other host's first process

    # A machine that sleeps. Just after a renewal: between reading and writing the lease it would take it back.
    lease, asleep = tmp_path / "s" / "lease.json", find_child(first)
    renewed = lease.stat().st_mtime_ns
    wait_until(lambda: lease.stat().st_mtime_ns != renewed, "the lease is renewed")
    os.kill(asleep, signal.SIGSTOP)
    third = start("beta", "waits")
    assert read_line(third) == "took it"
    os.kill(asleep, signal.SIGCONT)
    assert read_line(first) == "interrupted"
    said = read_line(first)
    assert said.startswith("refused: refused to write into "), said
    assert "its lease is now held by process 1 on beta since" in said
    third.communicate("\n", timeout=60)
    assert third.returncode == 0


def test_a_host_that_is_gone_is_taken_over(start: Callable[[str, str], subprocess.Popen[str]], tmp_path: Path) -> None:
    first = start("alpha", "at once")
    assert read_line(first) == "took it"
    first.kill()  # its processes end with it, and nobody tells the file system
    first.communicate()
    assert (tmp_path / "s" / "lease.json").exists()
    second = start("beta", "waits")
    assert read_line(second) == "took it"
    assert second.communicate("\n", timeout=60)[0] == "wrote\n"
