"""A few operations per image, each image its own in its own order, run as batches.

An image's operations fall into rounds: look-up tables that follow each other, composed into one table and applied by
one gather, then at most one operation on pixels. All images go through their first rounds together, then through
their second, and so on; within a round those with the same operation are one batch. Tables of uint8 compose without
rounding anew, so what comes out is bit for bit what the operations called one by one give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.policy import (
    Images,
    Operation,
    PixelOperation,
    PointOperation,
    TableOperation,
    WarpOperation,
)
from trainables.ops.geometry import warp_affine
from trainables.ops.pixels import ramp

#: Four colour images of 224². Sixteen take up to five times as long per image: memory comes fresh from the system.
_BLOCK_VALUES = 4 * 3 * 224 * 224

Choices = Int64[np.ndarray, "n steps"]


class Sequences(NamedTuple):
    """What each of n images goes through."""

    #: Index into the policy's operations, in order of application; −1: nothing in this step.
    choices: Int64[Tensor, "n steps"]
    magnitudes: Float[Tensor, "n steps 2"]
    seeds: Int64[Tensor, " n"]


def apply_sequences(
    images: UInt8[Tensor, "n c h w"], sequences: Sequences, operations: Sequence[Operation]
) -> UInt8[Tensor, "n c h w"]:
    """Return the images after their operations.

    The device is waited for once, to learn what was drawn; some operations (blur, jpeg) wait by themselves.
    """
    width = sequences.choices.shape[1]
    known = torch.cat([sequences.choices.double(), sequences.magnitudes[..., 0].abs().double()], 1).cpu().numpy()
    choices, size = known[:, :width].astype(np.int64), known[:, width:]
    rounds = number_rounds(choices, operations)
    if rounds.max(initial=-1) < 0:
        return images
    is_table = _is_a((PointOperation, TableOperation), choices, operations)
    size[is_table] = 0.0
    state = images.clone(memory_format=torch.contiguous_format)
    drawn = _Drawn(state, choices, sequences, operations)
    for number in range(rounds.max() + 1):
        now = rounds == number
        rows = np.flatnonzero(now.any(1))
        # Those of like magnitude are neighbours, because a blur takes as long as the widest kernel of its block.
        rows = rows[np.argsort(np.where(now, size, 0.0)[rows].max(1), kind="stable")]
        tables = np.where(now & is_table, choices, -1)[rows]
        pixels = np.where(now & ~is_table, choices, -1)[rows]
        _run_round(state, _Round(rows, tables, pixels.max(1), pixels.argmax(1)), drawn)
    return state


class _Round(NamedTuple):
    """What happens to some images in one round."""

    #: Their rows in the batch.
    rows: Int64[np.ndarray, " m"]
    table_choices: Int64[np.ndarray, "m steps"]
    #: The one operation on pixels of every image, or −1; and in which step it was drawn.
    pixel_choice: Int64[np.ndarray, " m"]
    pixel_step: Int64[np.ndarray, " m"]


def _run_round(state: Images, now: _Round, drawn: _Drawn) -> None:
    """Change the state of the images of this round: those with the same operation on pixels as one batch."""
    composed = drawn.compose(state, now)
    changed = drawn.find_changed(now.table_choices, state.shape[1])
    order = np.lexsort((~changed.any(1), now.pixel_choice))  # within an operation those with a table come first
    numbers, counts = np.unique(now.pixel_choice, return_counts=True)
    for number, group in zip(numbers.tolist(), np.split(order, np.cumsum(counts)[:-1]), strict=True):
        for block in np.array_split(group, -(-len(group) // drawn.block_size)):
            at = _to_device(now.rows[block], state)
            own = state.index_select(0, at)
            looked_up = int(changed[block].any(1).sum())
            if looked_up:
                tables = composed.index_select(0, _to_device(block[:looked_up], state))
                drawn.look_up_(own[:looked_up], tables, changed[block[:looked_up]])
            if number >= 0:
                own = drawn.run(number, own, now.rows[block], now.pixel_step[block])
            _put(state, at, own)


def _put(values: UInt8[Tensor, "n ..."], at: Int64[Tensor, " k"], new: UInt8[Tensor, "k ..."]) -> None:
    """Write ``new`` into the rows ``at`` of contiguous ``values``: eight bytes at a time, for torch goes one by one."""
    rows, new_rows = values.flatten(1), new.flatten(1)
    if rows.shape[1] % 8 == 0 and new_rows.storage_offset() % 8 == 0 and rows.storage_offset() % 8 == 0:
        rows, new_rows = rows.view(torch.int64), new_rows.view(torch.int64)
    rows.index_copy_(0, at, new_rows)


def move_masks(
    masks: UInt8[Tensor, "n 1 h w"], sequences: Sequences, operations: Sequence[Operation]
) -> UInt8[Tensor, "n 1 h w"]:
    """Return the masks after the warps among their images' operations; 0 comes in from outside."""
    choices = sequences.choices.cpu().numpy()
    warps = np.where(_is_a((WarpOperation,), choices, operations), choices, -1)
    for step in range(warps.shape[1]):

        def warp(number: int, rows: Tensor, moving: Images, step: int = step) -> Images:
            operation = operations[number]
            assert isinstance(operation, WarpOperation)
            return _warp(operation, moving, sequences.magnitudes[rows, step], fill=0)

        masks = apply_chosen(masks, warps[:, step], warp)
    return masks


def number_rounds(choices: Choices, operations: Sequence[Operation]) -> Choices:
    """Return in which round every step runs; −1 where there is nothing to run.

    An operation on pixels ends a round. A table that depends on the image starts one, since it has to look at what the
    tables before it made.
    """
    looks = _is_a((TableOperation,), choices, operations)
    ends = _is_a((PixelOperation, WarpOperation), choices, operations)
    number, started = np.zeros(len(choices), dtype=np.int64), np.zeros(len(choices), dtype=bool)
    rounds = np.full_like(choices, -1)
    for step in range(choices.shape[1]):
        runs = choices[:, step] >= 0
        number += looks[:, step] & started
        rounds[:, step] = np.where(runs, number, -1)
        number += ends[:, step]
        started = (started | runs) & ~ends[:, step]
    return rounds


def _is_a(kinds: tuple[type, ...], choices: Choices, operations: Sequence[Operation]) -> Bool[np.ndarray, "n steps"]:
    known = np.array([isinstance(operation, kinds) for operation in operations] + [False])  # −1 is the last
    return known[choices]


def _to_device(index: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(index)).to(like.device, non_blocking=True)


class _Drawn:
    """What a batch drew. The tables of a point operation come from one call, not one per round and step."""

    def __init__(self, images: Images, choices: Choices, sequences: Sequences, operations: Sequence[Operation]) -> None:
        self.operations, self.seeds = operations, sequences.seeds
        self.magnitudes, self.num_steps = sequences.magnitudes.flatten(0, 1), choices.shape[1]
        self.place = np.full_like(choices, -1)  # where an (image, step)'s table lies in ``tables``
        parts, count = [ramp(images, 1).squeeze(2)], 1  # the first changes nothing
        for number, operation in enumerate(operations):
            rows, steps = np.nonzero(choices == number)
            if isinstance(operation, PointOperation) and len(rows):
                magnitudes = self._find_magnitudes(rows, steps, images)
                parts.append(operation.apply(ramp(images, len(rows)), magnitudes).squeeze(2))
                self.place[rows, steps] = range(count, count + len(rows))
                count += len(rows)
        self.tables = torch.cat(parts)
        self.block_size = _count_per_block(images)
        shape = (min(self.block_size, len(images)), images.shape[1], images.shape[2:].numel())
        self._index = torch.empty(shape, dtype=torch.int64, device=images.device)

    def _find_magnitudes(self, rows: np.ndarray, steps: np.ndarray, like: Tensor) -> Float[Tensor, "k 2"]:
        return self.magnitudes.index_select(0, _to_device(rows * self.num_steps + steps, like))

    def compose(self, state: Images, now: _Round) -> UInt8[Tensor, "m c 256"]:
        """Return the tables of the images in this round: their steps, one after the other, as one."""
        self._tabulate(state, now)
        places = np.where(now.table_choices >= 0, self.place[now.rows], -1)
        places = np.take_along_axis(places, np.argsort(places < 0, axis=1, kind="stable"), 1)  # without gaps
        tables = self.tables.index_select(0, _to_device(places[:, 0].clip(min=0), state))
        for later in places.T[1:]:
            at = np.flatnonzero(later >= 0)
            if len(at):
                own = _to_device(at, state)
                new = self.tables.index_select(0, _to_device(later[at], state))
                _put(tables, own, new.gather(2, tables.index_select(0, own).to(torch.int64)))
        return tables

    def _tabulate(self, state: Images, now: _Round) -> None:
        """Add the tables of those operations that look at the images; they are the first of their runs."""
        looks = (now.table_choices >= 0) & (self.place[now.rows] < 0)
        parts, count = [self.tables], len(self.tables)
        for number in np.unique(now.table_choices[looks]).tolist():
            at, steps = np.nonzero(looks & (now.table_choices == number))
            rows, operation = now.rows[at], self.operations[number]
            assert isinstance(operation, TableOperation)
            magnitudes = self._find_magnitudes(rows, steps, state)
            at_device = _to_device(rows, state)
            for start in range(0, len(rows), self.block_size):
                block = slice(start, start + self.block_size)
                parts.append(operation.tabulate(state.index_select(0, at_device[block]), magnitudes[block]))
            self.place[rows, steps] = range(count, count + len(rows))
            count += len(rows)
        if len(parts) > 1:
            self.tables = torch.cat(parts)

    def run(self, number: int, images: Images, rows: np.ndarray, steps: np.ndarray) -> Images:
        """Return images of these rows after an operation on pixels that they drew in these steps."""
        operation, magnitudes = self.operations[number], self._find_magnitudes(rows, steps, images)
        if isinstance(operation, WarpOperation):
            return _warp(operation, images, magnitudes, fill=operation.fill)
        assert isinstance(operation, PixelOperation)
        return operation.apply(images, magnitudes, self.seeds.index_select(0, _to_device(rows, images)))

    def look_up_(self, images: Images, tables: UInt8[Tensor, "k c 256"], changed: Bool[np.ndarray, "k c"]) -> None:
        """Look up those channels of the images that change, in place.

        The index has eight bytes per pixel: it is always the same memory, because fresh memory of that size comes from
        the system and then costs more than the look-up.
        """
        planes, flat_tables, size = images.flatten(0, 1).flatten(1), tables.flatten(0, 1), changed.size
        index = self._index.flatten(0, 1)
        if changed.all():
            torch.gather(flat_tables, 1, index[:size].copy_(planes), out=planes)
            return
        at = _to_device(np.flatnonzero(changed), images)
        index = index[: len(at)].copy_(planes.index_select(0, at))
        _put(planes, at, flat_tables.index_select(0, at).gather(1, index))

    def find_changed(self, choices: Choices, channels: int) -> Bool[np.ndarray, "m c"]:
        """Return which channels these operations change."""
        reach = np.zeros((len(self.operations) + 1, channels), dtype=bool)  # −1 is the last: nothing
        for number, operation in enumerate(self.operations):
            channel = operation.channel if isinstance(operation, PointOperation) else None
            reach[number, slice(None) if channel is None or channels == 1 else channel] = True
        return reach[choices].any(1)


def apply_chosen(
    images: UInt8[Tensor, "n c h w"],
    choice: Int64[np.ndarray, " n"],
    run: Callable[[int, Int64[Tensor, " rows"], Images], Images],
) -> UInt8[Tensor, "n c h w"]:
    """Return the images, each after the operation it chose.

    Args:
        images: a batch.
        choice: number of an operation, or −1 to stay as it is.
        run: gets a number, the rows of the batch that chose it, and their images.
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
    """Return how many images an operation gets at once: on a CPU so few that its float copies stay in the cache."""
    return max(1, _BLOCK_VALUES // images.shape[1:].numel()) if images.device.type == "cpu" else len(images)


def _warp(operation: WarpOperation, images: Images, magnitudes: Float[Tensor, "n 2"], *, fill: int) -> Images:
    height, width = images.shape[-2:]
    return warp_affine(images, operation.build_matrices(magnitudes, height, width), fill=fill)
