"""Predictions of a model: computed per shift, stored as logits, labels and ids from which metrics are recomputed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int64, UInt8
from torch import Tensor

from trainables.data.dataset import ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.errors import DivergedError, StorageError
from trainables.evaluation.layers import LayerRecorder
from trainables.models.model_scores import ModelScores
from trainables.models.networks import Classifier
from trainables.storage.folder import Folder


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model on one image set, unshifted (row "identity/0") and under every shift."""

    name: str
    ids: np.ndarray
    labels: Int64[np.ndarray, " n"]
    #: "<shift>/<severity>" of each row of ``logits``, which are float32 as the model gives them.
    shifts: tuple[str, ...]
    logits: Float[np.ndarray, "shifts n classes"]
    #: Penultimate features of the unshifted images.
    features: Float16[np.ndarray, "n features"] | None = None
    #: Index of each image's group (patient, eye pair or slide) among those of this set.
    groups: Int64[np.ndarray, " n"] | None = None
    #: Name → per-image confidence that only the model can give (MC dropout, a learned one); higher is more confident.
    scores: Mapping[str, Float32[np.ndarray, "shifts n"]] = field(default_factory=dict)
    #: Penultimate features under every shift but the first, the identity, if they were asked for.
    shifted_features: Float16[np.ndarray, "shifted n features"] | None = None

    #: "histogram", "pooled/<layer>", "spectral/<layer>" (``layers.LayerRecorder``) → values per image, unshifted, and
    #: under the shifts whose features are stored.
    layers: Mapping[str, Float32[np.ndarray, "with_features n _"]] = field(default_factory=dict)

    def of(self, shift: str) -> Float[np.ndarray, "n classes"]:
        """Return the logits under ``shift``, e.g. "gaussian_noise/3"."""
        return self.logits[self.shifts.index(shift)]

    def features_of(self, shift: str) -> Float16[np.ndarray, "n features"] | None:
        """Return the features under ``shift``, None if they were not stored."""
        index = self.shifts.index(shift)
        if index == 0:
            return self.features
        return None if self.shifted_features is None else self.shifted_features[index - 1]


#: Start of the names of scores, and of what is kept of layers, in a file.
_SCORES, _LAYERS = "scores/", "layers/"


def save_predictions(folder: Folder, predictions: Predictions) -> None:
    """Write ``predictions/<name>.npz``."""
    arrays = {
        "ids": predictions.ids.astype(np.str_),
        "labels": predictions.labels,
        "shifts": np.array(predictions.shifts, dtype=np.str_),
        "logits": predictions.logits,
    }
    if predictions.features is not None:
        arrays["features"] = predictions.features
    if predictions.shifted_features is not None:
        arrays["shifted_features"] = predictions.shifted_features
    if predictions.groups is not None:
        arrays["groups"] = predictions.groups
    arrays |= {f"{_SCORES}{name}": values for name, values in predictions.scores.items()}
    arrays |= {f"{_LAYERS}{name}": values for name, values in predictions.layers.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    folder.write(f"predictions/{predictions.name}.npz", buffer.getvalue())


def load_predictions(folder: Folder, name: str) -> Predictions:
    """Return the predictions on the set ``name``, after a check of every byte.

    Raises:
        StorageError: if they are missing or damaged.
    """
    file = io.BytesIO(folder.read(f"predictions/{name}.npz"))
    try:
        check_sums(file)
        with np.load(file, allow_pickle=False) as arrays:
            return Predictions(
                name=name,
                ids=arrays["ids"],
                labels=arrays["labels"],
                shifts=tuple(str(shift) for shift in arrays["shifts"]),
                logits=arrays["logits"],
                features=arrays.get("features"),
                shifted_features=arrays.get("shifted_features"),
                groups=arrays.get("groups"),
                scores={key.removeprefix(_SCORES): arrays[key] for key in arrays if key.startswith(_SCORES)},
                layers={key.removeprefix(_LAYERS): arrays[key] for key in arrays if key.startswith(_LAYERS)},
            )
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise StorageError(f"{folder.uri}/predictions/{name}.npz is damaged: {error}") from error


def check_sums(file: io.BytesIO) -> None:
    """Check the checksums of an npz before it is parsed: a damaged header would make NumPy allocate any size."""
    with zipfile.ZipFile(file) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise ValueError(f"the checksum of {bad} does not fit")
    file.seek(0)


#: Maps uint8 images and their slice of the set to the shifted uint8 images.
Transform = Callable[[UInt8[Tensor, "m c *space"], slice], UInt8[Tensor, "m c *space"]]


def keep(batch: UInt8[Tensor, "m c *space"], rows: slice) -> UInt8[Tensor, "m c *space"]:
    """Return ``batch`` unchanged: the transform of an unshifted pass."""
    return batch


class Outputs(NamedTuple):
    """Result of ``predict_each``, images in order."""

    logits: Float32[np.ndarray, "transforms n classes"]
    #: Penultimate features of the first passes, None if they were not requested.
    features: Float16[np.ndarray, "with_features n features"] | None
    #: Confidences that only the model can give, by name; empty if they were not requested.
    scores: dict[str, Float32[np.ndarray, "transforms n"]]
    #: What was recorded of layers in the passes that have features; empty if nothing was requested.
    layers: dict[str, Float32[np.ndarray, "with_features n _"]]


def predict(
    model: Classifier,
    images: ImageSet,
    *,
    batch_size: int,
    precision: torch.dtype,
    transform: Transform = keep,
    features: bool = False,
) -> tuple[Float32[np.ndarray, "n classes"], Float16[np.ndarray, "n features"] | None]:
    """Return the logits, and the penultimate features if requested, of all images in order under one transform.

    The other arguments and the errors are those of ``predict_each``.
    """
    feed = ImageFeed(images, model.mean.device)
    outputs = predict_each(
        model, feed, [transform], batch_size=batch_size, precision=precision, num_with_features=int(features)
    )
    return outputs.logits[0], None if outputs.features is None else outputs.features[0]


@torch.inference_mode()
def predict_each(  # noqa: PLR0913 - the last three have defaults
    model: Classifier,
    feed: ImageFeed,
    transforms: Sequence[Transform],
    *,
    batch_size: int,
    precision: torch.dtype,
    num_with_features: int = 0,
    scores: ModelScores | None = None,
    recorder: LayerRecorder | None = None,
    on_pass: Callable[[], None] = lambda: None,
) -> Outputs:
    """Return the logits of all images in order under every transform, and features of the first ones if requested.

    On a GPU full batches extend across the ends of passes, and the device is synchronised only once. Under autocast
    the last layer and its logits are float32 (``Classifier.forward``); only what comes before is of ``precision``.

    Args:
        model: model on the device of the predictions; it is set to evaluation mode.
        feed: source of the images.
        transforms: transforms, one per pass over the set.
        batch_size: images per forward pass.
        precision: dtype of the forward pass; bfloat16 runs under autocast.
        num_with_features: number of passes, from the first, whose penultimate features are returned, as float16
            clipped to its range (±65504).
        scores: the model's own confidences that are returned as well.
        recorder: recorder of layers in the passes that have features, attached to the model.
        on_pass: callback after all images of a pass have been sent to the device.

    Raises:
        DivergedError: if an output is not finite.
    """
    model.eval()
    stream = _transform_batches(feed, transforms, batch_size, on_pass)
    if feed.device.type == "cuda":
        # Not on a CPU: it is no faster, and the outputs of some networks depend on the batch size there.
        stream = _rebatch(stream, batch_size)
    logits: list[Tensor] = []
    kept: list[Tensor] = []
    scored: list[Tensor] = []
    limit, missing = torch.finfo(torch.float16).max, len(feed) * num_with_features
    for batch in stream:
        with torch.autocast(feed.device.type, precision, enabled=precision != torch.float32):
            images = model.normalise(batch)
            if scores is not None:
                output, hidden, values = scores.forward(images)
                scored.append(_copy(values))
            elif missing > 0:
                output, hidden = model.forward_features(images)
            else:
                output = model(images)
            if missing > 0:
                kept.append(_copy(hidden[:missing].float().clamp(-limit, limit).half()))
                if recorder is not None:
                    recorder.record(batch, len(kept[-1]))
                missing -= len(kept[-1])
            elif recorder is not None:
                recorder.forget()
        logits.append(_copy(output))
    if feed.device.type == "cuda":
        torch.cuda.synchronize(feed.device)
    outputs = torch.cat(logits).numpy().reshape(len(transforms), len(feed), -1)
    check_finite(outputs, feed.images)
    named: dict[str, np.ndarray] = {}
    if scores is not None:
        columns = torch.cat(scored).numpy().reshape(len(transforms), len(feed), -1)
        check_finite(columns, feed.images)
        named = {name: np.ascontiguousarray(columns[..., index]) for index, name in enumerate(scores.names)}
    features = torch.cat(kept).numpy().reshape(num_with_features, len(feed), -1) if num_with_features else None
    layers = recorder.collect(num_with_features) if recorder is not None and num_with_features else {}
    return Outputs(outputs, features, named, layers)


def _copy(values: Tensor) -> Tensor:
    """Return ``values`` on the CPU. From a GPU the copy is asynchronous, in pinned memory: synchronise first."""
    return values.to("cpu", non_blocking=True)


def _transform_batches(
    feed: ImageFeed, transforms: Sequence[Transform], batch_size: int, on_pass: Callable[[], None]
) -> Iterator[Tensor]:
    rows, sizes = np.arange(len(feed)), split_sizes(len(feed), batch_size)
    for transform in transforms:
        start = 0
        for batch in feed.batches(rows, sizes):
            yield transform(batch, slice(start, start + len(batch)))
            start += len(batch)
        on_pass()


def _rebatch(batches: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Yield the same images in batches of ``batch_size``; the last may be smaller."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= batch_size:
            joined = torch.cat(waiting)
            yield joined[:batch_size]
            waiting = [joined[batch_size:]] if len(joined) > batch_size else []
    if waiting:
        yield torch.cat(waiting)


def check_finite(outputs: Float32[np.ndarray, "transforms n classes"], images: ImageSet) -> None:
    """Check outputs on a set of images.

    Raises:
        DivergedError: if an output is not finite.
    """
    finite = np.isfinite(outputs).all(axis=(0, 2))
    if not finite.all():
        raise DivergedError(
            f"predicted the {len(images)} images of {images.name} and found outputs that are not finite for "
            f"{int((~finite).sum())} of them, the first {images.ids[int(np.argmin(finite))]}; "
            "lower training.learning_rate or set training.gradient_clip_norm"
        )
