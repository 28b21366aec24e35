"""Where the numbers come from: the head of the page, its counts, and the facts at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from typing import Any

from orchestrator.budget import Standing
from orchestrator.plan import describe_skipped
from orchestrator.reconcile import COMPLETE, INTERRUPTED, STOPPED
from orchestrator.report.html import Section, callout, facts, note, plural
from orchestrator.report.tables import MISSING, Results


def lede(results: Results) -> str:
    """Return one sentence: data, classes, images per split, arms × replicates."""
    data = results.plan["data"]
    splits = [name for name in ("train", "val", "test") if name in data["num_images"]]
    order = [*splits, *sorted(set(data["num_images"]) - set(splits))]
    images = ", ".join(f"{data['num_images'][name]:,} {name}" for name in order)
    return (
        f"{data['name']}, {len(data['classes'])} classes; images: {images}. "
        f"{plural(results.trials['name'].nunique(), 'arm')}, {plural(results.counts['planned'], 'trial')} planned."
    )


def status(results: Results, standing: Standing | None = None) -> str:
    """Return the counts as a meter, and loudly what is failed, missing, held back or skipped (HTML).

    Args:
        results: the study.
        standing: to its budget; None: it has none.
    """
    counts = results.counts
    states = results.states
    meter = "".join(f'<i class="{state}" style="flex:{counts[state]}"></i>' for state in states if counts[state])
    words = "".join(
        f'<span class="{state if counts[state] else "none"}"><b>{counts[state]}</b>{state.replace("_", " ")}</span>'
        for state in states
    )
    planned = f"<span><b>{counts['planned']}</b>planned</span>"
    html = f'<div class="status">{planned}{words}<div class="meter">{meter}</div></div>'
    lacking = counts["planned"] - counts[COMPLETE] - counts.get(STOPPED, 0)
    if lacking:
        html += callout(
            f"{lacking} of {counts['planned']} trials are not complete. Every mean is over what is complete, "
            "so arms may rest on different replicates; see Problems.",
            "bad",
        )
    held_back = describe_held_back(results, standing)
    if held_back is not None:
        html += callout(held_back, "warn")
    skipped = results.plan["skipped"]
    if skipped:
        html += callout(f"{plural(len(skipped), 'arm')} left out of the plan:", "warn", describe_skipped(skipped))
    return html


def describe_held_back(results: Results, standing: Standing | None) -> str | None:
    """Return in words what is missing because the budget is spent, None when nothing is."""
    if standing is None:
        return None
    counts = results.counts
    number = standing.count_held_back(interrupted=counts[INTERRUPTED], missing=counts[MISSING])
    if not number:
        return None
    return (
        f"The budget is spent ({standing.describe()}): {number} of the trials that are missing or interrupted will "
        "not start until execution.budget is raised."
    )


def provenance_section(
    results: Results, *, digest: str, files: Mapping[str, str], compute: Mapping[str, str] | None = None
) -> Section:
    """Return versions, fingerprints, compute, configuration and the files beside the page.

    Args:
        results: the study.
        digest: ``results_sha256`` of it.
        files: name of a CSV → what is in it.
        compute: further facts on what the study has taken.
    """
    plan = results.plan
    rows = {
        "results": f"sha256 {digest} (trials and shifts without times: equal for an undisturbed and a resumed study)",
        "study file": f"sha256 {plan['study_sha256']}",
        "data": f"{plan['data']['name']} ({plan['data']['kind']}), fingerprint {plan['data']['fingerprint']}, "
        f"modality {plan['data']['modality']}",
        "classes": _short(", ".join(map(str, plan["data"]["classes"]))),
        "code": f"git commit {plan['git_commit']}" if plan["git_commit"] else "not in a git repository",
        "versions": ", ".join(f"{name} {version}" for name, version in plan["versions"].items()),
        "seed": str(plan["seed"]),
        "tracking": plan["mlflow"] or "not logged to MLflow",
        "planned": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(plan["written_ms"] / 1000)),
        "ran on": _environments(results),
        **(compute or {}),
    }
    if results.orphaned:
        rows["no longer planned"] = f"{len(results.orphaned)} trials in the ledger, left out of this report"
    links = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a> ({escape(what)})' for name, what in files.items())
    body = facts(rows) + f'<p class="note">Beside this page: {links}.</p>' + _configuration(results)
    return Section("provenance", "Provenance", "Provenance", body)


def _short(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text)} characters)"


def _environments(results: Results) -> str:
    done = [record.result for record in results.records.values() if record.result is not None]
    if not done:
        return "nothing has run to its end"
    seen = sorted({", ".join(f"{k} {v}" for k, v in result["environment"].items()) for result in done})
    hours = sum(result["duration_seconds"] for result in done) / 3600
    return f"{'; '.join(seen)}. {hours:.2f} trial hours over {len(done)} complete trials"


def _configuration(results: Results) -> str:
    # Replicates of an arm have its configuration, and their own number.
    records = {record.config["name"]: record for record in results.records.values()}
    configs = [flatten(record.config["config"]) for record in records.values()]
    if not configs:
        return note("No trial has started, so no configuration is recorded.")
    keys = sorted({key for config in configs for key in config} - {"replicate"})
    cells: dict[bool, list[str]] = {True: [], False: []}
    for key in keys:
        values = list(dict.fromkeys(str(config[key]) for config in configs if key in config))
        differs = len(values) > 1 or any(key not in config for config in configs)
        text = _short(" | ".join(values), 120)
        cells[differs].append(f"<div><span>{escape(key)}</span><b>{escape(text)}</b></div>")
    varied, same = cells[True], cells[False]
    summary = (
        f"{plural(len(varied), 'field')} varied, {len(same)} the same in all {len(results.records)} trials that started"
    )
    return (
        f'<details><summary>Resolved configuration: {summary}</summary><div class="columns varied">{"".join(varied)}'
        f'</div><div class="columns">{"".join(same)}</div></details>'
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
