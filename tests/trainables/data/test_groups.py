from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.tiny_configs import random_set
from trainables.data.groups import find_groups
from trainables.errors import ConfigError

IMAGES = replace(random_set("train", 12), metadata={"nuisance": [0, 1] * 6, "scanner": ["b", "a", "a"] * 4})


def test_one_column() -> None:
    groups = find_groups(IMAGES, ["class"])
    assert groups.names == ("class_0", "class_1", "class_2")
    assert np.array_equal(groups.index, IMAGES.labels)
    groups = find_groups(IMAGES, ["scanner"])
    assert groups.names == ("scanner_a", "scanner_b")
    assert groups.index.tolist() == [1, 0, 0] * 4


def test_combinations_that_are_there() -> None:
    groups = find_groups(IMAGES, ["scanner", "class"])
    assert groups.names == ("scanner_a.class_1", "scanner_a.class_2", "scanner_b.class_0")  # the scanner goes with it
    groups = find_groups(IMAGES, ["class", "nuisance"])
    assert len(groups.names) == 6
    for row, index in enumerate(groups.index):
        assert groups.names[index] == f"class_{IMAGES.labels[row]}.nuisance_{IMAGES.metadata['nuisance'][row]}"


def test_an_unknown_column_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"group_by: found scaner, expected class, site, nuisance, scanner"):
        find_groups(IMAGES, ["class", "scaner"])
