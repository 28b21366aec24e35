"""Report section: arms ranked by balanced errors relative to the reference, with numbers of undefined shifts."""

from __future__ import annotations

from html import escape

import pandas as pd

from orchestrator.analysis.results import Results, find_reference
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, note, table


def balanced_section(results: Results, errors: pd.DataFrame) -> Section | None:
    """Return the section with arms ranked by mean BE, lowest first; None if no arm has a BE or rBE.

    Args:
        results: tables of the study.
        errors: ``balanced_errors_table(results)``.
    """
    if "be" not in errors or not errors[["be", "rbe"]].notna().any().any():
        return None
    ranked = errors.sort_values(["be", "rbe"], kind="stable", na_position="last")
    columns = [
        Column("arm"),
        *(
            Column(title, is_number=True)
            for title in (
                "clean error, %",
                "shifted error, %",
                "BE",
                "shifts",
                "undefined",
                "rBE",
                "shifts",
                "undefined",
            )
        ),
    ]
    best = {key: errors[key].min() for key in ("be", "rbe")}
    title, reference = find_reference(results.plan)
    rows = [_row(row, best, is_reference=row["name"] == reference) for _, row in ranked.iterrows()]
    if isinstance(reference, str):
        named = f"the arm {results.labels.get(reference, reference)}"
    else:
        named = f"the table {title}"
    text = (
        f"Relative to {named}. BE is the balanced error (1 − balanced accuracy) under a shift as a share of the "
        "reference’s, rBE what the shift adds to the unshifted error as a share of what it adds to the reference’s; "
        "means over so many shifts, of them over severities and complete replicates. 1 is as good as the reference, "
        "lower is better; bold is the best. A share of nothing is undefined, left out of the mean and counted: where "
        "the reference makes no error under a shift, loses nothing to it, or was not evaluated under it."
    )
    body = note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
    return Section("balanced", "Balanced errors", "How large are the errors beside the reference’s?", body)


def _row(row: pd.Series, best: dict[str, float], *, is_reference: bool) -> list[Cell]:
    label = escape(str(row["label"]))
    if is_reference:
        label += '<br><span class="tag oracle">reference</span>'
    cells = [Cell(label, value=str(row["label"]))]
    cells += [_number(row[key], scale=100.0, digits=1) for key in ("clean_error", "mean_shifted_error")]
    for key in ("be", "rbe"):
        cells.append(_number(row[key], digits=3, css="best" if row[key] == best[key] else ""))
        cells += [_count(row[f"{key}_shifts"]), _count(row[f"{key}_undefined"])]
    return cells


def _number(value: float, *, digits: int, scale: float = 1.0, css: str = "") -> Cell:
    return Cell("–", "") if pd.isna(value) else Cell(f"{scale * value:.{digits}f}", float(value), css)


def _count(value: float) -> Cell:
    return Cell("–", "") if pd.isna(value) else Cell(str(int(value)), int(value))
