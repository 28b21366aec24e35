"""Values of a metric, arranged by arm and replicate, and the stages that the trials started from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.results import Results
from orchestrator.statistics.intervals import Array
from orchestrator.study.contrasts import find_units
from orchestrator.study.hypotheses import Hypothesis, counts_shifts, find_shift_metric, split_metric


class Measured:
    """Values of a study, arranged by arm and replicate."""

    def __init__(self, results: Results) -> None:
        self.results = results
        first = results.trials.drop_duplicates("name")
        names = [str(name) for name in first["name"]]
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

        One column per shift type if these are the units, otherwise a single column; empty if no trial has the metric.
        """
        kind, name, metric = split_metric(hypothesis.metric)
        of_shifts = find_shift_metric(hypothesis.metric)
        if counts_shifts(hypothesis) and of_shifts is not None:
            return self.results.type_means(of_shifts)
        if kind == "shift":
            return self._at_severities(name, metric, hypothesis.severities)
        if hypothesis.metric not in self.results.trials:
            return pd.DataFrame()
        return self.results.trials[["signature", hypothesis.metric]].set_index("signature")

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

    def group_replicates(self, arms: Sequence[int]) -> tuple[NDArray[np.int64], int]:
        """Return the independent unit that each replicate belongs to, and the number of pretrained encoders behind all.

        Args:
            arms: numbers of the arms that are compared.
        """
        stages = [
            frozenset[str]().union(*(self._needs[arm][number] for arm in arms))
            for number in range(len(self.replicates))
        ]
        return np.array(find_units(stages)), len(frozenset[str]().union(*stages))
