"""Ensemble of segmentations from the predicted classes of its members: its vote, and how much they agree in pairs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt8, UInt64

from trainables.errors import DataError

#: Name of the score in ``confidence.CONFIDENCE_SCORES``.
PAIRWISE_DICE = "pairwise_dice"
#: Votes that are counted in a byte.
_MAX_MEMBERS = 255


class PairwiseDice:
    """Mean Dice over pairs of members and foreground classes; members are added one after the other.

    Of a member one bit per pixel and foreground class is kept. A class that neither of a pair predicts counts 1.

    Args:
        num_classes: number of classes with the background, which is 0.

    Source: Roy et al. 2019, for samples of one network.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._masks: list[UInt64[np.ndarray, "classes n words"]] = []
        self._areas: list[Int64[np.ndarray, "classes n"]] = []
        self._total = np.zeros(0)
        self._shape: tuple[int, ...] = ()

    def add(self, prediction: Integer[np.ndarray, "n *space"]) -> None:
        """Add the predicted classes of one more member for the same images.

        Raises:
            DataError: if their shape is not that of the members before.
        """
        if self._masks:
            _check_shape(self._shape, prediction.shape)
        else:
            self._shape, self._total = prediction.shape, np.zeros(len(prediction))
        masks = _pack(prediction.reshape(len(prediction), -1), self._num_classes)
        areas = _count_bits(masks)
        for others, other_areas in zip(self._masks, self._areas, strict=True):
            both, either = _count_bits(masks & others), areas + other_areas
            self._total += np.where(either > 0, 2 * both / np.maximum(either, 1), 1.0).mean(axis=0)
        self._masks.append(masks)
        self._areas.append(areas)

    def compute(self) -> Float64[np.ndarray, " n"]:
        """Return the score of every image, in [0, 1]; higher is more agreement.

        Raises:
            DataError: if there are fewer than two members.
        """
        members = len(self._masks)
        if members < 2:
            raise DataError(
                f"compared members of an ensemble in pairs and found {members}; expected two independently trained "
                "models or more"
            )
        return self._total / (members * (members - 1) / 2)


class MajorityVote:
    """Class that most members predict, pixel by pixel; members are added one after the other.

    Of equally many votes the lowest class has it: background against a structure, so that of two classes the
    foreground takes more than half of the members. Only predicted classes are needed: there is no mean probability.

    Args:
        num_classes: number of classes with the background, which is 0.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes, self._members = num_classes, 0
        self._votes: UInt8[np.ndarray, "foreground n *space"] = np.zeros(0, dtype=np.uint8)

    def add(self, prediction: Integer[np.ndarray, "n *space"]) -> None:
        """Add the predicted classes of one more member for the same images.

        Raises:
            DataError: if their shape is not that of the members before, or there are more than 255 members.
        """
        if not self._members:
            self._votes = np.zeros((self._num_classes - 1, *prediction.shape), dtype=np.uint8)
        _check_shape(self._votes.shape[1:], prediction.shape)
        if self._members == _MAX_MEMBERS:
            raise DataError(f"counted votes and found more than {_MAX_MEMBERS} members; expected fewer")
        self._members += 1
        for label in range(1, self._num_classes):
            self._votes[label - 1] += prediction == label

    def compute(self) -> UInt8[np.ndarray, "n *space"]:
        """Return the class of every pixel.

        Raises:
            DataError: if there are no members.
        """
        if not self._members:
            raise DataError("counted the votes of an ensemble and found no member; expected one or more")
        most = (self._members - self._votes.sum(axis=0, dtype=np.int64)).astype(np.uint8)  # votes for the background
        winner = np.zeros(most.shape, dtype=np.uint8)
        for label, votes in enumerate(self._votes, start=1):
            winner[votes > most] = label
            np.maximum(most, votes, out=most)
        return winner


def _check_shape(expected: tuple[int, ...], found: tuple[int, ...]) -> None:
    if found != expected:
        raise DataError(
            f"compared members of an ensemble and found predictions of shapes {expected} and {found}; expected the "
            "same images of all"
        )


def _pack(prediction: Integer[np.ndarray, "n pixels"], num_classes: int) -> UInt64[np.ndarray, "classes n words"]:
    """Return one bit per pixel for every foreground class, filled up with zeros to words of 64."""
    words = -(-prediction.shape[1] // 64)
    packed = np.zeros((num_classes - 1, len(prediction), 8 * words), dtype=np.uint8)
    for label in range(1, num_classes):
        packed[label - 1, :, : -(-prediction.shape[1] // 8)] = np.packbits(prediction == label, axis=1)
    return packed.view(np.uint64)


def _count_bits(masks: UInt64[np.ndarray, "classes n words"]) -> Int64[np.ndarray, "classes n"]:
    return np.bitwise_count(masks).sum(axis=2, dtype=np.int64)
