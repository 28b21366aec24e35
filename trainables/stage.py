"""Run of one stage: train a step of a chain of initialisation, write its encoder into its folder.

Like ``trial`` it uses neither Ray nor MLflow, and goes on from the last checkpoint after an interruption:

    epochs.jsonl  checkpoint.safetensors  encoder.safetensors  result.json (last)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainables.config import Execution, StageConfig, TrainingConfig
from trainables.data.dataset import Dataset
from trainables.models.networks import Classifier
from trainables.pretraining.imagenet import describe_weights
from trainables.pretraining.sources import join_training, load_sources
from trainables.pretraining_config import SupervisedPretraining
from trainables.regularisers import NoRegulariser
from trainables.seeding import derive_seed, seed_everything
from trainables.storage.checkpoint import is_trained, load_weights, remove_checkpoints, save_weights
from trainables.storage.completeness import EPOCHS, RESULT
from trainables.storage.folder import Folder
from trainables.training.acceleration import Choice, default_choice
from trainables.training.joint.processes import find_processes
from trainables.training.loop import Outcome, resolve_precision
from trainables.training.provenance import Start, describe_run, reset_gpu_peak
from trainables.trial import (
    ENCODER,
    Report,
    build_network,
    check_signature,
    describe_result_files,
    load_encoder,
    prepare_process,
)

#: Metric of a supervised step (``SUPERVISED_METRICS``) → name in the record of its last epoch.
OF_LAST_EPOCH = {"supervised/final_loss": "train/loss", "supervised/val_balanced_accuracy": "val/balanced_accuracy"}


def run_stage(
    config: StageConfig,
    *,
    signature: str,
    folder: Folder,
    execution: Execution,
    encoder: Folder | None = None,
    report: Report = lambda event: None,
) -> dict[str, Any]:
    """Train one step, write ``encoder.safetensors`` and return the content of ``result.json``.

    Arguments and errors are those of ``trial.run_trial``, but a stage is never stopped early; ``encoder`` is the folder
    of the finished stage of the step before it, None if that is not trained. A step may be trained by several
    processes: each calls this with the same arguments and has a device of its own; ``torch.distributed``, which the
    caller has initialised, joins them. The first one alone writes and reports; the others return {}.

    Raises:
        PeerLostError: another process is gone.
    """
    started, processes = Start.now(), find_processes()
    device = prepare_process(execution)
    reset_gpu_peak(device)
    step = config.pretraining
    data = load_sources(step.sources or (config.data,), cache_dir=execution.cache_dir.expanduser())
    tell = report if processes.is_first else lambda event: None
    tell({"event": "started", "epochs": step.epochs})
    seed_everything(derive_seed(config.seed, config.stream, "stage"))
    model = build_network(config.model, step.init, data[0], NoRegulariser(), config.task)
    load_encoder(model, step.init, encoder)
    choice = default_choice(config.model, model, resolve_precision(TrainingConfig(), device), device)
    if not processes.agree(processes.is_first and is_trained(folder, ENCODER)):
        model = choice.place(model.to(device))
        _train(model, data, config, choice, signature=signature, folder=folder, report=tell)
        if processes.is_first:
            save_weights(folder, ENCODER, model.encoder_state(), {"signature": signature})
    if not processes.is_first:
        return {}
    check_signature(ENCODER, folder, load_weights(folder, ENCODER)[1]["signature"], signature)
    remove_checkpoints(folder)
    history = folder.read_lines(EPOCHS)
    result: dict[str, Any] = {"status": "complete", **_summarise(config, history)}
    result |= describe_weights(config.model.name, step.init)
    outcome = Outcome(len(history), len(history))
    result |= describe_run(signature, started, outcome, device, choice, execution)
    result["environment"]["processes"] = processes.count
    result["files"] = describe_result_files(folder, [ENCODER, EPOCHS])
    folder.write_json(RESULT, result)
    return result


def _train(
    model: Classifier,
    data: Sequence[Dataset],
    config: StageConfig,
    choice: Choice,
    *,
    signature: str,
    folder: Folder,
    report: Report,
) -> None:
    def tell(record: dict[str, Any]) -> None:
        report({"event": "epoch", **record})

    if isinstance(config.pretraining, SupervisedPretraining):
        from trainables.pretraining.supervised import pretrain_with_labels

        pretrain_with_labels(model, data[0], config, choice, signature=signature, folder=folder, report=tell)
        return
    from trainables.pretraining.contrastive import build_monitor, pretrain_encoder  # lightly is needed here only

    pretrain_encoder(
        model,
        join_training(data),
        config,
        monitor=build_monitor(data[0], config),
        signature=signature,
        folder=folder,
        report=tell,
    )


def _summarise(config: StageConfig, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what ``result.json`` says of the training of a stage: its headline numbers, and a collapse verdict."""
    if isinstance(config.pretraining, SupervisedPretraining):
        last = history[-1]["metrics"]
        return {"metrics": {name: last[key] for name, key in OF_LAST_EPOCH.items() if key in last}}
    from trainables.pretraining.contrastive import summarise_history

    return summarise_history(history)
