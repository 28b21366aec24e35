import itertools
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from orchestrator.analysis.effects import compute_effects
from orchestrator.analysis.results import load_results
from orchestrator.analysis.stain_grid import MARGIN, compute_grid, is_stain_cell, summarise_copies
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.heat_maps import stain_heat_maps
from orchestrator.report.page import read_figures
from orchestrator.report.write import write_report
from tests.support.synthetic_ledger import Fate, make_fake_ledger

FACTORS = {"augmentation": ("none", "strong")}
MULTIPLIERS = (0.5, 1.0, 2.0)


def score(haematoxylin: float, eosin: float, *, is_strong: bool) -> float:
    """Made up: 0.9 where nothing is changed, less the further away, and much less without augmentation."""
    distance = abs(haematoxylin - 1.0) + 0.5 * abs(eosin - 1.0)
    return 0.9 - distance * (0.02 if is_strong else 0.2)


def make_stained_ledger(folder: Path, *, keep_others: bool = True) -> Ledger:
    """Return a fake ledger whose trials were tested on 3 × 3 cells, too (in an order that is not theirs)."""
    ledger = make_fake_ledger(folder, factors=FACTORS)
    for trial in ledger.read_plan()["trials"]:
        trial_folder = ledger.folder("trial", trial["signature"])
        result = trial_folder.read_json("result.json")
        evaluations = [row for row in result["evaluations"] if keep_others or row["severity"] == 0]
        for row in evaluations:
            if row["set"] == "test" and row["severity"] == 0:
                row["metrics"] |= {"balanced_accuracy": 0.9}
        for haematoxylin, eosin in itertools.product(reversed(MULTIPLIERS), MULTIPLIERS):
            value = score(haematoxylin, eosin, is_strong=trial["arm"]["augmentation"] == "strong")
            about = {"set": "test", "shift": f"stain_h{haematoxylin:g}_e{eosin:g}", "severity": 1, "num_images": 360}
            metrics = {"accuracy": value, "balanced_accuracy": value, "auroc": value, "ece": 0.1}
            evaluations.append(about | {"strength": [haematoxylin, eosin], "metrics": metrics})
        trial_folder.write_json("result.json", result | {"evaluations": evaluations})
    return ledger


@pytest.fixture
def grid(tmp_path: Path) -> Any:
    results = load_results(make_stained_ledger(tmp_path))
    return results, compute_grid(results)


@pytest.mark.parametrize(
    ("name", "expected"), [("stain_h0.5_e2", True), ("stain_h1_e1", True), ("stain_deposit", False), ("jpeg", False)]
)
def test_cells_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_stain_cell(name) is expected


def test_every_cell_is_the_mean_of_its_arm(grid: Any) -> None:
    _, found = grid
    strong, none = found.cells.index
    assert [strong, none] == ["augmentation=strong", "augmentation=none"]  # best mean first
    for name in (strong, none):
        for haematoxylin, eosin in itertools.product(MULTIPLIERS, repeat=2):
            expected = score(haematoxylin, eosin, is_strong=name == strong)
            assert found.cells.loc[name, (haematoxylin, eosin)] == pytest.approx(expected)
    assert found.num_trials == 4


def test_summary_is_mean_smallest_and_share_below_the_floor(grid: Any) -> None:
    _, found = grid
    assert found.floor == pytest.approx(0.9 - MARGIN)
    other, cells = summarise_copies(found, "augmentation=none")
    values = [score(h, e, is_strong=False) for h, e in itertools.product(MULTIPLIERS, repeat=2)]
    assert cells.mean == pytest.approx(sum(values) / 9)
    assert cells.smallest == pytest.approx(min(values))
    assert cells.where == "H × 2, E × 2"
    assert cells.share_below == pytest.approx(sum(value < found.floor for value in values) / 9)
    assert 0 < cells.share_below < 1
    assert other is not None
    assert other.smallest == pytest.approx(found.scores.loc["augmentation=none"].min())
    assert summarise_copies(found, "augmentation=strong")[1].share_below == 0


def test_heat_maps_put_haematoxylin_up_and_eosin_right(grid: Any) -> None:
    results, found = grid
    figure = stain_heat_maps(results, found)
    go.Figure({"data": figure.data, "layout": figure.layout})  # raises on an attribute that Plotly does not know
    assert len(figure.data) == 2
    panel = figure.data[1]  # the worse arm
    assert panel["z"][2][0] == pytest.approx(score(2.0, 0.5, is_strong=False))
    assert panel["z"][0][2] == pytest.approx(score(0.5, 2.0, is_strong=False))
    assert figure.layout["yaxis2"]["ticktext"] == ["0.5", "1", "2"]
    assert [(shape["x0"], shape["y0"]) for shape in figure.layout["shapes"]] == [(0.5, 0.5)] * 2  # the cell (1, 1)
    assert len({(each["zmin"], each["zmax"]) for each in figure.data}) == 1  # one scale


@pytest.mark.parametrize("keep_others", [True, False])
def test_report_shows_cells_in_their_own_figure_only(tmp_path: Path, keep_others: bool) -> None:
    ledger = make_stained_ledger(tmp_path, keep_others=keep_others)
    report = write_report(ledger, cache_dir=tmp_path / "cache", examples=False)
    page = Path(report.html).read_text(encoding="utf-8")
    figures = read_figures(page)
    assert "figure-stains" in figures
    assert ("figure-heat" in figures) is keep_others
    if keep_others:
        names = figures["figure-heat"]["data"][0]["x"]
        assert "jpeg" in names
        assert not any(name.startswith("stain") for name in names)
    assert "below 80 %" in page


def test_signed_rank_test_counts_the_grid_as_one_type_of_shift(grid: Any) -> None:
    results, found = grid
    (effect,) = compute_effects(results, "robustness/mean_balanced_accuracy")
    assert effect.num_shifts == found.scores.columns.get_level_values("shift").nunique() + 1


def test_study_without_stain_cells_has_no_grid(tmp_path: Path) -> None:
    assert compute_grid(load_results(make_fake_ledger(tmp_path, factors=FACTORS))) is None
    (tmp_path / "empty").mkdir()
    nothing = make_fake_ledger(tmp_path / "empty", factors=FACTORS, fate=Fate(missing=4))
    assert compute_grid(load_results(nothing)) is None
