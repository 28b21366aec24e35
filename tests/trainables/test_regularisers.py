from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from trainables.config import TrialConfig
from trainables.regularisers import (
    Combined,
    CutMix,
    Dropout,
    GroupDro,
    Mixup,
    NoRegulariser,
    RegulariserConfig,
    SpectralDecoupling,
    WeightDecay,
    choose_group_columns,
    find_part,
)


def read(value: object) -> RegulariserConfig:
    return TypeAdapter(RegulariserConfig).validate_python(value)


def test_a_part_is_found_alone_and_in_a_combination() -> None:
    alone = read({"kind": "dropout", "probability": 0.2})
    both = read({"kind": "combined", "dropout": {"probability": 0.2}, "weight_decay": {}})
    assert find_part(alone, Dropout) == find_part(both, Dropout) == Dropout(probability=0.2)
    assert find_part(both, WeightDecay) == WeightDecay()
    assert find_part(both, Mixup) is find_part(alone, WeightDecay) is find_part(NoRegulariser(), Dropout) is None


def test_every_kind_can_be_combined() -> None:
    kinds = set(TypeAdapter(RegulariserConfig).json_schema()["discriminator"]["mapping"])
    assert set(Combined.model_fields) - {"kind"} == kinds - {"none", "combined"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "names none"),
        ({"mixup": {}, "cutmix": {}}, "mixup and cutmix, which both mix"),
        ({"cutmix": {}, "group_dro": {}}, "a mixed image has no group"),
        (
            {"group_dro": {"group_by": ["class"]}, "spectral_decoupling": {"weight": [1, 2], "group_by": "site"}},
            "expected the same groups",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(parts: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read({"kind": "combined", **parts})


@pytest.mark.parametrize("kind", ["spectral_decoupling", "combined"])
def test_several_weights_and_offsets_have_to_be_as_many(kind: str) -> None:
    penalty = {"weight": [1, 2], "gamma": [1, 2, 3]}
    regulariser = {"kind": kind, **(penalty if kind != "combined" else {"spectral_decoupling": penalty})}
    with pytest.raises(ValidationError, match=r"weight has 2 values and regulariser.gamma 3"):
        TrialConfig.model_validate({"regulariser": regulariser})


@pytest.mark.parametrize(
    ("regulariser", "columns"),
    [
        (NoRegulariser(), ("site",)),
        (CutMix(), ("site",)),
        (SpectralDecoupling(), ("site",)),
        (SpectralDecoupling(group_by="scanner"), ("scanner",)),
        (GroupDro(group_by=("class", "nuisance")), ("class", "nuisance")),
        (Combined(group_dro=GroupDro(group_by=("class",)), spectral_decoupling=SpectralDecoupling()), ("class",)),
    ],
)
def test_what_images_are_grouped_by(regulariser: RegulariserConfig, columns: tuple[str, ...]) -> None:
    assert choose_group_columns(regulariser) == columns
