"""Confidence scores of a trial, each from what its predictions hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainables.evaluation.classification import compute_log_softmax


@dataclass(frozen=True)
class Score:
    """A confidence score: higher is more confident."""

    name: str
    title: str
    formula: str
    compute: Callable[[np.ndarray], np.ndarray]


def _msr(logits: np.ndarray) -> np.ndarray:
    return np.exp(compute_log_softmax(logits)).max(axis=1)


SCORES = {"msr": Score("msr", "Maximum softmax response", "max softmax", _msr)}
