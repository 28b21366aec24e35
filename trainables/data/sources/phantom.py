"""Procedural fundus-like images: lesions of known size and mask, sites, and a nuisance correlated with the label.

A *scene* holds all random quantities of the images, drawn at once from one seed. Rendering is a pure function of scene
rows, so chunks of any size give the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from trainables.data.decoding.threads import map_threads
from trainables.data.identity.file_digests import FileDigests
from trainables.data.sources.phantom_rendering import Scenes, render_blobs, render_scenes
from trainables.data.sources.phantom_scenes import draw_scenes
from trainables.data.splits import EXTERNAL, assign_splits
from trainables.data.table import Source, Table, hash_json
from trainables.data_config import PhantomData
from trainables.errors import ConfigError

#: Increase it when rendering or drawing changes: fingerprints change with it.
PHANTOM_VERSION = 2
#: Images rendered at once by one thread: enough to amortise NumPy's calls, few enough for the thread's cache.
CHUNK = 16


@dataclass(frozen=True)
class PhantomPlan:
    """All images of a phantom before rendering; entry i of every field belongs to image i."""

    scenes: Scenes
    labels: Int64[np.ndarray, " n"]
    ids: list[str]
    groups: list[str]
    sites: list[str]
    #: train, val, test or external/<name>.
    splits: np.ndarray
    #: 1 where the nuisance is applied.
    nuisance: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class PhantomImages:
    """A rendered phantom; masks hold 0 for background and k for the k-th lesion."""

    plan: PhantomPlan
    images: UInt8[np.ndarray, "n channels size size"]
    masks: UInt8[np.ndarray, "n size size"]


def render_phantom(config: PhantomData) -> PhantomImages:
    """Return all images of a phantom with their masks and plan, in memory.

    Raises:
        ConfigError: see ``plan_phantom``.
    """
    plan = plan_phantom(config)
    count, size = len(plan.labels), config.image_size
    images = np.empty((count, config.channels, size, size), dtype=np.uint8)
    masks = np.empty((count, size, size), dtype=np.uint8)
    _render_rows(plan.scenes, np.arange(count), images, masks)
    return PhantomImages(plan, images, masks)


def _render_rows(
    scenes: Scenes,
    rows: Int64[np.ndarray, " n"],
    images: UInt8[np.ndarray, "n channels size size"],
    masks: UInt8[np.ndarray, "n size size"] | None,
) -> None:
    """Fill arrays with the given rows, chunk by chunk on all cores."""

    def render(start: int) -> None:
        part = slice(start, start + CHUNK)
        rendered, lesions = render_scenes(scenes, rows[part], size=images.shape[-1], channels=images.shape[1])
        images[part] = rendered
        if masks is not None:
            masks[part] = lesions

    map_threads(render, range(0, len(rows), CHUNK))


def plan_phantom(config: PhantomData) -> PhantomPlan:
    """Return labels, sites, splits and all random quantities of a phantom.

    Random draws depend on ``config.seed`` alone, splits also on ``config.split_seed``. All images of a patient share
    grade, site, tint and pigmentation, so a patient in two splits would leak.

    Raises:
        ConfigError: there are too few images for the classes, or the lesions do not fit into the image.
    """
    needed = 3 * config.num_classes * config.images_per_patient
    if config.num_images < needed:
        raise ConfigError(
            f"data.num_images is {config.num_images}; expected at least {needed} for {config.num_classes} classes in "
            f"train, val and test with {config.images_per_patient} images per patient"
        )
    rng = np.random.default_rng(config.seed)
    outside = [f"external-{index}" for index in range(config.num_external_sites)]
    names = [f"site-{index}" for index in range(config.num_sites)] + outside
    counts = [config.num_images] + [config.num_external_images] * len(outside)
    block = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) // config.images_per_patient for count in counts])
    _, patient = np.unique(np.stack([block, number]), axis=1, return_inverse=True)
    patient = patient.reshape(-1)
    num_patients = int(patient.max()) + 1
    # Grades and sites are assigned in turn to shuffled patients: balanced, and independent of each other.
    labels = (rng.permutation(num_patients) % config.num_classes)[patient]
    known_site = (rng.permutation(num_patients) % config.num_sites)[patient]
    site = np.where(block == 0, known_site, config.num_sites + block - 1)
    sites = [names[index] for index in site]
    groups = [f"{(['patient', *outside])[b]}-{n:05d}" for b, n in zip(block, number, strict=True)]
    external = (block > 0) | np.isin(sites, config.outer_sites)
    splits = assign_splits(
        np.array([EXTERNAL + name if out else "" for name, out in zip(sites, external, strict=True)], dtype=object),
        labels,
        np.array(groups),
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    nuisance = _draw_nuisance(config, labels, splits, rng)
    eye = np.arange(len(labels)) - np.searchsorted(patient, patient)
    return PhantomPlan(
        scenes=draw_scenes(config, labels, patient, site, nuisance),
        labels=labels,
        ids=[f"{group}-{index}" for group, index in zip(groups, eye, strict=True)],
        groups=groups,
        sites=sites,
        splits=splits,
        nuisance=nuisance,
    )


def _draw_nuisance(
    config: PhantomData, labels: Int64[np.ndarray, " n"], splits: np.ndarray, rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """Return 1 where the nuisance is applied: it agrees with "has lesions" with probability ρ; ½ on external sites."""
    rho = np.full(len(labels), config.rho)
    rho[splits == "test"] = config.rho if config.rho_test is None else config.rho_test
    rho[[split.startswith(EXTERNAL) for split in splits]] = 0.5
    agrees = rng.random(len(labels)) < rho
    return (agrees == (labels > 0)).astype(np.int64) * (config.nuisance != "none")


@dataclass(frozen=True)
class PhantomPixels:
    """Images that ``decode`` renders."""

    scenes: Scenes
    digests: list[str]
    has_masks: bool = True

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Render ``rows``, see ``Pixels.decode``.

        Digests are those of the recipe, so that rounding on another CPU cannot change them.
        """
        _render_rows(self.scenes, rows, images, masks)
        return [self.digests[row] for row in rows], {}


def build_phantom_source(config: PhantomData, digests: FileDigests) -> Source:
    """Return the source of a phantom; metadata are lesion_count, lesion_area_px (at image_size) and nuisance."""
    recipe = hash_json(
        [PHANTOM_VERSION, config.model_dump(mode="json", include=set(PhantomData.model_fields) - {"split"})]
    )
    return Source(recipe, lambda: _build_table(config, recipe))


def _build_table(config: PhantomData, recipe: str) -> Table:
    plan = plan_phantom(config)
    return Table(
        pixels=PhantomPixels(plan.scenes, [hash_json([recipe, identifier]) for identifier in plan.ids]),
        ids=plan.ids,
        labels=[str(label) for label in plan.labels],
        splits=list(plan.splits),
        groups=plan.groups,
        sites=plan.sites,
        file_names=plan.ids,
        rows=[None] * len(plan.ids),
        metadata=_summarise_lesions(plan.scenes, config.image_size) | {"nuisance": plan.nuisance.tolist()},
    )


def _summarise_lesions(scenes: Scenes, size: int) -> dict[str, list[Any]]:
    """Return the number of lesions and of lesion pixels of every image."""
    count = len(scenes.seed)
    area = map_threads(
        lambda start: np.count_nonzero(
            render_blobs(scenes.take(np.arange(start, min(start + CHUNK, count))), size)[2], axis=(1, 2)
        ),
        range(0, count, CHUNK),
    )
    is_lesion = (scenes.blobs[..., 2] > 0) & (scenes.blobs[..., 7] > 0)
    return {"lesion_count": is_lesion.sum(axis=1).tolist(), "lesion_area_px": np.concatenate(area).tolist()}
