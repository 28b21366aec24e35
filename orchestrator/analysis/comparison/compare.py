"""All tables of a comparison of studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from orchestrator.analysis.comparison.pairs import Pair, compute_pairs
from orchestrator.analysis.comparison.sides import (
    CommonShifts,
    Side,
    arms_table,
    find_common_shifts,
    load_sides,
    settings_table,
    trials_table,
)
from orchestrator.ledger.derived import find_main_metric
from orchestrator.ledger.ledger import Ledger


@dataclass(frozen=True)
class Comparison:
    """Tables of a comparison, from which its page is made."""

    metric: str
    num_studies: int
    #: Studies, or data sets of studies on several.
    sides: Sequence[Side]
    common: CommonShifts
    trials: pd.DataFrame
    arms: pd.DataFrame
    pairs: Sequence[Pair]
    settings: pd.DataFrame

    @property
    def tested_on(self) -> dict[str, tuple[str, ...]]:
        """Label of an arm → data sets of its test images, with ``data.train_on``; empty if all have the same."""
        found = {arm.label: arm.trained_on for side in self.sides for arm in side.arms if arm.trained_on}
        return found if len(set(found.values())) > 1 else {}


def compare_studies(
    ledgers: Sequence[Ledger],
    *,
    metric: str | None = None,
    named: Sequence[tuple[str, str]] = (),
    data_set: str | None = None,
) -> Comparison:
    """Return the tables of a comparison of studies.

    Args:
        ledgers: ledgers of two or more studies.
        metric: metric that arms are compared by, one of ``results.TITLES``; None: that of the first study's task.
        named: pairs of arms to compare besides those with the same label (``compute_pairs``).
        data_set: the one data set to compare of studies on several; None for all.

    Raises:
        StudyError: the studies cannot be compared, or a named arm does not exist.
        StorageError: a ledger is damaged, or its storage refuses.
    """
    metric = find_main_metric(ledgers[0].read_plan()) if metric is None else metric
    sides = load_sides(ledgers, metric, data_set)
    common = find_common_shifts(sides, metric)
    trials = trials_table(sides, common, metric)
    return Comparison(
        metric=metric,
        num_studies=len(ledgers),
        sides=sides,
        common=common,
        trials=trials,
        arms=arms_table(sides, trials),
        pairs=compute_pairs(sides, trials, named),
        settings=settings_table(sides),
    )
