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

#: Spread of the embeddings below which they count as one point. Healthy runs of SimCLR and BYOL have .8 and more from
#: the first epoch on (digits and phantoms); at a learning rate of 1,000 digits fall to .67, .36, .23, .20.
SMALLEST_EMBEDDING_SPREAD = 0.25
#: The same for the encoder's features, which batch normalisation in the head can pull apart again. An assumption:
#: features of untrained networks are alike, too, but not by so much.
SMALLEST_FEATURE_SPREAD = 0.01
#: Effective rank below which embeddings or features count as collapsed to a few dimensions.
SMALLEST_RANK = 3.0
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
    """

    def __init__(self, device: torch.device) -> None:
        self._totals, self._count = torch.zeros(3, device=device), 0
        self._last: Outcome | None = None

    def add(self, outcome: Outcome) -> None:
        """Add a batch; without waiting for the device."""
        spreads = (measure_spread(outcome.features), measure_spread(outcome.embeddings))
        self._totals += torch.stack([outcome.loss, *spreads])
        self._count, self._last = self._count + 1, outcome

    def summarise(self) -> dict[str, float]:
        """Return metric (``stage_metrics``) → value: means, and ranks of the last batch."""
        assert self._last is not None
        loss, features, embeddings = (self._totals / self._count).tolist()
        found = {"ssl/loss": loss, "ssl/feature_spread": features, "ssl/embedding_spread": embeddings}
        if math.isfinite(loss):
            found["ssl/feature_rank"] = compute_rankme(centre_directions(self._last.features))
            found["ssl/embedding_rank"] = compute_rankme(centre_directions(self._last.embeddings))
            found["ssl/collapsed"] = float(min(found["ssl/feature_rank"], found["ssl/embedding_rank"]) < SMALLEST_RANK)
        return found


def check_collapse(found: Mapping[str, float], method: Method, *, epoch: int, num_images: int) -> None:
    """Check that an epoch has not mapped all images to one point.

    For SimCLR and MoCo the loss has to be that of guessing as well: log(2N − 1) among the other views of a batch, log(K
    + 1) among the key and the queue. BYOL has no such loss: its smallest, 0, is that of one point.

    Args:
        found: signs of the epoch (``CollapseMeter``).
        method: method of the pretraining.
        epoch: number of the epoch, for the message.
        num_images: N, images per batch.

    Raises:
        CollapsedError: all images are one point.
    """
    loss, features, embeddings = (found[f"ssl/{name}"] for name in ("loss", "feature_spread", "embedding_spread"))
    chance = None if isinstance(method, Byol) else find_chance_loss(method, num_images)
    is_point = features < SMALLEST_FEATURE_SPREAD or embeddings < SMALLEST_EMBEDDING_SPREAD
    if is_point and (chance is None or loss >= (1.0 - CHANCE_TOLERANCE) * chance):
        guessing = "" if chance is None else f", where guessing costs {chance:.4g}"
        raise CollapsedError(
            f"epoch {epoch}: the contrastive pretraining has collapsed: the spread of normalised features is "
            f"{features:.2g} and of embeddings {embeddings:.2g} (0: one point for all images), and the loss is "
            f"{loss:.4g}{guessing}; lower pretraining.method.learning_rate (now {method.learning_rate:g}), or start "
            "from other weights"
        )


def find_chance_loss(method: Method, num_images: int) -> float:
    """Return the loss of guessing which of the candidates is the other view, of SimCLR or MoCo."""
    return math.log(method.queue_size + 1 if isinstance(method, MoCo) else 2 * num_images - 1)


def describe_collapse(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the verdict over all epochs: ``none``; or ``dimensional``, with the epochs that were flagged.

    A pretraining whose images are all at one point has no history: it fails.
    """
    flagged = [record["epoch"] for record in history if record["metrics"]["ssl/collapsed"]]
    is_collapsed = bool(history) and bool(flagged) and flagged[-1] == history[-1]["epoch"]
    return {"verdict": "dimensional" if is_collapsed else "none", "epochs": flagged, "smallest_rank": SMALLEST_RANK}
