"""What may be tuned, and that every arm is given the same candidates."""

from __future__ import annotations

import math
from collections import Counter

import jsonschema
import pytest
import yaml

from orchestrator.study.grid import Arm
from orchestrator.study.schema import study_schema
from orchestrator.study.search.tuning import TuningConfig, draw_settings
from orchestrator.study.study_file import parse_study
from tests.support.study_texts import HEAD, problems

RATE = "training.learning_rate: {low: 1e-4, high: 1e-2, log: true}"
WEIGHT = "regulariser.weight: {low: 0.001, high: 1, log: true}"
FACTORS = "factors: {augmentation: [none, strong], regulariser: [none, spectral_decoupling]}\n"


def candidates(tuning: str, *overrides: str) -> list[Arm]:
    study = parse_study(f"{HEAD}{FACTORS}tuning: {tuning}\n", source="s.yaml", overrides=overrides)
    return study.candidates(study.arms())


def test_every_arm_is_given_the_same_values() -> None:
    found = candidates(f"{{space: {{{RATE}}}}}")
    values: dict[str, list[str]] = {}
    for each in found:
        assert each.config.training.learning_rate == float(each.tuned["training.learning_rate"])
        values.setdefault(each.name, []).append(each.tuned["training.learning_rate"])
    assert len(values) == 4
    assert len(set(map(tuple, values.values()))) == 1
    assert [each.candidate for each in found] == [0, 1, 2, 3] * 4


def test_the_seed_decides_the_values_and_more_candidates_keep_the_first() -> None:
    tuning = TuningConfig.model_validate(
        {"space": yaml.safe_load(f"{{{RATE.replace('1e-4', '0.0001').replace('1e-2', '0.01')}}}")}
    )
    four, again, other = (draw_settings(tuning, seed=seed) for seed in (0, 0, 1))
    assert four == again != other
    eight = draw_settings(tuning.model_copy(update={"candidates": 8}), seed=0)
    assert eight[:4] == four


@pytest.mark.parametrize("seed", range(20))
def test_draws_fill_a_logarithmic_range_evenly(seed: int) -> None:
    """Of 20 points on a circle i·√2 mod 1, each fifth of the range has 3 to 5 (discrepancy of a Kronecker sequence)."""
    tuning = TuningConfig.model_validate(
        {"space": {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}, "candidates": 20}
    )
    places = [(math.log10(float(each["training.learning_rate"])) + 4) / 2 for each in draw_settings(tuning, seed=seed)]
    fifths = Counter(int(5 * place) for place in places)
    assert set(fifths) == {0, 1, 2, 3, 4}
    assert all(3 <= count <= 5 for count in fifths.values())


def test_all_settings_of_a_small_space_are_tried_once() -> None:
    found = candidates(
        "{candidates: 6, space: {training.epochs: {low: 1, high: 3}, training.batch_size: {choices: [16, 32]}}}"
    )
    one = [each for each in found if each.name == found[0].name]
    assert sorted((each.config.training.epochs, each.config.training.batch_size) for each in one) == [
        (epochs, size) for epochs in (1, 2, 3) for size in (16, 32)
    ]


def test_whole_numbers_on_a_logarithmic_scale_and_steps_stay_inside() -> None:
    tuning = TuningConfig.model_validate(
        {
            "space": {
                "training.epochs": {"low": 1, "high": 100, "log": True},
                "augmentation.strength": {"low": 0, "high": 1, "step": 0.25},
            },
            "candidates": 100,
        }
    )
    found = draw_settings(tuning, seed=3)
    assert all(isinstance(each["training.epochs"], int) and 1 <= each["training.epochs"] <= 100 for each in found)
    assert {each["augmentation.strength"] for each in found} == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_a_field_that_does_not_apply_is_left_out_and_equal_candidates_are_one() -> None:
    found = candidates(f"{{space: {{{WEIGHT}}}}}")
    counts = Counter(each.name for each in found)
    assert counts == {
        "augmentation=none, regulariser=none": 1,
        "augmentation=none, regulariser=spectral_decoupling": 4,
        "augmentation=strong, regulariser=none": 1,
        "augmentation=strong, regulariser=spectral_decoupling": 4,
    }
    without = next(each for each in found if each.levels["regulariser"] == "none")
    assert (without.candidate, without.tuned) == (0, {})


def test_a_study_without_tuning_trains_its_arms() -> None:
    study = parse_study(HEAD + FACTORS, source="s.yaml")
    assert study.candidates(study.arms()) == study.arms()
    assert "tuning" not in study.describe()


def test_a_study_is_described_with_its_tuning() -> None:
    study = parse_study(f"{HEAD}tuning: {{space: {{{RATE}}}}}\n", source="s.yaml")
    said = study.describe()["tuning"]
    assert (said["candidates"], said["metric"]) == (4, "validation/balanced_accuracy")
    assert type(study).model_validate(study.describe()).tuning == study.tuning
    tree = yaml.safe_load("study: s\ndata: {kind: digits}\ntuning: {space: {training.epochs: {low: 1, high: 9}}}")
    jsonschema.validate(tree, study_schema())


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (f"{{space: {{{RATE}}}, metric: id/accuracy}}", "tuning.metric: found id/accuracy, expected validation/…"),
        (f"{{space: {{{RATE}}}, metric: num_parameters}}", "found num_parameters, expected validation/…"),
        (f"{{space: {{{RATE}}}, metric: validation/acuracy}}", "expected a headline number of a trial"),
        (f"{{space: {{{RATE}}}, candidates: 1}}", "tuning.candidates: found 1, expected"),
        ("{space: {}}", "tuning.space: found {}, expected at least one entry"),
        ("{space: {data.image_size: {low: 8, high: 16}}}", "compared on the same data and shifts"),
        ("{space: {evaluation.ece_bins: {low: 5, high: 9}}}", "compared on the same data and shifts"),
        ("{space: {augmentation: {choices: [none, strong]}}}", "is also a factor; keep it in one"),
        ("{space: {pretraining.epochs: {low: 1, high: 9}}}", "which replicates share; make it a factor"),
        ("{space: {training.epochs: {low: 1, high: 3}}}", "found 4, and the space has 3 different settings"),
        ("{space: {model.drop: {low: 0, high: 1}}}", "no field 'model.drop'"),
        ("{space: {pretraining.init.file: {choices: [a, b, c, d]}}}", "which replicates share"),
        ("{space: {training.learning_rate: {low: -2, high: -1}}}", "expected a value greater than or equal to"),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused(tuning: str, message: str) -> None:
    (line,) = problems(f"{HEAD}{FACTORS}tuning: {tuning}\n")
    assert message in line


def test_a_field_that_applies_nowhere_is_refused() -> None:
    (line,) = problems(f"{HEAD}tuning: {{space: {{{WEIGHT}}}}}\n")
    assert line.endswith("tuning.space.regulariser.weight: does not apply to any arm; correct it, or take it away")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "factors: {recipe: {a: {training.learning_rate: 0.1}, b: {training.learning_rate: 0.2}}}",
            "the factor recipe",
        ),
        (
            "factors: {augmentation: [none, strong]}\n"
            "conditions: [{when: {augmentation: none}, set: {training.learning_rate: 0.1}}]",
            "conditions[0]",
        ),
    ],
)
def test_a_field_that_is_set_elsewhere_is_refused(setting: str, message: str) -> None:
    (line,) = problems(f"{HEAD}{setting}\ntuning: {{space: {{{RATE}}}}}\n")
    assert f"is also set by {message}, and would be overwritten; keep it in one" in line


def test_tuning_does_not_go_with_search() -> None:
    search = "search: {num_trials: 3, space: {training.epochs: {low: 1, high: 9}}}"
    (line,) = problems(f"{HEAD}tuning: {{space: {{{RATE}}}}}\n{search}\n")
    assert line.endswith("tuning: does not go with search, which varies settings itself; keep one of them")


def test_candidates_count_towards_the_largest_plan() -> None:
    (line,) = problems(f"{HEAD}replicates: 50000\ntuning: {{space: {{{RATE}}}}}\n")
    assert "found 200,000 trials of 1 arms with 4 candidates each, expected at most 100,000 trials in all" in line
