"""Balanced errors of every arm, and BE and rBE relative to the study's reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.statistics.intervals import MIN_REPLICATES, linearise_ratios, ratio_interval
from trainables.evaluation.balanced import (
    UNSHIFTED,
    Errors,
    ReferenceTable,
    RelativeErrors,
    binomial_errors,
    compute_relative_errors,
)
from trainables.evaluation.shift_means import average_over_types, average_shifts


def find_reference(plan: Mapping[str, Any]) -> tuple[str, str | ReferenceTable]:
    """Return the title of the reference of BE and rBE, and the reference itself: the name of an arm, or a table.

    Args:
        plan: content of ``plan.json``; if it names no reference, as in older plans, the first arm is returned.
    """
    said = plan.get("reference")
    if said is None:
        first = plan["trials"][0]["name"] if plan["trials"] else ""
        return first, first
    if "table" in said:
        return said["table"], ReferenceTable.from_json(said)
    return said["arm"], said["arm"]


def balanced_errors_table(results: Results) -> pd.DataFrame:
    """Return one row per arm: its balanced errors on the test set, and BE and rBE relative to the study's reference.

    With several data sets the reference is that of the same data set, which is named in a further column.

    Errors are means over complete replicates, under shift also over severities. ``be`` and ``rbe`` are means over
    ``be_shifts`` and ``rbe_shifts`` shifts, ``rbe_of_sums`` is the ratio of sums over the latter; relative to an arm
    they are of the replicates that both have. A shift that ``compute_relative_errors`` leaves out, or that the
    reference table lacks, counts as undefined; the standard error of the reference's loss is that over its replicates
    from ``MIN_REPLICATES`` on, below and for a table that of as many test images as the study has. Columns ``_low``
    and ``_high`` are 95 % t intervals over replicates. Cells are empty if there is no such value.
    """
    parts = results.split_by_data_set()
    if parts:
        return pd.concat([balanced_errors_table(part).assign(data_set=label) for label, part in parts.items()])
    by_arm, severities = _errors_by_replicate(results), _severities_by_arm(results)
    title, reference = find_reference(results.plan)
    rows = []
    for name in results.trials.drop_duplicates("name")["name"].tolist():
        row: dict[str, Any] = {"name": name, "label": results.labels[name], "reference": title}
        own = by_arm.get(name)
        if own is not None:
            errors = _mean_errors(own)
            row |= {"clean_error": errors.clean, "mean_shifted_error": average_over_types(errors.shifted)}
            against = by_arm.get(reference) if isinstance(reference, str) else reference.select(severities[name])
            if against is not None:
                row |= _describe_relative(own, against, results.plan["data"]["num_images"]["test"])
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["name", "label", "reference"])


def relative_errors_table(results: Results, kind: str) -> pd.DataFrame:
    """Return BE or rBE of every trial under every shift that has a value: a row per signature, a column per shift.

    The value of a trial is the share that its replicate has in the ratio of means over replicates
    (``linearise_ratios``), paired with the reference's: the mean over replicates is the ratio of
    ``balanced_errors_table``, and the reference itself is 1 in all of them. Replicates that the reference lacks have no
    row. The shifts are those that ``compute_relative_errors`` keeps for the reference, the same for all replicates.

    Args:
        results: tables of a study.
        kind: ``be`` or ``rbe``.
    """
    parts = results.split_by_data_set()
    if parts:
        return pd.concat([relative_errors_table(part, kind) for part in parts.values()])
    by_arm, severities = _errors_by_replicate(results), _severities_by_arm(results)
    _, reference = find_reference(results.plan)
    num_images = results.plan["data"]["num_images"]["test"]
    tables = []
    for name, errors in by_arm.items():
        if isinstance(reference, str) and reference not in by_arm:
            continue
        own, against, kept = (
            _pair_with_arm(errors, by_arm[reference], num_images)
            if isinstance(reference, str)
            else _pair_with_table(errors, reference.select(severities[name]), num_images)
        )
        if kind == "rbe":
            own, against = (each.sub(each[UNSHIFTED], axis=0) for each in (own, against))
        shifts = [*(kept.be if kind == "be" else kept.rbe)]
        above, below = (each.reindex(columns=shifts).to_numpy() for each in (own, against))
        if above.size:
            tables.append(pd.DataFrame(linearise_ratios(above, below), _find_signatures(results, name, own), shifts))
    return pd.concat(tables) if tables else pd.DataFrame()


def _pair_with_arm(
    errors: pd.DataFrame, reference: pd.DataFrame, num_images: int
) -> tuple[pd.DataFrame, pd.DataFrame, RelativeErrors]:
    """Return the errors of an arm and the reference in the replicates of both, and the shifts to keep (of 1)."""
    means = _mean_errors(reference)
    common = errors.index.intersection(reference.index)
    kept = compute_relative_errors(means, means, _loss_errors(reference, num_images))
    return errors.loc[common], reference.loc[common], kept


def _pair_with_table(
    errors: pd.DataFrame, reference: Errors, num_images: int
) -> tuple[pd.DataFrame, pd.DataFrame, RelativeErrors]:
    kept = compute_relative_errors(_mean_errors(errors), reference, binomial_errors(reference, num_images))
    return errors, pd.DataFrame([{UNSHIFTED: reference.clean, **reference.shifted}]), kept


def _find_signatures(results: Results, name: str, own: pd.DataFrame) -> list[str]:
    trials = results.trials[results.trials["name"] == name]
    signatures = dict(zip(trials["replicate"], trials["signature"], strict=True))
    return [str(signatures[replicate]) for replicate in own.index]


def _errors_by_replicate(results: Results) -> dict[str, pd.DataFrame]:
    """Return arm → balanced errors, a row per replicate, a column per shift (mean over severities) and for identity."""
    frame = results.test_rows
    if "balanced_accuracy" not in frame:
        return {}
    frame = frame.assign(error=1.0 - frame["balanced_accuracy"])
    means = frame.groupby(["name", "replicate", "shift"], sort=False, observed=True)["error"].mean().unstack("shift")
    return {
        str(name): group.droplevel("name").dropna(axis=1, how="all")
        for name, group in means.groupby(level="name", observed=True)
        if group.drop(columns=UNSHIFTED).notna().any(axis=None)
    }


def _mean_errors(errors: pd.DataFrame) -> Errors:
    means = errors.mean()
    return Errors(float(means[UNSHIFTED]), {str(shift): float(means[shift]) for shift in means.index.drop(UNSHIFTED)})


def _severities_by_arm(results: Results) -> dict[str, dict[str, set[int]]]:
    frame = results.test_rows[["name", "shift", "severity"]].drop_duplicates()
    found: dict[str, dict[str, set[int]]] = {}
    for name, shift, severity in frame[frame["severity"] > 0].itertuples(index=False):
        found.setdefault(name, {}).setdefault(shift, set()).add(int(severity))
    return found


def _describe_relative(own: pd.DataFrame, against: pd.DataFrame | Errors, num_images: int) -> dict[str, Any]:
    """Return the cells of an arm that are relative to the reference, given as errors by replicate or as a table's."""
    if isinstance(against, Errors):
        reference, of_reference = against, pd.DataFrame([{UNSHIFTED: against.clean, **against.shifted}])
        noise = binomial_errors(reference, num_images)
    else:
        noise = _loss_errors(against, num_images)
        common = own.index.intersection(against.index)
        if common.empty:
            return {}
        own, of_reference = own.loc[common], against.loc[common]
        reference = _mean_errors(of_reference)
    found = compute_relative_errors(_mean_errors(own), reference, noise)
    undefined = Counter(key.split("/")[0] for key in found.undefined)
    losses, reference_losses = (each.sub(each[UNSHIFTED], axis=0)[[*found.rbe]] for each in (own, of_reference))
    row = {"be": found.mean_be} | _ends("be", own[[*found.be]], of_reference[[*found.be]])
    row |= {"be_shifts": len(found.be), "be_undefined": undefined["be"]}
    row |= {"rbe": found.mean_rbe} | _ends("rbe", losses, reference_losses)
    row |= {"rbe_shifts": len(found.rbe), "rbe_undefined": undefined["rbe"], "rbe_of_sums": found.rbe_of_sums}
    return row | _ends("rbe_of_sums", _average_over_types(losses), _average_over_types(reference_losses))


def _average_over_types(losses: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each row over types of shift, as a single column: ratios of means are ratios of sums."""
    by_shift = losses.to_numpy()
    means = average_shifts(by_shift, [str(shift) for shift in losses]).mean if by_shift.size else np.zeros(len(losses))
    return pd.DataFrame({"all": means}, losses.index)


def _loss_errors(errors: pd.DataFrame, num_images: int) -> dict[str, float]:
    """Return shift → standard error of an arm's mean loss under it."""
    if len(errors) < MIN_REPLICATES:
        return binomial_errors(_mean_errors(errors), num_images)
    losses = errors.sub(errors[UNSHIFTED], axis=0).drop(columns=UNSHIFTED)
    spread, few = losses.sem(ddof=1), binomial_errors(_mean_errors(errors), num_images)
    # A shift that fewer than two replicates have has no spread over them.
    return {str(shift): few[str(shift)] if np.isnan(error) else float(error) for shift, error in spread.items()}


def _ends(name: str, numerators: pd.DataFrame, denominators: pd.DataFrame) -> dict[str, float | None]:
    found = None
    if (
        denominators.to_numpy().any()
        and not numerators.isna().any(axis=None)
        and not denominators.isna().any(axis=None)
    ):
        # The mean over shifts of a number that is 1 under one of them and 0 elsewhere is the weight of that shift.
        weights = average_shifts(np.eye(numerators.shape[1]), [str(name) for name in numerators]).mean
        found = ratio_interval(numerators.to_numpy(), denominators.to_numpy(), weights=weights)
    return {f"{name}_low": found.low if found else None, f"{name}_high": found.high if found else None}
