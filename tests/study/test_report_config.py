from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.study.report_config import describe_reference
from orchestrator.study.study_file import Study, parse_study
from trainables.errors import StudyError

TEXT = """\
study: s
data: {kind: digits}
factors:
  augmentation: [none, strong]
  training.learning_rate: [0.001, 0.01]
"""
TABLE = "shift,error\nidentity,0.1\njpeg,0.2\n"


def parse(reference: str, folder: Path, *overrides: str) -> Study:
    text = f"{TEXT}report:\n  reference: {reference}\n"
    return parse_study(text, source="s.yaml", folder=folder, overrides=overrides)


def describe(study: Study) -> object:
    return describe_reference(study.report, study.arms())


@pytest.mark.parametrize(
    "arm",
    [
        '"augmentation=strong, training.learning_rate=0.01"',
        "{augmentation: strong, training.learning_rate: 1e-2}",
        "{training.learning_rate: 0.010, augmentation: [strong]}",
    ],
)
def test_an_arm_by_its_name_or_its_levels(arm: str, tmp_path: Path) -> None:
    study = parse(f"{{arm: {arm}}}", tmp_path)
    assert describe(study) == {"arm": "augmentation=strong, training.learning_rate=0.01"}


def test_no_reference_is_the_report_s_choice() -> None:
    assert describe(parse_study(TEXT, source="s.yaml")) is None


def test_a_table_beside_the_study_file(tmp_path: Path) -> None:
    (tmp_path / "alexnet.csv").write_text(TABLE)
    study = parse("{table: alexnet.csv}", tmp_path)
    assert study.report.reference is not None
    assert study.report.reference.table == tmp_path / "alexnet.csv"
    assert describe(study) == {"table": "alexnet.csv", "clean": 0.1, "shifted": {"jpeg": 0.2}}


def test_a_table_in_an_override_starts_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path / "here")
    study = parse("null", tmp_path, "report.reference.table=a.csv")
    assert study.report.reference is not None
    assert study.report.reference.table == tmp_path / "here" / "a.csv"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (
            "{arm: augmentation=strong}",
            "s.yaml:7: report.reference.arm: there is no arm 'augmentation=strong', expected one of augmentation=none",
        ),
        (
            "{arm: {augmentation: strong}}",
            "s.yaml:7: report.reference.arm: found 2 arms with these levels: augmentation",
        ),
        ("{arm: {augmentation: strog}}", "report.reference.arm.augmentation"),
        ("{arm: {augmentatio: none}}", "there is no factor 'augmentatio'"),
        ("{arm: {}}", "report.reference.arm"),
        ("{table: gone.csv}", "s.yaml:7: report.reference.table: could not read the reference"),
        ("{table: broken.csv}", "no column error"),
        ("{}", "s.yaml:7: report.reference: found neither, expected arm or table"),
        ("{arm: {augmentation: none, training.learning_rate: 0.01}, table: good.csv}", "found both"),
        ("{arms: x}", "unknown key"),
        ("augmentation=none", "report.reference: found 'augmentation=none', expected a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_line_and_key(reference: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_text("shift,loss\nidentity,0.1\n")
    (tmp_path / "good.csv").write_text(TABLE)
    with pytest.raises(StudyError) as caught:
        parse(reference, tmp_path)
    assert said in str(caught.value)


def test_an_arm_that_is_excluded_is_no_arm(tmp_path: Path) -> None:
    text = (
        TEXT + "exclude: [{augmentation: none, training.learning_rate: 0.01}]\nreport: {reference: {arm: REFERENCE}}\n"
    )
    for reference in (
        "{augmentation: none, training.learning_rate: 0.01}",
        '"augmentation=none, training.learning_rate=0.01"',
    ):
        with pytest.raises(StudyError, match=r"found 0 arms|there is no arm"):
            parse_study(text.replace("REFERENCE", reference), source="s.yaml", folder=tmp_path)


# ------------------------------------------------------------------ families


OWN = "evaluation: {shifts: [all, {name: dusk, op: brightness_down, strengths: [0.4]}]}\n"


def parse_families(families: str) -> Study:
    return parse_study(f"{TEXT}{OWN}report:\n  families: {families}\n", source="s.yaml")


def test_families_of_shifts_do_not_touch_the_trials() -> None:
    study = parse_families("{light: [dusk, gamma_corr_up], mixed: [snow_then_jpeg], lab: [stain-grid]}")
    assert study.report.families["light"] == ["dusk", "gamma_corr_up"]
    plain = parse_study(TEXT + OWN, source="s.yaml")
    assert [arm.config for arm in study.arms()] == [arm.config for arm in plain.arms()]
    assert "families" not in plain.describe()["report"]


@pytest.mark.parametrize(
    ("families", "said"),
    [
        ("{light: [duskk]}", r"report.families.light\[0\].*there is no shift 'duskk'.*did you mean dusk"),
        ("{a: [jpeg], b: [dusk, jpeg_compression]}", r"report.families.b\[1\].*jpeg_compression is in a and in b"),
        ("{mean: [jpeg]}", "report.families.mean.*'mean', expected another name"),
        ("{other: [jpeg]}", "report.families.other.*'other', expected another name"),
        ("{snow: [jpeg]}", "report.families.snow.*'snow', expected another name"),
        ("{a: []}", r"report.families.a"),
        ("[jpeg]", "report.families"),
    ],
)
def test_unclear_families_are_refused(families: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        parse_families(families)
