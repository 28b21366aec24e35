"""Independent units of a test: replicates, encoders that replicates share, or external sites crossed with these.

What a training happened to learn it shows at all sites, and a test over sites alone takes that for an effect (error
rates in ``docs/hypotheses.md``). So a verdict over sites is one over trainings too: differences vary with either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.inference.measured import Grouping
from orchestrator.analysis.wording import plural
from orchestrator.statistics.intervals import MIN_REPLICATES, Array, Interval, t_interval
from orchestrator.statistics.patient_variance import (
    Components,
    compute_interval,
    compute_p,
    estimate_components_of_means,
)
from orchestrator.study.hypotheses import MIN_SITES


@dataclass(frozen=True)
class Units:
    """Means of each unit, and their number and kind in words."""

    #: Units × parts of the contrast.
    means: Array
    #: E.g. "6 replicates", or "7 external sites × 6 replicates".
    text: str
    #: Weight of each part.
    weights: Sequence[float]
    #: If the units are sites: trainings × sites × parts.
    crossed: Array | None = None

    @property
    def differences(self) -> Array:
        """Difference of each unit."""
        return np.asarray(self.means @ np.array(self.weights))

    @property
    def num_trainings(self) -> int | None:
        """Number of independent trainings that were tested at all sites; None if the units are no sites."""
        return None if self.crossed is None else len(self.crossed)

    @property
    def are_enough(self) -> bool:
        """Whether there are enough units for an interval and a p-value."""
        if self.crossed is None:
            return len(self.means) >= MIN_REPLICATES
        return len(self.means) >= MIN_SITES and len(self.crossed) >= MIN_REPLICATES

    def find_interval(self, level: float) -> Interval | None:
        """Return the t interval of the mean difference, over sites and trainings if the units are sites."""
        if not self.are_enough:
            return None
        components = self._find_components()
        if components is None:
            return t_interval(self.differences, level=level)
        found = compute_interval(components, level=level)
        return Interval(found.low, found.high, len(self.means), level)

    def bound_p(self, p_value: float | None, value: float = 0.0) -> float | None:
        """Return the p-value of a test over units, over sites the larger of it and that over sites and trainings.

        Args:
            p_value: two-sided p-value; None if the test gives none.
            value: difference that is tested against.
        """
        components = self._find_components()
        return p_value if p_value is None or components is None else max(p_value, compute_p(components, value))

    def _find_components(self) -> Components | None:
        if self.crossed is None:
            return None
        return estimate_components_of_means(self.crossed @ np.array(self.weights), np.arange(len(self.means)))


def group_by_training(parts: Array, grouping: Grouping, weights: Sequence[float]) -> Units:
    """Return the independent trainings as units.

    Args:
        parts: cells × replicates × parts × columns, of a pair either all defined or none.
        grouping: unit of each replicate.
        weights: weight of each part.
    """
    by_replicate = mean_of_defined(parts, (0, 3))
    is_known = np.asarray(np.isfinite(by_replicate).all(axis=1))
    means, noun = _average_units(by_replicate, grouping, is_known)
    return Units(means, plural(len(means), noun), weights)


def cross_with_sites(parts: Array, grouping: Grouping, weights: Sequence[float]) -> Units | None:
    """Return the external sites as units, crossed with the independent trainings; None without any.

    A replicate counts if it has a value at every site at which some replicate has one.

    Args:
        parts: cells × replicates × parts × sites, of a pair either all defined or none.
        grouping: unit of each replicate.
        weights: weight of each part.
    """
    by_replicate = mean_of_defined(parts, (0,))
    has_value = np.asarray(np.isfinite(by_replicate).all(axis=1))
    sites = has_value.any(axis=0)
    is_known = np.asarray(has_value[:, sites].all(axis=1))
    if not is_known.any():
        return None
    means, noun = _average_units(by_replicate[:, :, sites], grouping, is_known)
    crossed = means.swapaxes(1, 2)
    text = f"{plural(crossed.shape[1], 'external site')} × {plural(len(crossed), noun)}"
    return Units(crossed.mean(axis=0), text, weights, crossed)


def mean_of_defined(values: Array, axes: tuple[int, ...]) -> Array:
    """Return the mean of the defined values, NaN where there is none."""
    is_defined = np.isfinite(values)
    count = is_defined.sum(axis=axes)
    total = np.where(is_defined, values, 0.0).sum(axis=axes)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _average_units(by_replicate: Array, grouping: Grouping, is_known: NDArray[np.bool_]) -> tuple[Array, str]:
    """Return the mean of the known replicates of each unit, and what the units are called."""
    labels = np.unique(grouping.units[is_known])
    noun = "replicate" if len(labels) == is_known.sum() else grouping.noun
    return np.stack([by_replicate[is_known & (grouping.units == label)].mean(axis=0) for label in labels]), noun
