"""The section ``hypotheses`` of a study file: what it means, and everything that can be wrong with it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.planning.feasibility import check_attainable, check_external_sets, find_attainable
from orchestrator.planning.plan import make_plan
from orchestrator.statistics.paired_tests import permutation_test, smallest_p
from orchestrator.statistics.trend import trend_test
from orchestrator.study.contrasts import (
    ContrastError,
    compute_smallest_p,
    find_contrast,
    find_units,
    num_units_needed,
)
from orchestrator.study.hypotheses import (
    Comparison,
    Hypothesis,
    Interaction,
    compute_hypotheses_sha256,
    describe_comparison,
    describe_hypothesis,
    list_metrics,
    read_hypothesis,
)
from orchestrator.study.study_file import Study, parse_study
from tests.support.plans import StatedFacts, plan_of
from tests.support.study_texts import HEAD, problems
from trainables.errors import StudyError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.metrics import SEGMENTATION_METRICS, find_metric
from trainables.evaluation.robustness import summarise_rows
from trainables.evaluation.validation_fit import fit_on_validation

FACTORS = """\
evaluation:
  {shifts: [gaussian_noise, gamma_up, {name: dusk, op: brightness_down, strengths: [0.4, 0.1]}], severities: [1, 3]}
factors:
  augmentation: [none, strong, randaugment]
  training.learning_rate: [0.001, 0.003, 0.01]
replicates: 6
"""
#: What every hypothesis here says unless a test says otherwise.
BASE = {"name": "h", "claim": "it helps", "direction": "higher", "smallest_effect": 0.01}
SIDES = {"treatment": {"augmentation": "strong"}, "control": {"augmentation": "none"}}


def make(**changes: Any) -> Hypothesis:
    content = {"kind": "comparison", **BASE, **({} if "kind" in changes else SIDES), **changes}
    if "margin" in changes:
        del content["direction"], content["smallest_effect"]
    hypothesis = read_hypothesis(content)
    assert hypothesis is not None
    return hypothesis


def write(*entries: dict[str, Any]) -> str:
    """Return the section as YAML, an entry a line: the first in line 10."""
    return "hypotheses:\n" + "".join(f"  - {entry!r}\n".replace("None", "null") for entry in entries)


def read(*entries: dict[str, Any]) -> Study:
    return parse_study(HEAD + FACTORS + write(*entries), source="s.yaml")


def grid(**factors: tuple[str, ...]) -> tuple[list[dict[str, str]], dict[str, tuple[str, ...]]]:
    arms = [dict(zip(factors, labels, strict=True)) for labels in itertools.product(*factors.values())]
    return arms, factors


# ------------------------------------------------------------------ reading


def test_kind_and_the_long_form_of_a_level_may_be_left_out_or_written() -> None:
    short = {**BASE, **SIDES}
    long = short | {"kind": "comparison", "treatment": {"factor": "augmentation", "level": "strong"}}
    (first,), (second,) = read(short).hypotheses, read(long).hypotheses
    assert isinstance(first, Comparison)
    assert first == second
    assert (first.test, first.over, first.alpha, first.max_missing) == ("permutation", "replicates", 0.05, 0.0)


def test_a_claim_about_families_holds_the_families_of_the_study() -> None:
    text = HEAD + FACTORS + "report: {families: {light: [dusk, gamma_up]}}\n"
    entries = [{**BASE, **SIDES, "name": "a"}, {**BASE, **SIDES, "name": "b", "over": "shifts"}]
    entries.append({**BASE, **SIDES, "name": "c", "metric": "family/light/accuracy"})
    study = parse_study(text + write(*entries), source="s.yaml")
    assert [each.families for each in study.hypotheses] == [None, *[{"light": ["dusk", "gamma_up"]}] * 2]
    other = parse_study(text.replace("[dusk, ", "[") + write(*entries), source="s.yaml")
    changed = [describe_hypothesis(each) for each in other.hypotheses]
    assert [describe_hypothesis(each) == new for each, new in zip(study.hypotheses, changed, strict=True)] == [
        True,
        False,
        False,
    ]
    with pytest.raises(StudyError, match=r"there is no family of shifts 'lihgt'.*did you mean light"):
        parse_study(text + write(entries[2] | {"metric": "family/lihgt/accuracy"}), source="s.yaml")


def test_the_digest_is_of_the_meaning() -> None:
    def digest(*entries: dict[str, Any]) -> str:
        return compute_hypotheses_sha256(describe_hypothesis(each) for each in read(*entries).hypotheses)

    one, other = BASE | SIDES, BASE | SIDES | {"name": "other"}
    assert digest(one, other) == digest(other, one)
    assert digest(one) == digest(one | {"treatment": {"augmentation": ["strong"]}, "alpha": 0.05})
    rates = {"treatment": {"training.learning_rate": [0.003, 0.001]}, "control": {"training.learning_rate": 0.01}}
    turned = rates | {"treatment": {"training.learning_rate": [1e-3, "0.003"]}}
    assert digest(one | rates) == digest(one | turned)
    for change in ({"claim": "it does"}, {"smallest_effect": 0.02}, {"direction": "lower"}, {"test": "sign"}):
        assert digest(one) != digest(one | change)


def test_hypotheses_do_not_change_a_trial() -> None:
    factors = "factors: {augmentation: [none, strong]}\n"
    claimed = plan_of(factors + write(BASE | SIDES))
    assert [trial.signature for trial in plan_of(factors).trials] == [trial.signature for trial in claimed.trials]


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"treatment": {"augmentation": "strng"}}, "treatment.augmentation", "did you mean strong?"),
        ({"where": {"augmentatio": "strong"}}, "where.augmentatio", "did you mean augmentation?"),
        ({"control": {"augmentation": "strong"}}, "control", "the same, so there is nothing to compare"),
        ({"control": {"training.learning_rate": 0.01}}, "control", "name the same factors in both"),
        ({"control": {"augmentation": ["none", "strong"]}}, "", "is in treatment and in control"),
        ({"where": {"augmentation": "none"}}, "where.augmentation", "named in treatment too"),
        ({"where": {"training.learning_rate": 0.02}}, "where.training.learning_rate", "has no level '0.02'"),
        ({"metric": "robustness/mean_acuracy"}, "metric", "did you mean robustness/mean_accuracy?"),
        ({"metric": "nonsense"}, "metric", "expected a column of trials.csv"),
        ({"metric": "shift/gaussian_nois/accuracy"}, "metric", "did you mean gaussian_noise?"),
        ({"metric": "shift/jpeg/accuracy"}, "metric", "the study evaluates no shift 'jpeg'"),
        ({"metric": "shift/gamma_up/acc"}, "metric", "there is no metric 'acc'"),
        ({"metric": "external/lyon/accurac"}, "metric", "did you mean accuracy?"),
        ({"metric": "shift/gamma_up/auroc", "severities": [1, 2]}, "severities[1]", "found 2, the study evaluates"),
        ({"severities": [1]}, "severities", "belong to shift/<name>/<metric>"),
        ({"over": "shifts", "metric": "id/accuracy"}, "metric", "expected the mean over shifts"),
        ({"direction": "upper"}, "direction", "expected 'higher', 'lower' or 'two-sided'"),
        ({"smallest_effect": -1}, "smallest_effect", "greater than or equal to 0"),
        ({"alpha": 0}, "alpha", "greater than or equal to 0.001"),
        ({"test": "t"}, "test", "expected 'permutation'"),
        ({"test": "page"}, "test", "expected 'permutation'"),
        ({"name": "a b"}, "name", "expected a name of at most 100"),
        ({"kind": "trand"}, "kind", "did you mean trend?"),
        ({"treatmen": {}}, "treatmen", "did you mean treatment?"),
    ],
)
def test_a_problem_has_its_line_and_its_key(change: dict[str, Any], key: str, said: str) -> None:
    (problem,) = problems(HEAD + FACTORS + write(BASE | SIDES, BASE | SIDES | {"name": "i"} | change))
    where, found, text = problem.split(": ", 2)
    assert where == "s.yaml:11"
    assert found == "hypotheses[1]" + f".{key}" * bool(key)
    assert said in text


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"factor": "augmentation"}, "factor", "found the level 'none', a trend needs levels that are numbers"),
        ({"factor": "learning_rate"}, "factor", "there is no factor 'learning_rate'"),
        ({"levels": [0.001, 0.003, 0.02]}, "levels[2]", "has no level '0.02'"),
        ({"levels": [0.001, 0.003]}, "", "found 2 levels of training.learning_rate, a trend has at least 3"),
        ({"where": {"training.learning_rate": 0.01}}, "where.training.learning_rate", "named in factor too"),
    ],
)
def test_problems_of_trends(change: dict[str, Any], key: str, said: str) -> None:
    trend = BASE | {"kind": "trend", "factor": "training.learning_rate"}
    read(trend)
    (problem,) = problems(HEAD + FACTORS + write(trend | change))
    assert problem.startswith(f"s.yaml:10: hypotheses[0]{f'.{key}' * bool(key)}: ")
    assert said in problem


def test_problems_of_interactions() -> None:
    rates = {"at": {"training.learning_rate": 0.001}, "versus": {"training.learning_rate": 0.01}}
    entry = BASE | SIDES | {"kind": "interaction"} | rates
    assert isinstance(read(entry).hypotheses[0], Interaction)
    (problem,) = problems(HEAD + FACTORS + write(entry | {"versus": rates["at"]}))
    assert "hypotheses[0].versus: at and versus are the same" in problem
    (problem,) = problems(HEAD + FACTORS + write(entry | {"at": SIDES["treatment"], "versus": SIDES["control"]}))
    assert "an interaction is between two factors" in problem


def test_names_are_unique_and_a_family_has_one_error_rate() -> None:
    twice = [BASE | SIDES, BASE | SIDES | {"name": "H"}]
    (problem,) = problems(HEAD + FACTORS + write(*twice))
    assert "s.yaml:11: hypotheses[1].name: the name 'H' is there twice, first in hypotheses[0]" in problem
    rates = [BASE | SIDES, BASE | SIDES | {"name": "i", "alpha": 0.1}]
    (problem,) = problems(HEAD + FACTORS + write(*rates))
    assert "one family has one error rate" in problem
    read(rates[0], rates[1] | {"family": "other"})


def test_arms_that_cannot_be_paired_are_a_problem() -> None:
    exclude = (
        "exclude: [{augmentation: strong, training.learning_rate: [0.001, 0.003]}, "
        "{augmentation: none, training.learning_rate: 0.01}]\n"
    )
    (problem,) = problems(HEAD + FACTORS + exclude + write(BASE | SIDES))
    assert "no arms can be paired" in problem
    gone = "exclude: [{augmentation: strong}]\n"
    (problem,) = problems(HEAD + FACTORS + gone + write(BASE | SIDES))
    assert "no arm is in treatment" in problem


def test_shifts_of_a_group_and_of_ones_own_are_known() -> None:
    read(BASE | SIDES | {"metric": "shift/dusk/accuracy", "severities": [2]})
    for shifts, name in (("all", "jpeg"), ("[stain-grid]", "stain_h0.5_e2"), ("[imagenet-c]", "snow")):
        text = HEAD + FACTORS.split("\n", 2)[2] + f"evaluation: {{shifts: {shifts}}}\n"
        parse_study(text + write(BASE | SIDES | {"metric": f"shift/{name}/accuracy"}), source="s.yaml")
        (problem,) = problems(text + write(BASE | SIDES | {"metric": "shift/jpag/accuracy"}))
        assert "the study evaluates no shift 'jpag'" in problem


def prepare_with(tmp_path: Path, cache_dir: Path, text: str, metric: str, **changes: Any) -> Prepared:
    text += f"execution: {{cache_dir: {cache_dir}}}\n" + write(BASE | SIDES | {"metric": metric} | changes)
    return prepare(parse_study(text, source="s.yaml"), storage=str(tmp_path))


PHANTOM = (
    "study: s\ndata: {kind: phantom, image_size: 16, num_images: 60, num_external_sites: 1, num_external_images: 10}\n"
)
ARMS = "training: {batch_size: 8}\nfactors: {augmentation: [none, strong]}\nreplicates: 6\n"


@pytest.mark.parametrize(
    ("evaluation", "metric", "changes", "said"),
    [
        ("{shifts: [gaussian_noise, jpeg]}", "shift/jpeg/accuracy", {"severities": [1, 5]}, None),
        ("{shifts: [imagenet-c]}", "shift/saturate/accuracy", {}, None),
        ("{shifts: all}", "external/external-0/accuracy", {}, None),
        # in the bank, and not among what "all" stands for
        ("{shifts: all}", "shift/snow/accuracy", {}, r"'augmentation=none' is not evaluated under 'snow'; its"),
        ("{shifts: [{compose: [jpeg/1, snow/2]}]}", "shift/jpeg1_then_snow3/nll", {}, "did you mean jpeg1_then_snow2"),
        ("{shifts: [{name: dusk, op: brightness_down, strengths: [0.4]}]}", "shift/dusk/nll", {"severities": [2]},
         r"severities: found 2, .* under 'dusk' at the severities 1$"),
        ("{shifts: [jpeg]}", "family/digital/nll", {}, None),
        ("{shifts: [jpeg]}", "family/noise/nll", {}, "under no shift of 'noise'; its families are digital"),
        ("{shifts: [jpeg]}", "slope/digital/nll", {}, None),
        ("{shifts: [jpeg], severities: [1, 5]}", "slope/digital/nll", {}, "2 severities of 'jpeg'; a slope"),
        ("{shifts: [jpeg], severities: [1, 5]}", "slope/jpeg/nll", {}, "2 severities of 'jpeg'; a slope"),
        ("{shifts: [jpeg]}", "slope/snow/nll", {}, "not evaluated under 'snow'"),
        ("{shifts: [jpeg]}", "drop/mean/nll", {}, None),
        ("{shifts: [jpeg], severities: [1]}", "relative_drop/digital/accuracy", {}, None),
        ("{shifts: [jpeg]}", "drop/snow/nll", {}, "not evaluated under 'snow'"),
        ("{shifts: []}", "drop/mean/nll", {}, "evaluation.shifts is empty"),
        ("{shifts: [jpeg]}", "rbe/noise", {}, "under no shift of 'noise'"),
        ("{shifts: [jpeg]}", "rbe/mean", {}, None),
        ("{shifts: []}", "be/mean", {}, "evaluation.shifts is empty"),
        ("{shifts: all}", "external/external-1/accuracy", {}, "the data have external-0"),
    ],
)  # fmt: skip
def test_what_the_study_really_evaluates_is_looked_up_before_anything_runs(
    tmp_path: Path, cache_dir: Path, evaluation: str, metric: str, changes: dict[str, Any], said: str | None
) -> None:
    text = PHANTOM + ARMS + f"evaluation: {evaluation}\n"
    if said is None:
        assert len(prepare_with(tmp_path, cache_dir, text, metric, **changes).plan.trials) == 12
        return
    with pytest.raises(StudyError, match=rf"hypotheses\[0\].*{said}"):
        prepare_with(tmp_path, cache_dir, text, metric, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_shift_that_some_of_the_compared_arms_lack_or_grey_images_do_not_show_is_refused(
    tmp_path: Path, cache_dir: Path
) -> None:
    varied = "training: {batch_size: 8}\nfactors:\n  augmentation: [none, strong]\n"
    varied += "conditions:\n- {when: {augmentation: strong}, set: {evaluation.shifts: [jpeg]}}\n"
    with pytest.raises(StudyError, match="the arm 'augmentation=strong' is not evaluated under 'gamma_up'"):
        prepare_with(tmp_path, cache_dir, PHANTOM + varied, "shift/gamma_up/accuracy")
    grey = "study: s\ndata: {kind: digits, image_size: 8}\n" + ARMS
    with pytest.raises(StudyError, match=r"'saturate': it changes nothing in grey images"):
        prepare_with(tmp_path, cache_dir, grey + "evaluation: {shifts: [imagenet-c]}\n", "shift/saturate/accuracy")


def test_sites_are_units_from_six_on() -> None:
    hypothesis = make(metric="external/mean_accuracy", over="sites")
    text = "factors: {augmentation: [none, strong]}\n"
    plan, factors = plan_of(f"{text}replicates: 6\n"), {"augmentation": ["none", "strong"]}
    external = {trial.name: [f"s{number}" for number in range(6)] for trial in plan.trials}
    check_attainable([hypothesis], plan, factors, external=external)
    ((found,), _) = find_attainable([hypothesis], plan, factors, external=external)
    assert (found.units, found.p_value) == ("6 external sites × 6 replicates", 2 / 2**6)
    few = external | {"augmentation=none": external["augmentation=none"][1:]}  # only sites of both arms count
    with pytest.raises(StudyError, match=r"5 external sites × 6 .*; 6 external sites and 5 replicates are the fewest"):
        check_attainable([hypothesis], plan, factors, external=few)
    with pytest.raises(StudyError, match=r"6 external sites × 4 replicates, .*; 6 external sites and 5 replicates are"):
        check_attainable([hypothesis], plan_of(f"{text}replicates: 4\n"), factors, external=external)
    with pytest.raises(StudyError, match="expected the mean over sites of a metric: external/mean_"):
        read({**BASE, **SIDES, "over": "sites"})


def test_external_sets_are_looked_up_once_the_data_are_known() -> None:
    hypothesis = make(metric="external/lyon/accuracy")
    check_external_sets([hypothesis], {"a": ["lyon"], "b": []})
    with pytest.raises(StudyError, match=r"hypotheses\[0\].metric: .*the data have paris"):
        check_external_sets([hypothesis], {"a": ["paris"]})


def test_the_metrics_are_those_that_trials_have() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32), np.arange(20) % 2
    logits[:, 1] += labels
    metrics = compute_metrics(logits, labels, ece_bins=5, ordinal=True, fit=fit_on_validation(logits, labels)).values
    rows = [
        {"set": name, "shift": shift, "severity": severity, "metrics": metrics}
        for name, shift, severity in (
            ("test", "identity", 0), ("test", "jpeg", 1), ("lyon", "identity", 0), ("paris", "identity", 0),
        )
    ]  # fmt: skip
    of_trials = set(summarise_rows(rows)) | {f"val/{name}" for name in metrics}
    single = {f"external/{name}/{metric}" for name in ("lyon", "paris") for metric in metrics}
    of_segmentations = {name for name in list_metrics() if find_metric(name).name in SEGMENTATION_METRICS}
    assert of_trials - single == set(list_metrics()) - of_segmentations


def test_segmentations_have_the_same_numbers_of_their_own_metrics() -> None:
    values = dict.fromkeys(SEGMENTATION_METRICS, 0.5)
    rows = [
        {"set": name, "shift": shift, "severity": severity, "metrics": values}
        for name, shift, severity in (
            ("test", "identity", 0), ("test", "jpeg", 1), ("lyon", "identity", 0), ("paris", "identity", 0),
        )
    ]  # fmt: skip
    of_trials = set(summarise_rows(rows)) | {f"val/{name}" for name in values}
    single = {f"external/{name}/{metric}" for name in ("lyon", "paris") for metric in values}
    known = {name for name in list_metrics() if find_metric(name).name in SEGMENTATION_METRICS}
    assert of_trials - single == known


# ------------------------------------------------------------------ contrasts


def test_a_comparison_is_within_cells_of_all_else() -> None:
    arms, factors = grid(augmentation=("none", "strong"), pretraining=("a", "b"))
    contrast = find_contrast(make(), arms, factors)
    assert contrast.cells == {("a",): ((2,), (0,)), ("b",): ((3,), (1,))}
    assert contrast.weights == (1.0, -1.0)
    assert set(find_contrast(make(where={"pretraining": "b"}), arms, factors).cells) == {("b",)}
    del arms[2]
    assert set(find_contrast(make(), arms, factors).cells) == {("b",)}


def test_a_factor_with_the_same_levels_on_both_sides_restricts() -> None:
    arms, factors = grid(augmentation=("none", "strong"), pretraining=("a", "b", "c"))
    both = {"pretraining": ["a", "b"]}
    sides = {"treatment": SIDES["treatment"] | both, "control": SIDES["control"] | both}
    assert set(find_contrast(make(**sides), arms, factors).cells) == {("a",), ("b",)}
    crossed = {
        "treatment": {"augmentation": "strong", "pretraining": "a"},
        "control": {"augmentation": "none", "pretraining": "b"},
    }
    assert find_contrast(make(**crossed), arms, factors).cells == {(): ((3,), (1,))}


def test_several_levels_on_one_side_are_averaged() -> None:
    arms, factors = grid(augmentation=("none", "strong", "randaugment"))
    contrast = find_contrast(make(treatment={"augmentation": ["strong", "randaugment"]}), arms, factors)
    assert contrast.cells == {(): ((1, 2), (0,))}


def test_an_interaction_is_a_difference_of_differences() -> None:
    arms, factors = grid(augmentation=("none", "strong"), pretraining=("a", "b"), seed=("x",))
    contrast = find_contrast(
        make(kind="interaction", **SIDES, at={"pretraining": "a"}, versus={"pretraining": "b"}), arms, factors
    )
    assert contrast.cells == {("x",): ((2,), (0,), (3,), (1,))}
    assert contrast.weights == (1.0, -1.0, -1.0, 1.0)


def test_a_trend_is_the_rise_of_a_line_from_end_to_end() -> None:
    arms, factors = grid(strength=("0", "1", "0.25"), other=("x", "y"))
    contrast = find_contrast(make(kind="trend", factor="strength"), arms, factors)
    assert contrast.levels == (0.0, 0.25, 1.0)
    assert contrast.cells[("y",)] == ((1,), (5,), (3,))
    levels = np.array(contrast.levels)
    assert np.dot(contrast.weights, 7 + 3 * levels) == pytest.approx(3.0)
    noisy = np.array([0.2, 0.9, 0.5])
    assert np.dot(contrast.weights, noisy) == pytest.approx(np.polyfit(levels, noisy, 1)[0])


def test_an_arm_that_a_plan_has_left_out_is_named_as_missing() -> None:
    arms, factors = grid(augmentation=("none", "strong"))
    with pytest.raises(ContrastError, match="no arm is in treatment"):
        find_contrast(make(), arms[:1], factors)


def test_what_is_compared_is_said_in_words() -> None:
    assert describe_comparison(make()) == "augmentation=strong against augmentation=none"
    trend = make(kind="trend", factor="lr", levels=[1, 2, 0.5], where={"a": ["y", "x"]})
    assert describe_comparison(trend) == "trend over lr = 1, 2, 0.5, where a=x or y"


# ------------------------------------------------------------------ how much is needed


@pytest.mark.parametrize("num_units", [5, 6, 9])
def test_the_smallest_p_is_that_of_the_tests(num_units: int) -> None:
    differences = np.arange(1.0, num_units + 1)
    for test in ("permutation", "wilcoxon_signed_rank", "sign"):
        assert compute_smallest_p(make(test=test), num_units) == smallest_p(num_units)
    assert compute_smallest_p(make(), num_units) == permutation_test(differences, seed=0, alpha=1.0)
    margin = make(kind="equivalence", **SIDES, margin=0.1)
    assert compute_smallest_p(margin, num_units) == permutation_test(
        differences, seed=0, alternative="greater", alpha=1
    )
    trend = make(kind="trend", factor="lr", smallest_effect=0)
    assert compute_smallest_p(trend, num_units, 3) == 2 / 6**num_units
    assert compute_smallest_p(trend, num_units, 100) == 0.0  # no float is as small, and none overflows
    assert compute_smallest_p(make(kind="trend", factor="lr"), num_units, 3) == smallest_p(num_units)  # of its size


def test_fewer_than_five_units_decide_nothing() -> None:
    assert compute_smallest_p(make(kind="trend", factor="lr", smallest_effect=0), 4, 5) == 1.0
    levels, blocks = np.tile([0.0, 1.0, 2.0], 3), np.repeat(range(3), 3)
    p_value = trend_test(levels, levels, blocks=blocks, seed=0).p_value
    assert p_value is not None
    assert p_value < 0.05  # the test itself would


def test_units_needed_to_reach_alpha() -> None:
    assert [num_units_needed(make(alpha=alpha)) for alpha in (0.05, 0.01, 0.5)] == [6, 8, 5]
    assert num_units_needed(make(kind="equivalence", **SIDES, margin=0.1)) == 5
    assert num_units_needed(make(kind="trend", factor="lr", smallest_effect=0), 3) == 5


def test_replicates_that_share_a_stage_are_one_unit() -> None:
    assert find_units([[], [], []]) == [0, 1, 2]
    assert find_units([["a"], ["b"], ["a"], ["b"], []]) == [0, 1, 0, 1, 4]
    assert find_units([["a"], ["b"], ["a", "b"], ["c"]]) == [0, 0, 0, 3]


def test_what_no_result_could_decide_is_refused_before_anything_runs() -> None:
    factors = {"augmentation": ("none", "strong"), "pretraining": ("scratch", "imagenet")}
    text = "factors: {augmentation: [none, strong], pretraining: [scratch, imagenet]}\n"

    def found(replicates: int, *hypotheses: Hypothesis) -> list[tuple[bool, str]]:
        attainable, _ = find_attainable(hypotheses, plan_of(f"{text}replicates: {replicates}\n"), factors)
        return [(each.is_reached, each.describe()) for each in attainable]

    assert found(6, make()) == [
        (True, "h: 6 replicates, smallest attainable p 0.0312 after correction for the family")
    ]  # fmt: skip
    after = "smallest attainable p 0.0625 after correction for the family, above α = 0.05"
    assert found(5, make()) == [(False, f"h: 5 replicates, {after}; 6 replicates are the fewest")]
    assert found(1, make(over="shifts")) == []
    hopeless = (False, f"h: 6 replicates, {after}; fewer hypotheses in it, or more")
    assert found(6, make(), make(name="i"))[0] == hopeless
    assert found(6, make(), make(name="i", over="shifts"))[0][0]  # no verdict, no part of the family
    assert all(is_reached for is_reached, _ in found(7, make(), make(name="i")))
    assert all(is_reached for is_reached, _ in found(6, make(), make(name="i", family="other")))
    plan = plan_of(f"{text}replicates: 5\n")
    with pytest.raises(StudyError, match=r"h: 5 replicates, .* 6 replicates are the fewest; or ask over: shifts"):
        check_attainable([make()], plan, factors)
    check_attainable([make(kind="equivalence", **SIDES, margin=0.1)], plan, factors)
    absent = make(treatment={"pretraining": "byol"}, control={"pretraining": "scratch"})
    _, (line,) = find_attainable([absent], plan, factors)
    assert "nothing to compare: no arm is in treatment" in line


def test_trials_of_one_pretrained_encoder_are_no_replicates() -> None:
    factors = {"augmentation": ("none", "strong"), "pretraining": ("scratch", "contrastive")}
    plan = plan_of("factors: {augmentation: [none, strong], pretraining: [scratch, contrastive]}\nreplicates: 6\n")
    check_attainable([make()], plan, factors)  # its effect is shown, for this encoder
    ((found,), _) = find_attainable([make()], plan, factors)
    assert not found.is_reached
    assert found.describe() == (
        "h: 6 replicates of trials that start from 1 pretrained encoder: a statement for this encoder, no verdict; "
        "6 independent encoders would do"
    )
    ((scratch,), _) = find_attainable([make(where={"pretraining": "scratch"})], plan, factors)
    assert scratch.is_reached


# ------------------------------------------------------------------ correlations and trends of a difference

SETS = """\
evaluation: {shifts: [gaussian_noise], severities: [1, 3]}
factors:
  data.seed: [0, 1, 2, 3, 4, 5]
  augmentation: [none, strong]
replicates: 2
"""
CORRELATED = {
    "name": "h", "claim": "c", "kind": "correlation", "across": "data.seed", **SIDES, "direction": "higher",
    "with_metric": "id/accuracy",
}  # fmt: skip
HEAD_OF_SETS = "study: s\ndata: {kind: phantom}\n"


def test_a_correlation_needs_six_levels_and_trainings_of_its_own() -> None:
    def attain(factors: str, **changes: Any) -> str:
        study = parse_study(HEAD_OF_SETS + factors + write({**CORRELATED, **changes}), source="s.yaml")
        plan = make_plan(study.arms(), replicates=study.replicates, facts=StatedFacts())
        levels = {f: list(dict.fromkeys(arm.levels[f] for arm in study.arms())) for f in study.factors}
        (found,) = find_attainable(study.hypotheses, plan, levels)[0]
        assert found.is_reached == ("above" not in found.describe())
        return found.describe()

    assert attain(SETS) == "h: 6 levels of data.seed, smallest attainable p 0.00278 after correction for the family"
    assert attain(SETS, test="pearson").split(", ")[1].startswith("smallest attainable p 0.00139")
    few = attain(SETS.replace(", 5]", "]"))
    assert few.endswith("above α = 0.05; 6 levels of data.seed with two independent replicates each are the fewest")
    alone = SETS.replace("replicates: 2", "replicates: 1")
    assert attain(alone).startswith("h: 0 levels of data.seed, smallest attainable p 1")
    assert attain(alone, trainings="same").startswith("h: 6 levels of data.seed, smallest attainable p 0.00278")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"with_metric": None}, "found the same gain twice; expected with_metric, or with_treatment and with_control"),
        ({"across": "seed"}, "there is no factor 'seed'"),
        ({"across": "augmentation"}, "augmentation is the factor across which gains are correlated"),
        ({"with_metric": "id/acuracy"}, "there is no metric 'id/acuracy'"),
        ({"with_treatment": {"augmentation": "none"}}, "treatment and control are the same"),
        ({"severities": [1]}, "found severities with the metric robustness/mean_balanced_accuracy and id/accuracy"),
        ({"smallest_effect": 0.1}, "smallest_effect"),
    ],
)
def test_mistakes_in_a_correlation_are_named(changes: dict[str, Any], problem: str) -> None:
    found = problems(HEAD_OF_SETS + SETS + write({**CORRELATED, **changes}))
    assert any(problem in line for line in found), found


def test_mistakes_in_the_trend_of_a_difference_are_named() -> None:
    trend = {**BASE, "kind": "trend", "factor": "training.learning_rate"}
    (alone,) = problems(HEAD + FACTORS + write(trend | {"treatment": {"augmentation": "strong"}}))
    assert "found treatment or control alone" in alone
    itself = {"training.learning_rate": 0.001}, {"training.learning_rate": 0.003}
    found = problems(HEAD + FACTORS + write(trend | dict(zip(("treatment", "control"), itself, strict=True))))
    assert any("training.learning_rate is the factor of the trend" in line for line in found)


def test_the_trend_of_a_difference_has_a_slope_for_each_side() -> None:
    arms, factors = grid(x=("0", "1", "3"), side=("a", "b"))
    hypothesis = make(kind="trend", factor="x", treatment={"side": "a"}, control={"side": "b"})
    contrast = find_contrast(hypothesis, arms, factors)
    assert contrast.parts[0] == "treatment, x=0"
    slope = np.polyfit([0, 1, 3], np.eye(3), 1)[0] * 3
    assert contrast.weights == pytest.approx([*slope, *-slope])
    assert contrast.levels == (0, 1, 3)
    plain = make(kind="trend", factor="x")
    assert "treatment" not in describe_hypothesis(plain)  # as registered before there were trends of a difference
    assert describe_hypothesis(hypothesis)["treatment"] == {"side": ["a"]}
