"""Chains of initialisation: one representation, each step once, and the order in which stages run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator.execution.work_queue import WorkQueue
from orchestrator.planning.encoders import find_encoder_uses
from orchestrator.planning.identity import compute_signature
from orchestrator.planning.plan import Plan
from orchestrator.planning.reconcile import reconcile
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED
from orchestrator.planning.works import Work
from orchestrator.study.contrasts import find_units, name_unit
from orchestrator.study.study_file import parse_study
from tests.support.plans import plan_of
from tests.support.study_texts import problems
from trainables.config import StageConfig, TrialConfig
from trainables.errors import StudyError

STEPS = "[imagenet, {kind: supervised, data: {kind: phantom}, epochs: 5%s}, {kind: contrastive, epochs: 3%s}]"
SAME = "{kind: contrastive, epochs: 3, init: {kind: supervised, data: {kind: phantom}, epochs: 5, init: imagenet}}"
ARMS = f"""
factors:
  pretraining:
    scratch: scratch
    first: [imagenet, {{kind: supervised, data: {{kind: phantom}}, epochs: 5}}]
    both: {STEPS % ("", "")}
  augmentation: [none, strong]
replicates: 2
"""


def stages_of(plan: Plan) -> dict[str, Work]:
    """Return name → stage."""
    return {stage.name: stage for stage in plan.stages}


def test_a_list_and_its_nested_form_are_the_same_chain() -> None:
    listed, nested = plan_of(f"pretraining: {STEPS % ('', '')}"), plan_of(f"pretraining: {SAME}")
    assert [work.signature for work in listed.works] == [work.signature for work in nested.works]
    (trial,) = listed.trials
    assert isinstance(trial.config, TrialConfig)
    stored = trial.config.model_dump(mode="json")
    assert TrialConfig.model_validate(stored) == trial.config
    steps = [stored["pretraining"], stored["pretraining"]["init"], stored["pretraining"]["init"]["init"]]
    assert [step["kind"] for step in steps] == ["contrastive", "supervised", "imagenet"]
    with_python = TrialConfig.model_validate({"pretraining": ["imagenet", {"kind": "contrastive"}]})
    assert with_python == TrialConfig.model_validate({"pretraining": {"kind": "contrastive", "init": "imagenet"}})


def test_chains_in_factors_and_conditions_are_nested_too() -> None:
    text = f"""
factors:
  recipe: {{a: {{pretraining: {STEPS % ("", "")}}}, b: {{pretraining: scratch}}, c: {{training.epochs: 3}}}}
conditions: [{{when: {{recipe: c}}, set: {{pretraining: [scratch, contrastive]}}}}]
"""
    kinds = {trial.name: trial.config.pretraining.kind for trial in plan_of(text).trials}  # type: ignore[union-attr]
    assert kinds == {"recipe=a": "contrastive", "recipe=b": "scratch", "recipe=c": "contrastive"}


def test_a_step_that_chains_share_is_one_stage() -> None:
    plan = plan_of(ARMS)
    first, both = "supervised on phantom from imagenet", "simclr on digits from supervised on phantom from imagenet"
    stages = stages_of(plan)
    assert list(stages) == [first, both]  # the way through the first is the longer one
    assert stages[first].needs == ()
    assert stages[both].needs == stages[both].waits_for == (stages[first].signature,)
    assert {name: stage.num_dependants for name, stage in stages.items()} == {first: 8, both: 4}
    by_arm = {trial.levels["pretraining"]: trial for trial in plan.trials if trial.levels}
    assert by_arm["scratch"].needs == ()
    assert by_arm["first"].needs == (stages[first].signature,)
    assert by_arm["both"].needs == (stages[both].signature, stages[first].signature)
    assert by_arm["both"].waits_for == (stages[both].signature,)
    for work in plan.works:
        assert work.signature == compute_signature(work.config, work.data_fingerprint)


def test_a_step_on_images_of_its_own_is_shared_by_studies_of_other_images() -> None:
    steps = "pretraining: [{kind: supervised, data: {kind: phantom}, epochs: 5}, {kind: contrastive, epochs: 3}]"
    one, other = plan_of(steps), plan_of(steps, "data={kind: digits, split_seed: 3}")
    assert one.stages[0].signature == other.stages[0].signature
    assert one.stages[1].signature != other.stages[1].signature


@pytest.mark.parametrize(
    ("earlier", "last", "expected"),
    [
        ("", "", [(0, 0)] * 6),
        ("", ", encoders: 3", [(0, 0), (0, 1), (0, 2)] * 2),
        (", encoders: 2", ", encoders: 3", [(0, 0), (1, 1), (0, 2)] * 2),
        (", encoders: 3", ", encoders: per_replicate", [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5)]),
    ],
)
def test_encoder_k_of_a_step_starts_from_encoder_k_modulo_those_before(
    earlier: str, last: str, expected: list[tuple[int, int]]
) -> None:
    plan = plan_of(f"replicates: 6\npretraining: {STEPS % (earlier, last)}")
    config = {stage.signature: stage.config for stage in plan.stages}
    found = []
    for trial in plan.trials:
        late, early = (config[need] for need in trial.needs)
        assert isinstance(early, StageConfig)
        assert isinstance(late, StageConfig)
        assert late.earlier_encoders == (early.encoder,)
        found.append((early.encoder, late.encoder))
    assert found == expected
    assert len(plan.stages) == len(set(expected)) + len({early for early, _ in expected})


def test_more_encoders_keep_the_stages_that_stay_what_they_are() -> None:
    few, more = (
        plan_of(f"replicates: 4\npretraining: {STEPS % steps}")
        for steps in (("", ", encoders: 2"), (", encoders: 2", ", encoders: 2"))
    )
    kept = {work.signature for work in few.works} & {work.signature for work in more.works}
    assert len(kept) == 2 + 2  # encoder 0 of both steps, and the trials of replicates 0 and 2


def test_more_encoders_of_an_earlier_step_than_of_a_later_one_are_refused() -> None:
    with pytest.raises(StudyError, match="found 2 encoders of a step before one with 1"):
        plan_of(f"replicates: 4\npretraining: {STEPS % (', encoders: 2', '')}")


def test_what_the_encoders_of_a_chain_decide_is_counted() -> None:
    (use,) = find_encoder_uses(plan_of(f"replicates: 6\npretraining: {STEPS % ('', ', encoders: 3')}"))
    assert (len(use.encoders), use.num_units, use.num_replicates, use.num_more) == (3, 1, 6, 5 + 3)
    assert len(use.reused) == 5
    (own,) = find_encoder_uses(plan_of(f"replicates: 6\npretraining: {STEPS % ((', encoders: per_replicate',) * 2)}"))
    assert (own.num_units, own.num_more, own.reused) == (6, 0, ())


def test_arms_that_differ_in_numbers_of_encoders_alone_are_the_same() -> None:
    levels = f"{{a: {STEPS % ('', ', encoders: 2')}, b: {STEPS % (', encoders: 2', ', encoders: 2')}}}"
    with pytest.raises(StudyError, match="have the same configuration"):
        plan_of(f"replicates: 4\nfactors: {{pretraining: {levels}}}")


def test_replicates_that_share_any_trained_step_are_one_unit() -> None:
    shared = plan_of(f"replicates: 4\npretraining: {STEPS % ('', ', encoders: 4')}")
    assert find_units([trial.encoders for trial in shared.trials]) == [0, 0, 0, 0]
    assert name_unit([trial.encoders for trial in shared.trials]) == "encoder group"
    two = plan_of(f"replicates: 4\npretraining: {STEPS % (', encoders: 2', ', encoders: 4')}")
    assert find_units([trial.encoders for trial in two.trials]) == [0, 1, 0, 1]
    own = plan_of(f"replicates: 4\npretraining: {STEPS % (', encoders: 4', ', encoders: 4')}")
    assert find_units([trial.encoders for trial in own.trials]) == [0, 1, 2, 3]


def test_stages_wait_for_each_other_and_fall_together() -> None:
    plan = plan_of(ARMS)
    first, both = plan.stages
    queue = WorkQueue(plan.works, complete=(), num_slots=1)
    (taken,) = queue.next_chunk()
    assert taken is first
    scratch = [*itertools.chain.from_iterable(iter(queue.next_chunk, []))]
    assert {trial.levels["pretraining"] for trial in scratch if trial.levels} == {"scratch"}
    lost = queue.drop(first)
    assert lost[0] is both or both in lost
    assert len(lost) == 1 + 4 + 4
    queue = WorkQueue([both, *plan.trials], complete=[first.signature], num_slots=1)
    assert queue.next_chunk() == [both]
    queue = WorkQueue(plan.trials, complete=[both.signature], num_slots=1)  # the first is not looked for any more
    while chunk := queue.next_chunk():
        assert all(trial.levels and trial.levels["pretraining"] != "first" for trial in chunk)


@pytest.mark.parametrize(
    ("states", "to_run", "failed"),
    [
        ({}, ("first", "both"), ()),
        ({"first": COMPLETE}, ("both",), ()),
        ({"first": COMPLETE, "both": INTERRUPTED}, ("both",), ()),
        ({"both": COMPLETE}, (), ()),  # nothing that is left starts from the first
        ({"both": FAILED}, (), ("both",)),
        ({"first": FAILED}, (), ("first", "both")),
        ({"first": FAILED, "both": COMPLETE}, (), ("first",)),
    ],
)
def test_a_stage_runs_only_for_what_will_start_from_it(
    states: dict[str, str], to_run: tuple[str, ...], failed: tuple[str, ...]
) -> None:
    plan = plan_of(f"replicates: 1\npretraining: {STEPS % ('', '')}")
    first, both = plan.stages
    signature = {"first": first.signature, "both": both.signature}
    actions = reconcile(plan, {signature[name]: state for name, state in states.items()})
    assert tuple(work for work in actions.open if work.kind == "stage") == tuple(
        each for name, each in (("first", first), ("both", both)) if name in to_run
    )
    assert {work.signature for work in actions.failed if work.kind == "stage"} == {signature[name] for name in failed}
    assert (plan.trials[0] in actions.failed) == ("both" in failed)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("[]", "pretraining: found no steps"),
        ("[imagenet, scratch]", "pretraining: found scratch as step 2, which would replace"),
        ("[imagenet, {kind: contrastive, init: scratch}]", "pretraining: found init in step 2"),
        ("[imagenet, 3]", "pretraining: found 3 as step 2, expected a kind or a mapping"),
        ("[imagenet, {kind: supervised}]", "pretraining.data: is missing"),
        ("{kind: weights}", "pretraining: found neither name nor file for weights"),
        ("{kind: weights, name: a.b, file: c.pth}", "pretraining: found both name and file"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(steps: str, expected: str) -> None:
    assert expected in problems(f"study: s\ndata: {{kind: digits}}\npretraining: {steps}")[0]


def test_paths_of_steps_start_at_the_study_file(tmp_path: Path) -> None:
    text = """
study: s
data: {kind: digits}
factors:
  pretraining:
    a: [{kind: weights, file: w.pth}, {kind: contrastive, data: [{kind: unlabelled_folder, path: x}, {kind: digits}]}]
    b: [{kind: supervised, data: {kind: csv, path: m.csv, root: r}}, {kind: contrastive, epochs: 2}, contrastive]
"""
    first, second = (arm.config.pretraining for arm in parse_study(text, source="s.yaml", folder=tmp_path).arms())
    assert first.kind == second.kind == "contrastive"
    assert first.init.file == tmp_path / "w.pth"  # type: ignore[union-attr]
    assert first.data[0].path == tmp_path / "x"  # type: ignore[union-attr]
    data = second.init.init.data  # type: ignore[union-attr]
    assert (data.path, data.root) == (tmp_path / "m.csv", tmp_path / "r")  # type: ignore[union-attr]
