"""Space of a search: values drawn for factors and parameters → the trial that they make. Independent of Optuna.

A factor is a categorical dimension; a key of ``search.space`` is a range or a list of choices. A parameter that does
not apply to an arm (the strength of no augmentation) is not drawn for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from orchestrator.study.fields import FIELDS, FieldPath, suggest
from orchestrator.study.grid import Arm, flatten, format_label
from orchestrator.study.problems import explain
from orchestrator.study.search.config import (
    ASHA,
    CMAES,
    EarlyStoppingConfig,
    MedianStopping,
    Parameter,
    SearchConfig,
    is_multiple,
)
from orchestrator.study.yaml_source import Key
from trainables.config import TrialConfig

#: Sections that no search may vary, because all trials are compared on the same data and shifts.
_FIXED = ("data", "evaluation")
#: Significant digits of a drawn number that enter the trial. More are never intended, and unreadable in names.
_DIGITS = 6
#: Maximum number of combinations of arm and section kinds that are checked with every bound.
_MAX_CHECKED_ARMS = 200

#: A drawn value: the label of a level or choice, or a number.
Value = str | int | float


@dataclass(frozen=True)
class Dimension:
    """Labels or range that one value is drawn from."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    is_integer: bool = False

    def contains(self, value: Any) -> bool:
        """Return whether ``value`` can be drawn."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return (not self.is_integer or value == int(value)) and is_multiple(value - self.low, self.step)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values to check so that all others are valid too: all choices, or both bounds."""
        return self.choices or (self.low, self.high)


#: Function that returns a value of a dimension.
Draw = Callable[[Dimension], Value]


class Space:
    """Space of all trials that a search can propose.

    Args:
        arms: arms of the study that can run.
        parameters: ``SearchConfig.space``.
        factors: factor → labels, for use without arms; ``build`` then always returns None.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        parameters: Mapping[str, Parameter],
        *,
        factors: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._arms = {tuple(arm.levels.items()): arm for arm in arms}
        levels = {factor: dict.fromkeys(labels) for factor, labels in (factors or {}).items()}
        for arm in arms:
            for factor, level in arm.levels.items():
                levels.setdefault(factor, {})[level] = None
        self.factors = [Dimension(factor, tuple(labels)) for factor, labels in levels.items()]
        # Shallow fields first, because they decide which others apply.
        self._parameters = dict(sorted(parameters.items(), key=lambda item: item[0].count(".")))
        self.dimensions = {name: make_dimension(name, each) for name, each in self._parameters.items()}

    def build(self, draw: Draw) -> Arm | None:
        """Return the trial with the values of ``draw``, None if the study excludes this combination of levels.

        Raises:
            ValidationError: if the values do not make a trial; never for a study that was read from a file.
        """
        levels = {each.name: str(draw(each)) if len(each.choices) > 1 else each.choices[0] for each in self.factors}
        arm = self._arms.get(tuple(levels.items()))
        return None if arm is None else self._complete(arm, draw)

    def _complete(self, arm: Arm, draw: Draw) -> Arm:
        tree, levels = arm.config.model_dump(), dict(arm.levels)
        for name, dimension in self.dimensions.items():
            *parents, last = name.split(".")
            node: Any = tree
            for part in parents:
                node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, dict) and last in node:
                value = self.get_value(name, draw(dimension))
                levels[name] = format_label(value)
                node[last] = _spelled_out(name, value)
                if FIELDS[name].models:  # fields of the new section apply, with their defaults
                    tree = TrialConfig.model_validate(tree).model_dump()
        return Arm(levels, TrialConfig.model_validate(tree))

    def get_value(self, name: str, drawn: Value) -> Any:
        """Return the value of field ``name`` for a drawn value: a choice, or a number rounded and kept in range."""
        choices, dimension = self._parameters[name].choices, self.dimensions[name]
        if choices is not None:
            return next(choice for choice in choices if format_label(choice) == drawn)
        if dimension.is_integer:
            return int(drawn)
        return min(max(float(f"{drawn:.{_DIGITS}g}"), dimension.low), dimension.high)

    def corners(self) -> Iterator[tuple[str, Value, Arm | ValidationError]]:
        """Yield name, end and resulting trial (or error) for each dimension that applies to an arm.

        Sections take all their choices in turn, because these decide which other dimensions apply; the others stay at
        their first end. At most ``_MAX_CHECKED_ARMS`` combinations of arm and choices are built.
        """
        sections = [name for name in self.dimensions if FIELDS[name].models]
        kinds = itertools.product(*(self.dimensions[name].choices for name in sections))
        skeletons = itertools.islice(itertools.product(self._arms.values(), kinds), _MAX_CHECKED_ARMS)
        for (arm, chosen), name in itertools.product(skeletons, self.dimensions):
            fixed: dict[str, Value] = dict(zip(sections, chosen, strict=True))
            for end in (fixed[name],) if name in fixed else self.dimensions[name].ends:
                values, drawn = fixed | {name: end}, list[str]()

                def draw(dimension: Dimension, values: dict[str, Value] = values, drawn: list[str] = drawn) -> Value:
                    drawn.append(dimension.name)
                    return values.get(dimension.name, dimension.ends[0])

                try:
                    made: Arm | ValidationError = self._complete(arm, draw)
                except ValidationError as error:
                    made = error
                if name in drawn:
                    yield name, end, made


def find_max_epochs(search: SearchConfig, arms: Sequence[Arm]) -> int:
    """Return the largest number of epochs of a trial in the search."""
    searched = search.space.get("training.epochs")
    ends = [] if searched is None else [searched.high, *(searched.choices or [])]
    values = [end for end in ends if isinstance(end, int)]
    return max(values or [arm.config.training.epochs for arm in arms])


def make_dimension(name: str, parameter: Parameter) -> Dimension:
    """Return the dimension of a parameter of the study file."""
    if parameter.choices is not None:
        return Dimension(name, tuple(map(format_label, parameter.choices)))
    assert parameter.low is not None
    assert parameter.high is not None
    is_integer = not _takes(FIELDS.get(name), float)
    return Dimension(name, (), parameter.low, parameter.high, parameter.log, parameter.step, is_integer)


def _takes(field: FieldPath | None, kind: type) -> bool:
    """Return whether a field of the trial may have a value of type ``kind``."""
    return field is not None and any(
        kind in _types(owner.model_fields[field.name].annotation) for owner in field.owners
    )


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _spelled_out(name: str, value: Any) -> Any:
    """Return ``{"kind": value}`` for a section given by its kind, else the value itself."""
    return {"kind": value} if FIELDS[name].kinds and isinstance(value, str) else value


def find_problems(search: SearchConfig, arms: Sequence[Arm], *, replicates: int) -> Iterator[tuple[Key, str]]:
    """Yield key below ``search`` and text for each problem of a search."""
    problems = [*find_wrong_names(search.space, arms), *_find_differing_sections(arms)]
    yield from problems
    if isinstance(search.sampler, CMAES):
        yield from _find_no_evolution(search)
    if search.early_stopping is not None and arms:
        yield from _find_no_stopping(search.early_stopping, find_max_epochs(search, arms), search.num_trials)
    if search.aggregate == "lower_bound" and replicates < 2:
        yield ("aggregate",), f"found lower_bound with {replicates} replicate, expected at least 2"
    if not search.space and all(len(set(labels)) < 2 for labels in _labels(arms).values()):
        yield ("space",), "nothing varies; name fields to be searched here, or factors"
    if problems:
        return
    space = Space(arms, search.space)
    unused, told = set(search.space), set()
    for name, end, made in space.corners():
        unused.discard(name)
        if isinstance(made, ValidationError):
            reasons = "; ".join(text for _, _, text in explain(made, TrialConfig, {}))
            if (name, end) not in told:
                told.add((name, end))
                yield ("space", name), f"{end} is no value of this field here: {reasons}"
    for name in unused:
        yield ("space", name), "does not apply to any arm; correct it, or take it away"


def _find_differing_sections(arms: Sequence[Arm]) -> Iterator[tuple[Key, str]]:
    for section in _FIXED:
        if len({getattr(arm.config, section).model_dump_json() for arm in arms}) > 1:
            yield (), f"the arms differ in {section}; trials of a search are compared on the same data and shifts"


def _find_no_evolution(search: SearchConfig) -> Iterator[tuple[Key, str]]:
    """Yield the reasons why CMA-ES cannot carry out a search."""
    if all(parameter.choices is not None for parameter in search.space.values()):
        yield ("space",), "found no range, and the sampler cmaes moves nothing else; add {low, high}, or take tpe"
    if len(search.objectives) > 1:
        found = f"found {len(search.objectives)}, expected 1 with the sampler cmaes"
        yield ("objectives",), f"{found}; keep one, or take tpe or nsga_ii"


def _find_no_stopping(config: EarlyStoppingConfig, max_epochs: int, num_trials: int) -> Iterator[tuple[Key, str]]:
    """Yield the reasons why early stopping could stop no trial."""
    grace = config.grace_epochs
    if grace >= max_epochs:
        text = f"found {grace}, and no training is longer than {max_epochs} epochs: nothing could be stopped"
        yield ("early_stopping", "grace_epochs"), f"{text}; expected less"
    elif isinstance(config, ASHA) and grace * config.reduction_factor ** (config.brackets - 1) >= max_epochs:
        found = f"found {config.brackets} with reduction_factor {config.reduction_factor:g} and grace_epochs {grace}"
        text = f"{found}: in the last bracket nothing is stopped before the end ({max_epochs} epochs); take fewer"
        yield ("early_stopping", "brackets"), text
    elif isinstance(config, MedianStopping) and config.min_samples >= num_trials:
        text = f"found {config.min_samples} others, and the search has {num_trials} trials: nothing could be stopped"
        yield ("early_stopping", "min_samples"), f"{text}; expected less"


def _labels(arms: Sequence[Arm]) -> dict[str, list[str]]:
    return {factor: [arm.levels[factor] for arm in arms] for factor in (arms[0].levels if arms else ())}


def find_wrong_names(space: Mapping[str, Parameter], arms: Sequence[Arm]) -> Iterator[tuple[Key, str]]:
    """Yield key and text for each field of a space that cannot be varied, or not by such values."""
    factors = set(_labels(arms))
    for name, parameter in space.items():
        field = FIELDS.get(name)
        if field is None:
            problems = [f"the trial has no field {name!r}{suggest(name, FIELDS)}"]
        elif name.split(".")[0] in _FIXED:
            problems = ["trials are compared on the same data and shifts; vary something else"]
        elif name in ("pretraining.encoders", "pretraining.init.encoders"):
            problems = ["makes no other trial: it says how many pretrainings the replicates share; set it once"]
        elif name in factors:
            problems = ["is also a factor; keep it in one"]
        else:
            problems = list(_find_wrong_values(field, parameter))
        yield from ((("space", name), text) for text in problems)


def _find_wrong_values(field: FieldPath, parameter: Parameter) -> Iterator[str]:
    """Yield the problems of a parameter that are found without building a trial."""
    if parameter.choices is not None:
        if field.models:
            problems: list[str] = []
            for choice in parameter.choices:
                flatten(tuple(field.path.split(".")), choice, (), lambda _, text: problems.append(text))
            yield from problems
    elif not (_takes(field, float) or _takes(field, int)):
        yield "takes no numbers; give choices"
    elif not _takes(field, float):
        numbers = [each for each in (parameter.low, parameter.high, parameter.step) if each is not None]
        if any(not isinstance(each, int) for each in numbers):
            yield "takes whole numbers only"
