"""What may be searched, and what the drawn values mean."""

from __future__ import annotations

import re

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.study.schema import study_schema
from orchestrator.study.search.config import aggregate
from orchestrator.study.search.space import Dimension, Space, Value
from orchestrator.study.study_file import parse_study
from tests.study.test_study_file import FUZZ, TREES, WORDS
from tests.support.instant_search import HEAD, SPACE, read
from tests.support.study_texts import problems
from trainables.errors import StudyError


def problem(search: str, *, rest: str = "factors: {augmentation: [none, strong]}\n") -> str:
    """Return the one problem of a search."""
    (line,) = problems(f"{HEAD}{rest}search: {{num_trials: 3, {search}}}\n")
    return line


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("space: {training.learning_rat: {low: 1, high: 2}}", r"no field 'training.learning_rat'; did you mean .*rate"),
        ("space: {training.learning_rate: {low: 2, high: 1}}", r"search.space.training.learning_rate: found low 2"),
        ("space: {training.learning_rate: {low: 0, high: 1, log: true}}", "expected low above 0"),
        ("space: {training.learning_rate: {low: -1, high: 1}}", "-1 is no value of this field here: .*greater"),
        ("space: {training.learning_rate: {low: 0.1}}", "expected two numbers"),
        ("space: {training.learning_rate: {}}", "either low and high, or choices"),
        ("space: {training.learning_rate: {choices: [0.1], low: 1}}", "either low and high, or choices"),
        ("space: {training.learning_rate: {low: 0, high: 1, step: 0.3}}", "found step 0.3, expected one that leads"),
        ("space: {training.learning_rate: {choices: [1, 1.0]}}", "choices that differ"),
        ("space: {training.epochs: {low: 1.5, high: 3}}", "takes whole numbers only"),
        ("space: {training.epochs: {low: 0, high: 3}}", "0 is no value of this field here"),
        ("space: {training.optimiser: {low: 0, high: 3}}", "takes no numbers; give choices"),
        ("space: {training.optimiser: {choices: [adamw, adam]}}", "adam is no value of this field"),
        ("space: {regulariser: {choices: [none, dropuot]}}", "dropuot"),
        ("space: {augmentation: {choices: [none]}}", "is also a factor; keep it in one"),
        ("space: {data.label_noise: {low: 0, high: 1}}", "compared on the same data"),
        ("space: {evaluation.ece_bins: {low: 1, high: 9}}", "compared on the same data"),
        ("space: {seed: {low: 0, high: 9}}", "no field 'seed'"),
        ("space: {regulariser.weight: {low: 0, high: 1}}", "does not apply to any arm"),
        ("objectives: []", "at least one entry"),
        ("objectives: [{metric: accuracy}]", "expected a headline number of a trial"),
        ("objectives: [{metric: validation/accuray}]", "expected a headline number of a trial"),
        ("objectives: [{metric: id/accuracy}]", "not in-distribution validation.*set oracle: true"),
        ("objectives: [{metric: robustness/mean_auroc}]", "not in-distribution validation"),
        ("constraints: [{metric: calibration/ece, at_most: 0.1}]", "not in-distribution validation"),
        ("objectives: [{metric: validation/accuracy, oracle: true}]", "is in-distribution validation; take it away"),
        ("objectives: [{metric: validation/ece}, {metric: validation/ece}]", "an objective twice"),
        ("constraints: [{metric: validation/ece}]", "expected at_most or at_least"),
        ("aggregate: lower_bound", "found lower_bound with 1 replicate"),
        ("sampler: {kind: tpee}", "did you mean tpe"),
        ("sampler: {kind: random, population_size: 3}", "unknown key"),
        ("sampler: tpee", r"search\.sampler\.kind: found 'tpee'.*did you mean tpe"),
        ("sampler: cmaes", r"search\.space: found no range, and the sampler cmaes moves nothing else"),
        (
            "sampler: cmaes, space: {training.optimiser: {choices: [adamw, sgd]}}",
            r"search\.space: found no range, and the sampler cmaes",
        ),
        (
            "sampler: cmaes, objectives: [{metric: validation/ece}, {metric: validation/nll}]",
            r"search\.objectives: found 2, expected 1 with the sampler cmaes",
        ),
        ("num_trials: 0", "greater than or equal to 1"),
        (
            "constraints: [{metric: validation/accuracy, at_least: 5}]",
            "which no accuracy can keep to; it is from 0 to 1",
        ),
        ("constraints: [{metric: validation/nll, at_most: -1}]", "which no log loss can keep to"),
        ("constraints: [{metric: validation/accuracy, at_least: 0.9, at_most: 0.1}]", "at_least 0.9 and at_most 0.1"),
        (
            "early_stopping: {kind: median, min_samples: 3}",
            r"search\.early_stopping\.min_samples: found 3 others, and the search has 3 trials: nothing could be",
        ),
    ],
)
def test_what_is_wrong_with_a_search_is_named(search: str, message: str) -> None:
    search += "" if search.startswith("num_trials") else ", num_trials: 3"
    text = f"{HEAD}factors: {{augmentation: [none, strong]}}\nsearch: {{{search}}}\n"
    assert re.search(message, "\n".join(problems(text)))


def test_a_sampler_can_be_named_for_short() -> None:
    assert read(SPACE, "search.sampler=qmc") == read(SPACE, "search.sampler={kind: qmc}")
    schema = jsonschema.Draft202012Validator(study_schema())
    for sampler in ("qmc", {"kind": "cmaes", "population_size": 8}):
        content = {"study": "s", "data": {"kind": "digits"}, "search": {"num_trials": 3, "sampler": sampler}}
        schema.validate(content)
    content["search"]["sampler"] = "qcm"  # type: ignore[index]
    assert not schema.is_valid(content)


def test_a_search_of_nothing_is_refused() -> None:
    assert "nothing varies" in problem("", rest="")


def test_factors_that_vary_what_is_compared_on_are_refused() -> None:
    assert "the arms differ in data" in problem("", rest="factors: {data.image_size: [8, 16]}\n")
    assert "the arms differ in evaluation" in problem("", rest="factors: {evaluation.shift_seed: [0, 1]}\n")


def test_the_number_of_trials_is_limited() -> None:
    (line,) = problems(
        f"{HEAD}replicates: 20000\nfactors: {{augmentation: [none, strong]}}\nsearch: {{num_trials: 10}}\n"
    )
    assert "expected at most 100,000 trials" in line


def make_space(text: str) -> Space:
    study = read(text)
    assert study.search is not None
    return Space(study.arms(), study.search.space)


def build(space: Space, **values: Value):  # type: ignore[no-untyped-def]
    drawn = []

    def draw(dimension: Dimension) -> Value:
        drawn.append(dimension.name)
        return values[dimension.name.split(".")[-1]]

    return space.build(draw), drawn


def test_what_does_not_apply_is_not_drawn() -> None:
    space = make_space(SPACE)
    arm, drawn = build(space, augmentation="none", learning_rate=0.01)
    assert drawn == ["augmentation", "training.learning_rate"]
    assert arm.levels == {"augmentation": "none", "training.learning_rate": "0.01"}
    arm, drawn = build(space, augmentation="strong", learning_rate=0.01, strength=0.5)
    assert drawn[2:] == ["augmentation.strength"]
    assert arm.config.augmentation.strength == 0.5


def test_a_drawn_number_has_six_digits_and_stays_within_its_range() -> None:
    low, high = 0.00012345618, 0.1  # rounded, it would lie below
    space = make_space(SPACE.replace("low: 1e-4, high: 1e-1, log: true", f"low: {low}, high: {high}"))
    for drawn, meant in ((0.012345678, 0.0123457), (low, low), (high, high)):
        arm, _ = build(space, augmentation="none", learning_rate=drawn)
        assert arm.config.training.learning_rate == meant


def test_sections_and_integers_are_drawn() -> None:
    space = make_space(
        "search: {num_trials: 3, space: {regulariser: {choices: [none, spectral_decoupling]}, "
        "regulariser.weight: {low: 0.1, high: 1}, training.batch_size: {low: 8, high: 64, step: 8}, "
        "training.patience: {choices: [null, 3]}}}\n"
    )
    arm, drawn = build(space, regulariser="spectral_decoupling", weight=0.5, batch_size=16, patience="none")
    assert (arm.config.regulariser.kind, arm.config.regulariser.weight) == ("spectral_decoupling", 0.5)
    assert (arm.config.training.batch_size, arm.config.training.patience) == (16, None)
    assert space.dimensions["training.batch_size"].is_integer
    assert not space.dimensions["regulariser.weight"].is_integer
    arm, drawn = build(space, regulariser="none", batch_size=16, patience="3")
    assert "regulariser.weight" not in drawn
    assert arm.config.training.patience == 3


def test_a_combination_that_is_left_out_is_none() -> None:
    space = make_space(SPACE + "exclude: [{augmentation: none}]\n")
    assert [dimension.choices for dimension in space.factors] == [("strong",)]
    arm, drawn = build(space, learning_rate=0.01, strength=0.5)
    assert arm.levels["augmentation"] == "strong"
    assert "augmentation" not in drawn  # there is no choice


def test_a_dimension_knows_its_values() -> None:
    steps = Dimension("x", (), 0, 1, step=0.1)
    assert steps.contains(0.30000000000000004)
    assert not any(map(steps.contains, (0.35, 1.1, "0.3", None, True)))
    assert not Dimension("x", (), 1, 9, is_integer=True).contains(1.5)
    assert Dimension("x", ("a",)).contains("a")
    assert not Dimension("x", ("a",)).contains("b")


def test_replicates_are_aggregated_towards_the_worse() -> None:
    values = [0.8, 0.6]
    assert aggregate(values, "mean", higher_is_better=True) == pytest.approx(0.7)
    assert aggregate(values, "worst", higher_is_better=True) == 0.6
    assert aggregate(values, "worst", higher_is_better=False) == 0.8
    # sd (ddof 1) 0.1414 over the root of 2
    assert aggregate(values, "lower_bound", higher_is_better=True) == pytest.approx(0.6)
    assert aggregate(values, "lower_bound", higher_is_better=False) == pytest.approx(0.8)


def test_the_name_of_a_metric_says_its_direction() -> None:
    study = read(
        SPACE, "search.objectives=[{metric: validation/nll}, {metric: num_parameters}, {metric: validation/auroc}]"
    )
    assert study.search is not None
    assert [each.higher_is_better for each in study.search.objectives] == [False, False, True]
    assert not study.search.is_oracle


@FUZZ
@given(st.dictionaries(WORDS | st.sampled_from(["space", "objectives", "num_trials", "sampler"]), TREES, max_size=4))
def test_any_search_is_a_study_or_a_study_error(search: object) -> None:
    message = "found 1 problem"
    try:
        parse_study(HEAD + yaml.safe_dump({"search": search}), source="s.yaml")
    except StudyError as error:
        message = str(error)
    assert re.search(r"found \d+ problem", message)
