"""The page of a segmentation in a browser: worst cases first, one chosen by click and key, several by a lasso."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.explorer.serve import Served
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.annotations import read_annotations
from orchestrator.tracking.shipper import sync
from tests.explorer.test_page import CONTRASTS, WRITE_NOTE, check_quiet, photograph, show
from tests.support.chromium import Page, browser_path, open_browser

pytestmark = pytest.mark.skipif(browser_path is None, reason="needs Chromium or Chrome")

LISTED = "[...document.querySelectorAll('.case-row')].map((each) => Number(each.dataset.point))"
DICE = "((numbers) => numbers.map((each) => explorer.value('metric:dice', each)))"
FIGURES = "[...document.querySelectorAll('#case figcaption')].map((each) => each.textContent)"
#: Middles of all dots of the plot: number, x and y in the window.
DOTS = """
[...document.querySelectorAll('#plot .case')].map((dot) => {
  const box = dot.getBoundingClientRect();
  return [Number(dot.dataset.point), box.left + box.width / 2, box.top + box.height / 2];
})
"""


@pytest.fixture(scope="module")
def page(profile: Path) -> Iterator[Page]:
    with open_browser(profile) as found:
        yield found


def press(page: Page, key: str) -> None:
    page.evaluate(f"dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}' }}))")


def test_cases_are_listed_worst_first_and_chosen_by_key_and_click(page: Page, served_cases: Served) -> None:
    show(page, served_cases.url)
    listed = page.evaluate(LISTED)
    dice = page.evaluate(f"{DICE}({LISTED})")
    known = [each for each in dice if each is not None]
    assert known == sorted(known)
    assert dice[len(known) :] == [None] * (len(dice) - len(known))  # without a truth: at the end
    press(page, "ArrowDown")
    assert page.evaluate("explorer.state.point") == listed[0]
    press(page, "ArrowDown")
    assert page.evaluate("explorer.state.point") == listed[1]
    page.wait_for("[...document.querySelectorAll('#case img')].every((each) => each.complete && each.naturalWidth)")
    assert page.evaluate(FIGURES) == ["image", "truth", "prediction", "errors", "uncertainty"]
    number, x, y = page.evaluate(DOTS)[-1]
    page.mouse("mousePressed", x, y)
    page.mouse("mouseReleased", x, y)
    assert page.evaluate("explorer.state.point") == number
    assert page.evaluate("location.hash").find(f"case={number}") > 0
    photograph(page, "explorer-segmentation")
    check_quiet(page, served_cases.url)


def test_a_lasso_says_the_mean_dice_of_what_is_inside(page: Page, served_cases: Served) -> None:
    show(page, f"{served_cases.url}#x=area:mean&y=metric:dice", dark=True)
    dots = page.evaluate(DOTS)
    left, right = min(x for _, x, _ in dots) - 8, max(x for _, x, _ in dots) + 8
    top, bottom = min(y for *_, y in dots) - 8, max(y for *_, y in dots) + 8
    middle = sorted(y for *_, y in dots)[len(dots) // 2] + 0.5
    page.mouse("mousePressed", left, middle, shift=True)
    for x, y in ((right, middle), (right, bottom), (left, bottom)):
        page.mouse("mouseMoved", x, y, shift=True)
    page.mouse("mouseReleased", left, bottom, shift=True)
    page.wait_for("document.querySelector('.numbers')")
    inside = {number for number, _, y in dots if y > middle}
    assert set(page.evaluate(LISTED)) == inside
    values = page.evaluate(f"{DICE}({sorted(inside)})")
    shown = page.evaluate("[...document.querySelectorAll('.numbers b')].map((each) => each.textContent)")
    assert shown[:2] == [str(len(inside)), f"{sum(values) / len(values):.3f}"]
    assert top < middle
    link = page.evaluate("location.hash")
    show(page, served_cases.url + link)  # the link brings the selection back
    assert set(page.evaluate(LISTED)) == inside
    press(page, "Escape")
    page.wait_for("document.querySelector('#list .empty')")
    check_quiet(page, served_cases.url)


def test_what_has_no_truth_stands_along_the_axis_of_its_confidence(page: Page, served_cases: Served) -> None:
    show(page, f"{served_cases.url}#x=score:spectral_signature&y=metric:dice&colour=set")
    ticks = page.evaluate("[...document.querySelectorAll('#plot .tick')].map((each) => Number(each.dataset.point))")
    foreign = page.evaluate(
        "explorer.shown.filter((each) => explorer.index.sets[explorer.index.cases[each].set].name === 'fundus')"
    )
    assert ticks == foreign != []
    check_quiet(page, served_cases.url)


def test_sites_have_their_risk_and_choosing_one_selects_its_cases(page: Page, served_cases: Served) -> None:
    show(page, f"{served_cases.url}#tab=clusters")
    page.wait_for("document.querySelectorAll('.cluster').length === 2")
    first = "explorer.clusters.parts[0]"
    assert page.evaluate("document.querySelector('.cluster b').textContent") == "test"
    shown = page.evaluate("document.querySelector('.cluster .rate b').textContent")
    assert shown == f"{page.evaluate(f'{first}.risk'):.2f}"
    page.evaluate("document.querySelector('.cluster').click()")
    page.wait_for("explorer.picked")
    inside = page.evaluate("[...explorer.picked]")
    assert inside == page.evaluate("explorer.clusters.part_codes.flatMap((code, k) => (code === 0 ? [k] : []))")
    assert len(inside) == page.evaluate(f"{first}.size")
    assert page.evaluate("document.querySelectorAll('#plot .case.out').length") > 0
    link = page.evaluate("location.hash")
    show(page, served_cases.url + link)
    assert page.evaluate("[...explorer.picked]") == inside
    page.press("2")
    page.wait_for("document.getElementById('export-csv')")
    assert page.evaluate("[...explorer.list].sort((a, b) => a - b)") == inside
    check_quiet(page, served_cases.url)


def test_a_note_is_saved_and_listed(page: Page, served_cases: Served, segmented: ExploredStudy) -> None:
    show(page, f"{served_cases.url}#case=2")
    page.wait_for("document.getElementById('note')")
    page.evaluate(WRITE_NOTE)
    page.wait_for("document.getElementById('note-said').textContent.includes('saved')")
    (saved,) = read_annotations(segmented.ledger.root)
    assert saved.image == page.evaluate("explorer.index.cases[2].id")
    page.press("4")
    page.wait_for("document.querySelector('.note-row:not([disabled])')?.dataset.point === '2'")
    page.evaluate("explorer.saveNote({ trial: 0, point: 2, note: '', label_is_wrong: false })")
    assert read_annotations(segmented.ledger.root) == []
    check_quiet(page, served_cases.url)


def test_the_page_that_is_attached_in_mlflow_shows_the_cases_and_asks_nobody(
    page: Page, served_cases: Served, study_file: Path, segmented: ExploredStudy, tmp_path: Path
) -> None:
    uri, ledger = f"sqlite:///{tmp_path}/mlflow.db", segmented.ledger
    sync(ledger, uri)
    segmented.annotate(0, 0, note="a <b>hair</b>", label_is_wrong=True)
    try:
        asked = ["explore", str(study_file), "--storage", ledger.storage, "--mlflow", uri, "--log"]
        done = CliRunner().invoke(app, asked, catch_exceptions=False)
    finally:
        segmented.annotate(0, 0, note="", label_is_wrong=False)
    said = done.output.replace("\n", " ")
    assert "is attached to the study's run" in said
    assert "Training images are not in this file" in said
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("discs")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'study'")
    target = Path(client.download_artifacts(run.info.run_id, "explorer.html", str(tmp_path)))
    show(page, served_cases.url)
    ids = "explorer.list.map((each) => explorer.index.cases[each].id)"
    served = page.evaluate(ids)
    url = target.as_uri()
    show(page, url)
    assert page.evaluate(ids) == served
    page.press("ArrowDown")
    page.wait_for("[...document.querySelectorAll('#case img')].every((each) => each.complete && each.naturalWidth)")
    assert page.evaluate(FIGURES) == ["image", "truth", "prediction", "errors", "uncertainty"]
    page.press("3")
    page.wait_for("document.querySelectorAll('.cluster').length === 2")
    page.press("4")
    page.wait_for("document.querySelector('.note-row:not([disabled])')")
    page.evaluate("document.querySelector('.note-row').click()")
    page.wait_for("document.querySelector('.read-note')")
    assert page.evaluate("document.querySelector('.read-note').textContent") == "mask wrong a <b>hair</b>"
    photograph(page, "explorer-segmentation-file")
    check_quiet(page, url)


@pytest.mark.parametrize(("width", "dark"), [(1024, True), (390, False)])
def test_it_fits_into_small_windows(page: Page, served_cases: Served, width: int, dark: bool) -> None:
    show(page, f"{served_cases.url}#case=0&tab=clusters", width=width, height=800, dark=dark)
    page.wait_for("document.querySelector('.cluster')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [each for each in page.evaluate(CONTRASTS) if each["contrast"] < 4.5] == []
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    photograph(page, f"explorer-segmentation-{width}")
    check_quiet(page, served_cases.url)
