"""MAIN PATH below the orchestrator: train and evaluate the model of one config, write its folder.

``run_trial`` and ``stage.run_stage`` (in several processes ``train_trial`` before ``run_trial``) can be called from a
notebook, a debugger or a bare GPU machine; they do not use Ray or MLflow. They write the folder that the ledger reads:

    epochs.jsonl  checkpoint.safetensors (of ConfidNet in ``confidence/``)  model.safetensors  predictions/<set>.npz
    detection.json  representation.json  attribution.npz  cases/<set>.npz  result.json (last)

What is between the network and the files depends on the task (``tasks``).

Checkpoints are removed once the model or encoder is written; if interrupted after that, a new call only evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainables.confidence_config import ConfidNet
from trainables.config import Execution, MatchingConfig, TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.foreign import load_evaluated
from trainables.data.load import load_dataset
from trainables.errors import CheckpointError, ConfigError
from trainables.evaluation.severities.matching import FOUND, match_strengths, read_matched
from trainables.model_config import ModelConfig
from trainables.models.confidence import add_confidence
from trainables.models.networks import Classifier
from trainables.pretraining.imagenet import describe_weights, load_imagenet
from trainables.pretraining_config import ImageNetPretraining, PretrainingConfig, TrainedStep, WeightsPretraining
from trainables.regularisers import (
    RegulariserConfig,
)
from trainables.seeding import derive_seed, seed_everything
from trainables.storage.checkpoint import is_trained, load_weights, remove_checkpoints, restore_module, save_weights
from trainables.storage.completeness import (
    CONFIG,
    EPOCHS,
    RESULT,
    describe_files,
)
from trainables.storage.folder import Folder
from trainables.task_config import ClassificationTask, TaskConfig
from trainables.tasks.find import find_task
from trainables.tasks.task import Trained
from trainables.training.acceleration import Choice, default_choice
from trainables.training.confidnet import describe_undefined, train_confidnet
from trainables.training.joint.processes import find_processes
from trainables.training.loop import Outcome, resolve_precision, train_learner
from trainables.training.provenance import Start, describe_run, reset_gpu_peak
from trainables.training.stopping import with_stop_check
from trainables.training.transfer.trained_part import describe_trained_part

ENCODER, MODEL = "encoder.safetensors", "model.safetensors"

_CLASSIFICATION = ClassificationTask()
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
    task = find_task(config.task)
    task.check(config, data)  # a wrong name has to fail before the training
    report({"event": "started", "epochs": config.training.total_epochs})
    model, outcome, choice = _train(config, data, signature, folder, execution, encoder=encoder, report=report)
    trained = Trained(
        model,
        data,
        config,
        choice,
        folder,
        execution,
        build_network=partial(build_network, task=config.task),
        build_initial=lambda: build_initial_model(config, data, encoder=encoder),
    )
    found = task.evaluate(trained, lambda done, total: report({"event": "evaluation", "done": done, "total": total}))
    files = found.pop("files")
    result = {"status": "complete", **found, "num_quarantined": len(data.quarantined)}
    report({"event": "scores", "metrics": {name: result["metrics"].get(name) for name in task.scores}})
    result |= describe_run(signature, started, outcome, device, choice, execution)
    result["environment"]["processes"] = max(line.get("processes", 1) for line in folder.read_lines(EPOCHS))
    result["transfer"] = describe_trained_part(model, config, data)
    result["undefined"] |= describe_undefined(folder.read_lines(EPOCHS))
    result |= describe_weights(config.model.name, config.pretraining)
    result["num_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    result["files"] = describe_result_files(folder, [MODEL, EPOCHS, *files])
    result["checkpoint_sha256"] = result["files"][MODEL]["sha256"]
    folder.write_json(RESULT, result)
    return result


def train_trial(
    config: TrialConfig,
    *,
    signature: str,
    folder: Folder,
    execution: Execution,
    encoder: Folder | None = None,
    matching: Folder | None = None,
    report: Report = lambda event: None,
) -> None:
    """Train one model in several processes; leave its last checkpoint, from which ``run_trial`` goes on in one process.

    Each process calls this with the same arguments and has a device of its own; ``torch.distributed``, which the caller
    has initialised, joins them. The first one alone writes and reports; ``trained`` is the last event.

    Arguments and errors are those of ``run_trial``; also:

    Raises:
        PeerLostError: another process is gone.
    """
    processes, device = find_processes(), prepare_process(execution)
    tell = report if processes.is_first else lambda event: None
    data = load_evaluated(config.data, config.evaluation, cache_dir=execution.cache_dir.expanduser())
    config = config.model_copy(update={"evaluation": read_matched(config.evaluation, matching)})
    find_task(config.task).check(config, data)
    tell({"event": "started", "epochs": config.training.total_epochs})
    if not processes.agree(processes.is_first and is_trained(folder, MODEL)):
        model, choice = _place_model(config, data, execution, device, encoder=encoder)
        choice = choice.model_copy(update={"compiled": False})  # batch statistics are not those of the compiled network
        _fit((model, choice), data, config, signature, folder, execution, report=tell)
    tell({"event": "trained"})


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
    model, choice = _place_model(config, data, execution, prepare_process(execution), encoder=encoder)
    if not is_trained(folder, MODEL):
        outcome = _fit((model, choice), data, config, signature, folder, execution, report=report)
        if isinstance(config.training.confidence, ConfidNet):
            best = train_confidnet(
                model,
                data,
                config,
                signature=signature,
                folder=folder,
                report=_as_event(report),
                acceleration=choice,
            )
            outcome = replace(outcome, confidence_epoch=best)
        save_weights(folder, MODEL, model.state_dict(), {"signature": signature, "outcome": asdict(outcome)})
    elif isinstance(config.training.confidence, ConfidNet):
        add_confidence(model, config.training.confidence, seed=0)  # its weights are read
    outcome = _load_model(model, folder, signature)
    remove_checkpoints(folder)
    return model, outcome, choice


def _place_model(
    config: TrialConfig, data: Dataset, execution: Execution, device: torch.device, *, encoder: Folder | None
) -> tuple[Classifier, Choice]:
    """Return the network with its initial weights on its device, and how it runs there."""
    model = build_initial_model(config, data, encoder=encoder).to(device)
    default = default_choice(config.model, model, resolve_precision(config.training, device), device)
    choice = find_task(config.task).choose_acceleration(config, model, data, execution, default)
    reset_gpu_peak(device)
    return choice.place(model), choice


def _fit(
    placed: tuple[Classifier, Choice],
    data: Dataset,
    config: TrialConfig,
    signature: str,
    folder: Folder,
    execution: Execution,
    *,
    report: Report,
) -> Outcome:
    """Train the model in place, from its last checkpoint; with ``execution.early_stopping`` stop where it says so.

    Args:
        placed: network and how it runs (``_place_model``).
        data: data set.
        config: config of the trial.
        signature: identity of the trial.
        folder: folder of the trial.
        execution: device, threads and caches.
        report: callback for progress events.
    """
    (model, choice), tell = placed, _as_event(report)
    if execution.early_stopping:
        tell = with_stop_check(tell, folder, num_epochs=config.training.epochs, processes=find_processes())
    with find_task(config.task).open_learner(model, data, config, choice, execution) as learner:
        return train_learner(learner, config, signature=signature, folder=folder, report=tell)


def _as_event(report: Report) -> Report:
    """Return a callback for the record of an epoch, which reports it as an event."""
    return lambda record: report({"event": "epoch", **record})


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
    model = build_network(config.model, config.pretraining, data, config.regulariser, config.task)
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
    config: ModelConfig,
    pretraining: PretrainingConfig,
    data: Dataset,
    regulariser: RegulariserConfig,
    task: TaskConfig = _CLASSIFICATION,
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
    return find_task(task).build_network(config, data, regulariser, imagenet)
