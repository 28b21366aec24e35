"""The exact gradient of a loss that compares all images of a batch, with the activations of a part of it in memory.

Source: Gao et al. 2021 (gradient caching, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainables.models.batch_norm import running_statistics_kept

#: Function from the views of a part to their features and embeddings.
Embed = Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor]]


def backward_in_parts(
    embed: Embed,
    parts: Sequence[tuple[Tensor, ...]],
    compute_loss: Callable[[list[Tensor]], Tensor],
    *,
    modules: Iterable[nn.Module],
) -> tuple[Float[Tensor, ""], Float[Tensor, "m f"], Float[Tensor, "m d"]]:
    """Add the gradients of the loss of all parts to the weights; return the loss, features and embeddings.

    With several parts: embeddings of all without a graph, the gradient of the loss with respect to them, then a second
    pass that propagates it part by part, with the same random numbers. Without batch normalisation the gradients are
    those of the whole batch. With it, statistics are those of each part: the embeddings of both passes agree, but are
    not those of the whole batch.

    Args:
        embed: function of the weights; the same for all parts.
        parts: views of the images of each part.
        compute_loss: function of the embeddings of all parts.
        modules: modules that ``embed`` runs, whose running statistics are updated once.
    """
    if len(parts) == 1:
        features, embeddings = embed(parts[0])
        loss = compute_loss([embeddings])
        torch.autograd.backward(loss)
        return loss.detach(), features.detach(), embeddings.detach()
    states, seen, leaves = [], [], []
    with torch.no_grad(), running_statistics_kept(modules):
        for part in parts:
            states.append(_capture(part[0].device))
            features, embeddings = embed(part)
            seen.append(features)
            leaves.append(embeddings.clone().requires_grad_())
    loss = compute_loss(leaves)
    torch.autograd.backward(loss)
    for part, state, leaf in zip(parts, states, leaves, strict=True):
        _restore(part[0].device, state)
        _, embeddings = embed(part)
        torch.autograd.backward(embeddings, leaf.grad)
    return loss.detach(), torch.cat(seen), torch.cat([leaf.detach() for leaf in leaves])


def _capture(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the state of torch's generators, from which dropout draws."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
