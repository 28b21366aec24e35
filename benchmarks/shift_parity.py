"""Claim: shifts do what the public packages do. Deterministic ones differ by at most 1 grey level, random ones as much.

``python benchmarks/shift_parity.py`` prints a table and the JSON line. Deterministic: the largest difference in
any pixel, border included. Random: mean change |shifted − image| of ours divided by theirs. ``EXCEPTIONS`` are known
differences, said in ``docs/shifts.md``; they are shown and not judged.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import Line
from shift_images import PeerRun, make_environment, make_images, run_peer

from trainables.config import EvaluationConfig
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import Shift, build_shifts
from trainables.shifts.tables import load_aliases

#: Shifts without randomness.
DETERMINISTIC = {
    "gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate", "jpeg",
    "brightness_up", "contrast_down", "black_corner",
}  # fmt: skip
#: Known differences.
EXCEPTIONS = {
    "imagecorruptions/pixelate": "enlarged by area, not by the nearest pixel",
    "medmnistc/pixelate": "enlarged by area, not by the nearest pixel",
    "imagecorruptions/frost": "procedural textures",
}
#: Largest share by which the mean change of a random shift may differ.
TOLERANCE = 0.1


def shift_images(images: np.ndarray, shift: Shift, *, first: int = 0) -> np.ndarray:
    """Return (n, h, w, c) shifted; ``first`` is the number of the first image, which its randomness follows from."""
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    seeds = mix(torch.from_numpy(hash_ids(map(str, range(first, first + len(images))))), 0)
    return shift.apply(batch, seeds).numpy().transpose(0, 2, 3, 1)


def compare(images: np.ndarray, peer: PeerRun) -> list[dict[str, object]]:
    """Return a row per package and shift, the worst of its severities."""
    aliases, modality = load_aliases(), {"imagecorruptions": "general", "medmnistc": "fundus"}
    rows: dict[str, dict[str, object]] = {}
    for key, theirs in peer.outputs.items():
        package, name, severity = key.split("/")
        own = aliases.get(name, name)
        table = "pathology" if (package, own) == ("medmnistc", "saturate") else modality[package]
        config = EvaluationConfig(shifts=(own,), severities=(int(severity),), modality=table)
        ours = shift_images(images, build_shifts(config, table)[0])
        label = f"{package}/{own}"
        row = rows.setdefault(label, {"shift": label, "worst": 0.0, "exception": EXCEPTIONS.get(label, "")})
        if own in DETERMINISTIC:
            difference = int(np.abs(ours.astype(int) - theirs.astype(int)).max())
            row |= {"measure": "grey levels", "worst": max(row["worst"], difference), "bar": 1}
        else:
            change = [np.abs(shifted.astype(float) - images).mean() for shifted in (ours, theirs)]
            off = abs(change[0] / change[1] - 1.0)
            row |= {"measure": "share of the mean change", "worst": max(row["worst"], off), "bar": TOLERANCE}
    return list(rows.values())


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", type=Path, help="of an environment with imagecorruptions and medmnistc")
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = make_images(options.images)
        peer = run_peer(options.peer_python or make_environment(folder / "peers"), images, folder)
        rows = compare(images, peer)
    for row in rows:
        print(f"{row['shift']:40s}{row['worst']:8.3f}  {row['measure']:26s}{row['exception']}")
    judged = [row for row in rows if not row["exception"]]
    kept = [row for row in judged if row["worst"] <= row["bar"]]
    facts = {"rows": rows, "peer_failed": peer.failed, "num_images": options.images}
    Line("shift_parity", len(kept) / len(judged), 1.0, facts).emit()


if __name__ == "__main__":
    main()
