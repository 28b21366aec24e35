"""Addition of confidence scores to finished trials from their stored predictions: no training, no GPU."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from orchestrator.ledger.added_metrics import has_added, sign_request, write_added
from orchestrator.ledger.derived import invalidate
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE
from trainables.config import read_trial_config
from trainables.cpus import count_cpus

#: Fewer trials are evaluated in this process: starting others takes some seconds.
_MIN_FOR_PROCESSES = 16


@dataclass(frozen=True)
class Evaluated:
    """Outcome of one trial."""

    signature: str
    #: Whether metrics were added; False if the trial had all of these scores.
    is_new: bool
    #: Score → why the trial has none.
    undefined: dict[str, str]


def list_addable_scores() -> list[str]:
    """Return the names of the scores that a finished trial can get, without those that only its model can give."""
    from trainables.evaluation.confidence import CONFIDENCE_SCORES

    return [
        name for name, score in CONFIDENCE_SCORES.items() if score.needs in ("logits", "features", "layers", "images")
    ]


def evaluate_trials(
    ledger: Ledger, scores: Sequence[str], *, on_trial: Callable[[int, int], None] = lambda done, total: None
) -> list[Evaluated]:
    """Add scores to every complete trial of the plan that lacks them. The caller holds the lease.

    Args:
        ledger: ledger of the study.
        scores: names in ``CONFIDENCE_SCORES``.
        on_trial: callback with the numbers of trials that are done and of all.

    Raises:
        ConfigError: there is no such score, or one trial cannot have it.
        StorageError: predictions are damaged, or the storage refuses a write.
    """
    from trainables.evaluation.detection.summary import check_scores

    check_scores(scores)
    states = ledger.states()
    wanted = [trial["signature"] for trial in ledger.read_plan()["trials"]]
    complete = [signature for signature in wanted if states.get(signature) == COMPLETE]
    invalidate(ledger.root)
    done = []
    for each in _evaluate_each(ledger, complete, scores):
        done.append(each)
        on_trial(len(done), len(complete))
    return done


def _evaluate_each(ledger: Ledger, signatures: Sequence[str], scores: Sequence[str]) -> Iterator[Evaluated]:
    arguments = [(ledger.storage, ledger.study, signature, tuple(scores)) for signature in signatures]
    if len(signatures) < _MIN_FOR_PROCESSES:
        yield from (evaluate_trial(*each) for each in arguments)
        return
    with ProcessPoolExecutor(count_cpus(), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(evaluate_trial, *zip(*arguments, strict=True))


def evaluate_trial(storage: str, study: str, signature: str, scores: Sequence[str]) -> Evaluated:
    """Add scores to one complete trial, unless the same request has been answered.

    Args:
        storage: root of the ledger.
        study: name of the study.
        signature: signature of the trial.
        scores: names in ``CONFIDENCE_SCORES``.
    """
    from trainables.evaluation.detection.summary import summarise_detection

    ledger = Ledger(storage, study)
    folder = ledger.folder("trial", signature)
    request = sign_request(signature, {"scores": sorted(scores)})
    if has_added(folder, request):
        return Evaluated(signature, is_new=False, undefined=folder.read_json(f"added/{request}.json")["undefined"])
    record = ledger.read("trial", signature)
    assert record.result is not None
    evaluation = read_trial_config(record.config["config"]).evaluation
    names = [name.removesuffix(".npz") for name in (folder / "predictions").children()]
    roles = {name: evaluation.find_role(name) for name in names if name not in ("train", "val", "test")}
    summary = summarise_detection(folder, sorted(names, key=_order), scores=scores, roles=roles)
    known = record.result["metrics"]
    metrics = {name: value for name, value in summary.metrics.items() if name not in known}
    write_added(folder, request, {"scores": sorted(scores), **summary.as_json(), "metrics": metrics})
    return Evaluated(signature, is_new=True, undefined=summary.undefined)


def _order(name: str) -> tuple[int, str]:
    return (("val", "test").index(name) if name in ("val", "test") else 2, name)
