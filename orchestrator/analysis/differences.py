"""Differences between each arm and a reference arm under each shift, paired by replicate and tested."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.analysis.stain_grid import rows_of_shifts
from orchestrator.statistics.intervals import drop_rounding
from orchestrator.statistics.paired_tests import max_t_test

#: Largest corrected p-value of a marked cell.
ALPHA = 0.05
UNSHIFTED = "identity"


@dataclass(frozen=True)
class Differences:
    """Differences from the reference arm, in [-1, 1]; rows are names of arms, columns are shifts (identity first)."""

    reference: str
    mean: pd.DataFrame
    #: Number of pairs of replicates per cell.
    n: pd.DataFrame
    #: Two-sided p-values, corrected over all tested cells; NaN where not tested.
    p_corrected: pd.DataFrame
    #: Number of cells that were tested.
    num_tested: int
    #: Arms that are not tested, because some replicates of them or of the reference share a pretrained encoder.
    sharing: tuple[str, ...] = ()


def compute_differences(results: Results) -> Differences | None:
    """Return arm minus reference per shift, None without shifts or without a second arm that shares a replicate.

    The reference is the first arm of the plan: all factors at their first level. A replicate's score under a shift is
    its mean over severities. The test flips the signs of whole replicates and compares with the largest |t| of the map
    (``max_t_test``), so it holds whatever the correlation of the cells, which share trained models. It takes 6
    replicates. Of 1,500 maps of 12 arms × 16 shifts without any difference (accuracies on 100 images, correlated within
    a trained model) 3.2 % have a star with 6 replicates and 4.9 % with 8. A cell whose pairs are all equal, but for
    rounding, is not tested: their spread says nothing. Nor is an arm of which, or of whose reference, replicates share
    a pretrained encoder: they are not independent.
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
    every = scores - base
    # Scores are shares: rounding errors are relative to 1.
    every = pd.DataFrame(drop_rounding(every, 1.0), index=every.index, columns=every.columns)
    every = every.drop(reference, level="name")
    paired = every.groupby(level="name", sort=False, observed=True)
    mean, n = paired.mean(), paired.count()
    if mean.empty or mean.isna().all(axis=None):
        return None
    arms = [every.xs(arm, level="name") for arm in mean.index]
    cells = pd.concat(arms, axis=1).to_numpy(copy=True)  # replicates × (arms × shifts)
    spread = np.fmax.reduce(cells) - np.fmin.reduce(cells)
    cells[:, drop_rounding(spread, 1.0) == 0] = np.nan
    sharing = [_shares_encoders(results, str(arm), reference) for arm in mean.index]
    cells[:, np.repeat(sharing, len(mean.columns))] = np.nan
    p_values = max_t_test(cells, seed=results.plan["seed"], alpha=ALPHA).reshape(mean.shape)
    frame = pd.DataFrame(p_values, index=mean.index, columns=mean.columns)
    named = tuple(str(arm) for arm, shares in zip(mean.index, sharing, strict=True) if shares)
    return Differences(reference, mean, n, frame, int((~np.isnan(p_values)).sum()), named)


def _shares_encoders(results: Results, *arms: str) -> bool:
    units = results.group_replicates(results.trials[results.trials["name"].isin(arms)])
    return len(set(units.values())) < len(units)
