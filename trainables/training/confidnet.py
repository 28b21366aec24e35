"""ConfidNet: what is trained after the classifier, which is frozen and does not change in a single bit.

Source: Corbière et al. 2019 (arXiv 1910.04851), section 3. As in the authors' code, batch normalisation keeps the
classifier's statistics and dropout is off in both phases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainables.confidence_config import ConfidNet
from trainables.config import TrialConfig
from trainables.data.batches import TrainingImages
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.errors import DivergedError
from trainables.models.confidence import ConfidNetBranch, add_confidence, get_branch
from trainables.models.networks import Classifier
from trainables.seeding import derive_seed
from trainables.storage.checkpoint import (
    CONFIDENCE,
    TrainingState,
    load_checkpoint,
    pack_module,
    pack_optimiser,
    restore_module,
    save_checkpoint,
    unpack,
    unpack_optimiser,
)
from trainables.storage.completeness import EPOCHS
from trainables.storage.folder import Folder
from trainables.training.acceleration import Choice
from trainables.training.loop import Report, dump_record, write_missing_epochs
from trainables.training.step import TrainingInputs

#: Validation images per forward pass.
_BATCH_SIZE = 256


def true_class_probability(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return softmax(logits) at the true class: the confidence that is to be learned, in [0, 1]."""
    return logits.float().softmax(1).gather(1, labels[:, None]).squeeze(1)


def train_confidnet(
    model: Classifier,
    data: Dataset,
    config: TrialConfig,
    *,
    signature: str,
    folder: Folder,
    report: Report,
    acceleration: Choice,
) -> None:
    """Give the trained ``model`` its branch and train that, from the last checkpoint if there is one.

    Epochs count on from the classifier's. An interrupted and continued run gives the same weights as an uninterrupted
    one, bit for bit on a CPU: nothing here draws from a global generator.

    Args:
        model: trained classifier on the device of the training; its own weights and statistics stay as they are.
        data: data set; only the training and validation images are read.
        config: config of the trial, whose ``training.confidence`` is ``ConfidNet``.
        signature: signature of the trial; a checkpoint of another trial is refused.
        folder: folder of the trial, for checkpoints and ``epochs.jsonl``, which holds the classifier's epochs.
        report: callback after every epoch.
        acceleration: memory format and precision; nothing is compiled.

    Raises:
        DivergedError: if the loss is not finite.
        CheckpointError: if the checkpoint belongs to another trial.
    """
    trainer = _Trainer(model, data, config, acceleration, signature=signature)
    before = folder.read_lines(EPOCHS)  # the classifier's, as ``train_model`` leaves them
    state = load_checkpoint(folder / CONFIDENCE, signature)
    if state is not None:
        trainer.restore(state)
    trainer.first_epoch = len(before)
    write_missing_epochs(folder, [*before, *trainer.state.history])
    while trainer.state.epoch < trainer.num_epochs:
        record = trainer.run_epoch()
        save_checkpoint(folder / CONFIDENCE, trainer.state)
        folder.append_line(EPOCHS, dump_record(record))
        report(record)


class _Trainer:
    """Epochs of both phases and their state: that of the whole model, so that classifier and branch fit."""

    def __init__(
        self, model: Classifier, data: Dataset, config: TrialConfig, choice: Choice, *, signature: str
    ) -> None:
        assert isinstance(config.training.confidence, ConfidNet)
        self.config = config.training.confidence
        self.model, self.precision, self.device = model, choice.dtype, model.mean.device
        add_confidence(model, self.config, seed=derive_seed(config.seed, config.replicate, "confidence"))
        branch = get_branch(model)
        assert isinstance(branch, ConfidNetBranch)
        self.branch = branch
        choice.place(model)
        self.batches = TrainingImages(data.splits["train"], config, self.device)
        self.inputs = TrainingInputs(model, config, data.splits["train"].images.shape[-1])
        self.val, self.feed = data.splits["val"], ImageFeed(data.splits["val"], self.device)
        self.num_epochs = self.config.extra_epochs
        #: Epochs of the classifier, after which these are counted.
        self.first_epoch = 0
        #: First number of the epochs' order and augmentation: the classifier's are not repeated.
        self.stream = config.training.epochs
        self.state = TrainingState(signature)
        self.start_phase()

    @property
    def is_fine_tuning(self) -> bool:
        return self.state.epoch >= self.config.epochs

    def start_phase(self) -> None:
        """Make the optimiser of the phase that the next epoch belongs to; only its parameters need gradients."""
        rate = self.config.fine_tuning_learning_rate if self.is_fine_tuning else self.config.learning_rate
        trained: nn.Module = self.branch if self.is_fine_tuning else self.branch.layers
        self.model.requires_grad_(False)
        trained.requires_grad_(True)
        self.optimiser = torch.optim.Adam(trained.parameters(), lr=rate)

    def restore(self, state: TrainingState) -> None:
        restore_module(self.model, unpack("model", state.tensors), origin="the checkpoint")
        self.state = state
        self.start_phase()
        if state.epoch != self.config.epochs:  # else the next phase begins, with an optimiser of its own
            unpack_optimiser(self.optimiser, state.tensors, state.optimiser_scalars)

    def run_epoch(self) -> dict[str, Any]:
        """Train one epoch, validate, update ``self.state`` and return the epoch's record."""
        started, state = time.perf_counter(), self.state
        if state.epoch == self.config.epochs:
            self.start_phase()
        self.model.eval()
        total, count = torch.zeros((), device=self.device), 0
        for batch in self.batches.epoch(self.stream + state.epoch + 1):
            loss = self.compute_loss(self.inputs.make(batch), batch.labels)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            state.step += 1
            total += loss.detach() * len(batch.labels)
            count += len(batch.labels)
        seconds = time.perf_counter() - started
        metrics = {"confidence/train_loss": float(total) / count, "confidence/val_loss": self.validate()}
        epoch = self.first_epoch + state.epoch + 1
        if not all(map(math.isfinite, metrics.values())):
            phase = "fine_tuning_learning_rate" if self.is_fine_tuning else "learning_rate"
            raise DivergedError(
                f"epoch {epoch}: the loss of confidnet is not finite; lower training.confidence.{phase}"
            )
        metrics["learning_rate"] = self.optimiser.param_groups[0]["lr"]
        metrics["seconds"] = time.perf_counter() - started
        metrics["images_per_second"] = count / seconds
        record = {"epoch": epoch, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        optimiser, state.optimiser_scalars = pack_optimiser(self.optimiser)
        state.tensors = {**pack_module("model", self.model), **optimiser}
        state.epoch += 1
        state.history = [*state.history, record]
        return record

    def compute_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared difference between the branch's confidence and the true class's probability."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            with torch.no_grad():
                logits, features = self.model.forward_features(images)
            # Before fine-tuning the copy still is the classifier.
            is_copy = not self.is_fine_tuning
            log_odds = self.branch(features) if is_copy else self.branch.log_odds(images, logits, features)
        return F.mse_loss(log_odds.sigmoid(), true_class_probability(logits, labels))

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss on the validation images."""
        total = 0.0
        for images, labels in _batches(self.val, self.feed):
            loss = self.compute_loss(self.model.normalise(images), labels.to(self.device))
            total += float(loss) * len(labels)
        return total / len(self.val)


def _batches(images: ImageSet, feed: ImageFeed) -> Iterator[tuple[Tensor, Tensor]]:
    sizes = split_sizes(len(images), _BATCH_SIZE)
    labels = torch.split(torch.from_numpy(images.labels.copy()), sizes)
    return zip(feed.batches(torch.arange(len(images)).numpy(), sizes), labels, strict=True)
