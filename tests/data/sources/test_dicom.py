"""DICOM: pixels as a viewer shows them, computed here from the arrays that pydicom wrote; patients;
what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    MediaStorageDirectoryStorage,
    RLELossless,
    generate_uid,
)

from data.dataset import open_dataset
from data.file_cache import FileCache
from data.settings import DataSettings
from data.sources.dicom import Dicom
from runtime.errors import UserError
from tests.helpers.caches import new_cache
from tests.helpers.dicom_files import dataset, linear, save, write

MEMORY = new_cache()
SHAPE = H, W = 20, 30
SPLITS = ("train", "validation", "test")


def random(
    shape=SHAPE, low: int = 0, high: int = 4096, kind=np.uint16, seed: int = 0
) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(kind)


def image_of(folder: Path, item: int = 0, **settings) -> Image.Image:
    return Dicom(FileCache(MEMORY.folder), str(folder), **settings).read_image(item)


def gray_of(folder: Path, item: int = 0, **settings) -> np.ndarray:
    image = image_of(folder, item, **settings)
    assert image.mode == "F"
    return np.asarray(image)


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-3)


# Gray


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_ct_in_hounsfield_units_by_the_files_window(tmp_path, syntax):
    stored = random(low=-2048, high=2048, kind=np.int16)
    write(
        tmp_path / "x.dcm",
        stored,
        12,
        syntax,
        RescaleSlope=2,
        RescaleIntercept=-1024,
        WindowCenter=[40, 600],
        WindowWidth=[400, 1500],
    )
    same(gray_of(tmp_path), linear(2.0 * stored - 1024, 40, 400))
    assert len(np.unique(gray_of(tmp_path))) > 10


def test_the_window_of_the_options_comes_first(tmp_path):
    stored = random(kind=np.int16)
    write(
        tmp_path / "x.dcm",
        stored,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=40,
        WindowWidth=400,
    )
    same(gray_of(tmp_path, window=[300, 2000]), linear(stored - 1024.0, 300, 2000))


def test_other_functions_of_windows(tmp_path):
    stored = random()
    write(
        tmp_path / "x.dcm",
        stored,
        WindowCenter=2000,
        WindowWidth=1000,
        VOILUTFunction="LINEAR_EXACT",
    )
    same(gray_of(tmp_path), between(stored, 1500, 2500))
    write(tmp_path / "x.dcm", stored, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    same(gray_of(tmp_path), 255 / (1 + np.exp(-4 * (stored.astype(float) - 2000) / 1000)))


def test_windows_of_fractions(tmp_path):
    """As of PET; DICOM's linear function would turn black and white around."""
    stored = random(high=1000)
    write(
        tmp_path / "x.dcm",
        stored,
        RescaleSlope=0.001,
        RescaleIntercept=0,
        WindowCenter=0.4,
        WindowWidth=0.5,
    )
    same(gray_of(tmp_path), between(stored / 1000, 0.15, 0.65))


@pytest.mark.parametrize("bits, entries", [(8, 256), (8, 1000), (12, 4096), (16, 4096)])
def test_a_voi_table(tmp_path, bits, entries):
    stored = random(high=4096)
    table = (np.linspace(0, 1, entries) ** 2 * (2**bits - 1)).astype(np.uint16)
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [entries, 1000, bits], table.tolist()
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    write(tmp_path / "x.dcm", stored, VOILUTSequence=Sequence([lut]), WindowCenter=1, WindowWidth=2)
    same(
        gray_of(tmp_path),
        table[np.clip(stored.astype(int) - 1000, 0, entries - 1)] * (255 / (2**bits - 1)),
    )


def test_a_modality_table(tmp_path):
    stored = random(high=256)
    table = np.arange(256)[::-1] * 3
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData, lut.ModalityLUTType = [256, 0, 16], table.tolist(), "US"
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    write(tmp_path / "x.dcm", stored, ModalityLUTSequence=Sequence([lut]))
    same(gray_of(tmp_path, window=[400, 500]), linear(table[stored], 400, 500))


def test_monochrome1_is_turned(tmp_path):
    stored = random()
    write(
        tmp_path / "x.dcm",
        stored,
        12,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=2048,
        WindowWidth=4096,
    )
    same(gray_of(tmp_path), 255 - linear(stored, 2048, 4096))


def test_without_a_window_the_range_is_measured_over_the_files_to_train_on(tmp_path, caplog):
    """12 bits in 16; what pads the image and what is in the test split does not count."""
    caplog.set_level("INFO")
    dim, bright = random((40, 50), 100, 1100, np.int16), random((40, 50), 600, 3100, np.int16, 1)
    padded = dim.copy()
    padded[:8] = -2000
    for name, values in {
        "train/dim": dim,
        "train/bright": bright,
        "train/padded": padded,
        "val/x": bright,
        "test/x": 5 * bright,
    }.items():
        write(
            tmp_path / f"{name}.dcm",
            values,
            RescaleSlope=1,
            RescaleIntercept=-1000,
            PixelPaddingValue=-2000,
            PatientID=name,
        )
    source = Dicom(MEMORY, str(tmp_path))
    parts = [part.astype(float) - 1000 for part in (dim, bright, padded[8:])]
    low, high = min(np.quantile(p, 0.001) for p in parts), max(np.quantile(p, 0.999) for p in parts)
    for item, values in zip(source.splits["train"], (bright, dim, padded), strict=True):
        same(np.asarray(source.read_image(item)), between(values - 1000.0, low, high))
    [line] = [record.message for record in caplog.records if "black" in record.message]
    assert (
        f"{low:g}" in line
        and f"{high:g}" in line
        and "data.window=[CENTER,WIDTH]" in line
        and "3 of them" in line
    )


def test_files_of_8_bits_are_not_stretched(tmp_path):
    stored = random(low=40, high=90, kind=np.uint8)
    write(tmp_path / "x.dcm", stored)
    same(gray_of(tmp_path), stored)


@pytest.mark.parametrize(
    "window", [[40], [40, 0], [40, -1], [1, 2, 3], [40, float("inf")], [float("nan"), 4]]
)
def test_a_window_that_is_none_is_refused(tmp_path, window):
    with pytest.raises(UserError, match=r"data.window=.*\[CENTER, WIDTH\]"):
        Dicom(MEMORY, str(tmp_path), window=window)


# Frames


def test_each_frame_is_an_image(tmp_path):
    stored = random((5, *SHAPE))
    write(tmp_path / "many.dcm", stored, NumberOfFrames=5)
    write(tmp_path / "one.dcm", stored[0], PatientID="P2")
    source = Dicom(MEMORY, str(tmp_path), window=[2048, 4096])
    assert len(source) == 6
    for frame in range(5):
        same(np.asarray(source.read_image(frame)), linear(stored[frame], 2048, 4096))
    assert source.item_name(2) == f"{tmp_path / 'many.dcm'}, frame 3" and source.item_name(
        5
    ) == str(tmp_path / "one.dcm")
    assert {frozenset(source.files[i].name for i in source.splits[split]) for split in SPLITS} <= {
        frozenset(),
        frozenset({"many.dcm"}),
        frozenset({"one.dcm"}),
        frozenset({"many.dcm", "one.dcm"}),
    }


def test_frames_of_an_enhanced_object_have_their_own_numbers(tmp_path):
    def group(slope, center):
        pixel, voi, found = Dataset(), Dataset(), Dataset()
        pixel.RescaleSlope, pixel.RescaleIntercept, pixel.RescaleType = slope, -1000, "HU"
        voi.WindowCenter, voi.WindowWidth = center, 800
        found.PixelValueTransformationSequence, found.FrameVOILUTSequence = (
            Sequence([pixel]),
            Sequence([voi]),
        )
        return found

    stored = random((2, *SHAPE))
    shared = Dataset()
    shared.FrameVOILUTSequence = group(1, 7).FrameVOILUTSequence
    write(
        tmp_path / "x.dcm",
        stored,
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([group(1, 40), group(2, 900)]),
    )
    source = Dicom(MEMORY, str(tmp_path), validation=0, test=0)
    same(np.asarray(source.read_image(0)), linear(stored[0] - 1000.0, 40, 800))
    same(np.asarray(source.read_image(1)), linear(stored[1] * 2.0 - 1000, 900, 800))


# Colour


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb(tmp_path, planar):
    stored = random((*SHAPE, 3), high=256, kind=np.uint8)
    write(tmp_path / "x.dcm", stored, PlanarConfiguration=planar)
    image = image_of(tmp_path)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), stored)


def test_rgb_of_16_bits(tmp_path):
    stored = random((*SHAPE, 3), high=4096)
    write(tmp_path / "x.dcm", stored, 12)
    assert np.array_equal(np.asarray(image_of(tmp_path)), np.round(stored / 4095 * 255))


def test_ybr_full(tmp_path):
    stored = random((*SHAPE, 3), low=100, high=156, kind=np.uint8)
    write(tmp_path / "x.dcm", stored, PhotometricInterpretation="YBR_FULL")
    y, cb, cr = (stored[..., k].astype(float) for k in range(3))
    expected = np.stack(
        [
            y + 1.402 * (cr - 128),
            y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
            y + 1.772 * (cb - 128),
        ],
        -1,
    )
    assert np.abs(np.asarray(image_of(tmp_path)) - expected).max() <= 1


@pytest.mark.parametrize("bits, entries", [(8, 200), (8, 201), (16, 200)])
def test_palettes(tmp_path, bits, entries):
    """Of 201 bytes, too, which are padded to 202: pydicom's apply_color_lut refuses them."""
    stored = random(high=256, kind=np.uint8)
    tables = random(
        (3, entries), high=2**bits, kind=np.uint8 if bits == 8 else np.dtype("<u2"), seed=3
    )
    padded = [table.tobytes() + b"\0" * (table.nbytes % 2) for table in tables]
    tags = {
        f"{name}PaletteColorLookupTableData": data
        for name, data in zip(("Red", "Green", "Blue"), padded, strict=True)
    }
    tags |= {
        f"{name}PaletteColorLookupTableDescriptor": [entries, 10, bits]
        for name in ("Red", "Green", "Blue")
    }
    write(tmp_path / "x.dcm", stored, PhotometricInterpretation="PALETTE COLOR", **tags)
    expected = tables[:, np.clip(stored.astype(int) - 10, 0, entries - 1)].transpose(1, 2, 0) * (
        255 / (2**bits - 1)
    )
    assert np.array_equal(np.asarray(image_of(tmp_path)), np.round(expected))


# Compressed


def test_rle(tmp_path):
    stored = random()
    path = write(tmp_path / "x.dcm", stored, 12, WindowCenter=2048, WindowWidth=4096)
    found = pydicom.dcmread(path)
    found.compress(RLELossless)
    found.save_as(path)
    same(gray_of(tmp_path), linear(stored, 2048, 4096))


def test_jpeg(tmp_path):
    stored = np.kron(random((2, 3), high=256, kind=np.uint8), np.ones((16, 16), np.uint8))
    path = write(tmp_path / "x.dcm", stored)
    Image.fromarray(stored).save(tmp_path / "jpeg", "JPEG", quality=95)
    found = pydicom.dcmread(path)
    found.PixelData = encapsulate([(tmp_path / "jpeg").read_bytes()])
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.save_as(path)
    assert np.abs(gray_of(tmp_path) - stored).mean() < 2


def test_a_decoder_that_lacks_is_named(tmp_path):
    if pydicom.pixels.get_decoder(JPEGLosslessSV1).is_available:
        pytest.skip("pylibjpeg is installed")
    path = write(tmp_path / "x.dcm", random())
    found = pydicom.dcmread(path)
    found.PixelData = encapsulate([b"\xff\xd8 never looked at"])
    found.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    found.save_as(path)
    with pytest.raises(UserError, match="JPEG Lossless.*pip install pylibjpeg pylibjpeg-libjpeg"):
        image_of(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
    ],
)
def test_lossless_copies_of_a_real_scan_are_that_scan(tmp_path, name):
    for k, file in enumerate(("MR_small.dcm", name)):
        (tmp_path / f"{k}.dcm").write_bytes(Path(pydicom.data.get_testdata_file(file)).read_bytes())
    same(gray_of(tmp_path, 0, validation=0, test=0), gray_of(tmp_path, 1, validation=0, test=0))


# Which files


def test_files_without_suffix_are_known_by_their_magic(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("IM0001", "1.2.840.113619.2", "x.DCM", "deep/x.ima"):
        write(tmp_path / name, random(), PatientID=name)
    write(tmp_path / ".hidden", random())
    (tmp_path / "notes.txt").write_text("no image")
    source = Dicom(MEMORY, str(tmp_path), window=[0, 10])
    assert len(source) == 4 and list(source.classes) == []
    assert any(
        record.message.endswith("left out 1 file that is no DICOM file: .txt 1")
        for record in caplog.records
    )


def test_files_without_pixels_are_counted_and_named(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "x.dcm", random())
    save(tmp_path / "report.dcm", dataset(BasicTextSRStorage))
    save(tmp_path / "state.dcm", dataset(GrayscaleSoftcopyPresentationStateStorage))
    save(tmp_path / "DICOMDIR", dataset(MediaStorageDirectoryStorage))
    assert len(Dicom(MEMORY, str(tmp_path), validation=0, test=0)) == 1
    [line] = [record.message for record in caplog.records if "no images" in record.message]
    assert (
        "3 DICOM files" in line
        and "Basic Text SR Storage 1" in line
        and "Presentation State" in line
        and "DICOMDIR" in line
    )
    (tmp_path / "x.dcm").unlink()
    with pytest.raises(UserError, match="none of its 3 DICOM files is an image"):
        Dicom(MEMORY, str(tmp_path))


def test_broken_files_are_listed(tmp_path):
    for k in range(5):
        write(
            tmp_path / f"good{k}.dcm",
            random(seed=k),
            PatientID=str(k),
            WindowCenter=2000,
            WindowWidth=4000,
        )
    (tmp_path / "text.dcm").write_bytes(b"not DICOM")
    data = (tmp_path / "good0.dcm").read_bytes()
    (tmp_path / "short.dcm").write_bytes(data[:-200])
    (tmp_path / "header.dcm").write_bytes(data[:200])
    stripped = pydicom.dcmread(tmp_path / "good0.dcm")
    del stripped.PixelData
    save(tmp_path / "stripped.dcm", stripped)
    source = Dicom(MEMORY, str(tmp_path))
    settings = DataSettings(Dicom, 20, 1, False)
    with pytest.raises(UserError, match="data.skip_broken=true") as raised:
        open_dataset(settings, source, 0, tmp_path / "cache")
    for name in (
        "text.dcm: no DICOM file",
        "short.dcm: cut short: 1000 bytes of pixels, and 1200 are needed",
        "stripped.dcm: it has no pixels",
    ):
        assert name in str(raised.value)
    assert "good" not in str(raised.value)
    kept = open_dataset(
        DataSettings(Dicom, 20, 1, False, skip_broken=True), source, 0, tmp_path / "cache"
    )
    assert sum(map(len, kept.splits.values())) == 5


def test_a_header_that_could_not_be_read_once_is_read_at_the_next_start(tmp_path, monkeypatch):
    for k in range(3):
        write(
            tmp_path / f"x/{k}.dcm", random((4, *SHAPE), seed=k), PatientID=str(k), NumberOfFrames=4
        )
    memory = FileCache(tmp_path / "memory")
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)
    with monkeypatch.context() as patch:
        patch.setattr(pydicom, "dcmread", None)
        assert len(Dicom(memory, str(tmp_path / "x"))) == 3
    assert len(Dicom(memory, str(tmp_path / "x"))) == 12


def test_a_folder_without_dicom_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no DICOM files in it.*1 other files: .png 1"):
        Dicom(MEMORY, str(tmp_path))


# Patients and splits


def test_patients_stay_whole_by_their_tag(tmp_path):
    """In one folder, in many, and whatever the files are called."""
    for p in range(20):
        for k in range(1 + p % 3):
            write(
                tmp_path / f"study{(p + k) % 7}" / f"{p}_{k}.dcm",
                random((4, 4), seed=p * 9 + k),
                PatientID=f"patient {p}",
            )
    source = Dicom(MEMORY, str(tmp_path), validation=0.2, test=0.2)
    owners = {
        split: {source.files[i].stem.split("_")[0] for i in source.splits[split]}
        for split in SPLITS
    }
    assert sum(map(len, owners.values())) == 20 and all(owners.values())
    assert sorted(i for split in SPLITS for i in source.splits[split]) == list(range(len(source)))


def test_without_a_tag_the_study_is_the_patient(tmp_path):
    for s in range(10):
        study = generate_uid()
        for k in range(3):
            write(
                tmp_path / f"{s}_{k}.dcm",
                random((4, 4), seed=s * 9 + k),
                PatientID="",
                StudyInstanceUID=study,
            )
    source = Dicom(MEMORY, str(tmp_path), validation=0.2, test=0.2)
    assert [len(source.splits[split]) for split in SPLITS] == [18, 6, 6]
    assert (
        len({(split, source.files[i].stem[0]) for split in SPLITS for i in source.splits[split]})
        == 10
    )


def test_one_patient_and_shared_patients_are_told(tmp_path, caplog):
    for name in ("train/a", "train/b", "val/a", "test/a"):
        write(
            tmp_path / f"{name}.dcm",
            random(seed=len(name)),
            PatientID="same" if "a" in name[-1] else "other",
        )
    Dicom(MEMORY, str(tmp_path))
    assert any(
        "patients in more than one split: 1," in record.message and "train/a.dcm" in record.message
        for record in caplog.records
    )
    with pytest.raises(UserError, match="all 2 images are of one patient"):
        for k in range(2):
            write(tmp_path / "flat" / f"{k}.dcm", random(seed=k))
        Dicom(MEMORY, str(tmp_path / "flat"))


def test_the_fingerprint_has_the_window_and_headers_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("data.file_cache.FRESH", -1e9)
    memory = FileCache(tmp_path / "memory")
    for k in range(4):
        write(tmp_path / "x" / f"{k}.dcm", random(seed=k), PatientID=str(k))
    first = Dicom(memory, str(tmp_path / "x"))
    monkeypatch.setattr(pydicom, "dcmread", None)
    again = Dicom(memory, str(tmp_path / "x"))
    assert again.fingerprint == first.fingerprint and again.splits == first.splits
    assert Dicom(memory, str(tmp_path / "x"), window=[40, 400]).fingerprint != first.fingerprint


def test_pixels_come_out_of_the_whole_way(tmp_path):
    stored = random((3, *SHAPE), kind=np.int16)
    for k in range(3):
        write(
            tmp_path / f"{k}.dcm",
            stored[k],
            RescaleSlope=1,
            RescaleIntercept=-1000,
            PatientID=str(k),
        )
    settings = DataSettings(Dicom, SHAPE, 3, False)
    data = open_dataset(
        settings, Dicom(MEMORY, str(tmp_path), window=[1000, 3000]), 0, tmp_path / "cache"
    )
    for k in range(3):
        expected = np.round(linear(stored[k] - 1000.0, 1000, 3000))
        assert np.abs(data.images[k].astype(int) - expected[..., None]).max() <= 1
