"""Folders as people have them: masks beside images, splits and suffixes in other spellings, several
images of a patient, links to nothing; each read rightly, refused, or told with its cure."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageFilter

from config.overrides import CONF
from data import folder_reader
from data.dataset import open_dataset
from data.folder_layout import reader_for
from data.mask_names import masks_among
from data.memory_map import open_memory_map
from data.named_masks import warn_of_masks
from data.patient_names import find_patients, tell_patients
from data.settings import DataSettings
from data.sources.folder import Folder
from data.sources.nifti import Nifti
from runtime.errors import UserError
from runtime.hydra_private import parse_overrides
from tests.helpers.caches import new_cache

MEMORY = new_cache()
SPLITS = ("train", "validation", "test")
EIGHT = DataSettings(Folder, 8, 1, False)


@pytest.fixture(autouse=True)
def _all_is_heard(caplog):
    caplog.set_level(logging.INFO)


def noise(seed: int, shape: tuple[int, ...] = (24, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def mask(seed: int, size: int = 24) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (((y - size // 2) ** 2 + (x - 8 - seed % 5) ** 2 < (size // 4) ** 2) * 255).astype(
        np.uint8
    )


def write(root: Path, *names: str, of=noise) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(of(k + len(name))).save(root / name)
    return root


def opened(root: Path, **settings) -> Folder:
    source = Folder(MEMORY, str(root), **settings)
    warn_of_masks(source)  # as DataSettings.open_reader
    return source


def split_of(source) -> dict[str, str]:
    return {
        source.files[item].relative_to(source.root).as_posix(): split
        for split in SPLITS
        for item in source.splits[split]
    }


def pasted(text: str) -> dict[str, object]:
    """The settings data.KEY=VALUE that a message names, as a shell and Hydra take them."""
    words = shlex.split(text.replace("; ", " ").replace(", which", " "))
    found = parse_overrides([w for w in words if re.match(r"data\.\w+=", w)], CONF)
    return {o.key_or_group.removeprefix("data."): o.value() for o in found}


def warned(caplog, words: str) -> str:
    [line] = [r.getMessage() for r in caplog.records if words in r.getMessage()]
    return line


def refused(root: Path, **settings) -> str:
    with pytest.raises(UserError) as error:
        opened(root, **settings)
    return str(error.value)


# Masks and label maps

BY_NAME = {  # files, how many are no images, the glob
    "busi": (
        [
            f"{c}/{c} ({k}){m}.png"
            for c in ("benign", "malignant")
            for k in "12"
            for m in ("", "_mask")
        ],
        4,
        "*_mask*",
    ),
    "folders": (["images/0.png", "images/1.png", "masks/0.png", "masks/1.png"], 2, "masks/*"),
    "deep": (["x_seg/images/0.png", "x_seg/labels/0.png"], 1, "*/labels/*"),
    "camel": (["imagesTr/a.png", "labelsTr/a.png"], 1, "labelsTr/*"),
    "isic": (["ISIC_01.jpg", "ISIC_02.jpg", "ISIC_01_Segmentation.png"], 1, "*_Segmentation*"),
    "two words": (["Original/1.png", "Ground Truth/1.png"], 1, "Ground Truth/*"),
    "gt": (["Images/1.png", "GT/1.png"], 1, "GT/*"),
    "two kinds": (
        ["a/1.png", "a/1_mask.png", "annotations/1.png"],
        2,
        ["*_mask*", "annotations/*"],
    ),
    "thumbnails": (["a.jpg", "a.thumbnail.jpg"], 1, "*.thumbnail*"),
}


@pytest.mark.parametrize("names, count, glob", BY_NAME.values(), ids=BY_NAME)
def test_masks_that_names_tell_are_warned_of_with_the_setting(tmp_path, caplog, names, count, glob):
    write(tmp_path, *{*names}.difference(masks_among(names)))
    write(tmp_path, *masks_among(names), of=mask)
    opened(tmp_path, validation=0, test=0, splits={})
    line = warned(caplog, "masks, label maps or thumbnails by their names")
    assert f"{count} of {len(names)} files" in line
    found = pasted(line)
    assert found == {"exclude": glob}
    caplog.clear()
    kept = opened(tmp_path, validation=0, test=0, splits={}, **found)
    assert len(kept) == len(names) - count and f"leave out {count} files" in caplog.text
    assert "by their names" not in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["with_mask/1.png", "without_mask/1.png"],
        ["label_0/1.png", "label_1/1.png", "label_1/2.png"],
        ["Ford GT Coupe 2006/1.png", "Ferrari 458/1.png"],
        ["masked ball/1.png", "segway/1.png", "labelled/1.png"],
        ["images/1.png", "images/2.png"],
    ],
)
def test_names_that_only_sound_like_masks_are_not_warned_of(tmp_path, caplog, names):
    opened(write(tmp_path, *names), validation=0, test=0)
    assert "by their names" not in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["mask/1.png", "mask/2.png", "nomask/1.png"],
        ["manual/1.png", "automatic/1.png"],
        ["1_label.png", "1_bottle.png", "2_label.png"],
        ["thumb/1.png", "index/1.png"],
        ["x-24x24.png", "y.png"],
    ],
)
def test_photographs_that_are_named_as_masks_are_not_warned_of(tmp_path, caplog, names):
    opened(write(tmp_path, *names), validation=0, test=0)
    assert "by their names" not in caplog.text


def soft(seed: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask(seed, 48)).filter(ImageFilter.GaussianBlur(2)))


def superpixels(seed: int) -> np.ndarray:
    """Regions of 4 x 4 pixels, each of its own colour."""
    return noise(seed, (12, 12, 3)).repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize("kind", [soft, superpixels], ids=["soft edges", "many colours"])
def test_masks_of_many_levels_are_still_told_by_their_names(tmp_path, caplog, kind):
    write(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path, "1_mask.png", "2_mask.png", of=kind)
    opened(tmp_path, validation=0, test=0)
    assert "2 of 4 files" in warned(caplog, "by their names")


@pytest.mark.parametrize(
    "copies, glob",
    [
        (["0_thumb.png", "1_thumb.png"], "*_thumb*"),
        (["0-12x12.png", "1-12x9.png"], "*-[0-9]*x[0-9]*"),
    ],
)
def test_smaller_copies_are_told_as_thumbnails(tmp_path, caplog, copies, glob):
    write(tmp_path, "0.png", "1.png")
    write(tmp_path, *copies, of=lambda k: noise(k, (12, 12)))
    opened(tmp_path, validation=0, test=0)
    line = warned(caplog, "by their names")
    assert "2 of 4 files" in line and pasted(line) == {"exclude": glob}
    assert len(opened(tmp_path, validation=0, test=0, exclude=glob)) == 2


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("masks", [1, 5])
def test_masks_that_pixels_tell_are_warned_of(tmp_path, caplog, suffix, masks):
    write(tmp_path, *(f"{k}.png" for k in range(30)))
    for k in range(masks):
        Image.fromarray(mask(k, 48)).save(tmp_path / f"{k}_1stHO.{suffix}")
    source = opened(tmp_path, validation=0, test=0)
    open_memory_map(source, EIGHT, tmp_path / "cache")
    line = warned(caplog, "few grey levels")
    assert f"{masks} of {30 + masks} files" in line and "0_1stHO" in line
    kept = opened(tmp_path, validation=0, test=0, **pasted(line))
    assert len(kept) == 30


def test_images_that_are_alike_in_their_levels_are_no_masks(tmp_path, caplog):
    """Drawings alone; photographs beside some that are dark, or have a wide margin."""
    write(tmp_path / "drawings", *(f"{k}.png" for k in range(9)), of=mask)
    photographs = [noise(k) for k in range(9)]
    photographs[0] //= 4
    photographs[1][:18] = 0
    for k, image in enumerate(photographs):
        write(tmp_path / "photographs", f"{k}.png", of=lambda _, image=image: image)
    for name in ("drawings", "photographs"):
        open_memory_map(opened(tmp_path / name, validation=0, test=0), EIGHT, tmp_path / "cache")
    assert "grey levels" not in caplog.text


def test_label_maps_of_volumes_are_warned_of(tmp_path, caplog):
    for k in range(3):
        for name, voxels in (
            ("imagesTr", noise(k, (12, 12, 2))),
            ("labelsTr", mask(k)[::2, ::2, None]),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(np.broadcast_to(voxels, (12, 12, 2)).copy(), np.eye(4))
            nibabel.save(image, tmp_path / name / f"c{k}{'_0000' * (name == 'imagesTr')}.nii.gz")
    warn_of_masks(Nifti(MEMORY, str(tmp_path), validation=0, test=0))
    line = warned(caplog, "by their names")
    assert "3 of 6 files" in line and pasted(line) == {"exclude": "labelsTr/*"}
    assert "imagesTr, labelsTr: taken for the folder train" in caplog.text
    kept = Nifti(MEMORY, str(tmp_path), validation=0, test=0, exclude="labelsTr/*")
    assert {p.parent.name for p in kept.files} == {"imagesTr"}


def test_folders_of_servers_and_archives_are_left_out(tmp_path):
    own = ["a/1.png", "a/2.png"]
    others = ["a/@eaDir/1.png", "__MACOSX/a/1.png", ".thumbnails/1.png", "#recycle/3.png"]
    write(tmp_path, *own, *others)
    (tmp_path / "a/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(40))
    assert [*split_of(opened(tmp_path, validation=0, test=0))] == own


# include and exclude


def test_globs_choose_files_by_their_paths(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/x [1].png")

    def kept(**settings) -> list[str]:
        return [*split_of(opened(tmp_path, validation=0, test=0, **settings))]

    assert kept(include="a/*") == ["a/1.png", "a/2.png"]
    assert kept(include=["*/1.png", "*/2.png"], exclude="b/*") == ["a/1.png", "a/2.png"]
    assert kept(exclude="*[[]1]*") == ["a/1.png", "a/2.png", "b/1.png"]
    by_hand = opened(write(tmp_path / "hand", "a/1.png", "a/2.png"), validation=0, test=0)
    assert opened(tmp_path, include="a/*", validation=0, test=0).fingerprint == by_hand.fingerprint


def test_globs_that_match_nothing_or_leave_nothing(tmp_path, caplog):
    write(tmp_path, "a/1.png", "a/2.png")
    assert "data.include='b/*' matches none of the 2 files" in refused(tmp_path, include="b/*")
    assert "leave none of its 2 files" in refused(tmp_path, exclude="*")
    opened(tmp_path, exclude="*_msk*")
    assert "data.exclude='*_msk*' matches none of the 2 files" in caplog.text


# Splits in other spellings

SPELLED = {
    ("train_images", "test_images"): {"train": "train_images", "test": "test_images"},
    ("imagesTr", "imagesTs"): {"train": "imagesTr", "test": "imagesTs"},
    ("Training Set", "TestSet"): {"train": "Training Set", "test": "TestSet"},
    ("trainset", "valid", "testset"): {
        "train": "trainset",
        "validation": "valid",
        "test": "testset",
    },
    ("train2017", "val2017"): {"train": "train2017", "validation": "val2017"},
    ("trainA", "trainB", "testA"): {"train": ["trainA", "trainB"], "test": "testA"},
    ("lungs_train", "lungs_test"): {"train": "lungs_train", "test": "lungs_test"},
    ("cat/train", "cat/test", "dog/train", "dog/test"): {"train": "*/train", "test": "*/test"},
}


@pytest.mark.parametrize("folders, splits", SPELLED.items(), ids=map("+".join, SPELLED))
def test_splits_in_another_spelling_are_asked_about(tmp_path, folders, splits):
    write(tmp_path, *(f"{folder}/{k}.png" for folder in folders for k in range(3)))
    message = refused(tmp_path)
    assert "look like splits in another spelling" in message and "for classes" in message
    head, none = message.split("; data.splits='{}'")
    assert pasted(head.replace(" says so", "")) == {"splits": splits} and none
    source = opened(tmp_path, splits=splits)
    found = split_of(source)
    for split, named in splits.items():
        named = [named] if isinstance(named, str) else named
        inside = {n for n, s in found.items() if s == split}
        asked = {n for n in found for each in named if Path(n).parent.match(each)}
        assert asked >= inside if split == "train" else asked == inside
    assert list(source.classes) == (["cat", "dog"] if "cat/train" in folders else [])
    assert opened(tmp_path, splits={}, validation=0, test=0).classes == sorted(
        {f.split("/")[0] for f in folders}
    )


def test_label_maps_beside_the_images_of_splits_are_named_too(tmp_path):
    write(
        tmp_path, *(f"{f}/{k}.png" for f in ("imagesTr", "imagesTs", "labelsTr") for k in range(3))
    )
    message = refused(tmp_path)
    found = pasted(message.partition("; data.splits='{}'")[0].replace(" leaves", " "))
    assert found == {"splits": {"train": "imagesTr", "test": "imagesTs"}, "exclude": "labelsTr/*"}
    source = opened(tmp_path, **found)
    assert {p.parent.name for p in source.files} == {"imagesTr", "imagesTs"}


@pytest.mark.parametrize(
    "folders",
    [
        ("test", "rest"),
        ("test_tube", "train_station"),
        ("trains", "cars"),
        ("tr", "te", "en"),
        ("cat", "dog"),
    ],
)
def test_classes_that_sound_like_splits_stay_classes(tmp_path, folders):
    write(tmp_path, *(f"{folder}/{k}.png" for folder in folders for k in range(3)))
    assert opened(tmp_path, validation=0, test=0).classes == sorted(folders)


def test_a_class_called_train_has_its_way_out(tmp_path):
    write(tmp_path, *(f"{folder}/{k}.png" for folder in ("train", "plane") for k in range(3)))
    message = refused(tmp_path)
    assert "data.exclude='plane/*'" in message and "data.splits='{}'" in message
    assert opened(tmp_path, splits={}).classes == ["plane", "train"]


def test_all_that_lies_beside_the_splits_can_be_left_out(tmp_path):
    folders = ("bicycle", "plane [2]", "train", "truck")
    write(tmp_path, *(f"{folder}/{k}.png" for folder in folders for k in range(3)))
    message = refused(tmp_path)
    found = pasted(message.partition(". Where")[0])
    assert "9 images lie beside" in message
    assert len(opened(tmp_path, **found)) == 3


def test_dev_is_validation_and_folders_without_train_are_asked_about(tmp_path):
    write(tmp_path, *(f"{folder}/{k}.png" for folder in ("train", "dev") for k in range(3)))
    assert split_of(opened(tmp_path, test=0))["dev/0.png"] == "validation"
    write(tmp_path / "x", *(f"{folder}/{k}.png" for folder in ("val", "test") for k in range(3)))
    assert "none of them is to train on" in refused(tmp_path / "x")


def test_splits_that_are_given_wrongly(tmp_path):
    write(tmp_path, "a/1.png", "b/1.png")
    assert "there is no split trian" in refused(tmp_path, splits={"trian": "a"})
    assert "no folder to train on" in refused(tmp_path, splits={"test": "a"})
    assert "1 images lie beside" in refused(tmp_path, splits={"train": "a"})


# Labels that contradict each other


def test_classes_that_differ_in_case_alone_are_told(tmp_path, caplog):
    opened(write(tmp_path, *(f"{c}/{c}{k}.png" for c in ("Cat", "cat", "dog") for k in range(3))))
    assert "classes Cat and cat differ in capital letters alone" in caplog.text


def test_the_same_image_in_two_classes_is_told_with_an_example(tmp_path, caplog):
    write(tmp_path, *(f"{c}/{c}{k}.png" for c in ("a", "bb") for k in range(4)))
    for k in range(2):
        shutil.copy(tmp_path / f"a/a{k}.png", tmp_path / f"bb/copy{k}.png")
    shutil.copy(tmp_path / "a/a0.png", tmp_path / "a/again.png")
    opened(tmp_path, validation=0, test=0)
    line = warned(caplog, "in more than one class: 2")
    assert "a/a0.png" in line and "bb/copy0.png" in line


def test_classes_without_training_images_are_named_a_few_and_counted(tmp_path, caplog):
    write(tmp_path, "train/a/0.png", *(f"val/c{k:02d}/{k}.png" for k in range(40)))
    opened(tmp_path, test=0)
    line = warned(caplog, "no training images")
    assert "c00" in line and "and 35 more" in line and len(line) < 300


PATIENT_CLASSES = {
    "words": [f"train/patient{p:05d}/study1/{k}.png" for p in range(8) for k in range(2)],
    "numbers": [f"{p}/{k}/{p}_x{k}_y{k}.png" for p in range(8860, 8868) for k in range(2)],
}


@pytest.mark.parametrize("names", PATIENT_CLASSES.values(), ids=PATIENT_CLASSES)
def test_classes_that_are_patients_are_told_with_the_setting(tmp_path, caplog, names):
    write(tmp_path, *names)
    opened(tmp_path, validation=0, test=0)
    line = warned(caplog, "classes look like patients")
    assert "8 classes" in line and pasted(line) == {"classes": False}
    assert ("; if they are, data" in line) == ("8860" in line)


@pytest.mark.parametrize(
    "form",
    [
        "{}/{}.png",
        "{:05d}/00000_{:05d}.png",
        "n{0}/n{0}_{1}.png",
        "{0:03d}/{0:03d}_{1:04d}.png",
        "{0:03d}.bird/{0:03d}_{1:04d}.png",
    ],
)
def test_classes_that_are_numbers_are_no_patients(tmp_path, caplog, form):
    opened(write(tmp_path, *(form.format(c, k) for c in range(8) for k in range(2))), test=0)
    assert "look like patients" not in caplog.text


def test_a_folder_of_arrays_says_how_to_make_an_npz(tmp_path):
    np.save(tmp_path / "0.npy", np.zeros((4, 4)))
    assert "numpy.savez" in refused(tmp_path) and "data=npz" in refused(tmp_path)


# Several images of one patient

PATIENTS = {  # names, how many patients
    "brats": (
        [
            f"BraTS20_Training_{k:03d}_{c}.png"
            for k in range(9)
            for c in ("flair", "t1", "t1ce", "t2")
        ],
        9,
    ),
    "nnunet": ([f"la_{k:03d}_000{c}.png" for k in range(9) for c in range(2)], 9),
    "slices": ([f"patient{p}_slice_{k:03d}.png" for p in range(5) for k in range(6)], 5),
    "lidc": ([f"LIDC-IDRI-{p:04d}/1-{k:03d}.png" for p in range(5) for k in range(6)], 5),
    "tcia": ([f"all/R{p}/1-{k:03d}.png" for p in range(5) for k in range(6)], 5),
    "bids": (
        [f"sub-{p:02d}/anat/sub-{p:02d}_{c}.png" for p in range(9) for c in ("T1w", "T2w")],
        9,
    ),
    "volumes": ([f"volume-{p}_z{k}.png" for p in range(5) for k in range(6)], 5),
    "some": (
        [f"sick/person{p}_bacteria_{k}.png" for p in range(5) for k in range(5)]
        + [f"well/IM-{k:04d}.png" for k in range(25)],
        30,
    ),
    "bids of letters": ([f"sub-S{p:02d}/ses-{k}/x{k}.png" for p in range(9) for k in "123"], 9),
    "oasis": (
        [f"OAS1_{p:04d}_MR1_mpr-{k}_{j}.png" for p in range(9) for k in "12" for j in range(2)],
        9,
    ),
    "adni": ([f"{p:03d}_S_{p:04d}_{k}.png" for p in range(9) for k in "123"], 9),
    "breakhis": (
        [f"SOB_B_A-14-{p}AB-{zoom}-001.png" for p in range(9) for zoom in (40, 100)],
        9,
    ),
    "cbis": ([f"Calc_P_{p:05d}_LEFT_{v}.png" for p in range(9) for v in ("CC", "MLO")], 9),
    "mimic": ([f"p10/p{p:08d}/s{k}/{p}{k}.png" for p in range(9) for k in "123"], 9),
}
GROUPS = {  # as PATIENTS, where names show no patients but groups
    "nih": ([f"{p:08d}_{k:03d}.png" for p in range(9) for k in range(3)], 9),
    "eyes": ([f"{p}_{side}.png" for p in range(20) for side in ("left", "right")], 20),
    "oct": ([f"CNV/CNV-{p}-{k}.png" for p in range(1000, 1009) for k in range(3)], 9),
    "slices": ([f"BraTS20_Training_{p:03d}_{k}.png" for p in range(9) for k in range(60, 63)], 9),
    "uids": ([f"1.3.6.1.4.1.14519.{p}_{k}.png" for p in range(100, 109) for k in range(3)], 9),
    "patches": (
        [f"{p}/{k % 2}/{p}_idx5_x{k}_y{k}_class{k % 2}.png" for p in range(9) for k in range(4)],
        9,
    ),
}


@pytest.mark.parametrize("names, groups", GROUPS.values(), ids=GROUPS)
def test_files_that_differ_in_an_end_alone_are_warned_of_with_the_expression(names, groups):
    splits = [SPLITS[k % 3] for k, _ in enumerate(names)]
    line = tell_patients(names, splits, ())
    assert line and "alone are in more than one split" in line and ". If those of a group" in line
    found = pasted(line.replace(", and data", " data"))["patient"]
    assert len({*find_patients(str(found), names)}) == groups


NO_GROUPS = {  # names of which an end or a number tells nothing
    "omniglot": [f"character{c:02d}/{c + 500:04d}_{k:02d}.png" for c in range(9) for k in range(9)],
    "vggface2": [f"n{c:06d}/{k:04d}_01.jpg" for c in range(9) for k in range(9)],
    "views of classes": [f"c{c}/{k}_left.jpg" for c in range(9) for k in range(9)],
    "dates": [f"2021-{m:02d}-{d:02d}.jpg" for m in range(1, 13) for d in range(1, 29)],
    "dates behind a word": [f"x_2021_{m:02d}_{d:02d}.jpg" for m in range(1, 13) for d in range(9)],
    "map tiles": [f"18_{x}_{y}.png" for x in range(1000, 1012) for y in range(500, 512)],
    "tiles of slides": [
        f"slide{s}_{x}_{y}.png"
        for s in "ABC"
        for x in range(0, 6400, 640)
        for y in range(0, 900, 90)
    ],
    "fruits360": [
        f"{c}/{r}{k}_100.jpg"
        for c in ("Apple Braeburn 1", "Banana 1")
        for r in ("", "r_")
        for k in range(40)
    ],
    "caltech256": [
        f"{c:03d}.{c}thing/{c:03d}_{k:04d}.jpg" for c in range(1, 13) for k in range(1, 30)
    ],
    "caltech256, a few": [f"{c:03d}.x/{c:03d}_{k:04d}.jpg" for c in range(12) for k in range(8)],
    "numbered classes": [f"{c:03d}/{c:03d}_{k:04d}.jpg" for c in range(12) for k in range(8)],
    "dtd": [f"{c}/{c}_{k:04d}.jpg" for c in ("banded", "blotchy") for k in range(40)],
    "dtd, flat": [f"{c}_{k:04d}.jpg" for c in ("banded", "blotchy") for k in range(40)],
    "lfw": [f"A_{c}/A_{c}_{k:04d}.jpg" for c in "abcdefghij" for k in range(1, 2 + ord(c) % 5)],
    "lfw, flat": [f"A_{c}_{k:04d}.jpg" for c in "abcdefghij" for k in range(1, 2 + ord(c) % 5)],
    "a few groups": [f"{c}_scene_{k:02d}.png" for c in range(7) for k in range(9)],
}


@pytest.mark.parametrize("names", NO_GROUPS.values(), ids=NO_GROUPS)
def test_files_that_no_end_groups_are_not_warned_of(names):
    classes = {folder for folder, slash, _ in (name.partition("/") for name in names) if slash}
    splits = [SPLITS[k % 3] for k, _ in enumerate(names)]
    assert tell_patients(names, splits, classes) is None


def test_groups_of_files_that_are_named_alike_in_folders_have_the_folder(caplog):
    names = [f"n{c:06d}/{k:04d}_{j:02d}.jpg" for c in range(3) for k in range(9) for j in (1, 2)]
    splits = [SPLITS[k % 3] for k, _ in enumerate(names)]
    line = tell_patients(names, splits, {f"n{c:06d}" for c in range(3)})
    assert line and "27 groups" in line
    found = pasted(line.replace(", and data", " data"))["patient"]
    assert len({*find_patients(str(found), names)}) == 27


def test_groups_too_few_to_be_drawn_are_not_warned_of(tmp_path, caplog):
    names = [f"{p:08d}_{k:03d}.png" for p in range(9) for k in range(3)]
    root = write(tmp_path, *names, of=lambda k: noise(k, (8, 8)))
    opened(root, validation=0.2, test=0.2)
    assert "alone are in more than one split: " in caplog.text
    caplog.clear()
    opened(root, validation=0.04, test=0.04)
    assert "alone are in more than one split: " not in caplog.text


@pytest.mark.parametrize("names, patients", PATIENTS.values(), ids=PATIENTS)
def test_patients_that_names_show_are_warned_of_with_the_expression(
    tmp_path, caplog, names, patients
):
    write(tmp_path, *names, of=lambda k: noise(k, (8, 8)))
    opened(tmp_path, validation=0.2, test=0.2)
    line = warned(caplog, "of one patient, by their names")
    found = pasted(line)
    caplog.clear()
    source = opened(tmp_path, validation=0.2, test=0.2, **found)
    assert "of one patient" not in caplog.text
    groups = {}
    for name, split in split_of(source).items():
        patient = re.search(str(found["patient"]), name)[1]
        groups.setdefault(patient, set()).add(split)
    assert len(groups) == patients and all(len(splits) == 1 for splits in groups.values())


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}/{c} ({k}).png" for c in ("benign", "malignant") for k in range(12)],
        [f"{c}/frame_{k}.png" for c in ("cat", "dog") for k in range(12)],
        [f"n0144076{c}/n0144076{c}_{k}.png" for c in range(3) for k in range(12)],
        [f"case_{k:04d}.png" for k in range(24)],
        [f"ISIC_{k:07d}.png" for k in range(24)],
        [f"a_painting_of_p{k // 2}_{k}.png" for k in range(24)],
        [f"IMG_2019010{k // 4}_1234{k:02d}.png" for k in range(24)],
    ],
    ids=["numbers", "frames of a class", "imagenet", "one each", "isic", "variants", "cameras"],
)
def test_images_that_are_numbered_are_no_patients(tmp_path, caplog, names):
    opened(write(tmp_path, *names, of=lambda k: noise(k, (8, 8))), validation=0.2, test=0.2)
    assert "of one patient" not in caplog.text and "one split" not in caplog.text


def test_patients_in_given_splits_are_warned_of_only_where_they_are_torn(tmp_path, caplog):
    names = [f"{split}/patient{p}_{k}.png" for p, split in enumerate(SPLITS * 2) for k in range(3)]
    opened(write(tmp_path, *names))
    assert "of one patient" not in caplog.text
    write(tmp_path, "test/patient0_9.png")
    opened(tmp_path)
    assert "1 of 6 patients" in warned(caplog, "of one patient, by their names")


def test_a_folder_opened_again_is_warned_of_again_without_a_search(tmp_path, caplog, monkeypatch):
    searched = []
    told = folder_reader.tell_patients
    monkeypatch.setattr(
        folder_reader, "tell_patients", lambda *args: (searched.append(args), told(*args))[1]
    )
    names = [f"patient{p}_{k}.png" for p in range(9) for k in range(3)]
    write(tmp_path, *names, of=lambda k: noise(k, (8, 8)))
    lines = []
    for count in (1, 1, 2):
        if count == 2:
            write(tmp_path, "patient8_3.png")
        caplog.clear()
        opened(tmp_path, validation=0.2, test=0.2)
        lines.append(warned(caplog, "of one patient, by their names"))
        assert len(searched) == count
    assert lines[0] == lines[1]
    opened(tmp_path, validation=0.3, test=0.2)
    assert len(searched) == 3


# Links to nothing


def test_links_to_nothing_are_all_named_and_left_out_where_asked(tmp_path):
    write(tmp_path / "images", *(f"{k}.png" for k in range(6)))
    for k in (8, 9):
        os.symlink(f"/nowhere/{k}.png", tmp_path / f"images/{k}.png")
    settings = DataSettings(Folder, 8, 1, False, skip_broken=True)
    with pytest.raises(UserError, match="2 of 8 images") as error:
        open_dataset(EIGHT, opened(tmp_path / "images"), 0, tmp_path / "cache")
    for k in (8, 9):
        assert (
            f"{k}.png: cannot be opened (No such file or directory, a link to /nowhere/{k}.png)"
            in str(error.value)
        )
    data = open_dataset(settings, opened(tmp_path / "images"), 0, tmp_path / "cache")
    assert sorted(np.concatenate(list(data.splits.values()))) == list(range(6))


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path):
    write(tmp_path, "0.png", "1.png")
    os.mkfifo(tmp_path / "2.png")
    os.mkfifo(tmp_path / "pipe")
    source = opened(tmp_path, validation=0, test=0)
    with pytest.raises(UserError, match="no regular file"):
        source.read_image(2)
    assert len(source) == 3


# What is said of scaling, and which reader is meant


def test_scaling_and_the_centre_crop_are_in_the_log(tmp_path, caplog):
    for k, shape in enumerate([(24, 24), (24, 48), (8, 8)]):
        write(tmp_path, f"{k}.png", of=lambda _, shape=shape: noise(0, shape))
    open_memory_map(opened(tmp_path, validation=0, test=0), EIGHT, tmp_path / "cache")
    line = warned(caplog, "are scaled")
    assert "2 of 3 images are scaled to 8x8" in line and "from 24x24 to 24x48" in line
    assert "cuts off 25% of their area, at most 50%, and data.fit=pad keeps it" in line
    padded = DataSettings(Folder, 8, 1, False, fit="pad")
    caplog.clear()
    open_memory_map(
        opened(tmp_path, validation=0, test=0, exclude="0.png"), padded, tmp_path / "cache"
    )
    assert "50% of the picture, at most 50%, is black around" in warned(caplog, "are scaled")
    caplog.clear()
    same = DataSettings(Folder, (24, 48), 1, False, skip_broken=True)
    open_memory_map(
        opened(tmp_path, validation=0, test=0, include="1.png"), same, tmp_path / "cache"
    )
    assert "scaled" not in caplog.text


def test_the_reader_that_is_meant(tmp_path):
    for reader, suffix in (
        ("dicom", "dcm"),
        ("nifti", "nii.gz"),
        ("npz", "npz"),
        ("folder", "jpg"),
    ):
        (tmp_path / reader / "below").mkdir(parents=True)
        for k in range(3):
            (tmp_path / reader / "below" / f"{k}.{suffix}").touch()
        assert reader_for(str(tmp_path / reader)) == reader
        if reader != "folder":
            assert f"data={reader} reads such files" in refused(tmp_path / reader)
    assert reader_for(str(tmp_path / "npz/below/0.npz")) == "npz"
    assert reader_for(str(tmp_path / "absent")) == "folder"


def kermany(root: Path) -> Path:
    """Radiographs in folders of splits and classes, of patients that are in two splits."""
    return write(
        root,
        *(
            f"{split}/{kind}/person{k}_{name}_{k + n}.png"
            for k in range(1, 21)
            for n, split in enumerate(("train", "test"))
            for kind, name in (("PNEUMONIA", "bacteria"), ("NORMAL", "none"))
        ),
    )


def test_what_keeps_patients_whole_where_folders_are_splits_does_so(tmp_path, caplog):
    root = kermany(tmp_path / "chest")
    opened(root, validation=0.1, test=0.2)
    cure = pasted(warned(caplog, "of one patient, by their names"))
    assert cure.keys() == {"patient", "splits"} and cure["splits"] == {"train": ["train", "test"]}
    caplog.clear()
    opened(root, validation=0.1, test=0.2, patient=cure["patient"])  # as one who leaves out half
    assert pasted(warned(caplog, "patients in more than one split")) == {"splits": cure["splits"]}
    caplog.clear()
    source = opened(root, validation=0.1, test=0.2, **cure)
    assert not [r for r in caplog.records if "of one patient" in r.message]
    assert not [r for r in caplog.records if "patients in more" in r.message]
    assert source.classes == ["NORMAL", "PNEUMONIA"]
    whose = {}
    for name, split in split_of(source).items():
        whose.setdefault(name.split("person")[1].split("_")[0], set()).add(split)
    assert len(whose) == 20 and all(len(splits) == 1 for splits in whose.values())
    assert {split for splits in whose.values() for split in splits} == set(SPLITS)


def test_what_is_taken_for_a_split_is_said_once(tmp_path, caplog):
    opened(write(tmp_path / "scans", *(f"imagesTr/{k}.png" for k in range(9))))
    warned(caplog, "taken for the folder train")


def test_splits_that_are_taken_for_classes_are_told(tmp_path, caplog):
    root = kermany(tmp_path / "chest")
    assert opened(root, splits={}).classes == ["test", "train"]
    line = warned(caplog, "the classes are test, train")
    assert opened(root, **pasted(line)).classes == ["NORMAL", "PNEUMONIA"]
    caplog.clear()
    opened(
        write(
            tmp_path / "vehicles", *(f"{a}/{k}.png" for a in ("test", "train") for k in range(9))
        ),
        splits={},
    )
    assert not [r for r in caplog.records if "the classes are" in r.message]
