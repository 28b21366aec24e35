"""MLflow's pages as a user sees them: a real server, a real Chromium. The format of a view is internal to MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.server import UiServer, serve_ui
from orchestrator.tracking.shipper import sync
from tests.support.browser import Browser, has_browser, open_browser
from tests.support.synthetic_ledger import make_fake_ledger
from trainables.storage.folder import Folder

pytestmark = [
    pytest.mark.skipif(not has_browser, reason="needs a Chromium and its chromedriver"),
    pytest.mark.timeout(300),
]
FACTORS = {"pretraining": ("scratch", "contrastive"), "augmentation": ("none", "strong")}
_CHARTS = "[...document.querySelectorAll('.js-plotly-plot')].filter(e => e.querySelector('.main-svg'))"


def add_system_metrics(folder: Folder) -> None:
    """Give the epochs of a trial what its process has used."""
    lines = folder.read_lines("epochs.jsonl")
    for line in lines:
        line["metrics"] |= {"system/cpu_utilization_percentage": 97.0, "system/rss_mib": 540.0 + line["epoch"]}
    folder.write("epochs.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UiServer]:
    folder = tmp_path_factory.mktemp("views")
    ledger = make_fake_ledger(folder, replicates=5, factors=FACTORS, study="views", externals=())
    for trial in (ledger.root / "trials").children():
        add_system_metrics(ledger.folder("trial", trial))
    uri = f"sqlite:///{folder}/mlflow.db"
    sync(ledger, uri)
    with serve_ui(uri, "views") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile"), width=1900, height=2400) as browser:
        yield browser


def test_by_arm_opens_on_bars_and_severity_curves_with_bands(server: UiServer, browser: Browser) -> None:
    browser.open(server.links.by_arm)
    browser.wait_for(f"{_CHARTS}.length >= 6")
    text = browser.text()
    assert "Which training choices hold up on images from another scanner?" in text
    assert "4 matching runs" in text.replace("\n", " ")
    assert "RobustSweep: by arm" in text
    for words in ("contrastive · strong", "What holds up? balanced accuracy", "Severity curves, worst shift first"):
        assert words in text
    titles = ("robustness/mean_balanced_accuracy", "robustness/worst_shift_balanced_accuracy")
    assert all(title in text for title in titles)
    assert ".band" in text
    browser.wait_for(f"{_CHARTS}.some(e => e.querySelectorAll('.scatterlayer path.js-fill').length >= 4)")  # bands


def test_trials_opens_on_a_table_with_factors_and_headline_numbers_first(server: UiServer, browser: Browser) -> None:
    assert server.links.trials is not None
    browser.open(server.links.trials)
    browser.wait_for("document.querySelectorAll('.ag-center-cols-container .ag-row').length >= 20")
    columns = browser.run(  # from left to right: the order of the elements is that in which they were made
        "return [...document.querySelectorAll('.ag-header-cell')].sort((a, b) => "
        "a.getBoundingClientRect().left - b.getBoundingClientRect().left).map(e => e.getAttribute('col-id'))"
    )
    first = [name for name in columns if name is not None and name.startswith(("params", "metrics"))]
    assert first[:5] == [
        "params.`pretraining`", "params.`augmentation`", "params.`replicate`", "metrics.`id/balanced_accuracy`",
        "metrics.`robustness/mean_balanced_accuracy`",
    ]  # fmt: skip
    assert "contrastive · strong · r0" in browser.text()


def test_parallel_coordinates_over_the_factors_and_two_headline_numbers_work_as_they_are(
    server: UiServer, browser: Browser
) -> None:
    assert server.links.trials is not None
    browser.open(server.links.trials.replace("TABLE", "CHART"))
    browser.wait_for("document.querySelectorAll('.parcoords svg .dimension').length === 4")
    drawn = browser.run("return document.querySelector('.parcoords').parentElement.innerText + document.body.innerText")
    assert "Parallel Coordinates" in drawn
    assert "Showing all runs" in drawn


def test_system_metrics_of_a_trial_are_charts_on_the_page_for_them(server: UiServer, browser: Browser) -> None:
    client = MlflowClient(server.url)
    (experiment,) = client.search_experiments(filter_string="name = 'views'")
    (run, *_) = client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'trial'")
    assert any(name.startswith("system/") for name in run.data.metrics)
    browser.open(f"{server.url}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}/system-metrics")
    browser.wait_for(f"{_CHARTS}.some(e => e.querySelectorAll('.scatterlayer .point').length >= 12)")
    assert {"cpu_utilization_percentage", "rss_mib"} <= set(browser.text().split("\n"))
