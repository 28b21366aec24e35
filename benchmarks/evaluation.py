"""Claim: a study's trials share shifted test sets: shifting for 12 of them costs a fifth of shifting anew, or less.

``python benchmarks/evaluation.py``: the 15 shifts of ImageNet-C × 5 severities; one trial after the other, anew and out
of the cache in turns, on one thread, in CPU seconds. Building the copies is counted: the first trial does it. The
predictions of both ways have to be the same files, byte for byte.

``evaluation.shifting`` has a network that does next to nothing (a linear layer on the mean colour), and what passes
without shifts take is subtracted from both: what is left is shifting. ``evaluation.network`` is the whole evaluation
with a small real network. No cache helps with what that takes, and where it is more than an eighth of shifting, a ratio
of 5 cannot be reached: the shares, and the largest ratio that can be, are in the line.
``evaluation.public``, with ``--peer-python`` (see ``shifts.py``): the same network, against imagecorruptions for every
trial.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Line
from shift_images import make_images, run_peer
from torch import nn

from trainables.config import EvaluationConfig, Execution
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.evaluation.predictions import keep, predict_each
from trainables.evaluation.robustness import evaluate_model
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.shifts.tables import load_aliases
from trainables.storage.folder import Folder

BAR = 5.0
NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg",
)  # fmt: skip


def make_data(num_images: int, side: int) -> Dataset:
    """Return a data set whose test set has ``num_images`` colour images, validation 8."""
    images = make_images(num_images, side).transpose(0, 3, 1, 2)
    sets = {"val": make_set("val", images[:8]), "test": make_set("test", images)}
    return Dataset("benchmark", ("no", "yes"), "benchmark", sets, {})


def make_set(name: str, images: np.ndarray) -> ImageSet:
    """Return images with alternating labels."""
    ids = np.array([f"{name}-{index}" for index in range(len(images))])
    return ImageSet(name, np.ascontiguousarray(images), np.arange(len(images)) % 2, ids, ids, ids)


def make_model(name: str, seed: int, side: int) -> Classifier:
    """Return a network with weights of its own, as every trial has."""
    torch.manual_seed(seed)
    return build_model(ModelConfig(name=name, input_size=side), num_classes=2, channels=3, image_size=side)


def make_free_model(side: int) -> Classifier:
    """Return a network that costs next to nothing."""
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    return Classifier(backbone, head="2", mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25), input_size=side)


def time_evaluation(
    model: Classifier, data: Dataset, evaluation: EvaluationConfig, execution: Execution, folder: Path
) -> float:
    """Return the CPU seconds of one trial's evaluation."""
    started = time.process_time()
    evaluate_model(model, data, evaluation, folder=Folder(folder), execution=execution, precision=torch.float32)
    return time.process_time() - started


def time_network(model: Classifier, data: Dataset) -> float:
    """Return the CPU seconds of as many passes without shifts."""
    feed, passes = ImageFeed(data.splits["test"], model.mean.device), 5 * len(NAMES) + 1
    started = time.process_time()
    predict_each(model, feed, [keep] * passes, batch_size=Execution().evaluation_batch_size, precision=torch.float32)
    return time.process_time() - started


def check_same(one: Path, other: Path) -> None:
    """Check that two trials have predicted the same.

    Raises:
        RuntimeError: they have not.
    """
    if (one / "predictions/test.npz").read_bytes() != (other / "predictions/test.npz").read_bytes():
        raise RuntimeError(f"found different predictions in {one} and {other}, expected none to depend on the cache")


@dataclass(frozen=True)
class Times:
    """CPU seconds, one per trial."""

    anew: list[float]
    shared: list[float]
    network: list[float]


def measure(models: list[Classifier], data: Dataset, folder: Path) -> Times:
    """Return what the evaluation of every model takes, both ways."""
    evaluation = EvaluationConfig(shifts=NAMES, modality="general", store_features=())
    caching = Execution(device="cpu", cache_dir=folder / "cache")
    without = caching.model_copy(update={"shift_cache_gib": 0.0})
    few = replace(data, splits={name: make_set(name, images.images[:2]) for name, images in data.splits.items()})
    time_evaluation(models[0], few, evaluation, without, folder / "warm")  # textures, tables
    times = Times([], [], [])
    for model in models:
        times.anew.append(time_evaluation(model, data, evaluation, without, folder / "anew"))
        times.shared.append(time_evaluation(model, data, evaluation, caching, folder / "shared"))
        times.network.append(time_network(model, data))
        check_same(folder / "anew", folder / "shared")
    return times


def describe(times: Times, data: Dataset) -> dict[str, Any]:
    """Return the facts of a line."""
    anew, shared, network = (sum(each) for each in (times.anew, times.shared, times.network))
    return {
        "trials": len(times.anew),
        "shifts": 5 * len(NAMES),
        "anew_cpu_seconds": anew,
        "shared_cpu_seconds": shared,
        "first_trial_cpu_seconds": times.shared[0],
        "later_trial_cpu_seconds": statistics.median(times.shared[1:]),
        "network_share_of_anew": network / anew,
        "network_share_of_shared": network / shared,
        "largest_possible_ratio": anew / (network + max(0.0, anew - network) / len(times.anew)),
        "images": len(data.splits["test"]),
        "image_size": data.splits["test"].images.shape[-1],
    }


def compare_with_public(times: Times, data: Dataset, python: Path, folder: Path) -> Line:
    """Return the line against imagecorruptions: what it takes is measured once, and counted for every trial."""
    images = data.splits["test"].images[:4].transpose(0, 2, 3, 1)
    seconds, aliases = run_peer(python, np.ascontiguousarray(images), folder).seconds, load_aliases()
    mean = {key: value / len(images) for key, value in seconds.items()}
    names = {key: aliases.get(key.split("/")[0], key.split("/")[0]) for key in mean}
    found = [value for key, value in mean.items() if names[key] in NAMES]
    shifting = sum(found) * len(data.splits["test"])
    anew, shared = sum(times.network) + len(times.shared) * shifting, sum(times.shared)
    facts = {"public_cpu_seconds": anew, "shared_cpu_seconds": shared, "public_shifts": len(found)}
    return Line("evaluation.public", anew / shared, BAR, facts)


def main() -> None:
    """Measure and print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="of an environment with imagecorruptions")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--model", default="timm/mobilenetv3_small_050")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = make_data(asked.images, asked.side)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times = measure([make_free_model(asked.side) for _ in range(asked.trials)], data, folder / "shifting")
        rest = sum(times.network)
        ratio = (sum(times.anew) - rest) / (sum(times.shared) - rest)
        Line("evaluation.shifting", ratio, BAR, describe(times, data)).emit()
        models = [make_model(asked.model, seed, asked.side) for seed in range(asked.trials)]
        times = measure(models, data, folder / "network")
        facts = {"model": asked.model, **describe(times, data)}
        Line("evaluation.network", sum(times.anew) / sum(times.shared), BAR, facts).emit()
        if asked.peer_python is not None:
            compare_with_public(times, data, asked.peer_python, folder).emit()


if __name__ == "__main__":
    main()
