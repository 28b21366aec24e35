"""What the explorer of segmentations gives: numbers and pictures of cases, and to whom it gives nothing."""

from __future__ import annotations

import base64
import json
import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.analysis.predictions.marked import compare_marked
from orchestrator.analysis.results import load_results
from orchestrator.analysis.segmentation.panels import FOUND, INVENTED, MISSED, PANELS, paint_panels
from orchestrator.explorer.segmentation import export
from orchestrator.explorer.segmentation.index import list_cases, load_sets
from orchestrator.explorer.serve import Served
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.annotations import read_annotations
from orchestrator.report.sections.detection.marked import marked_section
from tests.explorer.test_server import JSON, ask
from trainables.data.dataset import UNCOUNTED
from trainables.errors import StudyError


@pytest.fixture(scope="module")
def index(served_cases: Served) -> dict[str, Any]:
    """The cases as the page gets them: it asks until they are listed."""
    found: dict[str, Any] = json.loads(wait_for(served_cases, "/api/trials/0"))
    return found


def wait_for(served: Served, path: str) -> bytes:
    """Ask until a job is done, as the page does."""
    for _ in range(600):
        status, body, _ = ask(served, path)
        if status != 202:
            break
        time.sleep(0.1)
    assert status == 200, body
    return body


def cases_of(index: dict[str, Any], name: str) -> list[dict[str, Any]]:
    number = [each["name"] for each in index["sets"]].index(name)
    return [each for each in index["cases"] if each["set"] == number]


def test_numbers_are_those_of_the_stored_masks(index: dict[str, Any], segmented: ExploredStudy) -> None:
    signature = segmented.trials[0].signature
    stored = load_sets(segmented.ledger, signature)["test"]
    opened = segmented.images.open_set(signature, "test")
    assert stored.predicted is not None
    assert opened.targets is not None
    position = [each["name"] for each in index["metrics"]].index("dice")
    classes = range(1, len(index["classes"]) + 1)
    for row, case in enumerate(cases_of(index, "test")):
        predicted, true = stored.predicted[row], np.asarray(opened.targets[row])
        sizes = [((predicted == k).sum(), (true == k).sum(), ((predicted == k) & (true == k)).sum()) for k in classes]
        dice = [2 * both / (one + other) for one, other, both in sizes if one + other]
        assert case["id"] == str(opened.ids[row])
        assert case["metrics"][position] == pytest.approx(np.mean(dice), abs=1e-5)
        assert case["shifted"][0] == case["metrics"][position]
        assert case["areas"] == [sum(one for one, _, _ in sizes), sum(other for _, other, _ in sizes)]
        for score, value in zip(index["scores"], case["scores"], strict=True):
            assert value == pytest.approx(stored.scores[score["name"]][0, row], rel=1e-5)
    assert index["shifts"]["test"] == ["identity/0", "contrast_down/3"]


def test_a_foreign_set_has_scores_and_a_place_but_no_metrics(index: dict[str, Any]) -> None:
    foreign = cases_of(index, "fundus")
    assert foreign
    assert [(each["metrics"], each["areas"], each["shifted"]) for each in foreign] == [
        ([None] * len(index["metrics"]), None, None)
    ] * len(foreign)
    spectral = [each["name"] for each in index["scores"]].index("spectral_signature")
    assert all(each["scores"][spectral] is not None and each["place"] is not None for each in foreign)


def test_the_map_is_fitted_on_test_and_others_are_placed_on_it(index: dict[str, Any], segmented: ExploredStudy) -> None:
    sets = load_sets(segmented.ledger, segmented.trials[0].signature)
    features = sets["test"].layers["pooled/bottleneck"].astype(np.float64)
    places = np.array([each["place"] for each in cases_of(index, "test")])
    assert np.allclose(places.mean(axis=0), 0, atol=1e-5 * np.abs(places).max())
    variances = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    assert places.var(axis=0, ddof=1) == pytest.approx(variances[:2], rel=1e-4)
    assert index["explained"] == pytest.approx(variances[:2] / variances.sum(), rel=1e-4)
    # Distances to a test image along the axes are those of projections: never longer than in the features.
    others = sets["fundus"].layers["pooled/bottleneck"].astype(np.float64)
    placed = np.array([each["place"] for each in cases_of(index, "fundus")])
    apart = np.linalg.norm(placed[:, None] - places, axis=2)
    assert (apart <= np.linalg.norm(others[:, None] - features, axis=2) * (1 + 1e-4)).all()


def test_errors_are_painted_as_found_missed_and_invented() -> None:
    image = np.full((1, 1, 5), 100, dtype=np.uint8)
    target = np.array([[1, 1, 0, 2, UNCOUNTED]], dtype=np.uint8)
    predicted = np.array([[1, 0, 1, 1, 1]], dtype=np.uint8)
    drawn = paint_panels(image, target, predicted, np.array([[0, 255, 9, 0, 0]], dtype=np.uint8))
    assert tuple(drawn) == PANELS
    grey = (60, 60, 60)
    assert [tuple(each) for each in drawn["errors"][0]] == [FOUND, MISSED, INVENTED, MISSED, grey]
    assert [tuple(each) for each in drawn["truth"][0]] == [FOUND, FOUND, grey, FOUND, grey]
    assert [tuple(each) for each in drawn["prediction"][0]] == [FOUND, grey, FOUND, FOUND, grey]
    assert drawn["uncertainty"][0, :, 0].tolist() == [0, 255, 9, 0, 0]
    assert drawn["image"][0, 0].tolist() == [100, 100, 100]
    assert tuple(paint_panels(image, None, predicted, predicted)) == ("image", "prediction", "uncertainty")


def test_pictures_are_those_of_the_case(index: dict[str, Any], served_cases: Served, segmented: ExploredStudy) -> None:
    signature = segmented.trials[0].signature
    stored = load_sets(segmented.ledger, signature)["test"]
    image = np.asarray(segmented.images.open_set(signature, "test").images[2])
    number = index["cases"].index(cases_of(index, "test")[2])
    pixels = {}
    for panel in PANELS:
        status, body, headers = ask(served_cases, f"/api/trials/0/cases/{number}/{panel}")
        assert (status, headers["content-type"]) == (200, "image/png")
        assert "default-src 'none'" in headers["content-security-policy"]
        pixels[panel] = np.asarray(Image.open(BytesIO(body)))
    assert np.array_equal(pixels["image"].transpose(2, 0, 1), np.broadcast_to(image, (3, 32, 32)))
    assert stored.predicted is not None
    assert np.array_equal((pixels["prediction"] == FOUND).all(axis=2), stored.predicted[2] > 0)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/trials/0/cases/99999/image", 404),
        ("/api/trials/0/cases/-1/image", 404),
        ("/api/trials/0/cases/0/..%2fplan.json", 404),
        ("/api/trials/0/cases/0/mask", 404),
        ("/api/trials/9/cases/0/image", 404),
        ("/api/trials/9", 404),
        ("/api/trials/0/cases/0/image?side=x", 400),
        ("/api/trials/0/arrays/pca", 404),
        ("/static/..%2fapp.py", 404),
        ("/static/app.js", 404),
        ("/plan.json", 404),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("index")
def test_nothing_but_the_page_and_numbered_cases_can_be_requested(served_cases: Served, path: str, status: int) -> None:
    assert ask(served_cases, path)[0] == status


def test_a_picture_of_an_unknown_truth_and_another_host_name_are_refused(
    index: dict[str, Any], served_cases: Served
) -> None:
    number = index["cases"].index(cases_of(index, "fundus")[0])
    assert ask(served_cases, f"/api/trials/0/cases/{number}/prediction")[0] == 200
    status, body, _ = ask(served_cases, f"/api/trials/0/cases/{number}/errors")
    assert (status, b"truth is not known" in body) == (404, True)
    assert ask(served_cases, "/api/study", headers={"Host": "evil.example"})[0] == 421


def test_sites_are_judged_by_the_risk_of_their_patients(
    index: dict[str, Any], served_cases: Served, segmented: ExploredStudy
) -> None:
    found = json.loads(wait_for(served_cases, "/api/trials/0/clusters"))
    sets = load_sets(segmented.ledger, segmented.trials[0].signature)
    dice = [each["metrics"][0] if each["metrics"] else None for each in index["cases"]]
    assert index["metrics"][0]["name"] == "dice"
    names = [index["sets"][each["set"]]["name"] for each in index["cases"]]
    assert [each["name"] for each in found["parts"]] == ["test", "val"]  # no training images, nothing foreign
    for number, part in enumerate(found["parts"]):
        rows = [k for k, code in enumerate(found["part_codes"]) if code == number]
        assert rows == [k for k, name in enumerate(names) if name == part["name"] and dice[k] is not None]
        values = np.array([1 - dice[k] for k in rows])
        patients = sets[part["name"]].groups[[index["cases"][k]["row"] for k in rows]]
        means = [values[patients == patient].mean() for patient in np.unique(patients)]
        assert part["risk"] == pytest.approx(np.mean(means), abs=1e-5)
        assert (part["num_judged"], part["num_patients"]) == (len(rows), len(means))
    assert (found["clusters"], found["problem"]) == ([], None)  # too few cases
    assert set(found["codes"]) == {-1}


def test_a_note_on_a_case_is_written_and_its_mask_left_out_of_the_report(
    index: dict[str, Any], served_cases: Served, segmented: ExploredStudy
) -> None:
    case = cases_of(index, "test")[1]
    note = {"trial": 0, "point": index["cases"].index(case), "note": "two organs", "label_is_wrong": True}
    status, body, _ = ask(served_cases, "/api/notes", method="POST", body=json.dumps(note).encode(), headers=JSON)
    assert status == 200, body
    (saved,) = read_annotations(segmented.ledger.root)
    assert (saved.set_name, saved.image, saved.note) == ("test", case["id"], "two organs")
    results = load_results(segmented.ledger)
    section = marked_section(results, segmented.ledger)
    assert section is not None
    assert section.title == "What if masks that people have marked are wrong?"
    beyond = note | {"point": len(index["cases"])}
    assert ask(served_cases, "/api/notes", method="POST", body=json.dumps(beyond).encode(), headers=JSON)[0] == 404
    erased = json.dumps(note | {"note": "", "label_is_wrong": False}).encode()
    ask(served_cases, "/api/notes", method="POST", body=erased, headers=JSON)
    assert read_annotations(segmented.ledger.root) == []
    (row,) = compare_marked(results, segmented.ledger, [saved]).to_dict("records")
    dice = load_sets(segmented.ledger, segmented.trials[0].signature)["test"].metrics["dice"].astype(np.float64)
    whole, kept = (np.nanmean(np.nanmean(each, axis=1), axis=1) for each in (dice, np.delete(dice, 1, axis=1)))
    assert row["whole"] == pytest.approx(results.complete.iloc[0]["id/dice"], rel=1e-6)
    assert (row["whole"], row["kept"], row["num_marked"]) == (pytest.approx(whole[0]), pytest.approx(kept[0]), 1)
    assert row["shifted_kept"] == pytest.approx(kept[1])  # of a single shift


def test_a_file_keeps_the_worst_cases_and_says_what_it_leaves_out(
    index: dict[str, Any], segmented: ExploredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature, cache_dir = segmented.trials[0].signature, segmented.cache_dir
    monkeypatch.setattr(export, "MAX_CASES", 6)
    monkeypatch.setattr(export, "MAX_DRAWN", 2)
    found = export.collect_cases(segmented.ledger, signature, cache_dir=cache_dir)
    dice = [each["metrics"][0] for each in found["index"]["cases"]]
    known = [each["metrics"][0] for name in ("test", "val") for each in cases_of(index, name)]
    assert dice == sorted(known)[:6]
    assert [list(each) for each in found["pictures"]] == [list(PANELS)] * 2 + [["errors"]] * 4
    assert len(found["clusters"]["part_codes"]) == 6
    assert "6 of" in found["left_out"]
    assert "All pictures are there of 2 cases" in found["left_out"]
    assert "train" not in [each["name"] for each in found["index"]["sets"]]
    picture = Image.open(BytesIO(base64.b64decode(found["pictures"][0]["truth"])))
    assert picture.size == (32, 32)


def test_a_trial_without_cases_is_an_error(explored: ExploredStudy) -> None:
    with pytest.raises(StudyError, match="looked for the segmented cases of trial"):
        list_cases(explored.ledger, explored.trials[0].signature, cache_dir=explored.cache_dir)
