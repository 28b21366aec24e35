"""Parts of a network that learn a confidence beside its classifier: one more output, or a network of their own.

A branch is part of the model (``Classifier.confidence``) and of its weights, under ``confidence.…``. Everything else of
the model is the plain classifier, with the same names and the same initial weights.

A branch returns its confidence as log-odds, log(c / (1 − c)): in float32 many confidences close to 1 would be equal.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainables.confidence_config import ConfidenceConfig, ConfidNet, DeepGamblers, DeVries, NoConfidence
from trainables.models.networks import Classifier


class ConfidenceBranch(nn.Module):
    """Base class of the branches.

    Args:
        kind: ``kind`` of the configuration, the name of the score.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def log_odds(
        self,
        images: Float[Tensor, "n c h w"],
        logits: Float[Tensor, "n classes"],
        features: Float[Tensor, "n features"],
    ) -> Float[Tensor, " n"]:
        """Return the log-odds of the confidence, float32.

        Args:
            images: normalised images.
            logits: logits of the classifier for them.
            features: its penultimate features.
        """
        raise NotImplementedError


class OutputBranch(ConfidenceBranch):
    """One more output of the last layer: the logit of DeVries' confidence, or of an abstention.

    Args:
        kind: ``kind`` of the configuration.
        num_features: length of the penultimate features.
    """

    def __init__(self, kind: str, num_features: int) -> None:
        super().__init__(kind)
        self.layer = nn.Linear(num_features, 1)

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n 1"]:
        """Return the output, in float32 under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            output: Tensor = self.layer(features.float())
        return output

    def log_odds(
        self,
        images: Float[Tensor, "n c h w"],
        logits: Float[Tensor, "n classes"],
        features: Float[Tensor, "n features"],
    ) -> Float[Tensor, " n"]:
        """Return the output itself, or for an abstention log((1 − r) / r) = logsumexp(logits) − output."""
        output: Tensor = self(features).squeeze(1)
        return output if self.kind == "devries" else logits.float().logsumexp(1) - output


class ConfidNetBranch(ConfidenceBranch):
    """Layers that predict the true class's probability from features, those of a copy of the encoder if it has one.

    Args:
        model: classifier; copied if ``config`` has epochs of fine-tuning.
        config: sizes and number of the layers.
    """

    def __init__(self, model: Classifier, config: ConfidNet) -> None:
        super().__init__(config.kind)
        sizes = [model.num_features, *([config.hidden_units] * config.hidden_layers)]
        hidden = [(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]
        self.layers = nn.Sequential(*(layer for pair in hidden for layer in pair), nn.Linear(sizes[-1], 1))
        self.encoder: Classifier | None = None
        if config.fine_tuning_epochs > 0:
            self.encoder = copy.deepcopy(model)
            self.encoder.stain = None  # images come normalised

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
        """Return the log-odds for given features, in float32 under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            output: Tensor = self.layers(features.float()).squeeze(1)
        return output

    def log_odds(
        self,
        images: Float[Tensor, "n c h w"],
        logits: Float[Tensor, "n classes"],
        features: Float[Tensor, "n features"],
    ) -> Float[Tensor, " n"]:
        """Return the log-odds from the encoder's own features; without one from ``features``."""
        output: Tensor = self(features if self.encoder is None else self.encoder.forward_features(images)[1])
        return output


def add_confidence(model: Classifier, config: ConfidenceConfig, *, seed: int) -> None:
    """Give ``model`` the branch of ``config``, in place, on its device; none for ``kind: none``.

    Call it for ConfidNet when the classifier is trained: the encoder is copied. The global generators do not change.

    Args:
        model: classifier without a branch.
        config: ``training.confidence``.
        seed: seed of the branch's initial weights.
    """
    if isinstance(config, NoConfidence):
        return
    branch: ConfidenceBranch
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, which draws initial weights
        if isinstance(config, ConfidNet):
            branch = ConfidNetBranch(model, config)
        else:
            assert isinstance(config, DeepGamblers | DeVries)
            branch = OutputBranch(config.kind, model.num_features)
    model.confidence = branch.to(model.mean.device)


def get_branch(model: Classifier) -> ConfidenceBranch | None:
    """Return the branch of ``model``, None if it has none."""
    branch = model.confidence
    assert branch is None or isinstance(branch, ConfidenceBranch)
    return branch
