"""Claim: the strong policy costs no more CPU time than strong-augment, which is OpenCV.

    python benchmarks/augmentation.py                                # makes an environment for the peer, thrown away
    python benchmarks/augmentation.py --peer-python ENV/bin/python   # one with strong-augment

Both augment the same images at 224 × 224 on one thread, in turns, CPU seconds; ours in batches of 64. Beside it the
cost relative to a training step of a ResNet-50. On a GPU: ``device_speed.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Line, environment
from shift_images import make_images
from torchvision.models import resnet50

from trainables.augmentation.pipeline import Augmenter, build_augmentation
from trainables.augmentation_config import StrongAugmentation
from trainables.seeding import hash_ids, mix

BAR = 1.0
SIDE_PX = 224
#: With the versions that the peer still runs on: with NumPy 2 its posterize overflows.
PEERS = ("numpy<2", "setuptools<81", "strong-augment==0.1.0", "opencv-python<4.10", "opencv-python-headless<4.10")


def make_environment(folder: Path) -> Path:
    """Return the Python of a new environment in ``folder`` with the peer; needs a package index.

    Raises:
        subprocess.CalledProcessError: something cannot be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True, stdout=sys.stderr)
    return python


def run_peer(
    python: Path, images: np.ndarray, folder: Path, what: str, cases: Sequence[tuple[str, dict[str, Any]]] = ()
) -> dict[str, np.ndarray]:
    """Return what ``peers/augmentation.py`` found, on one thread.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    np.savez(folder / "images.npz", images=images, cases=json.dumps(list(cases)))
    script = Path(__file__).parent / "peers/augmentation.py"
    words = [str(python), str(script), str(folder / "images.npz"), str(folder / "peer.npz"), what]
    subprocess.run(words, check=True, env=environment(), stdout=sys.stderr)
    with np.load(folder / "peer.npz") as archive:
        return dict(archive)


def to_batch(images: np.ndarray) -> torch.Tensor:
    """Return n h w c as n c h w."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def time_calls(call: Callable[[], Any], device: torch.device) -> float:
    """Return CPU seconds; on a GPU wall-clock seconds until it is done."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def augment_all(augment: Augmenter, images: torch.Tensor, batch_size: int, epoch: int) -> None:
    """Augment the images batch by batch."""
    seeds = mix(torch.from_numpy(hash_ids(map(str, range(len(images))))), epoch).to(images.device)
    for batch, own in zip(torch.split(images, batch_size), torch.split(seeds, batch_size), strict=True):
        augment(batch, own)


def time_resnet_step(device: torch.device, batch_size: int) -> float:
    """Return the seconds per image of forward, backward and SGD step of a ResNet-50 at 224²."""
    model = resnet50(weights=None).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.rand(batch_size, 3, SIDE_PX, SIDE_PX, device=device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimiser.step()

    step()
    return statistics.median(time_calls(step, device) for _ in range(3)) / batch_size


def compare(python: Path, num_images: int, repeat: int, folder: Path) -> Line:
    """Return the line of the claim."""
    images, device = make_images(num_images, SIDE_PX), torch.device("cpu")
    batch, augment = to_batch(images), build_augmentation(StrongAugmentation(), SIDE_PX)
    augment_all(augment, batch, 64, 0)
    ours, theirs = [], []
    for epoch in range(repeat):
        theirs.append(float(run_peer(python, images, folder, "policy")["seconds"]) / num_images)
        ours.append(time_calls(partial(augment_all, augment, batch, 64, epoch), device) / num_images)
    mine, peer = statistics.median(ours), statistics.median(theirs)
    facts = {
        "ms_per_image": 1e3 * mine,
        "peer_ms_per_image": 1e3 * peer,
        "share_of_resnet50_step": mine / time_resnet_step(device, 8),
        "ratios": [other / own for other, own in zip(theirs, ours, strict=True)],
        "num_images": num_images,
    }
    return Line("augmentation", peer / mine, BAR, facts)


def main() -> None:
    """Measure and print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="of an environment with strong-augment")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(options.peer_python or make_environment(folder / "peer"), options.images, options.repeat, folder).emit()


if __name__ == "__main__":
    main()
