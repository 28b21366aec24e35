"""Claims: an epoch of SimCLR, MoCo and BYOL is as fast as with lightly's modules written plainly; views are 3× faster.

    python benchmarks/pretraining.py                   # CPU, one thread, about three minutes
    python benchmarks/pretraining.py --images 1024 --repeat 1 --methods moco   # quick

*Methods*: forward, loss, backward, optimiser and the second network of one epoch on the same views (made beforehand),
the same network from the same weights and the same batch size; ours is ``compute_gradients`` as a stage calls it, the
peer is the loop of lightly's own examples: its MoCo has one group of batch statistics, ours has eight. Timed in turns,
CPU seconds; a ratio is the median over the rounds.

*Views*: MoCo v2's two views of a batch, beside torchvision's transforms of the same policy on PIL images one by one,
decoding left out on both sides.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from common import Line
from shift_images import make_images
from torch import Tensor, nn

from trainables.contrastive_config import Byol, Method, MoCo, SimClr
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.pretraining.methods import build_optimiser, build_trainer, momentum_at
from trainables.pretraining.views import build_views
from trainables.pretraining_config import ContrastivePretraining
from trainables.seeding import hash_ids

METHOD_BAR, VIEWS_BAR = 1 / 1.1, 3.0
QUEUE = 4096
METHODS: dict[str, Method] = {"simclr": SimClr(), "moco": MoCo(queue_size=QUEUE), "byol": Byol(warmup_epochs=0)}
#: First and second views of every batch of an epoch.
Batches = list[tuple[Tensor, Tensor]]


def build_network(name: str, size: int) -> Classifier:
    """Return the network that both sides start from."""
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, input_size=size), num_classes=2, channels=3, image_size=size)


def make_batches(num_images: int, size: int, batch_size: int) -> Batches:
    """Return random views of random images: what they show takes no time."""
    draw = torch.Generator().manual_seed(0)
    shape = (2, batch_size, 3, size, size)
    return [
        tuple(torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)) for _ in range(num_images // batch_size)
    ]


# ------------------------------------------------------------------ one epoch, both ways


def run_ours(model: Classifier, method: Method, batches: Batches) -> None:
    """Train one epoch as a stage does."""
    trainer = build_trainer(model, method)
    optimiser = build_optimiser(trainer, method)
    trainer.modules.train()
    for step, (first, second) in enumerate(batches):
        optimiser.zero_grad(set_to_none=True)
        trainer.compute_gradients(first, second, part_size=None)
        optimiser.step()
        trainer.finish_step(step, len(batches))


def run_plain(model: Classifier, method: Method, batches: Batches) -> None:
    """Train one epoch as lightly's examples do."""
    step = {"simclr": _plain_simclr, "moco": _plain_moco, "byol": _plain_byol}[method.kind]
    modules, compute = step(model, method)
    trainer = argparse.Namespace(trained=modules)
    optimiser = build_optimiser(trainer, method)  # type: ignore[arg-type]
    model.train()
    for number, (first, second) in enumerate(batches):
        loss = compute(_normalise(model, first), _normalise(model, second), number / len(batches))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()


Compute = Callable[[Tensor, Tensor, float], Tensor]


def _normalise(model: Classifier, images: Tensor) -> Tensor:
    return (images.float() / 255.0 - model.mean) / model.std


def _embed(model: Classifier, images: Tensor) -> Tensor:
    return model.forward_features(images)[1].flatten(1)


def _plain_simclr(model: Classifier, method: Any) -> tuple[tuple[nn.Module, ...], Compute]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    head = SimCLRProjectionHead(model.num_features, method.hidden_dim, method.projection_dim)
    criterion = NTXentLoss(temperature=method.temperature)

    def compute(first: Tensor, second: Tensor, progress: float) -> Tensor:
        loss: Tensor = criterion(head(_embed(model, first)), head(_embed(model, second)))
        return loss

    return (model, head), compute


def _plain_moco(model: Classifier, method: Any) -> tuple[tuple[nn.Module, ...], Compute]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import MoCoProjectionHead
    from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum

    head = MoCoProjectionHead(model.num_features, method.hidden_dim, method.projection_dim)
    slow, slow_head = copy.deepcopy(model), copy.deepcopy(head)
    for module in (slow, slow_head):
        deactivate_requires_grad(module)
    criterion = NTXentLoss(temperature=method.temperature, memory_bank_size=(method.queue_size, method.projection_dim))

    def compute(first: Tensor, second: Tensor, progress: float) -> Tensor:
        update_momentum(model, slow, m=method.momentum)
        update_momentum(head, slow_head, m=method.momentum)
        query = head(_embed(model, first))
        with torch.no_grad():
            shuffled, order = batch_shuffle(second)
            key = batch_unshuffle(slow_head(_embed(slow, shuffled)), order)
        loss: Tensor = criterion(query, key)
        return loss

    return (model, head), compute


def _plain_byol(model: Classifier, method: Any) -> tuple[tuple[nn.Module, ...], Compute]:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    head = BYOLProjectionHead(model.num_features, method.hidden_dim, method.projection_dim)
    predictor = BYOLPredictionHead(method.projection_dim, method.hidden_dim, method.projection_dim)
    slow, slow_head = copy.deepcopy(model), copy.deepcopy(head)
    for module in (slow, slow_head):
        deactivate_requires_grad(module)
    criterion = NegativeCosineSimilarity()

    def compute(first: Tensor, second: Tensor, progress: float) -> Tensor:
        momentum = momentum_at(round(1000 * progress), 1000, method.momentum)
        update_momentum(model, slow, m=momentum)
        update_momentum(head, slow_head, m=momentum)
        predictions = [predictor(head(_embed(model, side))) for side in (first, second)]
        with torch.no_grad():
            targets = [slow_head(_embed(slow, side)) for side in (first, second)]
        loss: Tensor = 0.5 * (criterion(predictions[0], targets[1]) + criterion(predictions[1], targets[0]))
        return loss

    return (model, head, predictor), compute


def time_cpu(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def compare_method(name: str, network: Classifier, batches: Batches, repeat: int) -> Line:
    """Return the line of one method: images per second of ours over the peer's."""
    method, count = METHODS[name], len(batches) * len(batches[0][0])
    for run in (run_ours, run_plain):
        run(copy.deepcopy(network), method, batches[:1])
    ours, theirs = [], []
    for _ in range(repeat):
        ours.append(time_cpu(partial(run_ours, copy.deepcopy(network), method, batches)))
        theirs.append(time_cpu(partial(run_plain, copy.deepcopy(network), method, batches)))
    facts = {
        "images_per_second": count / statistics.median(ours),
        "peer_images_per_second": count / statistics.median(theirs),
        "ratios": [peer / own for own, peer in zip(ours, theirs, strict=True)],
        "num_images": count,
    }
    return Line(f"pretraining: {name}", statistics.median(facts["ratios"]), METHOD_BAR, facts)


# ------------------------------------------------------------------ views


def compare_views(num_images: int, size: int, repeat: int) -> Line:
    """Return the line of the views at one size."""
    from PIL import Image
    from torchvision import transforms as tv

    images = make_images(min(num_images, 64), size)
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    pictures = [Image.fromarray(image) for image in images]
    seeds = torch.from_numpy(hash_ids(map(str, range(len(images)))))
    make_view = build_views(ContrastivePretraining())
    low, high = (sigma * size / 224 for sigma in (0.1, 2.0))
    blur = tv.GaussianBlur(2 * max(1, int(np.ceil(2 * high))) + 1, (low, high))  # the same kernel as ours
    jitter = tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    steps = [tv.RandomResizedCrop(size, (0.2, 1.0)), tv.RandomHorizontalFlip(), jitter, tv.RandomGrayscale(0.2)]
    transform = tv.Compose([*steps, tv.RandomApply([blur], p=0.5), tv.PILToTensor()])
    make_view(batch, seeds)
    ours = [time_cpu(partial(make_view, batch, seeds + number)) for number in range(2 * repeat)]
    theirs = [
        time_cpu(lambda: torch.stack([transform(picture) for picture in pictures])) for _ in range(2 * repeat)
    ]  # two views
    mine, peer = statistics.median(ours), statistics.median(theirs)
    facts = {"ms_per_view": 1e3 * mine / len(images), "peer_ms_per_view": 1e3 * peer / len(images)}
    return Line(f"views at {size} px", peer / mine, VIEWS_BAR, facts)


def main() -> None:
    """Measure and print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in (64, 224):
        compare_views(64, size, options.repeat).emit()
    network = build_network(options.model, options.size)
    batches = make_batches(options.images, options.size, options.batch_size)
    for name in options.methods:
        compare_method(name, network, batches, options.repeat).emit()


if __name__ == "__main__":
    main()
