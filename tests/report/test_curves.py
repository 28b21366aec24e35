"""Severity curves: order of the panels, intervals and thin lines, labels where there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from orchestrator.analysis.results import load_results
from orchestrator.analysis.severity_scores import order_by_drop
from orchestrator.report.curves import find_free_labels, severity_curves
from orchestrator.report.style import Figure
from tests.support.synthetic_ledger import SHIFTS, make_fake_ledger


def draw(folder: Path, replicates: int) -> tuple[Figure, pd.DataFrame]:
    results = load_results(make_fake_ledger(folder, replicates=replicates))
    levels = results.levels("augmentation")
    groups = dict(zip(results.trials["signature"], results.trials["arm/augmentation"], strict=True))
    figure = severity_curves(results, groups, "level", shown=levels, first_colour=3)
    assert figure is not None
    return figure, results.shifts.assign(group=results.shifts["signature"].map(groups))


def find_traces(figure: Figure, axis: str, **wanted: Any) -> list[dict[str, Any]]:
    return [t for t in figure.data if t["yaxis"] == axis and all(t.get(key) == each for key, each in wanted.items())]


def test_panels_come_in_the_order_of_their_drop(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path))
    rows = results.shifts[(results.shifts["set"] == "test") & (results.shifts["severity"] > 0)]
    means = rows.groupby("shift")["balanced_accuracy"].mean()
    order = order_by_drop(results)
    assert sorted(order) == sorted(SHIFTS)
    assert list(means[order]) == sorted(means)


def test_band_is_the_t_interval_of_replicate_means(tmp_path: Path) -> None:
    figure, rows = draw(tmp_path, replicates=6)
    (line,) = find_traces(figure, "y2", name="strong")
    rows = rows[(rows["group"] == "strong") & (rows["shift"] == line["meta"]["panel"]) & (rows["severity"] == 4)]
    means = rows.groupby("replicate")["balanced_accuracy"].mean()
    low, high = scipy.stats.t.interval(0.95, 5, means.mean(), scipy.stats.sem(means))
    place = line["x"].index(4)
    assert line["y"][place] == pytest.approx(means.mean(), abs=1e-6)
    assert line["customdata"][place] == [36, pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6)]
    band = find_traces(figure, "y2", fill="toself")[1]
    assert band["y"][place] == pytest.approx(high, abs=1e-6)
    assert "band: its 95 % t interval over replicates" in figure.note
    assert "thin lines" not in figure.note


def test_few_replicates_are_lines_of_their_own(tmp_path: Path) -> None:
    figure, rows = draw(tmp_path, replicates=3)
    assert not [trace for trace in figure.data if trace.get("fill")]
    thin = [trace for trace in find_traces(figure, "y2") if trace.get("opacity") == 0.35]
    (line,) = find_traces(figure, "y2", name="none")
    rows = rows[(rows["group"] == "none") & (rows["shift"] == line["meta"]["panel"]) & (rows["severity"] == 5)]
    ends = [thin[0]["y"][at - 1] for at, y in enumerate(thin[0]["y"]) if y is None]
    assert ends == pytest.approx(list(rows.groupby("replicate")["balanced_accuracy"].mean()), abs=1e-6)
    assert "thin lines: its replicates (an interval takes 5" in figure.note


def test_every_panel_has_chance_and_the_figure_axis_titles(tmp_path: Path) -> None:
    figure, _ = draw(tmp_path, replicates=1)
    chance = [trace for trace in figure.data if trace["name"] == "chance, 50 %"]
    assert len(chance) == len(SHIFTS)
    assert all(
        trace["y"] == [0.5, 0.5] and figure.layout[f"yaxis{trace['yaxis'][1:]}"]["range"][0] < 0.5 for trace in chance
    )
    titles = [axis["title"]["text"] for name, axis in figure.layout.items() if "axis" in name and "title" in axis]
    assert set(titles) == {"severity", "balanced accuracy"}
    assert "Chance is 50.0 %." in figure.note.replace("\u00a0", " ")


def test_a_label_stands_only_where_no_line_runs_and_no_other_ends() -> None:
    def line(*values: float) -> "pd.Series[float]":
        return pd.Series(np.asarray(values), index=range(len(values)))

    falling, flat = line(0.9, 0.85, 0.8, 0.75, 0.7, 0.65), line(0.9, 0.9, 0.9, 0.9, 0.9, 0.9)
    assert find_free_labels({"a": flat, "b": falling}, (0.5, 1.0)) == {"a", "b"}
    assert find_free_labels({"a": flat, "b": flat - 0.01}, (0.5, 1.0)) == set()
    assert find_free_labels({"a": flat}, (0.5, 1.0)) == set()  # the legend says it
    rising = line(0.7, 0.72, 0.74, 0.76, 0.78, 0.8)
    assert find_free_labels({"long name": rising, "b": flat}, (0.5, 1.0)) == {"b"}  # its own line is in its way
    assert "a name of many letters indeed" not in find_free_labels(
        {"a name of many letters indeed": flat, "b": falling}, (0.5, 1.0)
    )
