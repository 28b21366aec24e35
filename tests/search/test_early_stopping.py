"""What a search stops early: the same whenever its driver was killed, and never more than it should."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver.execute import make_stopping_rule
from orchestrator.planning.states import COMPLETE, FAILED
from orchestrator.planning.works import Work
from orchestrator.search import early_stopping
from orchestrator.search.early_stopping import EarlyStopping
from orchestrator.search.proposals import Search
from orchestrator.study.study_file import Study
from tests.support.instant_search import SPACE, Place, read
from trainables.errors import DiskFullError, StorageError, StudyError
from trainables.storage.folder import Folder

EPOCHS = 9
RULE = "search.early_stopping={kind: asha, grace_epochs: 1, reduction_factor: 2}"


def study_with(rule: str = RULE, *overrides: str) -> Study:
    return read(SPACE, f"training.epochs={EPOCHS}", "search.parallel=8", "search.num_trials=8", rule, *overrides)


class Training:
    """A search of eight configurations at once, whose trials are trained by the test."""

    def __init__(self, folder: Path, study: Study | None = None) -> None:
        self.place = Place(folder, study or study_with())
        self.search = self.place.search()
        self.search.next_works(lambda *_: None)
        self.stop = threading.Event()
        self.clock = 1000
        self.early = self.start()

    def start(self, search: Search | None = None) -> EarlyStopping:
        """Return who judges, as a new driver would."""
        self.early = EarlyStopping(search or self.search, self.place.ledger, make_stopping_rule, stop=self.stop)
        return self.early

    def work(self, configuration: int, replicate: int = 0) -> Work:
        return self.search.proposals[configuration].plan.trials[replicate]

    def folder(self, work: Work) -> Folder:
        return self.place.ledger.folder("trial", work.signature)

    def begin(self, work: Work) -> None:
        if not self.folder(work).exists("config.json"):
            self.place.ledger.begin(work, study="s", git_commit=None)

    def write_epoch(self, work: Work, epoch: int, value: float | None) -> dict[str, Any]:
        """Leave an epoch in the ledger."""
        self.begin(work)
        self.clock += 1
        metrics = {} if value is None else {"val/balanced_accuracy": value}
        line = {"epoch": epoch, "timestamp_ms": self.clock, "metrics": metrics}
        self.folder(work).append_line("epochs.jsonl", json.dumps(line))
        return line

    def train(self, work: Work, values: Sequence[float | None], *, start: int = 1) -> None:
        """Train some epochs, and tell of each."""
        for epoch, value in enumerate(values, start=start):
            self.early.handle("event", work, {"event": "epoch", **self.write_epoch(work, epoch, value)})

    def stopped(self) -> dict[str, dict[str, Any]]:
        """Return signature → stop.json, without its time, once everything is judged."""
        self.early.finish()
        self.early.check()
        found = {}
        for proposal in self.search.proposals:
            for trial in proposal.plan.trials:
                if self.folder(trial).exists("stop.json"):
                    found[trial.signature] = self.folder(trial).read_json("stop.json")
                    assert found[trial.signature].pop("timestamp_ms") > 0
        return found


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_who_falls_behind_is_stopped_and_the_file_says_why(training: Training) -> None:
    good, bad = training.work(0), training.work(1)
    training.train(good, [0.5, 0.6])
    training.train(bad, [0.4, 0.9])  # what comes after the decision does not change it
    expected = {"rule": "asha", "metric": "validation/balanced_accuracy", "values": {bad.signature: 0.4}}
    assert training.stopped() == {bad.signature: expected | {"epoch": 1, "value": 0.4}}


@pytest.mark.parametrize("rule", ["median", "{kind: median, grace_epochs: 2, min_samples: 1}", "asha"])
def test_every_rule_has_a_short_form_and_spares_the_best(rule: str, tmp_path: Path) -> None:
    training = Training(tmp_path, study_with(f"search.early_stopping={rule}"))
    for number in range(8):
        training.train(training.work(number), [0.9 - 0.1 * number] * (EPOCHS - 1))
    stopped = training.stopped()
    assert training.work(0).signature not in stopped
    assert training.work(7).signature in stopped


def test_a_metric_of_its_own_whose_lower_values_are_better(tmp_path: Path) -> None:
    rule = "search.early_stopping={kind: asha, grace_epochs: 1, reduction_factor: 2, metric: validation/nll}"
    training = Training(tmp_path, study_with(rule))
    for number, loss in enumerate((0.5, 0.9, 0.4)):
        work = training.work(number)
        line = {"epoch": 1, "timestamp_ms": 1, "metrics": {"val/loss": loss, "val/balanced_accuracy": loss}}
        training.early.handle("event", work, {"event": "epoch", **line})
    assert training.stopped().keys() == {training.work(1).signature}


def test_configurations_are_judged_by_the_mean_of_their_replicates(tmp_path: Path) -> None:
    training = Training(tmp_path, study_with(RULE, "replicates=3"))
    for replicate, values in enumerate(([0.9, 0.5], [0.2, 0.5], [0.4, 0.5])):
        training.train(training.work(0, replicate), values)  # mean after epoch 1: 0.5
    for replicate, value in enumerate((0.1, 0.8, 0.75)):  # 0.55, though its first replicate is the worst of all
        training.train(training.work(1, replicate), [value])
    for replicate, value in enumerate((0.95, 0.1, 0.3)):  # 0.45, though its first replicate is the best of all
        training.train(training.work(2, replicate), [value])
    trials = training.search.proposals[2].plan.trials
    values = dict(zip([trial.signature for trial in trials], (0.95, 0.1, 0.3), strict=True))
    stopped = training.stopped()
    assert list(stopped) == list(values)
    for each in stopped.values():
        assert (each["epoch"], each["value"], each["values"]) == (1, pytest.approx(0.45), values)


def test_nobody_is_judged_before_the_slowest_replicate(tmp_path: Path) -> None:
    training = Training(tmp_path, study_with(RULE, "replicates=2"))
    for replicate in (0, 1):
        training.train(training.work(0, replicate), [0.5, 0.5])
    training.train(training.work(1, 1), [0.1] * 5)
    training.train(training.work(2, 0), [0.6, 0.1])
    training.train(training.work(2, 1), [0.6])  # epoch 2 of one replicate alone does not count
    assert training.stopped() == {}
    training.start()
    training.train(training.work(1, 0), [0.2])
    stopped = training.stopped()
    assert list(stopped) == [trial.signature for trial in training.search.proposals[1].plan.trials]
    assert [(each["epoch"], each["value"]) for each in stopped.values()] == [(1, pytest.approx(0.15))] * 2


def test_who_has_not_begun_or_is_complete_gets_no_stop(tmp_path: Path) -> None:
    training = Training(tmp_path, study_with(RULE, "replicates=2"))
    for replicate in (0, 1):
        training.train(training.work(0, replicate), [0.5])
    first, second = (training.work(1, replicate) for replicate in (0, 1))
    training.train(first, [0.4] * EPOCHS)
    training.place.finish(first)
    training.early.handle("ended", first, {"status": COMPLETE})
    training.train(second, [0.4])  # the replicates run one after the other: the last one is still spared its rest
    assert training.stopped().keys() == {second.signature}


def test_a_configuration_whose_replicates_have_ended_is_compared_and_not_judged(tmp_path: Path) -> None:
    training = Training(tmp_path, study_with(RULE, "replicates=2"))
    for replicate in (0, 1):
        training.train(training.work(0, replicate), [0.9])
    for replicate in (0, 1):  # all its epochs are told of after its end
        work = training.work(1, replicate)
        for epoch in (1, 2):
            training.write_epoch(work, epoch, 0.5)
        training.place.finish(work)
        training.early.handle("ended", work, {"status": COMPLETE})
    for replicate in (0, 1):
        training.train(training.work(2, replicate), [0.7, 0.3])  # above the median at epoch 1, below it at epoch 2
    stopped = training.stopped()
    assert stopped.keys() == {trial.signature for trial in training.search.proposals[2].plan.trials}
    assert {each["epoch"] for each in stopped.values()} == {2}


def test_no_epoch_is_compared_that_a_replicate_has_not(tmp_path: Path) -> None:
    """``training.patience`` ends replicates after different epochs."""
    training = Training(tmp_path, study_with(RULE, "replicates=2"))
    for replicate in (0, 1):
        training.train(training.work(0, replicate), [0.5] * 4)
    patient = training.work(1, 0)
    training.train(patient, [0.6])
    training.place.finish(patient)
    training.early.handle("ended", patient, {"status": COMPLETE})
    training.train(training.work(1, 1), [0.6, 0.1, 0.1, 0.1])
    assert training.stopped() == {}


def test_the_last_epoch_stops_nobody(training: Training) -> None:
    training.train(training.work(0), [0.5] * EPOCHS)
    training.train(training.work(1), [None] * (EPOCHS - 1) + [0.1])
    assert training.stopped() == {}


def test_epochs_that_nobody_told_of_are_read_from_the_ledger(training: Training) -> None:
    """A slot tells the newest only; what an actor wanted to say when it was lost is never told."""
    good, bad = training.work(0), training.work(1)
    training.train(good, [0.5])
    for epoch, value in enumerate((0.9, 0.4), start=2):
        line = training.write_epoch(good, epoch, value)
    training.early.handle("event", good, {"event": "epoch", **line})
    training.write_epoch(bad, 1, 0.6)
    training.write_epoch(bad, 2, 0.6)
    training.place.finish(bad)
    training.early.handle("ended", bad, {"status": COMPLETE})
    late = training.work(2)
    training.train(late, [0.55, 0.55])  # at epoch 1 below 0.6 and above 0.5
    assert {signature: each["epoch"] for signature, each in training.stopped().items()} == {late.signature: 2}


def test_a_failed_trial_stays_failed_and_stops_when_it_is_tried_again(tmp_path: Path) -> None:
    training = Training(tmp_path, study_with(RULE, "replicates=2"))
    failed = training.work(1, 1)
    details = {"reason": "error", "message": "m"}
    training.place.ledger.record_failure(failed, details, study="s", git_commit=None)
    training.train(training.work(0), [0.5])
    training.train(training.work(0, 1), [0.5])
    training.train(training.work(1), [0.4])
    training.write_epoch(failed, 1, 0.4)
    training.early.handle("ended", failed, {"status": FAILED})
    assert training.stopped().keys() == {training.work(1).signature}
    assert training.place.ledger.states()[failed.signature] == FAILED
    training.start()
    training.folder(failed).remove("failure.json")
    training.early.handle("started", failed, {})
    assert failed.signature in training.stopped()


# ------------------------------------------------------------------ killed at any point


def make_curves(seed: int, replicates: int) -> list[tuple[int, int, int, float]]:
    """Return (configuration, replicate, epoch, value) in the order in which they happen."""
    draw = random.Random(seed)
    left = {(number, replicate): 0 for number in range(8) for replicate in range(replicates)}
    happened = []
    while left:
        trial = draw.choice(list(left))
        left[trial] += 1
        happened.append((*trial, left[trial], draw.random()))
        if left[trial] == EPOCHS - 1:
            del left[trial]
    return happened


@pytest.mark.parametrize("replicates", [1, 2])
@pytest.mark.parametrize("rule", [RULE, "search.early_stopping={kind: median, min_samples: 2}"])
def test_a_new_driver_decides_what_the_one_before_would_have(rule: str, replicates: int, tmp_path: Path) -> None:
    happened, study = make_curves(7, replicates), study_with(rule, f"replicates={replicates}")
    live = Training(tmp_path / "live", study)
    for number, replicate, epoch, value in happened:
        live.train(live.work(number, replicate), [value], start=epoch)
    expected = live.stopped()
    assert 2 * replicates <= len(expected) <= 7 * replicates
    for kills in ((len(happened),), (10,), (5, 20, 40)):
        place = Training(tmp_path / f"killed-{len(kills)}-{kills[0]}", study)
        for step, (number, replicate, epoch, value) in enumerate(happened):
            work = place.work(number, replicate)
            line = place.write_epoch(work, epoch, value)
            if step < kills[0] and len(kills) == 1 and kills[0] == len(happened):
                continue  # it never heard of anything: all of it is in the ledger
            place.early.handle("event", work, {"event": "epoch", **line})
            if step in kills:
                place.stopped()
                place.start()
        place.early.finish()
        place.start(place.place.search())
        assert place.stopped() == expected, kills


def test_a_decision_that_was_written_for_one_replicate_only_is_written_for_all(tmp_path: Path) -> None:
    training = Training(tmp_path, study_with(RULE, "replicates=2"))
    for number, value in ((0, 0.5), (1, 0.4)):
        for replicate in (0, 1):
            training.train(training.work(number, replicate), [value])
    before = training.stopped()
    other = training.work(1, 1)
    training.folder(other).remove("stop.json")
    training.start(training.place.search())
    assert training.stopped() == before
    assert other.signature in before


def test_what_was_stopped_counts_as_far_as_it_was_judged(training: Training) -> None:
    training.train(training.work(0), [0.5])
    training.train(training.work(1), [0.4])
    training.stopped()
    training.write_epoch(training.work(1), 2, 0.99)  # it had begun when it was stopped
    training.start()
    training.train(training.work(0), [0.5], start=2)
    training.train(training.work(2), [0.6, 0.6])
    assert training.stopped().keys() == {training.work(1).signature}


# ------------------------------------------------------------------ storage


def refuse(self: Folder, name: str, value: Any) -> None:
    raise StorageError(f"could not write {name}: away")


def test_a_refused_write_is_tried_again(
    training: Training, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(early_stopping, "_RETRY_SECONDS", 0.01)
    write, refused = Folder.write_json, list[str]()

    def refuse_twice(self: Folder, name: str, value: Any) -> None:
        if name == "stop.json" and len(refused) < 2:
            refused.append(name)
            refuse(self, name, value)
        write(self, name, value)

    monkeypatch.setattr(Folder, "write_json", refuse_twice)
    training.train(training.work(0), [0.5])
    training.train(training.work(1), [0.4])
    assert training.stopped().keys() == {training.work(1).signature}
    assert caplog.text.count("trying again: could not write stop.json: away") == 2


def test_what_could_not_be_written_is_said(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stopping, "_RETRY_SECONDS", 0.01)
    training.train(training.work(0), [0.5])
    line = training.write_epoch(training.work(1), 1, 0.4)
    monkeypatch.setattr(Folder, "write_json", refuse)
    training.early.handle("event", training.work(1), {"event": "epoch", **line})
    training.early.finish(0.5)
    with pytest.raises(StorageError, match=r"could not write stop.json of 1 trials; run the study again"):
        training.early.check()
    monkeypatch.undo()
    training.start()
    assert training.stopped().keys() == {training.work(1).signature}


def test_a_full_disk_stops_the_study(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Folder, name: str, value: Any) -> None:
        raise DiskFullError("could not write stop.json: the disk is full")

    training.train(training.work(0), [0.5])
    line = training.write_epoch(training.work(1), 1, 0.4)
    monkeypatch.setattr(Folder, "write_json", full)
    training.early.handle("event", training.work(1), {"event": "epoch", **line})
    training.early.finish()
    assert training.stop.is_set()
    with pytest.raises(DiskFullError, match="the disk is full"):
        training.early.check()


def test_epochs_that_cannot_be_read_hold_nothing_up(training: Training) -> None:
    training.train(training.work(0), [0.5])
    training.stopped()
    training.folder(training.work(0)).write("epochs.jsonl", b"no json\n")
    training.start()
    training.train(training.work(1), [0.4])
    assert training.stopped() == {}
    assert not training.stop.is_set()


# ------------------------------------------------------------------ study file


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"search.early_stopping={{kind: asha, grace_epochs: {EPOCHS}}}", "found 9, and no training is longer than 9"),
        ("search.early_stopping={kind: asha, grace_epochs: 2, brackets: 3}", "in the last bracket nothing is stopped"),
        ("search.early_stopping={kind: asha, reduction_factor: 1}", "greater than 1"),
        ("search.early_stopping={kind: pbt}", "asha"),
        ("search.early_stopping={kind: median, brackets: 2}", "brackets"),
        ("search.early_stopping={kind: asha, metric: id/auroc}", "found 'id/auroc', expected what is known after each"),
        ("search.early_stopping={kind: asha, metric: num_parameters}", "expected what is known after each epoch"),
    ],
)
def test_what_cannot_be_meant_is_refused(override: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study_with(override)


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        (
            "[{metric: validation/auroc}, {metric: validation/ece}]",
            "found early_stopping with 2 objectives, expected 1",
        ),
        (
            "[{metric: validation/ece_scaled}]",
            "which is not known after each epoch; give early_stopping.metric",
        ),
    ],
)
def test_objectives_that_no_epoch_knows_are_refused(objectives: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study_with(RULE, f"search.objectives={objectives}")


def test_it_is_no_part_of_a_trial_and_off_by_default() -> None:
    plain, stopping = read(SPACE), read(SPACE, RULE)
    assert not plain.stops_early
    assert stopping.stops_early
    assert "early_stopping" not in plain.describe()["search"]
    assert [arm.config for arm in plain.arms()] == [arm.config for arm in stopping.arms()]


def test_a_searched_number_of_epochs_counts_at_its_largest(tmp_path: Path) -> None:
    text = "search:\n  num_trials: 2\n  space: {training.epochs: {low: 1, high: 4}}\n"
    study = read(text, "training.epochs=2", "search.early_stopping={kind: asha, grace_epochs: 3}")
    assert Place(tmp_path, study).search().max_epochs == 4
    with pytest.raises(StudyError, match="no training is longer than 4"):
        read(text, "search.early_stopping={kind: asha, grace_epochs: 4}")
