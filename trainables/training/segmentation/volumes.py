"""Batches of patches of volumes: read from the memory map patch by patch, some of them around the foreground."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.config import TrialConfig
from trainables.data.dataset import UNCOUNTED, ImageSet
from trainables.data.segmentation.extents import find_extents
from trainables.seeding import uniform
from trainables.training.segmentation.batches import TrainingPatches

#: Share of the patches that are centred on foreground, and voxels per class and volume from which they are drawn
#: (nnU-Net, Isensee et al. 2021).
FOREGROUND_SHARE, _MAX_VOXELS = 1 / 3, 10_000


class TrainingVolumes(TrainingPatches):
    """The training split of volumes in seeded order, as batches of patches.

    A patch lies anywhere in its volume or, with the probability ``foreground_share``, as near as it fits around a voxel
    of one of the classes that the volume has, each class as likely. Where the volume is smaller than the patch, the
    rest is 0 and not counted. Unlike nnU-Net, which fixes the number of such patches in a batch, every patch has draws
    of its own.

    Args:
        train: the training split, with targets.
        config: the trial, for its seeds, batch size and label fraction.
        device: device of the batches.
        patch_size: sides of the patches: slices, rows, columns.
        patches_per_epoch: number of patches of an epoch; None: one per volume.
        shares: index of a data set → its share of the patches.
        foreground_share: probability of a patch around foreground.

    Raises:
        ConfigError: see ``TrainingPatches``.
    """

    def __init__(
        self,
        train: ImageSet,
        config: TrialConfig,
        device: torch.device,
        *,
        patch_size: tuple[int, int, int],
        patches_per_epoch: int | None,
        shares: Mapping[int, float] | None = None,
        foreground_share: float = FOREGROUND_SHARE,
    ) -> None:
        super().__init__(
            train, config, device, patch_size=patch_size, patches_per_epoch=patches_per_epoch, shares=shares
        )
        assert train.targets is not None
        self._sides, self._foreground_share = np.array(patch_size), foreground_share
        self._extents = find_extents(train)
        self._foreground = {int(row): list_foreground(train.targets[row]) for row in self.rows}

    def _cut(
        self, rows: Int64[np.ndarray, " n"], seeds: Int64[Tensor, " n"]
    ) -> Iterator[tuple[UInt8[Tensor, "m c *space"], UInt8[Tensor, "m *space"], Int64[Tensor, " m"]]]:
        """Yield the patches of ``rows`` in batches, with targets and seeds."""
        assert self._train.targets is not None
        corners = self._place(rows, uniform(seeds.cpu(), 6, stream="patch").double().numpy())
        start = 0
        for size in self._sizes:
            part = slice(start, start := start + size)
            places = [
                tuple(slice(first, first + side) for first, side in zip(corner, self._sides, strict=True))
                for corner in corners[part]
            ]
            # Patch by patch: each is a read of some 10⁶ voxels, and a whole volume may have a hundred times as many.
            images, targets = (
                torch.from_numpy(np.stack([read(row, place) for row, place in zip(rows[part], places, strict=True)]))
                for read in (
                    lambda row, place: self._train.images[(row, slice(None), *place)],
                    lambda row, place: self._train.targets[(row, *place)],
                )
            )
            yield images.to(self._device), targets.to(self._device), seeds[part]

    def _place(self, rows: Int64[np.ndarray, " n"], drawn: Float[np.ndarray, "n 6"]) -> Int64[np.ndarray, "n 3"]:
        """Return the first voxel of every patch, from numbers in [0, 1)."""
        room = np.maximum(self._extents[rows] - self._sides, 0)
        corners = np.minimum((drawn[:, :3] * (room + 1)).astype(np.int64), room)
        for place, row in enumerate(rows):
            voxels = self._foreground[int(row)]
            if voxels and drawn[place, 3] < self._foreground_share:
                own = voxels[int(drawn[place, 4] * len(voxels))]
                centre = own[int(drawn[place, 5] * len(own))]
                corners[place] = np.clip(centre - self._sides // 2, 0, room[place])
        return corners


def list_foreground(targets: UInt8[np.ndarray, "depth height width"]) -> list[Int64[np.ndarray, "voxels 3"]]:
    """Return voxels of each foreground class that a volume has: of many every so manieth, some 10,000."""
    flat = np.asarray(targets).ravel()
    found = []
    for label in np.unique(flat):
        if label in (0, UNCOUNTED):
            continue
        voxels = np.flatnonzero(flat == label)
        step = -(-len(voxels) // _MAX_VOXELS)
        found.append(np.stack(np.unravel_index(voxels[::step], targets.shape), axis=1))
    return found
