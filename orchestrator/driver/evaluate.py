"""Addition of confidence scores and label maps to finished trials from stored predictions: no training, no GPU."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger.added_metrics import check_label_maps, has_added, sign_request, write_added
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
    #: Whether metrics were added; False if the trial had all that was asked for.
    is_new: bool
    #: Score, or number of a label map or class → why the trial has none.
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
    arguments = [(ledger.storage, ledger.study, each, tuple(scores)) for each in _list_complete(ledger)]
    return _evaluate_each(ledger, evaluate_trial, arguments, on_trial)


def add_views(
    ledger: Ledger,
    label_maps: Mapping[str, Mapping[str, str | None]],
    *,
    per_class: bool,
    on_trial: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluated]:
    """Add the numbers of label maps, and of single classes, to every complete trial that lacks them.

    The caller holds the lease. Nothing is done if nothing is asked for.

    Args:
        ledger: ledger of the study.
        label_maps: ``evaluation.label_maps``.
        per_class: ``evaluation.per_class``.
        on_trial: callback with the numbers of trials that are done and of all.

    Raises:
        ConfigError: a map does not fit the classes of the data, or a trial has another map of the same name.
        StorageError: predictions are damaged, or the storage refuses a write.
    """
    if not label_maps and not per_class:
        return []
    maps = {name: dict(merged) for name, merged in label_maps.items()}
    arguments = [(ledger.storage, ledger.study, each, maps, per_class) for each in _list_complete(ledger)]
    return _evaluate_each(ledger, add_views_to_trial, arguments, on_trial)


def _list_complete(ledger: Ledger) -> list[str]:
    """Return the signatures of the complete trials of the plan."""
    states = ledger.states()
    wanted = [trial["signature"] for trial in ledger.read_plan()["trials"]]
    return [signature for signature in wanted if states.get(signature) == COMPLETE]


def _evaluate_each(
    ledger: Ledger,
    evaluate: Callable[..., Evaluated],
    arguments: Sequence[tuple[Any, ...]],
    on_trial: Callable[[int, int], None],
) -> list[Evaluated]:
    invalidate(ledger.root)
    done = []
    for each in _map(evaluate, arguments):
        done.append(each)
        on_trial(len(done), len(arguments))
    return done


def _map(evaluate: Callable[..., Evaluated], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Evaluated]:
    if len(arguments) < _MIN_FOR_PROCESSES:
        yield from (evaluate(*each) for each in arguments)
        return
    with ProcessPoolExecutor(count_cpus(), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(evaluate, *zip(*arguments, strict=True))


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


def add_views_to_trial(
    storage: str, study: str, signature: str, label_maps: Mapping[str, Mapping[str, str | None]], per_class: bool
) -> Evaluated:
    """Add label maps, and single classes, to one complete trial, unless it has them.

    Args:
        storage: root of the ledger.
        study: name of the study.
        signature: signature of the trial.
        label_maps: ``evaluation.label_maps``.
        per_class: ``evaluation.per_class``.
    """
    from trainables.evaluation.labels.summary import summarise_views
    from trainables.evaluation.predictions import load_predictions

    ledger = Ledger(storage, study)
    folder, record = ledger.folder("trial", signature), ledger.read("trial", signature)
    assert record.result is not None
    config = read_trial_config(record.config["config"])
    request = sign_request(signature, {"label_maps": label_maps, "per_class": per_class})
    has_all = label_maps.keys() <= check_label_maps(folder, label_maps) and not per_class
    if has_all or has_added(folder, request):
        return Evaluated(signature, is_new=False, undefined={})
    names = list(dict.fromkeys(row["set"] for row in record.result["evaluations"]))
    views = summarise_views(
        [load_predictions(folder, name) for name in names],
        record.result["classes"],
        label_maps,
        per_class=per_class,
        ece_bins=config.evaluation.ece_bins,
        ordinal=config.data.ordinal,
    )
    known = record.result["metrics"]
    metrics = {name: value for name, value in views.metrics.items() if name not in known}
    write_added(folder, request, {**vars(views), "metrics": metrics})
    return Evaluated(signature, is_new=bool(metrics), undefined=views.undefined)


def _order(name: str) -> tuple[int, str]:
    return (("val", "test").index(name) if name in ("val", "test") else 2, name)
