"""Scores added to trials that were really trained: from their predictions, once, and into everything behind them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from orchestrator.analysis.predictions.marked import compare_marked
from orchestrator.analysis.results import load_results
from orchestrator.cli.main import app
from orchestrator.driver.evaluate import add_views, evaluate_trials, list_addable_scores
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.annotations import annotate, read_annotations
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.write import write_report
from orchestrator.selection.ranking import SelectionCriteria, select_arm
from orchestrator.study.study_file import load_study
from orchestrator.tracking.shipper import sync
from tests.support.trained_study import TrainedStudy
from trainables.errors import ConfigError, StudyError
from trainables.evaluation.confidence import compute_augrc
from trainables.evaluation.ood import TrainingSplit, fit_detector
from trainables.evaluation.predictions import load_predictions


@pytest.fixture(scope="module")
def ledger(trained_study: TrainedStudy, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    storage = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(trained_study.storage / "small", storage / "small")
    return Ledger(str(storage), "small")


def test_scores_are_added_once_and_reach_tables_selection_report_and_mlflow(
    ledger: Ledger, trained_study: TrainedStudy, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sync(ledger, uri)
    client = MlflowClient(uri)
    runs = {each: _find_run(client, each).info.run_id for each in _signatures(ledger)}
    assert "failure/mahalanobis/augrc" not in load_results(ledger).trials
    done = evaluate_trials(ledger, ["msr", "mahalanobis", "knn"])
    assert [each.is_new for each in done] == [True] * 4
    assert not any(each.is_new for each in evaluate_trials(ledger, ["knn", "mahalanobis", "msr"]))

    results = load_results(ledger)
    for signature, value in zip(results.trials["signature"], results.trials["failure/mahalanobis/augrc"], strict=True):
        assert value == pytest.approx(_recompute(ledger, signature), abs=1e-12)
    chosen = select_arm(results, SelectionCriteria(by="failure/mahalanobis/augrc"))
    assert (chosen.column, chosen.higher_is_better) == ("validation/failure/mahalanobis/augrc", False)
    means = results.trials.groupby("name")["validation/failure/mahalanobis/augrc"].mean()
    assert chosen.arm.name == means.idxmin()
    oracle = select_arm(results, SelectionCriteria(by="failure/mahalanobis/augrc", oracle=True))
    assert oracle.column == "failure/mahalanobis/augrc"
    with pytest.raises(StudyError, match="is not in-distribution validation"):
        select_arm(results, SelectionCriteria(by="ood/mahalanobis/external-0/auroc"))

    report = write_report(ledger, cache_dir=trained_study.cache_dir, examples=False)
    page = Path(report.html).read_text()
    assert 'id="failures"' in page
    assert "Mahalanobis distance" in page
    sync(ledger, uri)
    sync(ledger, uri)
    for signature, run_id in runs.items():
        run = _find_run(client, signature)
        assert run.info.run_id == run_id  # the same run, not another
        history = client.get_metric_history(run_id, "failure/mahalanobis/augrc")
        assert [point.value for point in history] == [pytest.approx(_recompute(ledger, signature))]
        assert sum(tag.startswith("robustsweep.added.") for tag in run.data.tags) == 1
        assert len(client.get_metric_history(run_id, "failure/msr/augrc")) == 1
    experiment = client.get_experiment_by_name("small")
    arms = client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'arm'")
    means = results.trials.groupby("arm/augmentation")["failure/mahalanobis/augrc"].mean()
    assert {run.info.run_name: run.data.metrics["failure/mahalanobis/augrc"] for run in arms} == pytest.approx(
        means.to_dict()
    )


def test_the_report_has_results_without_images_whose_label_is_marked(
    ledger: Ledger, trained_study: TrainedStudy
) -> None:
    results = load_results(ledger)
    first = results.complete.iloc[0]
    test = load_predictions(ledger.folder("trial", str(first["signature"])), "test")
    wrong = np.flatnonzero(test.logits[0].argmax(axis=1) != test.labels)
    assert len(wrong) > 2
    for row in wrong[:2]:
        annotate(ledger.root, "test", str(test.ids[row]), note="", label_is_wrong=True)
    annotate(ledger.root, "test", str(test.ids[wrong[2]]), note="looks odd", label_is_wrong=False)
    found = compare_marked(results, ledger, read_annotations(ledger.root))
    row = found[(found["name"] == first["name"]) & (found["replicate"] == first["replicate"])].iloc[0]
    assert row["num_marked"] == 2
    assert row["whole"] == pytest.approx(first["id/balanced_accuracy"], abs=1e-12)
    assert row["shifted_whole"] == pytest.approx(first["robustness/mean_balanced_accuracy"], abs=1e-12)
    kept = np.delete(np.arange(len(test.labels)), wrong[:2])
    right = test.logits[0, kept].argmax(axis=1) == test.labels[kept]
    assert row["kept"] == pytest.approx(np.mean([right[test.labels[kept] == label].mean() for label in (0, 1)]))
    page = Path(write_report(ledger, cache_dir=trained_study.cache_dir, examples=False).html).read_text()
    assert 'id="marked"' in page
    assert "Marked in the explorer: 2 images of test." in page


def test_label_maps_are_added_once_and_reach_tables_report_and_mlflow(
    ledger: Ledger, trained_study: TrainedStudy, tmp_path: Path
) -> None:
    classes = ledger.read_plan()["data"]["classes"]
    maps = {"swapped": dict(zip(classes, ("a", "b"), strict=True))}
    assert [each.is_new for each in add_views(ledger, maps, per_class=True)] == [True] * 4
    assert not any(each.is_new for each in add_views(ledger, maps, per_class=True))
    assert not any(each.is_new for each in add_views(ledger, maps, per_class=False))
    assert add_views(ledger, {}, per_class=False) == []

    results = load_results(ledger)
    for name in ("id/auroc", "robustness/mean_balanced_accuracy", "external/mean_accuracy", "calibration/ece"):
        assert results.trials[f"swapped/{name}"].to_numpy() == pytest.approx(results.trials[name].to_numpy(), abs=1e-9)
    for signature, found in zip(results.trials["signature"], results.trials["class_1/id/sensitivity"], strict=True):
        test = load_predictions(ledger.folder("trial", str(signature)), "test")
        positive = test.labels == 1
        assert found == pytest.approx((test.logits[0].argmax(axis=1)[positive] == 1).mean())
    assert "mean shifted balanced accuracy of swapped" in [measure.title for measure in results.measures]
    report = write_report(ledger, cache_dir=trained_study.cache_dir, examples=False)
    assert "swapped: mean shifted" in Path(report.html).read_text()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sync(ledger, uri)
    signature = _signatures(ledger)[0]
    run = _find_run(MlflowClient(uri), signature)
    expected = ledger.read("trial", signature).result
    assert expected is not None
    assert run.data.metrics["swapped/id/auroc"] == pytest.approx(expected["metrics"]["swapped/id/auroc"])


def test_another_map_of_the_same_name_is_refused(ledger: Ledger, trained_study: TrainedStudy) -> None:
    classes = ledger.read_plan()["data"]["classes"]
    add_views(ledger, {"named": dict(zip(classes, ("a", "b"), strict=True))}, per_class=False)
    other = dict(zip(classes, ("b", "a"), strict=True))
    with pytest.raises(ConfigError, match=r"evaluation\.label_maps\.named: .* give the new one another name"):
        add_views(ledger, {"named": other}, per_class=False)
    text = ", ".join(f"'{each}': {name}" for each, name in other.items())
    study = load_study(trained_study.file, [f"evaluation.label_maps={{named: {{{text}}}}}"])
    with pytest.raises(ConfigError, match="was evaluated with another map of this name"):
        prepare(study, storage=ledger.storage)
    prepare(load_study(trained_study.file, [f"evaluation.label_maps={{another: {{{text}}}}}"]), storage=ledger.storage)


def test_a_score_that_there_is_not_is_refused_before_anything_is_written(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="'entropie', which does not exist"):
        evaluate_trials(ledger, ["entropie"])
    assert set(list_addable_scores()) >= {"msr", "energy_scaled", "mahalanobis", "vim"}


def _signatures(ledger: Ledger) -> list[str]:
    return [trial["signature"] for trial in ledger.read_plan()["trials"]]


def _find_run(client: MlflowClient, signature: str):
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`robustsweep.signature` = '{signature}'")
    return run


def _recompute(ledger: Ledger, signature: str) -> float:
    folder = ledger.folder("trial", signature)
    train, test = (load_predictions(folder, name) for name in ("train", "test"))
    assert train.features is not None
    assert test.features is not None
    detector = fit_detector("mahalanobis", TrainingSplit(train.features, train.labels, train.logits[0]))
    is_correct = np.asarray(test.logits[0].argmax(axis=1) == test.labels)
    return compute_augrc(detector(test.features, test.logits[0]), is_correct)


def test_the_explorer_is_attached_to_the_studys_run_for_the_chosen_arm(
    ledger: Ledger, trained_study: TrainedStudy, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sync(ledger, uri)
    done = CliRunner().invoke(
        app, ["explore", str(trained_study.file), "--storage", ledger.storage, "--mlflow", uri, "--log"]
    )
    assert done.exit_code == 0, done.output
    assert "explorer.html (" in done.output
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'study'")
    page = Path(client.download_artifacts(run.info.run_id, "explorer.html", str(tmp_path))).read_text()
    chosen = select_arm(load_results(ledger), SelectionCriteria())
    assert chosen.signature in page
    assert "http://" not in page.replace("http://www.w3.org", "")
