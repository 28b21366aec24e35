"""Claim: given our random numbers, imagecorruptions makes our images: motion_blur and elastic_transform within one grey
level, glass_blur, which cuts off fractions twice where ours rounds, within two. At every severity, at 224 px.

``python benchmarks/shift_draws.py`` makes an environment for the peer, ``--peer-python`` names one. Pixels within 16
px of the border are left out: glass_blur's borders are mirrored here and repeated there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import Line, environment
from shift_images import make_environment, make_images
from torch import Tensor

from trainables.config import EvaluationConfig
from trainables.seeding import hash_ids, mix, uniform
from trainables.shifts.bank import build_shifts
from trainables.shifts.operations import OPERATIONS

#: Largest difference of any pixel, in grey levels.
BARS = {"motion_blur": 1, "elastic_transform": 1, "glass_blur": 2}
SIDE_PX = 224


def collect_draws(seeds: Tensor) -> dict[str, np.ndarray]:
    """Return what our operations draw for these seeds, as the peer asks for it.

    ``angle`` (n) in degrees; ``moves`` (n, 2, h, w) in [-1, 1], down and right; ``glass/<severity>``
    (rounds, n, h, w, 2) in px, down and right.
    """
    found = {
        "angle": uniform(seeds, stream="angle").numpy() * 90.0 - 45.0,
        "moves": 2.0 * uniform(seeds, 2, SIDE_PX, SIDE_PX, stream="elastic").numpy() - 1.0,
    }
    for shift in build_shifts(EvaluationConfig(shifts=("glass_blur",), modality="general"), "general"):
        assert isinstance(shift.strength, tuple)
        _, reach, rounds = map(int, shift.strength)
        drawn = [uniform(seeds, SIDE_PX**2, stream=("glass", number)) for number in range(rounds)]
        choice = np.stack([torch.floor(draw * (2 * reach) ** 2).long().numpy() for draw in drawn])
        pairs = np.stack([choice // (2 * reach) - reach, choice % (2 * reach) - reach], axis=-1)
        found[f"glass/{shift.severity}"] = pairs.reshape(rounds, len(seeds), SIDE_PX, SIDE_PX, 2)
    return found


def shift_images(images: np.ndarray, seeds: Tensor) -> dict[str, np.ndarray]:
    """Return name/severity → our images, from the very seeds."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    shifts = build_shifts(EvaluationConfig(shifts=tuple(BARS), modality="general"), "general")
    return {
        f"{shift.name}/{shift.severity}": OPERATIONS[shift.name]
        .apply(batch, shift.strength, seeds)
        .numpy()
        .transpose(0, 2, 3, 1)
        for shift in shifts
    }


def compare(python: Path, num_images: int, folder: Path) -> Line:
    """Return the line of the claim."""
    images = make_images(num_images, SIDE_PX)
    seeds = mix(torch.from_numpy(hash_ids(map(str, range(num_images)))), 0)
    ours = shift_images(images, seeds)
    np.savez(folder / "draws.npz", images=images, **{k.replace("/", "|"): v for k, v in collect_draws(seeds).items()})
    words = [
        str(python),
        str(Path(__file__).with_name("shift_draws_peer.py")),
        folder / "draws.npz",
        folder / "out.npz",
    ]
    subprocess.run(words, check=True, env=environment(), stdout=sys.stderr)
    inner = slice(16, SIDE_PX - 16)
    with np.load(folder / "out.npz") as archive:
        worst = {
            key: int(np.abs(image.astype(int) - archive[key.replace("/", "|")])[:, inner, inner].max())
            for key, image in ours.items()
        }
    kept = [key for key, levels in worst.items() if levels <= BARS[key.split("/")[0]]]
    return Line("shift_draws", len(kept) / len(worst), 1.0, {"grey_levels": worst, "num_images": num_images})


def main() -> None:
    """Compare and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="of an environment with imagecorruptions")
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = compare(options.peer_python or make_environment(folder / "peers"), options.images, folder)
    print(json.dumps(line.facts["grey_levels"], indent=1))
    line.emit()


if __name__ == "__main__":
    main()
