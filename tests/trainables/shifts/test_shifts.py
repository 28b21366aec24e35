"""The shift bank: tables, identity, determinism, growing damage."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.support.paths import DATA, ROOT
from trainables.config import EvaluationConfig
from trainables.errors import ConfigError
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import DEFAULT_NAMES, IDENTITY, SHIFT_NAMES, Shift, build_shifts
from trainables.shifts.medmnist_c import STAIN
from trainables.shifts.operation import scale_length
from trainables.shifts.operations import OPERATIONS
from trainables.shifts.preview import contact_sheet
from trainables.shifts.strong import OPERATIONS as STRONG
from trainables.shifts.tables import load_tables

MODALITIES = (
    "general", "fundus", "dermoscopy", "chest_xray", "pathology", "blood", "ultrasound", "ct", "oct", "microscopy",
)  # fmt: skip
TABLES = json.loads((ROOT / "trainables/shifts/severities.json").read_text(encoding="utf-8"))


def make_images(num: int, channels: int, side: int = 27) -> torch.Tensor:
    """Noise over a gradient: structure at all scales, odd sides."""
    generator = np.random.default_rng(5)
    ramp = np.linspace(40, 200, side)[None, None, :, None]
    values = np.clip(ramp + generator.normal(0, 30, (num, channels, side, side)), 0, 255)
    return torch.from_numpy(values.astype(np.uint8))


def make_seeds(num: int, seed: int = 0) -> torch.Tensor:
    return mix(torch.from_numpy(hash_ids([f"image-{index}" for index in range(num)])), seed)


def smooth_images(num: int, side: int) -> torch.Tensor:
    """Coloured smooth fields with structure at all scales and no grid: digits beat with pixelation's cells."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = np.random.default_rng(7).normal(0, 1, (num, 3, 40, 4))
    field = sum(
        np.cos(2 * np.pi * (0.3 * k + 1) * (w[..., 0] * x + w[..., 1] * y) + 9 * w[..., 2]) / (0.3 * k + 1)
        for k, w in enumerate(np.moveaxis(waves[..., None, None, :], 2, 0))
    )
    return torch.from_numpy((110 + 70 * np.tanh(field / 2)).astype(np.uint8))


def damage(shift: Shift, images: torch.Tensor, seeds: torch.Tensor) -> float:
    return (shift.apply(images, seeds).float() - images.float()).abs().mean().item()


def test_every_modality_has_every_shift_with_five_severities() -> None:
    assert set(TABLES["tables"]) == set(MODALITIES)
    for table in load_tables().values():
        assert set(table) == set(SHIFT_NAMES)
        assert all(len(strengths) == 5 for strengths in table.values())
    assert set(TABLES["units"]) == set(SHIFT_NAMES)
    assert set(TABLES["sources"]) == set(MODALITIES)


def test_published_values_are_in_the_tables() -> None:
    tables = TABLES["tables"]
    assert tables["fundus"]["jpeg"] == [30, 25, 20, 10, 5]
    assert tables["fundus"]["motion_blur"][0] == [8, 5]
    assert tables["fundus"]["motion_blur"][4] == [20, 15]
    assert tables["dermoscopy"]["gaussian_noise"] == [0.04, 0.08, 0.12, 0.18, 0.26]
    assert tables["dermoscopy"]["defocus_blur"][4] == [8, 0.5]
    assert tables["chest_xray"]["impulse_noise"] == [0.01, 0.03, 0.06, 0.09, 0.17]
    assert tables["chest_xray"]["pixelate"] == [0.3, 0.25, 0.2, 0.15, 0.1]
    assert [offset for _, offset in tables["pathology"]["saturation"]] == [0.05, 0.1, 0.15, 0.2, 0.25]
    assert tables["general"]["shot_noise"] == [60, 25, 12, 5, 3]
    assert tables["general"]["glass_blur"][2] == [1, 2, 3]
    assert tables["general"]["fog"][4] == [3, 1.4]
    assert tables["pathology"]["saturate"][0] == [1, 0.05]
    assert tables["blood"]["bubble"][0] == [5, 10]
    assert tables["ct"]["gaussian_noise"] == [0.04, 0.08, 0.12, 0.16, 0.2]


def test_groups_have_published_names_and_sizes() -> None:
    groups = TABLES["groups"]
    assert len(groups["imagenet-c"]) == len(set(groups["imagenet-c"])) == 19
    assert {"glass_blur", "brightness", "contrast", "saturate", "jpeg"} <= set(groups["imagenet-c"])
    assert {name: len(names) for name, names in groups["medmnist-c"].items()} == {
        "fundus": 8, "dermoscopy": 15, "chest_xray": 13, "pathology": 11, "blood": 11,
        "ultrasound": 7, "ct": 13, "oct": 6, "microscopy": 8,
    }  # fmt: skip
    for modality, names in groups["medmnist-c"].items():
        only_general = {"zoom_blur", "black_corner", "characters", "stain_deposit", "bubble"}  # one table fits all
        assert set(names) <= set(TABLES["tables"][modality]) | only_general


def test_build_is_shift_major_and_leaves_the_identity_out() -> None:
    shifts = build_shifts(EvaluationConfig(), "general")
    assert [(shift.name, shift.severity) for shift in shifts] == [(n, s) for n in DEFAULT_NAMES for s in range(1, 6)]
    chosen = build_shifts(EvaluationConfig(shifts=("jpeg", "gamma_up"), severities=(3, 1)), "fundus")
    assert [(shift.name, shift.severity, shift.strength) for shift in chosen] == [
        ("jpeg", 1, 30.0),
        ("jpeg", 3, 20.0),
        ("gamma_up", 1, 1.1),
        ("gamma_up", 3, 1.3),
    ]


def test_the_evaluations_modality_wins_over_the_datas() -> None:
    evaluation = EvaluationConfig(modality="fundus", shifts=("jpeg",), severities=(1,))
    assert build_shifts(evaluation, "pathology")[0].strength == 30.0


def test_wrong_requests_name_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"gausian_noise.*shot_noise.*did you mean 'gaussian_noise'"):
        build_shifts(EvaluationConfig(shifts=("gausian_noise",)), "general")
    with pytest.raises(ConfigError, match=r"chest_xray.*did you mean 'fundus'"):
        build_shifts(EvaluationConfig(), "fundsu")
    with pytest.raises(ConfigError, match="jpeg is listed more than once"):
        build_shifts(EvaluationConfig(shifts=("jpeg", "jpeg")), "general")
    with pytest.raises(ConfigError, match="2 is listed more than once"):
        build_shifts(EvaluationConfig(severities=(2, 2)), "general")


@pytest.mark.parametrize("channels", [1, 3])
def test_identity_strengths_return_the_input_bit_for_bit(channels: int) -> None:
    images = make_images(3, channels)
    operations = OPERATIONS | STRONG | {"stain_h1_e1": STAIN}
    for shift in (IDENTITY, *(Shift(name, 1, operation.identity, operation) for name, operation in operations.items())):
        assert torch.equal(shift.apply(images, make_seeds(3)), images), shift


def test_limits_of_the_formulas_are_the_identity_too() -> None:
    """The short cut in ``apply`` hides nothing: the formulas themselves end in the identity."""
    images, seeds = make_images(3, 3), make_seeds(3)
    operations = OPERATIONS | STRONG | {"stain": STAIN}
    for name, operation in operations.items():
        if name in ("saturation", "jpeg", "strong_jpeg", "shot_noise", "black_corner") or "_blur" in name:
            continue  # rounding, encoding, infinite strengths, and the floor of small images, respectively
        if name in ("elastic_transform", "spatter", "strong_hue"):
            continue  # the floor again; no drops at all; hue rounds
        assert torch.equal(operation.apply(images, operation.identity, seeds), images), name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*SHIFT_NAMES, "stain_h0.5_e2"])
def test_a_sample_is_shifted_alike_alone_and_in_a_batch(name: str, channels: int) -> None:
    images, seeds = make_images(7, channels), make_seeds(7)
    for severity in (1, 5):
        (shift,) = build_shifts(EvaluationConfig(shifts=(name,), severities=(severity,)), "general")
        together = shift.apply(images, seeds)
        alone = torch.cat([shift.apply(images[i : i + 1], seeds[i : i + 1]) for i in range(7)])
        assert together.dtype == torch.uint8
        assert together.shape == images.shape
        assert torch.equal(together, alone)
        assert torch.equal(together, shift.apply(images, seeds))


def test_large_batches_are_shifted_in_chunks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    images, seeds = make_images(7, 3), make_seeds(7)
    (shift,) = build_shifts(EvaluationConfig(shifts=("gaussian_noise",), severities=(2,)), "general")
    whole = shift.apply(images, seeds)
    monkeypatch.setattr("trainables.shifts.shift._CHUNK_VALUES", {"cpu": 3 * 3 * 27 * 27})
    assert torch.equal(shift.apply(images, seeds), whole)


@pytest.mark.parametrize(
    "name",
    [
        "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "glass_blur", "snow", "frost",
        "fog", "spatter", "elastic_transform", "stain_deposit", "bubble", "characters",
    ],
)  # fmt: skip
def test_randomness_comes_from_sample_and_strength(name: str) -> None:
    images = make_images(1, 1).expand(2, -1, -1, -1)
    (shift,) = build_shifts(EvaluationConfig(shifts=(name,), severities=(4,)), "general")
    result = shift.apply(images, make_seeds(2))
    assert not torch.equal(result[0], result[1])
    assert not torch.equal(result, shift.apply(images, make_seeds(2, seed=1)))


@pytest.mark.parametrize(("modality", "side"), [*((modality, 32) for modality in MODALITIES), ("general", 64)])
def test_damage_grows_with_severity(modality: str, side: int) -> None:
    num = 512 // side  # enough for the angles of motion blur to even out
    images, seeds = smooth_images(num, side), make_seeds(num)
    by_name: dict[str, list[float]] = {}
    for shift in build_shifts(EvaluationConfig(), modality):
        by_name.setdefault(shift.name, []).append(damage(shift, images, seeds))
    for name, values in by_name.items():
        assert values[0] > 0, name
        slack = 0.9 if name == "motion_blur" else 1.0  # angles are drawn anew for every severity
        if (modality, name) == ("oct", "defocus_blur"):
            slack = 0.99  # a disc of less than half a pixel is one pixel, softened alike
        assert all(later > slack * earlier for earlier, later in pairwise(values)), (name, values)
        assert values[4] > values[0], (name, values)


def test_brightness_and_gamma_go_where_their_names_say() -> None:
    images, seeds = make_images(2, 3), make_seeds(2)
    shifts = {shift.name: shift for shift in build_shifts(EvaluationConfig(severities=(3,)), "general")}
    mean = {name: shift.apply(images, seeds).float().mean().item() for name, shift in shifts.items()}
    spread = {name: shift.apply(images, seeds).float().std().item() for name, shift in shifts.items()}
    middle = images.float().mean().item()
    assert mean["brightness_down"] < middle < mean["brightness_up"]
    assert mean["gamma_up"] < middle < mean["gamma_down"]  # the exponent goes up: darker
    assert spread["contrast_down"] < images.float().std().item() < spread["contrast_up"]


def test_saturation_says_that_it_needs_colour() -> None:
    images, seeds = make_images(2, 1), make_seeds(2)
    for shift in build_shifts(EvaluationConfig(shifts=(*SHIFT_NAMES, "stain_h2_e0.5"), severities=(5,)), "general"):
        assert torch.equal(shift.apply(images, seeds), images) == shift.needs_colour, shift
    assert not IDENTITY.needs_colour


def test_lengths_shrink_with_the_image_but_never_to_nothing() -> None:
    assert scale_length(6.0, 224) == 6.0
    assert scale_length(6.0, 448) == 12.0
    # CIFAR-10-C's sigmas for ImageNet-C's 1, 2, 3, 4, 6
    for sigma, published in zip((1.0, 2.0, 3.0, 4.0, 6.0), (0.4, 0.6, 0.7, 0.8, 1.0), strict=True):
        assert scale_length(sigma, 32) == pytest.approx(published, abs=0.12)


@pytest.mark.parametrize("size", [(5, 5), (28, 61), (70, 33)])
def test_images_of_any_size_survive_every_shift(size: tuple[int, int]) -> None:
    images, seeds = make_images(2, 3, side=70)[..., : size[0], : size[1]].contiguous(), make_seeds(2)
    for shift in build_shifts(EvaluationConfig(shifts=SHIFT_NAMES, severities=(1, 5)), "general"):
        result = shift.apply(images, seeds)
        assert result.shape == images.shape
        assert result.dtype == torch.uint8


@pytest.mark.parametrize(
    "name", ["glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "zoom_blur"]
)
def test_large_images_that_are_not_square_are_shifted_alike_too(name: str) -> None:
    images, seeds = make_images(1, 1, side=1024)[..., :700, :].contiguous(), make_seeds(2)
    (shift,) = build_shifts(EvaluationConfig(shifts=(name,), severities=(3,)), "general")
    pair = torch.cat([images, images])
    together = shift.apply(pair, seeds)
    assert torch.equal(together[1:], shift.apply(images, seeds[1:]))
    assert not torch.equal(together[1:], images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in SHIFT_NAMES if name not in DEFAULT_NAMES])
def test_new_shifts_change_images_of_28_px_more_at_the_end(name: str, channels: int) -> None:
    images, seeds = smooth_images(16, 28)[:, :channels].contiguous(), make_seeds(16)
    mild, strong = build_shifts(EvaluationConfig(shifts=(name,), severities=(1, 5)), "general")
    if channels == 1 and mild.needs_colour:
        pytest.skip("changes nothing in grey images")
    assert damage(mild, images, seeds) > 0
    if name not in ("saturate", "frost"):  # one desaturates first, the other hides more and brightens less
        assert damage(mild, images, seeds) < damage(strong, images, seeds)


def test_contact_sheet_has_a_row_per_shift_and_image_and_starts_unshifted() -> None:
    images, seeds = make_images(2, 3, side=8), make_seeds(2)
    shifts = build_shifts(EvaluationConfig(shifts=("jpeg", "gamma_up"), severities=(1, 5)), "general")
    sheet = contact_sheet(images, shifts, seeds)
    assert sheet.shape == (2 * 2 * 8, 3 * 8, 3)
    np.testing.assert_array_equal(sheet[8:16, :8], images[1].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(sheet[16:24, 16:], shifts[3].apply(images, seeds)[0].permute(1, 2, 0).numpy())


@pytest.mark.real_data
def test_chest_x_rays_keep_showing_something_at_the_mildest_severity() -> None:
    path = DATA / "pneumoniamnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set ROBUSTSWEEP_DATA to the folder of development images")
    with np.load(path) as archive:
        images = torch.from_numpy(archive["test_images"][:16])[:, None]
    seeds = make_seeds(16)
    for shift in build_shifts(EvaluationConfig(severities=(1,)), "chest_xray"):
        result = shift.apply(images, seeds)
        correlation = torch.corrcoef(torch.stack([images.flatten().float(), result.flatten().float()]))[0, 1].item()
        assert correlation > 0.8, (shift, correlation)
        assert math.isfinite(damage(shift, images, seeds))
