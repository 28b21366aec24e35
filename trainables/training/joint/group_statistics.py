"""Batch statistics of another set of images than the batch that a layer sees: of its sub-batches, or of all processes.

Every layer of batch normalisation that calls torch's ``batch_norm`` is reached, those of timm with an activation too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainables.training.joint.processes import Processes


class _Settings(NamedTuple):
    """Arguments of ``batch_norm`` after the images, in its order."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class _Statistics(TorchFunctionMode):
    """Context in which layers in training mode normalise by ``normalise``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what ``func`` does, but for ``batch_norm``."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            images, *others = args
            settings = _Settings(*others, **kwargs)
            if settings.training:
                return self.normalise(images, settings)
        return func(*args, **kwargs)

    @abstractmethod
    def normalise(self, images: Tensor, settings: _Settings) -> Tensor:
        """Return the normalised images, and update the running statistics."""


class StatisticsInGroups(_Statistics):
    """Context that normalises image i of a batch by the statistics of the images j with j ≡ i modulo ``num_groups``.

    Running statistics are updated once, by the mean over the groups.

    Args:
        num_groups: number of groups; each has two images or more in every batch.
    """

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self._num_groups = num_groups

    def normalise(self, images: Tensor, settings: _Settings) -> Tensor:
        """Return the normalised images; groups of one size are taken for channels, which a view is enough for."""
        num_groups, (count, channels) = self._num_groups, images.shape[:2]
        if count % num_groups:
            parts = [images[start::num_groups] for start in range(num_groups)]
            copies = [_copy_running(settings, 1) for _ in parts]
            found = [F.batch_norm(part, *copy) for part, copy in zip(parts, copies, strict=True)]
            _average_running(settings, copies)
            rows = torch.cat([torch.arange(start, count, num_groups) for start in range(num_groups)])
            return torch.cat(found)[rows.argsort().to(images.device)]
        copy = _copy_running(settings, num_groups)
        weight, bias = (None if each is None else each.repeat(num_groups) for each in (copy.weight, copy.bias))
        grouped = images.reshape(count // num_groups, num_groups * channels, *images.shape[2:])
        result = F.batch_norm(grouped, *copy._replace(weight=weight, bias=bias))
        _average_running(settings, [copy])
        return result.reshape(images.shape)


def _copy_running(settings: _Settings, num_copies: int) -> _Settings:
    """Return the settings with so many copies of the running statistics, one after another."""
    mean, var = settings.running_mean, settings.running_var
    if mean is None or var is None:
        return settings
    return settings._replace(running_mean=mean.repeat(num_copies), running_var=var.repeat(num_copies))


@torch.no_grad()
def _average_running(settings: _Settings, copies: Sequence[_Settings]) -> None:
    """Set the running statistics to the mean of their copies."""
    for name in ("running_mean", "running_var"):
        own = getattr(settings, name)
        if own is not None:
            own.copy_(torch.cat([getattr(copy, name) for copy in copies]).view(-1, len(own)).mean(0))


class StatisticsOfAll(_Statistics):
    """Context that normalises by the statistics of the images of all processes, as torch's SyncBatchNorm on GPUs does.

    Args:
        processes: those that call the same layers in the same order.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes

    def normalise(self, images: Tensor, settings: _Settings) -> Tensor:
        """Return this process's normalised images."""
        result, mean, variance, count = _NormaliseByAll.apply(
            images, settings.weight, settings.bias, settings.eps, self._processes
        )
        if settings.running_mean is not None and settings.running_var is not None:
            with torch.no_grad():
                settings.running_mean.lerp_(mean, settings.momentum)
                settings.running_var.lerp_(variance * (count / (count - 1.0)), settings.momentum)
        return result


class _NormaliseByAll(torch.autograd.Function):
    """Batch normalisation over several processes. Source: Ioffe & Szegedy 2015, section 3.

    The gradients of weight and bias are those of this process's images: their sum over the processes is the gradient.
    """

    @staticmethod
    def forward(
        context: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, processes: Processes
    ) -> tuple[Tensor, Float[Tensor, " c"], Float[Tensor, " c"], Float[Tensor, ""]]:
        """Return the normalised images, mean and variance (biased) of all processes, and the number of their values."""
        channels = images.shape[1]
        own_mean, own_variance = torch.ops.aten.batch_norm_update_stats(images, None, None, 0.0)
        number = own_mean.new_tensor([images.numel() / channels])
        found = torch.stack(processes.gather(torch.cat([own_mean, own_variance * number, number])))
        means, squares, numbers = torch.split(found, [channels, channels, 1], dim=1)
        count = numbers.sum()
        mean = (numbers * means).sum(0) / count
        variance = (squares.sum(0) + (numbers * (means - mean).square()).sum(0)) / count
        context.save_for_backward(images, weight, mean, variance, count)
        context.eps, context.processes = eps, processes
        context.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(images, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of images, weight and bias."""
        images, weight, mean, variance, count = context.saved_tensors
        # As if mean and variance were constants: torch's own kernel, in one pass. What they add follows.
        of_images, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, images, weight, mean, variance, None, None, False, context.eps, [True, True, True]
        )
        shift, slope = (context.processes.add(torch.cat([of_bias, of_weight])) / count).chunk(2)
        shape = [1, -1, *[1] * (images.ndim - 2)]
        scale = (variance + context.eps).rsqrt()
        factor = (scale if weight is None else scale * weight).view(shape)
        centred = images - mean.view(shape)
        of_images -= torch.addcmul(shift.view(shape) * factor, centred, (slope * scale).view(shape) * factor)
        has_weight, has_bias = context.needs_input_grad[1:3]
        return (
            of_images,
            of_weight if has_weight else None,
            of_bias if has_bias else None,
            None,
            None,
        )
