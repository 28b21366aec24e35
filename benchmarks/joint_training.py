"""Claim: two processes train one trial faster than one process does, on two cores.

    python benchmarks/joint_training.py                           # two cores, about four minutes
    python benchmarks/joint_training.py --images 64 --repeat 1    # quick

Both sides train the same trial, batches and losses included, as ``trial.train_trial`` does; each process has one
thread. They run in turns, and a ratio is the median over the rounds, of seconds per epoch without the first one, in
which processes start. Beside the ratio: how far the losses of the last epoch are apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from common import Line

from trainables.augmentation.memory import keep_all_freed_memory
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.storage.folder import Folder
from trainables.tasks.find import find_task
from trainables.training.acceleration import default_choice
from trainables.training.loop import train_learner
from trainables.trial import build_initial_model, prepare_process

BAR = 1.0


def make_set(name: str, count: int, size: int) -> ImageSet:
    """Return noise of two classes, one of them brighter."""
    generator = np.random.default_rng([count, size])
    labels = np.arange(count) % 2
    images = generator.integers(0, 200, (count, 3, size, size)) + 40 * labels[:, None, None, None]
    ids = np.array([f"{name}-{row}" for row in range(count)])
    return ImageSet(name, images.astype(np.uint8), labels, ids, ids, np.full(count, "noise"))


def train(rank: int, count: int, options: argparse.Namespace, folder: str) -> None:
    """Train the trial in this process, with the others if there are any; ``epochs.jsonl`` has what was measured."""
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=count)
    device = prepare_process(Execution(device="cpu", num_threads=1))
    keep_all_freed_memory()
    config = TrialConfig.model_validate(
        {
            "model": {"name": options.model},
            "augmentation": {"kind": options.augmentation},
            "training": {"epochs": options.epochs, "batch_size": options.batch_size},
        }
    )
    sizes = {"train": options.images, "val": max(2, options.images // 8), "test": 2}
    splits = {name: make_set(name, number, options.image_size) for name, number in sizes.items()}
    data = Dataset("noise", ("dark", "bright"), "", splits, {})
    model = build_initial_model(config, data, encoder=None)
    choice = default_choice(config.model, model, torch.float32, device)
    with find_task(config.task).open_learner(choice.place(model), data, config, choice, Execution()) as learner:
        train_learner(learner, config, signature="bench", folder=Folder(folder), report=lambda record: None)
    if count > 1:
        dist.destroy_process_group()


def measure(count: int, options: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of an epoch with so many processes, and the training loss of the last."""
    context: Any = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as folder:
        processes = [context.Process(target=train, args=(rank, count, options, folder)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode != 0:
                raise RuntimeError(f"a process of {count} ended with exit code {process.exitcode}")
        records = [line["metrics"] for line in Folder(Path(folder)).read_lines("epochs.jsonl")]
    return statistics.median(each["seconds"] for each in records[1:]), records[-1]["train/loss"]


def main() -> None:
    """Print the line of the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--model", default="timm/resnet18")
    parser.add_argument("--augmentation", default="trivialaugment")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    rounds = [(measure(1, options), measure(options.processes, options)) for _ in range(options.repeat)]
    ratios = [alone[0] / together[0] for alone, together in rounds]
    facts = {
        "images_per_second_of_one": options.images / statistics.median(alone[0] for alone, _ in rounds),
        "images_per_second_of_all": options.images / statistics.median(together[0] for _, together in rounds),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "largest_difference_of_losses": max(abs(alone[1] - together[1]) for alone, together in rounds),
        **vars(options),
    }
    Line("joint_training.cpu", statistics.median(ratios), BAR, facts).emit()


if __name__ == "__main__":
    main()
