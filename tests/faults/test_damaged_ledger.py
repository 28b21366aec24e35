"""Every kind of file of a complete study is cut, emptied, filled with garbage, or lost: the study becomes whole again.

What it belongs to is named and made again, from what is still good, with identical results; or the command says which
file is damaged and what to do.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.processes import lines
from tests.support.tiny_study import NUM_TRIALS, Place, copy_place, make_place, stamps

pytestmark = pytest.mark.timeout(600)

HOWS = ("cut", "emptied", "garbage", "missing")
#: Kinds of files of a complete study. Of the trials and the stage: what is damaged is made again, except logs.
OF_TRIALS = {
    "trials/*/config.json", "trials/*/epochs.jsonl", "trials/*/model.safetensors", "trials/*/predictions/test.npz",
    "trials/*/predictions/val.npz", "trials/*/predictions/train.npz", "trials/*/detection.json", "trials/*/result.json",
    "trials/*/representation.json", "trials/*/log.txt", "trials/*/log.jsonl",
}  # fmt: skip
OF_STAGES = {
    "stages/*/config.json", "stages/*/epochs.jsonl", "stages/*/encoder.safetensors", "stages/*/result.json",
    "stages/*/log.txt", "stages/*/log.jsonl",
}  # fmt: skip
#: Of the study: written again, or done without.
OF_STUDY = {
    "plan.json", "lease.lock", "shipped.json", "mlflow_runs.jsonl", "report/index.html", "report/trials.csv",
    "report/arms.csv", "report/shifts.csv", "report/effects.csv", "report/balanced_errors.csv", "report/source.json",
    "report/verdicts.csv", "report/failure_detection.csv", "report/costs.csv", "report/arms.md", "report/arms.tex",
    "report/effects.md", "report/effects.tex", "hypotheses.json", "usage.json",
}  # fmt: skip
#: MLflow's own, not the ledger's: ``sync`` makes them again (``test_shipping.py``).
OF_MLFLOW = {"mlflow.db", "mlartifacts/*"}


def kind_of(path: Path, root: Path) -> str:
    name = re.sub(r"^(stages|trials)/\w+", r"\1/*", str(path.relative_to(root)))
    return re.sub("^mlartifacts/.*", "mlartifacts/*", name)


def damage(path: Path, how: str, chance: random.Random) -> None:
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        cut = data[: chance.randrange(len(data))] if data else b""
        path.write_bytes({"cut": cut, "emptied": b"", "garbage": chance.randbytes(len(data))}[how])


def damage_all(paths: Sequence[Path], how: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"{how} with seed {seed}: {', '.join(map(str, paths))}")
    for path in paths:
        damage(path, how, random.Random(f"{seed} {path}"))


def digest_of(place: Place) -> str:
    return results_sha256(load_results(Ledger(str(place.storage), "tiny")))


def check_whole(finished_study: FinishedStudy, place: Place) -> str:
    """Run until nothing is left to be done; return what was said."""
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in done.stdout
    assert digest_of(place) == digest_of(finished_study.place)
    before = stamps(place)
    again = place.call("run")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "settled" in again.stdout
    assert stamps(place) == before
    return done.stdout


def test_no_kind_of_file_is_forgotten(finished_study: FinishedStudy) -> None:
    root = finished_study.place.ledger
    found = {kind_of(path, root) for path in root.rglob("*") if path.is_file()}
    assert found == OF_TRIALS | OF_STAGES | OF_STUDY | OF_MLFLOW


def some(*hows: str) -> list[object]:
    """Those that the test suite runs always; the others take long together."""
    return [how if how in hows else pytest.param(how, marks=pytest.mark.long) for how in HOWS]


@pytest.mark.long
@pytest.mark.parametrize("how", HOWS)
def test_damaged_trials_and_the_encoder(finished_study: FinishedStudy, tmp_path: Path, how: str) -> None:
    """A different file of each trial, and the encoder of the stage that two of them need."""
    place = copy_place(finished_study.place, tmp_path)
    trials = sorted((place.ledger / "trials").iterdir())
    (stage,) = (place.ledger / "stages").iterdir()
    # A trial without result.json has not finished: what else it lacks then is another case.
    names = ["predictions/test.npz" if how == "missing" else "result.json", "model.safetensors", "detection.json"]
    hit = [trial / name for trial, name in zip(trials, [*names, "epochs.jsonl"], strict=True)]
    hit.append(stage / "encoder.safetensors")
    damage_all(hit, how)
    said = check_whole(finished_study, place)
    for path in hit:
        assert f"damaged {path} " in said


@pytest.mark.long
@pytest.mark.parametrize("how", HOWS)
def test_damaged_configs_and_cached_images(finished_study: FinishedStudy, tmp_path: Path, how: str) -> None:
    """What a trial is made from: its config, the record of its stage, the decoded images."""
    place = copy_place(finished_study.place, tmp_path)
    cache = tmp_path / "cache"
    shutil.copytree(finished_study.place.study.parent / "cache", cache)
    text = place.study.read_text()
    place.study.write_text(re.sub(r"cache_dir: [^}]+", f"cache_dir: {cache}", text))
    trials = sorted((place.ledger / "trials").iterdir())
    (stage,) = (place.ledger / "stages").iterdir()
    hit = [*(trial / "config.json" for trial in trials[:2]), trials[2] / "predictions/test.npz", stage / "epochs.jsonl"]
    (images,) = cache.glob("data/*/0.npy")
    logs = [folder / name for folder in (*trials, stage) for name in ("log.txt", "log.jsonl")]
    damage_all([*hit, images, *logs], how)
    said = check_whole(finished_study, place)
    for path in hit:
        assert f"damaged {path} " in said
    (kept,) = finished_study.place.study.parent.glob("cache/data/*/0.npy")
    assert images.read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("how", some("missing"))
def test_a_damaged_study_around_good_trials(finished_study: FinishedStudy, tmp_path: Path, how: str) -> None:
    """Everything beside the trials, and a stage that no trial needs any more: nothing is trained."""
    place = copy_place(finished_study.place, tmp_path)
    (stage,) = (place.ledger / "stages").iterdir()
    before = stamps(place, [trial.name for trial in (place.ledger / "trials").iterdir()])
    hit = [stage / name for name in ("config.json", "result.json", "encoder.safetensors")]
    damage_all([*hit, *(place.ledger / name for name in sorted(OF_STUDY))], how)
    said = check_whole(finished_study, place)
    assert before.items() <= stamps(place).items()
    assert how == "missing" or re.search(rf"damaged {stage}/\S+ .*nothing that will run needs it", said)
    for name in ("trials.csv", "shifts.csv", "arms.csv", "effects.csv"):
        report = Path("report", name)
        assert (place.ledger / report).read_bytes() == (finished_study.place.ledger / report).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("name", ["index.html", "effects.csv"])
def test_a_damaged_report_is_written_again(finished_study: FinishedStudy, tmp_path: Path, name: str) -> None:
    place = copy_place(finished_study.place, tmp_path)
    assert place.call("run").returncode == 0  # ships to a store of its own
    path = place.ledger / "report" / name
    size = len(path.read_bytes())
    path.write_bytes(b"#" * size)
    check_whole(finished_study, place)
    assert path.read_bytes() != b"#" * size


@pytest.mark.long
def test_a_damaged_record_that_is_no_longer_planned(finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = copy_place(finished_study.place, tmp_path)
    orphan, *_ = sorted((place.ledger / "trials").iterdir())
    for number, how in enumerate(HOWS):
        for name in ("result.json", "config.json", "epochs.jsonl"):
            other = orphan.with_name(f"{number}{name[0] * 15}")
            shutil.copytree(orphan, other)
            damage(other / name, how, random.Random(0))
    said = check_whole(finished_study, place)
    assert "12 stages and trials in the ledger that are no longer planned" in said
    assert "nothing that will run needs it" in said
    assert place.call("report").returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("how", ["cut", "emptied", "garbage"])
def test_a_damaged_failure_is_no_failure(finished_study: FinishedStudy, tmp_path: Path, how: str) -> None:
    place = copy_place(finished_study.place, tmp_path)
    trial, *_ = sorted((place.ledger / "trials").iterdir())
    (trial / "result.json").rename(trial / "failure.json")
    (trial / "attempts.jsonl").write_text('{"message": "lost"}\n')
    damage_all([trial / "failure.json", trial / "attempts.jsonl"], how)
    assert f"damaged {trial}/failure.json is damaged" in check_whole(finished_study, place)


@pytest.mark.parametrize("how", ["cut", "emptied", "garbage"])
def test_a_damaged_lease_is_named(finished_study: FinishedStudy, tmp_path: Path, how: str) -> None:
    """Nobody can know whether somebody works on the study: a person has to say so."""
    place = copy_place(finished_study.place, tmp_path)
    lease = place.ledger / "lease.json"
    Ledger(str(place.storage), "tiny").root.write_json("lease.json", {"host": "h", "pid": 1})
    damage_all([lease], how)
    done = place.call("run")
    assert done.returncode == 2
    assert "lease.json is damaged" in done.stderr
    assert "if no driver works on it, remove that file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_failing_disk_is_found_when_asked_for(finished_study: FinishedStudy, tmp_path: Path, goes_on: bool) -> None:
    """Another content of the same size, and not even the time has changed; then the file is made again."""
    place = copy_place(finished_study.place, tmp_path)
    path = next(iter(sorted(place.ledger.glob("trials/*/predictions/test.npz"))))
    data, kept = path.read_bytes(), tmp_path / "kept"
    shutil.copy2(path, kept)
    path.write_bytes(data[:1000] + b"#" + data[1001:])
    shutil.copystat(kept, path)
    assert place.call("status").returncode == 0
    found = place.call("status", "--verify")
    assert found.returncode == 1
    assert f"damaged: {path} has another content than was written; remove that file" in found.stderr
    if goes_on:
        path.unlink()
        check_whole(finished_study, place)
        assert path.read_bytes() == data


@pytest.mark.long
@pytest.mark.parametrize("how", HOWS)
def test_a_killed_study_whose_checkpoints_are_damaged(finished_study: FinishedStudy, tmp_path: Path, how: str) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    process = place.start("run")
    for line in lines(process):
        if re.search(r"r\d \[\w{8}]: epoch 2", line):
            break
    process.kill()
    process.communicate()
    place.wait_for_silence()
    begun = [path.parent for path in place.ledger.rglob("checkpoint*.safetensors")]
    assert begun
    chance = random.Random(how)
    damage_all([chance.choice(sorted(folder.glob("*.*"))) for folder in sorted(set(begun))], how)
    check_whole(finished_study, place)
