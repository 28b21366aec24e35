"""Contrastive pretraining: epochs over two seeded views of every image, checkpoints, records and the collapse verdict.

What is asked of the views is in ``methods``, how they are made in ``views``. No weight depends on a label.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from trainables.config import StageConfig
from trainables.contrastive_config import find_long_queue, find_small_groups
from trainables.data.dataset import Dataset, ImageSet
from trainables.errors import ConfigError, DivergedError
from trainables.models.networks import Classifier
from trainables.pretraining.collapse import CollapseMeter, check_collapse, describe_collapse, find_chance_loss
from trainables.pretraining.methods import ContrastiveTrainer, build_optimiser, build_trainer
from trainables.pretraining.monitor import Monitor, is_measured
from trainables.pretraining.views import build_views
from trainables.pretraining_config import ContrastivePretraining
from trainables.process_usage import UsageSampler
from trainables.seeding import derive_seed, hash_ids, mix
from trainables.storage.checkpoint import (
    TrainingState,
    capture_random_state,
    pack_module,
    pack_optimiser,
    restore_module,
    restore_random_state,
    save_checkpoint,
    unpack,
    unpack_optimiser,
)
from trainables.storage.completeness import EPOCHS
from trainables.storage.folder import Folder
from trainables.training.joint.common_checkpoint import load_common_checkpoint
from trainables.training.joint.processes import find_processes, split_evenly
from trainables.training.loop import dump_record, write_missing_epochs
from trainables.training.optimisation import learning_rate_factor


def pretrain_encoder(
    model: Classifier,
    train: ImageSet,
    config: StageConfig,
    *,
    monitor: Monitor | None = None,
    signature: str,
    folder: Folder,
    report: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Pretrain ``model`` in place, from the last checkpoint if there is one; return the record of every epoch.

    With several processes (``find_processes``) each of them calls this with the same arguments, and the first one alone
    measures features, writes and reports.

    Args:
        model: network whose encoder is trained.
        train: images; their labels are not read.
        config: all settings that decide the result.
        monitor: measures features after some of the epochs; None: never.
        signature: identity of the stage; checkpoints of another one are refused.
        folder: folder of the stage.
        report: callback for the record of every epoch.

    Raises:
        ConfigError: if the queue is too long for so few images, or a batch too small for its groups or processes.
        DivergedError: if the loss is not finite.
        CollapsedError: if all images are mapped to the same point.
        CheckpointError: if the checkpoint belongs to another stage, or processes have read different ones.
        PeerLostError: if another process is gone.
    """
    settings = config.pretraining
    assert isinstance(settings, ContrastivePretraining)
    problem = find_long_queue(settings.method, len(train))
    if problem is not None:
        raise ConfigError(problem)
    trainer = build_trainer(model, settings.method)
    trainer.processes = processes = find_processes()
    _check_sizes(trainer, settings, min(settings.batch_size, len(train)))
    optimiser = build_optimiser(trainer, settings.method)
    state = load_common_checkpoint(folder, signature, processes)
    if state is None:
        state = TrainingState(signature)
    else:
        restore_module(trainer.modules, unpack("model", state.tensors), origin="the checkpoint")
        unpack_optimiser(optimiser, state.tensors, state.optimiser_scalars)
        restore_random_state(state.tensors, state.random_state)
    if processes.is_first:
        write_missing_epochs(folder, state.history)
    seeds = mix(torch.from_numpy(hash_ids(train.ids)), "contrastive", config.seed, config.stream)
    usage = UsageSampler(model.mean.device)
    while state.epoch < settings.epochs:
        started = time.perf_counter()
        if not processes.is_first:  # dropout draws other numbers than in the first, whose generator is in checkpoints
            torch.manual_seed(derive_seed(config.seed, config.stream, "process", processes.rank, state.epoch))
        metrics = _train_epoch(trainer, train, config, seeds, optimiser=optimiser, state=state)
        seconds = time.perf_counter() - started
        if monitor is not None and processes.is_first and is_measured(state.epoch + 1, settings.epochs):
            metrics |= monitor.measure(model)
        metrics |= {"learning_rate": optimiser.param_groups[0]["lr"], "seconds": seconds} | usage.sample()
        record = {"epoch": state.epoch + 1, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        _update_state(state, trainer, optimiser, record)
        if processes.is_first:
            save_checkpoint(folder, state)
            folder.append_line(EPOCHS, dump_record(record))
            report(record)
    return state.history


def _check_sizes(trainer: ContrastiveTrainer, settings: ContrastivePretraining, size: int) -> None:
    """Check that a batch of ``size`` images can be divided into groups and among processes."""
    problem = find_small_groups(size, trainer.num_groups)
    if problem is not None:
        raise ConfigError(problem)
    count, groups = trainer.processes.count, trainer.num_groups
    if groups > 1 and settings.micro_batch_size is None:
        if groups % count:
            raise ConfigError(
                f"execution.processes_per_stage: divided the {groups} groups of pretraining.method.batch_norm_groups "
                f"among {count} processes; expected a divisor of {groups}, so that each process has whole groups"
            )
        return
    parts = split_evenly(torch.arange(size), min(settings.micro_batch_size or size, -(-size // groups)))
    smallest = min(len(part) for part in parts)
    if smallest < count:
        raise ConfigError(
            f"execution.processes_per_stage: divided {smallest} images, of which batch statistics are computed, among "
            f"{count} processes; expected {smallest} processes or fewer, or a larger pretraining.batch_size"
        )


def _train_epoch(
    trainer: ContrastiveTrainer,
    train: ImageSet,
    config: StageConfig,
    sample_seeds: Int64[Tensor, " n"],
    *,
    optimiser: torch.optim.Optimizer,
    state: TrainingState,
) -> dict[str, float]:
    """Train one epoch; return its loss and signs of collapse."""
    settings, epoch = config.pretraining, state.epoch + 1
    assert isinstance(settings, ContrastivePretraining)
    method, make_view = settings.method, build_views(settings)
    encoder = trainer.modules["encoder"]
    assert isinstance(encoder, Classifier)
    device = encoder.mean.device
    trainer.modules.train()
    order = np.random.default_rng(derive_seed(config.seed, config.stream, "stage order", epoch))
    rows = order.permutation(len(train))
    # An incomplete last batch has fewer negatives and is left out, as in SimCLR; the order changes every epoch.
    num_batches = max(1, len(rows) // settings.batch_size)
    num_steps, warmup = num_batches * settings.epochs, round(num_batches * method.warmup_epochs)
    first_record = state.history[0]["metrics"] if state.history else None
    signs = CollapseMeter(device, first_record)
    for batch in np.array_split(rows[: num_batches * settings.batch_size], num_batches):
        rate = learning_rate_factor(state.step, num_steps, warmup, "cosine") * method.learning_rate
        for group in optimiser.param_groups:
            group["lr"] = rate
        own = trainer.processes.take(torch.from_numpy(batch))
        images = torch.from_numpy(train.images[own.numpy()]).to(device, non_blocking=True)
        seeds = mix(sample_seeds[own], "epoch", epoch).to(device)
        first, second = (make_view(images, mix(seeds, "view", side)) for side in (0, 1))
        optimiser.zero_grad(set_to_none=True)
        outcome = trainer.compute_gradients(first, second, part_size=settings.micro_batch_size, count=len(batch))
        optimiser.step()
        trainer.finish_step(state.step, num_steps)
        state.step += 1
        signs.add(outcome)
    chance = find_chance_loss(method, min(settings.batch_size, len(rows)))
    found = signs.summarise(chance)
    broken = next((name for name, value in found.items() if not math.isfinite(value)), None)
    if broken is not None:
        what = "the contrastive loss" if broken == "ssl/loss" else broken
        raise DivergedError(f"epoch {epoch}: {what} is {found[broken]}; lower pretraining.method.learning_rate")
    check_collapse(found, method, chance, epoch=epoch)
    return found


def build_monitor(data: Dataset, config: StageConfig) -> Monitor:
    """Return the measurement of features on the training and validation images of ``data``, if it has the latter."""
    assert isinstance(config.pretraining, ContrastivePretraining)
    make_view = build_views(config.pretraining)
    return Monitor(
        data.splits["train"], data.splits.get("val"), make_view, seed=derive_seed(config.seed, config.stream)
    )


def summarise_history(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``result.json`` says of a pretraining: the last value of every metric, and the collapse verdict."""
    last: dict[str, float] = {}
    for record in history:
        last |= {name: value for name, value in record["metrics"].items() if name.startswith("ssl/")}
    metrics = {name.replace("ssl/", "ssl/final_"): value for name, value in last.items()}
    return {"metrics": metrics, "collapse": describe_collapse(history)}


def _update_state(
    state: TrainingState, trainer: ContrastiveTrainer, optimiser: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    packed, state.optimiser_scalars = pack_optimiser(optimiser)
    random, state.random_state = capture_random_state()
    state.tensors = {**pack_module("model", trainer.modules), **packed, **random}
    state.epoch += 1
    state.history = [*state.history, record]
