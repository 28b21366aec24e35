"""The page in a browser: everything that a person does with it, without an error and without another machine."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.explorer.classification import export
from orchestrator.explorer.classification.cases import describe_case
from orchestrator.explorer.export import Exported, export_page
from orchestrator.explorer.serve import Served
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.annotations import read_annotations
from tests.support.chromium import Page, browser_path, open_browser

pytestmark = pytest.mark.skipif(browser_path is None, reason="needs Chromium or Chrome")

READY = "document.documentElement.dataset.ready"
STATE = "explorer.state"
BOX = """
(() => {
  const box = explorer.stage.panes[0].box.getBoundingClientRect();
  return [box.left, box.top, box.right, box.bottom];
})()
"""
#: How many pixels of the map are drawn on.
COUNT_PIXELS = """
(() => {
  const { scatter } = explorer.stage.panes[0], { gl, canvas } = scatter;
  scatter.draw(false);
  const pixels = new Uint8Array(4 * canvas.width * canvas.height);
  gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  let drawn = 0;
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i]) drawn++;
  return drawn;
})()
"""
WRITE_NOTE = """
(() => {
  const note = document.getElementById('note');
  note.value = 'blurred';
  note.dispatchEvent(new Event('change'));
})()
"""
#: Pictures of the page, which CI keeps.
SCREENSHOTS = Path(__file__).parents[2] / "build/screenshots"
#: Numbers of points of the shown sets that are wrong.
COUNT_WRONG = "explorer.points.filter((p) => explorer.trial.verdict[p] === 1).length"


@pytest.fixture(scope="module")
def page(profile: Path) -> Iterator[Page]:
    with open_browser(profile) as found:
        yield found


def show(page: Page, url: str, *, width: int = 1400, height: int = 900, dark: bool = False) -> Page:
    page.call("Page.navigate", url="about:blank")  # a change of the fragment alone loads nothing
    page.visit(url, width=width, height=height, dark=dark)
    page.wait_for(READY)
    return page


def check_quiet(page: Page, allowed: str) -> None:
    """Assert that nothing went wrong on the page, and that it asked nobody but ``allowed``."""
    assert page.events.get("Runtime.exceptionThrown", []) == []
    said = [each["entry"] for each in page.events.get("Log.entryAdded", [])]
    assert [each for each in said if each["level"] == "error"] == []
    assert page.events.get("Runtime.consoleAPICalled", []) == []
    asked = [each["request"]["url"] for each in page.events.get("Network.requestWillBeSent", [])]
    assert [url[:100] for url in asked if not url.startswith((allowed, "data:", "blob:", "about:blank"))] == []


def photograph(page: Page, name: str) -> None:
    """Write what is in view when nothing moves any more."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for("[...document.images].every((each) => each.complete || each.loading === 'lazy')")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.photograph(SCREENSHOTS / f"{name}.png")


def place_of(page: Page, point: int) -> tuple[float, float]:
    """Return where a point is drawn in the window."""
    found = page.evaluate(
        f"(() => {{ const {{ scatter, box }} = explorer.stage.panes[0], at = box.getBoundingClientRect(), p = {point};"
        "const [x, y] = scatter.toScreen(explorer.positions[2 * p], explorer.positions[2 * p + 1]);"
        "return [x + at.left, y + at.top]; })()"
    )
    return found[0], found[1]


def lasso_all(page: Page) -> None:
    """Hold shift and drag around the whole map."""
    box = page.evaluate(BOX)
    left, top, right, bottom = box[0] + 2, box[1] + 50, box[2] - 2, box[3] - 2
    page.mouse("mouseMoved", left, top, shift=True)
    page.mouse("mousePressed", left, top, shift=True)
    for x, y in ((right, top), (right, bottom), (left, bottom)):
        page.mouse("mouseMoved", x, y, shift=True)
    page.mouse("mouseReleased", left, bottom, shift=True)


def read_stored(explored: ExploredStudy) -> dict[str, Any]:
    prepared = explored.open(0)
    labels, predicted = (np.asarray(prepared.array(name)) for name in ("labels", "predicted"))
    score = np.asarray(prepared.array("score-0"))
    shown = np.concatenate(
        [
            np.arange(each.first_point, each.first_point + each.count)
            for each in prepared.index.sets
            if each.name != "train"
        ]
    )
    return {"wrong": labels != predicted, "score": score, "shown": shown}


def test_the_map_shows_every_unshifted_image_and_the_worst_failures_first(
    page: Page, served: Served, explored: ExploredStudy
) -> None:
    show(page, served.url)
    stored = read_stored(explored)
    assert sorted(page.evaluate("[...explorer.stage.points]")) == sorted(stored["shown"].tolist())
    wrong = stored["shown"][stored["wrong"][stored["shown"]]]
    worst = wrong[np.lexsort((wrong, -stored["score"][wrong]))][:100]
    assert page.evaluate("[...explorer.list]") == worst.tolist()
    drawn = page.evaluate(COUNT_PIXELS)
    assert drawn > 10 * len(stored["shown"]) / 4
    check_quiet(page, served.url)


def test_hovering_shows_the_image_and_what_was_predicted(page: Page, served: Served, explored: ExploredStudy) -> None:
    show(page, served.url)
    point = page.evaluate("explorer.list[0]")
    page.wait_for("explorer.ids")
    page.mouse("mouseMoved", *place_of(page, point))
    page.wait_for("!document.getElementById('card').hidden")
    hovered = int(page.evaluate("explorer.hovered.split(' ')[0]"))
    text = page.evaluate("document.getElementById('card').innerText")
    assert explored.open(0).ids[explored.open(0).find(hovered).image] in text
    page.wait_for("document.querySelector('#card img').naturalWidth === 32")
    page.mouse("mouseMoved", 5, 5)
    page.wait_for("document.getElementById('card').hidden")
    check_quiet(page, served.url)


def test_a_click_opens_the_case_and_arrow_keys_step_through_the_list(page: Page, served: Served) -> None:
    show(page, served.url)
    first, second = page.evaluate("[explorer.list[0], explorer.list[1]]")
    page.click(*place_of(page, first))
    page.wait_for(f"{STATE}.point !== null && document.querySelector('#case .distribution')")
    page.evaluate(f"explorer.choose({first})")
    page.press("ArrowRight")
    page.wait_for(f"{STATE}.point === {second}")
    page.press("ArrowLeft")
    page.wait_for(
        f"{STATE}.point === {first} && document.querySelector('#list [aria-current=true]').dataset.point == {first}"
    )
    page.wait_for("document.querySelector('#case .distribution')")
    page.wait_for("document.querySelector('#case figure img').naturalWidth === 32")
    assert page.evaluate("document.querySelectorAll('#case .version').length") in (0, 5)
    width = "document.querySelector('#case figure img').getBoundingClientRect().width"
    small = page.evaluate(width)
    page.press("z")
    assert page.evaluate(width) > 1.5 * small
    page.press("z")
    assert page.evaluate(width) == small
    page.press("Escape")
    page.wait_for("document.getElementById('case').hidden")
    page.press("u")
    page.wait_for("document.getElementById('kind-under').getAttribute('aria-pressed') === 'true'")
    assert page.evaluate("explorer.list.every((p) => explorer.trial.verdict[p] === 0)")
    check_quiet(page, served.url)


def test_a_shifted_version_is_drawn_beside_the_unshifted_one(
    page: Page, served: Served, explored: ExploredStudy
) -> None:
    test = explored.open(0).index.sets[0]
    show(page, f"{served.url}#t=0&p={test.first_point + test.count}")
    page.wait_for("[...document.querySelectorAll('#case figure img')].filter((each) => each.naturalWidth).length === 2")
    words = page.evaluate("[...document.querySelectorAll('#case figcaption')].map((each) => each.textContent)")
    assert words == ["gaussian noise 1", "unshifted"]
    check_quiet(page, served.url)


def test_a_lasso_counts_lists_and_exports_and_a_link_keeps_it(
    page: Page, served: Served, explored: ExploredStudy, tmp_path: Path
) -> None:
    show(page, served.url)
    lasso_all(page)
    page.wait_for(f"{STATE}.picked")
    stored = read_stored(explored)
    picked = page.evaluate(f"[...{STATE}.picked]")
    assert picked == sorted(stored["shown"].tolist())
    wrong = int(stored["wrong"][picked].sum())
    page.wait_for("document.querySelector('.numbers')")
    text = page.evaluate("document.querySelector('.numbers').innerText")
    assert f"{100 * wrong / len(picked):.1f} %" in text
    assert page.evaluate("document.querySelectorAll('.gallery .tile').length") == min(60, len(picked))
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate("document.getElementById('export-csv').click()")
    rows = list(csv.DictReader(wait_for_file(tmp_path / "small-selection.csv").read_text().splitlines()))
    assert len(rows) == len(picked)
    assert sum(row["verdict"] == "wrong" for row in rows) == wrong
    assert [row["id"] for row in rows] == [explored.open(0).ids[explored.open(0).find(p).image] for p in picked]
    link = page.evaluate("location.href")
    check_quiet(page, served.url)
    show(page, link)
    assert page.evaluate(f"[...{STATE}.picked]") == picked
    assert page.evaluate("explorer.stage.marks.outline.length") >= 6
    page.press("Escape")
    page.wait_for(f"{STATE}.picked === null")


def wait_for_file(path: Path) -> Path:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.05)
    return path


def test_every_choice_changes_what_is_drawn(page: Page, served: Served, explored: ExploredStudy) -> None:
    show(page, served.url)
    before = page.evaluate("explorer.painted.legend.kind")
    assert before == "scales"
    columns = len(explored.open(0).index.columns)
    for choice in (
        "confusion",
        "label",
        "predicted",
        "set",
        "shift",
        "cluster",
        *(f"column:{k}" for k in range(columns)),
    ):
        page.evaluate(f"explorer.change({{ colour: {json.dumps(choice)} }})")
        assert page.evaluate("document.getElementById('legend').innerText") != ""
    for score in range(len(explored.open(0).index.scores)):
        name = explored.open(0).index.scores[score].name
        page.evaluate(f"explorer.change({{ colour: 'confidence', score: {json.dumps(name)} }})")
        assert page.evaluate("explorer.scoreName") == name
    num_points = page.evaluate("explorer.points.length")
    page.evaluate("explorer.toggleBlocks([1])")
    page.wait_for(f"explorer.points.length > {num_points}")
    assert "without stored features" in page.evaluate("document.getElementById('map-note').textContent")
    page.evaluate("explorer.change({ classes: [0], blocks: null })")
    page.wait_for("explorer.points.every((p) => explorer.trial.labels[p] === 0)")
    check_quiet(page, served.url)


def test_another_trial_stands_beside_it_on_the_same_map(page: Page, served: Served) -> None:
    show(page, f"{served.url}#t=0&u=1")
    page.wait_for("explorer.stage.panes.length === 2")
    assert page.evaluate("document.querySelectorAll('.pane-title')[1].textContent.includes('strong')")
    assert page.evaluate("explorer.other.match.every((p) => p >= 0)")
    page.evaluate("explorer.choose(explorer.list[0])")
    page.wait_for("document.querySelector('#case .other')")
    check_quiet(page, served.url)


def test_where_both_models_looked_lies_over_the_image(page: Page, served: Served) -> None:
    show(page, f"{served.url}#t=0&u=1")
    page.evaluate("explorer.choose(explorer.list[0])")
    page.wait_for("document.getElementById('looked')")
    assert page.evaluate("document.getElementById('looked').value") == ""
    page.press("a")
    page.wait_for(
        "[...document.querySelectorAll('.looked-at')].filter((each) => each.naturalWidth === 32).length === 2"
    )
    assert page.evaluate("document.getElementById('looked').value") == "grad_cam"
    boxes = page.evaluate(
        "[...document.querySelectorAll('.lens img')].map((each) => each.getBoundingClientRect())"
        ".map((each) => [each.left, each.top, each.width, each.height])"
    )
    assert boxes[0] == boxes[1]
    page.evaluate("explorer.changeLooked({ looked: 'integrated_gradients', lookedFor: 'label' })")
    page.wait_for("document.querySelectorAll('.looked-at').length === 2")
    words = page.evaluate("document.querySelector('#case figcaption').textContent")
    assert words == "this trial, for class " + page.evaluate(
        "explorer.className(explorer.trial, explorer.trial.labels[explorer.state.point])"
    )
    link = page.evaluate("location.href")
    check_quiet(page, served.url)
    show(page, link)
    page.wait_for("document.querySelectorAll('.looked-at').length === 2")
    page.evaluate("explorer.fadeLooked(20)")
    assert page.evaluate("document.querySelector('.looked-at').style.opacity") == "0.2"
    page.press("a")
    page.wait_for(
        "document.querySelectorAll('.looked-at').length === 0 && document.getElementById('looked').value === ''"
    )
    check_quiet(page, served.url)
    show(page, f"{served.url}#t=0&p={page.evaluate('explorer.state.point')}&a=grad_cam")
    page.wait_for("document.querySelectorAll('.looked-at').length === 1")
    assert page.evaluate("document.querySelector('#case figcaption').textContent").startswith("for class ")


def test_a_note_and_a_wrong_label_are_saved_in_the_ledger(page: Page, served: Served, explored: ExploredStudy) -> None:
    show(page, f"{served.url}#t=0&p=3")
    page.wait_for("document.getElementById('note')")
    page.evaluate(WRITE_NOTE)
    page.wait_for("document.getElementById('note-said').textContent.includes('saved')")
    page.evaluate("document.getElementById('label-wrong').click()")
    page.wait_for("explorer.notes[0].label_is_wrong")
    (saved,) = read_annotations(explored.ledger.root)
    assert (saved.image, saved.note, saved.label_is_wrong) == (explored.open(0).ids[3], "blurred", True)
    page.press("4")
    page.wait_for("document.querySelector('.note-row:not([disabled])')")
    page.evaluate("explorer.saveNote({ trial: 0, point: 3, note: '', label_is_wrong: false })")
    assert read_annotations(explored.ledger.root) == []
    check_quiet(page, served.url)


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (1024, 768), (390, 844)])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_runs_over_the_edge_and_every_text_can_be_read(
    page: Page, served: Served, width: int, height: int, dark: bool
) -> None:
    show(page, f"{served.url}#t=0&p=2&tab=selection", width=width, height=height, dark=dark)
    page.wait_for("document.querySelector('#case .distribution')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert page.evaluate("explorer.stage.panes[0].scatter.height") > 200
    if width == 390:
        assert not page.evaluate("document.getElementById('trial').checkVisibility()")
        page.evaluate("document.getElementById('menu').click()")
        assert page.evaluate("document.getElementById('trial').checkVisibility()")
        page.evaluate("document.getElementById('menu').click()")
    contrasts = page.evaluate(CONTRASTS)
    assert [each for each in contrasts if each["contrast"] < 4.5] == []
    check_quiet(page, served.url)
    photograph(page, f"explorer-{width}x{height}-{'dark' if dark else 'light'}")
    if width == 1400:
        page.evaluate("explorer.change({ other: 1, looked: 'grad_cam' })")
        page.wait_for("document.querySelectorAll('.looked-at').length === 2")
        photograph(page, f"explorer-two-trials-{'dark' if dark else 'light'}")


#: Contrast of every visible text with the background behind it (WCAG 2.2).
CONTRASTS = """
(() => {
  const read = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (v) => (v <= 10.3 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, noscript, option, .version")) continue;
    let behind = element, colour;
    for (; behind; behind = behind.parentElement) {
      colour = read(getComputedStyle(behind).backgroundColor);
      if (colour.length && colour[3] !== 0) break;
    }
    const [a, b] = [light(read(getComputedStyle(element).color)), light(colour)].sort((x, y) => y - x);
    found.push({ text: walker.currentNode.data.trim().slice(0, 40), contrast: (a + .05) / (b + .05) });
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def exported(explored: ExploredStudy, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A file with a note, and with shifted images of three cases: of four shifts each."""
    point = explored.open(0).index.sets[0].first_point + 2
    explored.annotate(0, point, note="a <b>hair</b>", label_is_wrong=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "MAX_SHIFTED", 12)
        written = export_page(explored, 0, tmp_path_factory.mktemp("exported") / "explorer.html")
    explored.annotate(0, point, note="", label_is_wrong=False)
    return written


def test_an_exported_file_works_from_a_disk_and_asks_nobody(
    page: Page, explored: ExploredStudy, exported: Exported
) -> None:
    assert exported.num_bytes < 5_000_000
    url = exported.path.as_uri()
    show(page, url)
    stored = read_stored(explored)
    assert page.evaluate("explorer.stage.points.length") == len(stored["shown"])
    assert page.evaluate(COUNT_WRONG) == stored["wrong"][stored["shown"]].sum()
    page.press("ArrowRight")
    page.wait_for("document.querySelector('#case .distribution')")
    page.wait_for("document.querySelector('#case figure img').naturalWidth > 0")
    lasso_all(page)
    page.wait_for("document.querySelectorAll('.gallery .tile').length > 0")
    page.press("3")
    page.wait_for("document.querySelector('.clusters, #list .empty, #list .problem')")
    check_quiet(page, url)


def test_an_exported_file_has_shifted_images_of_the_worst_failures_and_all_notes(
    page: Page, explored: ExploredStudy, exported: Exported
) -> None:
    test, stored = explored.open(0).index.sets[0], read_stored(explored)
    said = "Shifted images are there of 3 of the most confident failures."
    assert said in str(exported.left_out)
    url = exported.path.as_uri()
    show(page, url)
    assert said in page.evaluate("document.getElementById('controls').textContent")
    points = np.arange(test.first_point, test.first_point + test.count)
    wrong = points[stored["wrong"][points]]
    worst = wrong[np.lexsort((wrong, -stored["score"][wrong]))][:3]
    shifted = sorted(int(k * test.count + point) for point in worst for k in range(1, 5))
    assert sorted(map(int, page.evaluate("Object.keys(explorer.source.content.shifted)"))) == shifted
    page.evaluate(f"explorer.choose({shifted[-1]})")
    page.wait_for("[...document.querySelectorAll('#case figure img')].filter((each) => each.naturalWidth).length === 2")
    first, second = page.evaluate("[...document.querySelectorAll('#case figure img')].map((each) => each.src)")
    assert first != second
    page.evaluate(f"explorer.choose({worst[0]})")
    nearest = describe_case(explored.open(0), int(worst[0]))["neighbours"]
    assert len(nearest) == 8
    page.wait_for("document.querySelectorAll('.neighbours img').length === 8")
    image = explored.open(0).find(int(worst[0])).image
    told = page.evaluate(f"explorer.source.content.neighbours[{image}].map((each) => each.distance)")
    assert told == pytest.approx([each["distance"] for each in nearest], rel=1e-6)
    page.press("a")
    page.wait_for("document.querySelector('.looked-at')?.naturalWidth === 32")
    looked = set(map(int, page.evaluate("Object.keys(explorer.source.content.looked)")))
    assert {explored.open(0).find(int(point)).image for point in wrong} <= looked
    right = next(int(point) for point in points if explored.open(0).find(int(point)).image not in looked)
    page.evaluate(f"explorer.choose({right})")
    page.wait_for("document.querySelector('.looked-said')?.textContent.includes('Not in this file')")
    page.press("a")
    page.evaluate(f"explorer.choose({right + test.count})")
    page.wait_for("document.querySelector('#case figcaption').textContent.includes('not in this file')")
    page.press("4")
    page.wait_for("document.querySelector('.note-row:not([disabled])')")
    page.evaluate("document.querySelector('.note-row').click()")
    page.wait_for("document.querySelector('.read-note')")
    assert page.evaluate("document.querySelector('.read-note').textContent") == "label wrong a <b>hair</b>"
    check_quiet(page, url)


def test_in_a_frame_without_an_origin_the_page_works_and_hands_out_texts_to_copy(
    page: Page, exported: Exported, tmp_path: Path
) -> None:
    """MLflow's artifact viewer: ``sandbox="allow-scripts"`` and a blob. No storage, no address, no downloads."""
    viewer = tmp_path / "viewer.html"
    text = json.dumps(exported.path.read_text(encoding="utf-8")).replace("</", "<\\/")  # or it would end the script
    viewer.write_text(VIEWER.replace("TEXT", text), encoding="utf-8")
    page.watch_frames()
    page.open(viewer, width=1400, height=900)
    with page.inside_frame():
        page.wait_for(READY)
        page.evaluate("explorer.step(1)")
        page.wait_for("document.querySelector('#case figure img').naturalWidth > 0")
        page.evaluate("explorer.toggleTheme()")
        page.evaluate(
            "explorer.change({ picked: Uint32Array.from(explorer.points), origin: 'lasso', tab: 'selection' })"
        )
        page.wait_for("document.getElementById('export-csv')")
        page.evaluate("document.getElementById('export-csv').click()")
        page.wait_for("document.querySelector('#keys textarea')?.value.startsWith('set,id,shift')")
        page.evaluate("document.querySelector('#keys button').click()")
        assert not page.evaluate("document.getElementById('keys').open")
        page.evaluate("document.getElementById('link').click()")
        assert "no address" in page.evaluate("document.getElementById('status').textContent")
    check_quiet(page, "file://")


#: As MLflow shows an artifact.
VIEWER = """\
<!doctype html><meta charset="utf-8"><iframe sandbox="allow-scripts" width="1300" height="800"></iframe>
<script>
const page = new Blob([TEXT], { type: "text/html" });
document.querySelector("iframe").src = URL.createObjectURL(page);
</script>
"""


def test_an_exported_file_keeps_all_failures_and_says_what_it_leaves_out(
    explored: ExploredStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"no_shifted": "The images have moved.", "no_looked": "The weights are gone."}
    monkeypatch.setattr(explored, "draw_cases", lambda number, **wanted: refused)
    monkeypatch.setattr(export, "MAX_IMAGES", 20)
    monkeypatch.setattr(export, "MAX_POINTS", 100)
    parts, left_out = export._choose(explored.open(0))
    assert "all that are ever wrong" in str(left_out)
    assert "unshifted images alone" in str(left_out)
    stored = read_stored(explored)
    kept = set(np.concatenate([part.points for part in parts]).tolist())
    assert set(stored["shown"][stored["wrong"][stored["shown"]]].tolist()) <= kept
    assert len(kept) < len(stored["shown"])
    monkeypatch.setattr(export, "MAX_POINTS", 1_000)
    written = export_page(explored, 0, tmp_path / "small.html")
    for words in ("all that are ever wrong", *refused.values()):
        assert words in str(written.left_out)
    assert str(written.left_out) in written.path.read_text()
