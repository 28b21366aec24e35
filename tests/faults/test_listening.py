"""What a study opens to the network: nothing, unless it joins a cluster."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from os import getpid

from tests.conftest import FinishedStudy
from tests.support.processes import find_listening


def test_all_that_listens_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("", 0)):
        assert find_listening([getpid()]) >= {"127.0.0.1", "0.0.0.0"}
    with socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert "::1" in find_listening([getpid()])


def test_a_study_on_this_machine_listens_to_this_machine_alone(finished_study: FinishedStudy) -> None:
    """Driver, Ray with its workers and agents, fork servers, trials."""
    assert finished_study.exit_code == 0, finished_study.errors
    found = [ip_address(address) for address in finished_study.listened]
    assert found
    assert all((getattr(each, "ipv4_mapped", None) or each).is_loopback for each in found), found
