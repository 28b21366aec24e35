"""Whole volumes as images: their common spacing, padding, patients, what does not go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.support.volumes import draw_ball, write_balls, write_listing, write_volume
from trainables.data.dataset import UNCOUNTED, Dataset
from trainables.data.describe import describe_dataset
from trainables.data.load import load_dataset
from trainables.data.segmentation.extents import find_extents, find_sides
from trainables.data.segmentation.volumes import plan_grid, resample
from trainables.errors import DataError
from trainables.segmentation_data_config import DatasetsData, DecathlonData

pytest.importorskip("nibabel", reason="NIfTI is read by nibabel: pip install 'robustsweep[medical]'")


def load(root: Path, **fields: Any) -> Dataset:
    config = DecathlonData.model_validate({"path": root, "channels": 1, "dimensions": 3, **fields})
    return load_dataset(config, cache_dir=root.parent / "cache")


def test_volumes_are_stored_whole_with_the_rest_of_the_array_uncounted(tmp_path: Path) -> None:
    data = load(write_balls(tmp_path / "d"))
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 6, "val": 2, "test": 2}
    patients = [set(images.groups.tolist()) for images in data.splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 10
    for images in data.splits.values():
        assert images.targets is not None
        assert images.images.shape[1:] == (1, 9, 24, 24)
        for row, name in enumerate(images.ids):
            values, labels = draw_ball(int(str(name)[1:]), (24, 24, 8 + int(str(name)[1:]) % 2))
            depth = values.shape[2]
            assert find_extents(images)[row].tolist() == [depth, 24, 24]
            # As it is looked at: slices upwards, front at the top, right to the right.
            assert np.array_equal(images.images[row, 0, :depth], values.transpose(2, 1, 0)[:, ::-1])
            assert np.array_equal(images.targets[row, :depth], labels.transpose(2, 1, 0)[:, ::-1])
            assert (images.images[row, 0, depth:] == 0).all()
            assert (images.targets[row, depth:] == UNCOUNTED).all()
            assert find_sides(images)[row].tolist() == [5.0, 1.0, 1.0]
    lines = describe_dataset(data)
    assert lines["volumes"] == "8 × 24 × 24 to 9 × 24 × 24 voxels (slices × rows × columns) of 5 × 1 × 1 mm"
    assert lines["near-duplicates"] == "not looked for: volumes"


def test_the_common_spacing_is_the_median_and_keeps_the_volume_of_structures(tmp_path: Path) -> None:
    spacings = [(1.0, 1.0, 5.0)] * 3 + [(0.5, 0.5, 2.5)] * 2
    entries = []
    for case, spacing in enumerate(spacings):
        scale = round(1 / spacing[0])
        values, labels = draw_ball(case, (24 * scale, 24 * scale, 8 * scale), spacing)
        for folder, voxels in (("imagesTr", values), ("labelsTr", labels)):
            write_volume(tmp_path / f"d/{folder}/c{case}.nii.gz", voxels, spacing)
        entries.append({"image": f"imagesTr/c{case}.nii.gz", "label": f"labelsTr/c{case}.nii.gz"})
    write_listing(tmp_path / "d", entries)
    data = load(tmp_path / "d")
    for images in data.splits.values():
        assert images.targets is not None
        assert images.images.shape[2:] == (8, 24, 24)
        for row, name in enumerate(images.ids):
            case = int(str(name)[1:])
            scale = round(1 / spacings[case][0])
            _, labels = draw_ball(case, (24 * scale, 24 * scale, 8 * scale), spacings[case])
            assert (images.targets[row] == 1).sum() == pytest.approx(labels.sum() / scale**3, abs=1)
    finer = load(tmp_path / "d", spacing_mm=[2.5, 2, 1])
    assert finer.splits["train"].images.shape[2:] == (16, 12, 24)
    assert find_sides(finer.splits["train"])[0].tolist() == [2.5, 2.0, 1.0]
    assert finer.fingerprint != data.fingerprint


def test_the_depth_may_be_another_axis(tmp_path: Path) -> None:
    root = write_balls(tmp_path / "d", cases=6)
    train = load(root, slices={"axis": 0}).splits["train"]
    assert train.images.shape[2:] == (24, 9, 24)  # sagittal slices: up to down, back to front
    assert find_sides(train)[0].tolist() == [1.0, 5.0, 1.0]
    values, _ = draw_ball(int(str(train.ids[0])[1:]), (24, 24, 8 + int(str(train.ids[0])[1:]) % 2))
    assert np.array_equal(train.images[0, 0, :, : values.shape[2]], values.transpose(0, 2, 1)[:, ::-1])


def test_resampling_is_linear_and_averages_where_it_becomes_coarser() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None] * 10, (8, 6, 4))
    halved = resample(ramp, (4, 3, 2))
    assert halved[1:3, 1, 1] == pytest.approx([25.0, 45.0])  # the centres of voxels 2 and 3, 4 and 5
    doubled = resample(ramp, (16, 6, 4))
    assert doubled[4:8, 0, 0] == pytest.approx([17.5, 22.5, 27.5, 32.5])
    assert resample(ramp, (8, 6, 4)) == pytest.approx(ramp)


def test_a_grid_holds_the_largest_volume_along_every_axis() -> None:
    sizes, sides = [(10, 40, 20), (8, 30, 60)], [(3.0, 1.0, 1.0), (5.0, 1.0, 1.0)]
    grid = plan_grid(sizes, sides, spacing=(3.0, 2.0, 1.0), reference=[0])
    assert grid.extents == ((10, 20, 20), (13, 15, 60))  # 8 × 5 mm are 13.3 of 3 mm
    assert grid.shape == (13, 20, 60)
    assert plan_grid(sizes, sides, spacing=None, reference=[0, 1]).spacing == (4.0, 1.0, 1.0)


def test_faults_of_volumes_are_named(tmp_path: Path) -> None:
    root = write_balls(tmp_path / "d")
    write_volume(root / "labelsTr/c1.nii.gz", draw_ball(1)[1])  # a slice less than its image
    write_volume(root / "labelsTr/c2.nii.gz", 7 * draw_ball(2)[1])
    (root / "labelsTr/c3.nii.gz").write_bytes(b"no volume")
    with pytest.raises(DataError) as error:
        load(root)
    for part in ("c1.nii.gz: has 24×24×9 voxels, and its labels 24×24×8", "c2.nii.gz: has labels", "value(s) 7"):
        assert part in str(error.value)
    assert "c3.nii.gz: has labels, c3.nii.gz, that cannot be used: the file cannot be read" in str(error.value)
    kept = load(root, on_bad="quarantine")
    assert len(kept.quarantined) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": 2, "spacing_mm": [5, 1, 1]}, "spacing_mm with dimensions: 2"),
        ({"image_size": 64}, "image_size with dimensions: 3"),
        ({"slices": {"every": 2}}, "slices.every with dimensions: 3"),
        ({"slices": {"without_foreground": "drop"}}, "slices.without_foreground with dimensions: 3"),
    ],
)
def test_settings_of_slices_and_of_volumes_exclude_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DecathlonData.model_validate({"path": "d", "dimensions": 3, **fields})


def test_a_union_holds_no_volumes() -> None:
    with pytest.raises(ValidationError, match=r"found volumes .* in datasets.a"):
        DatasetsData.model_validate({"datasets": {"a": {"kind": "decathlon", "path": "d", "dimensions": 3}}})
