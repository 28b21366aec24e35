from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.planning.encoders import find_encoder_uses
from orchestrator.planning.identity import compute_signature
from orchestrator.planning.plan import Plan, merge_plans
from orchestrator.planning.works import weights_of
from tests.support.plans import StatedFacts, names_of, plan_of
from trainables.config import TrialConfig
from trainables.errors import StudyError

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


ENCODERS = """
factors: {pretraining: {s: scratch, c: {kind: contrastive, epochs: 2%s}}, augmentation: [none, strong]}
replicates: %d
"""


def encoders_of(plan: Plan) -> dict[str, dict[int, int]]:
    """Return arm → replicate → number of the encoder that its trial needs."""
    number = {stage.signature: stage.config.encoder for stage in plan.stages}  # type: ignore[union-attr]
    found: dict[str, dict[int, int]] = {}
    for trial in plan.trials:
        if trial.needs:
            found.setdefault(trial.name, {})[trial.replicate or 0] = number[trial.needs[0]]
    return found


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", [0, 0, 0, 0, 0]),
        (", encoders: 1", [0, 0, 0, 0, 0]),
        (", encoders: 2", [0, 1, 0, 1, 0]),
        (", encoders: 5", [0, 1, 2, 3, 4]),
        (", encoders: per_replicate", [0, 1, 2, 3, 4]),
    ],
)
def test_replicates_are_assigned_to_encoders_in_turn_and_arms_share_them(setting: str, expected: list[int]) -> None:
    plan = plan_of(ENCODERS % (setting, 5))
    names = ("pretraining=c, augmentation=none", "pretraining=c, augmentation=strong")
    assert encoders_of(plan) == {name: dict(enumerate(expected)) for name in names}
    assert len({stage.name for stage in plan.stages}) == len(plan.stages) == len(set(expected))
    for trial in plan.trials:
        assert isinstance(trial.config, TrialConfig)
        contrastive = trial.config.pretraining.kind == "contrastive"
        assert trial.config.encoder == (expected[trial.replicate or 0] if contrastive else None)
        assert trial.signature == compute_signature(trial.config, trial.data_fingerprint)


def test_more_encoders_or_replicates_keep_the_stages_and_trials_that_stay_what_they_are() -> None:
    one, two, each = (plan_of(ENCODERS % (text, 4)) for text in ("", ", encoders: 2", ", encoders: per_replicate"))
    stages = [{stage.signature for stage in plan.stages} for plan in (one, two, each)]
    assert stages[0] < stages[1] < stages[2]
    kept = [trial for trial in one.trials if trial.signature in names_of(each)]
    assert [trial.replicate for trial in kept if trial.needs] == [0, 0]
    assert sum(not trial.needs for trial in kept) == 2 * 4  # from scratch: all
    grown = plan_of(ENCODERS % (", encoders: per_replicate", 6))
    assert names_of(each).items() <= names_of(grown).items()
    assert stages[2] < {stage.signature for stage in grown.stages}


def test_what_the_encoders_of_an_arm_decide_is_counted() -> None:
    text = """
factors:
  pretraining:
    s: scratch
    one: {kind: contrastive, epochs: 2}
    two: {kind: contrastive, epochs: 3, encoders: 2}
    own: {kind: contrastive, epochs: 4, encoders: per_replicate}
  augmentation: [none, strong]
replicates: 6
"""
    plan = plan_of(text)
    one, two, own = find_encoder_uses(plan)
    assert one.arms == ("pretraining=one, augmentation=none", "pretraining=one, augmentation=strong")
    assert [(len(use.encoders), use.num_replicates, use.num_more) for use in (one, two, own)] == [
        (1, 6, 5),
        (2, 6, 4),
        (6, 6, 0),
    ]
    replicates = {trial.signature: trial.replicate for trial in plan.trials}
    assert [sorted(replicates[trial] or 0 for trial in use.reused) for use in (one, two, own)] == [
        [1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
        [2, 2, 3, 3, 4, 4, 5, 5],
        [],
    ]
    assert find_encoder_uses(plan_of("replicates: 6")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "pretraining: {kind: contrastive, encoders: 3}\nreplicates: 2",
            r"s.yaml:3: pretraining\.encoders: found 3 encoders for 2 replicate\(s\), expected at most as many",
        ),
        (
            "factors: {pretraining: {s: scratch, c: {kind: contrastive, encoders: 3}}}\nreplicates: 2",
            r"factors\.pretraining\.c\.encoders: found 3 encoders for 2 replicate\(s\)",
        ),
        (
            "pretraining: {kind: contrastive}\nfactors: {pretraining.encoders: [1, 2]}\nreplicates: 2",
            r"have the same configuration \(data\.split and pretraining\.encoders aside\); exclude one of them",
        ),
        ("pretraining: {kind: contrastive, encoders: 0}", r"pretraining\.encoders"),
        ("pretraining: {kind: contrastive, encoders: each}", r"pretraining\.encoders"),
        ("factors: {encoder: [1, 2]}", "the trial has no field 'encoder'"),
        (
            "pretraining: {kind: contrastive}\nreplicates: 2\n"
            "search: {num_trials: 2, space: {pretraining.encoders: {choices: [1, 2]}}}",
            r"search\.space\.pretraining\.encoders: makes no other trial",
        ),
    ],
)
def test_numbers_of_encoders_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        plan_of(text)


SPLIT = "factors: {augmentation: [none, strong]}\nreplicates: 3\n"


def seeds_of(plan: Plan) -> dict[str, list[int]]:
    """Return arm → the seed of the split of every replicate."""
    found: dict[str, list[int]] = {}
    for trial in plan.trials:
        found.setdefault(trial.name, []).append(trial.config.data.split_seed)
    return found


def test_all_replicates_have_one_split_unless_each_draws_its_own() -> None:
    assert seeds_of(plan_of(SPLIT, "data.split_seed=7")) == {
        "augmentation=none": [7, 7, 7],
        "augmentation=strong": [7, 7, 7],
    }
    fixed, own = plan_of(SPLIT), plan_of(SPLIT, "data.split=per_replicate")
    none, strong = seeds_of(own).values()
    assert none == strong  # arms stay paired
    assert none[0] == 0
    assert len(set(none)) == 3
    assert {trial.replicate for trial in own.trials if trial.signature in names_of(fixed)} == {0}
    for trial in own.trials:
        assert trial.signature == compute_signature(trial.config, trial.data_fingerprint)
    assert names_of(own).items() <= names_of(plan_of(SPLIT, "data.split=per_replicate", "replicates=5")).items()


def test_an_encoder_never_sees_the_test_images_of_its_trials() -> None:
    text = "pretraining: {kind: contrastive, encoders: %s}\nreplicates: 3\n"
    plan = plan_of(text % "per_replicate", "data.split=per_replicate")
    stages = {stage.signature: stage.config for stage in plan.stages}
    assert len(stages) == 3
    for trial in plan.trials:
        assert stages[trial.needs[0]].data == trial.config.data  # type: ignore[union-attr]
    assert len(plan_of(text % 3, "data.split=per_replicate").stages) == 3
    with pytest.raises(StudyError, match=r"encoders: expected per_replicate with data\.split: per_replicate"):
        plan_of(text % 2, "data.split=per_replicate")


def test_arms_without_weights_are_left_out_with_the_reason() -> None:
    text = "factors: {pretraining: [scratch, imagenet], augmentation: [none, strong]}\nreplicates: 2"
    plan = plan_of(text, facts=StatedFacts(missing={"imagenet": "no weights for resnet18"}))
    assert {trial.config.pretraining.kind for trial in plan.trials} == {"scratch"}
    assert [skipped.num_trials for skipped in plan.skipped] == [2, 2]
    assert {skipped.reason for skipped in plan.skipped} == {"no weights for resnet18"}
    assert all("imagenet" in skipped.name for skipped in plan.skipped)


TUNED = """
factors: {augmentation: [none, strong], regulariser: [none, spectral_decoupling]}
replicates: 3
tuning: {space: {regulariser.weight: {choices: [0.1, 0.2, 0.3, 0.4]}}}
"""


def test_every_arm_and_replicate_has_its_candidates_and_equal_ones_are_one_trial() -> None:
    plan = plan_of(TUNED)
    assert [trial.replicate for trial in plan.trials] == [0] * 10 + [1] * 10 + [2] * 10
    rows = plan.as_json()["trials"]
    counts = Counter((row["name"], row["replicate"]) for row in rows)
    assert {name: count for (name, replicate), count in counts.items() if replicate == 1} == {
        "augmentation=none, regulariser=none": 1,
        "augmentation=none, regulariser=spectral_decoupling": 4,
        "augmentation=strong, regulariser=none": 1,
        "augmentation=strong, regulariser=spectral_decoupling": 4,
    }
    assert rows[0]["candidate"] == 0
    assert rows[0]["tuned"] == {}
    assert [row["candidate"] for row in rows[1:5]] == [0, 1, 2, 3]
    assert sorted(row["tuned"]["regulariser.weight"] for row in rows[1:5]) == ["0.1", "0.2", "0.3", "0.4"]


def test_a_candidate_is_the_trial_of_any_study_with_its_values() -> None:
    untuned = plan_of(TUNED.partition("tuning")[0])
    chosen = [trial for trial in untuned.trials if "=none" in trial.name.partition(",")[2]]
    assert (
        names_of(plan_of(TUNED)).items()
        >= {trial.signature: names_of(untuned)[trial.signature] for trial in chosen}.items()
    )
    weighted = plan_of("regulariser: {kind: spectral_decoupling, weight: 0.2}\nreplicates: 3")
    assert {trial.signature for trial in weighted.trials} < {trial.signature for trial in plan_of(TUNED).trials}
    more = plan_of(TUNED.replace("0.4]", "0.4, 0.5, 0.6]").replace("{space", "{candidates: 6, space"))
    assert len(more.trials) == 2 * (1 + 6) * 3


def test_candidates_share_the_encoder_of_their_replicate() -> None:
    text = "pretraining: {kind: contrastive, epochs: 2, encoders: 2}\nreplicates: 4\n"
    plan = plan_of(text + "tuning: {space: {training.learning_rate: {low: 0.001, high: 0.1}}}")
    (use,) = find_encoder_uses(plan)
    assert (len(plan.stages), len(plan.trials), use.num_replicates, use.num_more) == (2, 16, 4, 2)
    replicates = {trial.signature: trial.replicate for trial in plan.trials}
    assert [replicates[trial] for trial in use.reused] == [2] * 4 + [3] * 4


def test_arms_without_weights_are_left_out_once_with_all_candidates() -> None:
    text = "factors: {pretraining: [scratch, imagenet]}\nreplicates: 2\n"
    text += "tuning: {space: {training.learning_rate: {low: 0.001, high: 0.1}}}"
    (skipped,) = plan_of(text, facts=StatedFacts(missing={"imagenet": "no weights"})).skipped
    assert (skipped.name, skipped.num_trials) == ("pretraining=imagenet", 8)


def test_weights_are_looked_up_through_the_stage() -> None:
    text = "pretraining: {kind: contrastive, init: imagenet}"
    plan = plan_of(text)
    assert isinstance(plan.trials[0].config, TrialConfig)
    imagenet = weights_of(plan.trials[0].config)
    assert imagenet is not None
    assert imagenet.weights == "default"
    assert weights_of(TrialConfig()) is None
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
