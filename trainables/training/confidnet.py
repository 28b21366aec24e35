"""ConfidNet: what is trained after the classifier, which is frozen and does not change in a single bit.

Source: Corbière et al. 2019 (arXiv 1910.04851), section 3. As in the authors' code, batch normalisation keeps the
classifier's statistics and dropout is off in both phases. The branch that is kept, and the one that fine-tuning begins
with, is that of the best epoch so far (``selection.select_confidence_epoch``); every checkpoint holds it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from trainables.confidence_config import ConfidNet
from trainables.config import TrialConfig
from trainables.data.batches import TrainingImages
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.errors import DivergedError
from trainables.evaluation.detection.risk_coverage import count_errors, measure_ap
from trainables.models.confidence import ConfidNetBranch, add_confidence, get_branch
from trainables.models.networks import Classifier
from trainables.process_usage import UsageSampler
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
from trainables.training.selection import CONFIDENCE_AP, CONFIDENCE_LOSS, select_confidence_epoch
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
) -> int:
    """Give the trained ``model`` its branch and train that, from the last checkpoint if there is one.

    Leaves the branch of the best epoch in it and returns the number of that epoch.

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
    trainer.restore_best()
    return trainer.state.best_epoch


def describe_undefined(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return why ConfidNet's epoch was not chosen by ``CONFIDENCE_AP``, by that name; nothing if it was, or without it.

    Args:
        records: all epochs of a trial (``epochs.jsonl``).
    """
    last = records[-1]["metrics"]
    if CONFIDENCE_LOSS not in last or CONFIDENCE_AP in last:
        return {}
    return {CONFIDENCE_AP: "no validation image is classified wrongly, or all are: the epoch was chosen by the loss"}


class _Outputs(NamedTuple):
    """Confidence of the branch as log-odds, the true class's probability, and whether the classifier is right."""

    log_odds: Float[Tensor, " n"]
    target: Float[Tensor, " n"]
    is_correct: Bool[Tensor, " n"]


class _Trainer:
    """Epochs of both phases and their state: that of the whole model, so that classifier and branch fit.

    The state also has the branch of the best epoch, ``best.…``, which a checkpoint of a later epoch replaces otherwise.
    """

    def __init__(
        self, model: Classifier, data: Dataset, config: TrialConfig, choice: Choice, *, signature: str
    ) -> None:
        assert isinstance(config.training.confidence, ConfidNet)
        self.config = config.training.confidence
        self.model, self.precision, self.device = model, choice.dtype, model.mean.device
        self.usage = UsageSampler(self.device)
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
            self.restore_best()
            self.start_phase()
        self.model.eval()
        total, count = torch.zeros((), device=self.device), 0
        for batch in self.batches.epoch(self.stream + state.epoch + 1):
            outputs = self.compute_outputs(self.inputs.make(batch), batch.labels)
            loss = F.mse_loss(outputs.log_odds.sigmoid(), outputs.target)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            state.step += 1
            total += loss.detach() * len(batch.labels)
            count += len(batch.labels)
        seconds = time.perf_counter() - started
        metrics = {"confidence/train_loss": float(total) / count} | self.validate()
        epoch = self.first_epoch + state.epoch + 1
        if not all(map(math.isfinite, metrics.values())):
            phase = "fine_tuning_learning_rate" if self.is_fine_tuning else "learning_rate"
            raise DivergedError(
                f"epoch {epoch}: the loss of confidnet is not finite; lower training.confidence.{phase}"
            )
        metrics["learning_rate"] = self.optimiser.param_groups[0]["lr"]
        metrics["seconds"] = time.perf_counter() - started
        metrics["images_per_second"] = count / seconds
        metrics |= self.usage.sample()
        record = {"epoch": epoch, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        optimiser, state.optimiser_scalars = pack_optimiser(self.optimiser)
        best = {name: value for name, value in state.tensors.items() if name.startswith("best.")}
        state.tensors = {**pack_module("model", self.model), **optimiser}
        state.epoch += 1
        state.history = [*state.history, record]
        state.best_epoch = select_confidence_epoch(state.history)
        state.tensors |= pack_module("best", self.branch) if state.best_epoch == epoch else best
        return record

    def restore_best(self) -> None:
        """Give the branch the weights of the best epoch so far."""
        weights = unpack("best", self.state.tensors)
        restore_module(self.branch, weights, origin=f"the branch of epoch {self.state.best_epoch}")

    def compute_outputs(self, images: Tensor, labels: Tensor) -> _Outputs:
        """Return what the branch says of normalised images, and what it should say."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            with torch.no_grad():
                logits, features = self.model.forward_features(images)
            # Before fine-tuning the copy still is the classifier.
            is_copy = not self.is_fine_tuning
            log_odds = self.branch(features) if is_copy else self.branch.log_odds(images, logits, features)
        return _Outputs(log_odds, true_class_probability(logits, labels), logits.argmax(1) == labels)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the mean loss on the validation images, and how the branch ranks the wrong predictions, if defined."""
        batches = [
            self.compute_outputs(self.model.normalise(images), labels.to(self.device))
            for images, labels in _batches(self.val, self.feed)
        ]
        log_odds, targets, is_correct = (torch.cat(each).cpu() for each in zip(*batches, strict=True))
        found = {CONFIDENCE_LOSS: float(F.mse_loss(log_odds.sigmoid(), targets))}
        if math.isfinite(found[CONFIDENCE_LOSS]) and 0 < int(is_correct.sum()) < len(is_correct):
            found[CONFIDENCE_AP] = float(measure_ap(count_errors(log_odds.numpy(), is_correct.numpy())))
        return found


def _batches(images: ImageSet, feed: ImageFeed) -> Iterator[tuple[Tensor, Tensor]]:
    sizes = split_sizes(len(images), _BATCH_SIZE)
    labels = torch.split(torch.from_numpy(images.labels.copy()), sizes)
    return zip(feed.batches(torch.arange(len(images)).numpy(), sizes), labels, strict=True)
