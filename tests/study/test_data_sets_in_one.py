"""Several data sets in one as a section of a study file: which of them are trained on is a factor."""

from __future__ import annotations

from pathlib import Path

from orchestrator.study.data_sets import find_data_sets
from orchestrator.study.study_file import load_study

STUDY = """
study: two-cameras
data:
  kind: datasets
  datasets: {a: {kind: organs, organ: ct}, b: {kind: organs, organ: ultrasound}}
factors:
  data.train_on: [[a], [b], [a, b]]
  data.image_size: [32, 64]
"""


def test_a_factor_says_what_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    arms = load_study(tmp_path / "study.yaml").arms()
    assert [arm.config.data.trained for arm in arms] == [("a",)] * 2 + [("b",)] * 2 + [("a", "b")] * 2
    assert [{part.image_size for part in arm.config.data.parts.values()} for arm in arms] == [{32}, {64}] * 3
    assert len({*find_data_sets(arms).values()}) == 1  # all arms are of one data set, so they can be compared
