"""Images of a trial's sets as PNG, from the memory-mapped data set; shifted ones exactly as models received them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from orchestrator.ledger.ledger import Ledger
from trainables.config import TrialConfig, read_trial_config
from trainables.errors import StudyError
from trainables.storage.completeness import RESULT

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset, ImageSet
    from trainables.evaluation_config import EvaluationConfig
    from trainables.shifts.shift import Shift
    from trainables.storage.folder import Folder

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
            stored = self.folder(signature).read_json("config.json")
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

    def strengths(self, signature: str) -> dict[str, Any]:
        """Return "<shift>/<severity>" → strength that a complete trial was evaluated at, as its results have it."""
        rows = self.folder(signature).read_json(RESULT)["evaluations"]
        return {
            f"{row['shift']}/{row['severity']}": row["strength"]
            for row in rows
            if row["severity"] and row["strength"] is not None
        }

    def folder(self, signature: str) -> Folder:
        """Return the folder of a trial."""
        return self._ledger.folder("trial", signature)

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


def encode_thumbnail(
    pixels: UInt8[np.ndarray, "channels height width"], side_px: int, *, chroma: bool = False
) -> bytes:
    """Return an image as JPEG of at most ``side_px``: 1 to 2 KB at 64 px.

    Args:
        pixels: one or three channels.
        side_px: longer side.
        chroma: whether colours are as sharp as brightness, for drawn ones.
    """
    from PIL import Image

    picture = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, 2))
    picture.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80, subsampling=0 if chroma else -1)
    return buffer.getvalue()


def paint_shifted(
    images: Images, signature: str, name: str, rows: Sequence[int], key: str
) -> UInt8[np.ndarray, "n channels height width"]:
    """Return images under a shift ("<shift>/<severity>"), with the random numbers and the strength of the evaluation.

    Raises:
        StudyError: the trial was not evaluated under it.
        RobustSweepError: the data cannot be had on this machine.
    """
    import torch

    from trainables.seeding import hash_ids, mix

    opened = images.open_set(signature, name)
    chosen = np.asarray(rows)
    pixels = torch.from_numpy(np.array(opened.images[chosen]))
    if key == "identity/0":
        return pixels.numpy()
    shift = _find_shift(images, signature, name, key)
    seeds = mix(torch.from_numpy(hash_ids(opened.ids[chosen])), "shift", images.config(signature).evaluation.shift_seed)
    return shift.apply(pixels, seeds).numpy()


def _find_shift(images: Images, signature: str, name: str, key: str) -> Shift:
    from trainables.evaluation.robustness import choose_shifts, choose_validation_shifts

    strengths = images.strengths(signature)
    evaluation = _read_evaluation(images, signature, strengths)
    choose = choose_validation_shifts if name == "val" else choose_shifts
    for shift in choose(images.dataset(signature), evaluation)[0]:
        if f"{shift.name}/{shift.severity}" == key:
            used = strengths.get(key)
            if used is not None and _as_json(shift.strength) != used:
                raise StudyError(
                    f"{key} is not drawn: the trial was evaluated at the strength {used}, and now it would be "
                    f"{_as_json(shift.strength)}; run the study again"
                )
            return shift
    raise StudyError(f"looked for the shift {key} of {name} and found it not among those of the evaluation")


def _as_json(strength: Any) -> Any:
    """Return a strength as ``result.json`` has it."""
    return json.loads(json.dumps(strength))


def _read_evaluation(images: Images, signature: str, strengths: dict[str, Any]) -> EvaluationConfig:
    """Return the settings of a trial's evaluation; matched severities have the strengths that it was evaluated at.

    They are those of its own results: the stage that chose them may have been made again since.
    """
    from trainables.evaluation_config import MatchedEvaluation

    evaluation = images.config(signature).evaluation
    if not evaluation.is_matched:
        return evaluation
    by_name: dict[str, dict[int, Any]] = {}
    for key, strength in strengths.items():
        shift, _, severity = key.rpartition("/")
        by_name.setdefault(shift, {})[int(severity)] = strength
    used = {
        shift: [levels[level] for level in evaluation.levels]
        for shift, levels in by_name.items()
        if sorted(levels) == list(evaluation.levels) and None not in levels.values()
    }
    return MatchedEvaluation.model_validate(evaluation.model_dump() | {"strengths": used})
