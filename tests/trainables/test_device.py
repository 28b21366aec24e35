"""What holds on a GPU as on a CPU: ``make gpu-check`` runs these on a GPU, ``make test`` on the CPU.

The device is ``ROBUSTSWEEP_TEST_DEVICE`` (cpu unless set). Only ``trainables`` and what it imports are needed, and a
module of the driver that imports no more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.ledger.failures import describe_failure
from tests.support.paths import ROOT
from tests.support.tiny_configs import random_set, tiny_trial
from trainables.augmentation.pipeline import build_augmentation
from trainables.augmentation_config import NoAugmentation, StrongAugmentation
from trainables.config import EvaluationConfig, Execution
from trainables.data import feed
from trainables.data.feed import ImageFeed
from trainables.errors import ConfigError
from trainables.evaluation.predictions import load_predictions
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import build_shifts
from trainables.storage.folder import Folder
from trainables.trial import prepare_process, run_trial

pytestmark = pytest.mark.cuda

DEVICE = os.environ.get("ROBUSTSWEEP_TEST_DEVICE", "cpu")
TRAINING = {"epochs": 3, "batch_size": 32, "label_fraction": 0.1}
#: A process that has preloaded, as the fork server of trials, and a child of it that uses the device.
_FORK = """
import os, sys, torch
from trainables.preload import preload
preload(["shufflenet_v2_x0_5"], contrastive="lightly" in sys.argv)
assert not torch.cuda.is_initialized()
if os.fork() == 0:
    os._exit(0 if float(torch.ones(8, device=sys.argv[1]).sum()) == 8.0 else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


class Interruption(BaseException):
    """Ends a trial from outside."""


@pytest.fixture(scope="module")
def device() -> torch.device:
    # Here alone: the sums of a gradient would depend on the order in which a GPU's blocks end.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return prepare_process(Execution(device=DEVICE, num_threads=1))


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True, warn_only=False)
    yield
    torch.use_deterministic_algorithms(False)


def draw_images(number: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(random_set("device", number, channels=3, size=size).images)
    return images, mix(torch.from_numpy(hash_ids(map(str, range(number)))), 0)


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Rounding may move a value to the next level; a GPU's functions differ in their last bit."""
    difference = (found.cpu().int() - expected.int()).abs()
    assert int((difference > 1).sum()) <= difference.numel() // 1000
    assert float((difference > 0).float().mean()) < 0.02


def run(config: Any, folder: Path, report: Any = lambda event: None) -> dict[str, Any]:
    execution = Execution(device=DEVICE, cache_dir=folder.parent / "cache")
    return run_trial(config, signature="s", folder=Folder(str(folder)), execution=execution, report=report)


@pytest.mark.parametrize("policy", ["strong-v0.1.0", "strong-v1"])
def test_augmentation_gives_the_images_of_the_cpu(device: torch.device, policy: str) -> None:
    images, seeds = draw_images(24, 64)
    augment = build_augmentation(StrongAugmentation.model_validate({"policy": policy, "horizontal_flip": True}), 64)
    expected, found = augment(images, seeds), augment(images.to(device), seeds.to(device))
    assert found.device.type == device.type
    assert not torch.equal(expected, images)
    assert_alike(found, expected)


def test_crops_are_those_of_the_cpu(device: torch.device) -> None:
    """Masks exactly; images to a level, since the CPU's kernel rounds between rows and columns."""
    images, seeds = draw_images(24, 64)
    crop = build_augmentation(NoAugmentation(crop_scale_min=0.5, horizontal_flip=True, vertical_flip=True), 48)
    expected, found = crop(images, seeds), crop(images.to(device), seeds.to(device))
    assert found.shape == (24, 3, 48, 48)
    assert int((found.cpu().int() - expected.int()).abs().max()) <= 1
    masks = images[:, :1]
    assert torch.equal(crop.move(masks.to(device), seeds.to(device)).cpu(), crop.move(masks, seeds))


@pytest.mark.parametrize("bank", ["imagenet-c", "medmnist-c"])
def test_shifts_give_the_images_of_the_cpu(device: torch.device, bank: str) -> None:
    images, seeds = draw_images(4, 64)
    modality = "general" if bank == "imagenet-c" else "dermoscopy"
    shifts = build_shifts(EvaluationConfig(shifts=bank, modality=modality, severities=(1, 5)), modality)
    assert len(shifts) > 10
    for shift in shifts:
        assert_alike(shift.apply(images.to(device), seeds.to(device)), shift.apply(images, seeds))


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_feed_gives_the_images_asked_for(device: torch.device, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the GPU's memory (or mapped), and, if they do not fit there, read ahead batch by batch."""
    monkeypatch.setattr(feed, "GPU_COPY_SHARE", share)
    images = random_set("feed", 50, channels=3, size=16)
    rows = np.random.default_rng(0).permutation(50)
    batches = list(ImageFeed(images, device).batches(rows, [20, 20, 10]))
    assert [batch.device.type for batch in batches] == [device.type] * 3
    assert np.array_equal(torch.cat(batches).cpu().numpy(), images.images[rows])


@pytest.mark.usefixtures("device", "deterministic")
def test_a_trial_interrupted_and_continued_is_the_uninterrupted_one(tmp_path: Path) -> None:
    config = tiny_trial(training=TRAINING, augmentation={"kind": "strong"}, evaluation={"shifts": ["gaussian_noise"]})

    def interrupt(event: Any) -> None:
        if event.get("epoch") == 2:
            raise Interruption

    whole = run(config, tmp_path / "whole")
    with pytest.raises(Interruption):
        run(config, tmp_path / "stopped", interrupt)
    continued = run(config, tmp_path / "stopped")
    assert continued["metrics"] == whole["metrics"]
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()
    logits = [load_predictions(Folder(str(tmp_path / name)), "test").logits for name in ("whole", "stopped")]
    assert np.array_equal(*logits)
    assert ("peak_gpu_memory_mib" in whole) == (DEVICE != "cpu")


def test_bfloat16_trains_like_float32(device: torch.device, tmp_path: Path) -> None:
    def train(precision: str) -> list[float]:
        config = tiny_trial(training={**TRAINING, "epochs": 2, "precision": precision}, evaluation={"shifts": []})
        assert run(config, tmp_path / precision)["environment"]["precision"] == precision
        return [line["metrics"]["train/loss"] for line in Folder(str(tmp_path / precision)).read_lines("epochs.jsonl")]

    losses = train("float32")
    if device.type == "cpu":
        with pytest.raises(ConfigError, match="found bfloat16 on a CPU"):
            train("bfloat16")
    else:
        found = train("bfloat16")
        assert found == pytest.approx(losses, rel=0.05)
        assert found != losses


def test_a_gpu_without_memory_is_told_from_a_machine_without(device: torch.device) -> None:
    """The driver gives the former a larger share of a GPU, and tells them apart by the error alone."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56, dtype=torch.uint8, device=device)
    expected = "out of memory" if device.type == "cpu" else "out of GPU memory"
    assert describe_failure(caught.value)["reason"] == expected


def test_preloading_leaves_the_gpu_to_the_children() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK, DEVICE], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
