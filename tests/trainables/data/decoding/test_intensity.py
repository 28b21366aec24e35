"""Images of more than 8 bits: refused without a rule, converted as stated with one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.decoding.files import decode_file
from trainables.data.decoding.pixels import PixelSpec
from trainables.errors import DataError

VALUES = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000


def _spec(**settings: object) -> PixelSpec:
    return PixelSpec(8, 1, "crop", 1.0, **settings)


def _save(values: np.ndarray, path: Path) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_deep_images_are_refused_without_a_window(tmp_path, name):
    with pytest.raises(DataError, match=r"more than 8 bits per channel .*data.window .*data.scale"):
        decode_file(_save(VALUES, tmp_path / name), _spec())


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_a_window_maps_its_range_to_black_and_white(tmp_path, name):
    pixels, how = decode_file(_save(VALUES, tmp_path / name), _spec(window=(30_000.0, 20_000.0)))
    expected = np.clip((VALUES.astype(float) - 20_000) / 20_000, 0, 1) * 255
    assert np.abs(pixels[0] - expected).max() <= 0.5
    assert how == "data.window: centre 30000, width 20000"


def test_minmax_spans_each_image(tmp_path):
    pixels, _ = decode_file(_save(VALUES // 2 + 7, tmp_path / "a.png"), _spec(scale="minmax"))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_percentile_leaves_outliers_out(tmp_path):
    values = np.full((200, 200), 1000, dtype=np.uint16)
    values[:, 100:] = 2000
    values[0, 0], values[0, 199] = 0, 65_535
    pixels, how = decode_file(_save(values, tmp_path / "a.png"), PixelSpec(200, 1, "crop", 1.0, scale="percentile"))
    assert (pixels[0, 100, 0], pixels[0, 100, 199]) == (0, 255)
    assert how == "data.scale: each from its 0.5th to its 99.5th percentile"


@pytest.mark.parametrize("scale", ["minmax", "percentile"])
def test_an_image_of_one_value_is_black(tmp_path, scale):
    values = np.full((8, 8), 1000, dtype=np.uint16)
    pixels, _ = decode_file(_save(values, tmp_path / "a.png"), _spec(scale=scale))
    assert pixels.max() == 0


def test_float_tiff(tmp_path):
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels, _ = decode_file(_save(values, tmp_path / "a.tif"), _spec(window=(0.0, 2.0)))
    assert (pixels.min(), pixels.max()) == (0, 255)
    values[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        decode_file(_save(values, tmp_path / "b.tif"), _spec(window=(0.0, 2.0)))


def test_images_of_8_bits_stay_as_they_are(tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    pixels, how = decode_file(_save(values, tmp_path / "a.png"), _spec(window=(10.0, 4.0)))
    assert np.array_equal(pixels[0], values)
    assert how is None


def test_orientation_is_applied_to_deep_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    Image.fromarray(VALUES).save(tmp_path / "a.png", exif=exif)
    pixels, _ = decode_file(tmp_path / "a.png", _spec(scale="minmax"))
    assert (pixels[0, 0, 0], pixels[0, -1, -1]) == (255, 0)


def test_frames_of_a_tiff(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (10, 20, 30)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"holds 3 frames, expected one image: set data.frame"):
        decode_file(tmp_path / "a.tif", _spec())
    for frame, value in ((1, 10), (2, 20), (3, 30), ("middle", 20)):
        assert decode_file(tmp_path / "a.tif", _spec(frame=frame))[0].max() == value
    with pytest.raises(DataError, match=r"holds 3 .*expected at least 4 for data.frame: 4"):
        decode_file(tmp_path / "a.tif", _spec(frame=4))
