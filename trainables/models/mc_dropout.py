"""Monte-Carlo dropout: predictions with dropout on in evaluation, summarised to one confidence per image.

A draw is one network: its masks are a hash of (seed, draw, layer, unit) and the same for all images, so that a score
depends neither on the batch size nor on what was computed before. Where all dropout comes after the backbone, only the
layers behind it are computed again per draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.models.networks import Classifier
from trainables.seeding import derive_seed, uniform

#: Names of the scores, in the order of ``RunningScores.compute``; higher is more confident in all of them.
MC_DROPOUT_SCORES = (
    "mc_dropout_msr",
    "mc_dropout_entropy",
    "mc_dropout_expected_entropy",
    "mc_dropout_mutual_information",
    "mc_dropout_score_variance",
    "mc_dropout_waic",
)  # fmt: skip
#: Layers whose masks are drawn: elements, or whole channels. Stochastic depth is no dropout and stays off.
_ELEMENTS, _CHANNELS = (nn.Dropout,), (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
#: Smallest uncertainty that is told from 0: the smallest normal number of 64 bits, whose −log is 708.
_SMALLEST = torch.finfo(torch.float64).tiny
#: How much logits of the layers behind the backbone may differ from the whole network's to be called the same.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


class RunningScores:
    """Scores of several predictions of the same images or pixels, from running sums: the predictions are not kept.

    Predictions are draws of MC dropout or members of an ensemble.

    Args:
        dtype: precision of the sums.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self._dtype, self._count = dtype, 0
        self._mean = self._squares = self._entropy = torch.zeros((), dtype=dtype)

    def add(self, logits: Float[Tensor, "n classes *space"]) -> None:
        """Add the logits of one prediction."""
        shares = logits.to(self._dtype).softmax(1)
        self._count += 1
        away = shares - self._mean
        self._mean = self._mean + away / self._count
        self._squares = self._squares + away * (shares - self._mean)
        self._entropy = self._entropy + compute_entropy(shares)

    @property
    def mean(self) -> Float[Tensor, "n classes *space"]:
        """Mean probability of every class so far."""
        return self._mean

    def compute_uncertainties(self) -> Float[Tensor, "scores n *space"]:
        """Return the uncertainties behind ``MC_DROPOUT_SCORES`` for the predictions p_m so far, in [0, ∞).

        With p̄ their mean and σ their standard deviation: 1 − max p̄, H(p̄), mean H(p_m), H(p̄) − mean H(p_m), mean_c σ_c,
        and 1 − max p̄ + σ at that class.

        Source: Bungert et al. 2023 (arXiv 2307.14729). σ is that of the M predictions (ddof 0).
        """
        deviation = (self._squares / self._count).clamp(min=0.0).sqrt()
        index = self._mean.argmax(1, keepdim=True)
        others = self._mean.scatter(1, index, 0.0).sum(1)
        predictive, expected = compute_entropy(self._mean), self._entropy / self._count
        return torch.stack(
            [
                others,
                predictive,
                expected,
                (predictive - expected).clamp(min=0.0),
                deviation.mean(1),
                others + deviation.gather(1, index).squeeze(1),
            ]
        )

    def compute(self) -> Float64[Tensor, "n scores *space"]:
        """Return ``MC_DROPOUT_SCORES``, higher is more confident.

        They rank by minus ``compute_uncertainties``; the first as log-odds of max p̄, an uncertainty u as −log u, so
        that float32 makes no ties.
        """
        uncertainties = self.compute_uncertainties().double()
        scores = -uncertainties.clamp(min=_SMALLEST).log()
        scores[0] += self._mean.double().amax(1).log()
        return scores.movedim(0, 1)


def compute_entropy(shares: Float[Tensor, "n classes *space"]) -> Float[Tensor, "n *space"]:
    """Return −Σ p·log p; the largest p is 1 minus the others, which keeps the digits of a small entropy."""
    largest, index = shares.max(1, keepdim=True)
    others = shares.scatter(1, index, 0.0)
    doubt = others.sum(1).clamp(max=1.0)
    return -torch.xlogy(others, others).sum(1) - largest.squeeze(1) * torch.log1p(-doubt)


@dataclass(frozen=True)
class _Tail:
    """Layers behind the backbone, the first of which is the first with dropout; their output is the logits."""

    layers: tuple[nn.Module, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs.flatten(1)


class DropoutMasks:
    """Masks of the dropout layers of a network in evaluation mode: a hash of (seed, draw, layer, unit).

    Args:
        model: network.
        seed: seed of the masks.
        keeps: whether masks are kept once drawn, which those behind a backbone, which are small, should be.

    Raises:
        ConfigError: if the network has no dropout layer.
    """

    def __init__(self, model: Classifier, *, seed: int, keeps: bool = False) -> None:
        self._dropouts, self._seed, self._keeps = find_dropout(model), seed, keeps
        #: By draw, layer and shape.
        self._masks: dict[tuple[int, str, tuple[int, ...]], Tensor] = {}

    @contextmanager
    def applied(self, draw: int) -> Iterator[None]:
        """Apply the masks of a draw to the outputs of the dropout layers, which are off in evaluation."""
        hooks = [layer.register_forward_hook(self._make_hook(name, draw)) for name, layer in self._dropouts.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _make_hook(self, name: str, draw: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def mask(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            sides = [1] * (output.ndim - 2) if isinstance(layer, _CHANNELS) else output.shape[2:]
            key = draw, name, (output.shape[1], *sides)
            found = self._masks.get(key)
            if found is None:
                found = self._draw_mask(*key, probability=float(layer.p), device=output.device)  # type: ignore[arg-type]
                if self._keeps:
                    self._masks[key] = found
            return output * found.to(output.dtype)

        return mask

    def _draw_mask(
        self, draw: int, name: str, shape: tuple[int, ...], *, probability: float, device: torch.device
    ) -> Tensor:
        seeds = torch.tensor([derive_seed("mc_dropout", self._seed, draw, name)], device=device)
        return (uniform(seeds, *shape) >= probability) / (1.0 - probability)


class McDropout:
    """Draws of a network with dropout.

    Args:
        model: network in evaluation mode.
        draws: number M of draws.
        seed: seed of the masks.

    Raises:
        ConfigError: if the network has no dropout layer.
    """

    def __init__(self, model: Classifier, *, draws: int, seed: int) -> None:
        self._model, self._draws = model, draws
        self._tail = _find_tail(model, list(find_dropout(model)))
        self._masks = DropoutMasks(model, seed=seed, keeps=self._tail is not None)

    @property
    def is_in_head_only(self) -> bool:
        """Whether one pass of the backbone is enough for all draws."""
        return self._tail is not None

    @property
    def recorded(self) -> tuple[nn.Module, ...]:
        """Layers whose inputs ``score`` needs from the pass without dropout: one, or none."""
        return () if self._tail is None else self._tail.layers[:1]

    def score(self, images: Float[Tensor, "n c h w"], inputs: Sequence[Tensor]) -> Float64[Tensor, "n scores"]:
        """Return ``MC_DROPOUT_SCORES``.

        Args:
            images: normalised images.
            inputs: inputs of the layers ``recorded`` for them.
        """
        scores = RunningScores()
        for draw in range(self._draws):
            with self._masks.applied(draw):
                scores.add(self._model(images) if self._tail is None else self._tail(inputs[0]))
        return scores.compute()


def find_dropout(model: Classifier) -> dict[str, nn.Module]:
    """Return name → layer of all dropout of the classifier that drops anything.

    Raises:
        ConfigError: if there is none.
    """
    found: dict[str, nn.Module] = {
        name: layer
        for name, layer in model.backbone.named_modules()
        if isinstance(layer, _ELEMENTS + _CHANNELS) and layer.p > 0.0
    }
    if not found:
        raise ConfigError(
            "evaluation.mc_dropout: looked for dropout in the network and found no layer with a probability above 0; "
            "expected one: add regulariser: dropout, choose a network with dropout (efficientnet_b0, mobilenet_v2, "
            "vgg16), or set mc_dropout to 0"
        )
    return found


@torch.no_grad()
def _find_tail(model: Classifier, dropouts: Sequence[str]) -> _Tail | None:
    """Return the layers from the first dropout to the logits if all dropout is in one sequence at the end, else None.

    Both give the same scores; with None every draw is a pass of the whole network.
    """
    parts = model.head_name.split(".")
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length])
        sequence = model.backbone.get_submodule(prefix)
        if not isinstance(sequence, nn.Sequential) or not all(name.startswith(f"{prefix}.") for name in dropouts):
            continue
        children = [name for name, _ in sequence.named_children()]
        first = min(children.index(name[len(prefix) + 1 :].partition(".")[0]) for name in dropouts)
        tail = _Tail(tuple(sequence)[first:])
        seeds = torch.arange(2, device=model.mean.device)
        images = uniform(seeds, model.mean.shape[1], model.input_size, model.input_size)
        was_training = model.training
        model.eval()
        logits, inputs = model.forward_recording(images, tail.layers[0])
        found = tail(inputs)
        model.train(was_training)
        if found.shape == logits.shape and torch.allclose(found, logits, rtol=_RELATIVE, atol=_ABSOLUTE):
            return tail
    return None
