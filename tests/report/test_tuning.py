"""The report of a tuned study, from planted results: who was chosen, and that all else is about these."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from orchestrator.analysis.costs import costs_table
from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.analysis.tables.arms import arms_table
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.tuning import tuning_section
from orchestrator.report.write import write_report
from tests.support.synthetic_ledger import make_fake_ledger

RATES = ("0.0001", "0.001", "0.01", "0.1")
#: Arm → the candidate that is best in each replicate.
BEST = {"none": (1, 2, 1), "strong": (3, 3, 2)}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two arms × three replicates × four candidates, all complete."""
    ledger = make_fake_ledger(tmp_path, factors={"augmentation": ("none", "strong"), "rate": RATES}, replicates=3)
    plan = ledger.read_plan()
    for trial in plan["trials"]:
        number = RATES.index(trial["arm"].pop("rate"))
        arm = trial["arm"]["augmentation"]
        trial |= {
            "name": f"augmentation={arm}",
            "candidate": number,
            "tuned": {"training.learning_rate": RATES[number]},
        }
        folder = ledger.folder("trial", trial["signature"])
        result = folder.read_json("result.json")
        score = 0.9 if BEST[arm][trial["replicate"]] == number else 0.5 + number / 100
        result["metrics"] |= {"validation/balanced_accuracy": score, "validation/nll": 1 - score}
        folder.write_json("result.json", result)
    del plan["factors"]["rate"]
    space = {"training.learning_rate": {"low": 1e-4, "high": 0.1, "log": True}}
    plan["tuning"] = {"metric": "validation/balanced_accuracy", "candidates": 4, "space": space}
    plan["tuning"] |= {"all": "tuning-matched: each arm was given 4 candidates", "hypotheses": {}}
    ledger.root.write_json("plan.json", plan)
    return ledger


def chosen_of(ledger: Ledger) -> dict[tuple[str, int], int]:
    trials = load_results(ledger).trials
    return {(row["arm/augmentation"], row["replicate"]): row["candidate"] for row in trials.to_dict("records")}


def test_all_tables_are_about_the_chosen_and_costs_about_all(ledger: Ledger) -> None:
    results = load_results(ledger)
    assert chosen_of(ledger) == {
        (arm, number): best for arm, bests in BEST.items() for number, best in enumerate(bests)
    }
    assert set(results.shifts["signature"]) == set(results.trials["signature"]) == set(results.records)
    assert [trial["signature"] for trial in results.plan["trials"]] == results.trials["signature"].tolist()
    arms = arms_table(results)
    assert arms["planned"].tolist() == arms["complete"].tolist() == [3, 3]
    measured = results.trials.groupby("name")["id/balanced_accuracy"].mean()
    assert arms.set_index("name")["id/balanced_accuracy.mean"].to_dict() == pytest.approx(measured.to_dict())
    assert len(results.trained.trials) == len(costs_table(results)) == results.counts["planned"] == 24
    assert results.trained.trials["chosen"].sum() == 6


def test_a_candidate_that_failed_leaves_its_replicate_without_a_choice(ledger: Ledger) -> None:
    before = load_results(ledger)
    dead = before.trials["signature"].iloc[0]
    folder = ledger.folder("trial", dead)
    folder.remove("result.json")
    failure = {"reason": "diverged", "message": "nan", "traceback": "", "attempts": 1, "timestamp_ms": 0}
    folder.write_json("failure.json", failure)
    results = load_results(ledger)
    row = results.trials.iloc[0]
    assert (row["state"], row["signature"]) == ("failed", dead)
    assert row["reason"] == f"no choice: 3 of 4 candidates complete; candidate {row['candidate']}: diverged: nan"
    assert len(results.complete) == 5
    assert results.counts["failed"] == 1
    assert results_sha256(results) != results_sha256(before)
    section = tuning_section(results)
    assert section is not None
    assert "1 of 6 arms × replicates without a choice, because not all candidates are complete" in section.body
    report = write_report(ledger, cache_dir=Path("nowhere"), examples=False)
    page = ledger.root.read("report/index.html").decode()
    assert "replicate without a choice" in page
    assert "23 complete" in report.summary


def test_the_section_says_what_was_chosen_and_warns_of_an_end(ledger: Ledger) -> None:
    section = tuning_section(load_results(ledger))
    assert section is not None
    assert "Tuning-matched: each arm was given 4 candidates." in section.body
    assert '0.001 <span class="sd">× 2</span><br>0.01 <span class="sd">× 1</span>' in section.body
    warning = "strong: the highest of its values of training.learning_rate in 2 of 3 replicates"
    assert section.body.count("of its values of") == section.body.count(warning) == 1
    assert "A dot per candidate (n = 24 trials)" in section.body


def test_the_page_and_its_tables(ledger: Ledger) -> None:
    write_report(ledger, cache_dir=Path("nowhere"), examples=False)
    page = ledger.root.read("report/index.html").decode()
    assert "What did tuning choose?" in page
    assert "2 arms, 24 trials planned, 4 candidates per replicate." in page
    trials = pd.read_csv(
        ledger.root.uri.removeprefix("file://") + "/report/trials.csv", dtype={"tuned/training.learning_rate": str}
    )
    assert list(trials)[:6] == ["signature", "name", "arm/augmentation", "replicate", "candidate", "chosen"]
    assert trials["tuned/training.learning_rate"].tolist() == list(RATES) * 6
    assert trials["chosen"].sum() == 6


def test_without_tuning_there_is_no_section(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path))
    assert tuning_section(results) is None
    assert results.trained is results
    assert not [column for column in results.trials if str(column).startswith(("tuned/", "candidate", "chosen"))]
