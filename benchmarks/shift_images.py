"""Images for the benchmarks of shifts, and the environment of their peers."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import environment

#: The peers, with the versions that they still run on.
PEERS = (
    "numpy<2", "scikit-image<0.22", "scipy<1.12", "setuptools<81", "imagecorruptions",
    "opencv-python-headless<4.10", "opencv-python<4.10",
)  # fmt: skip


@dataclass(frozen=True)
class PeerRun:
    """What ``peers/shifts.py`` found: images (n, h, w, 3) by package/name/severity, CPU seconds by name/severity."""

    outputs: dict[str, np.ndarray]
    seconds: dict[str, float]
    failed: dict[str, str]


def make_images(num: int, side: int = 224) -> np.ndarray:
    """Return uint8 (n, side, side, 3): smooth coloured fields, discs with sharp edges, thin lines, faint noise."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    images = np.empty((num, side, side, 3))
    for image in images:
        waves = generator.normal(0, 1, (3, 12, 4))
        for channel, row in enumerate(waves):
            field = sum(
                np.cos(2 * np.pi * (k + 1) * (a * x + b * y) / 2 + 9 * c) / (k + 1)
                for k, (a, b, c, _) in enumerate(row)
            )
            image[..., channel] = 120 + 60 * np.tanh(field / 2)
        for _ in range(8):
            centre, radius = generator.uniform(0, 1, 2), generator.uniform(0.02, 0.15)
            image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = generator.uniform(0, 255, 3)
        image[np.abs(y - x * generator.uniform(0.5, 2)) < 0.006] = generator.uniform(0, 255, 3)
    return np.clip(images + generator.normal(0, 3, images.shape), 0, 255).round().astype(np.uint8)


def make_environment(folder: Path) -> Path:
    """Return the Python of an environment in ``folder`` with the peers, made unless it is there; needs a package index.

    Raises:
        subprocess.CalledProcessError: something cannot be installed.
    """
    python = folder / "bin" / "python"
    if (folder / "done").exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    for words in (PEERS, ("--no-deps", "medmnistc")):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True, stdout=sys.stderr)
    (folder / "done").touch()
    return python


def run_peer(python: Path, images: np.ndarray, folder: Path, *, names: Sequence[str] = (), seed: int = 0) -> PeerRun:
    """Return what the peers make of the images, on one thread; with ``names`` only these of imagecorruptions.

    Raises:
        subprocess.CalledProcessError: they do not start.
    """
    np.savez(folder / "images.npz", images=images, seed=seed)
    words = [str(python), str(Path(__file__).parent / "peers/shifts.py"), folder / "images.npz", folder / "peer.npz"]
    subprocess.run([*words, *names], check=True, env=environment(), stdout=sys.stderr)
    with np.load(folder / "peer.npz") as archive:
        facts: dict[str, Any] = json.loads(str(archive["facts"]))
        outputs = {key.replace("|", "/"): archive[key] for key in archive.files if key != "facts"}
    return PeerRun(outputs, facts["seconds"], facts["failed"])
