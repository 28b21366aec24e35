"""Data sets of a study: which arms are on the same, and the reference and number of replicates that each has."""

from __future__ import annotations

import pytest

from orchestrator.planning.plan import make_plan
from orchestrator.study.data_sets import find_data_sets
from orchestrator.study.report_config import describe_reference
from orchestrator.study.study_file import Study, parse_study
from tests.support.plans import StatedFacts
from tests.support.study_texts import problems

TWO = """\
study: s
data: {kind: digits}
factors:
  data:
    digits: {kind: digits}
    lesions: {kind: phantom}
  augmentation: [none, strong]
"""


def read(text: str) -> Study:
    return parse_study(text, source="s.yaml")


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        ("data: {a: {kind: digits}, b: {kind: phantom}}", ["a", "b"]),
        ("data.flag: [bloodmnist, dermamnist]", ["bloodmnist", "dermamnist"]),
        # Sizes and seeds of a split are the same data set.
        ("data.image_size: [28, 64]", ["pneumoniamnist"]),
        ("data: {a: {flag: bloodmnist}, small: {flag: dermamnist}, large: {flag: dermamnist, image_size: 64}}",
         ["bloodmnist", "dermamnist"]),
        ("data: {all: {kind: phantom, num_classes: 3}, two: {kind: phantom}}", ["all", "two"]),
        ("data: {a: {flag: bloodmnist}, b: {kind: digits}, c: {kind: digits, label_map: {'0': zero}}, "
         "d: {kind: digits, image_size: 16}}", ["bloodmnist", "digits", "digits (2)"]),
    ],
)  # fmt: skip
def test_arms_on_the_same_source_and_classes_are_on_one_data_set(factor: str, expected: list[str]) -> None:
    arms = read(f"study: s\ndata: {{kind: medmnist}}\nfactors:\n  {factor}\n  augmentation: [none, strong]\n").arms()
    found = find_data_sets(arms)
    assert list(found) == [arm.name for arm in arms]
    assert list(dict.fromkeys(found.values())) == expected


def test_every_data_set_has_its_own_reference() -> None:
    for wanted in ("{augmentation: strong}", "'data=digits, augmentation=strong'"):
        study = read(TWO + f"report: {{reference: {{arm: {wanted}}}}}\n")
        assert describe_reference(study.report, study.arms()) == {
            "arms": {"digits": "data=digits, augmentation=strong", "lesions": "data=lesions, augmentation=strong"}
        }
    one = read("study: s\ndata: {kind: digits}\nfactors: {augmentation: [none, strong]}\n"
               "report: {reference: {arm: {augmentation: none}}}\n")  # fmt: skip
    assert describe_reference(one.report, one.arms()) == {"arm": "augmentation=none"}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("report: {reference: {arm: {data: digits}}}", "found 2 arms with these levels on digits"),
        ("report: {reference: {arm: {data: digits, augmentation: none}}}",
         "found 0 arms with these levels on lesions, expected one"),
        ("search: {num_trials: 3}", "results on different images cannot choose"),
        ("replicates_where: [{when: {data: blood}, replicates: 3}]", "data has no level 'blood'"),
        ("replicates_where: [{when: {data: digits}, replicates: 0}]", "replicates"),
        ("pretraining: {kind: contrastive, encoders: 7}\nreplicates: 6", "found 7 encoders for 6 replicate(s)"),
    ],
)  # fmt: skip
def test_mistakes_are_named(more: str, problem: str) -> None:
    found = problems(f"{TWO}{more}\n")
    assert any(problem in line for line in found), found


def test_arms_have_the_replicates_of_the_last_rule_that_matches() -> None:
    rules = "[{when: {data: lesions}, replicates: 2}, {when: {data: lesions, augmentation: [strong]}, replicates: 3}]"
    study = read(f"{TWO}replicates: 4\nreplicates_where: {rules}\n")
    numbers = [study.count_replicates(arm.levels) for arm in study.arms()]
    assert numbers == [4, 4, 2, 3]
    plan = make_plan(study.arms(), replicates=study.count_replicates, facts=StatedFacts())
    found = [(trial.name.split(", ")[0], trial.replicate) for trial in plan.trials]
    assert len(found) == 13
    assert found[-2:] == [("data=digits", 3), ("data=digits", 3)]  # replicates vary slowest
    # A trial is the same trial, whatever the numbers of the others.
    plain = make_plan(study.arms(), replicates=4, facts=StatedFacts())
    assert {trial.signature for trial in plan.trials} < {trial.signature for trial in plain.trials}
    assert "replicates_where" not in read(TWO).describe()
