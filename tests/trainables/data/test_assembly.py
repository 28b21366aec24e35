import numpy as np
import pytest

from trainables.data.assembly import assign_sets, sort_naturally, suggest
from trainables.data.decoding.pixels import build_pixel_spec
from trainables.data.sources.arrays import ArrayPixels, build_array_table
from trainables.data_config import DigitsData
from trainables.errors import ConfigError, DataError


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


def test_held_out_classes_leave_their_test_images_only():
    labels = [str(index % 5) for index in range(200)]
    whole = assign_sets(_table(labels), DigitsData())
    assignment = assign_sets(_table(labels), DigitsData(held_out_classes=("1", "3")))
    assert (assignment.classes, assignment.held_out) == (("0", "2", "4"), ("1", "3"))
    is_held_out = np.isin(labels, ["1", "3"])
    assert set(assignment.sets[is_held_out]) == {"", "held_out"}
    assert ((assignment.sets == "held_out") == (is_held_out & (whole.sets == "test"))).all()
    assert (assignment.sets[~is_held_out] == whole.sets[~is_held_out]).all()
    names = (*assignment.classes, *assignment.held_out)
    assert [names[label] for label in assignment.labels] == labels
    assert not assignment.problems


def test_held_out_classes_that_cannot_be():
    labels = [str(index % 3) for index in range(60)]
    with pytest.raises(ConfigError, match=r"data.held_out_classes: found no class 'one'; expected some of"):
        assign_sets(_table(labels), DigitsData(held_out_classes=("one",)))
    with pytest.raises(ConfigError, match="found 1 left"):
        assign_sets(_table(labels), DigitsData(held_out_classes=("0", "1")))
    labels = ["0"] * 30 + ["1"] * 30 + ["2"]
    with pytest.raises(DataError, match="no test image is of 2"):
        assign_sets(_table(labels), DigitsData(held_out_classes=("2",)))


def test_labels_mapped_to_null_are_left_out_and_others_have_to_be_named():
    labels = [str(index % 5) for index in range(200)]
    mapping = {"0": None, "1": "mild", "2": "mild", "3": "severe", "4": "severe"}
    assignment = assign_sets(_table(labels), DigitsData(label_map=mapping))
    assert assignment.classes == ("mild", "severe")
    is_left_out = np.array(labels) == "0"
    assert (assignment.labels[is_left_out] == -1).all()
    assert ((assignment.sets == "") == is_left_out).all()
    assert [assignment.classes[label] for label in assignment.labels[~is_left_out]] == [
        mapping[label] for label in labels if label != "0"
    ]
    assert not assignment.problems
    with pytest.raises(DataError, match=r"names no class for the label of 40 image.*map it to null"):
        assign_sets(_table(labels), DigitsData(label_map={k: v for k, v in mapping.items() if k != "0"}))
