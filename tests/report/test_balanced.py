import csv
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.results import Results, balanced_errors_table, load_results
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.balanced import balanced_section
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
