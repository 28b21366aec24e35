from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import NETWORK, random_set
from trainables.data.feed import ImageFeed
from trainables.errors import DivergedError, StorageError
from trainables.evaluation import predictions
from trainables.evaluation.predictions import (
    Predictions,
    _rebatch,
    keep,
    load_predictions,
    predict,
    predict_each,
    save_predictions,
)
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.storage.folder import Folder

IMAGES = random_set("test", 10)


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build_model(ModelConfig(name=NETWORK), num_classes=3, channels=1, image_size=16, dropout=0.5)


def make(features: bool = True) -> Predictions:
    return Predictions(
        "Hôpital – 2",
        np.array(["a", "b-longer", "ü"], dtype=object),
        np.array([0, 1, 1]),
        ("identity/0", "gaussian_noise/3"),
        np.arange(12, dtype=np.float32).reshape(2, 3, 2),
        np.ones((3, 4), dtype=np.float16) if features else None,
        np.array([1, 0, 1]) if features else None,
    )


@pytest.mark.parametrize("features", [True, False])
def test_round_trip(tmp_path: Path, features: bool) -> None:
    folder, written = Folder(tmp_path), make(features)
    save_predictions(folder, written)
    read = load_predictions(folder, written.name)
    assert read.ids.tolist() == ["a", "b-longer", "ü"]
    assert read.ids.dtype.kind == "U"
    assert read.shifts == written.shifts
    assert np.array_equal(read.labels, written.labels)
    assert np.array_equal(read.logits, written.logits)
    assert read.logits.dtype == np.float32
    assert (read.features is not None) == features
    assert (None if read.groups is None else read.groups.tolist()) == ([1, 0, 1] if features else None)
    assert np.array_equal(read.of("gaussian_noise/3"), written.logits[1])


def test_damage_is_an_error_wherever_it_is(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    save_predictions(folder, make())
    name = f"predictions/{make().name}.npz"
    data = folder.read(name)
    for damaged in [b"", b"garbage", *(data[:length] for length in range(1, len(data), 151))]:
        folder.write(name, damaged)
        with pytest.raises(StorageError, match="damaged"):
            load_predictions(folder, make().name)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        folder.write(name, bytes(damaged))
        try:
            read = load_predictions(folder, make().name)
        except StorageError:
            continue
        assert np.array_equal(read.logits, make().logits), position  # of a time in the archive's index, for example
        assert (read.ids.tolist(), read.shifts) == (make().ids.tolist(), make().shifts)
        assert np.array_equal(read.labels, make().labels)
    folder.remove(name)
    with pytest.raises(StorageError, match="could not read"):
        load_predictions(folder, make().name)


def test_batch_size_changes_nothing_that_matters(model: Classifier) -> None:
    whole, features = predict(model, IMAGES, batch_size=256, precision=torch.float32, features=True)
    assert whole.shape == (10, 3)
    assert features is not None
    assert features.dtype == np.float16
    for batch_size in (1, 3, 10):
        parts, _ = predict(model, IMAGES, batch_size=batch_size, precision=torch.float32)
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


def test_the_model_is_evaluated_without_dropout_and_in_order(model: Classifier) -> None:
    model.train()
    first, _ = predict(model, IMAGES, batch_size=4, precision=torch.float32)
    second, _ = predict(model, IMAGES, batch_size=4, precision=torch.float32)
    assert np.array_equal(first, second)
    assert not model.training
    with torch.inference_mode():
        row = model(model.normalise(torch.from_numpy(IMAGES.images[7:8]))).numpy()
    np.testing.assert_allclose(row[0], first[7], rtol=1e-4, atol=1e-5)


def test_transform_gets_the_rows_of_its_batch(model: Classifier) -> None:
    seen = []

    def transform(images: torch.Tensor, rows: slice) -> torch.Tensor:
        seen.append((rows.start, rows.stop))
        assert torch.equal(images, torch.from_numpy(IMAGES.images[rows]))
        return images

    predict(model, IMAGES, batch_size=4, precision=torch.float32, transform=transform)
    assert seen == [(0, 4), (4, 8), (8, 10)]


def test_several_passes_are_each_what_one_alone_gives(model: Classifier) -> None:
    def darken(batch: torch.Tensor, rows: slice) -> torch.Tensor:
        return batch // 2 + rows.start

    passes = []
    feed = ImageFeed(IMAGES, torch.device("cpu"))
    settings = {"batch_size": 4, "precision": torch.float32}
    logits, features, *_ = predict_each(
        model, feed, [keep, darken], num_with_features=1, on_pass=lambda: passes.append(1), **settings
    )
    assert logits.shape == (2, 10, 3)
    assert len(passes) == 2
    for transform, found in zip([keep, darken], logits, strict=True):
        alone, hidden = predict(model, IMAGES, transform=transform, features=True, **settings)
        assert np.array_equal(found, alone)
        assert hidden is not None
        assert features is not None
        assert np.array_equal(hidden, features[0]) == (transform is keep)


def test_features_are_those_of_the_first_pass_in_a_stream_of_full_batches(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream that a GPU gets, on the CPU: its batches run over the ends of passes."""
    sizes: list[int] = []
    stream = predictions._transform_batches
    feed, settings = ImageFeed(IMAGES, torch.device("cpu")), {"batch_size": 4, "precision": torch.float32}
    expected, hidden, *_ = predict_each(model, feed, [keep, keep, keep], num_with_features=2, **settings)

    def full(*args: Any) -> Iterator[torch.Tensor]:
        for batch in _rebatch(stream(*args), 4):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(predictions, "_transform_batches", full)
    found, features, *_ = predict_each(model, feed, [keep, keep, keep], num_with_features=2, **settings)
    assert sizes == [4] * 7 + [2]
    assert hidden is not None
    assert features is not None
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, hidden, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("sizes", [[3, 3, 3, 1], [10], [1] * 10, [4, 4, 2], [2, 7, 1]])
def test_rebatched_images_are_the_same_in_full_batches(sizes: list[int]) -> None:
    images = torch.arange(10)
    batches = list(_rebatch(torch.split(images, sizes), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), images)


def test_bfloat16_gives_float32_logits(model: Classifier) -> None:
    low, _ = predict(model, IMAGES, batch_size=10, precision=torch.bfloat16)
    full, _ = predict(model, IMAGES, batch_size=10, precision=torch.float32)
    assert low.dtype == np.float32
    assert not np.array_equal(low, full)


def test_outputs_that_are_not_finite_stop_the_trial() -> None:
    model = build_model(ModelConfig(name=NETWORK), num_classes=3, channels=1, image_size=16)
    with torch.no_grad():
        model.head.bias[1] = float("nan")
    with pytest.raises(DivergedError, match=r"10 of them, the first test-0; lower training.learning_rate"):
        predict(model, IMAGES, batch_size=4, precision=torch.float32)


def test_large_features_are_clipped_to_float16(model: Classifier) -> None:
    big = build_model(ModelConfig(name=NETWORK), num_classes=3, channels=1, image_size=16)
    hook = big.head.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1e6,), prepend=True)
    _, features = predict(big, IMAGES, batch_size=4, precision=torch.float32, features=True)
    hook.remove()
    assert features is not None
    assert (features == 65504).all()
