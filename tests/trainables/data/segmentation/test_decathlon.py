"""Slices of NIfTI volumes: both forms of dataset.json, spacing, modalities, intensities, faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainables.data.dataset import UNCOUNTED, Dataset
from trainables.data.load import load_dataset
from trainables.errors import DataError
from trainables.segmentation_data_config import DecathlonData

nibabel = pytest.importorskip("nibabel", reason="NIfTI is read by nibabel: pip install 'robustsweep[medical]'")
SHAPE, SPACING = (24, 16, 6), (1.0, 1.5, 5.0)


def write(path: Path, voxels: np.ndarray, *, flipped: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-SPACING[0] if flipped else SPACING[0], *SPACING[1:], 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels[::-1] if flipped else voxels, affine), path)


def draw(case: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume of −1000 to 1000, and labels: 1 a box in slices 2 to 4, 2 a smaller one in it."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[4:14, 3:11, 2:5] = 1
    labels[6:9, 4:7, 3] = 2
    values = np.where(labels > 0, 100 * labels.astype(np.int16), -1000).astype(np.int16)
    values[:, 0, :] = np.random.default_rng(case).integers(-900, 900, values[:, 0, :].shape)  # no slice is like another
    values[0, 0, :] = 900 - 7 * case - np.arange(SHAPE[2])
    return values, labels


def write_decathlon(root: Path, *, cases: int = 6) -> None:
    entries = []
    for case in range(cases):
        values, labels = draw(case)
        write(root / f"imagesTr/c{case}.nii.gz", np.stack([values, -values], axis=-1), flipped=False)
        write(root / f"labelsTr/c{case}.nii.gz", labels)
        entries.append({"image": f"./imagesTr/c{case}.nii.gz", "label": f"./labelsTr/c{case}.nii.gz"})
    said = {"modality": {"0": "CT", "1": "minus"}, "labels": {"0": "background", "1": "liver", "2": "cancer"}}
    (root / "dataset.json").write_text(json.dumps(said | {"training": entries, "test": ["./imagesTs/x.nii.gz"]}))


def write_nnunet(root: Path) -> None:
    for case in range(6):
        values, labels = draw(case)
        part = "Ts" if case > 3 else "Tr"
        write(root / f"images{part}/c{case}_0000.nii.gz", values, flipped=case % 2 == 1)
        write(root / f"labels{part}/c{case}.nii.gz", labels, flipped=case % 2 == 1)
    labels_said = {"background": 0, "liver": 1, "ignore": 2}
    said = {"channel_names": {"0": "CT"}, "labels": labels_said, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(said))


def load(root: Path, **fields: object) -> Dataset:
    common = {
        "path": root,
        "image_size": 24,
        "channels": 1,
        "resize": "squash",
        "window": (0, 2000),
        "on_leak": "error",
    }
    config = DecathlonData.model_validate(common | {"near_duplicates": "ignore"} | fields)
    return load_dataset(config, cache_dir=root.parent / "cache")


def test_slices_of_a_volume_stay_together_and_lie_as_they_are_looked_at(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "d")
    data = load(tmp_path / "d")
    assert data.classes == ("background", "liver", "cancer")
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 24, "val": 6, "test": 6}
    train = data.splits["train"]
    assert {*np.unique(train.groups, return_counts=True)[1].tolist()} == {6}
    assert train.ids[:2].tolist() == [f"{train.groups[0]}/0000", f"{train.groups[0]}/0001"]
    assert train.metadata["slice"] == [*range(6)] * 4
    assert train.targets is not None
    _, labels = draw(0)
    for row, number in enumerate(train.metadata["slice"]):
        shown = labels[:, ::-1, number].T  # right is to the right, front is up
        for value in (1, 2):  # 16 rows become 24: the area grows by a half
            assert abs((train.targets[row] == value).sum() - 1.5 * (shown == value).sum()) <= 1
    assert (train.images[3, 0, -1, 0], train.images[0, 0, 5, 20]) == (242, 0)  # 897 and −1000 of −1000 to 1000
    assert train.metadata["spacing_row"] == pytest.approx([1.0] * 24)  # 1.5 mm × 16 / 24
    assert train.metadata["spacing_column"] == pytest.approx([1.0] * 24)
    assert data.conversions == {"data.window: centre 0, width 2000": 36}


def test_another_axis_every_other_slice_and_only_those_with_foreground(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "d")
    data = load(tmp_path / "d", slices={"axis": 0, "every": 2, "without_foreground": "drop"}, modalities=[1])
    test = data.splits["test"]
    assert test.metadata["slice"] == [4, 6, 8, 10, 12]
    assert test.metadata["spacing_row"] == pytest.approx([5.0 * 6 / 24] * 5)
    assert test.metadata["spacing_column"] == pytest.approx([1.5 * 16 / 24] * 5)
    assert test.images[0, 0, 0, -1] == 255  # the second modality is minus the first


def test_nnunet_has_test_volumes_and_a_label_that_nothing_counts(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "n")
    data = load(tmp_path / "n", val_fraction=0.3, near_duplicates="ignore")
    assert data.classes == ("background", "liver")
    assert {*data.splits["test"].groups.tolist()} == {"c4", "c5"}
    targets, slices = data.splits["test"].targets, np.array(data.splits["test"].metadata["slice"])
    assert targets is not None
    assert (targets[slices == 3] == UNCOUNTED).any()
    assert not (targets[slices != 3] == UNCOUNTED).any()
    assert np.array_equal(targets[:6], targets[6:])  # one of the two is stored from right to left
    assert load(tmp_path / "n", val_fraction=0.3, label_map={"liver": "organ"}).classes == ("background", "organ")


def test_faults_are_named(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_decathlon(root)
    with pytest.raises(DataError, match=r"has voxels of type int16, expected 8 bits, or data.window"):
        load(root, window=None)
    with pytest.raises(DataError, match=r"data.modalities: found 4; expected numbers below 2: 0 CT, 1 minus"):
        load(root, modalities=[4])
    labels = draw(0)[1]
    write(root / "labelsTr/c0.nii.gz", labels[:, :, :5])
    write(root / "labelsTr/c1.nii.gz", labels * 2)
    write(root / "labelsTr/c2.nii.gz", labels, flipped=True)
    whole = (root / "imagesTr/c3.nii.gz").read_bytes()
    (root / "imagesTr/c3.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as error:
        load(root)
    for part in (
        "c0.nii.gz (row 0): has 24×16×6 voxels, and its labels 24×16×5",
        "c1.nii.gz (row 0): has labels, c1.nii.gz, that cannot be used: the file holds the value(s) 4, expected",
        "c2.nii.gz (row 0): lies in another place than its labels",
        "c3.nii.gz (row 0): cannot be read",
    ):
        assert part in str(error.value)
    (root / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="lacks labels, or channel_names"):
        load(root)
