"""One row per arm: its levels, the states of its trials, and the mean of each headline number."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pandas as pd

from orchestrator.statistics.intervals import summarise

if TYPE_CHECKING:
    from orchestrator.analysis.results import Results


def arms_table(results: Results) -> pd.DataFrame:
    """Return one row per arm in plan order: levels, counts by state, and mean, sd (ddof 1) and n of each measure."""
    rows = []
    for name, group in results.trials.groupby("name", sort=False):
        levels = {column: group[column].iloc[0] for column in group if str(column).startswith("arm/")}
        states = Counter(group["state"])
        row = {"name": name, "label": results.labels[str(name)], **levels, "planned": len(group)}
        row |= {state: states[state] for state in results.states}
        for measure in results.measures:
            summary = summarise(group[measure.column])
            row |= {f"{measure.column}.mean": summary.mean, f"{measure.column}.sd": summary.sd}
            row[f"{measure.column}.n"] = summary.n
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["name", "label"])


def find_best_arm(results: Results, arms: pd.DataFrame, measure: str) -> str | None:
    """Return the name of the arm with the highest mean of a measure; of equal ones the first in the plan.

    None if no arm has one. Arms that a search stopped early are never the best: they must not be chosen.

    Args:
        results: tables of the study.
        arms: ``arms_table(results)``.
        measure: name of a measure of which higher values are better; ``val/<metric>`` finds the chosen arm.
    """
    column = f"{measure}.mean"
    eligible = arms[~arms["name"].isin(results.stopped_arms)]
    if column not in eligible or not eligible[column].notna().any():
        return None
    return str(eligible["name"].iloc[int(eligible[column].argmax())])


def describe_best_arm(results: Results) -> str:
    """Return what the arm with the best validation value is, as a noun without an article."""
    if results.tested_on:
        return "arm with the best validation value on its own data sets"
    return "arm that validation chooses"
