from __future__ import annotations

import pytest

from orchestrator.study.study_file import Study, parse_study
from tests.support.study_texts import arms
from trainables.augmentation_config import StrongAugmentation
from trainables.contrastive_config import SimClr
from trainables.data_config import DigitsData
from trainables.errors import StudyError
from trainables.pretraining_config import ContrastivePretraining, ImageNetPretraining


def test_without_factors_there_is_one_arm() -> None:
    found = arms("training: {epochs: 7}\nseed: 3")
    assert list(found) == ["base"]
    assert (found["base"].training.epochs, found["base"].seed, found["base"].replicate) == (7, 3, 0)


def test_the_grid_is_complete_and_in_file_order() -> None:
    assert list(arms("factors: {training.epochs: [2, 1], model.name: [b, a]}")) == [
        "training.epochs=2, model.name=b",
        "training.epochs=2, model.name=a",
        "training.epochs=1, model.name=b",
        "training.epochs=1, model.name=a",
    ]


def test_levels_of_a_field_can_be_named() -> None:
    found = arms("factors: {training.learning_rate: {low: 1e-4, high: 1e-2}}")
    assert {name: config.training.learning_rate for name, config in found.items()} == {
        "training.learning_rate=low": 1e-4,
        "training.learning_rate=high": 1e-2,
    }


def test_null_and_lists_are_levels() -> None:
    found = arms("factors: {training.patience: [null, 5], evaluation.severities: [[1], [1, 5]]}")
    assert list(found)[1] == "training.patience=none, evaluation.severities=[1, 5]"
    assert [config.training.patience for config in found.values()] == [None, None, 5, 5]


def test_a_bare_string_is_a_kind() -> None:
    found = arms("pretraining: imagenet\nfactors: {augmentation: [none, strong]}")
    assert found["augmentation=strong"].augmentation == StrongAugmentation()
    assert found["augmentation=none"].pretraining == ImageNetPretraining()


def test_a_level_with_a_kind_replaces_and_one_without_merges() -> None:
    found = arms(
        "pretraining: {kind: contrastive, epochs: 7, method: {kind: simclr, temperature: 0.3}}\n"
        "factors:\n  pretraining:\n    base: {}\n    hot: {method.temperature: 0.9, init.kind: imagenet}\n"
        "    fresh: {kind: contrastive, init: imagenet, batch_size: 8}\n"
    )
    base, hot, fresh = (config.pretraining for config in found.values())
    assert base == ContrastivePretraining(epochs=7, method=SimClr(temperature=0.3))
    assert hot == ContrastivePretraining(epochs=7, method=SimClr(temperature=0.9), init=ImageNetPretraining())
    assert fresh == ContrastivePretraining(batch_size=8, init=ImageNetPretraining())


@pytest.mark.parametrize(
    "order", [("augmentation", "augmentation.strength"), ("augmentation.strength", "augmentation")]
)
def test_the_order_of_factors_does_not_decide_what_wins(order: tuple[str, str]) -> None:
    levels = {"augmentation": "[strong, randaugment]", "augmentation.strength": "[0.25]"}
    found = arms("factors:\n" + "".join(f"  {name}: {levels[name]}\n" for name in order))
    assert [config.augmentation.strength for config in found.values()] == [0.25, 0.25]


def test_a_recipe_sets_several_fields() -> None:
    found = arms(
        "training: {epochs: 9}\nfactors:\n  recipe:\n    plain: {}\n"
        "    modern: {training.optimiser: sgd, training: {schedule: constant}, regulariser: mixup}\n"
    )
    assert found["recipe=plain"].training.optimiser == "adamw"
    modern = found["recipe=modern"]
    assert (modern.training.optimiser, modern.training.schedule, modern.training.epochs) == ("sgd", "constant", 9)
    assert modern.regulariser.kind == "mixup"


def test_exclude_takes_one_level_or_several() -> None:
    found = arms(
        "factors: {training.epochs: [1, 2, 3], model.name: [a, b]}\nexclude: [{training.epochs: [1, 2], model.name: a}]"
    )
    assert len(found) == 4
    assert "training.epochs=3, model.name=a" in found


def test_conditions_apply_in_order_after_the_factors() -> None:
    found = arms(
        "factors: {pretraining: [scratch, imagenet], training.epochs: [1, 2]}\nconditions:\n"
        "- {when: {pretraining: imagenet}, set: {training.learning_rate: 0.1, training.epochs: 8}}\n"
        "- {when: {pretraining: [scratch, imagenet], training.epochs: 1}, set: {training.learning_rate: 0.2}}\n"
        "- {when: {pretraining: scratch, training.epochs: 2}, set: {training.batch_size: 3}}\n"
    )
    rates = [(config.training.learning_rate, config.training.epochs) for config in found.values()]
    assert rates == [(0.2, 1), (0.001, 2), (0.2, 8), (0.1, 8)]


def test_a_condition_makes_a_field_apply_where_it_would_not() -> None:
    found = arms(
        "factors: {augmentation: [none, strong], augmentation.strength: [0.5, 1]}\n"
        "exclude: [{augmentation: none, augmentation.strength: 1}]\n"
        "conditions: [{when: {augmentation: none}, set: {augmentation: none}}]\n"
    )
    assert [config.augmentation.kind for config in found.values()] == ["none", "strong", "strong"]


def test_levels_match_by_what_they_are() -> None:
    factors = "factors: {augmentation.strength: {0.50: 0.5, 1: 1}}"
    assert list(arms(f"augmentation: strong\n{factors}\nexclude: [{{augmentation.strength: 0.5}}]")) == [
        "augmentation.strength=1"
    ]


def test_a_study_made_in_python_has_the_same_arms() -> None:
    text = "pretraining: {kind: contrastive, init: imagenet}\nfactors: {training.epochs: [1, 2]}"
    made = Study(
        study="s",
        data=DigitsData(),
        pretraining=ContrastivePretraining(init=ImageNetPretraining()),
        factors={"training.epochs": [1, 2]},
    )
    assert {arm.name: arm.config for arm in made.arms()} == arms(text)
    with pytest.raises(StudyError, match=r"did you mean model\.name"):
        Study(study="s", data=DigitsData(), factors={"model.nam": ["a"]}).arms()


def test_a_thousand_arms_and_their_names() -> None:
    found = arms(f"factors: {{training.epochs: {list(range(1, 101))}, training.batch_size: {list(range(1, 11))}}}")
    assert len(found) == 1000


def test_a_part_of_a_combination_is_there_when_it_is_named() -> None:
    found = arms(
        "factors:\n  regulariser:\n    both: {kind: combined, sam: {}, weight_decay.weight: 0.3}\n"
        "    three: {kind: combined, sam: sam, dropout: {}, group_dro: {group_by: [class]}}\n"
    )
    both, three = (config.regulariser for config in found.values())
    assert (both.sam.rho, both.weight_decay.weight, both.dropout) == (0.05, 0.3, None)
    assert (three.sam.rho, three.dropout.probability, three.group_dro.group_by) == (0.05, 0.5, ("class",))


def test_a_field_of_a_part_is_a_factor() -> None:
    found = arms(
        "regulariser: {kind: combined, sam: {}, spectral_decoupling: {weight: 0.5}}\n"
        "factors: {regulariser.spectral_decoupling.weight: [0.1, 1]}\n"
    )
    assert [config.regulariser.spectral_decoupling.weight for config in found.values()] == [0.1, 1.0]
    assert all(config.regulariser.sam is not None for config in found.values())


@pytest.mark.parametrize("base", ["", ", source_size: 28"])
def test_the_size_of_the_source_is_a_factor_and_with_it_that_of_the_images(base: str) -> None:
    text = f"study: s\ndata: {{kind: medmnist{base}}}\nfactors: {{data.source_size: [28, 64]}}\n"
    data = [arm.config.data for arm in parse_study(text, source="s.yaml").arms()]
    assert [each.image_size for each in data] == [28, 64]


def test_a_wrong_size_of_the_source_is_reported_once() -> None:
    with pytest.raises(StudyError) as raised:
        parse_study("study: s\ndata: {kind: medmnist, source_size: banana}\n", source="s.yaml").arms()
    assert str(raised.value).count("banana") == 1
