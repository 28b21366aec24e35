"""What differs between the sides of a comparison beyond the factors that it varies."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.driver.prepare import prepare
from orchestrator.planning.ceteris_paribus import (
    FieldDifference,
    find_differences_of_hypotheses,
    find_differences_of_levels,
    read_differences,
    read_differences_of_levels,
    read_matching,
    read_settings,
)
from orchestrator.study.study_file import Study, parse_study
from trainables.errors import StudyError

HEAD = """
study: s
data: {kind: digits}
replicates: 6
factors:
  pretraining: {scratch: scratch, contrastive: {kind: contrastive, epochs: 2}}
  augmentation: [none, strong]
"""
CLAIM = "claim: c, direction: higher, smallest_effect: 0.02"
AUGMENTATION = f"{{name: h, treatment: {{augmentation: strong}}, control: {{augmentation: none}}, {CLAIM}}}"
PRETRAINING = f"{{name: h, treatment: {{pretraining: contrastive}}, control: {{pretraining: scratch}}, {CLAIM}}}"


def read(text: str, *overrides: str) -> Study:
    return parse_study(HEAD + text, source="s.yaml", overrides=overrides)


def find_all(study: Study) -> tuple[dict[str, list[FieldDifference]], dict[str, dict[str, list[FieldDifference]]]]:
    arms = study.arms()
    configs = [arm.config.model_dump(mode="json") for arm in arms]
    settings = read_settings([arm.levels for arm in arms], configs, study.grid())
    factors: dict[str, list[str]] = {}
    for arm in arms:
        for factor, level in arm.levels.items():
            factors.setdefault(factor, [])
            factors[factor] += [level] * (level not in factors[factor])
    found = find_differences_of_hypotheses(study.hypotheses, settings, factors)
    return found, find_differences_of_levels(settings, factors)


def describe(text: str) -> list[str]:
    return [each.describe() for each in find_all(read(text))[0]["h"]]


def test_what_the_levels_set_is_no_other_difference() -> None:
    """Contrastive pretraining has ten fields that scratch does not have: they are the level."""
    found, of_levels = find_all(read(f"hypotheses: [{PRETRAINING}]"))
    assert found == {"h": []}
    assert of_levels == {}


def test_a_learning_rate_that_a_condition_gives_to_one_side_is_listed() -> None:
    text = "conditions: [{when: {augmentation: strong}, set: {training.learning_rate: 3e-5}}]\n"
    found, of_levels = find_all(read(f"{text}hypotheses: [{AUGMENTATION}]"))
    expected = "training.learning_rate: 0.001 (control) / 0.00003 (treatment)"
    assert [each.describe() for each in found["h"]] == [expected]
    levels = {
        factor: {level: [each.describe() for each in d] for level, d in x.items()} for factor, x in of_levels.items()
    }
    assert levels == {"augmentation": {"strong": ["training.learning_rate: 0.001 (none) / 0.00003 (strong)"]}}
    # The other factor's sides both have it, cell by cell.
    assert describe(f"{text}hypotheses: [{PRETRAINING}]") == []


def test_a_difference_in_some_cells_says_in_how_many() -> None:
    text = "conditions: [{when: {augmentation: strong, pretraining: scratch}, set: {training.epochs: 5}}]\n"
    expected = ["training.epochs: 20 (control) / 5 (treatment), in 1 of 2 cells"]
    assert describe(f"{text}hypotheses: [{AUGMENTATION}]") == expected


def test_a_condition_on_what_the_level_sets_is_listed() -> None:
    """The level leaves the temperature at its default: its name no longer says what was trained."""
    text = "conditions: [{when: {pretraining: contrastive}, set: {pretraining.method.temperature: 0.3}}]\n"
    assert describe(f"{text}hypotheses: [{PRETRAINING}]") == [
        "pretraining.method.temperature: absent (control) / 0.3 (treatment)"
    ]


def test_a_section_that_a_condition_replaces_is_listed_field_by_field() -> None:
    text = (
        "regulariser: {kind: spectral_decoupling, weight: 0.5}\n"
        "conditions: [{when: {augmentation: strong}, set: {regulariser: none}}]\n"
    )
    found = describe(f"{text}hypotheses: [{AUGMENTATION}]")
    assert "regulariser.kind: spectral_decoupling (control) / none (treatment)" in found
    assert "regulariser.weight: 0.5 (control) / absent (treatment)" in found


def test_sides_of_several_arms_are_compared_by_shares() -> None:
    """Both sides train half of their arms for 5 epochs: nothing differs between the means."""
    grid = """
study: s
data: {kind: digits}
factors:
  recipe:
    a: {augmentation.kind: none, training.batch_size: 32}
    b: {augmentation.kind: none, training.batch_size: 48}
    c: {augmentation: strong, training.batch_size: 32}
    d: {augmentation: strong, training.batch_size: 48}
conditions:
  - {when: {recipe: WHICH}, set: {training.epochs: 5}}
hypotheses:
  - {name: h, treatment: {recipe: [c, d]}, control: {recipe: [a, b]}, CLAIM}
""".replace("CLAIM", CLAIM)

    def differences(which: str) -> list[str]:
        study = parse_study(grid.replace("WHICH", which), source="s.yaml")
        return [each.describe() for each in find_all(study)[0]["h"]]

    assert differences("[a, c]") == []
    assert differences("[a]") == [
        "training.epochs: 20 in 1/2 of the arms, 5 in 1/2 of the arms (control) / 20 (treatment)"
    ]


def test_a_trend_and_an_interaction_name_every_part() -> None:
    text = """
study: s
data: {kind: digits}
augmentation: strong
factors: {augmentation.strength: [0.2, 0.5, 1], regulariser: [none, spectral_decoupling]}
conditions:
  - {when: {augmentation.strength: 1}, set: {training.epochs: 40}}
hypotheses:
  - {name: t, kind: trend, factor: augmentation.strength, CLAIM}
  - name: i
    kind: interaction
    claim: c
    direction: higher
    smallest_effect: 0
    treatment: {regulariser: spectral_decoupling}
    control: {regulariser: none}
    at: {augmentation.strength: 1}
    versus: {augmentation.strength: 0.2}
""".replace("CLAIM", CLAIM)
    found = find_all(parse_study(text, source="s.yaml"))[0]
    assert [each.describe() for each in found["t"]] == [
        "training.epochs: 20 (augmentation.strength=0.2; augmentation.strength=0.5) / 40 (augmentation.strength=1)"
    ]
    assert [each.describe() for each in found["i"]] == [
        "training.epochs: 20 (control, versus; treatment, versus) / 40 (control, at; treatment, at)"
    ]


CONDITION = (
    f"conditions: [{{when: {{augmentation: strong}}, set: {{training.epochs: 3}}}}]\nhypotheses: [{AUGMENTATION}]"
)
EXPECTED = "training.epochs: 20 (control) / 3 (treatment)"


def about(tmp_path: Path, text: str, *overrides: str) -> dict[str, Any]:
    overrides = (*overrides, f"execution.cache_dir={tmp_path / 'cache'}", "factors.pretraining={scratch: scratch}")
    return prepare(read(text, *overrides), storage=str(tmp_path / "results")).about


def test_the_plan_holds_the_differences(tmp_path: Path) -> None:
    plan = about(tmp_path, CONDITION)
    assert read_differences(plan, "h") == [EXPECTED]
    assert read_differences_of_levels(plan) == ["augmentation, strong: training.epochs: 20 (none) / 3 (strong)"]
    assert read_differences({}, "h") is None
    assert read_differences_of_levels({}) is None


def test_strict_refuses_with_the_hypothesis_the_field_and_its_values(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="ceteris_paribus: found strict") as caught:
        about(tmp_path, CONDITION, "ceteris_paribus=strict")
    assert f"h: {EXPECTED}" in str(caught.value)
    fair = f"hypotheses: [{AUGMENTATION}]"
    assert read_differences(about(tmp_path, fair, "ceteris_paribus=strict"), "h") == []


RATE = "training.learning_rate: {low: 0.001, high: 0.1}"
STRENGTH = "augmentation.strength: {low: 0, high: 1}"


def test_tuned_fields_match_and_the_line_says_so(tmp_path: Path) -> None:
    """A condition gives one side a section with the tuned field in it: its value is not the one of any candidate."""
    conditions = "conditions: [{when: {pretraining: scratch}, set: {regulariser: spectral_decoupling}}]\n"
    tuning = f"tuning: {{space: {{{RATE}}}}}\n"
    claims = f"hypotheses: [{AUGMENTATION}]\n"
    plan = about(tmp_path, tuning + claims)
    assert read_differences(plan, "h") == []
    line = (
        "tuning-matched: in each replicate each arm was given 4 candidates of training.learning_rate, chosen by "
        "validation/balanced_accuracy"
    )
    assert read_matching(plan, "h") == read_matching(plan) == line
    untuned = about(tmp_path, claims)
    assert read_matching(untuned, "h") == "not tuning-matched: no setting was tuned per arm"
    study = read(
        f"{conditions}tuning: {{space: {{regulariser.weight: {{low: 0, high: 1}}}}}}\nhypotheses: [{PRETRAINING}]"
    )
    arms = study.arms()
    configs = [arm.config.model_dump(mode="json") for arm in arms]
    for tuned, expected in (((), True), (("regulariser.weight",), False)):
        settings = read_settings([arm.levels for arm in arms], configs, study.grid(), tuned=tuned)
        assert ("regulariser.weight" in settings.values) == expected
        assert "regulariser.kind" in settings.values


def test_a_side_with_fewer_different_candidates_is_named(tmp_path: Path) -> None:
    plan = about(tmp_path, f"tuning: {{space: {{{STRENGTH}}}}}\nhypotheses: [{AUGMENTATION}]")
    assert read_matching(plan, "h").endswith(
        "; fewer of them differ where a field does not apply: 1 of pretraining=scratch, augmentation=none"
    )


def test_a_metric_that_validation_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"tuning.metric: found 'validation/robustness/mean_auroc', and the arm .* has none"
    ):
        about(tmp_path, f"tuning: {{metric: validation/robustness/mean_auroc, space: {{{RATE}}}}}")


def test_the_default_leaves_the_digest_of_a_study_as_it_is() -> None:
    assert "ceteris_paribus" not in read(CONDITION).describe()
    assert read(CONDITION, "ceteris_paribus=strict").describe()["ceteris_paribus"] == "strict"


def test_a_section_that_one_side_alone_has_is_listed_by_its_kind() -> None:
    """The images of a step have dozens of fields, of which none says more than that they are there."""
    step = "[{kind: supervised, data: {kind: digits, channels: 3}, epochs: 2}]"
    text = f"conditions: [{{when: {{augmentation: strong, pretraining: scratch}}, set: {{pretraining: {step}}}}}]\n"
    found = describe(f"{text}hypotheses: [{AUGMENTATION}]")
    assert any(each.startswith("pretraining.data.kind: absent (control) / digits (treatment)") for each in found)
    assert not [each for each in found if each.startswith("pretraining.data.") and ".kind:" not in each]
    assert any(each.startswith("pretraining.epochs: ") for each in found)
