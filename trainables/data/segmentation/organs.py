"""Procedural images with masks: a fundus with vessels and lesions, CT-like discs with noise, a lesion in speckle.

All random quantities are drawn at once from one seed; rendering is a pure function of rows, so chunks of any size give
the same pixels. Ranges were chosen by eye: they are assumptions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64

from trainables.data.dataset import UNCOUNTED
from trainables.data.decoding.threads import map_threads
from trainables.data.identity.file_digests import FileDigests
from trainables.data.segmentation.targets import order_classes
from trainables.data.sources.phantom_rendering import (
    FIELD_RADIUS,
    REFERENCE_SIZE,
    Scenes,
    blur_images,
    draw_normal,
    render_scenes,
    render_vessels,
)
from trainables.data.sources.phantom_scenes import draw_scenes
from trainables.data.table import Source, Table, hash_json
from trainables.data_config import PhantomData
from trainables.segmentation_data_config import BACKGROUND, OrgansData

#: Increase it when drawing or rendering changes: fingerprints change with it.
ORGANS_VERSION = 1
#: Organ → its classes.
CLASSES = {
    "fundus": (BACKGROUND, "vessel", "lesion"),
    "ct": (BACKGROUND, "organ", "lesion"),
    "ultrasound": (BACKGROUND, "lesion"),
}
#: A pixel belongs to a vessel where blood takes this share of its light: what the eye can see of it.
VESSEL_DEPTH = 0.2
#: Images rendered at once by one thread.
_CHUNK = 16
#: Fields that decide the pixels.
_DRAWN = {"organ", "image_size", "channels", "num_images", "images_per_patient", "label_map", "seed"}
_Drawn = tuple[Float32[np.ndarray, "n channels size size"], UInt8[np.ndarray, "n size size"]]


@dataclass(frozen=True)
class Ellipses:
    """One ellipse per image; lengths in px of a 64 px image, the origin in its middle, y down."""

    x: Float32[np.ndarray, " n"]
    y: Float32[np.ndarray, " n"]
    radius: Float32[np.ndarray, " n"]
    #: Half axes are the radius times and divided by it.
    elongation: Float32[np.ndarray, " n"]
    angle: Float32[np.ndarray, " n"]

    def take(self, rows: Int64[np.ndarray, " k"]) -> Ellipses:
        """Return the ellipses of ``rows``."""
        return Ellipses(*(values[rows] for values in vars(self).values()))


def draw_ellipses(
    rng: np.random.Generator, count: int, *, place: float, radius: tuple[float, float], around: Ellipses | None = None
) -> Ellipses:
    """Return random ellipses, their middle at most ``place`` from that of the image, or of ``around``, in x and y."""
    x, y = rng.uniform(-place, place, (2, count))
    if around is not None:
        x, y = x + around.x, y + around.y
    drawn = (x, y, rng.uniform(*radius, count), rng.uniform(1.0, 1.3, count), rng.uniform(0, np.pi, count))
    return Ellipses(*(values.astype(np.float32) for values in drawn))


def cover(ellipses: Ellipses, size: int) -> Float32[np.ndarray, "n size size"]:
    """Return the share of every pixel that an ellipse covers, its edge one pixel wide; half at its rim."""
    scale = size / REFERENCE_SIZE
    axis = (np.arange(size, dtype=np.float32) + 0.5) / scale - REFERENCE_SIZE / 2
    x, y, radius, elongation, angle = (values[:, None, None] for values in vars(ellipses).values())
    to_x, to_y = axis[None, None, :] - x, axis[None, :, None] - y
    major = (to_x * np.cos(angle) + to_y * np.sin(angle)) / elongation
    minor = (to_y * np.cos(angle) - to_x * np.sin(angle)) * elongation
    inside = (radius - np.sqrt(major**2 + minor**2)) * scale
    return np.where(radius > 0, np.clip(inside + 0.5, 0, 1), 0).astype(np.float32)


def _plan_fundus(config: OrgansData, patient: Int64[np.ndarray, " n"]) -> Callable[[Int64[np.ndarray, " k"]], _Drawn]:
    """Return what draws rows: the phantom's eyes, of which a third has no lesion; outside of the field is uncounted."""
    rng = np.random.default_rng([config.seed, 3])
    labels = rng.permutation(int(patient.max()) + 1)[patient] % 3
    eyes = PhantomData(num_classes=3, num_sites=1, num_external_sites=0, seed=config.seed)
    nothing = np.zeros(len(patient), dtype=np.int64)
    scenes: Scenes = draw_scenes(eyes, labels, patient, nothing, nothing)
    axis = ((np.arange(config.image_size, dtype=np.float32) + 0.5) / config.image_size - 0.5) * REFERENCE_SIZE
    outside: Bool[np.ndarray, "size size"] = np.hypot(axis[None, :], axis[:, None]) > FIELD_RADIUS

    def draw(rows: Int64[np.ndarray, " k"]) -> _Drawn:
        images, lesions = render_scenes(scenes, rows, size=config.image_size, channels=config.channels)
        targets = (render_vessels(scenes.take(rows), axis) >= VESSEL_DEPTH).astype(np.uint8)
        targets[lesions > 0] = 2
        targets[:, outside] = UNCOUNTED
        return images.astype(np.float32) / 255, targets

    return draw


def _plan_ct(config: OrgansData, patient: Int64[np.ndarray, " n"]) -> Callable[[Int64[np.ndarray, " k"]], _Drawn]:
    """Return what draws rows: a body with a bright organ, in half of the patients with a dark lesion, and noise."""
    rng, count, size = np.random.default_rng([config.seed, 4]), len(patient), config.image_size
    body = draw_ellipses(rng, count, place=2, radius=(25, 28))
    organ = draw_ellipses(rng, count, place=7, radius=(8, 13))
    lesion = draw_ellipses(rng, count, place=3, radius=(2, 4), around=organ)
    lesion.radius[rng.permutation(int(patient.max()) + 1)[patient] % 2 == 0] = 0
    levels = rng.uniform([0.3, 0.15, -0.2], [0.4, 0.25, -0.12], (count, 3)).astype(np.float32)
    noise, seeds = rng.uniform(0.03, 0.07, count).astype(np.float32), rng.integers(0, 2**63, count).astype(np.uint64)

    def draw(rows: Int64[np.ndarray, " k"]) -> _Drawn:
        covers = [cover(each.take(rows), size) for each in (body, organ, lesion)]
        image = np.sum([part * levels[rows, each, None, None] for each, part in enumerate(covers)], axis=0)
        image += noise[rows, None, None] * draw_normal(seeds[rows], (size, size))
        targets = (covers[1] >= 0.5).astype(np.uint8)
        targets[covers[2] >= 0.5] = 2
        return image[:, None], targets

    return draw


def _plan_ultrasound(
    config: OrgansData, patient: Int64[np.ndarray, " n"]
) -> Callable[[Int64[np.ndarray, " k"]], _Drawn]:
    """Return what draws rows: fully developed speckle, darker with depth, and a lesion with a weak echo."""
    rng, count, size = np.random.default_rng([config.seed, 5]), len(patient), config.image_size
    lesion = draw_ellipses(rng, count, place=12, radius=(6, 12))
    echo, decay = rng.uniform(0.2, 0.45, count).astype(np.float32), rng.uniform(0.3, 0.8, count).astype(np.float32)
    seeds: UInt64[np.ndarray, " n"] = rng.integers(0, 2**63, count).astype(np.uint64)
    depth = np.linspace(0, 1, size, dtype=np.float32)[:, None]

    def draw(rows: Int64[np.ndarray, " k"]) -> _Drawn:
        inside = cover(lesion.take(rows), size)
        # The amplitude of many scatterers is the length of a complex normal number, its grains the size of the beam.
        field = blur_images(draw_normal(seeds[rows], (2, size, size)), np.full(len(rows), 0.9, dtype=np.float32))
        amplitude = np.sqrt((field**2).sum(axis=1)) / field.std(axis=(1, 2, 3))[:, None, None]
        amplitude *= (1 - inside * (1 - echo[rows, None, None])) * np.exp(-decay[rows, None, None] * depth)
        image = np.log1p(20 * amplitude) / np.log1p(80)  # the logarithm that scanners show
        return image[:, None], (inside >= 0.5).astype(np.uint8)

    return draw


PLANS = {"fundus": _plan_fundus, "ct": _plan_ct, "ultrasound": _plan_ultrasound}


@dataclass(frozen=True)
class OrganPixels:
    """Images and targets that ``decode`` draws; digests are those of the recipe."""

    draw: Callable[[Int64[np.ndarray, " k"]], _Drawn]
    digests: list[str]
    #: Class that is drawn → class of the data set after ``data.label_map``; 256 entries.
    classes: UInt8[np.ndarray, " 256"]
    has_masks: bool = True

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Draw ``rows``, see ``Pixels.decode``."""
        assert masks is not None
        targets = masks

        def draw(start: int) -> None:
            part = slice(start, start + _CHUNK)
            image, drawn = self.draw(rows[part])
            images[part] = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)  # grey fills all channels
            targets[part] = self.classes[drawn]

        map_threads(draw, range(0, len(rows), _CHUNK))
        return [self.digests[row] for row in rows], {}


def build_organs_source(config: OrgansData, digests: FileDigests) -> Source:
    """Return the source of drawn images; nothing is read."""
    recipe = hash_json([ORGANS_VERSION, config.model_dump(mode="json", include=_DRAWN)])
    return Source(recipe, lambda: _read_table(config, recipe))


def _read_table(config: OrgansData, recipe: str) -> Table:
    names = CLASSES[config.organ]
    classes = order_classes(names, config.label_map)
    lut: UInt8[np.ndarray, " 256"] = np.full(256, UNCOUNTED, dtype=np.uint8)
    for place, name in enumerate(names):
        mapped = (config.label_map or {}).get(name, name)
        lut[place] = UNCOUNTED if mapped is None else classes.index(mapped)
    patient = np.arange(config.num_images) // config.images_per_patient
    ids = [
        f"{config.organ}-{number:05d}-{place % config.images_per_patient}"
        for place, number in enumerate(patient.tolist())
    ]
    return Table(
        pixels=OrganPixels(
            PLANS[config.organ](config, patient), [hash_json([recipe, identifier]) for identifier in ids], lut
        ),
        ids=ids,
        labels=[""] * len(ids),
        splits=[""] * len(ids),
        groups=[f"{config.organ}-{number:05d}" for number in patient.tolist()],
        sites=[""] * len(ids),
        file_names=ids,
        rows=[None] * len(ids),
        classes=classes,
        components=("",),
        annotated={"": tuple(range(len(classes)))},
    )
