"""Random draws for phantom images: eyes, vessels, lesions, cameras, nuisances. Lengths in px of a 64 px image.

The ranges were chosen by eye on contact sheets, and so that a small CNN reaches an AUROC of .85–.97 on known sites and
clearly less on external ones: they are assumptions, not numbers from a paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from trainables.data.sources.phantom_rendering import BRIGHT, NO_NUISANCE, Scenes
from trainables.data_config import PhantomData
from trainables.errors import ConfigError

#: σ of extra blur, offset, gain of red, green, blue, block size, corner tag: ``Scenes.nuisance`` where it is applied.
NUISANCES = {
    "none": tuple(NO_NUISANCE.tolist()),
    "sharpness": (0.9, 0, 1, 1, 1, 0, 0),
    "intensity": (0, 0.09, 1, 1, 1, 0, 0),
    "corner_tag": (0, 0, 1, 1, 1, 0, 1),
    "colour": (0, 0, 1.12, 0.97, 0.8, 0, 0),
    "resolution": (0, 0, 1, 1, 1, 2, 0),
}
#: Ranges of gain of red, green, blue, gamma, blur, vignetting, noise: ``Scenes.camera``.
KNOWN_CAMERA = ((0.88, 0.82, 0.7, 0.9, 0.25, 0.1, 0.012), (1.1, 1.14, 1.4, 1.15, 0.6, 0.45, 0.03))
EXTERNAL_CAMERA = ((0.7, 0.95, 1.1, 1.15, 0.7, 0.4, 0.035), (0.85, 1.15, 1.6, 1.35, 1.0, 0.6, 0.05))
NUM_WAVES = 10
NUM_DISTRACTORS = 3
#: Contrast of harmless spots, as a share of ``lesion_contrast``.
DISTRACTOR_CONTRAST = 0.4
#: Lesions lie within this distance of the image's middle, and at least DISC_MARGIN from the disc's middle.
LESION_FIELD = 25.0
DISC_MARGIN = 8.0
LESION_SPACING = 8.5


def draw_scenes(
    config: PhantomData,
    labels: Int64[np.ndarray, " n"],
    patient: Int64[np.ndarray, " n"],
    site: Int64[np.ndarray, " n"],
    nuisance: Int64[np.ndarray, " n"],
) -> Scenes:
    """Return the scenes of images with these grades, patients, sites (known ones first) and nuisances (0 or 1).

    Tint and pigmentation belong to the patient, the camera to the site, all else to the image.

    Raises:
        ConfigError: ``lesion_radius_px`` is no range, or the lesions do not fit into the image.
    """
    rng = np.random.default_rng([config.seed, 1])
    count, num_patients = len(labels), int(patient.max()) + 1
    side = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    disc = np.stack([-side * rng.uniform(10.5, 13.5, count), rng.uniform(-2.5, 2.5, count)], axis=1)
    tint = rng.uniform([0.74, 0.35, 0.15], [0.86, 0.46, 0.23], (num_patients, 3))[patient]
    pigment = rng.uniform(0.01, 0.035, (num_patients, 1))[patient]
    angle = rng.uniform(0, 2 * np.pi, (count, NUM_WAVES))
    frequency = rng.uniform(0.06, 0.45, (count, NUM_WAVES))
    phase = rng.uniform(0, 2 * np.pi, (count, NUM_WAVES))
    amplitude = np.broadcast_to(pigment, (count, NUM_WAVES))
    applied = np.where(nuisance[:, None] == 1, NUISANCES[config.nuisance], NUISANCES["none"])
    drawn = {
        "side": side,
        "disc": disc,
        "disc_radius": rng.uniform(3.6, 4.8, count),
        "retina": tint,
        "waves": np.stack([frequency * np.cos(angle), frequency * np.sin(angle), phase, amplitude], axis=-1),
        "tilt": rng.normal(0, 0.004, (count, 2)),
        "vessels": _draw_vessels(count, rng),
        "blobs": _draw_blobs(config, labels, disc, rng),
        "camera": _draw_cameras(config)[site],
        "nuisance": applied,
    }
    seed = rng.integers(0, 2**63, count).astype(np.uint64)
    return Scenes(seed=seed, **{key: value.astype(np.float32) for key, value in drawn.items()})


def _draw_vessels(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return (count, 12, 9) vessels: above and below each an arcade (vein, artery), two branches, two nasal trunks."""
    vessels = []
    for sign in (1.0, -1.0):
        arcade, nasal = sign * rng.uniform(3.0, 4.2, count), sign * rng.uniform(2.2, 4.5, count)
        artery = arcade * rng.uniform(0.7, 0.85, count)
        starts, slopes = rng.uniform(4, 15, (2, count)), sign * rng.uniform(0.25, 0.8, (2, count))
        # direction, start, bend, slope, width, darkness, reach
        rows: list[tuple[Any, ...]] = [
            (1, 0, arcade, 0, 0.75, 0.62, 52),
            (1, 0, artery, 0, 0.5, 0.42, 48),
            (1, starts[0], arcade, slopes[0], 0.42, 0.42, rng.uniform(14, 24, count)),
            (1, starts[1], artery, -slopes[1], 0.38, 0.38, rng.uniform(10, 18, count)),
            (-1, 0, nasal, 0, 0.6, 0.5, 30),
            (-1, 0, nasal * rng.uniform(0.2, 0.6, count), 0, 0.42, 0.4, 26),
        ]
        for direction, start, bend, slope, width, darkness, reach in rows:
            waviness, phase = rng.uniform(0.3, 1.1, count), rng.uniform(0, 2 * np.pi, count)
            thickness = width * rng.uniform(0.85, 1.15, count)
            columns = (direction, start, bend, slope, waviness, phase, thickness, darkness, reach)
            vessels.append(np.stack(np.broadcast_arrays(*columns), axis=-1))
    return np.stack(vessels, axis=1)


def _draw_blobs(
    config: PhantomData, labels: Int64[np.ndarray, " n"], disc: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return (n, blobs, 8): first the lesions of the grade, then harmless faint spots that every image may have.

    Grade 0 has no lesion; grade g has 2g − 1 to 2g + 2, with radii 10 % larger per grade.
    """
    low, high = config.lesion_radius_px
    if not 0 < low <= high:
        raise ConfigError(f"data.lesion_radius_px is {config.lesion_radius_px}; expected 0 < smallest <= largest")
    count, most = len(labels), 2 * (config.num_classes - 1) + 2
    growth = 1 + 0.1 * np.maximum(labels - 1, 0)[:, None]
    num_lesions = np.where(labels > 0, rng.integers(2 * labels - 1, 2 * labels + 3), 0)
    num_spots = rng.integers(0, NUM_DISTRACTORS + 1, count)
    slot = np.arange(most + NUM_DISTRACTORS)
    is_lesion = slot < most
    present = np.where(is_lesion, slot < num_lesions[:, None], slot - most < num_spots[:, None])
    radius = rng.uniform(low, high, present.shape) * np.where(is_lesion, growth, 1)
    places, room = _draw_places(disc, len(slot), max(LESION_SPACING, 2.2 * high * float(growth.max())), rng)
    if (num_lesions > room).any():
        raise ConfigError(
            f"data.lesion_radius_px={config.lesion_radius_px} leaves room for {room.min()} lesions, and grade "
            f"{config.num_classes - 1} has up to {most}: expected smaller lesions or fewer classes"
        )
    present &= slot < room[:, None]
    columns = (
        places[..., 0],
        places[..., 1],
        np.where(present, radius, 0),
        rng.uniform(1.0, 1.35, present.shape),
        rng.uniform(0, np.pi, present.shape),
        rng.integers(0, BRIGHT + 1, present.shape),
        config.lesion_contrast * np.where(is_lesion, rng.uniform(0.75, 1.25, present.shape), DISTRACTOR_CONTRAST),
        np.broadcast_to(is_lesion, present.shape),
    )
    blobs = np.stack(columns, axis=-1)
    blobs[..., 6] = np.minimum(blobs[..., 6], 1)
    return blobs


def _draw_places(
    disc: np.ndarray, num_places: int, spacing: float, rng: np.random.Generator
) -> tuple[np.ndarray, Int64[np.ndarray, " n"]]:
    """Return ``num_places`` places per image, ``spacing`` apart, and the number of places where a lesion may lie.

    Places are random nodes of a square grid, rotated and shifted at random for each image. The allowed ones come
    first; their number counts the whole grid and may exceed ``num_places``.
    """
    count = len(disc)
    steps = np.arange(-8, 9) * spacing
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    grid = grid[np.hypot(*grid.T) < LESION_FIELD + spacing]
    angle = rng.uniform(0, 2 * np.pi, count)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(count, 2, 2)
    places = grid @ turn + rng.uniform(-spacing / 2, spacing / 2, (count, 1, 2))
    allowed = (np.hypot(places[..., 0], places[..., 1]) < LESION_FIELD) & (
        np.hypot(*np.moveaxis(places - disc[:, None], -1, 0)) > DISC_MARGIN
    )
    order = np.argsort(rng.random(allowed.shape) + 2 * ~allowed, axis=1)[:, :num_places]
    if order.shape[1] < num_places:  # a grid so coarse that it has fewer nodes than places
        order = np.pad(order, ((0, 0), (0, num_places - order.shape[1])), mode="edge")
    return np.take_along_axis(places, order[..., None], axis=1), allowed.sum(axis=1)


def _draw_cameras(config: PhantomData) -> np.ndarray:
    """Return (sites, 7) cameras of the known sites, then of the external ones; adding a site changes no other."""
    ranges = [KNOWN_CAMERA] * config.num_sites + [EXTERNAL_CAMERA] * config.num_external_sites
    numbers = [*range(config.num_sites), *range(1000, 1000 + config.num_external_sites)]
    return np.stack(
        [
            np.random.default_rng([config.seed, 2, number]).uniform(*bounds)
            for number, bounds in zip(numbers, ranges, strict=True)
        ]
    )
