"""Shifted copies: found by content, built once, never believed when damaged, never in the way."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_configs import NETWORK, random_dataset
from trainables.config import EvaluationConfig, Execution
from trainables.data.feed import ImageFeed
from trainables.evaluation.robustness import evaluate_model
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.seeding import hash_ids, mix
from trainables.shifts import cache
from trainables.shifts.bank import IDENTITY, Shift, build_shifts
from trainables.shifts.cache import ShiftedCopies, digest_operations, name_operation
from trainables.shifts.operation import Operation
from trainables.shifts.operations import OPERATIONS
from trainables.shifts.registry import RegisteredShift, register_shift
from trainables.storage.folder import Folder

TEST = random_dataset(channels=3).splits["test"]
COPY_BYTES = 4 + TEST.images.nbytes
CONFIG = EvaluationConfig(shifts=("gaussian_noise", "jpeg"), severities=(2, 5))
SHIFTS = build_shifts(CONFIG, "general")


@pytest.fixture(autouse=True)
def _empty_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is free on the machine of the test is enough."""
    monkeypatch.setattr(cache, "MIN_FREE_BYTES", 0)


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=NETWORK), num_classes=3, channels=3, image_size=16)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each shift's operation was called."""
    counts: Counter[str] = Counter()
    apply = Shift.apply

    def count(self: Shift, images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        counts[f"{self.name}/{self.severity}"] += 1
        return apply(self, images, seeds)

    monkeypatch.setattr(Shift, "apply", count)
    return counts


def open_copies(folder: Path, *, budget: int = 100, seed: int = 0, **content: Any) -> ShiftedCopies:
    """``budget`` is a number of copies."""
    return ShiftedCopies(
        folder,
        budget_bytes=budget * COPY_BYTES,
        feed=ImageFeed(TEST, torch.device("cpu")),
        seeds=mix(torch.from_numpy(hash_ids(TEST.ids)), "shift", seed),
        content=(content.get("fingerprint", "0"), content.get("name", "test"), seed),
    )


def build(folder: Path, shifts: list[Shift], **settings: Any) -> int:
    """Return how many copies were built."""
    built = []
    with open_copies(folder, **settings) as copies:
        copies.build(shifts, batch_size=10, on_built=lambda: built.append(1))
    return len(built)


def read(copies: ShiftedCopies, shift: Shift) -> torch.Tensor:
    images, transform = torch.from_numpy(TEST.images), copies.transform(shift)
    return torch.cat([transform(images[start : start + 9], slice(start, min(start + 9, 24))) for start in (0, 9, 18)])


def shifted(shift: Shift, seed: int = 0) -> torch.Tensor:
    return shift.apply(torch.from_numpy(TEST.images), mix(torch.from_numpy(hash_ids(TEST.ids)), "shift", seed))


def names(folder: Path, pattern: str = "*.u8") -> set[str]:
    return {path.name for path in folder.glob(pattern)}


# ------------------------------------------------------------------ evaluations


def test_predictions_do_not_depend_on_the_cache(model: Classifier, tmp_path: Path, applied: Counter[str]) -> None:
    data = random_dataset(channels=3)

    def evaluate(name: str, copies: float) -> list[bytes]:
        gib = copies * COPY_BYTES / 2**30
        execution = Execution(cache_dir=tmp_path / "cache", shift_cache_gib=gib, evaluation_batch_size=10)
        evaluate_model(
            model, data, CONFIG, folder=Folder(tmp_path / name), execution=execution, precision=torch.float32
        )
        return [(tmp_path / name / "predictions" / f"{each}.npz").read_bytes() for each in ("val", "test", "elsewhere")]

    without = evaluate("without", 0)
    assert not (tmp_path / "cache").exists()
    assert applied["jpeg/2"] == 3
    assert evaluate("too few", 2.1) == without
    assert len(names(tmp_path / "cache" / "shifts")) == 2
    assert evaluate("cold", 100) == without
    assert len(names(tmp_path / "cache" / "shifts")) == 4
    applied.clear()
    assert evaluate("warm", 100) == without
    assert set(applied) == {"identity/0"}


def test_progress_is_reported_while_copies_are_built(model: Classifier, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    evaluate_model(
        model,
        random_dataset(channels=3),
        CONFIG,
        folder=Folder(tmp_path),
        execution=Execution(cache_dir=tmp_path / "cache"),
        precision=torch.float32,
        on_progress=lambda done, total: said.append((done, total)),
    )
    assert said == [(done, 8) for done in (1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8)]


# ------------------------------------------------------------------ what is found


def test_a_copy_is_what_the_shift_gives(tmp_path: Path, applied: Counter[str]) -> None:
    expected = [shifted(shift) for shift in SHIFTS]
    assert build(tmp_path, [IDENTITY, *SHIFTS]) == 4
    applied.clear()
    with open_copies(tmp_path) as copies:
        for shift, images in zip(SHIFTS, expected, strict=True):
            assert torch.equal(read(copies, shift), images)
            assert torch.equal(read(copies, shift), images)  # again
    assert not applied
    assert build(tmp_path, SHIFTS) == 0
    assert names(tmp_path, "*.tmp") == set()


def test_other_content_is_another_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (jpeg,) = build_shifts(replace_config(("jpeg",)), "general")
    others: list[Callable[[], int]] = [
        lambda: build(tmp_path, [jpeg]),
        lambda: build(tmp_path, [jpeg], fingerprint="1"),
        lambda: build(tmp_path, [jpeg], name="val"),
        lambda: build(tmp_path, [jpeg], seed=1),
        lambda: build(tmp_path, [replace(jpeg, strength=31.0)]),
        lambda: build(tmp_path, [replace(jpeg, name="mine", operation=OPERATIONS["jpeg"])]),
        lambda: build(tmp_path, [replace(jpeg, name="mine", operation=OPERATIONS["pixelate"], strength=0.3)]),
    ]
    assert [other() for other in others] == [1] * len(others)
    assert [other() for other in others] == [0] * len(others)
    monkeypatch.setattr(cache, "digest_operations", lambda: "changed code")
    assert build(tmp_path, [jpeg]) == 1
    monkeypatch.setattr(cache, "describe_device", lambda device: ["cpu", "another one"])
    assert build(tmp_path, [jpeg]) == 1


def replace_config(shifts: tuple[Any, ...]) -> EvaluationConfig:
    return EvaluationConfig(shifts=shifts, severities=(1,))


def test_the_digest_of_the_operations_is_that_of_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_operations()
    assert digest_operations() == before
    monkeypatch.setattr(cache, "version", lambda library: "another")
    digest_operations.cache_clear()
    assert digest_operations() != before
    digest_operations.cache_clear()


def test_what_is_not_known_from_outside_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.shifts.registry._registered", {})
    register_shift("negative", RegisteredShift(Operation(lambda x, s, seeds: 255 - x, 0.0), (1.0,)))
    own = {"name": "dusk", "op": "brightness_down", "strengths": [0.4]}
    config = replace_config(("negative", {"compose": ["jpeg/1", "negative/1"]}, own, "stain_h0.5_e2", "jpeg"))
    shifts = build_shifts(config, "general")
    assert [name_operation(shift) for shift in shifts] == [None, None, "brightness_down", "stain", "jpeg"]
    assert build(tmp_path, shifts) == 3
    with open_copies(tmp_path) as copies:
        assert all(torch.equal(read(copies, shift), shifted(shift)) for shift in shifts)


def test_on_a_gpu_only_what_the_cpu_computes_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "describe_device", lambda device: [device.type])
    feed = ImageFeed(TEST, torch.device("cpu"))
    feed.device = torch.device("cuda")  # its images stay on the CPU
    seeds = torch.from_numpy(hash_ids(TEST.ids))
    with ShiftedCopies(tmp_path, budget_bytes=2**30, feed=feed, seeds=seeds, content=()) as copies:
        assert [copies._locate(shift) is not None for shift in SHIFTS] == [False, False, True, True]


# ------------------------------------------------------------------ damage, kills, full disks


@pytest.mark.parametrize("damage", ["a byte", "cut", "longer"])
def test_a_damaged_copy_is_not_believed_and_made_again(
    damage: str, tmp_path: Path, applied: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, SHIFTS[:1])
    (path,) = tmp_path.glob("*.u8")
    good = path.read_bytes()
    bad = {"a byte": good[:-1] + bytes([good[-1] ^ 1]), "cut": good[:-1], "longer": good + b"0"}[damage]
    path.write_bytes(bad)
    expected = shifted(SHIFTS[0])
    with open_copies(tmp_path) as copies:
        assert torch.equal(read(copies, SHIFTS[0]), expected)
    assert "is damaged" in caplog.text
    assert build(tmp_path, SHIFTS[:1]) == 1
    assert path.read_bytes() == good


def test_what_a_killed_builder_left_is_built_over(tmp_path: Path) -> None:
    build(tmp_path, SHIFTS[:1])
    (path,) = tmp_path.glob("*.u8")
    good = path.read_bytes()
    path.rename(path.with_suffix(".tmp")).write_bytes(good + good)
    with open_copies(tmp_path) as copies:
        assert torch.equal(read(copies, SHIFTS[0]), shifted(SHIFTS[0]))
    assert build(tmp_path, SHIFTS[:1]) == 1
    assert path.read_bytes() == good
    assert names(tmp_path, "*.tmp") == set()


def test_what_another_process_builds_is_left_to_it(tmp_path: Path, applied: Counter[str]) -> None:
    build(tmp_path, SHIFTS)
    first = min(tmp_path.glob("*.u8"))
    with first.rename(first.with_suffix(".tmp")).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with open_copies(tmp_path) as copies:
            copies.build(SHIFTS, batch_size=10)
            for shift in SHIFTS:
                assert torch.equal(read(copies, shift), shifted(shift))
    assert names(tmp_path, "*.tmp") == {first.with_suffix(".tmp").name}
    assert build(tmp_path, SHIFTS) == 1


def test_several_who_start_at_once_share_the_work(tmp_path: Path, applied: Counter[str]) -> None:
    shifts = build_shifts(EvaluationConfig(shifts=("imagenet-c",), severities=(1, 3)), "general")
    start = threading.Barrier(4)
    wrong: list[Shift] = []

    def evaluate() -> None:
        start.wait()
        with open_copies(tmp_path) as copies:
            copies.build(shifts, batch_size=24)
            wrong.extend(shift for shift in shifts[:3] if not torch.equal(read(copies, shift), shifted(shift)))

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(names(tmp_path)) == len(shifts)
    # each was computed once to be kept; the first three also to be compared, and where they were not ready
    assert all(applied[f"{shift.name}/{shift.severity}"] == 1 for shift in shifts[3:])


def fail(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["os.posix_fallocate", "trainables.shifts.cache.ShiftedCopies._write"])
def test_a_full_disk_is_said_once_and_costs_time_only(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(where, fail)
    with open_copies(tmp_path) as copies:
        copies.build(SHIFTS, batch_size=10)
        assert all(torch.equal(read(copies, shift), shifted(shift)) for shift in SHIFTS)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"no more shifted copies are kept in {tmp_path} ([Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}): "
        "shifts are computed instead"
    ]
    assert names(tmp_path, "*") <= {"room.lock"}


def test_a_folder_that_cannot_be_made_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with open_copies(tmp_path / "file" / "below") as copies:
        copies.build(SHIFTS, batch_size=10)
        assert torch.equal(read(copies, SHIFTS[0]), shifted(SHIFTS[0]))
    assert "no more shifted copies are kept" in caplog.text


# ------------------------------------------------------------------ room


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    build(tmp_path, SHIFTS[:3])
    old = time.time_ns() - 10**12
    for path in tmp_path.glob("*.u8"):
        os.utime(path, ns=(old, old))
    assert build(tmp_path, SHIFTS[1:2]) == 0  # it was used now
    used = {path.name for path in tmp_path.glob("*.u8") if path.stat().st_mtime_ns > old}
    assert len(used) == 1
    assert build(tmp_path, SHIFTS[3:], budget=3) == 1
    assert len(names(tmp_path)) == 3
    assert used < names(tmp_path)


def test_what_is_in_use_is_never_evicted(tmp_path: Path) -> None:
    with open_copies(tmp_path) as copies:
        copies.build(SHIFTS[:2], batch_size=10)
        mine = names(tmp_path)
        assert build(tmp_path, SHIFTS[2:], budget=2) == 0
        assert names(tmp_path) == mine
        assert torch.equal(read(copies, SHIFTS[0]), shifted(SHIFTS[0]))
    assert build(tmp_path, SHIFTS[2:], budget=2) == 2
    assert names(tmp_path).isdisjoint(mine)


def test_a_study_larger_than_the_budget_keeps_what_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert build(tmp_path, SHIFTS, budget=3) == 3
    kept = names(tmp_path)
    assert "1 of 4 shifted copies do not fit" in caplog.text
    assert build(tmp_path, SHIFTS, budget=3) == 0  # and nothing is built in turns, trial after trial
    assert names(tmp_path) == kept


def test_what_killed_builders_left_makes_room(tmp_path: Path) -> None:
    tmp_path.joinpath("0.tmp").write_bytes(bytes(3 * COPY_BYTES))
    assert build(tmp_path, SHIFTS[:1], budget=3) == 1
    assert names(tmp_path, "*.tmp") == set()


def test_room_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, SHIFTS[:1])
    monkeypatch.setattr(cache, "MIN_FREE_BYTES", 2**62)
    assert build(tmp_path, SHIFTS[1:]) == 0
    assert len(names(tmp_path)) == 1  # nothing was evicted in vain
