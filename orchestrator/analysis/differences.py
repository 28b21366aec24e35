"""Differences between each arm and a reference arm under each shift, paired by replicate and tested."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.results import Results
from orchestrator.analysis.stain_grid import rows_of_shifts
from orchestrator.statistics.paired_tests import holm

#: Fewest pairs of replicates that are tested. Two leave one degree of freedom: nothing can be found.
MIN_PAIRS = 3
#: Largest Holm-corrected p-value of a marked cell.
ALPHA = 0.05
UNSHIFTED = "identity"


@dataclass(frozen=True)
class Differences:
    """Differences from the reference arm, in [-1, 1]; rows are names of arms, columns are shifts (identity first)."""

    reference: str
    mean: pd.DataFrame
    #: Number of pairs of replicates per cell.
    n: pd.DataFrame
    #: p-values of two-sided paired t-tests, Holm-corrected over all tested cells; NaN where not tested.
    p_holm: pd.DataFrame
    #: Number of cells that were tested.
    num_tested: int


def compute_differences(results: Results) -> Differences | None:
    """Return arm minus reference per shift, None without shifts or without a second arm that shares a replicate.

    The reference is the first arm of the plan: all factors at their first level. A replicate's score under a shift is
    its mean over severities. The test is the paired t-test over replicates: an exact signed-rank or sign-flip test
    cannot come below 2 · 2⁻ⁿ, and with few replicates no cell of a map could pass Holm's correction.
    """
    shifts, columns = rows_of_shifts(results)
    if not columns:
        return None
    groups = shifts.groupby(["name", "replicate", "shift"], sort=False, observed=True)[results.metric]
    scores = groups.mean().unstack("shift")
    reference = str(results.trials["name"].iloc[0])
    if reference not in scores.index.get_level_values("name"):
        return None
    scores = scores[[*[c for c in (UNSHIFTED,) if c in scores], *columns]]
    base = scores.loc[reference].reindex(scores.index.get_level_values("replicate")).to_numpy()
    paired = (scores - base).drop(reference, level="name").groupby(level="name", sort=False, observed=True)
    mean, sd, n = paired.mean(), paired.std(ddof=1), paired.count()
    if mean.empty or mean.isna().all(axis=None):
        return None
    p_values = paired_t(mean.to_numpy(), sd.to_numpy(), n.to_numpy())
    corrected = holm([None if np.isnan(p) else float(p) for p in p_values.ravel()])
    p_holm = np.array([np.nan if p is None else p for p in corrected]).reshape(p_values.shape)
    frame = pd.DataFrame(p_holm, index=mean.index, columns=mean.columns)
    return Differences(reference, mean, n, frame, int((~np.isnan(p_values)).sum()))


def paired_t(mean: NDArray[np.float64], sd: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return two-sided p-values of paired t-tests, given mean, sd (ddof 1) and number of the differences.

    NaN with fewer than ``MIN_PAIRS`` differences, or where all are equal, so that t is undefined.
    """
    from scipy.stats import t as student

    known = (n >= MIN_PAIRS) & (sd > 0)
    p_values = np.full(mean.shape, np.nan)
    statistic = np.abs(mean[known]) / (sd[known] / np.sqrt(n[known]))
    p_values[known] = 2 * student.sf(statistic, n[known] - 1)
    return p_values
