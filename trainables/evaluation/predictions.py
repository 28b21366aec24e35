"""Predictions are the unit of storage: logits, labels, ids per shift; every metric is recomputed from them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64
from torch import Tensor

from trainables.data.dataset import ImageSet
from trainables.errors import DivergedError, StorageError
from trainables.models import Classifier
from trainables.storage import Folder


@dataclass(frozen=True)
class Predictions:
    """What a model says about one set of images, unshifted (row "identity/0") and under every shift."""

    name: str
    ids: np.ndarray
    labels: Int64[np.ndarray, " n"]
    #: "<shift>/<severity>"
    shifts: tuple[str, ...]
    logits: Float32[np.ndarray, "shifts n classes"]
    #: Penultimate features of the unshifted images.
    features: Float16[np.ndarray, "n features"] | None = None

    def of(self, shift: str) -> Float32[np.ndarray, "n classes"]:
        """Return the logits under ``shift`` ("gaussian_noise/3")."""
        return self.logits[self.shifts.index(shift)]


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
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    folder.write(f"predictions/{predictions.name}.npz", buffer.getvalue())


def load_predictions(folder: Folder, name: str) -> Predictions:
    """Return the predictions on the set ``name``.

    Raises:
        StorageError: they are missing or damaged.
    """
    try:
        with np.load(io.BytesIO(folder.read(f"predictions/{name}.npz")), allow_pickle=False) as arrays:
            return Predictions(
                name=name,
                ids=arrays["ids"],
                labels=arrays["labels"],
                shifts=tuple(str(shift) for shift in arrays["shifts"]),
                logits=arrays["logits"],
                features=arrays.get("features"),
            )
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StorageError(f"{folder.uri}/predictions/{name}.npz is damaged: {error}") from error


@torch.inference_mode()
def predict(
    model: Classifier,
    images: ImageSet,
    *,
    batch_size: int,
    precision: torch.dtype,
    transform: Callable[[Tensor, slice], Tensor] | None = None,
    features: bool = False,
) -> tuple[Float32[np.ndarray, "n classes"], Float16[np.ndarray, "n features"] | None]:
    """Return logits, and penultimate features if asked for, of all images in order.

    Args:
        model: on the device to be used; it is put into evaluation mode.
        images: memory-mapped images; only a batch at a time is copied.
        batch_size: images per forward pass.
        precision: bfloat16 runs under autocast.
        transform: maps a uint8 batch (and the slice of the set it is) to the shifted uint8 batch.
        features: return penultimate features as float16, clipped to its range (±65504).

    Raises:
        DivergedError: an output is not finite.
    """
    model.eval()
    device = model.mean.device
    logits, kept = [], []
    for start in range(0, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        batch = torch.from_numpy(np.array(images.images[rows])).to(device, non_blocking=True)
        if transform is not None:
            batch = transform(batch, rows)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            if features:
                output, hidden = model.forward_features(model.normalise(batch))
                kept.append(hidden.float())
            else:
                output = model(model.normalise(batch))
        logits.append(output.float())
    outputs = torch.cat(logits).cpu().numpy()
    finite = np.isfinite(outputs).all(axis=1)
    if not finite.all():
        raise DivergedError(
            f"predicted the {len(images)} images of {images.name} and found outputs that are not finite for "
            f"{int((~finite).sum())} of them, the first {images.ids[int(np.argmin(finite))]}; "
            "lower training.learning_rate or set training.gradient_clip_norm"
        )
    if not features:
        return outputs, None
    limit = torch.finfo(torch.float16).max
    return outputs, torch.cat(kept).clamp(-limit, limit).half().cpu().numpy()
