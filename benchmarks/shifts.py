"""Claim: the 19 corruptions of ImageNet-C at 5 severities cost an eighth of what imagecorruptions takes, or less.

``python benchmarks/shifts.py``: both corrupt the same images at 224 × 224, on one thread each, in turns; CPU seconds.
The peer gets an environment of its own, made anew unless ``--peer-python`` names one. The peer's glass_blur, a Python
loop over pixels, is most of its time: the ratio without it stands beside.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Line
from shift_images import PeerRun, make_environment, make_images, run_peer

from trainables.config import EvaluationConfig
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import Shift, build_shifts
from trainables.shifts.tables import load_aliases

BAR = 8.0
SIDE_PX = 224


def imagenet_c() -> list[Shift]:
    """Return the 95 shifts of ImageNet-C, in its strengths."""
    return build_shifts(EvaluationConfig(shifts="imagenet-c", modality="general"), "general")


def time_shifts(images: torch.Tensor, shifts: list[Shift]) -> dict[str, float]:
    """Return CPU seconds by name/severity; on a GPU wall-clock seconds until it is done."""
    seeds = mix(torch.from_numpy(hash_ids(map(str, range(len(images))))), 0).to(images.device)
    clock = time.process_time if images.device.type == "cpu" else time.perf_counter
    found = {}
    for shift in shifts:
        started = clock()
        shift.apply(images, seeds)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        found[f"{shift.name}/{shift.severity}"] = clock() - started
    return found


def compare(python: Path, num_images: int, repeat: int, folder: Path) -> Line:
    """Return the line of the claim."""
    images = make_images(num_images, SIDE_PX)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    shifts, aliases = imagenet_c(), load_aliases()
    time_shifts(batch[:1], shifts)  # textures, tables
    ours: list[dict[str, float]] = []
    peers: list[PeerRun] = []
    for _ in range(repeat):
        peers.append(run_peer(python, images, folder))
        ours.append(time_shifts(batch, shifts))
    mine = {key: statistics.median(run[key] for run in ours) / num_images for key in ours[0]}
    theirs = {
        "/".join((aliases.get(key.split("/")[0], key.split("/")[0]), key.split("/")[1])): statistics.median(
            run.seconds[key] for run in peers
        )
        / num_images
        for key in peers[0].seconds
    }
    common = sorted(set(mine) & set(theirs))
    rest = [key for key in common if not key.startswith("glass_blur/")]
    facts = {
        "images_x_severities_per_second": len(mine) / sum(mine.values()),
        "peer_images_x_severities_per_second": len(common) / sum(theirs[key] for key in common),
        "ratio_without_glass_blur": sum(theirs[key] for key in rest) / sum(mine[key] for key in rest),
        "ms_per_image": _by_name(mine),
        "peer_ms_per_image": _by_name(theirs),
        "peer_failed": peers[0].failed,
        "num_images": num_images,
    }
    return Line("shifts", sum(theirs[key] for key in common) / sum(mine[key] for key in common), BAR, facts)


def _by_name(seconds: dict[str, float]) -> dict[str, float]:
    """Mean over severities, in ms."""
    names = dict.fromkeys(key.split("/")[0] for key in seconds)
    return {
        name: 1e3 * float(np.mean([s for key, s in seconds.items() if key.split("/")[0] == name])) for name in names
    }


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", type=Path, help="of an environment with imagecorruptions and medmnistc")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = options.peer_python or make_environment(folder / "peers")
        compare(python, options.images, options.repeat, folder).emit()


if __name__ == "__main__":
    main()
