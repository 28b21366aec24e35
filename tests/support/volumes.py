"""Volumes of noise with a brighter ball, in NIfTI with a dataset.json: 1 × 1 × 5 mm by default."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

Size = tuple[int, int, int]
SPACING = (1.0, 1.0, 5.0)


def write_volume(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> None:
    """Write a volume whose axes are right, anterior, superior."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)


def draw_ball(
    case: int, size: Size = (24, 24, 8), spacing: tuple[float, float, float] = SPACING
) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume of 8 bits and its labels: 1 in a ball of 6 to 9 mm near the centre."""
    rng = np.random.default_rng(case)
    sides = np.array(spacing)
    centre = np.array(size) * sides / 2 + rng.uniform(-3, 3, 3)
    places = np.stack(np.meshgrid(*[np.arange(number) + 0.5 for number in size], indexing="ij"), axis=-1) * sides
    inside = ((places - centre) ** 2).sum(axis=-1) < rng.uniform(6, 9) ** 2
    values = 60 + 90 * inside + rng.normal(0, 15, size)
    return np.clip(values, 0, 255).astype(np.uint8), inside.astype(np.uint8)


def write_balls(root: Path, *, cases: int = 10) -> Path:
    """Write ``cases`` volumes, every other one with a slice more than the others; return the folder."""
    return _write(root, [draw_ball(case, (24, 24, 8 + case % 2)) for case in range(cases)], SPACING)


def write_dark_balls(root: Path, *, cases: int = 6) -> Path:
    """Write ``cases`` volumes of balls that are darker than what is around them, of 2 × 2 × 5 mm; return the folder."""
    spacing = (2.0, 2.0, 5.0)
    drawn = [draw_ball(100 + case, (12, 12, 8), spacing) for case in range(cases)]
    return _write(root, [(255 - values, labels) for values, labels in drawn], spacing)


def _write(root: Path, volumes: list[tuple[np.ndarray, np.ndarray]], spacing: tuple[float, float, float]) -> Path:
    entries = []
    for case, (values, labels) in enumerate(volumes):
        write_volume(root / f"imagesTr/c{case}.nii.gz", values, spacing)
        write_volume(root / f"labelsTr/c{case}.nii.gz", labels, spacing)
        entries.append({"image": f"./imagesTr/c{case}.nii.gz", "label": f"./labelsTr/c{case}.nii.gz"})
    write_listing(root, entries)
    return root


def write_listing(root: Path, entries: list[dict[str, str]]) -> None:
    """Write ``dataset.json`` with one modality and the class ball."""
    said = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "ball"}, "training": entries, "test": []}
    (root / "dataset.json").write_text(json.dumps(said))
