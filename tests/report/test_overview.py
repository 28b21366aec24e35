"""First screen of the report: its figure shows the numbers of the table, and its lines the verdicts."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from orchestrator.report.overview import MAX_ARMS
from tests.analysis.test_data_sets import plant_two
from tests.analysis.test_verdicts import claim, version
from tests.report.test_write import figures_of, render
from tests.study.test_hypotheses import make
from tests.support.synthetic_ledger import Fate, make_fake_ledger


def find_first_screen(page: str) -> str:
    found = re.search(r'<section id="overview">.*?</section>', page, re.DOTALL)
    assert found is not None
    return found[0]


def test_figure_has_the_values_of_the_arms_table_for_every_metric(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=3)
    _, page = render(ledger, tmp_path)
    trials = pd.read_csv(Path(ledger.root.uri) / "report" / "trials.csv", keep_default_na=False)
    metrics = re.findall(r'data-view="figure-overview-\d-view"[^>]*>([^<]+)<', page)
    assert metrics == ["balanced accuracy", "accuracy", "AUROC", "ECE"]
    columns = {
        "balanced accuracy": ("id/balanced_accuracy", "robustness/mean_balanced_accuracy"),
        "accuracy": ("id/accuracy", "robustness/mean_accuracy"),
        "AUROC": ("id/auroc", "robustness/mean_auroc"),
        "ECE": ("calibration/ece", "calibration/mean_shifted_ece"),
    }
    for number, metric in enumerate(metrics):
        traces = [
            t for t in figures_of(page)[f"figure-overview-{number}"]["data"] if t.get("meta", {}).get("panel") == "arm"
        ]
        for trace, column in zip(traces, columns[metric], strict=True):
            means = trials.groupby("name")[column].mean()
            shown = dict(zip(trace["hovertext"], trace["x"], strict=True))
            assert len(shown) == 12
            for name, value in means.items():
                label = " · ".join(level.partition("=")[2] for level in str(name).split(", "))
                assert shown[label] == pytest.approx(value, abs=1e-6)
            assert trace["customdata"] == [[3]] * 12
        best_first = [x for _, x in sorted(zip(traces[1]["y"], traces[1]["x"], strict=True), reverse=True)]
        assert best_first == sorted(best_first, reverse=metric != "ECE")


def test_chance_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    _, page = render(make_fake_ledger(tmp_path, replicates=1), tmp_path)
    lines = [
        [
            trace["x"]
            for trace in figures_of(page)[f"figure-overview-{number}"]["data"]
            if "chance" in trace.get("name", "")
        ]
        for number in range(4)
    ]
    assert lines == [[[0.5, 0.5]], [], [[0.5, 0.5]], []]


def test_verdicts_and_what_was_left_out_are_said_in_brief(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=6, fate=Fate(failed=1))
    claim(
        ledger,
        version(make(claim="Strong helps", max_missing=0.2, family="a"), make(name="b", claim="It <really> helps")),
    )
    screen = find_first_screen(render(ledger, tmp_path)[1])
    assert re.search(r"<b>Supported</b> Strong helps\.<br><span>\+[\d.]+ points \(95\W+% interval", screen)
    assert "<b>Not enough data</b> It &lt;really&gt; helps." in screen
    assert screen.count("Left out: 1 arm of 6 trials: no weights file") == 1
    assert 'href="#left-out"' in screen
    assert 'href="#verdicts"' in screen


def test_without_verdicts_the_findings_stand_there(tmp_path: Path) -> None:
    screen = find_first_screen(render(make_fake_ledger(tmp_path), tmp_path)[1])
    assert "Chosen on in-distribution validation" in screen
    assert 'href="#verdicts"' not in screen
    assert "Left out:" not in screen


def test_every_data_set_has_its_own_figure_and_chance(tmp_path: Path) -> None:
    _, page = render(plant_two(tmp_path), tmp_path)
    screen = find_first_screen(page)
    assert re.findall(r'data-view="figure-overview-\d-view"[^>]*>([^<]+)<', screen) == ["blood", "grey"]
    for number, classes in ((0, 2), (1, 3)):
        traces = figures_of(page)[f"figure-overview-{number}"]["data"]
        assert [trace["x"][0] for trace in traces if "chance" in trace.get("name", "")] == [pytest.approx(1 / classes)]
    assert "blood: Chosen on in-distribution validation" in screen


def test_many_arms_are_cut_and_the_figure_says_so(tmp_path: Path) -> None:
    factors = {"a": [str(i) for i in range(6)], "b": [str(i) for i in range(5)]}
    _, page = render(make_fake_ledger(tmp_path, factors=factors, replicates=1), tmp_path)
    assert f"The {MAX_ARMS} best of 30 arms." in page
    assert len(figures_of(page)["figure-overview-0"]["layout"]["annotations"]) == MAX_ARMS
