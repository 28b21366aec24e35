"""The page as a browser shows it: what overlaps, what runs over, what is read, and what is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.report import page as page_module
from orchestrator.report.style import CHANCE_LINE, DIVERGING, HEADLINE, NEUTRAL, PALETTE, SEQUENTIAL
from tests.analysis.test_verdicts import claim, version
from tests.report.test_write import render
from tests.study.test_hypotheses import make
from tests.support.chromium import Page, browser_path, open_browser
from tests.support.synthetic_ledger import Fate, make_fake_ledger

WIDTHS = {390: 844, 768: 1024, 1024: 768, 1400: 900}
FACTORS = {
    "pretraining": ("scratch", "imagenet", "contrastive_on_unlabelled_radiographs"),
    "augmentation": ("none", "strong"),
    "regulariser": ("none", "spectral_decoupling"),
}
CLAIMS = (
    {"claim": "Strong augmentation raises the mean shifted balanced accuracy by more than one point."},
    {
        "name": "contrastive_pretraining_on_unlabelled_radiographs_helps",
        "treatment": {"pretraining": "contrastive_on_unlabelled_radiographs"},
        "control": {"pretraining": "scratch"},
        "claim": "A contrastive pretraining on unlabelled radiographs of the same hospital helps more than one point.",
    },
    {
        "name": "spectral",
        "treatment": {"regulariser": "spectral_decoupling"},
        "control": {"regulariser": "none"},
        "smallest_effect": 0.05,
        "claim": "Spectral decoupling helps by five points.",
    },
)

#: Draws every figure and opens every view, then returns texts (corners of each visible line), and the page's widths.
MEASURE = """
(async () => {
  await loaded;
  for (const each of document.querySelectorAll("[id$=-view]")) each.hidden = false;
  for (const each of document.querySelectorAll("details")) each.open = true;
  for (const plot of plots) draw(plot);
  await new Promise((done) => setTimeout(done, 300));
  const texts = [];
  // What is scrolled or cut out of sight is not seen.
  const shown = (element, box) => {
    for (let each = element.parentElement; each; each = each.parentElement) {
      if (getComputedStyle(each).overflowX === "visible") continue;
      const frame = each.getBoundingClientRect();
      if (box.right <= frame.left || box.left >= frame.right) return false;
      if (box.bottom <= frame.top || box.top >= frame.bottom) return false;
    }
    return true;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("svg, script, noscript, title") || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.width < 1 || !shown(parent, box)) continue;
      texts.push({ text: node.data.trim().slice(0, 60), inside: !!parent.closest(".scroll, .bar"),
        corners: [[box.left, box.top], [box.right, box.top], [box.right, box.bottom], [box.left, box.bottom]] });
    }
  }
  for (const text of document.querySelectorAll("svg text")) {
    if (!text.textContent.trim() || !text.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    const matrix = text.getScreenCTM(), box = text.getBBox();
    if (box.width < 1 || !shown(text, text.getBoundingClientRect())) continue;
    const at = (x, y) => { const point = new DOMPoint(x, y).matrixTransform(matrix); return [point.x, point.y]; };
    texts.push({ text: text.textContent.slice(0, 60), inside: !!text.closest(".scroll"),
      figure: text.closest(".plot")?.dataset.figure,
      corners: [[0, 0], [1, 0], [1, 1], [0, 1]].map(([x, y]) => at(box.x + x * box.width, box.y + y * box.height)) });
  }
  const frames = [...document.querySelectorAll(".plot")].map((plot) => {
    const box = plot.getBoundingClientRect();
    return { figure: plot.dataset.figure, left: box.left, right: box.right, top: box.top, bottom: box.bottom };
  });
  return { texts, frames, page: document.documentElement.scrollWidth, window: innerWidth };
})()
"""


def find_overlaps(texts: list[dict[str, Any]], slack_px: float = 3.0) -> list[tuple[str, str]]:
    """Return pairs of texts whose boxes, which may be turned, share more than ``slack_px`` in every direction."""
    if not texts:
        return []
    corners = np.array([each["corners"] for each in texts], dtype=float)  # texts × 4 × 2
    low, high = corners.min(axis=1), corners.max(axis=1)
    found = []
    for first in range(len(texts)):
        near = (low[first + 1 :] + slack_px < high[first]).all(1) & (high[first + 1 :] - slack_px > low[first]).all(1)
        for second in np.flatnonzero(near) + first + 1:
            if _depth(corners[first], corners[second]) > slack_px:
                found.append((texts[first]["text"], texts[second]["text"]))
    return found


def _depth(one: Any, other: Any) -> float:
    """Return by how much two rectangles overlap along the axis where they overlap least, px."""
    sides = np.concatenate([np.diff(each[:3], axis=0) for each in (one, other)])
    depth = np.inf
    for side in sides:
        length = float(np.hypot(*side))
        if length:
            a, b = one @ side / length, other @ side / length
            depth = min(depth, float(min(a.max(), b.max()) - max(a.min(), b.min())))
    return float(depth)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if browser_path is None:
        pytest.skip("needs a Chrome or Chromium")
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with verdicts, long names, arms left out, and trials that failed."""
    folder = tmp_path_factory.mktemp("study")
    ledger = make_fake_ledger(folder, factors=FACTORS, replicates=6, fate=Fate(failed=1))
    claim(ledger, version(*(make(**each) for each in CLAIMS)))
    return Path(render(ledger, folder)[0].html)


def test_turned_boxes_overlap_only_where_they_do() -> None:
    def box(x: float, y: float, text: str) -> dict[str, Any]:
        return {"text": text, "corners": [(x, y), (x + 20, y), (x + 20, y + 10), (x, y + 10)]}

    diamond = {"text": "turned", "corners": [(100, 0), (140, 40), (130, 50), (90, 10)]}
    assert find_overlaps([box(0, 0, "a"), box(10, 4, "b"), box(0, 8, "c")]) == [("a", "b"), ("b", "c")]
    assert find_overlaps([diamond, box(125, 0, "in its corner")]) == []
    assert find_overlaps([diamond, box(105, 20, "on it")]) == [("turned", "on it")]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_covers_another_and_nothing_runs_over(browser: Page, report: Path, width: int) -> None:
    found = browser.open(report, width=width, height=WIDTHS[width]).evaluate(MEASURE)
    assert len(found["texts"]) > 500
    assert found["page"] <= width
    cut = [
        (each["figure"], each["text"])
        for each in found["texts"]
        for frame in found["frames"]
        if each.get("figure") == frame["figure"]
        and not (
            frame["left"] - 2 <= min(x for x, _ in each["corners"])
            and max(x for x, _ in each["corners"]) <= frame["right"] + 2
            and frame["top"] - 2 <= min(y for _, y in each["corners"])
            and max(y for _, y in each["corners"]) <= frame["bottom"] + 2
        )
    ]
    assert cut == []
    over = [
        each["text"] for each in found["texts"] if not each["inside"] and max(x for x, _ in each["corners"]) > width + 1
    ]
    assert over == []
    assert find_overlaps(found["texts"]) == []


def test_no_text_covers_another_on_paper(browser: Page, report: Path) -> None:
    """As wide as A4 without margins; two pictures that are shown in turn on a screen are below each other."""
    browser.open(report, width=718, height=1015)
    try:
        browser.call("Emulation.setEmulatedMedia", media="print")
        browser.evaluate("loaded.then(() => dispatchEvent(new Event('beforeprint')))")
        found = browser.evaluate(MEASURE)
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    assert sum(each["text"].startswith("Metric: ") for each in found["texts"]) == 4
    assert find_overlaps(found["texts"]) == []
    assert not {"verdicts in full", "SVG"} & {each["text"] for each in found["texts"]}


def test_the_page_loads_nothing_and_complains_of_nothing(browser: Page, report: Path) -> None:
    browser.open(report, width=1400, height=900).evaluate(MEASURE)
    asked = [event["request"]["url"] for event in browser.events.get("Network.requestWillBeSent", [])]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert browser.events.get("Runtime.exceptionThrown", []) == []
    assert browser.events.get("Log.entryAdded", []) == []


def test_figures_are_drawn_again_when_the_window_gets_narrow(browser: Page, report: Path) -> None:
    browser.open(report, width=1400, height=900).evaluate(MEASURE)
    count = "new Set(Object.entries(document.querySelector('[data-figure=figure-transfer]').layout)"
    count += ".filter(([name]) => /^xaxis/.test(name)).map(([, axis]) => axis.domain[0])).size"
    assert browser.evaluate(count) == 3
    browser.resize(390, 844)
    wait = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"
    browser.evaluate(wait)
    assert browser.evaluate(count) == 1


# ------------------------------------------------------------------ contrast


def luminance(colour: str) -> float:
    """Return the relative luminance of #rgb or #rrggbb (WCAG 2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


#: Colour of text → what it stands on, as page.css uses them.
TEXTS = {
    "ink": ("paper", "panel", "good-bg", "warn-bg", "bad-bg", "accent-bg"),
    "soft": ("paper", "panel"),
    "faint": ("paper", "panel"),
    "accent": ("paper", "panel"),
    "good": ("paper",),
    "warn": ("paper", "warn-bg"),
    "bad": ("paper",),
    "paper": ("ink", "accent"),
}


@pytest.mark.parametrize("scheme", ["light", "dark", "paper"])
def test_every_text_stands_out(scheme: str) -> None:
    css = (Path(page_module.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark, paper = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", block)) for block in re.findall(r":root[^{]*{([^}]*)}", css)
    )
    colours = light | {"light": {}, "dark": dark, "paper": paper}[scheme]
    weak = {
        (text, ground): round(contrast(colours[text], colours[ground]), 2)
        for text, grounds in TEXTS.items()
        for ground in grounds
        if contrast(colours[text], colours[ground]) < 4.5
    }
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert weak == {}


@pytest.mark.parametrize("paper", ["#ffffff", "#12171c"], ids=["light", "dark"])
def test_marks_of_all_arms_stand_out_on_both_papers(paper: str) -> None:
    weak = [each for each in (NEUTRAL, HEADLINE, CHANCE_LINE["color"], *PALETTE[:4]) if contrast(each, paper) < 3]
    assert weak == []


def test_numbers_in_cells_stand_out_on_every_colour_of_the_scales(browser: Page, report: Path) -> None:
    script = "loaded.then(() => [0, 1].flatMap((k) => [...Array(101)].map((_, i) => {"
    script += "const rgb = colourAt(SCALES[k], i / 100); return [inkOn(rgb), rgb.map(Math.round)]; })))"
    scales = json.dumps([SEQUENTIAL, DIVERGING])
    found = browser.open(report, width=1400, height=900).evaluate(script.replace("SCALES", scales))
    assert len(found) == 202
    assert all(contrast(ink, f"#{red:02x}{green:02x}{blue:02x}") >= 4.5 for ink, (red, green, blue) in found)
