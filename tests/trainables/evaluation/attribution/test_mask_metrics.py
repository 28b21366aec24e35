"""Relevance against drawn masks: known answers, ties, a plain recomputation, and what happens by chance."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.errors import DivergedError
from trainables.evaluation.attribution.components import find_components
from trainables.evaluation.attribution.evaluate import score_maps, summarise_scored
from trainables.evaluation.attribution.mask_metrics import (
    build_centre_prior,
    compute_concentration,
    compute_pointing_game,
    compute_relevance_mass,
    compute_relevance_rank,
    share_by_component,
    take_relevance,
)
from trainables.evaluation.attribution.table import AREA_BINS

SIZE = 40


def draw(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Return a mask with these rectangles: top, left, height, width."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


def test_relevance_on_the_lesion_alone_has_the_best_scores() -> None:
    masks = np.stack([draw((3, 4, 5, 6)), draw((20, 20, 2, 2), (0, 0, 1, 9))])
    relevance = masks.astype(np.float32)
    for function in (compute_relevance_mass, compute_relevance_rank, compute_pointing_game):
        assert function(relevance, masks) == pytest.approx([1, 1])
        assert function(1 - relevance, masks) == pytest.approx([0, 0])


def test_scores_of_a_map_without_relevance_are_those_of_chance() -> None:
    masks = np.stack([draw((3, 4, 10, 16)), draw((20, 20, 2, 2))])
    relevance, is_empty = take_relevance(np.zeros((2, SIZE, SIZE), dtype=np.float32), "positive")
    assert is_empty.tolist() == [True, True]
    chance = [160 / SIZE**2, 4 / SIZE**2]
    for function in (compute_relevance_mass, compute_relevance_rank, compute_pointing_game):
        assert function(relevance, masks) == pytest.approx(chance)
    components = find_components(masks)
    concentration = compute_concentration(share_by_component(relevance, components), components)
    assert concentration == pytest.approx({"below_25": 1.0, "100_to_400": 1.0})


def test_ties_count_by_their_share() -> None:
    mask = draw((0, 0, 1, 4))[None]
    relevance = np.zeros((1, SIZE, SIZE), dtype=np.float32)
    relevance[0, 0, 0] = 5  # in the mask
    relevance[0, 9, 9] = 5  # outside
    relevance[0, 0, 1:3] = 2  # in the mask
    relevance[0, 5, :6] = 2  # outside
    # Two places are filled by the fives, of which one is inside; 8 pixels tie for two more, of which 2 are inside.
    assert compute_relevance_rank(relevance, mask) == pytest.approx([(1 + 2 * 2 / 8) / 4])
    assert compute_pointing_game(relevance, mask) == pytest.approx([0.5])
    assert compute_relevance_mass(relevance, mask) == pytest.approx([(5 + 4) / (10 + 16)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_scores_equal_a_plain_recomputation(seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((3, 12, 9)) < 0.3
    masks[:, 0, 0] = True
    relevance = random.random((3, 12, 9)).astype(np.float32)  # no ties but by a chance of 10⁻⁵
    relevance += np.arange(108, dtype=np.float32).reshape(12, 9) * 1e-6
    mass, rank, hit = [], [], []
    for values, mask in zip(relevance.tolist(), masks.tolist(), strict=True):
        pixels = sorted(
            (
                (value, inside)
                for row, in_row in zip(values, mask, strict=True)
                for value, inside in zip(row, in_row, strict=True)
            ),
            reverse=True,
        )
        area = sum(inside for _, inside in pixels)
        mass.append(sum(value for value, inside in pixels if inside) / sum(value for value, _ in pixels))
        rank.append(sum(inside for _, inside in pixels[:area]) / area)
        hit.append(float(pixels[0][1]))
    assert compute_relevance_mass(relevance, masks) == pytest.approx(mass, abs=1e-6)
    assert compute_relevance_rank(relevance, masks) == pytest.approx(rank)
    assert compute_pointing_game(relevance, masks) == pytest.approx(hit)


def test_an_empty_mask_has_no_rank_accuracy() -> None:
    found = compute_relevance_rank(np.ones((1, SIZE, SIZE), dtype=np.float32), draw()[None])
    assert np.isnan(found).all()


def test_positive_relevance_leaves_out_what_speaks_against_the_class() -> None:
    attribution = np.array([[[3.0, -6.0], [1.0, 0.0]]], dtype=np.float32)
    mask = np.array([[[True, False], [False, False]]])
    assert compute_relevance_mass(take_relevance(attribution, "positive")[0], mask) == pytest.approx([3 / 4])
    assert compute_relevance_mass(take_relevance(attribution, "absolute")[0], mask) == pytest.approx([3 / 10])
    assert attribution[0, 0, 1] == -6  # what was given is left as it was


def test_attributions_that_are_not_finite_are_an_error() -> None:
    attribution = np.zeros((2, 4, 4), dtype=np.float32)
    attribution[1, 2, 2] = np.nan
    with pytest.raises(DivergedError, match="not finite in 1 of them"):
        take_relevance(attribution, "positive")


def test_components_have_the_area_and_shape_that_was_drawn() -> None:
    diagonal = draw((30, 30, 1, 1), (31, 31, 1, 1))  # touches at a corner only
    masks = np.stack([draw((2, 2, 3, 3), (10, 5, 2, 30)), diagonal, draw()])
    found = find_components(masks)
    assert found.image.tolist() == [0, 0, 1]
    assert found.area_px.tolist() == [9, 60, 2]
    assert found.number.tolist() == [2, 2, 1]
    assert found.elongation[:2] == pytest.approx([1, 15])  # axes of a rectangle's ellipse are as its sides
    assert found.irregularity[:2] == pytest.approx([np.pi / 3, np.pi / 3])
    assert found.area_share == pytest.approx(np.array([9, 60, 2]) / SIZE**2)


def test_irregularity_tells_a_ring_from_a_disc_and_ignores_how_long_it_is() -> None:
    y, x = np.mgrid[-60:61, -60:61]
    distance = np.hypot(y, x)
    stretched = np.hypot(y / 2, x)
    masks = np.stack([distance < 25, stretched < 25, (distance < 25) & (distance > 15)])
    found = find_components(masks)
    assert found.irregularity[:2] == pytest.approx([1, 1], abs=0.01)
    assert found.irregularity[2] == pytest.approx((25**4 - 15**4) / (25**2 - 15**2) ** 2, rel=0.03)
    assert found.elongation == pytest.approx([1, 2, 1], rel=0.02)


def test_relevance_per_area_bin_is_over_its_share_of_the_area() -> None:
    masks = np.stack([draw((0, 0, 4, 4), (10, 10, 6, 6)), draw((0, 0, 20, 21)), draw((5, 5, 2, 2))])
    relevance = np.full((3, SIZE, SIZE), 1.0, dtype=np.float32)
    relevance[0, :4, :4] = 11
    relevance[2, 5:7, 5:7] = 101
    components = find_components(masks)
    shares = share_by_component(relevance, components)
    totals = [1600 + 160, 1600, 1600 + 400]
    assert shares == pytest.approx([176 / totals[0], 36 / totals[0], 420 / totals[1], 404 / totals[2]])
    found = compute_concentration(shares, components)
    assert found == pytest.approx(
        {
            "below_25": (176 / totals[0] + 404 / totals[2]) / (20 / 1600),
            "25_to_100": 36 / totals[0] / (36 / 1600),
            "above_400": 1.0,
        }
    )


def test_area_bins_meet_without_gap_or_overlap() -> None:
    edges = list(AREA_BINS.values())
    assert edges[0][0] == 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(edges))
    assert edges[-1][1] == float("inf")


def test_centre_prior_likes_the_middle() -> None:
    prior = build_centre_prior(SIZE, SIZE)
    assert prior.max() == prior[SIZE // 2, SIZE // 2]
    assert np.array_equal(prior, prior[::-1, ::-1])
    middle, corner = draw((16, 16, 8, 8)), draw((0, 0, 8, 8))
    mass = compute_relevance_mass(np.stack([prior, prior]), np.stack([middle, corner]))
    assert mass[0] > 2 * 64 / SIZE**2 > 64 / SIZE**2 > 2 * mass[1]


def test_summary_says_why_there_is_no_adjusted_ratio() -> None:
    masks = np.stack([draw((0, 0, 4, 4))] * 3)
    components = find_components(masks)
    scored = score_maps(np.ones(masks.shape, dtype=np.float32), components, "positive")
    found, problem = summarise_scored(scored, components)
    assert problem == "3 lesions are too few for a regression on their area; expected 25"
    assert found == pytest.approx(
        {
            "relevance_mass": 0.01, "relevance_rank": 0.01, "pointing_game": 0.01, "without_relevance": 0.0,
            "concentration_below_25": 1.0,
        }
    )  # fmt: skip
