"""Choice among the candidates of a tuning: each arm and replicate becomes the one that is best on validation.

The independently trained unit is the tuned replicate, so that the spread over replicates contains that of tuning, as
Bouthillier et al. 2021 ask for ("Accounting for variance in machine learning benchmarks", MLSys).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED
from trainables.evaluation.metrics import is_higher_better

#: Columns of the trials table: number of the candidate, whether it was chosen, and prefix of its values by field.
CANDIDATE, CHOSEN, TUNED = "candidate", "chosen", "tuned/"
#: Decides between candidates that are equal in the metric of the tuning: the loss on validation images.
LOSS = "validation/nll"
#: Of a replicate whose candidates are not all complete, the first state here that one of them has.
_WORST_FIRST = (FAILED, INTERRUPTED)
#: Fewest different values of which one can be at an end, and another not.
_MIN_VALUES = 3


def choose_candidates(trials: pd.DataFrame, plan: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the trials table and the plan with one trial per arm and replicate: the chosen candidate.

    Chosen is the candidate with the best ``tuning.metric``; of equal ones that with the lower validation loss, then the
    lower number. A candidate without a defined metric is worse than any other. Where a candidate is not complete, there
    is no choice: the arm's replicate has that candidate's row, without any metric, and its reason.

    Args:
        trials: one row per candidate (``trials_table``).
        plan: content of ``plan.json`` of a study with ``tuning``.
    """
    metric = plan["tuning"]["metric"]
    keys = pd.DataFrame(
        {
            "score": _read(trials, metric, sign=-1.0 if is_higher_better(metric) else 1.0),
            "loss": _read(trials, LOSS, sign=1.0),
            CANDIDATE: trials[CANDIDATE],
        }
    )
    order = keys.sort_values(["score", "loss", CANDIDATE]).index  # NaN comes last
    chosen, reasons = [], {}
    narrow = trials[["signature", "name", "replicate", "state", "reason", CANDIDATE]]
    for _, group in narrow.loc[order].groupby(["name", "replicate"], sort=False):
        lacking = group[group["state"] != COMPLETE].sort_values(CANDIDATE)
        row = group.iloc[0]
        if len(lacking):
            row = lacking.iloc[_find_worst(lacking["state"].tolist())]
            reasons[row["signature"]] = _describe_lacking(group, row)
        chosen.append(row["signature"])
    found = trials[trials["signature"].isin(chosen)].copy()
    found["reason"] = [reasons.get(each, "") for each in found["signature"]]
    planned = {trial["signature"]: trial for trial in plan["trials"]}
    return found.reset_index(drop=True), {**plan, "trials": [planned[each] for each in found["signature"]]}


def _read(trials: pd.DataFrame, column: str, *, sign: float) -> pd.Series:
    if column not in trials:
        return pd.Series(float("nan"), index=trials.index)
    return sign * trials[column].astype(float)


def _find_worst(states: Sequence[str]) -> int:
    """Return the position of the first row in the worst state."""
    return next((states.index(state) for state in _WORST_FIRST if state in states), 0)


def _describe_lacking(group: pd.DataFrame, row: pd.Series) -> str:
    """Return why an arm's replicate has no choice."""
    complete = int((group["state"] == COMPLETE).sum())
    text = f"no choice: {complete} of {len(group)} candidates complete"
    return f"{text}; candidate {row[CANDIDATE]}: {row['reason']}" if row["reason"] else text


def mark_chosen(trials: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return the table of all candidates with the column ``chosen``.

    Args:
        trials: one row per candidate.
        chosen: first result of ``choose_candidates``.
    """
    signatures = set(chosen[chosen["state"] == COMPLETE]["signature"])
    marked = trials.copy()
    marked.insert(list(trials).index(CANDIDATE) + 1, CHOSEN, trials["signature"].isin(signatures))
    return marked


@dataclass(frozen=True)
class Edge:
    """An arm whose choice of a field lies on the same end of the candidates in most replicates."""

    name: str
    field: str
    #: "lowest" or "highest" candidate.
    end: str
    num_replicates: int
    #: Number of replicates with a choice.
    num_chosen: int


def read_numbers(values: pd.Series) -> pd.Series | None:
    """Return the values of a tuned field as numbers, None if one of them is no number (the name of a choice)."""
    try:
        return values.astype(float)
    except ValueError:
        return None


def find_edges(trials: pd.DataFrame) -> list[Edge]:
    """Return the arms and fields of which a better value may lie beyond those that were tried.

    An end of fewer than three different values says nothing, nor does one of the names of choices.

    Args:
        trials: one row per candidate, with the column ``chosen`` (``mark_chosen``).
    """
    found = []
    fields = [str(column) for column in trials if str(column).startswith(TUNED)]
    groups = trials.groupby("name", sort=False)
    for (name, group), column in itertools.product(groups, fields):
        numbers = read_numbers(group[column].dropna())
        if numbers is None or numbers.nunique() < _MIN_VALUES:
            continue
        chosen = numbers[group.loc[numbers.index, CHOSEN]]
        for end, limit in (("lowest", numbers.min()), ("highest", numbers.max())):
            count = int((chosen == limit).sum())
            if 2 * count > len(chosen):
                found.append(Edge(str(name), column.removeprefix(TUNED), end, count, len(chosen)))
    return found
