"""Short ways to read a study text, for the tests of the study file."""

from __future__ import annotations

import pytest

from orchestrator.study.study_file import parse_study
from trainables.config import TrialConfig
from trainables.errors import StudyError

HEAD = "study: s\ndata: {kind: digits}\n"  # two lines: what a test adds starts in line 3


def arms(text: str, *overrides: str) -> dict[str, TrialConfig]:
    """Return name → config of the arms of HEAD + text."""
    return {arm.name: arm.config for arm in parse_study(HEAD + text, source="s.yaml", overrides=overrides).arms()}


def problems(text: str, *overrides: str) -> list[str]:
    """Return the problems of a whole text, one line each."""
    with pytest.raises(StudyError) as caught:
        parse_study(text, source="s.yaml", overrides=overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]
