"""A study on two data sets that differ in channels, classes, shifts, external sets and replicates, trained for real."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.analysis.balanced_errors import balanced_errors_table
from orchestrator.analysis.comparison.compare import compare_studies
from orchestrator.analysis.inference.verdicts import judge
from orchestrator.analysis.results import Results, load_results
from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.write import write_report
from orchestrator.study.study_file import load_study
from trainables.errors import StudyError

TEXT = """\
study: two
question: Does strong augmentation help on both?
data: {kind: medmnist, path: /nowhere.npz}   # no arm is on it
model: {name: timm/test_resnet, stem: original}
training: {epochs: 1, batch_size: 24, learning_rate: 0.003, label_fraction: 0.5}
evaluation: {shifts: [gaussian_noise, saturation, gamma_up], severities: [1, 5]}
factors:
  data:
    digits: {kind: digits, image_size: 16}
    lesions: {kind: phantom, image_size: 16, num_images: 120, num_external_sites: 1, num_external_images: 30}
  augmentation: [none, strong]
replicates: 2
replicates_where: [{when: {data: digits}, replicates: 1}]
report: {reference: {arm: {augmentation: none}}}
hypotheses:
- {name: h, claim: It helps., treatment: {augmentation: strong}, control: {augmentation: none}, direction: higher,
   smallest_effect: 0, over: shifts}
execution: {cache_dir: CACHE}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("two")
    (path / "two.yaml").write_text(TEXT.replace("CACHE", str(cache_dir)))
    study = load_study(path / "two.yaml")
    prepared = prepare(study, storage=str(path))
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    for work in prepared.plan.works:
        run_single(study, work.signature, storage=str(path), echo=lambda line: None)
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return load_results(Ledger(str(folder), "two"))


def test_the_plan_describes_both_data_sets(results: Results) -> None:
    about = results.plan["data_sets"]
    assert {label: (each["name"], len(each["classes"])) for label, each in about.items()} == {
        "digits": ("digits", 10), "lesions": ("phantom", 2),
    }  # fmt: skip
    assert results.plan["data"]["name"] == "digits"
    assert results.counts["complete"] == results.counts["planned"] == 6
    assert results.plan["reference"]["arms"]["lesions"] == "data=lesions, augmentation=none"


def test_each_is_measured_under_its_own_shifts_and_against_its_own_reference(results: Results) -> None:
    table = balanced_errors_table(results).set_index("name")
    assert table.loc[["data=digits, augmentation=none", "data=lesions, augmentation=none"], "be"].tolist() == [1, 1]
    assert table["be_shifts"].tolist() == [2, 2, 3, 3]  # grey digits lack saturation
    external = results.trials.set_index("name")["external/external-0/accuracy"]
    assert external.filter(like="digits").isna().all()
    assert external.filter(like="lesions").notna().all()


def test_the_report_keeps_them_apart(folder: Path, cache_dir: Path, results: Results) -> None:
    (verdict,) = judge(results)
    assert verdict.evidence.units == "1 replicate that all arms have"
    assert verdict.evidence.scope is not None
    assert "4 trained models, 2 data sets, " in verdict.evidence.scope.describe()
    report = write_report(Ledger(str(folder), "two"), cache_dir=cache_dir)
    page = (folder / "two" / "report" / "index.html").read_text()
    for number, label in ((1, "digits"), (2, "lesions")):
        assert f'<section id="examples-{number}"><h2>{label}: ' in page
        assert f"{label}: Chosen on in-distribution validation: " in report.summary


def test_of_two_such_studies_one_data_set_is_compared(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "two", tmp_path / "two")
    ledgers = [Ledger(str(folder), "two"), Ledger(str(tmp_path), "two")]
    with pytest.raises(
        StudyError, match=r"their classes differ.* and of studies on several data sets one \(--data-set\)"
    ):
        compare_studies(ledgers)
    with pytest.raises(
        StudyError, match=r"--data-set: looked for 'lesion' in two .* and found digits, lesions; name one"
    ):
        compare_studies(ledgers, data_set="lesion")
    compared = compare_studies(ledgers, data_set="lesions")
    assert [side.label for side in compared.sides] == [f"two ({each.storage}), lesions" for each in ledgers]
    assert [pair.unpaired for pair in compared.pairs] == [
        "the same trials (2 of 2 replicates), so that nothing differs"
    ] * 2
