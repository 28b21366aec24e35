"""Verdicts on results with planted effects: the rule, what is paired with what, corrections, and how they are shown."""

from __future__ import annotations

import csv
import itertools
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from orchestrator.analysis.balanced_errors import balanced_errors_table
from orchestrator.analysis.effects import compute_effects
from orchestrator.analysis.inference.evidence import Agreement, Evidence
from orchestrator.analysis.inference.verdicts import (
    CONTRADICTED,
    NO_VERDICT,
    NOT_ENOUGH,
    NOT_SUPPORTED,
    SUPPORTED,
    SUPPORTED_DIRECTION,
    Corrected,
    Verdict,
    decide,
    judge,
    verdicts_table,
)
from orchestrator.analysis.results import load_results
from orchestrator.ledger.derived import read_verdicts
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.write import write_report
from orchestrator.statistics.intervals import Interval
from orchestrator.study.hypotheses import Hypothesis, describe_comparison, describe_hypothesis
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.projection import project_verdicts
from tests.study.test_hypotheses import SIDES, make
from tests.support.ledger_records import make_ledger
from tests.support.mlflow_stores import make_database, make_tracker
from tests.support.synthetic_ledger import Fate, make_fake_ledger
from trainables.evaluation.metrics import is_higher_better
from trainables.evaluation.site_means import summarise_sites

METRIC = "robustness/mean_balanced_accuracy"
#: Levels of a trial and its replicate → the value of every metric.
Value = Callable[[Mapping[str, str], int], float]


def version(*hypotheses: Hypothesis, complete: int = 0, moment_ms: int = 1) -> dict[str, Any]:
    return {
        "registered_ms": moment_ms,
        "num_complete": complete,
        "sha256": "0" * 64,
        "hypotheses": [describe_hypothesis(hypothesis) for hypothesis in hypotheses],
        "after_damage": False,
    }


def claim(ledger: Ledger, *versions: dict[str, Any]) -> Ledger:
    """Write versions of hypotheses into the plan of a finished study."""
    plan = ledger.read_plan()
    ledger.root.write_json("plan.json", plan | {"hypotheses": {"versions": list(versions)}})
    return ledger


def plant(folder: Path, value: Value, *, replicates: int = 6, fate: Fate | None = None, **factors: Any) -> Ledger:
    """Return a finished study whose metrics are ``value``; its shifts differ by a constant of their own."""
    factors = factors or {"augmentation": ("none", "strong")}
    ledger = make_fake_ledger(folder, factors=factors, replicates=replicates, fate=fate, externals=())
    for trial in ledger.read_plan()["trials"]:
        place = ledger.folder("trial", trial["signature"])
        if place.exists("result.json"):
            result, planted = place.read_json("result.json"), value(trial["arm"], trial["replicate"])
            for number, evaluation in enumerate(result["evaluations"]):
                shifted = planted + 1e-3 * (number // 5) * bool(evaluation["severity"])
                evaluation["metrics"] = dict.fromkeys(evaluation["metrics"], shifted)
            result["metrics"] = dict.fromkeys(result["metrics"], planted)
            place.write_json("result.json", result)
    return ledger


def verdict_of(ledger: Ledger, hypothesis: Hypothesis) -> Verdict:
    (verdict,) = judge(load_results(claim(ledger, version(hypothesis))))
    return verdict


def noise(*keys: Any) -> float:
    return float(np.random.default_rng([zlib.crc32(str(key).encode()) for key in keys]).normal())


# ------------------------------------------------------------------ the rule


def found(effect: float, **changes: Any) -> Evidence:
    evidence = Evidence(
        effect, Interval(effect - 0.01, effect + 0.01, 8), 0.01, 0.01, (effect,) * 8, 0.01, 6, "8 replicates", 8, 8, {}
    )
    return replace(evidence, **changes)


#: The claimed size is .01 everywhere.
@pytest.mark.parametrize(
    ("direction", "evidence", "p_claim", "p_size", "verdict", "reason"),
    [
        ("higher", found(0.03), 0.05, 0.05, SUPPORTED, "significantly larger than claimed"),
        ("higher", found(0.03), 0.05, 0.051, SUPPORTED_DIRECTION, "size not shown"),
        ("higher", found(0.03), 0.05, None, SUPPORTED_DIRECTION, "size not shown"),
        ("higher", found(0.03), 0.051, 0.051, NOT_SUPPORTED, "not significant"),
        ("higher", found(0.009), 0.01, 0.6, SUPPORTED_DIRECTION, "size not shown"),
        (
            "higher",
            found(0.005),
            0.01,
            0.01,
            CONTRADICTED,
            "the direction holds, but",
        ),
        ("higher", found(0.0), 0.9, 0.01, CONTRADICTED, "the effect is significantly smaller than claimed"),
        ("higher", found(-0.03), 0.01, 0.01, CONTRADICTED, "other direction"),
        ("higher", found(-0.03), 0.2, 0.06, NOT_SUPPORTED, "not significant"),
        ("lower", found(-0.03), 0.01, 0.01, SUPPORTED, "significantly larger than claimed"),
        ("lower", found(0.03), 0.01, 0.01, CONTRADICTED, "other direction"),
        ("lower", found(-0.005), 0.01, 0.01, CONTRADICTED, "significantly smaller"),
        ("two-sided", found(-0.03), 0.01, 0.01, SUPPORTED, "significantly larger than claimed"),
        ("two-sided", found(0.0), 0.9, 0.04, CONTRADICTED, "significantly smaller"),
        ("two-sided", found(0.0), 0.9, 0.06, NOT_SUPPORTED, "not significant"),
        ("higher", found(0.03), None, None, NOT_SUPPORTED, "exactly 0"),
        ("higher", found(0.03, num_complete=7), 0.01, 0.01, NOT_ENOUGH, "1 of 8 planned pairs are missing"),
        ("higher", found(0.03, differences=(0.03,) * 5), 0.01, 0.01, NOT_ENOUGH, "6 are needed for p ≤ 0.05"),
        ("higher", found(0.03, problem="nothing"), None, None, NOT_ENOUGH, "nothing"),
        ("higher", found(0.03, agreement=Agreement(13, 15)), None, None, NO_VERDICT, "consistent over 13 of 15 shift"),
        (
            "higher",
            found(0.03, agreement=Agreement(13, 15, 4, 5)),
            None,
            None,
            NO_VERDICT,
            "4 of 5 shift families",
        ),
    ],
)
def test_the_rule(
    direction: str, evidence: Evidence, p_claim: float | None, p_size: float | None, verdict: str, reason: str
) -> None:
    decided = decide(make(direction=direction), evidence, Corrected(p_claim, p_size), 0.01)
    assert decided[0] == verdict
    assert reason in decided[1]


def test_any_effect_counts_where_no_size_is_claimed() -> None:
    anything = make(smallest_effect=0)
    assert decide(anything, found(1e-9), Corrected(0.01), 0.01) == (SUPPORTED, "significant")
    assert decide(anything, found(-0.1), Corrected(0.06), 0.01)[0] == NOT_SUPPORTED


@pytest.mark.parametrize(
    ("kind", "metric", "effect", "p_claim", "p_size", "verdict"),
    [
        ("equivalence", METRIC, 0.02, 0.05, None, SUPPORTED),
        ("equivalence", METRIC, 0.02, 0.06, None, NOT_SUPPORTED),
        ("equivalence", METRIC, 0.07, 0.9, None, NOT_SUPPORTED),
        ("non_inferiority", METRIC, -0.01, 0.01, None, SUPPORTED),
        ("non_inferiority", METRIC, -0.01, 0.06, None, NOT_SUPPORTED),
        ("non_inferiority", METRIC, -0.09, 0.01, None, CONTRADICTED),
        ("non_inferiority", "calibration/ece", 0.01, 0.01, None, SUPPORTED),
        ("non_inferiority", "calibration/ece", 0.09, 0.01, None, CONTRADICTED),
    ],
)
def test_the_rule_for_a_margin_of_five_points(
    kind: str, metric: str, effect: float, p_claim: float, p_size: float | None, verdict: str
) -> None:
    hypothesis = make(kind=kind, margin=0.05, metric=metric, **SIDES)
    assert decide(hypothesis, found(effect), Corrected(p_claim, p_size), 0.01)[0] == verdict


def test_some_pairs_may_be_missing_where_the_hypothesis_says_so() -> None:
    evidence, p_values = found(0.03, num_complete=7), Corrected(0.01, 0.01)
    assert decide(make(max_missing=0.125), evidence, p_values, 0.01)[0] == SUPPORTED
    assert decide(make(max_missing=0.12), evidence, p_values, 0.01)[0] == NOT_ENOUGH


def test_a_family_too_large_for_its_replicates_is_not_enough_data() -> None:
    assert decide(make(), found(0.03), Corrected(0.06, 0.06), 0.06) == (
        NOT_ENOUGH, "8 replicates cannot give p ≤ 0.05 after correction for the family",
    )  # fmt: skip


# ------------------------------------------------------------------ what is paired


def test_pairs_share_all_else_and_the_replicate(tmp_path: Path) -> None:
    """What the replicate and the other factor do is large, and cancels."""

    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + 0.05 * replicate + 0.1 * (arm["pretraining"] == "b") + 0.02 * (arm["augmentation"] == "strong")

    ledger = plant(tmp_path, value, augmentation=("none", "strong"), pretraining=("a", "b"))
    verdict = verdict_of(ledger, make())
    evidence = verdict.evidence
    assert evidence.effect == pytest.approx(0.02)
    assert evidence.interval is not None
    assert evidence.interval.low == pytest.approx(evidence.interval.high)
    assert (evidence.num_units, evidence.units) == (6, "6 replicates")
    assert (evidence.num_planned, evidence.num_complete, evidence.num_missing) == (12, 12, 0)
    assert evidence.p_value == pytest.approx(2 / 2**6)
    assert evidence.means["treatment"] - evidence.means["control"] == pytest.approx(0.02)
    assert verdict.verdict == SUPPORTED
    assert verdict_of(ledger, make(where={"pretraining": "b"})).evidence.num_planned == 6


def test_an_interaction_and_a_trend_are_found(tmp_path: Path) -> None:
    def value(arm: Mapping[str, str], replicate: int) -> float:
        strength = float(arm["strength"])
        return 0.5 + 0.01 * replicate + (0.04 * strength if arm["pretraining"] == "a" else 0.01 * strength)

    ledger = plant(tmp_path, value, strength=("0", "0.5", "1"), pretraining=("a", "b"))
    sides = {"treatment": {"strength": 1}, "control": {"strength": 0}}
    ends = {"at": {"pretraining": "a"}, "versus": {"pretraining": "b"}}
    interaction = verdict_of(ledger, make(kind="interaction", **sides, **ends))
    assert interaction.evidence.effect == pytest.approx(0.03)
    assert interaction.evidence.num_planned == 6
    assert interaction.verdict == SUPPORTED
    trend = verdict_of(ledger, make(kind="trend", factor="strength"))
    assert trend.evidence.effect == pytest.approx(0.025)
    assert trend.evidence.p_value == pytest.approx(2 / 6**6, abs=2e-4)
    assert trend.verdict == SUPPORTED
    falling = verdict_of(ledger, make(kind="trend", factor="strength", direction="lower"))
    assert (falling.verdict, falling.reason) == (CONTRADICTED, "significant in the other direction")


def test_the_trend_of_a_difference_is_found(tmp_path: Path) -> None:
    """The metric falls with strength everywhere; what pretraining gains rises by two points from 0 to 1."""

    def value(arm: Mapping[str, str], replicate: int) -> float:
        strength = float(arm["strength"])
        return 0.5 + 0.01 * replicate - 0.1 * strength + 0.02 * (arm["pretraining"] == "a") * strength

    ledger = plant(tmp_path, value, strength=("0", "0.5", "1"), pretraining=("a", "b"))
    sides = {"treatment": {"pretraining": "a"}, "control": {"pretraining": "b"}}
    grows = make(kind="trend", factor="strength", **sides)
    verdict = verdict_of(ledger, grows)
    assert verdict.evidence.effect == pytest.approx(0.02)
    assert verdict.evidence.p_value == pytest.approx(2 / 6**6, abs=2e-4)
    assert verdict.evidence.smallest_p == pytest.approx(2 / 2**6)  # of the size
    assert verdict.verdict == SUPPORTED
    assert describe_comparison(grows) == "trend of pretraining=a against pretraining=b over strength"
    assert verdict_of(ledger, make(kind="trend", factor="strength")).verdict == CONTRADICTED


def test_ranks_and_line_that_disagree_show_no_trend(tmp_path: Path) -> None:
    values = {"0": 0.9, "1": 0.5, "2": 0.51, "30": 0.52}  # the line falls by its first point, most steps rise
    ledger = plant(tmp_path, lambda arm, replicate: values[arm["x"]] + 0.001 * replicate, x=tuple(values))
    evidence = verdict_of(ledger, make(kind="trend", factor="x", levels=[1, 2, 30])).evidence
    assert evidence.effect is not None
    assert evidence.effect > 0
    values["30"] = 0.89
    ledger = plant(tmp_path / "other", lambda arm, replicate: values[arm["x"]], x=tuple(values))
    evidence = verdict_of(ledger, make(kind="trend", factor="x")).evidence
    assert evidence.effect is not None
    assert (evidence.effect > 0, evidence.p_value) == (True, 1.0)


@pytest.mark.parametrize("test", ["wilcoxon_signed_rank", "sign"])
def test_signs_and_ranks_that_point_away_from_the_mean_support_nothing(tmp_path: Path, test: str) -> None:
    """Fifteen of sixteen replicates fall a little, one rises so much that the mean does."""

    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.4 + (0.3 if replicate == 3 else -0.002 - 1e-5 * replicate) * (arm["augmentation"] == "strong")

    ledger = plant(tmp_path, value, replicates=16)
    verdict = verdict_of(ledger, make(test=test, smallest_effect=0.0))
    assert verdict.evidence.effect == pytest.approx((0.3 - 0.03 - 1e-5 * 117) / 16)
    assert (verdict.verdict, verdict.evidence.p_value) == (NOT_SUPPORTED, 1.0)
    margin = verdict_of(ledger, make(kind="equivalence", **SIDES, margin=0.01, test=test))
    assert (margin.verdict, margin.evidence.p_value) == (NOT_SUPPORTED, 1.0)  # .017 is beyond .01


def test_shifts_that_differ_by_rounding_agree_with_nothing(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, replicate: 0.1 + 0.2 if arm["augmentation"] == "strong" else 0.3)
    assert verdict_of(ledger, make(over="shifts")).evidence.agreement == Agreement(0, 14, 0, 4)


def test_shifts_give_no_verdict(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, replicate: 0.5 + 0.1 * (arm["augmentation"] == "strong"), replicates=8)
    verdict = verdict_of(ledger, make(over="shifts"))
    assert verdict.verdict == NO_VERDICT
    expected = "consistent over 4 of 4 shift families (14 of 14 shift types), for these 16 trained models"
    assert verdict.reason == expected
    evidence = verdict.evidence
    assert (evidence.interval, evidence.p_value, evidence.p_size, verdict.corrected.claim) == (None, None, None, None)
    other = verdict_of(ledger, make(over="shifts", direction="lower"))
    assert other.evidence.agreement == Agreement(0, 14, 0, 4)
    # It takes no part of the family's α either.
    both = judge(load_results(claim(ledger, version(make(), make(name="i", over="shifts")))))
    assert both[0].corrected.claim == both[0].evidence.p_value == 2 / 2**8


def shift_by(ledger: Ledger, change: Callable[[Mapping[str, str], str, int], float]) -> Ledger:
    """Add ``change(arm, shift, severity)`` to every value under shift."""
    for trial in ledger.read_plan()["trials"]:
        place = ledger.folder("trial", trial["signature"])
        result = place.read_json("result.json")
        for each in result["evaluations"]:
            if each["severity"]:
                more = change(trial["arm"], each["shift"], each["severity"])
                each["metrics"] = {name: value + more for name, value in each["metrics"].items()}
        place.write_json("result.json", result)
    return ledger


def test_families_count_by_the_mean_over_their_shifts(tmp_path: Path) -> None:
    """Four noises gain 1 or lose 4 points: of the types most gain, the family loses."""

    def change(arm: Mapping[str, str], shift: str, severity: int) -> float:
        return (arm["augmentation"] == "strong") * (-0.04 if shift == "shot_noise" else 0.01)

    ledger = shift_by(plant(tmp_path, lambda arm, replicate: 0.5), change)
    assert verdict_of(ledger, make(over="shifts")).evidence.agreement == Agreement(13, 14, 3, 4)
    own = {"grain": ["shot_noise"], "pixels": ["pixelate", "jpeg"]}
    assert verdict_of(ledger, make(over="shifts", families=own)).evidence.agreement == Agreement(13, 14, 4, 5)


def test_a_family_as_a_metric_is_the_mean_over_its_shifts(tmp_path: Path) -> None:
    def change(arm: Mapping[str, str], shift: str, severity: int) -> float:
        gain = {"jpeg": 0.02, "pixelate": 0.05, "shot_noise": 0.3}.get(shift, 0.0)
        return (arm["augmentation"] == "strong") * gain * severity / 3

    ledger = shift_by(plant(tmp_path, lambda arm, replicate: 0.3), change)
    verdict = verdict_of(ledger, make(metric="family/digital/accuracy"))
    assert verdict.evidence.effect == pytest.approx(0.035)
    assert verdict.verdict == SUPPORTED
    own = {"grain": ["shot_noise", "jpeg", "pixelate", "saturation"]}
    effect = verdict_of(ledger, make(metric="family/grain/ece", families=own)).evidence.effect
    assert effect == pytest.approx((0.02 + 0.05 + 0.3) / 4)
    assert verdict_of(ledger, make(metric="family/weather/ece")).verdict == NOT_ENOUGH
    trials = load_results(ledger).trials
    shown = trials.groupby("arm/augmentation")["family/digital/balanced_accuracy"].mean()
    assert shown["strong"] - shown["none"] == pytest.approx(0.035)


def test_a_slope_over_severity_shows_a_gain_that_grows(tmp_path: Path) -> None:
    def change(arm: Mapping[str, str], shift: str, severity: int) -> float:
        strong = arm["augmentation"] == "strong"
        bent = 0.03 * (severity - 3) ** 2 * (shift == "jpeg")  # symmetric: no part of a line
        return (0.2 - 0.01 * severity if strong else -0.03 * severity) * (shift in ("jpeg", "pixelate")) + bent

    ledger = shift_by(plant(tmp_path, lambda arm, replicate: 0.5 + 0.001 * replicate), change)
    for name in ("jpeg", "digital"):
        verdict = verdict_of(ledger, make(metric=f"slope/{name}/accuracy"))
        assert verdict.evidence.effect == pytest.approx(0.08)
        assert verdict.evidence.means["treatment"] == pytest.approx(-0.04, abs=2e-3)  # shifts differ a little
        assert (verdict.verdict, verdict.evidence.units) == (SUPPORTED, "6 replicates")
    wide = verdict_of(ledger, make(metric="slope/mixed/accuracy", families={"mixed": ["jpeg", "snow", "shot_noise"]}))
    assert wide.evidence.effect == pytest.approx(0.04)


def test_a_drop_is_what_the_shifted_images_take_absolute_and_relative(tmp_path: Path) -> None:
    def change(arm: Mapping[str, str], shift: str, severity: int) -> float:
        strong = arm["augmentation"] == "strong"
        return {"jpeg": 0.01 if strong else 0.03, "pixelate": 0.02}.get(shift, 0.0) * -severity

    ledger = shift_by(plant(tmp_path, lambda arm, replicate: 0.5 + 0.1 * (arm["augmentation"] == "strong")), change)
    results = load_results(ledger)
    rows = results.test_rows
    unshifted = rows[rows["severity"] == 0].set_index("signature")["accuracy"]
    shifted = (
        rows[(rows["severity"] > 0) & (rows["shift"] == "jpeg")].groupby("signature", observed=True)["accuracy"].mean()
    )
    arm = results.trials.set_index("signature")["arm/augmentation"]
    for name, scale in (("drop", 1.0), ("relative_drop", unshifted)):
        means = ((unshifted - shifted) / scale).groupby(arm.reindex(unshifted.index)).mean()
        evidence = verdict_of(ledger, make(metric=f"{name}/jpeg/accuracy", direction="lower")).evidence
        assert evidence.effect == pytest.approx(means["strong"] - means["none"])
        assert evidence.means["treatment"] == pytest.approx(means["strong"])
    effects = [
        verdict_of(ledger, make(metric=metric)).evidence.effect
        for metric in ("drop/digital/accuracy", "family/digital/accuracy", "id/accuracy")
    ]
    assert effects[0] == pytest.approx(effects[2] - effects[1])
    rise = verdict_of(ledger, make(metric="drop/jpeg/ece", direction="lower")).evidence.means["treatment"]
    errors = (
        rows[rows["signature"].isin(arm[arm == "strong"].index)]
        .groupby(["shift", "severity"], observed=True)["ece"]
        .mean()
    )
    assert rise == pytest.approx(errors["jpeg"].mean() - errors.xs(0, level="severity").mean())
    assert is_higher_better("drop/jpeg/accuracy") is is_higher_better("relative_drop/mean/ece") is False


def test_be_and_rbe_are_relative_to_the_reference_replicate_by_replicate(tmp_path: Path) -> None:
    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.7 + 0.02 * noise(arm["augmentation"], replicate)

    def change(arm: Mapping[str, str], shift: str, severity: int) -> float:
        harm = {"jpeg": 0.1, "pixelate": 0.2, "shot_noise": 0.3}.get(shift, 0.0)
        return -harm * severity / 3 * {"none": 1.0, "strong": 0.5}[arm["augmentation"]] + 0.02 * noise(arm, shift)

    ledger = shift_by(plant(tmp_path, value, replicates=8), change)
    reference = str(ledger.read_plan()["trials"][0]["name"])
    ledger.root.write_json("plan.json", ledger.read_plan() | {"reference": {"arm": reference}})
    table = balanced_errors_table(load_results(ledger)).set_index("label")
    lower = {"direction": "lower", "smallest_effect": 0.0}
    for kind in ("be", "rbe"):
        evidence = verdict_of(ledger, make(metric=f"{kind}/mean", **lower)).evidence
        assert evidence.means["control"] == pytest.approx(1.0)
        assert evidence.means["treatment"] == pytest.approx(table.loc["strong", kind])
        # The reference is 1 in every replicate, so the interval is that of the table, less 1.
        assert evidence.interval is not None
        ends = (evidence.interval.low, evidence.interval.high)
        assert ends == pytest.approx((table.loc["strong", f"{kind}_low"] - 1, table.loc["strong", f"{kind}_high"] - 1))
    errors = 1 - load_results(ledger).test_rows.pivot_table(
        "balanced_accuracy", ["shift", "severity"], "name", observed=True
    )
    means = errors.groupby("shift", observed=True).mean()
    losses = means - means.loc["identity"]
    ratios = (losses["augmentation=strong"] / losses["augmentation=none"]).loc[["jpeg", "pixelate"]]
    digital = verdict_of(ledger, make(metric="rbe/digital", **lower))
    assert digital.evidence.means["treatment"] == pytest.approx(ratios.mean())
    assert digital.verdict == SUPPORTED
    assert verdict_of(ledger, make(metric="rbe/weather", **lower)).verdict == NOT_ENOUGH


def test_be_relative_to_a_table(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, replicate: 0.5 + 0.1 * (arm["augmentation"] == "strong"))
    table = {"table": "alexnet.csv", "clean": 0.1, "shifted": {"jpeg": 0.5, "shot_noise": 0.8, "snow": 0.5}}
    ledger.root.write_json("plan.json", ledger.read_plan() | {"reference": table})
    for name, share in (("digital", 0.1 / 0.5), ("noise", 0.1 / 0.8), ("mean", (0.1 / 0.5 + 0.1 / 0.8) / 2)):
        evidence = verdict_of(ledger, make(metric=f"be/{name}", direction="lower", smallest_effect=0.0)).evidence
        assert evidence.effect == pytest.approx(-share)


def plant_sites(
    folder: Path,
    factors: Mapping[str, tuple[str, ...]],
    value: Callable[[Mapping[str, str], int], Mapping[str, float]],
    *,
    replicates: int = 6,
) -> Ledger:
    """Write a study whose trials have an accuracy at the external sites that ``value`` gives."""
    ledger = make_fake_ledger(folder, factors=factors, replicates=replicates, externals=())
    for trial in ledger.read_plan()["trials"]:
        place = ledger.folder("trial", trial["signature"])
        result = place.read_json("result.json")
        found = value(trial["arm"], trial["replicate"])
        rows = [
            {"set": site, "shift": "identity", "severity": 0, "strength": None, "num_images": 40}
            | {"metrics": {"accuracy": accuracy}}
            for site, accuracy in found.items()
        ]
        result["evaluations"] += rows
        result["metrics"] |= {f"external/{site}/accuracy": accuracy for site, accuracy in found.items()}
        result["metrics"] |= summarise_sites(rows)
        place.write_json("result.json", result)
    return ledger


def over_sites(**changes: Any) -> Hypothesis:
    return make(metric="external/mean_accuracy", smallest_effect=0.0, **changes)


def test_external_sites_and_trainings_are_the_units_of_a_claim_about_sites(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    gains = 0.1 + 0.03 * random.normal(size=(6, 1)) + 0.02 * random.normal(size=7) + 0.01 * random.normal(size=(6, 7))
    factors = {"augmentation": ("none", "strong")}

    def study(num_sites: int, replicates: int = 6) -> Verdict:
        def value(arm: Mapping[str, str], replicate: int) -> dict[str, float]:
            is_strong = arm["augmentation"] == "strong"
            return {f"s{site}": 0.6 + gains[replicate, site] * is_strong for site in range(num_sites)}

        folder = tmp_path / f"{num_sites}x{replicates}"
        return verdict_of(plant_sites(folder, factors, value, replicates=replicates), over_sites(over="sites"))

    verdict = study(7)
    assert (verdict.verdict, verdict.evidence.units) == (SUPPORTED, "7 external sites × 6 replicates")
    assert verdict.reason == "significant, over 7 external sites × 6 replicates"
    assert verdict.evidence.differences == pytest.approx(gains.mean(axis=0))
    # Two-way analysis of variance by hand.
    mean, rows, columns = gains.mean(), gains.mean(axis=1), gains.mean(axis=0)
    left = gains - rows[:, None] - columns + mean
    ms_r, ms_s, ms_e = 7 * rows.var(ddof=1), 6 * columns.var(ddof=1), (left**2).sum() / 30
    variance = (ms_r + ms_s - ms_e) / 42
    df = (ms_r + ms_s - ms_e) ** 2 / (ms_r**2 / 5 + ms_s**2 / 6 + ms_e**2 / 30)
    student = scipy.stats.t(df, loc=mean, scale=variance**0.5)
    assert verdict.evidence.interval is not None
    assert (verdict.evidence.interval.low, verdict.evidence.interval.high) == pytest.approx(student.interval(0.95))
    p_value = 2 * scipy.stats.t.sf(mean / variance**0.5, df)
    assert verdict.evidence.p_value == pytest.approx(max(p_value, 2 / 2**7))
    for few in (study(5), study(7, replicates=4)):
        assert (few.verdict, few.evidence.interval, few.evidence.p_value) == (NOT_ENOUGH, None, None)
        assert few.reason == f"{few.evidence.units}, 6 external sites and 5 replicates are needed for p ≤ 0.05"
        assert few.evidence.smallest_p == 1.0


def test_what_trainings_have_in_common_at_all_sites_is_no_effect(tmp_path: Path) -> None:
    """All seven sites agree, since they share the trainings: over sites alone p would be 2 / 2⁷."""

    def value(arm: Mapping[str, str], replicate: int) -> dict[str, float]:
        luck = (0.05, -0.03, 0.04, -0.04, 0.06, -0.02)[replicate]
        return {f"s{site}": 0.6 + (luck + 0.001 * site) * (arm["augmentation"] == "strong") for site in range(7)}

    ledger = plant_sites(tmp_path, {"augmentation": ("none", "strong")}, value)
    verdict = verdict_of(ledger, over_sites(over="sites"))
    assert all(difference > 0 for difference in verdict.evidence.differences)
    assert verdict.verdict == NOT_SUPPORTED
    assert verdict.evidence.p_value is not None
    assert verdict.evidence.p_value > 0.3


SITES = tuple("abcdef")
#: Gain of strong augmentation at each site.
GAIN = dict(zip(SITES, (0.01, 0.02, 0.03, 0.04, 0.05, 0.06), strict=True))


def leave_one_out(tmp_path: Path) -> Ledger:
    """Each trial is tested on the site that it leaves out, one arm on none; hard sites are hard for all."""

    def value(arm: Mapping[str, str], replicate: int) -> dict[str, float]:
        site = arm["data.leave_out"]
        gain = 0.0 if site == "none" else GAIN[site] * (arm["augmentation"] == "strong")
        return {} if site == "none" else {site: 0.9 - 0.1 * SITES.index(site) + gain + 0.001 * noise(arm, replicate)}

    return plant_sites(tmp_path, {"data.leave_out": (*SITES, "none"), "augmentation": ("none", "strong")}, value)


def test_where_sites_are_left_out_one_at_a_time_arms_are_compared_within_each(tmp_path: Path) -> None:
    """Arms that leave out none have no external set: they are not missing."""
    ledger = leave_one_out(tmp_path)
    verdict = verdict_of(ledger, over_sites(over="sites"))
    assert (verdict.verdict, verdict.evidence.units) == (SUPPORTED, "6 external sites × 6 replicates")
    assert verdict.evidence.differences == pytest.approx(list(GAIN.values()), abs=0.003)
    assert (verdict.evidence.num_planned, verdict.evidence.num_missing) == (36, 0)
    verdict = verdict_of(ledger, over_sites())
    assert (verdict.verdict, verdict.evidence.units) == (SUPPORTED, "6 replicates")
    assert verdict.evidence.effect == pytest.approx(0.035, abs=0.002)
    assert (verdict.evidence.num_planned, verdict.evidence.num_missing) == (36, 0)
    verdict = verdict_of(ledger, make(metric="external/c/accuracy", smallest_effect=0.0))
    assert verdict.evidence.effect == pytest.approx(GAIN["c"], abs=0.002)
    assert (verdict.evidence.num_planned, verdict.evidence.num_missing) == (6, 0)


def test_arms_that_are_tested_at_different_sites_are_not_compared(tmp_path: Path) -> None:
    """Site a is easier than site b; that is no effect of leaving it out."""
    ledger = leave_one_out(tmp_path)
    sides = {"treatment": {"data.leave_out": "a"}, "control": {"data.leave_out": "b"}}
    for changes in ({}, {"over": "sites"}, {"metric": "external/worst_accuracy"}):
        verdict = verdict_of(ledger, over_sites(**sides).model_copy(update=changes))
        assert verdict.verdict == NOT_ENOUGH
        assert verdict.reason.endswith("no arms that differ only in what is compared have an external set in common")
    effects = compute_effects(load_results(ledger, "accuracy"), "external/mean_accuracy")
    apart = [effect for effect in effects if effect.factor == "data.leave_out"]
    assert len(apart) == 6
    assert {(each.difference, each.num_missing, each.units) for each in apart} == {(None, 0, "nothing to compare")}
    (strong,) = (effect for effect in effects if effect.factor == "augmentation")
    assert strong.difference == pytest.approx(0.035, abs=0.002)
    assert (len(strong.cells), strong.num_missing) == (36, 0)


def test_arms_that_share_some_sites_are_compared_at_these(tmp_path: Path) -> None:
    """``external_sites: [a, b]``, and c or d left out: means over a, b, c and a, b, d differ by the sites."""

    def value(arm: Mapping[str, str], replicate: int) -> dict[str, float]:
        better = 0.02 * (arm["data.leave_out"] == "d") + 0.001 * noise(replicate)
        sites = {"a": 0.7, "b": 0.8} | {"c": {"c": 0.9}, "d": {"d": 0.1}}[arm["data.leave_out"]]
        return {site: accuracy + better for site, accuracy in sites.items()}

    ledger = plant_sites(tmp_path, {"data.leave_out": ("c", "d")}, value)
    sides = {"treatment": {"data.leave_out": "d"}, "control": {"data.leave_out": "c"}}
    for metric in ("external/mean_accuracy", "external/worst_accuracy"):
        verdict = verdict_of(ledger, over_sites(**sides).model_copy(update={"metric": metric}))
        assert verdict.evidence.effect == pytest.approx(0.02)
        (effect,) = compute_effects(load_results(ledger, "accuracy"), metric)
        assert effect.difference == pytest.approx(0.02)
    assert verdict.evidence.means["control"] == pytest.approx(0.7 + 0.001 * np.mean([noise(r) for r in range(6)]))


def test_trials_of_one_encoder_are_one_unit(tmp_path: Path) -> None:
    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + 0.1 * (arm["augmentation"] == "strong") + 0.01 * noise(arm, replicate)

    ledger = plant(tmp_path, value, replicates=12)
    plan = ledger.read_plan()

    def share(num_encoders: int) -> Verdict:
        trials = [trial | {"needs": [f"stage{trial['replicate'] % num_encoders}"]} for trial in plan["trials"]]
        ledger.root.write_json("plan.json", plan | {"trials": trials})
        return verdict_of(ledger, make())

    one = share(1)
    assert (one.verdict, one.evidence.num_units, one.evidence.interval) == (NOT_ENOUGH, 1, None)
    assert one.reason == "for this encoder: 1 independent encoder, 6 are needed for p ≤ 0.05"
    six = share(6)
    assert (six.verdict, six.evidence.units, six.evidence.p_value) == (SUPPORTED, "6 independent encoders", 2 / 2**6)
    assert six.evidence.scope is not None
    assert (six.evidence.scope.num_models, six.evidence.scope.num_encoders) == (24, 6)
    differences = [
        0.1 + 0.01 * (noise({"augmentation": "strong"}, r) - noise({"augmentation": "none"}, r)) for r in (0, 6)
    ]
    assert six.evidence.differences[0] == pytest.approx(np.mean(differences))
    assert share(12).evidence.units == "12 replicates"


def test_arms_with_different_numbers_of_encoders_are_linked_to_fewer_units(tmp_path: Path) -> None:
    """2 encoders in one arm and 3 in the other: every replicate is linked to every other. 3 and 6: three groups."""

    def study(numbers: Mapping[str, int]) -> Verdict:
        ledger = plant(tmp_path / "-".join(map(str, numbers.values())), lambda arm, replicate: 0.5, replicates=6)
        plan = ledger.read_plan()
        trials = [
            trial | {"needs": [f"{arm}{trial['replicate'] % numbers[arm]}"]}
            for trial in plan["trials"]
            for arm in [trial["arm"]["augmentation"]]
        ]
        ledger.root.write_json("plan.json", plan | {"trials": trials})
        (effect,) = compute_effects(load_results(ledger), METRIC)
        verdict = verdict_of(ledger, make())
        assert effect.over == verdict.evidence.units
        return verdict

    linked = study({"none": 2, "strong": 3})
    assert linked.reason == "1 encoder group, 6 are needed for p ≤ 0.05"
    assert linked.evidence.scope is not None
    assert linked.evidence.scope.num_encoders == 5
    assert study({"none": 3, "strong": 6}).evidence.units == "3 encoder groups"
    assert study({"none": 3, "strong": 3}).evidence.units == "3 independent encoders"
    assert study({"none": 6, "strong": 6}).evidence.units == "6 replicates"


def test_encoders_with_a_step_in_common_are_one_and_what_it_may_have_seen_is_said(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, replicate: 0.5 + 0.1 * (arm["augmentation"] == "strong"))
    plan = ledger.read_plan()

    def share(num_first: int, remarks: Mapping[str, Any]) -> Verdict:
        trials = [
            trial | {"needs": [f"second{trial['replicate']}", f"first{trial['replicate'] % num_first}"]}
            for trial in plan["trials"]
        ]
        ledger.root.write_json("plan.json", plan | {"trials": trials, "remarks": remarks})
        return verdict_of(ledger, make())

    remark = "transductive: a pretraining may have seen these images"
    one = share(1, {"augmentation=strong": [remark]})
    assert one.reason == "1 encoder group, 6 are needed for p ≤ 0.05"
    assert one.evidence.scope is not None
    assert one.evidence.scope.num_encoders == 1
    assert one.evidence.scope.describe().endswith(f", for this split; {remark}")
    three = share(3, {"another arm": [remark]})
    assert three.evidence.units == "3 encoder groups"
    assert three.evidence.scope is not None
    assert three.evidence.scope.num_encoders == 3
    assert remark not in three.evidence.scope.describe()
    assert share(6, {}).evidence.units == "6 replicates"


def test_the_scope_says_what_was_tested(tmp_path: Path) -> None:
    gain = {"none": 0.0, "strong": 0.1}
    ledger = plant(tmp_path, lambda arm, replicate: 0.5 + gain[arm["augmentation"]])

    def describe(metric: str) -> str:
        scope = verdict_of(ledger, make(metric=metric)).evidence.scope
        assert scope is not None
        return scope.describe()

    assert describe(METRIC) == "12 trained models, 360 test images of 180 patients at 2 sites, for this split"
    # Sites that are left out one at a time: the plan knows none of them, the trials do.
    for trial in ledger.read_plan()["trials"]:
        place = ledger.folder("trial", trial["signature"])
        result = place.read_json("result.json")
        site, value = ("lyon", "paris")[trial["replicate"] % 2], 0.5 + gain[trial["arm"]["augmentation"]]
        row = {"set": site, "shift": "identity", "severity": 0, "strength": None, "num_images": 40}
        result["evaluations"].append(row | {"metrics": {"accuracy": value}})
        result["metrics"]["external/mean_accuracy"] = value
        place.write_json("result.json", result)
    assert describe("external/mean_accuracy") == "12 trained models, 80 external images at 2 sites, for this split"
    plan = ledger.read_plan()
    plan["base"]["data"]["split"] = "per_replicate"
    ledger.root.write_json("plan.json", plan)
    assert describe(METRIC).endswith("at 2 sites, a split of these images per replicate")


def test_the_interval_is_students(tmp_path: Path) -> None:
    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + (0.02 + 0.01 * noise(replicate)) * (arm["augmentation"] == "strong")

    evidence = verdict_of(plant(tmp_path / "six", value), make()).evidence
    differences = [0.02 + 0.01 * noise(replicate) for replicate in range(6)]
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert evidence.differences == pytest.approx(differences)
    assert evidence.interval is not None
    assert (evidence.interval.low, evidence.interval.high) == pytest.approx(tuple(expected))
    few = verdict_of(plant(tmp_path / "four", value, replicates=4), make())
    assert (few.verdict, few.evidence.interval, few.evidence.p_value) == (NOT_ENOUGH, None, None)
    assert few.evidence.effect == pytest.approx(np.mean(differences[:4]))


def test_a_size_is_tested_against_that_size(tmp_path: Path) -> None:
    """Eight differences of about five points: above four, below six, and neither above nor below five."""

    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + (0.05 + 0.001 * (-1) ** replicate * (replicate + 1)) * (arm["augmentation"] == "strong")

    ledger = plant(tmp_path, value, replicates=8)
    found = {size: verdict_of(ledger, make(smallest_effect=size)) for size in (0.0, 0.04, 0.05, 0.06)}
    assert [each.verdict for each in found.values()] == [SUPPORTED, SUPPORTED, SUPPORTED_DIRECTION, CONTRADICTED]
    differences = np.array(found[0.0].evidence.differences)
    for size in (0.04, 0.05, 0.06):
        flips = np.array(list(itertools.product((-1, 1), repeat=8))) @ (differences - size)
        expected = np.mean(np.abs(flips) >= abs((differences - size).sum()) - 1e-12)
        assert found[size].evidence.p_size == pytest.approx(expected)
        assert found[size].evidence.p_value == 2 / 2**8
    near = make(kind="equivalence", margin=0.06, **SIDES)
    assert verdict_of(ledger, near).verdict == SUPPORTED
    assert verdict_of(ledger, near).evidence.p_value == 1 / 2**8
    assert verdict_of(ledger, make(kind="equivalence", margin=0.04, **SIDES)).verdict == NOT_SUPPORTED
    assert verdict_of(ledger, make(kind="non_inferiority", margin=0.01, **SIDES)).verdict == SUPPORTED
    turned = {"treatment": SIDES["control"], "control": SIDES["treatment"]}
    assert verdict_of(ledger, make(kind="non_inferiority", margin=0.01, **turned)).verdict == CONTRADICTED


def test_a_metric_under_one_shift_is_the_mean_over_its_severities(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, replicate: 0.5)
    for trial in ledger.read_plan()["trials"]:
        place = ledger.folder("trial", trial["signature"])
        result = place.read_json("result.json")
        for evaluation in result["evaluations"]:
            if evaluation["shift"] == "jpeg" and trial["arm"]["augmentation"] == "strong":
                evaluation["metrics"]["nll"] = 0.5 - 0.1 * evaluation["severity"]
            elif evaluation["shift"] == "jpeg":
                evaluation["metrics"]["nll"] = 0.5
        place.write_json("result.json", result)
    jpeg = make(metric="shift/jpeg/nll", direction="lower", severities=[1, 3])
    assert verdict_of(ledger, jpeg).evidence.effect == pytest.approx(-0.2)
    every = make(metric="shift/jpeg/nll", direction="lower")
    assert verdict_of(ledger, every).evidence.effect == pytest.approx(-0.3)
    absent = verdict_of(ledger, make(metric="shift/jpeg/nll", severities=[1], where={"augmentation": "none"}))
    assert absent.verdict == NOT_ENOUGH
    unknown = verdict_of(ledger, make(metric="shift/fog/nll"))
    assert (unknown.verdict, unknown.reason) == (NOT_ENOUGH, "no complete trial has shift/fog/nll")


@pytest.mark.parametrize("test", ["permutation", "wilcoxon_signed_rank", "sign"])
def test_every_test_sees_a_clear_effect_and_not_a_missing_one(tmp_path: Path, test: str) -> None:
    def value(size: float) -> Value:
        return lambda arm, replicate: 0.5 + size * (arm["augmentation"] == "strong") + 0.01 * noise(arm, replicate)

    clear = verdict_of(plant(tmp_path / "a", value(0.1), replicates=8), make(test=test))
    assert clear.verdict == SUPPORTED
    absent = verdict_of(plant(tmp_path / "b", value(0.0), replicates=8), make(test=test, smallest_effect=0.0))
    assert absent.verdict == NOT_SUPPORTED
    assert absent.evidence.p_value is not None
    assert absent.evidence.p_value > 0.05


def test_differences_that_are_all_zero_are_no_effect(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, replicate: 0.5)
    for test in ("permutation", "wilcoxon_signed_rank", "sign"):
        verdict = verdict_of(ledger, make(test=test, smallest_effect=0.0))
        assert (verdict.verdict, verdict.evidence.p_value) == (NOT_SUPPORTED, None)
        assert verdict_of(ledger, make(test=test)).verdict == CONTRADICTED


# ------------------------------------------------------------------ what is missing


def test_a_study_under_way_has_not_enough_data(tmp_path: Path) -> None:
    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + 0.1 * (arm["augmentation"] == "strong") + 0.001 * noise(arm, replicate)

    ledger = plant(tmp_path, value, replicates=8, fate=Fate(missing=1))
    verdict = verdict_of(ledger, make())
    assert (verdict.verdict, verdict.reason) == (NOT_ENOUGH, "1 of 8 planned pairs are missing")
    assert verdict.evidence.effect == pytest.approx(0.1, abs=0.01)
    assert verdict_of(ledger, make(max_missing=0.2)).verdict == SUPPORTED
    none = verdict_of(plant(tmp_path / "none", value, fate=Fate(missing=12)), make())
    assert (none.verdict, none.evidence.effect, none.evidence.num_planned) == (NOT_ENOUGH, None, 6)


def test_arms_left_out_of_the_plan_are_named(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, replicate: 0.5)
    plan = ledger.read_plan()
    plan["trials"] = [trial for trial in plan["trials"] if trial["arm"]["augmentation"] == "none"]
    ledger.root.write_json("plan.json", plan)
    verdict = verdict_of(ledger, make())
    assert (verdict.verdict, verdict.reason) == (
        NOT_ENOUGH, "the plan has nothing to compare: no arm is in treatment",
    )  # fmt: skip


# ------------------------------------------------------------------ families and versions


def test_holm_counts_what_was_promised_and_exploratory_ones_do_not_thin_it(tmp_path: Path) -> None:
    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + 0.1 * (arm["augmentation"] == "strong") + 0.001 * noise(arm, replicate)

    ledger = plant(tmp_path, value, replicates=8)
    p = 2 / 2**8
    early = version(make(name="a"), make(name="b"), make(name="c", family="other"))

    def corrected(*versions: dict[str, Any]) -> dict[str, float | None]:
        return {each.hypothesis.name: each.corrected.claim for each in judge(load_results(claim(ledger, *versions)))}

    assert corrected(early) == pytest.approx({"a": 2 * p, "b": 2 * p, "c": p})
    added = version(make(name="a"), make(name="b"), make(name="d"), complete=1)
    assert corrected(early, added) == pytest.approx({"a": 2 * p, "b": 2 * p, "d": 3 * p})
    deleted = version(make(name="a"), complete=1)
    assert corrected(early, deleted) == pytest.approx({"a": 2 * p})
    changed = version(make(name="a"), make(name="b", direction="lower"), complete=1)
    assert corrected(early, changed) == pytest.approx({"a": 2 * p, "b": 3 * p})


# ------------------------------------------------------------------ how it is shown


@pytest.fixture
def told(tmp_path: Path) -> Ledger:
    """Four hypotheses: two promised, one of them changed since, one deleted, one added."""

    def value(arm: Mapping[str, str], replicate: int) -> float:
        return 0.5 + 0.1 * (arm["augmentation"] == "strong") + 0.001 * noise(arm, replicate)

    kept, changed = make(name="kept", claim="Strong <b>helps</b>."), make(name="changed", smallest_effect=0.2)
    first = version(kept, make(name="changed"), make(name="gone", claim="It was not so."))
    second = version(kept, changed, make(name="added", metric="shift/fog/auroc"), complete=5, moment_ms=2)
    return claim(plant(tmp_path, value, replicates=9), first, second)


def test_the_report_begins_with_the_verdicts(told: Ledger, tmp_path: Path) -> None:
    report = write_report(told, cache_dir=tmp_path / "cache", examples=False)
    page = Path(report.html).read_text(encoding="utf-8")
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections[:2] == ["overview", "verdicts"]
    body = page[page.index('<section id="verdicts"') :].split("</section>")[0]
    assert "3 claimed (1 of them written before any trial was complete)" in body
    assert "Strong &lt;b&gt;helps&lt;/b&gt;." in body
    assert re.search(r"Exploratory: changed on .* when 5 trials were complete.*smallest_effect: 0.01 → 0.2", body)
    assert re.search(r"Deleted after results were known:.*gone: It was not so. \(deleted on", body)
    assert body.count('<svg class="strip"') == 2
    assert re.search(r"<p>\+(9|10)\.\d points \(95\W% interval", body)
    lines = report.summary.splitlines()
    assert lines[-3].startswith("Supported: Strong <b>helps</b>. +")
    assert lines[-2].startswith("Contradicted (exploratory): it helps.")
    assert lines[-1].startswith("Not enough data (exploratory): it helps. No complete trial has shift/fog/auroc")
    rows = read_verdicts(told.root)
    assert [row["verdict"] for row in rows] == [SUPPORTED, CONTRADICTED, NOT_ENOUGH]
    assert [row["status"] for row in rows] == ["preregistered", "exploratory", "exploratory"]
    assert float(rows[0]["effect"]) == pytest.approx(0.1, abs=1e-3)
    assert (rows[2]["effect"], rows[2]["p"]) == ("", "")


def test_a_hypothesis_of_another_version_is_named(told: Ledger, tmp_path: Path) -> None:
    plan = told.read_plan()
    plan["hypotheses"]["versions"][-1]["hypotheses"][0] |= {"test": "of_tomorrow", "name": "<b>kept"}
    told.root.write_json("plan.json", plan)
    report = write_report(told, cache_dir=tmp_path / "cache", examples=False)
    page = Path(report.html).read_text(encoding="utf-8")
    assert "does not understand them:<ul><li>&lt;b&gt;kept</li>" in page
    assert [row["name"] for row in read_verdicts(told.root)] == ["changed", "added"]


def test_a_study_that_claims_nothing_has_no_verdicts(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    report = write_report(ledger, cache_dir=tmp_path / "cache", examples=False)
    assert 'id="verdicts"' not in Path(report.html).read_text(encoding="utf-8")
    assert read_verdicts(ledger.root) == []


def test_a_verdict_is_the_same_whatever_the_report_is_about(told: Ledger) -> None:
    tables = [verdicts_table(judge(load_results(told, metric))) for metric in ("balanced_accuracy", "auroc")]
    assert tables[0].equals(tables[1])


# ------------------------------------------------------------------ MLflow


def rows_of(verdict: str, effect: str, moment_ms: int = 7) -> list[dict[str, str]]:
    names = ("effect", "low", "high", "p", "p_holm", "p_size", "p_size_holm")
    counts = ("agreeing_shift_families", "agreeing_shift_types")
    return [
        dict.fromkeys((*names, *counts), "")
        | {"name": "h", "verdict": verdict, "status": "preregistered", "effect": effect, "moment_ms": str(moment_ms)}
    ]


def test_metrics_and_tags_of_a_verdict(told: Ledger, tmp_path: Path) -> None:
    write_report(told, cache_dir=tmp_path / "cache", examples=False)
    points, tags = project_verdicts(read_verdicts(told.root))
    assert tags["robustsweep.hypothesis.kept"] == SUPPORTED
    assert tags["robustsweep.hypothesis_status.changed"] == "exploratory"
    keys = {point.key for point in points}
    assert {f"hypothesis/kept/{name}" for name in ("effect", "low", "high", "p", "p_holm")} <= keys
    assert not any(key.startswith("hypothesis/added/") for key in keys)
    ends = [trial.result["finished_ms"] for trial in told.records("trial") if trial.result is not None]
    assert {point.timestamp_ms for point in points} == {max(ends)}


def test_the_studys_own_run_shows_every_verdict_once(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    ledger.root.write_json("plan.json", ledger.read_plan() | {"hypotheses": {"versions": [version(make())]}})
    uri = make_database(tmp_path, tmp_path / "template.db")
    tracker = make_tracker(uri, ledger)
    client = MlflowClient(uri)

    def log(rows: list[dict[str, str]]) -> tuple[Any, list[tuple[float, int]]]:
        tracker.log_report(b"page", summary={}, is_complete=True, verdicts=rows)
        history = client.get_metric_history(tracker.parent_run_id, "hypothesis/h/effect")
        return client.get_run(tracker.parent_run_id).data, [(each.value, each.timestamp) for each in history]

    data, points = log(rows_of(NOT_ENOUGH, "0.25"))
    assert data.tags["robustsweep.hypothesis.h"] == NOT_ENOUGH
    assert data.tags["robustsweep.hypotheses_sha256"] == "0" * 64
    assert points == [(0.25, 7)]
    assert log(rows_of(NOT_ENOUGH, "0.25", moment_ms=9))[1] == points
    data, points = log(rows_of(SUPPORTED, "0.125"))
    assert sorted(points) == [(0.125, 8), (0.25, 7)]
    assert (data.metrics["hypothesis/h/effect"], data.tags["robustsweep.hypothesis.h"]) == (0.125, SUPPORTED)
    data, _ = log([])
    assert data.tags["robustsweep.hypothesis.h"] == "deleted"


def test_the_table_can_be_read_by_anything(told: Ledger, tmp_path: Path) -> None:
    report = write_report(told, cache_dir=tmp_path / "cache", examples=False)
    (path,) = [Path(name) for name in report.csv if name.endswith("verdicts.csv")]
    with path.open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["kept", "changed", "added"]
