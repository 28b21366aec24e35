"""Claim: every operation of the strong policy is strong-augment's within one grey level, where that is not at fault.

``python benchmarks/augmentation_parity.py``: the same images, operation and magnitudes in both; the ratio is the share
of comparisons within their bound. Noise, which is random, is compared by mean and deviation of what it adds.

Where the bound is not one grey level:

- hue: OpenCV keeps hue in steps of 2 degrees and saturation in 8 bits: the mean difference is compared.
- equalize: cv2.equalizeHist scales by the pixels above the darkest level, Pillow (ours) by those below the brightest:
  the mean difference is compared.
- jpeg: the peer takes RGB for BGR, so it is compared with ours on images with red and blue exchanged.
- posterize: overflows with NumPy 2, therefore the peer's environment has NumPy 1.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from augmentation import make_environment, run_peer, to_batch
from common import Line
from shift_images import make_images

from trainables.augmentation.policy import PixelOperation, PointOperation, TableOperation
from trainables.augmentation.strong import SPACES
from trainables.ops.pixels import apply_lut

OPERATIONS = SPACES["strong-v0.1.0"].operations
#: Largest difference, or for hue and equalize the mean difference.
BOUNDS = {"hue": 1.0, "equalize": 3.0}
BY_MEAN = ("hue", "equalize")
SWITCHES = ("autocontrast", "equalize", "grayscale")


def make_cases() -> list[tuple[str, dict[str, Any]]]:
    """Return five magnitudes per operation, both ends among them."""
    cases: list[tuple[str, dict[str, Any]]] = []
    for name, (_, values) in OPERATIONS.items():
        for share in (0.0, 0.2, 0.5, 0.8, 1.0):
            magnitude = values.low + share * (values.high - values.low)
            if name in SWITCHES:
                cases.append((name, {}))
                break
            if values.kind == "integer":
                magnitude = int(magnitude)
            both = {"magnitude_0": magnitude, "magnitude_1": values.low + values.high - magnitude}
            cases.append((name, both if name == "tone" else {"magnitude": magnitude}))
    return cases


def run_ours(name: str, arguments: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
    """Return the images after one operation."""
    operation, _ = OPERATIONS[name]
    numbers = [*arguments.values(), 0.0, 0.0][:2]
    magnitudes = torch.tensor([numbers], dtype=torch.float32).expand(len(images), 2)
    if isinstance(operation, PointOperation):
        return operation.apply(images, magnitudes)
    if isinstance(operation, TableOperation):
        return apply_lut(images, operation.tabulate(images, magnitudes))
    if not isinstance(operation, PixelOperation):
        raise TypeError(f"strong-v0.1.0 moves no pixels, but {name} is a {type(operation).__name__}")
    return operation.apply(images, magnitudes, torch.arange(len(images)))


def find_difference(name: str, arguments: dict[str, Any], images: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the difference that ``BOUNDS`` speaks of, in grey levels."""
    if name == "jpeg":
        images, theirs = images.flip(1), theirs.flip(1)
    ours = run_ours(name, arguments, images)
    if name == "noise":
        added, other = ((result.double() - images) for result in (ours, theirs))
        return max((added.mean() - other.mean()).abs().item(), (added.std() - other.std()).abs().item())
    difference = (ours.double() - theirs.double()).abs()
    return (difference.mean() if name in BY_MEAN else difference.max()).item()


def compare(python: Path, folder: Path, num_images: int) -> Line:
    """Return the line of the claim."""
    images, cases = make_images(num_images), make_cases()
    outputs = run_peer(python, images, folder, "operations", cases)
    batch = to_batch(images)
    worst: dict[str, float] = {}
    within = 0
    for number, (name, arguments) in enumerate(cases):
        found = find_difference(name, arguments, batch, to_batch(outputs[f"{name}|{number}"]))
        worst[name] = max(worst.get(name, 0.0), found)
        within += found <= BOUNDS.get(name, 1.0)
    facts = {"worst_difference": worst, "bounds": BOUNDS, "num_comparisons": len(cases), "num_images": num_images}
    return Line("augmentation parity", within / len(cases), 1.0, facts)


def main() -> None:
    """Compare and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="of an environment with strong-augment")
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(options.peer_python or make_environment(folder / "peer"), folder, options.images).emit()


if __name__ == "__main__":
    main()
