from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.plan import (
    count_trials,
    describe_encoder_use,
    describe_estimate,
    describe_plan,
    format_duration,
    render_estimate,
)
from orchestrator.driver import estimate as estimates
from orchestrator.driver.estimate import STARTUP_SECONDS, Estimate, estimate
from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.encoders import find_encoder_uses
from orchestrator.planning.works import Work
from orchestrator.study.study_file import parse_study
from tests.support.trained_study import TrainedStudy
from trainables.errors import ConfigError

TEXT = """\
study: s
data: {kind: digits, image_size: 8}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: 4, batch_size: 32}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors: {pretraining: {scratch: scratch, contrastive: {kind: contrastive, epochs: 2, batch_size: 256}}}
replicates: 2
execution: {max_concurrent_trials: 2}
"""


def make(tmp_path: Path, cache_dir: Path, *overrides: str) -> Prepared:
    study = parse_study(TEXT, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    return prepare(study, storage=str(tmp_path))


def finish(prepared: Prepared, work: Work, seconds: float) -> None:
    prepared.ledger.begin(work, study="s", git_commit=None)
    result = {"duration_seconds": seconds, "files": {}}
    prepared.ledger.folder(work.kind, work.signature).write_json("result.json", result)


def test_without_a_finished_trial_or_a_pilot_nothing_is_claimed(tmp_path: Path, cache_dir: Path) -> None:
    costs = estimate(make(tmp_path, cache_dir), allow_pilot=False)
    assert costs.wall_seconds is costs.gpu_hours is None
    assert costs.source.startswith("unknown")
    assert describe_estimate(costs) == f"estimate: {costs.source}"


def test_finished_trials_of_the_same_arm_count(tmp_path: Path, cache_dir: Path) -> None:
    prepared = make(tmp_path, cache_dir)
    scratch = [trial for trial in prepared.plan.trials if not trial.needs]
    contrastive = [trial for trial in prepared.plan.trials if trial.needs]
    finish(prepared, prepared.plan.stages[0], 50.0)
    finish(prepared, scratch[0], 100.0)
    finish(prepared, contrastive[0], 300.0)
    costs = estimate(make(tmp_path, cache_dir), allow_pilot=False)
    assert costs.source == "2 finished trials"
    assert costs.work_seconds == 400.0  # scratch 100, contrastive 300
    assert costs.seconds_per_trial == 200.0
    assert costs.wall_seconds == STARTUP_SECONDS + 300.0  # two slots: the longer one


def test_what_waits_for_a_stage_is_the_shortest_possible_time(tmp_path: Path, cache_dir: Path) -> None:
    prepared = make(tmp_path, cache_dir, "execution.max_concurrent_trials=100")
    finish(prepared, next(trial for trial in prepared.plan.trials if not trial.needs), 10.0)
    costs = estimate(make(tmp_path, cache_dir, "execution.max_concurrent_trials=100"), allow_pilot=False)
    assert costs.slots == 100
    assert costs.work_seconds == 40.0  # nothing is known of the stage and of contrastive trials: as long as others
    assert costs.wall_seconds == STARTUP_SECONDS + 20.0  # stage, then trial


def test_gpu_hours_are_the_share_of_a_gpu(tmp_path: Path, cache_dir: Path) -> None:
    finish(make(tmp_path, cache_dir), make(tmp_path, cache_dir).plan.trials[0], 3600.0)
    costs = estimate(make(tmp_path, cache_dir, "execution.gpus_per_trial=0.25"), allow_pilot=False)
    assert costs.gpu_hours == pytest.approx(4 * 0.25)


def test_money_is_gpu_hours_at_a_price(tmp_path: Path, cache_dir: Path) -> None:
    finish(make(tmp_path, cache_dir), make(tmp_path, cache_dir).plan.trials[0], 3600.0)
    settings = ("execution.gpus_per_trial=0.25", "execution.price_per_gpu_hour=3")
    costs = estimate(make(tmp_path, cache_dir, *settings), allow_pilot=False)
    assert costs.money == pytest.approx(4 * 0.25 * 3)
    assert describe_estimate(costs).endswith("1.00 GPU-hours, 3.00 in money")


def test_what_the_budget_holds_back_is_estimated_too(tmp_path: Path, cache_dir: Path) -> None:
    finish(make(tmp_path, cache_dir), make(tmp_path, cache_dir).plan.trials[0], 100.0)
    Ledger(str(tmp_path), "s").root.write_json("usage.json", {"wall_seconds": 9, "slot_seconds": 9, "gpu_seconds": 9})
    prepared = make(tmp_path, cache_dir, "execution.budget={trials: 2}")
    assert (len(prepared.actions.open), len(prepared.actions.held_back)) == (2, 2)  # a stage, and a trial that needs it
    assert estimate(prepared, allow_pilot=False).work_seconds == 400.0


def test_a_like_study_counts_where_the_study_has_nothing_yet(tmp_path: Path, cache_dir: Path) -> None:
    other = make(tmp_path, cache_dir, "study=other", "seed=7")
    other.ledger.write_plan(other.plan, other.about)
    for work, device, seconds in ((other.plan.trials[0], "cpu", 60.0), (other.plan.trials[2], "H100", 5.0)):
        other.ledger.begin(work, study="other", git_commit=None)
        result = {"duration_seconds": seconds, "environment": {"device": device}, "files": {}}
        other.ledger.folder("trial", work.signature).write_json("result.json", result)
    costs = estimate(make(tmp_path, cache_dir, "execution.device=cpu"), allow_pilot=False)
    assert costs.source == "1 finished trials of a like study (other)"
    assert costs.seconds_per_trial == 60.0
    for change in ("training.epochs=5", "data.image_size=16"):
        unlike = estimate(make(tmp_path, cache_dir, "execution.device=cpu", change), allow_pilot=False)
        assert unlike.source.startswith("unknown")


@pytest.mark.parametrize("change", [{"schema_version": 1}, {"training": {"epochs": 4, "learning_rate": 1e-300}}])
def test_a_like_study_of_another_version_does_not_count(
    change: dict[str, Any], tmp_path: Path, cache_dir: Path
) -> None:
    other = make(tmp_path, cache_dir, "study=other", "seed=7")
    other.ledger.write_plan(other.plan, other.about)
    work = other.plan.trials[0]
    other.ledger.begin(work, study="other", git_commit=None)
    folder = other.ledger.folder("trial", work.signature)
    folder.write_json("result.json", {"duration_seconds": 60.0, "environment": {"device": "cpu"}, "files": {}})
    stored = folder.read_json("config.json")
    folder.write_json("config.json", stored | {"config": stored["config"] | change})
    costs = estimate(make(tmp_path, cache_dir, "execution.device=cpu"), allow_pilot=False)
    assert costs.source.startswith("unknown")


def test_slots_are_what_cores_and_gpus_allow(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driver.estimate.count_cpus", lambda: 16)
    monkeypatch.setattr("orchestrator.driver.estimate.count_gpus", lambda execution: 2)
    finish(make(tmp_path, cache_dir), make(tmp_path, cache_dir).plan.trials[0], 1.0)
    for gpus, slots in (("auto", 2), ("0.25", 8), ("0", 16)):
        settings = ("execution.max_concurrent_trials=null", f"execution.gpus_per_trial={gpus}")
        assert estimate(make(tmp_path, cache_dir, *settings), allow_pilot=False).slots == slots


def test_a_finished_study_costs_nothing(tmp_path: Path, cache_dir: Path) -> None:
    prepared = make(tmp_path, cache_dir)
    for work in prepared.plan.works:
        finish(prepared, work, 1.0)
    costs = estimate(make(tmp_path, cache_dir), allow_pilot=True)
    assert (costs.source, costs.work_seconds) == ("nothing is open", 0.0)
    assert describe_estimate(costs) == "estimate: nothing is open"


def test_a_pilot_says_that_it_is_one(tmp_path: Path, cache_dir: Path) -> None:
    prepared = make(tmp_path, cache_dir)
    costs = estimate(prepared, allow_pilot=True)
    assert "pilot of a few steps of" in costs.source
    assert costs.work_seconds is not None
    assert costs.work_seconds > 0
    assert not (tmp_path / "s").exists()  # nothing is written


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.4, "40 s"), (89, "89 s"), (91, "2 min"), (720, "12 min"), (3900, "1 h 05 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_estimate_in_words() -> None:
    costs = Estimate("3 finished trials", 12.0, 120.0, 75.0, 0.5, 2)
    assert describe_estimate(costs) == "estimate from 3 finished trials: 75 s on 2 slots, 12 s a trial, 0.50 GPU-hours"


def test_the_plan_as_json_names_the_state_of_everything(tmp_path: Path, cache_dir: Path) -> None:
    prepared = make(tmp_path, cache_dir)
    first, second, *rest = prepared.plan.trials
    finish(prepared, first, 1.0)
    prepared.ledger.begin(second, study="s", git_commit=None)
    prepared.ledger.record_failure(rest[0], {"reason": "error", "message": "m"}, study="s", git_commit=None)
    now = make(tmp_path, cache_dir)
    described: dict[str, Any] = describe_plan(now, estimate(now, allow_pilot=False))
    states = {row["signature"]: row["state"] for row in described["trials"] + described["stages"]}
    assert [states[trial.signature] for trial in now.plan.trials] == ["complete", "to resume", "failed", "to run"]
    assert described["counts"] == count_trials(now) == {
        "planned": 4, "complete": 1, "to_resume": 1, "to_run": 1, "failed": 1, "stages": 1, "stages_open": 1,
    }  # fmt: skip
    assert set(described) == {
        "study", "ledger", "counts", "estimate", "stages", "trials", "skipped", "orphaned", "hypotheses", "matched",
        "encoders", "chains", "remarks",
    }  # fmt: skip


def test_the_encoders_are_counted_and_more_of_them_have_a_price(tmp_path: Path, cache_dir: Path) -> None:
    settings = ("replicates=6", "execution.max_concurrent_trials=2")
    prepared = make(tmp_path, cache_dir, *settings)
    (use,) = find_encoder_uses(prepared.plan)
    unknown = describe_encoder_use(use, prepared, estimate(prepared, allow_pilot=False))
    assert unknown == (
        "1 encoder for 6 replicates of pretraining=contrastive (simclr on digits from scratch): decides nothing about "
        "contrastive pretraining; pretraining.encoders: per_replicate costs +5 stages"
    )
    finish(prepared, prepared.plan.stages[0], 240.0)
    contrastive = [trial for trial in prepared.plan.trials if trial.needs]
    for trial in contrastive[:3]:
        finish(prepared, trial, 1.0)
    now = make(tmp_path, cache_dir, *settings)
    costs = estimate(now, allow_pilot=False)
    assert costs.stage_seconds == {now.plan.stages[0].signature: 240.0}
    told = describe_plan(now, costs)["encoders"]
    assert told == [
        {
            "stage": "simclr on digits from scratch",
            "arms": ["pretraining=contrastive"],
            "encoders": 1,
            "replicates": 6,
            "units": 1,
            "more_stages": 5,
            "more_seconds": 3 * 240.0,  # five stages on two slots
            "trials_anew": 2,  # replicate 0 keeps its encoder
        }
    ]
    assert describe_encoder_use(use, now, costs).endswith(
        "costs +5 stages and 2 complete trials anew, ≈ 12 min for the stages on 2 slots"
    )
    console = Console(file=StringIO(), width=60)
    render_estimate(now, costs, console)
    assert "encoders 1 encoder for 6 replicates" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_stage_that_nothing_needs_is_not_called_complete(tmp_path: Path, cache_dir: Path) -> None:
    prepared = make(tmp_path, cache_dir)
    for trial in prepared.plan.trials:
        finish(prepared, trial, 1.0)
    now = make(tmp_path, cache_dir)
    described = describe_plan(now, estimate(now, allow_pilot=False))
    assert [row["state"] for row in described["stages"]] == ["not needed"]


def test_what_the_pilot_does_not_time_is_checked_too(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.driver.estimate.MAX_PILOTS", 1)
    networks = ", ".join([f"shufflenet_v2_x{width}" for width in ("0_5", "1_0")] + ["nonsense"])
    prepared = make(tmp_path, cache_dir, f"factors={{model.name: [{networks}]}}")
    with pytest.raises(ConfigError, match="nonsense"):
        estimate(prepared, allow_pilot=True)


def test_what_predictions_take_is_measured_on_finished_trials(trained_study: TrainedStudy) -> None:
    prepared = prepare(trained_study.study, storage=str(trained_study.storage))
    sizes = [
        sum(path.stat().st_size for path in (trained_study.storage / "small/trials" / each.signature).glob("*/*.npz"))
        for each in prepared.plan.trials
    ]
    assert min(sizes) > 10_000
    assert estimates._find_stored_bytes(prepared) == pytest.approx(sum(sizes) / 4)
    costs = Estimate("s", 1.0, 1.0, 1.0, 0.0, 1, stored_bytes=3_456_000_000)
    assert describe_estimate(costs).endswith("0.00 GPU-hours; predictions and features 3.5 GB")
