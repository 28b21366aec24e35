from __future__ import annotations

import gc

import pytest

from trainables.preload import imports_kept


def test_what_is_made_is_left_out_of_every_later_search() -> None:
    before = gc.get_freeze_count()
    with imports_kept():
        assert not gc.isenabled()
        kept = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_what_failed_is_not_kept_and_the_search_goes_on() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(OSError, match="no"), imports_kept():
        raise OSError("no")
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before


def test_whoever_paused_first_ends_the_pause() -> None:
    with imports_kept():
        with imports_kept():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
