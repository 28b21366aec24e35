import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.data.splits import (
    assign_splits,
    check_disjoint,
    check_no_empty_split,
    check_split_names,
    check_unique,
)
from trainables.errors import ConfigError, DataError


def _assign(labels, groups, *, splits=None, val=0.2, test=0.2, seed=0):
    given_splits = np.full(len(labels), "", dtype=object) if splits is None else np.array(splits, dtype=object)
    return assign_splits(
        given_splits, np.asarray(labels), np.asarray(groups), val_fraction=val, test_fraction=test, seed=seed
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=120), st.integers(0, 5))
def test_groups_never_straddle(rows, seed):
    labels, groups = np.array([row[0] for row in rows]), np.array([f"p{row[1]}" for row in rows])
    sets = _assign(labels, groups, seed=seed)
    for group in set(groups):
        assert len(set(sets[groups == group])) == 1


def test_fractions_hold_in_every_class():
    labels = np.repeat([0, 1, 2], [1000, 200, 50])
    sets = _assign(labels, np.arange(1250).astype(str))
    for label, count in ((0, 1000), (1, 200), (2, 50)):
        for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            assert abs((sets[labels == label] == name).sum() - share * count) <= 1


def test_split_does_not_depend_on_row_order_but_on_seed():
    labels, groups = np.arange(300) % 3, np.array([f"g{index // 2}" for index in range(300)])
    sets = _assign(labels, groups)
    order = np.random.default_rng(0).permutation(300)
    assert (sets[order] == _assign(labels[order], groups[order])).all()
    assert (sets != _assign(labels, groups, seed=1)).any()


def test_existing_splits_are_kept_and_a_missing_val_is_cut_from_train():
    splits = ["train"] * 100 + ["test"] * 20 + ["external/x"] * 5
    sets = _assign([0, 1] * 62 + [0], np.arange(125).astype(str), splits=splits)
    assert (sets[100:] == np.array(splits, dtype=object)[100:]).all()
    assert (sets == "val").sum() == 20


def test_a_class_of_one_group_stays_in_train():
    sets = _assign([0] * 50 + [1] * 2, [*map(str, range(50)), "rare", "rare"])
    assert set(sets[50:]) == {"train"}


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match="below 1"):
        _assign([0, 1], ["a", "b"], val=0.5, test=0.5)


def test_straddling_values_are_named_and_counted():
    sets = np.array(["train", "test", "train", "external/x", "val"], dtype=object)
    with pytest.raises(
        DataError, match=r"(?s)2 group\(s\) straddle.*'a' is in test, train.*'b' is in external/x, train"
    ):
        check_disjoint(sets, np.array(["a", "a", "b", "b", "c"]), what="group")
    check_disjoint(sets, np.array(["a", "b", "a", "c", "d"]), what="group")


def test_many_straddling_values_are_cut_off():
    sets = np.array(["train", "test"] * 50, dtype=object)
    with pytest.raises(DataError, match="and 30 more"):
        check_disjoint(sets, np.repeat(np.arange(50), 2), what="id")


def test_repeated_values_are_named():
    with pytest.raises(DataError, match="'a': line 2 and line 4"):
        check_unique(["a", "b", "a"], ["line 2", "line 3", "line 4"], what="id")


def test_class_missing_from_train_is_named():
    sets = np.array(["train", "val", "test"], dtype=object)
    with pytest.raises(
        DataError, match=r"(?s)train has no image of some classes.*'rare': 1 image\(s\) elsewhere \(val\)"
    ):
        check_no_empty_split(sets, np.array([0, 1, 0]), ["common", "rare"])


def test_empty_split_is_named():
    with pytest.raises(DataError, match="no image is in val"):
        check_no_empty_split(np.array(["train", "test"], dtype=object), np.array([0, 0]), ["a"])


@pytest.mark.parametrize("name", ["external/", "external/a/b", "external/test", "external/..", "external/a=b"])
def test_impossible_external_names_are_refused(name):
    with pytest.raises(DataError, match="external set"):
        check_split_names(["train", name])


def test_external_names_that_work():
    check_split_names(["train", "val", "test", "external/Moorfields 2.1-b", "external/köln"])
