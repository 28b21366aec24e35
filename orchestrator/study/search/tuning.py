"""The ``tuning`` section of a study file: the same candidates of some settings for every arm and replicate.

A candidate is drawn from the space without looking at any result, so the plan holds all of them from the start; which
one a replicate consists of is decided when its results are read (``orchestrator.analysis.tuning``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from orchestrator.study.fields import FIELDS
from orchestrator.study.grid import Arm, Grid
from orchestrator.study.problems import explain
from orchestrator.study.search.config import Parameter, check_metric
from orchestrator.study.search.space import Dimension, Space, Value, find_wrong_names
from orchestrator.study.yaml_source import Key, format_key
from trainables.config import TrialConfig
from trainables.evaluation.metrics import is_higher_better
from trainables.frozen import Frozen

#: Numbers whose square roots are irrational and independent of each other: one for each field of a space.
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)
#: Sections that tuning may not vary besides those of a search: the replicates of an arm share its pretraining.
_SHARED = "pretraining"


class TuningConfig(Frozen):
    """A small search within every arm and replicate, with the same candidates for all of them."""

    space: Annotated[dict[str, Parameter], Field(min_length=1, max_length=len(_PRIMES))] = Field(
        description="Dotted field of the trial: a range or choices, as in search.space."
    )
    candidates: int = Field(4, ge=2, le=100, description="Settings tried per arm and replicate; each is a trial.")
    metric: str = Field(
        "validation/balanced_accuracy", description="What chooses among them: a headline number on validation images."
    )

    _check = field_validator("metric")(check_metric)

    @field_validator("metric")
    @classmethod
    def _is_validation(cls, name: str) -> str:
        if not name.startswith("validation/"):
            raise ValueError(
                f"found {name}, expected validation/…: settings that were chosen by the data that judge them make "
                "every comparison an oracle's"
            )
        return name

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is maximised."""
        return is_higher_better(self.metric)


def draw_settings(tuning: TuningConfig, *, seed: int) -> list[dict[str, Value]]:
    """Return the candidates: field → drawn value, all different, the same for every arm and replicate.

    Points i·√p mod 1 (p a prime per field), shifted by an offset that the seed decides, fill the space evenly however
    many there are: more candidates keep those that a study has. A point whose settings were drawn before is left out.

    Args:
        tuning: section of a study without problems (``find_tuning_problems``).
        seed: seed of the study.

    Source: Richtmyer 1951; Niederreiter, Random Number Generation and Quasi-Monte Carlo Methods, 1992, ch. 3; the
        offset: Cranley & Patterson, SIAM J. Numer. Anal. 13, 1976.
    """
    space = Space([], tuning.space)
    names = sorted(space.dimensions)
    steps = [math.sqrt(prime) for prime in _PRIMES]
    offsets = [_draw_offset(seed, name) for name in names]
    drawn: dict[tuple[str, ...], dict[str, Value]] = {}
    for number in count():
        point = {
            name: _place(space.dimensions[name], (offset + number * step) % 1.0)
            for name, step, offset in zip(names, steps, offsets, strict=False)
        }
        drawn.setdefault(tuple(str(space.get_value(name, value)) for name, value in point.items()), point)
        if len(drawn) == tuning.candidates:
            break
    return list(drawn.values())


def _draw_offset(seed: int, name: str) -> float:
    """Return a number in [0, 1) that is a hash of the seed and the field."""
    digest = hashlib.blake2b(f"{seed}\x1ftuning\x1f{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53


def _place(dimension: Dimension, position: float) -> Value:
    """Return the value at a position in [0, 1) of a dimension."""
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.choices:
        return dimension.choices[int(position * len(dimension.choices))]
    if dimension.is_integer and step is None and not dimension.log:
        step = 1
    if step is not None:
        return low + step * int(position * (round((high - low) / step) + 1))
    if not dimension.log:
        return low + position * (high - low)
    half = 0.5 if dimension.is_integer else 0.0  # every whole number has the width of its own interval
    value = math.exp(math.log(low - half) + position * (math.log(high + half) - math.log(low - half)))
    return min(max(round(value), low), high) if dimension.is_integer else value


def draw_candidates(tuning: TuningConfig, arms: Sequence[Arm], *, seed: int) -> list[Arm]:
    """Return every arm once per candidate: its name and levels, the candidate's number and values, and its config.

    A field that does not apply to an arm is left out for it. Candidates of an arm that are then the same configuration
    are one, the first.

    Args:
        tuning: section of a study without problems (``find_tuning_problems``).
        arms: arms of the study.
        seed: seed of the study.

    Raises:
        ValidationError: if the values do not make a trial; never for a study that was read from a file.
    """
    settings = draw_settings(tuning, seed=seed)
    return [candidate for arm in arms for candidate in _complete(tuning, arm, settings)]


def _complete(tuning: TuningConfig, arm: Arm, settings: Sequence[Mapping[str, Value]]) -> Iterator[Arm]:
    space, seen = Space([arm], tuning.space), set()
    for number, values in enumerate(settings):

        def draw(dimension: Dimension, values: Mapping[str, Value] = values) -> Value:
            return values[dimension.name]

        made = space.build(draw)
        assert made is not None  # the space has this arm alone
        tuned = {name: label for name, label in made.levels.items() if name not in arm.levels}
        if tuple(tuned.items()) not in seen:
            seen.add(tuple(tuned.items()))
            yield replace(arm, config=made.config, candidate=number, tuned=tuned)


def find_tuning_problems(
    tuning: TuningConfig, arms: Sequence[Arm], grid: Grid, *, seed: int
) -> Iterator[tuple[Key, str]]:
    """Yield key below ``tuning`` and text for each problem of a tuning.

    Args:
        tuning: the section.
        arms: arms of the study.
        grid: what the arms are made from.
        seed: seed of the study.
    """
    problems = [*find_wrong_names(tuning.space, arms), *_find_set_elsewhere(tuning, grid)]
    space = Space([], tuning.space) if not problems else None
    size = math.prod(map(_count_values, space.dimensions.values())) if space is not None else math.inf
    if size < tuning.candidates:
        found = f"found {tuning.candidates}, and the space has {size:.0f} different settings"
        problems.append((("candidates",), f"{found}; expected at most as many, or a larger space"))
    yield from problems
    if problems:
        return
    unused, faults = set(tuning.space), dict[str, str]()
    settings = draw_settings(tuning, seed=seed)
    for arm in arms:
        try:
            for candidate in _complete(tuning, arm, settings):
                unused.difference_update(candidate.tuned)
        except ValidationError as error:
            unused.clear()
            for _, _, text in explain(error, TrialConfig, {}):
                faults.setdefault(text, arm.name)
    yield from ((("space",), f"{text} (a candidate of the arm {arm})") for text, arm in list(faults.items())[:3])
    for name in unused:
        yield ("space", name), "does not apply to any arm; correct it, or take it away"


def _find_set_elsewhere(tuning: TuningConfig, grid: Grid) -> Iterator[tuple[Key, str]]:
    """Yield the fields of the space that a level or a condition sets too: its value would be overwritten."""
    places = {
        f"the factor {factor}": [each for _, assignments in levels for each in assignments]
        for factor, levels in grid.factors.items()
        if factor not in tuning.space  # reported already
    }
    places |= {format_key(key): list(assignments) for key, _, assignments in grid.conditions}
    for name in tuning.space:
        for place, assignments in places.items():
            if any(f"{'.'.join(each.path)}.".startswith(f"{name}.") for each in assignments):
                yield ("space", name), f"is also set by {place}, and would be overwritten; keep it in one"
        if name.split(".")[0] == _SHARED and name in FIELDS:
            yield (
                ("space", name),
                "every candidate would have a pretraining of its own, which replicates share; make it a factor",
            )


def _count_values(dimension: Dimension) -> float:
    """Return how many different values a dimension has."""
    if dimension.choices:
        return len(dimension.choices)
    step = dimension.step or (1 if dimension.is_integer else None)
    return math.inf if step is None else round((dimension.high - dimension.low) / step) + 1
