"""Group distributionally robust optimisation: groups on which the model is worse count more (Sagawa et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class GroupWeights(nn.Module):
    """Weights q of the groups: part of the training state, stored in checkpoints.

    Args:
        names: names of the groups, for the log.
        sizes: training images per group; a group without images has weight 0.
        step_size: η, step size of the exponentiated gradient ascent on q.
        adjustment: C; C/√n is added to the loss of a group of n images (the allowance for its generalisation gap).
    """

    log_weights: Tensor
    _offsets: Tensor
    _sums: Tensor
    _counts: Tensor

    def __init__(
        self, names: Sequence[str], sizes: Int64[Tensor, " g"], *, step_size: float, adjustment: float
    ) -> None:
        super().__init__()
        self.names, self.step_size = tuple(names), step_size
        present = (sizes > 0).float()
        self.register_buffer("log_weights", torch.log(present / present.sum()))
        self.register_buffer("_offsets", adjustment / sizes.clamp(min=1).float().sqrt(), persistent=False)
        self.register_buffer("_sums", torch.zeros_like(present), persistent=False)
        self.register_buffer("_counts", torch.zeros_like(present), persistent=False)

    @property
    def weights(self) -> Float[Tensor, " g"]:
        """Weight of each group; the weights sum to 1."""
        return self.log_weights.exp()

    def forward(self, losses: Float[Tensor, " n"], groups: Int64[Tensor, " n"], *, adapt: bool) -> Float[Tensor, ""]:
        """Return Σ_g q_g·(mean loss of the batch's images of group g), after a step of q if ``adapt``.

        Source: Sagawa et al. 2020 (arXiv 1911.08731), algorithm 1 and section 3.3. Differs, as does the authors'
        code: all groups of a batch take part in a step instead of one drawn group.
        """
        members = (groups[:, None] == torch.arange(len(self.names), device=groups.device)).to(losses.dtype)
        counts, sums = members.sum(0), (members * losses[:, None]).sum(0)
        means = sums / counts.clamp(min=1.0)
        if adapt:
            with torch.no_grad():
                # In logarithms, since the factor e^{η·loss} may overflow for a large loss.
                raised = self.log_weights + self.step_size * (means + self._offsets)
                self.log_weights.copy_(raised - raised.logsumexp(0))
                self._sums += sums
                self._counts += counts
        return (self.weights * means).sum()

    def summarise(self) -> dict[str, float]:
        """Return each group's current weight, its mean loss since the last call and the largest mean loss.

        The means start again after each call.
        """
        seen = self._counts > 0
        losses = (self._sums / self._counts.clamp(min=1.0)).tolist()
        report = {
            f"group_weight/{name}": weight for name, weight in zip(self.names, self.weights.tolist(), strict=True)
        }
        for name, loss, is_seen in zip(self.names, losses, seen.tolist(), strict=True):
            if is_seen:
                report[f"group_loss/{name}"] = loss
        report["worst_group_loss"] = max(value for key, value in report.items() if key.startswith("group_loss/"))
        self._sums.zero_()
        self._counts.zero_()
        return report
