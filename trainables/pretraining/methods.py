"""The contrastive methods: each turns two views of a batch into a loss and the gradients of its weights.

Losses, heads and the moving average are lightly's. ``modules`` of a method are its whole state: what is in it is in the
checkpoint, the queue and the momentum encoder too.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from trainables.contrastive_config import Byol, Method, MoCo, SimClr
from trainables.models.batch_norm import find_norms
from trainables.models.networks import Classifier
from trainables.pretraining.accumulation import backward_in_parts
from trainables.training.joint.group_statistics import StatisticsInGroups, StatisticsOfAll
from trainables.training.joint.processes import ALONE, Processes
from trainables.training.optimisation import learning_rate_factor

Views = UInt8[Tensor, "n c h w"]


class Outcome(NamedTuple):
    """Loss of a batch, and what the trained network made of its views; without a graph. Those of all processes."""

    loss: Float[Tensor, ""]
    features: Float[Tensor, "m f"]
    embeddings: Float[Tensor, "m d"]


class ContrastiveTrainer(ABC):
    """One method on one network.

    Attributes:
        modules: everything that has weights or buffers; ``encoder`` and ``projector`` are trained by all methods.
        trained: the modules with gradients.
        num_groups: parts of a batch with batch statistics of their own.
        processes: those that train together; all have the same weights and draw the same numbers.
    """

    modules: nn.ModuleDict
    trained: tuple[nn.Module, ...]
    num_groups: int = 1
    processes: Processes = ALONE

    @abstractmethod
    def compute_gradients(
        self, first: Views, second: Views, *, part_size: int | None, count: int | None = None
    ) -> Outcome:
        """Add the gradients of a batch's loss to the trained weights; return the loss.

        Args:
            first: one view of every image of this process's share of the batch.
            second: another view of the same images, in the same order.
            part_size: images whose activations are held at once, by all processes together; None: all.
            count: images of the batch; None: those of this process are all.
        """

    def _sharing_statistics(self) -> AbstractContextManager[object]:
        """Return the context in which batch statistics are those of all processes."""
        return nullcontext() if self.processes.count == 1 else StatisticsOfAll(self.processes)

    def _collect_sides(self, values: Tensor, sizes: Sequence[int], count: int) -> Tensor:
        """Return the rows of both views of a batch; ``values`` are those of this process, of both views part by part.

        Args:
            values: rows of part 1, first view, part 1, second view, part 2, first view, …
            sizes: images of this process in every part.
            count: images of the batch.
        """
        sides = zip(*(part.chunk(2) for part in torch.split(values, [2 * size for size in sizes])), strict=True)
        return torch.cat([self.processes.collect(torch.cat(side), count) for side in sides])

    def finish_step(self, step: int, num_steps: int) -> None:
        """Update what follows the trained weights, after optimiser step ``step`` (from 0) of ``num_steps``."""
        return None


class SimClrTrainer(ContrastiveTrainer):
    """NT-Xent between the views of a batch. Source: Chen et al. 2020, eq. 1."""

    def __init__(self, model: Classifier, settings: SimClr) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        projector = SimCLRProjectionHead(model.num_features, settings.hidden_dim, settings.projection_dim)
        self.modules = nn.ModuleDict({"encoder": model, "projector": projector.to(model.mean.device)})
        self.trained = (self.modules["encoder"], self.modules["projector"])
        self.criterion = NTXentLoss(temperature=settings.temperature)

    def compute_gradients(
        self, first: Views, second: Views, *, part_size: int | None, count: int | None = None
    ) -> Outcome:
        """Add the gradients of a batch's loss to the trained weights; return the loss.

        Both views of an image go through the network in one part, and every part is compared with all others. The loss
        is that of the whole batch in every process, and its gradient reaches the embeddings of this one.
        """
        count = len(first) if count is None else count
        size = count if part_size is None else part_size

        def embed(views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            features, embeddings = embed_images(torch.cat(views), *self.trained)
            return features, embeddings

        def compute_loss(embeddings: list[Tensor]) -> Tensor:
            loss: Tensor = self.criterion(*self._collect_sides(torch.cat(embeddings), sizes, count).chunk(2))
            return loss

        parts = list(zip(*(self.processes.split(side, count, size) for side in (first, second)), strict=True))
        sizes = [len(part[0]) for part in parts]
        with self._sharing_statistics():
            loss, *found = backward_in_parts(embed, parts, compute_loss, modules=self.trained)
        self.processes.add_gradients(self.trained)
        return Outcome(loss, *(self._collect_sides(rows, sizes, count) for rows in found))


class MoCoTrainer(ContrastiveTrainer):
    """InfoNCE of a query, the key of the other view, and a queue of earlier keys. Source: He et al. 2020, eq. 1.

    On 8 GPUs, MoCo's batch statistics are those of each GPU's 32 images, and keys are shuffled among the GPUs, so that
    a query and its key do not share statistics, by which they could be told apart. Here a batch is divided into as many
    groups, queries and shuffled keys go through the networks group by group, and each group has its own statistics.
    Without batch normalisation there is nothing to shuffle.
    """

    def __init__(self, model: Classifier, settings: MoCo) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import MoCoProjectionHead

        projector = MoCoProjectionHead(model.num_features, settings.hidden_dim, settings.projection_dim)
        projector = projector.to(model.mean.device)
        self.momentum = settings.momentum
        self.num_groups = find_num_groups(model, settings)
        self.queue = KeyQueue(settings.queue_size, settings.projection_dim).to(model.mean.device)
        self.modules = nn.ModuleDict(
            {
                "encoder": model,
                "projector": projector,
                "momentum_encoder": _copy_frozen(model),
                "momentum_projector": _copy_frozen(projector),
                "queue": self.queue,
            }
        )
        self.trained = (model, projector)
        self.criterion = NTXentLoss(temperature=settings.temperature)
        self.criterion.memory_bank = self.queue

    def compute_gradients(
        self, first: Views, second: Views, *, part_size: int | None, count: int | None = None
    ) -> Outcome:
        """Add the gradients of a batch's loss to the trained weights; return the loss.

        The first views are queries, the second ones keys. Queries depend on each other by their batch statistics
        alone: with ``part_size`` each group, or part of one, is done for itself. A process has whole groups, or its
        share of every part.
        """
        processes = self.processes
        size = count = len(first) if count is None else count
        num_groups = self.num_groups
        if part_size is not None:
            size, num_groups = min(part_size, -(-size // num_groups)), 1
        is_shared = num_groups == 1
        outcomes = []
        with self._sharing_statistics() if is_shared else StatisticsInGroups(num_groups // processes.count):
            keys = self._compute_keys(second, count, size)
            own_keys = processes.split(processes.take(keys), count, size)
            for part, own in zip(processes.split(first, count, size), own_keys, strict=True):
                features, queries = embed_images(part, *self.trained)
                outcomes.append(_backward(self.criterion(queries, own), features, queries, len(part) / count))
        self.queue.enqueue(keys)
        processes.add_gradients(self.trained)
        if not is_shared:  # every process has updated running statistics by its own groups
            statistics = [(layer.running_mean, layer.running_var) for layer in find_norms(self.modules.values())]
            processes.average(each for pair in statistics for each in pair if each is not None)
        loss, *found = _join(outcomes)
        return Outcome(processes.add(loss), *(processes.collect(rows, count) for rows in found))

    @torch.no_grad()
    def _compute_keys(self, own: UInt8[Tensor, "m c h w"], count: int, size: int) -> Float[Tensor, "n d"]:
        """Return the keys of all images, of length 1; in groups drawn at random, unlike the queries'.

        Every process has the views of all images, as in MoCo, and computes the keys of some.
        """
        processes = self.processes
        views, order = processes.collect(own, count), processes.broadcast(torch.randperm(count))
        networks = (self.modules["momentum_encoder"], self.modules["momentum_projector"])
        parts = processes.split(processes.take(order), count, size)
        keys = processes.collect(torch.cat([embed_images(views[rows], *networks)[-1] for rows in parts]), count)
        keys[order] = keys.clone()
        return F.normalize(keys, dim=1)

    def finish_step(self, step: int, num_steps: int) -> None:
        """Move the momentum encoder towards the trained one, by a constant momentum."""
        _follow(self.modules, {"encoder": "momentum_encoder", "projector": "momentum_projector"}, self.momentum)


class KeyQueue(nn.Module):
    """First-in-first-out queue of keys, in the place of lightly's memory bank.

    Its keys are part of the module's state, all keys of a batch enter at once after the batch, and none is lost where
    the batch size does not divide the queue's.
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, num_dimensions: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, num_dimensions), dim=1))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64))

    def forward(self, output: Tensor, labels: None = None, update: bool = False) -> tuple[Tensor, Tensor]:
        """Return ``output`` and the keys as (d, size), as the loss asks for them; nothing is updated."""
        return output, self.keys.T

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "n d"]) -> None:
        """Replace the oldest keys."""
        rows = (int(self.position) + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[rows[-len(self.keys) :]] = keys[-len(self.keys) :]
        self.position[0] = (int(self.position) + len(keys)) % len(self.keys)


class ByolTrainer(ContrastiveTrainer):
    """Squared distance between a view's prediction and the target's projection of the other view, both ways.

    Source: Grill et al. 2020, eq. 2: 2 − 2·cos, for both views; in [0, 8].
    """

    def __init__(self, model: Classifier, settings: Byol) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        device, size = model.mean.device, settings.projection_dim
        projector = BYOLProjectionHead(model.num_features, settings.hidden_dim, size).to(device)
        predictor = BYOLPredictionHead(size, settings.hidden_dim, size).to(device)
        self.momentum = settings.momentum
        self.modules = nn.ModuleDict(
            {
                "encoder": model,
                "projector": projector,
                "predictor": predictor,
                "target_encoder": _copy_frozen(model),
                "target_projector": _copy_frozen(projector),
            }
        )
        self.trained = (model, projector, predictor)
        self.similarity = NegativeCosineSimilarity()

    def compute_gradients(
        self, first: Views, second: Views, *, part_size: int | None, count: int | None = None
    ) -> Outcome:
        """Add the gradients of a batch's loss to the trained weights; return the loss."""
        count = len(first) if count is None else count
        size = count if part_size is None else part_size
        outcomes, sizes = [], []
        with self._sharing_statistics():
            for views in zip(*(self.processes.split(side, count, size) for side in (first, second)), strict=True):
                features, projections, predictions = zip(
                    *(embed_images(side, *self.trained) for side in views), strict=True
                )
                loss = self.compute_loss(predictions, self._project_targets(views))
                share = len(views[0]) / count
                outcomes.append(_backward(loss, torch.cat(features), torch.cat(projections), share))
                sizes.append(len(views[0]))
        self.processes.add_gradients(self.trained)
        loss, *found = _join(outcomes)
        return Outcome(self.processes.add(loss), *(self._collect_sides(rows, sizes, count) for rows in found))

    def compute_loss(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Return the loss of both views' predictions; ``targets`` are the projections of the same views."""
        loss: Tensor = 4.0 + 2.0 * (
            self.similarity(predictions[0], targets[1]) + self.similarity(predictions[1], targets[0])
        )
        return loss

    @torch.no_grad()
    def _project_targets(self, views: Sequence[Views]) -> list[Tensor]:
        networks = (self.modules["target_encoder"], self.modules["target_projector"])
        return [embed_images(side, *networks)[-1] for side in views]

    def finish_step(self, step: int, num_steps: int) -> None:
        """Move the target towards the trained network, by less and less."""
        momentum = momentum_at(step, num_steps, self.momentum)
        _follow(self.modules, {"encoder": "target_encoder", "projector": "target_projector"}, momentum)


def find_num_groups(model: nn.Module, method: Method) -> int:
    """Return into how many parts with batch statistics of their own a batch is divided."""
    return method.batch_norm_groups if isinstance(method, MoCo) and find_norms([model]) else 1


def build_trainer(model: Classifier, method: Method) -> ContrastiveTrainer:
    """Return the method that ``method`` describes, on ``model``; its other weights are drawn from torch's generator."""
    if isinstance(method, MoCo):
        return MoCoTrainer(model, method)
    return ByolTrainer(model, method) if isinstance(method, Byol) else SimClrTrainer(model, method)


def build_optimiser(trainer: ContrastiveTrainer, method: Method) -> torch.optim.Optimizer:
    """Return SGD or LARS over the trained weights, with momentum .9; LARS leaves biases and norms as they are.

    Source: LARS: You et al. 2017; biases and normalisation neither decay nor are they scaled, as in BYOL.
    """
    if method.optimiser == "sgd":
        return torch.optim.SGD(
            nn.ModuleList(trainer.trained).parameters(),
            lr=method.learning_rate,
            momentum=0.9,
            weight_decay=method.weight_decay,
        )
    from lightly.models.utils import get_weight_decay_parameters
    from lightly.utils.lars import LARS

    decaying, others = get_weight_decay_parameters(trainer.trained)
    groups = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
    optimiser: torch.optim.Optimizer = LARS(
        groups, lr=method.learning_rate, momentum=0.9, weight_decay=method.weight_decay
    )
    return optimiser


def momentum_at(step: int, num_steps: int, first: float) -> float:
    """Return the momentum of a target at ``step`` (from 0): from ``first`` by a cosine up to 1.

    Source: Grill et al. 2020, section 3.2: 1 − (1 − τ)·(cos(πk/K) + 1)/2.
    """
    return 1.0 - (1.0 - first) * learning_rate_factor(step, num_steps, 0, "cosine")


def embed_images(images: Views, encoder: nn.Module, *heads: nn.Module) -> tuple[Float[Tensor, "n _"], ...]:
    """Return the encoder's features and the output of each head on the one before, in float32; on GPUs by bfloat16."""
    assert isinstance(encoder, Classifier)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        outputs = [encoder.forward_features(encoder.normalise(images))[1].flatten(1)]
        for head in heads:
            outputs.append(head(outputs[-1]))
    return tuple(output.float() for output in outputs)


def _backward(loss: Tensor, features: Tensor, embeddings: Tensor, share: float) -> Outcome:
    torch.autograd.backward(loss * share)
    return Outcome(loss.detach() * share, features.detach(), embeddings.detach())


def _join(outcomes: Sequence[Outcome]) -> Outcome:
    losses, features, embeddings = zip(*outcomes, strict=True)
    return Outcome(torch.stack(losses).sum(), torch.cat(features), torch.cat(embeddings))


def _copy_frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


def _follow(modules: nn.ModuleDict, pairs: dict[str, str], momentum: float) -> None:
    from lightly.models.utils import update_momentum

    for leader, follower in pairs.items():
        update_momentum(modules[leader], modules[follower], m=momentum)
