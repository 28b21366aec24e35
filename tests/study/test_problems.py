from __future__ import annotations

import pytest

from tests.support.study_texts import HEAD, problems

BROKEN = {
    "empty": ("", "s.yaml: found no study"),
    "list": ("- a", "s.yaml:1: found no study"),
    "syntax": ("study: s\ndata: [", "s.yaml:2: this is not valid YAML"),
    "two documents": ("study: s\n---\nstudy: t", "s.yaml:2: this is not valid YAML"),
    "control character": ("study: \x01", "s.yaml: this is not valid YAML"),
    "impossible escape": ('study: "\\UFFFFFFFF"', "s.yaml: this is not valid YAML"),
    "half a character": ('data: digits\nstudy: "\\ud800"', r"s.yaml:2: study: found '\ud800', expected whole Unicode"),
    "tag": (HEAD + "question: !!python/name:os.system", "s.yaml:3: question: found the tag"),
    "local tag": (HEAD + "question: !secret x", "s.yaml:3: question: found the tag '!secret'"),
    "duplicate": (HEAD + "seed: 1\nseed: 2", "line 4: the key 'seed' is there twice, first in line 3"),
    "merge key": (HEAD + "model: &m {name: a}\ntraining: {<<: *m}", "s.yaml:4: training: line 4: found a merge key"),
    "own anchor": (HEAD + "factors: &f {a: *f}", "s.yaml:3: factors.a: found an anchor that contains itself"),
    "key is a list": (HEAD + "factors: {[a]: 1}", "s.yaml:3: factors: line 3: found a key that is not text"),
    "deep": ("study: " + "[" * 100, "s.yaml:1: this is not valid YAML: nested deeper than 32"),
    "name": ("study: ../x\ndata: digits", "s.yaml:1: study: found '../x', expected a name of at most 100"),
    "name is a number": ("study: 2024\ndata: digits", "s.yaml:1: study: found 2024, expected text (in quotes)"),
    "no data": ("study: s", "s.yaml:1: data: is missing (the images"),
    "unknown key": (HEAD + "qestion: x", "s.yaml:3: qestion: unknown key, expected one of study, question, data"),
    "nearest key": (HEAD + "training:\n  learning_rat: 1", "s.yaml:4: training.learning_rat: unknown key"),
    "nearest key is named": (HEAD + "training:\n  learning_rat: 1", "did you mean learning_rate?"),
    "wrong type": (HEAD + "training:\n  epochs: many", "s.yaml:4: training.epochs: found 'many', expected an integer"),
    "out of range": (HEAD + "training:\n\n  epochs: 0", "s.yaml:5: training.epochs: found 0, expected a value greater"),
    "infinite": (HEAD + "training: {learning_rate: .inf}", "training.learning_rate: found inf, expected a finite"),
    "nan as text": (HEAD + "training: {learning_rate: nan}", "training.learning_rate: found 'nan', expected a finite"),
    "null": (HEAD + "training: {patience: none}", "training.patience: found 'none', expected an integer or null"),
    "choice": (HEAD + "training: {optimiser: adam}", "found 'adam', expected 'adamw' or 'sgd'; did you mean adamw?"),
    "union of types": (HEAD + "evaluation: {shifts: 3}", "evaluation.shifts: found 3, expected a list or 'all'"),
    "item": (
        HEAD + "evaluation:\n  severities:\n  - 1\n  - 9",
        "s.yaml:6: evaluation.severities[1]: found 9, expected",
    ),
    "kind": (HEAD + "pretraining: {kind: imagnet}", "s.yaml:3: pretraining.kind: found 'imagnet', expected one of"),
    "nearest kind": (HEAD + "pretraining: {kind: imagnet}", "did you mean imagenet?"),
    "no kind": (HEAD + "pretraining: {epochs: 1}", "s.yaml:3: pretraining.kind: is missing, expected one of scratch"),
    "nested kind": (
        HEAD + "pretraining:\n  kind: contrastive\n  init: {kind: contrastif}",
        "s.yaml:5: pretraining.init.kind: found 'contrastif', expected one of scratch, imagenet",
    ),
    "key of another kind": (HEAD + "augmentation: {kind: none, strength: 1}", "augmentation.strength: unknown key"),
    "key called as its kind": (
        HEAD + "pretraining: {kind: imagenet, imagenet: 1}",
        "pretraining.imagenet: unknown key",
    ),
    "missing in a kind": ("study: s\ndata:\n  kind: csv", "s.yaml:2: data.path: is missing (The manifest.)"),
    "no such user": (
        "study: s\ndata: {kind: csv, path: ~nobody-here/x}",
        "s.yaml:2: data.path: found '~nobody-here/x'",
    ),
    "execution": (HEAD + "execution: {cpus: 2}", "execution.cpus: unknown key"),
    "gpus": (
        HEAD + "execution: {gpus_per_trial: -1}",
        "found -1, expected a value greater than or equal to 0 or 'auto'",
    ),
    "replicates": (HEAD + "replicates: 0", "s.yaml:3: replicates: found 0, expected a value greater than 0"),
    "factors are a list": (HEAD + "factors: [a]", "s.yaml:3: factors: found a list, expected a mapping"),
    "levels are a number": (HEAD + "factors: {model.name: 3}", "factors.model.name: found 3, expected a list or a map"),
    "no levels": (HEAD + "factors: {model.name: []}", "s.yaml:3: factors.model.name: found no levels"),
    "empty label": (HEAD + "factors: {model.name: {'': a}}", "found an empty label"),
    "factor path": (
        HEAD + "factors:\n  training.epoch: [1]",
        "s.yaml:4: factors.training.epoch: the trial has no field",
    ),
    "nearest path": (HEAD + "factors:\n  training.epoch: [1]", "did you mean training.epochs?"),
    "path without section": (HEAD + "factors: {strength: [0, 1]}", "did you mean augmentation.strength?"),
    "seed is no factor": (HEAD + "factors: {seed: [0, 1]}", "factors.seed: the trial has no field 'seed'"),
    "near a section": (
        HEAD + "factors: {pretraning: {a: imagenet}}",
        "'pretraning' is not a field; did you mean pretr",
    ),
    "unnamed mapping": (
        HEAD + "factors:\n  data:\n  - kind: digits",
        "s.yaml:5: factors.data[0]: found a mapping in a",
    ),
    "duplicate label": (HEAD + "factors: {training.momentum: [0, 0.0]}", "the level '0' is there twice"),
    "level value": (
        HEAD + "factors:\n  training.epochs:\n  - 1\n  - -1",
        "s.yaml:6: factors.training.epochs[1]: found -1, expected a value greater than 0 (arm training.epochs=-1)",
    ),
    "level kind": (
        HEAD + "factors:\n  augmentation:\n  - strong\n  - strog",
        "s.yaml:6: factors.augmentation[1]: found 'strog', expected one of none, randaugment, trivialaugment, augmix, "
        "strong; did you mean strong?",
    ),
    "level key": (
        HEAD + "factors:\n  pretraining:\n    a:\n      kind: contrastive\n      epoch: 1",
        "s.yaml:7: factors.pretraining.a.epoch: the trial has no field pretraining.epoch",
    ),
    "level lacks a field": (HEAD + "factors:\n  data:\n    a: csv", "s.yaml:5: factors.data.a.path: is missing"),
    "level is not a section": (HEAD + "factors: {training: {a: 3}}", "factors.training.a: found 3, expected a mapping"),
    "recipe path": (
        HEAD + "factors:\n  r:\n    a: {epochs: 1}",
        "s.yaml:5: factors.r.a.epochs: the trial has no field",
    ),
    "does not apply": (
        HEAD + "factors:\n  augmentation: [none, strong]\n  augmentation.strength:\n  - 0.5",
        "s.yaml:6: factors.augmentation.strength[0]: does not apply: augmentation of kind none has no strength; "
        "exclude this combination, or replace the section for it in conditions "
        "(arm augmentation=none, augmentation.strength=0.5)",
    ),
    "set twice": (
        HEAD + "factors:\n  training.epochs: [1]\n  r:\n    a: {training.epochs: 2}",
        "s.yaml:5: factors.r: training.epochs is also set by the factor training.epochs",
    ),
    "same arms": (
        HEAD + "factors:\n  training: {a: {epochs: 5}, b: {epochs: 5}}",
        "s.yaml:3: factors: the arms 'training=a' and 'training=b' have the same configuration; exclude one",
    ),
    "too many arms": (
        HEAD + f"factors: {{training.epochs: {list(range(1, 200))}, training.batch_size: {list(range(1, 200))}}}",
        "found 39,601 combinations, expected at most 10,000",
    ),
    "condition factor": (
        HEAD + "conditions:\n- {when: {a: 1}, set: {model.name: x}}",
        "s.yaml:4: conditions[0].when.a",
    ),
    "condition level": (
        HEAD
        + "factors: {model.name: [alpha, beta]}\nconditions:\n- {when: {model.name: bet}, set: {training.epochs: 1}}",
        "s.yaml:5: conditions[0].when.model.name: model.name has no level 'bet', expected one of alpha, beta; "
        "did you mean beta?",
    ),
    "condition path": (
        HEAD + "factors: {model.name: [a]}\nconditions:\n- {when: {model.name: a}, set: {training.epoch: 1}}",
        "s.yaml:5: conditions[0].set.training.epoch: the trial has no field training.epoch",
    ),
    "condition value": (
        HEAD + "factors: {model.name: [a]}\nconditions:\n- when: {model.name: a}\n  set: {training.epochs: 0}",
        "s.yaml:6: conditions[0].set.training.epochs: found 0, expected a value greater than 0 (arm model.name=a)",
    ),
    "condition of nothing": (
        HEAD + "factors: {model.name: [a, b]}\nexclude: [{model.name: b}]\n"
        "conditions:\n- {when: {model.name: b}, set: {training.epochs: 1}}",
        "s.yaml:6: conditions[0]: this condition matches no arm",
    ),
    "condition is empty": (
        HEAD + "conditions: [{when: {}, set: {model.name: a}}]",
        "conditions[0].when: found {}, expected at least",
    ),
    "exclude is empty": (HEAD + "exclude: [{}]", "s.yaml:3: exclude[0]: found {}, expected at least one entry"),
    "exclude level": (
        HEAD + "factors: {model.name: [a]}\nexclude:\n- {model.name: b}",
        "s.yaml:5: exclude[0].model.name",
    ),
    "all excluded": (
        HEAD + "factors: {model.name: [a]}\nexclude: [{model.name: a}]",
        "s.yaml:4: exclude: every arm is",
    ),
    "across sections": (
        HEAD + "regulariser:\n  kind: spectral_decoupling\n  weight: [1, 2]\n  gamma: [1, 2, 3]",
        "regulariser.weight has 2 values and regulariser.gamma 3",
    ),
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_problem_with_its_place(text: str, expected: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert expected in found[0]


def test_all_problems_of_a_file_come_at_once_in_its_order() -> None:
    text = (
        "study: a b\nqestion: x\ndata: {kind: digit}\ntraining:\n  epochs: 0\n  epochs: 1\n  optimiser: adam\n"
        "factors:\n  augmentation: [none, strog]\n  traning.epochs: [1]\nexclude: [{augmentation: strg}]\n"
    )
    found = problems(text, "execution.cpus_per_trial=0")
    places = [line.split(": ")[0] + " " + line.split(": ")[1] for line in found]
    assert places == [
        "--set execution.cpus_per_trial=0 execution.cpus_per_trial",
        "s.yaml:1 study",
        "s.yaml:2 qestion",
        "s.yaml:3 data.kind",
        "s.yaml:4 training",
        "s.yaml:5 training.epochs",
        "s.yaml:7 training.optimiser",
        "s.yaml:9 factors.augmentation[1]",
        "s.yaml:10 factors.traning.epochs",
        "s.yaml:11 exclude[0].augmentation",
    ]


def test_a_key_called_as_its_kind_does_not_hide_the_others() -> None:
    found = problems(HEAD + "pretraining:\n  kind: imagenet\n  imagenet: {file: 1}\n  file: [1]")
    assert [line[:40] for line in found] == [
        "s.yaml:5: pretraining.imagenet: unknown ",
        "s.yaml:6: pretraining.file: found a list",
    ]


def test_one_wrong_level_is_one_problem_however_many_arms_have_it() -> None:
    found = problems(HEAD + "factors: {training.epochs: [0, 1], training.batch_size: [1, 2, 3]}")
    assert len(found) == 1
    assert found[0].endswith("(arm training.epochs=0, training.batch_size=1 and 2 more)")


def test_a_section_that_every_arm_replaces_is_still_checked() -> None:
    (found,) = problems(
        HEAD + "augmentation: {kind: strong, strength: 2}\nfactors: {augmentation: [none, randaugment]}"
    )
    assert found.startswith("s.yaml:3: augmentation.strength: found 2")
