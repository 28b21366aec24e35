"""Where models look, over trained models: means, intervals, agreement of methods, no verdict where they disagree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from orchestrator.analysis.attribution.agreement import rank_agreement
from orchestrator.analysis.attribution.scores import list_untold, score_arms
from orchestrator.analysis.inference.verdicts import NO_VERDICT, NOT_ENOUGH, SUPPORTED, Verdict
from orchestrator.analysis.results import Results, load_results
from orchestrator.ledger.ledger import Ledger
from tests.analysis.test_verdicts import verdict_of
from tests.study.test_hypotheses import SIDES, make
from tests.support.synthetic_ledger import make_fake_ledger

METHODS = ("grad_cam", "integrated_gradients")
METRICS = ("relevance_mass", "relevance_rank", "pointing_game", "concentration_below_25", "adjusted_large_small_ratio")
#: Method, metric → what strong augmentation adds.
Gains = Mapping[tuple[str, str], float]


def plant(folder: Path, gains: Gains, *, replicates: int = 6, trained: float = 0.2) -> Ledger:
    """Return a finished study of two arms: every score is ``trained``, that of random weights 0.1, plus noise."""
    ledger = make_fake_ledger(folder, factors={"augmentation": ("none", "strong")}, replicates=replicates, externals=())
    for trial in ledger.read_plan()["trials"]:
        place = ledger.folder("trial", trial["signature"])
        result, strong = place.read_json("result.json"), trial["arm"]["augmentation"] == "strong"
        random = np.random.default_rng([trial["replicate"], strong])
        for method in METHODS:
            for metric in METRICS:
                planted = trained + strong * gains.get((method, metric), 0.05) + 1e-3 * random.normal()
                result["metrics"][f"attribution/{method}/{metric}"] = planted
                result["metrics"][f"attribution/{method}/randomised_{metric}"] = 0.1 + 1e-3 * random.normal()
        result["metrics"] |= {f"attribution/centre_prior/{metric}": 0.15 for metric in METRICS}
        place.write_json("result.json", result)
    return ledger


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return plant(tmp_path_factory.mktemp("agreeing"), {})


@pytest.fixture(scope="module")
def results(agreeing: Ledger) -> Results:
    return load_results(agreeing)


def judge_one(ledger: Ledger, metric: str, **fields: object) -> Verdict:
    return verdict_of(ledger, make(**SIDES, metric=metric, direction="higher", smallest_effect=0, **fields))


def test_scores_are_means_over_trained_models_with_their_baselines(results: Results) -> None:
    scores = score_arms(results)
    assert scores is not None
    assert (scores.methods, scores.metrics) == (METHODS, METRICS)
    arm = "augmentation=strong"
    own = results.complete[results.complete["name"] == arm]
    score = scores.scores[arm, "grad_cam", "relevance_mass"]
    values = own["attribution/grad_cam/relevance_mass"]
    random = own["attribution/grad_cam/randomised_relevance_mass"]
    assert score.mean == pytest.approx(values.mean())
    assert score.randomised == pytest.approx(random.mean())
    assert score.interval is not None
    assert score.gain is not None
    half = scipy.stats.t.ppf(0.975, 5) * (values - random).std(ddof=1) / 6**0.5
    assert score.gain.low == pytest.approx((values - random).mean() - half)
    assert scores.prior[arm, "pointing_game"] == pytest.approx(0.15)
    assert list_untold(scores, "relevance_mass") == {}


def test_arms_that_do_not_beat_random_weights_are_named(tmp_path: Path) -> None:
    ledger = plant(tmp_path, {("grad_cam", "relevance_mass"): 0.05, ("integrated_gradients", "relevance_mass"): -0.05},
                   trained=0.1)  # fmt: skip
    scores = score_arms(load_results(ledger))
    assert scores is not None
    untold = list_untold(scores, "relevance_mass")
    assert "augmentation=strong" not in untold.get("grad_cam", [])
    assert "augmentation=strong" in untold["integrated_gradients"]


def test_a_study_without_attributions_has_no_scores(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path))
    assert score_arms(results) is None
    assert rank_agreement(results) is None


def test_rank_agreement_is_kendalls_tau_over_the_trials_of_few_arms(results: Results) -> None:
    found = rank_agreement(results)
    assert found is not None
    assert (found.noun, found.number, len(found.columns)) == ("trials", 12, 6)
    one, other = (results.complete[found.columns[index]] for index in (0, 3))
    assert found.kendall[0, 3] == pytest.approx(scipy.stats.kendalltau(one, other)[0])
    assert np.diag(found.kendall) == pytest.approx(np.ones(6))


def test_methods_that_agree_give_a_verdict(agreeing: Ledger) -> None:
    assert judge_one(agreeing, "attribution/grad_cam/relevance_mass").verdict == SUPPORTED
    assert judge_one(agreeing, "attribution/integrated_gradients/adjusted_large_small_ratio").verdict == SUPPORTED


@pytest.mark.parametrize(
    ("against", "metric", "told"),
    [
        (("integrated_gradients", "relevance_mass"), "relevance_mass", True),
        (("grad_cam", "pointing_game"), "relevance_mass", True),
        (("grad_cam", "pointing_game"), "concentration_below_25", False),
        (("integrated_gradients", "concentration_below_25"), "concentration_below_25", True),
    ],
)
def test_there_is_no_verdict_where_methods_or_metrics_disagree(
    against: tuple[str, str], metric: str, told: bool, tmp_path: Path
) -> None:
    found = judge_one(plant(tmp_path, {against: -0.05}), f"attribution/grad_cam/{metric}")
    if told:
        assert found.verdict == NO_VERDICT
        assert found.reason.startswith(f"methods or metrics disagree in direction: grad_cam/{metric} +0.0")
        assert f"but {'/'.join(against)} -0.0" in found.reason
    else:
        assert found.verdict == SUPPORTED


def test_what_makes_no_claim_about_trained_networks_is_not_held_against_it(tmp_path: Path) -> None:
    ledger = plant(tmp_path, {("grad_cam", "relevance_mass"): -0.05})
    assert verdict_of(
        ledger,
        make(kind="equivalence", **SIDES, metric="attribution/grad_cam/relevance_mass", margin=0.2),
    ).verdict == SUPPORTED  # fmt: skip
    few = plant(tmp_path / "few", {("grad_cam", "relevance_mass"): -0.05}, replicates=2)
    assert judge_one(few, "attribution/integrated_gradients/relevance_mass").verdict == NOT_ENOUGH
