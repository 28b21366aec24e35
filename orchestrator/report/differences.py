"""Remark on what differs between compared levels beyond what the levels set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.analysis.wording import sentence
from orchestrator.planning.ceteris_paribus import read_differences_of_levels, read_matching
from orchestrator.report.page import callout, note


def differences_of_levels(plan: Mapping[str, Any]) -> str:
    """Return which levels differ from their reference in more than they set (HTML).

    Args:
        plan: content of ``plan.json``; older plans do not record it.
    """
    lines = read_differences_of_levels(plan)
    if lines is None:
        return note("What else differs between the levels was not recorded by the version that planned the study.")
    if not lines:
        return note(f"Between the levels of a factor nothing differs but what they set; {read_matching(plan)}.")
    text = "Not only the level differs, because conditions of the study file set further fields:"
    return callout(text, "warn", lines) + note(f"{sentence(read_matching(plan))}.")
