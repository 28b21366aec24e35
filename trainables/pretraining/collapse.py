"""Detection of collapse in contrastive pretraining: all images are mapped to the same point, and nothing is learned."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainables.errors import CollapsedError

#: Spread of the embeddings below which they count as one point. Healthy runs have .95 and more from the first epoch on
#: (digits and phantoms, 3 and 4 epochs); at a learning rate of 1,000 digits fall to .67, .36, .23, .20.
SMALLEST_EMBEDDING_SPREAD = 0.25
#: The same for the encoder's features, which batch normalisation in the head can pull apart again. An assumption:
#: features of untrained networks are alike, too, but not by so much.
SMALLEST_FEATURE_SPREAD = 0.01
#: Share below the loss of guessing within which nothing has been learned: an assumption. The loss alone says too
#: little: healthy runs on few images begin above that of guessing.
CHANCE_TOLERANCE = 0.01


def measure_spread(vectors: Float[Tensor, "n features"]) -> Float[Tensor, ""]:
    """Return the standard deviation of the normalised vectors about their mean, in [0, 1]; 0 if all are one point.

    It is 1 for directions that are evenly spread, whatever their number of dimensions. Source: Chen & He 2021 (SimSiam,
    arXiv 2011.10566), whose "std" is this divided by √features.
    """
    units = F.normalize(vectors.float(), dim=1)
    return (units - units.mean(0)).square().sum(1).mean().sqrt()


def check_collapse(
    *, epoch: int, loss: float, feature_spread: float, embedding_spread: float, num_images: int, learning_rate: float
) -> None:
    """Check that an epoch has not collapsed: no spread of features or embeddings, and a loss as by guessing.

    Guessing the other view of an image among the 2N − 1 other views of a batch costs log(2N − 1).

    Args:
        epoch: number of the epoch, for the message.
        loss: mean NT-Xent loss of the epoch.
        feature_spread: mean ``measure_spread`` of the encoder's features.
        embedding_spread: the same of the projections, which the loss compares.
        num_images: N, images per batch.
        learning_rate: setting of the pretraining, for the message.

    Raises:
        CollapsedError: both hold.
    """
    chance = math.log(2 * num_images - 1)
    is_point = feature_spread < SMALLEST_FEATURE_SPREAD or embedding_spread < SMALLEST_EMBEDDING_SPREAD
    if is_point and loss >= (1.0 - CHANCE_TOLERANCE) * chance:
        raise CollapsedError(
            f"epoch {epoch}: the contrastive pretraining has collapsed: the spread of normalised features is "
            f"{feature_spread:.2g} and of embeddings {embedding_spread:.2g} (0: one point for all images), and "
            f"the loss is {loss:.4g}, where guessing costs {chance:.4g}; lower pretraining.learning_rate (now "
            f"{learning_rate:g}), or start from other weights"
        )
