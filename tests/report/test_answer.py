"""What the card of the chosen arm says about the others."""

from pathlib import Path

import pytest
import scipy.stats

from orchestrator.analysis.effects import compute_effects
from orchestrator.analysis.results import load_results
from orchestrator.analysis.tables.arms import arms_table
from orchestrator.report.sections.answer import answer
from tests.analysis.test_verdicts import plant

GAINS = (0.02, -0.01, 0.02, -0.01, 0.02, -0.01)


@pytest.mark.parametrize("replicates", [6, 2])
def test_the_chosen_arm_is_compared_with_the_next(tmp_path: Path, replicates: int) -> None:
    ledger = plant(tmp_path, lambda arm, r: 0.8 + GAINS[r] * (arm["augmentation"] == "strong"), replicates=replicates)
    results = load_results(ledger)
    text = answer(results, arms_table(results), []).statements[0].text
    assert "The next, none, is 0.5 points below it" in text
    if replicates == 6:
        low, high = scipy.stats.t.interval(0.95, 5, 0.005, scipy.stats.sem(GAINS))
        assert f"({100 * low:+.1f} to {100 * high:+.1f}, n = 6)" in text
        assert "Of 1 other arm, validation tells it from 0 and not from 1. By 95 % t intervals" in text
        assert "could not be tested" not in text
    else:
        assert "within one standard deviation of the paired difference (2.1); 2 independent replicates" in text
        assert "interval takes 5" in text


def test_arms_that_share_an_encoder_are_counted_as_not_tested_with_the_reason(tmp_path: Path) -> None:
    """Above the chosen arm by its own noise in every replicate: scratch is told from it, imagenet is the chosen one."""
    means = {"scratch": 0.6, "imagenet": 0.8, "contrastive": 0.7}
    ledger = plant(
        tmp_path,
        lambda arm, r: means[arm["pretraining"]] + GAINS[r] * (arm["augmentation"] == "strong"),
        pretraining=tuple(means),
        augmentation=("none", "strong"),
    )
    results = load_results(ledger)
    for trial in results.plan["trials"]:
        trial["needs"] = ["s" * 16] if trial["arm"]["pretraining"] == "contrastive" else []
    text = answer(results, arms_table(results), []).statements[0].text
    assert (
        "Of 5 other arms, validation tells it from 2 and not from 1; 2 could not be tested (replicates start from 1 "
        "pretrained encoder, an interval takes 5). By 95 % t intervals of paired differences, not corrected for the "
        "choice of the best." in text
    )


def test_every_statement_about_an_arm_says_what_its_pretraining_may_have_seen(tmp_path: Path) -> None:
    ledger = plant(tmp_path, lambda arm, r: 0.8 + GAINS[r] * (arm["augmentation"] == "strong"))
    results = load_results(ledger)
    remark = "transductive: a pretraining may have seen these images"
    name = {label: name for name, label in results.labels.items()}
    effects = compute_effects(results, f"robustness/mean_{results.metric}")
    said = {}
    for seen in ("strong", "none"):
        results.plan["remarks"] = {name[seen]: [remark]}
        texts = answer(results, arms_table(results), effects).statements
        said[seen] = [each.text.endswith(f" {remark.capitalize()}.") for each in texts]
    assert said == {"strong": [True, True, True], "none": [False, False, True]}  # chosen, oracle, effect of both
