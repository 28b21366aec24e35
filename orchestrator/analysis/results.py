"""Tidy tables from a ledger: one row per planned trial, per arm, and per trial × set × shift × severity.

Rows come from the plan, not from the folders in the ledger, so a missing trial is a row and not a gap.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.tables.evaluations import (
    Packer,
    cells_table,
    find_seen_by_arm,
    find_used_types,
    type_means_table,
    with_family_means,
    with_policy,
    with_seen_means,
    with_unused_means,
)
from orchestrator.analysis.tables.formats import TextTable
from orchestrator.analysis.tables.measures import Measure, list_measures
from orchestrator.analysis.tables.trial_rows import MISSING, list_states, shifts_table, trials_table
from orchestrator.analysis.tuning import choose_candidates, mark_chosen
from orchestrator.ledger.derived import find_main_metric, find_task
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import STARTED, Record
from orchestrator.planning.states import ABSENT, COMPLETE, STOPPED
from orchestrator.study.contrasts import find_units, name_unit
from orchestrator.study.hypotheses import split_metric
from trainables.errors import StudyError
from trainables.evaluation.families import group_by_family
from trainables.evaluation.metrics import EVALUATED, SEGMENTATION_METRICS
from trainables.shifts.tables import find_type

#: Kind of the stages that choose the strengths of matched severities.
MATCHING = "matching"
#: Metric → title, for the metrics that every set and shift has, so that mean and worst over shifts exist.
TITLES = {name: EVALUATED[name].title for name in ("accuracy", "balanced_accuracy", "auroc", "dice")}

#: Columns of the trials table that differ between an undisturbed and a resumed run.
_TIMES = ("duration_seconds", "peak_rss_mib", "reason")


@dataclass(frozen=True)
class Results:
    """Tables of a study, from which the report is made; built by ``load_results``."""

    plan: dict[str, Any]
    #: Metric in ``TITLES`` that selection, effects and heat maps use.
    metric: str
    #: Signature → record of a trial, without the evaluations of its result, which are in ``shifts``.
    records: dict[str, Record]
    stages: list[Record]
    trials: pd.DataFrame
    shifts: pd.DataFrame
    #: Signatures of trials in the ledger that are no longer planned; no table contains them.
    orphaned: tuple[str, ...]
    #: Damaged files of the ledger, in words; no table contains their content.
    damaged: tuple[str, ...] = ()
    #: Types of the test set's shifts that were used for selection (``evaluation.validation_shifts``).
    used_types: frozenset[str] = frozenset()
    #: Name of an arm → shifts that its training policy contains; without arms whose policy is not known.
    seen: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: With ``tuning``: plan, records and trials of all candidates, without shifts. Everything else here is about the
    #: chosen one of each arm and replicate alone.
    candidates: Results | None = None

    @property
    def trained(self) -> Results:
        """Results of everything that was trained: of all candidates with ``tuning``, else these."""
        return self if self.candidates is None else self.candidates

    @property
    def factors(self) -> list[str]:
        """Names of the factors with more than one level, in the study file's order."""
        varied = [name for name, levels in self.plan["factors"].items() if len(levels) > 1]
        # JSON objects are written with sorted keys; an arm's name keeps the order of the study file.
        first = self.plan["trials"][0]["name"] if self.plan["trials"] else ""
        return sorted(varied, key=lambda name: first.find(f"{name}="))

    def levels(self, factor: str) -> list[str]:
        """Return the levels of a factor that trials are planned with, in the study file's order.

        A level's position determines its colour in every figure.
        """
        planned = set(self.trials[f"arm/{factor}"])
        return [str(level) for level in self.plan["factors"][factor] if str(level) in planned]

    @cached_property
    def data_sets(self) -> dict[str, str]:
        """Arm name → label of its data set; empty for a study on a single one."""
        return {name: label for label, each in self.plan.get("data_sets", {}).items() for name in each["arms"]}

    @cached_property
    def data_set_of_trials(self) -> NDArray[np.object_]:
        """Data set of every row of ``trials``, "" in a study on a single one."""
        return self.trials["name"].map(lambda name: self.data_sets.get(name, "")).to_numpy(dtype=object)

    def split_by_data_set(self) -> dict[str, Results]:
        """Return label of a data set → the results of its arms alone; empty for a study on a single one."""
        return {label: self.select_data_set(label) for label in self.plan.get("data_sets", {})}

    def select_data_set(self, label: str) -> Results:
        """Return the results of the arms on one data set, with its images, levels and reference as the plan's.

        Raises:
            StudyError: the study has no such data set.
        """
        known = self.plan.get("data_sets", {})
        if label not in known:
            found = ", ".join(known) or "only one"
            raise StudyError(f"looked for the data set {label!r}, and the study has {found}; expected one of them")
        names = set(known[label]["arms"])
        planned = [each for each in self.plan["trials"] if each["name"] in names]
        levels = {factor: {str(trial["arm"][factor]) for trial in planned} for factor in self.plan["factors"]}
        reference = self.plan.get("reference")
        factors = {f: [each for each in listed if str(each) in levels[f]] for f, listed in self.plan["factors"].items()}
        plan = self.plan | {
            "data": {key: value for key, value in known[label].items() if key != "arms"},
            "trials": planned,
            "factors": factors,
            "reference": None if reference is None else {"arm": reference["arms"][label]},
        }
        del plan["data_sets"]
        trials, shifts = (table[table["name"].isin(names)] for table in (self.trials, self.shifts))
        records = {each: self.records[each] for each in trials["signature"] if each in self.records}
        return replace(self, plan=plan, records=records, trials=trials, shifts=shifts)

    @cached_property
    def trained_on(self) -> dict[str, tuple[str, ...]]:
        """Name of an arm that has started → data sets of its training, validation and test images; () of a single one.

        With ``data.train_on`` the others are external sets.
        """
        found: dict[str, tuple[str, ...]] = {}
        for record in self.records.values():
            data = record.config["config"]["data"]
            found[record.config["name"]] = tuple(sorted(data.get("train_on") or data.get("datasets", ())))
        return found

    @property
    def tested_on(self) -> dict[str, tuple[str, ...]]:
        """``trained_on``, empty if it is the same for all arms."""
        return self.trained_on if len(set(self.trained_on.values())) > 1 else {}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Arm name → short label: levels of the factors that vary, or of all, or the name: the first that is unique."""
        arms = {trial["name"]: trial["arm"] for trial in self.plan["trials"]}
        found: dict[str, str] = {}
        for factors in (self.factors, [*self.factors, *sorted({*chain(*arms.values())} - {*self.factors})]):
            short = {name: " · ".join(str(arm[f]) for f in factors if f in arm) for name, arm in arms.items()}
            seen = Counter(short.values())
            found |= {name: label for name, label in short.items() if label and seen[label] == 1 and name not in found}
        return {name: found.get(name, name) for name in arms}

    @cached_property
    def complete(self) -> pd.DataFrame:
        """Rows of the trials table whose trial is complete."""
        return self.trials[self.trials["state"] == COMPLETE]

    @property
    def states(self) -> tuple[str, ...]:
        """The states that a planned trial of this study can be in."""
        return list_states(self.plan)

    @cached_property
    def stopped_arms(self) -> frozenset[str]:
        """Names of the arms that a search stopped early; they must not be chosen."""
        return frozenset(self.trials[self.trials["state"] == STOPPED]["name"])

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of trials, all candidates included: planned, then in each of ``states``; they add up to planned."""
        states = self.trained.trials["state"].value_counts()
        counts = {state: int(states.get(state, 0)) for state in self.states}
        counts[MISSING] += self.plan.get("to_come", 0)  # trials that a search has yet to propose
        return {"planned": sum(counts.values())} | counts

    @cached_property
    def needs(self) -> dict[str, frozenset[str]]:
        """Signature of each planned trial → signatures of the pretraining stages that it starts from."""
        others = {stage["signature"] for stage in self.plan.get("stages", ()) if stage["kind"] == MATCHING}
        return {trial["signature"]: frozenset(trial.get("needs", ())) - others for trial in self.plan["trials"]}

    def read_candidate(self, signature: str) -> dict[str, Any]:
        """Return ``candidate`` and ``tuned`` (field → value) of a trial as its row in the plan has them, {} if none."""
        trial = next(trial for trial in self.plan["trials"] if trial["signature"] == signature)
        return {key: trial[key] for key in ("candidate", "tuned") if key in trial}

    def group_replicates(self, trials: pd.DataFrame) -> dict[int, int]:
        """Return replicate → number of its independent unit: replicates that share a pretrained encoder are one.

        Args:
            trials: rows of the trials table, those that are compared.
        """
        stages = self._list_stages(trials)
        return dict(zip(stages, find_units(list(stages.values())), strict=True))

    def name_unit(self, trials: pd.DataFrame) -> str:
        """Return what the units of ``group_replicates`` are called."""
        return name_unit(list(self._list_stages(trials).values()))

    def _list_stages(self, trials: pd.DataFrame) -> dict[int, set[str]]:
        stages: dict[int, set[str]] = {int(replicate): set() for replicate in sorted(set(trials["replicate"]))}
        if any(self.needs.values()):
            for signature, replicate in zip(trials["signature"], trials["replicate"], strict=True):
                stages[int(replicate)] |= self.needs[signature]
        return stages

    @cached_property
    def text(self) -> dict[str, TextTable]:
        """The tables ``trials`` and ``shifts`` as text."""
        return {"trials": TextTable(self.trials), "shifts": TextTable(self.shifts)}

    @cached_property
    def test_rows(self) -> pd.DataFrame:
        """Rows of the shifts table on the in-distribution test set, identity (severity 0) included.

        ``signature``, ``name`` and ``shift`` are categories: grouping 700,000 rows by text takes seconds.
        """
        rows = self.shifts[self.shifts["set"] == "test"] if len(self.shifts) else self.shifts
        return rows.astype(dict.fromkeys(("signature", "name", "shift"), "category"))

    def cells(self, metric: str) -> pd.DataFrame:
        """Return ``metric`` on the shifted test set per shift × severity (``cells_table``)."""
        if ("cells", metric) not in self._by_metric:
            self._by_metric["cells", metric] = cells_table(self.test_rows, metric)
        return self._by_metric["cells", metric]

    def type_means(self, metric: str) -> pd.DataFrame:
        """Return the means of ``metric`` on the shifted test set per type of shift, as in every mean over shifts.

        One row per signature, one column per type; empty if no evaluation has the metric.
        """
        if ("types", metric) not in self._by_metric:
            self._by_metric["types", metric] = type_means_table(self.cells(metric))
        return self._by_metric["types", metric]

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Family of shifts → its evaluated types, by the study's own families and the default ones."""
        rows = self.test_rows
        names = rows[rows["severity"] > 0]["shift"].unique() if len(rows) else ()
        return group_by_family(dict.fromkeys(find_type(str(name)) for name in names), self.plan.get("families", {}))

    @cached_property
    def _by_metric(self) -> dict[tuple[str, str], pd.DataFrame]:
        return {}

    @cached_property
    def measures(self) -> list[Measure]:
        """Headline numbers in display order, without those that no trial has."""
        listed = list_measures(self.metric, TITLES[self.metric], self.external_sets, list(map(str, self.trials)))
        return [each for each in listed if each.column in self.trials and self.trials[each.column].notna().any()]

    @cached_property
    def external_by_arm(self) -> dict[str, frozenset[str]]:
        """Name of each arm with a complete trial → external sets that its trials have a metric on.

        Of results from elsewhere, arms with a value count as complete.
        """
        columns: dict[str, list[str]] = {}
        for column in map(str, self.trials):
            kind, name, _ = split_metric(column)
            if kind == "external":
                columns.setdefault(name, []).append(column)
        rows = self.complete if "state" in self.trials else self.trials
        has = pd.DataFrame({name: rows[of].notna().any(axis=1) for name, of in columns.items()}, index=rows.index)
        has = has.groupby(rows["name"]).any()
        if "state" not in self.trials:
            has = has[has.any(axis=1)]
        return {str(name): frozenset(has.columns[row]) for name, row in zip(has.index, has.to_numpy(), strict=True)}

    @cached_property
    def external_sets(self) -> list[str]:
        """Names of the external sets that complete trials were evaluated on."""
        return [] if self.shifts.empty else sorted(set(self.shifts["set"].unique()) - {"test", "val"})


def list_titles(task: str) -> dict[str, str]:
    """Return metric → title, for those in ``TITLES`` that the trials of a task have."""
    return {name: title for name, title in TITLES.items() if (name in SEGMENTATION_METRICS) == (task == "segmentation")}


def load_results(ledger: Ledger, metric: str | None = None, *, states: Mapping[str, str] | None = None) -> Results:
    """Return the tables of a study, which may be unfinished.

    Args:
        ledger: ledger of the study.
        metric: name in ``TITLES``; None: the one of the study's task.
        states: result of a recent ``ledger.states()``; None to call it.

    Raises:
        StudyError: the study has never been planned, or ``metric`` is not one that every shift has.
        StorageError: a file of the ledger is damaged; the message names it.
    """
    plan, states = ledger.read_plan(), ledger.states() if states is None else states
    metric = find_main_metric(plan) if metric is None else metric
    if metric not in (known := list_titles(find_task(plan))):
        raise StudyError(
            f"asked for results of {plan['study']}, a study of {find_task(plan)}, by the metric {metric!r}; expected "
            f"one of {', '.join(known)}"
        )
    planned = {trial["signature"] for trial in plan["trials"]}
    started = [signature for signature in sorted(planned) if states.get(signature, ABSENT) in STARTED]
    records, evaluations, packer = {}, {}, Packer()
    for record in ledger.read_each("trial", started):
        records[record.signature] = record
        if record.result is not None:
            evaluations[record.signature] = packer.pack(record.result.pop("evaluations"))
    # A damaged stage would be an error, but it is not rebuilt if no trial will start from it.
    whole = {stage["signature"] for stage in plan["stages"]} - ledger.damaged.keys()
    stages = ledger.records("stage", signatures=whole)
    every = Results(
        plan=plan,
        metric=metric,
        records=records,
        stages=stages,
        trials=trials_table(plan, records, stages, evaluations),
        shifts=shifts_table(plan, {}),
        orphaned=tuple(s for s in (ledger.root / "trials").children() if s not in planned and states[s] != ABSENT),
        damaged=tuple(ledger.damaged.values()),
    )
    results = every
    if "tuning" in plan:
        trials, plan = choose_candidates(every.trials, plan)
        records = {trial["signature"]: r for trial in plan["trials"] if (r := records.get(trial["signature"]))}
        marked = mark_chosen(every.trials, trials)
        results = replace(every, plan=plan, records=records, trials=trials, candidates=replace(every, trials=marked))
    results = replace(results, shifts=shifts_table(plan, {s: e for s, e in evaluations.items() if s in records}))
    configs = [record.config["config"] for record in records.values()]
    by_arm = {str(record.config["name"]): record.config["config"] for record in records.values()}
    seen = find_seen_by_arm(results.shifts, by_arm)
    results = replace(results, shifts=with_policy(results.shifts, seen), seen=seen)
    used = find_used_types(results.shifts, configs)
    # Grey images lack shifts of colours: every data set has means over its own.
    parts = [_with_shift_means(part, configs, used) for part in results.split_by_data_set().values()]
    trials = pd.concat(parts).reindex(results.trials.index) if parts else _with_shift_means(results, configs, used)
    found = replace(results, trials=trials, used_types=used)
    # What was computed from the shifts alone holds for these results as well; it takes a second for 10,000 trials.
    kept = results.__dict__.keys() & {"test_rows", "_by_metric"}
    found.__dict__.update({name: results.__dict__[name] for name in kept})
    return found


def _with_shift_means(results: Results, configs: Sequence[Mapping[str, Any]], used: frozenset[str]) -> pd.DataFrame:
    """Return the trials with the means over groups of types of shift."""
    metric, means = results.metric, results.type_means(results.metric)
    trials = with_seen_means(results.trials, results.test_rows, means, configs, metric)
    trials = with_family_means(trials, means, results.families if len(means) else {}, metric)
    return with_unused_means(trials, means, used, metric)


def results_sha256(results: Results) -> str:
    """Return the digest of trials and shifts without times: equal for an undisturbed and a resumed study."""
    digest, mark = hashlib.sha256(), "["
    every = results.trained
    for frame, text in ((every.trials, every.text["trials"]), (results.shifts, results.text["shifts"])):
        for row in text.json_rows(without=_TIMES, order=frame["signature"].argsort(kind="stable")):
            digest.update(f"{mark}{row}".encode())
            mark = ","
    digest.update(b"]" if mark == "," else b"[]")
    return digest.hexdigest()
