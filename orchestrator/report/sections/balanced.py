"""Report section: arms ranked by balanced errors relative to the reference, with numbers of undefined shifts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import pandas as pd

from orchestrator.analysis.balanced_errors import find_reference
from orchestrator.analysis.results import Results
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, note, table
from orchestrator.statistics.intervals import MIN_REPLICATES
from trainables.evaluation.balanced import MIN_STANDARD_ERRORS

_TITLES = (
    "clean error, %", "shifted error, %", "BE", "shifts", "left out", "rBE", "shifts", "left out",
    "rBE, ratio of sums",
)  # fmt: skip
_RATIOS = ("be", "rbe", "rbe_of_sums")


def balanced_section(results: Results, errors: pd.DataFrame) -> Section | None:
    """Return the section with arms ranked by mean BE, lowest first; None if no arm has a BE or rBE.

    Args:
        results: tables of the study.
        errors: ``balanced_errors_table(results)``.
    """
    if "be" not in errors or not errors[["be", "rbe"]].notna().any().any():
        return None
    ranked = errors.sort_values(["be", "rbe"], kind="stable", na_position="last")
    columns = [Column("arm"), *(Column(title, is_number=True) for title in _TITLES)]
    title, reference = find_reference(results.plan)
    bold = {key: find_separated(errors, key) for key in _RATIOS}
    rows = [_row(row, bold, is_reference=row["name"] == reference) for _, row in ranked.iterrows()]
    if isinstance(reference, str):
        named = f"the arm {results.labels.get(reference, reference)}, on the replicates that both have"
    else:
        named = f"the table {title}"
    text = (
        f"Relative to {named}. BE is the balanced error (1 − balanced accuracy) under a shift as a share of the "
        "reference’s, rBE what the shift adds to the unshifted error as a share of what it adds to the reference’s; "
        "means over so many shifts, of them over severities and replicates. In the ratio of sums a shift weighs as "
        "much as it harms the reference. 1 is as good as the reference, lower is better. A share of nothing is left "
        "out and counted: where the reference makes no error under a shift, was not evaluated under it or, for rBE, "
        f"loses less to it than {MIN_STANDARD_ERRORS:g} standard errors (over its replicates from {MIN_REPLICATES} on, "
        "else of a share of the test images). Small: 95 % t interval over replicates, from "
        f"{MIN_REPLICATES} on. Bold is the lowest value, if its interval lies below those of all other arms."
    )
    body = note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
    return Section("balanced", "Balanced errors", "How large are the errors beside the reference’s?", body)


def find_separated(errors: pd.DataFrame, key: str) -> str | None:
    """Return the name of the arm with the lowest value, None unless its interval lies below all others'."""
    known = errors.dropna(subset=[key]).sort_values(key)
    if len(known) < 2 or known[[f"{key}_low", f"{key}_high"]].isna().any(axis=None):
        return None
    is_separated = known[f"{key}_high"].iloc[0] < known[f"{key}_low"].iloc[1:].min()
    return str(known["name"].iloc[0]) if is_separated else None


def _row(row: pd.Series, bold: Mapping[str, str | None], *, is_reference: bool) -> list[Cell]:
    label = escape(str(row["label"]))
    if is_reference:
        label += '<br><span class="tag oracle">reference</span>'
    cells = [Cell(label, value=str(row["label"]))]
    for key in ("clean_error", "mean_shifted_error"):
        cells.append(Cell("–", "") if pd.isna(row[key]) else Cell(f"{100 * row[key]:.1f}", float(row[key])))
    for key in _RATIOS:
        cells.append(_ratio(row, key, css="best" if row["name"] == bold[key] else ""))
        if key != "rbe_of_sums":
            cells += [_count(row[f"{key}_shifts"]), _count(row[f"{key}_undefined"])]
    return cells


def _ratio(row: pd.Series, key: str, css: str) -> Cell:
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    if pd.isna(value):
        return Cell("–", "")
    interval = "" if pd.isna(low) else f' <span class="sd">{low:.3f} to {high:.3f}</span>'
    return Cell(f"{value:.3f}{interval}", float(value), css)


def _count(value: float) -> Cell:
    return Cell("–", "") if pd.isna(value) else Cell(str(int(value)), int(value))
