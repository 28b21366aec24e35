"""Section on where models look: numbers beside their baselines, the figure, agreement, overlays of real trials."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results
from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.attribution.section import METHOD_TITLES, attribution_section
from orchestrator.study.study_file import load_study
from orchestrator.tracking.projection import project
from tests.analysis.test_attribution import plant
from tests.support.synthetic_ledger import make_fake_ledger
from trainables.errors import ConfigError, StudyError
from trainables.evaluation.attribution.methods import ATTRIBUTION_METHODS

TEXT = """\
study: looks
question: Where do models look?
data: {kind: phantom, image_size: 32, num_images: 200, num_external_sites: 0, lesion_radius_px: [2, 6]}
model: {name: timm/test_resnet, stem: original}
training: {epochs: 1, batch_size: 32}
evaluation:
  shifts: []
  store_features: []
  attribution: {methods: [grad_cam, integrated_gradients], images: 10, cases: 2}
factors: {augmentation: [none, strong]}
replicates: 1
execution: {cache_dir: CACHE}
"""
CLAIM = """\
hypotheses:
  - name: less-large-only
    claim: Strong augmentation attends less to large lesions only.
    metric: attribution/METHOD/METRIC
    treatment: {augmentation: strong}
    control: {augmentation: none}
    direction: lower
    smallest_effect: 0
"""


def write_study(folder: Path, cache_dir: Path, metric: str | None = None) -> Path:
    """Write the study, with a claim about a metric and replicates for it if one is given."""
    file, text = folder / "looks.yaml", TEXT.replace("CACHE", str(cache_dir))
    if metric is not None:
        text = text.replace("replicates: 1\n", "replicates: 6\n" + CLAIM.replace("METHOD/METRIC", metric))
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Ledger:
    """A study of two arms trained in this process, a second each."""
    folder = tmp_path_factory.mktemp("looks")
    study = load_study(write_study(folder, cache_dir))
    prepared = prepare(study, storage=str(folder / "results"))
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    for work in prepared.plan.works:
        run_single(study, work.signature, storage=str(folder / "results"), echo=lambda line: None)
    return prepared.ledger


def test_section_of_trained_models_has_numbers_baselines_figure_and_overlays(looked: Ledger, cache_dir: Path) -> None:
    results = load_results(looked)
    section = attribution_section(results, looked, cache_dir)
    assert section is not None
    mean = results.complete.set_index("name").loc["augmentation=strong", "attribution/grad_cam/relevance_mass"]
    assert f"{100 * mean:.1f} %" in section.body
    assert "centre prior" in section.body
    assert "random " in section.body
    assert 'data-figure="figure-attribution"' in section.body
    # Two images in a row of their own, then two arms × two methods.
    assert len(re.findall(r'<img src="data:image/png;base64', section.body)) == 2 + 2 * 2 * 2
    plain = attribution_section(results, looked, None)
    assert plain is not None
    assert "<img" not in plain.body


def test_mlflow_has_the_metrics(looked: Ledger) -> None:
    signature = looked.read_plan()["trials"][0]["signature"]
    keys = {point.key for point in project(looked.read("trial", signature)).scores}
    assert {"attribution/grad_cam/relevance_mass", "attribution/grad_cam/randomised_relevance_mass"} <= keys
    assert "attribution/centre_prior/pointing_game" in keys


def test_missing_images_do_not_stop_the_report(looked: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainables.data import load
    from trainables.errors import DataError

    def refuse(*_: object, **__: object) -> None:
        raise DataError("they have moved")

    monkeypatch.setattr(load, "load_dataset", refuse)
    section = attribution_section(load_results(looked), looked, tmp_path)
    assert section is not None
    assert "No overlays are shown, because the images could not be had here: they have moved" in section.body


def test_untold_methods_and_agreement_are_shown(tmp_path: Path) -> None:
    ledger = plant(tmp_path, {("grad_cam", "relevance_mass"): -0.02}, trained=0.1)
    section = attribution_section(load_results(ledger), ledger, None)
    assert section is not None
    told = "Not told from, or below, random weights in relevance mass"
    assert re.search(rf"{told}[^<]*<ul><li>Grad-CAM: none, strong</li>", section.body)
    results = load_results(ledger)
    for trial in results.plan["trials"]:
        trial["needs"] = [f"encoder{trial['replicate'] % 4}"]  # four independent models: no interval
    section = attribution_section(results, ledger, None)
    assert section is not None
    assert told not in section.body
    assert "<ul><li>Grad-CAM: none, strong</li><li>integrated gradients: none, strong</li></ul>" in section.body
    assert "Kendall’s τ over 12 trials" in section.body


def test_there_is_no_section_without_attributions(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path)
    assert attribution_section(load_results(ledger), ledger, None) is None


def test_titles_are_those_of_the_methods() -> None:
    assert {name: method.title for name, method in ATTRIBUTION_METHODS.items()} == METHOD_TITLES


def test_the_claim_about_large_lesions_can_be_registered(tmp_path: Path, cache_dir: Path) -> None:
    file = write_study(tmp_path, cache_dir, "integrated_gradients/adjusted_large_small_ratio")
    prepared = prepare(load_study(file), storage=str(tmp_path / "results"))
    assert len(prepared.plan.trials) == 12


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "occlusion/relevance_mass",
            "evaluation.attribution.methods has grad_cam, integrated_gradients, and not occlu",
        ),
        ("grad_cam/concentration_above_400", "no test image has lesions of that area"),
        ("grad_cam/accuracy", "there is no metric 'attribution/grad_cam/accuracy'"),
    ],
)
def test_metrics_that_no_trial_can_have_are_refused(metric: str, message: str, tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        prepare(load_study(write_study(tmp_path, cache_dir, metric)), storage=str(tmp_path / "results"))


def test_data_without_masks_are_refused_before_anything_runs(tmp_path: Path, cache_dir: Path) -> None:
    file = write_study(tmp_path, cache_dir)
    text = re.sub(r"data: .*", "data: {kind: digits, image_size: 32}", file.read_text())
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"evaluation.attribution: the data \(digits\) have no lesion masks"):
        prepare(load_study(file), storage=str(tmp_path / "results"))
