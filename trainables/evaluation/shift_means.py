"""The mean over shifts, and the worst of them: over severities, then over shifts, then over types of shift.

A type is a shift's name; all cells of a stain grid are one type, because neighbours on a grid are not separate shifts.
Trial, report, hypotheses, tables from elsewhere, search and selection all take their means from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from trainables.shifts.tables import find_type

#: One number, or one per row.
Value = TypeVar("Value", float, np.ndarray)


@dataclass(frozen=True)
class ShiftMeans:
    """Means of n rows (models, or metrics of one model) over severities; NaN where a value that they include is NaN."""

    #: Shift → mean over its severities.
    by_shift: dict[str, Float64[np.ndarray, " n"]]
    #: Type of shift → mean over its shifts.
    by_type: dict[str, Float64[np.ndarray, " n"]]
    #: Every shift × severity.
    cells: Float64[np.ndarray, "n cells"]

    @property
    def mean(self) -> Float64[np.ndarray, " n"]:
        """Mean over types of the mean over shifts of the mean over severities."""
        return np.mean(list(self.by_type.values()), axis=0)

    def aggregate(self, higher_is_better: bool) -> tuple[Float64[np.ndarray, " n"], ...]:
        """Return mean, worst cell (of all shifts × severities) and worst shift (of the types' means)."""
        means = np.stack(list(self.by_type.values()))
        if higher_is_better:
            return self.mean, self.cells.min(axis=1), means.min(axis=0)
        return self.mean, self.cells.max(axis=1), means.max(axis=0)


def average_shifts(values: Float64[np.ndarray, "n cells"], shifts: Sequence[str]) -> ShiftMeans:
    """Return the means of each row of ``values`` over severities, shifts and types.

    A missing value makes every mean that would include it missing too: a mean over fewer would not be comparable.

    Args:
        values: one column per shift × severity, at least one; NaN where there is no value.
        shifts: name of the shift of each column, without the unshifted evaluation.
    """
    names = np.asarray(shifts, dtype=np.str_)
    by_shift = {name: values[:, names == name].mean(axis=1) for name in dict.fromkeys(shifts)}
    return ShiftMeans(by_shift, average_by_type(by_shift), values)


def average_by_type(by_shift: Mapping[str, Value]) -> dict[str, Value]:
    """Return type of shift → mean over its shifts, in order of appearance."""
    found: dict[str, list[Value]] = {}
    for name, value in by_shift.items():
        found.setdefault(find_type(name), []).append(value)
    return {kind: _mean(values) for kind, values in found.items()}


def average_by_family(by_type: Mapping[str, Value], families: Mapping[str, Sequence[str]]) -> dict[str, Value]:
    """Return family → mean over its types.

    Args:
        by_type: type of shift → mean over its shifts.
        families: family → its types, at least one (``group_by_family``).
    """
    return {family: _mean([by_type[kind] for kind in types]) for family, types in families.items()}


def average_over_types(by_shift: Mapping[str, float]) -> float:
    """Return the mean over types of shift of the mean over their shifts.

    Args:
        by_shift: shift → its mean over severities; at least one.
    """
    return _mean(list(average_by_type(by_shift).values()))


def _mean(values: Sequence[Value]) -> Value:
    return sum(values[1:], start=values[0]) / len(values)
