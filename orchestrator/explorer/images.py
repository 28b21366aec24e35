"""Images of a trial's sets as PNG, from the memory-mapped data set; shifted ones exactly as models received them."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from orchestrator.ledger.ledger import Ledger
from trainables.config import TrialConfig, read_trial_config
from trainables.errors import StudyError

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset, ImageSet
    from trainables.shifts.shift import Shift

#: Sides of images that a page may ask for, px.
MAX_SIDE_PX = 1_024


class Images:
    """Data sets of a study's trials, each opened once."""

    def __init__(self, ledger: Ledger, cache_dir: Path) -> None:
        self._ledger, self._cache_dir = ledger, cache_dir
        self._configs: dict[str, TrialConfig] = {}
        self._opened: dict[str, Dataset] = {}
        self._lock = threading.Lock()

    def config(self, signature: str) -> TrialConfig:
        """Return the config of a trial."""
        if signature not in self._configs:
            stored = self._ledger.folder("trial", signature).read_json("config.json")
            self._configs[signature] = read_trial_config(stored["config"])
        return self._configs[signature]

    def dataset(self, signature: str) -> Dataset:
        """Return the data set of a trial.

        Raises:
            RobustSweepError: it cannot be had on this machine.
        """
        from trainables.data.foreign import load_evaluated

        config = self.config(signature)
        key = f"{config.data.model_dump_json()} {config.evaluation.model_dump_json(include={'foreign'})}"
        with self._lock:
            if key not in self._opened:
                self._opened[key] = load_evaluated(config.data, config.evaluation, cache_dir=self._cache_dir)
            return self._opened[key]

    def list_sets(self, signature: str) -> dict[str, ImageSet]:
        """Return the sets of images by their names in the predictions.

        Raises:
            RobustSweepError: they cannot be had on this machine.
        """
        data = self.dataset(signature)
        return data.splits | data.external | data.ood

    def open_set(self, signature: str, name: str) -> ImageSet:
        """Return a set of images by its name in the predictions.

        Raises:
            RobustSweepError: it cannot be had on this machine.
        """
        found = self.list_sets(signature).get(name)
        if found is None:
            raise StudyError(f"looked for the images of {name} and found none in the data set of the trial")
        return found

    def read(self, signature: str, name: str, row: int) -> UInt8[np.ndarray, "channels height width"]:
        """Return one unshifted image."""
        return np.asarray(self.open_set(signature, name).images[row])


def encode_png(pixels: UInt8[np.ndarray, "channels height width"], side_px: int) -> bytes:
    """Return an image as PNG, at most ``side_px`` wide or high; a smaller one keeps its size."""
    from PIL import Image

    picture = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, 2))
    side = min(side_px, MAX_SIDE_PX)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def paint_shifted(
    images: Images, signature: str, name: str, row: int, key: str
) -> UInt8[np.ndarray, "channels height width"]:
    """Return an image under a shift ("<shift>/<severity>"), with the random numbers of the evaluation.

    Raises:
        StudyError: the trial was not evaluated under it.
        RobustSweepError: the data cannot be had on this machine.
    """
    import torch

    from trainables.seeding import hash_ids, mix

    config = images.config(signature)
    data, opened = images.dataset(signature), images.open_set(signature, name)
    shift = _find_shift(images, signature, data, name, key)
    one = torch.from_numpy(np.array(opened.images[row : row + 1]))
    seeds = mix(torch.from_numpy(hash_ids(opened.ids[row : row + 1])), "shift", config.evaluation.shift_seed)
    return shift.apply(one, seeds)[0].numpy()


def _find_shift(images: Images, signature: str, data: Dataset, name: str, key: str) -> Shift:
    from trainables.evaluation.robustness import choose_shifts, choose_validation_shifts

    evaluation = images.config(signature).evaluation
    if evaluation.is_matched:
        raise StudyError(f"{key} is not drawn: its severities were matched by a stage of the study")
    choose = choose_validation_shifts if name == "val" else choose_shifts
    for shift in choose(data, evaluation)[0]:
        if f"{shift.name}/{shift.severity}" == key:
            return shift
    raise StudyError(f"looked for the shift {key} of {name} and found it not among those of the evaluation")
