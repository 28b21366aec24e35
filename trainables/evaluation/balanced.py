"""Balanced errors under shift relative to a reference model: BE and rBE of MedMNIST-C."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.errors import DataError


@dataclass(frozen=True)
class Errors:
    """What a model gets wrong on one test set: 1 − balanced accuracy, in [0, 1], lower is better."""

    #: Unshifted.
    clean: float
    #: Shift → mean over its severities.
    shifted: Mapping[str, float]


@dataclass(frozen=True)
class RelativeErrors:
    """Errors in units of a reference model's; 1 is as good as it, lower is better."""

    #: Shift → E / E_ref.
    be: dict[str, float]
    #: Shift → (E − E_clean) / (E_ref − E_ref,clean): what the shift costs.
    rbe: dict[str, float]
    #: "be/<shift>" or "rbe/<shift>" → why it has no value and is left out of the mean.
    undefined: dict[str, str]

    @property
    def mean_be(self) -> float | None:
        """The mean over the shifts that have a value; None if none has."""
        return _mean(self.be)

    @property
    def mean_rbe(self) -> float | None:
        """The mean over the shifts that have a value; None if none has."""
        return _mean(self.rbe)


def compute_relative_errors(errors: Errors, reference: Errors) -> RelativeErrors:
    """Return BE and rBE of every shift of ``errors``.

    A denominator that is not above 0 says nothing (a reference without errors, or one that the shift does not harm):
    the shift is left out, with the reason.

    Source: Di Salvo et al. 2024 (MedMNIST-C), after mCE and relative mCE of Hendrycks & Dietterich 2019. Differs: there
    such a denominator is divided by.
    """
    be: dict[str, float] = {}
    rbe: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for shift, error in errors.shifted.items():
        if shift not in reference.shifted:
            undefined |= dict.fromkeys((f"be/{shift}", f"rbe/{shift}"), "the reference was not evaluated under it")
            continue
        expected = reference.shifted[shift]
        if expected > 0.0:
            be[shift] = error / expected
        else:
            undefined[f"be/{shift}"] = "the reference makes no error under it"
        if expected > reference.clean:
            rbe[shift] = (error - errors.clean) / (expected - reference.clean)
        else:
            undefined[f"rbe/{shift}"] = "the reference makes no more errors under it than without"
    return RelativeErrors(be, rbe, undefined)


def collect_errors(rows: Iterable[Mapping[str, Any]]) -> Errors:
    """Return the errors in the rows of an evaluation (``Evaluation.rows``): those of the test set are read.

    Raises:
        DataError: there is no row of the unshifted test set.
    """
    shifted: dict[str, list[float]] = {}
    clean = None
    for row in rows:
        if row["set"] != "test":
            continue
        error = 1.0 - row["metrics"]["balanced_accuracy"]
        if row["severity"] == 0:
            clean = error
        else:
            shifted.setdefault(row["shift"], []).append(error)
    if clean is None:
        raise DataError(
            "looked for the error on the unshifted test set and found no such row: evaluate the trial again"
        )
    return Errors(clean, {shift: sum(values) / len(values) for shift, values in shifted.items()})


def load_reference(path: Path) -> Errors:
    """Return a given reference, laid out as MedMNIST-C has its baselines: ``{"clean_score": …, "raw_scores": {…}}``.

    Scores are errors, those of a shift averaged over its severities; MedMNIST-C's names of shifts are understood.

    Raises:
        DataError: the file cannot be read or is laid out otherwise.
    """
    from trainables.shifts.tables import load_aliases  # torch comes with it, and a report needs none

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        aliases = load_aliases()
        shifted = {aliases.get(name, name): float(error) for name, error in found["raw_scores"].items()}
        return Errors(float(found["clean_score"]), shifted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"could not read the reference {path} ({type(error).__name__}: {error}); expected JSON like "
            '{"clean_score": 0.1, "raw_scores": {"jpeg": 0.2}} with errors in [0, 1]'
        ) from error


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
