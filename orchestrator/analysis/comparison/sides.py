"""Studies side by side: what can be compared, the shifts that all of them have, trials and arms of all in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results import TITLES, Results, load_results
from orchestrator.analysis.tables.evaluations import cells_table
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.ceteris_paribus import read_settings
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.works import tell_remarks
from orchestrator.statistics.intervals import summarise
from orchestrator.study.grid import Grid
from trainables.errors import StudyError
from trainables.evaluation.metrics import EVALUATED
from trainables.evaluation.shift_means import average_shifts

#: Columns of the trials table of a comparison → their titles. The means are over the shifts that all studies have.
MEASURES = {
    "unshifted": "unshifted",
    "common_mean": "mean over common shifts",
    "common_worst": "worst common shift",
}
#: Parts of a study file that name or ask something, but decide no result.
_WORDS = ("study", "question", "hypotheses", "report")

#: Name and severity of a shift.
Cell = tuple[str, int]


@dataclass(frozen=True)
class Side:
    """One study of a comparison, or one data set of a study on several."""

    #: Name of the study, with the data set of a study on several; different for each side.
    label: str
    results: Results

    @cached_property
    def arms(self) -> list[Arm]:
        """All planned arms."""
        levels = {trial["name"]: trial["arm"] for trial in self.results.plan["trials"]}
        return [Arm(self, name, levels[name]) for name in self.results.labels]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data of the study."""
        return str(self.results.plan["data"]["fingerprint"])


@dataclass(frozen=True)
class Arm:
    """One arm of one side."""

    side: Side
    #: Its name in the plan of its study.
    name: str
    #: Factor → level.
    levels: Mapping[str, str]

    @property
    def short(self) -> str:
        """Its label in its study."""
        return self.side.results.labels[self.name]

    @property
    def label(self) -> str:
        """Its label with that of its side."""
        return f"{self.side.label} · {self.short}"

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Data sets of its training, validation and test images, () of a single one or if none of its trials began."""
        return self.side.results.trained_on.get(self.name, ())

    @property
    def remarks(self) -> tuple[str, ...]:
        """Phrases that every statement about it has to say of its pretraining."""
        return tell_remarks(self.side.results.plan, [self.name])


def load_sides(ledgers: Sequence[Ledger], metric: str, data_set: str | None = None) -> list[Side]:
    """Return the sides of a comparison.

    Args:
        ledgers: ledgers of the studies.
        metric: name in ``TITLES``.
        data_set: the one data set to compare of studies on several; None for all. Studies on one stay as they are.

    Raises:
        StudyError: fewer than two studies, a study twice, one that was never planned or has no complete trial, an
            unknown metric, a study on several data sets that lacks ``data_set``, or studies that differ in their
            classes.
        StorageError: a file of a ledger is damaged.
    """
    places = [ledger.root.uri for ledger in ledgers]
    twice = [place for place, number in Counter(places).items() if number > 1]
    if twice:
        raise StudyError(f"asked to compare studies, and {', '.join(twice)} is named twice; name each study once")
    if len(ledgers) < 2:
        found = f"only {ledgers[0].study}" if ledgers else "none"
        raise StudyError(f"asked to compare studies, and found {found}; expected two or more, as files or by name")
    names = Counter(ledger.study for ledger in ledgers)
    sides = []
    for ledger in ledgers:
        label = ledger.study if names[ledger.study] == 1 else f"{ledger.study} ({ledger.storage})"
        results = load_results(ledger, metric)
        parts = results.split_by_data_set()
        if data_set is not None and parts:
            if data_set not in parts:
                found = ", ".join(parts)
                raise StudyError(f"--data-set: looked for {data_set!r} in {label} and found {found}; name one of them")
            parts = {data_set: parts[data_set]}
        sides += [Side(f"{label}, {data_set}", part) for data_set, part in parts.items()] or [Side(label, results)]
    problems = list(_find_problems(sides, metric))
    if problems:
        listed = "\n  ".join(problems)
        raise StudyError(f"the studies cannot be compared by {TITLES[metric]}:\n  {listed}")
    return sides


def _find_problems(sides: Sequence[Side], metric: str) -> Iterator[str]:
    for side in sides:
        if side.results.complete.empty:
            yield f"{side.label} has no complete trial; run it first, or leave it out"
        elif f"id/{metric}" not in side.results.complete or side.results.complete[f"id/{metric}"].isna().all():
            yield f"{side.label} has no {metric} in any trial; choose another --metric"
    classes = {side.label: sorted(map(str, side.results.plan["data"]["classes"])) for side in sides}
    if len({tuple(each) for each in classes.values()}) > 1:
        told = "; ".join(f"{', '.join(each)} ({label})" for label, each in classes.items())
        yield (
            f"their classes differ, so that scores mean different things: {told}; compare studies on the same classes, "
            "and of studies on several data sets one (--data-set)"
        )


# --------------------------------------------------------------------------- shifts


@dataclass(frozen=True)
class CommonShifts:
    """Shifts that every side has at the same strength, and the others."""

    cells: tuple[Cell, ...]
    #: Name of a shift → why it, or some of its severities, is in no mean.
    left_out: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Names of the common shifts, in the order of the first side."""
        return list(dict.fromkeys(name for name, _ in self.cells))


def find_common_shifts(sides: Sequence[Side], metric: str) -> CommonShifts:
    """Return the shifts × severities of the test set that every side has at the same strength."""
    strengths = [_list_strengths(side.results, metric) for side in sides]
    every = list(dict.fromkeys(cell for each in strengths for cell in each))
    lacking: dict[str, dict[str, list[int]]] = {}
    common = []
    for cell in every:
        name, severity = cell
        without = [side.label for side, each in zip(sides, strengths, strict=True) if cell not in each]
        if without:
            why = f"not in {', '.join(without)}"
        elif len(set().union(*(each[cell] for each in strengths))) > 1:
            why = "strengths differ"
        else:
            common.append(cell)
            continue
        lacking.setdefault(name, {}).setdefault(why, []).append(severity)
    whole = {name: {severity for other, severity in every if other == name} for name in lacking}
    left_out = {
        name: "; ".join(
            why if set(found) == whole[name] else f"severity {', '.join(map(str, sorted(found)))}: {why}"
            for why, found in reasons.items()
        )
        for name, reasons in lacking.items()
    }
    return CommonShifts(tuple(common), left_out)


def _list_strengths(results: Results, metric: str) -> dict[Cell, frozenset[str]]:
    """Return shift and severity → strengths that its complete trials were tested at, as text."""
    rows = results.test_rows
    if metric not in rows:
        return {}
    rows = rows[(rows["severity"] > 0) & rows[metric].notna()]
    found: dict[Cell, set[str]] = {}
    for name, severity, strength in rows[["shift", "severity", "strength"]].drop_duplicates().itertuples(index=False):
        found.setdefault((str(name), int(severity)), set()).add(str(strength))
    return {cell: frozenset(each) for cell, each in found.items()}


# --------------------------------------------------------------------------- trials and arms


def trials_table(sides: Sequence[Side], common: CommonShifts, metric: str) -> pd.DataFrame:
    """Return one row per complete trial of any side: study, arm, replicate, data, seed, and ``MEASURES``.

    Means and the worst are over the common shifts alone; undefined without any, and for a trial that lacks one.
    """
    return pd.concat([_list_trials(side, common, metric) for side in sides], ignore_index=True)


def _list_trials(side: Side, common: CommonShifts, metric: str) -> pd.DataFrame:
    results = side.results
    rows = results.complete
    labels = {arm.name: arm.label for arm in side.arms}
    configs = [results.records[signature].config for signature in rows["signature"]]
    mean, worst = _average_common(results, rows["signature"], common, metric)
    return pd.DataFrame(
        {
            "study": side.label,
            "arm": [results.labels[name] for name in rows["name"]],
            "name": [labels[name] for name in rows["name"]],
            "label": [labels[name] for name in rows["name"]],
            "replicate": rows["replicate"].to_numpy(),
            "signature": rows["signature"].to_numpy(),
            "data_fingerprint": [config["data_fingerprint"] for config in configs],
            "seed": [config["config"]["seed"] for config in configs],
            "unshifted": rows[f"id/{metric}"].to_numpy(dtype=np.float64),
            "common_mean": mean,
            "common_worst": worst,
        }
    )


def _average_common(
    results: Results, signatures: pd.Series, common: CommonShifts, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and worst shift of each trial over the common shifts."""
    if not common.cells:
        nothing = np.full(len(signatures), np.nan)
        return nothing, nothing
    cells = cells_table(results.test_rows, metric).reindex(signatures)[list(common.cells)]
    means = average_shifts(cells.to_numpy(dtype=np.float64), [name for name, _ in common.cells])
    mean, _, worst = means.aggregate(EVALUATED[metric].higher_is_better)
    return mean, worst


def arms_table(sides: Sequence[Side], trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row per planned arm of every side: numbers of trials, and mean, sd (ddof 1) and n of ``MEASURES``."""
    rows = []
    for side in sides:
        planned = side.results.trials["name"].value_counts()
        for arm in side.arms:
            own = trials[trials["name"] == arm.label]
            row: dict[str, Any] = {"study": side.label, "arm": arm.short, "name": arm.label, "label": arm.label}
            row |= {"planned": int(planned[arm.name]), COMPLETE: len(own)}
            for measure in MEASURES:
                summary = summarise(own[measure])
                row |= {f"{measure}.mean": summary.mean, f"{measure}.sd": summary.sd, f"{measure}.n": summary.n}
            rows.append(row)
    return pd.DataFrame(rows).astype({f"{measure}.{part}": float for measure in MEASURES for part in ("mean", "sd")})


# --------------------------------------------------------------------------- settings


def settings_table(sides: Sequence[Side]) -> pd.DataFrame:
    """Return the settings that differ between the studies: one row per field, one column per study.

    Settings are the study file's (without question, hypotheses, report and execution), the data, the versions and the
    devices.
    """
    described = [_describe(side) for side in sides]
    nothing = Grid(base=(), factors={}, conditions=(), exclude=(), is_complete=True)
    found = read_settings([{"study": side.label} for side in sides], described, nothing)
    columns = [side.label for side in sides]
    return pd.DataFrame([[field, *values] for field, values in found.values.items()], columns=["field", *columns])


def _describe(side: Side) -> dict[str, Any]:
    plan = side.results.plan
    data = plan["data"]
    devices = {
        str(record.result["environment"].get("device")) for record in side.results.records.values() if record.result
    }
    return {
        **{name: value for name, value in plan["base"].items() if name not in _WORDS},
        "factors": {factor: list(levels) for factor, levels in plan["factors"].items()},
        "fingerprint of the data": side.fingerprint,
        "images": data["num_images"],
        "version": plan["versions"],
        "git commit": plan["git_commit"],
        "device": ", ".join(sorted(devices)),
    }
