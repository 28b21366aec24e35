"""Stages that choose matched severities: what they depend on, what depends on them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.planning.encoders import find_encoder_uses
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.reconcile import reconcile
from orchestrator.study.report_config import find_matching_references
from orchestrator.study.study_file import parse_study
from tests.support.plans import StatedFacts
from trainables.config import MatchingConfig
from trainables.errors import StudyError

HEAD = "study: s\ndata: {kind: digits}\n"
STUDY = (
    "evaluation: {severities: matched, shifts: [jpeg, gamma_up]}\n"
    "factors: {pretraining: {a: scratch, b: {kind: contrastive, epochs: 3}}, augmentation: [none, strong]}\n"
    "replicates: 2\n"
)


def plan_of(text: str, *overrides: str) -> Plan:
    study = parse_study(HEAD + text, source="s.yaml", overrides=overrides)
    arms = study.arms()
    references = find_matching_references(study.report, arms)
    return make_plan(arms, replicates=study.replicates, facts=StatedFacts(), references=references)


def signatures(plan: Plan) -> list[str]:
    return [trial.signature for trial in plan.trials]


def stage_of(plan: Plan) -> Any:
    (stage,) = (stage for stage in plan.stages if isinstance(stage.config, MatchingConfig))
    return stage


def test_one_stage_comes_first_and_every_trial_waits_for_it() -> None:
    plan = plan_of(STUDY)
    stage = stage_of(plan)
    assert plan.stages[0] == stage
    assert stage.name == "severities matched on pretraining=a, augmentation=none"
    assert stage.num_dependants == 8
    assert all(trial.matching == stage.signature and stage.signature in trial.needs for trial in plan.trials)
    assert reconcile(plan, {}).open[0] == stage


def test_it_is_no_encoder_that_replicates_share() -> None:
    plan = plan_of(STUDY)
    stage = stage_of(plan)
    uses = find_encoder_uses(plan)
    assert len(uses) == 1
    assert stage.signature not in uses[0].encoders
    assert [len(trial.encoders) for trial in plan.trials] == [0, 0, 1, 1] * 2


def test_the_stage_is_the_reference_training_and_its_targets() -> None:
    stage = stage_of(plan_of(STUDY)).config
    assert stage.targets == (0.05, 0.1, 0.2, 0.35, 0.5)
    assert (stage.replicate, stage.augmentation.kind, stage.pretraining.kind) == (0, "none", "scratch")
    assert stage.evaluation.shifts == ("jpeg", "gamma_up")


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.matching={targets: [0.1, 0.4]}",
        "evaluation.matching={reference: {pretraining: a, augmentation: strong}}",
        "report={reference: {arm: {pretraining: a, augmentation: strong}}}",
        "evaluation.shift_seed=1",
        "training={epochs: 3}",
        "seed=1",
    ],
)
def test_another_reference_target_or_seed_is_another_stage_and_other_trials(override: str) -> None:
    before, after = plan_of(STUDY), plan_of(STUDY, override)
    assert stage_of(before).signature != stage_of(after).signature
    assert set(signatures(before)).isdisjoint(signatures(after))


def test_the_name_of_the_default_reference_changes_nothing() -> None:
    named = plan_of(STUDY, "evaluation.matching={reference: {pretraining: a, augmentation: none}}")
    assert signatures(named) == signatures(plan_of(STUDY))


def test_studies_with_published_severities_have_the_signatures_they_had() -> None:
    text = "evaluation: {severities: [1, 3]}\nfactors: {augmentation: [none, strong]}\n"
    study = parse_study(HEAD + text, source="s.yaml")
    assert find_matching_references(study.report, study.arms()) == {}
    plan = plan_of(text)
    assert plan.stages == ()
    assert all(trial.needs == () and trial.matching is None for trial in plan.trials)


def test_arms_with_other_images_are_matched_on_these() -> None:
    plan = plan_of(
        "evaluation: {severities: matched}\nfactors: {data.image_size: [16, 32], augmentation: [none, strong]}\n"
    )
    assert sorted(stage.config.data.image_size for stage in plan.stages) == [16, 32]
    sizes = {stage.signature: stage.config.data.image_size for stage in plan.stages}
    assert all(sizes[trial.matching] == trial.config.data.image_size for trial in plan.trials)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.matching={reference: {pretraining: b, augmentation: none}}", "starts from a stage; expected"),
        ("evaluation.matching={reference: {augmentation: none}}", "found 2 arms with these levels, expected one"),
        ("evaluation.matching={reference: {colour: red}}", "found 0 arms with these levels, expected one"),
        ("evaluation.matching={targets: [0.5, 0.1]}", "expected shares that ascend"),
        ("evaluation.matching={targets: [0, 0.1]}", "greater than 0"),
        ("evaluation.severities=[1, 2]", None),
        ("evaluation={severities: [1], matching: {targets: [0.1]}}", "which needs severities: matched"),
        ("evaluation.severities=equal", "matched"),
        ("data={kind: digits, split: per_replicate}", "validation images of one replicate are test images of another"),
        ("report={reference: {table: errors.csv}}", "report.reference.table has errors at published strengths"),
        (
            "training={select_by: robustness/mean_accuracy}",
            "chooses its epoch on shifted validation images",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(override: str, message: str | None) -> None:
    text = STUDY.replace("gamma_up]", "gamma_up], validation_shifts: [jpeg]")
    text = text.replace("epochs: 3", "epochs: 3, encoders: per_replicate")
    if message is None:
        plan_of(text, override)
        return
    with pytest.raises(StudyError, match=message):
        plan_of(text, override)


def test_a_search_is_refused() -> None:
    search = "search: {objectives: [{metric: validation/balanced_accuracy}], num_trials: 2}"
    with pytest.raises(StudyError, match="does not go with search"):
        plan_of(STUDY + search + "\n")


def test_confidnet_is_no_part_of_the_stage_and_the_other_confidences_are() -> None:
    rest = "evaluation: {severities: matched, shifts: [jpeg]}\n"
    plain, *found = (
        stage_of(plan_of(rest, f"training.confidence={kind}")).config.training.confidence.kind
        for kind in ("none", "confidnet", "devries")
    )
    assert [plain, *found] == ["none", "none", "devries"]
