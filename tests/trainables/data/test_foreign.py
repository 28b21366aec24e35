from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainables.data.foreign import with_foreign_sets
from trainables.data.load import load_dataset
from trainables.data_config import DigitsData, PhantomData
from trainables.errors import ConfigError
from trainables.evaluation_config import EvaluationConfig, ForeignData
from trainables.segmentation_data_config import OrgansData

PHANTOM = PhantomData(image_size=16, num_images=60, num_external_sites=1, num_external_images=4)


def test_other_sources_come_with_the_size_and_channels_of_the_study(tmp_path: Path) -> None:
    data = load_dataset(PHANTOM, cache_dir=tmp_path)
    evaluation = EvaluationConfig(foreign={"digits": ForeignData(data=DigitsData(image_size=64))})
    found = with_foreign_sets(data, PHANTOM, evaluation, cache_dir=tmp_path)
    assert list(found.ood) == ["digits"]
    digits = found.ood["digits"]
    expected = load_dataset(DigitsData(image_size=16, channels=3), cache_dir=tmp_path).splits["test"]
    assert digits.images.shape == (len(expected), 3, 16, 16)
    assert np.array_equal(digits.images, expected.images)
    assert digits.ids.tolist() == expected.ids.tolist()
    assert set(digits.labels) == {-1}
    assert (found.splits, found.fingerprint) == (data.splits, data.fingerprint)
    assert data.ood == {}


def test_masks_of_other_sources_are_no_targets(tmp_path: Path) -> None:
    data = load_dataset(PHANTOM, cache_dir=tmp_path)
    source = OrgansData(image_size=16, num_images=20)
    assert load_dataset(source, cache_dir=tmp_path).splits["test"].targets is not None
    evaluation = EvaluationConfig(foreign={"organs": ForeignData(data=source)})
    assert with_foreign_sets(data, PHANTOM, evaluation, cache_dir=tmp_path).ood["organs"].targets is None


@pytest.mark.parametrize("name", ["test", "held_out", "external-0", "../x"])
def test_names_that_are_taken_or_not_allowed_are_refused(name: str, tmp_path: Path) -> None:
    data = load_dataset(PHANTOM, cache_dir=tmp_path)
    assert list(data.external) == ["external-0"]
    evaluation = EvaluationConfig(foreign={name: ForeignData(data=DigitsData())})
    with pytest.raises(ConfigError, match=r"evaluation\.foreign: found the name .* not allowed or taken"):
        with_foreign_sets(data, PHANTOM, evaluation, cache_dir=tmp_path)


def test_held_out_classes_are_a_set_without_labels(tmp_path: Path) -> None:
    whole = load_dataset(DigitsData(), cache_dir=tmp_path)
    data = load_dataset(DigitsData(held_out_classes=("7", "1")), cache_dir=tmp_path)
    assert data.classes == ("0", "2", "3", "4", "5", "6", "8", "9")
    held_out = data.ood["held_out"]
    assert set(held_out.labels) == {-1}
    assert set(held_out.metadata["class"]) == {"1", "7"}
    digit_of = dict(zip(whole.splits["test"].ids.tolist(), whole.splits["test"].labels.tolist(), strict=True))
    expected = [name for name, digit in digit_of.items() if digit in (1, 7)]
    assert held_out.ids.tolist() == expected
    assert [str(digit_of[name]) for name in held_out.ids.tolist()] == held_out.metadata["class"]
    test = data.splits["test"]
    assert [data.classes[label] for label in test.labels] == [str(digit_of[name]) for name in test.ids.tolist()]
    assert data.fingerprint != whole.fingerprint
