"""A search loses nothing, whenever it ends, and asks for nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.status import compute_status
from orchestrator.planning.states import COMPLETE, FAILED
from orchestrator.planning.works import Work
from orchestrator.search.proposals import MAX_DUPLICATES, Search
from orchestrator.study.study_file import Study, compute_study_sha256
from tests.support.instant_search import FINITE, SPACE, CrashAt, CrashError, Place, measure, names, read
from tests.support.paths import ROOT
from tests.support.plans import StatedFacts
from trainables.errors import StorageError, StudyError

SAMPLERS = {
    "tpe": "{kind: tpe, num_startup: 4}",
    "random": "{kind: random}",
    "qmc": "{kind: qmc, sequence: halton}",
    "nsga_ii": "{kind: nsga_ii, population_size: 3}",
    "nsga_iii": "{kind: nsga_iii, population_size: 3}",
    "cmaes": "{kind: cmaes, population_size: 4}",
}


def read_with(sampler: str, *overrides: str) -> Study:
    return read(SPACE, f"search.sampler={SAMPLERS[sampler]}", *overrides)


# ------------------------------------------------------------------ to its end


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_runs_as_many_configurations_as_it_was_asked_for(sampler: str, tmp_path: Path) -> None:
    place = Place(tmp_path, read_with(sampler))
    assert place.search().plan.num_to_come == 10
    search = place.run()
    assert search.is_over
    assert len(search.plan.trials) == place.num_run == 10
    assert search.plan.num_to_come == 0
    again = place.run()
    assert place.num_run == 10  # a second run of a finished search starts nothing
    assert names(again) == names(search)


def test_a_model_beats_chance(tmp_path: Path) -> None:
    def best(sampler: str, seed: int) -> float:
        place = Place(tmp_path / f"{sampler}-{seed}", read_with(sampler, "search.num_trials=25", f"seed={seed}"))
        search = place.run()
        return max(search.get_outcome(proposal).values[0] for proposal in search.proposals)

    assert sum(best("tpe", seed) > best("random", seed) for seed in range(3)) >= 2


def test_replicates_are_run_and_aggregated(tmp_path: Path) -> None:
    place = Place(tmp_path, read(SPACE + "replicates: 2\n", "search.num_trials=3", "search.aggregate=worst"))
    search = place.run()
    assert place.num_run == len(search.plan.trials) == 6
    assert [trial.replicate for trial in search.plan.trials] == [0, 0, 0, 1, 1, 1]
    proposal = search.proposals[0]
    worst = measure(proposal.plan.trials[1].config)["validation/balanced_accuracy"]  # type: ignore[arg-type]
    assert search.get_outcome(proposal).values == (worst,)


def test_rounds_know_nothing_of_themselves_and_all_of_those_before(tmp_path: Path) -> None:
    search = Place(tmp_path).run()
    assert [proposal.round for proposal in search.proposals] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_an_asynchronous_search_asks_as_soon_as_a_trial_ends(tmp_path: Path) -> None:
    place = Place(tmp_path, read(SPACE, "search.order=asynchronous"))
    search = place.search()
    works = search.next_works(refuse)
    assert len(works) == 3
    assert search.next_works(refuse) == []
    place.finish(works[1])
    search.record_end(works[1].signature, COMPLETE)
    assert len(search.next_works(refuse)) == 1
    assert len(place.run().plan.trials) == 10


def refuse(work: Work, details: dict[str, str]) -> None:
    pytest.fail(f"{work.name} failed: {details}")


# ------------------------------------------------------------------ interrupted anywhere


def crash_everywhere(place: Place) -> tuple[Search, int]:
    """Run a search that crashes at every single step once, each time in the life that comes next to it."""
    for number in range(1000):
        crash = CrashAt(number % 7)  # whatever a life is, it ends after a few steps
        try:
            return place.run(crash), number
        except CrashError:
            continue
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_crashes_at_every_step_ends_as_an_undisturbed_one(sampler: str, tmp_path: Path) -> None:
    study = read_with(sampler, "search.num_trials=5", "search.parallel=2")
    undisturbed = Place(tmp_path / "undisturbed", study).run()
    for at in range(100):
        place = Place(tmp_path / f"crash-{at}", study)
        try:
            search = place.run(CrashAt(at))
            assert at >= 20  # 5 proposals and 5 trials, before and after each
            break
        except CrashError:
            search = place.run()
        assert names(search) == names(undisturbed), at
        assert place.num_run == 5
        assert [p.round for p in search.proposals] == [p.round for p in undisturbed.proposals]


def test_a_search_of_many_short_lives_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = Place(tmp_path / "undisturbed").run()
    search, num_lives = crash_everywhere(Place(tmp_path / "crashing"))
    assert num_lives > 10
    assert names(search) == names(undisturbed)


def test_an_asynchronous_search_that_crashes_has_the_same_number_of_trials(tmp_path: Path) -> None:
    place = Place(tmp_path, read(SPACE, "search.order=asynchronous"))
    search, num_lives = crash_everywhere(place)
    assert num_lives > 5
    assert len({trial.signature for trial in search.plan.trials}) == 10


def test_a_torn_last_line_is_proposed_again(tmp_path: Path) -> None:
    undisturbed = Place(tmp_path / "undisturbed").run()
    place = Place(tmp_path / "torn")
    place.search().next_works(refuse)
    path = tmp_path / "torn" / "s" / "search.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert names(place.run()) == names(undisturbed)


def test_lost_proposals_are_made_again_and_answered_from_the_ledger(tmp_path: Path) -> None:
    place = Place(tmp_path)
    before = place.run()
    place.ledger.root.remove("search.jsonl")
    assert names(place.run()) == names(before)
    assert place.num_run == 10


@pytest.mark.parametrize("damage", [b"\x00garbage\n", b'{"number": 3}\n', b"[]\n"])
def test_a_damaged_line_is_named_with_what_to_do(damage: bytes, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.search().next_works(refuse)
    with (tmp_path / "s" / "search.jsonl").open("ab") as file:
        file.write(damage)
    with pytest.raises(StorageError, match=r"search\.jsonl.*; remove it, and run the study again"):
        place.search()


# ------------------------------------------------------------------ duplicates


def test_duplicates_are_answered_from_the_ledger_and_do_not_count(tmp_path: Path) -> None:
    place = Place(tmp_path, read(FINITE))
    search = place.run()
    assert place.num_run == search.num_distinct == 8  # there are no more
    assert search.is_exhausted
    assert len(search.proposals) > 8 + MAX_DUPLICATES - 1
    assert search.plan.num_to_come == 0
    assert all(search.get_outcome(proposal).values for proposal in search.proposals)


def test_what_another_search_has_run_is_not_run_again(tmp_path: Path) -> None:
    place = Place(tmp_path, read(FINITE))
    place.run()
    place.ledger.root.remove("search.jsonl")
    again = Place(tmp_path, read(FINITE, "seed=0", "search.sampler={kind: random}", "search.parallel=2"))
    again.run()
    assert again.num_run == 0


# ------------------------------------------------------------------ the study changes


def test_a_wider_search_keeps_what_is_known(tmp_path: Path) -> None:
    Place(tmp_path).run()
    wider = Place(
        tmp_path,
        read(SPACE, "search.num_trials=12", "factors.augmentation=[none, strong, augmix]"),
    )
    assert len(wider.search().proposals) == 10
    assert len(wider.run().plan.trials) == 12
    assert wider.num_run == 2


def test_a_longer_search_ends_as_one_that_was_longer_from_the_start(tmp_path: Path) -> None:
    Place(tmp_path / "first", read(SPACE, "search.num_trials=5")).run()
    longer = Place(tmp_path / "first").run()
    assert names(longer) == names(Place(tmp_path / "at once").run())


def test_a_narrower_search_leaves_out_what_it_cannot_have(tmp_path: Path) -> None:
    all_of_them = Place(tmp_path).run().proposals
    narrow = Place(tmp_path, read(SPACE, "exclude=[{augmentation: none}]")).search()
    strong = [proposal for proposal in all_of_them if proposal.arm.levels["augmentation"] == "strong"]
    assert 0 < len(strong) < 10
    assert names(narrow) == [] or names(narrow) == [proposal.arm.name for proposal in strong]


def test_another_base_begins_anew_and_keeps_the_lines(tmp_path: Path) -> None:
    Place(tmp_path).run()
    other = Place(tmp_path, read(SPACE, "training.epochs=3"))
    assert other.search().proposals == []
    assert other.run().num_distinct == other.num_run == 10
    assert len(Place(tmp_path).search().proposals) == 10


def test_more_replicates_are_added_to_what_is_there(tmp_path: Path) -> None:
    Place(tmp_path).run()
    more = Place(tmp_path, read(SPACE, "replicates=2"))
    more.run()
    assert more.num_run == 10


# ------------------------------------------------------------------ failures


def test_a_failed_trial_is_told_as_failed_and_counts(tmp_path: Path) -> None:
    place = Place(tmp_path)
    search = place.search()
    first, *others = search.next_works(refuse)
    details = {"reason": "diverged", "message": "nan"}
    place.ledger.record_failure(first, details, study="s", git_commit=None)
    search.record_end(first.signature, FAILED)
    for work in others:
        place.finish(work)
        search.record_end(work.signature, COMPLETE)
    assert search.get_outcome(search.proposals[0]).state == "failed"
    assert len(search.next_works(refuse)) == 3
    again = place.search()
    again.update_states(place.ledger.states(), retry_failed=True)
    assert again.get_outcome(again.proposals[0]).state == "running"


def test_trials_of_a_stage_that_failed_are_not_run(tmp_path: Path) -> None:
    study = read(SPACE, "pretraining=contrastive", "search.parallel=1", "search.num_trials=2")
    place = Place(tmp_path, study)
    search = place.search()
    stage, trial = search.next_works(refuse)
    place.ledger.record_failure(stage, {"reason": "error", "message": "m"}, study="s", git_commit=None)
    search.record_end(stage.signature, FAILED)
    search.record_end(trial.signature, FAILED)  # as the dispatcher says
    dead: list[tuple[Work, dict[str, str]]] = []
    assert search.next_works(lambda work, details: dead.append((work, details))) == []
    assert search.is_over
    assert [details["reason"] for _, details in dead] == ["upstream"]
    assert stage.signature in dead[0][1]["message"]


def test_an_undefined_metric_is_a_failure_and_an_unknown_one_stops_the_search(tmp_path: Path) -> None:
    study = read(SPACE, "search.objectives=[{metric: validation/auroc}]")
    place = Place(tmp_path, study)
    search = place.search()
    first, second, _ = search.next_works(refuse)
    place.finish(first, {"validation/accuracy": 0.5}, undefined={"validation/auroc": "one class"})
    search.record_end(first.signature, COMPLETE)
    outcome = search.get_outcome(search.proposals[0])
    assert (outcome.state, outcome.reason) == ("failed", "validation/auroc undefined")
    place.finish(second, {"validation/accuracy": 0.5})
    search.record_end(second.signature, COMPLETE)
    with pytest.raises(StudyError, match=r"looked for validation/auroc in the result of trial .*, and it has"):
        search.next_works(refuse)


# ------------------------------------------------------------------ objectives and constraints


def test_several_objectives_and_constraints_reach_the_sampler(tmp_path: Path) -> None:
    objectives = (
        "[{metric: validation/balanced_accuracy}, {metric: robustness/worst_shift_balanced_accuracy, oracle: true}]"
    )
    constraints = "[{metric: validation/ece, at_most: 0.01}, {metric: num_parameters, at_least: 2, at_most: 9}]"
    study = read_with("nsga_ii", f"search.objectives={objectives}", f"search.constraints={constraints}")
    assert study.search is not None
    assert study.search.is_oracle
    search = Place(tmp_path, study).run()
    for proposal in search.proposals:
        outcome = search.get_outcome(proposal)
        measured = measure(proposal.arm.config)
        assert outcome.values == (
            measured["validation/balanced_accuracy"],
            measured["robustness/worst_shift_balanced_accuracy"],
        )
        assert outcome.excess == {"validation/ece": measured["validation/ece"] - 0.01, "num_parameters": -3}


# ------------------------------------------------------------------ the ledger


def test_a_proposal_is_in_the_ledger_before_its_work_is_handed_out(tmp_path: Path) -> None:
    place = Place(tmp_path)
    works = place.search().next_works(refuse)
    lines = place.ledger.root.read_lines("search.jsonl")
    assert [line["signatures"] for line in lines] == [[work.signature] for work in works]
    assert all(set(line) == {"number", "round", "values", "signatures", "sampler", "asked_ms"} for line in lines)
    assert not any("pickle" in json.dumps(line) for line in lines)


def test_the_status_counts_what_is_still_to_be_proposed(tmp_path: Path) -> None:
    place = Place(tmp_path, read(SPACE, "replicates=2"))
    assert compute_status(place.study, storage=str(tmp_path))["missing"] == 20
    search = place.search()
    search.next_works(refuse)
    place.ledger.write_plan(search.plan, {})
    assert compute_status(place.study, storage=str(tmp_path)) == {
        "planned": 20, "complete": 0, "running": 0, "failed": 0, "interrupted": 0, "missing": 20,
    }  # fmt: skip


def test_arms_that_lack_weights_are_not_proposed(tmp_path: Path) -> None:
    study = read(SPACE, "factors.pretraining={scratch: scratch, imagenet: {kind: imagenet, on_unavailable: skip}}")
    facts = StatedFacts(missing={"imagenet": "offline"})
    search = Search(study, Place(tmp_path, study).ledger, study.arms(), facts)
    search.update_states({})
    search.next_works(refuse)
    assert {skipped.reason for skipped in search.plan.skipped} == {"offline"}
    assert {proposal.arm.levels["pretraining"] for proposal in search.proposals} == {"scratch"}


def test_excluded_combinations_are_not_proposed(tmp_path: Path) -> None:
    factors = "factors={augmentation: [none, strong], regulariser: [none, dropout]}"
    study = read(SPACE, factors, "exclude=[{augmentation: none, regulariser: none}]", "search.num_trials=20")
    levels = [proposal.arm.levels for proposal in Place(tmp_path, study).run().proposals]
    seen = {(each["augmentation"], each["regulariser"]) for each in levels}
    assert seen == {("none", "dropout"), ("strong", "none"), ("strong", "dropout")}


# ------------------------------------------------------------------ studies without one


def test_a_study_without_a_search_is_what_it_was(tmp_path: Path) -> None:
    study = read("factors: {augmentation: [none, strong]}\n")
    assert "search" not in study.describe()
    content = study.model_dump(
        mode="json",
        exclude={"execution", "search", "tuning", "hypotheses", "replicates_where", "ceteris_paribus", "task"},
    )
    assert content["report"].pop("families") == {}  # as little in the digest as before there were any
    assert study.describe() == content
    assert compute_study_sha256(study) != compute_study_sha256(read())


def test_planning_a_search_needs_no_optuna() -> None:
    code = (
        "import sys, pathlib, tempfile, orchestrator.driver.run; from tests.support import instant_search\n"
        "place = instant_search.Place(pathlib.Path(tempfile.mkdtemp())); place.search().plan\n"
        "print(sorted({'optuna', 'sqlalchemy', 'ray', 'mlflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
