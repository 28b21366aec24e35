"""Batches of a set's images on the device, from GPU memory if the set fits there, otherwise from the memory map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.data.dataset import ImageSet

#: A set is copied to the GPU if it takes at most this share of the free GPU memory: the rest is for the network and for
#: the other trials on the same GPU. An assumption; no result depends on it.
GPU_COPY_SHARE = 1 / 8


class ImageFeed:
    """Batches of one set's images by row number, in any order and any number of times.

    On a CPU the images stay mapped: all trials of a node share one copy.

    Args:
        images: the set.
        device: device of the batches.
    """

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.images, self.device = images, device
        self._resident: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if images.images.nbytes <= GPU_COPY_SHARE * free:
                self._resident = torch.from_numpy(np.array(images.images)).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, rows: Int64[np.ndarray, " n"], sizes: Sequence[int]) -> Iterator[UInt8[Tensor, "m c *space"]]:
        """Yield the images of ``rows`` in batches of ``sizes``, which sum to the number of rows."""
        if self._resident is not None:
            # One transfer of row numbers for all batches.
            for index in torch.split(torch.from_numpy(rows).to(self.device), list(sizes)):
                yield self._resident[index]
            return
        parts = np.split(rows, np.cumsum(sizes)[:-1])
        if self.device.type == "cuda":
            yield from self._prefetch(parts)
            return
        for part in parts:
            yield torch.from_numpy(self.images.images[part])  # fancy indexing copies only this batch

    def _prefetch(self, parts: Sequence[Int64[np.ndarray, " m"]]) -> Iterator[UInt8[Tensor, "m c *space"]]:
        """Yield the images of ``parts``; the next part is read from the map while the GPU processes the current one."""
        with ThreadPoolExecutor(max_workers=1) as reader:
            coming: Future[Tensor] = reader.submit(self._read_pinned, parts[0])
            for part in parts[1:]:
                ready, coming = coming, reader.submit(self._read_pinned, part)
                yield ready.result().to(self.device, non_blocking=True)
            yield coming.result().to(self.device, non_blocking=True)

    def _read_pinned(self, part: Int64[np.ndarray, " m"]) -> UInt8[Tensor, "m c *space"]:
        with torch.cuda.device(self.device):
            return torch.from_numpy(self.images.images[part]).pin_memory()


def split_sizes(count: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of ``count`` images: full batches, then the remainder.

    >>> split_sizes(10, 4)
    [4, 4, 2]
    """
    return [min(batch_size, count - start) for start in range(0, count, batch_size)]
