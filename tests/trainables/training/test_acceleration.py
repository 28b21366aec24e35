from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_configs import random_dataset, tiny_trial
from trainables.config import Execution, TrialConfig
from trainables.errors import CheckpointError, StorageError
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.storage.folder import Folder
from trainables.training import acceleration, provenance
from trainables.training.acceleration import (
    Choice,
    Decision,
    Timing,
    choose,
    decide,
    default_choice,
    describe_key,
    list_candidates,
    probe,
    resolve_memory_format,
)
from trainables.training.loop import train_model
from trainables.trial import build_initial_model, run_trial

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEFAULT, FAST = Choice(), Choice(memory_format="channels_last", precision="bfloat16")
COMPILED = Choice(compiled=True)


def config(**training: Any) -> TrialConfig:
    settings = {"epochs": 2, "batch_size": 16, "label_fraction": 1.0, **training}
    return tiny_trial(model={"name": "timm/test_resnet"}, training=settings)


def network(name: str) -> Classifier:
    return build_model(ModelConfig(name=name), num_classes=2, channels=3, image_size=64)


def timing(choice: Choice, step_seconds: float | None, compile_seconds: float = 0.0) -> Timing:
    return Timing(choice=choice, step_seconds=step_seconds, compile_seconds=compile_seconds)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[Classifier]:
    """``torch.compile`` does nothing but remember what it was given: compiling takes 15 s."""
    seen: list[Classifier] = []

    def compile_nothing(model: Classifier, *, dynamic: bool) -> Callable[[Tensor], Tensor]:
        seen.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return seen


def test_without_a_probe_nothing_changes() -> None:
    model = network("timm/test_resnet")
    contiguous = Choice(memory_format="contiguous", precision="float32", compiled=False)
    assert default_choice(ModelConfig(), model, torch.float32, CPU) == contiguous
    assert default_choice(ModelConfig(), model, torch.bfloat16, GPU) == FAST
    assert FAST.dtype == torch.bfloat16
    assert DEFAULT.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "is_depthwise"),
    [("timm/tf_efficientnet_lite0", True), ("mobilenet_v2", True), ("timm/test_convnext", True), ("resnet18", False),
     ("resnext50_32x4d", False), ("vgg11", False)],
)  # fmt: skip
def test_networks_with_depthwise_convolutions_run_with_channels_last(name: str, is_depthwise: bool) -> None:
    model = network(name)
    assert model.has_depthwise_convolutions == is_depthwise
    expected = "channels_last" if is_depthwise else "contiguous"
    assert default_choice(ModelConfig(), model, torch.float32, CPU).memory_format == expected
    for asked in ("contiguous", "channels_last"):
        for device in (CPU, GPU):
            assert resolve_memory_format(ModelConfig(memory_format=asked), model, device) == asked  # type: ignore[arg-type]


def test_a_memory_format_that_the_study_names_is_not_probed() -> None:
    assert list_candidates(DEFAULT, any_precision=False, any_format=False) == [DEFAULT]


def test_the_default_is_kept_unless_the_gain_is_worth_it() -> None:
    almost, enough = 1.0 / (acceleration.MIN_GAIN - 0.01), 1.0 / (acceleration.MIN_GAIN + 0.01)
    assert choose([timing(DEFAULT, 1.0), timing(FAST, almost)], planned_steps=100) == DEFAULT
    assert choose([timing(DEFAULT, 1.0), timing(FAST, enough)], planned_steps=100) == FAST
    assert choose([timing(DEFAULT, 1.0), timing(FAST, None)], planned_steps=100) == DEFAULT
    assert choose([timing(DEFAULT, None), timing(FAST, 0.1)], planned_steps=100) == DEFAULT


def test_compiling_has_to_pay_off_within_the_training() -> None:
    timings = [timing(DEFAULT, 1.0), timing(COMPILED, 0.5, compile_seconds=40.0)]
    assert choose(timings, planned_steps=79) == DEFAULT
    assert choose(timings, planned_steps=81) == COMPILED


def test_a_trial_that_asks_for_a_precision_gets_it() -> None:
    gpu = default_choice(ModelConfig(), network("timm/test_resnet"), torch.bfloat16, GPU)
    assert len(set(list_candidates(gpu, any_precision=True))) == 4
    asked = list_candidates(gpu, any_precision=False)
    assert asked[0] == gpu
    assert [choice.precision for choice in asked] == ["bfloat16", "bfloat16"]


def clock_of(steps_of_runs: list[list[float]]) -> Callable[[], float]:
    """A clock on which each run of seven steps takes as long as said: (first step, all others)."""

    def ticks() -> Iterator[float]:
        now = 0.0
        for first, other in steps_of_runs:
            for step in range(7):
                yield now
                now += first if step == 0 else other
                yield now

    sequence = ticks()
    return lambda: next(sequence)


def test_the_probe_times_the_trials_own_network(uncompiled: list[Classifier]) -> None:
    # Contiguous and channels_last in turns, no bfloat16 on a CPU, no compiling for 6 steps.
    clock = clock_of([[9.0, 1.5], [0.5, 0.5], [1.0, 1.0], [0.75, 0.75]])
    data = random_dataset()
    decision = probe(config(), data, CPU, default=DEFAULT, clock=clock)
    assert decision.choice == Choice(memory_format="channels_last")
    assert decision.planned_steps == 2 * 3
    assert [timing.step_seconds for timing in decision.timings] == pytest.approx([1.0, 0.5])
    assert decision.timings[0].choice == DEFAULT
    assert decision.key == describe_key(config(), data, CPU)
    assert uncompiled == []


def test_compiling_is_tried_for_a_long_training_only(uncompiled: list[Classifier]) -> None:
    runs = [[9.0, 1.0], [2.0, 2.0], [1.0, 1.0], [2.0, 2.0], [30.0, 0.25]]
    decision = probe(config(epochs=50), random_dataset(), CPU, default=DEFAULT, clock=clock_of(runs))
    assert decision.choice == COMPILED
    assert decision.timings[-1].compile_seconds == pytest.approx(29.75)
    assert len(uncompiled) == 1


def test_what_does_not_run_is_recorded_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Choice, model: Classifier) -> Classifier:
        if self.memory_format == "channels_last":
            raise torch.OutOfMemoryError("no memory left")
        return model

    monkeypatch.setattr(Choice, "place", refuse)
    runs = [[1.0, 1.0], [1.0, 1.0]]  # the other candidate never comes to the clock
    decision = probe(config(), random_dataset(), CPU, default=DEFAULT, clock=clock_of(runs))
    assert decision.choice == DEFAULT
    assert [each.failure for each in decision.timings] == [None, "OutOfMemoryError: no memory left"]


def test_a_real_probe_decides_something() -> None:
    decision = probe(config(), random_dataset(), CPU, default=DEFAULT)
    assert [each.failure for each in decision.timings] == [None, None]
    assert decision.choice in [each.choice for each in decision.timings]
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


def test_only_full_batches_are_compiled(uncompiled: list[Classifier]) -> None:
    calls: list[int] = []

    class Counter(Classifier):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, images: Any) -> Any:
            calls.append(len(images))

    model = Counter()
    forward = COMPILED.build_forward(model, 4)
    forward(torch.zeros(4)), forward(torch.zeros(3))
    assert (len(uncompiled), calls) == (1, [4, 3])
    assert DEFAULT.build_forward(model, 4) is model


# ----------------------------------------------------------------------------- one decision for all trials


def decided(choice: Choice, key: dict[str, Any]) -> Decision:
    return Decision(choice=choice, key=key, timings=(), planned_steps=1)


def test_the_first_trial_measures_and_all_others_read(tmp_path: Path) -> None:
    folder, key = Folder(tmp_path / "acceleration"), {"model": "m"}
    calls: list[Choice] = []

    def measure(choice: Choice) -> Decision:
        calls.append(choice)
        time.sleep(0.05)
        return decided(choice, key)

    def ask(choice: Choice) -> Decision:
        return decide(folder, key, lambda: measure(choice), lock=tmp_path / "cache" / "lock")

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, [DEFAULT, FAST, COMPILED, FAST]))
    assert len(calls) == 1
    assert {answer.choice for answer in answers} == {calls[0]}
    other = decide(folder, {"model": "n"}, lambda: decided(FAST, {"model": "n"}), lock=tmp_path / "cache" / "lock")
    assert other.choice == FAST


def test_of_two_nodes_the_earlier_decision_holds(tmp_path: Path) -> None:
    folder, key = Folder(tmp_path / "acceleration"), {"model": "m"}

    def measure() -> Decision:  # another node decides while this one measures
        decide(folder, key, lambda: decided(COMPILED, key), lock=tmp_path / "elsewhere")
        return decided(FAST, key)

    assert decide(folder, key, measure, lock=tmp_path / "lock").choice == COMPILED


@pytest.mark.parametrize("how", ["cut", "emptied", "garbage", "missing"])
def test_a_damaged_decision_has_a_copy(tmp_path: Path, how: str) -> None:
    folder, key = Folder(tmp_path / "acceleration"), {"model": "m"}

    def ask(choice: Choice) -> Choice:
        return decide(folder, key, lambda: decided(choice, key), lock=tmp_path / "lock").choice

    assert ask(FAST) == FAST
    copies = sorted((tmp_path / "acceleration").rglob("*.json"))
    for path in copies:
        data = path.read_bytes()
        path.unlink()
        if how != "missing":
            path.write_bytes({"cut": data[:-9], "emptied": b"", "garbage": b"#" * len(data)}[how])
        assert ask(COMPILED) == FAST
        path.write_bytes(data)
    for path in copies:
        path.write_bytes(b"{}")
    with pytest.raises(StorageError, match=f"{copies[0].name}.* damaged, its copy too; remove the folder"):
        ask(COMPILED)


def test_a_decision_for_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected .*'n'"):
        decide(Folder(tmp_path), {"model": "n"}, lambda: decided(FAST, {"model": "m"}), lock=tmp_path / "lock")


# ----------------------------------------------------------------------------- in a trial


def test_a_trial_runs_as_the_study_has_decided(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[TrialConfig] = []

    def fake_probe(asked: TrialConfig, data: Any, device: torch.device, *, default: Choice) -> Decision:
        probed.append(asked)
        torch.rand(1000)  # a probe draws: no trial may notice
        return decided(Choice(memory_format="channels_last"), describe_key(asked, data, device))

    monkeypatch.setattr(acceleration, "probe", fake_probe)
    settings = config(epochs=1, label_fraction=0.1)
    uri = str(tmp_path / "acceleration")
    runs = {"off": None, "first": uri, "second": uri}
    results = {}
    for name, place in runs.items():
        execution = Execution(device="cpu", cache_dir=cache_dir, acceleration=place)
        results[name] = run_trial(settings, signature="s", folder=Folder(tmp_path / name), execution=execution)
    assert probed == [settings]
    facts = [results[name]["environment"] for name in runs]
    assert [each["acceleration"] for each in facts] == ["off", "probe", "probe"]
    assert {each["precision"] for each in facts} == {"float32"}
    assert [each["memory_format"] for each in facts] == ["contiguous", "channels_last", "channels_last"]
    assert results["first"]["metrics"] == results["second"]["metrics"]
    weights = [results[name]["checkpoint_sha256"] for name in runs]
    assert weights[0] != weights[1] == weights[2]


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_channels_last_goes_on_bit_for_bit(tmp_path: Path, optimiser: str) -> None:
    settings, data = config(epochs=3, optimiser=optimiser), random_dataset()
    choice = Choice(memory_format="channels_last")

    def train(folder: Path, report: Callable[[dict[str, Any]], None]) -> Classifier:
        model = choice.place(build_initial_model(settings, data, encoder=None))
        train_model(model, data, settings, signature="s", folder=Folder(folder), report=report, acceleration=choice)
        return model

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    whole = train(tmp_path / "whole", lambda record: None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop)
    resumed = train(tmp_path / "broken", lambda record: None)
    assert whole.get_parameter("backbone.conv1.0.weight").is_contiguous(memory_format=torch.channels_last)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_peak_memory_of_a_gpu_counts_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("init", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: called.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 1000 * 2**20)
    properties = SimpleNamespace(total_memory=81_000 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    provenance.reset_gpu_peak(CPU)
    assert called == []
    provenance.reset_gpu_peak(GPU)
    assert called == ["init", "empty_cache", "reset_peak_memory_stats"]
    measured = provenance.measure_gpu_memory(GPU)
    assert measured == {"peak_gpu_memory_mib": 1000.0 + provenance.GPU_CONTEXT_MIB, "gpu_memory_mib": 81_000.0}
    assert provenance.measure_gpu_memory(CPU) == {}
