"""Replicates of a small model on one device: one after another, side by side, stacked; and whether stacked is the same.

    python benchmarks/packing.py --epochs 2 --image-size 16
    python benchmarks/packing.py --device cuda --epochs 4 --image-size 32      # the bar, 2 times, is for a GPU

- one after another: one process, one model at a time.
- side by side: forked processes that share the device, each with its models one after another: 8 on a GPU (no MPS), as
  many as cores, of one thread each, on a CPU.
- stacked: one process, ``stacking.py``.

All three train from the same weights on the same images in the same order, and are timed without process start, data
and warm-up. On a CPU one after another and stacked may use all cores (``--threads``); on a busy machine, look at CPU
seconds. The largest difference between stacked and one after another after one epoch is printed for SGD, in float32
and, to show that it is rounding, in float64.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Line
from stacking import StackedTrainer

from trainables.augmentation.pipeline import build_augmentation
from trainables.config import Execution, TrialConfig
from trainables.data.batches import TrainingImages
from trainables.data.dataset import Dataset
from trainables.data.load import load_dataset
from trainables.models.networks import Classifier
from trainables.preload import preload
from trainables.training.loop import resolve_precision
from trainables.training.losses import build_loss
from trainables.training.optimisation import build_optimiser, learning_rate_factor
from trainables.trial import build_initial_model, prepare_process

GPU_BAR = 2.0
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Job:
    """What is trained, and where."""

    cache_dir: Path
    device: str
    threads: int
    replicates: int
    epochs: int
    image_size: int
    batch_size: int
    model: str
    label_fraction: float = 1.0
    optimiser: str = "adamw"
    precision: str = "auto"

    def configs(self, *, label_fraction: float | None = None) -> list[TrialConfig]:
        """Return the trials, one per replicate."""
        first = TrialConfig.model_validate(
            {
                "data": {"kind": "digits", "image_size": self.image_size},
                "model": {"name": self.model, "input_size": self.image_size, "stem": "original"},
                "training": {
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "label_fraction": self.label_fraction if label_fraction is None else label_fraction,
                    "optimiser": self.optimiser,
                    "precision": self.precision,
                },
            }
        )
        return [first.model_copy(update={"replicate": number}) for number in range(self.replicates)]

    def prepare(self) -> tuple[torch.device, Dataset]:
        """Fix this process's device and threads; return the device and the data."""
        execution = Execution(device=self.device, num_threads=self.threads, cache_dir=self.cache_dir)
        return prepare_process(execution), load_dataset(self.configs()[0].data, cache_dir=self.cache_dir)


#: Trains models (of these trials, on these data) to the end, in place.
Train = Callable[[Sequence[Classifier], Dataset, Sequence[TrialConfig]], None]


def train_alone(models: Sequence[Classifier], data: Dataset, configs: Sequence[TrialConfig]) -> None:
    """Train one model after the other, with the parts of the product's own loop."""
    for model, config in zip(models, configs, strict=True):
        train_model(model, data, config)


def train_model(model: Classifier, data: Dataset, config: TrialConfig) -> None:
    """Train one model: seeded batches → augmentation → forward → loss → backward → step."""
    device, training = model.mean.device, config.training
    precision = resolve_precision(training, device)
    batches = TrainingImages(data.splits["train"], config, device)
    augment = build_augmentation(config.augmentation, config.data.image_size)
    loss = build_loss(
        config.regulariser,
        class_weights=None,
        num_classes=data.num_classes,
        groups=batches.groups,
        device=device,
    )
    _, optimiser = build_optimiser(model, config)
    model.train()
    num_steps, step = batches.num_batches * training.epochs, 0
    for epoch in range(1, training.epochs + 1):
        for images, labels, groups, seeds in batches.epoch(epoch):
            for group in optimiser.param_groups:
                group["lr"] = training.learning_rate * learning_rate_factor(step, num_steps, 0, training.schedule)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = model(model.normalise(augment(images, seeds)))
            total = torch.stack(list(loss(logits, labels, groups, step).values())).sum()
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            step += 1


def train_stacked(models: Sequence[Classifier], data: Dataset, configs: Sequence[TrialConfig]) -> None:
    """Train all models at once."""
    trainer = StackedTrainer(models, data, configs)
    for _ in range(configs[0].training.epochs):
        trainer.run_epoch()
    trainer.write_back()


def build(configs: Sequence[TrialConfig], data: Dataset, device: torch.device) -> list[Classifier]:
    """Return the models that the trials start from."""
    return [build_initial_model(config, data, encoder=None).to(device) for config in configs]


def time_training(
    job: Job, train: Train, replicates: Sequence[int], start: Any = None, answers: Any = None
) -> tuple[float, float, float]:
    """Train some replicates in this process; return (and put) when training began and ended, and its CPU seconds.

    Args:
        job: what is trained.
        train: how.
        replicates: which.
        start: barrier at which all processes wait until everybody has warmed up.
        answers: queue for the answer, in a process of its own.
    """
    device, data = job.prepare()
    configs = [job.configs()[number] for number in replicates]
    small = [job.configs(label_fraction=0.1)[number] for number in replicates]
    train(build(small, data, device), data, small)
    models = build(configs, data, device)
    _synchronise(device)
    if start is not None:
        start.wait()
    began, used = time.monotonic(), time.process_time()
    train(models, data, configs)
    _synchronise(device)
    answer = (began, time.monotonic(), time.process_time() - used)
    if answers is not None:
        answers.put(answer)
    return answer


def run_processes(job: Job, train: Train, shares: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Train each share of the replicates in a forked process; return the seconds they took, and all CPU seconds.

    Raises:
        RuntimeError: a process failed.
    """
    start, answers = FORK.Barrier(len(shares), timeout=300), FORK.Queue()
    processes = [FORK.Process(target=time_training, args=(job, train, share, start, answers)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"trained in {len(shares)} processes and {[p.exitcode for p in processes]} came back")
    times = [answers.get() for _ in shares]
    return max(time[1] for time in times) - min(time[0] for time in times), sum(time[2] for time in times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_difference(job: Job, dtype: torch.dtype) -> dict[str, float]:
    """Return the largest differences between stacked and one after another, after one epoch of SGD.

    Keys: ``weights`` and statistics, ``logits`` on the validation images, both absolute; and ``loss`` on them.
    """
    job = replace(job, epochs=1, optimiser="sgd", precision="float32")
    device, data = job.prepare()
    torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa would hide what is asked for
    torch.set_float32_matmul_precision("highest")
    configs = job.configs()
    alone = [model.to(dtype) for model in build(configs, data, device)]
    for model in alone:
        model.register_forward_pre_hook(lambda _, inputs: inputs[0].to(dtype))
    stacked = copy.deepcopy(alone)
    train_alone(alone, data, configs)
    train_stacked(stacked, data, configs)
    images = torch.from_numpy(np.array(data.splits["val"].images)).to(device)
    labels = torch.from_numpy(np.array(data.splits["val"].labels)).to(device)
    largest = {"weights": 0.0, "logits": 0.0, "loss": 0.0}
    for one, other in zip(alone, stacked, strict=True):
        for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            largest["weights"] = max(largest["weights"], float((mine - theirs).abs().max()))
        with torch.inference_mode():
            first, second = (model.eval()(model.normalise(images)) for model in (one, other))
            losses = [torch.nn.functional.cross_entropy(logits, labels) for logits in (first, second)]
        largest["logits"] = max(largest["logits"], float((first - second).abs().max()))
        largest["loss"] = max(largest["loss"], float((losses[0] - losses[1]).abs()))
    return largest


def in_process(function: Callable[[], Any]) -> Any:
    """Return what ``function`` returns in a forked process: this one never touches the device."""
    answers = FORK.Queue()
    process = FORK.Process(target=lambda: answers.put(function()))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a process ended with exit code {process.exitcode}")
    return answers.get()


def _describe_device(job: Job) -> tuple[str, str]:
    device, _ = job.prepare()
    return device.type, torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def measure(job: Job, repeat: int) -> Line:
    """Return the line; with several repeats, taken in turns, the figures of each way are those of its fastest."""
    kind, device_name = in_process(lambda: _describe_device(job))
    everyone = range(job.replicates)
    at_once = job.replicates if kind == "cuda" else min(job.replicates, job.threads)
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "one_after_another": partial(run_processes, job, train_alone, [everyone]),
        "side_by_side": partial(
            run_processes, replace(job, threads=1), train_alone, [everyone[first::at_once] for first in range(at_once)]
        ),
        "stacked": partial(run_processes, job, train_stacked, [everyone]),
    }
    rounds = [{name: way() for name, way in ways.items()} for _ in range(repeat)]
    taken = {name: min(taken[name] for taken in rounds) for name in ways}
    images = in_process(lambda: len(job.prepare()[1].splits["train"])) * job.replicates * job.epochs
    seconds, cpu = ({name: took[index] for name, took in taken.items()} for index in (0, 1))
    ratios = {name: seconds["one_after_another"] / took for name, took in seconds.items()}
    best = max(("side_by_side", "stacked"), key=lambda name: ratios[name])
    facts = {
        "best": best,
        "side_by_side": ratios["side_by_side"],
        "stacked": ratios["stacked"],
        "images_per_second": {name: images / took for name, took in seconds.items()},
        "seconds": seconds,
        "cpu_seconds": cpu,
        "stacked_by_cpu_seconds": cpu["one_after_another"] / cpu["stacked"],
        "largest_difference_float32": in_process(lambda: measure_difference(job, torch.float32)),
        "largest_difference_float64": in_process(lambda: measure_difference(job, torch.float64)),
        "model": job.model,
        "image_size": job.image_size,
        "batch_size": job.batch_size,
        "epochs": job.epochs,
        "threads": job.threads,
        "processes": at_once,
        "device": device_name,
        "bar_is": "for a GPU" if kind == "cuda" else "none on a CPU",
    }
    return Line(f"packing.{kind}.{job.replicates}", ratios[best], GPU_BAR if kind == "cuda" else 0.0, facts)


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--replicates", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--label-fraction", type=float, default=1.0, help="Share of the images.")
    parser.add_argument("--model", default="timm/test_resnet")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of one after another and stacked")
    parser.add_argument("--repeat", type=int, default=1)
    asked = vars(parser.parse_args())
    repeat = asked.pop("repeat")
    preload([asked["model"]])  # once, not in every fork
    with tempfile.TemporaryDirectory(prefix="robustsweep-bench-") as root:
        measure(Job(cache_dir=Path(root), **asked), repeat).emit()


if __name__ == "__main__":
    main()
