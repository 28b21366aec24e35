"""Augmentation: the strong policy's acceptance tests, its baselines, the geometry around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.augmentation import sequences
from trainables.augmentation.augmix import _AUGMIX, AugMixPolicy
from trainables.augmentation.pipeline import build_augmentation, draw_crops, random_erasing
from trainables.augmentation.policy import Operation, PixelOperation, PointOperation, TableOperation, WarpOperation
from trainables.augmentation.sequences import Sequences, Stop, _put, apply_chosen, apply_sequences, find_stops, schedule
from trainables.augmentation.standard import (
    RANDAUGMENT,
    SWITCHES,
    TRIVIALAUGMENT,
    Space,
    StandardPolicy,
    build_operations,
)
from trainables.augmentation.strong import SPACES, StrongPolicy, StrongSpace
from trainables.augmentation_config import (
    AugmentationConfig,
    AugMix,
    NoAugmentation,
    RandAugment,
    StrongAugmentation,
    TrivialAugment,
)
from trainables.errors import ConfigError
from trainables.ops import colour
from trainables.ops.geometry import warp_affine
from trainables.ops.pixels import apply_lut
from trainables.seeding import hash_ids, mix

POLICIES: list[AugmentationConfig] = [
    NoAugmentation(crop_scale_min=0.2, horizontal_flip=True, vertical_flip=True),
    RandAugment(),
    TrivialAugment(),
    StrongAugmentation(),
    StrongAugmentation(strength=0.5, crop_scale_min=0.5, horizontal_flip=True),
    StrongAugmentation(policy="strong-v1"),
    AugMix(),
]
ALL = [StrongAugmentation(), StrongAugmentation(policy="strong-v1"), RandAugment(), TrivialAugment(), AugMix()]


def make_images(num: int, channels: int = 3, side: int = 19) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (num, channels, side, side), dtype=np.uint8))


def make_seeds(num: int, epoch: int = 0) -> torch.Tensor:
    return mix(torch.from_numpy(hash_ids([f"image-{index}" for index in range(num)])), "augmentation", epoch)


V0, V1 = SPACES["strong-v0.1.0"], SPACES["strong-v1"]


def run_one(operation: Operation, images: torch.Tensor, magnitudes: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Call one operation by itself, without rounds or fused tables."""
    match operation:
        case PointOperation():
            return operation.apply(images, magnitudes)
        case TableOperation():
            return apply_lut(images, operation.tabulate(images, magnitudes))
        case PixelOperation():
            return operation.apply(images, magnitudes, seeds)
    return warp_affine(images, operation.build_matrices(magnitudes, *images.shape[-2:]), fill=operation.fill)


def draw_magnitudes(policy: StrongPolicy, num: int, name: str) -> torch.Tensor:
    return policy._draw_magnitudes(make_seeds(num))[:, list(policy.space.operations).index(name)]


def test_strong_has_the_papers_nineteen_operations() -> None:
    assert len(V0.operations) == 19
    bounds = {name: (values.low, values.high) for name, (_, values) in V0.operations.items()}
    assert bounds["brightness"] == bounds["contrast"] == bounds["gamma"] == (0.1, 2.0)
    assert bounds["hue"] == (-0.5, 0.5)
    assert bounds["posterize"] == (1, 8)
    assert bounds["solarize"] == (0, 255)
    assert bounds["jpeg"] == (0, 100)
    assert bounds["noise"] == (0.0, 0.2)
    assert bounds["blur"] == (0.0, 3.0)


def test_strong_v1_has_the_first_releases_operations() -> None:
    assert len(V1.operations) == 21
    assert not {"sharpen", "emboss", "noise", "jpeg", "tone"} & set(V1.operations)
    bounds = {name: (values.low, values.high) for name, (_, values) in V1.operations.items()}
    assert bounds["sharpness"] == (1.0, 4.0)
    assert bounds["blur"] == (0.0, 2.0)
    assert bounds["shear_x"] == bounds["shear_y"] == (-45.0, 45.0)
    assert bounds["translate_x"] == bounds["translate_y"] == (-32.0, 32.0)
    assert bounds["rotate"] == (-135.0, 135.0)


@pytest.mark.parametrize("space", [V0, V1])
@pytest.mark.parametrize("channels", [1, 3])
def test_identity_magnitudes_return_the_input_bit_for_bit(space: StrongSpace, channels: int) -> None:
    images, seeds = make_images(2, channels), make_seeds(2)
    for name, (operation, values) in space.operations.items():
        if values.kind != "switch" and name != "jpeg":  # these are left out of the draw where they are off
            magnitudes = torch.tensor(values.identity).expand(2, 2)
            assert torch.equal(run_one(operation, images, magnitudes, seeds), images), name


@pytest.mark.parametrize("space", [V0, V1])
def test_what_changes_nothing_is_not_drawn(space: StrongSpace) -> None:
    assert (StrongPolicy(space, 0.0).draw(make_seeds(500)).choices == -1).all()


@pytest.mark.parametrize("space", [V0, V1])
def test_operations_are_distinct_and_equally_likely(space: StrongSpace) -> None:
    drawn = StrongPolicy(space, 1.0)._draw_choices(make_seeds(20_000))
    for row in drawn[:2000].tolist():
        used = [number for number in row if number >= 0]
        assert len(set(used)) == len(used)
        assert row[: len(used)] == used  # gaps only at the end
    share = torch.bincount(drawn[:, 0], minlength=len(space.operations)).double() / 20_000
    expected = 1 / len(space.operations)
    assert (share - expected).abs().max() < 5 * (expected / 20_000) ** 0.5


def test_strong_v1_warps_at_most_once() -> None:
    policy = StrongPolicy(V1, 1.0)
    warps = [number for number, name in enumerate(V1.operations) if isinstance(V1.operations[name][0], WarpOperation)]
    count = torch.isin(policy._draw_choices(make_seeds(5000)), torch.tensor(warps)).sum(1)
    assert len(warps) == 5
    assert set(count.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("space", "shares"),
    [(V0, {2: 0.5, 3: 0.3, 4: 0.2}), (V1, {2: 0.6, 3: 0.24, 4: 0.096, 5: 0.064})],
)
def test_number_of_operations_has_the_published_frequencies(space: StrongSpace, shares: dict[int, float]) -> None:
    counts = (StrongPolicy(space, 1.0)._draw_choices(make_seeds(20_000)) >= 0).sum(1)
    assert set(counts.tolist()) == set(shares)
    for number, probability in shares.items():
        assert (counts == number).double().mean() == pytest.approx(probability, abs=0.016)  # 4.5 standard errors


@pytest.mark.parametrize("space", [V0, V1])
def test_magnitudes_fill_the_bounds_integers_with_both_ends(space: StrongSpace) -> None:
    magnitudes = StrongPolicy(space, 1.0)._draw_magnitudes(make_seeds(20_000))
    for index, (name, (_, bounds)) in enumerate(space.operations.items()):
        values = magnitudes[:, index, 0]
        if bounds.kind == "integer":
            assert set(values.tolist()) == set(range(int(bounds.low), int(bounds.high) + 1)), name
        elif bounds.kind == "switch":
            assert (values == 1).all()
        else:
            span = bounds.high - bounds.low
            assert bounds.low <= values.min() <= bounds.low + 0.01 * span
            assert bounds.high - 0.01 * span <= values.max() <= bounds.high


def test_tone_has_two_independent_magnitudes() -> None:
    tone = draw_magnitudes(StrongPolicy(V0, 1.0), 20_000, "tone")
    assert abs(torch.corrcoef(tone.T)[0, 1].item()) < 0.03


def test_strength_moves_bounds_linearly_from_the_identity() -> None:
    policy = StrongPolicy(V0, 0.5)
    expected = {"brightness": (0.55, 1.5), "hue": (-0.25, 0.25), "noise": (0.0, 0.1), "posterize": (4, 8)}
    # Integers end at the identity where half of the last step is left.
    expected |= {"solarize": (128, 256), "jpeg": (50, 101), "tone": (1 / 6, 2 / 3)}
    for name, (low, high) in expected.items():
        values = draw_magnitudes(policy, 20_000, name)[:, 0]
        assert values.min().item() == pytest.approx(low, abs=0.01)
        assert values.max().item() == pytest.approx(high, abs=0.01)
    for name in ("autocontrast", "equalize", "grayscale"):
        share = draw_magnitudes(policy, 20_000, name)[:, 0].mean().item()
        assert share == pytest.approx(0.5, abs=0.02)


def test_jpeg_goes_down_from_100_and_joins_in_with_the_strength() -> None:
    values = draw_magnitudes(StrongPolicy(V0, 0.1), 5000, "jpeg")[:, 0]
    assert (values.min().item(), values.max().item()) == (90, 101)
    # 90.9 + u·11, rounded down: not encoded (101) from u = 10.1/11 on.
    assert (values == 101).double().mean().item() == pytest.approx(0.9 / 11, abs=0.015)


#: Operation → share of the images that it may change at a small strength s, per s: it changes them much, but rarely.
JOINING = {"autocontrast": 1, "equalize": 1, "grayscale": 1, "solarize": 256, "posterize": 7, "jpeg": 101}


@pytest.mark.parametrize("space", ["strong-v0.1.0", "strong-v1"])
@pytest.mark.parametrize("strength", [1e-3, 1e-4, 1e-6])
def test_strong_operations_tend_to_the_identity(space: str, strength: float) -> None:
    """By magnitude, at most 25·255·s from the image before rounding; or, for those that jump, with probability ∝ s."""
    num = 2000
    images, seeds = make_images(1).expand(num, -1, -1, -1).contiguous(), make_seeds(num)
    images[..., 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    for number, (name, (operation, bounds)) in enumerate(SPACES[space].operations.items()):
        policy = StrongPolicy(SPACES[space], strength)
        magnitudes = policy._draw_magnitudes(seeds)[:, number]
        same = (magnitudes[:, 0] == bounds.identity[0]) & ((magnitudes[:, 1] == bounds.identity[1]) | (name != "tone"))
        acts = ~same
        if name in JOINING:
            expected = num * JOINING[name] * strength
            assert acts.sum().item() <= expected + 4 * expected**0.5, name
        elif acts.any():
            found = run_one(operation, images[acts], magnitudes[acts], seeds[acts])
            assert (found.int() - images[acts].int()).abs().max() <= round(25 * 255 * strength), name


@pytest.mark.parametrize("strength", [1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("config", ALL, ids=lambda each: f"{each.kind}-{getattr(each, 'policy', '')}")
def test_policies_tend_to_the_identity(config: AugmentationConfig, strength: float) -> None:
    num = 1000
    images = make_images(num)
    images[..., 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    augment = build_augmentation(config.model_copy(update={"strength": strength}), 19)
    change = (augment(images, make_seeds(num)).int() - images.int()).abs().flatten(1).amax(1)
    assert (change > round(25 * 255 * strength)).double().mean() <= 60 * strength
    assert (change > 0).double().mean() <= 0.5 if strength < 1e-3 else True


@pytest.mark.parametrize("space", [RANDAUGMENT, TRIVIALAUGMENT, _AUGMIX])
@pytest.mark.parametrize("strength", [1e-3, 1e-6])
def test_standard_operations_tend_to_the_identity(space: Space, strength: float) -> None:
    images = make_images(40)
    images[..., 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    shares = strength * torch.linspace(-1, 1, 40)
    magnitudes = torch.stack([shares, torch.full_like(shares, strength)], dim=1)
    for name, operation in build_operations(space).items():
        if name not in SWITCHES:  # these act with probability ``strength``
            found = run_one(operation, images, magnitudes, make_seeds(40))
            assert (found.int() - images.int()).abs().max() <= round(255 * strength), name


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_zero_changes_no_bit(channels: int) -> None:
    images, seeds = make_images(64, channels), make_seeds(64)
    for space in (V0, V1):
        assert torch.equal(StrongPolicy(space, 0.0)(images, seeds), images)  # by its bounds, without the short cut
    for config in ALL:
        assert torch.equal(build_augmentation(config.model_copy(update={"strength": 0}), 19)(images, seeds), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "config", POLICIES, ids=lambda config: f"{config.kind}-{config.crop_scale_min}-{getattr(config, 'policy', '')}"
)
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


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_fill_a_block_are_augmented_alike(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, seeds = make_images(80, channels), make_seeds(80)
    before, augment = images.clone(), build_augmentation(StrongAugmentation(), 19)
    expected = augment(images, seeds)
    monkeypatch.setattr(sequences, "_BLOCK_VALUES", 1)
    assert torch.equal(augment(images, seeds), expected)
    assert torch.equal(images, before)


def test_input_is_not_written_to() -> None:
    images = make_images(40)
    before = images.clone()
    for config in POLICIES:
        build_augmentation(config, 19)(images, make_seeds(40))
    assert torch.equal(images, before)


def test_strong_at_full_strength_changes_almost_every_image() -> None:
    images, seeds = make_images(200), make_seeds(200)
    changed = (StrongPolicy(V0, 1.0)(images, seeds) != images).flatten(1).any(1).double().mean()
    assert changed > 0.97


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "policy",
    [
        StrongPolicy(V0, 1.0),
        StrongPolicy(V0, 0.6),
        StrongPolicy(V1, 1.0),
        StandardPolicy(TRIVIALAUGMENT, num_ops=4, bin=None, strength=1.0),
    ],
)
def test_fused_tables_and_batches_are_the_operations_one_by_one(
    policy: StrongPolicy | StandardPolicy, channels: int
) -> None:
    images, seeds = make_images(120, channels), make_seeds(120)
    drawn, result = policy.draw(seeds), policy(images, seeds)
    for index in range(120):
        image, seed = images[index : index + 1], seeds[index : index + 1]
        for step, number in enumerate(drawn.choices[index].tolist()):
            if number >= 0:
                magnitudes = drawn.magnitudes[index : index + 1, step]
                image = run_one(policy.operations[number], image, magnitudes, seed)
        assert torch.equal(image[0], result[index]), drawn.choices[index]


def test_tables_known_beforehand_do_not_stop_an_image() -> None:
    point, pixels = PointOperation(lambda x, m: x), PixelOperation(lambda x, m, seeds: x)
    looks = TableOperation(lambda x, m: colour.tabulate_autocontrast(x))
    chains, runs = find_stops([[0, 0, 2, 0], [0, 1, 2, 0], [-1, 2, 2, 1], [-1, -1, -1, -1]], [point, looks, pixels])
    assert chains == [
        [Stop(2, 0, 2, 0, True)],
        [Stop(1, 1, 1, 0, True), Stop(2, 1, 2, 1, True)],  # what an operation that looks gives is a table
        [Stop(2, 2, 1, 0, False), Stop(2, 2, 2, 1, False), Stop(1, 2, 3, 2, False)],
        [],
    ]
    assert runs == {(0, 0): [0, 1], (0, 1): [3], (1, 0): [0], (1, 2): [3]}


def test_stops_keep_their_order_and_run_in_few_groups() -> None:
    drawn = np.random.default_rng(5).permuted(np.tile(np.arange(8), (60, 1)), axis=1)[:, :3].tolist()
    chains = [
        [Stop(number, row, step, step, False) for step, number in enumerate(own)] for row, own in enumerate(drawn)
    ]
    groups = list(schedule(chains))
    assert all(len({stop.operation for stop in group}) == 1 for group in groups)
    done = [stop for group in groups for stop in group]
    assert [[stop for stop in done if stop.row == row] for row in range(60)] == chains
    assert len(groups) < 0.8 * 3 * 8  # step by step every operation would have a group


@pytest.mark.parametrize("side", [128, 19])
def test_large_planes_are_looked_up_as_small_ones_and_memory_order_does_not_matter(side: int) -> None:
    """From 128² on a CPU looks up two pixels at a time."""
    images, seeds = make_images(30, side=side), make_seeds(30)
    tables = torch.randint(0, 256, (30, 3, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    point = PointOperation(lambda x, m: tables[m[:, 0].long()][:, :, None])  # a table of its own for every image
    red = PointOperation(lambda x, m: tables[m[:, 0].long()][:, :, None], channel=0)
    choices = torch.tensor([[0], [1], [-1]]).repeat(10, 1)
    magnitudes = torch.arange(30.0)[:, None, None].expand(30, 1, 2)
    expected = apply_lut(images, tables)
    expected[1::3, 1:] = images[1::3, 1:]
    expected[2::3] = images[2::3]
    for own in (images, images.contiguous(memory_format=torch.channels_last)):
        result = apply_sequences(own, Sequences(choices, magnitudes, seeds), [point, red])
        assert torch.equal(result, expected)
        result.add_(1)  # an ordinary tensor
    assert torch.equal(images, make_images(30, side=side))


def test_apply_chosen_leaves_rows_without_a_choice() -> None:
    images = make_images(4)
    change = {0: lambda x: 255 - x, 1: torch.zeros_like}
    result = apply_chosen(images, np.array([1, -1, 0, 1]), lambda number, rows, own: change[number](own))
    assert not result[[0, 3]].any()
    assert torch.equal(result[1], images[1])
    assert torch.equal(result[2], 255 - images[2])


def test_large_groups_run_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images, seeds, policy = make_images(100), make_seeds(100), StrongPolicy(V0, 1.0)
    whole = policy(images, seeds)
    monkeypatch.setattr(sequences, "_BLOCK_VALUES", 1)
    assert torch.equal(policy(images, seeds), whole)


def draw_dots(num: int, side: int = 40) -> torch.Tensor:
    """White rectangles on black: where the image is, the mask is."""
    images = torch.zeros(num, 1, side, side, dtype=torch.uint8)
    images[:, :, 8:20, 14:32] = 255
    return images


@pytest.mark.parametrize("config", [RandAugment(), TrivialAugment()], ids=lambda config: config.kind)
def test_masks_move_as_images_do(config: AugmentationConfig) -> None:
    """Among the samples that are only moved, mask and image stay one."""
    config = config.model_copy(update={"horizontal_flip": True, "vertical_flip": True})
    augment = build_augmentation(config, 40)
    images, seeds = draw_dots(300), make_seeds(300)
    result, masks = augment(images, seeds), augment.move(images // 255, seeds)
    names = list(build_operations(RANDAUGMENT))
    warps = torch.tensor([names.index(name) for name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")])
    drawn = augment.policy.draw(seeds).choices
    moved = (torch.isin(drawn, warps) | (drawn < 0)).all(1)
    assert moved.sum() > 30
    assert torch.equal(result[moved], masks[moved] * 255)
    assert not torch.equal(masks, images // 255)


def test_masks_follow_the_strong_policy_and_keep_their_labels() -> None:
    masks, seeds = draw_dots(200) // 255 * 7, make_seeds(200)
    assert torch.equal(build_augmentation(StrongAugmentation(), 40).move(masks, seeds), masks)  # nothing moves there
    moved = build_augmentation(StrongAugmentation(policy="strong-v1"), 40).move(masks, seeds)
    assert set(moved.unique().tolist()) == {0, 7}
    assert (moved != masks).flatten(1).any(1).double().mean() > 0.3
    alone = build_augmentation(StrongAugmentation(policy="strong-v1"), 40).move(masks[3:4], seeds[3:4])
    assert torch.equal(alone, moved[3:4])
    assert torch.equal(build_augmentation(NoAugmentation(), 40).move(masks, seeds), masks)


def test_masks_are_cropped_as_images_are() -> None:
    images, seeds = draw_dots(50), make_seeds(50)
    augment = build_augmentation(NoAugmentation(crop_scale_min=0.3), 40)
    result, masks = augment(images, seeds), augment.move(images, seeds)
    assert (result.int() - masks.int()).abs().double().mean() < 8  # bilinear and nearest differ along edges only
    assert set(masks.unique().tolist()) == {0, 255}


def test_augmix_has_no_masks() -> None:
    with pytest.raises(ConfigError, match="AugMix"):
        build_augmentation(AugMix(), 40).move(draw_dots(2), make_seeds(2))


def test_augmix_mixes_up_to_three_chains_of_up_to_three_operations() -> None:
    policy = AugMixPolicy(severity=3, width=3, max_depth=3, strength=1.0)
    chains, seeds = policy.draw(make_seeds(9000)), make_seeds(9000)
    depth = (chains.choices >= 0).sum(1)
    assert [round((depth == number).double().mean().item(), 1) for number in (1, 2, 3)] == [0.3, 0.3, 0.3]
    assert 0.0099 < chains.magnitudes[..., 0].abs().min() < chains.magnitudes[..., 0].abs().max() < 0.3001
    weights, own = policy.draw_weights(seeds)
    assert torch.allclose(weights.sum(1), torch.ones(9000))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18; Beta(1, 1) is uniform
    assert weights.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.013)
    assert weights.var(0).tolist() == pytest.approx([1 / 18] * 3, rel=0.06)
    assert (own.mean().item(), own.var().item()) == pytest.approx((1 / 2, 1 / 12), abs=0.015)


def test_augmix_is_its_formula() -> None:
    images, seeds = make_images(20), make_seeds(20)
    policy = AugMixPolicy(severity=3, width=2, max_depth=1, strength=1.0)
    weights, own = policy.draw_weights(seeds)
    chains = [apply_sequences(images, policy.draw(mix(seeds, "chain", number)), policy.operations) for number in (0, 1)]
    mixture = sum(weights[:, number, None, None, None] * chain for number, chain in enumerate(chains))
    expected = own[:, None, None, None] * images + (1 - own[:, None, None, None]) * mixture
    assert (policy(images, seeds) - expected).abs().max() <= 0.501


def test_randaugment_uses_its_bin_and_trivialaugment_all_bins() -> None:
    shares = StandardPolicy(RANDAUGMENT, num_ops=2, bin=9, strength=0.5).draw(make_seeds(500)).magnitudes[..., 0]
    assert shares.shape == (500, 2)
    assert torch.allclose(shares.abs(), torch.tensor(0.15))
    assert 0.4 < (shares > 0).double().mean() < 0.6
    drawn = StandardPolicy(TRIVIALAUGMENT, num_ops=1, bin=None, strength=1.0).draw(make_seeds(5000))
    choices, shares = drawn.choices, drawn.magnitudes[..., 0]
    assert set((shares.abs() * 30).round().int().flatten().tolist()) == set(range(31))
    assert set(choices.flatten().tolist()) == {-1, *range(1, 14)}


def test_standard_operations_have_torchvisions_magnitudes() -> None:
    images, full, seeds = make_images(1), torch.tensor([[1.0, 1.0]]), make_seeds(1)

    def run(name: str, share: torch.Tensor, space: Space = RANDAUGMENT) -> torch.Tensor:
        return run_one(build_operations(space)[name], images, share, seeds)

    assert torch.equal(run("posterize", full), images & 0xF0)
    assert torch.equal(run("posterize", full, TRIVIALAUGMENT), images & 0xC0)
    assert torch.equal(run("solarize", full), 255 - images)
    moved = run("translate_x", -full)  # 150/331 of 19 px: 8
    assert torch.equal(moved[..., :-8], images[..., 8:])
    assert not moved[..., -8:].any()
    assert (run("brightness", -full).float() - images * 0.1).abs().max() <= 0.51


def test_flips_hit_half_of_the_images() -> None:
    images, seeds = make_images(400), make_seeds(400)
    result = build_augmentation(NoAugmentation(horizontal_flip=True), 19)(images, seeds)
    flipped = (result == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(result[~flipped], images[~flipped])
    assert 0.4 < flipped.double().mean() < 0.6


def test_crops_lie_inside_and_have_the_asked_size() -> None:
    boxes = draw_crops(make_seeds(5000), scale_min=0.2, height=40, width=30)
    top, left, height, width = boxes.unbind(1)
    assert top.min() == left.min() == 0
    assert (top + height).max() == 40
    assert (left + width).max() == 30
    share = height * width / 1200
    assert 0.18 < share.min() < 0.21  # .2, but for whole pixels
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


@pytest.mark.parametrize("side", [(8, 8), (7, 5)])
def test_rows_are_written_alike_eight_bytes_at_a_time_or_one(side: tuple[int, int]) -> None:
    values, new = torch.zeros(5, 3, *side, dtype=torch.uint8), torch.randint(1, 256, (2, 3, *side), dtype=torch.uint8)
    _put(values, torch.tensor([3, 1]), new)
    assert torch.equal(values[[3, 1]], new)
    assert not values[[0, 2, 4]].any()
