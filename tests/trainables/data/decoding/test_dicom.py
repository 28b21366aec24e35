"""DICOM, on the real files that pydicom ships: against pydicom's own conversion, and refused with a reason."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from trainables.data.decoding import dicom
from trainables.data.decoding.files import decode_file
from trainables.data.decoding.pixels import PixelSpec
from trainables.data.load import load_dataset
from trainables.data_config import CsvData, ImageFolderData
from trainables.errors import ConfigError, DataError


def _file(name: str) -> Path:
    return Path(get_testdata_file(name, download=False))


def _decode(path: Path, **settings: object) -> tuple[np.ndarray, str | None]:
    """Decode at the file's own size, as far as it is square."""
    size = int(pydicom.dcmread(path, stop_before_pixels=True).Rows)
    return decode_file(path, PixelSpec(size, 1, "crop", 50.0, **settings))


def _save(header: pydicom.Dataset, path: Path, **values: object) -> Path:
    for name, value in values.items():
        setattr(header, name, value)
    header.save_as(path)
    return path


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm", "MR_small_bigendian.dcm"])
def test_the_window_in_the_file_is_pydicoms(name):
    header = pydicom.dcmread(_file(name))
    values = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header)
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    bits = header.BitsStored
    stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if header.PixelRepresentation else (0, 2**bits - 1)
    low, high = (slope * value + intercept for value in stored)  # the range that pydicom maps the window to
    pixels, how = _decode(_file(name))
    assert how == "the window in the file"
    assert np.abs(pixels[0] - (values - low) / (high - low) * 255).max() <= 0.51


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_every_function_of_a_window(tmp_path, function):
    header = pydicom.dcmread(_file("MR_small.dcm"))
    path = _save(header, tmp_path / "a.dcm", VOILUTFunction=function, WindowCenter=[700, 3], WindowWidth=[400, 1])
    values = apply_voi_lut(header.pixel_array, header)
    assert np.abs(_decode(path)[0][0] - (values + 2**15) / (2**16 - 1) * 255).max() <= 0.51


def test_slope_and_intercept_come_before_the_studys_window():
    pixels, how = _decode(_file("CT_small.dcm"), window=(40.0, 400.0))
    header = pydicom.dcmread(_file("CT_small.dcm"))
    hounsfield = header.pixel_array * header.RescaleSlope + header.RescaleIntercept
    assert np.abs(pixels[0] - np.clip((hounsfield + 160) / 400, 0, 1) * 255).max() <= 0.51
    assert how == "data.window: centre 40, width 400"


def test_the_studys_window_goes_before_the_files():
    assert _decode(_file("MR_small.dcm"), window=(40.0, 400.0))[1] == "data.window: centre 40, width 400"


def test_without_a_window_it_is_refused():
    with pytest.raises(DataError, match=r"16 bits per pixel and no window, expected one: set data.window .*data.scale"):
        _decode(_file("CT_small.dcm"))


def test_padding_is_no_part_of_the_range(tmp_path):
    header = pydicom.dcmread(_file("CT_small.dcm"))
    values = header.pixel_array.copy()
    values[:20] = header.PixelPaddingValue
    header.set_pixel_data(values, "MONOCHROME2", 16)
    pixels, _ = _decode(_save(header, tmp_path / "a.dcm"), scale="minmax")
    inside = values[20:].astype(float)
    expected = (inside - inside.min()) / (inside.max() - inside.min()) * 255
    assert np.abs(pixels[0, 20:] - expected).max() <= 0.51
    assert pixels[0, :20].max() == 0


def test_monochrome1_is_inverted(tmp_path):
    header = pydicom.dcmread(_file("MR_small.dcm"))
    plain, _ = _decode(_file("MR_small.dcm"))
    inverted, _ = _decode(_save(header, tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - plain)


def test_a_table_of_values_of_interest(tmp_path):
    header = pydicom.dcmread(_file("MR_small.dcm"))
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.LUTData = list(range(4095, -1, -1))
    header.VOILUTSequence = pydicom.Sequence([table])
    header["VOILUTSequence"][0]["LUTDescriptor"].VR = "US"
    header["VOILUTSequence"][0]["LUTData"].VR = "US"
    pixels, how = _decode(_save(header, tmp_path / "a.dcm"))
    assert how == "the table of values of interest in the file"
    assert np.abs(pixels[0] - (4095 - np.clip(header.pixel_array, 0, 4095)) / 4095 * 255).max() <= 0.51


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "examples_jpeg2k.dcm", "examples_palette.dcm", "SC_rgb_jpeg_gdcm.dcm"]
)
def test_colours(name):
    pixels, how = decode_file(_file(name), PixelSpec(64, 3, "squash", 50.0))
    assert how == "their own 8 bits"
    assert pixels.std() > 10


def test_one_bit_is_black_and_white():
    pixels, how = _decode(_file("liver_1frame.dcm"))
    assert set(np.unique(pixels)) == {0, 255}
    assert how == "their own 1 bit"


def test_frames():
    with pytest.raises(DataError, match=r"holds 30 frames, expected one image: set data\.frame .* 1 to 30 or middle"):
        _decode(_file("examples_ybr_color.dcm"))
    first, fifteenth, middle = (_decode(_file("examples_ybr_color.dcm"), frame=f)[0] for f in (1, 15, "middle"))
    assert np.array_equal(middle, fifteenth)
    assert not np.array_equal(first, fifteenth)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reportsi.dcm", "DICOM file without an image"),
        ("rtplan.dcm", "DICOM file without an image"),
        ("ExplVR_LitEndNoMeta.dcm", "cannot be read as DICOM .InvalidDicomError"),
        ("MR_truncated.dcm", "cannot be decoded from Explicit VR Little Endian"),
        ("badVR.dcm", "cannot be read as DICOM"),
        ("SC_rgb_rle_16bit.dcm", "colours of 16 bits, expected 8"),
        ("rtdose.dcm", "holds 15 frames"),
        ("rtdose_1frame.dcm", "32 bits per pixel and no window"),
    ],
)
def test_refused(name, message):
    with pytest.raises(DataError, match=message):
        decode_file(_file(name), PixelSpec(64, 1, "crop", 50.0))


def test_too_large_is_said_from_the_header(tmp_path):
    header = pydicom.dcmread(_file("MR_small.dcm"))
    with pytest.raises(DataError, match="expected at most 50 megapixels"):
        decode_file(_save(header, tmp_path / "a.dcm", Rows=60_000, Columns=60_000), PixelSpec(64, 1, "crop", 50.0))


def test_without_pydicom_the_extra_is_named(monkeypatch):
    dicom.import_pydicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    try:
        with pytest.raises(ConfigError, match=r"pip install 'robustsweep\[medical\]'"):
            decode_file(_file("MR_small.dcm"), PixelSpec(64, 1, "crop", 50.0))
    finally:
        dicom.import_pydicom.cache_clear()


# ------------------------------------------------------------------ folders of DICOM files


def _write_study(root: Path, *, patients: int = 8, suffix: str = ".dcm", named: bool = True) -> None:
    """Two images of each of ``patients``, half of them sick, none like another."""
    rng = np.random.default_rng(0)
    for number in range(patients):
        for image in range(2):
            header = pydicom.dcmread(_file("MR_small.dcm"))
            values = (header.pixel_array + rng.integers(0, 300, (64, 64)) + 40 * number).astype(np.int16)
            header.PixelData = values.tobytes()
            header.PatientID = f"HIDDEN-{number:02d}" if named else ""
            header.PatientName = "Hidden^Name"
            folder = root / ("sick" if number % 2 else "healthy")
            folder.mkdir(parents=True, exist_ok=True)
            header.save_as(folder / f"{number * 2 + image:04d}{suffix}")


@pytest.mark.parametrize("suffix", [".dcm", "", ".87233"])
def test_images_of_a_patient_stay_together_and_the_patient_is_not_written(tmp_path, suffix):
    _write_study(tmp_path / "d", suffix=suffix)
    (tmp_path / "d" / "DICOMDIR").write_bytes(b"left by a picture archive")
    config = ImageFolderData(path=tmp_path / "d", image_size=32, channels=1, val_fraction=0.25, test_fraction=0.25)
    data = load_dataset(config, cache_dir=tmp_path / "cache")
    sets = data.splits.values()
    assert sum(len(images) for images in sets) == 16
    groups = [set(images.groups) for images in sets]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 8
    assert data.conversions == {"the window in the file": 16}
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"patient of healthy/0000" in written
    assert b"HIDDEN" not in written
    assert b"Hidden" not in written


def test_a_patient_in_two_splits_is_an_error(tmp_path):
    _write_study(tmp_path / "d" / "train")
    for split in ("val", "test"):
        shutil.copytree(tmp_path / "d" / "train", tmp_path / "d" / split)
        for path in (tmp_path / "d" / split).rglob("*.dcm"):  # other pixels of the same patients
            header = pydicom.dcmread(path)
            header.PixelData = (header.pixel_array + len(split)).astype(np.int16).tobytes()
            header.save_as(path)
    with pytest.raises(DataError, match=r"8 group.s. straddle the splits(?s:.)*patient of .*\.dcm") as error:
        load_dataset(ImageFolderData(path=tmp_path / "d", image_size=32), cache_dir=tmp_path / "cache")
    assert "HIDDEN" not in str(error.value)
    config = ImageFolderData(path=tmp_path / "d", image_size=32, group_pattern=".+")
    assert len(load_dataset(config, cache_dir=tmp_path / "cache").splits["test"]) == 16


def test_anonymous_files_are_their_own_groups_and_a_mixture_is_an_error(tmp_path):
    _write_study(tmp_path / "d", named=False)
    config = ImageFolderData(path=tmp_path / "d", image_size=32, val_fraction=0.25, test_fraction=0.25)
    data = load_dataset(config, cache_dir=tmp_path / "cache")
    assert sum(len(set(images.groups)) for images in data.splits.values()) == 16
    path = tmp_path / "d" / "sick" / "0003.dcm"
    header = pydicom.dcmread(path)
    _save(header, path, PatientID="HIDDEN")
    with pytest.raises(DataError, match="15 of 16 DICOM files have no Patient ID") as error:
        load_dataset(config, cache_dir=tmp_path / "cache")
    assert "HIDDEN" not in str(error.value)


def test_spellings_of_one_patient_are_named_by_their_files(tmp_path):
    _write_study(tmp_path / "d")
    path = tmp_path / "d" / "sick" / "0003.dcm"
    _save(pydicom.dcmread(path), path, PatientID="hidden-1")
    config = ImageFolderData(path=tmp_path / "d", image_size=32, val_fraction=0.25, test_fraction=0.25)
    with pytest.raises(DataError, match=r"1 Patient ID.*(?s:.)*sick/0002.dcm and sick/0003.dcm") as error:
        load_dataset(config, cache_dir=tmp_path / "cache")
    assert "idden" not in str(error.value).casefold().replace("hidden/", "")
    load_dataset(config.model_copy(update={"similar_text": "distinct"}), cache_dir=tmp_path / "cache")


def test_a_manifest_of_dicom_files_groups_by_patient(tmp_path):
    _write_study(tmp_path / "d")
    names = sorted(path.relative_to(tmp_path / "d").as_posix() for path in (tmp_path / "d").rglob("*.dcm"))
    rows = [f"{name},{name.split('/')[0]}" for name in names]
    (tmp_path / "d" / "m.csv").write_text("\n".join(["file_name,label", *rows]))
    config = CsvData(path=tmp_path / "d" / "m.csv", image_size=32, val_fraction=0.25, test_fraction=0.25)
    data = load_dataset(config, cache_dir=tmp_path / "cache")
    assert sum(len(set(images.groups)) for images in data.splits.values()) == 8


def test_a_window_changes_the_fingerprint_and_none_keeps_it(tmp_path):
    _write_study(tmp_path / "d")
    config = ImageFolderData(path=tmp_path / "d", image_size=32, val_fraction=0.25, test_fraction=0.25)
    found = {
        load_dataset(config.model_copy(update=update), cache_dir=tmp_path / "cache").fingerprint
        for update in ({}, {"window": (600.0, 900.0)}, {"scale": "minmax"}, {"scale": "percentile"}, {"frame": 1})
    }
    assert len(found) == 5
