"""Which confidence score ranks the wrong predictions last, and where; and which detector tells foreign images.

Numbers of one arm over its independently trained models, from the rows that its trials store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from orchestrator.statistics.intervals import Interval, drop_rounding, t_interval
from trainables.evaluation.balanced import UNSHIFTED
from trainables.evaluation.metrics import FAILURE_METRICS, OOD_METRICS, REJECTION_METRICS, name_failure
from trainables.evaluation.shift_means import average_by_family, average_by_type, average_shifts
from trainables.storage.completeness import DETECTION

#: Conditions that every table begins with; families of shifts and external sets follow.
IN_DISTRIBUTION, ALL_SHIFTS = "in distribution", "all shifts"
#: Trials whose stored rows are read. Assumption: a larger study is looked at by its headline numbers; reading takes
#: some ms a trial.
MAX_TRIALS = 1_000
#: Scores that a sentence names; of more only the number is given.
_NAMED = 3


@dataclass(frozen=True)
class DetectionRows:
    """Stored rows of the complete trials of a study."""

    #: signature, name, replicate, score, set, shift, severity, num_images, num_errors, and the failure metrics.
    failures: pd.DataFrame
    #: The same keys, role, and the metrics between the unshifted test images and the set.
    ood: pd.DataFrame
    #: Score → why no trial has it.
    undefined: dict[str, str]


def load_detection_rows(results: Results, ledger: Ledger) -> DetectionRows | None:
    """Return the stored rows of all complete trials, None if there are none or too many trials (``MAX_TRIALS``).

    Raises:
        StorageError: a file of the ledger is damaged.
    """
    if not 0 < len(results.complete) <= MAX_TRIALS:
        return None
    parts: dict[str, list[pd.DataFrame]] = {"failures": [], "ood": []}
    undefined: dict[str, str] = {}
    keys = results.complete[["signature", "name", "replicate"]].itertuples(index=False)
    for signature, name, replicate in keys:
        folder = ledger.folder("trial", str(signature))
        stored = [json.loads(folder.read(DETECTION))] if folder.exists(DETECTION) else []
        added = (each for each in results.records[str(signature)].added if "failures" in each)
        for content in (*stored, *added):
            for kind, frames in parts.items():
                about = {"signature": signature, "name": name, "replicate": int(replicate)}
                frames.append(pd.DataFrame(content[kind]).assign(**about))
            undefined |= content["undefined"]
    if not any(map(len, parts["failures"])):
        return None
    failures, ood = (_join(frames) for frames in parts.values())
    return DetectionRows(failures, ood, {k: v for k, v in undefined.items() if k not in set(failures["score"])})


def _join(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return all rows; of one that a trial has twice, because a score was added again, the first."""
    whole = pd.concat([frame for frame in frames if len(frame)] or [pd.DataFrame()], ignore_index=True)
    keys = ["signature", "score", "set", "shift", "severity"]
    return whole.drop_duplicates(keys, ignore_index=True) if len(whole) else whole


@dataclass(frozen=True)
class Standing:
    """One score under one condition."""

    mean: float
    interval: Interval | None
    #: From 1, by the mean; equal means share a rank.
    rank: int


@dataclass(frozen=True)
class Ranking:
    """All scores of an arm under all conditions, by one failure metric."""

    metric: str
    conditions: tuple[str, ...]
    #: Score → condition → its standing; a score that is undefined under a condition has none.
    standings: dict[str, dict[str, Standing]]
    #: Condition → the scores that the best one is not told from, itself first; told by paired t intervals over
    #: independently trained models at a level shared by all comparisons of the condition.
    tied: dict[str, tuple[str, ...]]
    #: Independently trained models.
    num_units: int

    @property
    def leaders(self) -> dict[str, str]:
        """Condition → score with the best mean."""
        return {condition: names[0] for condition, names in self.tied.items()}


def rank_scores(results: Results, rows: DetectionRows, arm: str, metric: str = "augrc") -> Ranking:
    """Return how the scores of an arm rank by a failure metric, per condition.

    Conditions are the unshifted test set, the mean over all shifts, every family of shifts, and every external set.

    Args:
        results: tables of the study.
        rows: ``load_detection_rows(results, ledger)``.
        arm: name of the arm.
        metric: name in ``FAILURE_METRICS``.
    """
    values = tabulate_conditions(results, rows.failures[rows.failures["name"] == arm], metric)
    lower_is_better = not FAILURE_METRICS[metric].higher_is_better
    standings: dict[str, dict[str, Standing]] = {}
    tied: dict[str, tuple[str, ...]] = {}
    conditions = tuple(dict.fromkeys(values.columns.get_level_values("condition")))
    for condition in conditions:
        of_scores = values[condition].dropna(axis=1, how="all")
        if of_scores.empty:
            continue
        means = of_scores.mean()
        ranks = means.rank(method="min", ascending=lower_is_better)
        for score in of_scores:
            interval = t_interval(of_scores[score])
            standings.setdefault(str(score), {})[condition] = Standing(float(means[score]), interval, int(ranks[score]))
        best = str(means.idxmin() if lower_is_better else means.idxmax())
        tied[condition] = (best, *_find_rivals(of_scores, best))
    return Ranking(metric, conditions, standings, tied, len(values))


def _find_rivals(values: pd.DataFrame, best: str) -> list[str]:
    """Return the scores whose paired difference from the best is not told from 0, or cannot be tested."""
    others = [str(score) for score in values if score != best]
    rivals = []
    for score in others:
        paired = drop_rounding(values[score] - values[best], values[best].abs())
        interval = t_interval(paired, 1 - 0.05 / len(others))
        if interval is None or interval.low <= 0 <= interval.high:
            rivals.append(score)
    return rivals


def tabulate_conditions(results: Results, failures: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a failure metric by independently trained unit × (condition, score).

    Args:
        results: tables of the study; replicates that share an encoder are one unit.
        failures: rows of one arm.
        metric: name in ``FAILURE_METRICS``.
    """
    units = results.group_replicates(results.trials[results.trials["name"].isin(set(failures["name"]))])
    found: dict[tuple[int, str, str], float] = {}
    for (replicate, score), own in failures.groupby(["replicate", "score"], sort=False):
        for condition, value in measure_conditions(results, own, metric).items():
            found[int(str(replicate)), condition, str(score)] = value
    series = pd.Series(found, dtype=np.float64)
    series.index = pd.MultiIndex.from_tuples(
        [(units[replicate], condition, score) for replicate, condition, score in found],
        names=["unit", "condition", "score"],
    )
    order = list(dict.fromkeys((condition, score) for _, condition, score in found))
    table = series.groupby(level=["unit", "condition", "score"], sort=False).mean().unstack(["condition", "score"])
    return table.reindex(columns=pd.MultiIndex.from_tuples(order, names=["condition", "score"]))


def measure_conditions(results: Results, rows: pd.DataFrame, metric: str) -> dict[str, float]:
    """Return condition → value of one score of one model.

    Args:
        results: tables of the study, for the families of shifts.
        rows: set, shift, severity and the metric, one row per set × shift × severity.
        metric: name in ``FAILURE_METRICS``.
    """
    found: dict[str, float] = {}
    clean = rows[(rows["shift"] == UNSHIFTED) & (rows["set"] != "val")]
    by_set = dict(zip(clean["set"], clean[metric], strict=True))
    if "test" in by_set:
        found[IN_DISTRIBUTION] = float(by_set.pop("test"))
    shifted = rows[(rows["set"] == "test") & (rows["severity"] > 0)]
    if len(shifted):
        means = average_shifts(shifted[metric].to_numpy(np.float64)[None], [str(each) for each in shifted["shift"]])
        by_type = average_by_type({shift: float(value[0]) for shift, value in means.by_shift.items()})
        found[ALL_SHIFTS] = float(means.mean[0])
        families = {name: [each for each in kinds if each in by_type] for name, kinds in results.families.items()}
        found |= average_by_family(by_type, {name: kinds for name, kinds in families.items() if kinds})
    return found | {str(name): float(value) for name, value in by_set.items()}


def tabulate_means(results: Results, metric: str = "augrc") -> pd.DataFrame:
    """Return a failure metric on average over the shifts, arm × score, mean over replicates, from headline numbers.

    Of a study without shifts it is that on the unshifted test set; empty if no trial has a score.

    Args:
        results: tables of the study.
        metric: name in ``FAILURE_METRICS``.
    """
    complete = results.complete
    for aggregate in ("mean_shifted", None):
        pattern = re.compile(name_failure(r"([\w.]+)", metric, aggregate))
        found = {name: match[1] for name in map(str, complete) if (match := pattern.fullmatch(name))}
        if found:
            return complete.groupby("name", sort=False)[list(found)].mean().rename(columns=found)
    return pd.DataFrame()


def describe_ranking(ranking: Ranking, titles: Mapping[str, str]) -> list[str]:
    """Return sentences on which score is best where, and whether one is best everywhere; no more than the test says.

    Args:
        ranking: ranking of one arm.
        titles: score → its title in a sentence.
    """
    if not ranking.tied:
        return []
    direction = "highest" if FAILURE_METRICS[ranking.metric].higher_is_better else "lowest"
    title = FAILURE_METRICS[ranking.metric].title
    shown = [each for each in (IN_DISTRIBUTION, ALL_SHIFTS) if each in ranking.tied]
    sentences = [_describe_leader(ranking, condition, titles, f"the {direction} {title}") for condition in shown]
    leaders = {names[0] for names in ranking.tied.values()}
    number = len(ranking.tied)
    if number > 1 and len(leaders) == 1:
        told = sum(len(names) == 1 for names in ranking.tied.values())
        where = {0: "none", number: "all"}.get(told, str(told))
        sentences.append(
            f"It has the {direction} mean under all {number} conditions, and is told from every other score under "
            f"{where} of them."
        )
    elif number > 1:
        counts = pd.Series([names[0] for names in ranking.tied.values()]).value_counts()
        listed = ", ".join(f"{titles[str(name)]} under {count}" for name, count in counts.items())
        sentences.append(f"No score has the {direction} mean everywhere; of {number} conditions: {listed}.")
    return sentences


def _describe_leader(ranking: Ranking, condition: str, titles: Mapping[str, str], what: str) -> str:
    best, *rivals = ranking.tied[condition]
    where = f"{condition[0].upper()}{condition[1:]}"
    head = f"{where}: {titles[best]} has {what}"
    if ranking.standings[best][condition].interval is None:
        return f"{head}; {ranking.num_units} independently trained models are too few to tell it from others."
    if not rivals:
        return f"{head}, told from every other score."
    if len(rivals) > _NAMED:
        return f"{head}, not told from {len(rivals)} of the {len(ranking.standings) - 1} others."
    return f"{head}, not told from {', '.join(titles[name] for name in rivals)}."


@dataclass(frozen=True)
class OodTable:
    """Metrics of detectors between the unshifted test images and other sets, of one arm."""

    #: Set → its role.
    roles: dict[str, str]
    #: (score, set) → metric → values over units.
    values: dict[tuple[str, str], dict[str, list[float]]]
    scores: tuple[str, ...]


def tabulate_ood(results: Results, rows: DetectionRows, arm: str) -> OodTable | None:
    """Return the detection of every set beside the test set by every score, None if there is no such set.

    Shifts are one set each, their cells averaged as everywhere; they are covariate: to flag them is no success.

    Args:
        results: tables of the study.
        rows: ``load_detection_rows(results, ledger)``.
        arm: name of the arm.
    """
    own = rows.ood[rows.ood["name"] == arm] if len(rows.ood) else rows.ood
    if own.empty:
        return None
    units = results.group_replicates(results.trials[results.trials["name"] == arm])
    roles: dict[str, str] = {}
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    metrics = [name for name in (*OOD_METRICS, *REJECTION_METRICS) if name in own]
    for (score, _), part in own.assign(unit=own["replicate"].map(units)).groupby(["score", "unit"], sort=False):
        for label, role, found in _measure_sets(part, metrics):
            roles.setdefault(label, role)
            for metric, value in found.items():
                values.setdefault((str(score), label), {}).setdefault(metric, []).append(value)
    order = {"near": 0, "far": 1, "covariate": 2}
    ordered = dict(sorted(roles.items(), key=lambda item: order[item[1]]))
    return OodTable(ordered, values, tuple(dict.fromkeys(map(str, own["score"]))))


def _measure_sets(part: pd.DataFrame, metrics: Sequence[str]) -> list[tuple[str, str, dict[str, float]]]:
    """Return (set, role, metric → value) of one detector of one unit."""
    found = []
    for name, rows in part.groupby("set", sort=False):
        values = rows[list(metrics)].to_numpy(np.float64)
        if name == "test":
            means = average_shifts(values.T, [str(each) for each in rows["shift"]]).mean
            found.append((ALL_SHIFTS, "covariate", dict(zip(metrics, map(float, means), strict=True))))
        else:
            means = values.mean(axis=0)
            found.append((str(name), str(rows["role"].iloc[0]), dict(zip(metrics, map(float, means), strict=True))))
    return found


#: Columns of ``failure_detection.csv``.
COLUMNS = ("name", "score", "condition", "metric", "mean", "low", "high", "rank", "n", "not_told_from_best")


@dataclass(frozen=True)
class VotedSet:
    """An ensemble of segmentations on one set, unshifted."""

    name: str
    num_cases: int
    #: Mean Dice over cases, then classes, of the vote; None without targets.
    vote_dice: float | None
    #: The same of the members, their mean.
    member_dice: float | None
    #: aurc, augrc and spearman of pairwise Dice with the vote's Dice; empty without targets.
    failure: Mapping[str, float]
    #: ``OOD_METRICS`` and ``REJECTION_METRICS`` between the test set and this one; empty for the test set.
    ood: Mapping[str, float]


@dataclass(frozen=True)
class EnsembleScores:
    """A deep ensemble of an arm's models. It is one unit: its values have no spread, and no interval."""

    arm: str
    #: Score → condition → AUGRC; severities, shifts and types of shift averaged as everywhere.
    augrc: dict[str, dict[str, float]]
    num_members: int
    #: Sets of a segmentation, test first.
    voted: tuple[VotedSet, ...] = ()
    #: Why some of it is missing.
    problem: str | None = None


def failure_table(results: Results, rows: DetectionRows | None, ensemble: EnsembleScores | None) -> pd.DataFrame:
    """Return one row per arm × score × condition: AUGRC over independently trained models, with interval and rank.

    The scores of an ensemble follow those of its arm: n = 1, so they have neither interval nor rank.

    Args:
        results: tables of the study.
        rows: ``load_detection_rows(results, ledger)``; without them the table is empty.
        ensemble: the deep ensemble of an arm, if there is one.
    """
    if rows is None:
        return pd.DataFrame(columns=list(COLUMNS))
    found = []
    for arm in dict.fromkeys(map(str, rows.failures["name"])):
        found += _list_standings(arm, rank_scores(results, rows, arm))
        found += [] if ensemble is None or ensemble.arm != arm else _list_ensemble(ensemble)
    return pd.DataFrame(found, columns=list(COLUMNS))


def _list_ensemble(ensemble: EnsembleScores) -> list[dict[str, Any]]:
    return [
        {"name": ensemble.arm, "score": score, "condition": condition, "metric": "augrc", "mean": value, "n": 1}
        for score, of_conditions in ensemble.augrc.items()
        for condition, value in of_conditions.items()
    ]


def _list_standings(arm: str, ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "name": arm,
            "score": score,
            "condition": condition,
            "metric": ranking.metric,
            "mean": standing.mean,
            "low": None if standing.interval is None else standing.interval.low,
            "high": None if standing.interval is None else standing.interval.high,
            "rank": standing.rank,
            "n": ranking.num_units,
            "not_told_from_best": score in ranking.tied[condition],
        }
        for score, of_conditions in ranking.standings.items()
        for condition, standing in of_conditions.items()
    ]
