"""A study's experiment and its own run in MLflow: verdicts, report, and the description that says what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.preregistration import DELETED
from orchestrator.ledger.record import Record
from orchestrator.ledger.usage import find_dashboard
from orchestrator.planning.states import INTERRUPTED
from orchestrator.tracking.artifacts import choose_artifact_location, move_artifacts
from orchestrator.tracking.client import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, RunTag, upload
from orchestrator.tracking.guard.places import check_identifier, check_place
from orchestrator.tracking.projection import (
    MAX_DIGEST_LENGTH,
    MAX_PARAMS_PER_CALL,
    STATUS_TAG,
    STATUSES,
    VERDICT_TAG,
    describe_study,
    project_verdicts,
)
from orchestrator.tracking.views import REPORT, TITLES, make_path, make_report_path

#: Tag of an experiment or run that MLflow shows as its description, as Markdown.
NOTE_TAG = "mlflow.note.content"
#: Tag of the study's own run: address of Ray's dashboard, if it ran on a cluster that has one.
DASHBOARD_TAG = "robustsweep.ray_dashboard"
#: What users write below this line of the experiment's description is kept.
KEPT_BELOW = "_Notes below this line are kept._"
#: Larger tables stay beside the ledger's report: a server would have to take them in one request.
MAX_TABLE_BYTES = 32 * 2**20


def ensure_experiment(client: Any, tracking_uri: str, ledger: Ledger, study: str) -> str:
    """Return the ID of the study's experiment, which is made, restored, or follows its ledger to where that has moved.

    Call it within ``translating_errors``.
    """
    found = client.get_experiment_by_name(study)
    location = choose_artifact_location(tracking_uri, ledger)
    if found is None:
        # The tag makes the UI offer its pages for training instead of those for language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return check_identifier(client.create_experiment(study, artifact_location=location, tags=tags))
    experiment_id = check_identifier(found.experiment_id)
    if found.lifecycle_stage == LifecycleStage.DELETED:
        client.restore_experiment(experiment_id)
    if location is not None and found.artifact_location != location:
        move_artifacts(tracking_uri, ledger, experiment_id, old=found.artifact_location, new=location)
    return experiment_id


def read_experiment(client: Any, tracking_uri: str, experiment_id: str) -> tuple[dict[str, str], str]:
    """Return the tags of an experiment, and where it has its artifacts; call it within ``translating_errors``.

    Raises:
        RefusedError: artifacts must not lie there.
    """
    experiment = client.get_experiment(experiment_id)
    check_place(tracking_uri, experiment.artifact_location)
    return dict(experiment.tags), experiment.artifact_location


def ensure_parent(
    client: Any, experiment_id: str, about: Mapping[str, Any], found: Sequence[str], known: str | None, ledger: Ledger
) -> str:
    """Return the ID of the study's own run, which is made or runs again; second ones are deleted.

    Call it within ``translating_errors``.

    Args:
        client: MLflow's client.
        experiment_id: of the study.
        about: content of ``plan.json``.
        found: IDs of the runs that MLflow has.
        known: ID of the run that the ledger's index names.
        ledger: ledger of the study, which names the cluster's dashboard.
    """
    dashboard = find_dashboard(ledger)
    tags = describe_study(about) | ({} if dashboard is None else {DASHBOARD_TAG: dashboard})
    if not found:
        created = client.create_run(experiment_id, start_time=about["written_ms"], tags=tags)
        return check_identifier(created.info.run_id)
    run_id = check_identifier(found[-1])
    if len(found) > 1:  # a create_run without an answer, carried out late; the known runs are below the other
        run_id = known if known is not None and known in found else run_id
        for extra in set(found) - {run_id}:
            client.delete_run(extra)
    client.update_run(run_id, status=STATUSES[INTERRUPTED])
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return run_id


def describe_dataset(about: Mapping[str, Any], record: Record) -> DatasetInput:
    """Return the data set of a record, as an input of its run."""
    fingerprint, data_sets = record.config["data_fingerprint"], about.get("data_sets", {}).values()
    data = next((each for each in data_sets if record.config["name"] in each["arms"]), about["data"])
    profile = None
    if fingerprint == data["fingerprint"]:  # sizes may be those of another split
        profile = json.dumps({"num_images": data["num_images"], "classes": data["classes"]})
    dataset = Dataset(
        name=data["name"],
        digest=fingerprint[:MAX_DIGEST_LENGTH],
        source_type=record.config["config"]["data"]["kind"],
        source=json.dumps({"fingerprint": fingerprint}),
        profile=profile,
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])


def restore_parent(client: Any, deleted: Sequence[str], known: str | None) -> str:
    """Restore the deleted parent run and return its ID: links to it, notes and its verdicts over time remain valid.

    Args:
        client: MLflow's client.
        deleted: IDs of the deleted runs that the study had, at least one.
        known: ID that the ledger's index has, if any; else the last one is taken.
    """
    run_id = known if known is not None and known in deleted else deleted[-1]
    client.restore_run(run_id)
    return run_id


def log_verdicts(client: Any, run_id: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Update the verdicts in the study's own run; values that it shows already are not sent again.

    Call it within ``translating_errors``.
    """
    points, tags = project_verdicts(rows)
    shown = client.get_run(run_id).data
    metrics = []
    for point in points:
        if shown.metrics.get(point.key) != point.value:
            history = client.get_metric_history(run_id, point.key)
            # MLflow shows the value with the latest timestamp.
            moment = max([point.timestamp_ms, *(metric.timestamp + 1 for metric in history)])
            metrics.append(Metric(point.key, point.value, moment, point.step))
    gone = [key for key in shown.tags if key.startswith((VERDICT_TAG, STATUS_TAG)) and key not in tags]
    items = list((tags | dict.fromkeys(gone, DELETED)).items())
    client.log_batch(run_id, metrics=metrics)
    for start in range(0, len(items), MAX_PARAMS_PER_CALL):
        some = items[start : start + MAX_PARAMS_PER_CALL]
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in some])


def describe_experiment(
    about: Mapping[str, Any],
    *,
    experiment_id: str,
    run_id: str,
    has_views: bool,
    text: str = "",
    left_out: Sequence[str] = (),
) -> str:
    """Return the description of a study's experiment, as Markdown.

    Args:
        about: content of ``plan.json``.
        experiment_id: of the study.
        run_id: of the study's own run.
        has_views: whether the server shows the views.
        text: summary of the report, a finding per line; empty as long as the study runs.
        left_out: tables that are too large to be attached.
    """
    told = [line for line in text.splitlines() if line.strip()]
    parts = [f"**{about['question'].strip() or about['study']}**"]
    parts.append("\n".join(f"- {line}" for line in told) or "No report yet: the study has not ended.")
    links = [f"[{TITLES[key]}]({make_path(experiment_id, key)})" for key in TITLES if has_views]
    links += [f"[report]({make_report_path(experiment_id, run_id)})"] if told else []
    parts += [" · ".join(links)] if links else []
    parts += [f"Too large to be attached, and in the ledger: {', '.join(left_out)}."] if left_out else []
    return "\n\n".join([*parts, KEPT_BELOW])


def set_note(client: Any, experiment_id: str, text: str) -> None:
    """Set the description of an experiment; what users have written below its last line, or instead of it, is kept.

    Call it within ``translating_errors``.
    """
    before = client.get_experiment(experiment_id).tags.get(NOTE_TAG, "")
    ours, mark, kept = before.partition(KEPT_BELOW)
    kept = kept if mark else f"\n\n{ours}" * bool(ours.strip())
    if text + kept != before:
        client.set_experiment_tag(experiment_id, NOTE_TAG, text + kept)


def attach_report(
    client: Any, tracking_uri: str, run_id: str, html: bytes, tables: Mapping[str, bytes], *, within: str
) -> list[str]:
    """Attach the report and its tables to the study's own run; return the names of the tables that are too large.

    Call it within ``translating_errors``.
    """
    files = {name: content for name, content in tables.items() if len(content) <= MAX_TABLE_BYTES} | {REPORT: html}
    upload(tracking_uri, client.get_run(run_id).info.artifact_uri, files, within=within)
    return [name for name, content in tables.items() if len(content) > MAX_TABLE_BYTES]
