"""Rendering of the phantom, many images at a time: retina, disc, vessels, lesions, then the effects of the camera.

Coordinates are in px of a 64 px image with the origin in its middle, x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64

#: All lengths in a scene refer to images of this side.
REFERENCE_SIZE = 64
FIELD_RADIUS = 30.0
MACULA_DISTANCE = 17.0
#: Colours are (red, green, blue) in [0, 1].
DISC_COLOUR = np.array([0.98, 0.84, 0.58], dtype=np.float32)
EXUDATE_COLOUR = np.array([1.0, 0.93, 0.55], dtype=np.float32)
#: Share of a vessel's depth that darkens each channel: blood is dark in green and blue, less in red.
BLOOD_ABSORPTION = np.array([0.45, 1.0, 0.85], dtype=np.float32)
#: σ of the seam around a lesion within which the nuisance fades in, in px of a 64 px image: chosen by eye.
SEAM = 1.0
#: ``Scenes.nuisance`` where none is applied.
NO_NUISANCE = np.array([0, 0, 1, 1, 1, 0, 0], dtype=np.float32)
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601
DARK, BRIGHT = 0, 1


@dataclass(frozen=True)
class Scenes:
    """Random quantities of n images. Angles in radians, lengths in px of a 64 px image."""

    seed: UInt64[np.ndarray, " n"]
    #: +1: the macula is right of the disc, −1: left of it (the other eye).
    side: Float32[np.ndarray, " n"]
    disc: Float32[np.ndarray, "n 2"]
    disc_radius: Float32[np.ndarray, " n"]
    retina: Float32[np.ndarray, "n 3"]
    #: Waves of the choroid: x and y frequency (radians per px), phase, amplitude.
    waves: Float32[np.ndarray, "n waves 4"]
    #: Illumination: change per px along x and y.
    tilt: Float32[np.ndarray, "n 2"]
    #: Direction (+1 towards the macula), start, bend, slope, waviness, its phase, width, darkness, reach.
    vessels: Float32[np.ndarray, "n vessels 9"]
    #: x, y, radius (0: none), elongation, angle, DARK or BRIGHT, contrast, 1 if it counts as a lesion.
    blobs: Float32[np.ndarray, "n blobs 8"]
    #: Gain of red, green, blue, gamma, blur (σ in px), vignetting, noise (σ, for values in [0, 1]).
    camera: Float32[np.ndarray, "n 7"]
    #: σ of extra blur, offset, gain of red, green, blue, size of blocks averaged (px; 0: none), 1 for a corner tag.
    nuisance: Float32[np.ndarray, "n 7"]

    def take(self, rows: Int64[np.ndarray, " k"]) -> Scenes:
        """Return the scenes of ``rows``."""
        return Scenes(*(getattr(self, field.name)[rows] for field in fields(self)))


def render_scenes(
    scenes: Scenes, rows: Int64[np.ndarray, " k"], *, size: int, channels: int
) -> tuple[UInt8[np.ndarray, "k channels size size"], UInt8[np.ndarray, "k size size"]]:
    """Return images and lesion masks (0 background, i the i-th lesion) of ``rows``.

    The nuisance changes no pixel of a lesion, neither by blurring it nor by moving its colour: elsewhere an image is
    that of a healthy eye with the nuisance, plus what the lesions change in the image without the nuisance.
    """
    part = scenes.take(rows)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * REFERENCE_SIZE
    image, masks = _photograph(replace(part, nuisance=np.tile(NO_NUISANCE, (len(rows), 1))), axis)
    chosen = np.flatnonzero((part.nuisance != NO_NUISANCE).any(axis=1))
    if len(chosen):
        own = part.take(chosen)
        is_lesion = own.blobs[..., 7:] > 0
        healthy = replace(own, blobs=np.where(is_lesion & (np.arange(8) == 2), np.float32(0), own.blobs))
        plain, _ = _photograph(replace(healthy, nuisance=np.tile(NO_NUISANCE, (len(chosen), 1))), axis)
        changed, _ = _photograph(healthy, axis)
        share = _weigh_nuisance(masks[chosen], axis)[:, None]
        image[chosen] += share * (changed - plain)
    if channels == 1:
        image = np.einsum("nchw,c->nhw", image, LUMA)[:, None]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), masks


def _weigh_nuisance(
    masks: UInt8[np.ndarray, "n size size"], axis: Float32[np.ndarray, " size"]
) -> Float32[np.ndarray, "n size size"]:
    """Return the share of the nuisance at each pixel: 0 in lesions, rising to 1 around them."""
    inside = (masks > 0).astype(np.float32)
    sigma_px = np.full(len(masks), SEAM * len(axis) / REFERENCE_SIZE, dtype=np.float32)
    near = np.clip(4 * blur_images(inside[:, None], sigma_px)[:, 0], 0, 1)
    return 1 - np.maximum(near, inside)


def _photograph(
    part: Scenes, axis: Float32[np.ndarray, " size"]
) -> tuple[Float32[np.ndarray, "n 3 size size"], UInt8[np.ndarray, "n size size"]]:
    """Return the images, values not limited to [0, 1], and the lesion masks of scenes."""
    dark, bright, masks = render_blobs(part, len(axis))
    colour = _render_retina(part, axis)
    colour *= 1 - render_vessels(part, axis)[:, None] * BLOOD_ABSORPTION[:, None, None]
    # A power instead of a factor for red: still black at contrast 1, but reddish below it.
    colour *= (1 - dark)[:, None] ** np.array([0.7, 1.5, 1.5], dtype=np.float32)[:, None, None]
    colour += np.minimum(1.8 * bright, 1)[:, None] * (EXUDATE_COLOUR[:, None, None] - colour)
    return _apply_camera(colour, part, axis), masks


def _render_retina(part: Scenes, axis: Float32[np.ndarray, " size"]) -> Float32[np.ndarray, "n 3 size size"]:
    """Return the retina with choroidal texture, uneven light, the dark macula and the optic disc."""
    frequency_x, frequency_y, phase, amplitude = (part.waves[..., index, None] for index in range(4))
    horizontal, vertical = frequency_x * axis + phase, frequency_y * axis
    # cos(a + b) of all waves as two matrix products instead of a cosine per pixel and wave.
    texture = (amplitude * np.cos(vertical)).swapaxes(1, 2) @ np.cos(horizontal)
    texture -= (amplitude * np.sin(vertical)).swapaxes(1, 2) @ np.sin(horizontal)
    light = 1 + part.tilt[:, 0, None, None] * axis + part.tilt[:, 1, None, None] * axis[:, None] + texture
    macula_x = part.disc[:, 0] + part.side * MACULA_DISTANCE
    light *= 1 - 0.32 * np.exp(-_squared_distance(axis, macula_x, part.disc[:, 1] + 1.5) / (2 * 4.0**2))
    colour = part.retina[:, :, None, None] * light[:, None]
    distance = np.sqrt(_squared_distance(axis, part.disc[:, 0], part.disc[:, 1]))
    disc = 1 / (1 + np.exp(np.clip((distance - part.disc_radius[:, None, None]) / 0.55, -30, 30)))
    cup = np.exp(-((distance / (0.5 * part.disc_radius[:, None, None])) ** 2))
    disc = (0.75 * disc + 0.2 * disc * cup)[:, None]
    return (colour + disc * (DISC_COLOUR[:, None, None] - colour)).astype(np.float32)


def _squared_distance(
    axis: Float32[np.ndarray, " size"], x: Float32[np.ndarray, " n"], y: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n size size"]:
    return (axis[None, None, :] - x[:, None, None]) ** 2 + (axis[None, :, None] - y[:, None, None]) ** 2


def render_vessels(part: Scenes, axis: Float32[np.ndarray, " size"]) -> Float32[np.ndarray, "n size size"]:
    """Return the depth of blood at each pixel, in [0, 1); vessels are curves v(u) in coordinates (u, v) of the disc."""
    x = (axis[None, :] - part.disc[:, 0, None]) * part.side[:, None]
    v = axis[None, :, None] - part.disc[:, 1, None, None]
    depth = np.zeros((len(x), len(axis), len(axis)), dtype=np.float32)
    for index in range(part.vessels.shape[1]):  # few vessels; every step is on all images
        direction, start, bend, slope, waviness, phase, width, darkness, reach = part.vessels[:, index].T[..., None]
        u = np.maximum(x * direction, 0.05)
        along = np.maximum(u - start, 0)
        # A trunk (start 0) bends like a parabola; a branch leaves its trunk at u = start, straight but wavy.
        curve = bend * np.sqrt(np.where(start == 0, u, start)) + slope * along
        curve += waviness * (np.sin(0.33 * u + phase) - np.sin(0.33 * start + phase))
        gradient = np.where(start == 0, bend / (2 * np.sqrt(u)), slope) + 0.33 * waviness * np.cos(0.33 * u + phase)
        distance = (v - curve[:, None, :]) / np.sqrt(1 + gradient[:, None, :] ** 2)
        taper = np.clip(1 - along / reach, 0, 1)
        thickness = (width * (0.45 + 0.55 * taper))[:, None, :]
        strength = (darkness * np.minimum(1, 4 * taper) * (x * direction > start))[:, None, :]
        np.maximum(depth, strength * np.exp(-0.5 * (distance / thickness) ** 2), out=depth)
    return depth


def render_blobs(
    part: Scenes, size: int
) -> tuple[Float32[np.ndarray, "n size size"], Float32[np.ndarray, "n size size"], UInt8[np.ndarray, "n size size"]]:
    """Return the depth of dark and of bright blobs, in [0, 1], and the masks of the blobs that are lesions.

    Each blob touches a small square of pixels only; all squares of all images are written in one step.
    """
    scale = size / REFERENCE_SIZE
    x, y, radius, elongation, angle, kind, contrast, counts = (part.blobs[..., index, None, None] for index in range(8))
    half = int(np.ceil(1.6 * scale * max(float(part.blobs[..., 2].max()), 1.0))) + 2
    step = np.arange(-half, half + 1)
    centre_column = np.floor((x / REFERENCE_SIZE + 0.5) * size).astype(np.int64)
    centre_row = np.floor((y / REFERENCE_SIZE + 0.5) * size).astype(np.int64)
    columns, rows = np.broadcast_arrays(centre_column + step, centre_row + step[:, None])
    to_x = (columns + 0.5) / scale - REFERENCE_SIZE / 2 - x
    to_y = (rows + 0.5) / scale - REFERENCE_SIZE / 2 - y
    major = (to_x * np.cos(angle) + to_y * np.sin(angle)) / elongation
    minor = (to_y * np.cos(angle) - to_x * np.sin(angle)) * elongation
    inside = (radius - np.sqrt(major**2 + minor**2)) * scale  # px inside the rim
    cover = np.where(radius > 0, np.clip(inside + 0.5, 0, 1), 0).astype(np.float32)
    cover *= (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    pixel = np.arange(len(x))[:, None, None, None] * size**2 + rows.clip(0, size - 1) * size + columns.clip(0, size - 1)
    depth = np.zeros((2, len(x) * size**2), dtype=np.float32)
    for which in (DARK, BRIGHT):
        np.maximum.at(depth[which], pixel.ravel(), (cover * contrast * (kind == which)).ravel())
    masks = np.zeros(len(x) * size**2, dtype=np.uint8)
    number = np.broadcast_to(np.arange(1, x.shape[1] + 1, dtype=np.uint8)[None, :, None, None], cover.shape)
    lesion = (cover >= 0.5) & (counts > 0)
    masks[pixel[lesion]] = number[lesion]
    shape = (len(x), size, size)
    return depth[DARK].reshape(shape), depth[BRIGHT].reshape(shape), masks.reshape(shape)


def _apply_camera(
    colour: Float32[np.ndarray, "n 3 size size"], part: Scenes, axis: Float32[np.ndarray, " size"]
) -> Float32[np.ndarray, "n 3 size size"]:
    """Return the images as their cameras record them: field of view, cast, nuisance, blur, blocks, noise, tag."""
    size = len(axis)
    gains, (gamma, blur, vignette, noise) = part.camera[:, :3], part.camera[:, 3:].T[..., None, None, None]
    extra_blur, offset, extra_gains = part.nuisance[:, 0], part.nuisance[:, 1], part.nuisance[:, 2:5]
    zeros = np.zeros(len(colour), dtype=np.float32)
    radius = np.sqrt(_squared_distance(axis, zeros, zeros))[:, None]
    field = np.clip((FIELD_RADIUS - radius) * size / REFERENCE_SIZE + 0.5, 0, 1)
    image = np.clip(colour, 0, 1) ** gamma * (gains * extra_gains)[:, :, None, None]
    image = (image * (1 - vignette * (radius / FIELD_RADIUS) ** 2.5) + offset[:, None, None, None]) * field
    image = blur_images(image, np.hypot(blur[:, 0, 0, 0], extra_blur) * size / REFERENCE_SIZE)
    image = _average_blocks(image, part.nuisance[:, 5], size)
    image = image + noise * draw_normal(part.seed, image.shape[1:]) * (0.15 + 0.85 * field)
    # A letter-like sign in the black corner, as some cameras print.
    unit = max(1, size // 32)
    tagged = part.nuisance[:, 6] > 0
    image[tagged, :, unit : 4 * unit, unit : 2 * unit] = 0.85
    image[tagged, :, 3 * unit : 4 * unit, unit : 3 * unit] = 0.85
    return image.astype(np.float32)


def blur_images(
    image: Float32[np.ndarray, "n channels size size"], sigma_px: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n channels size size"]:
    """Return each image blurred by a Gaussian of its own σ, by its transfer function.

    The FFT wraps around, which changes nothing because borders are black.
    """
    size = image.shape[-1]
    squared = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None, :] ** 2
    transfer = np.exp(-2 * np.pi**2 * squared * sigma_px[:, None, None] ** 2).astype(np.float32)
    return np.fft.irfft2(np.fft.rfft2(image) * transfer[:, None], s=(size, size)).astype(np.float32)


def _average_blocks(
    image: Float32[np.ndarray, "n 3 size size"], block: Float32[np.ndarray, " n"], size: int
) -> Float32[np.ndarray, "n 3 size size"]:
    """Return the images averaged over blocks of ``block`` px (at 64 px) if ``block`` is above 0, else unchanged."""
    chosen = block > 0
    if not chosen.any():
        return image
    step = max(2, round(float(block.max()) * size / REFERENCE_SIZE))
    member = (np.arange(size)[:, None] // step == np.arange(size)[None, :] // step).astype(np.float32)
    average = member / member.sum(axis=1, keepdims=True)
    image[chosen] = average @ image[chosen] @ average.T
    return image


def draw_normal(seed: UInt64[np.ndarray, " n"], shape: tuple[int, ...]) -> Float32[np.ndarray, "n ..."]:
    """Return nearly normal numbers, a pure function of seed and position: sums of splitmix64's four 16-bit parts.

    Only the last step uses floats, so all machines agree. Source: Steele, Lea & Flood 2014 (splitmix64).
    """
    counter = np.arange(int(np.prod(shape)), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    value = seed[:, None] + counter
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    total = value.view(np.uint16).reshape(*value.shape, 4).sum(axis=-1, dtype=np.int64)
    # The sum of four uniforms on [0, 2¹⁶) has mean 2·(2¹⁶ − 1) and standard deviation 2¹⁶·√(4/12).
    normal = (total - 2 * (2**16 - 1)) / (2**16 * np.sqrt(1 / 3))
    return normal.astype(np.float32).reshape(len(seed), *shape)
