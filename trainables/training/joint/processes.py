"""Processes that train one model together, each with its share of every batch, joined by ``torch.distributed``.

Image i of a batch is with process i modulo their number. What compares images (losses, batch statistics) is computed
from those of all processes, and gradients are summed, so that the number of processes changes no result beyond the
order of floating-point sums. All processes hold the same weights, and the first one writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trainables.errors import PeerLostError


@dataclass(frozen=True)
class Processes:
    """This process among those that train a model; alone by default, and then nothing is exchanged.

    Args:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def take(self, rows: Shaped[Tensor, "n *_"]) -> Shaped[Tensor, "m *_"]:
        """Return this process's share of the rows of a batch."""
        return rows[self.rank :: self.count]

    def split(self, own: Shaped[Tensor, "m *_"], count: int, size: int) -> tuple[Shaped[Tensor, "part *_"], ...]:
        """Return this process's rows of every part of a batch; parts are the same for any number of processes.

        Args:
            own: this process's share (``take``) of the batch.
            count: rows of the batch.
            size: rows of a part (``split_evenly``), of all processes together.
        """
        parts = split_evenly(torch.arange(count), size)
        return torch.split(own, [int((part % self.count == self.rank).sum()) for part in parts])

    def collect(self, own: Shaped[Tensor, "m *_"], count: int) -> Shaped[Tensor, "n *_"]:
        """Return all rows of a batch, in its order. Gradients reach this process's own rows alone.

        Args:
            own: this process's share (``take``) of the batch.
            count: rows of the batch.
        """
        if self.count == 1:
            return own
        longest = -(-count // self.count)
        own = own if len(own) == longest else torch.cat([own, own[-1:]])  # all processes send the same number of rows
        rows = self.gather(own.detach())
        rows[self.rank] = own
        return torch.stack(rows, dim=1).flatten(0, 1)[:count]

    def gather(self, values: Shaped[Tensor, "*shape"]) -> list[Shaped[Tensor, "*shape"]]:
        """Return the values of every process, which have the same shape, without gradients."""
        values = values.contiguous()
        if self.count == 1:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.count)]
        with _exchanging():
            dist.all_gather(found, values)
        return found

    def add(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the sum of the values over all processes, without gradients."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        with _exchanging():
            dist.all_reduce(total)
        return total

    def broadcast(self, values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return the values of the first process."""
        if self.count > 1:
            with _exchanging():
                dist.broadcast(values, src=0)
        return values

    def agree(self, value: bool) -> bool:
        """Return the value of the first process."""
        return bool(self.broadcast(torch.tensor(value))) if self.count > 1 else value

    def share(self, record: dict[str, Any] | None) -> dict[str, Any]:
        """Return the record of the first process, which JSON can hold; what the others give does not count."""
        if self.count == 1:
            assert record is not None
            return record
        data = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)
        size = int(self.broadcast(torch.tensor(len(data))))
        found = self.broadcast(data if self.is_first else torch.empty(size, dtype=torch.uint8))
        received: dict[str, Any] = json.loads(found.numpy().tobytes())
        return received

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        for tensor in tensors if self.count > 1 else ():
            self.broadcast(tensor)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            with _exchanging():
                dist.barrier()

    def add_gradients(self, modules: Iterable[nn.Module]) -> None:
        """Replace the gradients of all weights by their sums over all processes."""
        parameters = nn.ModuleList(modules).parameters()
        self._reduce([parameter.grad for parameter in parameters if parameter.grad is not None], 1.0)

    def average(self, buffers: Iterable[Float[Tensor, "..."]]) -> None:
        """Replace buffers by their means over all processes."""
        self._reduce(list(buffers), 1.0 / self.count)

    def _reduce(self, tensors: list[Tensor], factor: float) -> None:
        """Replace tensors of one type by their sums over all processes times ``factor``, in one exchange."""
        if self.count == 1 or not tensors:
            return
        total = self.add(torch.cat([tensor.flatten() for tensor in tensors])).mul_(factor)
        for tensor, part in zip(tensors, torch.split(total, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


#: The one process of a training without others.
ALONE = Processes()


def find_processes() -> Processes:
    """Return the processes of torch's default process group, ``ALONE`` if there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


def split_evenly(images: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return the images in parts of nearly equal size, of ``size`` at most unless one would be a single image.

    A single image has no batch statistics; two or three are then taken together.
    """
    return torch.tensor_split(images, max(1, min(-(-len(images) // size), len(images) // 2)))


@contextmanager
def _exchanging() -> Iterator[None]:
    """Turn the errors of an exchange, which gloo raises as plain RuntimeErrors, into one that may be tried again.

    Raises:
        PeerLostError: another process has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(f"lost the connection to the other processes of the training: {error}") from error
