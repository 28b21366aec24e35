"""Claim: given our random numbers, imagecorruptions makes our images, at every severity, at 224 px; and a fixed network
reads both equally well, within 0.3 points. All of ImageNet-C's corruptions with randomness but frost, whose textures
are others.

    python benchmarks/shift_draws.py                 # makes an environment for the peer, needs a package index
    python benchmarks/shift_draws.py --folder KEPT   # keeps the environment and the weights there for the next run

Both cut off fractions, the peer in float64, ours mostly in float32: ``BAR_LEVELS`` has the largest difference of any
pixel that is allowed, but for those within 16 px of the border, where elastic_transform goes on differently. The
network and its mosaics are those of ``shift_accuracy.py``, borders included. All are judged.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import Line, environment
from shift_accuracy import BAR_POINTS, Cell, is_kept, load_network, make_mosaics, make_table, score
from shift_images import make_environment, make_images
from torch import Tensor, nn

from trainables.config import EvaluationConfig
from trainables.seeding import hash_ids, mix, normal, uniform
from trainables.shifts.bank import Shift, build_shifts
from trainables.shifts.operations import OPERATIONS

NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "elastic_transform", "glass_blur",
    "snow", "fog", "spatter",
)  # fmt: skip
#: Largest difference of any pixel, in grey levels.
BAR_LEVELS = 1
SIDE_PX, BORDER_PX = 224, 16
#: Corrupted at once: what they draw takes 8 MB a mosaic.
CHUNK = 25


def make_seeds(first: int, num: int) -> Tensor:
    """Return the seeds of the images ``first``, ``first + 1``, …"""
    return mix(torch.from_numpy(hash_ids(map(str, range(first, first + num)))), 0)


def find_shifts(names: Sequence[str]) -> list[Shift]:
    """Return the shifts of ImageNet-C with these names, at every severity."""
    return build_shifts(EvaluationConfig(shifts=tuple(names), modality="general"), "general")


def collect_draws(seeds: Tensor) -> dict[str, np.ndarray]:
    """Return what our operations draw for these seeds, as the peer asks for it.

    ``normals`` and ``uniforms`` in [0, 1) (n, h, w, 3) are those of the noises; ``angle`` (n) of motion_blur and
    ``fall`` (n) of snow in degrees; ``moves`` (n, 2, h, w) in [-1, 1], down and right; ``glass/<severity>`` (rounds, n,
    h, w, 2) in px, down and right; ``flakes/<severity>`` (n, h′, w′) and ``liquid`` (n, h, w) normal; ``fog`` (n, 256,
    256) in [-1, 1].
    """
    turn = uniform(seeds, stream="angle").numpy() * 90.0
    found = {
        "normals": normal(seeds, 3, SIDE_PX, SIDE_PX).permute(0, 2, 3, 1).numpy(),
        "uniforms": uniform(seeds, 3, SIDE_PX, SIDE_PX).permute(0, 2, 3, 1).numpy(),
        "angle": turn - 45.0,
        "fall": -45.0 - turn,
        "moves": 2.0 * uniform(seeds, 2, SIDE_PX, SIDE_PX, stream="elastic").numpy() - 1.0,
        "fog": 2.0 * uniform(seeds, 256, 256, stream="fog").numpy() - 1.0,
        "liquid": normal(seeds, SIDE_PX, SIDE_PX, stream="liquid").numpy(),
    }
    for shift in find_shifts(["glass_blur", "snow"]):
        assert isinstance(shift.strength, tuple)
        if shift.name == "snow":
            side = -int(-SIDE_PX // shift.strength[2])
            found[f"flakes/{shift.severity}"] = normal(seeds, side, side, stream="flakes").numpy()
            continue
        _, reach, rounds = map(int, shift.strength)
        drawn = [uniform(seeds, SIDE_PX**2, stream=("glass", number)) for number in range(rounds)]
        choice = np.stack([torch.floor(draw * (2 * reach) ** 2).to(torch.int16).numpy() for draw in drawn])
        pairs = np.stack([choice // (2 * reach) - reach, choice % (2 * reach) - reach], axis=-1)
        found[f"glass/{shift.severity}"] = pairs.reshape(rounds, len(seeds), SIDE_PX, SIDE_PX, 2)
    return found


def corrupt(images: np.ndarray, seeds: Tensor, names: Sequence[str]) -> dict[tuple[str, int], np.ndarray]:
    """Return (name, severity) → our images, from the very seeds."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return {
        (shift.name, shift.severity): OPERATIONS[shift.name]
        .apply(batch, shift.strength, seeds)
        .numpy()
        .transpose(0, 2, 3, 1)
        for shift in find_shifts(names)
    }


def corrupt_by_peer(
    images: np.ndarray, seeds: Tensor, names: Sequence[str], *, python: Path, folder: Path
) -> dict[tuple[str, int], np.ndarray]:
    """Return (name, severity) → the peer's images, from what ours drew.

    Raises:
        subprocess.CalledProcessError: it failed, or asked for other numbers than ours drew.
    """
    np.savez(folder / "draws.npz", images=images, **{k.replace("/", "|"): v for k, v in collect_draws(seeds).items()})
    script = Path(__file__).parent / "peers/shift_draws.py"
    words = [str(python), str(script), folder / "draws.npz", folder / "out.npz", *names]
    subprocess.run(words, check=True, env=environment(), stdout=sys.stderr)
    with np.load(folder / "out.npz") as archive:
        return {(key.split("|")[0], int(key.split("|")[1])): archive[key] for key in archive.files}


def describe_pixels(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return the largest and the mean difference, in grey levels, and the share of values that differ, in [0, 1]."""
    inner = slice(BORDER_PX, SIDE_PX - BORDER_PX)
    levels = (ours.astype(int) - theirs)[:, inner, inner]
    apart = np.abs(levels)
    return {"largest": int(apart.max()), "mean": float(levels.mean()), "different": float((apart > 0).mean())}


def compare_pixels(names: Sequence[str], num_images: int, *, python: Path, folder: Path) -> Line:
    """Return the line on pixels: the share of corruptions × severities that are within the bar."""
    images, seeds = make_images(num_images, SIDE_PX), make_seeds(0, num_images)
    ours = corrupt(images, seeds, names)
    theirs = corrupt_by_peer(images, seeds, names, python=python, folder=folder)
    found = {f"{key[0]}/{key[1]}": describe_pixels(made, theirs[key]) for key, made in ours.items()}
    outside = [key for key, row in found.items() if row["largest"] > BAR_LEVELS]
    facts = {
        column: {key: row[measure] for key, row in found.items()}
        for column, measure in (("grey_levels", "largest"), ("mean_levels", "mean"), ("different", "different"))
    }
    said = {"num_images": num_images, "bar_levels": BAR_LEVELS, "outside": outside}
    return Line("shift_draws", 1.0 - len(outside) / len(found), 1.0, {**said, **facts})


def compare_accuracy(
    network: nn.Module, names: Sequence[str], num_mosaics: int, minutes: float, *, python: Path, folder: Path
) -> list[Cell]:
    """Return the cells, from as many mosaics as time allows; the first chunk is always done."""
    cells = {(shift.name, shift.severity): Cell(shift) for shift in find_shifts(names)}
    mosaics, labels = make_mosaics(num_mosaics)
    deadline = time.monotonic() + 60.0 * minutes
    for first in range(0, num_mosaics, CHUNK):
        if first and time.monotonic() > deadline:
            break
        part = slice(first, min(first + CHUNK, num_mosaics))
        seeds = make_seeds(first, part.stop - first)
        ours = corrupt(mosaics[part], seeds, names)
        theirs = corrupt_by_peer(mosaics[part], seeds, names, python=python, folder=folder)
        for key, cell in cells.items():
            cell.ours.append(score(network, ours[key], labels[part]))
            cell.theirs.append(score(network, theirs[key], labels[part]))
        print(f"{part.stop} mosaics", file=sys.stderr, flush=True)
    return list(cells.values())


def summarise(cells: Sequence[Cell]) -> Line:
    """Return the line on accuracies: the share of corruptions × severities within ``BAR_POINTS`` up to chance.

    Chance is what is left of it: which mosaics there are. ``beyond`` names all cells whose own difference is larger.
    """
    rows = {f"{cell.shift.name}/{cell.shift.severity}": cell.as_row() for cell in cells}
    kept = [key for key, row in rows.items() if is_kept(row, len(rows))]
    facts = {
        "mosaics": next(iter(rows.values()))["mosaics"],
        "outside": [key for key in rows if key not in kept],
        "beyond": [key for key, row in rows.items() if abs(row["difference"]) > BAR_POINTS],
        "largest_difference": max(abs(row["difference"]) for row in rows.values()),
        "largest_standard_error": max(row["error"] for row in rows.values()),
    } | {column: {key: row[column] for key, row in rows.items()} for column in ("peer", "difference", "error")}
    return Line("shift_draws_accuracy", len(kept) / len(rows), 1.0, facts)


def print_pixels(line: Line) -> None:
    """Print a line per corruption in Markdown: largest difference · share of values that differ, per severity."""
    largest, different, mean = (line.facts[name] for name in ("grey_levels", "different", "mean_levels"))
    print("| | 1 | 2 | 3 | 4 | 5 | mean |\n|---|---|---|---|---|---|---|")
    for name, group in itertools.groupby(largest, key=lambda key: key.split("/")[0]):
        keys = list(group)
        cells = " | ".join(f"{largest[key]} · {100 * different[key]:.2g} %" for key in keys)
        print(f"| {name} | {cells} | {np.mean([mean[key] for key in keys]):+.4f} |")


def main() -> None:
    """Compare and print two JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="of an environment with imagecorruptions")
    parser.add_argument("--folder", type=Path, help="keep environment and weights here; default: a temporary one")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--mosaics", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no further mosaics after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        python = options.peer_python or make_environment(folder / "peers")
        places = {"python": python, "folder": Path(temporary)}
        pixels = compare_pixels(options.only, options.images, **places)
        print_pixels(pixels)
        pixels.emit()
        network = load_network(folder / "digits.pt")
        cells = compare_accuracy(network, options.only, options.mosaics, options.minutes, **places)
    print(make_table(cells))
    summarise(cells).emit()


if __name__ == "__main__":
    main()
