"""Pairwise Dice and majority votes by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trainables.errors import DataError
from trainables.evaluation.confidence import CONFIDENCE_SCORES
from trainables.evaluation.segmentation_ood.ensemble_agreement import PAIRWISE_DICE, MajorityVote, PairwiseDice


def test_pairwise_dice_by_hand() -> None:
    members = np.zeros((3, 2, 1, 6), dtype=np.uint8)
    members[0, 0, 0] = [1, 1, 1, 0, 0, 0]
    members[1, 0, 0] = [0, 1, 1, 1, 0, 0]
    members[2, 0, 0] = [0, 0, 0, 0, 0, 1]
    agreement = PairwiseDice(2)
    for member in members:
        agreement.add(member)
    # Pairs of the first image: 2·2/6, 0, 0; in the second nobody predicts anything.
    np.testing.assert_allclose(agreement.compute(), [(2 / 3) / 3, 1.0])


def test_pairwise_dice_is_that_of_a_loop_over_pairs_and_classes() -> None:
    random = np.random.default_rng(0)
    members = random.integers(0, 4, size=(4, 3, 9, 11))
    members[:, 1][members[:, 1] == 3] = 0  # one class in no member
    members[0, 2][members[0, 2] == 2] = 0  # one in all but one
    agreement = PairwiseDice(4)
    for member in members:
        agreement.add(member)
    for image, found in enumerate(agreement.compute()):
        scores = []
        for one, other in itertools.combinations(members[:, image], 2):
            for label in (1, 2, 3):
                both, either = ((one == label) & (other == label)).sum(), (one == label).sum() + (other == label).sum()
                scores.append(2 * both / either if either else 1.0)
        assert found == pytest.approx(np.mean(scores))


def test_what_cannot_be_compared_is_an_error() -> None:
    agreement = PairwiseDice(2)
    agreement.add(np.zeros((2, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"in pairs and found 1; expected two"):
        agreement.compute()
    with pytest.raises(DataError, match=r"shapes \(2, 4, 4\) and \(3, 4, 4\)"):
        agreement.add(np.zeros((3, 4, 4), dtype=np.uint8))
    assert CONFIDENCE_SCORES[PAIRWISE_DICE].needs == "members"


def test_most_votes_win_and_of_equally_many_the_first_class() -> None:
    members = np.array([[[0, 1, 2, 1, 2]], [[0, 1, 1, 0, 1]], [[1, 0, 2, 0, 0]], [[1, 1, 1, 2, 2]]])
    vote = MajorityVote(3)
    for member in members:
        vote.add(member)
    assert vote.compute().tolist() == [[0, 1, 1, 0, 2]]


def test_a_vote_is_that_of_bincount() -> None:
    members = np.random.default_rng(0).integers(0, 4, size=(5, 3, 9, 11))
    vote = MajorityVote(4)
    for member in members:
        vote.add(member)
    expected = np.apply_along_axis(lambda votes: np.bincount(votes, minlength=4).argmax(), 0, members)
    assert np.array_equal(vote.compute(), expected)


def test_votes_on_other_images_are_an_error() -> None:
    vote = MajorityVote(2)
    with pytest.raises(DataError, match="found no member"):
        vote.compute()
    vote.add(np.zeros((2, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"shapes \(2, 4, 4\) and \(3, 4, 4\)"):
        vote.add(np.zeros((3, 4, 4), dtype=np.uint8))
