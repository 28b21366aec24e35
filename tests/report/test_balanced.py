import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator.analysis.balanced_errors import balanced_errors_table
from orchestrator.analysis.results import Results, load_results
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.balanced import balanced_section, find_separated
from tests.support.synthetic_ledger import SHIFTS, Fate, make_fake_ledger

FACTORS = {"augmentation": ("none", "strong"), "dropout": ("off", "<on>")}


def refer(ledger: Ledger, reference: dict[str, Any] | None) -> Results:
    """Return the results of a study whose file names a reference."""
    ledger.root.write_json("plan.json", ledger.read_plan() | {"reference": reference})
    return load_results(ledger)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return make_fake_ledger(tmp_path, factors=FACTORS)


def test_the_reference_arm_is_one(ledger: Ledger) -> None:
    name = "augmentation=strong, dropout=off"
    results = refer(ledger, {"arm": name})
    table = balanced_errors_table(results).set_index("name")
    assert (table.loc[name, "be"], table.loc[name, "rbe"]) == (1.0, 1.0)
    assert set(table["reference"]) == {name}
    first = balanced_errors_table(refer(ledger, None)).set_index("name")
    assert first.loc["augmentation=none, dropout=off", "be"] == 1.0
    assert first.loc[name, "be"] != 1.0


def test_errors_are_shares_of_a_given_table_s(ledger: Ledger) -> None:
    shifts = list(SHIFTS)
    table = dict.fromkeys(shifts, 0.5) | {shifts[1]: 0.0, shifts[2]: {"1": 0.2, "2": 0.4}}
    results = refer(ledger, {"table": "alexnet.csv", "clean": 0.5, "shifted": table})
    found = balanced_errors_table(results).iloc[0]
    frame = results.shifts[(results.shifts["name"] == found["name"]) & (results.shifts["set"] == "test")]
    frame = frame[(frame["severity"] > 0) & ~frame["shift"].isin(shifts[1:3])]
    assert found["be"] == pytest.approx((1.0 - frame["balanced_accuracy"]).mean() / 0.5)
    # one has no error, one lacks severities 3 to 5; none of the others is worse than unshifted
    assert (found["be_shifts"], found["be_undefined"]) == (len(shifts) - 2, 2)
    assert (found["rbe_shifts"], found["rbe_undefined"]) == (0, len(shifts))
    section = balanced_section(results, balanced_errors_table(results))
    assert section is not None
    assert "Relative to the table alexnet.csv" in section.body


def test_arms_are_ranked_and_the_reference_is_marked(ledger: Ledger) -> None:
    results = refer(ledger, {"arm": "augmentation=none, dropout=<on>"})
    errors = balanced_errors_table(results)
    section = balanced_section(results, errors)
    assert section is not None
    ranked = errors.sort_values("be")["label"].str.replace("<", "&lt;").str.replace(">", "&gt;")
    places = [section.body.index(f'data-value="{label}"') for label in ranked]
    assert places == sorted(places)
    assert section.body.count(">reference</span>") == 1
    assert "&lt;on&gt;<br><span" in section.body
    assert "<on>" not in section.body
    assert f'data-value="{len(SHIFTS)}">{len(SHIFTS)}</td>' in section.body


def test_intervals_are_over_paired_replicates_from_five_on(tmp_path: Path) -> None:
    factors = {"augmentation": ("none", "strong")}
    few, many = (
        balanced_errors_table(refer(make_fake_ledger(tmp_path / str(n), factors=factors, replicates=n), None))
        for n in (4, 6)
    )
    ends = [f"{name}_{end}" for name in ("be", "rbe", "rbe_of_sums") for end in ("low", "high")]
    assert few[ends].isna().all(axis=None)
    assert few[["be", "rbe", "rbe_of_sums"]].notna().all(axis=None)
    first, other = many.iloc[0], many.iloc[1]
    assert first[ends].tolist() == pytest.approx([1.0] * 6)  # the reference is its own
    for name in ("be", "rbe", "rbe_of_sums"):
        assert other[f"{name}_low"] < other[name] < other[f"{name}_high"]
    assert [find_separated(table, "rbe") for table in (few, many)] == [None, other["name"]]


def test_the_interval_weighs_the_cells_of_a_stain_grid_as_the_mean_does(tmp_path: Path) -> None:
    """Thirteen of fourteen shifts become cells of one grid: they are half of the mean, and of its interval."""
    names = dict(zip(SHIFTS[1:], (f"stain_h{0.5 + 0.05 * number:.2f}_e1.00" for number in range(13)), strict=True))
    ledger = make_fake_ledger(tmp_path, factors={"augmentation": ("none", "strong")}, replicates=6)
    for trial in ledger.read_plan()["trials"]:
        folder = ledger.folder("trial", trial["signature"])
        result = folder.read_json("result.json")
        for row in result["evaluations"]:
            row["shift"] = names.get(row["shift"], row["shift"])
        folder.write_json("result.json", result)
    other = balanced_errors_table(refer(ledger, None)).iloc[1]
    for name in ("be", "rbe", "rbe_of_sums"):  # a t interval is symmetric about the mean
        assert (other[f"{name}_low"] + other[f"{name}_high"]) / 2 == pytest.approx(other[name])


def test_shifts_that_hardly_harm_the_reference_are_left_out_and_counted(tmp_path: Path) -> None:
    def make(replicates: int) -> Any:
        ledger = make_fake_ledger(
            tmp_path / str(replicates), factors={"augmentation": ("none", "strong")}, replicates=replicates
        )
        for trial in ledger.read_plan()["trials"]:
            folder = ledger.folder("trial", trial["signature"])
            result = folder.read_json("result.json")
            for row in result["evaluations"]:
                losses = {"identity": 0.0, "jpeg": 0.03, "pixelate": 0.01 * (trial["replicate"] - 2)}
                row["metrics"]["balanced_accuracy"] = 0.8 - losses.get(row["shift"], 0.2)
            folder.write_json("result.json", result)
        return balanced_errors_table(refer(ledger, None)).iloc[0]

    few, many = make(2), make(6)
    # 2 replicates: 360 images have a standard error of (.2 · .8 + .23 · .77)½ / 360½ = .031 for a loss of .03.
    assert (few["rbe_shifts"], few["rbe_undefined"], few["be_undefined"]) == (len(SHIFTS) - 2, 2, 0)
    # 6: jpeg's .03 has no spread; pixelate's mean is .005, its standard error .0076.
    assert (many["rbe_shifts"], many["rbe_undefined"], many["be_undefined"]) == (len(SHIFTS) - 1, 1, 0)


def test_the_lowest_is_bold_only_where_it_is_separated() -> None:
    table = pd.DataFrame(
        {"name": ["a", "b", "c"], "be": [0.8, 1.0, 0.9], "be_low": [0.7, 1.0, 0.86], "be_high": [0.85, 1.0, 0.94]}
    )
    assert find_separated(table, "be") == "a"
    assert find_separated(table.assign(be_high=[0.87, 1.0, 0.94]), "be") is None
    assert find_separated(table.assign(be_low=[0.7, None, 0.86]), "be") is None
    assert find_separated(table.iloc[:1], "be") is None


def test_without_a_complete_reference_there_is_nothing_to_say(tmp_path: Path) -> None:
    ledger = make_fake_ledger(
        tmp_path, factors={"augmentation": ("none", "strong")}, replicates=1, fate=Fate(missing=1)
    )
    results = refer(ledger, {"arm": "augmentation=strong"})
    assert balanced_section(results, balanced_errors_table(results)) is None
    both = refer(ledger, {"arm": "augmentation=none"})
    section = balanced_section(both, balanced_errors_table(both))
    assert section is not None
    assert "–" in section.body


def test_the_page_has_it(ledger: Ledger, tmp_path: Path) -> None:
    from orchestrator.report.write import write_report

    refer(ledger, {"arm": "augmentation=strong, dropout=off"})
    report = write_report(ledger, cache_dir=tmp_path / "cache", examples=False)
    assert 'id="balanced"' in Path(report.html).read_text(encoding="utf-8")
    path = next(path for path in report.csv if path.endswith("balanced_errors.csv"))
    with open(path, encoding="utf-8") as file:
        assert {row["reference"] for row in csv.DictReader(file)} == {"augmentation=strong, dropout=off"}
