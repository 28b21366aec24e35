"""A study that has not changed costs nothing; one that has, in any way, does the work again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.driver import run
from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.run import Summary, find_current_report, run_study
from orchestrator.ledger.derived import SHIPPED, SOURCE, compute_state, invalidate
from orchestrator.ledger.ledger import Ledger
from orchestrator.report import write
from orchestrator.study.study_file import Study, parse_study
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.shipped import Shipped, is_shipped
from orchestrator.tracking.shipper import sync
from orchestrator.tracking.tracker import Tracker
from tests.support.mlflow_stores import make_database
from tests.support.synthetic_ledger import make_result
from trainables.storage.folder import Folder

TEXT = """\
study: s
question: Why?
data: {kind: digits, image_size: 8}
model: {name: shufflenet_v2_x0_5}
evaluation: {shifts: [gaussian_noise], severities: [3]}
factors: {augmentation: [none, strong]}
"""


class Dispatcher:
    """A study whose trials are all complete, its ledger and its store."""

    def __init__(self, folder: Path, cache_dir: Path, template: Path) -> None:
        self.folder, self.cache_dir = folder, cache_dir
        folder.mkdir(exist_ok=True)
        self.uri = make_database(folder, template)
        self.study = self.make_study()
        self.ledger = Ledger(str(folder), "s")
        self.complete_all(self.study)

    def make_study(self, *overrides: str) -> Study:
        always = [f"execution.cache_dir={self.cache_dir}", f"execution.storage={self.folder}"]
        return parse_study(TEXT, source="s.yaml", overrides=[*always, *overrides])

    def prepare(self, study: Study | None = None, *, mlflow: str | None = None, retry_failed: bool = False) -> Prepared:
        """Do what ``run`` does before it decides."""
        prepared = prepare(
            study or self.study, storage=str(self.folder), retry_failed=retry_failed, mlflow=mlflow or self.uri
        )
        prepared.ledger.write_plan(prepared.plan, prepared.about)
        return prepared

    def complete_all(self, study: Study) -> None:
        prepared = prepare(study, storage=str(self.folder))
        for work in prepared.actions.open:
            prepared.ledger.begin(work, study="s", git_commit=None)
            prepared.ledger.folder("trial", work.signature).write_json("result.json", make_result(work, ()))

    def run(self, *, mlflow: str | None = None) -> tuple[Summary, str]:
        console = Console(file=StringIO(), width=200)
        summary = run_study(
            self.study, storage=str(self.folder), mlflow=mlflow or self.uri, address=None, console=console
        )
        return summary, console.file.getvalue()  # type: ignore[attr-defined]

    def is_settled(self, study: Study | None = None, *, mlflow: str | None = None) -> bool:
        return find_current_report(self.prepare(study, mlflow=mlflow), mlflow or self.uri) is not None


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, template: Path) -> Dispatcher:
    """Settled before every test; a test puts back what it changes."""
    dispatcher = Dispatcher(tmp_path_factory.mktemp("dispatcher"), cache_dir, template)
    summary, said = dispatcher.run()
    assert (summary.is_complete, summary.unshipped) == (True, 0)
    assert "nothing has changed" not in said
    return dispatcher


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "open", lambda *_, **__: pytest.fail("MLflow was asked"))
    monkeypatch.setattr(write, "write_report", lambda *_, **__: pytest.fail("the report was written"))


def test_a_second_run_does_nothing_and_says_so(dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    summary, said = dispatcher.run()
    assert (summary.complete, summary.unshipped) == (2, 0)
    assert "nothing has changed" in said
    assert "2 planned, 2 complete" in said
    assert f"report   {dispatcher.folder}/s/report/index.html" in said
    assert dispatcher.uri in said


@pytest.mark.parametrize("name", ["report/index.html", "report/shifts.csv", SOURCE, SHIPPED, "../mlflow.db"])
def test_a_file_that_is_gone_is_noticed(dispatcher: Dispatcher, name: str) -> None:
    path = (dispatcher.folder / "s" / name).resolve()
    kept = path.with_name("kept")
    path.rename(kept)
    try:
        assert not dispatcher.is_settled()
        assert not path.exists()
    finally:
        kept.rename(path)
    assert dispatcher.is_settled()


CHANGES: dict[str, Callable[[Dispatcher], bool]] = {
    "a new arm": lambda dispatcher: dispatcher.is_settled(
        dispatcher.make_study("factors.augmentation=[none, strong, randaugment]")
    ),
    "another reference": lambda dispatcher: dispatcher.is_settled(
        dispatcher.make_study("report.reference.arm=augmentation=strong")
    ),
    "another question": lambda dispatcher: dispatcher.is_settled(dispatcher.make_study("question=Because?")),
    "another store": lambda dispatcher: dispatcher.is_settled(mlflow="http://127.0.0.1:9"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_study_is_noticed(dispatcher: Dispatcher, change: str) -> None:
    assert not CHANGES[change](dispatcher)
    assert dispatcher.is_settled()


def test_another_table_makes_the_report_anew_and_no_trial(tmp_path: Path, cache_dir: Path, template: Path) -> None:
    dispatcher = Dispatcher(tmp_path / "d", cache_dir, template)
    table, result = tmp_path / "alexnet.csv", dispatcher.folder / "s" / "report" / "balanced_errors.csv"
    table.write_text("shift,error\nidentity,0.1\ngaussian_noise,0.5\n")
    dispatcher.study = dispatcher.make_study(f"report.reference.table={table}")
    dispatcher.run()
    assert dispatcher.is_settled()
    before = result.read_text()
    assert "alexnet.csv" in before
    table.write_text("shift,error\nidentity,0.1\ngaussian_noise,0.25\n")
    prepared = dispatcher.prepare()
    assert not prepared.actions.open
    assert not dispatcher.is_settled()
    dispatcher.run()
    assert result.read_text() != before
    assert dispatcher.is_settled()


def test_a_record_that_is_gone_or_failed_is_noticed(dispatcher: Dispatcher) -> None:
    signature = dispatcher.prepare().plan.trials[0].signature
    result = dispatcher.folder / "s" / "trials" / signature / "result.json"
    result.rename(result.with_name("kept"))
    try:
        assert not dispatcher.is_settled()
        result.with_name("failure.json").write_text("{}")
        assert not dispatcher.is_settled()
        result.with_name("failure.json").unlink()
    finally:
        result.with_name("kept").rename(result)
    assert dispatcher.is_settled()


def test_a_store_without_the_study_is_noticed(dispatcher: Dispatcher, template: Path) -> None:
    database = dispatcher.folder / "mlflow.db"
    database.rename(dispatcher.folder / "kept.db")
    try:
        shutil.copy(template, database)
        assert not dispatcher.is_settled()
        database.write_bytes(b"no database")
        assert not dispatcher.is_settled()
    finally:
        (dispatcher.folder / "kept.db").rename(database)
    assert dispatcher.is_settled()


def test_what_begins_is_no_longer_settled(dispatcher: Dispatcher) -> None:
    kept = {name: dispatcher.ledger.root.read(name) for name in (SOURCE, SHIPPED)}
    prepared = dispatcher.prepare()
    prepared.ledger.begin(prepared.plan.trials[0], study="s", git_commit=None)
    assert not any(map(dispatcher.ledger.root.exists, kept))
    for name, content in kept.items():
        dispatcher.ledger.root.write(name, content)
    assert dispatcher.is_settled()


def test_open_work_forgets_before_it_starts(tmp_path: Path, cache_dir: Path, template: Path) -> None:
    dispatcher = Dispatcher(tmp_path / "d", cache_dir, template)
    dispatcher.run()
    more = dispatcher.prepare(dispatcher.make_study("replicates=2"))
    assert len(more.actions.open) == 2
    with run.shipping(more, dispatcher.uri) as running:
        assert running is not None
        assert not dispatcher.ledger.root.exists(SOURCE)
    assert not dispatcher.ledger.root.exists(SHIPPED)


def test_the_work_is_done_again_and_settles_again(tmp_path: Path, cache_dir: Path, template: Path) -> None:
    dispatcher = Dispatcher(tmp_path / "d", cache_dir, template)
    dispatcher.run()
    page = dispatcher.folder / "s" / "report" / "index.html"
    page.unlink()
    _, said = dispatcher.run()
    assert "nothing has changed" not in said
    assert page.exists()
    assert dispatcher.is_settled()

    assert write.write_report(dispatcher.ledger, cache_dir=cache_dir, metric="auroc").html == str(page)
    assert not dispatcher.is_settled()  # another report than MLflow has, by a metric that `run` does not use
    dispatcher.run()
    assert dispatcher.is_settled()

    shutil.copy(template, dispatcher.folder / "other.db")
    dispatcher.uri = f"sqlite:///{dispatcher.folder}/other.db"
    dispatcher.run()
    assert dispatcher.is_settled()
    client = MlflowClient(dispatcher.uri)
    experiment = client.get_experiment_by_name("s")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(each.data.tags["robustsweep.kind"] for each in runs) == ["study", "trial", "trial"]
    assert {each.info.status for each in runs} == {"FINISHED"}
    (parent,) = (each for each in runs if each.data.tags["robustsweep.kind"] == "study")
    assert "report.html" in [artifact.path for artifact in client.list_artifacts(parent.info.run_id)]

    sync(dispatcher.ledger, dispatcher.uri)  # looks at the store itself, and ships the report too
    assert dispatcher.is_settled()


def test_what_could_not_be_shipped_is_tried_again(
    tmp_path: Path, cache_dir: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(tmp_path / "d", cache_dir, template)
    monkeypatch.setattr(run, "Shipper", lambda *args, **options: _Failing())
    summary, _ = dispatcher.run()
    assert summary.unshipped == 3
    assert not dispatcher.is_settled()
    assert dispatcher.ledger.root.exists(SOURCE)  # the report need not be written again


class _Failing:
    def start(self) -> None:
        pass

    def finish(self, timeout_seconds: float, *, max_seconds: float, left_open: object = ()) -> int:
        return 3


# ------------------------------------------------------------------ the parts


def test_the_state_is_of_plan_and_records_and_not_of_the_time() -> None:
    plan = {"study": "s", "written_ms": 1}
    state = compute_state(plan, {"a": "complete"})
    assert compute_state(plan | {"written_ms": 2}, {"a": "complete", "b": "absent"}) == state
    others = [
        compute_state(plan, {"a": "failed"}),
        compute_state(plan, {}),
        compute_state({"study": "t"}, {"a": "complete"}),
    ]
    assert len({state, *others}) == 4


def test_no_secret_is_remembered(tmp_path: Path) -> None:
    root, uri = Folder(tmp_path), "http://me:hunter2@127.0.0.1:5000"
    Shipped.of(uri, "r", state="s", page_sha256="p").write(root)
    assert b"hunter2" not in root.read(SHIPPED)
    assert is_shipped(root, uri, state="s", page_sha256="p")
    assert not is_shipped(root, uri, state="other", page_sha256="p")
    assert not is_shipped(root, uri, state="s", page_sha256="other")
    invalidate(root)
    assert not is_shipped(root, uri, state="s", page_sha256="p")
    invalidate(root)
