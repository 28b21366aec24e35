from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from orchestrator.tracking.projection import (
    MAX_ENTITIES_PER_CALL,
    MAX_PARAM_LENGTH,
    MAX_PARAMS_PER_CALL,
    Point,
    make_batches,
    make_key,
    project,
)
from tests.support.ledger_records import CREATED_MS, add_epochs, begin, fail, finished, make_ledger, stop
from trainables.errors import StorageError


def test_a_complete_trial(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    projection = project(ledger.read("trial", "t1"))
    scores = {(point.key, point.step): point.value for point in projection.scores}
    assert projection.status == "FINISHED"
    assert (projection.start_ms, projection.last_ms) == (CREATED_MS, CREATED_MS + 9000)
    assert [scores["shift/jpeg/accuracy", severity] for severity in range(4)] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert scores["id/accuracy", 0] == 0.9
    assert scores["validation/accuracy", 4] == 0.8  # of the kept model, after the curve over 3 epochs
    assert scores["system/peak_rss_mib", 0] == 300.5
    assert scores["system/cpu_utilization_percentage", 4] == 97.5  # of the whole trial
    assert {point.timestamp_ms for point in projection.scores} == {CREATED_MS + 9000}
    assert projection.epochs[2] == (
        Point("train/loss", 0.5, CREATED_MS + 2000, 2),
        Point("validation/accuracy", 0.7, CREATED_MS + 2000, 2),
    )
    assert projection.params == {"pretraining": "scratch", "augmentation.strength": "0.5", "replicate": "0"}
    assert projection.tags == {
        "robustsweep.signature": "t1",
        "robustsweep.kind": "trial",
        "robustsweep.arm": "scratch · 0.5",
        "mlflow.runName": "scratch · 0.5 · r0",
        "mlflow.source.git.commit": "c0ffee",
    }
    assert projection.closing_tags["robustsweep.undefined"] == "id/auroc: one class only"


def test_what_a_trial_uses_is_a_curve_over_the_epochs_on_the_page_of_system_metrics(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    metrics = {"system/cpu_utilization_percentage": 99.5, "system/rss_mib": 512.0}
    line = {"epoch": 2, "timestamp_ms": CREATED_MS + 2000, "metrics": metrics}
    ledger.folder("trial", "t1").append_line("epochs.jsonl", json.dumps(line))
    points = project(ledger.read("trial", "t1")).epochs[2]
    assert points == tuple(Point(key, value, CREATED_MS + 2000, 2) for key, value in metrics.items())


def test_a_candidate_is_told_by_name_tag_and_param(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    record = ledger.read("trial", "t1")
    config = record.config | {"candidate": 2, "tuned": {"training.learning_rate": "0.01"}}
    projection = project(dataclasses.replace(record, config=config))
    assert projection.tags["mlflow.runName"] == "scratch · 0.5 · r0 · c2"
    assert projection.tags["robustsweep.candidate"] == projection.params["candidate"] == "2"
    assert "robustsweep.candidate" not in project(record).tags


def test_an_external_set_is_one_metric_although_it_is_told_twice(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    keys = [point.key for point in project(ledger.read("trial", "t1")).scores if "site" in point.key]
    assert len(keys) == len(set(keys)) == 2
    assert all(re.fullmatch(r"external/site B _2019_/(accuracy|ece)-[0-9a-f]{8}", key) for key in keys)


def test_a_mean_over_external_sets_is_a_headline_number(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    record = ledger.read("trial", "t1")
    assert record.result is not None
    result = record.result | {"metrics": record.result["metrics"] | {"external/mean_accuracy": 0.75}}
    scores = {point.key: point.value for point in project(dataclasses.replace(record, result=result)).scores}
    assert scores["external/mean_accuracy"] == 0.75


def test_a_failed_trial(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    add_epochs(ledger, last=2)
    fail(ledger)
    projection = project(ledger.read("trial", "t1"))
    assert (projection.status, projection.last_ms) == ("FAILED", CREATED_MS + 7000)
    assert projection.closing_tags == {"robustsweep.failure": "diverged: the loss became nan"}
    assert projection.traceback == "Traceback: line 1"


def test_an_epoch_told_again_after_a_crash_counts_once(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    add_epochs(ledger, last=2)
    add_epochs(ledger, first=2, last=3, delay_ms=60_000)
    epochs = project(ledger.read("trial", "t1")).epochs
    assert [points[0].timestamp_ms - CREATED_MS for points in epochs.values()] == [1000, 2000, 63_000]


def test_a_record_of_another_version_names_the_field(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    record = ledger.read("trial", "t1")
    del record.config["needs"]
    with pytest.raises(StorageError, match=r"trial t1 .*'needs'"):
        project(record)


@pytest.mark.parametrize("part", ["a/b", "..", "", "a(b", "x" * 300, "ä%"])
def test_keys_are_what_mlflow_allows_and_stay_apart(part: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    key = make_key("external", part, "accuracy")
    _validate_metric_name(key)
    assert len(key) <= 250
    assert key != make_key("external", part.replace("(", "[") + "?", "accuracy")
    assert make_key("shift", "gaussian_noise", "ece") == "shift/gaussian_noise/ece"


def test_batches_keep_the_limits_whole_epochs_and_the_closing_tags_for_the_end(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    projection = dataclasses.replace(
        project(ledger.read("trial", "t1")),
        params={f"p{number}": "x" for number in range(250)},
        epochs={epoch: tuple(Point(f"m{i}", 1.0, epoch, epoch) for i in range(7)) for epoch in range(1, 400)},
    )
    batches = list(make_batches(projection, params=True, tags=True, known_epochs=frozenset({1, 2})))
    for batch in batches:
        assert len(batch.params) <= MAX_PARAMS_PER_CALL
        assert len(batch.params) + len(batch.points) + len(batch.tags) <= MAX_ENTITIES_PER_CALL
    assert [bool(batch.tags) for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert batches[-1].tags["robustsweep.shipped"] == str(projection.num_points)
    assert sum((batch.params for batch in batches), ()) == tuple(projection.params.items())
    points = sum((batch.points for batch in batches), ())
    assert points == sum((projection.epochs[epoch] for epoch in range(3, 400)), ()) + projection.scores
    owners = [{point.step for point in batch.points if point.key.startswith("m")} for batch in batches]
    assert sum(map(len, owners)) == 397


def test_nothing_new_of_a_running_trial_is_no_call(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    add_epochs(ledger)
    projection = project(ledger.read("trial", "t1"))
    assert list(make_batches(projection, params=False, tags=True, known_epochs=frozenset({1, 2, 3}))) == []


def test_tags_that_the_run_was_created_with_are_not_sent_again(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    projection = project(ledger.read("trial", "t1"))
    assert set(projection.final_tags) == {*projection.closing_tags, "robustsweep.shipped"}
    (batch,) = make_batches(projection, params=True, tags=False, known_epochs=frozenset())
    assert batch.tags == {}
    begin(ledger, "t2")
    assert project(ledger.read("trial", "t2")).final_tags == {}


def test_a_long_value_says_that_it_was_cut(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger, arm={"long": "x" * 7000})
    value = project(ledger.read("trial", "t1")).params["long"]
    assert len(value) == MAX_PARAM_LENGTH
    assert "cut" in value


def test_a_trial_that_was_stopped_early(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    add_epochs(ledger, last=2)
    stop(ledger)
    projection = project(ledger.read("trial", "t1"))
    assert (projection.status, projection.last_ms) == ("KILLED", CREATED_MS + 2500)
    why = "after epoch 2 of 3: validation/accuracy 0.7 after epoch 2 (asha)"
    assert projection.final_tags == {"robustsweep.stopped_early": why, "robustsweep.shipped": "4"}
    assert set(projection.epochs) == {1, 2}
    assert projection.scores == ()
    begin(ledger, "t2")
    stop(ledger, "t2", judged=("t1", "t2"))
    tags = project(ledger.read("trial", "t2")).closing_tags
    assert tags["robustsweep.stopped_early"].startswith("after epoch 0 of 3: validation/accuracy 0.7 (mean of 2 repl")
