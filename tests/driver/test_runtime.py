"""Ray and a real fork server for one run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.driver.runtime import Runtime
from orchestrator.execution.fork_client import make_socket_path
from orchestrator.study.study_file import Study, parse_study
from tests.support.processes import wait_until
from trainables.config import TrialConfig
from trainables.errors import ConfigError, InfrastructureError


def make_study(cache_dir: Path, *overrides: str) -> Study:
    text = "study: s\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\nfactors: {}\n"
    return parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])


@pytest.fixture(scope="module")
def configs(cache_dir: Path) -> list[TrialConfig]:
    return [arm.config for arm in make_study(cache_dir).arms()]


class NoRay:
    """Stands in for the thread that starts Ray."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def start(self) -> None: ...

    def end(self) -> None: ...


@pytest.fixture(scope="module")
def runtime(cache_dir: Path) -> Iterator[Runtime]:
    """With a real fork server and without Ray."""
    with Runtime(make_study(cache_dir), address=None) as runtime:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("orchestrator.driver.runtime._RayThread", NoRay)
            runtime.start()  # once: what the tests do starts nothing more
        yield runtime


def test_trials_are_checked_in_a_process_of_the_server(runtime: Runtime, configs: list[TrialConfig]) -> None:
    runtime.check(configs)
    wrong = configs[0].model_copy(update={"model": configs[0].model.model_copy(update={"name": "timm/nonsense"})})
    with pytest.raises(ConfigError, match="nonsense"):
        runtime.check([*configs, wrong])
    runtime.check(configs)  # the fork server has survived


def test_an_unexpected_error_in_a_check_says_where(runtime: Runtime, configs: list[TrialConfig]) -> None:
    with pytest.raises(InfrastructureError, match=r"(?s)failed unexpectedly.*Traceback.*replicate"):
        runtime.check([configs[0].model_copy(update={"replicate": -1})])


def test_a_fork_server_alone_starts_no_ray(cache_dir: Path) -> None:
    study = make_study(cache_dir, "execution.local_executor=false")  # Ray would start at once
    with Runtime(study, address=None) as runtime:
        runtime.start_fork_server()
        assert runtime.is_started
        assert make_socket_path(runtime.token).exists()
        assert not [thread for thread in threading.enumerate() if thread.name == "ray"]


def test_leaving_ends_the_server(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driver.runtime._RayThread", NoRay)
    with Runtime(make_study(cache_dir), address=None) as runtime:
        runtime.start()
        path = make_socket_path(runtime.token)
        assert path.exists()
    wait_until(lambda: not path.exists(), "the fork server is gone")


def test_a_cluster_that_does_not_answer_is_an_infrastructure_error(cache_dir: Path) -> None:
    with Runtime(make_study(cache_dir), address="127.0.0.1:9") as runtime:
        runtime.start()
        with pytest.raises(InfrastructureError, match=r"could not join the Ray cluster at 127.0.0.1:9"):
            runtime.wait_for_ray()


def test_nothing_is_started_for_nothing(cache_dir: Path) -> None:
    with Runtime(make_study(cache_dir), address=None) as runtime:
        pass
    assert not make_socket_path(runtime.token).exists()
