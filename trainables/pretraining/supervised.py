"""Training with the labels of another data source, as a step of a chain; the trials' own loop trains it."""

from __future__ import annotations

from trainables.augmentation_config import NoAugmentation
from trainables.config import Execution, StageConfig, TrainingConfig, TrialConfig
from trainables.data.dataset import Dataset
from trainables.models.networks import Classifier
from trainables.pretraining_config import SupervisedPretraining
from trainables.regularisers import WeightDecay
from trainables.seeding import derive_seed
from trainables.storage.folder import Folder
from trainables.tasks.find import find_task
from trainables.training.acceleration import Choice
from trainables.training.loop import Outcome, Report, train_learner


def pretrain_with_labels(
    model: Classifier,
    data: Dataset,
    config: StageConfig,
    choice: Choice,
    *,
    signature: str,
    folder: Folder,
    report: Report,
) -> Outcome:
    """Train ``model`` in place on the source's training split, from the last checkpoint if there is one.

    The weights of the last epoch count: nothing is chosen on the source's validation images, which are only measured.
    Errors are those of ``train_model``.
    """
    step = config.pretraining
    assert isinstance(step, SupervisedPretraining)
    trial = TrialConfig(
        data=step.data,
        task=config.task,
        model=config.model,
        augmentation=NoAugmentation(crop_scale_min=step.crop_scale_min, horizontal_flip=step.horizontal_flip),
        regulariser=WeightDecay(weight=step.weight_decay),
        training=TrainingConfig(
            epochs=step.epochs,
            batch_size=step.batch_size,
            learning_rate=step.learning_rate,
            warmup_epochs=step.warmup_epochs,
            select="last",
        ),
        seed=derive_seed(config.seed, config.stream, "supervised"),
    )
    with find_task(config.task).open_learner(model, data, trial, choice, Execution()) as learner:
        return train_learner(learner, trial, signature=signature, folder=folder, report=report)
