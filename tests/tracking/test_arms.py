from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.arms import Trial, summarise_arm
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.shipper import sync
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import BY_ARM, TRIALS, VIEW_TAG, Shown, decode_state, is_known, make_state, make_views
from tests.support.ledger_records import finished, make_ledger
from tests.support.mlflow_stores import Server, make_database, make_tracker, ship
from tests.support.synthetic_ledger import make_fake_ledger


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.long)])
def uri(request: pytest.FixtureRequest, tmp_path: Path, template: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield make_database(tmp_path, template)
        return
    server = Server(tmp_path)
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return make_ledger(tmp_path)


def trial(value: float, *needs: str) -> Trial:
    keys = (("id/accuracy", 0), ("shift/jpeg/balanced_accuracy", 0), ("shift/jpeg/balanced_accuracy", 3))
    return Trial(keys, np.array([value, value, value / 2]), 1, 5, needs)


def points_of(trials: list[Trial]) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for point in summarise_arm(trials):
        found.setdefault((point.key, point.step), []).append(point.value)
    return found


def test_five_replicates_have_a_mean_and_students_interval_at_every_severity() -> None:
    values = [0.7, 0.74, 0.8, 0.71, 0.77]
    found = points_of([trial(value) for value in values])
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found["id/accuracy", 0] == [pytest.approx(np.mean(values))]
    assert found["id/accuracy.lower", 0] == [pytest.approx(low)]
    assert found["id/accuracy.upper", 0] == [pytest.approx(high)]
    assert found["shift/jpeg/balanced_accuracy.band", 3] == pytest.approx([low / 2, high / 2, np.mean(values) / 2])
    assert found["replicates", 0] == [5.0]


@pytest.mark.parametrize(
    "trials",
    [
        [trial(value) for value in (0.7, 0.74, 0.8, 0.71)],
        [trial(value, f"encoder {number % 4}") for number, value in enumerate((0.7, 0.74, 0.8, 0.71, 0.77, 0.6))],
    ],
    ids=["four replicates", "six replicates that share four encoders"],
)
def test_below_five_independent_replicates_there_is_no_interval(trials: list[Trial]) -> None:
    found = points_of(trials)
    assert set(found) == {("replicates", 0), *trials[0].keys}
    assert found["id/accuracy", 0] == [pytest.approx(np.mean([each.values[0] for each in trials]))]


def arm_runs(uri: str) -> list[Any]:
    return list(MlflowClient(uri).search_runs(["1"], "tags.`robustsweep.kind` = 'arm'"))


def test_an_arm_has_one_run_which_follows_its_trials(uri: str, ledger: Ledger) -> None:
    tracker = make_tracker(uri, ledger)
    tracker.show_arms()
    assert arm_runs(uri) == []
    finished(ledger, "t1")
    ship(tracker, ledger, "t1")
    tracker.show_arms()
    (first,) = arm_runs(uri)
    assert first.info.run_name == first.data.tags["robustsweep.arm"] == "scratch · 0.5"
    assert first.data.params == {"pretraining": "scratch", "augmentation.strength": "0.5"}
    assert first.data.tags["mlflow.parentRunId"] == tracker.parent_run_id
    assert (first.info.status, first.data.metrics["replicates"]) == ("FINISHED", 1.0)
    assert first.data.metrics["id/accuracy"] == 0.9
    tracker.show_arms()
    assert [run.info.run_id for run in arm_runs(uri)] == [first.info.run_id]
    finished(ledger, "t2")
    ship(tracker, ledger, "t2")
    tracker.show_arms()
    (second,) = arm_runs(uri)
    assert (second.info.run_id != first.info.run_id, second.data.metrics["replicates"]) == (True, 2.0)


@pytest.mark.parametrize("method", ["create_run", "log_batch", "set_terminated", "delete_run", "set_experiment_tag"])
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_driver_killed_anywhere_leaves_one_run_per_arm_and_one_of_each_view(
    tmp_path: Path, template: Path, ledger: Ledger, method: str, is_done: bool
) -> None:
    uri = make_database(tmp_path, template)
    finished(ledger, "t1")
    first = make_tracker(uri, ledger)
    ship(first, ledger, "t1")
    first.show_arms()
    finished(
        ledger,
        "t2",
    )
    ship(first, ledger, "t2")
    first._views = {}
    first._client = KilledClient(first._client, method, is_done)
    with pytest.raises(KeyboardInterrupt):
        first.show_arms()
    again = make_tracker(uri, ledger)
    again.show_arms()
    (run,) = arm_runs(uri)
    assert (run.info.status, run.data.metrics["replicates"]) == ("FINISHED", 2.0)
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "id/accuracy")
    assert [point.value for point in history] == [0.9]
    tags = MlflowClient(uri).get_experiment("1").tags
    assert sorted(key for key in tags if key.startswith(VIEW_TAG)) == [f"{VIEW_TAG}{BY_ARM}", f"{VIEW_TAG}{TRIALS}"]


class KilledClient:
    """Passes everything on until a method is called for the first time; the driver ends before or after that."""

    def __init__(self, client: Any, method: str, is_done: bool) -> None:
        self._client, self._method, self._is_done = client, method, is_done

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name != self._method:
            return found

        def die(*args: Any, **kwargs: Any) -> Any:
            if self._is_done:
                found(*args, **kwargs)
            raise KeyboardInterrupt

        return die


def test_an_arm_whose_trial_runs_again_has_no_run_until_it_is_complete(uri: str, ledger: Ledger) -> None:
    finished(ledger, "t1")
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger, "t1")
    tracker.show_arms()
    folder = ledger.folder("trial", "t1")
    result = folder.read_json("result.json")
    metrics = result["metrics"] | {"id/accuracy": 0.5}
    folder.write_json("result.json", result | {"metrics": metrics, "finished_ms": 1, "evaluations": []})
    ship(tracker, ledger, "t1")
    assert arm_runs(uri) == []
    tracker.show_arms()
    (run,) = arm_runs(uri)
    assert run.data.metrics["id/accuracy"] == 0.5


def test_a_study_with_one_replicate_has_no_runs_of_arms_and_its_view_shows_trials(uri: str, ledger: Ledger) -> None:
    finished(ledger, "t1")
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger, "t1")
    tracker.show_arms()
    ledger.root.write_json("plan.json", ledger.read_plan() | {"replicates": 1})
    again = make_tracker(uri, ledger)
    again.show_arms()
    assert arm_runs(uri) == []
    state = decode_state(MlflowClient(uri).get_experiment("1").tags[f"{VIEW_TAG}{BY_ARM}"])
    assert state["searchFilter"] == "tags.`robustsweep.kind` = 'trial'"


def test_a_server_of_an_unknown_version_gets_no_view(uri: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.tracker.find_version", lambda uri: "3.99.0")
    finished(ledger, "t1")
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger, "t1")
    tracker.show_arms()
    assert len(arm_runs(uri)) == 1
    tags = MlflowClient(uri).get_experiment("1").tags
    assert not any(key.startswith(VIEW_TAG) for key in tags)
    assert "viewStateShareKey" not in tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("version", "expected"), [("3.17.2", True), ("3.17.0", True), ("3.1.7", False), ("3.18.0", False), (None, False)]
)
def test_which_versions_are_known(version: str | None, expected: bool) -> None:
    assert is_known(version) is expected


def test_views_are_the_same_for_the_same_study_and_small() -> None:
    shifts = tuple(f"shift number {number}" for number in range(60))
    keys = frozenset(f"shift/{name}/balanced_accuracy" for name in shifts) | {"id/accuracy"}
    shown = Shown(("pretraining",), True, 12, shifts, True, keys, 5)
    views = make_views(shown)
    assert views == make_views(shown)
    assert all(len(value) < 5000 for value in views.values())  # what a PostgreSQL of an older MLflow takes
    for tag, value in views.items():
        assert decode_state(value) == make_state(tag.removeprefix(VIEW_TAG), shown)
        assert json.loads(value)["createdAt"] == 5


def test_the_worst_shift_is_the_first_curve_and_columns_start_with_the_factors(tmp_path: Path, template: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=2, factors={"pretraining": ("scratch", "imagenet")})
    uri = make_database(tmp_path, template)
    sync(ledger, uri)
    tags = MlflowClient(uri).get_experiment_by_name("fake-study").tags
    state = decode_state(tags[f"{VIEW_TAG}{BY_ARM}"])
    curves = [chart["metricKey"] for chart in state["compareRunCharts"] if chart["type"] == "LINE"]
    ends: dict[str, list[float]] = {}
    for record in ledger.records("trial"):
        assert record.result is not None
        for each in record.result["evaluations"]:
            if each["set"] == "test" and each["severity"] == 5:
                ends.setdefault(each["shift"], []).append(each["metrics"]["balanced_accuracy"])
    worst = sorted(ends, key=lambda name: np.mean(ends[name]))
    assert curves == [f"shift/{name}/balanced_accuracy" for name in worst]
    columns = decode_state(tags[f"{VIEW_TAG}{TRIALS}"])["selectedColumns"]
    assert columns[:4] == [
        "params.`pretraining`", "params.`replicate`", "metrics.`id/balanced_accuracy`",
        "metrics.`robustness/mean_balanced_accuracy`",
    ]  # fmt: skip


def test_the_description_holds_question_findings_and_links_and_keeps_notes(uri: str, ledger: Ledger) -> None:
    client = MlflowClient(uri)
    tracker = make_tracker(uri, ledger)
    note = client.get_experiment("1").tags["mlflow.note.content"]
    assert note.startswith("**Does it hold?**\n\nNo report yet")
    client.set_experiment_tag("1", "mlflow.note.content", f"{note}\n\nmine")
    text = "2 complete\nChosen on in-distribution validation: scratch"
    tracker.log_report(b"<html></html>", summary={}, is_complete=True, text=text, tables={"trials.csv": b"a,b\n"})
    note = client.get_experiment("1").tags["mlflow.note.content"]
    assert "- Chosen on in-distribution validation: scratch\n" in note
    assert f"[report](#/experiments/1/runs/{tracker.parent_run_id}/artifacts/report.html)" in note
    assert "[by arm](#/experiments/1/runs?" in note
    assert note.endswith("\n\nmine")
    files = [artifact.path for artifact in client.list_artifacts(tracker.parent_run_id)]
    assert sorted(files) == ["report.html", "trials.csv"]
    tracker = Tracker(uri, ledger, about=ledger.read_plan())
    tracker.open()
    assert client.get_experiment("1").tags["mlflow.note.content"].endswith("\n\nmine")
