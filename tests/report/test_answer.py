"""What the card of the chosen arm says about the others."""

from pathlib import Path

import pytest
import scipy.stats

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
    assert "the next, none, is 0.5 points below it".lower() in text.lower()
    if replicates == 6:
        low, high = scipy.stats.t.interval(0.95, 5, 0.005, scipy.stats.sem(GAINS))
        assert f"({100 * low:+.1f} to {100 * high:+.1f}, n = 6)" in text
        assert "validation tells it from 0 of 1 other arm" in text
    else:
        assert "within one standard deviation of the paired difference (2.1); 2 independent replicates" in text
        assert "interval takes 5" in text
