"""Relevance maps scored against lesion masks: milliseconds an image. One core.

    python benchmarks/attribution.py             # some seconds
    python benchmarks/attribution.py --quick     # a quarter of the images

256 maps of 224 × 224 px, drawn at random, with masks of one to twenty round lesions each.

- *mass and rank*: relevance mass and relevance rank accuracy. The bar is the issue's 10 ms an image; Quantus takes 74
  and 95 ms an image for the same two (measured once, on another day: a note, not the bar).
- *components*: connected lesions with area and shape, their relevance, concentration by area and the adjusted ratio.

CPU seconds of one thread, the least of three calls.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Line
from threadpoolctl import threadpool_limits

from trainables.evaluation.attribution.area_effect import compute_large_small_ratio
from trainables.evaluation.attribution.components import find_components
from trainables.evaluation.attribution.mask_metrics import (
    compute_concentration,
    compute_relevance_mass,
    compute_relevance_rank,
    share_by_component,
    take_relevance,
)

SIDE = 224
#: Bar of the issue.
MASS_AND_RANK_MS = 10.0


def draw_maps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return signed attributions, and masks of one to twenty discs per image."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((count, SIDE, SIDE), dtype=bool)
    for index in range(count):
        for y, x, radius in random.uniform((0, 0, 1.5), (SIDE, SIDE, 14), (int(random.integers(1, 21)), 3)):
            masks[index] |= np.hypot(rows - y, columns - x) < radius
    return random.normal(size=masks.shape).astype(np.float32), masks


def least_ms(call: Callable[[], object], count: int) -> float:
    """Return the least CPU milliseconds an image of three calls."""
    found = []
    for _ in range(3):
        started = time.process_time()
        call()
        found.append(1000 * (time.process_time() - started) / count)
    return min(found)


def emit(count: int) -> None:
    """Measure and print."""
    attribution, masks = draw_maps(count)
    relevance, _ = take_relevance(attribution, "positive")
    mass = least_ms(lambda: compute_relevance_mass(relevance, masks), count)
    rank = least_ms(lambda: compute_relevance_rank(relevance, masks), count)

    def by_component() -> None:
        components = find_components(masks)
        shares = share_by_component(relevance, components)
        compute_concentration(shares, components)
        compute_large_small_ratio(shares, components)

    components = least_ms(by_component, count)
    facts = {"mass_ms": mass, "rank_ms": rank, "num_images": count, "side_px": SIDE}
    Line("attribution.mass_and_rank", MASS_AND_RANK_MS / (mass + rank), 1.0, facts).emit()
    Line(
        "attribution.components", MASS_AND_RANK_MS / components, 1.0, {"components_ms": components, "num_images": count}
    ).emit()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the images")
    asked = parser.parse_args()
    with threadpool_limits(1):
        emit(64 if asked.quick else 256)


if __name__ == "__main__":
    main()
