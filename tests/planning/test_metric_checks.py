"""Metrics that no trial can have are refused before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.driver.prepare import prepare
from orchestrator.study.search.config import find_epoch_metric
from orchestrator.study.study_file import parse_study
from tests.support.small_data import DIGITS, PHANTOM
from trainables.errors import StudyError

HYPOTHESIS = """\
factors: {augmentation: [none, strong]}
replicates: 6
hypotheses:
- {name: h, claim: c, treatment: {augmentation: strong}, control: {augmentation: none}, direction: higher,
   smallest_effect: 0, metric: METRIC}
"""
SEARCH = """\
search: {num_trials: 4, space: {training.learning_rate: {low: 1e-4, high: 1e-2}}, objectives: [OBJECTIVE]}
"""
#: The images of a patient have one class, so the external set lacks the other.
ONE_PATIENT = "data.num_external_images=2"


def plan(tmp_path: Path, cache_dir: Path, text: str, *overrides: str) -> None:
    study = parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    prepare(study, storage=str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("metric", "overrides", "message"),
    [
        ("id/quadratic_kappa", [], "needs ordered classes"),
        ("val/quadratic_kappa", [], "needs ordered classes"),
        ("shift/gamma_up/quadratic_kappa", [], "needs ordered classes"),
        ("robustness/mean_balanced_accuracy", ["evaluation.shifts=[]"], "evaluation.shifts is empty"),
        ("calibration/mean_shifted_ece", ["evaluation.shifts=[]"], "evaluation.shifts is empty"),
        ("external/external-0/auroc", [ONE_PATIENT], "external-0 has none of"),
    ],
)
def test_a_hypothesis_about_nothing_is_refused(
    metric: str, overrides: list[str], message: str, tmp_path: Path, cache_dir: Path
) -> None:
    text = PHANTOM + HYPOTHESIS.replace("METRIC", metric)
    with pytest.raises(StudyError, match=rf"hypotheses\[0\].metric: found '{metric}'.*{message}"):
        plan(tmp_path, cache_dir, text, *overrides)
    plan(tmp_path, cache_dir, text, "data.ordinal=true")


@pytest.mark.parametrize(
    ("objective", "overrides", "message"),
    [
        ("{metric: validation/quadratic_kappa}", [], "needs ordered classes"),
        ("{metric: validation/robustness/mean_auroc}", [], "evaluation.validation_shifts is empty"),
        ("{metric: validation/calibration/worst_shift_ece}", [], "evaluation.validation_shifts is empty"),
        ("{metric: external/nowhere/auroc, oracle: true}", [], "the data have external-0"),
        ("{metric: external/external-0/auroc, oracle: true}", [ONE_PATIENT], "external-0 has none of"),
        (
            "{metric: robustness/worst_shift_auroc, oracle: true}",
            ["evaluation.shifts=[]"],
            "evaluation.shifts is empty",
        ),
        (
            "{metric: validation/auroc}",
            ["search.constraints=[{metric: validation/quadratic_kappa, at_least: 0.1}]"],
            "needs ordered classes",
        ),
        (
            "{metric: validation/auroc}",
            ["search.early_stopping={kind: asha, metric: validation/quadratic_kappa}"],
            "needs ordered classes",
        ),
        (
            "{metric: validation/robustness/mean_auroc}",
            ["search.early_stopping=asha", "evaluation.validation_shifts=[jpeg]"],
            "early stopping by it needs training.select_by: robustness/",
        ),
    ],
)
def test_a_search_for_nothing_is_refused(
    objective: str, overrides: list[str], message: str, tmp_path: Path, cache_dir: Path
) -> None:
    with pytest.raises(StudyError, match=rf"search: found the metric .*{message}"):
        plan(tmp_path, cache_dir, PHANTOM + SEARCH.replace("OBJECTIVE", objective), *overrides)


@pytest.mark.parametrize("metric", ["num_parameters", "validation/auroc", "validation/ece"])
def test_a_search_for_what_every_trial_has_passes(metric: str, tmp_path: Path, cache_dir: Path) -> None:
    plan(tmp_path, cache_dir, DIGITS + SEARCH.replace("OBJECTIVE", f"{{metric: {metric}}}"))


def test_a_search_and_its_early_stopping_may_go_by_shifted_validation(tmp_path: Path, cache_dir: Path) -> None:
    by = "robustness/mean_auroc"
    overrides = ["evaluation.validation_shifts=[jpeg]", f"training.select_by={by}", "search.early_stopping=asha"]
    text = DIGITS + SEARCH.replace("OBJECTIVE", f"{{metric: validation/{by}}}")
    plan(tmp_path, cache_dir, text, *overrides)
    search = parse_study(text, source="s.yaml", overrides=overrides).search
    assert search is not None
    assert not search.is_oracle
    assert find_epoch_metric(search.stopping_metric) == f"val/{by}"
    with pytest.raises(StudyError, match="take it away"):
        plan(tmp_path, cache_dir, text.replace("mean_auroc}", "mean_auroc, oracle: true}"), *overrides)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("failure/msrr/augrc", "there is no confidence score 'msrr'; did you mean msr?"),
        ("failure/msr/aurc", "only augrc is a headline number"),
        ("failure/ensemble_msr/augrc", "is computed from several models, in the report"),
        ("ood/knn/digits/auroc", "there is no set 'digits' to tell from the test images; there are external-0"),
        ("representation/cka_initial", "evaluation.representation.layers is empty"),
    ],
)
def test_failure_metrics_that_no_trial_can_have_are_refused(
    metric: str, message: str, tmp_path: Path, cache_dir: Path
) -> None:
    text = PHANTOM + HYPOTHESIS.replace("METRIC", metric).replace("higher", "lower")
    with pytest.raises(StudyError, match=rf"hypotheses\[0\].metric: found '{metric}'.*{re.escape(message)}"):
        plan(tmp_path, cache_dir, text)


@pytest.mark.parametrize(
    "metric",
    ["failure/msr/augrc", "failure/mahalanobis/mean_shifted_augrc", "failure/energy/mean_external_augrc",
     "ood/knn/external-0/auroc", "ood/msr/digits/auroc", "ood/msr/far_full_spectrum/auroc",
     "representation/effective_rank"],
)  # fmt: skip
def test_failure_metrics_are_metrics_of_hypotheses(metric: str, tmp_path: Path, cache_dir: Path) -> None:
    """Also of scores that are added to finished trials."""
    text = PHANTOM + HYPOTHESIS.replace("METRIC", metric).replace("higher", "lower")
    plan(tmp_path, cache_dir, text, "evaluation.foreign={digits: {data: {kind: digits}}}")


def test_a_search_goes_by_failures_on_validation(tmp_path: Path, cache_dir: Path) -> None:
    text = PHANTOM + SEARCH.replace("OBJECTIVE", "{metric: validation/failure/msr/augrc}")
    plan(tmp_path, cache_dir, text)
    search = parse_study(text, source="s.yaml").search
    assert search is not None
    assert not search.objectives[0].higher_is_better
    with pytest.raises(StudyError, match="which is not in-distribution validation"):
        parse_study(text.replace("validation/failure", "failure"), source="s.yaml")
    with pytest.raises(StudyError, match="expected a headline number of a trial, such as validation/balanced_accuracy"):
        parse_study(text.replace("validation/failure/msr/augrc", "representation/alpha, oracle: true"), source="s.yaml")


def test_of_what_only_describes_nothing_is_inferior(tmp_path: Path, cache_dir: Path) -> None:
    text = PHANTOM + HYPOTHESIS.replace("METRIC", "representation/alpha")
    plan(tmp_path, cache_dir, text)
    margin = text.replace("direction: higher,\n   smallest_effect: 0,", "kind: non_inferiority, margin: 1,")
    with pytest.raises(StudyError, match="neither more nor less is worse"):
        parse_study(margin, source="s.yaml")


_DIGITS = ", ".join(f"'{digit}': {'odd' if digit % 2 else 'even'}" for digit in range(10))
PARITY = f"evaluation.label_maps={{parity: {{{_DIGITS}}}}}"


@pytest.mark.parametrize(
    "metric",
    ["parity/id/auroc", "parity/robustness/mean_balanced_accuracy", "parity/validation/sensitivity_at_specificity_95",
     "class_9/id/sensitivity", "class_0/robustness/mean_auroc", "parity/class_1/id/sensitivity"],
)  # fmt: skip
def test_numbers_of_label_maps_and_classes_are_metrics_of_hypotheses(
    metric: str, tmp_path: Path, cache_dir: Path
) -> None:
    plan(tmp_path, cache_dir, DIGITS + HYPOTHESIS.replace("METRIC", metric), PARITY, "evaluation.per_class=true")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("parity/id/aurok", "there is no metric 'id/aurok' of parity; did you mean id/auroc?"),
        ("parity/shift/gamma_up/auroc", "expected a column of trials.csv such as id/auroc"),
        ("parity/id/quadratic_kappa", "needs ordered classes"),
        ("parity/external/mean_auroc", "the data have no external set"),
        ("parity/external/lyon/auroc", "expected an external set of the data"),
        ("partiy/id/auroc", "there is no metric 'partiy/id/auroc'"),
        ("class_9/id/ece", "there is no metric 'id/ece' of class_9"),
        ("class_10/id/sensitivity", "there is no class 10: the classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("parity/class_2/id/auroc", "there is no class 2: the classes are even, odd"),
    ],
)
def test_numbers_that_no_label_map_or_class_has_are_refused(
    metric: str, message: str, tmp_path: Path, cache_dir: Path
) -> None:
    with pytest.raises(StudyError, match=rf"found '{metric}'.*{message}|{message}"):
        plan(tmp_path, cache_dir, DIGITS + HYPOTHESIS.replace("METRIC", metric), PARITY, "evaluation.per_class=true")


def test_numbers_of_classes_have_to_be_asked_for(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(StudyError, match=r"evaluation\.per_class is false"):
        plan(tmp_path, cache_dir, DIGITS + HYPOTHESIS.replace("METRIC", "class_3/id/auroc"))


def test_a_label_map_has_to_fit_the_classes(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(StudyError, match=r"label_maps\.zero: found no entry for 1, 2"):
        plan(tmp_path, cache_dir, DIGITS, "evaluation.label_maps={zero: {'0': zero, '9': rest}}")
