from __future__ import annotations

import pytest

from orchestrator.study.grid import format_label
from orchestrator.study.study_file import parse_study
from orchestrator.study.yaml_source import resolve_scalar
from tests.support.study_texts import HEAD, arms, problems
from trainables.data_config import DigitsData


def test_anchors_are_read_and_bombs_refused() -> None:
    text = "training: {label_fraction: &x 0.5}\nevaluation: {store_features: true}\nmodel: {name: a}\nregulariser:\n"
    (config,) = arms(text + "  kind: dropout\n  probability: *x").values()
    assert config.regulariser.probability == 0.5
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    assert any("anchors repeat more than 10,000 values" in line for line in problems(bomb))


def test_huge_files_are_refused() -> None:
    (found,) = problems("#" * 200_001)
    assert "expected at most 200,000 bytes" in found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("007", 7),
        (".inf", float("inf")),
        ("true", True),
        ("~", None),
        ("", None),
        *((text, text) for text in ("on", "No", "none", "1_000", "1:30", "2024-01-01", "9" * 30, "e5", ".", "0x1f")),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_exponents_and_switches_are_read_as_meant() -> None:
    study = parse_study(
        HEAD + "training: {learning_rate: 1e-3}\naugmentation: {kind: none, vertical_flip: on}", source="s"
    )
    assert study.training.learning_rate == 0.001
    assert study.augmentation.vertical_flip is True


def test_on_and_off_are_good_labels() -> None:
    found = arms("factors: {augmentation.horizontal_flip: {off: false, on: true}, model.stem: [auto, small]}")
    assert next(iter(found)) == "augmentation.horizontal_flip=off, model.stem=auto"
    assert [config.augmentation.horizontal_flip for config in found.values()] == [False, False, True, True]


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (0.5, "0.5"), (1.0, "1"), (1e-5, "1e-05"), (None, "none"), (True, "true"), ([1, None], "[1, none]")],
)
def test_labels(value: object, label: str) -> None:
    assert format_label(value) == label


def test_overrides_set_any_value() -> None:
    study = parse_study(
        HEAD + "factors: {augmentation.strength: [0, 1]}\naugmentation: strong",
        source="s.yaml",
        overrides=[
            "study=foo",
            "replicates=3",
            "training.epochs=2",
            "factors.augmentation.strength=[0.5]",
            "factors.training.learning_rate=[1e-3]",
            "factors.recipe={a: {regulariser: dropout}}",
            "factors.recipe.b={}",
            "data.image_size=16",
        ],
    )
    assert (study.study, study.replicates, study.training.epochs, study.data.image_size) == ("foo", 3, 2, 16)
    assert [arm.name for arm in study.arms()] == [
        "augmentation.strength=0.5, training.learning_rate=0.001, recipe=a",
        "augmentation.strength=0.5, training.learning_rate=0.001, recipe=b",
    ]


def test_overrides_reach_into_levels_and_lists() -> None:
    text = (
        "factors: {pretraining: {c: {kind: contrastive}}, augmentation.strength: [0, 1]}\naugmentation: strong\n"
        "conditions: [{when: {pretraining: c}, set: {training.epochs: 1}}]"
    )
    found = arms(
        text,
        "factors.pretraining.c.epochs=3",
        "factors.augmentation.strength.0=0.25",
        "conditions.0.set.training.epochs=6",
    )
    assert list(found) == ["pretraining=c, augmentation.strength=0.25", "pretraining=c, augmentation.strength=1"]
    assert {(config.pretraining.epochs, config.training.epochs) for config in found.values()} == {(3, 6)}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=0", "--set training.epochs=0: training.epochs: found 0, expected a value greater than 0"),
        ("training.epoch=1", "--set training.epoch=1: training.epoch: unknown key"),
        ("factors.training.epochs=[0]", "--set factors.training.epochs=[0]: factors.training.epochs[0]: found 0"),
        ("training", "--set training: expected dotted.path=value"),
        ("=1", "--set =1: expected dotted.path=value"),
        ("seed=[", "--set seed=[:1: this is not valid YAML"),
        ("study.name=x", "--set study.name=x: study.name: found 's' at study, which has nothing called 'name'"),
        ("exclude.0.a=x", "--set exclude.0.a=x: exclude.0.a: found []"),
        ("a\udc80=1", r"--set a\udc80=1: expected dotted.path=value"),
    ],
)
def test_a_wrong_override_is_named_instead_of_a_line(override: str, expected: str) -> None:
    found = problems(HEAD + "exclude: []", override)
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_an_override_finds_the_longest_factor() -> None:
    text = "factors: {augmentation: [strong, randaugment], augmentation.strength: [0, 1]}"
    found = arms(text, "factors.augmentation.strength=[0.5]", "factors.augmentation=[strong]")
    assert list(found) == ["augmentation=strong, augmentation.strength=0.5"]


def test_what_an_override_replaces_has_no_line_any_more() -> None:
    (found,) = problems(HEAD + "training:\n  epochs: 1", "training={epochs: 0}")
    assert found.startswith("--set training={epochs: 0}: training.epochs: found 0")


def test_an_override_can_mend_a_file() -> None:
    assert (
        parse_study("study: s\ndata: {kind: digit}", source="s", overrides=["data={kind: digits}"]).data == DigitsData()
    )
    assert parse_study("", source="s", overrides=["study=s", "data=digits"]).study == "s"
