"""What the benchmarks claim is measured by ``make bench``; here: that they measure what they say. Nothing is timed."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.driver.prepare import prepare
from orchestrator.statistics.patient_resampling import draw_resamples
from orchestrator.study.study_file import load_study
from orchestrator.tracking.tracker import Tracker
from tests.support.paths import BENCHMARKS
from tests.support.processes import is_running
from trainables.data.dataset import UNCOUNTED, Dataset
from trainables.evaluation.attribution.components import find_components
from trainables.evaluation.classification import compute_ece, compute_metrics
from trainables.evaluation.detection.risk_coverage import compute_failure_metrics

SCRIPTS = (
    "orchestration",
    "startup",
    "resume",
    "object_listing",
    "tracking",
    "packing",
    "table",
    "training",
    "memory",
    "bookkeeping",
    "evaluation",
    "shifts",
    "shift_parity",
    "augmentation",
    "augmentation_parity",
    "report",
    "patients",
    "robust_selection",
    "hypotheses",
    "failure_metrics",
    "spectral_ood",
    "representation",
    "attribution",
    "explorer",
    "pretraining_stages",
    "segmentation",
    "segmentation_training",
    "joint_training",
    "retina_vessels",
    "device_speed",
    "gpu_check",
    "simulation",
    "scaling",
)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules, gone again afterwards: their names are plain words."""
    import importlib

    names = ("common", *SCRIPTS)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


def test_a_line_reaches_its_bar_or_does_not(scripts: dict[str, ModuleType]) -> None:
    line_type = scripts["common"].Line
    above, below = line_type("a", 5.0, 5.0, {"seconds": 1.23456}), line_type("a", 4.99, 5.0, {})
    assert (above.as_json()["ok"], below.as_json()["ok"]) == (True, False)
    assert above.as_json()["seconds"] == 1.235
    assert {"cpu", "num_cpus", "memory_gib", "torch", "ray", "mlflow"} <= set(above.as_json()["machine"])


def test_study_has_the_trials_it_is_asked_for(scripts: dict[str, ModuleType], tmp_path: Path, cache_dir: Path) -> None:
    place = scripts["common"].make_place(tmp_path, "some", levels=3, replicates=4, cache_dir=cache_dir)
    plan = prepare(load_study(place.study), storage=str(place.storage)).plan
    assert len(plan.trials) == 2 * 3 * 4
    assert not plan.stages


def test_number_of_trials_has_to_fill_the_arms(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 25, expected a multiple of the 12 arms"):
        scripts["orchestration"].make_job(tmp_path, num_trials=25)


def test_first_step_is_the_earliest_start_of_an_epoch(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    place = scripts["common"].Place(tmp_path / "study.yaml", tmp_path)
    for name, ended, seconds in (("a", 20_000, 2.0), ("b", 19_500, 1.0)):
        (tmp_path / name).mkdir()
        line = {"epoch": 1, "timestamp_ms": ended, "metrics": {"seconds": seconds}}
        (tmp_path / name / "epochs.jsonl").write_text(json.dumps(line) + "\n")
    assert scripts["startup"].find_first_step(place) == 18.0


def test_copied_runs_are_what_the_tracker_would_have_shipped(
    scripts: dict[str, ModuleType], tmp_path: Path, cache_dir: Path
) -> None:
    place = scripts["common"].make_place(tmp_path, "done", levels=1, replicates=2, cache_dir=cache_dir)
    prepared = scripts["resume"].finish_study(place, num_severities=1)
    database = Path(prepared.ledger.root.uri) / "mlflow.db"
    num_values = scripts["resume"].fill_mlflow(prepared, database)
    assert num_values % len(prepared.plan.trials) == 0
    tracker = Tracker(f"sqlite:///{database}", prepared.ledger, about=prepared.about | prepared.plan.as_json())
    tracker.open()
    assert [tracker.ship(record) for record in prepared.ledger.records("trial")] == [False] * 4
    assert not prepare(load_study(place.study), storage=str(place.storage)).actions.open


def test_requests_are_counted_and_then_no_longer(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    monkeypatch.setattr(requests.Session, "send", lambda *args, **kwargs: "answer")
    prepared = requests.Request("GET", "http://127.0.0.1:9/").prepare()
    with scripts["tracking"].counting_requests() as count:
        assert [requests.Session().send(prepared) for _ in range(3)] == ["answer"] * 3
        assert count() == 3
    requests.Session().send(prepared)
    assert count() == 3


def test_stacked_is_one_after_another_but_for_rounding(scripts: dict[str, ModuleType], cache_dir: Path) -> None:
    import torch

    packing = scripts["packing"]
    job = packing.Job(
        cache_dir=cache_dir, device="cpu", threads=1, replicates=2, epochs=1, image_size=16, batch_size=256,
        model="timm/test_resnet",
    )  # fmt: skip
    assert max(packing.measure_difference(job, torch.float64).values()) < 1e-9
    assert max(packing.measure_difference(job, torch.float32).values()) < 1e-2


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.79, "worse"), (0.81, "as before"), (1.24, "as before"), (1.26, "better")]
)
def test_a_regression_is_visible(scripts: dict[str, ModuleType], ratio: float, expected: str) -> None:
    line: dict[str, Any] = {"benchmark": "a", "ratio": ratio, "bar": 1.0, "ok": False}
    assert scripts["table"].judge(line, {"ratio": 1.0}) == expected
    assert scripts["table"].judge(line, None) == "new"


def test_writing_keeps_what_was_not_measured(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = scripts["table"]
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.json")
    table.write_results([{"benchmark": "b", "ratio": 2.0}], {"a": {"benchmark": "a"}, "b": {"benchmark": "b"}})
    assert table.load_results() == {"a": {"benchmark": "a"}, "b": {"benchmark": "b", "ratio": 2.0}}


def test_committed_lines_are_complete(scripts: dict[str, ModuleType]) -> None:
    lines = scripts["table"].load_results()
    assert lines
    for line in lines.values():
        assert {"benchmark", "ratio", "bar", "ok", "machine"} <= set(line)
        # Both are rounded to four digits in the file.
        assert line["ok"] == (line["ratio"] >= line["bar"]) or line["ratio"] == pytest.approx(line["bar"], rel=1e-3)


def test_busy_is_when_at_least_one_kernel_runs(scripts: dict[str, ModuleType]) -> None:
    share = scripts["training"].compute_busy_share
    assert share([(0.0, 1.0)]) == 1.0
    assert share([(9.0, 10.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == pytest.approx(0.4)


def test_both_sides_of_the_training_benchmark_train(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    import torch

    from trainables.config import TrialConfig

    training = scripts["training"]
    settings = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}
    config = TrialConfig.model_validate({"model": {"name": "shufflenet_v2_x0_5"}, "training": settings})
    job = training.Job(training.make_data(tmp_path, 128, 16), config, torch.device("cpu"))
    first, ours, bare = job.build(), job.build(), job.build()
    assert len(training.train_ours(job, ours)) == 2
    training.train_bare(job, job.load("train"), job.load("val"), bare)
    for model in (ours, bare):
        assert torch.equal(first.head.weight, job.build().head.weight)
        assert not torch.equal(first.head.weight, model.head.weight)
    line = training.compare(
        scripts["common"].Line("a", 0.0, 0.5, {}), job, lambda model: None, lambda model: None, images=3, repeat=2
    )
    assert line.ratio > 0
    assert {"lowest_ratio", "ratio_by_cpu_seconds", "model", "batch_size"} <= line.facts.keys()


_SMAPS = """\
7f00-7f10 r--s 00000000 00:01 5          /cache/data/ab/0.npy
Size:                 80 kB
Rss:                  64 kB
Pss:                  32 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
VmFlags: rd sh
7f20-7f30 rw-p 00000000 00:00 0          [heap]
Rss:                1024 kB
Pss:                1000 kB
Private_Clean:         0 kB
Private_Dirty:       512 kB
"""


def test_memory_of_the_images_is_told_from_the_rest(scripts: dict[str, ModuleType]) -> None:
    images, everything = scripts["memory"].parse_maps(_SMAPS, "/cache/data")
    assert (images["Rss"], images["Pss"]) == (64 / 1024, 32 / 1024)
    assert (everything["Rss"], everything["Private_Dirty"]) == (1088 / 1024, 0.5)


@pytest.mark.parametrize(("share", "copies"), [(150.0, 1.0), (300.0, 2.0)])
def test_copies_of_the_images_are_noticed(scripts: dict[str, ModuleType], share: float, copies: float) -> None:
    memory = scripts["memory"]

    def sample(pss: float, mapped: float, *, is_worker: bool = True) -> Any:
        return memory.Sample(pss, mapped, 50.0, 500.0, is_worker)

    both, driver = [sample(share, 300.0), sample(share, 300.0)], sample(0.0, 900.0, is_worker=False)
    seen = memory.Watch([[], [sample(300.0, 300.0)], [sample(9.0, 10.0), sample(1.0, 10.0)], both, [driver, driver]])
    assert seen.full == [both]
    line = memory.make_line(seen, size=300.0, peer=600.0)
    assert line.facts["copies"] == copies
    assert line.ok == (copies == 1.0)
    with pytest.raises(RuntimeError, match="never saw 2 processes"):
        memory.make_line(memory.Watch([[driver]]), size=300.0, peer=600.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_images_mapped_by_a_process_are_found(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "0.npy", np.zeros(2**20, dtype=np.uint8))
    assert scripts["memory"].take_look(tmp_path) == []
    mapped = np.load(tmp_path / "0.npy", mmap_mode="r")
    assert mapped.sum() == 0
    (found,) = scripts["memory"].take_look(tmp_path)
    assert found.images_rss == pytest.approx(1.0, abs=0.01)
    assert not found.is_worker


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.usefixtures("scripts")
def test_every_script_says_what_it_does(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``python benchmarks/x.py --help``, but in this process, which has imported torch already."""
    path = str(BENCHMARKS / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    assert not ended.value.code
    assert f"python benchmarks/{script}.py" in capsys.readouterr().out


def test_report_of_a_synthetic_ledger_is_of_all_its_trials(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    report = scripts["report"]
    lines = report.measure(tmp_path, 50)
    assert [line.benchmark for line in lines] == ["report.50.cpu", "report.50.page"]
    assert all(line.facts["bar_is"] for line in lines)
    assert (lines[0].facts["complete"], lines[0].facts["trials"]) == (50, 50)
    with pytest.raises(ValueError, match="found 51, expected a multiple of the 50 arms"):
        report.make_ledger(tmp_path, 51)


def test_means_and_calibration_errors_on_a_resample_are_those_of_its_images(scripts: dict[str, ModuleType]) -> None:
    patients, random = scripts["patients"], np.random.default_rng(0)
    correct = random.random((2, 30)) < 0.6
    confidence = np.round(random.uniform(0.3, 1, size=(2, 30)), 1)  # on the edges of bins
    drawn = draw_resamples(np.arange(30), np.zeros(30, dtype=np.int64), seed=0, num_resamples=5)
    means = patients.resample_mean(drawn, correct.astype(float))
    errors = patients.resample_ece(drawn, confidence, correct, bins=10)
    for number in range(6):
        images = np.repeat(np.arange(30), drawn.counts[:, number].astype(int))
        for model in range(2):
            right = correct[model, images]
            assert means[model, number] == pytest.approx(right.mean(), rel=1e-5)
            expected = compute_ece(confidence[model, images], right, bins=10)
            assert errors[model, number] == pytest.approx(expected, abs=1e-6)


def test_verdicts_over_sites_without_an_effect_are_rare(scripts: dict[str, ModuleType]) -> None:
    """Two binomial standard errors above 5 % of 60 studies; over sites alone most of them are significant."""
    judge_sites = scripts["hypotheses"].judge_sites
    found, alone = judge_sites(8, 6, 0.0, 0.0, 60)
    assert found <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5
    assert alone > 0.5
    assert judge_sites(8, 6, 0.0, 3.0, 20)[0] > 0.9
    assert judge_sites(8, 3, 0.0, 3.0, 20)[0] == judge_sites(5, 6, 0.0, 3.0, 20)[0] == 0.0


def test_truth_over_trainings_and_patients_is_that_of_very_many(scripts: dict[str, ModuleType]) -> None:
    patients = scripts["patients"]
    scenario = patients.SCENARIOS["trainings differ much"]
    logits, labels = patients.draw_logits(np.random.default_rng(0), scenario, 10_000, 150)
    truth = patients.compute_truth(scenario.treatment, scenario.training_sd)
    found = [compute_metrics(np.stack([-row, row], axis=1) / 2, labels).values for row in logits[:150]]
    for metric in patients.METRICS:
        # Two patients' and trainings' standard errors at most, and ECE's bias of 10,000 patients.
        assert truth[metric] == pytest.approx(np.mean([values[metric] for values in found]), abs=0.012), metric


def test_coverage_of_a_few_draws_is_near_its_level(scripts: dict[str, ModuleType]) -> None:
    patients = scripts["patients"]
    found = patients.measure_coverage(patients.SCENARIOS["no true difference"], 50, 20)
    assert set(found) == {(metric, number) for metric in patients.METRICS for number in (5, 6, 8, 12)}
    assert min(found.values()) >= 0.7


def test_a_family_does_not_choose_what_it_judges(scripts: dict[str, ModuleType]) -> None:
    """Blur alone would choose c, and noise b; whichever is left out, the others choose."""
    arms = ["a", "b", "c"]
    clean = pd.Series([0.9, 0.8, 0.7], arms)
    validation = pd.DataFrame({"shot_noise": [0.1, 0.5, 0.2], "motion_blur": [0.1, 0.2, 0.6]}, arms)
    test = pd.DataFrame({"shot_noise": [0.2, 0.6, 0.3], "motion_blur": [0.3, 0.4, 0.5]}, arms)
    found = scripts["robust_selection"].choose("noise", clean, validation, test)
    assert found.arms == ("a", "c", "b")
    assert (found.given_up, found.won_back) == pytest.approx((0.4, 0.1))
    found = scripts["robust_selection"].choose("blur", clean, validation, test)
    assert found.arms == ("a", "b", "c")
    assert (found.given_up, found.won_back) == pytest.approx((0.2, 0.1))


def test_the_attribution_benchmark_draws_lesions_of_every_area(scripts: dict[str, ModuleType]) -> None:
    attribution, masks = scripts["attribution"].draw_maps(6)
    assert attribution.shape == masks.shape == (6, 224, 224)
    assert masks.any(axis=(1, 2)).all()
    assert all(chosen.any() for chosen in find_components(masks).by_area().values())


def test_the_cases_of_the_segmentation_benchmark_are_no_easy_ones(scripts: dict[str, ModuleType]) -> None:
    """Structures in every case, predictions that are near and not the same, at a sixteenth of the area."""
    benchmark = scripts["segmentation"]
    for draw in (benchmark.draw_organs, benchmark.draw_vessels):
        masks = draw(4, 128)
        assert masks.shape == (2, 4, 128, 128)
        assert set(np.unique(masks)) == {0, 1}
        found = benchmark.measure_ours(masks)
        assert ((found.values["dice"] > 0.5) & (found.values["dice"] < 0.999)).all()
        assert (found.values["hd95"] > 0).all()


def test_the_peer_of_the_segmentation_benchmark_keeps_image_and_mask_together() -> None:
    """Whatever library this Python has: same sizes and types, and the mask is cropped and flipped like its image."""
    peer = runpy.run_path(str(BENCHMARKS / "peers/segmentation_augmentation.py"))
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[10:30, 15:50] = 1
    image = np.repeat(255 * mask[..., None], 3, axis=2)
    for _ in range(5):
        cropped, moved = peer["crop"](image, mask)
        assert ((cropped[..., 0] > 127) != (moved > 0)).mean() < 0.01
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for operation in peer["OPERATIONS"]:
        result = operation(photo)
        assert (result.shape, result.dtype) == (photo.shape, photo.dtype)
    assert len(peer["OPERATIONS"]) == 19


def test_the_loop_of_the_failure_benchmark_computes_what_ours_does(scripts: dict[str, ModuleType]) -> None:
    benchmark = scripts["failure_metrics"]
    confidence, is_correct = benchmark.draw_predictions(500)
    assert 0.1 < 1 - is_correct.mean() < 0.3
    for values in (confidence, confidence.round(1)):
        found = compute_failure_metrics(values, is_correct).values
        theirs = benchmark.loop_metrics(values, is_correct)
        assert theirs == pytest.approx({name: found[name] for name in theirs}, abs=1e-12)


def test_the_svd_of_the_spectral_benchmark_has_the_signatures_of_ours(scripts: dict[str, ModuleType]) -> None:
    from trainables.evaluation.detection.spectral import spectral_signature

    maps = scripts["spectral_ood"].draw_maps(3, (6, 8, 8))
    np.testing.assert_allclose(spectral_signature(maps), scripts["spectral_ood"].sign_by_svd(maps), atol=1e-5)


def test_cka_of_the_benchmark_is_that_of_the_matrices(scripts: dict[str, ModuleType]) -> None:
    representation = scripts["representation"]
    features = representation.draw_features(60, 40)
    line = representation.make_line({"peak_rss_gib": 0.5}, features)
    assert line.facts["difference_from_matrices"] < 1e-9
    assert representation.compute_by_matrices(*features) > 0.1
    assert (line.ratio, line.ok) == (2.0, True)
    assert line.facts["n_by_n_matrices_gib"] == 2 * 60**2 * 8 / 2**30


def test_both_studies_of_the_stage_benchmark_share_their_stages_alone(
    scripts: dict[str, ModuleType], tmp_path: Path, cache_dir: Path
) -> None:
    benchmark = scripts["pretraining_stages"]
    sizes = benchmark.Sizes(regularisers=4, replicates=6, encoders=3, epochs=1, stage_epochs=2)
    places = [benchmark.make_study(tmp_path, name, tmp_path, sizes, cache_dir) for name in benchmark.REGULARISERS]
    first, second = (prepare(load_study(place.study), storage=str(place.storage)).plan for place in places)
    assert len(first.trials) == len(second.trials) == sizes.num_trials == 3 * 4 * 6
    assert {stage.signature for stage in first.stages} == {stage.signature for stage in second.stages}
    assert benchmark.write_stages(places[0], tmp_path / "stages.json") == 3
    assert not {trial.signature for trial in first.trials} & {trial.signature for trial in second.trials}


def test_stages_trained_again_after_a_kill_are_counted(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    benchmark = scripts["pretraining_stages"]
    folder = tmp_path / "some" / "stages"
    lines = {"a": '{"epoch": 1, "timestamp_ms": 5}\n{"epoch": 2, "timest', "b": '{"epoch": 1, "timestamp_ms": 6}\n'}
    for name, text in lines.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "epochs.jsonl").write_text(text)
    before = benchmark.read_epochs(scripts["common"].Place(tmp_path / "study.yaml", tmp_path), "some")
    assert before == {("a", 1): 5, ("b", 1): 6}
    assert benchmark.count_repeated(before, before | {("a", 2): 9}) == 0
    assert benchmark.count_repeated(before, {("a", 1): 8, ("a", 2): 9, ("b", 1): 6}) == 1
    assert benchmark.count_repeated(before, {}) == 2


def test_stages_that_were_copied_are_not_counted_as_trained(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    import sqlite3

    tags = [("a", "robustsweep.kind", "stage"), ("b", "robustsweep.kind", "stage"), ("c", "robustsweep.kind", "trial")]
    tags += [("b", "robustsweep.found_in", "other")]
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    with connection:
        connection.execute("CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT)")
        connection.executemany("INSERT INTO tags VALUES (?, ?, ?)", tags)
    connection.close()
    assert scripts["pretraining_stages"].count_in_mlflow(tmp_path / "mlflow.db") == 1


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="waits for the children of children")
def test_a_killed_study_and_another_one_train_every_stage_once(scripts: dict[str, ModuleType]) -> None:
    """In a process of its own, which becomes the parent of all that the studies leave behind."""
    table = scripts["table"]
    wall, runs = table.run_script(("pretraining_stages.py", "--quick"))
    assert (wall["benchmark"], wall["trials"]) == ("pretraining.stages.wall", 6)
    assert wall["ratio"] > 0
    assert (runs["stage_runs"], runs["trained_again_after_kill"], runs["ok"]) == (2, 0, True)
    assert runs["trained"] == {"first": 2, "second": 0}


def test_the_baselines_of_the_retina_benchmark_find_bright_lines(scripts: dict[str, ModuleType]) -> None:
    """Two dark lines on noise: a regression on colours and a threshold find them, and Dice is of counted pixels."""
    benchmark = scripts["retina_vessels"]
    images, test = (scripts["segmentation_training"].make_set(name, 4, 32) for name in ("train", "test"))
    data = Dataset("discs", ("background", "disc"), "", {"train": images, "test": test}, {}, components=("discs",))
    assert benchmark.score_regression(data) > 0.8
    targets = np.array(images.targets)
    assert benchmark.score(targets == 1, images) == 1.0
    targets[:, :16] = UNCOUNTED
    halved = replace(images, targets=targets)
    assert benchmark.score(np.ones_like(targets, dtype=bool), halved) == pytest.approx(
        np.mean([2 * n / (n + 16 * 32) for n in (targets == 1).sum((1, 2))])
    )


def test_a_stage_of_the_gpu_check_is_stopped_with_all_its_processes(scripts: dict[str, ModuleType]) -> None:
    check = scripts["gpu_check"]
    line = '{"benchmark": "a", "ratio": 1.0, "bar": 2.0, "ok": false}'
    told = "os.write(1, b'%d\\n' % os.getpid())"  # at once, whatever the other process writes
    sleeper = f"import os, time; print({line!r}, flush=True); os.fork(); {told}; time.sleep(60)"
    codes = {"stopped": sleeper, "failed": "print('why'); raise SystemExit(3)", "done": f"print({line!r})"}
    stages = [check.Stage(name, ("-c", code), ("-c", code), 60.0) for name, code in codes.items()]
    found = {stage.name: check.run_stage(stage, is_small=True, limit=5.0) for stage in stages}
    assert [found[name]["state"] for name in codes] == ["stopped after 5 s", "failed with exit code 3", "done"]
    assert found["stopped"]["lines"] == found["done"]["lines"] == [json.loads(line)]
    assert found["failed"]["output"] == "why\n"
    pids = [int(word) for word in found["stopped"]["output"].split() if word.isdigit()]
    assert len(pids) == 2
    assert not any(map(is_running, pids))
    assert check.describe(found["done"]).splitlines()[1].endswith("not reached")


def test_a_simulation_that_is_timed_carries_everything_out(scripts: dict[str, ModuleType]) -> None:
    line = scripts["simulation"].measure_speed(100)
    assert line.benchmark == "simulation.100"
    assert line.facts["bar_is"] == "none below 100000 trials"
    assert (line.facts["trials"], line.facts["slots"]) == (100, 512)
    assert line.facts["makespan"] > 60


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="nodes of a cluster on this machine")
@pytest.mark.parametrize("which", ["local", "cluster"])
def test_a_run_takes_what_its_simulation_says(which: str, scripts: dict[str, ModuleType]) -> None:
    """Real training on the slots of this machine; 16 slots on two nodes, one of which is lost and replaced."""
    (line,) = scripts["table"].run_script(("simulation.py", "--only", which))
    assert line["benchmark"] == f"simulation.{which}"
    assert line["ok"] or line["is_in_range"], line
