from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.tiny_configs import NETWORK, random_set
from trainables.confidence_config import DeVries
from trainables.data.feed import ImageFeed
from trainables.errors import ConfigError
from trainables.evaluation.predictions import keep, predict_each
from trainables.model_config import ModelConfig
from trainables.models import mc_dropout
from trainables.models.confidence import add_confidence
from trainables.models.mc_dropout import MC_DROPOUT_SCORES, DropoutMasks, McDropout, RunningScores
from trainables.models.model_scores import build_model_scores
from trainables.models.networks import Classifier, build_model
from trainables.seeding import derive_seed, uniform

IMAGES = random_set("test", 10)


def build(name: str = NETWORK, dropout: float = 0.5) -> Classifier:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=16, dropout=dropout)
    with torch.no_grad():
        for _ in range(60):  # batch statistics, without which the features are next to 0
            model(model.normalise(torch.from_numpy(IMAGES.images)))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.set_num_threads(1)
    return build()


def plain_scores(shares: np.ndarray) -> dict[str, np.ndarray]:
    """The formulas of Bungert et al. 2023 with all draws at once (draws × n × classes), without regard to rounding."""
    mean, deviation = shares.mean(0), shares.std(0)
    entropy = -(mean * np.log(mean)).sum(1)
    expected = -(shares * np.log(shares)).sum(2).mean(0)
    rows, first = np.arange(len(mean)), mean.argmax(1)
    return {
        "mc_dropout_msr": mean.max(1),
        "mc_dropout_entropy": -entropy,
        "mc_dropout_expected_entropy": -expected,
        "mc_dropout_mutual_information": -(entropy - expected),
        "mc_dropout_score_variance": -deviation.mean(1),
        "mc_dropout_waic": mean.max(1) - deviation[rows, first],
    }


def read(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Undo the scale of the stored scores: log-odds, −log of an uncertainty."""
    found = {name: -np.exp(-scores[:, index]) for index, name in enumerate(MC_DROPOUT_SCORES)}
    found["mc_dropout_msr"] = 1 / (1 + np.exp(-scores[:, 0]))
    found["mc_dropout_waic"] += 1
    return found


def test_running_sums_are_the_formulas_over_all_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(50, 40, 5, generator=generator)
    running = RunningScores()
    for draw in logits:
        running.add(draw)
    expected = plain_scores(logits.double().softmax(2).numpy())
    for name, values in read(running.compute().numpy()).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_by_hand() -> None:
    running = RunningScores()
    for shares in ([0.8, 0.2], [0.4, 0.6]):  # p̄ = .6, .4; σ = .2, .2
        running.add(torch.tensor([shares]).log())
    found = {name: values.item() for name, values in read(running.compute().numpy()).items()}
    assert found["mc_dropout_msr"] == pytest.approx(0.6)
    assert found["mc_dropout_score_variance"] == pytest.approx(-0.2)
    assert found["mc_dropout_waic"] == pytest.approx(0.4)
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    assert found["mc_dropout_entropy"] == pytest.approx(-entropy)


def test_confident_images_do_not_tie() -> None:
    running = RunningScores()
    for shift in (0.0, 0.5):
        running.add(torch.tensor([[20.0 + shift, 0.0], [40.0 + shift, 0.0], [60.0 + shift, 0.0]]))
    scores = running.compute().float()
    for index, name in enumerate(MC_DROPOUT_SCORES):
        if name != "mc_dropout_mutual_information":  # a difference of two entropies, 1e-10 of them left
            assert scores[0, index] < scores[1, index] < scores[2, index], name


def loop(model: Classifier, images: torch.Tensor, draws: int, seed: int) -> np.ndarray:
    """Head passes by hand: the features, masked, times the last layer's weights."""
    layer = model.head[1]
    with torch.no_grad():
        _, features = model.forward_features(images)
        shares = []
        for draw in range(draws):
            key = torch.tensor([derive_seed("mc_dropout", seed, draw, f"{model.head_name}.0")])
            mask = (uniform(key, features.shape[1]) >= 0.5) / 0.5
            shares.append((features * mask @ layer.weight.T + layer.bias).double().softmax(1).numpy())
    return np.stack(shares)


def test_the_scores_of_a_network_are_those_of_a_plain_loop(model: Classifier) -> None:
    images = model.normalise(torch.from_numpy(IMAGES.images))
    scores = build_model_scores(model, mc_dropout=20, seed=3)
    assert scores is not None
    assert scores.names == MC_DROPOUT_SCORES
    with torch.inference_mode():
        logits, features, values = scores.forward(images)
        plain, hidden = model.forward_features(images)
    assert torch.equal(logits, plain)
    assert torch.equal(features, hidden)
    shares = loop(model, images, 20, 3)
    assert shares.std(0).max() > 1e-3
    expected = plain_scores(shares)
    for name, found in read(values.double().numpy()).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_one_pass_of_the_backbone_serves_all_draws(model: Classifier) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    scores = build_model_scores(model, mc_dropout=7, seed=0)
    assert scores is not None
    hook = model.backbone.register_forward_pre_hook(count)
    with torch.inference_mode():
        scores.forward(model.normalise(torch.from_numpy(IMAGES.images)))
    hook.remove()
    assert passes == 1


@pytest.mark.parametrize(
    ("name", "is_head"),
    [(NETWORK, True), ("mobilenet_v3_small", True), ("squeezenet1_1", True), ("alexnet", True), ("vit_b_16", False)],
)
def test_head_passes_and_full_passes_give_the_same_scores(
    name: str, is_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(name=name, input_size=64 if name in ("squeezenet1_1", "alexnet") else None)
    if name == "vit_b_16":
        model = build_model(ModelConfig(name="timm/vit_tiny_patch16_224"), num_classes=3, channels=1, image_size=16)
        next(layer for layer in model.backbone.modules() if isinstance(layer, nn.Dropout)).p = 0.2  # in the backbone
    else:
        model = build_model(config, num_classes=3, channels=1, image_size=64, dropout=0.5)
    images = model.eval().normalise(torch.from_numpy(IMAGES.images[:2]))
    quick = build_model_scores(model, mc_dropout=3, seed=0)
    monkeypatch.setattr(mc_dropout, "_find_tail", lambda *args: None)
    full = build_model_scores(model, mc_dropout=3, seed=0)
    assert quick is not None
    assert full is not None
    assert quick._mc_dropout is not None
    assert quick._mc_dropout.is_in_head_only == is_head
    with torch.inference_mode():
        first, second = quick.forward(images)[2], full.forward(images)[2]
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_scores_depend_on_the_image_and_the_seed_alone(model: Classifier) -> None:
    feed = ImageFeed(IMAGES, torch.device("cpu"))

    def score(batch_size: int, seed: int = 0) -> dict[str, np.ndarray]:
        scores = build_model_scores(model, mc_dropout=5, seed=seed)
        torch.manual_seed(batch_size)  # the global generator plays no part
        settings = {"batch_size": batch_size, "precision": torch.float32, "scores": scores}
        return predict_each(model, feed, [keep, keep], **settings).scores

    whole = score(10)
    assert whole["mc_dropout_msr"].shape == (2, 10)
    assert np.array_equal(whole["mc_dropout_waic"][0], whole["mc_dropout_waic"][1])
    for batch_size in (1, 3):
        for name, values in score(batch_size).items():
            if name != "mc_dropout_mutual_information":
                np.testing.assert_allclose(values, whole[name], rtol=1e-3, atol=1e-4, err_msg=name)
    again = score(10)
    assert all(np.array_equal(again[name], whole[name]) for name in MC_DROPOUT_SCORES)
    assert not np.array_equal(score(10, seed=1)["mc_dropout_msr"], whole["mc_dropout_msr"])


def test_scores_belong_to_their_image_and_transform(model: Classifier) -> None:
    def darken(batch: torch.Tensor, rows: slice) -> torch.Tensor:
        return batch // 3

    add_confidence(model, DeVries(), seed=0)
    feed, scores = ImageFeed(IMAGES, torch.device("cpu")), build_model_scores(model, mc_dropout=4, seed=0)
    settings = {"batch_size": 4, "precision": torch.float32, "scores": scores}
    found = predict_each(model, feed, [keep, darken], num_with_features=1, **settings)
    assert found.scores.keys() == {"devries", *MC_DROPOUT_SCORES}
    assert found.features is not None
    for index, transform in enumerate((keep, darken)):
        alone = predict_each(model, feed, [transform], **settings)
        assert np.array_equal(alone.logits[0], found.logits[index])
        for name, values in alone.scores.items():
            assert np.array_equal(values[0], found.scores[name][index]), name
    plain = predict_each(model, feed, [keep], batch_size=4, precision=torch.float32)
    assert np.array_equal(plain.logits[0], found.logits[0])
    model.confidence = None


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.mc_dropout: looked for dropout .* found no layer"):
        McDropout(build(dropout=0.0), draws=5, seed=0)
    assert build_model_scores(build(dropout=0.0), mc_dropout=0, seed=0) is None


def test_masks_of_maps_drop_whole_channels_where_the_layer_does() -> None:
    model = build()
    model.backbone.maxpool = nn.Sequential(model.backbone.maxpool, nn.Dropout2d(0.5)).eval()
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), DropoutMasks(model, seed=0).applied(0):
        layer = model.backbone.maxpool[1]
        hook = layer.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
        model(model.normalise(torch.from_numpy(IMAGES.images)))
        hook.remove()
    before, after = seen
    is_kept = [bool((after[:, channel] == 2 * before[:, channel]).all()) for channel in range(before.shape[1])]
    is_off = [bool((after[:, channel] == 0).all()) for channel in range(before.shape[1])]
    assert all(kept or off for kept, off in zip(is_kept, is_off, strict=True))  # the same for all images
    assert 0.1 < sum(is_off) / len(is_off) < 0.9


def test_scores_survive_the_file(tmp_path: Path) -> None:
    from trainables.evaluation.predictions import Predictions, load_predictions, save_predictions
    from trainables.storage.folder import Folder

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    written = Predictions(
        "test", np.array(["a", "b", "c"]), np.array([0, 1, 1]), ("identity/0", "blur/1"),
        np.zeros((2, 3, 2), dtype=np.float32), scores={"devries": values, "mc_dropout_msr": values + 1},
    )  # fmt: skip
    save_predictions(Folder(tmp_path), written)
    found = load_predictions(Folder(tmp_path), "test").scores
    assert set(found) == {"devries", "mc_dropout_msr"}
    assert np.array_equal(found["devries"], values)
    with np.load(tmp_path / "predictions" / "test.npz") as arrays:
        assert "scores/mc_dropout_msr" in arrays
