from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import random_set
from trainables.data.feed import ImageFeed, split_sizes

IMAGES = random_set("train", 11)
ROWS, SIZES = np.array([7, 0, 10, 3, 3]), [2, 2, 1]


def test_batches_are_the_rows_asked_for_in_their_order() -> None:
    feed = ImageFeed(IMAGES, torch.device("cpu"))
    batches = list(feed.batches(ROWS, SIZES))
    assert [len(batch) for batch in batches] == SIZES
    assert np.array_equal(torch.cat(batches).numpy(), IMAGES.images[ROWS])
    assert len(feed) == 11


def test_a_batch_is_a_copy() -> None:
    feed = ImageFeed(IMAGES, torch.device("cpu"))
    next(feed.batches(ROWS, SIZES)).zero_()
    assert np.array_equal(next(feed.batches(ROWS, SIZES)).numpy(), IMAGES.images[ROWS[:2]])


@pytest.mark.parametrize("place", ["resident", "read ahead"])
def test_ways_of_a_gpu_give_the_same_batches(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run on the CPU here: one with the images as a tensor, one with a thread that reads ahead."""
    feed = ImageFeed(IMAGES, torch.device("cpu"))
    if place == "resident":
        monkeypatch.setattr(feed, "_resident", torch.from_numpy(IMAGES.images))
        batches = list(feed.batches(ROWS, SIZES))
    else:
        monkeypatch.setattr(feed, "_read_pinned", lambda part: torch.from_numpy(IMAGES.images[part]))
        batches = list(feed._prefetch(np.split(ROWS, [2, 4])))
    assert np.array_equal(torch.cat(batches).numpy(), IMAGES.images[ROWS])
    assert [len(batch) for batch in batches] == SIZES


def test_a_reader_that_fails_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(part: np.ndarray) -> torch.Tensor:
        raise OSError("the map is gone")

    feed = ImageFeed(IMAGES, torch.device("cpu"))
    monkeypatch.setattr(feed, "_read_pinned", fail)
    with pytest.raises(OSError, match="the map is gone"):
        list(feed._prefetch(np.split(ROWS, [2, 4])))


def test_a_feed_that_is_left_early_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[ThreadPoolExecutor] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers: int) -> None:
            super().__init__(max_workers)
            pools.append(self)

    monkeypatch.setattr("trainables.data.feed.ThreadPoolExecutor", Pool)
    feed = ImageFeed(IMAGES, torch.device("cpu"))
    monkeypatch.setattr(feed, "_read_pinned", lambda part: torch.from_numpy(IMAGES.images[part]))
    batches = feed._prefetch(np.split(ROWS, [2, 4]))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.is_alive() for pool in pools for thread in pool._threads)


@pytest.mark.parametrize(("count", "expected"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3]), (0, [])])
def test_sizes(count: int, expected: list[int]) -> None:
    assert split_sizes(count, 4) == expected
