"""Correlations of gains across data sets: planted gains, the exact test, and its error rate where gains share noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import scipy.stats

from orchestrator.analysis.inference.verdicts import NOT_ENOUGH, NOT_SUPPORTED, SUPPORTED, Verdict, judge
from orchestrator.analysis.results import load_results
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.verdicts import describe_evidence
from orchestrator.report.write import write_report
from orchestrator.statistics.trend import correlation_test
from orchestrator.study.hypotheses import Hypothesis, read_hypothesis
from tests.analysis.test_verdicts import claim, plant, version
from tests.support.synthetic_ledger import Fate

SETS = ("blood", "breast", "chest", "derma", "oct", "path", "retina", "tissue")
#: Gain in points of strong augmentation and of pretraining on each of them.
GAINS = dict(zip(SETS, zip((1, 2, 3, 4, 5, 6, 7, 8), (2, 1, 4, 3, 6, 5, 8, 9), strict=True), strict=True))
BASE = {
    "name": "together",
    "claim": "Where augmentation gains, pretraining gains.",
    "kind": "correlation",
    "across": "data",
    "treatment": {"augmentation": "strong"},
    "control": {"augmentation": "none"},
    "with_treatment": {"pretraining": "contrastive"},
    "with_control": {"pretraining": "scratch"},
    "direction": "higher",
    "metric": "robustness/mean_balanced_accuracy",
}


def make(**changes: Any) -> Hypothesis:
    hypothesis = read_hypothesis({**BASE, **changes})
    assert hypothesis is not None
    return hypothesis


def value(arm: Mapping[str, str], replicate: int) -> float:
    strong, pretrained = GAINS[arm["data"]]
    gained = strong * (arm["augmentation"] == "strong") + pretrained * (arm["pretraining"] == "contrastive")
    return 0.4 + 0.01 * gained + 0.05 * SETS.index(arm["data"]) + 0.02 * replicate


def plant_sets(folder: Path, sets: tuple[str, ...] = SETS, fate: Fate | None = None, replicates: int = 2) -> Ledger:
    factors = {"data": sets, "augmentation": ("none", "strong"), "pretraining": ("scratch", "contrastive")}
    return plant(folder, value, replicates=replicates, fate=fate, **factors)


def verdict_of(ledger: Ledger, hypothesis: Hypothesis) -> Verdict:
    (verdict,) = judge(load_results(claim(ledger, version(hypothesis))))
    return verdict


def expected(sets: tuple[str, ...], name: str) -> float:
    one, other = zip(*(GAINS[each] for each in sets), strict=True)
    return float(getattr(scipy.stats, name)(one, other).statistic)


def test_gains_of_two_choices_are_correlated_across_data_sets(tmp_path: Path) -> None:
    ledger = plant_sets(tmp_path)
    verdict = verdict_of(ledger, make())
    evidence = verdict.evidence
    assert evidence.effect == pytest.approx(expected(SETS, "spearmanr"))
    assert (evidence.num_units, evidence.units, evidence.interval) == (8, "8 levels of data", None)
    assert evidence.gains is not None
    assert evidence.gains["oct"] == pytest.approx((0.05, 0.06))
    again = correlation_test(*zip(*evidence.gains.values(), strict=True), coefficient="spearman", seed=0)
    assert again is not None
    assert evidence.p_value == again.p_value < 0.01
    assert verdict.verdict == SUPPORTED
    assert verdict.reason == "significant, over 8 levels of data, for these 64 trained models"
    # Each gain is of two cells and one replicate of eight data sets.
    assert (evidence.num_planned, evidence.num_complete) == (32, 32)
    assert verdict_of(ledger, make(test="pearson")).evidence.effect == pytest.approx(expected(SETS, "pearsonr"))
    assert verdict_of(ledger, make(direction="lower")).reason.startswith("significant in the other direction")
    said = describe_evidence(verdict)
    assert said.startswith("Spearman’s ρ = +0.93, p = 0.002; 8 levels of data, 32 of 32 pairs; 64 trained models, ")


def test_a_gain_on_unshifted_and_on_shifted_images(tmp_path: Path) -> None:
    """Here both are planted alike, so they are correlated perfectly: one of 6! orders, and its reversal."""
    ledger = plant_sets(tmp_path, SETS[:6], replicates=3)
    same = make(with_metric="id/balanced_accuracy", with_treatment=None, with_control=None)
    evidence = verdict_of(ledger, same).evidence
    assert (evidence.effect, evidence.p_value) == (pytest.approx(1.0), pytest.approx(2 / 720))
    assert evidence.smallest_p == pytest.approx(2 / 720)
    # Of three replicates the first and the last are one gain's, the other is the other's.
    assert evidence.num_complete == 6 * 2 * (2 + 1)
    shared = verdict_of(ledger, same.model_copy(update={"trainings": "same"})).evidence
    assert shared.num_complete == 6 * 2 * (3 + 3)


def test_five_data_sets_are_shown_and_decide_nothing(tmp_path: Path) -> None:
    verdict = verdict_of(plant_sets(tmp_path, SETS[:5]), make())
    assert (verdict.verdict, verdict.reason) == (NOT_ENOUGH, "5 levels of data, 6 are needed for p ≤ 0.05")
    assert verdict.evidence.effect == pytest.approx(expected(SETS[:5], "spearmanr"))
    assert verdict.evidence.p_value is None
    one = verdict_of(plant_sets(tmp_path / "one", SETS[:2]), make())
    assert one.reason == "no correlation across data: fewer than three have both gains"


def test_what_is_missing_counts_against_the_plan(tmp_path: Path) -> None:
    ledger = plant_sets(tmp_path, fate=Fate(missing=1))
    verdict = verdict_of(ledger, make())
    assert (verdict.verdict, verdict.evidence.num_missing) == (NOT_ENOUGH, 1)  # replicate 1 is the other gain’s
    assert verdict_of(ledger, make(max_missing=0.1)).verdict == SUPPORTED


def test_gains_that_are_all_equal_have_no_correlation(tmp_path: Path) -> None:
    ledger = plant(
        tmp_path,
        lambda arm, replicate: 0.1 + 0.2 * (arm["augmentation"] == "strong") + 0.01 * SETS.index(arm["data"]),
        replicates=2,
        data=SETS,
        augmentation=("none", "strong"),
        pretraining=("scratch", "contrastive"),
    )
    verdict = verdict_of(ledger, make())
    assert (verdict.verdict, verdict.evidence.effect) == (NOT_ENOUGH, None)
    assert verdict.reason == "no correlation across data: all of one side’s gains are equal"


def test_noise_in_both_gains_is_no_correlation(tmp_path: Path) -> None:
    """No true gain anywhere, but chance in a trained model is in its unshifted and its shifted result alike.

    From the same trainings the two "gains" are correlated in every study; from different ones no more than by chance.
    """
    seeds = itertools.count()

    def noisy(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + 0.02 * float(np.random.default_rng([7, next(seeds)]).normal())

    gain = {"with_metric": "id/balanced_accuracy", "with_treatment": None, "with_control": None}
    factors = {"data": SETS, "augmentation": ("none", "strong")}
    verdicts: dict[str, list[str]] = {"same": [], "disjoint": []}
    for study in range(4):
        ledger = plant(tmp_path / str(study), noisy, replicates=2, **factors)
        for trainings, found in verdicts.items():
            found.append(verdict_of(ledger, make(**gain, trainings=trainings)).verdict)
    assert verdicts["same"] == [SUPPORTED] * 4
    assert verdicts["disjoint"] == [NOT_SUPPORTED] * 4


@pytest.mark.parametrize("coefficient", ["spearman", pytest.param("pearson", marks=pytest.mark.long)])
def test_false_correlations_are_as_many_as_alpha_says(coefficient: Literal["spearman", "pearson"]) -> None:
    """Of 2,000 studies over 7 data sets without a correlation of the true gains.

    The noise of the mean over trainings is as large as the spread of the true gains over data sets. Where it is in both
    gains (the same trainings), 15 % (Spearman) and 18 % (Pearson) find a correlation that is not there.
    """
    generator = np.random.default_rng(2)
    rates = {}
    for trainings in ("disjoint", "same"):
        x, y, noise, other = generator.standard_normal((4, 2000, 7))
        other = noise if trainings == "same" else other
        found = [
            correlation_test(one, two, coefficient=coefficient, seed=0)
            for one, two in zip(x + noise, np.exp(y) + other, strict=True)
        ]
        rates[trainings] = np.mean([each is not None and each.p_value <= 0.05 for each in found])
    assert rates["disjoint"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)
    assert rates["same"] > 0.1


def test_the_report_shows_both_gains(tmp_path: Path) -> None:
    ledger = claim(plant_sets(tmp_path), version(make()))
    write_report(ledger, cache_dir=tmp_path, examples=False)
    page = (tmp_path / "fake-study" / "report" / "index.html").read_text()
    assert "<title>oct: +5.0 and +6.0</title>" in page
    assert "spearman over 8 levels of data" in page
    assert "Spearman’s ρ = +0.93" in page
