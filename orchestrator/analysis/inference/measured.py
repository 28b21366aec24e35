"""Values of a metric, arranged by arm and replicate, and the stages that the trials started from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.balanced_errors import relative_errors_table
from orchestrator.analysis.results import Results
from orchestrator.analysis.tables.evaluations import drops_table, slopes_table
from orchestrator.planning.works import tell_remarks
from orchestrator.statistics.intervals import Array
from orchestrator.study.contrasts import (
    Contrast,
    count_encoders,
    drop_apart,
    find_contrast,
    find_units,
    name_unit,
)
from orchestrator.study.hypotheses import (
    Hypothesis,
    counts_shifts,
    counts_sites,
    find_shift_metric,
    find_site_metric,
    split_metric,
)
from trainables.evaluation.families import group_by_family
from trainables.evaluation.metrics import DROPS, RELATIVE, split_view
from trainables.evaluation.shift_means import average_by_family, average_by_type
from trainables.shifts.tables import find_type


@dataclass(frozen=True)
class Grouping:
    """Independent units of the replicates."""

    #: Number of each replicate's unit.
    units: NDArray[np.int64]
    #: What a unit is called (``name_unit``).
    noun: str


class Measured:
    """Values of a study, arranged by arm and replicate."""

    def __init__(self, results: Results) -> None:
        self.results = results
        first = results.trials.drop_duplicates("name")
        names = self._names = [str(name) for name in first["name"]]
        columns = [str(column) for column in first if str(column).startswith("arm/")]
        self.arms = [{column[4:]: str(arm[column]) for column in columns} for _, arm in first.iterrows()]
        self.replicates = sorted(set(results.trials["replicate"]))
        position = {name: number for number, name in enumerate(names)}
        order = {replicate: number for number, replicate in enumerate(self.replicates)}
        self._arm = results.trials["name"].map(position).to_numpy(dtype=int)
        self._replicate = results.trials["replicate"].map(order).to_numpy(dtype=int)
        self.planned = np.zeros((len(names), len(self.replicates)), dtype=bool)
        self.planned[self._arm, self._replicate] = True

    def spread(self, values: pd.DataFrame) -> Array:
        """Return values (one row per signature) as arms × replicates × columns, NaN for trials without a row."""
        rows = values.reindex(self.results.trials["signature"]).to_numpy(dtype=float)
        spread = np.full((*self.planned.shape, rows.shape[1]), np.nan)
        spread[self._arm, self._replicate] = rows
        return spread

    @cached_property
    def sites(self) -> list[frozenset[str] | None]:
        """External sets of each arm, None for arms without a complete trial."""
        return [self.results.external_by_arm.get(name) for name in self._names]

    def find_contrast(self, hypothesis: Hypothesis) -> Contrast:
        """Return the contrast of a hypothesis, on arms that are tested on the same external sets if it is about any.

        Raises:
            ContrastError: if there is nothing to compare.
        """
        factors = {name: [str(label) for label in labels] for name, labels in self.results.plan["factors"].items()}
        contrast = find_contrast(hypothesis, self.arms, factors)
        is_external = split_view(hypothesis.metric)[1].startswith("external/")
        return drop_apart(contrast, hypothesis.metric, self.sites) if is_external else contrast

    @cached_property
    def data_sets(self) -> list[str]:
        """Label of each arm's data set; "" in a study on a single one."""
        return [self.results.data_sets.get(name, "") for name in self._names]

    def find_signature(self, arm: int, replicate: int) -> str:
        """Return the signature of the trial of an arm and a replicate, by their numbers; "" if none is planned."""
        return self._signatures.get((arm, replicate), "")

    @cached_property
    def _signatures(self) -> dict[tuple[int, int], str]:
        keys = zip(self._arm.tolist(), self._replicate.tolist(), strict=True)
        return dict(zip(keys, map(str, self.results.trials["signature"]), strict=True))

    @cached_property
    def shifted(self) -> pd.DataFrame:
        """Rows of the shifts table on the shifted test set."""
        shifts = self.results.shifts
        return shifts[(shifts["set"] == "test") & (shifts["severity"] > 0)]

    @cached_property
    def external(self) -> dict[str, int]:
        """Every external set that trials were evaluated on, with its number of images."""
        shifts = self.results.shifts
        if "num_images" not in shifts:  # results from elsewhere
            return {}
        rows = shifts[~shifts["set"].isin(("val", "test"))].drop_duplicates("set")
        return {str(name): int(number) for name, number in zip(rows["set"], rows["num_images"], strict=True)}

    def values(self, hypothesis: Hypothesis) -> pd.DataFrame:
        """Return the values of the hypothesis' metric, one row per signature.

        One column per shift type or external site if these are the units, otherwise a single column; empty if no trial
        has the metric.
        """
        kind, name, metric = split_metric(hypothesis.metric)
        of_shifts = find_shift_metric(hypothesis.metric)
        if counts_shifts(hypothesis) and of_shifts is not None:
            return self.results.type_means(of_shifts)
        if kind in ("family", "slope", *DROPS, *RELATIVE):
            return self._select_shifts(self._by_shift(kind, metric), name, hypothesis)
        if kind == "shift":
            return self._at_severities(name, metric, hypothesis.severities)
        if counts_sites(hypothesis):
            last = find_site_metric(hypothesis.metric)
            every = sorted(frozenset[str]().union(*self.results.external_by_arm.values()))
            of_sites = [f"external/{name}/{last}" for name in every if f"external/{name}/{last}" in self.results.trials]
            return self.results.trials.set_index("signature")[of_sites]
        if hypothesis.metric not in self.results.trials:
            return pd.DataFrame()
        return self.results.trials[["signature", hypothesis.metric]].set_index("signature")

    def group_types(self, hypothesis: Hypothesis, types: Iterable[str]) -> dict[str, list[str]] | None:
        """Return family of shifts → its types among ``types``; None for results from elsewhere, which have none."""
        own = self.results.plan.get("families", {}) if hypothesis.families is None else hypothesis.families
        return None if own is None else group_by_family(types, own)

    def _by_shift(self, kind: str, metric: str) -> pd.DataFrame:
        """Return the values that a metric of the kind is a mean of: one row per signature, one column per shift."""
        if kind == "family":
            return self.results.type_means(metric)
        key = kind, metric
        if key not in self._known:
            if kind == "slope":
                self._known[key] = slopes_table(self.results.cells(metric))
            elif kind in DROPS:
                self._known[key] = drops_table(
                    self.results.cells(metric), self.results.test_rows, metric, is_relative=kind == "relative_drop"
                )
            else:
                self._known[key] = relative_errors_table(self.results, kind)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[str, str], pd.DataFrame]:
        return {}

    def _select_shifts(self, values: pd.DataFrame, name: str, hypothesis: Hypothesis) -> pd.DataFrame:
        """Return the mean over a family of shifts, over all (``mean``), or the values of a single shift.

        Args:
            values: one row per signature, one column per shift.
            name: name of a family, ``mean``, or name of a shift.
            hypothesis: hypothesis, which may have families of its own.
        """
        parts = self.results.plan.get("data_sets", {})
        if not parts:
            return self._average(values, name, hypothesis)
        found = []
        for each in parts.values():  # grey images lack shifts of colours: every data set has its own mean
            trials, rows = self.results.trials, self.shifted[self.shifted["name"].isin(each["arms"])]
            own = {*map(str, rows["shift"]), *map(find_type, map(str, rows["shift"].unique()))}
            there = values.index.isin(trials.loc[trials["name"].isin(each["arms"]), "signature"])
            found.append(self._average(values.loc[there, [c for c in values if str(c) in own]], name, hypothesis))
        return pd.concat([each for each in found if not each.empty] or [pd.DataFrame()])

    def _average(self, values: pd.DataFrame, name: str, hypothesis: Hypothesis) -> pd.DataFrame:
        by_type = average_by_type({str(shift): values[shift].to_numpy() for shift in values})
        families = {"mean": list(by_type)} | (self.group_types(hypothesis, by_type) or {})
        if name in families and by_type:
            found = average_by_family(by_type, {name: families[name]})
            return pd.DataFrame(found, values.index)
        return values[[name]] if name in values else pd.DataFrame()

    def _at_severities(self, name: str, metric: str, severities: Sequence[int] | None) -> pd.DataFrame:
        rows = self.shifted[self.shifted["shift"] == name]
        if metric not in rows or rows.empty:
            return pd.DataFrame()
        wide = rows.pivot_table(metric, "signature", "severity")
        wanted = list(wide) if severities is None else list(severities)
        return wide.reindex(columns=wanted).mean(axis=1, skipna=False).to_frame(metric)

    @cached_property
    def _needs(self) -> list[list[frozenset[str]]]:
        """Signatures of the stages that a trial starts from, as arms × replicates."""
        known = self.results.needs
        needs = [[frozenset[str]()] * len(self.replicates) for _ in self.arms]
        for arm, replicate, signature in zip(self._arm, self._replicate, self.results.trials["signature"], strict=True):
            needs[arm][replicate] = known.get(signature, frozenset())
        return needs

    def group_replicates(self, arms: Sequence[int]) -> tuple[Grouping, int]:
        """Return the independent unit that each replicate belongs to, and the number of pretrained encoders behind all.

        Args:
            arms: numbers of the arms that are compared.
        """
        stages = [
            frozenset[str]().union(*(self._needs[arm][number] for arm in arms))
            for number in range(len(self.replicates))
        ]
        num_encoders = count_encoders(each for arm in arms for each in self._needs[arm])
        return Grouping(np.array(find_units(stages)), name_unit(stages)), num_encoders

    def list_remarks(self, arms: Iterable[int]) -> tuple[str, ...]:
        """Return what every statement about some arms has to say of their pretraining (``works.find_remarks``)."""
        return tell_remarks(self.results.plan, (self._names[arm] for arm in arms))
