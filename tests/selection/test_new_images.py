"""Networks evaluated on images that their study did not have: as the study would have done, by every trial, once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.analysis.results import Results, load_results
from orchestrator.cli.main import app
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.export import export_selection
from orchestrator.selection.new_images import evaluate_exported, evaluate_study, read_new_images
from orchestrator.selection.ranking import SelectionCriteria, select_arm
from orchestrator.templates.find_data import find_source
from orchestrator.templates.write_study import MAX_SIDE_CPU
from tests.support.trained_study import TrainedStudy
from trainables.errors import ConfigError, StudyError
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.segmentation.judged import measure_metric
from trainables.evaluation.segmentation.stored import load_segmented
from trainables.storage.folder import Folder

#: The images of the study's own data set ct, as if they came from elsewhere.
CT = "kind: organs\norgan: ct\nnum_images: 20\nlabel_map: {organ: foreground, lesion: foreground}\n"


@pytest.fixture(scope="module")
def results(organs: Path) -> Results:
    return load_results(Ledger(str(organs), "organs"))


@pytest.fixture(scope="module")
def signature(results: Results) -> str:
    return select_arm(results, SelectionCriteria(by="dataset/ct/dice")).signature


@pytest.fixture(scope="module")
def folder(organs: Path, results: Results, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("new-images") / "model"
    selection = select_arm(results, SelectionCriteria(by="dataset/ct/dice"))
    export_selection(Ledger(str(organs), "organs"), results, selection, out=Folder(out), cache_dir=cache_dir)
    return out


def write_settings(folder: Path, text: str = CT, name: str = "ct.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def draw_elsewhere(folder: Path) -> Path:
    """Write images of noise with masks of a square, and a patient in them twice."""
    rng = np.random.default_rng(0)
    for role in ("images", "masks"):
        (folder / role).mkdir(parents=True)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
        mask = np.zeros((40, 40), dtype=np.uint8)
        mask[10:20, 10 : 20 + number] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def read(path: Path, **options: str | None):  # type: ignore[no-untyped-def]
    settings = {"name": None, "data_set": None, **options}
    return read_new_images(path, **settings, find=lambda: find_source(path, max_side=MAX_SIDE_CPU))


def test_the_own_images_have_the_metrics_that_the_study_has(
    organs: Path, folder: Path, signature: str, cache_dir: Path, tmp_path: Path
) -> None:
    done = evaluate_exported(Folder(folder), read(write_settings(tmp_path)), out=None, cache_dir=cache_dir)
    assert len(done.cases) == 20
    assert done.folder.uri == f"{folder}/evaluated/ct"
    table = pd.read_csv(folder / "evaluated/ct/cases.csv")
    test = table[table["set"] == "test"]
    stored = load_segmented(Ledger(str(organs), "organs").folder("trial", signature), "test")
    own = stored.sources == 0
    assert len(test) == own.sum() == 4
    for metric in ("dice", "hd95", "assd", "nsd", "cl_dice"):
        np.testing.assert_allclose(test[metric], measure_metric(stored, metric)[own], rtol=1e-5)
    np.testing.assert_allclose(test["band_ece"], stored.calibration["band_ece"][0][own], rtol=1e-4)
    confidence = stored.scores["spectral_signature"][0][own]
    np.testing.assert_allclose(test["spectral_signature confidence"], confidence, rtol=1e-4)
    validation = load_segmented(Ledger(str(organs), "organs").folder("trial", signature), "val")
    threshold = np.quantile(validation.scores["spectral_signature"][0], 0.05)
    np.testing.assert_array_equal(test["spectral_signature foreign"], confidence < threshold)
    (row,) = done.models.to_dict("records")
    assert row["signature"] == signature
    assert row["dice"] == pytest.approx(done.cases["dice"].mean())
    assert row["spectral_signature foreign"] == done.cases["spectral_signature foreign"].mean()


def test_the_trials_of_a_study_are_evaluated_once_and_reach_its_tables(
    organs: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(organs, tmp_path / "copy")
    elsewhere = draw_elsewhere(tmp_path / "lyon")
    flags = [
        "organs",
        "--storage",
        str(tmp_path / "copy"),
        "--on",
        str(elsewhere),
        "--set",
        f"execution.cache_dir={cache_dir}",
    ]
    said = CliRunner().invoke(app, ["evaluate", *flags], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    assert "4 trials evaluated, 4 are complete" in said.output
    assert "trained_on=both (n = 2): Dice 0." in said.output
    ledger = Ledger(str(tmp_path / "copy"), "organs")
    models = pd.read_csv(tmp_path / "copy/organs/evaluated/lyon/models.csv")
    cases = pd.read_csv(tmp_path / "copy/organs/evaluated/lyon/cases.csv")
    assert len(cases) == 4 * 6
    trials = load_results(ledger).trials
    for row in models.to_dict("records"):
        own = cases[cases["signature"] == row["signature"]]
        assert row["dice"] == pytest.approx(own["dice"].mean())
        trial = trials[trials["signature"] == row["signature"]].iloc[0]
        assert trial["external/lyon/dice"] == pytest.approx(row["dice"])
        assert trial["ood/spectral_signature/lyon/sensitivity"] == own["spectral_signature foreign"].mean()
    images = read(elsewhere)
    again = evaluate_study(ledger, images, out=Folder(tmp_path / "again"), cache_dir=cache_dir)
    assert again.num_new == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again/cases.csv"), cases)
    (elsewhere / "masks/5.png").write_bytes((elsewhere / "masks/4.png").read_bytes())
    with pytest.raises(StudyError, match="has metrics of others by that name"):
        evaluate_study(ledger, images, out=None, cache_dir=cache_dir)
    with pytest.raises(StudyError, match="found 'us', which is not allowed or taken"):
        evaluate_study(ledger, read(elsewhere, name="us"), out=None, cache_dir=cache_dir)


def test_a_network_that_classifies_says_what_it_would_have_said_in_the_study(
    trained_study: TrainedStudy, tmp_path: Path
) -> None:
    results = trained_study.results
    selection = select_arm(results, SelectionCriteria())
    out = Folder(tmp_path / "model")
    export_selection(trained_study.ledger, results, selection, out=out, cache_dir=trained_study.cache_dir)
    text = "kind: phantom\nnum_images: 120\nnum_external_sites: 1\nnum_external_images: 30\n"
    done = evaluate_exported(
        out, read(write_settings(tmp_path, text, "own.yaml")), out=None, cache_dir=trained_study.cache_dir
    )
    stored = load_predictions(trained_study.ledger.folder("trial", selection.signature), "test")
    test = done.cases[done.cases["set"] == "test"]
    assert test["id"].tolist() == stored.ids.tolist()
    assert test["predicted"].tolist() == [str(each) for each in stored.of("identity/0").argmax(1)]
    assert done.models["accuracy"][0] == (done.cases["class"] == done.cases["predicted"]).mean()


@pytest.mark.parametrize(
    ("text", "data_set", "message"),
    [
        (CT + "image_size: 64\n", None, r"found image_size, in which new images are read as those of training"),
        (
            CT.replace("lesion: foreground", "lesion: other"),
            None,
            r"classes background, foreground, other by a network",
        ),
        (CT, "mr", r"found the data set 'mr' for a network that was made for 'ct', 'us'"),
        ("- a\n", None, "expected a mapping, the section data of a study"),
        ("kind: organs\nsurprise: 1\n", None, "surprise"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, cache_dir: Path, tmp_path: Path, text: str, data_set: str | None, message: str
) -> None:
    with pytest.raises((ConfigError, StudyError), match=message):
        evaluate_exported(
            Folder(folder),
            read(write_settings(tmp_path, text), data_set=data_set),
            out=Folder(tmp_path / "out"),
            cache_dir=cache_dir,
        )
    assert not (tmp_path / "out").exists()


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    for flags in (["--name", "x"], ["--on", str(tmp_path), "--scores", "msr"]):
        failed = CliRunner().invoke(app, ["evaluate", "study", *flags])
        assert isinstance(failed.exception, StudyError)
