from __future__ import annotations

from typing import Any

import pytest

from trainables.augmentation.augmix import _NAMES
from trainables.augmentation.standard import RANDAUGMENT, build_operations
from trainables.augmentation.strong import SPACES
from trainables.evaluation.seen import KINDS, OPERATION_KINDS, POLICIES, list_seen, list_used
from trainables.shifts.bank import SHIFT_NAMES


def config(shifts: Any = "all", **sections: Any) -> dict[str, Any]:
    return {
        "augmentation": {"kind": "none"},
        "pretraining": {"kind": "scratch"},
        "evaluation": {"shifts": shifts},
        **sections,
    }


def test_the_table_is_that_of_the_policies_operations() -> None:
    operations = {name: set(space.operations) for name, space in SPACES.items()}
    operations["randaugment"] = operations["trivialaugment"] = set(build_operations(RANDAUGMENT))
    operations["augmix"] = {*_NAMES, "posterize"}
    operations["none"] = set()
    operations["contrastive"] = {"brightness", "contrast", "saturation", "hue", "grayscale", "blur"}
    operations["contrastive_no_colour"] = {"brightness", "contrast", "blur"}
    for policy, names in operations.items():
        assert POLICIES[policy] == {OPERATION_KINDS[name] for name in names if name in OPERATION_KINDS}
    assert POLICIES.keys() == operations.keys()
    # Nothing else resembles a shift of the bank: a new operation has to be decided on here.
    others = {"identity", "hue", "red", "green", "blue", "solarize", "posterize", "sharpen", "emboss"}
    assert set().union(*operations.values()) == {*OPERATION_KINDS, *others}


def test_every_shift_has_at_most_one_kind() -> None:
    listed = [shift for shifts in KINDS.values() for shift in shifts]
    assert len(listed) == len(set(listed))
    assert set(SHIFT_NAMES) - set(listed) == {"pixelate", "snow", "frost", "fog", "spatter"}
    assert set(listed) <= set(SHIFT_NAMES)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, set()),
        ({"augmentation": {"kind": "strong", "policy": "strong-v0.1.0", "strength": 0.5}}, {"jpeg", "shot_noise"}),
        ({"augmentation": {"kind": "strong", "policy": "strong-v0.1.0", "strength": 0.0}}, set()),
        ({"augmentation": {"kind": "strong", "policy": "strong-v1", "strength": 1.0}}, {"elastic_transform"}),
        ({"augmentation": {"kind": "none", "erasing": 0.2}}, {"bubble"}),
        ({"augmentation": {"kind": "augmix", "strength": 1.0}}, {"elastic_transform"}),
        ({"pretraining": {"kind": "contrastive", "views": {"kind": "moco"}}}, {"saturation"}),
        ({"pretraining": {"kind": "contrastive", "views": {"kind": "no_colour"}}}, set()),
        (
            {"pretraining": {"kind": "contrastive", "views": {"kind": "strong", "policy": "strong-v0.1.0"}}},
            {"saturation", "jpeg", "shot_noise"},
        ),
    ],
)
def test_what_a_training_has_seen(sections: dict[str, Any], expected: set[str]) -> None:
    names = ["jpeg", "shot_noise", "pixelate", "elastic_transform", "bubble", "stain_h1_e2", "fog"]
    names += ["saturation"] if "pretraining" in sections else []
    assert list_seen(names, config(**sections)) == expected


@pytest.mark.parametrize(
    ("applied", "expected"),
    [
        (["gaussian_noise"], {"gaussian_noise", "shot_noise", "sandy", "grain_then_fog"}),
        (["fog"], {"fog", "grain_then_fog", "murk"}),
        (["murk"], {"fog", "grain_then_fog", "murk", "pixelate"}),
        (["stain_h1_e2"], {"stain_h2_e2"}),
        (["sandy"], {"gaussian_noise", "shot_noise", "sandy", "grain_then_fog"}),
        (["of_a_package"], {"of_a_package"}),
        (["tint"], set()),
        ([], set()),
    ],
)
def test_what_a_choice_has_used(applied: list[str], expected: set[str]) -> None:
    """A shift is used if it, another one of its kind, or a part that it shares was applied to validation images."""
    shifts = [
        {"name": "sandy", "op": "strong_noise", "strengths": [0.4]},
        {"name": "tint", "op": "strong_hue", "strengths": [0.4]},
        {"compose": ["shot_noise", "fog"], "name": "grain_then_fog"},
        {"compose": ["fog", "pixelate"], "name": "murk"},
    ]
    names = [
        "gaussian_noise",
        "shot_noise",
        "fog",
        "pixelate",
        "sandy",
        "grain_then_fog",
        "murk",
        "stain_h2_e2",
        "jpeg",
    ]
    names.append("of_a_package")
    assert list_used(names, applied, config(shifts)) == expected


def test_shifts_of_the_study_have_the_kind_of_their_operations() -> None:
    shifts = [
        {"name": "dusk", "op": "brightness_down", "strengths": [0.4]},
        {"name": "tint", "op": "strong_hue", "strengths": [0.4]},
        {"name": "sandy", "op": "strong_noise", "strengths": [0.4]},
        {"compose": ["fog/2", "jpeg/3"]},
        {"compose": ["fog", "pixelate"], "name": "murk"},
    ]
    strong = config(shifts, augmentation={"kind": "strong", "policy": "strong-v0.1.0", "strength": 1.0})
    names = ["dusk", "tint", "sandy", "fog2_then_jpeg3", "murk", "of_a_package"]
    assert list_seen(names, strong) == {"dusk", "sandy", "fog2_then_jpeg3"}
