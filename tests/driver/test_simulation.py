"""Simulated runs with durations from which everything can be counted by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.simulation.assumptions import list_assumptions
from orchestrator.driver.simulation.cluster import Cluster, Overheads
from orchestrator.driver.simulation.durations import Draw, Duration, Durations, parse_seconds
from orchestrator.driver.simulation.outcome import Outcome
from orchestrator.driver.simulation.simulate import choose_cluster, find_durations, make_scenario, simulate
from orchestrator.driver.simulation.summary import advise, describe_path, summarise
from orchestrator.study.study_file import parse_study
from trainables.cpus import count_cpus
from trainables.errors import StudyError

TEXT = """\
study: s
data: {kind: digits, image_size: 8}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: 6, batch_size: 32}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors: {regulariser: [none, label_smoothing]}
replicates: 4
"""
#: Nothing but the work itself takes time.
FREE = Overheads(start=0, local_start=0, actor=0, per_trial=0, chunk=0, message=0, notice=0, ship=0)


def prepare_text(folder: Path, cache_dir: Path, *overrides: str, text: str = TEXT) -> Prepared:
    study = parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    return prepare(study, storage=str(folder))


def exact(trial: float, stage: float | None = None) -> Durations:
    known = {"trial": Duration(trial)} | ({} if stage is None else {"stage": Duration(stage)})
    return Durations("given", "given", "given", known)


def run(prepared: Prepared, durations: Durations, cluster: Cluster, overheads: Overheads = FREE) -> Outcome:
    return simulate(make_scenario(prepared, durations, cluster, whole=False, overheads=overheads), repeats=1, seed=0)[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Prepared:
    return prepare_text(tmp_path_factory.mktemp("simulation"), cache_dir)


def test_trials_of_one_length_fill_the_slots(prepared: Prepared) -> None:
    outcome = run(prepared, exact(100), Cluster(2, 2, gpus=2, gpus_per_slot=1.0))
    assert (outcome.makespan, outcome.complete, outcome.chunks) == (200.0, 8, 8)
    assert (outcome.useful, outcome.available, outcome.utilisation) == (800.0, 800.0, 1.0)
    assert (outcome.node_hours, outcome.gpu_hours) == (400 / 3600, 800 / 3600)
    assert [step.seconds for step in outcome.path] == [100.0, 100.0]


def test_overheads_add_up(prepared: Prepared) -> None:
    outcome = run(
        prepared, exact(100), Cluster(1, 8, gpus=8, gpus_per_slot=1.0), Overheads(message=0, actor=7, chunk=2)
    )
    assert outcome.makespan == pytest.approx(15 + 7 + 2 + 0.1 + 100)
    slow = run(prepared, exact(100), Cluster(1, 8, gpus=8, gpus_per_slot=1.0), replace(FREE, message=3.0))
    assert slow.makespan == pytest.approx(8 * 3 + 100 + 3)  # the last chunk waits for seven others
    assert slow.driver_busy == pytest.approx(24 * 3 / slow.makespan)  # chunk, begun, done


def test_local_slots_begin_without_ray_and_it_takes_over_long_work(prepared: Prepared) -> None:
    local = Cluster(1, 2, is_local=True)
    short = run(prepared, exact(5), local)
    assert (short.makespan, short.chunks, short.driver_busy) == (20.0, 6, 0.0)  # chunks of 2, 2, 1, 1, 1 and 1
    long = run(prepared, exact(100), local, replace(FREE, start=15, message=0.001))
    assert long.makespan == pytest.approx(400.0, abs=0.1)
    assert long.driver_busy > 0


def test_trials_wait_for_their_stage_and_the_path_names_it(tmp_path: Path, cache_dir: Path) -> None:
    both = "factors={regulariser: [none, label_smoothing], pretraining: {ssl: {kind: contrastive, epochs: 2}}}"
    prepared = prepare_text(tmp_path, cache_dir, both)
    outcome = run(prepared, exact(100, stage=1000), Cluster(1, 4, gpus=4, gpus_per_slot=1.0))
    assert (outcome.makespan, outcome.longest_chain, outcome.complete) == (1200.0, 1100.0, 9)
    assert [(step.kind, step.is_built_on) for step in outcome.path] == [
        ("stage", False),
        ("trial", True),
        ("trial", False),
    ]
    assert describe_path(outcome.path)[0] == "simclr on digits from scratch (17 min)"
    summary = summarise([outcome], Cluster(1, 4, gpus=4), price=3.0)
    assert summary.figures["cost"].median == pytest.approx(3 * 4 * 1200 / 3600)
    assert summary.advice.startswith("No cluster does it in less than 18 min")
    assert "shortening simclr on digits from scratch helps" in summary.advice


def test_an_attempt_that_is_lost_goes_on_from_its_last_epoch(prepared: Prepared) -> None:
    """Six epochs take 60 % of 100 s: one lost after 35 s has kept 3 epochs of 10 s, one after 80 s all six."""
    for lost_at, saved in ((35.0, 30.0), (80.0, 60.0)):
        losses = [lost_at, math.inf]
        cluster = Cluster(1, 8, gpus=8, gpus_per_slot=1.0, spot_loss=1.0, replacement_seconds=50)
        outcome = run_with_losses(prepared, exact(100), cluster, losses)
        assert outcome.nodes_lost == 1
        assert outcome.attempts_lost == 8
        assert outcome.lost == pytest.approx(8 * (lost_at - saved))
        assert outcome.makespan == pytest.approx(lost_at + 50 + 100 - saved)
        assert outcome.node_hours == pytest.approx((lost_at + 100 - saved) / 3600)
        assert (outcome.complete, outcome.useful) == (8, 800.0)


def test_a_slot_that_is_lost_too_often_fails_as_in_a_run(tmp_path: Path, cache_dir: Path) -> None:
    prepared = prepare_text(tmp_path, cache_dir, "execution.max_retries=1", "replicates=1")
    cluster = Cluster(1, 2, gpus=2, gpus_per_slot=1.0, spot_loss=1.0, replacement_seconds=0)
    outcome = run_with_losses(prepared, exact(100), cluster, [5.0, 5.0, math.inf])
    assert (outcome.failed, outcome.complete, outcome.nodes_lost) == (2, 0, 2)
    assert advise(outcome, cluster).startswith("Of 2 stages and trials 2 fail, lost with their nodes more often")


def run_with_losses(prepared: Prepared, durations: Durations, cluster: Cluster, losses: Sequence[float]) -> Outcome:
    """Lose the only node after these times, one after the other."""
    after = iter(losses)
    scenario = make_scenario(prepared, durations, cluster, whole=False, overheads=FREE)
    return simulate(scenario, repeats=1, seed=0, next_loss=lambda node: next(after))[0]


def test_the_budget_closes_the_queue_on_the_simulated_clock(tmp_path: Path, cache_dir: Path) -> None:
    settings = ("execution.price_per_gpu_hour=3600", "execution.budget={money: 250}")  # 250 GPU seconds
    prepared = prepare_text(tmp_path, cache_dir, *settings)
    outcome = run(prepared, exact(100), Cluster(1, 1, gpus=1, gpus_per_slot=1.0))
    assert (outcome.complete, outcome.held_back, outcome.makespan) == (3, 5, 300.0)


def test_a_limit_of_trials_counts_from_zero_for_the_whole_plan(tmp_path: Path, cache_dir: Path) -> None:
    prepared = prepare_text(tmp_path, cache_dir, "execution.budget={trials: 3}")
    prepared.ledger.begin(prepared.plan.trials[0], study="s", git_commit=None)
    again = prepare_text(tmp_path, cache_dir, "execution.budget={trials: 3}")
    works = make_scenario(again, exact(100), Cluster(1, 1), whole=True, overheads=FREE).works
    assert works == prepared.plan.trials[:3]


def test_simulations_differ_and_their_seed_repeats_them(prepared: Prepared) -> None:
    durations = Durations("given", "given", "given", {"trial": parse_seconds("100±20", option="--seconds")})
    scenario = make_scenario(prepared, durations, Cluster(4, 1, gpus=1, gpus_per_slot=1, spot_loss=2.0), whole=False)
    first, again = (simulate(scenario, repeats=5, seed=1) for _ in range(2))
    assert first == again
    assert len({outcome.makespan for outcome in first}) == 5
    figures = summarise(first, scenario.cluster, price=None).figures
    assert figures["makespan_seconds"].low < figures["makespan_seconds"].median < figures["makespan_seconds"].high
    assert "cost" not in figures


def test_given_durations_have_their_mean_and_spread(prepared: Prepared) -> None:
    given = parse_seconds("90±20", option="--seconds")
    random = np.random.default_rng(0)
    trial = prepared.plan.trials[0]
    durations = Durations("given", "given", "given", {"trial": given})
    drawn = np.array([Draw(durations, random)(trial) for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(90, abs=0.5)
    assert drawn.std() == pytest.approx(20, abs=0.5)
    assert parse_seconds("90 +- 20", option="--seconds") == given
    with pytest.raises(StudyError, match="found '90s', expected seconds above 0"):
        parse_seconds("90s", option="--seconds")


def test_finished_trials_give_mean_spread_and_overhead(tmp_path: Path, cache_dir: Path) -> None:
    prepared = prepare_text(tmp_path, cache_dir)
    seconds = {0: 100.0, 1: 121.0, 2: 10.0, 3: 12.1}
    for number, took in seconds.items():
        work = sorted(prepared.plan.trials, key=lambda each: each.name)[4 * (number // 2) + number % 2]
        prepared.ledger.begin(work, study="s", git_commit=None)
        line = {"epoch": 1, "timestamp_ms": 1000, "metrics": {"seconds": took / 4}}
        folder = prepared.ledger.folder("trial", work.signature)
        folder.append_line("epochs.jsonl", json.dumps(line))
        result = {"duration_seconds": took, "files": {}, "started_ms": 0, "finished_ms": 1000 * took}
        folder.write_json("result.json", result)
    usage = {"wall_seconds": 9, "slot_seconds": sum(seconds.values()) + 8, "gpu_seconds": 0}
    prepared.ledger.root.write_json("usage.json", usage)
    durations = find_durations(prepare_text(tmp_path, cache_dir))
    names = sorted({trial.name for trial in prepared.plan.trials})
    assert [durations.by_name[name].mean for name in names] == pytest.approx([110.5, 11.05])
    assert durations.sigma == pytest.approx(math.log(1.21) / math.sqrt(2))  # of two pairs, each with a ratio of 1.21
    assert durations.overhead == pytest.approx(2.0)
    assert durations.training_share == pytest.approx(0.25)
    assert durations.source == "4 finished trials"


def test_without_any_duration_the_command_says_what_to_give(prepared: Prepared) -> None:
    with pytest.raises(StudyError, match=r"give --seconds 90±20"):
        find_durations(prepared)
    with pytest.raises(StudyError, match="without --seconds"):
        find_durations(prepared, stage_seconds="5")


def test_slots_of_a_node_are_what_fits(prepared: Prepared, tmp_path: Path, cache_dir: Path) -> None:
    assert choose_cluster(prepared, nodes=64, gpus=8).num_slots == 512
    assert choose_cluster(prepared, nodes=2, gpus=8, cpus=5).num_slots == 10
    shared = prepare_text(tmp_path, cache_dir, "execution.gpus_per_trial=0.25", "execution.max_concurrent_trials=20")
    cluster = choose_cluster(shared, nodes=1, gpus=8)
    assert (cluster.slots_per_node, cluster.num_slots, cluster.gpus_per_slot) == (32, 20, 0.25)
    none = prepare_text(tmp_path, cache_dir, "execution.gpus_per_trial=0")
    assert choose_cluster(none, nodes=3, gpus=8).num_slots == 3 * count_cpus()
    whole = prepare_text(tmp_path, cache_dir, "execution.gpus_per_trial=2")
    with pytest.raises(StudyError, match=r"a trial asks for 2 GPUs .* and a node has 1"):
        choose_cluster(whole, nodes=4, gpus=1)


def test_trials_of_several_processes_are_refused(tmp_path: Path, cache_dir: Path) -> None:
    joint = prepare_text(tmp_path, cache_dir, "execution.processes_per_trial=2")
    with pytest.raises(StudyError, match=r"processes_per_trial: 2, and only trials of one process are simulated"):
        choose_cluster(joint, nodes=4, gpus=1)


def test_the_command_prints_a_table_of_80_columns_and_json(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(TEXT + f"execution: {{cache_dir: {cache_dir}}}\n")
    words = ["robustsweep", "simulate", str(file), "--storage", str(tmp_path), "--nodes", "2", "--gpus", "2"]
    words += ["--spot-loss", "3", "--seconds", "600±60", "--price", "2", "--repeats", "5"]
    monkeypatch.setenv("COLUMNS", "80")
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", words + more)
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert not ended.value.code
        said = capsys.readouterr().out
        if not more:
            assert max(map(len, said.splitlines())) <= 80
            for word in ("2 nodes × 2 GPUs: 4 slots", "cost", "critical path", "what would shorten it", "assumption"):
                assert word in said
    found = json.loads(said)
    assert found["figures"]["complete"]["median"] == 8
    assert found["cluster"]["slots"] == 4
    assert {each["origin"] for each in found["assumptions"]} == {"given", "benchmark", "assumption"}
    assert not list(tmp_path.glob("s/*"))  # nothing was written beside a ledger


SEARCH = """\
study: s
data: {kind: digits, image_size: 8}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: 9, batch_size: 32}
evaluation: {shifts: [gaussian_noise], severities: [1]}
search:
  num_trials: 24
  parallel: 8
  space: {training.learning_rate: {low: 1e-4, high: 1e-1, log: true}}
"""


def test_stages_of_several_processes_run_before_the_trials_take_the_slots(tmp_path: Path, cache_dir: Path) -> None:
    """Two stages of 4 processes on 8 GPUs run at once, two more after them, then 16 trials on 8 slots."""
    chains = ", ".join(f"s{n}: {{kind: contrastive, epochs: {n}}}" for n in range(1, 5))
    settings = (f"factors={{pretraining: {{{chains}}}}}", "execution.processes_per_stage=4")
    prepared = prepare_text(tmp_path, cache_dir, *settings)
    cluster = choose_cluster(prepared, nodes=1, gpus=8)
    assert (cluster.num_joint, cluster.num_slots) == (2, 8)
    outcome = run(prepared, exact(100, stage=1000), cluster)
    assert outcome.complete == 20
    assert outcome.makespan == pytest.approx(2000 + 200, abs=3)  # a joint slot looks for the next stage every second


def test_seconds_of_a_cpu_are_called_so_where_gpus_are_simulated(prepared: Prepared) -> None:
    measured = replace(exact(100), is_on_cpu=True)
    cluster = Cluster(1, 8, gpus=8, gpus_per_slot=1.0)
    for speed, expected in ((1.0, "1 ×; give --speed"), (20.0, "20 ×")):
        found = list_assumptions(measured.speed_up(speed), cluster, FREE, speed=speed, stops_early=False)
        assert [each.value for each in found if each.name.startswith("speed")] == [expected]
    assert run(prepared, measured.speed_up(20.0), cluster).makespan == 5.0


def test_a_search_proposes_and_stops_trials_early_as_in_a_run(tmp_path: Path, cache_dir: Path) -> None:
    """24 trials of 9 epochs in rungs of 1, 3 and 9 epochs: ASHA keeps about a third in each of them."""
    cluster = Cluster(8, 1, gpus=1, gpus_per_slot=1.0)
    whole = run(prepare_text(tmp_path, cache_dir, text=SEARCH), exact(100), cluster)
    assert (whole.complete, whole.stopped_early, whole.useful) == (24, 0, 2400.0)
    rule = "search.early_stopping={kind: asha, grace_epochs: 1, reduction_factor: 3}"
    stopped = run(prepare_text(tmp_path, cache_dir, rule, text=SEARCH), exact(100), cluster)
    assert stopped.complete + stopped.stopped_early == 24
    assert 8 <= stopped.stopped_early <= 22
    assert stopped.makespan <= whole.makespan
    # Of a stopped trial its epochs of 60 s / 9 count, at least one and at most all but the last.
    assert 100 * stopped.complete + 60 / 9 * stopped.stopped_early <= stopped.useful
    assert stopped.useful <= 100 * stopped.complete + 60 * 8 / 9 * stopped.stopped_early
    assert not list(tmp_path.iterdir())


def test_without_losses_everything_is_complete_however_late_a_slot_reports(prepared: Prepared) -> None:
    durations = Durations("given", "given", "given", {"trial": parse_seconds("1±0.5", option="--seconds")})
    for cluster in (Cluster(1, 2, is_local=True), Cluster(1, 2, gpus=2, gpus_per_slot=1.0)):
        outcomes = simulate(make_scenario(prepared, durations, cluster, whole=False), repeats=50, seed=0)
        assert {outcome.complete for outcome in outcomes} == {8}
        assert {outcome.failed for outcome in outcomes} == {0}
