"""Batches of a segmentation's training split: patches of images with the classes of their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.config import TrialConfig
from trainables.data.batches import choose_label_fraction
from trainables.data.dataset import ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.data_config import DataConfig
from trainables.errors import ConfigError
from trainables.seeding import derive_seed, hash_ids, mix, uniform
from trainables.segmentation_data_config import DatasetsData


class PatchBatch(NamedTuple):
    """One batch on the device."""

    images: UInt8[Tensor, "n c *space"]
    #: Index of each pixel's class, or ``UNCOUNTED``.
    targets: UInt8[Tensor, "n *space"]
    #: Index of the data set that each image comes from.
    sources: Int64[Tensor, " n"]
    #: Seed of all random draws for one patch in one epoch.
    seeds: Int64[Tensor, " n"]


class TrainingPatches:
    """The training split in seeded order, as batches of patches. Order and seeds never depend on the arm.

    With ``task.patches_per_epoch`` every image is used as often as any other of its data set (once more at most).

    Args:
        train: the training split, with targets.
        config: the trial, for its seeds, batch size, label fraction and patches.
        device: device of the batches.
        patch_size: side of the patches in px; None: whole images.
        patches_per_epoch: number of patches of an epoch; None: one per image.
        shares: index of a data set → its share of the patches of an epoch; None: by number of images.

    Raises:
        ConfigError: no training image is left, a patch is larger than the images, or a data set has no patch in an
            epoch.
    """

    def __init__(
        self,
        train: ImageSet,
        config: TrialConfig,
        device: torch.device,
        *,
        patch_size: int | tuple[int, int, int] | None,
        patches_per_epoch: int | None,
        shares: Mapping[int, float] | None = None,
    ) -> None:
        assert train.targets is not None
        self._train, self._device, self._patch_size = train, device, patch_size
        self._seed = (config.seed, config.replicate)
        self._batch_size = config.training.batch_size
        seed = derive_seed(config.seed, config.replicate, "labels")
        self.rows = choose_label_fraction(train, config.training.label_fraction, seed)
        self._check(train)
        sources = train.labels[self.rows]
        counted = {
            int(source): float(count) for source, count in zip(*np.unique(sources, return_counts=True), strict=True)
        }
        number = patches_per_epoch or len(self.rows)
        self._counts = _share_out(number, counted if shares is None else {key: shares[key] for key in counted})
        unused = [source for source, count in self._counts.items() if count == 0]
        if unused:
            raise ConfigError(
                f"task.patches_per_epoch: found {number} patches, of which none is of the data set number "
                f"{unused[0] + 1} at its share; expected more patches, or a larger share in data.weights"
            )
        self._rows_of = {source: self.rows[sources == source] for source in counted}
        seeds = mix(torch.from_numpy(hash_ids(train.ids)), "augmentation", config.seed, config.replicate)
        self._sample_seeds = seeds.to(device)
        self._sources = torch.from_numpy(np.array(train.labels)).to(device)

    @cached_property
    def _feed(self) -> ImageFeed:
        return ImageFeed(self._train, self._device)

    def _check(self, train: ImageSet) -> None:
        if not len(self.rows):
            raise ConfigError("training.label_fraction leaves no training image; at least 1 is needed")
        check_patch_size(train, self._patch_size)

    @property
    def smallest_batch(self) -> int:
        """Patches of the smallest batch."""
        return min(self._sizes)

    @property
    def num_patches(self) -> int:
        """Patches per epoch."""
        return sum(self._counts.values())

    @property
    def num_batches(self) -> int:
        """Optimiser steps per epoch."""
        return len(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        sizes = split_sizes(self.num_patches, self._batch_size)
        if len(sizes) > 1 and sizes[-1] == 1:  # a single patch says little about the statistics of a batch
            sizes[-2:] = [sizes[-2] + 1]
        return sizes

    def draw(self, epoch: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the rows of an epoch's patches in order, and how often each row was used before in that epoch."""
        generator = np.random.default_rng(derive_seed(*self._seed, "order", epoch))
        rows: list[np.ndarray] = []
        passes: list[np.ndarray] = []
        for source, count in self._counts.items():
            own = self._rows_of[source]
            times = -(-count // len(own))
            rows.append(np.concatenate([own[generator.permutation(len(own))] for _ in range(times)])[:count])
            passes.append(np.repeat(np.arange(times), len(own))[:count])
        order = generator.permutation(self.num_patches)
        return np.concatenate(rows)[order], np.concatenate(passes)[order]

    def epoch(self, epoch: int) -> Iterator[PatchBatch]:
        """Yield the batches of an epoch; epochs are numbered from 1."""
        rows, passes = self.draw(epoch)
        start = 0
        for images, targets, seeds in self._cut(rows, self._draw_seeds(rows, passes, epoch)):
            index = torch.from_numpy(rows[start : (start := start + len(images))]).to(self._device)
            yield PatchBatch(images, targets, self._sources[index], seeds)

    def _draw_seeds(
        self, rows: Int64[np.ndarray, " n"], passes: Int64[np.ndarray, " n"], epoch: int
    ) -> Int64[Tensor, " n"]:
        index, times = torch.from_numpy(rows).to(self._device), torch.from_numpy(passes).to(self._device)
        return mix(mix(self._sample_seeds[index], "epoch", epoch) + times, "pass")

    def _cut(
        self, rows: Int64[np.ndarray, " n"], seeds: Int64[Tensor, " n"]
    ) -> Iterator[tuple[UInt8[Tensor, "m c *space"], UInt8[Tensor, "m *space"], Int64[Tensor, " m"]]]:
        """Yield the patches of ``rows`` in batches, with targets and seeds."""
        assert self._train.targets is not None
        assert not isinstance(self._patch_size, tuple)
        start = 0
        for whole in self._feed.batches(rows, self._sizes):
            part = slice(start, start := start + len(whole))
            annotation = torch.from_numpy(self._train.targets[rows[part]]).to(self._device)
            if self._patch_size is None:
                yield whole, annotation, seeds[part]
                continue
            yield *crop_patches(whole, annotation, seeds[part], size=self._patch_size), seeds[part]


def check_patch_size(images: ImageSet, patch_size: int | tuple[int, int, int] | None) -> None:
    """Check that patches fit into images.

    Raises:
        ConfigError: they are larger, or have another number of sides.
    """
    shape = images.images.shape[2:]
    if isinstance(patch_size, tuple) or images.holds_volumes:
        _check_patch_of_volumes(shape, patch_size)
        return
    smallest = min(shape)
    if patch_size is not None and patch_size > smallest:
        raise ConfigError(
            f"task.patch_size: found {patch_size}, and the images are stored at {smallest} px; expected no more, or a "
            "larger data.image_size"
        )


def _check_patch_of_volumes(shape: tuple[int, ...], patch_size: int | tuple[int, int, int] | None) -> None:
    sides = (patch_size,) * 3 if isinstance(patch_size, int) else patch_size
    stored = " × ".join(map(str, shape))
    if len(shape) != 3:
        raise ConfigError(f"task.patch_size: found three sides, and images of {stored} px; expected one side")
    if sides is None:
        raise ConfigError(
            f"task.patch_size: found none with volumes of up to {stored} voxels; expected slices, rows and columns of "
            "the patches"
        )
    if any(side > most for side, most in zip(sides, shape, strict=True)):
        raise ConfigError(
            f"task.patch_size: found {' × '.join(map(str, sides))} voxels (slices, rows, columns), and the largest "
            f"volume has {stored}; expected no more, or a finer data.spacing_mm"
        )


def find_shares(config: DataConfig, components: Sequence[str]) -> dict[int, float] | None:
    """Return index of a data set → its share of the patches of an epoch, as ``data.weights`` of several says.

    None if there is one, or if every image is used as often as any other.
    """
    if not isinstance(config, DatasetsData) or config.weights == "proportional":
        return None
    weights = dict.fromkeys(components, 1.0) if config.weights == "balanced" else config.weights
    return {index: weights[name] for index, name in enumerate(components) if name in weights}


def crop_patches(
    images: UInt8[Tensor, "n c h w"], targets: UInt8[Tensor, "n h w"], seeds: Int64[Tensor, " n"], *, size: int
) -> tuple[UInt8[Tensor, "n c s s"], UInt8[Tensor, "n s s"]]:
    """Return one random patch of every image, every place as likely, and the targets of the same pixels.

    Args:
        images: images.
        targets: classes of their pixels.
        seeds: seed of each patch.
        size: side of the patches in px.
    """
    number, _, height, width = images.shape
    drawn = uniform(seeds, 2, stream="patch")
    room = torch.tensor([height - size + 1, width - size + 1], device=images.device)
    corner = torch.minimum((drawn * room).long(), room - 1)
    top, left = corner.unbind(1)
    of = torch.arange(number, device=images.device)
    # Views of all places, of which one is copied per image: an index per pixel took four times as long.
    patches = images.unfold(2, size, 1).unfold(3, size, 1)[of, :, top, left]
    return patches, targets.unfold(1, size, 1).unfold(2, size, 1)[of, top, left]


def _share_out(number: int, weights: Mapping[int, float]) -> dict[int, int]:
    """Return key → its part of ``number`` in proportion to the weights, by the largest remainders."""
    total = sum(weights.values())
    exact = {key: number * weight / total for key, weight in weights.items()}
    counts = {key: int(share) for key, share in exact.items()}
    most = sorted(exact, key=lambda key: (counts[key] - exact[key], key))
    for key in most[: number - sum(counts.values())]:
        counts[key] += 1
    return counts
