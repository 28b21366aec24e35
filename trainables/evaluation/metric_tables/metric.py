"""One row of the table of metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of a trained model.

    Attributes:
        name: name in result files, tables and MLflow.
        title: name in a sentence.
        formula: formula in words.
        higher_is_better: whether higher values are better.
        low: smallest possible value.
        high: largest possible value.
        needs: data without which the metric is undefined.
        source: paper that defines the metric.
        is_fitted: whether it takes a number fitted on validation (``validation_fit``): unknown during training.
        is_calibration: whether it judges probabilities and not decisions: its headline numbers are ``calibration/…``.
        is_descriptive: whether neither direction is better: it describes, and ``higher_is_better`` means nothing.
    """

    name: str
    title: str
    formula: str
    higher_is_better: bool
    low: float
    high: float
    needs: str
    source: str = ""
    is_fitted: bool = False
    is_calibration: bool = False
    is_descriptive: bool = False

    @property
    def is_share(self) -> bool:
        """Whether the largest value is 1: then values are written in percent, differences in points."""
        return self.high == 1.0
