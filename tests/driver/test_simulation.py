"""Simulated runs with durations from which everything can be counted by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.cli import main
from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.simulation.cluster import Cluster, Overheads
from orchestrator.driver.simulation.durations import Draw, Duration, Durations, find_sigma, parse_seconds
from orchestrator.driver.simulation.outcome import Outcome
from orchestrator.driver.simulation.simulate import make_scenario, simulate
from orchestrator.driver.simulation.summary import describe_path, summarise
from orchestrator.study.study_file import parse_study
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
STAGED = """\
factors:
  regulariser: [none, label_smoothing]
  pretraining: {contrastive: {kind: contrastive, epochs: 2, batch_size: 256}}
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
    outcome = run(prepared, exact(100), Cluster(1, 8, gpus=8, gpus_per_slot=1.0), Overheads(message=0, actor=7, chunk=2))
    assert outcome.makespan == pytest.approx(15 + 7 + 2 + 0.1 + 100)
    slow = run(prepared, exact(100), Cluster(1, 8, gpus=8, gpus_per_slot=1.0), replace(FREE, message=3.0))
    assert slow.makespan == pytest.approx(8 * 3 + 100 + 3)  # the last chunk waits for seven others
    assert slow.driver_busy == pytest.approx(16 * 3 / slow.makespan)


def test_local_slots_begin_without_ray_and_it_takes_over_long_work(prepared: Prepared) -> None:
    local = Cluster(1, 2, is_local=True)
    short = run(prepared, exact(5), local)
    assert (short.makespan, short.chunks, short.driver_busy) == (20.0, 5, 0.0)  # chunks of 2, 2, 1, 1 … trials
    long = run(prepared, exact(100), local, replace(FREE, start=15, message=0.001))
    assert long.makespan == pytest.approx(400.0, abs=0.1)
    assert long.driver_busy > 0
