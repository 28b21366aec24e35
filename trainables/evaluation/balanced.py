"""Balanced errors under shift relative to a reference model: BE and rBE of MedMNIST-C."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from trainables.errors import DataError


@dataclass(frozen=True)
class Errors:
    """Balanced errors of a model on one test set: 1 − balanced accuracy, in [0, 1], lower is better."""

    #: Error on the unshifted test set.
    clean: float
    #: Shift → mean error over its severities.
    shifted: Mapping[str, float]


@dataclass(frozen=True)
class ReferenceTable:
    """Balanced errors of a reference model that is read from a file, not trained; in [0, 1], lower is better."""

    #: Error on the unshifted test set.
    clean: float
    #: Shift → mean error over its severities, or severity → error.
    shifted: Mapping[str, float | Mapping[int, float]]

    def select(self, evaluated: Mapping[str, Collection[int]]) -> Errors:
        """Return the errors of the shifts and severities that a model was evaluated under.

        A shift is left out if the table lacks it or one of its evaluated severities.

        Args:
            evaluated: shift → evaluated severities.
        """
        found: dict[str, float] = {}
        for shift, severities in evaluated.items():
            error = self.shifted.get(shift, {})
            if isinstance(error, float):
                found[shift] = error
            elif severities and error.keys() >= set(severities):
                found[shift] = sum(error[severity] for severity in severities) / len(severities)
        return Errors(self.clean, found)

    def as_json(self) -> dict[str, Any]:
        """Return the table as plain JSON values, the input of ``from_json``."""
        shifted = {
            shift: error if isinstance(error, float) else {str(severity): value for severity, value in error.items()}
            for shift, error in self.shifted.items()
        }
        return {"clean": self.clean, "shifted": shifted}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> ReferenceTable:
        """Return the table from the output of ``as_json``."""
        shifted = {
            shift: {int(severity): value for severity, value in error.items()} if isinstance(error, Mapping) else error
            for shift, error in said["shifted"].items()
        }
        return cls(said["clean"], shifted)


@dataclass(frozen=True)
class RelativeErrors:
    """Errors relative to a reference model's: 1 is as good as the reference, lower is better."""

    #: Shift → E / E_ref.
    be: dict[str, float]
    #: Shift → (E − E_clean) / (E_ref − E_ref,clean), the relative cost of the shift.
    rbe: dict[str, float]
    #: "be/<shift>" or "rbe/<shift>" → reason why it has no value and is left out of the mean.
    undefined: dict[str, str]
    #: Sum of E − E_clean over the types of the shifts in ``rbe`` (of a type: its mean over shifts), divided by the sum
    #: of E_ref − E_ref,clean: a type weighs as much as it harms the reference. None without a shift.
    rbe_of_sums: float | None

    @property
    def mean_be(self) -> float | None:
        """Mean BE over shifts and their types, of the shifts that have a value; None if none has."""
        return _mean(self.be) if self.be else None

    @property
    def mean_rbe(self) -> float | None:
        """Mean rBE over shifts and their types, of the shifts that have a value; None if none has."""
        return _mean(self.rbe) if self.rbe else None


#: A denominator of fewer standard errors is left out: its ratio is mostly noise, and can be of any size.
MIN_STANDARD_ERRORS = 2.0


def binomial_errors(reference: Errors, num_images: int) -> dict[str, float]:
    """Return shift → standard error of the reference's loss under it, from the number of test images alone.

    Clean and shifted error count as independent shares of ``num_images``. They are of the same images, so the true
    standard error is smaller as a rule: more shifts are left out than must be.
    """
    clean = reference.clean * (1.0 - reference.clean)
    return {
        shift: math.sqrt((clean + error * (1.0 - error)) / num_images) for shift, error in reference.shifted.items()
    }


def compute_relative_errors(
    errors: Errors, reference: Errors, standard_errors: Mapping[str, float] | None = None
) -> RelativeErrors:
    """Return BE and rBE of every shift of ``errors``.

    A ratio is undefined where its denominator is not above 0 (the reference makes no errors, or the shift does not
    harm it) or, for rBE, below ``MIN_STANDARD_ERRORS`` standard errors: it is left out, with the reason.

    Args:
        errors: errors of the model.
        reference: errors of the reference.
        standard_errors: shift → standard error of the reference's loss, E_ref − E_ref,clean; 0 where it is not given.

    Source: Di Salvo et al. 2024 (MedMNIST-C), after mCE and relative mCE of Hendrycks & Dietterich 2019. Differs: they
    divide by every denominator, and give no ratio of sums.
    """
    be: dict[str, float] = {}
    rbe: dict[str, float] = {}
    losses: dict[str, tuple[float, float]] = {}
    undefined: dict[str, str] = {}
    for shift, error in errors.shifted.items():
        if shift not in reference.shifted:
            undefined |= dict.fromkeys(
                (f"be/{shift}", f"rbe/{shift}"),
                "the reference was not evaluated under it, or not at all its severities",
            )
            continue
        expected = reference.shifted[shift]
        if expected > 0.0:
            be[shift] = error / expected
        else:
            undefined[f"be/{shift}"] = "the reference makes no error under it"
        loss = expected - reference.clean
        if loss <= 0.0:
            undefined[f"rbe/{shift}"] = "the reference makes no more errors under it than without"
        elif loss < MIN_STANDARD_ERRORS * (standard_errors or {}).get(shift, 0.0):
            undefined[f"rbe/{shift}"] = "what it adds to the reference's errors cannot be told from 0"
        else:
            losses[shift] = error - errors.clean, loss
            rbe[shift] = (error - errors.clean) / loss
    own, expected_losses = ({shift: loss[side] for shift, loss in losses.items()} for side in (0, 1))
    # The ratio of means over types is that of sums over types.
    of_sums = _mean(own) / _mean(expected_losses) if losses else None
    return RelativeErrors(be, rbe, undefined, of_sums)


#: Name of the unshifted test set in a reference table.
UNSHIFTED = "identity"


def load_reference(path: Path) -> ReferenceTable:
    """Return the reference table in a CSV or JSON file; MedMNIST-C's names of shifts are translated.

    A CSV table has the columns ``shift``, ``error`` (in [0, 1]) and, unless errors are means over severities,
    ``severity``; the row of the shift ``identity`` is the unshifted test set. A ``.json`` file has the layout of
    MedMNIST-C's baselines, with errors in [0, 1] too: ``{"clean_score": 0.1, "raw_scores": {"jpeg": 0.2}}``.

    Raises:
        DataError: if the file cannot be read or has another layout.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"could not read the reference {path} ({error}); expected a table in UTF-8") from error
    return _read_json(text, path) if path.suffix.lower() == ".json" else _read_csv(text, path)


def _read_json(text: str, path: Path) -> ReferenceTable:
    try:
        found = json.loads(text)
        shifted = {_rename(name): _to_error(error) for name, error in found["raw_scores"].items()}
        return ReferenceTable(_to_error(found["clean_score"]), shifted)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"could not read the reference {path} ({type(error).__name__}: {error}); expected JSON like "
            '{"clean_score": 0.1, "raw_scores": {"jpeg": 0.2}} with errors in [0, 1]'
        ) from error


def _read_csv(text: str, path: Path) -> ReferenceTable:
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = [str(name).strip() for name in rows.fieldnames or ()]
    missing = [name for name in ("shift", "error") if name not in columns]
    if missing:
        listed = ", ".join(columns) or "no columns"
        raise DataError(
            f"read the reference {path}, found {listed} and no column {' or '.join(missing)}; expected shift, error "
            "and, unless errors are means over severities, severity"
        )
    rows.fieldnames = columns
    clean: float | None = None
    shifted: dict[str, Any] = {}
    for row in rows:
        try:
            shift, severity, error = _read_row(row, has_severities="severity" in columns)
            if shift == UNSHIFTED:
                _check_new(clean is None, shift)
                clean = error
            elif severity is None:
                _check_new(shift not in shifted, shift)
                shifted[shift] = error
            else:
                _check_new(severity not in shifted.setdefault(shift, {}), f"{shift} at severity {severity}")
                shifted[shift][severity] = error
        except ValueError as problem:
            raise DataError(f"read the reference {path}, line {rows.line_num}: {problem}") from problem
    if clean is None or not shifted:
        lacking = (
            f"no row of the shift {UNSHIFTED}, the error on the unshifted test set" if clean is None else "no shift"
        )
        raise DataError(f"read the reference {path}, found {lacking}; expected it and at least one shift")
    return ReferenceTable(clean, shifted)


def _read_row(row: Mapping[str, str | None], *, has_severities: bool) -> tuple[str, int | None, float]:
    """Return shift, severity and error of a row.

    Raises:
        ValueError: if one of them is missing or invalid.
    """
    shift = _rename((row["shift"] or "").strip())
    if not shift:
        raise ValueError("found no shift, expected its name")
    severity = None
    if has_severities and shift != UNSHIFTED:
        found = (row["severity"] or "").strip()
        if not found.isdecimal() or int(found) < 1:
            raise ValueError(f"found the severity {found!r}, expected a whole number from 1")
        severity = int(found)
    return shift, severity, _to_error((row["error"] or "").strip())


def _check_new(is_new: bool, what: str) -> None:
    if not is_new:
        raise ValueError(f"{what} is there twice, expected one row")


def _to_error(value: Any) -> float:
    """Return ``value`` as a number in [0, 1].

    Raises:
        ValueError: if it is not such a number.
    """
    try:
        error = float(value)
    except (TypeError, ValueError):
        error = math.nan
    if not 0.0 <= error <= 1.0:
        raise ValueError(f"found the error {value!r}, expected a number in [0, 1]")
    return error


def _rename(shift: str) -> str:
    return _load_aliases().get(shift, shift)


@cache
def _load_aliases() -> dict[str, str]:
    """Return published name → own name of shifts, without importing the shift bank and with it torch."""
    text = resources.files("trainables.shifts").joinpath("severities.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["aliases"])


def _mean(values: Mapping[str, float]) -> float:
    from trainables.evaluation.shift_means import average_over_types  # needs numpy, which reading a study does not

    return average_over_types(values)
