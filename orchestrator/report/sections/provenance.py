"""Report sections: head of the page, counts, everything left out, and provenance."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from orchestrator.analysis.results import Results
from orchestrator.analysis.tables.trial_rows import MISSING
from orchestrator.analysis.wording import flatten, plural, sentence
from orchestrator.ledger.other_studies import FOUND_IN
from orchestrator.planning.budget import BudgetStatus
from orchestrator.planning.states import COMPLETE, INTERRUPTED, STOPPED
from orchestrator.planning.works import tell_remarks
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, facts, note, table
from trainables.data.describe import describe_conversions, describe_similar


def lede(results: Results) -> str:
    """Return the lede: data, classes, images per split, numbers of arms and planned trials."""
    described = "; ".join(
        f"{label and f'{label}: '}{_describe_size(data)}" for label, data in _list_data(results.plan).items()
    )
    return (
        f"{described}. "
        f"{plural(results.trials['name'].nunique(), 'arm')}, {plural(results.counts['planned'], 'trial')} planned"
        + (f", {results.plan['tuning']['candidates']} candidates per replicate." if results.candidates else ".")
    )


def _list_data(plan: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return label → description of each data set; the label of a single one is empty."""
    return plan.get("data_sets") or {"": plan["data"]}


def _describe_size(data: Mapping[str, Any]) -> str:
    splits = [name for name in ("train", "val", "test") if name in data["num_images"]]
    order = [*splits, *sorted(set(data["num_images"]) - set(splits))]
    images = ", ".join(f"{data['num_images'][name]:,} {name}" for name in order)
    return f"{data['name']}, {len(data['classes'])} classes; images: {images}"


def _describe_data(plan: Mapping[str, Any]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for label, data in _list_data(plan).items():
        on = f"{label}, " if label else ""
        rows |= {
            f"{on}data": f"{data['name']} ({data['kind']}), fingerprint {data['fingerprint']}, "
            f"modality {data['modality']}",
            f"{on}classes": _short(", ".join(map(str, data["classes"]))),
            f"{on}groups": _describe_groups(data),
            **{f"{on}{name}": text for name, text in _describe_images(data).items()},
        }
    return rows


def status(results: Results, budget_status: BudgetStatus | None = None) -> str:
    """Return the counts as a meter, with warnings about incomplete, held back and skipped trials (HTML).

    Args:
        results: tables of the study.
        budget_status: use of the study's budget; None without a budget.
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
            "so arms may rest on different replicates; see Left out.",
            "bad",
        )
    held_back = describe_held_back(results, budget_status)
    if held_back is not None:
        html += callout(held_back, "warn")
    if results.tested_on:
        unshifted = (
            "Every arm is tested on every data set unshifted; those numbers (dataset/…) compare, and are in the "
            "section Segmentation."
        )
        html += callout(f"{describe_tested_on(results.tested_on, results.labels)} {unshifted}", "warn")
    for remark, arms in group_remarks(results.plan).items():
        labels = [results.labels[arm] for arm in arms]
        html += callout(f"{sentence(remark)} ({plural(len(arms), 'arm')}).", "warn", [_join_names(labels)])
    return html


def describe_tested_on(tested_on: Mapping[str, tuple[str, ...]], labels: Mapping[str, str]) -> str:
    """Return in words which arms have validation and test images of which data sets.

    Args:
        tested_on: name of an arm → its data sets, at least two different ones.
        labels: name of an arm → what it is called.
    """
    by_sets: dict[tuple[str, ...], list[str]] = {}
    for arm, names in tested_on.items():
        by_sets.setdefault(names, []).append(labels.get(arm, arm))
    listed = "; ".join(f"{' and '.join(names)}: {_join_names(arms)}" for names, arms in by_sets.items())
    return (
        "Arms are trained on different data sets (data.train_on), and their validation, test and shifted images are of "
        f"these alone: such numbers compare only among arms of the same ({listed})."
    )


def group_remarks(plan: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what has to be said of the pretraining → planned arms of which it has to be."""
    found: dict[str, list[str]] = {}
    for arm in dict.fromkeys(trial["name"] for trial in plan["trials"]):
        for remark in tell_remarks(plan, [arm]):
            found.setdefault(remark, []).append(arm)
    return found


def describe_held_back(results: Results, budget_status: BudgetStatus | None) -> str | None:
    """Return in words how many trials the spent budget holds back, None if it holds back none."""
    if budget_status is None:
        return None
    counts = results.counts
    number = budget_status.count_held_back(interrupted=counts[INTERRUPTED], missing=counts[MISSING])
    if not number:
        return None
    return (
        f"The budget is spent ({budget_status.describe()}): {number} of the trials that are missing or interrupted "
        "will not start until execution.budget is raised."
    )


def provenance_section(
    results: Results, *, digest: str, files: Mapping[str, str], compute: Mapping[str, str] | None = None
) -> Section:
    """Return versions, fingerprints, compute, configuration and the files beside the page.

    Args:
        results: tables of the study.
        digest: ``results_sha256(results)``.
        files: name of a file → description of its content.
        compute: further facts, on the compute that the study used.
    """
    plan = results.plan
    rows = {
        "results": f"sha256 {digest} (trials and shifts without times: equal for an undisturbed and a resumed study)",
        "study file": f"sha256 {plan['study_sha256']}",
        **_describe_data(plan),
        "code": f"git commit {plan['git_commit']}" if plan["git_commit"] else "not in a git repository",
        "versions": ", ".join(f"{name} {version}" for name, version in plan["versions"].items()),
        "seed": str(plan["seed"]),
        **_describe_pretraining(results),
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


def _describe_pretraining(results: Results) -> dict[str, str]:
    """Return the published weights with what the study states about them, and stages that were copied."""
    rows: dict[str, str] = {}
    weights: dict[str, None] = {}
    for record in results.records.values():
        step = record.config["config"]["pretraining"]
        while "init" in step:
            step = step["init"]
        if step["kind"] == "weights":
            name = step["name"] or Path(step["file"]).name
            told = (step["file_sha256"] and f"sha256 {step['file_sha256']}", step["licence"], step["pretrained_on"])
            weights[f"{name} ({', '.join(filter(None, told)) or 'nothing is stated about them'})"] = None
    if weights:
        rows["weights"] = "; ".join(weights)
    copied = [
        f"{stage.config['name']} from {stage.result[FOUND_IN]}"
        for stage in results.stages
        if stage.result is not None and FOUND_IN in stage.result
    ]
    if copied:
        rows["stages of other studies"] = "; ".join(copied)
    return rows


def _describe_groups(data: Mapping[str, Any]) -> str:
    """Return whether groups are known, and how many images repeat another of their set; older plans lack both."""
    text = "not recorded by the version that planned the study"
    if "num_patients" in data:
        has_groups = data["num_patients"] is not None
        text = "each in one set" if has_groups else "one per image: those of a patient may lie in several sets"
    copies = [f"{count:,} in {name}" for name, count in data.get("copies", {}).items()]
    return text + (f"; images with the pixels of another image: {', '.join(copies)}" if copies else "")


def _describe_images(data: Mapping[str, Any]) -> dict[str, str]:
    """Return how intensities were converted and which images look alike; older plans lack both."""
    rows = {}
    if data.get("conversions"):
        rows["intensities"] = describe_conversions(data["conversions"])
    if "similar" in data:
        rows["near-duplicates"] = describe_similar(data["similar"]["counts"], data["similar"]["unchecked"])
    return rows


def _short(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text)} characters)"


def _environments(results: Results) -> str:
    done = [record.result for record in results.trained.records.values() if record.result is not None]
    if not done:
        return "nothing has run to its end"
    seen = sorted({", ".join(f"{k} {v}" for k, v in result["environment"].items()) for result in done})
    hours = sum(result["duration_seconds"] for result in done) / 3600
    return f"{'; '.join(seen)}. {hours:.2f} trial hours over {len(done)} complete trials"


def _configuration(results: Results) -> str:
    # One record per arm and candidate: its replicates have the same configuration but for their number.
    started = results.trained.records
    records = {(record.config["name"], record.config.get("candidate")): record for record in started.values()}
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
    summary = f"{plural(len(varied), 'field')} varied, {len(same)} the same in all {len(started)} trials that started"
    return (
        f'<details><summary>Resolved configuration: {summary}</summary><div class="columns varied">{"".join(varied)}'
        f'</div><div class="columns">{"".join(same)}</div></details>'
    )


#: Most trials listed one by one; a study of 10,000 that has just begun would fill the page.
MAX_TRIALS = 500


def left_out_section(results: Results) -> Section:
    """Return the section on everything left out, with counts and reasons, and on each trial that is not complete."""
    columns = [Column("what"), Column("how many", is_number=True), Column("which", sortable=False), Column("why")]
    rows = [
        [Cell(escape(what)), Cell(f"{count:,}", count), Cell(escape(which), css="wide"), Cell(escape(why), css="wide")]
        for what, count, which, why in find_left_out(results)
    ]
    if rows:
        body = note("Nothing of this is in a table, figure or mean above.") + table(columns, rows)
    else:
        body = note(
            "Nothing: every planned trial is complete, no arm was skipped, no metric is undefined, no file is damaged, "
            "no image was set aside."
        )
    return Section("left-out", "Left out", "What is left out, and why?", body + _trials(results))


def find_left_out(results: Results) -> Iterator[tuple[str, int, str, str]]:
    """Yield kind, count, names and reason of everything left out."""
    skipped: dict[str, list[str]] = {}
    for arm in results.plan["skipped"]:
        skipped.setdefault(arm["reason"], []).append(arm["name"])
    for reason, names in skipped.items():
        yield "arm, skipped by the plan", len(names), _join_names(names), reason
    trials = results.trained.trials
    incomplete = trials[~trials["state"].isin([COMPLETE, STOPPED])]
    for key, group in incomplete.groupby(["state", "reason"], sort=False):
        state, why = map(str, key)
        arms = [results.labels[name] for name in dict.fromkeys(group["name"])]
        yield f"{state} trial", len(group), _join_names(arms), why or "not run yet: run the study again"
    if results.candidates is not None:
        unchosen = results.trials[results.trials["state"] != COMPLETE]
        for name, group in unchosen.groupby("name", sort=False):
            why = "not all of its candidates are complete, so that none is chosen"
            yield "replicate without a choice", len(group), results.labels[str(name)], why
    stopped = results.trials[results.trials["state"] == STOPPED]
    if len(stopped):
        arms = [results.labels[name] for name in dict.fromkeys(stopped["name"])]
        why = "the search has stopped it early: it, or another replicate of its configuration, fell behind"
        yield "trial, stopped early", len(stopped), _join_names(arms), why
    yield from _undefined(results)
    for text in results.damaged:
        yield "damaged file", 1, text, "run the study again: it is made anew"
    if results.orphaned:
        why = "in the ledger, but no longer planned: the study file has changed"
        yield "trial of an earlier plan", len(results.orphaned), _join_names(list(results.orphaned)), why
    images = Counter(bad["problem"] for bad in results.plan["data"]["quarantined"])
    for problem, count in images.items():
        files = [_image(bad) for bad in results.plan["data"]["quarantined"] if bad["problem"] == problem]
        yield "image, set aside", count, _join_names(files), problem


def _undefined(results: Results) -> Iterator[tuple[str, int, str, str]]:
    found = Counter(
        (key, why)
        for record in results.records.values()
        if record.result is not None
        for key, why in record.result["undefined"].items()
    )
    keys: dict[tuple[str, int], list[str]] = {}
    for (key, why), count in found.items():
        keys.setdefault((why, count), []).append(key)
    for (why, count), names in keys.items():
        yield "undefined metric", len(names), f"{_join_names(names)} in {count} of {len(results.complete)} trials", why


def _image(bad: dict[str, object]) -> str:
    return f"{bad['file_name']}" + ("" if bad["row"] is None else f" (row {bad['row']})")


def _join_names(names: list[str], limit: int = 12) -> str:
    return "; ".join(names[:limit]) + (f"; and {len(names) - limit:,} more" if len(names) > limit else "")


def _trials(results: Results) -> str:
    """Return the table of trials that are not complete, at most ``MAX_TRIALS``; trials.csv has all of them."""
    incomplete = results.trained.trials[results.trained.trials["state"] != COMPLETE]
    if incomplete.empty:
        return ""
    shown = incomplete.head(MAX_TRIALS)
    has_candidates = results.candidates is not None
    titles = ("state", "arm", "replicate", *(["candidate"] if has_candidates else []), "signature", "reason")
    columns = [Column(title, is_number=title in ("replicate", "candidate")) for title in titles]
    rows = [
        [
            Cell(escape(trial["state"].replace("_", " "))),
            Cell(escape(results.labels[trial["name"]])),
            Cell(str(trial["replicate"]), value=trial["replicate"]),
            *([Cell(str(trial["candidate"]), value=trial["candidate"])] if has_candidates else []),
            Cell(f"<code>{escape(trial['signature'])}</code>"),
            Cell(escape(trial["reason"]), css="wide"),
        ]
        for trial in shown.to_dict("records")
    ]
    more = len(incomplete) - len(shown)
    text = f"{plural(len(incomplete), 'trial')} not complete, one by one."
    text += f" {more:,} more are in trials.csv." if more else ""
    return f"<h3>{escape('Which trials?')}</h3>" + note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
