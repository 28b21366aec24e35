"""What planning has to know about the world: the data (validated and prepared here), and whether weights can be had."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.identity import canonical_json
from orchestrator.plan import imagenet_of
from trainables.config import ContrastivePretraining, DataConfig, TrialConfig
from trainables.data.dataset import Dataset
from trainables.errors import StudyError, WeightsUnavailableError


class World:
    """Answers of the real world to the questions of ``plan.Facts``; every question is asked once.

    Args:
        cache_dir: where decoded images are kept on this node.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir.expanduser()
        self._datasets: dict[str, Dataset] = {}
        self._missing: dict[str, str | None] = {}

    def dataset(self, config: DataConfig) -> Dataset:
        """Return the data, decoded and checked; the images stay on disk.

        Raises:
            DataError: an image, label or split is unusable; all problems are named.
        """
        key = config.model_dump_json()
        if key not in self._datasets:
            from trainables.data.sources import load_dataset

            self._datasets[key] = load_dataset(config, cache_dir=self._cache_dir)
        return self._datasets[key]

    @property
    def datasets(self) -> list[Dataset]:
        """All data sets asked for so far."""
        return list(self._datasets.values())

    def fingerprint(self, config: TrialConfig) -> str:
        """Return the fingerprint of the trial's data."""
        return self.dataset(config.data).fingerprint

    def missing_weights(self, config: TrialConfig) -> str | None:
        """Return why the ImageNet weights cannot be had and the study allows to go on without, else None.

        Raises:
            WeightsUnavailableError: they cannot be had and ``on_unavailable`` is ``error``.
        """
        imagenet = imagenet_of(config)
        if imagenet is None:
            return None
        key = canonical_json([config.model.name, imagenet.weights, str(imagenet.file)])
        if key not in self._missing:
            from trainables.pretraining.imagenet import find_missing_weights

            self._missing[key] = find_missing_weights(config.model.name, imagenet)
        reason = self._missing[key]
        if reason is not None and imagenet.on_unavailable == "error":
            raise WeightsUnavailableError(
                f"{reason}; put the weights into the cache, name a file with pretraining.file, "
                "or set pretraining.on_unavailable: skip to leave these arms out"
            )
        return reason

    def resolve(self, config: TrialConfig) -> TrialConfig:
        """Return the config with the digest of its weights file filled in: the content decides, not the path."""
        imagenet = imagenet_of(config)
        if imagenet is None or imagenet.file is None:
            return config
        resolved: Any = imagenet.model_copy(update={"file_sha256": _sha256(imagenet.file)})
        if isinstance(config.pretraining, ContrastivePretraining):
            resolved = config.pretraining.model_copy(update={"init": resolved})
        return config.model_copy(update={"pretraining": resolved})


@cache
def _sha256(path: Path) -> str:
    from trainables.pretraining.imagenet import compute_file_sha256

    return compute_file_sha256(path)


def find_distinct(configs: Iterable[TrialConfig]) -> list[TrialConfig]:
    """Return one of all configs that build the same network, loss and shifts on the same data."""
    found: dict[str, TrialConfig] = {}
    for config in configs:
        parts = (config.data, config.model, config.regulariser, config.evaluation)
        found.setdefault(canonical_json([part.model_dump(mode="json") for part in parts]), config)
    return list(found.values())


def check_trials(configs: Iterable[TrialConfig], world: World) -> None:
    """Build what every trial will build, so that a wrong name or size stops a study before it starts.

    Raises:
        ConfigError: no such network, shift or modality; images of a size the network does not take; or a regulariser
            that does not fit the network or the data.
    """
    for config in find_distinct(configs):
        _check_trial(config, world.dataset(config.data))


def _check_trial(config: TrialConfig, data: Dataset) -> None:
    import torch

    from trainables.data.groups import find_groups
    from trainables.losses import build_loss
    from trainables.models import build_model
    from trainables.regularisers import StainNormalisation, StochasticDepth, choose_group_columns, find_part
    from trainables.shifts.bank import build_shifts
    from trainables.stain_normalisation import check_stainable

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
    # With its memory: on torch's meta device a forward pass imports for two seconds more.
    build_model(
        config.model,
        num_classes=data.num_classes,
        channels=channels,
        image_size=size,
        stochastic_depth=None if depth is None else depth.probability,
    )


def check_batches(configs: Iterable[TrialConfig], world: World) -> None:
    """Check that every batch can be filled.

    Raises:
        StudyError: with every problem.
    """
    problems = set()
    for config in configs:
        data = world.dataset(config.data)
        train = len(data.splits["train"])
        if config.training.batch_size > train:
            problems.add(
                f"training.batch_size: found {config.training.batch_size}, and there are {train} training images"
            )
        if isinstance(config.pretraining, ContrastivePretraining) and config.pretraining.batch_size > train:
            problems.add(
                f"pretraining.batch_size: found {config.pretraining.batch_size}, and there are {train} training images"
            )
    if problems:
        raise StudyError("\n".join(sorted(problems)))
