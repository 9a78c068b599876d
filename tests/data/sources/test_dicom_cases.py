"""DICOM files as people have met them: tags that are empty, half there or outside of the standard,
values that stand for none, and files that are no pictures. Pixels by the formulas of the
standard."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG4HP41,
    ComputedRadiographyImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MRImageStorage,
    ParametricMapStorage,
    RLELossless,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from data.dataset import open_dataset
from data.file_cache import FileCache
from data.settings import DataSettings
from data.sources.dicom import Dicom
from runtime.content import sha256_of
from runtime.errors import UserError
from tests.helpers.dicom_files import linear, write

SHAPE = H, W = 20, 30


def hounsfield(seed: int = 0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


@pytest.fixture
def opened(tmp_path):
    def opened(folder: Path = tmp_path, **settings) -> Dicom:
        shares = {"validation": 0, "test": 0}
        return Dicom(FileCache(tmp_path / ".memory"), str(folder), **(shares | settings))

    return opened


@pytest.fixture
def gray(opened):
    return lambda item=0, **settings: np.asarray(opened(**settings).read_image(item))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-3)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def edit(path: Path, change, **how) -> Path:
    """Writes a file again as change leaves it, without a look at the standard."""
    found = pydicom.dcmread(path)
    change(found)
    how = how or {"implicit_vr": False, "little_endian": True}
    found.save_as(path, enforce_file_format=False, **how)
    return path


WINDOW = {"WindowCenter": 40, "WindowWidth": 400}


# How a file begins, and how it is encoded


@pytest.mark.parametrize("implicit, little", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("name", ["x.dcm", "IM0001", "scan.jpg"])
def test_a_file_without_preamble_and_meta_is_read(tmp_path, gray, implicit, little, name):
    stored = hounsfield()
    syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    path = write(tmp_path / "x.dcm", stored, syntax=syntax, **WINDOW)
    found = pydicom.dcmread(path)
    del found.file_meta, found.preamble
    path.unlink()
    found.save_as(
        tmp_path / name, implicit_vr=implicit, little_endian=little, enforce_file_format=False
    )
    same(gray(), linear(stored, 40, 400))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_that_does_not_say_how_it_is_encoded_shows_it(tmp_path, gray, syntax):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored, syntax=syntax, **WINDOW)
    little = syntax == ExplicitVRLittleEndian
    edit(
        path,
        lambda found: found.file_meta.__delattr__("TransferSyntaxUID"),
        implicit_vr=False,
        little_endian=little,
    )
    same(gray(), linear(stored, 40, 400))


def test_compressed_pixels_need_a_syntax(tmp_path, gray):
    stored = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    path = write(tmp_path / "x.dcm", stored)
    Image.fromarray(stored).save(tmp_path / "jpeg", "JPEG", quality=95)

    def compress(found):
        found.PixelData = encapsulate([(tmp_path / "jpeg").read_bytes()])
        found["PixelData"].is_undefined_length = True
        del found.file_meta.TransferSyntaxUID

    edit(path, compress)
    with pytest.raises(UserError, match="compressed, and it does not say how"):
        gray()
    edit(path, lambda found: setattr(found.file_meta, "TransferSyntaxUID", JPEGBaseline8Bit))
    assert np.abs(gray() - stored).mean() < 2


def test_a_video_is_named(tmp_path, gray):
    path = write(tmp_path / "x.dcm", hounsfield(), **WINDOW)

    def film(found):
        found.PixelData = encapsulate([b"\0\0\0\1 never looked at"])
        found["PixelData"].is_undefined_length = True
        found.file_meta.TransferSyntaxUID = MPEG4HP41

    edit(path, film)
    with pytest.raises(UserError, match="MPEG-4.*save its frames as images"):
        gray()


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
def test_a_syntax_of_another_encoding_than_the_files_is_passed_over(tmp_path, gray):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored, syntax=ImplicitVRLittleEndian, **WINDOW)
    data = path.read_bytes()
    assert data.count(b"1.2.840.10008.1.2\0") == 1
    path.write_bytes(data.replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.9\0"))
    same(gray(), linear(stored, 40, 400))


# Tags that are empty, half there, or outside of the standard


@pytest.mark.parametrize(
    "slope, intercept, expected",
    [
        (None, None, (1, 0)),
        ("", "", (1, 0)),
        (None, -1024, (1, -1024)),
        (2, None, (2, 0)),
        (2, "", (2, 0)),
        ("0", -1024, (1, -1024)),
        ("1,5", "0", (1.5, 0)),
        ("NaN", "abc", (1, 0)),
    ],
)
def test_rescale(tmp_path, gray, slope, intercept, expected):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored, **WINDOW)

    def rescale(found):
        for tag, value in ((0x00281053, slope), (0x00281052, intercept)):
            found.add_new(tag, "LO" if isinstance(value, str) else "DS", value)

    edit(path, rescale)
    same(gray(), linear(stored * float(expected[0]) + expected[1], 40, 400))


@pytest.mark.parametrize(
    "center, width, expected",
    [
        (["", 600], ["", 1500], (600, 1500)),
        ([40, 600], [0, 1500], (600, 1500)),
        ([40, 600], [-1, 1500], (600, 1500)),
        ([40, 600], [400], (40, 400)),
        (["40", "x"], ["400", "y"], (40, 400)),
    ],
)
def test_the_first_window_that_is_one_counts(tmp_path, gray, center, width, expected):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored)

    def window(found):
        found.add_new(0x00281050, "LO", list(map(str, center)))
        found.add_new(0x00281051, "LO", list(map(str, width)))
        found.VOILUTFunction = "linear "

    edit(path, window)
    same(gray(), linear(stored, *expected))


@pytest.mark.parametrize("width", [0, -400, "NaN", "", "wide", None])
@pytest.mark.parametrize("center", [40, None])
def test_a_window_that_is_none_leaves_a_measured_range(tmp_path, gray, caplog, center, width):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored)

    def window(found):
        found.add_new(0x00281050, "LO" if isinstance(center, str) else "DS", center)
        found.add_new(0x00281051, "LO" if isinstance(width, str) else "DS", width)

    edit(path, window)
    same(gray(), stretched(stored, *np.quantile(stored, [0.001, 0.999])))
    said = [
        record.message for record in caplog.records if "WindowWidth is below 0" in record.message
    ]
    assert len(said) == (width == -400) and all("x.dcm" in text for text in said)


def empty_table() -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "SS", None)
    item.add_new(0x00283006, "OW", None)
    return item


@pytest.mark.parametrize("name", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("items", [[], [Dataset()], [empty_table()], [empty_table()] * 2])
def test_tables_that_are_empty_are_absent(tmp_path, gray, name, items):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored, **WINDOW)
    edit(path, lambda found: setattr(found, name, Sequence(items)))
    same(gray(), linear(stored, 40, 400))


@pytest.mark.parametrize(
    "missing",
    [
        ["PhotometricInterpretation"],
        ["SamplesPerPixel"],
        ["PixelRepresentation"],
        ["BitsStored", "HighBit"],
        ["BitsAllocated"],
        ["BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PhotometricInterpretation"],
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_tags_of_the_pixels_that_are_missing_or_empty(tmp_path, gray, missing, empty):
    stored = hounsfield().astype(np.uint16) % 4000
    path = write(tmp_path / "x.dcm", stored, WindowCenter=2000, WindowWidth=4000)

    def strip(found):
        for name in missing:
            if empty:
                found[name].value = None
            else:
                delattr(found, name)

    edit(path, strip)
    same(gray(), linear(stored, 2000, 4000))


@pytest.mark.parametrize(
    "missing", ["SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"]
)
def test_tags_of_colours_that_are_missing(tmp_path, opened, missing):
    stored = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    edit(write(tmp_path / "x.dcm", stored), lambda found: delattr(found, missing))
    assert np.array_equal(np.asarray(opened().read_image(0)), stored)


def test_a_photometric_interpretation_that_is_none_here(tmp_path, gray):
    edit(
        write(tmp_path / "x.dcm", hounsfield(), **WINDOW),
        lambda found: setattr(found, "PhotometricInterpretation", "HSV"),
    )
    with pytest.raises(UserError, match="PhotometricInterpretation=HSV.*save it as gray or RGB"):
        gray()


def test_small_letters_turn_black_and_white_too(tmp_path, gray):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored, **WINDOW)
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"MONOCHROME2 ", b"monochrome1 ").replace(b"MONOCHROME2", b"monochrome1")
    )
    same(gray(), 255 - linear(stored, 40, 400))


@pytest.mark.parametrize("bits", [17, 32, 0])
def test_more_bits_stored_than_there_are(tmp_path, gray, caplog, bits):
    stored = hounsfield()
    path = write(tmp_path / "x.dcm", stored, **WINDOW)
    edit(path, lambda found: setattr(found, "BitsStored", bits))
    same(gray(), linear(stored, 40, 400))
    assert ("BitsStored" in caplog.text) == (bits > 0)


@pytest.mark.parametrize("kind, bits", [(np.uint16, 12), (np.int16, 12), (np.uint16, 10)])
def test_values_in_the_high_bits(tmp_path, gray, kind, bits):
    low = -(2 ** (bits - 1)) if kind is np.int16 else 0
    values = np.random.default_rng(0).integers(low, low + 2**bits, SHAPE).astype(kind)
    shifted = (values.astype(np.int64) << (16 - bits)).astype(kind)
    write(tmp_path / "x.dcm", shifted, bits, HighBit=15, WindowCenter=300, WindowWidth=700)
    same(gray(), linear(values, 300, 700))


def test_a_high_bit_that_is_wrong_shifts_nothing(tmp_path, gray):
    values = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    write(tmp_path / "x.dcm", values, 12, HighBit=15, WindowCenter=300, WindowWidth=700)
    same(gray(), linear(values, 300, 700))


def test_overlays_in_unused_bits_are_cut_off(tmp_path, gray):
    values = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    overlay = values | np.uint16(0x8000)
    write(tmp_path / "x.dcm", overlay, 12, WindowCenter=300, WindowWidth=700)
    same(gray(), linear(values, 300, 700))


def test_overlays_that_are_declared_are_cut_off_wherever_they_lie(tmp_path, gray, caplog):
    values = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    path = write(tmp_path / "x.dcm", values | np.uint16(0x1000), 12, **WINDOW)
    edit(path, lambda found: found.add_new(0x60020102, "US", 12))
    same(gray(), linear(values, 40, 400))
    assert not caplog.records


@pytest.mark.parametrize(
    "kind, low, high, farthest",
    [
        (np.uint16, 0, 30000, 29999),
        (np.int16, -3024, 2000, -3024),
        (np.int16, -1024, 3072, 3071),
    ],
)
def test_values_beyond_bits_stored_are_taken_as_they_are(
    tmp_path, opened, caplog, kind, low, high, farthest
):
    values = np.linspace(low, high - 1, H * W).reshape(SHAPE).round().astype(kind)
    path, other = (tmp_path / name for name in ("x.dcm", "other.dcm"))
    write(path, values, 12, WindowCenter=1000, WindowWidth=9000)
    write(other, values.clip(0, 2000), 12, WindowCenter=1000, WindowWidth=9000)
    same(np.asarray(opened().read_image(1)), linear(values, 1000, 9000))
    [line] = [record.message for record in caplog.records]
    assert "1 of 2 files" in line and "x.dcm" in line
    assert f"BitsStored is 12, and values reach {farthest}" in line


@pytest.mark.parametrize("values", ["some", "all"])
def test_a_declared_padding_beyond_bits_stored_is_no_value_beyond(
    tmp_path, gray, opened, caplog, values
):
    """As 63536 beside 12 bits of a CT; the run keeps the name that it had."""
    stored = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    stored[: 2 if values == "some" else H] = 63536
    write(tmp_path / "x.dcm", stored, 12, PixelPaddingValue=63536, **WINDOW)
    same(gray(), np.where(stored == 63536, 0, linear(stored, 40, 400)))
    assert not caplog.records
    digest = FileCache(tmp_path / ".other").sha256([tmp_path / "x.dcm"])[0]
    then = sha256_of(["dicom", 2, 0, 0, None, False, None, [("x.dcm", digest)]])
    assert opened().fingerprint == sha256_of([then, ["padding"]])


def test_negative_values_without_the_bits_of_their_sign(tmp_path, gray, caplog):
    """Two's complement of 12 bits, as the standard has it: 0xFFF is -1."""
    values = np.random.default_rng(0).integers(-2048, 2048, SHAPE).astype(np.int16)
    write(tmp_path / "x.dcm", values & np.int16(0xFFF), 12, WindowCenter=0, WindowWidth=4096)
    same(gray(), linear(values, 0, 4096))
    assert not caplog.records


@pytest.mark.parametrize("frames", ["", "0", "1A", None])
def test_how_many_frames_the_length_says(tmp_path, opened, caplog, frames):
    stored = hounsfield(shape=(3, *SHAPE))
    path = write(tmp_path / "x.dcm", stored, NumberOfFrames=3, **WINDOW)

    def without(found):
        del found.NumberOfFrames
        if frames is not None:
            found.add_new(0x00280008, "LO", frames)

    edit(path, without)
    source = opened()
    assert len(source) == 3 and "there are pixels for 3" in caplog.text
    for frame in range(3):
        same(np.asarray(source.read_image(frame)), linear(stored[frame], 40, 400))


def test_frames_that_the_header_does_not_tell_of_are_told(tmp_path, opened, caplog):
    path = write(tmp_path / "x.dcm", hounsfield(shape=(3, *SHAPE)), NumberOfFrames=3, **WINDOW)
    edit(path, lambda found: setattr(found, "NumberOfFrames", 1))
    assert len(opened()) == 1
    assert "NumberOfFrames is 1, and there are pixels for 3" in caplog.text


def test_pixels_that_are_cut_short_leave_the_frames_before_them(tmp_path, opened):
    stored = hounsfield(shape=(3, *SHAPE))
    path = write(tmp_path / "x.dcm", stored, NumberOfFrames=3, **WINDOW)
    path.write_bytes(path.read_bytes()[:-10])
    source = opened()
    same(np.asarray(source.read_image(1)), linear(stored[1], 40, 400))
    with pytest.raises(UserError, match="cut short: 3590 bytes of pixels, and 3600 are needed"):
        source.read_image(2)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_number_of_frames_beyond_all_size(tmp_path, opened, caplog, compressed):
    """One image says so, and not two thousand million of them."""
    path = write(tmp_path / "x.dcm", hounsfield(shape=(2, *SHAPE)), NumberOfFrames=2, **WINDOW)
    if compressed:
        found = pydicom.dcmread(path)
        found.compress(RLELossless)
        found.save_as(path)
    edit(path, lambda found: setattr(found, "NumberOfFrames", 2**31 - 1))
    source = opened()
    same(np.asarray(source.read_image(1)), linear(hounsfield(shape=(2, *SHAPE))[1], 40, 400))
    assert len(source) < 1000
    with pytest.raises(UserError):
        source.read_image(2)
    if not compressed:
        assert len(source) == 3 and "there are pixels for 2" in caplog.text


def test_a_file_without_window_that_is_cut_short_is_listed(tmp_path, opened):
    path = write(tmp_path / "x.dcm", hounsfield(), PixelPaddingValue=-2000)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cut short: 1190 bytes"):
        opened().read_image(0)


@pytest.mark.parametrize("name", ["Rows", "Columns"])
def test_a_size_that_is_missing_is_named(tmp_path, opened, name):
    for k in range(2):
        write(tmp_path / f"{k}.dcm", hounsfield(k), **WINDOW)
    edit(tmp_path / "0.dcm", lambda found: delattr(found, name))
    source = opened()
    assert len(source) == 2
    with pytest.raises(UserError, match="no Rows or no Columns"):
        source.read_image(0)


def test_frames_of_ybr_422_that_are_not_subsampled(tmp_path, opened):
    stored = np.random.default_rng(0).integers(100, 156, (*SHAPE, 3)).astype(np.uint8)
    write(tmp_path / "x.dcm", stored, PhotometricInterpretation="YBR_FULL_422")
    y, _, cr = (stored[..., k].astype(float) for k in range(3))
    red = y + 1.402 * (cr - 128)
    assert np.abs(np.asarray(opened().read_image(0))[..., 0] - red).max() <= 1


TABLES = [  # first value as it is written, intercept, bits, the value that is meant
    (64512, -1024, 12, -1024),
    (64512, -1024, 16, -1024),
    (65036, -1024, 12, -500),
    (40000, -1024, 16, 40000),
    (40000, 0, 16, 40000),
    (1000, -1024, 12, 1000),
]


@pytest.mark.parametrize("first, intercept, bits, meant", TABLES)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_the_first_value_of_a_table_has_the_sign_of_values(
    tmp_path, gray, first, intercept, bits, meant, syntax
):
    stored = np.random.default_rng(0).integers(0, 2**bits, SHAPE).astype(np.uint16)
    table = (np.linspace(0, 1, 4096) ** 2 * 4095).astype(np.uint16)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, first, 12])
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    tags = {"RescaleSlope": 1, "RescaleIntercept": intercept, "VOILUTSequence": Sequence([item])}
    write(tmp_path / "x.dcm", stored, bits, syntax, **tags)
    mapped = table[np.clip(stored.astype(int) + intercept - meant, 0, 4095)]
    same(gray(), mapped / 4095 * 255)


# Values that stand for none


PADDINGS = [
    ("SS", -2000, None),
    ("US", 63536, None),
    ("LO", "-2000", None),
    ("OW", (63536).to_bytes(2, "little"), None),
    ("SS", -2000, ("SS", -1500)),
    ("US", 63536, ("US", 64036)),
    ("SS", -1500, ("SS", -2000)),
]


@pytest.mark.parametrize("vr, padding, limit", PADDINGS)
@pytest.mark.parametrize("kind", [np.int16, np.uint16])
@pytest.mark.parametrize("photometric, window", [("MONOCHROME1", WINDOW), ("MONOCHROME2", {})])
def test_padding_of_any_sign_is_black_and_counts_for_no_range(
    tmp_path, gray, vr, padding, limit, kind, photometric, window
):
    values = hounsfield(shape=(40, 50)) + (3000 if kind is np.uint16 else 0)
    values[:8] = -2000
    if limit:
        values[4:8] = -1700  # between the two
        values[0] = -1500
    stored = values.astype(np.int16).view(kind)
    path = write(tmp_path / "x.dcm", stored, PhotometricInterpretation=photometric, **window)

    def pad(found):
        found.add_new(0x00280120, vr, padding)
        if limit:
            found.add_new(0x00280121, *limit)

    edit(path, pad)
    inside = values[8:].astype(float)
    expected = (
        linear(inside, 40, 400)
        if window
        else stretched(inside, *np.quantile(inside, [0.001, 0.999]))
    )
    found = gray()
    assert not found[:8].any()
    same(found[8:], 255 - expected if photometric == "MONOCHROME1" else expected)


def write_floats(path: Path, values: np.ndarray, padding: float | None = None) -> Path:
    found = pydicom.dcmread(write(path, values.astype(np.float32).view(np.uint32)))
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(found, name)
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = ParametricMapStorage
    found.FloatPixelData = values.astype("<f4").tobytes()
    if padding is not None:
        found.FloatPixelPaddingValue = padding
    found.save_as(path)
    return path


def test_floats_and_their_padding(tmp_path, gray):
    values = np.random.default_rng(0).uniform(1e-3, 2e-3, (40, 50)).astype(np.float32)
    values[:4], values[4] = -1, np.nan
    write_floats(tmp_path / "x.dcm", values, -1)
    inside = values[5:].astype(float)
    found = gray()
    assert not found[:5].any()
    same(found[5:], stretched(inside, *np.quantile(inside, [0.001, 0.999])))


# What is no picture


def test_what_is_no_picture_by_its_class_is_left_out_and_counted(tmp_path, opened, caplog):
    caplog.set_level(logging.INFO)
    for k in range(5):
        write(tmp_path / f"{k}.dcm", hounsfield(k))
    dose = np.random.default_rng(9).integers(0, 2**32 - 1, (2, *SHAPE), dtype=np.uint32)
    mask = np.ones((2, *SHAPE), np.uint8)
    for name, values, kind in (
        ("dose", dose, RTDoseStorage),
        ("seg", mask, SegmentationStorage),
        ("pdf", mask, EncapsulatedPDFStorage),
    ):
        path = write(tmp_path / f"{name}.dcm", values, NumberOfFrames=2)
        edit(path, lambda found, kind=kind: setattr(found, "SOPClassUID", kind))
    nameless = write(tmp_path / "nameless.dcm", mask, NumberOfFrames=2, Modality="SEG")

    def forget(found):
        del found.SOPClassUID, found.file_meta.MediaStorageSOPClassUID

    edit(nameless, forget)
    source = opened()
    assert [path.stem for path in source.files] == list("01234")
    [line] = [r.message for r in caplog.records if "no images" in r.message]
    for text in ("left out 4", "RT Dose Storage 1", "Segmentation Storage 1", "SEG 1"):
        assert text in line
    values = np.stack([hounsfield(k) for k in range(5)]).astype(float)
    low = min(np.quantile(v, 0.001) for v in values)
    high = max(np.quantile(v, 0.999) for v in values)
    same(np.asarray(source.read_image(3)), stretched(values[3], low, high))


def test_a_picture_that_was_cut_before_its_pixels_is_warned_of(tmp_path, opened, caplog):
    for k in range(3):
        write(tmp_path / f"{k}.dcm", hounsfield(k), **WINDOW)
    data = (tmp_path / "2.dcm").read_bytes()
    (tmp_path / "2.dcm").write_bytes(data[: data.index(b"\x28\0\x10\0US")])  # before Rows
    assert len(opened()) == 2
    [line] = [record.message for record in caplog.records]
    assert "left out 1" in line and "CT Image Storage without pixels 1" in line and "2.dcm" in line


def test_nothing_but_such_files_is_refused(tmp_path, opened):
    path = write(tmp_path / "x.dcm", np.ones((2, *SHAPE), np.uint8), NumberOfFrames=2)
    edit(path, lambda found: setattr(found, "SOPClassUID", SegmentationStorage))
    with pytest.raises(UserError, match="none of its 1 DICOM files is an image: Segmentation"):
        opened()


@pytest.mark.parametrize("screen", [{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, None])
def test_scouts_and_screens_among_many_images_are_named(tmp_path, opened, caplog, screen):
    for k in range(11):
        write(tmp_path / f"{k:02}.dcm", hounsfield(k), **WINDOW)
    path = write(tmp_path / "scout.dcm", hounsfield(99), **WINDOW, **(screen or {}))
    if not screen:
        edit(path, lambda found: setattr(found, "SOPClassUID", SecondaryCaptureImageStorage))
    assert len(opened()) == 12
    [line] = [record.message for record in caplog.records]
    kind = "CT Image Storage, LOCALIZER 1" if screen else "Secondary Capture Image Storage 1"
    assert kind in line and "CT Image Storage 11" in line and "scout.dcm" in line


@pytest.mark.parametrize("kind", ["LOCALIZER", "SCOUT", "SCREEN SAVE", "captured"])
def test_scouts_and_screens_are_named_however_many(tmp_path, opened, caplog, kind):
    side = {"ImageType": ["DERIVED", "SECONDARY", kind]} if kind != "captured" else {}
    for k in range(12):
        path = write(tmp_path / f"{k:02}.dcm", hounsfield(k), **WINDOW, **(side if k > 7 else {}))
        if k > 7 and kind == "captured":
            edit(path, lambda found: setattr(found, "SOPClassUID", SecondaryCaptureImageStorage))
    opened()
    [line] = [record.message for record in caplog.records]
    assert "4 of them are scouts, captured screens" in line and "08.dcm" in line


@pytest.mark.parametrize("kind", ["LOCALIZER", "captured", "captured beside radiographs"])
def test_a_whole_set_of_them_is_a_set(tmp_path, opened, caplog, kind):
    side = {"ImageType": ["ORIGINAL", "PRIMARY", kind]} if kind == "LOCALIZER" else {}
    for k in range(6):
        path = write(tmp_path / f"{k}.dcm", hounsfield(k), **WINDOW, **side)
        beside = kind.endswith("radiographs") and k % 2
        uid = ComputedRadiographyImageStorage if beside else SecondaryCaptureImageStorage
        if kind != "LOCALIZER":
            edit(path, lambda found, uid=uid: setattr(found, "SOPClassUID", uid))
    opened()
    assert not caplog.records


def test_one_kind_and_two_halves_are_not_remarked_on(tmp_path, opened, caplog):
    for k in range(6):
        path = write(tmp_path / f"{k}.dcm", hounsfield(k), **WINDOW)
        if k % 2:
            edit(path, lambda found: setattr(found, "SOPClassUID", MRImageStorage))
    opened()
    assert not caplog.records


# Whose they are


@pytest.mark.parametrize("studies_of_others, told", [(1, True), (3, False)])
@pytest.mark.parametrize("pattern", [None, r"(\d+)"])
def test_an_id_that_many_share_is_told(tmp_path, opened, caplog, studies_of_others, told, pattern):
    """12 studies of ANON beside patients of one study, or of three."""
    for k in range(12):
        write(tmp_path / f"{k:02}.dcm", hounsfield(k), **WINDOW, PatientID="ANON")
        whose = f"P{k // studies_of_others}"
        write(tmp_path / f"{k:02}b.dcm", hounsfield(k + 20), **WINDOW, PatientID=whose)
    opened(patient=pattern)
    said = [record.message for record in caplog.records]
    assert len(said) == (told and pattern is None)
    for line in said:
        assert "12 files of 12 studies have the same PatientID" in line
        assert "00.dcm" in line and "01.dcm" in line and "data.patient=" in line


@pytest.mark.parametrize("named, told", [("", True), ("P{k}", False)])
def test_names_know_more_of_patients_than_studies_do(tmp_path, opened, caplog, named, told):
    for k in range(24):
        name = f"patient{k // 2:02}_{'RL'[k % 2]}.dcm"
        write(tmp_path / name, hounsfield(k), **WINDOW, PatientID=named.format(k=k))
    opened(validation=0.3, test=0.3)
    assert ("keeps patients whole" in caplog.text) == told


# Where the pixels lie


@pytest.mark.parametrize(
    "tags, height",
    [
        ({"PixelSpacing": [2.0, 0.5]}, "4"),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, "0.5"),
        ({"PixelAspectRatio": [3, 2]}, "1.5"),
        ({"PixelSpacing": [0.7, 0.7], "PixelAspectRatio": [3, 2]}, None),
        ({"PixelSpacing": [0.7, 0.71]}, None),
        ({"PixelSpacing": None}, None),
    ],
)
def test_pixels_that_are_not_square_are_told(tmp_path, opened, caplog, tags, height):
    for k in range(4):
        square = {"PixelSpacing": [0.8, 0.8]}
        write(tmp_path / f"{k}.dcm", hounsfield(k), **WINDOW, **(tags if k == 2 else square))
    opened()
    said = [record.message for record in caplog.records]
    assert len(said) == bool(height)
    assert all("1 of 4 files" in x and f"2.dcm, {height} times as high" in x for x in said)


def test_pixels_of_an_enhanced_object_that_are_not_square_are_told(tmp_path, opened, caplog):
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [1.5, 0.5]
    shared.PixelMeasuresSequence = Sequence([measures])
    tags = {"NumberOfFrames": 2, "SharedFunctionalGroupsSequence": Sequence([shared])}
    write(tmp_path / "x.dcm", hounsfield(shape=(2, *SHAPE)), **WINDOW, **tags)
    opened()
    assert "x.dcm, 3 times as high as wide" in caplog.text


AXIAL = [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "directions, said",
    [
        ([-1, 0, 0, 0, 1, 0], "right, back"),
        ([0, 1, 0, 0, 0, -1], "back, feet"),
        ([-0.8, -0.6, 0, 0.6, -0.8, 0], "right, front"),
        ([0.8, 0.6, 0, -0.6, 0.8, 0], None),
        ([0.7, 0.714, 0, -0.714, 0.7, 0], None),
        ([1, 0, 0], None),
        ([0] * 6, None),
        (None, None),
    ],
)
def test_an_image_that_lies_otherwise_is_told(tmp_path, opened, caplog, directions, said):
    for k in range(8):
        lies = directions if k == 5 else AXIAL
        write(tmp_path / f"{k}.dcm", hounsfield(k), **WINDOW, ImageOrientationPatient=lies)
    opened()
    told = [record.message for record in caplog.records]
    assert len(told) == bool(said)
    for line in told:
        assert "1 of 8 files" in line and "5.dcm" in line and "data.exclude=" in line
        assert f"run to {said}, and of most to left, back" in line


CORONAL, SAGITTAL = [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize("counts", [(4, 4, 4), (6, 6), (5, 4, 3)])
def test_planes_of_which_none_is_most_are_counted(tmp_path, opened, caplog, counts):
    for plane, lies, n in zip("acs", (AXIAL, CORONAL, SAGITTAL), counts):
        for k in range(n):
            place = tmp_path / plane / f"{k}.dcm"
            place.parent.mkdir(exist_ok=True)
            write(place, hounsfield(k), **WINDOW, ImageOrientationPatient=lies)
    opened()
    [line] = [record.message for record in caplog.records]
    ways = ("left, back", "left, feet", "back, feet")
    assert f"{len(counts)} ways" in line and "most" not in line
    for n, way, plane in zip(counts, ways, "acs"):
        assert f"to {way} in {n} ({tmp_path / plane}" in line
    assert f"the first {counts[0]}: data.exclude=" in line


# Files that are shown in different ways


def lung(k: int) -> dict:
    return {"WindowCenter": -600, "WindowWidth": 1500} if k % 3 == 0 else WINDOW


def near(k: int) -> dict:
    return {"WindowCenter": 40 + k, "WindowWidth": 400 - 9 * k}


def none_of_one(k: int) -> dict:
    return WINDOW if k != 4 else {}


MIXED_WINDOWS = [
    ("CT", lung, ["3 of 9 files have a window", "0.dcm (center -600, width 1500)", "(center 40,"]),
    ("MR", lung, []),
    ("CT", near, []),
    ("CT", none_of_one, ["1 of 9 files have no window", "4.dcm", "8 are shown as they", "0.dcm"]),
    ("MR", none_of_one, ["1 of 9 files have no window", "4.dcm", "8 are shown as they", "0.dcm"]),
    ("CT", lambda k: {}, []),
]


@pytest.mark.parametrize("modality, window, said", MIXED_WINDOWS)
def test_windows_that_do_not_go_together_are_told(tmp_path, opened, caplog, modality, window, said):
    for k in range(9):
        write(tmp_path / f"{k}.dcm", hounsfield(k), Modality=modality, **window(k))
    opened()
    told = [record.message for record in caplog.records]
    assert len(told) == bool(said)
    assert all(text in told[0] for text in [*said, "data.window=[CENTER,WIDTH]"] if said)
    caplog.clear()
    opened(window=[40, 400])
    assert not caplog.records


# One range for all


def test_metal_in_one_file_does_not_decide_the_range_of_all(tmp_path, opened, caplog):
    values = [hounsfield(k) for k in range(6)]
    values[0][:2, :4] = 30000
    for k, each in enumerate(values):
        write(tmp_path / f"p{k}.dcm", each)
    source = opened()
    low = min(np.quantile(v, 0.001) for v in values[1:])
    high = max(np.quantile(v, 0.999) for v in values[1:])
    for k, each in enumerate(values):
        same(np.asarray(source.read_image(k)), stretched(each, low, high))
    [line] = [record.message for record in caplog.records]
    assert "1 of 6 files" in line and "p0.dcm" in line and "data.window=[CENTER,WIDTH]" in line


def test_padding_that_no_file_declares_is_told(tmp_path, opened, caplog):
    values = [hounsfield(k) for k in range(6)]
    for k, each in enumerate(values):
        each[:5] = -9999
        write(tmp_path / f"p{k}.dcm", each)
    opened()
    low = min(np.quantile(v[5:], 0.001) for v in values)
    high = max(np.quantile(v[5:], 0.999) for v in values)
    [line] = [record.message for record in caplog.records]
    assert "25.0% of the pixels in 6 of 6 files" in line and "the value -9999, far" in line
    assert f"data.window=[{(low + high) / 2:g},{high - low:g}]" in line


def test_metal_in_one_frame_does_not_either(tmp_path, opened, caplog):
    values = hounsfield(shape=(6, *SHAPE))
    values[2, :2, :4] = 30000
    write(tmp_path / "x.dcm", values, NumberOfFrames=6)
    source = opened()
    rest = np.delete(values, 2, 0)
    low = min(np.quantile(v, 0.001) for v in rest)
    high = max(np.quantile(v, 0.999) for v in rest)
    same(np.asarray(source.read_image(5)), stretched(values[5], low, high))
    assert "x.dcm" in caplog.text


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_ct_that_no_tag_tells_of(tmp_path, opened, caplog, modality, photometric):
    """The value of one scanner, far below air, is not what is black for all others."""
    caplog.set_level(logging.INFO)
    values = [hounsfield(k, (40, 50)) for k in range(6)]
    values[1][:8] = values[4][:8] = -3024
    tags = {"Modality": modality, "PhotometricInterpretation": photometric}
    for k, each in enumerate(values):
        write(tmp_path / f"p{k}.dcm", each, RescaleSlope=1, RescaleIntercept=0, **tags)
    source, ct = opened(), modality == "CT"
    counted = [v[8:] if ct and k in (1, 4) else v for k, v in enumerate(values)]
    low = min(np.quantile(v, 0.001) for v in counted)
    high = max(np.quantile(v, 0.999) for v in counted)
    for k, each in enumerate(values):
        shown = stretched(each, low, high)
        shown = 255 - shown if photometric == "MONOCHROME1" else shown
        same(np.asarray(source.read_image(k)), np.where(ct & (each == -3024), 0, shown))
    said = [record.message for record in caplog.records if "stands for none" in record.message]
    assert len(said) == ct and all("2 of 6 files" in s and "p1.dcm (-3024)" in s for s in said)


def test_padding_that_no_tag_tells_of_is_another_set_of_images(tmp_path, opened):
    """Runs from before it was known have another black, and keep their name."""
    values = hounsfield(shape=(40, 50))
    path = write(tmp_path / "x.dcm", values, Modality="CT")

    def then() -> str:
        digest = FileCache(tmp_path / ".other").sha256([path])[0]
        return sha256_of(["dicom", 2, 0, 0, None, False, None, [("x.dcm", digest)]])

    assert opened().fingerprint == then()
    values[:8] = -3024
    write(path, values, Modality="CT")
    assert opened().fingerprint != then()


def test_integers_and_floats_have_no_range_in_common(tmp_path, opened):
    for k in range(3):
        write(tmp_path / f"{k}.dcm", hounsfield(k))
    write_floats(tmp_path / "float.dcm", np.random.default_rng(0).random(SHAPE))
    with pytest.raises(
        UserError,
        match=r"3 files hold integers, such as .*0.dcm \(int16\), and 1 floats.*float.dcm",
    ):
        opened()
    assert len(opened(window=[40, 400])) == 4


# What nothing can be learned from


def test_a_window_that_misses_all_images_is_refused(tmp_path, opened):
    for k in range(4):
        write(
            tmp_path / f"{k}.dcm",
            hounsfield(k) + np.int16(20000),
            WindowCenter=128,
            WindowWidth=256,
        )
    settings = DataSettings(Dicom, 16, 1, False)
    with pytest.raises(UserError, match=r"of one colour.*0.dcm.*data.window=\[CENTER,WIDTH\]"):
        open_dataset(settings, opened(), 0, tmp_path / "cache")
    measured = opened(window=[20250, 2500])
    assert open_dataset(settings, measured, 0, tmp_path / "cache").images.std() > 30


# Names of runs


def test_the_fingerprint_is_as_it_was_where_the_pixels_are(tmp_path, opened):
    """A plain file; one whose padding was black already; one whose rescale is read otherwise."""
    plain = write(tmp_path / "x.dcm", hounsfield(), **WINDOW)

    def then() -> str:
        digest = FileCache(tmp_path / ".other").sha256([plain])[0]
        return sha256_of(["dicom", 2, 0, 0, None, False, None, [("x.dcm", digest)]])

    assert opened().fingerprint == then()
    write(plain, hounsfield(), **WINDOW, PixelPaddingValue=-2000)
    assert opened().fingerprint == then()
    write(plain, hounsfield(), **WINDOW, PixelPaddingValue=1000)
    assert opened().fingerprint != then()
    write(plain, hounsfield(), **WINDOW, RescaleIntercept=-1024)
    assert opened().fingerprint != then()
