"""Near-duplicates: images that show the same picture after another compression, a shift by a pixel or a change of
brightness.

Two steps. Candidates are pairs whose spectra are alike: magnitudes of low spatial frequencies, which a shift leaves as
they are (a perceptual hash that is compared by correlation instead of by bits). Of these, a pair is a near-duplicate if
its thumbnails agree better than each of them agrees with other images of the data, so that sets in which all images
resemble each other (radiographs, fundus photographs) do not report thousands of pairs.

The thresholds are measured on PneumoniaMNIST, 5,002 different images of 28 px, and planted copies (``docs/data.md``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from trainables.data.decoding.threads import map_threads

#: Images of more pixels are averaged over blocks to at most this side.
_SIDE = 56
#: Smaller images have too little detail to tell copies from images that are merely alike.
MIN_SIDE = 28
#: The time grows with the square of the number: 50,000 images take ten seconds.
MAX_IMAGES = 100_000
#: Spatial frequencies per image of the spectrum, in each direction.
_MAX_FREQUENCY = 5
#: Correlation of spectra of a candidate: .997 of copies shifted by a pixel in both directions are above it.
_MIN_SPECTRAL = 0.65
#: Correlation of band-passed thumbnails of a near-duplicate: .99 of copies as JPEG of quality 50 are above .95.
_MIN_CORRELATION = 0.9
#: The same of thumbnails of at most half the side, tried first because it takes a fraction of the time.
_MIN_COARSE_CORRELATION = 0.8
#: Distance (1 - correlation) of the pair, relative to that of either image to its third nearest in a sample.
_MAX_RATIO = 0.2
_SAMPLE = 500
#: Band of the thumbnails: finer detail is noise of the compression, coarser what all images share.
_FINE_PX = 0.7
_COARSE_SHARE = 0.09
_CHUNK = 1024
_PAIRS = 2048
#: Images shrunk at a time: a megabyte or so stays in the processor's cache.
_SHRINK_BYTES = 2**20

_Pairs = Int64[np.ndarray, "n 2"]


@dataclass(frozen=True)
class NearDuplicate:
    """Pair of images that show the same picture."""

    first: int
    second: int
    #: Correlation of the thumbnails, −1 to 1.
    correlation: float


def shrink_images(images: UInt8[np.ndarray, "n channels height width"]) -> UInt8[np.ndarray, "n side side"]:
    """Return grey thumbnails of square images: the mean over channels and square blocks, at most 56 px a side."""
    count, channels, height, width = images.shape
    step = max(1, _SHRINK_BYTES // (channels * height * width))
    parts = map_threads(_shrink, [images[start : start + step] for start in range(0, max(1, count), step)])
    return np.concatenate(parts)


def _shrink(images: UInt8[np.ndarray, "n channels height width"]) -> UInt8[np.ndarray, "n side side"]:
    count, channels, height, _ = images.shape
    block = -(-height // _SIDE)
    side = height // block
    blocks = images[:, :, : side * block, : side * block].reshape(count, channels, side, block, side * block)
    # 16 bits hold the sum of 257 values; a block of 16 rows and 3 channels needs 32.
    kind = np.uint16 if channels * block <= 257 else np.uint32
    rows = np.add.reduce(blocks, axis=(1, 3), dtype=kind)
    total = rows.reshape(count, side, side, block).sum(axis=3, dtype=np.uint32)
    size = channels * block**2
    return ((total + size // 2) // size).astype(np.uint8)


def find_near_duplicates(
    thumbnails: UInt8[np.ndarray, "n side side"], same: Int64[np.ndarray, " n"] | None = None
) -> list[NearDuplicate]:
    """Return the pairs of near-duplicates, the most alike first; pairs of equal pixels are left out.

    Args:
        thumbnails: of ``shrink_images``.
        same: number that equal images share; none: all differ.
    """
    count, side = len(thumbnails), thumbnails.shape[-1]
    if count < 2 or side < MIN_SIDE:
        return []
    sample = np.random.default_rng(0).permutation(count)[:_SAMPLE]
    reference = _unit(_crop(_filter_band(thumbnails[sample])))
    coarse = _filter_coarsely(thumbnails) if side >= 2 * MIN_SIDE else None

    def verify(pairs: _Pairs) -> list[tuple[int, int, float]]:
        if same is not None:
            pairs = pairs[same[pairs[:, 0]] != same[pairs[:, 1]]]
        if coarse is not None:
            correlation = _correlate_coarsely(coarse[pairs[:, 0]], coarse[pairs[:, 1]])
            pairs = pairs[correlation >= _MIN_COARSE_CORRELATION]
        return _verify(pairs, thumbnails, reference, sample)

    found = [each for part in map_threads(verify, _find_candidates(thumbnails)) for each in part]
    found.sort(key=lambda pair: (-pair[2], pair))
    return [NearDuplicate(first, second, round(correlation, 4)) for first, second, correlation in found]


def _verify(
    pairs: _Pairs,
    thumbnails: UInt8[np.ndarray, "n side side"],
    reference: Float32[np.ndarray, "m values"],
    sample: Int64[np.ndarray, " m"],
) -> list[tuple[int, int, float]]:
    """Return the near-duplicates among candidates, with their correlation."""
    bands = [_filter_band(thumbnails[rows]) for rows in pairs.T]
    correlation = _correlate(*bands)
    alike = np.flatnonzero(correlation >= _MIN_CORRELATION)
    pairs, correlation = pairs[alike], correlation[alike]
    others = [
        _correlate_with_sample(band[alike], rows, partners, reference, sample)
        for band, rows, partners in zip(bands, pairs.T, pairs.T[::-1], strict=True)
    ]
    sure = 1 - correlation <= _MAX_RATIO * (1 - np.maximum(*others))
    pairs, correlation = pairs[sure], correlation[sure]
    return list(zip(pairs[:, 0].tolist(), pairs[:, 1].tolist(), correlation.tolist(), strict=True))


def _find_candidates(thumbnails: UInt8[np.ndarray, "n side side"]) -> Iterator[_Pairs]:
    """Yield pairs of rows whose spectra are alike, the smaller row first, some thousand pairs at a time."""
    spectra = np.concatenate(
        map_threads(_compute_spectra, [thumbnails[i : i + _CHUNK] for i in range(0, len(thumbnails), _CHUNK)])
    )
    # Standardised over the data set: what all its images share does not make two of them alike.
    spectra -= spectra.mean(axis=0)
    spectra = _unit(spectra / np.maximum(spectra.std(axis=0), 1e-6), centre=False)
    for start in range(0, len(spectra), _CHUNK):
        similar = spectra[start : start + _CHUNK] @ spectra[start:].T > _MIN_SPECTRAL
        pairs = np.stack(np.divmod(np.flatnonzero(similar), similar.shape[1]), axis=1)
        pairs = pairs[pairs[:, 1] > pairs[:, 0]] + start
        yield from (pairs[part : part + _PAIRS] for part in range(0, len(pairs), _PAIRS))


def _compute_spectra(thumbnails: UInt8[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n frequencies"]:
    """Return square roots of the magnitudes of the low spatial frequencies, of images of equal mean and contrast."""
    values = thumbnails.astype(np.float32)
    values -= values.mean(axis=(1, 2), keepdims=True)
    values /= values.std(axis=(1, 2), keepdims=True) + 1e-6
    side = values.shape[-1]
    # Of a real image, half of the frequencies say all. Matrix products, since only few frequencies are wanted.
    angles = -2j * np.pi * np.arange(side) / side
    across = np.exp(np.outer(angles, np.arange(_MAX_FREQUENCY + 1))).astype(np.complex64)
    down = np.exp(np.outer(np.arange(-_MAX_FREQUENCY, _MAX_FREQUENCY + 1), angles)).astype(np.complex64)
    return np.sqrt(np.abs(down @ (values @ across))).reshape(len(values), -1)


def _filter_coarsely(thumbnails: UInt8[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n half half"]:
    """Return band-passed thumbnails of half the side."""
    half = thumbnails.shape[-1] // 2

    def filter_part(start: int) -> Float32[np.ndarray, "n half half"]:
        part = thumbnails[start : start + _CHUNK, : 2 * half, : 2 * half].reshape(-1, half, 2, half, 2)
        return _filter_band(part.sum(axis=(2, 4), dtype=np.uint16) / np.float32(4))

    return np.concatenate(map_threads(filter_part, range(0, len(thumbnails), _CHUNK)))


def _filter_band(thumbnails: np.ndarray) -> Float32[np.ndarray, "n side side"]:
    """Return the thumbnails between two Gaussian filters, as matrix products from both sides."""
    values = thumbnails.astype(np.float32)
    fine, coarse = (_build_blur(values.shape[-1], sigma) for sigma in (_FINE_PX, _COARSE_SHARE * values.shape[-1]))
    return fine @ values @ fine.T - coarse @ values @ coarse.T


@cache
def _build_blur(side: int, sigma: float) -> Float32[np.ndarray, "side side"]:
    """Return the matrix of a Gaussian filter of one dimension, with reflecting borders."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    blur = np.zeros((side, side))
    for row in range(side):
        place = (row + offsets) % (2 * side)  # a, b, c are continued by c, b, a
        np.add.at(blur[row], np.minimum(place, 2 * side - 1 - place), weights)
    return blur.astype(np.float32)


def _crop(values: Float32[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n inner inner"]:
    return values[:, 1:-1, 1:-1]


def _unit(values: Float32[np.ndarray, "n ..."], *, centre: bool = True) -> Float32[np.ndarray, "n values"]:
    """Return each item as a vector of length 1, so that products of two are correlations."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    if centre:
        flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-9)


def _correlate(
    first: Float32[np.ndarray, "n side side"], second: Float32[np.ndarray, "n side side"]
) -> Float32[np.ndarray, " n"]:
    """Return the highest correlation of each pair over shifts of up to a thumbnail's pixel in both directions.

    Tried in steps of half a pixel; between them, the peak is that of a parabola through its neighbours.
    """
    count = len(first)
    target = _unit_inner(first)
    half_x = (second[:, :, 1:] + second[:, :, :-1]) / 2
    half_y = (second[:, 1:] + second[:, :-1]) / 2
    half_xy = (half_x[:, 1:] + half_x[:, :-1]) / 2
    grid = np.empty((count, 5, 5), dtype=np.float32)
    for y in range(5):
        for x in range(5):
            source = {(0, 0): second, (0, 1): half_x, (1, 0): half_y, (1, 1): half_xy}[y % 2, x % 2]
            grid[:, y, x] = _correlate_moved(target, source, y // 2, x // 2)
    row = np.arange(count)
    y, x = np.divmod(grid.reshape(count, 25).argmax(axis=1), 5)
    gain = _compute_gain(grid[row, :, x], y) + _compute_gain(grid[row, y, :], x)
    return np.minimum(grid[row, y, x] + gain, 1)


def _correlate_coarsely(
    first: Float32[np.ndarray, "n side side"], second: Float32[np.ndarray, "n side side"]
) -> Float32[np.ndarray, " n"]:
    """Return the highest correlation of each pair over shifts by whole pixels of the thumbnail."""
    target = _unit_inner(first)
    return np.max([_correlate_moved(target, second, y, x) for y in range(3) for x in range(3)], axis=0)


def _unit_inner(values: Float32[np.ndarray, "n side side"]) -> Float32[np.ndarray, "n inner inner"]:
    inner = _crop(values)
    return _unit(inner).reshape(inner.shape)


def _correlate_moved(
    target: Float32[np.ndarray, "n inner inner"], source: Float32[np.ndarray, "n height width"], y: int, x: int
) -> Float32[np.ndarray, " n"]:
    """Return the correlation of ``target``, of mean 0 and length 1, with the window of ``source`` from (y, x) on."""
    inner = target.shape[-1]
    moved = source[:, y : y + inner, x : x + inner]
    total = np.einsum("nij->n", moved)
    squares = np.einsum("nij,nij->n", moved, moved)
    length = np.sqrt(np.maximum(squares - total**2 / inner**2, 0))
    return np.einsum("nij,nij->n", target, moved) / (length + 1e-6)


def _compute_gain(line: Float32[np.ndarray, "n 5"], peak: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Return by how much a parabola through the highest of five values and its neighbours rises above it."""
    row = np.arange(len(line))
    before, here, after = (line[row, np.clip(peak + offset, 0, 4)] for offset in (-1, 0, 1))
    curvature = 2 * here - before - after
    has_gain = (peak > 0) & (peak < 4) & (curvature > 1e-9)
    return np.where(has_gain, (after - before) ** 2 / (8 * np.where(has_gain, curvature, 1)), 0).astype(np.float32)


def _correlate_with_sample(
    bands: Float32[np.ndarray, "n side side"],
    rows: Int64[np.ndarray, " n"],
    partners: Int64[np.ndarray, " n"],
    reference: Float32[np.ndarray, "m values"],
    sample: Int64[np.ndarray, " m"],
) -> Float32[np.ndarray, " n"]:
    """Return the third highest correlation of each image with the sampled ones, itself and its partner left out.

    The third, because a picture may be in the data a few times.
    """
    if len(sample) < 5:
        return np.zeros(len(bands), dtype=np.float32)
    correlation = _unit(_crop(bands)) @ reference.T
    correlation[(sample == rows[:, None]) | (sample == partners[:, None])] = -1
    return np.partition(correlation, -3, axis=1)[:, -3]
