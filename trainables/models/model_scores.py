"""Confidences that only the model can give: a learned one, and those of MC dropout. Higher is more confident."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from trainables.models.confidence import get_branch
from trainables.models.mc_dropout import MC_DROPOUT_SCORES, McDropout
from trainables.models.networks import Classifier, flatten_map


class ModelScores:
    """Scores of a model's own, computed together with its logits.

    Args:
        model: model in evaluation mode; its learned confidence is the first score if it has one.
        mc_dropout: its draws, or None.
    """

    def __init__(self, model: Classifier, mc_dropout: McDropout | None) -> None:
        self._model, self._branch, self._mc_dropout = model, get_branch(model), mc_dropout

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores: the kind of ``training.confidence``, and ``MC_DROPOUT_SCORES``."""
        learned = () if self._branch is None else (self._branch.kind,)
        return learned if self._mc_dropout is None else (*learned, *MC_DROPOUT_SCORES)

    def forward(
        self, images: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n features"], Float32[Tensor, "n scores"]]:
        """Return the logits and penultimate features of normalised images, and the scores in the order of ``names``."""
        recorded = () if self._mc_dropout is None else self._mc_dropout.recorded
        logits, hidden, *inputs = self._model.forward_recording(images, self._model.head, *recorded)
        features = flatten_map(hidden)
        scores: list[Tensor] = []
        if self._branch is not None:
            scores.append(self._branch.log_odds(images, logits, features).float()[:, None])
        if self._mc_dropout is not None:
            scores.append(self._mc_dropout.score(images, inputs).float())
        return logits, features, torch.cat(scores, dim=1)


def build_model_scores(model: Classifier, *, mc_dropout: int, seed: int) -> ModelScores | None:
    """Return the scores of ``model``, None if it has none of its own.

    Args:
        model: model on the device of the evaluation.
        mc_dropout: ``evaluation.mc_dropout``, the number of draws; 0 for none.
        seed: seed of the draws.

    Raises:
        ConfigError: if there are draws and the network has no dropout.
    """
    if mc_dropout == 0:
        return None if model.confidence is None else ModelScores(model, None)
    return ModelScores(model, McDropout(model, draws=mc_dropout, seed=seed))
