"""Claim: a segmentation trains at .95 of the speed of the plainest loop with segmentation-models-pytorch, or more.

    python benchmarks/segmentation_training.py                                    # CPU, one thread, about three minutes
    python benchmarks/segmentation_training.py --images 16 --steps 4 --repeat 1   # quick

Ours is the training of a trial: patches out of mapped images, targets moved along, Dice and checkpoint after every
epoch. The bare loop has images and masks in memory, cuts the same number of patches of the same size, and has the same
network from the same weights, optimiser, schedule, losses and batch size; after every epoch it predicts the same
validation images and computes their Dice; it saves nothing. Neither augments. Both run in turns; a ratio is the median
over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from common import Line
from torch import Tensor
from torch.nn import functional as F

from trainables.augmentation.memory import keep_all_freed_memory
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.models.networks import Classifier
from trainables.storage.folder import Folder
from trainables.tasks.find import find_task
from trainables.training.acceleration import default_choice
from trainables.training.loop import train_learner
from trainables.trial import build_initial_model, prepare_process

BAR = 0.95


def make_set(name: str, count: int, size: int) -> ImageSet:
    """Return noise with discs that are brighter, and their masks."""
    generator = np.random.default_rng([count, size])
    rows, columns = np.mgrid[:size, :size]
    centres, radii = generator.uniform(0, size, (count, 2, 1, 1)), generator.uniform(size / 16, size / 4, (count, 1, 1))
    targets = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < radii**2).astype(np.uint8)
    images = generator.integers(0, 160, (count, 3, size, size)) + 90 * targets[:, None]
    ids = np.array([f"{name}-{row}" for row in range(count)])
    nothing = np.zeros(count, dtype=np.int64)
    return ImageSet(name, images.astype(np.uint8), nothing, ids, ids, np.full(count, "discs"), targets=targets)


def make_config(options: argparse.Namespace) -> TrialConfig:
    """Return the trial that both sides train."""
    return TrialConfig.model_validate(
        {
            "task": {
                "kind": "segmentation",
                "depth": 4,
                "width": 64,
                "patch_size": options.patch_size,
                "patches_per_epoch": options.batch_size * options.steps,
                "overlap": 0.25,
            },
            "model": {"name": options.model},
            "training": {"epochs": options.epochs, "batch_size": options.batch_size},
        }
    )


def train_ours(data: Dataset, config: TrialConfig, model: Classifier) -> None:
    """Train as a trial does."""
    choice = default_choice(config.model, model, torch.float32, torch.device("cpu"))
    execution = Execution(device="cpu")
    with (
        tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as folder,
        find_task(config.task).open_learner(model, data, config, choice, execution) as learner,
    ):
        train_learner(learner, config, signature="bench", folder=Folder(folder), report=lambda record: None)


def train_bare(data: Dataset, config: TrialConfig, model: Classifier) -> None:
    """Train as one does in a notebook."""
    task: Any = config.task
    training, size = config.training, task.patch_size
    (images, masks), (val, val_masks) = (load(data.splits[name]) for name in ("train", "val"))
    overlap = smp.losses.DiceLoss("multiclass", classes=[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.0)
    steps = task.patches_per_epoch // training.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * training.epochs)
    for _ in range(training.epochs):
        model.train()
        for _ in range(steps):
            rows = torch.randint(len(images), (training.batch_size,))
            corners = torch.randint(images.shape[-1] - size + 1, (training.batch_size, 2)).tolist()
            places = [(row, top, left) for row, (top, left) in zip(rows.tolist(), corners, strict=True)]
            patches = torch.stack([images[i, :, y : y + size, x : x + size] for i, y, x in places])
            wanted = torch.stack([masks[i, y : y + size, x : x + size] for i, y, x in places])
            logits = model((patches.float() / 255.0 - model.mean) / model.std)
            loss = overlap(logits, wanted) + F.cross_entropy(logits, wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        validate_bare(model, val, val_masks, size)


@torch.inference_mode()
def validate_bare(model: Classifier, images: Tensor, masks: Tensor, size: int) -> float:
    """Return the mean Dice of whole images, from windows of ``size`` px that share a quarter with the next."""
    from monai.inferers import sliding_window_inference

    model.eval()
    inputs = (images.float() / 255.0 - model.mean) / model.std
    logits: Any = sliding_window_inference(inputs, size, 16, model, overlap=0.25, mode="gaussian")
    found = logits.argmax(1)
    counts = smp.metrics.get_stats(found[:, None], masks[:, None], mode="binary")
    return float(smp.metrics.f1_score(*counts, reduction="micro-imagewise"))


def load(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return images and masks of a split as tensors."""
    return torch.from_numpy(np.array(images.images)), torch.from_numpy(np.array(images.targets)).long()


def take_time(
    work: Callable[[Dataset, TrialConfig, Classifier], None], data: Dataset, config: TrialConfig
) -> tuple[float, float]:
    """Return seconds and CPU seconds of ``work`` on a network with the initial weights."""
    model = build_initial_model(config, data, encoder=None)
    model = default_choice(config.model, model, torch.float32, torch.device("cpu")).place(model)
    started, used = time.perf_counter(), time.process_time()
    work(data, config, model)
    return time.perf_counter() - started, time.process_time() - used


def main() -> None:
    """Print the line of the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--patch-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="Per epoch.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--model", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    prepare_process(Execution(device="cpu", num_threads=1))
    keep_all_freed_memory()  # as the process of a trial does; the bare loop, which runs in this one, gains as much
    sets = {"train": options.images, "val": max(2, options.images // 8), "test": 2}
    splits = {name: make_set(name, count, options.image_size) for name, count in sets.items()}
    data = Dataset("discs", ("background", "disc"), "", splits, {}, components=("discs",))
    config = make_config(options)
    rounds = [
        (take_time(train_ours, data, config), take_time(train_bare, data, config)) for _ in range(options.repeat + 1)
    ][1:]
    ratios = [peer[0] / mine[0] for mine, peer in rounds]
    patches = options.batch_size * options.steps * options.epochs
    facts = {
        "ours_patches_per_second": patches / statistics.median(mine[0] for mine, _ in rounds),
        "bare_patches_per_second": patches / statistics.median(peer[0] for _, peer in rounds),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "ratio_by_cpu_seconds": statistics.median(peer[1] / mine[1] for mine, peer in rounds),
        **vars(options),
    }
    Line("segmentation.training.cpu", statistics.median(ratios), BAR, facts).emit()


if __name__ == "__main__":
    main()
