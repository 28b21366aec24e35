"""Requests that a forked child process carries out: a stage or trial, the check of a study's trials, the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.execution.fork_server import serve
from orchestrator.execution.heartbeat import ending_if_orphaned
from trainables.preload import preload

if TYPE_CHECKING:
    from trainables.storage.folder import Folder

#: Command-line words of a fork server, beside the names of networks: stages will run, or segmentations.
CONTRASTIVE, SEGMENTATION = "contrastive", "segmentation"
#: Name of this module, for the slots that start a fork server on their node: ``python -m MODULE SOCKET WORDS``.
MODULE = "orchestrator.driver.child_process"


def run_request(request: Mapping[str, Any], report: Any) -> None:
    """Carry out a request in this process.

    Args:
        request: ``{"check": configs, "cache_dir": …}`` builds network, loss and shifts of these trials;
            ``{"report": study, "storage": …, "cache_dir": …}`` writes the report; ``{"folder": …, "encoder": …,
            "matching": …, "execution": …, "claims": …, "claim": …}`` runs the stage or trial whose ``config.json``
            lies in ``folder``, with the folders of finished stages as ``encoder`` and ``matching``, or None, as the
            attempt that took ``claim`` in the folder ``claims``. Requests that write also have ``lease``: the ticket of
            their driver's lease (``lease.fence``), or None to write without a lease. With ``heard`` and
            ``orphan_seconds`` a trial ends after an epoch if nobody has asked for its events for so long
            (``heartbeat``).
        report: callback for progress events.
    """
    from orchestrator.ledger.lease import guarded

    if "check" in request:
        from orchestrator.planning.inputs import Inputs
        from orchestrator.planning.trial_checks import check_trials
        from trainables.config import TrialConfig

        configs = [TrialConfig.model_validate(config) for config in request["check"]]
        check_trials(configs, Inputs(Path(request["cache_dir"])))
        return
    if "report" in request:
        from orchestrator.ledger.ledger import Ledger
        from orchestrator.report.write import write_report

        ledger = Ledger(request["storage"], request["report"])
        ledger.root = guarded(ledger.root.uri, request["lease"])
        report({"event": "report", **asdict(write_report(ledger, cache_dir=Path(request["cache_dir"])))})
        return
    _run_work(request, report)


def _run_work(request: Mapping[str, Any], report: Any) -> None:
    """Run a stage or trial as the attempt that has the claim.

    Raises:
        SupersededError: another attempt has taken over.
    """
    from orchestrator.ledger.lease import claimed
    from trainables.errors import SupersededError
    from trainables.storage.claims import parse_claim

    claim = parse_claim(request["claim"])
    assert claim is not None
    folder = claimed(request["folder"], request["claims"], claim, request["lease"])
    try:
        _train(request, folder, report)
    except SupersededError:
        raise
    except Exception as error:
        if folder.is_superseded:  # what it did not find, or found changed, is the other attempt's doing
            raise SupersededError(f"another attempt has taken over ({type(error).__name__}: {error})") from error
        raise


def _train(request: Mapping[str, Any], folder: Folder, report: Any) -> None:
    from trainables.augmentation.memory import keep_all_freed_memory
    from trainables.config import Execution, MatchingConfig, StageConfig, TrialConfig
    from trainables.stage import run_stage
    from trainables.storage.folder import Folder
    from trainables.training.joint.processes import find_processes
    from trainables.training.stopping import StopTraining
    from trainables.trial import run_matching, run_trial, train_trial

    keep_all_freed_memory()  # it is this process's own: it ends with the stage or trial
    if "heard" in request:
        report = ending_if_orphaned(report, Path(request["heard"]), request["orphan_seconds"])
    execution = Execution.model_validate(request["execution"])
    record = folder.read_json("config.json")
    signature = record["signature"]
    if record["config"].get("kind") == "matching":
        chosen = MatchingConfig.model_validate(record["config"])
        run_matching(chosen, signature=signature, folder=folder, execution=execution, report=report)
        return
    stages = {name: Folder(request[name]) if request[name] else None for name in ("encoder", "matching")}
    if record["kind"] == "stage":
        stage, start = StageConfig.model_validate(record["config"]), stages["encoder"]
        run_stage(stage, signature=signature, folder=folder, execution=execution, encoder=start, report=report)
        return
    trial = TrialConfig.model_validate(record["config"])
    run = run_trial if find_processes().count == 1 else train_trial  # a slot evaluates it then
    try:
        run(trial, signature=signature, folder=folder, execution=execution, report=report, **stages)
    except StopTraining as stop:
        report({"event": "stopped_early", "epoch": stop.epoch})


def main(path: str, *words: str) -> None:
    """Serve requests on a socket until no slot is connected (``fork_server.serve``).

    Args:
        path: path of the socket.
        words: names of the networks that trials will build, ``contrastive`` when stages will run, ``segmentation``
            when trials segment.
    """
    models = [word for word in words if word not in (CONTRASTIVE, SEGMENTATION)]

    def load_imports() -> None:
        preload(models, contrastive=CONTRASTIVE in words, segmentation=SEGMENTATION in words)

    serve(path, run_request, load_imports=load_imports)


if __name__ == "__main__":
    main(*sys.argv[1:])
