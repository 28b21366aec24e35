"""Second interval of a verdict: over replicates and patients, from the predictions that the trials have stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from orchestrator.analysis.inference.measured import Measured
from orchestrator.analysis.inference.verdicts import NO_VERDICT, NOT_ENOUGH, Verdict
from orchestrator.analysis.predictions.patients import (
    Measurement,
    PatientAssessment,
    Side,
    assess_patients,
)
from orchestrator.analysis.results import Results
from orchestrator.ledger.derived import find_task
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.hypotheses import Hypothesis, find_shift_metric, split_metric
from trainables.errors import StorageError
from trainables.evaluation.shift_means import average_shifts

#: Resamples of patients; coverage was measured with as many (``benchmarks/patients.py``).
_NUM_RESAMPLES = 400
#: Predictions of more numbers than this are not read for a report: 75 shifted copies of 2,000 images in two classes for
#: 200 models take a minute.
_MAX_NUMBERS = 60_000_000


def add_patient_intervals(results: Results, ledger: Ledger, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts, those that were decided with their interval over replicates and patients."""
    measured = Measured(results)
    return [
        each
        if each.verdict in (NO_VERDICT, NOT_ENOUGH)
        else replace(each, patients=_assess(results, ledger, each.hypothesis, measured))
        for each in verdicts
    ]


def _assess(results: Results, ledger: Ledger, hypothesis: Hypothesis, measured: Measured) -> PatientAssessment | None:
    """Return the assessment, None if the hypothesis is not about one number of two groups of arms."""
    sides = _find_sides(results, hypothesis, measured)
    if sides is None:
        return None
    treatment, control = sides
    compared = [signature for side in sides for trials in side for signature in trials]
    measurement, num_trials = _find_measurement(results, hypothesis, compared), len(compared)
    if measurement is None:
        return None
    if find_task(results.plan) != "classification":
        problem = "no interval over patients: there is none for segmentations"
        return PatientAssessment(None, problem, len(treatment))
    data = results.plan["data"]
    size = data["num_images"].get(measurement.set_name, 0) * len(data["classes"]) * len(measurement.cells) * num_trials
    if size > _MAX_NUMBERS:
        return PatientAssessment(None, "no interval over patients: too many predictions for a report", len(treatment))
    try:
        return assess_patients(
            ledger, treatment, control, measurement, seed=results.plan["seed"], num_resamples=_NUM_RESAMPLES
        )
    except StorageError as error:
        return PatientAssessment(None, f"no interval over patients: {error}", len(treatment))


def _find_measurement(results: Results, hypothesis: Hypothesis, compared: Sequence[str]) -> Measurement | None:
    """Return the number that a hypothesis is about, None if its trials were not evaluated under the same shifts."""
    kind, name, metric = split_metric(hypothesis.metric)
    if kind == "external":
        return Measurement(metric, name)
    if hypothesis.metric.startswith("id/"):
        return Measurement(hypothesis.metric.removeprefix("id/"))
    of_shifts = find_shift_metric(hypothesis.metric)
    if of_shifts is None:
        return None
    rows = results.test_rows[(results.test_rows["severity"] > 0) & results.test_rows["signature"].isin(compared)]
    found = Counter(
        (str(shift), int(severity)) for shift, severity in zip(rows["shift"], rows["severity"], strict=True)
    )
    if not found or set(found.values()) != {len(compared)}:
        return None
    cells = list(found)
    # The mean over shifts of a number that is 1 in one cell and 0 elsewhere is the weight of that cell.
    weights = average_shifts(np.eye(len(cells)), [shift for shift, _ in cells]).mean
    named = {f"{shift}/{severity}": float(weight) for (shift, severity), weight in zip(cells, weights, strict=True)}
    return Measurement(of_shifts, cells=named)


def _find_sides(results: Results, hypothesis: Hypothesis, measured: Measured) -> tuple[Side, Side] | None:
    """Return the signatures of both sides per replicate, None if they are not two, or their cells not equally large."""
    if hypothesis.kind in ("interaction", "trend", "correlation"):
        return None
    contrast = measured.find_contrast(hypothesis)
    sizes = [{len(parts[side]) for parts in contrast.cells.values()} for side in (0, 1)]
    grouping, _ = measured.group_replicates(
        sorted({arm for parts in contrast.cells.values() for part in parts for arm in part})
    )
    if any(len(found) > 1 for found in sizes) or grouping.noun != "replicate":
        return None
    complete = set(results.complete["signature"])
    sides: tuple[list[list[str]], list[list[str]]] = ([], [])
    for number in range(len(measured.replicates)):
        found = [
            [measured.find_signature(arm, number) for parts in contrast.cells.values() for arm in parts[side]]
            for side in (0, 1)
        ]
        if complete.issuperset(found[0] + found[1]):
            for side, signatures in zip(sides, found, strict=True):
                side.append(signatures)
    return sides if sides[0] else None
