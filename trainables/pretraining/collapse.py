"""The collapse verdict: all images at one point, or in few dimensions, so that little or nothing has been learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainables.contrastive_config import Byol, Method, MoCo
from trainables.errors import CollapsedError
from trainables.evaluation.representation.effective_rank import compute_rankme
from trainables.pretraining.methods import Outcome

#: Kind of method → spread of the embeddings below which they count as one point. Healthy runs have .8 and more (SimCLR,
#: BYOL) in all epochs. SimCLR at a learning rate of 1,000 falls to .12 in the first, BYOL without predictor to .2 in
#: the second (digits). MoCo, whose head has no batch normalisation, comes near one point before it learns: a run with
#: .09 in its second epoch has .2 in its 24th, and a loss below guessing (phantom; lightly's own MoCo dips by as much).
#: At a learning rate of 1,000 it falls to .08 and .004 (digits).
SMALLEST_EMBEDDING_SPREAD = {"simclr": 0.25, "byol": 0.25, "moco": 0.03}
#: The same for the encoder's features, which batch normalisation in the head can pull apart again. An assumption:
#: features of untrained networks are alike, too, but not by so much.
SMALLEST_FEATURE_SPREAD = 0.01
#: Effective rank below which embeddings or features count as collapsed to a few dimensions, and the share of the first
#: batch's rank below which they do where the loss is that of guessing. Healthy runs on digits keep .5 and more, and
#: have 15 and more; at a learning rate of 1,000 it is a third in the first epoch.
SMALLEST_RANK, SMALLEST_RANK_SHARE = 3.0, 0.5
#: Largest rank that a batch can have (images − 1, or dimensions) from which a small one says something. Assumption.
SMALLEST_POSSIBLE_RANK = 6
#: Share below the loss of guessing within which nothing has been learned: an assumption. The loss alone says too
#: little: healthy runs on few images begin above that of guessing.
CHANCE_TOLERANCE = 0.01


def centre_directions(vectors: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
    """Return the normalised vectors minus their mean."""
    units = F.normalize(vectors.float(), dim=1)
    return units - units.mean(0)


def measure_spread(vectors: Float[Tensor, "n features"]) -> Float[Tensor, ""]:
    """Return the standard deviation of the normalised vectors about their mean, in [0, 1]; 0 if all are one point.

    It is 1 for directions that are evenly spread, whatever their number of dimensions. Source: Chen & He 2021 (SimSiam,
    arXiv 2011.10566), whose "std" is this divided by √features.
    """
    return centre_directions(vectors).square().sum(1).mean().sqrt()


class CollapseMeter:
    """Signs of collapse in the batches of an epoch, as the network makes them; no epoch costs another forward pass.

    Args:
        device: device of the batches.
        first: record of the first epoch, which has the ranks of the first batch of all; None in the first epoch.
    """

    def __init__(self, device: torch.device, first: Mapping[str, float] | None) -> None:
        self._totals, self._count = torch.zeros(3, device=device), 0
        self._last: Outcome | None = None
        self._first = {} if first is None else {name: first[f"ssl/first_{name}"] for name in _RANKS}
        self._is_first_epoch = first is None

    def add(self, outcome: Outcome) -> None:
        """Add a batch; without waiting for the device, except for the first of all."""
        if not self._first:  # of the weights that the pretraining starts from
            self._first = _measure_ranks(outcome)
        spreads = (measure_spread(outcome.features), measure_spread(outcome.embeddings))
        self._totals += torch.stack([outcome.loss, *spreads])
        self._count, self._last = self._count + 1, outcome

    def summarise(self, chance: float | None) -> dict[str, float]:
        """Return metric (``STAGE_METRICS``) → value: means, and ranks of the last batch.

        Args:
            chance: loss of guessing; None if the method has none.
        """
        assert self._last is not None
        loss, features, embeddings = (self._totals / self._count).tolist()
        found = {"ssl/loss": loss, "ssl/feature_spread": features, "ssl/embedding_spread": embeddings}
        if not math.isfinite(loss):
            return found
        ranks = _measure_ranks(self._last)
        is_guessing = chance is not None and loss >= (1.0 - CHANCE_TOLERANCE) * chance
        has_few = any(
            (rank < SMALLEST_RANK and possible >= SMALLEST_POSSIBLE_RANK)
            or (is_guessing and rank < SMALLEST_RANK_SHARE * self._first[name])
            for (name, rank), possible in zip(ranks.items(), _list_possible_ranks(self._last), strict=True)
        )
        found |= {f"ssl/{name}": rank for name, rank in ranks.items()} | {"ssl/collapsed": float(has_few)}
        if self._is_first_epoch:
            found |= {f"ssl/first_{name}": rank for name, rank in self._first.items()}
        return found


_RANKS = ("feature_rank", "embedding_rank")


def _list_possible_ranks(outcome: Outcome) -> list[int]:
    """Return the largest rank that features and embeddings of such a batch can have."""
    return [min(len(part) - 1, part.shape[1]) for part in (outcome.features, outcome.embeddings)]


def _measure_ranks(outcome: Outcome) -> dict[str, float]:
    """Return both ranks; NaN where a vector is not finite, which is divergence and no collapse."""
    parts = [centre_directions(part) for part in (outcome.features, outcome.embeddings)]
    return {
        name: compute_rankme(part) if bool(part.isfinite().all()) else math.nan
        for name, part in zip(_RANKS, parts, strict=True)
    }


def check_collapse(found: Mapping[str, float], method: Method, chance: float | None, *, epoch: int) -> None:
    """Check that an epoch has not mapped all images to one point.

    For SimCLR and MoCo the loss has to be that of guessing as well; BYOL’s smallest, 0, is that of one point.

    Args:
        found: signs of the epoch (``CollapseMeter``).
        method: method of the pretraining.
        chance: loss of guessing (``find_chance_loss``).
        epoch: number of the epoch, for the message.

    Raises:
        CollapsedError: all images are one point.
    """
    loss, features, embeddings = (found[f"ssl/{name}"] for name in ("loss", "feature_spread", "embedding_spread"))
    is_point = features < SMALLEST_FEATURE_SPREAD or embeddings < SMALLEST_EMBEDDING_SPREAD[method.kind]
    if is_point and (chance is None or loss >= (1.0 - CHANCE_TOLERANCE) * chance):
        guessing = "" if chance is None else f", where guessing costs {chance:.4g}"
        raise CollapsedError(
            f"epoch {epoch}: the contrastive pretraining has collapsed: the spread of normalised features is "
            f"{features:.2g} and of embeddings {embeddings:.2g} (0: one point for all images), and the loss is "
            f"{loss:.4g}{guessing}; lower pretraining.method.learning_rate (now {method.learning_rate:g}), or start "
            "from other weights"
        )


def find_chance_loss(method: Method, num_images: int) -> float | None:
    """Return the loss of guessing which candidate is the other view; None for BYOL, which has no candidates.

    SimCLR: log(2N − 1), the other views of a batch of N images. MoCo: log(K + 1), the key and the queue.
    """
    if isinstance(method, Byol):
        return None
    return math.log(method.queue_size + 1 if isinstance(method, MoCo) else 2 * num_images - 1)


def describe_collapse(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the verdict over all epochs: ``none``; or ``dimensional``, with the epochs that were flagged.

    A pretraining whose images are all at one point has no history: it fails.
    """
    flagged = [record["epoch"] for record in history if record["metrics"]["ssl/collapsed"]]
    is_collapsed = bool(flagged) and flagged[-1] == history[-1]["epoch"]
    return {"verdict": "dimensional" if is_collapsed else "none", "epochs": flagged}
