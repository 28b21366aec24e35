"""The figures and tables that were added to the page: each on numbers whose answer is known."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from orchestrator.analysis.costs import arm_costs_table, costs_table
from orchestrator.analysis.differences import compute_differences
from orchestrator.analysis.results import load_results
from orchestrator.analysis.transfer import find_front, fit_line, probit
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.interactions import interactions_section
from orchestrator.report.sections.spread import spread_section
from orchestrator.report.sections.trade_off import front_labels
from orchestrator.report.style import subsample_dots
from tests.report.test_write import figures_of, render, without_scripts
from tests.support.synthetic_ledger import Fate, make_fake_ledger


def edit_results(ledger: Ledger, edit: Any) -> None:
    """Apply ``edit(trial, result)`` to every result, in plan order."""
    for trial in ledger.read_plan()["trials"]:
        folder = ledger.folder("trial", trial["signature"])
        result = folder.read_json("result.json")
        edit(trial, result)
        folder.write_json("result.json", result)


# ------------------------------------------------------------------ accuracy on the line


def test_line_in_probit_coordinates_is_found_again() -> None:
    clean = np.linspace(0.7, 0.98, 12)
    line = fit_line(clean, stats.norm.cdf(0.8 * probit(clean) - 0.3))
    assert line is not None
    assert (line.slope, line.intercept, line.r_squared, line.n) == pytest.approx((0.8, -0.3, 1.0, 12))
    assert line.predict(np.array([0.9])) == pytest.approx(stats.norm.cdf(0.8 * stats.norm.ppf(0.9) - 0.3))


def test_r_squared_is_the_squared_correlation_of_the_probits() -> None:
    random = np.random.default_rng(0)
    clean, shifted = random.uniform(0.6, 0.95, 40), random.uniform(0.3, 0.9, 40)
    line = fit_line(clean, shifted)
    expected = stats.linregress(stats.norm.ppf(clean), stats.norm.ppf(shifted))
    assert line is not None
    assert (line.slope, line.r_squared) == pytest.approx((expected.slope, expected.rvalue**2))


@pytest.mark.parametrize("clean", [[0.9] * 8, [0.8, 0.81, 0.82]])
def test_no_line_through_one_place_or_three_trials(clean: list[float]) -> None:
    assert fit_line(np.array(clean), np.linspace(0.5, 0.6, len(clean))) is None


def test_transfer_says_slope_and_effective_robustness_adds_up_to_nothing(tmp_path: Path) -> None:
    _, page = render(make_fake_ledger(tmp_path), tmp_path)
    titles = [note["text"] for note in figures_of(page)["figure-transfer"]["layout"]["annotations"]]
    assert all("R² = " in title and "n = 24" in title for title in titles)
    assert "Effective robustness" in page


def test_scores_of_one_do_not_break_the_probit_axes(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    edit_results(ledger, lambda trial, result: result["metrics"].update({"id/balanced_accuracy": 1.0}))
    _, page = render(ledger, tmp_path)
    dots = [trace for trace in figures_of(page)["figure-transfer"]["data"] if trace["mode"] == "markers"]
    largest = max(x for trace in dots for x in trace["x"])
    assert largest == pytest.approx(stats.norm.ppf(1 - 0.5 / 360), abs=1e-5)
    assert "No line is fitted" in page


# ------------------------------------------------------------------ Pareto front


def test_front_holds_what_nothing_beats() -> None:
    x = [0.9, 0.8, 0.7, 0.85, 0.9, np.nan]
    y = [0.1, 0.5, 0.6, 0.2, 0.05, 0.9]
    assert find_front(x, y).tolist() == [0, 3, 1, 2]


def test_front_by_comparing_every_pair() -> None:
    points = np.random.default_rng(1).integers(0, 12, size=(60, 2)) / 10
    beaten = [any((q >= p).all() and (q > p).any() for q in points) for p in points]
    assert sorted(find_front(*points.T)) == [i for i, is_beaten in enumerate(beaten) if not is_beaten]


def test_front_figure_has_arms_with_deviation_and_their_seeds(tmp_path: Path) -> None:
    _, page = render(make_fake_ledger(tmp_path, replicates=3), tmp_path)
    data = figures_of(page)["figure-front"]["data"]
    arms = [trace for trace in data if "error_y" in trace]
    seeds = [trace for trace in data if trace.get("meta") == {"panel": "seed"}]
    assert sum(len(trace["x"]) for trace in arms) == 12
    assert sum(len(trace["x"]) for trace in seeds) == 36
    assert all(sd > 0 for trace in arms for sd in trace["error_y"]["array"])


# ------------------------------------------------------------------ differences


def test_differences_are_paired_by_replicate_and_corrected_over_the_map(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, factors={"augmentation": ("none", "strong", "same")}, replicates=6)

    def plant(trial: dict[str, Any], result: dict[str, Any]) -> None:
        for row in result["evaluations"]:
            noise = 0.001 * ((trial["replicate"] * 7 + row["severity"]) % 3)
            gain = 0.2 if trial["arm"]["augmentation"] == "strong" and row["shift"] == "jpeg" else 0.0
            row["metrics"]["balanced_accuracy"] = 0.5 + 0.05 * trial["replicate"] + gain + noise * (gain > 0)

    edit_results(ledger, plant)
    found = compute_differences(load_results(ledger))
    assert found is not None
    assert found.reference == "augmentation=none"
    assert found.mean.loc["augmentation=strong", "jpeg"] == pytest.approx(0.201, abs=0.002)
    assert found.p_corrected.loc["augmentation=strong", "jpeg"] == 2 / 2**6
    assert found.num_tested == 1  # everywhere else all pairs are equal: there is no spread to judge by
    _, page = render(ledger, tmp_path)
    cells = figures_of(page)["figure-differences"]["data"][0]["text"]
    assert sum(cell.endswith("*") for row in cells for cell in row) == 1
    assert "1 of 1 tested cells is marked *" in page
    assert "n = 6 pairs per cell" in page


def test_equal_differences_are_not_tested_whatever_their_rounding_errors(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, factors={"augmentation": ("none", "strong", "same")}, replicates=8)

    def plant(trial: dict[str, Any], result: dict[str, Any]) -> None:
        for row in result["evaluations"]:
            gain = {"none": 0.0, "strong": 0.05, "same": 1e-17 * trial["replicate"]}[trial["arm"]["augmentation"]]
            row["metrics"]["balanced_accuracy"] = 0.1 * trial["replicate"] + gain  # .85 − .80, .15 − .1, …

    edit_results(ledger, plant)
    found = compute_differences(load_results(ledger))
    assert found is not None
    assert found.num_tested == 0
    assert found.p_corrected.isna().all(axis=None)


def test_maps_without_any_difference_have_a_star_in_one_of_twenty_at_most(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, factors={"f": tuple("abcde")}, replicates=8)
    results = load_results(ledger)
    rows = results.shifts[results.shifts["set"] == "test"]
    random = np.random.default_rng(3)
    arm, replicate, shift = (pd.factorize(rows[name])[0] for name in ("name", "replicate", "shift"))
    found = 0
    for _ in range(100):
        # Accuracies on 100 images; the cells of a trained model are correlated, as are the arms of a replicate.
        chance = 0.7 + 0.03 * random.normal(size=(5, 8))[arm, replicate] + 0.05 * random.normal(size=8)[replicate]
        chance += 0.02 * random.normal(size=(5, 8, 15))[arm, replicate, shift]
        values = random.binomial(100, np.clip(chance, 0, 1)) / 100
        shifts = results.shifts.assign(balanced_accuracy=pd.Series(values, index=rows.index))
        differences = compute_differences(replace(results, shifts=shifts))
        assert differences is not None
        assert differences.num_tested > 0.9 * 4 * 15  # a cell with too many differences of exactly 0 is not tested
        found += bool((differences.p_corrected <= 0.05).any(axis=None))
    assert found / 100 <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5  # 4.7 % of 1,500 such maps


@pytest.mark.parametrize("replicates", [2, 5])
def test_few_replicates_are_not_tested_and_the_page_says_so(tmp_path: Path, replicates: int) -> None:
    _, page = render(make_fake_ledger(tmp_path, replicates=replicates, factors={"f": ("a", "b")}), tmp_path)
    assert "Not tested: it takes 6 pairs of replicates" in page
    (figure,) = [figure for name, figure in figures_of(page).items() if name == "figure-differences"]
    assert "*" not in str(figure["data"][0]["text"])
    assert "p (of the map)" not in figure["data"][0]["hovertemplate"]


# ------------------------------------------------------------------ interactions


def test_interaction_points_are_means_over_everything_else(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path)
    _, page = render(ledger, tmp_path)
    figure = figures_of(page)["figure-interactions"]
    panels = {trace["meta"]["panel"] for trace in figure["data"]}
    assert len(panels) == 2 * 3  # three pairs; seeds and means
    trials = load_results(ledger).trials
    wanted = (trials["arm/pretraining"] == "imagenet") & (trials["arm/augmentation"] == "strong")
    expected = trials.loc[wanted, "robustness/mean_balanced_accuracy"].mean()
    (line,) = [
        trace
        for trace in figure["data"]
        if trace["meta"]["panel"] == "pretraining × augmentation: means" and trace["name"] == "strong"
    ]
    place = [level for level, _ in line["customdata"]].index("imagenet")
    assert line["y"][place] == pytest.approx(expected, abs=1e-6)
    assert line["customdata"][place][1] == 4


def test_one_factor_has_no_interaction(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, factors={"f": ("a", "b")}))
    assert interactions_section(results, []) is None


# ------------------------------------------------------------------ cost


def test_cost_of_a_stage_is_shared_by_the_trials_that_start_from_it(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, factors={"f": ("a", "b")}, replicates=2))
    trials = results.plan["trials"]
    for trial in trials[:3]:
        trial["needs"] = ["s" * 16]
    stage = next(iter(results.records.values()))
    results.stages.append(type(stage)("s" * 16, "stage", {}, [], {"duration_seconds": 90.0}, None))
    costs = costs_table(results).set_index("signature")
    assert costs.loc[[trial["signature"] for trial in trials], "stage_seconds"].tolist() == [30.0, 30.0, 30.0, 0.0]
    arms = arm_costs_table(results, costs.reset_index())
    assert arms["n"].tolist() == [2, 2]
    total = costs["trial_seconds"].sum() + 90.0
    assert arms["hours"].sum() == pytest.approx(total / 3600)
    assert arms["peak_rss_mib"].tolist() == [812.0, 812.0]


def test_cost_is_a_table_beside_the_page_and_says_what_it_counts(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, fate=Fate(failed=1))
    _, page = render(ledger, tmp_path)
    costs = pd.read_csv(Path(ledger.root.uri) / "report" / "costs.csv", keep_default_na=False)
    assert len(costs) == 12
    assert costs["n"].sum() == 23
    assert "23 complete trials" in page


def test_what_was_lost_is_counted_beside_what_was_finished(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, fate=Fate(failed=1, interrupted=1), factors={"f": ("a", "b")}, replicates=3)
    records = load_results(ledger).records
    complete = next(record for record in records.values() if record.result is not None)
    at_ms = complete.epochs[0]["timestamp_ms"]
    note = {"timestamp_ms": at_ms + 1000, "seconds": 3600.0}
    ledger.folder("trial", complete.signature).append_line("attempts.jsonl", json.dumps(note))
    ledger.root.write_json("usage.json", {"wall_seconds": 9e3, "slot_seconds": 14_400.0, "gpu_seconds": 0.0})
    results = load_results(ledger)
    costs = costs_table(results)
    lost = {record.signature: sum(e["metrics"]["seconds"] for e in record.epochs) for record in records.values()}
    lost |= {record.signature: 0.0 for record in records.values() if record.result is not None}
    lost[complete.signature] = 3600.0 - 3.2  # it went on from the first epoch
    assert costs.set_index("signature")["lost_seconds"].to_dict() == pytest.approx(lost)
    arms = arm_costs_table(results, costs)
    assert arms["n"].sum() == 4
    assert arms["lost_hours"].sum() == pytest.approx(sum(lost.values()) / 3600)
    assert (arms["finished_hours"] + arms["lost_hours"]).tolist() == pytest.approx(arms["hours"].tolist())
    _, page = render(ledger, tmp_path)
    assert "1.0 h without a result" in page
    assert f"Budgets count 4.0 h, all the time that slots had work: {4 - arms['hours'].sum():.1f} h more" in page


# ------------------------------------------------------------------ labels


def test_points_on_the_front_that_lie_together_share_a_label() -> None:
    x, y = np.array([0.9, 0.899, 0.7]), np.array([0.1, 0.1, 0.4])
    labels = front_labels(x, y, (0.4, 0.4))
    assert [(each["text"], each["x"]) for each in labels] == [("<b>A, B</b>", 0.9), ("<b>C</b>", 0.7)]
    assert [each["text"] for each in front_labels(x, y, (0.01, 0.01))] == ["<b>A</b>", "<b>B</b>", "<b>C</b>"]


# ------------------------------------------------------------------ views


def test_every_view_has_a_button_on_a_screen_and_a_heading_on_paper(tmp_path: Path) -> None:
    _, page = render(make_fake_ledger(tmp_path, replicates=1), tmp_path)
    chosen = re.findall(r'<button data-view="figure-severity-\d-view" aria-pressed="\w+">(\w+)</button>', page)
    assert {"augmentation", "pretraining", "arm"} <= set(chosen)
    assert re.findall(r'<p class="which">One curve per (\w+)</p>', page) == chosen
    on_paper = page.partition("@media print {")[2]
    assert ".which { display: block;" in on_paper


# ------------------------------------------------------------------ what is left out, thinning


def test_what_is_left_out_is_one_table_with_reasons(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, fate=Fate(failed=2, interrupted=1, missing=1))
    _, page = render(ledger, tmp_path)
    page = without_scripts(page)
    for text in (
        "arm, skipped by the plan",
        "failed trial",
        "interrupted trial",
        "missing trial",
        "image, set aside",
        "scan_0412.png (row 413)",
        "not run yet: run the study again",
        "4 trials not complete, one by one.",
    ):
        assert text in page, text


def test_a_whole_study_says_that_nothing_is_left_out(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    plan = ledger.read_plan()
    plan["data"]["quarantined"] = []
    ledger.root.write_json("plan.json", plan)
    _, page = render(ledger, tmp_path)
    assert "Nothing: every planned trial is complete" in page


def test_dots_are_thinned_evenly_over_arms_and_counted() -> None:
    arms = pd.Series(["a", "b", "a", "b", "a"] * 200)
    drawn, said = subsample_dots(arms, most=100)
    assert len(drawn) == 100
    assert (arms[drawn] == "a").sum() == 60
    assert drawn[:2].tolist() == [0, 1]
    assert "One dot in 10 is drawn (100 of 1,000)" in said
    assert subsample_dots(arms[:5], most=5)[1] == ""


# ------------------------------------------------------------------ spread


def test_planted_spread_is_found_in_its_source_and_replicates_follow_from_its_size(tmp_path: Path) -> None:
    factors = {"a": ("x", "y"), "b": ("u", "v")}
    ledger = make_fake_ledger(tmp_path, factors=factors, replicates=4)
    random = np.random.default_rng(4)

    def plant(trial: dict[str, Any], result: dict[str, Any]) -> None:
        value = 0.5 + 0.1 * (trial["arm"]["a"] == "y") + float(random.normal(scale=0.005))
        result["metrics"]["robustness/mean_balanced_accuracy"] = value

    edit_results(ledger, plant)
    section = spread_section(load_results(ledger))
    assert section is not None
    text = section.body
    assert text.index("<td>a</td>") < text.index("<td>b</td>")  # largest share first
    share = float(re.search(r"<td>a</td>.*?data-value=\"[^\"]*\">1</td><td[^>]*>([\d.]+)</td>", text).group(1))  # type: ignore[union-attr]
    assert share > 95
    assert "What is left: arm × seed".lower() in text.lower()
    assert "3 arms against the first, 9 degrees of freedom" in text


def test_one_replicate_has_no_spread(tmp_path: Path) -> None:
    assert spread_section(load_results(make_fake_ledger(tmp_path, replicates=1))) is None
