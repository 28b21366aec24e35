"""Augmentation: the strong policy's acceptance tests, its baselines, the geometry around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.augmentation import standard, strong
from trainables.augmentation.pipeline import build_augmentation, draw_crops, random_erasing
from trainables.augmentation.policy import apply_chosen
from trainables.augmentation.standard import RANDAUGMENT, TRIVIALAUGMENT, StandardPolicy
from trainables.augmentation.strong import StrongPolicy
from trainables.config import AugmentationConfig, NoAugmentation, RandAugment, StrongAugmentation, TrivialAugment
from trainables.seeding import hash_ids, mix

POLICIES: list[AugmentationConfig] = [
    NoAugmentation(crop_scale_min=0.2, horizontal_flip=True, vertical_flip=True),
    RandAugment(),
    TrivialAugment(),
    StrongAugmentation(),
    StrongAugmentation(strength=0.5, crop_scale_min=0.5, horizontal_flip=True),
]


def make_images(num: int, channels: int = 3, side: int = 19) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (num, channels, side, side), dtype=np.uint8))


def make_seeds(num: int, epoch: int = 0) -> torch.Tensor:
    return mix(torch.from_numpy(hash_ids([f"image-{index}" for index in range(num)])), "augmentation", epoch)


def name_of(index: int) -> str:
    return list(strong.OPERATIONS)[index]


def test_strong_has_the_papers_nineteen_operations() -> None:
    assert len(strong.OPERATIONS) == 19
    bounds = {name: (operation.low, operation.high) for name, operation in strong.OPERATIONS.items()}
    assert bounds["brightness"] == bounds["contrast"] == bounds["gamma"] == (0.1, 2.0)
    assert bounds["hue"] == (-0.5, 0.5)
    assert bounds["posterize"] == (1, 8)
    assert bounds["solarize"] == (0, 255)
    assert bounds["jpeg"] == (0, 100)
    assert bounds["noise"] == (0.0, 0.2)
    assert bounds["blur"] == (0.0, 3.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_identity_magnitudes_return_the_input_bit_for_bit(channels: int) -> None:
    images, seeds = make_images(2, channels), make_seeds(2)
    rows = torch.arange(2)
    policy = StrongPolicy(1.0)
    for number, (name, operation) in enumerate(strong.OPERATIONS.items()):
        magnitudes = torch.tensor(operation.identity).expand(2, len(strong.OPERATIONS), 2)
        assert torch.equal(policy._apply(number, operation, magnitudes, seeds, images, rows), images), name


def test_operations_are_distinct_and_equally_likely_in_every_place() -> None:
    drawn = StrongPolicy(1.0).draw(make_seeds(20_000)).operations
    for row in drawn[:2000].tolist():
        used = [number for number in row if number >= 0]
        assert len(set(used)) == len(used)
        assert row[: len(used)] == used  # gaps only at the end
    for step in range(2):
        share = torch.bincount(drawn[:, step], minlength=19).double() / 20_000
        assert (share - 1 / 19).abs().max() < 5 * (1 / 19 / 20_000) ** 0.5


def test_number_of_operations_has_the_published_frequencies() -> None:
    counts = (StrongPolicy(1.0).draw(make_seeds(20_000)).operations >= 0).sum(1)
    for number, probability in ((2, 0.5), (3, 0.3), (4, 0.2)):
        assert (counts == number).double().mean() == pytest.approx(probability, abs=0.016)  # 4.5 standard errors


def test_magnitudes_fill_the_bounds_integers_with_both_ends() -> None:
    magnitudes = StrongPolicy(1.0).draw(make_seeds(20_000)).magnitudes
    for index, (name, operation) in enumerate(strong.OPERATIONS.items()):
        values = magnitudes[:, index, 0]
        if operation.kind == "integer":
            assert set(values.tolist()) == set(range(int(operation.low), int(operation.high) + 1)), name
        elif operation.kind == "switch":
            assert (values == 1).all()
        else:
            span = operation.high - operation.low
            assert operation.low <= values.min() < operation.low + 0.01 * span
            assert operation.high - 0.01 * span < values.max() <= operation.high
    tone = magnitudes[:, list(strong.OPERATIONS).index("tone")]
    assert abs(torch.corrcoef(tone.T)[0, 1].item()) < 0.03  # two independent magnitudes


def test_strength_moves_bounds_linearly_from_the_identity() -> None:
    magnitudes = StrongPolicy(0.5).draw(make_seeds(20_000)).magnitudes
    expected = {"brightness": (0.55, 1.5), "hue": (-0.25, 0.25), "noise": (0.0, 0.1), "posterize": (4, 8)}
    expected |= {"solarize": (128, 255), "jpeg": (50, 100), "tone": (1 / 6, 2 / 3)}
    for name, (low, high) in expected.items():
        values = magnitudes[:, list(strong.OPERATIONS).index(name), 0]
        assert values.min().item() == pytest.approx(low, abs=0.01)
        assert values.max().item() == pytest.approx(high, abs=0.01)
    for name in ("autocontrast", "equalize", "grayscale"):
        share = magnitudes[:, list(strong.OPERATIONS).index(name), 0].mean().item()
        assert share == pytest.approx(0.5, abs=0.02)


def test_jpeg_goes_down_from_100() -> None:
    values = StrongPolicy(0.1).draw(make_seeds(5000)).magnitudes[:, list(strong.OPERATIONS).index("jpeg"), 0]
    assert (values.min().item(), values.max().item()) == (90, 100)


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_zero_changes_no_bit(channels: int) -> None:
    images, seeds = make_images(64, channels), make_seeds(64)
    assert torch.equal(StrongPolicy(0.0)(images, seeds), images)  # by its bounds, without the short cut
    for config in (StrongAugmentation(strength=0), RandAugment(strength=0), TrivialAugment(strength=0)):
        assert torch.equal(build_augmentation(config, 19)(images, seeds), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", POLICIES, ids=lambda config: f"{config.kind}-{config.crop_scale_min}")
def test_the_result_depends_on_image_and_seed_alone(config: AugmentationConfig, channels: int) -> None:
    num = 60
    images, seeds = make_images(num, channels), make_seeds(num)
    augment = build_augmentation(config, 19)
    together = augment(images, seeds)
    alone = torch.cat([augment(images[i : i + 1], seeds[i : i + 1]) for i in range(num)])
    order = torch.arange(num - 1, -1, -1)
    backwards = augment(images[order], seeds[order])[order]
    assert together.dtype == torch.uint8
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)
    assert not torch.equal(together, augment(images, make_seeds(num, epoch=1)))


def test_input_is_not_written_to() -> None:
    images = make_images(40)
    before = images.clone()
    for config in POLICIES:
        build_augmentation(config, 19)(images, make_seeds(40))
    assert torch.equal(images, before)


def test_strong_at_full_strength_changes_almost_every_image() -> None:
    images, seeds = make_images(200), make_seeds(200)
    changed = (StrongPolicy(1.0)(images, seeds) != images).flatten(1).any(1).double().mean()
    assert changed > 0.97


def test_strong_applies_in_drawn_order() -> None:
    """The policy on one image equals its drawn operations called one after the other."""
    images, seeds = make_images(30), make_seeds(30)
    policy = StrongPolicy(1.0)
    draw, result = policy.draw(seeds), policy(images, seeds)
    for index in range(30):
        image, seed = images[index : index + 1], seeds[index : index + 1]
        for number in draw.operations[index].tolist():
            if number >= 0:
                operation = strong.OPERATIONS[name_of(number)]
                image = operation.apply(image, draw.magnitudes[index : index + 1, number], seed)
        # hue at a magnitude other than its identity and all others are plain calls
        assert torch.equal(image[0], result[index]), [name_of(n) for n in draw.operations[index].tolist() if n >= 0]


def test_apply_chosen_leaves_rows_without_a_choice() -> None:
    images = make_images(4)
    choice = torch.tensor([1, -1, 0, 1])
    result = apply_chosen(images, choice, [lambda x, rows: 255 - x, lambda x, rows: torch.zeros_like(x)])
    assert not result[[0, 3]].any()
    assert torch.equal(result[1], images[1])
    assert torch.equal(result[2], 255 - images[2])


def test_randaugment_uses_its_bin_and_trivialaugment_all_bins() -> None:
    _, shares = StandardPolicy(RANDAUGMENT, num_ops=2, bin=9, strength=0.5).draw(make_seeds(500))
    assert shares.shape == (500, 2)
    assert torch.allclose(shares.abs(), torch.tensor(0.15))
    assert 0.4 < (shares > 0).double().mean() < 0.6
    choices, shares = StandardPolicy(TRIVIALAUGMENT, num_ops=1, bin=None, strength=1.0).draw(make_seeds(5000))
    assert set((shares.abs() * 30).round().int().flatten().tolist()) == set(range(31))
    assert set(choices.flatten().tolist()) == set(range(14))


def test_standard_operations_have_torchvisions_magnitudes() -> None:
    images = make_images(1)
    full = torch.tensor([1.0])
    posterized = standard.OPERATIONS["posterize"](images, full, RANDAUGMENT)
    assert torch.equal(posterized, images & 0xF0)
    assert torch.equal(standard.OPERATIONS["posterize"](images, full, TRIVIALAUGMENT), images & 0xC0)
    assert torch.equal(standard.OPERATIONS["solarize"](images, full, RANDAUGMENT), 255 - images)
    moved = standard.OPERATIONS["translate_x"](images, -full, RANDAUGMENT)  # 150/331 of 19 px: 8
    assert torch.equal(moved[..., :-8], images[..., 8:])
    assert not moved[..., -8:].any()
    dark = standard.OPERATIONS["brightness"](images, -full, RANDAUGMENT)
    assert (dark.float() - images * 0.1).abs().max() <= 0.51


def test_flips_hit_half_of_the_images() -> None:
    images, seeds = make_images(400), make_seeds(400)
    result = build_augmentation(NoAugmentation(horizontal_flip=True), 19)(images, seeds)
    flipped = (result == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(result[~flipped], images[~flipped])
    assert 0.4 < flipped.double().mean() < 0.6


def test_crops_lie_inside_and_have_the_asked_size() -> None:
    boxes = draw_crops(make_seeds(5000), scale_min=0.2, height=40, width=30)
    top, left, height, width = boxes.unbind(1)
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + height).max() <= 40.001
    assert (left + width).max() <= 30.001
    share = height * width / 1200
    assert 0.199 < share.min() < 0.22
    assert share.max() > 0.9
    images = make_images(3, side=19)
    cropped = build_augmentation(NoAugmentation(crop_scale_min=0.5), 24)(images, make_seeds(3))
    assert cropped.shape == (3, 3, 24, 24)


def test_erasing_zeroes_one_rectangle_with_its_probability() -> None:
    images = torch.full((2000, 3, 20, 20), 1.5)
    seeds = make_seeds(2000)
    result = random_erasing(images, seeds, 0.3)
    erased = (result == 0).all(1)
    hit = erased.flatten(1).any(1)
    assert hit.double().mean() == pytest.approx(0.3, abs=0.05)
    for mask in erased[hit][:50]:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # a rectangle
        assert 0.005 <= mask.double().mean() <= 0.4
    assert torch.equal(result[~hit], images[~hit])
    assert torch.equal(random_erasing(images[:5], seeds[:5], 0.3), result[:5])
    assert random_erasing(images, seeds, 0.0) is images
