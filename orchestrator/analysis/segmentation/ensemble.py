"""Ensemble of the segmentations of one arm: the vote of its models, and whether their agreement tells bad cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, UInt8

from orchestrator.analysis.failure_detection import EnsembleScores, VotedSet, measure_conditions
from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from trainables.config import TrialConfig, read_trial_config
from trainables.data.dataset import ImageSet
from trainables.errors import RobustSweepError
from trainables.evaluation.segmentation.cases import CaseMetrics, average_cases, measure_cases, summarise_cases
from trainables.evaluation.segmentation.stored import SegmentedSet, load_segmented, locate_segmented
from trainables.evaluation.segmentation_ood.ensemble_agreement import PAIRWISE_DICE, MajorityVote, PairwiseDice
from trainables.evaluation.segmentation_ood.summary import JudgedCases, summarise_segmentation_detection


@dataclass(frozen=True)
class _Vote:
    """Predictions of the members on one set, unshifted, by majority vote."""

    ids: np.ndarray
    classes: tuple[str, ...]
    predicted: UInt8[np.ndarray, "n h w"]
    #: Pairwise Dice of every case.
    agreement: Float64[np.ndarray, " n"]
    #: Mean Dice of the members; None without targets.
    member_dice: float | None


def score_segmentations(
    results: Results, ledger: Ledger, arm: str | None, cache_dir: Path | None
) -> EnsembleScores | None:
    """Return the ensemble of an arm's complete trials by majority vote, on every set that all of them saw unshifted.

    None if the arm has fewer than two trials, or they are no segmentations. Logits are not stored, so the ensemble has
    no probabilities: its confidence is the pairwise Dice of its members, whose threshold is that of validation.

    Args:
        results: tables of the study.
        ledger: ledger of the study.
        arm: name of the arm.
        cache_dir: folder of this node's decoded images, whose targets judge the vote; None: it is not judged.

    Raises:
        StorageError: a file of the ledger is damaged.
    """
    complete = results.complete[results.complete["name"] == arm].sort_values("replicate")
    signatures = [str(each) for each in complete["signature"]]
    if arm is None or len(signatures) < 2:
        return None
    stored = [set((results.records[each].result or {}).get("files", ())) for each in signatures]
    config = read_trial_config(results.records[signatures[0]].config["config"])
    names = ["test", "val", *results.external_sets, *config.evaluation.foreign]
    names = [name for name in names if all(locate_segmented(name) in files for files in stored)]
    if "test" not in names:
        return None
    votes = {name: vote for name in names if (vote := _count_votes(ledger, signatures, name)) is not None}
    if not {"val", "test"} <= {*votes}:
        reason = "No ensemble: its members were not all validated and tested on the same images (data.split)."
        return EnsembleScores(arm, {}, len(signatures), problem=reason)
    images, problem = _find_images(config, cache_dir)
    cases: dict[str, CaseMetrics] = {}
    for name, vote in votes.items():
        found = images.get(name)
        if found is not None and found.targets is not None:
            if not np.array_equal(found.ids, vote.ids):
                problem = f"The vote is not judged: the images of {name} here are not those that were evaluated."
                continue
            cases[name] = _measure(vote, np.asarray(found.targets))
    return _judge(results, config, votes, cases, EnsembleScores(arm, {}, len(signatures), problem=problem))


def _count_votes(ledger: Ledger, signatures: Sequence[str], name: str) -> _Vote | None:
    """Return the vote on one set, None if it is not the same images for all members."""
    first: SegmentedSet | None = None
    dice: list[float] = []
    for signature in signatures:
        stored = load_segmented(ledger.folder("trial", signature), name)
        if first is None:
            first, num_classes = stored, len(stored.classes) + 1
            vote, agreement = MajorityVote(num_classes), PairwiseDice(num_classes)
        if stored.predicted is None or not np.array_equal(stored.ids, first.ids):
            return None
        vote.add(stored.predicted)
        agreement.add(stored.predicted)
        dice += [average_cases(stored.metrics["dice"][0])] if stored.metrics else []
    assert first is not None
    mean = None if not dice or np.isnan(dice).all() else float(np.nanmean(dice))
    return _Vote(first.ids, first.classes, vote.compute(), agreement.compute(), mean)


def _find_images(config: TrialConfig, cache_dir: Path | None) -> tuple[Mapping[str, ImageSet], str | None]:
    """Return the test and external images, or why there are none: a report must not fail because images have moved."""
    from trainables.data.load import load_dataset

    if cache_dir is None:
        return {}, "The vote is not judged by the targets: the report was made without the images."
    try:
        data = load_dataset(config.data, cache_dir=cache_dir)
    except RobustSweepError as error:
        return {}, f"The vote is not judged, because its targets could not be had here: {error}"
    return {"test": data.splits["test"], **data.external}, None


def _measure(vote: _Vote, targets: UInt8[np.ndarray, "n h w"]) -> CaseMetrics:
    return measure_cases(
        vote.predicted,
        targets,
        classes=list(enumerate(vote.classes, start=1)),
        spacing=np.ones((len(targets), 2)),
        tolerance_mm=1.0,  # of surfaces, which are not measured
        metrics=("dice",),
    )


def _judge(
    results: Results,
    config: TrialConfig,
    votes: Mapping[str, _Vote],
    cases: Mapping[str, CaseMetrics],
    ensemble: EnsembleScores,
) -> EnsembleScores:
    """Return the ensemble with its numbers: on validation only the threshold is fixed."""
    judged = [
        JudgedCases(name, {PAIRWISE_DICE: vote.agreement}, cases[name].per_case()["dice"] if name in cases else None)
        for name, vote in votes.items()
    ]
    roles = {name: config.evaluation.find_role(name) for name in votes if name not in ("val", "test")}
    found = summarise_segmentation_detection(judged, roles=roles)
    failures = {str(row["set"]): row["metrics"] for row in found.failures}
    ood = {str(row["set"]): row["metrics"] for row in found.ood}
    voted = tuple(
        VotedSet(
            name=name,
            num_cases=len(vote.agreement),
            vote_dice=summarise_cases(cases[name]).metrics.values.get("dice") if name in cases else None,
            member_dice=vote.member_dice,
            failure=failures.get(name, {}),
            ood=ood.get(name, {}),
        )
        for name, vote in votes.items()
        if name != "val"
    )
    rows = pd.DataFrame([row | {"augrc": row["metrics"]["augrc"]} for row in found.failures])
    augrc = {} if rows.empty else {PAIRWISE_DICE: measure_conditions(results, rows, "augrc")}
    return EnsembleScores(ensemble.arm, augrc, ensemble.num_members, voted, ensemble.problem)
