"""Deep ensemble of the models of one arm: one model more, judged under the same conditions as each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float32

from orchestrator.analysis.failure_detection import DetectionRows, EnsembleScores, measure_conditions
from orchestrator.analysis.results import Results
from orchestrator.ledger.derived import find_task
from orchestrator.ledger.ledger import Ledger
from trainables.evaluation.confidence import compute_augrc
from trainables.evaluation.detection.sample_scores import average_members, compute_ensemble_scores

#: Outputs of all members on one set that are held at a time; on larger sets there is no ensemble. 200 MB.
MAX_OUTPUTS = 50_000_000


def score_ensemble(
    results: Results, ledger: Ledger, rows: DetectionRows | None, arm: str | None
) -> EnsembleScores | None:
    """Return the scores of the deep ensemble of an arm's complete trials, on every set that they are judged on.

    None without rows or an arm, with fewer than two models, of segmentations, whose outputs are not stored, or if no
    set is the same for all of them. A set that is not, or that has more outputs than ``MAX_OUTPUTS``, is left out.

    Args:
        results: tables of the study.
        ledger: ledger of the study.
        rows: ``load_detection_rows(results, ledger)``.
        arm: name of the arm.

    Raises:
        StorageError: predictions are damaged.
    """
    complete = results.complete[results.complete["name"] == arm]
    if rows is None or len(complete) < 2 or find_task(results.plan) != "classification":
        return None
    own = rows.failures[rows.failures["name"] == arm]
    signatures = [str(each) for each in complete["signature"]]
    parts = [_score_set(ledger, signatures, str(name)) for name in own["set"].unique() if name != "val"]
    cells = pd.DataFrame([row for part in parts for row in part])
    if cells.empty:
        return None
    augrc = {
        str(score): measure_conditions(results, of_score, "augrc")
        for score, of_score in cells.groupby("score", sort=False)
    }
    return EnsembleScores(str(arm), augrc, len(signatures))


def _score_set(ledger: Ledger, signatures: Sequence[str], name: str) -> list[dict[str, object]]:
    """Return a row per shift × severity and score of the ensemble on one set, none if its members cannot be joined."""
    from trainables.evaluation.predictions import load_predictions  # imports torch

    first = load_predictions(ledger.folder("trial", signatures[0]), name)
    if first.logits.size * len(signatures) > MAX_OUTPUTS:
        return []
    members: list[Float32[np.ndarray, "shifts n classes"]] = [first.logits]
    for signature in signatures[1:]:
        other = load_predictions(ledger.folder("trial", signature), name)
        if other.shifts != first.shifts or not np.array_equal(other.ids, first.ids):
            return []
        members.append(other.logits)
    found: list[dict[str, object]] = []
    for index, key in enumerate(first.shifts):
        logits = np.stack([each[index] for each in members])
        is_correct = average_members(logits).argmax(axis=1) == first.labels
        shift, severity = key.rsplit("/", 1)
        about = {"set": name, "shift": shift, "severity": int(severity)}
        for score, values in compute_ensemble_scores(logits).items():
            found.append(about | {"score": score, "augrc": compute_augrc(values, is_correct)})
    return found
