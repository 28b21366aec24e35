"""Ray and a real zygote for one run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.driver.runtime import Backstage
from orchestrator.execution.fork_client import make_zygote_path
from orchestrator.study.study_file import Study, parse_study
from tests.support.processes import wait_until
from trainables.config import TrialConfig
from trainables.errors import ConfigError, InfrastructureError


def make_study(cache_dir: Path, *overrides: str) -> Study:
    text = "study: s\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\nfactors: {}\n"
    return parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])


@pytest.fixture
def configs(cache_dir: Path) -> list[TrialConfig]:
    return [arm.config for arm in make_study(cache_dir).arms()]


class NoRay:
    """Stands in for the thread that starts Ray."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def start(self) -> None: ...

    def end(self) -> None: ...


@pytest.fixture
def backstage(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backstage]:
    """With a real zygote and without Ray."""
    monkeypatch.setattr("orchestrator.driver.runtime._RayThread", NoRay)
    with Backstage(make_study(cache_dir), address=None) as backstage:
        yield backstage


def test_trials_are_checked_in_a_process_of_the_zygote(backstage: Backstage, configs: list[TrialConfig]) -> None:
    backstage.check(configs)
    wrong = configs[0].model_copy(update={"model": configs[0].model.model_copy(update={"name": "timm/nonsense"})})
    with pytest.raises(ConfigError, match="nonsense"):
        backstage.check([*configs, wrong])
    backstage.check(configs)  # the zygote has survived


def test_an_unexpected_error_in_a_check_says_where(backstage: Backstage, configs: list[TrialConfig]) -> None:
    with pytest.raises(InfrastructureError, match=r"(?s)failed unexpectedly.*Traceback.*replicate"):
        backstage.check([configs[0].model_copy(update={"replicate": -1})])


def test_a_zygote_alone_starts_no_ray(cache_dir: Path) -> None:
    study = make_study(cache_dir, "execution.head_start=false")  # Ray would start at once
    with Backstage(study, address=None) as backstage:
        backstage.start_zygote()
        assert backstage.is_started
        assert make_zygote_path(backstage.token).exists()
        assert not [thread for thread in threading.enumerate() if thread.name == "ray"]


def test_leaving_ends_the_zygote(backstage: Backstage) -> None:
    backstage.start()
    path = make_zygote_path(backstage.token)
    assert path.exists()
    backstage.__exit__(None, None, None)
    wait_until(lambda: not path.exists(), "the zygote is gone")


def test_a_cluster_that_does_not_answer_is_an_infrastructure_error(cache_dir: Path) -> None:
    with Backstage(make_study(cache_dir), address="127.0.0.1:9") as backstage:
        backstage.start()
        with pytest.raises(InfrastructureError, match=r"could not join the Ray cluster at 127.0.0.1:9"):
            backstage.wait_for_ray()


def test_nothing_is_started_for_nothing(cache_dir: Path) -> None:
    with Backstage(make_study(cache_dir), address=None) as backstage:
        pass
    assert not make_zygote_path(backstage.token).exists()
