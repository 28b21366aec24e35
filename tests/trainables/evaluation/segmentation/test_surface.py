"""HD95, ASSD and NSD: analytic shapes within half a voxel, empty masks, all pairs of boundary pixels, MONAI."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.data.dataset import UNCOUNTED
from trainables.errors import DataError
from trainables.evaluation.segmentation.surface import find_boundary, measure_surfaces

#: mm per voxel: slices are five times as far apart as rows and columns.
ANISOTROPIC = (5.0, 1.0, 1.0)


def measure(predicted: Any, target: Any, spacing: tuple[float, ...], tolerance_mm: float = 1.0) -> tuple[float, ...]:
    """HD95, ASSD, NSD of one case."""
    pair = (np.asarray(mask, dtype=np.uint8)[None] for mask in (predicted, target))
    found = measure_surfaces(*pair, foreground=(1,), spacing=np.array([spacing]), tolerance_mm=tolerance_mm)
    return tuple(float(found[name][0, 0]) for name in ("hd95", "assd", "nsd"))


def draw_ball(radius_mm: float, spacing: tuple[float, ...], half: int) -> np.ndarray:
    """A disc or ball in the middle of 2·half + 1 pixels along each axis."""
    axes = np.meshgrid(*(np.arange(-half, half + 1) * step for step in spacing), indexing="ij")
    return np.sqrt(sum(np.square(axis) for axis in axes)) <= radius_mm


@pytest.mark.parametrize(("inner", "outer"), [(10, 14), (20, 21), (8, 25)])
@pytest.mark.parametrize(("spacing", "half"), [((1.0, 1.0), 30), ((0.5, 0.5), 60), ((1.0, 1.0, 1.0), 28)])
def test_concentric_discs_and_spheres(inner: float, outer: float, spacing: tuple[float, ...], half: int) -> None:
    hd95, assd, _ = measure(draw_ball(inner, spacing, half), draw_ball(outer, spacing, half), spacing)
    assert hd95 == pytest.approx(outer - inner, abs=spacing[0] / 2)
    assert assd == pytest.approx(outer - inner, abs=spacing[0] / 2)


@pytest.mark.parametrize("spacing", [ANISOTROPIC, (1.0, 1.0, 5.0), (1.0, 5.0)])
@pytest.mark.parametrize(("inner", "outer"), [(20, 30), (15, 40)])
def test_concentric_ellipsoids_of_voxels(inner: float, outer: float, spacing: tuple[float, ...]) -> None:
    """Discs and spheres in mm, of which voxels are five times as long as wide: within half of the longest side."""
    balls = draw_ball(inner, spacing, 41), draw_ball(outer, spacing, 41)
    hd95, assd, _ = measure(*balls, spacing)
    assert hd95 == pytest.approx(outer - inner, abs=2.5)
    assert assd == pytest.approx(outer - inner, abs=2.5)
    # The median distance: a single boundary voxel may lie up to a whole one inside of the sphere.
    assert measure(*balls, spacing, tolerance_mm=outer - inner + 2.5)[2] > 0.5
    assert measure(*balls, spacing, tolerance_mm=outer - inner - 2.5)[2] < 0.5
    assert measure(*balls, spacing, tolerance_mm=outer - inner + 5.0)[2] == 1.0
    assert measure(*balls, spacing, tolerance_mm=outer - inner - 5.0)[2] < 0.05


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.4, 2.0), ANISOTROPIC, (1.0, 1.0, 5.0)])
def test_identical_masks_are_zero_apart(spacing: tuple[float, ...]) -> None:
    ball = draw_ball(8 * max(spacing), spacing, 20)
    assert measure(ball, ball, spacing) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [1, 3])
def test_shifted_boxes_at_anisotropic_spacing(axis: int, shift: int) -> None:
    """Along one axis, boxes are as far apart as they are shifted; pixels of the sides in common are 0 apart."""
    box = np.zeros((14, 30, 30), dtype=bool)
    box[3:8, 8:20, 8:20] = True
    moved = np.roll(box, shift, axis)
    apart = shift * ANISOTROPIC[axis]
    hd95, assd, nsd = measure(moved, box, ANISOTROPIC, tolerance_mm=apart - 0.1)
    assert measure(moved, box, ANISOTROPIC, tolerance_mm=apart)[2] == 1.0
    boundary = find_boundary(box)
    face = box.shape[axis] and boundary.take(3 if axis == 0 else 8, axis).sum()
    # 95 % of a small face's boundary may lie nearer; the far face is at the full distance.
    assert hd95 <= apart + 1e-9
    if face / boundary.sum() > 0.05:
        assert hd95 == pytest.approx(apart, abs=ANISOTROPIC[axis] / 2)
    assert 0 < assd < apart
    assert 0 < nsd < 1


@pytest.mark.parametrize("spacing", [(5.0, 1.0, 1.0), (1.0, 1.0, 5.0), (1.0, 3.0)])
def test_plates_are_as_far_apart_as_they_are_drawn(spacing: tuple[float, ...]) -> None:
    """Two parallel plates: every pixel of one is the same distance away from the other, whatever the axis."""
    shape = (16,) * len(spacing)
    for axis, step in enumerate(spacing):
        first, second = np.zeros(shape), np.zeros(shape)
        np.moveaxis(first, axis, 0)[3], np.moveaxis(second, axis, 0)[9] = 1, 1
        assert measure(first, second, spacing, tolerance_mm=6 * step) == pytest.approx((6 * step, 6 * step, 1.0))
        assert measure(first, second, spacing, tolerance_mm=6 * step - 0.01)[2] == 0.0


def test_a_missed_or_invented_structure_is_the_diagonal_away() -> None:
    empty, full = np.zeros((30, 40)), np.ones((30, 40))
    for pair in ((empty, full), (full, empty)):
        assert measure(*pair, (1.0, 1.0)) == (50.0, 50.0, 0.0)
        assert measure(*pair, (2.0, 2.0)) == (100.0, 100.0, 0.0)
    assert np.isnan(measure(empty, empty, (1.0, 1.0))).all()
    volume = np.zeros((4, 5, 6))
    assert measure(volume, volume + 1, ANISOTROPIC)[0] == pytest.approx(np.sqrt(20**2 + 5**2 + 6**2))


def test_pixels_that_do_not_count_are_in_neither_mask() -> None:
    target = draw_ball(6, (1.0, 1.0), 15).astype(np.uint8)
    predicted = draw_ball(8, (1.0, 1.0), 15).astype(np.uint8)
    left = np.where(np.arange(31) < 12, 0, 1).astype(np.uint8)
    marked = np.where(left == 0, UNCOUNTED, target).astype(np.uint8)
    assert measure(predicted, marked, (1.0, 1.0)) == measure(predicted * left, target * left, (1.0, 1.0))


@given(seed=st.integers(0, 10_000), axes=st.sampled_from([2, 3]), share=st.sampled_from([0.02, 0.3, 0.8]))
@settings(max_examples=40, deadline=None)
def test_every_number_is_that_of_all_pairs_of_boundary_pixels(seed: int, axes: int, share: float) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((2, *random.integers(1, 7, axes))) < share
    spacing = random.uniform(0.3, 4, axes)
    points = []
    for mask in masks:
        padded = np.pad(mask, 1)
        points.append(
            [
                np.array(place) - 1
                for place in itertools.product(*map(range, padded.shape))
                if padded[place]
                and not all(
                    padded[tuple(np.add(place, step * unit))] for unit in np.eye(axes, dtype=int) for step in (-1, 1)
                )
            ]
        )
    found = measure(*masks, tuple(spacing), tolerance_mm=2.0)
    if not points[0] or not points[1]:
        assert np.isnan(found[0]) if not points[0] and not points[1] else found[2] == 0.0
        return
    apart = np.array([[np.linalg.norm((a - b) * spacing) for b in points[1]] for a in points[0]])
    there, back = apart.min(axis=1), apart.min(axis=0)
    both = np.concatenate([there, back])
    expected = (max(np.quantile(there, 0.95), np.quantile(back, 0.95)), both.mean(), (both <= 2.0).mean())
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("space", "spacing"), [((48, 40), (1.0, 1.0)), ((40, 48), (0.7, 1.9)), ((9, 20, 24), ANISOTROPIC)]
)
def test_numbers_are_those_of_monai(space: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """Where neither mask is empty; the same boundary and percentile. To import MONAI takes seconds."""
    metrics = pytest.importorskip("monai.metrics", reason="compares with MONAI, of the extra medical")
    import torch
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(1)
    noise = gaussian_filter(random.normal(size=(2, 5, *space)), (0, 0, *(2.0,) * len(space)))
    masks = (noise > np.quantile(noise, 0.7)).astype(np.uint8)
    found = measure_surfaces(masks[0], masks[1], foreground=(1,), spacing=np.tile(spacing, (5, 1)), tolerance_mm=1.5)
    pair = [torch.from_numpy(np.stack([1 - own, own], axis=1)) for own in masks]
    shared = {"include_background": False, "spacing": list(spacing)}
    theirs = {
        "hd95": metrics.compute_hausdorff_distance(*pair, percentile=95, **shared),
        "assd": metrics.compute_average_surface_distance(*pair, symmetric=True, **shared),
        "nsd": metrics.compute_surface_dice(*pair, class_thresholds=[1.5], **shared),
    }
    for name, values in theirs.items():
        assert found[name] == pytest.approx(values.numpy(), abs=1e-4), name


def test_bad_spacings_and_shapes_are_refused() -> None:
    masks = np.ones((2, 4, 4), dtype=np.uint8)
    for spacing in (np.ones((2, 3)), np.zeros((2, 2))):
        with pytest.raises(DataError, match="expected 2 numbers above 0 for every case"):
            measure_surfaces(masks, masks, foreground=(1,), spacing=spacing, tolerance_mm=1.0)


def test_no_case_has_no_numbers() -> None:
    none = np.ones((0, 4, 4), dtype=np.uint8)
    found = measure_surfaces(none, none, foreground=(1, 2), spacing=np.ones((0, 2)), tolerance_mm=1.0)
    assert {values.shape for values in found.values()} == {(0, 2)}
