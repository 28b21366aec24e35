from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.plan import imagenet_of, merge_plans
from tests.support.plans import StatedFacts, plan_of
from trainables.config import StageConfig, TrialConfig

CONTRASTIVE = "{kind: contrastive, epochs: %d}"
SHARED = f"""
factors:
  pretraining: {{scratch: scratch, short: {CONTRASTIVE % 3}, long: {CONTRASTIVE % 9}}}
  augmentation: [none, strong]
  regulariser: [none, dropout]
replicates: 2
"""


def test_every_arm_has_every_replicate() -> None:
    plan = plan_of(SHARED)
    assert len(plan.trials) == len({trial.signature for trial in plan.trials}) == 3 * 2 * 2 * 2
    assert set(Counter(trial.name for trial in plan.trials).values()) == {2}
    for trial in plan.trials:
        assert isinstance(trial.config, TrialConfig)
        assert trial.config.replicate == trial.replicate
        assert trial.levels is not None
        assert set(trial.levels) == {"pretraining", "augmentation", "regulariser"}


def test_a_stage_is_shared_by_all_trials_that_need_it() -> None:
    plan = plan_of(SHARED)
    assert len(plan.stages) == 2
    for stage in plan.stages:
        dependants = [trial for trial in plan.trials if stage.signature in trial.needs]
        assert len(dependants) == stage.num_dependants == 2 * 2 * 2
        assert {trial.config.pretraining for trial in dependants} == {stage.config.pretraining}  # type: ignore[union-attr]
    for trial in plan.trials:
        assert len(trial.needs) == (0 if trial.config.pretraining.kind == "scratch" else 1)


def test_the_longest_path_comes_first_and_replicates_vary_slowest() -> None:
    plan = plan_of(SHARED)
    assert [stage.config.pretraining.epochs for stage in plan.stages] == [9, 3]  # type: ignore[union-attr]
    assert plan.works[:2] == plan.stages
    replicates = [trial.replicate for trial in plan.trials]
    assert replicates == sorted(replicates)


def test_a_stage_per_replicate_only_when_asked_for() -> None:
    text = "factors: {pretraining: {c: {kind: contrastive, epochs: 2%s}}, augmentation: [none, strong]}\nreplicates: 3"
    assert len(plan_of(text % "").stages) == 1
    plan = plan_of(text % ", per_replicate: true")
    assert len(plan.stages) == 3
    of_stage = {stage.signature: stage.config for stage in plan.stages}
    for trial in plan.trials:
        stage = of_stage[trial.needs[0]]
        assert isinstance(stage, StageConfig)
        assert stage.replicate == trial.replicate
    assert len({stage.name for stage in plan.stages}) == 3


def test_arms_without_weights_are_left_out_with_the_reason() -> None:
    text = "factors: {pretraining: [scratch, imagenet], augmentation: [none, strong]}\nreplicates: 2"
    plan = plan_of(text, facts=StatedFacts(missing={"imagenet": "no weights for resnet18"}))
    assert {trial.config.pretraining.kind for trial in plan.trials} == {"scratch"}
    assert [skipped.num_trials for skipped in plan.skipped] == [2, 2]
    assert {skipped.reason for skipped in plan.skipped} == {"no weights for resnet18"}
    assert all("imagenet" in skipped.name for skipped in plan.skipped)


def test_weights_are_looked_up_through_the_stage() -> None:
    text = "pretraining: {kind: contrastive, init: imagenet}"
    plan = plan_of(text)
    assert isinstance(plan.trials[0].config, TrialConfig)
    imagenet = imagenet_of(plan.trials[0].config)
    assert imagenet is not None
    assert imagenet.weights == "default"
    assert imagenet_of(TrialConfig()) is None
    assert plan.stages[0].name == "simclr on digits from imagenet"


def test_a_work_is_found_by_the_first_digits_of_its_signature() -> None:
    plan = plan_of(SHARED)
    trial = plan.trials[3]
    assert plan.find(trial.signature) is trial
    assert plan.find(trial.signature[:12]) is trial
    assert plan.find("") is None  # fits all
    assert plan.find("no such") is None


def test_the_plan_is_json() -> None:
    text = "factors: {pretraining: {s: scratch, c: {kind: contrastive}, i: imagenet}}"
    plan = plan_of(text, facts=StatedFacts(missing={"imagenet": "offline"}))
    value = json.loads(json.dumps(plan.as_json()))
    stage, trials = plan.stages[0], value["trials"]
    assert [trial["arm"] for trial in trials] == [{"pretraining": "s"}, {"pretraining": "c"}]
    assert trials[1]["needs"] == [stage.signature]
    assert value["stages"][0] == {
        "signature": stage.signature,
        "name": stage.name,
        "needs": [],
        "kind": "contrastive",
        "num_dependants": 1,
    }
    assert value["skipped"] == [
        {"name": "pretraining=i", "levels": {"pretraining": "i"}, "num_trials": 1, "reason": "offline"}
    ]


FACTORS = {
    "pretraining": "{scratch: scratch, contrastive: {kind: contrastive, epochs: 4}}",
    "augmentation": "[none, strong, randaugment]",
    "regulariser": "[none, mixup]",
    "training.learning_rate": "[0.001, 0.01]",
}


@settings(deadline=None, max_examples=12)
@given(st.permutations(sorted(FACTORS)), st.integers(1, 2))
def test_the_order_of_factors_changes_no_signature(order: list[str], replicates: int) -> None:
    lines = [f"  {name}: {FACTORS[name]}" for name in order]
    plan = plan_of("\n".join(["factors:", *lines, f"replicates: {replicates}"]))
    reference = plan_of("\n".join(["factors:", *sorted(lines), f"replicates: {replicates}"]))
    assert {work.signature for work in plan.works} == {work.signature for work in reference.works}
    assert len(plan.trials) == 24 * replicates


@pytest.mark.parametrize("replicates", [1, 3])
def test_replicates_share_everything_but_their_number(replicates: int) -> None:
    plan = plan_of(f"replicates: {replicates}")
    configs = [trial.config.model_copy(update={"replicate": 0}) for trial in plan.trials]
    assert len(configs) == replicates
    assert all(config == configs[0] for config in configs)


def test_merged_plans_have_each_signature_once_and_replicates_vary_slowest() -> None:
    text = "pretraining: {kind: contrastive}\nreplicates: 2\nfactors: {training.epochs: [%s]}\n"
    plans = [plan_of(text % epochs) for epochs in ("1", "2", "1")]
    merged = merge_plans(plans, num_to_come=4)
    whole = plan_of(text % "1, 2")
    assert [trial.signature for trial in merged.trials] == [trial.signature for trial in whole.trials]
    assert merged.stages == whole.stages  # with all dependants counted
    assert merged.as_json()["to_come"] == 4
    assert "to_come" not in whole.as_json()
