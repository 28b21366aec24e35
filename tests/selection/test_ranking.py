from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.analysis.results import Results, load_results
from orchestrator.analysis.tables.arms import arms_table
from orchestrator.cli.select import Rule
from orchestrator.ledger.record import Record
from orchestrator.selection.ranking import ONE_STANDARD_ERROR, RULES, SelectionCriteria, rank_arms, select_arm
from tests.support.synthetic_ledger import Fate, make_fake_ledger
from trainables.errors import StudyError


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return load_results(make_fake_ledger(tmp_path, replicates=3))


def with_values(results: Results, values: dict[str, list[float]], column: str = "val/accuracy") -> Results:
    """Return the study with these values of the arms' replicates; other arms have 0."""
    trials = results.trials.copy()
    for name, group in trials.groupby("name", sort=False):
        label = results.labels[str(name)]
        trials.loc[group.index, column] = values.get(label, [0.0] * len(group))
    return replace(results, trials=trials)


def with_weights(results: Results, label: str, num_parameters: int, seconds: float) -> Results:
    """Return the study in which one arm has a network of another size, and takes another time."""
    name = next(name for name, each in results.labels.items() if each == label)
    trials = results.trials.copy()
    trials.loc[trials["name"] == name, "duration_seconds"] = seconds
    records = dict(results.records)
    for signature in trials[trials["name"] == name]["signature"]:
        record = records[signature]
        assert record.result is not None
        changed = record.result | {"num_parameters": num_parameters}
        records[signature] = Record(signature, "trial", record.config, record.epochs, changed, None)
    return replace(results, trials=trials, records=records)


def test_the_arm_is_the_one_that_the_report_calls_chosen(results: Results) -> None:
    chosen = select_arm(results, SelectionCriteria())
    arms = arms_table(results)
    best = arms.iloc[int(arms["val/balanced_accuracy.mean"].argmax())]
    assert chosen.arm.name == best["name"]
    assert (chosen.arm.mean, chosen.arm.sd) == (best["val/balanced_accuracy.mean"], best["val/balanced_accuracy.sd"])
    assert chosen.arm.n == 3
    assert chosen.counts == {"planned": 36, "complete": 36, "failed": 0, "interrupted": 0, "missing": 0}
    means = [arm.mean for arm in chosen.ranking]
    assert means == sorted(means, reverse=True)  # type: ignore[type-var]
    assert len(means) == 12
    assert not chosen.oracle
    assert "oracle" not in chosen.label


def test_validation_has_the_names_of_the_report_and_of_mlflow(results: Results) -> None:
    short, long = (select_arm(results, SelectionCriteria(by=name)) for name in ("ece", "validation/ece"))
    assert short == long
    with pytest.raises(StudyError, match="val/ece is in-distribution validation, which is no oracle"):
        select_arm(results, SelectionCriteria(by="validation/ece", oracle=True))


def test_the_replicate_is_the_best_on_validation_or_the_one_asked_for(results: Results) -> None:
    changed = with_values(results, {"imagenet · none · none": [0.8, 0.9, 0.7]})
    chosen = select_arm(changed, SelectionCriteria(by="accuracy"))
    assert chosen.arm.label == "imagenet · none · none"
    assert chosen.replicate == 1
    row = changed.trials[changed.trials["signature"] == chosen.signature].iloc[0]
    assert (row["name"], row["replicate"]) == (chosen.arm.name, 1)
    asked = select_arm(changed, SelectionCriteria(by="val/accuracy", replicate=2))
    assert asked.replicate == 2
    assert asked.signature != chosen.signature
    assert "was asked for" in asked.reasons[-1]
    with pytest.raises(
        StudyError, match=r"replicate 3 of imagenet · none · none, which has 3 complete of 3 \(0 to 2\)"
    ):
        select_arm(changed, SelectionCriteria(by="accuracy", replicate=3))


def test_of_equal_arms_the_first_in_the_plan_is_chosen(results: Results) -> None:
    equal = [0.5, 0.5, 0.5]
    changed = with_values(results, {"contrastive · none · none": equal, "imagenet · strong · none": equal})
    chosen = select_arm(changed, SelectionCriteria(by="accuracy"))
    assert chosen.arm.label == "imagenet · strong · none"
    assert "1 more had the same" in chosen.reasons[0]
    assert chosen.replicate == 0
    assert "first of equals" in chosen.reasons[1]


def test_one_standard_error_takes_the_simplest_of_those_that_are_as_good(results: Results) -> None:
    best, near, far = "contrastive · strong · none", "imagenet · none · none", "scratch · none · none"
    # mean .90, sd .03, standard error .0173
    values = {best: [0.87, 0.90, 0.93], near: [0.89, 0.89, 0.89], far: [0.88, 0.88, 0.88]}
    changed = with_weights(with_values(results, values), best, 2_000_000, 10.0)
    for label in (near, far):
        changed = with_weights(changed, label, 1_000_000, 10.0)
    question = SelectionCriteria(by="accuracy", rule=ONE_STANDARD_ERROR)
    assert select_arm(changed, replace(question, rule="best")).arm.label == best
    chosen = select_arm(changed, question)
    assert chosen.arm.label == near
    assert chosen.reasons[0].startswith("2 of 12 arms are within one standard error (0.01732)")
    assert "1,000,000 weights" in chosen.reasons[1]
    as_large = with_weights(changed, near, 2_000_000, 12.0)
    assert select_arm(as_large, question).arm.label == best, "of equal size the faster one"
    assert select_arm(with_weights(as_large, near, 2_000_000, 9.0), question).arm.label == near


def test_one_standard_error_needs_two_replicates(tmp_path: Path) -> None:
    single = load_results(make_fake_ledger(tmp_path, replicates=1))
    with pytest.raises(StudyError, match="has 1 replicate, and a standard error needs two"):
        select_arm(single, SelectionCriteria(rule=ONE_STANDARD_ERROR))


def test_where_lower_is_better_the_lowest_wins(results: Results) -> None:
    low = "scratch · none · none"
    columns = {results.labels[name]: [0.3, 0.3, 0.3] for name in results.labels} | {low: [0.2, 0.3, 0.1]}
    changed = with_values(results, columns, "val/ece")
    chosen = select_arm(changed, SelectionCriteria(by="ece"))
    assert (chosen.arm.label, chosen.replicate, chosen.higher_is_better) == (low, 2, False)


def test_only_validation_chooses_unless_an_oracle_is_asked_for(results: Results) -> None:
    for by in ("id/accuracy", "robustness/worst_shift_balanced_accuracy", "external/site-3/accuracy"):
        with pytest.raises(StudyError, match=f"{by} is not in-distribution validation.*add --oracle"):
            select_arm(results, SelectionCriteria(by=by))
    chosen = select_arm(results, SelectionCriteria(by="robustness/worst_shift_balanced_accuracy", oracle=True))
    assert chosen.oracle
    assert chosen.label.endswith("(oracle)")
    frame = results.trials.groupby("name")["robustness/worst_shift_balanced_accuracy"].mean()
    assert chosen.arm.name == frame.idxmax()
    calibrated = select_arm(results, SelectionCriteria(by="calibration/ece", oracle=True))
    assert calibrated.arm.name == results.trials.groupby("name")["calibration/ece"].mean().idxmin()
    with pytest.raises(StudyError, match="val/accuracy is in-distribution validation, which is no oracle"):
        select_arm(results, SelectionCriteria(by="accuracy", oracle=True))


def test_a_wrong_request_names_what_there_is(results: Results) -> None:
    with pytest.raises(StudyError, match="looked for 'acuracy' among the results; expected one of accuracy, "):
        select_arm(results, SelectionCriteria(by="acuracy"))
    with pytest.raises(StudyError, match=r"looked for 'id/acuracy'.*external/site-3/accuracy"):
        select_arm(results, SelectionCriteria(by="id/acuracy", oracle=True))
    with pytest.raises(StudyError, match="asked for the rule 'worst'; expected one of best, one-standard-error"):
        select_arm(results, SelectionCriteria(rule="worst"))


def test_missing_trials_are_refused_or_said(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, fate=Fate(failed=1, interrupted=1, missing=1)))
    said = r"24 planned, 21 complete, 1 failed, 1 interrupted, 1 missing"
    with pytest.raises(StudyError, match=f"{said}.*choose among what is complete with --incomplete"):
        select_arm(results, SelectionCriteria())
    chosen = select_arm(results, SelectionCriteria(incomplete=True))
    assert chosen.counts["complete"] == 21
    short = [arm for arm in chosen.ranking if arm.complete < arm.planned]
    assert [(arm.complete, arm.planned, arm.n) for arm in short] == [(1, 2, 1)] * 3


def test_without_a_complete_trial_there_is_no_choice(tmp_path: Path) -> None:
    results = load_results(make_fake_ledger(tmp_path, fate=Fate(missing=24)))
    with pytest.raises(StudyError, match=r"no trial is complete \(24 planned, 0 complete, 24 missing\)"):
        select_arm(results, SelectionCriteria(incomplete=True))


def test_arms_without_a_defined_value_come_last(results: Results) -> None:
    trials = results.trials.copy()
    first = trials["name"].iloc[0]
    trials.loc[trials["name"] == first, "val/auroc"] = float("nan")
    changed = replace(results, trials=trials)
    ranking = rank_arms(changed, "val/auroc", higher_is_better=True)
    assert (ranking[-1].name, ranking[-1].mean, ranking[-1].n, ranking[-1].complete) == (first, None, 0, 3)
    trials["val/auroc"] = float("nan")
    with pytest.raises(StudyError, match="no complete trial has a defined value"):
        select_arm(changed, SelectionCriteria(by="auroc"))


def test_the_command_offers_every_rule() -> None:
    assert {rule.value for rule in Rule} == set(RULES)


def test_the_selection_is_json(results: Results) -> None:
    said = json.loads(json.dumps(select_arm(results, SelectionCriteria()).as_json(), allow_nan=False))
    assert said["rule"] == "best"
    assert len(said["ranking"]) == 12
    assert said["arm"] == said["ranking"][0]
