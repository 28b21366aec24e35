"""Strengths of equal difficulty: at each severity one model loses the same share of its accuracy on validation images.

A loss is (clean − shifted) / (clean − chance), of balanced accuracies; chance is one over the number of classes. The
test set plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainables.config import Execution, MatchingConfig
from trainables.data.dataset import Dataset
from trainables.data.feed import ImageFeed
from trainables.errors import ConfigError
from trainables.evaluation.classification import compute_balanced_accuracy
from trainables.evaluation.predictions import Transform, keep, predict_each
from trainables.evaluation.robustness import choose_shifts, choose_validation_shifts
from trainables.evaluation.severities.strength_scales import StrengthScale, build_scale
from trainables.evaluation_config import EvaluationConfig, MatchedEvaluation
from trainables.models.networks import Classifier
from trainables.seeding import hash_ids, mix
from trainables.shifts.shift import IDENTITY, Shift
from trainables.shifts.tables import Strength, load_tables
from trainables.storage.completeness import RESULT
from trainables.storage.folder import Folder

#: Losses of finished shifts, so that an interrupted stage goes on.
FOUND = "strengths.json"
#: A loss this close to its target ends the search for it. Assumption: below what some hundred images can tell.
TOLERANCE = 0.005
#: Largest number of strengths that are tried between two knots, for one target: 1/64 of the way is left.
MAX_STEPS = 6
#: Smallest accuracy above chance that the reference must have; of less, no share can be measured. An assumption.
MIN_ABOVE_CHANCE = 0.1


@dataclass(frozen=True)
class Match:
    """Strength found for one target."""

    position: float
    loss: float
    #: Whether the loss reaches the target anywhere on the scale; otherwise this is the strongest strength.
    is_reached: bool


def find_positions(
    measure: Callable[[float], float], targets: Sequence[float], end: int, *, tolerance: float = TOLERANCE
) -> list[Match]:
    """Return a match per target: the position on a scale whose loss is nearest to it, among those that were tried.

    Whole positions are tried in ascending order until the loss reaches the target; then the interval before is halved.
    Each position is measured once, so the result depends on ``measure`` alone.

    Args:
        measure: loss at a position in (0, ``end``]; it need not be monotone, the first crossing counts.
        targets: losses, ascending.
        end: last position of the scale.
        tolerance: difference from the target at which a search ends.
    """
    known = {0.0: 0.0}

    def look(position: float) -> float:
        if position not in known:
            known[position] = measure(position)
        return known[position]

    found = []
    for target in targets:
        high = next((knot for knot in range(1, end + 1) if look(float(knot)) >= target - tolerance), None)
        if high is None:
            found.append(Match(float(end), known[float(end)], is_reached=False))
            continue
        found.append(_halve(look, target, (high - 1.0, float(high)), tolerance))
    return found


def _halve(look: Callable[[float], float], target: float, ends: tuple[float, float], tolerance: float) -> Match:
    low, high = ends
    tried = [high]
    for _ in range(MAX_STEPS):
        if abs(look(tried[-1]) - target) <= tolerance:
            break
        middle = (low + high) / 2
        tried.append(middle)
        low, high = (low, middle) if look(middle) >= target else (middle, high)
    best = min(tried, key=lambda position: (abs(look(position) - target), position))
    return Match(best, look(best), is_reached=True)


def match_strengths(
    model: Classifier,
    data: Dataset,
    config: MatchingConfig,
    *,
    folder: Folder,
    execution: Execution,
    precision: torch.dtype,
    on_shift: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return the strengths at which a model loses the shares ``config.targets`` on the validation images of ``data``.

    Shifts of the bank that ``config.evaluation`` names for test or validation images are matched; compositions, cells
    of a stain grid, shifts of the study's own and of packages keep their strengths.

    Args:
        model: model on the device of the evaluation.
        data: data set, of which the validation images are read.
        config: shifts, modality and seed of an evaluation, and the loss per severity.
        folder: folder of the stage; finished shifts are kept in ``FOUND`` there.
        execution: images per forward pass.
        precision: dtype of the forward pass.
        on_shift: callback with the numbers of finished and of all shifts.

    Raises:
        ConfigError: if the model is hardly better than chance on the validation images.
    """
    evaluation, targets = config.evaluation, config.targets
    val, batch_size = data.splits["val"], execution.evaluation_batch_size
    feed = ImageFeed(val, model.mean.device)
    seeds = mix(torch.from_numpy(hash_ids(val.ids)).to(feed.device), "shift", evaluation.shift_seed)

    def score(transform: Transform) -> float:
        logits, _ = predict_each(model, feed, [transform], batch_size=batch_size, precision=precision)
        return compute_balanced_accuracy(logits[0].argmax(axis=1), val.labels)

    clean, chance = score(keep), 1.0 / len(np.unique(val.labels))
    if clean - chance < MIN_ABOVE_CHANCE:
        raise ConfigError(
            f"evaluation.severities: found matched, and the reference has a balanced accuracy of {clean:.3f} on "
            f"{len(val)} validation images, where chance is {chance:.3f}; expected {MIN_ABOVE_CHANCE:g} more: name "
            "another reference in evaluation.matching, or train it longer"
        )
    shifts = list(dict.fromkeys(shift.name for shift in list_matched(data, evaluation)))
    before = folder.read_json(FOUND) if folder.is_intact(FOUND) else {}
    found: dict[str, Any] = {}
    for number, name in enumerate(shifts):
        scale = build_scale(name, find_modality(evaluation, data.modality))

        def measure(position: float, name: str = name, scale: StrengthScale = scale) -> float:
            shift = Shift(name, 1, scale.at(position))
            return (clean - score(lambda images, rows: shift.apply(images, seeds[rows]))) / (clean - chance)

        found[name] = before.get(name) or [
            {"target": target, "strength": scale.at(match.position), "loss": match.loss, "reached": match.is_reached}
            for target, match in zip(targets, find_positions(measure, targets, scale.end), strict=True)
        ]
        folder.write_json(FOUND, found)
        on_shift(number + 1, len(shifts))
    return {"clean": clean, "chance": chance, "num_images": len(val), "targets": list(targets), "shifts": found}


def find_modality(evaluation: EvaluationConfig, modality: str) -> str:
    """Return the modality whose tables an evaluation uses on data of ``modality``."""
    return modality if evaluation.modality == "auto" else evaluation.modality


def list_matched(data: Dataset, evaluation: EvaluationConfig) -> list[Shift]:
    """Return the shifts of test and validation images whose strengths are matched."""
    tables = load_tables()[find_modality(evaluation, data.modality)]
    both = choose_shifts(data, evaluation)[0] + choose_validation_shifts(data, evaluation)[0]
    return [shift for shift in both if shift != IDENTITY and shift.operation is None and shift.name in tables]


def with_strengths(evaluation: EvaluationConfig, matching: Mapping[str, Any]) -> EvaluationConfig:
    """Return an evaluation with the strengths that a stage has found (``match_strengths``)."""
    strengths = {
        name: tuple(_to_strength(each["strength"]) for each in levels) for name, levels in matching["shifts"].items()
    }
    return MatchedEvaluation(**evaluation.model_dump(), strengths=strengths)


def read_matched(evaluation: EvaluationConfig, stage: Folder | None) -> EvaluationConfig:
    """Return an evaluation with the strengths in the folder of its finished stage; as it is unless they are matched.

    Raises:
        ConfigError: if there is no finished stage.
    """
    if not evaluation.is_matched:
        return evaluation
    if stage is None or not stage.exists(RESULT):
        raise ConfigError(
            f"evaluation.severities: found matched, and no finished stage that has chosen the strengths in {stage}; "
            "run the study, or its stage first (run_matching), and pass its folder"
        )
    return with_strengths(evaluation, stage.read_json(RESULT)["matching"])


def _to_strength(value: Any) -> Strength:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)
