"""Checks before a study starts: the network, loss and shifts of every trial are built once to find wrong names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from orchestrator.planning.inputs import Inputs
from trainables.config import ContrastivePretraining, TrialConfig
from trainables.data.dataset import Dataset
from trainables.errors import ConfigError, StudyError
from trainables.frozen import canonical_json
from trainables.shifts.wording import check_shift_names


def find_distinct(configs: Iterable[TrialConfig]) -> list[TrialConfig]:
    """Return the first config of each group that builds the same network, loss and shifts on the same data."""
    found: dict[str, TrialConfig] = {}
    for config in configs:
        parts = (config.data, config.model, config.regulariser, config.evaluation)
        found.setdefault(canonical_json([part.model_dump(mode="json") for part in parts]), config)
    return list(found.values())


def check_trials(configs: Iterable[TrialConfig], inputs: Inputs) -> None:
    """Build network, loss and shifts of every trial, so that a wrong name or size stops a study before it starts.

    Raises:
        ConfigError: if a network, shift or modality is unknown, the network does not accept images of this size, or
            a regulariser does not fit the network or the data.
    """
    for config in find_distinct(configs):
        _check_trial(config, inputs.dataset(config.data))


def _check_trial(config: TrialConfig, data: Dataset) -> None:
    import torch

    from trainables.data.groups import find_groups
    from trainables.models.networks import build_model
    from trainables.ops.stain_normalisation import check_stainable
    from trainables.regularisers import StainNormalisation, StochasticDepth, choose_group_columns, find_part
    from trainables.shifts.bank import build_shifts
    from trainables.training.losses import build_loss

    build_shifts(config.evaluation, data.modality)
    train, regulariser = data.splits["train"], config.regulariser
    weights = None if config.training.class_weights == "none" else torch.ones(data.num_classes)
    build_loss(
        regulariser,
        class_weights=weights,
        num_classes=data.num_classes,
        groups=find_groups(train, choose_group_columns(regulariser)),
        device=torch.device("cpu"),
    )
    _, channels, _, size = train.images.shape
    if find_part(regulariser, StainNormalisation) is not None:
        check_stainable(channels)
    depth = find_part(regulariser, StochasticDepth)
    # Memory is allocated: on torch's meta device a forward pass spends two more seconds on imports.
    build_model(
        config.model,
        num_classes=data.num_classes,
        channels=channels,
        image_size=size,
        stochastic_depth=None if depth is None else depth.probability,
    )


def check_settings(configs: Iterable[TrialConfig], inputs: Inputs) -> None:
    """Check settings against the data, without importing torch: batches, selection, classes in the test set, shifts.

    Raises:
        StudyError: if a setting cannot work; the message lists all problems.
    """
    known = [(config, inputs.dataset(config.data)) for config in configs]
    problems = {problem for config, data in known for problem in _find_problems(config, data)}
    problems |= {problem for data in {id(data): data for _, data in known}.values() for problem in _check_test(data)}
    evaluations = {canonical_json(config.evaluation.model_dump(mode="json")): config.evaluation for config, _ in known}
    for evaluation in evaluations.values():
        try:
            check_shift_names(evaluation)
        except ConfigError as error:
            problems.add(str(error))
    if problems:
        raise StudyError("\n".join(sorted(problems)))


def _find_problems(config: TrialConfig, data: Dataset) -> Iterator[str]:
    train = len(data.splits["train"])
    if config.training.batch_size > train:
        yield f"training.batch_size: found {config.training.batch_size}, and there are {train} training images"
    if isinstance(config.pretraining, ContrastivePretraining) and config.pretraining.batch_size > train:
        yield f"pretraining.batch_size: found {config.pretraining.batch_size}, and there are {train} training images"
    lacking = _find_absent_classes(data, "val") if config.training.select_by == "auroc" else []
    if lacking:
        yield (
            f"training.select_by: found auroc, and no validation image is of class {', '.join(lacking)}; expected "
            "every class there: select by balanced_accuracy or loss, or give validation some"
        )


def _check_test(data: Dataset) -> Iterator[str]:
    if len(_find_absent_classes(data, "test")) == data.num_classes - 1:
        only = data.classes[int(data.splits["test"].labels[0])]
        yield f"data: every test image is of class {only!r}; expected two classes, or no metric tells models apart"


def _find_absent_classes(data: Dataset, split: str) -> list[str]:
    present = set(np.unique(data.splits[split].labels).tolist())
    return [name for index, name in enumerate(data.classes) if index not in present]
