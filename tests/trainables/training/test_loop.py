from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_configs import random_dataset, random_set, tiny_trial
from trainables.config import TrialConfig
from trainables.data.dataset import Dataset
from trainables.errors import CheckpointError, ConfigError, DivergedError
from trainables.models.networks import Classifier
from trainables.storage.folder import Folder
from trainables.training.loop import Outcome, resolve_precision, train_model, write_missing_epochs
from trainables.trial import build_initial_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def config(**sections: Any) -> TrialConfig:
    training = {"epochs": 3, "batch_size": 16, "label_fraction": 1.0, **sections.pop("training", {})}
    return tiny_trial(training=training, **sections)


def train(
    folder: Path, settings: TrialConfig, data: Dataset | None = None, report: Any = lambda record: None
) -> tuple[Outcome, Classifier, list[dict[str, Any]]]:
    data = data or random_dataset()
    model = build_initial_model(settings, data, encoder=None)
    outcome = train_model(model, data, settings, signature="mine", folder=Folder(folder), report=report)
    return outcome, model, Folder(folder).read_lines("epochs.jsonl")


def test_training_learns(tmp_path: Path) -> None:
    outcome, _, epochs = train(tmp_path, config(training={"epochs": 10, "learning_rate": 0.01}))
    assert epochs[-1]["metrics"]["train/loss"] < 0.7 * epochs[0]["metrics"]["train/loss"]
    assert outcome.epochs == 10
    # The learning rate is that of the last step: a cosine that has all but ended.
    assert epochs[-1]["metrics"]["learning_rate"] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 29 / 30)))


@pytest.mark.parametrize(
    "arm",
    [
        {"regulariser": {"kind": "spectral_decoupling", "weight": 0.1, "delay_steps": 1}},
        {"regulariser": {"kind": "spectral_decoupling", "weight": (0.1, 0.2), "group_by": "site"}},
        {"regulariser": {"kind": "label_smoothing"}, "training": {"class_weights": "balanced"}},
        {"regulariser": {"kind": "mixup"}, "training": {"optimiser": "sgd"}},
        {"regulariser": {"kind": "cutmix"}},
        {"regulariser": {"kind": "sam"}, "training": {"gradient_clip_norm": 0.1}},
        {"regulariser": {"kind": "group_dro", "group_by": ["class", "site"], "adjustment": 1.0}},
        {
            "regulariser": {
                "kind": "combined",
                "weight_decay": {"weight": 0.1},
                "spectral_decoupling": {"weight": 0.1},
                "label_smoothing": {},
                "dropout": {},
                "mixup": {},
                "sam": {"adaptive": True, "rho": 0.5},
            }
        },
        {"augmentation": {"kind": "trivialaugment", "erasing": 0.5}, "training": {"gradient_clip_norm": 0.1}},
        {"augmentation": {"kind": "randaugment", "horizontal_flip": True, "crop_scale_min": 0.5}},
    ],
)
def test_every_option_trains_and_is_reproducible(tmp_path: Path, arm: dict[str, Any]) -> None:
    arm["training"] = {"epochs": 1, **arm.get("training", {})}
    _, first, epochs = train(tmp_path / "one", config(**arm))
    _, second, _ = train(tmp_path / "two", config(**arm))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    terms = epochs[0]["metrics"]
    names = ("train/cross_entropy", "train/group_dro", "train/spectral_decoupling")
    parts = [terms[name] for name in names if name in terms]
    assert terms["train/loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_another_replicate_is_another_training(tmp_path: Path) -> None:
    first, second = (train(tmp_path / str(i), config(replicate=i, training={"epochs": 1}))[1] for i in (0, 1))
    assert not torch.equal(first.head.weight, second.head.weight)


def test_nan_input_and_huge_rates_are_divergence(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"not finite|training loss is (nan|inf)"):
        train(tmp_path, config(training={"learning_rate": 1e6, "optimiser": "sgd"}))
    assert not (tmp_path / "model.safetensors").exists()


def test_divergence_names_epoch_and_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "normalise", lambda self, images: images.float() * float("nan"))
    with pytest.raises(DivergedError, match=r"epoch 1: the mean training loss is nan; lower training.learning_rate"):
        train(tmp_path, config())
    assert Folder(tmp_path).read_lines("epochs.jsonl") == []


def test_patience_stops_and_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([(0.5, 1.0), (0.7, 0.6), (0.6, 0.1), (0.7, 0.9), (0.1, 2.0), (0.9, 0.2)])
    monkeypatch.setattr(
        "trainables.training.loop._Trainer._validate",
        lambda self: dict(zip(("val/accuracy", "val/loss"), next(values), strict=True)),
    )
    kept: dict[int, torch.Tensor] = {}
    settings = config(training={"epochs": 6, "patience": 3, "select_by": "accuracy"})
    data = random_dataset()
    model = build_initial_model(settings, data, encoder=None)

    def report(record: dict[str, Any]) -> None:
        kept[record["epoch"]] = model.head.weight.detach().clone()

    outcome = train_model(model, data, settings, signature="mine", folder=Folder(tmp_path), report=report)
    # .7 again in epoch 4 is no improvement, so three epochs after epoch 2 it is over; the loss was lower in epoch 2.
    assert outcome == Outcome(epochs=5, best_epoch=2)
    assert torch.equal(model.head.weight, kept[2])
    assert not torch.equal(model.head.weight, kept[5])


def test_the_smallest_loss_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.2, 0.6])
    monkeypatch.setattr("trainables.training.loop._Trainer._validate", lambda self: {"val/loss": next(values)})
    assert train(tmp_path, config(training={"select_by": "loss"}))[0].best_epoch == 2


SCORES = {1: (0.5, 0.9), 2: (0.7, 0.8), 3: (0.7, 0.6), 4: (0.7, 0.6), 5: (0.7, 0.7), 6: (0.6, 0.1)}


def validate(self: Any) -> dict[str, float]:
    """Stand in for ``_Trainer._validate``: accuracy and loss of ``SCORES``."""
    return dict(zip(("val/accuracy", "val/loss"), SCORES[self.state.epoch + 1], strict=True))


@pytest.mark.parametrize(("select", "expected"), [("best", 4), ("last", 6)])
@pytest.mark.parametrize("interrupted_after", [3, 5])
def test_ties_and_the_last_epoch_are_the_same_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str, expected: int, interrupted_after: int
) -> None:
    monkeypatch.setattr("trainables.training.loop._Trainer._validate", validate)
    settings = config(training={"epochs": 6, "select": select, "select_by": "accuracy"})
    heads: dict[int, torch.Tensor] = {}
    data, folder = random_dataset(), Folder(tmp_path / "whole")
    whole = build_initial_model(settings, data, encoder=None)

    def keep(record: dict[str, Any]) -> None:
        heads[record["epoch"]] = whole.head.weight.detach().clone()

    outcome = train_model(whole, data, settings, signature="mine", folder=folder, report=keep)
    assert outcome == Outcome(epochs=6, best_epoch=expected)
    assert torch.equal(whole.head.weight, heads[expected])
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", settings, report=interrupt_after(interrupted_after))
    again, resumed, _ = train(tmp_path / "cut", settings)
    assert again == outcome
    assert torch.equal(whole.head.weight, resumed.head.weight)


def test_the_last_epoch_needs_no_defined_value_unless_patience_reads_it(tmp_path: Path) -> None:
    data = random_dataset()
    val = data.splits["val"]
    one_class = replace(data, splits={**data.splits, "val": replace(val, labels=val.labels * 0)})
    settings = {"epochs": 2, "select": "last", "select_by": "auroc"}
    assert train(tmp_path / "last", config(training=settings), one_class)[0] == Outcome(epochs=2, best_epoch=2)
    with pytest.raises(ConfigError, match="auroc is not defined"):
        train(tmp_path / "patient", config(training={**settings, "patience": 1}), one_class)


def test_patience_ends_a_training_whose_last_epoch_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.training.loop._Trainer._validate", validate)
    settings = config(training={"epochs": 6, "patience": 2, "select": "last", "select_by": "accuracy"})
    assert train(tmp_path, settings)[0] == Outcome(epochs=4, best_epoch=4)


def test_selection_and_training_see_validation_and_nothing_else(tmp_path: Path) -> None:
    data = random_dataset()
    swapped = replace(
        data,
        splits={**data.splits, "test": random_set("other-test", 30)},
        external={"far-away": random_set("far-away", 6)},
    )
    _, first, epochs = train(tmp_path / "one", config(), data)
    _, second, others = train(tmp_path / "two", config(), swapped)
    assert torch.equal(first.head.weight, second.head.weight)
    assert [e["metrics"]["val/loss"] for e in epochs] == [e["metrics"]["val/loss"] for e in others]
    # Another validation set changes what is measured, not what is learnt.
    swapped = replace(data, splits={**data.splits, "val": random_set("other-val", 30)})
    _, _, others = train(tmp_path / "three", config(), swapped)
    assert [e["metrics"]["train/loss"] for e in epochs] == [e["metrics"]["train/loss"] for e in others]
    assert [e["metrics"]["val/loss"] for e in epochs] != [e["metrics"]["val/loss"] for e in others]


def test_selection_by_an_undefined_metric_is_refused(tmp_path: Path) -> None:
    data = random_dataset()
    val = random_set("val", 20, num_classes=2)  # class 2 is absent
    with pytest.raises(ConfigError, match=r"training.select_by: auroc is not defined on the 20 validation images"):
        train(tmp_path, config(training={"select_by": "auroc"}), replace(data, splits={**data.splits, "val": val}))


# --------------------------------------------------------------------------- resume


class Interrupted(BaseException):
    """Not an Exception: nothing may catch it."""


def interrupt_after(epoch: int) -> Any:
    def report(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise Interrupted

    return report


def test_a_damaged_last_checkpoint_costs_one_epoch_and_nothing_else(tmp_path: Path) -> None:
    _, whole, expected = train(tmp_path / "whole", config())
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", config(), report=interrupt_after(2))
    folder = Folder(tmp_path / "cut")
    folder.write("checkpoint.safetensors", folder.read("checkpoint.safetensors")[:-5])
    with (tmp_path / "cut" / "epochs.jsonl").open("ab") as file:
        file.write(b'{"epoch": 3, "torn')
    done = []
    _, resumed, found = train(tmp_path / "cut", config(), report=lambda record: done.append(record["epoch"]))
    assert done == [2, 3]
    assert [e["metrics"]["val/loss"] for e in found] == [e["metrics"]["val/loss"] for e in expected]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    outcome, first, _ = train(tmp_path, config())
    done: list[Any] = []
    again, second, _ = train(tmp_path, config(), report=done.append)
    assert done == []
    assert again == outcome
    assert torch.equal(first.head.weight, second.head.weight)


def test_another_trials_checkpoint_is_refused(tmp_path: Path) -> None:
    settings, data = config(), random_dataset()
    train(tmp_path, settings)
    model = build_initial_model(settings, data, encoder=None)
    with pytest.raises(CheckpointError, match="written by the trial mine, expected other"):
        train_model(model, data, settings, signature="other", folder=Folder(tmp_path), report=lambda record: None)


@pytest.mark.parametrize("content", [None, b"", b'{"epoch": 1}\n{"epoch": 2}\n', b'{"epoch": 1}\n{"ep', b"{\n"])
def test_epoch_lines_are_brought_to_what_the_checkpoint_knows(tmp_path: Path, content: bytes | None) -> None:
    folder = Folder(tmp_path)
    if content is not None:
        folder.write("epochs.jsonl", content)
    write_missing_epochs(folder, [{"epoch": 1}])
    assert folder.read("epochs.jsonl") == b'{"epoch": 1}\n'


@pytest.mark.parametrize("regulariser", ["none", "dropout"])
def test_a_linear_probe_leaves_the_backbone_as_it_was(tmp_path: Path, regulariser: str) -> None:
    settings = config(training={"backbone_learning_rate_factor": 0.0}, regulariser={"kind": regulariser})
    before = build_initial_model(settings, random_dataset(), encoder=None)
    _, after, epochs = train(tmp_path, settings)
    for name, value in before.encoder_state().items():  # batch statistics and their counters included
        assert torch.equal(value, after.encoder_state()[name]), name
    assert not torch.equal(next(before.head.parameters()), next(after.head.parameters()))
    assert epochs[-1]["metrics"]["train/loss"] < epochs[0]["metrics"]["train/loss"]


def test_precision() -> None:
    training = config().training
    assert resolve_precision(training, CPU) == torch.float32
    assert resolve_precision(training, torch.device("cuda")) == torch.bfloat16
    asked = config(training={"precision": "bfloat16"}).training
    assert resolve_precision(asked, torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ConfigError, match="found bfloat16 on a CPU"):
        resolve_precision(asked, CPU)
    assert resolve_precision(config(training={"precision": "float32"}).training, torch.device("cuda")) == torch.float32


def test_selected_weights_are_written_once_they_are_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.7, 0.6, 0.4, 0.9, 0.95])
    monkeypatch.setattr("trainables.training.loop._Trainer._validate", lambda self: {"val/accuracy": next(values)})
    settings, data = config(training={"epochs": 6, "select_by": "accuracy"}), random_dataset()
    model = build_initial_model(settings, data, encoder=None)
    folder = Folder(tmp_path)
    found: list[list[str]] = []

    def report(record: dict[str, Any]) -> None:
        found.append([name for name in folder.children() if name.startswith("best-")])

    train_model(model, data, settings, signature="mine", folder=folder, report=report)
    # Epoch 2 is best until 5; the checkpoint before epoch 5's still names it.
    assert found == [[], [], ["best-2.safetensors"], ["best-2.safetensors"], ["best-2.safetensors"], []]


@pytest.mark.parametrize("interrupted_after", [1, 2, 3, 4])
@pytest.mark.parametrize("damaged", [False, True])
def test_the_selected_weights_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_after: int, damaged: bool
) -> None:
    values = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.65, 5: 0.1}
    monkeypatch.setattr(
        "trainables.training.loop._Trainer._validate", lambda self: {"val/accuracy": values[self.state.epoch + 1]}
    )
    settings = config(training={"epochs": 5, "select_by": "accuracy"})
    _, whole, _ = train(tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", settings, report=interrupt_after(interrupted_after))
    folder = Folder(tmp_path / "cut")
    if damaged:
        folder.write("checkpoint.safetensors", b"torn")
    outcome, resumed, _ = train(tmp_path / "cut", settings)
    assert outcome == Outcome(epochs=5, best_epoch=2)
    assert torch.equal(whole.head.weight, resumed.head.weight)


@pytest.mark.parametrize(
    "regulariser",
    [
        {"kind": "sam"},
        {"kind": "cutmix"},
        {"kind": "combined", "group_dro": {"group_by": ["class", "site"]}, "sam": {}, "dropout": {}},
    ],
)
def test_an_interruption_changes_no_bit_of_a_regularisers_state(tmp_path: Path, regulariser: dict[str, Any]) -> None:
    settings = config(regulariser=regulariser, training={"epochs": 2})
    _, whole, expected = train(tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", settings, report=interrupt_after(1))
    _, resumed, found = train(tmp_path / "cut", settings)
    for (name, mine), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    timed = {"seconds", "images_per_second", "system/cpu_utilization_percentage", "system/rss_mib"}
    for mine, theirs in zip(expected, found, strict=True):
        assert [mine["metrics"][key] for key in mine["metrics"] if key not in timed] == [
            theirs["metrics"][key] for key in mine["metrics"] if key not in timed
        ]


def test_group_weights_and_losses_are_in_the_record_of_an_epoch(tmp_path: Path) -> None:
    settings = config(regulariser={"kind": "group_dro", "step_size": 0.5}, training={"epochs": 2})
    _, _, epochs = train(tmp_path, settings)
    metrics = epochs[-1]["metrics"]
    weights = [metrics[f"train/group_weight/site_{site}"] for site in "ab"]
    losses = [metrics[f"train/group_loss/site_{site}"] for site in "ab"]
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert abs(weights[0] - 0.5) > 1e-3  # they have moved
    assert metrics["train/worst_group_loss"] == max(losses)


def test_weight_decay_is_in_the_record_of_an_epoch(tmp_path: Path) -> None:
    _, _, epochs = train(tmp_path, config(regulariser={"kind": "weight_decay"}, training={"epochs": 1}))
    assert epochs[0]["metrics"]["train/weight_decay"] > 0.0
