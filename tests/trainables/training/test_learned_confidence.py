from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from tests.support.tiny_configs import random_dataset, random_set, tiny_trial
from trainables.confidence_config import NoConfidence
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.evaluation.detection.risk_coverage import measure_ap
from trainables.evaluation.predictions import keep, predict, predict_each
from trainables.models.confidence import ConfidNetBranch, get_branch
from trainables.models.model_scores import build_model_scores
from trainables.models.networks import Classifier
from trainables.storage.checkpoint import restore_module, unpack
from trainables.storage.completeness import EPOCHS
from trainables.storage.folder import Folder
from trainables.training import acceleration
from trainables.training.acceleration import Choice
from trainables.training.confidnet import describe_undefined, train_confidnet, true_class_probability
from trainables.training.loop import train_model
from trainables.training.selection import CONFIDENCE_AP, CONFIDENCE_LOSS, select_confidence_epoch
from trainables.trial import build_initial_model, run_trial

CPU = torch.device("cpu")
CONFIDNET = {"kind": "confidnet", "epochs": 2, "fine_tuning_epochs": 2, "hidden_units": 16, "hidden_layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "deep_gamblers": {"kind": "deep_gamblers", "reward": 2.0, "pretrain_epochs": 1},
    "devries": {"kind": "devries"},
    "confidnet": CONFIDNET,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def configure(kind: str, **sections: Any) -> TrialConfig:
    training = {"epochs": 3, "batch_size": 16, "label_fraction": 1.0, **sections.pop("training", {})}
    return tiny_trial(training={**training, "confidence": KINDS[kind]}, **sections)


def train(
    folder: Path, settings: TrialConfig, data: Dataset | None = None, report: Any = lambda record: None
) -> Classifier:
    """Train classifier and confidence as ``trial._train`` does."""
    data = data or random_dataset()
    model = build_initial_model(settings, data, encoder=None)
    place = Folder(folder)
    train_model(model, data, settings, signature="mine", folder=place, report=report)
    if settings.training.confidence.kind == "confidnet":
        train_confidnet(model, data, settings, signature="mine", folder=place, report=report, acceleration=Choice())
    return model


def predicted(model: Classifier, data: Dataset, name: str = "test") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    feed = ImageFeed(data.splits[name], CPU)
    scores = build_model_scores(model, mc_dropout=0, seed=0)
    found = predict_each(model, feed, [keep], batch_size=64, precision=torch.float32, scores=scores)
    return found.logits[0], {name: values[0] for name, values in found.scores.items()}


class Interrupted(BaseException):
    """Not an Exception: nothing may catch it."""


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = {"seconds", "images_per_second", "system/cpu_utilization_percentage", "system/rss_mib"}
    return [
        {"epoch": record["epoch"], **{key: value for key, value in record["metrics"].items() if key not in timed}}
        for record in records
    ]


DROPOUT = {"kind": "dropout"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Classifier]]:
    """Return folder and model of a kind's training, which is run once."""

    @cache
    def run(kind: str) -> tuple[Path, Classifier]:
        folder = tmp_path_factory.mktemp(kind)
        return folder, train(folder, configure(kind, regulariser=DROPOUT))

    return run


@pytest.mark.parametrize(
    ("kind", "interrupted_after", "damaged"),
    [
        ("deep_gamblers", 1, False),
        ("deep_gamblers", 2, True),
        ("devries", 2, False),
        *(("confidnet", epoch, False) for epoch in range(3, 7)),
        ("confidnet", 4, True),
        ("confidnet", 5, True),
        ("confidnet", 6, True),
    ],
)
def test_an_interruption_at_any_epoch_changes_no_bit(
    uninterrupted: Callable[[str], tuple[Path, Classifier]],
    tmp_path: Path,
    kind: str,
    interrupted_after: int,
    damaged: bool,
) -> None:
    settings, (folder, whole) = configure(kind, regulariser=DROPOUT), uninterrupted(kind)

    def interrupt(record: dict[str, Any]) -> None:
        if record["epoch"] == interrupted_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(tmp_path, settings, report=interrupt)
    if damaged:
        place = Folder(tmp_path)
        place = place / "confidence" if place.exists("confidence/checkpoint.safetensors") else place
        place.write("checkpoint.safetensors", place.read("checkpoint.safetensors")[:-5])
    done: list[int] = []
    resumed = train(tmp_path, settings, report=lambda record: done.append(record["epoch"]))
    last = settings.training.total_epochs
    assert done == list(range(interrupted_after + (not damaged), last + 1))
    for (name, mine), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    lines = [without_times(Folder(each).read_lines(EPOCHS)) for each in (folder, tmp_path)]
    assert lines[0] == lines[1]
    assert [line["epoch"] for line in lines[0]] == list(range(1, last + 1))


def test_confidnet_leaves_the_classifier_as_it_was(
    uninterrupted: Callable[[str], tuple[Path, Classifier]], tmp_path: Path
) -> None:
    data, settings = random_dataset(), configure("confidnet", regulariser=DROPOUT)
    training = settings.training.model_copy(update={"confidence": NoConfidence()})
    plain = settings.model_copy(update={"training": training})
    expected, (_, model) = train(tmp_path, plain, data), uninterrupted("confidnet")
    mine = model.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(value, mine[name]), name
    assert all(name.startswith("confidence.") for name in mine.keys() - expected.state_dict().keys())
    assert np.array_equal(predicted(expected, data)[0], predicted(model, data)[0])


def test_confidnet_moves_layers_and_then_the_copied_encoder(tmp_path: Path) -> None:
    data, settings = random_dataset(), configure("confidnet")
    states: dict[int, dict[str, torch.Tensor]] = {}

    def keep_state(record: dict[str, Any]) -> None:
        path = tmp_path / "confidence" / "checkpoint.safetensors"
        if record["epoch"] > 3:
            states[record["epoch"]] = {name: value.clone() for name, value in load_file(path).items()}

    model = train(tmp_path, settings, data, report=keep_state)
    branch = get_branch(model)
    assert isinstance(branch, ConfidNetBranch)
    assert branch.encoder is not None

    def moved(first: int, second: int, part: str) -> bool:
        names = [name for name in states[first] if name.startswith(part) and states[first][name].is_floating_point()]
        assert names
        return any(not torch.equal(states[first][name], states[second][name]) for name in names)

    encoder, layers = "model.confidence.encoder.backbone.conv5.0", "model.confidence.layers"
    assert moved(4, 5, layers)
    assert not moved(4, 5, encoder)
    assert moved(5, 6, layers)
    assert moved(5, 6, encoder)
    # Batch statistics stay the classifier's.
    for name, value in model.backbone.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(value, branch.encoder.backbone.state_dict()[name]), name


def test_the_branch_of_the_best_epoch_is_kept_and_fine_tuning_begins_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measure is scikit-learn's; a script says which epoch is the best."""
    data = random_dataset()
    # At a rate of nothing the layers stay those that fine-tuning begins with.
    monkeypatch.setitem(KINDS, "confidnet", {**CONFIDNET, "epochs": 3, "fine_tuning_learning_rate": 1e-12})
    script, measured = [0.2, 0.6, 0.4, 0.5, 0.1], []

    def measure(counts: Any) -> float:
        measured.append(float(measure_ap(counts)))
        return script[len(measured) - 1]

    monkeypatch.setattr("trainables.training.confidnet.measure_ap", measure)
    models: dict[int, dict[str, torch.Tensor]] = {}

    def keep_model(record: dict[str, Any]) -> None:
        if record["epoch"] > 3:
            tensors = load_file(tmp_path / "confidence" / "checkpoint.safetensors")
            models[record["epoch"]] = {name: value.clone() for name, value in unpack("model", tensors).items()}
        if record["epoch"] == 6:  # fine-tuning begins in another process
            raise Interrupted

    with pytest.raises(Interrupted):
        train(tmp_path, configure("confidnet"), data, report=keep_model)
    model = train(tmp_path, configure("confidnet"), data, report=keep_model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, models[5][name]), name
        if name.startswith("confidence.layers"):
            torch.testing.assert_close(models[7][name], value)
            assert not torch.equal(models[6][name], value), name
    labels, expected = data.splits["val"].labels, []
    for weights in models.values():
        restore_module(model, weights, origin="memory")
        logits, scores = predicted(model, data, "val")
        expected.append(average_precision_score(logits.argmax(1) != labels, -scores["confidnet"]))
    assert measured == pytest.approx(expected)


def test_of_equal_epochs_of_confidnet_the_one_with_the_smaller_loss_is_kept_and_then_the_latest() -> None:
    def choose(*epochs: tuple[float | None, float]) -> int:
        return select_confidence_epoch(
            [
                {"epoch": 4 + i, "metrics": {CONFIDENCE_LOSS: loss} | ({} if ap is None else {CONFIDENCE_AP: ap})}
                for i, (ap, loss) in enumerate(epochs)
            ]
        )

    assert choose((0.5, 0.1), (0.7, 0.3), (0.6, 0.05)) == 5
    assert choose((0.7, 0.2), (0.7, 0.1), (0.7, 0.1), (0.6, 0.0)) == 6
    assert choose((None, 0.2), (None, 0.1), (None, 0.3)) == 5


def test_without_an_error_on_validation_the_loss_chooses_and_the_result_says_so(tmp_path: Path) -> None:
    data = random_dataset()
    model = build_initial_model(configure("confidnet"), data, encoder=None).eval()
    val = data.splits["val"]
    logits, _ = predict(model, val, batch_size=64, precision=torch.float32)
    right = replace(data, splits={**data.splits, "val": replace(val, labels=logits.argmax(1))})
    settings = {"signature": "mine", "folder": Folder(tmp_path), "report": lambda record: None}
    best = train_confidnet(model, right, configure("confidnet"), acceleration=Choice(), **settings)
    records = Folder(tmp_path).read_lines(EPOCHS)
    losses = [record["metrics"][CONFIDENCE_LOSS] for record in records]
    assert best == 1 + losses.index(min(losses))
    assert "chosen by the loss" in describe_undefined(records)[CONFIDENCE_AP]
    assert describe_undefined([{"metrics": {CONFIDENCE_LOSS: 0.1, CONFIDENCE_AP: 0.5}}]) == {}
    assert describe_undefined([{"metrics": {"val/loss": 0.1}}]) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_runs_and_goes_on_with_what_a_probe_decides(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The probe is a real one; what it decides is set, since on a CPU it would mostly keep the default."""
    choice, compiled = Choice(memory_format="channels_last", compiled=True), []
    monkeypatch.setattr(acceleration, "_TIMED_SECONDS", 0.0)
    probe = acceleration.probe
    decide = {"choice": choice}
    monkeypatch.setattr(acceleration, "probe", lambda *args, **kw: probe(*args, **kw).model_copy(update=decide))
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: compiled.append(forward) or forward)  # 15 s
    settings = configure(
        kind,
        model={"name": "timm/test_resnet"},
        training={"label_fraction": 0.05},
        evaluation={"shifts": [], "confidence_scores": [kind]},
    )
    execution = Execution(device="cpu", cache_dir=cache_dir, acceleration=str(tmp_path / "acceleration"))

    def run(name: str, report: Any = lambda event: None) -> dict[str, Any]:
        return run_trial(settings, signature="s", folder=Folder(tmp_path / name), execution=execution, report=report)

    def interrupt(event: dict[str, Any]) -> None:
        if event.get("epoch") in (2, 6):
            raise Interrupted

    whole = run("whole")
    assert whole["environment"].items() >= {**choice.model_dump(), "acceleration": "probe"}.items()
    assert whole["metrics"][f"failure/{kind}/augrc"] < 0.5
    assert compiled
    for _ in range(2 if kind == "confidnet" else 1):
        with pytest.raises(Interrupted):
            run("broken", interrupt)
    assert run("broken")["checkpoint_sha256"] == whole["checkpoint_sha256"]
    stored = Folder(tmp_path / "broken").read("predictions/test.npz")
    again = run("broken")  # from the weights alone
    for key in ("metrics", "undefined", "best_epoch"):
        assert again[key] == whole[key], key
    epochs = [whole.get("confidence_epoch"), again.get("confidence_epoch")]
    assert epochs[0] == epochs[1]
    assert epochs[0] in (range(4, 8) if kind == "confidnet" else [None])
    assert stored == Folder(tmp_path / "whole").read("predictions/test.npz")


def test_confidnet_learns_the_true_classs_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_dataset()
    monkeypatch.setitem(KINDS, "confidnet", {**CONFIDNET, "epochs": 15, "learning_rate": 0.01})
    settings = configure("confidnet")
    train(tmp_path, settings, data)
    losses = [line["metrics"]["confidence/train_loss"] for line in Folder(tmp_path).read_lines(EPOCHS)[3:]]
    assert losses[-1] < 0.5 * losses[0]
    logits = torch.tensor([[0.0, 1.0, 0.0]])
    assert true_class_probability(logits, torch.tensor([1])).item() == pytest.approx(np.e / (np.e + 2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_log_odds_of_the_confidence(tmp_path: Path, kind: str) -> None:
    data, settings = random_dataset(), configure(kind)
    model = train(tmp_path, settings, data).eval()
    logits, scores = predicted(model, data)
    assert set(scores) == {kind}
    assert logits.shape == (24, 3)
    images = model.normalise(torch.from_numpy(data.splits["test"].images))
    with torch.no_grad():
        if kind == "confidnet":
            branch = get_branch(model)
            assert isinstance(branch, ConfidNetBranch)
            assert branch.encoder is not None
            expected = branch(branch.encoder.forward_features(images)[1]).sigmoid()
        else:
            outputs = model.forward_outputs(images)
            expected = outputs[:, -1].sigmoid() if kind == "devries" else 1 - outputs.softmax(1)[:, -1]
            assert torch.equal(outputs[:, :-1], model(images))
    np.testing.assert_allclose(1 / (1 + np.exp(-scores[kind])), expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["deep_gamblers", "devries"])
def test_arms_share_every_initial_weight_of_the_classifier(kind: str) -> None:
    data = random_dataset()
    plain, model = (build_initial_model(each, data, encoder=None) for each in (tiny_trial(), configure(kind)))
    state = torch.get_rng_state()
    build_initial_model(tiny_trial(), data, encoder=None)
    assert torch.equal(torch.get_rng_state(), state)  # and the draws of dropout after it
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    another = build_initial_model(configure(kind, replicate=1), data, encoder=None)
    name = "confidence.layer.weight"
    assert not torch.equal(model.state_dict()[name], another.state_dict()[name])


@pytest.mark.parametrize("kind", ["deep_gamblers", "devries"])
@pytest.mark.parametrize(
    "arm",
    [
        {"regulariser": {"kind": "sam"}},
        {"regulariser": {"kind": "combined", "group_dro": {}, "spectral_decoupling": {}, "weight_decay": {}}},
        {"training": {"class_weights": "balanced", "backbone_learning_rate_factor": 0.0}},
        {"augmentation": {"kind": "trivialaugment", "erasing": 0.5}, "training": {"gradient_clip_norm": 0.1}},
    ],
)
def test_the_losses_go_with_the_other_settings(tmp_path: Path, kind: str, arm: dict[str, Any]) -> None:
    arm = {**arm, "training": {"epochs": 2, **arm.get("training", {})}}
    train(tmp_path, configure(kind, **arm))
    metrics = Folder(tmp_path).read_lines(EPOCHS)[-1]["metrics"]
    names = ("cross_entropy", "deep_gamblers", "group_dro", "spectral_decoupling", "confidence_penalty")
    parts = [metrics[f"train/{name}"] for name in names if f"train/{name}" in metrics]
    assert metrics["train/loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert ("train/confidence_weight" in metrics) == (kind == "devries")


def test_a_model_with_a_branch_is_read_back_whole(tmp_path: Path) -> None:
    data, settings = random_dataset(), configure("devries")
    model = train(tmp_path, settings, data)
    again = build_initial_model(settings, data, encoder=None)
    restore_module(again, model.state_dict(), origin="memory")
    assert np.array_equal(predicted(model, data)[1]["devries"], predicted(again, data)[1]["devries"])
    plain, _ = predict(model, data.splits["test"], batch_size=64, precision=torch.float32)
    assert np.array_equal(plain, predicted(model, data)[0])


def make_half_hard(name: str, num_images: int) -> ImageSet:
    """Return images of three classes, a bright third each; of every second one the class is a guess: it has none."""
    generator = np.random.default_rng([7, len(name), num_images])
    labels = generator.integers(0, 3, num_images)
    images = generator.integers(0, 60, (num_images, 1, 16, 16), dtype=np.uint8)
    for row in np.flatnonzero(np.arange(num_images) % 2):
        images[row, :, 5 * labels[row] : 5 * labels[row] + 5] += 150
    return replace(
        random_set(name, num_images),
        images=images,
        labels=labels,
        groups=np.array([f"{name}-{i}" for i in range(num_images)]),
    )


@pytest.mark.parametrize(
    "confidence",
    [
        {"kind": "deep_gamblers", "reward": 2.2},
        {"kind": "devries"},
        {"kind": "confidnet", "epochs": 10, "fine_tuning_epochs": 1, "learning_rate": 1e-3},
    ],
    ids=lambda confidence: confidence["kind"],
)
def test_a_learned_confidence_ranks_errors_last(tmp_path: Path, confidence: dict[str, Any]) -> None:
    sets = {
        "train": make_half_hard("train", 240),
        "val": make_half_hard("val", 60),
        "test": make_half_hard("test", 300),
    }
    data = replace(random_dataset(), splits=sets, external={})
    settings = tiny_trial(
        model={"name": "timm/test_resnet", "input_size": None},
        training={
            "epochs": 6,
            "batch_size": 32,
            "label_fraction": 1.0,
            "learning_rate": 0.01,
            "confidence": confidence,
        },
    )
    model = train(tmp_path, settings, data)
    logits, scores = predicted(model, data)
    is_correct = logits.argmax(1) == sets["test"].labels
    assert 0.55 < is_correct.mean() < 0.8  # all that can be known, and a third of the guesses
    right, wrong = (scores[confidence["kind"]][is_correct == right] for right in (True, False))
    auroc = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
    assert auroc > 0.8  # .875 where every image without a class is below every other
