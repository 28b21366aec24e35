"""Checklists: every answer has a place that exists, and what the study does not know is left to the author."""

import re
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results
from orchestrator.ledger.derived import read_verdicts
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.checklist import FACTS, Answer, Source, fill, find_places, write_checklist
from orchestrator.report.checklist_items import ALL, CHECKLISTS, CLAIM, TRIPOD_AI, Item
from orchestrator.report.write import write_report
from orchestrator.study.hypotheses import describe_hypothesis, read_hypothesis
from tests.support.synthetic_ledger import Fate, make_fake_ledger
from trainables.errors import StudyError

CONTENT = {
    "name": "aug",
    "kind": "comparison",
    "claim": "Strong | augmentation helps.",
    "treatment": {"augmentation": "strong"},
    "control": {"augmentation": "none"},
    "direction": "higher",
    "smallest_effect": 0.02,
}


def make(tmp_path: Path, *, has_claim: bool = True, fate: Fate | None = None) -> Ledger:
    ledger = make_fake_ledger(tmp_path, replicates=6, fate=fate)
    if has_claim:
        hypothesis = read_hypothesis(CONTENT)
        assert hypothesis is not None
        version = {"registered_ms": 1, "num_complete": 0, "sha256": "", "after_damage": False}
        versions = {"versions": [version | {"hypotheses": [describe_hypothesis(hypothesis)]}]}
        plan = ledger.read_plan() | {"hypotheses": versions}
        plan["differences"] = {"hypotheses": {"aug": []}, "levels": {}}
        ledger.root.write_json("plan.json", plan)
        ledger.root.write_json("hypotheses.json", versions)
    write_report(ledger, cache_dir=tmp_path / "cache", examples=False)
    return ledger


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return make(tmp_path_factory.mktemp("claimed"), fate=Fate(missing=2))


@pytest.fixture(scope="module")
def unclaimed(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return make(tmp_path_factory.mktemp("unclaimed"), has_claim=False)


def open_source(ledger: Ledger) -> Source:
    return Source(load_results(ledger), read_verdicts(ledger.root), find_places(ledger.root))


@pytest.mark.parametrize("which", ["claimed", "unclaimed"])
def test_nothing_is_guessed(which: str, request: pytest.FixtureRequest) -> None:
    """An answer has a text and an existing place; an item without one is the author's, all of it."""
    source = open_source(request.getfixturevalue(which))
    for item in (*CLAIM, *TRIPOD_AI):
        answers, author = fill(item, source)
        assert all(answer.text.strip() and answer.place in source.places for answer in answers)
        assert answers or author == ALL
        if not item.facts:
            assert (answers, author) == ([], ALL)


def test_links_of_a_checklist_lead_somewhere(claimed: Ledger) -> None:
    for name in CHECKLISTS:
        path = Path(write_checklist(claimed, name))
        links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
        assert links
        for link in links:
            file, _, anchor = link.partition("#")
            assert (path.parent / file).exists()
            if anchor:
                assert f'<section id="{anchor}">' in (path.parent / file).read_text(encoding="utf-8")


def test_answers_are_what_the_study_says(claimed: Ledger) -> None:
    source = open_source(claimed)
    found = {item.number: [answer.text for answer in fill(item, source)[0]] for item in CLAIM}
    assert found["2"] == ["aug: augmentation=strong against augmentation=none"]
    assert found["4"][0] == "12 arms, 72 trainings planned, 70 complete"
    assert found["4"][1] == "2 missing"
    assert found["5"][0] == "train 1,080 images, val 357 images, test 360 images, site-3 300 images"
    assert found["5"][1] == "all images of a patient (group) are in one set"
    assert found["9"][0].startswith("aug: preregistered, written on 1970-01-01")
    assert found["12"] == ["aug: nothing", "aug: not tuning-matched: no setting was tuned per arm"]
    assert found["15"] == ["training.select_by: balanced_accuracy"]
    assert found["13"][0].startswith("aug: ")


def test_what_the_study_does_not_know_is_left_to_the_author(unclaimed: Ledger) -> None:
    plan = unclaimed.read_plan()
    unknown = {"num_patients": None, "num_sites": {}}
    unclaimed.root.write_json("plan.json", plan | {"data": plan["data"] | unknown})
    source = open_source(unclaimed)
    found = {item.number: fill(item, source) for item in CLAIM}
    for number in ("1", "2", "3", "6", "8", "9", "10", "12", "13", "14"):
        assert found[number] == ([], ALL)
    assert found["5"][1] == "groups"
    assert found["7"][1] == "sites"  # external sets are known, the number of sites is not


def test_an_answer_without_a_place_does_not_count(unclaimed: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(unclaimed)
    monkeypatch.setitem(
        FACTS, "claims", lambda _: iter([Answer("so it seems", "index.html#verdicts"), Answer(" ", "")])
    )
    assert fill(Item("1", "claim", ("claims",)), source) == ([], ALL)


def test_tripod_ai_has_its_27_items_and_52_parts() -> None:
    numbers = [item.number for item in TRIPOD_AI]
    assert len(numbers) == len(set(numbers)) == 52
    assert sorted({int(number.rstrip("abcdefg")) for number in numbers}) == list(range(1, 28))


def test_a_table_stays_a_table_and_older_checklists_go_with_the_report(claimed: Ledger, tmp_path: Path) -> None:
    path = Path(write_checklist(claimed, "claim"))
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(rows) == len(CLAIM) + 2
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)
    write_report(claimed, cache_dir=tmp_path / "cache", examples=False)
    assert not path.exists()
    with pytest.raises(StudyError, match="expected one of claim, tripod-ai"):
        write_checklist(claimed, "consort")
