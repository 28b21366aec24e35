"""Packed evaluations of thousands of trials (as dicts they would be a million objects and a gigabyte), and means."""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.study.contrasts import weigh_slope
from orchestrator.study.hypotheses import MIN_TREND_LEVELS
from trainables.evaluation.metrics import is_higher_better
from trainables.evaluation.seen import POLICIES, find_policy, list_kinds_in_training, list_seen, list_used
from trainables.evaluation.shift_means import average_by_family, average_by_type, average_shifts
from trainables.shifts.tables import find_type

#: Fields of an evaluation besides its metrics.
ABOUT = ("set", "shift", "severity", "strength", "num_images")

#: Whether an arm's training policy contains a shift, in the column ``policy`` of the shifts table.
SEEN, UNSEEN = "seen", "unseen"

_ABOUT = itemgetter(*ABOUT)
_Rows = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one trial, in the order of its result."""

    #: One row of ``ABOUT`` per evaluation. Trials with equal rows share one object.
    about: _Rows
    #: Names of the columns of ``values``.
    metrics: tuple[str, ...]
    #: Values, evaluations × metrics; NaN where an evaluation lacks a metric.
    values: NDArray[np.float64]
    #: Metrics on unshifted in-distribution validation: the only ones that may choose an arm.
    validation: Mapping[str, float]


class Packer:
    """Packer of evaluations, one trial at a time. Rows that trials share are stored once."""

    def __init__(self) -> None:
        self._seen: dict[_Rows, _Rows] = {}

    def pack(self, evaluations: Sequence[dict[str, Any]]) -> Evaluations:
        """Return the packed ``evaluations`` of a ``result.json``.

        A strength of several numbers becomes JSON text, in the argument too.
        """
        for row in evaluations:
            if isinstance(row["strength"], list | dict):
                row["strength"] = json.dumps(row["strength"])
        about = tuple(map(_ABOUT, evaluations))
        values = [row["metrics"] for row in evaluations]
        metrics = tuple(dict.fromkeys(itertools.chain.from_iterable(values)))
        found = next((row for row in evaluations if row["set"] == "val" and row["severity"] == 0), None)
        return Evaluations(
            about=self._seen.setdefault(about, about),
            metrics=metrics,
            values=np.array([tuple(map(row.get, metrics)) for row in values], dtype=np.float64),
            validation={} if found is None else dict(sorted(found["metrics"].items())),
        )


def evaluations_table(keys: pd.DataFrame, packed: Sequence[Evaluations]) -> pd.DataFrame:
    """Return one row per evaluation: the trial's row of ``keys``, then ``ABOUT``, then the metrics.

    Args:
        keys: one row per trial.
        packed: evaluations of each trial, in the same order; at least one trial.
    """
    counts = [len(each.about) for each in packed]
    of_trial = keys.take(np.repeat(np.arange(len(keys)), counts)).reset_index(drop=True)
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(each.metrics for each in packed)))
    values = pd.DataFrame(np.concatenate([_align(each, names) for each in packed]), columns=list(names))
    return pd.concat([of_trial, _about_table([each.about for each in packed]), values], axis=1)


def _about_table(about: Sequence[_Rows]) -> pd.DataFrame:
    """Return the rows of ``about`` as one table. Shared objects are converted once."""
    different = {id(rows): rows for rows in about}
    starts = dict(zip(different, np.cumsum([0, *map(len, different.values())]).tolist(), strict=False))
    table = pd.DataFrame(list(itertools.chain.from_iterable(different.values())), columns=list(ABOUT))
    places = [np.arange(len(rows)) + starts[id(rows)] for rows in about]
    return table.take(np.concatenate(places)).reset_index(drop=True)


def _align(packed: Evaluations, names: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the values with the columns ``names``, NaN for metrics that the trial lacks."""
    if packed.metrics == names:
        return packed.values
    aligned = np.full((len(packed.about), len(names)), np.nan)
    aligned[:, [names.index(name) for name in packed.metrics]] = packed.values
    return aligned


def with_seen_means(
    trials: pd.DataFrame,
    test_rows: pd.DataFrame,
    means: pd.DataFrame,
    configs: Iterable[Mapping[str, Any]],
    metric: str,
) -> pd.DataFrame:
    """Return ``trials`` with the means over types of shift that some arm's training has seen, and over the others.

    The same types count for all arms: means over different shifts would not be comparable. Without types of both
    sorts, or with a policy that is not in the table of policies, there are no such columns.

    Args:
        trials: trials table.
        test_rows: rows of the shifts table on the test set.
        means: ``type_means_table`` of the metric.
        configs: configs of trials, as JSON.
        metric: name of the metric.
    """
    configs = list(configs)
    # What the policies of another version of RobustSweep contain is not known.
    if means.empty or any(find_policy(config["augmentation"]) not in POLICIES for config in configs):
        return trials
    names = [str(name) for name in test_rows["shift"].unique()]
    seen = {find_type(name) for config in configs for name in list_seen(names, config)}
    sorts: dict[str, list[Hashable]] = {
        "unseen": [kind for kind in means if kind not in seen],
        "seen": [kind for kind in means if kind in seen],
    }
    return _with_means(trials, means, sorts, metric) if all(sorts.values()) else trials


def find_seen_by_arm(shifts: pd.DataFrame, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Return name of an arm → evaluated shifts that its training policy contains (``list_seen``).

    Arms with a policy that is not in the table of policies are left out: what it contains is not known.

    Args:
        shifts: shifts table.
        configs: name of an arm → config of one of its trials, as JSON.
    """
    if shifts.empty:
        return {}
    names = list(map(str, shifts.loc[shifts["severity"] > 0, "shift"].unique()))
    known: dict[tuple[frozenset[str], str], frozenset[str]] = {}
    found = {}
    for arm, config in configs.items():
        if find_policy(config["augmentation"]) in POLICIES:
            key = list_kinds_in_training(config), json.dumps(config["evaluation"]["shifts"])
            if key not in known:
                known[key] = list_seen(names, config)
            found[arm] = known[key]
    return found


def with_policy(shifts: pd.DataFrame, seen: Mapping[str, frozenset[str]]) -> pd.DataFrame:
    """Return the shifts table with the column ``policy``: whether the arm's training policy contains the shift.

    ``SEEN`` or ``UNSEEN``; empty for unshifted images, and where the policy is not known.

    Args:
        shifts: shifts table.
        seen: ``find_seen_by_arm``.
    """
    if shifts.empty:
        return shifts
    arms, names = pd.Categorical(shifts["name"]), pd.Categorical(shifts["shift"])
    words = [
        [("" if seen.get(arm) is None else SEEN if shift in seen[arm] else UNSEEN) for shift in names.categories]
        for arm in arms.categories
    ]
    of_row = np.array(words, dtype=object)[arms.codes, names.codes]
    of_row[shifts["severity"].to_numpy() == 0] = ""
    table = shifts.copy(deep=False)
    table.insert(list(table.columns).index("severity") + 1, "policy", of_row)
    return table


def find_used_types(shifts: pd.DataFrame, configs: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the types of the test set's shifts that some trial has used for selection (``list_used``).

    Args:
        shifts: shifts table.
        configs: configs of trials, as JSON.
    """
    if shifts.empty:
        return frozenset()
    names = {
        of: list(map(str, shifts.loc[(shifts["set"] == of) & (shifts["severity"] > 0), "shift"].unique()))
        for of in ("val", "test")
    }
    if not names["val"]:
        return frozenset()
    return frozenset(find_type(name) for config in configs for name in list_used(names["test"], names["val"], config))


def with_unused_means(trials: pd.DataFrame, means: pd.DataFrame, used: frozenset[str], metric: str) -> pd.DataFrame:
    """Return ``trials`` with the mean over the types of shift that were not used for selection.

    There is no such column if none was used, or all.

    Args:
        trials: trials table.
        means: ``type_means_table`` of the metric.
        used: ``find_used_types``.
        metric: name of the metric.
    """
    unused = [kind for kind in means if kind not in used]
    return _with_means(trials, means, {"unused": unused}, metric) if used and unused else trials


def _with_means(
    trials: pd.DataFrame, means: pd.DataFrame, sorts: Mapping[str, list[Hashable]], metric: str
) -> pd.DataFrame:
    """Return ``trials`` with a column ``robustness/mean_<sort>_<metric>`` per sort of types."""
    columns = {}
    for sort, kinds in sorts.items():
        values = pd.Series(means[kinds].to_numpy().mean(axis=1), means.index)
        columns[f"robustness/mean_{sort}_{metric}"] = values.reindex(trials["signature"]).to_numpy()
    return trials.assign(**columns)


def with_family_means(
    trials: pd.DataFrame, means: pd.DataFrame, families: Mapping[str, Sequence[str]], metric: str
) -> pd.DataFrame:
    """Return ``trials`` with the mean of every family of shifts, ``family/<name>/<metric>``.

    Args:
        trials: trials table.
        means: ``type_means_table`` of the metric.
        families: family → its types.
        metric: name of the metric.
    """
    columns = {
        f"family/{family}/{metric}": pd.Series(values, means.index).reindex(trials["signature"]).to_numpy()
        for family, values in average_by_family({str(kind): means[kind].to_numpy() for kind in means}, families).items()
    }
    return trials.assign(**columns)


def cells_table(test_rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return values under shift: one row per signature, one column per shift × severity; empty without any.

    Args:
        test_rows: rows of the shifts table on the test set.
        metric: name of a column.
    """
    if metric not in test_rows:
        return pd.DataFrame()
    rows = test_rows[["signature", "shift", "severity", metric]]  # text is slow to copy
    rows = rows[rows["severity"] > 0]
    if rows.empty:
        return pd.DataFrame()
    return rows.pivot(index="signature", columns=["shift", "severity"], values=metric)


def type_means_table(wide: pd.DataFrame) -> pd.DataFrame:
    """Return means per type of shift: one row per signature, one column per type; empty if ``wide`` is.

    Args:
        wide: ``cells_table`` of a metric.
    """
    if wide.empty:
        return pd.DataFrame()
    means = average_shifts(wide.to_numpy(dtype=np.float64), list(map(str, wide.columns.get_level_values("shift"))))
    return pd.DataFrame(means.by_type, index=wide.index.astype(str))


def slopes_table(wide: pd.DataFrame) -> pd.DataFrame:
    """Return slopes: one row per signature, one column per shift with ``MIN_TREND_LEVELS`` severities or more.

    A slope is the rise of the least-squares line over the severities from the lowest to the highest one.

    Args:
        wide: ``cells_table`` of a metric.
    """
    found = {}
    for shift in dict.fromkeys(wide.columns.get_level_values("shift")) if len(wide) else ():
        values = wide[shift].sort_index(axis=1)
        if len(values.columns) >= MIN_TREND_LEVELS:
            found[str(shift)] = values.to_numpy() @ np.array(weigh_slope([float(each) for each in values.columns]))
    return pd.DataFrame(found, wide.index.astype(str))


def drops_table(wide: pd.DataFrame, test_rows: pd.DataFrame, metric: str, *, is_relative: bool) -> pd.DataFrame:
    """Return what ``metric`` loses under each shift, on average over severities: signatures × shifts.

    The loss is unshifted − shifted where higher is better, else shifted − unshifted. Missing where one of both is.

    Args:
        wide: ``cells_table`` of the metric.
        test_rows: rows of the shifts table on the test set.
        metric: name of a column.
        is_relative: whether the loss is divided by the unshifted value; missing where that is 0.
    """
    if wide.empty:
        return pd.DataFrame()
    rows = test_rows[test_rows["severity"] == 0]
    unshifted = rows.set_index(rows["signature"].astype(str))[metric].reindex(wide.index.astype(str)).to_numpy()
    sign = 1.0 if is_higher_better(metric) else -1.0
    scale = np.where(unshifted == 0.0, np.nan, unshifted) if is_relative else 1.0
    by_shift = average_shifts(wide.to_numpy(dtype=np.float64), list(map(str, wide.columns.get_level_values("shift"))))
    losses = {shift: sign * (unshifted - mean) / scale for shift, mean in by_shift.by_shift.items()}
    return pd.DataFrame(losses, wide.index.astype(str))


def type_averages(by_shift: pd.DataFrame) -> pd.DataFrame:
    """Return the means per type of shift of one column per shift, rows as given."""
    found = average_by_type({str(shift): by_shift[shift].to_numpy() for shift in by_shift})
    return pd.DataFrame(found, by_shift.index)
