"""python -m data.check: a clean folder is told to be clean, one odd file among many is named."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.check.__main__ import main
from data.check.damaged import EOI, is_damaged_jpeg
from tests.helpers.dicom_files import write
from tests.helpers.smooth_images import smooth

MANY = 120
pytestmark = pytest.mark.usefixtures("own_log")


def radiograph(k: int, side: int = 64) -> Image.Image:
    """All alike: a bright body on black, as aligned sets have it."""
    rng = np.random.default_rng(k)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.exp(-((x / rng.uniform(0.5, 0.6)) ** 2) - (y / rng.uniform(0.7, 0.8)) ** 4)
    lungs = sum(np.exp(-(((x - s) / 0.2) ** 2) - (y / 0.4) ** 2) for s in (-0.3, 0.3))
    values = 220 * body - 120 * lungs * rng.uniform(0.8, 1.1)
    values = values + 1.5 * (np.asarray(smooth(k, side)) - 128.0) * body
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def clean_folder(root: Path, make=smooth, count: int = MANY, suffix: str = "jpg") -> Path:
    for k in range(count):
        place = root / ("a", "b")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        make(k).save(place / f"{k:03d}.{suffix}", **({"quality": 92} if suffix == "jpg" else {}))
    return root


def checked(root: Path, *settings: str, capsys) -> tuple[int, str]:
    code = main([str(root), "data.channels=1", f"out={root.parent / 'out'}", *settings])
    return code, capsys.readouterr().out


def mask() -> Image.Image:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[20:40, 10:50] = 255
    return Image.fromarray(pixels)


PLANTED = {
    "mask": (lambda path: mask().save(path.with_suffix(".png")), "few levels of gray beside"),
    "another format": (lambda path: smooth(999).save(path.with_suffix(".png")), "format: PNG 1"),
    "another size": (lambda path: smooth(999, 96).save(path), "size: 96x96 1"),
    "in colour": (lambda path: smooth(999, channels=3).save(path), "colours: in colour 1"),
    "one colour": (lambda path: Image.new("L", (64, 64), 90).save(path), "without information"),
    "too small": (lambda path: smooth(999, 20).save(path), "smaller than data.size=[64, 64]; "),
    "cut short": (
        lambda path: path.write_bytes((path.parent / path.name).read_bytes()[:300]),
        "cannot be read",
    ),
    "dark": (lambda path: smooth(999).point(lambda v: v // 40).save(path), "mean brightness"),
    "no image": (lambda path: path.write_text("<html>sign in</html>"), "refused: a web page"),
}


def test_a_clean_folder_is_clean(tmp_path, capsys):
    for k, make in enumerate((smooth, radiograph, lambda k: smooth(k, 48 + k % 7, 3))):
        root = clean_folder(tmp_path / f"{k}/images", make)
        code, told = checked(root, f"data.size={(64, 64, 32)[k]}", capsys=capsys)
        assert code == 0 and "Nothing is suspicious." in told, told
        assert f"{MANY} in {MANY} files" in told and "a 60, b 60" in told
    assert {path.name for path in (root.parent / "out").iterdir()} == {"sheet.png", "images.csv"}


@pytest.mark.parametrize("kind", PLANTED)
def test_one_odd_file_is_named(kind, tmp_path, capsys):
    root = clean_folder(tmp_path / "images")
    plant, expected = PLANTED[kind]
    path = root / "b/047.jpg"
    plant(path)
    if not path.exists() or path.with_suffix(".png").exists():
        path.unlink(missing_ok=True)
    code, told = checked(root, capsys=capsys)
    assert code == 1 and expected in told and "b/047." in told, told
    with open(tmp_path / "out/images.csv") as table:
        remarks = {row["image"]: row["suspicious"] for row in csv.DictReader(table)}
    assert {Path(name).stem for name, remark in remarks.items() if remark} == {"047"}


@pytest.mark.parametrize(
    "tags, said",
    [
        ({"Manufacturer": "GE", "BodyPartExamined": "HEAD", "ViewPosition": "PA"}, None),
        ({"Modality": "DX"}, "modality: DX 1; all others are CR"),
    ],
)
def test_another_manufacturer_is_described_and_no_defect(tmp_path, capsys, tags, said):
    usual = {"Manufacturer": "SIEMENS", "BodyPartExamined": "CHEST", "Modality": "CR"}
    for k in range(40):
        values = np.asarray(radiograph(k))
        about = usual | (tags if k == 17 else {})
        write(tmp_path / f"x/{k:02}.dcm", values, PatientID=f"P{k}", **about)
    code, told = checked(tmp_path / "x", "data=dicom", "data.size=64", capsys=capsys)
    assert code == bool(said) and (said or "Nothing is suspicious.") in told, told
    assert "SIEMENS" in told


def cut(data: bytes, share: float = 0.5) -> bytes:
    """Some of what comes after the header."""
    scan = data.index(b"\xff\xda")
    return data[: scan + int(share * (len(data) - scan))] + b"\xff\xd9"


def zeroed(data: bytes) -> bytes:
    kept = cut(data, 0.4)[:-2]
    return kept + bytes(len(data) - len(kept) - 2) + b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("damage", [cut, zeroed])
def test_a_jpeg_that_opens_and_lacks_a_part_is_found(damage, channels, options, tmp_path):
    for k in range(12):
        path = tmp_path / f"{k}.jpg"
        smooth(k, (96, 104, 131)[k % 3], channels).save(
            path, quality=(50, 75, 90)[k // 4], **options
        )
        assert not is_damaged_jpeg(path)
        path.write_bytes(damage(path.read_bytes()))
        Image.open(path).load()
        assert is_damaged_jpeg(path)


def bordered(k: int, level: int, sides: str) -> Image.Image:
    image = ImageOps.expand(smooth(k, 64, 3), (0, 0, 0, 40), (level,) * 3)
    return ImageOps.expand(image, 24, (level,) * 3) if sides == "all" else image


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}])
@pytest.mark.parametrize("sides", ["bottom", "all"])
@pytest.mark.parametrize("level", [0, 127, 128, 129, 255])
def test_a_border_of_a_jpeg_is_no_damage(level, sides, options, tmp_path):
    for k in range(6):
        image = bordered(k, level, sides)
        for each in (image, image.convert("L"), Image.new("RGB", (80, 80), (level,) * 3)):
            each.save(tmp_path / "x.jpg", quality=(60, 95)[k % 2], **options)
            assert not is_damaged_jpeg(tmp_path / "x.jpg")


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"subsampling": "4:4:4"}])
@pytest.mark.parametrize("side", [32, 64, 128])
def test_a_letterboxed_jpeg_is_no_damage(side, options, tmp_path):
    """Its colours are of blocks that lie across the border."""
    for k in range(12):
        wide = np.asarray(smooth(k, side, 3).resize((side, side // 2))).copy()
        wide[-2:] = (255, 20 * k, 0)
        image = ImageOps.expand(Image.fromarray(wide), (0, side // 4), (128,) * 3)
        image.save(tmp_path / "x.jpg", quality=(75, 90)[k % 2], **options)
        assert not is_damaged_jpeg(tmp_path / "x.jpg")


def test_a_jpeg_that_is_cut_where_a_decoder_restarts_is_found(tmp_path):
    smooth(0, 128, 3).save(tmp_path / "x.jpg", restart_marker_rows=1)
    data = (tmp_path / "x.jpg").read_bytes()
    for k in range(2, 6):
        (tmp_path / "x.jpg").write_bytes(data[: data.index(bytes((0xFF, 0xD0 + k)))] + EOI)
        assert is_damaged_jpeg(tmp_path / "x.jpg")


def test_a_large_black_border_is_no_damage(tmp_path):
    """Its bytes are zeros, where tables are made for it."""
    image = ImageOps.expand(smooth(0, 64), (0, 0, 3000, 3000), 0)
    image.save(tmp_path / "x.jpg", optimize=True)
    assert not is_damaged_jpeg(tmp_path / "x.jpg")


def test_other_files_are_no_damaged_jpegs(tmp_path):
    for content in (b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\x89PNG"):
        (tmp_path / "x.jpg").write_bytes(content)
        assert not is_damaged_jpeg(tmp_path / "x.jpg")


def test_a_damaged_jpeg_is_named(tmp_path, capsys):
    root = clean_folder(tmp_path / "images", count=40)
    path = root / "a/010.jpg"
    path.write_bytes(cut(path.read_bytes()))
    code, told = checked(root, capsys=capsys)
    assert code == 1 and "1 image: a JPEG that opens, and lacks a part" in told
    assert "data.exclude=a/010.jpg leaves it out" in told, told


def test_a_negative_is_found_among_radiographs(tmp_path, capsys):
    root = clean_folder(tmp_path / "images", radiograph)
    ImageOps.invert(radiograph(5)).save(root / "a/010.jpg", quality=92)
    code, told = checked(root, capsys=capsys)
    assert code == 1 and "inverted?; " in told and "a/010.jpg" in told, told


@pytest.mark.parametrize(
    "change",
    [
        lambda image, path: image.save(path, quality=60),
        lambda image, path: image.resize((96, 96), Image.Resampling.BICUBIC).save(path),
        lambda image, path: image.point(lambda v: 20 + v * 3 // 4).save(path),
    ],
)
def test_copies_across_splits_are_found(change, tmp_path, capsys):
    for split, first in (("train", 0), ("test", 500)):
        for k in range(40):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            smooth(first + k).save(tmp_path / f"images/{split}/{k:03d}.jpg", quality=92)
    change(smooth(17), tmp_path / "images/test/021.jpg")
    code, told = checked(tmp_path / "images", "data.classes=false", capsys=capsys)
    assert code == 1 and "1 image: nearly the same as an image of another split" in told, told
    assert "test/021.jpg and " in told and "train/017.jpg" in told


@pytest.mark.parametrize("name, typed", [("odd [1], it's", "[[]1], it"), ("${z}", "${z}")])
def test_what_leaves_a_file_out_can_be_pasted(tmp_path, capsys, name, typed):
    root = clean_folder(tmp_path / "images", count=40)
    mask().save(root / f"a/{name}.png")
    code, told = checked(root, capsys=capsys)
    (setting,) = shlex.split(re.search(r"(data\.exclude=.*) leaves it out", told)[1])
    assert code == 1 and typed in setting
    assert checked(root, setting, capsys=capsys)[0] == 0


@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_folder_of_nothing_but_broken_files_is_one_message(tmp_path, capsys, count):
    root = clean_folder(tmp_path / "images", count=count)
    for path in root.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SystemExit) as stop:
        checked(root, "data.classes=false", capsys=capsys)
    assert stop.value.code == 2
    assert f"none of its {count} images can be read\n" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_looked_at(tmp_path, capsys, count):
    root = clean_folder(tmp_path / "images", count=count)
    code, told = checked(root, "data.classes=false", capsys=capsys)
    assert f"{count} in {count} files" in told and code in (0, 1)


def test_settings_are_those_of_training(tmp_path, capsys):
    root = clean_folder(tmp_path / "images", count=12)
    with pytest.raises(SystemExit) as stop:
        main([str(root), "data.sise=32"])
    assert stop.value.code == 2 and "data.sise: no such setting; did you mean size" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main([str(root), "size=32"])
    assert "size=32: not a setting of images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "gone")])
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_odd_file_among_ten_thousand(tmp_path, capsys):
    root = clean_folder(tmp_path / "images", lambda k: smooth(k, 256), 10_000)
    code, told = checked(root, capsys=capsys)
    assert code == 0 and "Nothing is suspicious." in told, told
    rng = np.random.default_rng(0)
    for trial in range(20):
        kind = list(PLANTED)[trial % len(PLANTED)]
        k = int(rng.integers(10_000))
        path = root / ("a", "b")[k % 2] / f"{k:03d}.jpg"
        kept = path.read_bytes()
        plant, expected = PLANTED[kind]
        plant(path)
        if path.with_suffix(".png").exists():
            path.unlink()
        code, told = checked(root, capsys=capsys)
        assert code == 1 and expected in told and f"/{k:03d}." in told, (kind, told)
        path.with_suffix(".png").unlink(missing_ok=True)
        path.write_bytes(kept)
