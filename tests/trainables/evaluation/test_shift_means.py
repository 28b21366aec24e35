from __future__ import annotations

import numpy as np
import pytest

from trainables.evaluation.shift_means import average_over_types, average_shifts
from trainables.shifts.tables import STAIN_GRID, find_type

NAMES = ["noise", "noise", "blur", "stain_h0.5_e1", "stain_h2_e1", "stain_h2_e2"]


def test_means_by_hand() -> None:
    values = np.array([[0.9, 0.7, 0.5, 0.1, 0.2, 0.3], [1.0, 1.0, 0.0, 0.5, 0.5, 0.5]])
    means = average_shifts(values, NAMES)
    assert list(means.by_shift) == ["noise", "blur", "stain_h0.5_e1", "stain_h2_e1", "stain_h2_e2"]
    assert list(means.by_type) == ["noise", "blur", STAIN_GRID]
    np.testing.assert_allclose(means.by_type[STAIN_GRID], [0.2, 0.5])
    np.testing.assert_allclose(means.mean, [(0.8 + 0.5 + 0.2) / 3, 0.5])
    mean, cell, shift = means.aggregate(True)
    np.testing.assert_allclose([mean, cell, shift], [[0.5, 0.5], [0.1, 0.0], [0.2, 0.0]])
    np.testing.assert_allclose(means.aggregate(False)[1:], [[0.9, 1.0], [0.8, 1.0]])


def test_a_missing_value_leaves_no_mean_that_includes_it() -> None:
    means = average_shifts(np.array([[0.9, np.nan, 0.5, 0.1, 0.2, 0.3]]), NAMES)
    assert np.isnan([*means.aggregate(True), means.by_shift["noise"]]).all()
    assert means.by_shift["blur"] == 0.5


def test_all_cells_of_a_stain_grid_are_one_type() -> None:
    assert find_type("stain_h0.5_e1") == find_type("stain_h4_e0") == STAIN_GRID
    assert find_type("stained") == "stained"
    shifts = {"noise": 0.8, "stain_h0.5_e1": 0.1, "stain_h1_e2": 0.3}
    assert average_over_types(shifts) == pytest.approx(0.5)
