"""SimCLR on the images of a step, with lightly's loss and projection head and our own seeded batched views.

Source: Chen et al. 2020 (SimCLR), with the view policy of MoCo v2 (Chen et al. 2020b): RandomResizedCrop, colour jitter
.8, greyscale .2, Gaussian blur .5, flip. Labels are never read.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from trainables.augmentation.pipeline import draw_crops
from trainables.config import StageConfig
from trainables.data.dataset import ImageSet
from trainables.errors import DivergedError
from trainables.models.networks import Classifier
from trainables.ops.colour import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, to_grayscale
from trainables.ops.filters import gaussian_blur
from trainables.ops.geometry import flip, resize_crop
from trainables.pretraining.collapse import check_collapse, measure_spread
from trainables.pretraining_config import ContrastivePretraining
from trainables.seeding import derive_seed, hash_ids, mix, uniform
from trainables.storage.checkpoint import (
    TrainingState,
    capture_random_state,
    load_checkpoint,
    pack_module,
    pack_optimiser,
    restore_module,
    restore_random_state,
    save_checkpoint,
    unpack,
    unpack_optimiser,
)
from trainables.storage.folder import Folder
from trainables.training.loop import write_missing_epochs
from trainables.training.optimisation import learning_rate_factor

# MoCo v2's policy: ColorJitter(.4, .4, .4, .1) with probability .8, greyscale .2, blur σ ∈ [.1, 2] px at 224 with .5.
_JITTER, _HUE = 0.4, 0.1
_P_JITTER, _P_GREY, _P_BLUR = 0.8, 0.2, 0.5
_BLUR_SIGMA_AT_224 = (0.1, 2.0)


def make_view(
    images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"], config: ContrastivePretraining
) -> UInt8[Tensor, "n c h w"]:
    """Return one random view of each image; the same seed gives the same view in any batch."""
    draws = uniform(seeds, 12, stream="view").T
    size = images.shape[-1]
    boxes = draw_crops(seeds, scale_min=config.crop_scale_min, height=size, width=size)
    images = resize_crop(images, boxes, size=size)
    if config.horizontal_flip:
        images = flip(images, draws[3] < 0.5, dim=-1)
    jittered = images
    spread = config.jitter_strength * (2.0 * draws[4:8] - 1.0)
    jittered = adjust_brightness(jittered, (1.0 + _JITTER * spread[0]).clamp(min=0.0))
    jittered = adjust_contrast(jittered, (1.0 + _JITTER * spread[1]).clamp(min=0.0))
    jittered = adjust_saturation(jittered, (1.0 + _JITTER * spread[2]).clamp(min=0.0))
    jittered = adjust_hue(jittered, _HUE * spread[3])
    images = _choose(draws[8] < _P_JITTER, jittered, images)
    images = _choose(draws[9] < _P_GREY, to_grayscale(images), images)
    low, high = _BLUR_SIGMA_AT_224
    sigma = (low + (high - low) * draws[10]) * size / 224
    blurred = gaussian_blur(images, sigma, (2.0 * sigma).ceil().clamp(min=1).to(torch.int64))
    return _choose(draws[11] < _P_BLUR, blurred, images)


def _choose(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], changed, images)


def pretrain_encoder(
    model: Classifier,
    train: ImageSet,
    config: StageConfig,
    *,
    signature: str,
    folder: Folder,
    report: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Pretrain ``model`` in place, from the last checkpoint if there is one; return the record of every epoch.

    Raises:
        DivergedError: if the loss is not finite.
        CollapsedError: if all images are mapped to the same point.
        CheckpointError: if the checkpoint belongs to another stage.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    settings = config.pretraining
    assert isinstance(settings, ContrastivePretraining)
    projector = SimCLRProjectionHead(model.num_features, settings.hidden_dim, settings.projection_dim).to(
        model.mean.device
    )
    pair = nn.ModuleDict({"encoder": model, "projector": projector})
    optimiser = torch.optim.SGD(
        pair.parameters(), lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay
    )
    criterion = NTXentLoss(temperature=settings.temperature)
    state = load_checkpoint(folder, signature)
    if state is None:
        state = TrainingState(signature)
    else:
        restore_module(pair, unpack("model", state.tensors), origin="the checkpoint")
        unpack_optimiser(optimiser, state.tensors, state.optimiser_scalars)
        restore_random_state(state.tensors, state.random_state)
    write_missing_epochs(folder, state.history)
    seeds = mix(torch.from_numpy(hash_ids(train.ids)), "contrastive", config.seed, config.stream)
    while state.epoch < settings.epochs:
        started = time.perf_counter()
        means = _train_epoch(pair, train, config, seeds, criterion=criterion, optimiser=optimiser, state=state)
        metrics = {
            **means,
            "learning_rate": optimiser.param_groups[0]["lr"],
            "seconds": time.perf_counter() - started,
        }
        record = {"epoch": state.epoch + 1, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        _update_state(state, pair, optimiser, record)
        save_checkpoint(folder, state)
        folder.append_line("epochs.jsonl", json.dumps(record, sort_keys=True, allow_nan=False))
        report(record)
    return state.history


def _train_epoch(
    pair: nn.ModuleDict,
    train: ImageSet,
    config: StageConfig,
    sample_seeds: Int64[Tensor, " n"],
    *,
    criterion: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: TrainingState,
) -> dict[str, float]:
    """Train one epoch; return the means over its batches: loss, and spread of features and embeddings."""
    settings, epoch = config.pretraining, state.epoch + 1
    assert isinstance(settings, ContrastivePretraining)
    encoder, projector = pair["encoder"], pair["projector"]
    assert isinstance(encoder, Classifier)
    device = encoder.mean.device
    pair.train()
    order = np.random.default_rng(derive_seed(config.seed, config.stream, "stage order", epoch))
    rows = order.permutation(len(train))
    # An incomplete last batch has fewer negatives and is left out, as in SimCLR; the order changes every epoch.
    num_batches = max(1, len(rows) // settings.batch_size)
    totals = torch.zeros(3, device=device)
    for batch in np.array_split(rows[: num_batches * settings.batch_size], num_batches):
        rate = learning_rate_factor(state.step, num_batches * settings.epochs, 0, "cosine") * settings.learning_rate
        optimiser.param_groups[0]["lr"] = rate
        images = torch.from_numpy(train.images[batch]).to(device, non_blocking=True)
        seeds = mix(sample_seeds[torch.from_numpy(batch)], "epoch", epoch).to(device)
        views = torch.cat([make_view(images, mix(seeds, "view", side), settings) for side in (0, 1)])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            _, features = encoder.forward_features(encoder.normalise(views))
            embeddings = projector(features.flatten(1))
        first, second = embeddings.float().chunk(2)
        loss = criterion(first, second)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        state.step += 1
        with torch.no_grad():
            totals += torch.stack([loss, measure_spread(features.flatten(1)), measure_spread(embeddings)])
    loss, feature_spread, embedding_spread = (totals / num_batches).tolist()
    if not math.isfinite(loss):
        raise DivergedError(f"epoch {epoch}: the contrastive loss is {loss}; lower pretraining.learning_rate")
    check_collapse(
        epoch=epoch,
        loss=loss,
        feature_spread=feature_spread,
        embedding_spread=embedding_spread,
        num_images=min(settings.batch_size, len(rows)),
        learning_rate=settings.learning_rate,
    )
    return {"ssl/loss": loss, "ssl/feature_spread": feature_spread, "ssl/embedding_spread": embedding_spread}


def _update_state(
    state: TrainingState, pair: nn.ModuleDict, optimiser: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    packed, state.optimiser_scalars = pack_optimiser(optimiser)
    random, state.random_state = capture_random_state()
    state.tensors = {**pack_module("model", pair), **packed, **random}
    state.epoch += 1
    state.history = [*state.history, record]
