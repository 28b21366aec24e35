import numpy as np
import pytest

from trainables.data.assembly import assign_sets, sort_naturally, suggest
from trainables.data.decoding.pixels import build_pixel_spec
from trainables.data.sources.arrays import ArrayPixels, build_array_table
from trainables.data_config import DigitsData
from trainables.errors import DataError


def _table(labels):
    config = DigitsData()
    images = np.zeros((len(labels), 8, 8), dtype=np.uint8)
    pixels = ArrayPixels([(len(labels), lambda: images)], build_pixel_spec(config))
    return build_array_table(pixels, labels, [""] * len(labels), "x")


def test_numbers_sort_as_numbers():
    assert sort_naturally({"10", "2", "0"}) == ["0", "2", "10"]
    assert sort_naturally({"b", "10", "a"}) == ["10", "a", "b"]


def test_mapped_classes_come_in_the_order_of_the_original_labels():
    """Referable retinopathy: 0–1 against 2–4, whatever the order in which the map is written."""
    labels = [str(index % 5) for index in range(100)]
    mapping = {"4": "refer", "2": "refer", "3": "refer", "0": "ok", "1": "ok"}
    assignment = assign_sets(_table(labels), DigitsData(label_map=mapping))
    assert assignment.classes == ("ok", "refer")
    assert assignment.labels.tolist() == [int(label) >= 2 for label in map(int, labels)]


def test_one_class_is_refused():
    with pytest.raises(DataError, match="at least two"):
        assign_sets(_table(["0"] * 20), DigitsData())


def test_no_images_is_refused():
    with pytest.raises(DataError, match="found no image in the digits data"):
        assign_sets(_table([]), DigitsData())


def test_suggest():
    assert suggest("trian", ["train", "test"]) == " (nearest: 'train')"
    assert suggest("xyz", ["train", "test"]) == ""
