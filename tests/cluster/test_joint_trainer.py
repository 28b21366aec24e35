"""Two processes in a real Ray: how their end is told, and that nothing of them is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.cluster import connection
from orchestrator.cluster.joint_trainer import JointClient
from orchestrator.execution.fork_client import ProcessLostError
from orchestrator.execution.resources import JointSlots
from tests.support.joint_requests import handle
from tests.support.processes import is_running, wait_until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def client() -> Iterator[JointClient]:
    connection.connect(None)
    yield JointClient(handle, JointSlots(2, 0.5, 0.0))
    connection.disconnect()


def run(client: JointClient, end: str) -> list[dict[str, Any]]:
    """Return the events until the last one, or until the first if the processes are to hang."""
    client.begin({"end": end, "heard": "nowhere"})
    events: list[dict[str, Any]] = []
    while not events or (events[-1]["event"] != "done" and end != "hang"):
        event = client.next_event(120.0)
        assert event is not None
        events.append(event)
    return events


def test_the_first_process_reports_and_all_end(client: JointClient) -> None:
    first, last = run(client, "well")
    assert (first["event"], first["sum"]) == ("epoch", 3)
    assert last == {"event": "done", "status": "complete"}


def test_an_error_of_any_process_is_the_stages(client: JointClient) -> None:
    last = run(client, "raise")[-1]
    assert (last["status"], last["type"], last["message"]) == ("failed", "ConfigError", "this process cannot do it")
    assert "joint_requests.py" in last["traceback"]


def test_a_process_that_is_killed_may_be_tried_again(client: JointClient) -> None:
    with pytest.raises(ProcessLostError, match="one of the 2 processes was lost"):
        run(client, "die")


def test_closing_ends_the_processes_and_frees_what_they_had(client: JointClient) -> None:
    (event,) = run(client, "hang")
    assert is_running(event["pid"])
    client.close()
    wait_until(lambda: not is_running(event["pid"]), "the processes have ended")
    wait_until(lambda: _count_free() == connection.ray.cluster_resources()["CPU"], "their CPUs are free")


def _count_free() -> float:
    return float(connection.ray.available_resources().get("CPU", 0.0))
