"""Spectral signatures beside an SVD per image, and a detector of 2,000 images in bounded memory. One core.

    python benchmarks/spectral_ood.py             # about a minute
    python benchmarks/spectral_ood.py --quick     # fewer images

- *deep* and *shallow*: signatures of maps of 256 × 28² and 64 × 112², float32. The peer is the faster of NumPy's and
  torch's SVD of each image without singular vectors, in float64: the precision that agrees with the signature to 1e-5
  whatever the channels are. Times of their SVDs in float32, which are no peers in accuracy on dependent channels, stand
  in the line. CPU seconds of one thread, the least of five calls. More than 1e-5 between them is an error.
- *memory*: growth of the peak of resident memory while 2,000 images of 256 × 28² are recorded in batches of 16 and
  scored by their nearest neighbours, leave-one-out; stored maps would take 1.5 GiB. The ratio is the bar over it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Line
from threadpoolctl import threadpool_limits

from trainables.evaluation.detection.spectral import FLOOR, spectral_signature
from trainables.evaluation.ood import NearestReference

SHAPES = {"deep": (256, 28, 28), "shallow": (64, 112, 112)}
#: Bars of the issue: times an SVD per image, and largest difference; MiB by which memory may grow.
RATIO, DIFFERENCE, GROWTH_MIB = 2.5, 1e-5, 128.0
BATCH = 16


def draw_maps(count: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return maps like those behind a ReLU: about half of the activations are 0."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).clamp(min=0)


def sign_by_svd(maps: torch.Tensor) -> np.ndarray:
    """Return the signatures by the definition, image by image."""
    found = []
    for image in maps.double().flatten(2).numpy():
        values = np.linalg.svd(image.T, compute_uv=False)
        logarithm = np.log(np.maximum(values, FLOOR * values[0]))
        found.append(logarithm / np.linalg.norm(logarithm))
    return np.array(found)


def least_seconds(call: Callable[[], object], repeat: int = 5) -> float:
    """Return the least CPU seconds of some calls."""
    found = []
    for _ in range(repeat):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)


def emit_signatures(name: str, count: int) -> None:
    """Measure the signatures of maps of one shape."""
    maps = draw_maps(count, SHAPES[name])
    flat = maps.flatten(2).mT
    arrays = flat.numpy()
    seconds = least_seconds(lambda: spectral_signature(maps)) / count
    peers = {
        "numpy_float64": lambda: [np.linalg.svd(each.astype(np.float64), compute_uv=False) for each in arrays],
        "torch_float64": lambda: [torch.linalg.svdvals(each.double()) for each in flat],
        "numpy_float32": lambda: [np.linalg.svd(each, compute_uv=False) for each in arrays],
        "torch_float32": lambda: [torch.linalg.svdvals(each) for each in flat],
    }
    times = {peer: least_seconds(call) / count for peer, call in peers.items()}
    difference = float(np.abs(spectral_signature(maps).numpy() - sign_by_svd(maps)).max())
    if difference > DIFFERENCE:
        raise RuntimeError(f"signatures differ by {difference:g} from those of an SVD; expected {DIFFERENCE:g}")
    facts = {
        "cpu_seconds_per_image": seconds,
        "svd_cpu_seconds_per_image": times,
        "largest_difference": difference,
        "shape": "×".join(map(str, SHAPES[name])),
    }
    Line(f"spectral_ood.{name}", min(times["numpy_float64"], times["torch_float64"]) / seconds, RATIO, facts).emit()


def record(count: int) -> np.ndarray:
    """Return the signatures of images whose maps come in batches, as a network gives them."""
    parts = [spectral_signature(draw_maps(BATCH, SHAPES["deep"], seed)).float() for seed in range(count // BATCH)]
    return torch.cat(parts).numpy()


def emit_memory(count: int) -> None:
    """Measure how much the peak of memory grows while a detector is fitted and its images are scored."""
    record(BATCH)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reference = NearestReference(record(count))
    scores = reference.score_reference()
    unit = 2**10 if sys.platform == "linux" else 2**20
    grown = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 1) / unit
    facts = {"grown_mib": grown, "num_images": count, "num_scores": int(np.isfinite(scores).sum())}
    Line("spectral_ood.memory", GROWTH_MIB / grown, 1.0, facts).emit()


def main() -> None:
    """Measure, one line per claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        emit_memory(160 if asked.quick else 2_000)
        for name in SHAPES:
            emit_signatures(name, 2 if asked.quick else 8)


if __name__ == "__main__":
    main()
