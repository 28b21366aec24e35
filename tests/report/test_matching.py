"""Matched severities on the page: strengths, losses, targets that were not reached, and strengths that differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd

from orchestrator.ledger.record import Record
from orchestrator.report.sections.shifts import _find_other_strengths, _matching_table

MATCHING = {
    "clean": 0.9,
    "chance": 0.5,
    "num_images": 1200,
    "targets": [0.1, 0.5],
    "shifts": {
        "jpeg": [
            {"target": 0.1, "strength": 9.0, "loss": 0.104, "reached": True},
            {"target": 0.5, "strength": 1.0, "loss": 0.31, "reached": False},
        ],
        "fog": [
            {"target": 0.1, "strength": [1.5, 2.0], "loss": -0.01, "reached": True},
            {"target": 0.5, "strength": [3.0, 1.4], "loss": 0.5, "reached": True},
        ],
    },
}
STAGE = Record("up", "stage", {"name": "severities matched on a=b"}, [], {"matching": MATCHING}, None)


def results(*rows: tuple[str, int, Any]) -> Any:
    table = pd.DataFrame([("mine", *row) for row in rows], columns=["signature", "shift", "severity", "strength"])
    return SimpleNamespace(plan={"trials": [{"signature": "mine", "needs": ["up"]}]}, shifts=table)


AS_CHOSEN = (("identity", 0, 0.0), ("jpeg", 1, 9.0), ("fog", 2, "[3.0, 1.4]"), ("dusk", 1, 0.4))


def test_the_table_has_strengths_losses_and_what_was_not_reached() -> None:
    page = _matching_table(results(*AS_CHOSEN), STAGE)
    assert "Severities matched on a=b: strengths chosen on its 1,200 validation images" in page
    assert "severity 1 = −10 %, 2 = −50 % of the accuracy above chance" in page
    assert '9 <span class="sd">−10.4 %</span>' in page
    assert '1 <span class="sd">−31.0 %</span> <span class="tag short">not reached</span>' in page
    assert '1.5, 2 <span class="sd">+1.0 %</span>' in page
    assert page.count("not reached</span>") == 1
    assert "1 target not reached" in page
    assert "callout" not in page


def test_trials_at_other_strengths_are_named() -> None:
    assert _find_other_strengths(results(*AS_CHOSEN), STAGE) == []
    assert _find_other_strengths(results(*AS_CHOSEN, ("jpeg", 2, 2.0)), STAGE) == ["jpeg"]
    assert "evaluated at other strengths" in _matching_table(results(("fog", 1, "[1.6, 2.0]")), STAGE)
