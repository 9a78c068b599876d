"""Which files of a folder count, and in which class, split and patient; what is said of the
others."""

from __future__ import annotations

import inspect
import io
import json
import os
from collections import Counter
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from config.overrides import CONF
from data.dataset import open_dataset
from data.file_cache import FileCache
from data.intensity import to_levels
from data.memory_map import open_memory_map
from data.settings import OWN_KEYS, READERS, DataSettings
from data.sources.folder import Folder
from runtime.config_schema import resolve
from runtime.content import sha256_of
from runtime.errors import UserError
from tests.helpers.caches import new_cache

MEMORY = new_cache()
SPLITS = ("train", "validation", "test")


def write(root: Path, names: list[str], size: tuple[int, int] = (8, 8)) -> Path:
    """Tiny images, no two alike. size: width, height."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def folder(root: Path, names: list[str] = (), **settings) -> Folder:
    return Folder(MEMORY, str(write(root, list(names))), **settings)


def split_of(source: Folder) -> dict[str, str]:
    return {
        source.files[item].relative_to(source.root).as_posix(): split
        for split in SPLITS
        for item in source.splits[split]
    }


def assert_partition(source: Folder) -> None:
    assert sorted(item for split in SPLITS for item in source.splits[split]) == list(
        range(len(source))
    )


# Drawn splits


def test_classes_are_split_alike(tmp_path):
    sizes = {"many": 200, "some": 50, "few": 10, "two": 2}
    source = folder(
        tmp_path,
        [f"{name}/{k}.bmp" for name, n in sizes.items() for k in range(n)],
        validation=0.2,
        test=0.1,
    )
    assert_partition(source)
    for split, share in {"validation": 0.2, "test": 0.1}.items():
        counts = Counter(source.classes[source.labels[item]] for item in source.splits[split])
        assert abs(len(source.splits[split]) - share * 262) <= 1
        for name, n in sizes.items():
            assert abs(counts[name] - share * n) <= 1.5
    trained = Counter(source.labels[item] for item in source.splits["train"])
    assert len(trained) == 4
    validation = [
        item for item in source.splits["validation"] if source.files[item].parent.name == "many"
    ]
    # drawn, and not the last ones
    assert validation != sorted(validation)[:1] and np.ptp(validation) > 100


def test_many_small_classes_have_their_share_and_train_all(tmp_path):
    source = folder(tmp_path, [f"{c:02d}/{k}.bmp" for c in range(40) for k in range(3)])
    assert [len(source.splits[split]) for split in SPLITS] == [96, 12, 12]
    assert {source.labels[item] for item in source.splits["train"]} == set(range(40))


@pytest.mark.parametrize("settings", [{}, {"validation": 0.0}, {"test": 0.0}])
def test_a_class_with_one_image_is_refused_where_splits_are_drawn(tmp_path, settings):
    write(tmp_path, [*(f"cat/{k}.png" for k in range(4)), "lynx/0.png"])
    with pytest.raises(
        UserError, match=r"class lynx has a single image.*data.classes=false.*validation=0"
    ) as raised:
        folder(tmp_path, **settings)
    assert "cat" not in str(raised.value)
    assert len(folder(tmp_path, validation=0, test=0).splits["train"]) == 5
    assert list(folder(tmp_path, classes=False).classes) == []


def test_a_class_with_one_image_is_well_where_splits_are_given(tmp_path):
    source = folder(
        tmp_path,
        [
            f"{split}/{name}/{split}.png"
            for split in ("train", "val", "test")
            for name in ("cat", "lynx")
        ],
    )
    assert list(source.classes) == ["cat", "lynx"] and [
        len(source.splits[split]) for split in SPLITS
    ] == [2, 2, 2]


def test_splits_that_come_out_empty_are_named(tmp_path, caplog):
    source = folder(tmp_path, [f"{k}.png" for k in range(3)], validation=0.1, test=0)
    assert [len(source.splits[split]) for split in SPLITS] == [3, 0, 0]
    [line] = [record.message for record in caplog.records]
    assert "validation" in line and "data.validation=0.1" in line


# Classes


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_images_beside_class_folders_are_refused(tmp_path, prefix):
    names = [
        f"{prefix}{name}"
        for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "stray.png", "stray2.png")
    ]
    with pytest.raises(
        UserError,
        match=r"2 images lie beside class folders such as cat.*stray.png.*data.classes=false",
    ):
        folder(tmp_path, names)
    source = folder(tmp_path, classes=False)
    assert list(source.classes) == [] and set(source.labels) == {0} and len(source) == 6


def test_a_test_split_without_the_classes_of_train_is_refused(tmp_path):
    names = [*(f"train/{name}/{k}.png" for name in ("cat", "dog") for k in range(3)), "test/0.png"]
    with pytest.raises(UserError, match=r"test/0.png.*data.classes=false"):
        folder(tmp_path, names)


def test_a_class_that_is_never_trained_is_named(tmp_path, caplog):
    folder(
        tmp_path,
        [f"{name}.png" for name in ("train/cat/0", "train/cat/1", "val/cat/2", "test/Cat/3")],
    )
    assert any("class Cat has no training images" in record.message for record in caplog.records)


# Which files


def test_what_is_no_image_is_counted_by_its_suffix(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, [f"{k}.png" for k in range(20)])
    for name in ("a.csv", "b.CSV", "README", "deep/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    assert len(folder(tmp_path)) == 20
    [line] = [record.message for record in caplog.records]
    assert line.endswith("left out 4 files that are no images: .csv 2, .txt 1, without suffix 1")


def test_hidden_files_are_ignored(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, [f"{k}.png" for k in range(20)])
    write(tmp_path, [".hidden.png", ".git/x.png", "__MACOSX/._0.png"])
    source = folder(tmp_path)
    assert len(source) == 20 and not caplog.records and list(source.classes) == []


def test_a_folder_of_other_files_says_what_it_has(tmp_path):
    for name in ("a.dcm", "b.dcm", "c.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(
        UserError,
        match=r"no images in it \(looked for .*\.png.*; it has 3 other files: \.dcm 2, \.txt 1",
    ):
        folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in it.*it has no files"):
        folder(tmp_path / "empty")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"images.zip is a file.*Unpack it"):
        folder(tmp_path / "images.zip")


def test_linked_folders_are_followed_and_circles_are_not(tmp_path):
    write(tmp_path / "elsewhere", [f"{k}.png" for k in range(6)])
    write(tmp_path / "images", [f"cat/{k}.png" for k in range(6)])
    os.symlink(tmp_path / "elsewhere", tmp_path / "images/dog")
    os.symlink(tmp_path / "images", tmp_path / "images/cat/around")
    source = folder(tmp_path / "images")
    assert list(source.classes) == ["cat", "dog"] and len(source) == 12
    moved = tmp_path / "other"
    os.rename(tmp_path / "images", moved)
    (moved / "cat/around").unlink()
    assert folder(moved).fingerprint == source.fingerprint


@pytest.mark.parametrize("name", ["folder", "dicom", "nifti"])
def test_every_option_stands_in_its_yaml_with_its_default(name):
    text = (CONF / "data" / f"{name}.yaml").read_text()
    assert f"python train.py data={name} data.path=DIR" in text.splitlines()[0]
    node = yaml.safe_load(text)
    parameters = inspect.signature(resolve(node["_target_"], READERS, "data")).parameters
    options = {
        key.rstrip("_"): p.default
        for key, p in parameters.items()
        if key not in ("file_cache", "path")
    }
    assert options == {
        key: value for key, value in node.items() if key not in {*OWN_KEYS, "_target_", "path"}
    }
    assert node.keys() > OWN_KEYS and {f.name for f in fields(DataSettings)} == {
        *OWN_KEYS,
        "reader",
    }


def test_names_in_no_encoding(tmp_path, caplog):
    caplog.set_level("CRITICAL")  # pytest-xdist cannot send such names to its other process
    write(tmp_path / os.fsdecode(b"caf\xe9"), ["a.png", os.fsdecode(b"\xff.png")])
    assert len(Folder(FileCache(tmp_path / "memory"), str(tmp_path / os.fsdecode(b"caf\xe9")))) == 2


# Patients


@pytest.mark.parametrize("pattern", [r"P\d+", r"(P\d+)_", r"_of_(?:x)?|(P\d+)"])
def test_a_patient_is_in_one_split(tmp_path, pattern):
    names = [
        f"{'sick' if p % 3 else 'well'}/P{p:02d}_{k}.bmp"
        for p in range(40)
        for k in range(1 + p % 7)
    ]
    source = folder(tmp_path, names, patient=pattern, validation=0.2, test=0.2)
    assert_partition(source)
    splits = {}
    for name, split in split_of(source).items():
        splits.setdefault(name.split("/")[1][:3], set()).add(split)
    assert all(len(s) == 1 for s in splits.values()) and {
        next(iter(s)) for s in splits.values()
    } == set(SPLITS)
    for split in ("validation", "test"):
        assert abs(len(source.splits[split]) - 0.2 * len(names)) <= 7


def test_a_patient_with_images_of_two_classes_is_in_one_split(tmp_path):
    names = [f"{name}/{p:02d}.bmp" for name in ("left", "right") for p in range(30)]
    found = split_of(folder(tmp_path, names, patient=r"/(\d+)"))
    assert all(found[f"left/{p:02d}.bmp"] == found[f"right/{p:02d}.bmp"] for p in range(30))
    assert set(found.values()) == set(SPLITS)


def test_a_class_of_one_patient_is_named(tmp_path, caplog):
    names = [
        *(f"common/P{p}_{k}.png" for p in range(20) for k in range(2)),
        *(f"rare/P99_{k}.png" for k in range(4)),
    ]
    source = folder(tmp_path, names, patient=r"P\d+")
    assert {split_of(source)[f"rare/P99_{k}.png"] for k in range(4)} == {"train"}
    [line] = [record.message for record in caplog.records]
    assert "class rare are of one patient" in line


def test_a_pattern_that_does_not_match_is_refused(tmp_path):
    write(tmp_path, ["P1.png", "P2.png", "other.png"])
    with pytest.raises(
        UserError, match=r"data.patient=X\\d matches none of the paths: 3 of 3.*P1.png"
    ):
        folder(tmp_path, patient=r"X\d")
    with pytest.raises(
        UserError, match=r"matches not all of the paths: 1 of 3 are without, such as other.png"
    ):
        folder(tmp_path, patient=r"P\d")
    with pytest.raises(UserError, match=r"data.patient=\(: not a regular expression"):
        folder(tmp_path, patient="(")


def test_a_single_patient_is_refused(tmp_path):
    write(tmp_path, [f"P1_{k}.png" for k in range(9)])
    with pytest.raises(
        UserError, match=r"all 9 images are of one patient.*data.patient=REGEX.*data.validation=0"
    ):
        folder(tmp_path, patient=r"P\d")
    assert len(folder(tmp_path, patient=r"P\d", validation=0, test=0).splits["train"]) == 9


def test_given_splits_that_share_a_patient_are_named(tmp_path, caplog):
    names = [
        "train/P1_a.png",
        "train/P2_a.png",
        "val/P3_a.png",
        "test/P1_b.png",
        "test/P2_b.png",
        "test/P4_b.png",
    ]
    folder(tmp_path, names, patient=r"P\d")
    [line] = [record.message for record in caplog.records]
    assert (
        "patients in more than one split: 2," in line and "P1_a.png" in line and "P1_b.png" in line
    )


def test_given_splits_that_share_a_file_are_named(tmp_path, caplog):
    write(tmp_path, ["train/a.png", "train/b.png", "val/c.png", "test/d.png"])
    (tmp_path / "test/copy.png").write_bytes((tmp_path / "train/b.png").read_bytes())
    folder(tmp_path)
    [line] = [record.message for record in caplog.records]
    assert (
        "files of the same content in more than one split: 1," in line
        and "train/b.png" in line
        and "test/copy.png" in line
    )


def test_all_that_changes_pixels_or_splits_is_in_the_fingerprint(tmp_path):
    write(tmp_path, [f"{name}/P{k}.png" for name in ("a", "b") for k in range(4)])
    changes = [
        {},
        {"validation": 0.2},
        {"test": 0.2},
        {"patient": r"P\d"},
        {"patient": r"\d"},
        {"classes": False},
        {"range_": "image"},
    ]
    assert len({folder(tmp_path, **change).fingerprint for change in changes}) == len(changes)


# Broken files


def broken_folder(root: Path) -> Path:
    write(root, [f"{k}.png" for k in range(20)])
    for k in (3, 7, 11):
        (root / f"{k}.png").write_bytes(b"broken" if k != 7 else b"")
    return root


def settings(**change) -> DataSettings:
    return DataSettings(Folder, 8, 1, False, **change)


def test_broken_files_are_left_out_by_option_and_remembered(tmp_path, caplog):
    source = folder(broken_folder(tmp_path / "images"))
    with pytest.raises(
        UserError,
        match=r"3 of 20 images(.|\n)*3.png(.|\n)*7.png: empty(.|\n)*data.skip_broken=true",
    ):
        open_dataset(settings(), source, 0, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))
    found = []
    for _ in range(2):
        caplog.clear()
        data = open_dataset(settings(skip_broken=True), source, 0, tmp_path / "cache")
        rows = np.concatenate([data.splits[split] for split in SPLITS])
        assert sorted(source.files[row].stem for row in rows) == sorted(
            str(k) for k in range(20) if k not in (3, 7, 11)
        )
        assert all(
            np.array_equal(data.images[row][..., 0], np.asarray(Image.open(source.files[row])))
            for row in rows
        )
        [line] = [record.message for record in caplog.records]
        assert all(f"{k}.png" in line for k in (3, 7, 11)) and "left out" in line
        found.append(line)
        source.read_image = None  # the second start decodes nothing
    assert found[0] == found[1]


def test_a_map_with_gaps_is_not_used_by_a_run_that_wants_none(tmp_path):
    source = folder(broken_folder(tmp_path / "images"))
    open_dataset(settings(skip_broken=True), source, 0, tmp_path / "cache")
    with pytest.raises(UserError, match="3 of 20 images"):
        open_dataset(settings(), source, 0, tmp_path / "cache")
    # what it takes to read them was installed
    source.read_image = lambda item: Image.linear_gradient("L").resize((8, 8))
    assert len(open_dataset(settings(), source, 0, tmp_path / "cache").splits["train"]) == len(
        source.splits["train"]
    )
    assert len(
        open_dataset(settings(skip_broken=True), source, 0, tmp_path / "cache").splits["train"]
    ) == len(source.splits["train"])


def test_a_map_without_gaps_serves_both(tmp_path):
    source = folder(tmp_path / "images", [f"{k}.png" for k in range(5)])
    open_memory_map(source, settings(skip_broken=True), tmp_path / "cache")
    source.read_image = None
    assert open_memory_map(source, settings(), tmp_path / "cache")[1] == {}
    [about] = [json.loads(p.read_text()) for p in (tmp_path / "cache").glob("*.json")]
    assert about["shape"] == [5, 8, 8, 1] and about["broken"] == {}


def test_broken_files_count_before_n_train(tmp_path):
    source = folder(broken_folder(tmp_path / "images"), validation=0, test=0)
    assert (
        len(
            open_dataset(
                settings(skip_broken=True, n_train=17), source, 0, tmp_path / "cache"
            ).splits["train"]
        )
        == 17
    )
    with pytest.raises(UserError, match=r"data.n_train=18: .* has 17 training images"):
        open_dataset(settings(skip_broken=True, n_train=18), source, 0, tmp_path / "cache")


def test_nothing_left_is_one_message(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="no image is left to train on; 4 cannot be used"):
        open_dataset(settings(skip_broken=True), folder(tmp_path), 0, tmp_path / "cache")


def test_small_images_end_with_their_cure(tmp_path):
    write(tmp_path, [f"{k}.png" for k in range(5)])
    write(tmp_path, ["small.png"], (7, 9))
    with pytest.raises(
        UserError,
        match=r"small.png: 9 high and 7 wide, smaller than data.size=\[8, "
        r"8\](.|\n)*data.upscale=true",
    ) as raised:
        open_dataset(settings(), folder(tmp_path), 0, tmp_path / "cache")
    assert str(raised.value).count("data.upscale") == 1
    assert (
        len(open_dataset(settings(upscale=True), folder(tmp_path), 0, tmp_path / "cache").images)
        == 6
    )


def test_long_lists_are_cut(tmp_path):
    for k in range(50):
        (tmp_path / f"{k}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"50 of 50(.|\n)*and 30 more"):
        open_dataset(settings(), folder(tmp_path), 0, tmp_path / "cache")


def test_the_folder_above_the_splits_is_no_class(tmp_path):
    """An archive unpacked into a folder of its own: its one folder would be the only class, and the
    splits lost."""
    write(tmp_path, [f"faces/{split}/{k}.png" for split in ("train", "test") for k in range(5)])
    with pytest.raises(UserError, match=f"data.path={tmp_path}/faces"):
        Folder(FileCache(tmp_path / "memory"), str(tmp_path))
    assert len(Folder(FileCache(tmp_path / "memory"), str(tmp_path / "faces")).splits["test"]) == 5


class Npy(Folder):
    """As docs/extending.md has it: one uint8 image [H, W] in each .npy file."""

    suffixes = (".npy",)

    def read_image(self, item: int) -> Image.Image:
        return Image.fromarray(np.load(io.BytesIO(self.file_cache.read_bytes(self.files[item]))))


def test_a_source_of_ones_own(tmp_path):
    """Its images are trained on; what its library raises is told with the file's name."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for k, image in enumerate(pixels):
        np.save(folder / f"{k}.npy", image)
    reader = Npy(FileCache(tmp_path / "memory"), str(folder), validation=0, test=0)
    images, _ = open_memory_map(reader, settings(), tmp_path / "cache")
    assert np.array_equal(images[..., 0], pixels)
    (folder / "1.npy").write_bytes(b"no array")
    reader = Npy(FileCache(tmp_path / "memory"), str(folder), validation=0, test=0)
    with pytest.raises(UserError, match=r"1\.npy.*cannot be read"):
        open_memory_map(reader, settings(), tmp_path / "cache")
    (folder / "1.npy").write_bytes(b"")  # EOFError, which is no ValueError
    reader = Npy(FileCache(tmp_path / "memory"), str(folder), validation=0, test=0)
    with pytest.raises(UserError, match=r"1\.npy.*cannot be read \(EOFError"):
        open_memory_map(reader, settings(), tmp_path / "cache")


class Scaled(Npy):
    """With a setting of its own, which Folder's fingerprint knows nothing of."""

    def __init__(self, file_cache, path, white: float = 255.0):
        super().__init__(file_cache, path, 0, 0)
        self.white = white


class Gamma(Scaled):
    """And one more, of a subclass of that."""

    def __init__(self, file_cache, path, white: float = 255.0, gamma: float = 1.0):
        super().__init__(file_cache, path, white)
        self.gamma = gamma


def test_a_setting_of_ones_own_is_part_of_what_the_images_are(tmp_path):
    np.save(tmp_path / "0.npy", np.zeros((8, 8), np.uint8))

    def fingerprint(reader, **own) -> str:
        settings = DataSettings(partial(reader, path=str(tmp_path), **own), 8, 1, False)
        return settings.open_reader(tmp_path / "cache").fingerprint

    assert len({fingerprint(Scaled, white=w) for w in (255.0, 100.0)}) == 2
    both = [(255.0, 1.0), (100.0, 1.0), (255.0, 2.0)]
    assert len({fingerprint(Gamma, white=w, gamma=g) for w, g in both}) == 3
    plain = Npy(FileCache(tmp_path / "cache/memory"), str(tmp_path), validation=0.2)
    assert fingerprint(Npy, validation=0.2) == plain.fingerprint  # as it was


class Below(Npy):
    """With a setting of its own that is called as EuroSat's place is."""

    def __init__(self, file_cache, path, root: str):
        super().__init__(file_cache, f"{path}/{root}", 0, 0)


class Placed(Below):
    places = ("root",)


def test_a_setting_is_a_place_where_the_class_says_so(tmp_path):
    """Of any other the fingerprint is as it was before EuroSat came, and readers keep it."""
    for root in "ab":
        (tmp_path / root).mkdir()
        np.save(tmp_path / root / "0.npy", np.zeros((8, 8), np.uint8))

    def fingerprints(kind) -> list[str]:
        readers = [partial(kind, path=str(tmp_path), root=root) for root in "ab"]
        opened = [DataSettings(r, 8, 1, False).open_reader(tmp_path / "cache") for r in readers]
        return [reader.fingerprint for reader in opened]

    plain = Below(FileCache(tmp_path / "memory"), str(tmp_path), "a").fingerprint
    assert fingerprints(Below) == [sha256_of([plain, {"root": root}]) for root in "ab"]
    [first, second] = fingerprints(Placed)
    assert first == second == Placed(FileCache(tmp_path / "memory"), str(tmp_path), "a").fingerprint


class Stretched(Npy):
    """Files whose range the folder cannot measure."""

    def read_image(self, item: int) -> Image.Image:
        values = np.asarray(super().read_image(item))
        return to_levels(values, *self.range(values))


def test_what_cannot_be_measured_names_the_setting(tmp_path):
    np.save(tmp_path / "0.npy", np.arange(64.0).reshape(8, 8))
    reader = Stretched(FileCache(tmp_path / "memory"), str(tmp_path), validation=0, test=0)
    with pytest.raises(UserError, match=r"could be measured: data\.range=\[LOW,HIGH\] sets it"):
        open_memory_map(reader, settings(), tmp_path / "cache")
