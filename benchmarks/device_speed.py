"""Strong augmentation and shifts on a device: images per second beside the bars for a GPU.

    python benchmarks/device_speed.py --device cuda
    python benchmarks/device_speed.py --device cpu --images 8 --repeat 1     # the same lines, small; no bar is reached

- *augmentation*: the strong policy at 224 px in batches of ``--images``; the bar is 10,000 images a second.
- *shifts*: the 95 shifts of ImageNet-C at 224 px, as many images at a time, beside the CPU reference (imagecorruptions)
  on one core; the bar is 100 times. The reference is not run here: its time is that of ours on one core of this
  machine, times the committed ratio between both (``shifts`` in results.json, measured by ``shifts.py``).

Median of the rounds, after one that is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from augmentation import time_resnet_step
from common import Line
from shift_images import make_images
from shifts import imagenet_c, time_shifts

from trainables.augmentation.pipeline import build_augmentation
from trainables.augmentation_config import StrongAugmentation
from trainables.config import Execution
from trainables.seeding import hash_ids, mix
from trainables.trial import prepare_process

AUGMENTATION_BAR, SHIFTS_BAR = 10_000.0, 100.0
SIDE_PX = 224
RESULTS = Path(__file__).parent / "results.json"


def draw_batch(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (count, 3, 224, 224) and their seeds on the device."""
    drawn = torch.from_numpy(make_images(min(count, 64), SIDE_PX).transpose(0, 3, 1, 2).copy())
    images = drawn.repeat(-(-count // len(drawn)), 1, 1, 1)[:count].contiguous()
    return images.to(device), mix(torch.from_numpy(hash_ids(map(str, range(count)))), 0).to(device)


def median_seconds(call: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Return the median wall-clock seconds of a call, the device's work included."""
    found = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def measure_augmentation(device: torch.device, count: int, repeat: int) -> Line:
    """Return the line of the strong policy."""
    images, seeds = draw_batch(count, device)
    augment = build_augmentation(StrongAugmentation(), SIDE_PX)
    rate = count / median_seconds(partial(augment, images, seeds), device, repeat)
    facts = {
        "images_per_second": rate,
        "share_of_resnet50_step": 1.0 / rate / time_resnet_step(device, count),
        "batch_size": count,
        "device": describe(device),
    }
    return Line(f"device.augmentation.{device.type}", rate / AUGMENTATION_BAR, 1.0, facts)


def measure_shifts(device: torch.device, count: int, repeat: int) -> Line:
    """Return the line of the shifts."""
    shifts = imagenet_c()
    few, _ = draw_batch(4, torch.device("cpu"))
    time_shifts(few[:1], shifts)
    own = len(few) * len(shifts) / sum(time_shifts(few, shifts).values())
    committed = next(line["ratio"] for line in json.loads(RESULTS.read_text()) if line["benchmark"] == "shifts")
    images, _ = draw_batch(count, device)
    time_shifts(images, shifts)
    seconds = statistics.median(sum(time_shifts(images, shifts).values()) for _ in range(repeat))
    rate = count * len(shifts) / seconds
    facts = {
        "images_x_severities_per_second": rate,
        "own_cpu_images_x_severities_per_second": own,
        "reference_images_x_severities_per_second": own / committed,
        "batch_size": count,
        "device": describe(device),
    }
    return Line(f"device.shifts.{device.type}", rate / (own / committed), SHIFTS_BAR, facts)


def describe(device: torch.device) -> str:
    """Return the name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main() -> None:
    """Measure and print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    asked = parser.parse_args()
    device = prepare_process(Execution(device=asked.device, num_threads=1))
    measure_augmentation(device, asked.images, asked.repeat).emit()
    measure_shifts(device, asked.images, asked.repeat).emit()


if __name__ == "__main__":
    sys.exit(main())
