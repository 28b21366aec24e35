from __future__ import annotations

from pathlib import Path

from orchestrator.ledger.added_metrics import has_added, merge_metrics, read_added, sign_request, write_added
from tests.support.ledger_records import finished, make_ledger
from trainables.storage.folder import Folder


def test_a_request_has_a_signature_of_its_own() -> None:
    first = sign_request("t1", {"scores": ["a", "b"]})
    assert len(first) == 16
    assert first == sign_request("t1", {"scores": ["a", "b"]})
    assert len({first, sign_request("t2", {"scores": ["a", "b"]}), sign_request("t1", {"scores": ["a"]})}) == 3


def test_a_record_has_the_added_metrics_and_what_was_there_before_stays(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    folder, before = ledger.folder("trial", "t1"), ledger.read("trial", "t1")
    assert before.added == ()
    assert before.result is not None
    name, value = next(iter(before.result["metrics"].items()))
    assert not has_added(folder, "aa")
    write_added(folder, "aa", {"metrics": {"failure/msr/augrc": 0.1, name: -1.0}, "undefined": {}})
    write_added(folder, "bb", {"metrics": {"failure/msr/augrc": 0.2, "failure/knn/augrc": 0.3}, "undefined": {}})
    assert has_added(folder, "aa")
    after = ledger.read("trial", "t1")
    assert after.result is not None
    assert after.result["metrics"] == before.result["metrics"] | {"failure/msr/augrc": 0.1, "failure/knn/augrc": 0.3}
    assert after.result["metrics"][name] == value
    assert [each["signature"] for each in after.added] == ["aa", "bb"]
    assert ledger.states()["t1"] == "complete"


def test_damaged_answers_are_as_if_there_were_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    write_added(folder, "aa", {"metrics": {"x": 1.0}})
    path = tmp_path / "added" / "aa.json"
    path.write_text(path.read_text().replace("1.0", "2.0"))
    assert not has_added(folder, "aa")
    assert read_added(folder) == ()
    assert merge_metrics({"metrics": {"y": 1.0}}, read_added(folder)) == {"metrics": {"y": 1.0}}
