"""Batched execution of a few operations per image, where every image has its own operations in its own order.

Consecutive look-up tables are composed into one and applied by one gather, together with the next operation that needs
the image itself, which is called a stop. A stop is run for many images at once, whichever their steps are, as long as
the stops of every image keep their order. Tables of uint8 compose without further rounding, so the result is bit for
bit that of the operations called one by one.

The schedule consists of lists: for a hundred stops many calls to numpy or torch take longer than Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.memory import keep_freed_memory
from trainables.augmentation.policy import (
    Images,
    Magnitudes,
    Operation,
    PixelOperation,
    PointOperation,
    Seeds,
    TableOperation,
    WarpOperation,
)
from trainables.ops.geometry import warp_affine
from trainables.ops.pixels import look_up, ramp

#: Values of a block: five colour images of 224². From 3 to 10 it matters little; more save calls, fewer keep float
#: copies in the cache.
_BLOCK_VALUES = 5 * 3 * 224 * 224

Item = TypeVar("Item")
Choices = Int64[np.ndarray, "n steps"]
#: Steps of consecutive point operations, by image and number of stops before them.
Runs = dict[tuple[int, int], list[int]]


class Sequences(NamedTuple):
    """Operations of each of n images."""

    #: Index into the policy's operations, in order of application; −1 if the step does nothing.
    choices: Int64[Tensor, "n steps"]
    magnitudes: Float[Tensor, "n steps 2"]
    seeds: Int64[Tensor, " n"]


class Stop(NamedTuple):
    """Operation on one image that needs the image itself."""

    operation: int
    row: int
    step: int
    #: Number of stops of the image before this one.
    number: int
    #: Whether a table has to be applied to the image before this stop.
    is_tabled: bool


def apply_sequences(
    images: UInt8[Tensor, "n c h w"], sequences: Sequences, operations: Sequence[Operation]
) -> UInt8[Tensor, "n c h w"]:
    """Return the images after their operations.

    Waits for the device once, to read the drawn operations; some operations (blur, jpeg) wait for it as well.
    """
    width = sequences.choices.shape[1]
    known = torch.cat([sequences.choices.double(), sequences.magnitudes[..., 0].abs().double()], 1).cpu().numpy()
    choices, size = known[:, :width].astype(np.int64).tolist(), known[:, width:].tolist()
    chains, runs = find_stops(choices, operations)
    if not runs and not any(chains):
        return images
    keep_freed_memory()
    result = torch.empty_like(images, memory_format=torch.contiguous_format)  # outside: callers may write to it
    with torch.inference_mode():  # a twentieth less time: no bookkeeping for gradients
        work = _Work(images, result, operations, _compose_runs(images, runs, choices, sequences.magnitudes, operations))
        # Stops of like magnitude are neighbours, because a blur spans from its block's first wide kernel to its last.
        groups = (sorted(group, key=lambda stop: size[stop.row][stop.step]) for group in schedule(chains))
        blocks = [_put_tabled_first(block) for group in groups for block in _split(group, work.block_size)]
        at = [(stop.row, stop.step) for block in blocks for stop in block]
        rows, steps = torch.tensor(at, dtype=torch.int64, device=images.device).reshape(-1, 2).unbind(1)
        magnitudes, seeds = sequences.magnitudes[rows, steps], sequences.seeds[rows]
        end = 0
        for block in blocks:
            start, end = end, end + len(block)
            work.run(block, magnitudes[start:end], seeds[start:end])
        work.finish()
    return result


def find_stops(choices: Sequence[Sequence[int]], operations: Sequence[Operation]) -> tuple[list[list[Stop]], Runs]:
    """Return the stops of every image in their order, and the runs of point operations between them."""
    is_point = [isinstance(operation, PointOperation) for operation in operations]
    gives_table = [isinstance(operation, TableOperation) for operation in operations]
    chains: list[list[Stop]] = []
    runs: Runs = {}
    for row, own in enumerate(choices):
        stops: list[Stop] = []
        is_tabled = False
        for step, operation in enumerate(own):
            if operation < 0:
                continue
            if is_point[operation]:
                runs.setdefault((row, len(stops)), []).append(step)
                is_tabled = True
            else:
                stops.append(Stop(operation, row, step, len(stops), is_tabled))
                is_tabled = gives_table[operation]
        chains.append(stops)
    return chains, runs


def schedule(chains: Iterable[Sequence[Stop]]) -> Iterator[list[Stop]]:
    """Yield all stops in groups of one operation; the stops of an image keep their order.

    The next operation is the one that most images are ready for, preferably one that no image needs later. The fewest
    groups would be a shortest common supersequence, which is hard to find; these are a third fewer than step by step.
    """
    ahead = [list(reversed(stops)) for stops in chains if stops]
    wanted = Counter(stop.operation for stops in ahead for stop in stops)
    ready: dict[int, list[list[Stop]]] = {}
    for stops in ahead:
        ready.setdefault(stops[-1].operation, []).append(stops)
    while ready:
        operation = max(ready, key=lambda number: (len(ready[number]) == wanted[number], len(ready[number]), -number))
        group = ready.pop(operation)
        wanted[operation] -= len(group)
        yield [stops.pop() for stops in group]
        for stops in group:
            if stops:
                ready.setdefault(stops[-1].operation, []).append(stops)


def _split(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Return the items in the fewest possible parts of at most ``size``, all of about the same size."""
    num = -(-len(items) // size)
    return [items[len(items) * part // num : len(items) * (part + 1) // num] for part in range(num)]


def _put_tabled_first(block: Sequence[Stop]) -> list[Stop]:
    """Return the tabled stops in order of magnitude, then the others in reverse order: the largest are adjacent."""
    return [stop for stop in block if stop.is_tabled] + [stop for stop in reversed(block) if not stop.is_tabled]


class _Table(NamedTuple):
    """Look-up table of one image, and the channels that it changes."""

    values: UInt8[Tensor, "c 256"]
    channels: Sequence[int]


Tables = Mapping[tuple[int, int], _Table]


class _Work:
    """State of a batch: every image as it is so far, and the table that is still to be applied to it."""

    def __init__(self, images: Images, result: Images, operations: Sequence[Operation], runs: Tables) -> None:
        self.operations, self.runs, self.block_size = operations, runs, _count_per_block(images)
        self.images, self._results = list(images.contiguous().unbind()), list(result.unbind())
        self.tables = [runs.get((row, 0)) for row in range(len(images))]
        self._identity = ramp(images, 1)[0, :, 0]

    def run(self, block: Sequence[Stop], magnitudes: Magnitudes, seeds: Seeds) -> None:
        """Run stops of one operation and store their images; tabled stops must come first."""
        images, operation = self._look_up([stop.row for stop in block]), self.operations[block[0].operation]
        tables = [self.runs.get((stop.row, stop.number + 1)) for stop in block]
        changed = block
        if isinstance(operation, TableOperation):
            tables = self._append(operation.tabulate(images, magnitudes), tables)
            changed = [stop for stop in block if stop.is_tabled]
        elif isinstance(operation, WarpOperation):
            images = _warp(operation, images, magnitudes, fill=operation.fill)
        else:
            assert isinstance(operation, PixelOperation)
            images = operation.apply(images, magnitudes, seeds)
        self._keep([stop.row for stop in changed], images)
        for stop, table in zip(block, tables, strict=True):
            self.tables[stop.row] = table

    def finish(self) -> None:
        """Apply the remaining tables; copy the images that no operation has changed to the result."""
        rows = [row for row, table in enumerate(self.tables) if table is not None]
        for block in _split(rows, self.block_size):
            if self.block_size > 1:
                self._keep(block, self._look_up(block))
            else:
                self._write_tabled(block[0], self._results[block[0]])
                self.images[block[0]] = self._results[block[0]]
        for image, result in zip(self.images, self._results, strict=True):
            if image is not result:
                result.copy_(image)

    def _keep(self, rows: Sequence[int], images: Images) -> None:
        """Copy the first images to the result, always to the same memory: new memory costs more than the copy."""
        for row, image in zip(rows, images.unbind(), strict=False):
            self.images[row] = self._results[row].copy_(image)

    def _append(self, tables: UInt8[Tensor, "k c 256"], later: Sequence[_Table | None]) -> list[_Table | None]:
        """Return these tables, each composed with the table that is applied after it, if there is one."""
        follow = torch.stack([self._identity if table is None else table.values for table in later])
        channels = range(tables.shape[1])
        return [_Table(values, channels) for values in follow.gather(2, tables.to(torch.int64)).unbind()]

    def _look_up(self, rows: Sequence[int]) -> Images:
        """Return these images with their tables applied, not to be written to; those that have one must come first."""
        if self.block_size == 1:  # a large image: it is copied once at most
            image = self.images[rows[0]]
            if self.tables[rows[0]] is not None:
                image = torch.empty_like(image)
                self._write_tabled(rows[0], image)
            return image[None]
        images = torch.stack([self.images[row] for row in rows])
        tables = [table for row in rows if (table := self.tables[row]) is not None]
        if not tables:
            return images
        num_channels = images.shape[1]
        planes = images.flatten(0, 1).flatten(1)[: len(tables) * num_channels]
        values = torch.stack([table.values for table in tables]).flatten(0, 1)
        at = [num_channels * number + channel for number, table in enumerate(tables) for channel in table.channels]
        if len(at) == len(planes):
            look_up(planes, values, out=planes)
        else:
            own = torch.tensor(at, device=images.device)
            changed = planes.index_select(0, own)
            look_up(changed, values.index_select(0, own), out=changed)
            _put(planes, own, changed)
        return images

    def _write_tabled(self, row: int, out: UInt8[Tensor, "c h w"]) -> None:
        """Write an image with its table applied to ``out``, which may be the image."""
        image, table = self.images[row], self.tables[row]
        assert table is not None
        planes = zip(torch.split(image.flatten(1), 1), torch.split(out.flatten(1), 1), strict=True)
        for channel, (plane, own) in enumerate(planes):
            if channel in table.channels:
                look_up(plane, table.values[channel : channel + 1], out=own)
            elif out is not image:
                own.copy_(plane)


def _compose_runs(
    images: Images,
    runs: Runs,
    choices: Sequence[Sequence[int]],
    magnitudes: Float[Tensor, "n steps 2"],
    operations: Sequence[Operation],
) -> Tables:
    """Return the composed table of every run. Each operation is called once for all its tables."""
    if not runs:
        return {}
    steps = [(row, step) for (row, _), own in runs.items() for step in own]
    by_operation: dict[int, list[int]] = {}
    for place, (row, step) in enumerate(steps):
        by_operation.setdefault(choices[row][step], []).append(place)
    order = list(chain.from_iterable(by_operation.values()))
    at = torch.tensor([steps[place] for place in order], device=images.device)
    drawn, parts, end = magnitudes[at[:, 0], at[:, 1]], [], 0
    for number, places in by_operation.items():
        operation, start, end = operations[number], end, end + len(places)
        assert isinstance(operation, PointOperation)
        parts.append(operation.apply(ramp(images, len(places)), drawn[start:end]).squeeze(2))
    tables, lengths = torch.cat(parts)[np.argsort(order).tolist()], [len(own) for own in runs.values()]
    first = list(accumulate(lengths, initial=0))[:-1]
    composed = tables[first]
    for depth in range(1, max(lengths)):
        longer = [number for number, length in enumerate(lengths) if length > depth]
        later = tables[[first[number] + depth for number in longer]]
        composed[longer] = later.gather(2, composed[longer].to(torch.int64))
    reach = [_find_reach(operation, images.shape[1]) for operation in operations]
    channels = [sorted(set().union(*(reach[choices[row][step]] for step in own))) for (row, _), own in runs.items()]
    return dict(zip(runs, map(_Table, composed.unbind(), channels), strict=True))


def _find_reach(operation: Operation, num_channels: int) -> Sequence[int]:
    """Return the channels that an operation changes."""
    if isinstance(operation, PointOperation) and operation.channel is not None and num_channels > 1:
        return [operation.channel]
    return range(num_channels)


def _put(values: UInt8[Tensor, "n ..."], at: Int64[Tensor, " k"], new: UInt8[Tensor, "k ..."]) -> None:
    """Write ``new`` into the rows ``at`` of contiguous ``values``.

    Where possible, rows are copied eight bytes at a time, because torch copies value by value.
    """
    rows, new_rows = values.flatten(1), new.flatten(1)
    if rows.shape[1] % 8 == 0 and new_rows.storage_offset() % 8 == 0 and rows.storage_offset() % 8 == 0:
        rows, new_rows = rows.view(torch.int64), new_rows.view(torch.int64)
    rows.index_copy_(0, at, new_rows)


def move_masks(
    masks: UInt8[Tensor, "n 1 h w"], sequences: Sequences, operations: Sequence[Operation]
) -> UInt8[Tensor, "n 1 h w"]:
    """Return the masks after the warps among their images' operations; pixels from outside the mask become 0."""
    choices = sequences.choices.cpu().numpy()
    warps = np.where(_is_a((WarpOperation,), choices, operations), choices, -1)
    for step in range(warps.shape[1]):

        def warp(number: int, rows: Tensor, moving: Images, step: int = step) -> Images:
            operation = operations[number]
            assert isinstance(operation, WarpOperation)
            return _warp(operation, moving, sequences.magnitudes[rows, step], fill=0)

        masks = apply_chosen(masks, warps[:, step], warp)
    return masks


def _is_a(kinds: tuple[type, ...], choices: Choices, operations: Sequence[Operation]) -> Bool[np.ndarray, "n steps"]:
    known = np.array([isinstance(operation, kinds) for operation in operations] + [False])  # index −1 is the last
    return known[choices]


def _to_device(index: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(index)).to(like.device, non_blocking=True)


def apply_chosen(
    images: UInt8[Tensor, "n c h w"],
    choice: Int64[np.ndarray, " n"],
    run: Callable[[int, Int64[Tensor, " rows"], Images], Images],
) -> UInt8[Tensor, "n c h w"]:
    """Return the images, each after the operation chosen for it.

    Args:
        images: batch of images.
        choice: number of an operation per image, or −1 for none.
        run: function from an operation's number, the rows of the batch that it is chosen for, and their images to the
            changed images.
    """
    order = np.argsort(choice, kind="stable")
    numbers, counts = np.unique(choice, return_counts=True)
    if not len(numbers) or numbers[-1] < 0:
        return images
    rows, sizes = _to_device(order, images), counts.tolist()
    parts = zip(
        numbers.tolist(), torch.split(rows, sizes), torch.split(images.index_select(0, rows), sizes), strict=True
    )
    done = [own if number < 0 else run(number, chosen, own) for number, chosen, own in parts]
    return torch.cat(done).index_select(0, _to_device(np.argsort(order), images))


def _count_per_block(images: Images) -> int:
    """Return the number of images per call of an operation: on a CPU so few that float copies stay in the cache."""
    return max(1, _BLOCK_VALUES // images.shape[1:].numel()) if images.device.type == "cpu" else len(images)


def _warp(operation: WarpOperation, images: Images, magnitudes: Float[Tensor, "n 2"], *, fill: int) -> Images:
    height, width = images.shape[-2:]
    return warp_affine(images, operation.build_matrices(magnitudes, height, width), fill=fill)
