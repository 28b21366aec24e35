"""Every kind of image file: accepted with the right pixels, or refused with a reason."""

import contextlib
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.image_files import write_png_header
from trainables.data.decoding.files import FilePixels, decode_file
from trainables.data.decoding.pixels import PixelSpec, fit_arrays, fit_image
from trainables.errors import DataError

SPEC = PixelSpec(image_size=8, channels=3, resize="crop", max_megapixels=1.0)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_png_is_kept_bit_for_bit(tmp_path):
    path = _save(Image.fromarray(PIXELS), tmp_path / "a.png")
    assert np.array_equal(decode_file(path, SPEC)[0], PIXELS.transpose(2, 0, 1))


def test_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, mode=None)
    palette = image.convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    decoded = decode_file(_save(palette, tmp_path / "p.png"), SPEC)[0]
    assert decoded[:, 0, :4].T.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]


def test_palette_with_transparency_is_on_black(tmp_path):
    palette = Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).convert("P")
    palette.putpalette([255, 255, 255] * 4)
    assert decode_file(_save(palette, tmp_path / "t.png", transparency=0), SPEC)[0].max() == 0


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red, green, blue = decode_file(_save(image, tmp_path / "c.tif"), SPEC)[0][:, 4, 4]
    assert red > 200
    assert max(green, blue) < 60


def test_alpha_is_composited_on_black(tmp_path):
    rgba = np.full((8, 8, 4), 200, dtype=np.uint8)
    rgba[..., 3] = 0
    assert decode_file(_save(Image.fromarray(rgba), tmp_path / "a.png"), SPEC)[0].max() == 0


def test_one_bit_is_black_and_white(tmp_path):
    bits = Image.fromarray(((np.indices((8, 8)).sum(0) % 2) * 255).astype(np.uint8)).convert("1")
    assert set(np.unique(decode_file(_save(bits, tmp_path / "b.png"), SPEC)[0])) == {0, 255}


def test_grey_is_repeated_and_rgb_to_grey_is_luma(tmp_path):
    grey = Image.fromarray(PIXELS[..., 0])
    assert np.array_equal(decode_file(_save(grey, tmp_path / "g.png"), SPEC)[0], np.repeat(PIXELS[None, ..., 0], 3, 0))
    one = PixelSpec(8, 1, "crop", 1.0)
    assert np.array_equal(fit_image(Image.fromarray(PIXELS), one)[0], np.asarray(Image.fromarray(PIXELS).convert("L")))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.repeat(np.array([[0], [255]], dtype=np.uint8), 4, 0).repeat(8, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    decoded = decode_file(_save(image, tmp_path / "e.png", exif=exif), SPEC)[0]
    assert decoded[0, 0, 0] == 255
    assert decoded[0, -1, 0] == 0


@pytest.mark.parametrize(("resize", "corner"), [("crop", 255), ("squash", 255), ("pad", 0)])
def test_resize(resize, corner):
    image = Image.fromarray(np.full((8, 32, 3), 255, dtype=np.uint8))
    decoded = fit_image(image, PixelSpec(8, 3, resize, 1.0))
    assert decoded.shape == (3, 8, 8)
    assert decoded[0, 0, 0] == corner


def test_crop_keeps_the_middle():
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    assert fit_image(Image.fromarray(pixels), PixelSpec(8, 1, "crop", 1.0)).min() == 255


def _truncated(path: Path) -> Path:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = _save(noise, path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _stack(path: Path) -> Path:
    frames = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def _rgb16(path: Path) -> Path:
    """PIL opens a 16-bit RGB PNG as 8-bit RGB and drops the low byte without a word."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x01\x02" * 24 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    idat = chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + idat + chunk(b"IEND", b""))
    return path


BAD = {
    "empty": (lambda path: _bytes(path.with_suffix(".png"), b""), "empty"),
    "text": (lambda path: _bytes(path.with_suffix(".png"), b"not an image"), "cannot be read"),
    "truncated_png": (lambda path: _truncated(path.with_suffix(".png")), "cannot be read"),
    "truncated_jpeg": (lambda path: _truncated(path.with_suffix(".jpg")), "cannot be read"),
    "missing": (lambda path: path.with_suffix(".png"), "does not exist"),
    "grey16": (
        lambda path: _save(Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)), path.with_suffix(".png")),
        "more than 8 bits",
    ),
    "rgb16": (lambda path: _rgb16(path.with_suffix(".png")), "more than 8 bits"),
    "float": (
        lambda path: _save(Image.fromarray(np.ones((8, 8), dtype=np.float32)), path.with_suffix(".tif")),
        "more than 8 bits",
    ),
    "stack": (lambda path: _stack(path.with_suffix(".tif")), "3 frames"),
    "huge": (lambda path: _save(Image.new("L", (1001, 1001)), path.with_suffix(".png")), "megapixels"),
    "bomb": (lambda path: write_png_header(path.with_suffix(".png"), 60_000, 60_000), "megapixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_refused_with_its_reason(kind, tmp_path):
    make, reason = BAD[kind]
    path = make(tmp_path / kind)
    images = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    _, problems = FilePixels([path], ["digest"], SPEC).decode(np.array([0]), images, None)
    assert reason in problems[0]


def test_pil_limit_is_restored_and_does_not_warn(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    path = write_png_header(tmp_path / "bomb.png", 12_000, 12_000)  # PIL alone would warn here
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FilePixels([path], [""], SPEC).decode(np.array([0]), np.zeros((1, 3, 8, 8), np.uint8), None)
    assert before == Image.MAX_IMAGE_PIXELS


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    noise = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "tif", "gif", "webp"):
        good = bytearray(_save(noise, tmp_path / f"x.{suffix}").read_bytes())
        for _ in range(30):
            data = bytearray(good)
            for position in RNG.integers(0, min(len(data), 120), 4):
                data[position] = RNG.integers(256)
            path = _bytes(tmp_path / f"y.{suffix}", bytes(data))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(DataError):
                    assert decode_file(path, SPEC)[0].shape == (3, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 3)])
def test_fast_array_path_equals_pil(channels, shape):
    arrays = RNG.integers(0, 256, shape, dtype=np.uint8)
    images = np.zeros((5, channels, 8, 8), dtype=np.uint8)
    spec = PixelSpec(8, channels, "crop", 1.0)
    digests = fit_arrays(arrays, spec, images)
    assert np.array_equal(images, np.stack([fit_image(Image.fromarray(array), spec) for array in arrays]))
    assert len(set(digests)) == 5
