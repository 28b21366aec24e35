"""Checks before a study starts: settings against data, then every network, loss and shift, which are built once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.planning.inputs import Inputs
from orchestrator.planning.plan import replace_split
from orchestrator.planning.settings_checks import SettingsChecks
from orchestrator.planning.works import name_step, weights_of
from orchestrator.study.fields import suggest
from trainables.config import TrialConfig
from trainables.contrastive_config import find_small_groups
from trainables.data.dataset import Dataset
from trainables.data.identity.overlap import Overlap, find_overlap, is_same_place
from trainables.errors import ConfigError, StudyError
from trainables.evaluation.labels.maps import check_label_maps
from trainables.frozen import canonical_json
from trainables.pretraining_config import (
    ContrastivePretraining,
    ScratchPretraining,
    SupervisedPretraining,
    TrainedStep,
    list_trained,
)
from trainables.shifts.wording import check_shift_names
from trainables.task_config import SegmentationTask

if TYPE_CHECKING:
    from trainables.models.networks import Classifier


def find_distinct(configs: Iterable[TrialConfig]) -> list[TrialConfig]:
    """Return the first config of each group that builds the same network, loss and shifts on the same images."""
    found: dict[str, TrialConfig] = {}
    for config in configs:
        sections = (config.data, config.task, config.model, config.pretraining, config.regulariser, config.evaluation)
        parts = [section.model_dump(mode="json", exclude={"split_seed"}) for section in sections]
        parts += [config.training.fine_tune.model_dump(mode="json")]
        found.setdefault(canonical_json([*parts, _has_single_images(config), config.training.is_linear_probe]), config)
    return list(found.values())


def _has_single_images(config: TrialConfig) -> bool:
    return config.training.batch_size == 1


def check_trials(configs: Iterable[TrialConfig], inputs: Inputs) -> None:
    """Build network, loss and shifts of every trial, so that a wrong name or size stops a study before it starts.

    Weights are read from ``pretraining.file``, and from nowhere else.

    Raises:
        ConfigError: if a network, shift or modality is unknown, the network does not accept images of this size or
            batches of this many, a contrastive step's batch is too small for its groups, weights do not fit it, a
            regulariser does not fit the network or the data, MC dropout is asked of a network without dropout, or
            Grad-CAM of one without convolutional maps.
    """
    for config in find_distinct(configs):
        _check_trial(config, inputs.with_foreign(config))


def _check_trial(config: TrialConfig, data: Dataset) -> None:
    import torch

    from trainables.evaluation.detection.summary import check_scores
    from trainables.evaluation.layers import check_layers
    from trainables.evaluation.representation.layers import check_layers as check_described_layers
    from trainables.evaluation.robustness import check_shifts
    from trainables.models.mc_dropout import find_dropout
    from trainables.regularisers import NoRegulariser
    from trainables.tasks.find import find_task
    from trainables.trial import build_network

    task = find_task(config.task)
    task.check(config, data)
    check_shifts(data, config.evaluation)
    check_scores(config.evaluation.confidence_scores)
    _check_roles(config, data)
    published = weights_of(config)
    weights = ScratchPretraining() if published is None or published.file is None else published
    is_stage = isinstance(config.pretraining, TrainedStep)
    if is_stage and weights is published:
        build_network(config.model, weights, data, NoRegulariser(), config.task)
    # Memory is allocated: on torch's meta device a forward pass spends two more seconds on imports.
    start = ScratchPretraining() if is_stage else weights
    model = build_network(config.model, start, data, config.regulariser, config.task)
    if config.evaluation.mc_dropout > 0:
        find_dropout(model)
    _check_step(model, config, task.take_inputs(data.splits["train"].images[:1]).shape[1:])
    _check_groups(model, config)
    if config.evaluation.store_layers:
        check_layers(model, config.evaluation.store_layers, task.take_inputs(data.splits["test"].images[:2]))
    described = config.evaluation.representation.layers
    if described and described != "auto":
        check_described_layers(model, described, torch.from_numpy(data.splits["test"].images[:2].copy()))
    if config.evaluation.attribution is not None and "grad_cam" in config.evaluation.attribution.methods:
        _check_map(model, data)


def _check_map(model: Classifier, data: Dataset) -> None:
    """Check that the network has a convolutional map for Grad-CAM.

    Raises:
        ConfigError: if it has none.
    """
    import torch

    from trainables.evaluation.attribution.convolutional_map import find_last_map

    model.eval()
    find_last_map(model, model.normalise(torch.from_numpy(data.splits["test"].images[:1].copy())))


def _check_groups(model: Classifier, config: TrialConfig) -> None:
    """Check that no contrastive step takes batch statistics of a single image.

    Raises:
        ConfigError: if a batch has too few images for its groups.
    """
    from trainables.pretraining.methods import find_num_groups

    for step in list_trained(config.pretraining):
        if isinstance(step, ContrastivePretraining):
            problem = find_small_groups(step.batch_size, find_num_groups(model, step.method))
            if problem is not None:
                raise ConfigError(problem)


def _check_roles(config: TrialConfig, data: Dataset) -> None:
    """Check that every set with a role exists.

    Raises:
        ConfigError: if one does not.
    """
    known = [*data.external, *data.ood]
    for name in config.evaluation.roles:
        if name not in known:
            raise ConfigError(
                f"evaluation.roles: found the set {name!r}{suggest(name, known)}; expected "
                + (f"one of {', '.join(known)}" if known else "none, since there is no set beside train, val and test")
            )


def _check_step(model: Classifier, config: TrialConfig, shape: tuple[int, ...]) -> None:
    """Run a forward pass of training on the smallest batch that there can be: one image if batches have one, else two.

    Args:
        model: the network.
        config: the trial.
        shape: channels and sides of what the network sees at once.

    Raises:
        ConfigError: if the network refuses it, or ``training.fine_tune`` does not fit the network.
    """
    import torch

    from trainables.training.transfer.trained_part import find_rate_factors, freeze, set_training_mode

    num_images = 1 if _has_single_images(config) else 2
    freeze(model, find_rate_factors(model, config))
    set_training_mode(model, config)
    images = torch.zeros(num_images, *shape)
    try:
        with torch.no_grad():
            model(images)
    except (RuntimeError, ValueError) as error:  # raised by normalisation over a single value
        advice = "expected at least 2, or a network without" if num_images == 1 else "choose a network without"
        raise ConfigError(
            f"training.batch_size: found {config.training.batch_size}, and in training {config.model.name} refuses a "
            f"batch of {num_images} at {model.input_size} px ({error}); {advice} normalisation over the batch"
        ) from error


def list_split_configs(configs: Iterable[TrialConfig], inputs: Inputs, *, replicates: int) -> list[TrialConfig]:
    """Return the configs, and for those with a split per replicate one config per replicate.

    Raises:
        StudyError: if replicates cannot draw a split of their own, because the data give the test set.
    """
    listed: list[TrialConfig] = []
    for config in configs:
        splits = [config] if config.data.split == "fixed" else [replace_split(config, r) for r in range(replicates)]
        listed += splits
        for other in splits[1:2]:
            first, second = (inputs.dataset(each.data).splits["test"].ids for each in (config, other))
            if set(first) == set(second):
                raise StudyError(
                    "data.split: found per_replicate, and the data give the test set, which is the same for all "
                    "replicates; expected fixed: split_seed draws no test set here"
                )
    return listed


def check_settings(configs: Iterable[TrialConfig], inputs: Inputs, *, device: str = "auto") -> None:
    """Check settings against the data: batches, selection, labels, groups, classes in the test set, shifts.

    Torch is imported only if a study defines shifts of its own (2 s).

    Args:
        configs: configs of the trials.
        inputs: data sets.
        device: ``execution.device`` of the study.

    Raises:
        StudyError: if a setting cannot work; the message lists all problems.
    """
    checks: dict[int, SettingsChecks] = {}
    problems: set[str] = set()
    evaluations = {}
    for config in configs:
        problems |= {*find_problems_of_steps(config, inputs), *find_misplaced_steps(config)}
        data = inputs.dataset(config.data)
        if id(data) not in checks:
            checks[id(data)] = SettingsChecks(data, device=device)
            problems |= set(checks[id(data)].find_in_data())
        problems |= set(checks[id(data)].find_problems(config))
        evaluations[id(data), canonical_json(config.evaluation.model_dump(mode="json"))] = config, data
    for config, data in evaluations.values():
        try:
            check_label_maps(config.evaluation, data)
            check_shift_names(config.evaluation, data.modality)
            if any(isinstance(entry, dict) for entry in config.evaluation.shifts):
                from trainables.shifts.bank import build_shifts, build_validation_shifts

                build_shifts(config.evaluation, data.modality)
                build_validation_shifts(config.evaluation, data.modality)
        except ConfigError as error:
            problems.add(str(error))
    if problems:
        raise StudyError("\n".join(sorted(problems)))


def find_problems_of_steps(config: TrialConfig, inputs: Inputs) -> Iterator[str]:
    """Yield the problems of the steps that have images of their own, and of their lengths.

    No image that a model is tested on may enter a step, and none of its patients, unless the step is ``transductive``.
    """
    for step in list_trained(config.pretraining):
        name = name_step(step, config)
        if isinstance(step, SupervisedPretraining) and step.warmup_epochs >= step.epochs:
            yield f"pretraining.warmup_epochs: found {step.warmup_epochs:g} of {step.epochs} epochs; expected fewer"
        if not step.sources:
            continue
        sources = inputs.list_sources(step, config.data)
        number = sum(len(source.splits["train"]) for source in sources)
        if step.batch_size > number:
            yield f"pretraining.batch_size: found {step.batch_size}, and {name} has {number} training images"
        if not step.transductive:
            target = inputs.with_foreign(config)
            for source, data in zip(step.sources, sources, strict=True):
                overlap = find_overlap(
                    data, target, same_place=is_same_place(source, config.data), digest=inputs.digest
                )
                if overlap:
                    yield _describe_overlap(overlap, name)


def find_misplaced_steps(config: TrialConfig) -> Iterator[str]:
    """Yield the contrastive steps, which train a classification network, that would start from a segmentation."""
    if not isinstance(config.task, SegmentationTask):
        return
    for before, step in pairwise(list_trained(config.pretraining)):
        if isinstance(before, SupervisedPretraining) and isinstance(step, ContrastivePretraining):
            yield (
                f"pretraining: found {name_step(step, config)} after {name_step(before, config)}, which trains a "
                "segmentation network, and a contrastive step trains a classification network; expected the "
                "contrastive step before it"
            )


def _describe_overlap(overlap: Overlap, name: str) -> str:
    examples = [f"{one} is {other}" for one, other in overlap.images[:3]] or list(overlap.of_patients[:3])
    return (
        f"pretraining.data: {name} would see {len(overlap.images)} test or external image(s) of the study and "
        f"{len(overlap.of_patients)} other image(s) of their patients ({', '.join(examples)}, …); expected none: take "
        "them out of the source, or set transductive: true in this step, and every statement will say so"
    )
