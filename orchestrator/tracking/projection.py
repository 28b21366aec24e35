"""Projection of a ledger record to an MLflow run. Pure: no network, no clock, and no import of MLflow.

Laid out for MLflow's own charts: headline numbers as ``id/…``, ``robustness/…``, ``calibration/…`` and
``external/<name>/…``; per shift ``shift/<name>/<metric>`` with step = severity, starting at 0 with the unshifted
value, so that the line chart is the severity curve; training curves with step = epoch.

MLflow's tables show the value of the largest step: of ``shift/…`` that of the highest severity. ``validation/…`` is the
curve over the epochs, and one step after the last epoch the value of the model that was kept: tables show that one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from orchestrator.ledger.other_studies import FOUND_IN
from orchestrator.ledger.preregistration import read_versions
from orchestrator.ledger.record import Record, describe_stop
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED, STOPPED
from trainables.errors import StorageError

_CPU = "cpu_utilization_percentage"
#: First part of a key → the fields of ``result.json`` below it. ``system/`` has a page of its own in MLflow.
_COSTS = {
    "cost": ("duration_seconds", "best_epoch", "num_parameters"),
    # MLflow's own name, but of the trial's process instead of the machine: 100 is one core. A curve by epoch, too.
    "system": (_CPU, "peak_rss_mib", "peak_gpu_memory_mib"),
}

# Limits of MLflow 3.17 (mlflow.utils.validation).
MAX_PARAMS_PER_CALL = 100
MAX_ENTITIES_PER_CALL = 1000
MAX_KEY_LENGTH = 250
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000  # 8,000 now; servers before 3.0 took 5,000
MAX_DIGEST_LENGTH = 36
#: Metric values per call; the rest is room for one call's params and for the closing tags.
_MAX_POINTS_PER_CALL = MAX_ENTITIES_PER_CALL - MAX_PARAMS_PER_CALL - 50
#: Tag by which MLflow's pages show a run below another.
PARENT_TAG = "mlflow.parentRunId"
#: Tags of the study's own run, followed by the name of a hypothesis.
VERDICT_TAG, STATUS_TAG = "robustsweep.hypothesis.", "robustsweep.hypothesis_status."
#: Tag of a trial's run and of its arm's: the levels, by which MLflow groups.
ARM_TAG = "robustsweep.arm"
#: Tag of a trial's run, followed by the signature of metrics that were added later: they are all there.
ADDED_TAG = "robustsweep.added."
#: Tag of a run that a search has stopped early: after which epoch, and why.
STOPPED_TAG = "robustsweep.stopped_early"
#: State of a record → status of its run. An interrupted record may be running right now; a trial that was stopped early
#: has no results, which users expect of FINISHED runs.
STATUSES = {COMPLETE: "FINISHED", FAILED: "FAILED", STOPPED: "KILLED", INTERRUPTED: "RUNNING"}


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int


@dataclass(frozen=True)
class Projection:
    """Everything that MLflow shows of one record; the same record always gives the same projection."""

    status: str
    start_ms: int
    #: Time of the last known event; the end time of a closed run.
    last_ms: int
    #: Tags that are set when the run is created; they never change.
    tags: dict[str, str]
    params: dict[str, str]
    #: Epoch → its points.
    epochs: dict[int, tuple[Point, ...]]
    #: Points of the evaluation, empty before a trial is complete.
    scores: tuple[Point, ...]
    #: Tags of the outcome, empty before it is known.
    closing_tags: dict[str, str]
    traceback: str | None
    #: Signature of metrics that were added later → their points (``ledger/added_metrics.py``).
    added: dict[str, tuple[Point, ...]] = field(default_factory=dict)

    @property
    def num_points(self) -> int:
        """Number of metric values, epochs and scores together."""
        return sum(map(len, self.epochs.values())) + len(self.scores)

    @property
    def final_tags(self) -> dict[str, str]:
        """The closing tags and the number of values; none before the outcome is known."""
        if self.status == STATUSES[INTERRUPTED]:
            return {}
        return self.closing_tags | {"robustsweep.shipped": str(self.num_points)}


@dataclass(frozen=True)
class Batch:
    """Content of one call of MLflow's ``log_batch``."""

    params: tuple[tuple[str, str], ...]
    points: tuple[Point, ...]
    tags: dict[str, str]


def project(record: Record) -> Projection:
    """Return everything that MLflow should show of ``record``.

    Raises:
        StorageError: the record lacks a field.
    """
    try:
        return _project(record)
    except KeyError as error:
        raise StorageError(
            f"read {record.kind} {record.signature} for MLflow and found no field {error} in its files; "
            "they were written by another version or changed by hand: remove its folder to run it again"
        ) from error


def _project(record: Record) -> Projection:
    config = record.config
    epochs = _project_epochs(record.epochs)
    last_ms = max([config["created_ms"]] + [epoch["timestamp_ms"] for epoch in record.epochs])
    scores: tuple[Point, ...] = ()
    closing: dict[str, str] = {}
    traceback = None
    if record.result is not None:
        last_ms = record.result["finished_ms"]
        added = {name for each in record.added for name in each["metrics"]}
        own = {name: value for name, value in record.result["metrics"].items() if name not in added}
        scores = _project_result(record.result | {"metrics": own}, step_kept=max(epochs, default=0) + 1)
        closing = _describe_result(record.result)
    elif record.failure is not None:
        last_ms = record.failure["timestamp_ms"]
        reason = record.failure["message"].strip().splitlines() or ["no message"]
        closing = {"robustsweep.failure": f"{record.failure['reason']}: {reason[0]}"}
        traceback = record.failure["traceback"]
    elif record.stop is not None:
        last_ms = max(last_ms, record.stop["timestamp_ms"])
        closing = {STOPPED_TAG: describe_stop(record)}
    return Projection(
        status=STATUSES[record.state],
        start_ms=config["created_ms"],
        last_ms=last_ms,
        tags=_shorten(_describe(config), MAX_TAG_LENGTH),
        params=_shorten(_params(config), MAX_PARAM_LENGTH),
        epochs=epochs,
        scores=scores,
        closing_tags=_shorten(closing, MAX_TAG_LENGTH),
        traceback=traceback,
        added={each["signature"]: _project_added(each) for each in record.added},
    )


def _project_added(added: Mapping[str, Any]) -> tuple[Point, ...]:
    moment = added["finished_ms"]
    return tuple(Point(_headline_key(key), float(value), moment, 0) for key, value in added["metrics"].items())


def describe_study(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of the study's own run, from ``plan.json``.

    Tags, not params: a study may gain a level or a replicate, and params cannot change.
    """
    tags = {
        "robustsweep.kind": "study",
        "robustsweep.study": about["study"],
        "robustsweep.study_sha256": about["study_sha256"],
        "robustsweep.replicates": str(about["replicates"]),
        "robustsweep.seed": str(about["seed"]),
        "robustsweep.data_fingerprint": about["data"]["fingerprint"],
        "mlflow.runName": f"study {about['study']}",
        "mlflow.note.content": about["question"],  # the description in the UI
    }
    if about["git_commit"] is not None:
        tags["mlflow.source.git.commit"] = about["git_commit"]
    versions = read_versions(about)
    if versions:
        tags["robustsweep.hypotheses_sha256"] = versions[-1]["sha256"]
    tags |= {make_key(f"factor.{name}"): ", ".join(map(str, levels)) for name, levels in about["factors"].items()}
    return {key: value[:MAX_TAG_LENGTH] for key, value in tags.items()}


#: Columns of ``verdicts.csv`` that become metrics of the study's own run.
_VERDICT_COLUMNS = (
    "effect", "low", "high", "p", "p_holm", "p_size", "p_size_holm", "agreeing_shift_families", "agreeing_shift_types",
)  # fmt: skip


def project_verdicts(rows: Sequence[Mapping[str, str]]) -> tuple[tuple[Point, ...], dict[str, str]]:
    """Return the metrics and tags of the study's own run for the rows of ``verdicts.csv``, without undefined values.

    ``hypothesis/<name>/effect`` (low, high, p, p_holm, p_size, …) at step 0; the tags hold the verdict, and whether the
    hypothesis was preregistered.
    """
    points = tuple(
        Point(make_key("hypothesis", row["name"], column), float(row[column]), int(row["moment_ms"]), 0)
        for row in rows
        for column in _VERDICT_COLUMNS
        if row[column]
    )
    tags = {make_key(f"{VERDICT_TAG}{row['name']}"): row["verdict"] for row in rows}
    return points, tags | {make_key(f"{STATUS_TAG}{row['name']}"): row["status"] for row in rows}


@lru_cache(maxsize=10_000)  # the trials of a study have the same keys
def make_key(*parts: str) -> str:
    """Return a metric, param or tag key of ``parts`` joined by ``/``, with only characters that MLflow allows.

    A key that had to be changed ends in a hash of the original, so that two keys never become one.
    """
    cleaned = [re.sub(r"[^\w.\- ]", "_", part) for part in parts]
    cleaned = ["_" if not part.strip(". ") else part for part in cleaned]  # "..", "." and "" would be paths
    key = "/".join(cleaned)
    if key == "/".join(parts) and len(key) <= MAX_KEY_LENGTH:
        return key
    digest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:8]
    return f"{key[: MAX_KEY_LENGTH - 9]}-{digest}"


def make_batches(projection: Projection, *, params: bool, tags: bool, known_epochs: frozenset[int]) -> Iterator[Batch]:
    """Yield the batches to send, within MLflow's limits. An epoch is never split, and the final tags come last.

    Args:
        projection: projection of the record.
        params: whether to send the params; repeating them changes nothing.
        tags: whether to send the final tags.
        known_epochs: epochs that MLflow already has.
    """
    items = tuple(projection.params.items()) if params else ()
    chunks = [items[i : i + MAX_PARAMS_PER_CALL] for i in range(0, len(items), MAX_PARAMS_PER_CALL)]
    groups = [points for number, points in projection.epochs.items() if number not in known_epochs]
    scores = projection.scores
    groups += [scores[i : i + _MAX_POINTS_PER_CALL] for i in range(0, len(scores), _MAX_POINTS_PER_CALL)]
    packed: list[tuple[Point, ...]] = []
    for group in groups:
        if packed and len(packed[-1]) + len(group) <= _MAX_POINTS_PER_CALL:
            packed[-1] += group
        else:
            packed.append(group)
    num_calls = max(len(chunks), len(packed), 1)
    for number in range(num_calls):
        some = chunks[number] if number < len(chunks) else ()
        points = packed[number] if number < len(packed) else ()
        last = projection.final_tags if tags and number == num_calls - 1 else {}
        if some or points or last:
            yield Batch(some, points, last)


def make_added_batches(projection: Projection, *, known: Collection[str]) -> Iterator[Batch]:
    """Yield the batches with the metrics added later, within MLflow's limits; the tag of a signature comes last.

    Args:
        projection: projection of the record.
        known: signatures of added metrics that MLflow already has.
    """
    for signature, points in projection.added.items():
        if signature in known:
            continue
        starts = range(0, max(len(points), 1), _MAX_POINTS_PER_CALL)
        for start in starts:
            tags = {f"{ADDED_TAG}{signature}": str(len(points))} if start == starts[-1] else {}
            yield Batch((), points[start : start + _MAX_POINTS_PER_CALL], tags)


def _project_epochs(lines: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Point, ...]]:
    """Return epoch → points. The first line of an epoch counts: an epoch repeated after a crash is not two points."""
    epochs: dict[int, tuple[Point, ...]] = {}
    for line in lines:
        epochs.setdefault(
            line["epoch"],
            tuple(
                Point(_epoch_key(key), float(value), line["timestamp_ms"], line["epoch"])
                for key, value in line["metrics"].items()
            ),
        )
    return epochs


def _epoch_key(key: str) -> str:
    """Return the key of an epoch's metric: the name that the same number has among the headline numbers."""
    if key == "val/loss":  # the mean negative log-likelihood (``training.loop``)
        return "validation/nll"
    first, *rest = key.split("/")
    return make_key("validation" if first == "val" and rest else first, *rest)


def _project_result(result: Mapping[str, Any], *, step_kept: int) -> tuple[Point, ...]:
    """Return headline numbers at step 0, shifts at step = severity; the first value of a (key, step) counts.

    Args:
        result: content of ``result.json``.
        step_kept: step after the curves over the epochs, of the kept model's validation and the trial's CPU.
    """
    values: dict[tuple[str, int], float] = {}
    for key, value in result["metrics"].items():
        values.setdefault((_headline_key(key), step_kept if key.startswith("validation/") else 0), value)
    evaluations = result.get("evaluations", [])  # a stage has none
    names = list(dict.fromkeys(e["shift"] for e in evaluations if e["set"] == "test" and e["severity"] > 0))
    for evaluation in evaluations:
        for prefix in _prefixes(evaluation, names):
            step = step_kept if prefix == ("validation",) else evaluation["severity"]
            for metric, value in evaluation["metrics"].items():
                values.setdefault((make_key(*prefix, metric), step), value)
    for group, names_of_costs in _COSTS.items():
        for name in names_of_costs:
            if result.get(name) is not None:  # stages lack some, and memory is unknown on some systems
                values[make_key(group, name), step_kept if name == _CPU else 0] = result[name]
    moment = result["finished_ms"]
    return tuple(Point(key, float(value), moment, step) for (key, step), value in values.items())


def list_headlines(result: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys of a trial's headline numbers and costs: what an arm has a mean of, beside the curves."""
    costs = (make_key(group, name) for group, names in _COSTS.items() for name in names)
    return frozenset(map(_headline_key, result["metrics"])).union(costs)


def _headline_key(key: str) -> str:
    if not key.startswith("external/"):
        return make_key(*key.split("/"))
    *name, metric = key.removeprefix("external/").rsplit("/", 1)  # the name of a set may hold a slash
    return make_key("external", *name, metric)


def _prefixes(evaluation: Mapping[str, Any], shifts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the key prefixes of one evaluation's metrics; the unshifted test set is the start of every curve."""
    where, shift = evaluation["set"], evaluation["shift"]
    clean = evaluation["severity"] == 0
    if where == "test" and clean:
        yield from (("shift", name) for name in shifts)
    elif where == "test":
        yield "shift", shift
    elif where == "val":
        yield ("validation",) if clean else ("validation", shift)
    else:
        yield ("external", where) if clean else ("external", where, shift)


def label_arm(config: Mapping[str, Any]) -> str:
    """Return the levels of a trial's arm, as in ``contrastive · strong · none``, in the order of the study file."""
    return " · ".join(map(str, order_levels(config).values())) or str(config["name"])


def order_levels(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return factor → level of a trial's arm, in the order of the study file."""
    name = config["name"]  # JSON objects are sorted by key, the name is not
    return dict(sorted(config["arm"].items(), key=lambda item: name.find(f"{item[0]}=")))


def _describe(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the initial tags of a run: what it is, and by which it is found and grouped."""
    tags = {
        "robustsweep.signature": config["signature"],
        "robustsweep.kind": config["kind"],
        "mlflow.runName": config["name"],
    }
    if config["kind"] == "trial":
        tags[ARM_TAG] = label_arm(config)
        tags["mlflow.runName"] = f"{tags[ARM_TAG]} · r{config['replicate']}"
        if "candidate" in config:  # with tuning
            tags["robustsweep.candidate"] = str(config["candidate"])
            tags["mlflow.runName"] += f" · c{config['candidate']}"
    if config["needs"]:
        tags["robustsweep.needs"] = ", ".join(config["needs"])
    if config["git_commit"] is not None:
        tags["mlflow.source.git.commit"] = config["git_commit"]
    return tags


def _describe_result(result: Mapping[str, Any]) -> dict[str, str]:
    tags = {}
    if result.get("undefined"):
        tags["robustsweep.undefined"] = "; ".join(f"{key}: {why}" for key, why in result["undefined"].items())
    if FOUND_IN in result:
        tags["robustsweep.found_in"] = result[FOUND_IN]
    if result.get("checkpoint_sha256"):
        tags["robustsweep.checkpoint_sha256"] = result["checkpoint_sha256"]
    return tags


def _params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a run: the levels under their factor's name, and the replicate (config: ``config.yaml``)."""
    params = {make_key(factor): str(level) for factor, level in config["arm"].items()}
    if config["replicate"] is not None:
        params["replicate"] = str(config["replicate"])
    if "candidate" in config:
        params["candidate"] = str(config["candidate"])
    return params


def _shorten(values: Mapping[str, str], limit: int) -> dict[str, str]:
    note = "… (cut; the ledger has all of it)"
    return {key: text if len(text) <= limit else text[: limit - len(note)] + note for key, text in values.items()}
