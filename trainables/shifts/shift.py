"""Shift at one severity: a value object that shifts images deterministically."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.errors import ConfigError
from trainables.ops.geometry import join_slices, split_slices
from trainables.seeding import mix
from trainables.shifts.operation import Fold, Operation
from trainables.shifts.operations import OPERATIONS
from trainables.shifts.tables import Strength

#: Values shifted at a time. A CPU is fastest while temporaries (8 bytes per value) stay in its cache; on a GPU the
#: number bounds their memory.
_CHUNK_VALUES = {"cpu": 2**19, "other": 2**25}


@dataclass(frozen=True)
class Shift:
    """One corruption at one severity.

    Attributes:
        name: name in tables and figures; a name of the bank if ``operation`` is None, or "identity".
        severity: 1 (mild) to 5; 0 is the identity.
        strength: strength in the units of severities.json.
        operation: operation of a shift whose name is not in the bank; None for the bank's shifts.
    """

    name: str
    severity: int
    strength: Strength
    operation: Operation | None = field(default=None, compare=False)

    @property
    def needs_colour(self) -> bool:
        """Return whether images of one channel are left unchanged, so that the shift tests nothing on them."""
        return self.name != "identity" and self._operation.needs_colour

    @property
    def fits_volumes(self) -> bool:
        """Return whether volumes can be shifted."""
        return self.name == "identity" or self._operation.fold is not None

    @property
    def _operation(self) -> Operation:
        return OPERATIONS[self.name] if self.operation is None else self.operation

    def apply(
        self, images: UInt8[Tensor, "n c *space"], sample_seeds: Int64[Tensor, " n"]
    ) -> UInt8[Tensor, "n c *space"]:
        """Return the shifted images on the device of ``images``. The result of an image does not depend on its batch.

        Args:
            images: images or volumes of 1 or 3 channels.
            sample_seeds: ``mix(hash_ids(ids), shift_seed)`` on the images' device; name and strength are mixed in here.

        Raises:
            ConfigError: a registered operation did not return uint8 images of the same shape, or the shift means
                nothing for volumes.
        """
        if self.name == "identity" or self.strength == self._operation.identity:
            return images
        if images.ndim == 5:
            return self._apply_to_volumes(images, sample_seeds)
        seeds = mix(sample_seeds, "shift", self.name, self.strength)
        values = _CHUNK_VALUES["cpu" if images.device.type == "cpu" else "other"]
        rows = max(1, values // max(1, math.prod(images.shape[1:])))
        parts = zip(torch.split(images, rows), torch.split(seeds, rows), strict=True)
        shifted = torch.cat([self._operation.apply(part, self.strength, part_seeds) for part, part_seeds in parts])
        if shifted.shape != images.shape or shifted.dtype != torch.uint8:
            raise ConfigError(
                f"shift {self.name!r} returned {shifted.dtype} {tuple(shifted.shape)}, expected torch.uint8 "
                f"{tuple(images.shape)}: correct its operation"
            )
        return shifted

    def _apply_to_volumes(
        self, volumes: UInt8[Tensor, "n c d h w"], sample_seeds: Int64[Tensor, " n"]
    ) -> UInt8[Tensor, "n c d h w"]:
        depth, fold = volumes.shape[2], self._operation.fold
        if fold == "voxels":
            return self.apply(volumes.flatten(2, 3), sample_seeds).reshape(volumes.shape)
        if fold == "slices":
            return join_slices(self.apply(split_slices(volumes), sample_seeds.repeat_interleave(depth)), depth)
        if fold == "parts":
            seeds = mix(sample_seeds, "shift", self.name, self.strength)
            return self._operation.apply(volumes, self.strength, seeds)
        raise ConfigError(f"shift {self.name!r}: found volumes, for which it means nothing; expected images")


#: Shift of severity 0, which returns the input bit for bit.
IDENTITY = Shift("identity", 0, 0.0)


def compose(parts: tuple[Shift, ...]) -> Operation:
    """Return the operation that applies the shifts one after the other.

    The random numbers of each part depend on its own name and strength.
    """

    def apply(images: Tensor, strength: Strength, seeds: Tensor) -> Tensor:
        for part in parts:
            images = part.apply(images, seeds)
        return images

    needs_colour = all(part.needs_colour for part in parts)
    fold: Fold | None = "parts" if all(part.fits_volumes for part in parts) else None
    return Operation(apply, identity=math.nan, needs_colour=needs_colour, fold=fold)
