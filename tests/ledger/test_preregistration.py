"""What was claimed when: versions, their status, and a record that survives damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.terminal.announce import announce
from orchestrator.ledger.derived import compute_state
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.preregistration import (
    DELETED,
    EMPTY_REGISTRATION,
    EXPLORATORY,
    FILE,
    PREREGISTERED,
    list_preregistered,
    read_versions,
    trace_hypotheses,
    update_registration,
)
from orchestrator.planning.plan import Plan
from orchestrator.study.hypotheses import Hypothesis
from orchestrator.study.study_file import parse_study
from tests.study.test_hypotheses import make
from tests.support.synthetic_ledger import make_result


def register(ledger: Ledger, *hypotheses: Hypothesis, complete: int = 0) -> None:
    """Do what ``run`` does before it starts anything."""
    registration = update_registration(ledger.root, hypotheses, lambda: complete)
    registration.write(ledger.root)
    ledger.write_plan(Plan((), ()), {"hypotheses": registration.as_json()})


def statuses(ledger: Ledger) -> dict[str, str]:
    return {each.name: each.status for each in trace_hypotheses(ledger.root.read_json(FILE)["versions"])}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path), "s")


def never() -> int:
    raise AssertionError("nothing has changed, so nothing had to be counted")


def test_a_version_is_added_when_something_changed(ledger: Ledger) -> None:
    assert update_registration(ledger.root, [], never) == EMPTY_REGISTRATION
    register(ledger, make())
    before = ledger.root.read(FILE)
    assert update_registration(ledger.root, [make()], never).is_written
    register(ledger, make(), make(name="i"), complete=3)
    versions = ledger.root.read_json(FILE)["versions"]
    assert [version["num_complete"] for version in versions] == [0, 3]
    assert len({version["sha256"] for version in versions}) == 2
    register(ledger, make(name="i"), make(), complete=9)  # another order
    assert ledger.root.read_json(FILE)["versions"] == versions
    assert ledger.root.read(FILE) != before


def test_before_a_trial_is_complete_everything_may_change(ledger: Ledger) -> None:
    register(ledger, make(), make(name="gone"))
    register(ledger, make(smallest_effect=0.5), make(name="new"))
    assert statuses(ledger) == {"h": PREREGISTERED, "new": PREREGISTERED}


def test_what_changes_later_is_exploratory_and_both_versions_are_kept(ledger: Ledger) -> None:
    register(ledger, make(), make(name="kept"), make(name="gone"))
    register(ledger, make(smallest_effect=0.5), make(name="kept"), make(name="new"), complete=4)
    assert statuses(ledger) == {"h": EXPLORATORY, "kept": PREREGISTERED, "new": EXPLORATORY, "gone": DELETED}
    changed, _, added, deleted = trace_hypotheses(ledger.root.read_json(FILE)["versions"])
    assert changed.changes == ["smallest_effect: 0.01 → 0.5"]
    assert "changed on" in changed.remark
    assert "when 4 trials were complete" in changed.remark
    assert (added.changes, added.before) == ([], None)
    assert "added on" in added.remark
    assert "deleted on" in deleted.remark


def test_what_is_changed_back_is_what_was_promised(ledger: Ledger) -> None:
    register(ledger, make())
    register(ledger, make(direction="lower"), complete=4)
    assert statuses(ledger) == {"h": EXPLORATORY}
    register(ledger, make(), complete=5)
    assert statuses(ledger) == {"h": PREREGISTERED}


def test_one_of_several_drafts_is_no_promise(ledger: Ledger) -> None:
    """Only the last version before the first complete trial counts."""
    register(ledger, make(direction="lower"))
    register(ledger, make())
    register(ledger, make(direction="lower"), complete=4)
    (traced,) = trace_hypotheses(ledger.root.read_json(FILE)["versions"])
    assert traced.status == EXPLORATORY
    assert traced.changes == ["direction: higher → lower"]


def test_a_late_hypothesis_may_be_deleted_but_not_silently(ledger: Ledger) -> None:
    register(ledger, make(), complete=1)
    register(ledger, complete=2)
    assert statuses(ledger) == {"h": DELETED}
    assert list_preregistered(ledger.root.read_json(FILE)["versions"]) == []


def test_an_emptied_ledger_makes_no_promise_of_what_comes_after(ledger: Ledger) -> None:
    register(ledger, make())
    register(ledger, make(direction="lower"), complete=4)
    register(ledger, make(direction="two-sided"), complete=0)
    assert statuses(ledger) == {"h": EXPLORATORY}


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "emptied": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xff" * 100),
    "changed by hand": lambda path: path.write_text(path.read_text().replace("higher", "lower")),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_record_is_taken_from_the_plan(ledger: Ledger, how: str) -> None:
    register(ledger, make())
    register(ledger, make(), make(name="late"), complete=2)
    path = Path(ledger.root.uri, FILE)
    before = path.read_bytes()
    DAMAGES[how](path)
    registration = update_registration(ledger.root, [make(), make(name="late")], never)
    assert registration.damage is not None
    assert FILE in registration.damage
    assert "taken from plan.json" in registration.damage
    registration.write(ledger.root)
    assert path.read_bytes() == before


def test_a_damaged_plan_is_no_loss(ledger: Ledger) -> None:
    register(ledger, make())
    Path(ledger.root.uri, "plan.json").write_bytes(b"{")
    assert update_registration(ledger.root, [make()], never).damage is None


def test_with_both_damaged_nothing_counts_as_promised(ledger: Ledger) -> None:
    register(ledger, make())
    for name in (FILE, "plan.json"):
        Path(ledger.root.uri, name).write_bytes(b"{")
    registration = update_registration(ledger.root, [make()], lambda: 2)
    assert "what was registered before is lost" in str(registration.damage)
    assert [version["after_damage"] for version in registration.versions] == [True]
    registration.write(ledger.root)
    assert statuses(ledger) == {"h": EXPLORATORY}


def test_a_damaged_record_without_hypotheses_is_put_right(ledger: Ledger) -> None:
    ledger.root.write(FILE, b"{")
    update_registration(ledger.root, [], never).write(ledger.root)
    assert update_registration(ledger.root, [], never) == EMPTY_REGISTRATION


def test_a_plan_of_an_older_version_has_no_hypotheses() -> None:
    assert read_versions({"study": "s"}) == []


# ------------------------------------------------------------------ in a study

TEXT = """\
study: s
data: {kind: digits, image_size: 8}
model: {name: shufflenet_v2_x0_5}
factors: {augmentation: [none, strong]}
replicates: 6
hypotheses:
- {name: h, claim: It helps., treatment: {augmentation: strong}, control: {augmentation: none}, direction: higher,
   smallest_effect: 0.01}
"""


def look(folder: Path, cache_dir: Path, *overrides: str) -> Prepared:
    study = parse_study(TEXT, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    return prepare(study, storage=str(folder))


def said_by(prepared: Prepared) -> str:
    console = Console(file=StringIO(), width=200)
    announce(prepared, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_plan_says_what_is_claimed_and_since_when(tmp_path: Path, cache_dir: Path) -> None:
    prepared = look(tmp_path, cache_dir)
    assert "claims   1 hypothesis: 1 preregistered\n" in said_by(prepared)
    assert not prepared.ledger.root.exists(FILE)  # a plan writes nothing
    prepared.registration.write(prepared.ledger.root)
    work = prepared.plan.trials[0]
    prepared.ledger.begin(work, study="s", git_commit=None)
    prepared.ledger.folder("trial", work.signature).write_json("result.json", make_result(work, ()))
    assert look(tmp_path, cache_dir).registration.is_written
    other = look(tmp_path, cache_dir, "hypotheses.0.smallest_effect=0.2")
    assert [trial.signature for trial in other.plan.trials] == [trial.signature for trial in prepared.plan.trials]
    seen = [compute_state(each.about | each.plan.as_json(), other.states) for each in (prepared, other)]
    assert seen[0] != seen[1]  # the report is written anew
    changed = look(tmp_path, cache_dir, "hypotheses.0.smallest_effect=0.2", "replicates=6")
    assert changed.registration.versions[-1]["num_complete"] == 1
    assert changed.about["hypotheses"] == changed.registration.as_json()
    said = said_by(changed)
    assert "claims   1 hypothesis: 0 preregistered, 1 exploratory\n" in said
    assert "exploratory h: changed on " in said
    assert "when 1 trial was complete; smallest_effect: 0.01 → 0.2\n" in said
    assert "p        h: 6 replicates, smallest attainable p 0.0312 after correction for the family\n" in said
    gone = look(tmp_path, cache_dir, "hypotheses=[]")
    assert "deleted h: deleted on " in said_by(gone)
    damaged = replace(prepared, registration=replace(prepared.registration, damage="[hypotheses.json] is damaged"))
    assert "damaged [hypotheses.json] is damaged" in said_by(damaged)
