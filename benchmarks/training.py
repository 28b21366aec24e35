"""Images per second of a trial's training and evaluation beside the plainest PyTorch loops; how busy a GPU is.

    python benchmarks/training.py                                              # CPU, one thread, about two minutes
    python benchmarks/training.py --images 1024 --epochs 1 --repeat 1          # quick
    python benchmarks/training.py --device cuda --model resnet50 --image-size 224 --images 8192 --batch-size 256

Ours is ``train_model`` as a trial calls it: images out of a memory map, validation, metrics and checkpoint after every
epoch. The bare loop has the images as one uint8 tensor in memory (on a GPU: in its memory), the same network from the
same weights, optimiser, schedule and batch size, a random order, normalisation, and one pass over the validation images
after every epoch; it saves nothing. Both are timed from the first step to the end of the last epoch, in turns, and a
ratio is the median over the rounds. The bare side of ``strong`` has no augmentation: that line says what it costs, and
has no bar. Evaluation is ``predict_each`` with several passes over the set, beside forward passes over the tensor.

On a GPU, the share of time in which kernels run is that of a profiled training (torch.profiler).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Line
from torch import Tensor

from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.evaluation.predictions import keep, predict_each
from trainables.models.networks import Classifier
from trainables.storage.folder import Folder
from trainables.training.loop import resolve_precision, train_model
from trainables.trial import build_initial_model, prepare_process

BAR, BUSY_BAR = 0.95, 0.9
NUM_CLASSES, CHANNELS, PASSES, EVALUATION_BATCH = 4, 3, 4, 256


@dataclass(frozen=True)
class Job:
    """What is trained, and on what."""

    data: Dataset
    config: TrialConfig
    device: torch.device

    def build(self) -> Classifier:
        """Return the network with the weights that both sides start from."""
        model = build_initial_model(self.config, self.data, encoder=None).to(self.device)
        return model.to(memory_format=torch.channels_last) if self.device.type == "cuda" else model

    def load(self, name: str) -> tuple[Tensor, Tensor]:
        """Return images and labels of a split as tensors on the device."""
        images = self.data.splits[name]
        return torch.from_numpy(np.array(images.images)).to(self.device), torch.from_numpy(images.labels).to(
            self.device
        )


def make_set(folder: Path, name: str, count: int, size: int) -> ImageSet:
    """Write random images and return them mapped; the label shows in their brightness."""
    generator = np.random.default_rng([count, size])
    labels = generator.integers(0, NUM_CLASSES, count)
    shape = (count, CHANNELS, size, size)
    images = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
    for row, label in enumerate(labels):
        images[row] = generator.integers(0, 128 + 32 * label, shape[1:], dtype=np.uint8)
    images.flush()
    ids = np.array([f"{name}-{row}" for row in range(count)])
    mapped = np.load(folder / f"{name}.npy", mmap_mode="r")
    return ImageSet(name, mapped, labels.astype(np.int64), ids, ids, np.full(count, ""))


def make_data(folder: Path, count: int, size: int) -> Dataset:
    """Return random train images, and an eighth as many for val and for test."""
    sets = {name: make_set(folder, name, number, size) for name, number in
            (("train", count), ("val", count // 8), ("test", count // 8))}  # fmt: skip
    return Dataset("random", tuple("abcd"), "", sets, {})


# ------------------------------------------------------------------ the two ways


def train_ours(job: Job, model: Classifier) -> list[dict[str, Any]]:
    """Train as a trial does; return the epochs' records."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as folder:
        train_model(model, job.data, job.config, signature="bench", folder=Folder(folder), report=records.append)
    return records


def train_bare(job: Job, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], model: Classifier) -> None:
    """Train as one does in a notebook."""
    training, (images, labels) = job.config.training, train
    precision = resolve_precision(training, job.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.0)
    num_steps = training.epochs * -(-len(labels) // training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for _ in range(training.epochs):
        model.train()
        for rows in torch.randperm(len(labels), device=job.device).split(training.batch_size):
            inputs = (images[rows].float() / 255.0 - model.mean) / model.std
            with torch.autocast(job.device.type, precision, enabled=precision != torch.float32):
                loss = F.cross_entropy(model(inputs), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        logits = forward_bare(job, model, val[0])
        float((logits.argmax(1) == val[1]).float().mean())


@torch.inference_mode()
def forward_bare(job: Job, model: Classifier, images: Tensor) -> Tensor:
    """Return the logits of images, batch by batch."""
    model.eval()
    precision = resolve_precision(job.config.training, job.device)
    with torch.autocast(job.device.type, precision, enabled=precision != torch.float32):
        batches = images.split(EVALUATION_BATCH)
        return torch.cat([model((batch.float() / 255.0 - model.mean) / model.std) for batch in batches])


def evaluate_ours(job: Job, model: Classifier) -> None:
    """Predict the training images in several passes, as an evaluation under several shifts does."""
    feed = ImageFeed(job.data.splits["train"], job.device)
    precision = resolve_precision(job.config.training, job.device)
    predict_each(model, feed, [keep] * PASSES, batch_size=EVALUATION_BATCH, precision=precision)


def evaluate_bare(job: Job, images: Tensor, model: Classifier) -> None:
    """Predict the same images as often."""
    for _ in range(PASSES):
        forward_bare(job, model, images).float().cpu()


# ------------------------------------------------------------------ measuring


def take_time(job: Job, work: Callable[[Classifier], Any]) -> tuple[float, float]:
    """Return seconds and CPU seconds of ``work`` on a fresh network, to the end of its last kernel."""
    model = job.build()
    _synchronise(job.device)
    started, used = time.perf_counter(), time.process_time()
    work(model)
    _synchronise(job.device)
    return time.perf_counter() - started, time.process_time() - used


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    claim: Line,
    job: Job,
    ours: Callable[[Classifier], Any],
    bare: Callable[[Classifier], Any],
    *,
    images: int,
    repeat: int,
) -> Line:
    """Return the claim with what was measured; the first round, which warms up, does not count.

    Args:
        claim: name and bar.
        job: where it runs.
        ours: one way.
        bare: the other.
        images: that each of them goes through.
        repeat: rounds that count.
    """
    rounds = [(take_time(job, ours), take_time(job, bare)) for _ in range(repeat + 1)][1:]
    ratios = [peer[0] / mine[0] for mine, peer in rounds]
    facts = {
        "ours_images_per_second": images / statistics.median(mine[0] for mine, _ in rounds),
        "bare_images_per_second": images / statistics.median(peer[0] for _, peer in rounds),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "ratio_by_cpu_seconds": statistics.median(peer[1] / mine[1] for mine, peer in rounds),
        "repeat": repeat,
    }
    return replace(claim, ratio=statistics.median(ratios), facts={**claim.facts, **facts, **describe(job)})


def describe(job: Job) -> dict[str, Any]:
    """Return what was trained, for the lines."""
    return {
        "model": job.config.model.name,
        "image_size": job.data.splits["train"].images.shape[-1],
        "images": len(job.data.splits["train"]),
        "batch_size": job.config.training.batch_size,
        "epochs": job.config.training.epochs,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "cpu",
    }


def compute_busy_share(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the share of the time from the first start to the last end in which at least one interval runs.

    >>> compute_busy_share([(0, 2), (1, 3), (9, 10)])
    0.4
    """
    ordered = sorted(intervals)
    busy, end = 0.0, ordered[0][0]
    for start, stop in ordered:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / (end - ordered[0][0])


def measure_busy(job: Job) -> Line:
    """Return the line of how busy a GPU is while ours trains, validation and checkpoints included."""
    train_ours(job, job.build())
    model = job.build()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        train_ours(job, model)
        _synchronise(job.device)
    events = profiler.events() or ()
    spans = [(event.time_range.start, event.time_range.end) for event in events if event.device_type.name == "CUDA"]
    return Line("training.busy.cuda", compute_busy_share(spans), BUSY_BAR, {"kernels": len(spans)} | describe(job))


def measure(job: Job, strong: Job, repeat: int) -> Iterable[Line]:
    """Yield one line per claim."""
    train, val = job.load("train"), job.load("val")
    place = job.device.type
    bars = {"none": (BAR, {}), "strong": (0.0, {"bar_is": "none: the bare loop does not augment"})}
    for ours, (name, (bar, note)) in zip((job, strong), bars.items(), strict=True):
        yield compare(
            Line(f"training.{name}.{place}", 0.0, bar, note),
            job,
            partial(train_ours, ours),
            partial(train_bare, job, train, val),
            images=len(train[1]) * job.config.training.epochs,
            repeat=repeat,
        )
    yield compare(
        Line(f"training.evaluation.{place}", 0.0, BAR, {}),
        job,
        partial(evaluate_ours, job),
        partial(evaluate_bare, job, train[0]),
        images=len(train[1]) * PASSES,
        repeat=repeat,
    )
    if job.device.type == "cuda":
        yield measure_busy(job)


def main() -> None:
    """Measure and print one JSON line per claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--model", default="timm/test_resnet")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    config = TrialConfig.model_validate(
        {
            "model": {"name": asked.model, "input_size": asked.image_size, "stem": "original"},
            "training": {"epochs": asked.epochs, "batch_size": asked.batch_size},
        }
    )
    strong = TrialConfig.model_validate({**config.model_dump(), "augmentation": {"kind": "strong"}})
    device = prepare_process(Execution(device=asked.device, num_threads=asked.threads))
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as folder:
        data = make_data(Path(folder), asked.images, asked.image_size)
        for line in measure(Job(data, config, device), Job(data, strong, device), asked.repeat):
            line.emit()


if __name__ == "__main__":
    main()
