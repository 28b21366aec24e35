"""Scores in distribution against scores under shift: the probit line, and the Pareto front of arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


def find_front(x: ArrayLike, y: ArrayLike) -> NDArray[np.intp]:
    """Return the numbers of the points on the Pareto front, ordered so that x falls and y rises.

    A point beats another that is nowhere larger and somewhere smaller. Of equal points all are on the front; points
    with NaN never are.
    """
    points = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=1)
    defined = np.flatnonzero(~np.isnan(points).any(axis=1))
    order = defined[np.lexsort((-points[defined, 1], -points[defined, 0]))]
    front: list[int] = []
    for i in order:
        if not front or points[i, 1] > points[front[-1], 1] or (points[i] == points[front[-1]]).all():
            front.append(int(i))
    return np.asarray(front, dtype=np.intp)


#: Fewest trials, and fewest different in-distribution scores, to which a line is fitted. Our choice.
MIN_TRIALS, MIN_SCORES = 6, 3


@dataclass(frozen=True)
class Line:
    """A straight line in probit coordinates, fitted by least squares to ``n`` trials."""

    slope: float
    intercept: float
    #: Share of the spread of the shifted scores, in probit coordinates, that the line accounts for; in [0, 1].
    r_squared: float
    n: int

    def predict(self, clean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the shifted scores in (0, 1) that the line predicts for in-distribution scores in (0, 1)."""
        from scipy.special import ndtr

        return np.asarray(ndtr(self.intercept + self.slope * probit(clean)))


def probit(scores: Any) -> NDArray[np.float64]:
    """Return the quantiles of the standard normal distribution at scores in (0, 1)."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.asarray(scores, dtype=float)))


def clip_scores(scores: pd.Series, num_images: int) -> NDArray[np.float64]:
    """Return scores no closer to 0 and 1 than half an image: the probit of 0 and 1 is infinite."""
    half = 0.5 / num_images
    return np.clip(scores.to_numpy(dtype=float), half, 1 - half)


def fit_line(clean: NDArray[np.float64], shifted: NDArray[np.float64]) -> Line | None:
    """Return the line through scores in (0, 1), None with too few trials or if all shifted scores are equal."""
    defined = ~(np.isnan(clean) | np.isnan(shifted))
    x, y = probit(clean[defined]), probit(shifted[defined])
    if len(x) < MIN_TRIALS or len(np.unique(x)) < MIN_SCORES or np.ptp(y) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    left = float(np.sum((y - intercept - slope * x) ** 2) / np.sum((y - y.mean()) ** 2))
    return Line(float(slope), float(intercept), 1 - left, len(x))
