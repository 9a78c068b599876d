"""Paths on the command line are taken as they are, whatever Hydra's grammar makes of them."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from config.overrides import check_overrides, composed, with_paths_as_given
from data.check.section import read_section
from runtime.errors import UserError
from tests.helpers import runs

ODD = [
    "with, comma (1)",
    "a=b",
    "x[1]",
    "{a,b}",
    "a b ",
    "it's",
    '"q"',
    "a'b\"c",
    "数据 é",
    "2017",
    "007",
    "1e3",
    "true",
    "a#b&c;d!",
    "${seed}",
    "a\\${data.size}\\",
    "~t",
    "null,1",
    "glob(*)",
]


def path_in(key: str, line: str, *others: str) -> object:
    """What config NAME.yaml has under a key, with one line of a command, by way of the check."""
    arguments = with_paths_as_given([*others, line])
    check_overrides("train", arguments)
    node = composed("train", arguments)
    for part in key.split("."):
        node = node[part]
    return node


@pytest.mark.parametrize("name", ODD)
def test_a_path_that_exists_is_taken_as_it_is(tmp_path, monkeypatch, name):
    (tmp_path / name / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for path in (f"{name}/below", str(tmp_path / name)):
        assert path_in("data.path", f"data.path={path}", "data=folder") == path
    assert path_in("source.from", f"source.from={name}", f"run.root={name}") == name
    # also in the lines that a setting holds, which are composed later
    assert composed("train", ["data=folder", f"data.path={name}"])["data"]["path"] == name
    for script, key in (("sample", "checkpoint"), ("export", "checkpoint"), ("evaluate", "images")):
        more = ["out=x", "checkpoint=y"] if script == "export" else ["checkpoint=y"]
        arguments = with_paths_as_given([*more, f"{key}={name}"])
        check_overrides(script, arguments)
        assert composed(script, arguments)[key] == name


@pytest.mark.parametrize("name", [*ODD[:8], "2017", "a#b&c;d!", "数据 é"])
def test_a_place_that_does_not_exist_yet_is_taken_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    expected = name.strip() if name == "a b " else "q" if name == '"q"' else name
    assert path_in("run.root", f"run.root={name}") == expected


def test_what_is_no_path_or_is_quoted_stays_hydras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0,1").mkdir()
    lines = [
        "seed=0,1",  # a sweep
        "data.path=a,b",
        "data.path='a b'",
        "run.root=${oc.env:HOME}/runs",
        "source.from=null",
        "+experiment=transfer_demo",
        "-m",
        "data.patient=(P\\d+)",
        "out=a",
    ]
    assert with_paths_as_given(lines) == lines


def test_letters_of_other_languages_are_taken_in_any_setting():
    assert path_in("run.experiment", "run.experiment=größe") == "größe"
    assert composed("sample", ["checkpoint=x", "label=Lungenentzündung"])["label"] == (
        "Lungenentzündung"
    )
    assert path_in("data.exclude", "data.exclude=[é*,b]", "data=folder", "data.path=x") == [
        "é*",
        "b",
    ]
    _, section = read_section([".", "data=folder", "data.exclude=é*"])
    assert section["exclude"] == "é*"


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my images").mkdir()
    line = "data.path=~/my images"
    assert path_in("data.path", line, "data=folder") == str(tmp_path / "my images")
    assert path_in("run.root", "run.root=~/new") == str(tmp_path / "new")


def test_a_path_alone_names_the_reader_that_is_meant(tmp_path):
    folder = tmp_path / "my images"
    folder.mkdir()
    for suffix, reader in (("png", "folder"), ("dcm", "dicom"), ("nii.gz", "nifti")):
        for old in folder.iterdir():
            old.unlink()
        (folder / f"a.{suffix}").touch()
        with pytest.raises(UserError) as error:
            check_overrides("train", with_paths_as_given([f"data.path={folder}"]))
        assert f"data={reader} data.path='{folder}' is meant" in str(error.value)


def test_a_run_from_and_to_odd_places(tmp_path):
    """train.py, sample.py and report.py, in processes of their own."""
    root = tmp_path / "odd, (1) ${x}"
    (root / "images=").mkdir(parents=True)
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images=/{k}.png")
    code, text = runs.train(root, ["data=folder", f"data.path={root}/images=", "train.steps=1"])
    assert code == 0, text
    run = runs.directory_of(root)
    done = runs.command(
        "sample.py", f"checkpoint={run}", "n=1", "sampler.steps=2", f"out={root}/out, [1]"
    )
    assert done.returncode == 0 and (root / "out, [1]/000000.png").exists(), done.stderr
    assert runs.command("report.py", str(run.parent)).returncode == 0
    shutil.rmtree(root)
    assert not os.listdir(tmp_path)
