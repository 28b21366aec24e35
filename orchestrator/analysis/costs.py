"""Tables of the time and memory that trials and arms took, including time lost to interruptions."""

from __future__ import annotations

import math
from collections import Counter

import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.ledger.durations import lost_seconds, took_seconds
from orchestrator.ledger.other_studies import FOUND_IN


def costs_table(results: Results) -> pd.DataFrame:
    """Return one row per planned trial that took any time: its seconds, peak memory and device.

    ``trial_seconds`` cover training and all evaluations, NaN unless the trial is complete; ``lost_seconds`` cover
    attempts that were lost or failed, and all time that has led to no result yet. A stage's seconds, finished and
    lost, are shared equally among all trials planned to start from it, complete or not; one that was copied from
    another study took none. With ``tuning`` the candidates that were not chosen have a row as well: an arm takes the
    time of all of them.
    """
    results = results.trained
    users = Counter(need for trial in results.plan["trials"] for need in trial["needs"])
    took = {
        stage.signature: took_seconds(stage)
        for stage in results.stages
        if stage.result is not None and FOUND_IN not in stage.result
    }
    lost = {stage.signature: lost_seconds(stage) for stage in results.stages}
    rows = []
    for trial in results.plan["trials"]:
        record = results.records.get(trial["signature"])
        result = record.result if record is not None else None
        in_vain = sum(lost[need] / users[need] for need in trial["needs"] if need in lost)
        row = {
            "signature": trial["signature"],
            "name": trial["name"],
            "replicate": trial["replicate"],
            "trial_seconds": math.nan if record is None or result is None else took_seconds(record),
            "stage_seconds": float(sum(took[need] / users[need] for need in trial["needs"] if need in took)),
            "lost_seconds": float(in_vain + (lost_seconds(record) if record is not None else 0.0)),
            "peak_rss_mib": result.get("peak_rss_mib") if result else None,
            "peak_gpu_memory_mib": result.get("peak_gpu_memory_mib") if result else None,
            "device": result["environment"]["device"] if result else None,
        }
        if result is not None or row["stage_seconds"] or row["lost_seconds"]:
            rows.append(row)
    columns = ["signature", "name", "replicate", "trial_seconds", "stage_seconds", "lost_seconds", "peak_rss_mib"]
    return pd.DataFrame(rows, columns=[*columns, "peak_gpu_memory_mib", "device"])


def arm_costs_table(results: Results, costs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm in plan order: seconds per trial, hours, peak memory and devices.

    ``n``, mean and sd are over complete trials, all other columns over all trials in ``costs``; ``finished_hours`` +
    ``lost_hours`` = ``hours``.

    Args:
        results: tables of the study.
        costs: ``costs_table(results)``.
    """
    rows = []
    for name, group in costs.groupby("name", sort=False):
        seconds = group["trial_seconds"].dropna()
        finished, lost = seconds.sum() + group["stage_seconds"].sum(), group["lost_seconds"].sum()
        rows.append(
            {
                "name": name,
                "label": results.labels[str(name)],
                "n": len(seconds),
                "trial_seconds.mean": seconds.mean() if len(seconds) else None,
                "trial_seconds.sd": seconds.std(ddof=1) if len(seconds) > 1 else None,
                "stage_seconds_per_trial": group["stage_seconds"].mean(),
                "finished_hours": finished / 3600,
                "lost_hours": lost / 3600,
                "hours": (finished + lost) / 3600,
                "peak_rss_mib": _largest(group["peak_rss_mib"]),
                "peak_gpu_memory_mib": _largest(group["peak_gpu_memory_mib"]),
                "devices": join_devices(group["device"]),
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["name", "label", "n"])


def _largest(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.max()) if len(known) else None


def join_devices(devices: pd.Series) -> str:
    """Return the distinct devices, sorted and joined by commas."""
    return ", ".join(sorted(set(devices.dropna())))
