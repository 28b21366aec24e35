"""Clusters and known groups of a trial's segmented cases, with their risk 1 − Dice, for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from orchestrator.analysis.slices.clusters import find_overrepresented
from orchestrator.analysis.slices.embedding import NUM_COMPONENTS, fit_axes
from orchestrator.analysis.slices.risks import RiskGroup, find_risk_clusters, judge_groups, measure_risk
from orchestrator.explorer.images import Images
from orchestrator.explorer.segmentation.index import FITTED_ON, MAPPED, find_sites, load_sets
from orchestrator.ledger.ledger import Ledger
from trainables.errors import StudyError
from trainables.evaluation.segmentation.judged import measure_dice
from trainables.evaluation.segmentation.stored import SegmentedSet


def cluster_cases(ledger: Ledger, signature: str, *, cache_dir: Path) -> dict[str, Any]:
    """Return the clusters of a trial's cases and its sites with their risk, ready for JSON; codes are per case.

    Cases are counted as ``list_cases`` lists them. Only those with Dice that are no training images are judged.

    Args:
        ledger: ledger of the study.
        signature: signature of a complete trial.
        cache_dir: folder of this node's decoded images.

    Raises:
        StudyError: no case has Dice.
        StorageError: a file of the ledger is damaged.
    """
    sets = load_sets(ledger, signature)
    sites, _ = find_sites(Images(ledger, cache_dir), signature, sets)
    risks, patients = _measure_risks(sets)
    rows = np.flatnonzero(np.isfinite(risks))
    if not len(rows):
        raise StudyError("asked for groups of cases, and no case has Dice")
    names = [f"{name} · {site}" if site not in ("", name) else name for name in sets for site in sites[name]]
    levels = sorted({names[row] for row in rows}, key=[names[row] for row in rows].index)
    codes = np.array([levels.index(names[row]) for row in rows], dtype=np.int64)
    parts = judge_groups(codes, risks[rows], patients[rows])
    columns = _list_columns(sets, sites, rows)
    return {
        **_find_clusters(sets, risks, patients, columns),
        "num_cases": len(rows),
        "parts": [_describe(each) | {"name": levels[each.number]} for each in parts],
        "part_codes": _spread(codes, rows, len(risks)),
        "part_risk": measure_risk(risks[rows], patients[rows]),
    }


def _measure_risks(
    sets: Mapping[str, SegmentedSet],
) -> tuple[Float64[np.ndarray, " cases"], Int64[np.ndarray, " cases"]]:
    """Return the risk of every case, NaN where it is not judged, and the number of its patient over all sets."""
    risks, patients, first = [], [], 0
    for name, each in sets.items():
        is_judged = each.metrics and name != "train"
        risks.append(1.0 - measure_dice(each) if is_judged else np.full(len(each.ids), np.nan))
        patients.append(each.groups.astype(np.int64) + first)
        first += int(each.groups.max(initial=-1)) + 1
    return np.concatenate(risks), np.concatenate(patients)


def _find_clusters(
    sets: Mapping[str, SegmentedSet],
    risks: Float64[np.ndarray, " cases"],
    patients: Int64[np.ndarray, " cases"],
    columns: Sequence[tuple[str, Sequence[str], np.ndarray]],
) -> dict[str, Any]:
    fitted = sets[FITTED_ON].layers.get(MAPPED) if FITTED_ON in sets else None
    if fitted is None:
        return {"clusters": [], "codes": [-1] * len(risks), "risk": None, "problem": "no features are stored"}
    has_features = np.concatenate([np.full(len(each.ids), MAPPED in each.layers) for each in sets.values()])
    rows = np.flatnonzero(np.isfinite(risks) & has_features)
    size = fitted.shape[1]
    features = np.concatenate(
        [each.layers.get(MAPPED, np.full((len(each.ids), size), np.nan)) for each in sets.values()]
    )
    components = fit_axes(fitted, num_components=NUM_COMPONENTS).place(features[rows])
    found = find_risk_clusters(components, risks[rows], patients[rows])
    among = np.isin(np.flatnonzero(np.isfinite(risks)), rows)
    described = [
        _describe(each) | {"more": _list_more(found.codes == each.number, columns, among)} for each in found.clusters
    ]
    risk = found.risk if np.isfinite(found.risk) else None
    return {"clusters": described, "codes": _spread(found.codes, rows, len(risks)), "risk": risk, "problem": None}


def _list_more(
    inside: Bool[np.ndarray, " n"], columns: Sequence[tuple[str, Sequence[str], np.ndarray]], among: np.ndarray
) -> list[dict[str, Any]]:
    kept = [(name, levels, codes[among]) for name, levels, codes in columns]
    return [asdict(level) for level in find_overrepresented(inside, kept)]


def _list_columns(
    sets: Mapping[str, SegmentedSet], sites: Mapping[str, Sequence[str]], rows: Int64[np.ndarray, " n"]
) -> list[tuple[str, Sequence[str], np.ndarray]]:
    """Return set, site and true area of the judged cases as levels; of areas the smallest and the largest quarter."""
    set_of = np.concatenate([np.full(len(each.ids), number) for number, each in enumerate(sets.values())])[rows]
    site_of = np.array([site for name in sets for site in sites[name]], dtype=np.str_)[rows]
    levels, site_codes = np.unique(site_of, return_inverse=True)
    areas = np.concatenate(
        [
            np.full(len(each.ids), np.nan) if each.areas is None else each.areas[..., 1].sum(axis=1)
            for each in sets.values()
        ]
    )[rows]
    low, high = np.nanquantile(areas, [0.25, 0.75])
    codes = np.where(areas <= low, 0, np.where(areas >= high, 1, 2))
    columns: list[tuple[str, Sequence[str], np.ndarray]] = [
        ("set", list(sets), set_of),
        ("true area", (f"≤ {low:.4g}", f"≥ {high:.4g}"), codes),
    ]
    if len(levels) > 1:
        columns.append(("site", levels.tolist(), site_codes))
    return columns


def _describe(each: RiskGroup) -> dict[str, Any]:
    risk = each.risk if np.isfinite(each.risk) else None
    return asdict(each) | {"risk": risk, "is_elevated": each.is_elevated}


def _spread(codes: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " n"], count: int) -> list[int]:
    """Return the codes of some cases among all, −1 of the others."""
    spread = np.full(count, -1, dtype=np.int64)
    spread[rows] = codes
    found: list[int] = spread.tolist()
    return found
