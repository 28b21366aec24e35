"""Metrics of segmentations beside MONAI case by case; strong augmentation of image and mask beside per-image code.

    python benchmarks/segmentation.py                                # a few minutes
    python benchmarks/segmentation.py --quick                        # 20 cases, 32 images, seconds
    python benchmarks/segmentation.py --peer-python ENV/bin/python   # augments there, with OpenCV if it has it
    python benchmarks/segmentation.py --only augmentation            # or metrics

- *metrics*: Dice, IoU, sensitivity, precision, HD95, ASSD and NSD of 200 cases at 512 × 512, of one organ each and of
  vessels; MONAI is called once per case and metric, for all but sensitivity and precision. Dice and IoU have to agree
  to 1e-6, distances to half a pixel. Needs MONAI (``pip install 'robustsweep[medical]'``).
- *augmentation*: crop, flips and the strong policy at 512 × 512, image and mask, in batches of 16. The peer
  (``peers/segmentation_augmentation.py``) does the same per image as albumentations would: with OpenCV where its
  Python has it, else with Pillow and NumPy; the line says which.

CPU seconds of one thread on both sides; the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Line, environment
from shift_images import make_images
from threadpoolctl import threadpool_limits

from trainables.augmentation.pipeline import build_augmentation
from trainables.augmentation_config import StrongAugmentation
from trainables.evaluation.segmentation.cases import CaseMetrics, measure_cases
from trainables.seeding import hash_ids, mix

SIDE_PX = 512
TOLERANCE_MM = 2.0
METRICS_BAR, AUGMENTATION_BAR = 3.0, 1.0
METRICS = ("dice", "iou", "pixel_sensitivity", "pixel_precision", "hd95", "assd", "nsd", "missed")
#: Largest difference from MONAI: ratios of counts, and distances in px.
SAME = {"dice": 1e-6, "iou": 1e-6, "hd95": 0.5, "assd": 0.5, "nsd": 1e-6}


def draw_organs(num: int, side: int = SIDE_PX) -> np.ndarray:
    """Return uint8 masks (2, n, side, side) of one organ each: prediction and target have edges that waver apart."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side
    masks = np.empty((2, num, side, side), dtype=np.uint8)
    for case in range(num):
        y, x = random.uniform(0.35, 0.65, 2)
        angle, distance = np.arctan2(rows - y, columns - x), np.hypot(rows - y, columns - x)
        radius, squeeze = random.uniform(0.1, 0.25), random.uniform(0, 0.3)
        for which in range(2):
            waves = sum(
                random.normal(0, 0.02) * np.cos(k * angle + p) for k, p in enumerate(random.uniform(0, 6, 7), 2)
            )
            masks[which, case] = distance < radius * (1 + squeeze * np.cos(2 * angle) + waves)
    return masks


def draw_vessels(num: int, side: int = SIDE_PX) -> np.ndarray:
    """Return uint8 masks (2, n, side, side) of a network of lines all over the image; predictions differ."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(1)
    masks = np.empty((2, num, side, side), dtype=np.uint8)
    for case in range(num):
        field = gaussian_filter(random.normal(size=(side, side)).astype(np.float32), side / 40)
        other = gaussian_filter(random.normal(size=(side, side)).astype(np.float32), side / 40)
        for which, share in enumerate((0.0, 0.1)):
            mixed = field + share * other
            masks[which, case] = np.abs(mixed) < 0.12 * mixed.std()
    return masks


def measure_ours(masks: np.ndarray) -> CaseMetrics:
    """Return our metrics."""
    return measure_cases(
        masks[0],
        masks[1],
        classes=((1, "structure"),),
        spacing=np.ones((masks.shape[1], 2)),
        tolerance_mm=TOLERANCE_MM,
        metrics=METRICS,
    )


def measure_monai(one_hot: torch.Tensor) -> dict[str, np.ndarray]:
    """Return MONAI's metrics, one call per case and metric."""
    from monai import metrics

    calls: dict[str, Callable[..., torch.Tensor]] = {
        "dice": metrics.compute_dice,
        "iou": metrics.compute_iou,
        "hd95": lambda *pair, **more: metrics.compute_hausdorff_distance(*pair, percentile=95, **more),
        "assd": lambda *pair, **more: metrics.compute_average_surface_distance(*pair, symmetric=True, **more),
        "nsd": lambda *pair, **more: metrics.compute_surface_dice(*pair, class_thresholds=[TOLERANCE_MM], **more),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for case in range(one_hot.shape[1]):
        pair = (one_hot[0, case : case + 1], one_hot[1, case : case + 1])
        for name, call in calls.items():
            found[name].append(float(call(*pair, include_background=False)))
    return {name: np.array(values) for name, values in found.items()}


def time_call(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returns."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def compare_metrics(name: str, masks: np.ndarray, repeat: int) -> Line:
    """Return the line of the metrics.

    Raises:
        AssertionError: a number is not MONAI's.
    """
    one_hot = torch.from_numpy(np.stack([1 - masks, masks], axis=2))
    measure_ours(masks[:, :2])
    measure_monai(one_hot[:, :2])
    ours, theirs = [], []
    for _ in range(repeat):
        own, found = time_call(lambda: measure_ours(masks))
        other, expected = time_call(lambda: measure_monai(one_hot))
        ours.append(own)
        theirs.append(other)
    apart = {metric: float(np.abs(found.values[metric][:, 0] - expected[metric]).max()) for metric in SAME}
    assert all(apart[metric] <= SAME[metric] for metric in SAME), apart
    facts = {
        "ms_per_case": 1e3 * statistics.median(ours) / masks.shape[1],
        "peer_ms_per_case": 1e3 * statistics.median(theirs) / masks.shape[1],
        "largest_difference": apart,
        "mean_dice": float(found.values["dice"].mean()),
        "ratios": list(divide(theirs, ours)),
        "num_cases": masks.shape[1],
    }
    return Line(f"segmentation.metrics.{name}", statistics.median(divide(theirs, ours)), METRICS_BAR, facts)


def divide(theirs: list[float], ours: list[float]) -> Iterator[float]:
    """Yield the ratio of each round."""
    return (other / own for other, own in zip(theirs, ours, strict=True))


def run_peer(python: Path, images: np.ndarray, masks: np.ndarray, folder: Path) -> tuple[float, str]:
    """Return the CPU seconds of ``peers/segmentation_augmentation.py`` on one thread, and the library that it used.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    np.savez(folder / "images.npz", images=images, masks=masks)
    script = Path(__file__).parent / "peers/segmentation_augmentation.py"
    words = [str(python), str(script), str(folder / "images.npz"), str(folder / "peer.npz")]
    subprocess.run(words, check=True, env=environment(), stdout=sys.stderr)
    with np.load(folder / "peer.npz") as archive:
        return float(archive["seconds"]), str(archive["library"])


def augment_pairs(images: torch.Tensor, masks: torch.Tensor, batch_size: int, epoch: int) -> None:
    """Augment images and masks batch by batch."""
    config = StrongAugmentation(crop_scale_min=0.5, horizontal_flip=True, vertical_flip=True)
    augment = build_augmentation(config, images.shape[2])
    seeds = mix(torch.from_numpy(hash_ids(map(str, range(len(images))))), epoch)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        augment(images[rows], seeds[rows])
        augment.move(masks[rows], seeds[rows])


def compare_augmentation(python: Path, num: int, repeat: int, folder: Path) -> Line:
    """Return the line of the augmentation."""
    images, masks = make_images(num, SIDE_PX), draw_organs(num)[1]
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    own_masks = torch.from_numpy(masks)[:, None]
    augment_pairs(batch[:16], own_masks[:16], 16, 0)
    ours, theirs, library = [], [], ""
    for epoch in range(repeat):
        seconds, library = run_peer(python, images, masks, folder)
        theirs.append(seconds)
        ours.append(time_call(lambda epoch=epoch: augment_pairs(batch, own_masks, 16, epoch))[0])
    facts = {
        "ms_per_image": 1e3 * statistics.median(ours) / num,
        "peer_ms_per_image": 1e3 * statistics.median(theirs) / num,
        "peer": library,
        "ratios": list(divide(theirs, ours)),
        "num_images": num,
    }
    return Line("segmentation.augmentation", statistics.median(divide(theirs, ours)), AUGMENTATION_BAR, facts)


def measure_metrics(num: int, repeat: int) -> None:
    """Measure and print the lines of the metrics, if MONAI is there."""
    try:
        import monai.metrics  # noqa: F401
    except ImportError:
        print("MONAI is not installed: pip install 'robustsweep[medical]'", file=sys.stderr)
        return
    for kind, draw in (("organs", draw_organs), ("vessels", draw_vessels)):
        compare_metrics(kind, draw(num), repeat).emit()


def main() -> None:
    """Measure and print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 cases, 32 images")
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), help="that augments the peer's way")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=("metrics", "augmentation"), help="one of the two parts")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases, images = (20, 32) if asked.quick else (200, 128)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as name:
        if asked.only != "augmentation":
            measure_metrics(cases, asked.repeat)
        if asked.only != "metrics":
            compare_augmentation(asked.peer_python, images, asked.repeat, Path(name)).emit()


if __name__ == "__main__":
    main()
