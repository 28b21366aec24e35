"""Claim: a fixed network loses as much under our 19 corruptions of ImageNet-C as under imagecorruptions', severity by
severity: its accuracy differs by at most 0.3 points, beyond what chance draws make of it.

    python benchmarks/shift_accuracy.py                 # makes an environment for the peer, needs a package index
    python benchmarks/shift_accuracy.py --folder KEPT   # keeps the environment and the weights there for the next run

A small network reads digits. The images it is tested on are mosaics of 224 px, the side at which ImageNet-C defines its
strengths, of 4 × 4 digits in random colours: sixteen decisions for the price of one corrupted image. Both corrupt the
same mosaics; what is corrupted at random is drawn anew by each, and the difference of the two accuracies has a standard
error over mosaics. A cell (corruption × severity) is kept while the difference is within 0.3 points of nothing by the
interval that holds for all cells at once. ``EXCEPTIONS`` are known differences, said in ``docs/shifts.md``; they
are shown and not judged.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Line
from shift_images import make_environment, run_peer
from shift_parity import shift_images
from torch import Tensor, nn
from torch.nn import functional

from trainables.config import EvaluationConfig
from trainables.shifts.bank import Shift, build_shifts
from trainables.shifts.tables import load_aliases

#: Largest difference of the accuracies, in points.
BAR_POINTS = 0.3
#: Share of runs without any difference in which a cell may be called different, over all cells.
ALPHA = 0.05
SIDE_PX, TILES = 224, 4
TILE_PX, DIGIT_PX = SIDE_PX // TILES, 44
#: Corrupted at once, by the peer and by us.
CHUNK, BATCH = 200, 25
#: Mosaics for corruptions without randomness (both see the same) and for exceptions; for the peer's slow glass_blur.
NUM_FEW, NUM_GLASS = 100, 400
#: Digits of the training set; the rest, by other writers, are tested.
NUM_TRAINING = 1200
#: Corruptions without randomness.
DETERMINISTIC = frozenset(
    {"gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate", "jpeg"}
)
COLUMNS = ("mosaics", "ours", "peer", "difference", "error")
#: Known differences.
EXCEPTIONS = {
    "pixelate": "enlarged by area, not by the nearest pixel",
    "frost": "procedural textures",
}


def make_tiles(num: int, rng: np.random.Generator, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 (num, TILE_PX, TILE_PX, 3), a digit in one colour on another each, and their classes."""
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    rows = rng.integers(0, NUM_TRAINING, num) if training else rng.integers(NUM_TRAINING, len(digits), num)
    small = torch.from_numpy(digits[rows].reshape(-1, 1, 8, 8) / 16.0)
    ink = functional.interpolate(small, size=DIGIT_PX, mode="bicubic", align_corners=False).clamp(0, 1).numpy()[:, 0]
    tiles = np.empty((num, TILE_PX, TILE_PX, 3), np.uint8)
    for tile, mask in zip(tiles, ink, strict=True):
        paper, pen = rng.uniform(0, 255, (2, 3))
        while abs(float((paper - pen).mean())) < 50:  # readable without its colour
            paper, pen = rng.uniform(0, 255, (2, 3))
        top, left = rng.integers(0, TILE_PX - DIGIT_PX + 1, 2)
        drawn = paper + rng.normal(0, 2, tile.shape)
        drawn[top : top + DIGIT_PX, left : left + DIGIT_PX] += mask[..., None] * (pen - paper)
        tile[:] = np.clip(drawn, 0, 255).round()
    return tiles, labels[rows]


def make_mosaics(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 (num, SIDE_PX, SIDE_PX, 3) and the classes of their tiles (num, TILES²), row by row."""
    tiles, labels = make_tiles(num * TILES**2, np.random.default_rng(1), training=False)
    grid = tiles.reshape(num, TILES, TILES, TILE_PX, TILE_PX, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(num, SIDE_PX, SIDE_PX, 3), labels.reshape(num, -1)


def cut_mosaics(images: np.ndarray) -> Tensor:
    """Return float (n · TILES², 3, TILE_PX, TILE_PX) in [-1, 1]."""
    tiles = images.reshape(-1, TILES, TILE_PX, TILES, TILE_PX, 3).transpose(0, 1, 3, 5, 2, 4)
    return torch.from_numpy(tiles.reshape(-1, 3, TILE_PX, TILE_PX)).float() / 127.5 - 1.0


def build_network() -> nn.Module:
    """Return a network of 50,000 weights: what matters is that it is the same for both."""

    def block(inputs: int, outputs: int, side: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, side, 2, side // 2), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [nn.AvgPool2d(2), *block(3, 24, 5), *block(24, 48, 3), *block(48, 64, 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


def train_network(*, num_images: int, epochs: int) -> nn.Module:
    """Return a network that reads tiles; half of what it learned from was disturbed, so that it gives way slowly."""
    torch.manual_seed(0)
    pixels, labels = make_tiles(num_images, np.random.default_rng(0), training=True)
    images, classes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    network = build_network()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = epochs * -(-num_images // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(num_images).split(128):
            batch = images[rows].float() / 127.5 - 1.0
            batch[::2] = disturb(batch[::2])
            loss = functional.cross_entropy(network(batch), classes[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def disturb(images: Tensor) -> Tensor:
    """Return images with less contrast, in uneven light and with noise, each by a random amount."""
    amount = torch.rand(3, len(images), 1, 1, 1)
    light = functional.interpolate(torch.randn(len(images), 1, 4, 4), size=TILE_PX, mode="bilinear")
    pale = images * (1.0 - 0.7 * amount[0]) + light * 0.5 * amount[1]
    return (pale + torch.randn_like(images) * 0.6 * amount[2]).clamp(-1.0, 1.0)


def load_network(path: Path, *, num_images: int = 12_000, epochs: int = 12) -> nn.Module:
    """Return the network whose weights lie at ``path``; it is trained, and they are written, if there are none."""
    if path.exists():
        network = build_network()
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    started = time.process_time()
    network = train_network(num_images=num_images, epochs=epochs)
    torch.save(network.state_dict(), path)
    print(f"trained the network in {time.process_time() - started:.0f} CPU seconds", file=sys.stderr, flush=True)
    return network


@torch.no_grad()
def score(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share of tiles that are read right, per mosaic."""
    predicted = [network(cut_mosaics(images[i : i + 32])).argmax(1).numpy() for i in range(0, len(images), 32)]
    return (np.concatenate(predicted).reshape(labels.shape) == labels).mean(1)


@dataclass
class Cell:
    """A corruption at a severity: the share of tiles read right per mosaic, under ours and under the peer's."""

    shift: Shift
    ours: list[np.ndarray] = field(default_factory=list)
    theirs: list[np.ndarray] = field(default_factory=list)

    def difference(self) -> np.ndarray:
        """Return ours minus the peer's, in points per mosaic."""
        return 100.0 * (np.concatenate(self.ours) - np.concatenate(self.theirs))

    def as_row(self) -> dict[str, Any]:
        """Return accuracies, their difference and its standard error, in points."""
        return {
            "shift": self.shift.name,
            "severity": self.shift.severity,
            "mosaics": len(self.difference()),
            "ours": 100.0 * float(np.concatenate(self.ours).mean()),
            "peer": 100.0 * float(np.concatenate(self.theirs).mean()),
            "exception": EXCEPTIONS.get(self.shift.name, ""),
        } | describe_difference(self.difference())


def describe_difference(points: np.ndarray) -> dict[str, float]:
    """Return the mean over mosaics and its standard error."""
    return {"difference": float(points.mean()), "error": float(points.std(ddof=1)) / len(points) ** 0.5}


def average_severities(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return corruption → difference of the mean accuracies over its severities, and its standard error."""
    groups = itertools.groupby(cells, key=lambda cell: cell.shift.name)
    return {name: describe_difference(np.mean([cell.difference() for cell in group], axis=0)) for name, group in groups}


def is_kept(row: Mapping[str, Any], num_cells: int) -> bool:
    """Return whether a difference is within ``BAR_POINTS`` as far as chance lets one say (Bonferroni)."""
    margin = statistics.NormalDist().inv_cdf(1.0 - ALPHA / (2 * num_cells)) * row["error"]
    return bool(abs(row["difference"]) - margin <= BAR_POINTS)


def measure(
    network: nn.Module, python: Path, folder: Path, counts: Mapping[str, int], minutes: float
) -> tuple[list[Cell], dict[str, str]]:
    """Return the cells, and what failed at the peer, from as many mosaics as ``counts`` says and time allows."""
    shifts = build_shifts(EvaluationConfig(shifts="imagenet-c", modality="general"), "general")
    cells = {(shift.name, shift.severity): Cell(shift) for shift in shifts}
    published = {own: name for name, own in load_aliases().items()}
    failed: dict[str, str] = {}
    mosaics, labels = make_mosaics(max(counts.values()))
    deadline = time.monotonic() + 60.0 * minutes
    for first, name in itertools.product(range(0, len(mosaics), CHUNK), counts):
        part = slice(first, min(first + CHUNK, counts[name]))
        if first >= counts[name] or time.monotonic() > deadline:
            continue
        peer = run_peer(python, mosaics[part], folder, names=[published.get(name, name)], seed=first)
        failed |= peer.failed
        for key, theirs in peer.outputs.items():
            cell = cells[name, int(key.rsplit("/", 1)[1])]
            starts = range(part.start, part.stop, BATCH)
            ours = [shift_images(mosaics[i : min(i + BATCH, part.stop)], cell.shift, first=i) for i in starts]
            cell.ours.append(score(network, np.concatenate(ours), labels[part]))
            cell.theirs.append(score(network, theirs, labels[part]))
        print(f"{name}: {part.stop} mosaics", file=sys.stderr, flush=True)
    return [cell for cell in cells.values() if cell.ours], failed


def summarise(cells: Sequence[Cell], failed: Mapping[str, str], clean: float) -> Line:
    """Return the line of the claim; every cell's numbers by "corruption/severity"."""
    rows = [cell.as_row() for cell in cells]
    judged = [row for row in rows if not row["exception"]]
    kept = [row for row in judged if is_kept(row, len(judged))]
    drawn = [row for row in judged if row["shift"] not in DETERMINISTIC and row["error"] > 0]
    facts = {
        "clean_accuracy": clean,
        "num_judged": len(judged),
        "within_bar": sum(abs(row["difference"]) <= BAR_POINTS for row in judged),
        "largest_difference": max(abs(row["difference"]) for row in judged),
        "largest_standard_error": max(row["error"] for row in judged),
        # 1 where random cells differ by no more than two sets of draws do.
        "mean_square_of_z": float(np.mean([(row["difference"] / row["error"]) ** 2 for row in drawn])),
        "outside": [f"{row['shift']}/{row['severity']}" for row in judged if row not in kept],
        "over_severities": average_severities(cells),
        "not_judged": EXCEPTIONS,
        "peer_failed": failed,
    } | {key: {f"{row['shift']}/{row['severity']}": row[key] for row in rows} for key in COLUMNS}
    return Line("shift_accuracy", len(kept) / len(judged), 1.0, facts)


def make_table(cells: Sequence[Cell]) -> str:
    """Return a line per corruption in Markdown: the peer's accuracy, ours minus it ± standard error, per severity."""
    lines = ["| | mosaics | 1 | 2 | 3 | 4 | 5 | mean |", "|---|---|---|---|---|---|---|---|"]
    means = average_severities(cells)
    for name, group in itertools.groupby(cells, key=lambda cell: cell.shift.name):
        rows = [cell.as_row() for cell in group]
        numbers = [f"{row['peer']:.1f} {row['difference']:+.2f} ± {row['error']:.2f}" for row in rows]
        mean = f"{means[name]['difference']:+.2f} ± {means[name]['error']:.2f}"
        mark = "*" if rows[0]["exception"] else ""
        lines.append(f"| {name}{mark} | {rows[0]['mosaics']} | {' | '.join(numbers)} | {mean} |")
    return "\n".join(lines)


def count_mosaics(num: int) -> dict[str, int]:
    """Return corruption → how many mosaics it gets, when those with randomness get ``num``."""
    shifts = build_shifts(EvaluationConfig(shifts="imagenet-c", severities=(1,), modality="general"), "general")
    few = DETERMINISTIC | EXCEPTIONS.keys()
    return {
        name: min(num, NUM_GLASS if name == "glass_blur" else NUM_FEW if name in few else num)
        for name in (shift.name for shift in shifts)
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="of an environment with imagecorruptions")
    parser.add_argument("--folder", type=Path, help="keep environment and weights here; default: a temporary one")
    parser.add_argument("--mosaics", type=int, default=2000, help="for corruptions with randomness")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing new after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        network = load_network(folder / "digits.pt")
        clean = 100.0 * float(score(network, *make_mosaics(NUM_FEW)).mean())
        python = options.peer_python or make_environment(folder / "peers")
        cells, failed = measure(network, python, folder, count_mosaics(options.mosaics), options.minutes)
    print(f"unshifted: {clean:.2f} %; per severity: the peer's accuracy, ours minus it ± standard error")
    print(make_table(cells))
    summarise(cells, failed, clean).emit()


if __name__ == "__main__":
    main()
