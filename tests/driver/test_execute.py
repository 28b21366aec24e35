from __future__ import annotations

import signal
from pathlib import Path

import pytest

from orchestrator.driver.execute import handling_signals, resolve_slots
from orchestrator.driver.prepare import prepare
from orchestrator.study.study_file import parse_study
from trainables.errors import TerminatedError

TEXT = "study: s\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\n"


def test_the_first_signal_asks_and_the_second_insists() -> None:
    said: list[str] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with handling_signals(said.append) as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with handling_signals(said.append) as stop, pytest.raises(TerminatedError):
        signal.raise_signal(signal.SIGTERM)  # whoever sends it will kill soon
    assert len(said) == 1
    assert "go on from their last epoch" in said[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("overrides", "resources", "gpus"),
    [
        ([], {"CPU": 4.0}, 0.0),
        ([], {"CPU": 4.0, "GPU": 2.0}, 1.0),
        (["execution.device=cpu"], {"CPU": 4.0, "GPU": 2.0}, 0.0),
        (["execution.gpus_per_trial=0.25"], {"CPU": 4.0, "GPU": 2.0}, 0.25),
    ],
)
def test_a_trial_takes_a_gpu_where_there_is_one(
    overrides: list[str], resources: dict[str, float], gpus: float, cache_dir: Path, tmp_path: Path
) -> None:
    study = parse_study(TEXT, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    prepared = prepare(study, storage=str(tmp_path))
    said: list[str] = []
    slots = resolve_slots(prepared, resources, print_line=said.append)
    assert (slots.cpus, slots.gpus) == (1.0, gpus)
    assert len(said) == (gpus == 1.0)  # why it takes a whole one
