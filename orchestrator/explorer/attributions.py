"""Where a trained model looked: attributions as pictures to lay over an image, computed from the trial's weights."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from orchestrator.explorer.images import Images, paint_shifted
from trainables.errors import StudyError
from trainables.storage.completeness import RESULT

if TYPE_CHECKING:
    from trainables.models.networks import Classifier
    from trainables.storage.folder import Folder

#: Name in ``ATTRIBUTION_METHODS`` → title for the page, which must not import torch; a test compares them.
TITLES = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
    "expected_gradients": "expected gradients",
    "occlusion": "occlusion",
}
#: Changes whenever a picture would be another one.
FORMAT = 1
#: Training images that expected gradients compare with.
NUM_REFERENCES = 32
#: Share of the pixels that have full colour: single pixels must not take all of the range.
_CLIPPED = 0.005
#: Colours of values that speak for the class, weak to strong (plasma of matplotlib), and of those against it.
_FOR = np.array([[84, 2, 163], [185, 50, 137], [237, 121, 83], [253, 180, 47], [240, 249, 33]], dtype=np.float64)
_AGAINST = np.array([[13, 72, 107], [22, 130, 160], [64, 190, 196], [127, 224, 219], [200, 250, 245]], dtype=np.float64)
_WEIGHTS = "model.safetensors"


class Attributor:
    """Trained models of a study, and where they look; two stay open, for trials side by side.

    Args:
        images: images of the study.
        cache_dir: folder on this node's disk for the pictures, by content: weights, pixels, method and class.
    """

    def __init__(self, images: Images, cache_dir: Path) -> None:
        self._images, self._folder = images, cache_dir / "explorer" / "attributions"
        self._opened: dict[str, tuple[Classifier, Any]] = {}

    def draw(self, signature: str, name: str, row: int, key: str, *, method: str, target: int) -> bytes:
        """Return the attribution of an image as PNG of its size: colours with the strength as opacity.

        Args:
            signature: of the trial.
            name: name of the set.
            row: number of the image in it.
            key: "<shift>/<severity>" of the image.
            method: name in ``ATTRIBUTION_METHODS``.
            target: code of the class whose logit is explained.

        Raises:
            StudyError: the weights of the trial are not stored.
            RobustSweepError: images or weights cannot be had here, or the method does not suit the network.
        """
        trial = self._find_weights(signature)
        pixels = paint_shifted(self._images, signature, name, [row], key)
        facts = f"{FORMAT} {trial.read_json(RESULT)['checkpoint_sha256']} {method} {target} {pixels.shape}"
        digest = hashlib.sha256(facts.encode() + pixels.tobytes()).hexdigest()
        cached = self._folder / f"{digest[:32]}.png"
        if cached.exists():
            return cached.read_bytes()
        picture = colour_attribution(self._compute(signature, pixels, [target], method)[0])
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(picture)
        os.replace(temporary, cached)
        return picture

    def draw_small(
        self, signature: str, name: str, rows: Sequence[int], targets: Sequence[int], *, method: str, side_px: int
    ) -> list[bytes]:
        """Return the attributions of unshifted images as PNG of at most ``side_px``.

        Arguments and errors are those of ``draw``, for a class per image.
        """
        self._find_weights(signature)
        pixels = paint_shifted(self._images, signature, name, rows, "identity/0")
        return [colour_attribution(each, side_px) for each in self._compute(signature, pixels, targets, method)]

    def _find_weights(self, signature: str) -> Folder:
        trial = self._images.folder(signature)
        if not trial.exists(_WEIGHTS):
            raise StudyError(
                f"no attribution: the weights of this trial are not stored any more ({_WEIGHTS} in {trial.uri})"
            )
        return trial

    def _compute(
        self, signature: str, pixels: UInt8[np.ndarray, "n c h w"], targets: Sequence[int], method: str
    ) -> Float32[np.ndarray, "n h w"]:
        import torch

        from trainables.evaluation.attribution.compute import compute_attribution

        model, references = self._open(signature)
        found = compute_attribution(
            model, torch.from_numpy(pixels), torch.tensor(targets), method=method, references=references
        )
        return found.numpy()

    def _open(self, signature: str) -> tuple[Classifier, Any]:
        """Return the model of a trial and the training images that expected gradients compare with."""
        import torch

        from trainables.exported.folder import build_exported

        if signature not in self._opened:
            data = self._images.dataset(signature)
            exported = build_exported(
                self._images.folder(signature),
                self._images.config(signature),
                classes=tuple(map(str, data.classes)),
                provenance={},
            )
            train = data.splits["train"].images
            size = min(NUM_REFERENCES, len(train))
            rows = np.sort(np.random.default_rng(0).choice(len(train), size, replace=False))
            while len(self._opened) > 1:
                del self._opened[next(iter(self._opened))]
            self._opened[signature] = exported.network, torch.from_numpy(np.array(train[rows]))
        return self._opened[signature]


def colour_attribution(values: Float32[np.ndarray, "height width"], side_px: int | None = None) -> bytes:
    """Return an attribution as PNG: warm where a pixel speaks for the class, blue where against it, clear at zero.

    Args:
        values: attribution of one image.
        side_px: largest side; None for that of the image.
    """
    from PIL import Image

    size = np.abs(values)
    top = float(np.quantile(size, 1.0 - _CLIPPED)) or float(size.max()) or 1.0
    strength = np.minimum(size / top, 1.0)
    ends = np.linspace(0.0, 1.0, len(_FOR))
    colours = [
        np.stack([np.interp(strength, ends, table[:, channel]) for channel in range(3)], axis=-1)
        for table in (_FOR, _AGAINST)
    ]
    picture = np.empty((*values.shape, 4), dtype=np.uint8)
    picture[..., :3] = np.rint(np.where((values >= 0)[..., None], *colours))
    picture[..., 3] = np.rint(255 * strength)
    buffer = io.BytesIO()
    drawn = Image.fromarray(picture, "RGBA")
    if side_px is not None:
        drawn.thumbnail((side_px, side_px))
    drawn.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
