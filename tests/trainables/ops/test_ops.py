"""Batched image operations against plain numpy, Pillow and torchvision."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torchvision.transforms import functional as tv

from trainables.ops import colour, filters, geometry, noise
from trainables.ops.pixels import (
    apply_lut,
    choose,
    compute_grey,
    compute_mean_grey,
    look_up,
    ramp,
    to_uint8,
    to_uint8_,
    truncate_to_uint8_,
)


def make_images(num: int, channels: int = 3, height: int = 23, width: int = 31, seed: int = 0) -> torch.Tensor:
    """Random smooth-ish images with full range, sides odd and unequal."""
    values = np.random.default_rng(seed).integers(0, 256, (num, channels, height, width), dtype=np.uint8)
    values[:, :, : height // 2] = np.linspace(0, 255, width).astype(np.uint8)  # half of it a ramp
    return torch.from_numpy(values)


def factors(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def test_rounding_in_place_is_rounding() -> None:
    values = torch.cat([torch.arange(-600, 1200) / 2.0, torch.linspace(-3000, 3000, 9999)])  # halves, and beyond uint8
    expected = np.clip(np.round(values.numpy()), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(to_uint8(values).numpy(), expected)
    np.testing.assert_array_equal(to_uint8_(values.clone()).numpy(), expected)


@pytest.mark.parametrize("pixels", [2**14, 2**14 + 1, 30])
def test_planes_are_looked_up_each_in_its_own_table(pixels: int) -> None:
    rng = np.random.default_rng(1)
    planes = rng.integers(0, 256, (13, pixels), dtype=np.uint8)
    tables = rng.integers(0, 256, (13, 256), dtype=np.uint8)
    expected = np.take_along_axis(tables, planes.astype(np.int64), 1)
    result = torch.from_numpy(planes.copy())
    look_up(result, torch.from_numpy(tables), out=result)
    np.testing.assert_array_equal(result.numpy(), expected)


def test_grey_is_pillows_luma() -> None:
    images = make_images(2)
    expected = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images]
    np.testing.assert_array_equal(compute_grey(images)[:, 0].numpy(), np.stack(expected))


def test_cutting_off_keeps_whole_numbers_that_arithmetic_made_a_little_too_small() -> None:
    for dtype in (torch.float32, torch.float64):
        whole = torch.arange(256, dtype=dtype)
        below = torch.nextafter(torch.nextafter(whole, whole - 1), whole - 1)
        assert truncate_to_uint8_(below.clone()).tolist() == list(range(256))
        assert truncate_to_uint8_(whole + 0.999).tolist() == list(range(256))
        assert truncate_to_uint8_(whole - 0.001).tolist() == [0, *range(255)]
    assert truncate_to_uint8_(torch.tensor([-300.0, -0.5, 255.9, 4e4])).tolist() == [0, 0, 255, 255]


def test_brightness_is_the_formula_and_zero_is_black() -> None:
    images = make_images(3)
    result = colour.adjust_brightness(images, factors(0.0, 0.37, 1.9)).numpy()
    assert not result[0].any()
    for index, factor in ((1, 0.37), (2, 1.9)):
        expected = rounded(images[index].numpy() * np.float32(factor))
        np.testing.assert_array_equal(result[index], expected)
    assert result[2].max() == 255  # saturates, does not wrap


def test_contrast_and_saturation_blend_with_grey() -> None:
    images = make_images(2)
    grey = compute_grey(images).numpy().astype(np.float64)
    x = images.numpy().astype(np.float64)
    contrast = colour.adjust_contrast(images, factors(0.25, 1.75)).numpy()
    saturation = colour.adjust_saturation(images, factors(0.0, 1.5)).numpy()
    for index, m in enumerate((0.25, 1.75)):
        expected = rounded(m * x[index] + (1 - m) * grey[index].mean())
        assert np.abs(contrast[index].astype(int) - expected.astype(int)).max() <= 1
    np.testing.assert_array_equal(saturation[0], np.repeat(grey[0], 3, axis=0).astype(np.uint8))
    np.testing.assert_array_equal(saturation[1], rounded(1.5 * x[1] - 0.5 * grey[1]))


def test_gamma_and_tone_are_their_curves() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 1, 16, 16)
    t = np.arange(256) / 255.0
    gamma = colour.adjust_gamma(images, factors(0.5, 1.7)).numpy().reshape(2, 256)
    np.testing.assert_array_equal(gamma[0], rounded(255 * np.sqrt(t)))
    np.testing.assert_array_equal(gamma[1], rounded(255 * t ** float(np.float32(1.7))))
    tone = colour.adjust_tone(images, factors(0.0, 1.0), factors(1.0, 0.5)).numpy().reshape(2, 256)
    np.testing.assert_array_equal(tone[0], rounded(255 * (3 * (1 - t) * t**2 + t**3)))
    np.testing.assert_array_equal(tone[1], rounded(255 * (3 * (1 - t) ** 2 * t + 1.5 * (1 - t) * t**2 + t**3)))


def test_hue_moves_red_to_green_to_blue() -> None:
    red = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 200
    result = colour.adjust_hue(red, factors(1 / 3, -1 / 3))
    assert result[0, :, 0, 0].tolist() == [0, 200, 0]
    assert result[1, :, 0, 0].tolist() == [0, 0, 200]
    images = make_images(1)
    reference = tv.adjust_hue(images, 0.2)
    assert (colour.adjust_hue(images, factors(0.2)).int() - reference.int()).abs().max() <= 2


def test_hue_zero_is_the_identity_and_sixths_of_a_turn_exact() -> None:
    images = make_images(3)
    assert torch.equal(colour.adjust_hue(images, factors(0.0, 0.0, 0.0)), images)
    third = colour.adjust_hue(images, factors(1 / 3, 1 / 3, 1 / 3))
    assert torch.equal(third, images[:, [2, 0, 1]])
    half = colour.adjust_hue(images, factors(0.5, -0.5, 0.5)).int()
    extremes = images.amax(1, keepdim=True).int() + images.amin(1, keepdim=True).int()
    assert torch.equal(half, extremes - images)


@pytest.mark.parametrize("turns", [-0.45, -0.3, -0.13, -0.02, 0.07, 0.2, 0.26, 0.41])
def test_hue_is_a_turn_in_hsv(turns: float) -> None:
    images = make_images(1)
    pixels = images[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    turned = [colorsys.rgb_to_hsv(*(pixel / 255.0)) for pixel in pixels]
    expected = np.array([colorsys.hsv_to_rgb((hue + turns) % 1.0, *rest) for hue, *rest in turned]) * 255.0
    result = colour.adjust_hue(images, factors(turns))[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    assert np.abs(result - expected).max() <= 0.501


def test_tables_are_their_operations() -> None:
    images = (make_images(3).float() * 0.4 + 31).to(torch.uint8)
    images[2] = 77
    m = factors(0.3, 1.8, 0.5)
    for tables, expected in (
        (colour.tabulate_contrast(images, m), colour.adjust_contrast(images, m)),
        (colour.tabulate_autocontrast(images), colour.autocontrast(images)),
        (colour.tabulate_equalize(images), colour.equalize(images)),
        (colour.adjust_gamma(ramp(images, 3), m).squeeze(2), colour.adjust_gamma(images, m)),
        (colour.solarize(ramp(images, 3), 99 * m).squeeze(2), colour.solarize(images, 99 * m)),
    ):
        assert torch.equal(apply_lut(images, tables), expected)


def test_choose_takes_samples_or_pixels() -> None:
    images, others = make_images(2), make_images(2, seed=1)
    result = choose(torch.tensor([True, False]), images, others)
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[1], others[1])
    chosen = images[:, :1] < 100
    assert torch.equal(choose(chosen, images, others), torch.where(chosen, images, others))


def test_hsv_saturation_leaves_grey_pixels_grey() -> None:
    images = make_images(1)  # its upper half is a grey ramp
    result = colour.scale_saturation(images, factors(1.0), factors(0.25))
    assert torch.equal(result[..., :11, :], images[..., :11, :])
    spread = lambda x: (x.amax(1).int() - x.amin(1).int()).float().mean()  # noqa: E731
    assert spread(result[..., 11:, :]) > spread(images[..., 11:, :])


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_keeps_the_top_bits(bits: int) -> None:
    images = make_images(1)
    expected = images.numpy() & (0xFF >> (8 - bits) << (8 - bits) & 0xFF)
    np.testing.assert_array_equal(colour.posterize(images, factors(bits)).numpy(), expected)


@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
def test_solarize_inverts_from_the_threshold(threshold: int) -> None:
    images = make_images(1)
    x = images.numpy().astype(int)
    expected = np.where(x < threshold, x, 255 - x)
    np.testing.assert_array_equal(colour.solarize(images, factors(threshold)).numpy(), expected)


def test_equalize_and_autocontrast_are_pillows() -> None:
    images = (make_images(3).float() * 0.4 + 31).to(torch.uint8)
    images[2] = 77  # flat: both must leave it
    for index, image in enumerate(images):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        equalized = np.asarray(ImageOps.equalize(pillow)).transpose(2, 0, 1)
        np.testing.assert_array_equal(colour.equalize(images)[index].numpy(), equalized)
        stretched = np.asarray(ImageOps.autocontrast(pillow)).transpose(2, 0, 1).astype(int)
        assert np.abs(colour.autocontrast(images)[index].numpy().astype(int) - stretched).max() <= 1
    assert torch.equal(colour.autocontrast(images)[2], images[2])


def test_sharpen_and_emboss_are_their_kernels() -> None:
    images = make_images(1, channels=1)
    x = np.pad(images[0, 0].numpy().astype(np.float64), 1, mode="reflect")
    kernels = {
        filters.sharpen: [[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]],
        filters.emboss: [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]],
    }
    for operation, kernel in kernels.items():
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3))
        convolved = np.einsum("hwij,ij->hw", windows, np.array(kernel, dtype=np.float64))
        expected = rounded(0.5 * x[1:-1, 1:-1] + 0.5 * convolved)
        np.testing.assert_array_equal(operation(images, factors(0.5))[0, 0].numpy(), expected)


def test_sharpness_is_torchvisions() -> None:
    images = make_images(1)
    for factor in (0.1, 1.9):
        reference = tv.adjust_sharpness(images, factor).int()
        assert (filters.adjust_sharpness(images, factors(factor)).int() - reference).abs().max() <= 1


def test_gaussian_blur_is_torchvisions_for_every_sample_its_own_sigma() -> None:
    images = make_images(3)
    sigmas, radii = (0.4, 1.3, 2.9), (1, 2, 5)
    result = filters.gaussian_blur(images, factors(*sigmas), torch.tensor(radii))
    for index in range(3):
        side = 2 * radii[index] + 1
        reference = tv.gaussian_blur(images[index].double(), [side, side], [sigmas[index]] * 2)
        assert (result[index].double() - reference).abs().max() <= 0.501


def test_a_blur_wider_than_the_image_mirrors_it_again() -> None:
    images = make_images(2, height=4, width=3)
    result = filters.gaussian_blur(images, factors(2.0, 0.0), torch.tensor([7, 7]))
    assert torch.equal(result[1], images[1])
    mirrored = np.pad(images[0].numpy(), ((0, 0), (7, 7), (7, 7)), mode="reflect").astype(np.float64)
    weights = np.exp(-(np.arange(-7, 8) ** 2) / 8.0)
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, (15, 15), axis=(1, 2))
    expected = np.einsum("chwij,i,j->chw", windows, weights, weights) / weights.sum() ** 2
    assert np.abs(result[0].numpy() - expected).max() <= 0.501


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels: int) -> None:
    images = make_images(3, channels)
    result = filters.jpeg(images, torch.tensor([0, 40, 100]))
    for image, own, quality in zip(images, result, (1, 40, 100), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(buffer, "JPEG", quality=quality)
        expected = np.asarray(Image.open(buffer)).reshape(23, 31, channels)
        np.testing.assert_array_equal(own.permute(1, 2, 0).numpy(), expected)


def spread_point(radius_px: float, alias_px: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a defocused point of light looks like, and how far its pixels are from it."""
    images = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    images[0, 0, 20, 20] = 255
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    blurred = filters.defocus_blur(images, radius_px=radius_px, alias_px=alias_px)
    return blurred[0, 0].float(), torch.sqrt(x**2 + y**2)


def test_defocus_spreads_a_point_over_a_disk_of_whole_pixels() -> None:
    disk, distance = spread_point(3.0)
    assert disk[distance <= 3.0].unique().tolist() == [255 // 29]
    assert not disk[distance > 3.0].any()


def test_a_small_disk_covers_parts_of_pixels() -> None:
    disk, distance = spread_point(1.5)
    inside = disk[distance <= 1.0]
    assert inside.min() == inside.max()
    assert inside[0] == pytest.approx(255 / (math.pi * 1.5**2), rel=0.15)
    assert 0 < disk[21, 21] < inside[0]
    assert not disk[distance >= 2.0 + 1e-6].any()


@pytest.mark.parametrize("sigma_px", [1.0, 3.0, 6.0])
def test_blur_alike_is_scipys_with_fractions_cut_off(sigma_px: float) -> None:
    images = make_images(2)
    blurred = filters.blur_with_one_sigma(images, sigma_px=sigma_px, radius_px=round(4 * sigma_px))
    for image, own in zip(images.flatten(0, 1), blurred.flatten(0, 1), strict=True):
        expected = ndimage.gaussian_filter(image.double().numpy(), sigma_px, mode="nearest", truncate=4.0)
        assert np.abs(own.numpy() - np.floor(expected)).max() <= 1.0  # 16-bit weights


def test_motion_blur_leaves_flat_images_and_smears_along_the_angle() -> None:
    images = torch.zeros(2, 1, 21, 21, dtype=torch.uint8)
    images[:, :, 10, 10] = 255
    smeared = filters.motion_blur(images, factors(0.0, math.pi / 2), num_taps=5, sigma_px=10.0)
    assert smeared[0, 0].nonzero().tolist() == [[10, column] for column in range(6, 11)]
    assert smeared[1, 0].nonzero().tolist() == [[row, 10] for row in range(6, 11)]
    flat = torch.full((1, 3, 9, 9), 201, dtype=torch.uint8)
    assert torch.equal(filters.motion_blur(flat, factors(0.3), num_taps=9, sigma_px=2.0), flat)


def test_pixelate_averages_cells() -> None:
    images = make_images(1, height=8, width=8)
    result = filters.pixelate(images, kept=0.5).double()
    cells = images.double().reshape(1, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    assert (result[..., ::2, ::2] - cells).abs().max() <= 0.5
    assert torch.equal(result[..., ::2, ::2], result[..., 1::2, 1::2])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_colours_in_place_and_quality_is_per_sample(channels: int) -> None:
    images = torch.zeros(3, channels, 32, 32, dtype=torch.uint8)
    images[:, 0] = torch.linspace(100, 220, 32).to(torch.uint8)  # red (or grey) only
    result = filters.jpeg(images, torch.tensor([95, 10, 0]))
    error = (result.int() - images.int()).abs().float().mean(dim=(1, 2, 3))
    assert error[0] < 3
    assert error[0] < error[1] < error[2]


def test_shot_noise_is_poisson() -> None:
    for photons in (3.0, 51.0, 255.0):  # 255 / photons is whole: rounding to uint8 adds nothing
        values = torch.tensor([0, 5, 64, 128], dtype=torch.uint8)
        images = values[:, None, None, None].expand(4, 1, 200, 200)
        result = noise.add_shot_noise(images, torch.arange(4), photons=photons).double() * photons / 255.0
        assert not result[0].any()
        for value, counts in zip(values[1:].tolist(), result[1:], strict=True):
            rate = value / 255.0 * photons
            if rate + 5 * math.sqrt(rate) + 1 > photons:
                continue  # counts above a white pixel's are cut
            # 40,000 draws: standard errors √(λ/N) of the mean, λ·√((2 + 1/λ)/N) of the variance
            assert counts.mean() == pytest.approx(rate, abs=5 * math.sqrt(rate / 40_000))
            assert counts.var() == pytest.approx(rate, abs=5 * rate * math.sqrt((2 + 1 / rate) / 40_000))


def test_shot_noise_counts_follow_the_poisson_probabilities() -> None:
    images = torch.full((1, 1, 300, 300), 128, dtype=torch.uint8)
    counts = (noise.add_shot_noise(images, torch.tensor([9]), photons=5.0).double() / 51.0).round()
    rate = 128 / 255 * 5
    for count in range(5):
        share = (counts == count).double().mean().item()
        expected = math.exp(-rate) * rate**count / math.factorial(count)
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / 90000))


def test_noises_have_their_published_size() -> None:
    images = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    seeds = torch.arange(4, dtype=torch.int64)
    gaussian = noise.add_gaussian_noise(images, torch.full((4,), 0.1), seeds).double()
    assert gaussian.mean() == pytest.approx(128, abs=0.7)
    assert gaussian.std() == pytest.approx(25.5, rel=0.02)
    speckle = noise.add_speckle_noise(images, torch.full((4,), 0.1), seeds).double()
    assert speckle.std() == pytest.approx(12.8, rel=0.02)
    impulse = noise.add_impulse_noise(images, torch.full((4,), 0.2), seeds)
    assert (impulse == 0).double().mean() == pytest.approx(0.1, abs=0.01)
    assert (impulse == 255).double().mean() == pytest.approx(0.1, abs=0.01)
    mixed = noise.mix_uniform_noise(images, torch.full((4,), 0.2), seeds)
    assert torch.equal(mixed[:, 0], mixed[:, 2])  # the same in all channels
    assert mixed.double().mean() == pytest.approx(0.8 * 128 + 0.2 * 127, abs=0.7)


def test_affine_maps_are_torchvisions() -> None:
    images = make_images(1, height=24, width=30)
    cases = [
        (geometry.shear_matrices(factors(0.25), factors(0.0)), {"shear": [math.degrees(math.atan(0.25)), 0.0]}),
        (geometry.shear_matrices(factors(0.0), factors(-0.4)), {"shear": [0.0, math.degrees(math.atan(-0.4))]}),
        (geometry.translation_matrices(factors(5.7), factors(-3.2)), {"translate": [5, -3]}),
    ]
    for matrices, change in cases:
        arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | change
        if "shear" in change:
            arguments["center"] = [0, 0]
        reference = tv.affine(images, **arguments)
        result = geometry.warp_affine(images, matrices)
        assert (result == reference).double().mean() > 0.98  # nearest pixel: ties may fall either way
    rotated = geometry.warp_affine(images, geometry.rotation_matrices(factors(33.0), height=24, width=30))
    assert (rotated == tv.rotate(images, 33.0)).double().mean() > 0.98


def test_shear_about_the_centre_is_torchvisions() -> None:
    images = make_images(1, height=24, width=30)
    for degrees in (40.0, -25.0):
        amount = factors(math.tan(math.radians(degrees)))
        matrices = geometry.about_centre(geometry.shear_matrices(amount, factors(0.0)), height=24, width=30)
        reference = tv.affine(
            images, angle=0.0, translate=[0, 0], scale=1.0, shear=[degrees, 0.0], fill=[128.0, 128.0, 128.0]
        )
        result = geometry.warp_affine(images, matrices, fill=128)
        assert (result == reference).double().mean() > 0.98  # nearest pixel: ties may fall either way


def test_masks_are_cropped_to_the_nearest_pixel() -> None:
    masks = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(3, 1, 8, 8)
    boxes = torch.tensor([[0, 0, 8, 8], [2, 4, 4, 4], [2, 4, 4, 4]])
    result = geometry.resize_crop_nearest(masks, boxes, MIRRORED[:3], size=8)
    assert torch.equal(result[0], masks[0])
    part = masks[1, :, 2:6, 4:8].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(result[1], part.flip(1))
    assert torch.equal(result[2], part.flip(2))


#: Neither axis, up–down, left–right, both.
MIRRORED = torch.tensor([[False, False], [True, False], [False, True], [True, True]])


@pytest.mark.parametrize("resize", [geometry.resize_crop, geometry.interpolate])
def test_resize_crop_of_everything_is_the_image(resize: Callable[..., torch.Tensor]) -> None:
    images = make_images(4, height=32, width=32)
    result = resize(images, torch.tensor([[0, 0, 32, 32]] * 4), MIRRORED, size=32)
    expected = (images[0], images[1].flip(1), images[2].flip(2), images[3].flip(1, 2))
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), [(19, 19, 19), (31, 23, 16), (8, 12, 40), (1, 5, 7)])
def test_resize_crop_is_the_interpolated_box(height: int, width: int, size: int, channels: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, channels, height, width), dtype=np.uint8))
    share = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    extent = (torch.tensor([height, width]) * (0.3 + 0.7 * share[:, :2])).long().clamp(min=1)
    boxes = torch.cat([(share[:, 2:] * (torch.tensor([height, width]) - extent + 1)).long(), extent], dim=1)
    mirrored = MIRRORED.repeat(2, 1)
    result = geometry.resize_crop(images, boxes, mirrored, size=size)
    at_once = geometry.interpolate(images, boxes, mirrored, size=size)
    for index, ((top, left, tall, wide), dims) in enumerate(
        zip(boxes.tolist(), ([], [1], [2], [1, 2]) * 2, strict=True)
    ):
        box = images[index : index + 1, :, top : top + tall, left : left + wide].float()
        expected = torch.nn.functional.interpolate(box, size=(size, size), mode="bilinear")[0].flip(dims)
        assert (at_once[index].float() - expected).abs().max() <= 0.501
        assert (result[index].float() - expected).abs().max() <= 1.01  # rounded twice
    alone = geometry.resize_crop(images[3:4], boxes[3:4], mirrored[3:4], size=size)
    assert torch.equal(alone, result[3:4])
    assert torch.equal(geometry.interpolate(images[3:4], boxes[3:4], mirrored[3:4], size=size), at_once[3:4])


def test_colour_operations_leave_grey_images_alone() -> None:
    images = make_images(2, channels=1)
    half = factors(0.5, 0.5)
    for result in (
        colour.adjust_channel(images, half, channel=2),
        colour.adjust_hue(images, half),
        colour.adjust_saturation(images, half),
        colour.scale_saturation(images, half, half),
        colour.to_grayscale(images),
    ):
        assert torch.equal(result, images)


def test_mean_grey_is_exact_for_large_flat_images() -> None:
    images = torch.full((1, 1, 3000, 3000), 255, dtype=torch.uint8)  # a float32 sum would drift
    assert compute_mean_grey(images).item() == 255.0
