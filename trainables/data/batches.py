"""Batches of the training split: choice of images, their order and their seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from trainables.config import TrialConfig
from trainables.data.dataset import ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.data.groups import Groups, find_groups
from trainables.errors import ConfigError
from trainables.regularisers import choose_group_columns
from trainables.seeding import derive_seed, hash_ids, mix


class Batch(NamedTuple):
    """One batch on the device."""

    #: Images, or the cached features of a linear probe: n × features, float32.
    images: UInt8[Tensor, "n c h w"] | Float32[Tensor, "n f"]
    #: Index of the class.
    labels: Int64[Tensor, " n"]
    #: Index of the group: the site, unless the regulariser groups by something else.
    groups: Int64[Tensor, " n"]
    #: Seed of all random draws for one sample in one epoch.
    seeds: Int64[Tensor, " n"]


class Feed(Protocol):
    """Source of batches by row number: of images (``ImageFeed``), or of what was computed from them."""

    def batches(self, rows: Int64[np.ndarray, " n"], sizes: Sequence[int]) -> Iterator[Tensor]:
        """Yield what belongs to ``rows`` in batches of ``sizes``, which sum to the number of rows."""


class TrainingImages:
    """The training split in seeded order, as batches on the device. Order and seeds never depend on the arm.

    Args:
        train: the training split.
        config: the trial, for its seeds, batch size, label fraction and the groups of its regulariser.
        device: device of the batches.

    Raises:
        ConfigError: fewer than two images are left, or the regulariser groups by a column that the images lack.
    """

    def __init__(self, train: ImageSet, config: TrialConfig, device: torch.device) -> None:
        self.feed: Feed = ImageFeed(train, device)
        self._device = device
        self._seed = (config.seed, config.replicate)
        self._batch_size = config.training.batch_size
        self.rows = choose_label_fraction(
            train, config.training.label_fraction, derive_seed(config.seed, config.replicate, "labels")
        )
        if len(self.rows) < 2:
            raise ConfigError(f"training.label_fraction leaves {len(self.rows)} training images; at least 2 are needed")
        found = find_groups(train, choose_group_columns(config.regulariser))
        #: Groups of the images in use; the label fraction may leave a group without images.
        self.groups = Groups(found.names, found.index[self.rows])
        self._groups = torch.from_numpy(found.index).to(device)
        self._labels = torch.from_numpy(np.array(train.labels)).to(device)
        seeds = mix(torch.from_numpy(hash_ids(train.ids)), "augmentation", config.seed, config.replicate)
        self._sample_seeds = seeds.to(device)

    @property
    def num_batches(self) -> int:
        """Optimiser steps per epoch."""
        return len(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        sizes = split_sizes(len(self.rows), self._batch_size)
        if len(sizes) > 1 and sizes[-1] == 1:  # batch normalisation cannot take a single image
            sizes[-2:] = [sizes[-2] + 1]
        return sizes

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; epochs are numbered from 1."""
        generator = np.random.default_rng(derive_seed(*self._seed, "order", epoch))
        order = self.rows[generator.permutation(len(self.rows))]
        index = torch.from_numpy(order).to(self._device)
        labels, groups = self._labels[index], self._groups[index]
        seeds = mix(self._sample_seeds[index], "epoch", epoch)
        start = 0
        for images in self.feed.batches(order, self._sizes):
            part = slice(start, start := start + len(images))
            yield Batch(images, labels[part], groups[part], seeds[part])


def choose_label_fraction(train: ImageSet, fraction: float, seed: int) -> Int64[np.ndarray, " m"]:
    """Return the rows of a random subset of whole groups with at least ``fraction`` of the images of every class.

    All groups are in one random order. Of every class, groups that hold it are taken in that order until their images
    reach the fraction. So every class is present, a group with several classes counts for each, and the subset of a
    smaller fraction is contained in that of a larger one.
    """
    if fraction == 1.0:
        return np.arange(len(train))
    groups, group_of = np.unique(train.groups, return_inverse=True)
    order = np.argsort(hash_ids(f"{seed}/{group}" for group in groups), kind="stable")
    counts = np.zeros((len(groups), int(train.labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (group_of, train.labels), 1)
    ordered = counts[order]
    before = ordered.cumsum(axis=0) - ordered
    chosen = np.zeros(len(groups), dtype=bool)
    chosen[order] = ((ordered > 0) & (before < np.round(fraction * ordered.sum(axis=0), 6))).any(axis=1)
    return np.flatnonzero(chosen[group_of])
