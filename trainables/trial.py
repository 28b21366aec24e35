"""MAIN PATH below the orchestrator: train and evaluate the model of one config, write its folder.

``run_trial`` (and ``stage.run_stage``) can be called from a notebook, a debugger or a bare GPU machine; they do not use
Ray or MLflow. They write the folder that the ledger reads:

    epochs.jsonl  checkpoint.safetensors (of ConfidNet in ``confidence/``)  model.safetensors  predictions/<set>.npz
    detection.json  representation.json  attribution.npz  result.json (last)

Checkpoints are removed once the model or encoder is written; if interrupted after that, a new call only evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from trainables.confidence_config import ConfidNet
from trainables.config import Execution, MatchingConfig, TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.foreign import load_evaluated
from trainables.data.load import load_dataset
from trainables.errors import CheckpointError, ConfigError
from trainables.evaluation.attribution.evaluate import evaluate_attribution
from trainables.evaluation.detection.summary import save_detection, summarise_detection
from trainables.evaluation.labels.maps import check_label_maps
from trainables.evaluation.labels.summary import summarise_views
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.representation.summary import describe_representation
from trainables.evaluation.robustness import (
    choose_shifts,
    choose_validation_shifts,
    evaluate_model,
    list_sets,
    summarise_predictions,
)
from trainables.evaluation.severities.matching import FOUND, match_strengths, read_matched
from trainables.model_config import ModelConfig
from trainables.models.confidence import add_confidence
from trainables.models.mc_dropout import find_dropout
from trainables.models.networks import Classifier, build_model
from trainables.ops.stain_normalisation import StainNormaliser, check_stainable, choose_tiles
from trainables.pretraining.imagenet import load_imagenet
from trainables.pretraining_config import ImageNetPretraining, PretrainingConfig, TrainedStep, WeightsPretraining
from trainables.regularisers import (
    Dropout,
    RegulariserConfig,
    StainNormalisation,
    StochasticDepth,
    find_part,
)
from trainables.seeding import derive_seed, seed_everything
from trainables.storage.checkpoint import is_trained, load_weights, remove_checkpoints, restore_module, save_weights
from trainables.storage.completeness import (
    ATTRIBUTION,
    CONFIG,
    DETECTION,
    EPOCHS,
    REPRESENTATION,
    RESULT,
    describe_files,
)
from trainables.storage.folder import Folder
from trainables.training.acceleration import Choice, choose_acceleration
from trainables.training.confidnet import describe_undefined, train_confidnet
from trainables.training.loop import Outcome, open_validation, resolve_precision, train_model
from trainables.training.provenance import Start, describe_run, reset_gpu_peak
from trainables.training.stopping import with_stop_check
from trainables.training.transfer.trained_part import describe_trained_part

ENCODER, MODEL = "encoder.safetensors", "model.safetensors"

#: Headline numbers of ``result.json`` that a trial reports when it is evaluated, for whoever watches.
SCORES = ("validation/balanced_accuracy", "robustness/mean_balanced_accuracy")
#: Callback for progress: {"event": "epoch" | "evaluation" | …, …}; called in this process.
Report = Callable[[dict[str, Any]], None]


def run_trial(
    config: TrialConfig,
    *,
    signature: str,
    folder: Folder,
    execution: Execution,
    encoder: Folder | None = None,
    matching: Folder | None = None,
    report: Report = lambda event: None,
) -> dict[str, Any]:
    """Train and evaluate one model; return the content of ``result.json``.

    A call after an interruption continues from the last checkpoint. A call after completion does not train again; it
    repeats the evaluation.

    With ``execution.early_stopping`` a ``stop.json`` in the folder ends the training before its next epoch: then
    nothing is evaluated and no ``result.json`` is written. A call without that file continues from there.

    Args:
        config: all settings that decide the result.
        signature: identity of the trial; checkpoints of another trial are refused.
        folder: folder of the trial; all files are written here.
        execution: device, threads and caches.
        encoder: folder of the finished stage of its last trained step; None if the trial does not start from one.
        matching: folder of the finished stage that has chosen the severities; None unless they are matched.
        report: callback for progress events.

    Raises:
        RobustSweepError: any error of ``trainables.errors``, with a message for the user.
        StopTraining: if the trial was stopped early.
    """
    started = Start.now()
    device = prepare_process(execution)
    data = load_evaluated(config.data, config.evaluation, cache_dir=execution.cache_dir.expanduser())
    config = config.model_copy(update={"evaluation": read_matched(config.evaluation, matching)})
    choose_shifts(data, config.evaluation)  # a wrong name has to fail before the training
    choose_validation_shifts(data, config.evaluation)
    check_label_maps(config.evaluation, data)
    report({"event": "started", "epochs": config.training.total_epochs})
    model, outcome, choice = _train(config, data, signature, folder, execution, encoder=encoder, report=report)
    result = _evaluate(model, data, config, choice, folder=folder, execution=execution, report=report)
    initial = build_initial_model(config, data, encoder=encoder) if config.evaluation.representation.layers else None
    found = describe_representation(model, initial, data, config.evaluation, folder, execution, choice.dtype)
    result |= {key: result[key] | getattr(found, key) for key in ("metrics", "undefined")}
    report({"event": "scores", "metrics": {name: result["metrics"].get(name) for name in SCORES}})
    result |= describe_run(signature, started, outcome, device, choice, execution)
    result["transfer"] = describe_trained_part(model, config, data)
    result["undefined"] |= describe_undefined(folder.read_lines(EPOCHS))
    result["num_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    sets = list_sets(data, config.evaluation)
    files = [MODEL, EPOCHS, DETECTION, REPRESENTATION, *(f"predictions/{name}.npz" for name in sets)]
    files += [] if config.evaluation.attribution is None else [ATTRIBUTION]
    result["files"] = describe_result_files(folder, files)
    result["checkpoint_sha256"] = result["files"][MODEL]["sha256"]
    folder.write_json(RESULT, result)
    return result


def _train(
    config: TrialConfig,
    data: Dataset,
    signature: str,
    folder: Folder,
    execution: Execution,
    *,
    encoder: Folder | None,
    report: Report,
) -> tuple[Classifier, Outcome, Choice]:
    """Return the trained model, from its file if an earlier call has written it; checkpoints are removed."""
    device = prepare_process(execution)
    model = build_initial_model(config, data, encoder=encoder)
    if config.evaluation.mc_dropout > 0:
        find_dropout(model)  # a network without it has to fail before the training
    choice = choose_acceleration(
        config, model, data, execution, device=device, precision=resolve_precision(config.training, device)
    )
    reset_gpu_peak(device)
    model = choice.place(model.to(device))
    if not is_trained(folder, MODEL):

        def tell(record: dict[str, Any]) -> None:
            report({"event": "epoch", **record})

        num_epochs = config.training.epochs
        with open_validation(model, data, config, choice, execution) as validate_shifted:
            outcome = train_model(
                model,
                data,
                config,
                signature=signature,
                folder=folder,
                report=with_stop_check(tell, folder, num_epochs=num_epochs) if execution.early_stopping else tell,
                acceleration=choice,
                validate_shifted=validate_shifted,
            )
        if isinstance(config.training.confidence, ConfidNet):
            best = train_confidnet(
                model, data, config, signature=signature, folder=folder, report=tell, acceleration=choice
            )
            outcome = replace(outcome, confidence_epoch=best)
        save_weights(folder, MODEL, model.state_dict(), {"signature": signature, "outcome": asdict(outcome)})
    elif isinstance(config.training.confidence, ConfidNet):
        add_confidence(model, config.training.confidence, seed=0)  # its weights are read
    outcome = _load_model(model, folder, signature)
    remove_checkpoints(folder)
    return model, outcome, choice


def describe_result_files(folder: Folder, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return sizes and checksums of files for ``result.json``. ``config.json`` exists only in a ledger's folders."""
    return describe_files(folder, [*([CONFIG] if folder.exists(CONFIG) else []), *names])


def _load_model(model: Classifier, folder: Folder, signature: str) -> Outcome:
    tensors, facts = load_weights(folder, MODEL)
    check_signature(MODEL, folder, facts["signature"], signature)
    restore_module(model, tensors, origin=f"{MODEL} in {folder.uri}")
    return Outcome(**facts["outcome"])


def check_signature(name: str, folder: Folder, found: str, expected: str) -> None:
    """Check that a file was written by the trial or stage that reads it.

    Raises:
        CheckpointError: another one has written it.
    """
    if found != expected:
        raise CheckpointError(
            f"read {name} in {folder.uri}: it was written by {found}, expected {expected}; "
            "remove the folder to start again"
        )


def run_matching(
    config: MatchingConfig,
    *,
    signature: str,
    folder: Folder,
    execution: Execution,
    report: Report = lambda event: None,
) -> dict[str, Any]:
    """Train the reference, choose the strengths of matched severities and return the content of ``result.json``.

    Only training and validation images are read. Arguments and errors are those of ``run_trial``, but a stage is never
    stopped early.

    Raises:
        ConfigError: if the reference is hardly better than chance.
    """
    started = Start.now()
    device = prepare_process(execution)
    data = load_dataset(config.data, cache_dir=execution.cache_dir.expanduser())
    report({"event": "started", "epochs": config.training.epochs})
    execution = execution.model_copy(update={"early_stopping": False})
    model, outcome, choice = _train(config, data, signature, folder, execution, encoder=None, report=report)
    matching = match_strengths(
        model,
        data,
        config,
        folder=folder,
        execution=execution,
        precision=choice.dtype,
        on_shift=lambda done, total: report({"event": "evaluation", "done": done, "total": total}),
    )
    result = {"status": "complete", "metrics": {"validation/balanced_accuracy": matching["clean"]}}
    result |= {"matching": matching} | describe_run(signature, started, outcome, device, choice, execution)
    result["files"] = describe_result_files(folder, [MODEL, EPOCHS, FOUND])
    folder.write_json(RESULT, result)
    return result


def prepare_process(execution: Execution) -> torch.device:
    """Set the number of threads and cuDNN's determinism for this process; return the device.

    Raises:
        ConfigError: if ``execution.device`` is not a device, or there is no GPU.
    """
    torch.set_num_threads(execution.num_threads)
    name = execution.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"execution.device: found {name!r}, expected auto, cpu, cuda or cuda:<index>") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("execution.device: asked for cuda, but torch sees no GPU; set it to auto or cpu")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("high")
    return device


def build_initial_model(config: TrialConfig, data: Dataset, *, encoder: Folder | None) -> Classifier:
    """Return the network with the initial weights of a trial.

    The seed never depends on the arm: all arms of a replicate share every initial weight whose shape agrees, and the
    head whatever the pretraining.

    Raises:
        ConfigError: if the trial starts from a stage and no finished one is given.
    """
    seed_everything(derive_seed(config.seed, config.replicate, "init"))
    model = build_network(config.model, config.pretraining, data, config.regulariser)
    load_encoder(model, config.pretraining, encoder)
    if not isinstance(config.training.confidence, ConfidNet):  # which copies the trained encoder
        seed = derive_seed(config.seed, config.replicate, "confidence")
        add_confidence(model, config.training.confidence, seed=seed)
    # From here on the global generators (dropout) start from the same state in every arm.
    seed_everything(derive_seed(config.seed, config.replicate, "training"))
    return model


def load_encoder(model: Classifier, pretraining: PretrainingConfig, encoder: Folder | None) -> None:
    """Load the weights of a stage into ``model`` if a chain ends in a trained step; its head is kept.

    Args:
        model: network of ``build_network``.
        pretraining: chain.
        encoder: folder of the finished stage of the chain's last step.

    Raises:
        ConfigError: if the step is trained and ``encoder`` holds no finished stage.
    """
    if not isinstance(pretraining, TrainedStep):
        return
    if encoder is None or not encoder.exists(ENCODER):
        raise ConfigError(
            f"pretraining: the weights are those of a stage, and there are none in {encoder}; run its stage first "
            "(run_stage) and pass its folder"
        )
    model.load_encoder(load_weights(encoder, ENCODER)[0], origin=f"the encoder in {encoder.uri}")


def build_network(
    config: ModelConfig, pretraining: PretrainingConfig, data: Dataset, regulariser: RegulariserConfig
) -> Classifier:
    """Return the network for ``data`` on the CPU, with random or published weights; a trained step's are not loaded.

    Dropout, stochastic depth and stain normalisation of the regulariser are part of it.

    Raises:
        ConfigError: if the network or the data do not fit the regulariser.
        WeightsUnavailableError: if published weights are required and cannot be loaded.
    """
    imagenet: dict[str, Tensor] | None = None
    if isinstance(pretraining, ImageNetPretraining | WeightsPretraining):
        state = torch.get_rng_state()
        imagenet = load_imagenet(config.name, pretraining)
        torch.set_rng_state(state)  # loading must not change the random initial weights
    train = data.splits["train"].images
    _, channels, _, size = train.shape
    dropout, depth = find_part(regulariser, Dropout), find_part(regulariser, StochasticDepth)
    model = build_model(
        config,
        num_classes=data.num_classes,
        channels=channels,
        image_size=size,
        dropout=0.0 if dropout is None else dropout.probability,
        stochastic_depth=None if depth is None else depth.probability,
        imagenet=imagenet,
    )
    stain = find_part(regulariser, StainNormalisation)
    if stain is not None:
        check_stainable(channels)
        model.stain = StainNormaliser(stain.method)
        if stain.target == "training":
            model.stain.fit([torch.from_numpy(train[rows]) for rows in choose_tiles(len(train))])
    return model


def _evaluate(
    model: Classifier,
    data: Dataset,
    config: TrialConfig,
    choice: Choice,
    *,
    folder: Folder,
    execution: Execution,
    report: Report,
) -> dict[str, Any]:
    shifts, left_out = choose_shifts(data, config.evaluation)
    of_validation, left_out_of_validation = choose_validation_shifts(data, config.evaluation)
    evaluate_model(
        model,
        data,
        config.evaluation,
        folder=folder,
        execution=execution,
        precision=choice.dtype,
        on_progress=lambda done, total: report({"event": "evaluation", "done": done, "total": total}),
    )
    sets = [load_predictions(folder, name) for name in ("val", "test", *data.external)]
    strengths = {f"{shift.name}/{shift.severity}": shift.strength for shift in (*shifts, *of_validation)}
    ordinal, ece_bins, maps = config.data.ordinal, config.evaluation.ece_bins, config.evaluation.label_maps
    evaluation = summarise_predictions(sets, strengths=strengths, ece_bins=ece_bins, ordinal=ordinal)
    views = summarise_views(
        sets, data.classes, maps, per_class=config.evaluation.per_class, ece_bins=ece_bins, ordinal=ordinal
    )
    names = list_sets(data, config.evaluation)
    roles = {name: config.evaluation.find_role(name) for name in (*data.external, *data.ood)}
    detection = summarise_detection(folder, names, scores=config.evaluation.confidence_scores, roles=roles)
    save_detection(folder, detection)
    attribution = evaluate_attribution(model, build_network, data, config, folder=folder, execution=execution)
    return {
        "status": "complete",
        "metrics": evaluation.metrics | views.metrics | detection.metrics | attribution.metrics,
        "validation_fit": evaluation.validation_fit,
        "classes": list(data.classes),
        "label_maps": views.label_maps,
        "evaluations": evaluation.rows,
        "undefined": evaluation.undefined | views.undefined | attribution.undefined | left_out | left_out_of_validation,
        "num_quarantined": len(data.quarantined),
    }
