"""python -m data.check of sets whose fault is a file's, not an image's: few images, volumes and
clips, several reasons to refuse, names in no encoding."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data.check.__main__ import main
from data.check.attributes import number_files
from data.check.look import Looks
from data.check.suspicious import far_cases
from data.decoding import decode_all
from data.image_reader import ImageReader
from tests.helpers import ROOT
from tests.helpers.smooth_images import smooth

pytestmark = pytest.mark.usefixtures("own_log")


def check(root, *settings, capsys):
    code = main([str(root), f"out={root.parent / 'out'}", *settings])
    return code, capsys.readouterr().out


def photos(root, count=59):
    root.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for k in range(count):
        image = smooth(k, 100 + int(rng.integers(40)))
        image = image.resize((image.width, int(image.height * rng.uniform(0.75, 1.3))))
        ImageEnhance.Brightness(image).enhance(rng.uniform(0.5, 1.2)).save(root / f"{k:03d}.jpg")
    return root


def test_one_odd_image_among_sixty_is_named(tmp_path, capsys):
    root = photos(tmp_path / "photos")
    settings = ("data.size=64", "data.channels=1")
    assert check(root, *settings, capsys=capsys)[0] == 0
    noise = np.random.default_rng(0).integers(0, 61, (110, 120), np.uint8)
    planted = {
        "shape": smooth(900, 100).resize((3000, 100)),
        "neighbouring pixels": Image.fromarray(noise),
    }
    for what, image in planted.items():
        image.save(root / "odd.png")
        code, told = check(root, *settings, capsys=capsys)
        (line,) = [each for each in told.splitlines() if what in each]
        assert code == 1 and "odd.png" in line


def volumes(root, count=20):
    """Bodies in air, in HU."""
    root.mkdir(parents=True)
    y, x = np.mgrid[-1:1:40j, -1:1:40j]
    for k in range(count):
        rng = np.random.default_rng(k)
        body = np.hypot(x / rng.uniform(0.6, 0.8), y / rng.uniform(0.5, 0.7)) < 1
        slices = np.where(body, rng.uniform(20, 60), -1000)[..., None] + rng.normal(
            0, 20, (40, 40, 12)
        )
        slices += 40 * np.sin(rng.uniform(3, 9) * x + rng.uniform(0, 6))[..., None]
        nibabel.save(
            nibabel.Nifti1Image(slices.round().astype(np.int16), np.eye(4)), root / f"v{k:02d}.nii"
        )
    return root


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda hu: hu + 1024, "mean brightness"), (lambda hu: -1000 - hu, "inverted?")],
    ids=["offset", "negative"],
)
def test_one_odd_volume_among_twenty_is_named(tmp_path, capsys, change, said):
    root = volumes(tmp_path / "scans")
    settings = ("data=nifti", "data.size=32", "data.range=[-1000,1000]", "data.patient='(v..)'")
    code, told = check(root, *settings, capsys=capsys)
    assert code == 0, told
    image = nibabel.load(root / "v13.nii")
    changed = change(np.asarray(image.dataobj).astype(np.int16)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(changed, image.affine), root / "v13.nii")
    code, told = check(root, *settings, capsys=capsys)
    (line,) = [each for each in told.splitlines() if said in each]
    assert code == 1 and "v13.nii" in line and "data.exclude=v13.nii leaves it out" in line, told


def test_slices_of_air_are_no_masks_and_a_label_map_is_one_with_all_its_slices(tmp_path, capsys):
    root = tmp_path / "scans"
    volumes(root)
    for path in sorted(root.iterdir()):
        image = nibabel.load(path)
        slices = np.asarray(image.dataobj).astype(np.int16)
        rows = np.random.default_rng(0).integers(-1005, -995, (40, 40), np.int16)
        slices[..., :3], slices[:8, :8, :3] = rows[..., None], 200
        nibabel.save(nibabel.Nifti1Image(slices, image.affine), path)
    settings = ("data=nifti", "data.size=32", "data.range=[-1000,1000]", "data.patient='(v..)'")
    told = check(root, *settings, capsys=capsys)[1]
    assert "a mask?" not in told
    labels = np.zeros((40, 40, 12), np.int16)
    labels[10:20, 10:30], labels[22:30, 5:20] = 300, 700
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), root / "v99.nii")
    code, told = check(root, *settings, capsys=capsys)
    (line,) = [each for each in told.splitlines() if "a mask?" in each]
    assert code == 1 and line.split(". ")[1].startswith("12 images: few levels"), line
    assert "data.exclude=v99.nii leaves it out" in line


def test_each_reason_to_refuse_is_told(tmp_path, capsys):
    root = photos(tmp_path / "photos", 30)
    whole = (root / "003.jpg").read_bytes()
    for k in (3, 4):
        (root / f"00{k}.jpg").write_bytes(whole[: 200 + k])
    (root / "005.jpg").write_text("<html>sign in</html>")
    (root / "006.jpg").write_bytes(b"")
    (root / "007.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    code, told = check(root, "data.size=64", "data.channels=1", capsys=capsys)
    refused = [line for line in told.splitlines() if "refused: " in line]
    assert code == 1 and len(refused) == 4, told
    assert any("pillow-heif" in line and "007.jpg" in line for line in refused)
    assert any("2 images: " in line and "003.jpg" in line for line in refused)
    with open(tmp_path / "out/images.csv") as table:
        remarks = {row["image"][-7:-4]: row["suspicious"] for row in csv.DictReader(table)}
    assert "web page" in remarks["005"] and "web page" not in remarks["006"]


def test_a_name_in_no_encoding_is_told_as_it_is(tmp_path):
    root = photos(tmp_path / "photos", 20)
    smooth(3, 110).save(root / "odd.png")
    os.rename(root / "odd.png", os.fsencode(root) + b"/caf\xe9.png")
    words = [sys.executable, "-m", "data.check", str(root), f"out={tmp_path / 'out'}"]
    done = subprocess.run(
        [*words, "data.size=64", "data.channels=1"], capture_output=True, cwd=ROOT
    )
    assert done.returncode == 1 and b"format: PNG 1" in done.stdout, done.stderr
    assert b"caf\\udce9.png" in done.stdout
    assert b"caf\xe9.png" in (tmp_path / "out/images.csv").read_bytes()


def test_many_files_are_left_out_by_one_glob_where_there_is_one(tmp_path, capsys):
    root = photos(tmp_path / "photos", 40)
    for k in range(6):
        Image.new("L", (99, 99), 7).save(root / f"{k:03d} blank.jpg")
    code, told = check(root, "data.size=64", "data.channels=1", capsys=capsys)
    assert code == 1 and "data.exclude='\"* blank*\"' leaves them out" in told, told


def test_the_bar_counts_images(monkeypatch):
    started, totals = [], []

    def bar(done, said, total, **others):
        totals.append(total)
        for each in done:
            shown.append(len(started))
            yield each

    shown = []
    monkeypatch.setattr("data.decoding.tqdm", bar)
    decode_all(started.append, 700, "reading", str)
    assert totals == [700] == [len(shown)] and shown[0] <= 256


def test_far_is_judged_by_the_tails_of_the_others():
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=60), rng.exponential(size=60), rng.normal(size=5000)):
        assert not len(far_cases(values))
        assert far_cases(np.append(values, 60)).tolist() == [len(values)]
        assert far_cases(np.append(values, [60, -60])).tolist() == [len(values), len(values) + 1]
    assert not len(far_cases(np.arange(10.0) ** 4))  # so few have no tails


def test_images_of_one_archive_are_each_their_own_file():
    class Batches(ImageReader):
        files, labels = [Path("batch_1"), Path("batch_2")], [0] * 6

    assert number_files(Batches()).tolist() == [0, 1, 2, 3, 4, 5]


def test_looks_of_a_file_are_those_of_its_images():
    each = np.arange(4.0)
    of_images = Looks(
        size=np.array([[0, 0], [8, 9], [8, 9], [7, 7]]),
        uniform=each > 9,
        colour=np.array([False, False, True, False]),
        levels=each,
        mean=np.array([0, 10, 30, 50.0]),
        deviation=np.array([0, 3, 4, 5.0]),
        roughness=each,
        likeness_to_mask=each,
        damaged=each > 9,
        thumbnails=np.array([[0, 0], [0, 1], [1, 0], [0, 1]], np.float32),
        failures={},
    )
    of_files = of_images.by_file(np.array([0, 0, 0, 1]))
    assert of_files.size.tolist() == [[8, 9], [7, 7]] and of_files.colour.tolist() == [True, False]
    assert of_files.mean.tolist() == [20, 50] and of_files.likeness_to_mask.tolist() == [0, 3]
    np.testing.assert_allclose(of_files.thumbnails, [[0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-6)


def test_what_the_crop_cuts_off_is_told(tmp_path, capsys):
    root = tmp_path / "wide"
    root.mkdir()
    for k in range(8):
        smooth(k, 120).resize((120, 96)).save(root / f"{k}.png")
    settings = ("data.size=64", "data.channels=1", "data.validation=0", "data.test=0")
    told = check(root, *settings, capsys=capsys)[1]
    (line,) = [each for each in told.splitlines() if each.startswith("scaling")]
    assert "8 of 8 images are scaled to 64x64" in line and "cuts off 20% of their area" in line
    assert "data.fit=pad keeps it" in line
    assert "20% of the picture" in check(root, *settings, "data.fit=pad", capsys=capsys)[1]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        pytest.param(
            ">/dev/full",
            "stdout is lost (No space left on device)",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here"),
        ),
        (">&-", "stdout is closed"),
    ],
)
def test_a_summary_that_is_lost_is_told_in_one_line(tmp_path, how, told):
    """And is nothing suspicious about the images."""
    photos(tmp_path / "photos", 8)
    done = subprocess.run(
        f'"{sys.executable}" -m data.check "{tmp_path}/photos" data.channels=1 '
        f'"out={tmp_path}/out" {how}',
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if "std" in line]
    assert done.returncode == 0, done.stderr
    assert lines == [
        f"{told}: what is printed there from here on is not shown, and all else goes on"
    ]
    assert (tmp_path / "out/images.csv").is_file()
