"""Files of a complete study are cut, emptied, filled with garbage, or lost: what they belong to is made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import FinishedStudy
from studies import NUM_TRIALS, copy_place, stamps

from orchestrator.ledger import Ledger
from orchestrator.report.tables import load_results, results_sha256


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
        return
    path.write_bytes({"cut": data[: len(data) * 2 // 3], "emptied": b"", "garbage": b"\x00\xff#" * 1000}[how])


@pytest.mark.parametrize(
    "how",
    ["cut", *(pytest.param(how, marks=pytest.mark.long) for how in ("emptied", "garbage", "missing"))],
)
def test_a_damaged_study_becomes_whole_again(finished_study: FinishedStudy, tmp_path: Path, how: str) -> None:
    """A different file of each trial, and the encoder of the stage."""
    place = copy_place(finished_study.place, tmp_path)
    trials = sorted((place.ledger / "trials").iterdir())
    (stage,) = (place.ledger / "stages").iterdir()
    # A trial without result.json has not finished: what else it lacks then is another case.
    names = ["predictions/test.npz" if how == "missing" else "result.json", "model.safetensors", "predictions/val.npz"]
    hit = [trial / name for trial, name in zip(trials, [*names, "epochs.jsonl"], strict=True)]
    hit.append(stage / "encoder.safetensors")
    for path in hit:
        damage(path, how)
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    for path in hit:
        assert f"damaged {path} " in done.stdout
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in done.stdout
    whole = Ledger(str(finished_study.place.storage), "tiny")
    again = Ledger(str(place.storage), "tiny")
    assert results_sha256(load_results(again)) == results_sha256(load_results(whole))
    before = stamps(place)
    assert place.call("run").returncode == 0
    assert stamps(place) == before
