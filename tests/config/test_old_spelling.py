"""Configs as they were written before: a run of then opens, goes on under its name and stands
beside new ones; a user who writes as then is told how it is written now."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from config.identity import identity
from config.old_spelling import RENAMED, as_then, refuse_old_config, translate
from config.overrides import CONF, check_overrides, composed
from config.run_config import RunConfig
from data.settings import OWN_KEYS, READERS, reader_keys
from evaluation.trained_run import TrainedRun
from reporting.page import Report
from reporting.runs import read_runs
from runtime import checkpoint
from runtime.config_schema import resolve
from runtime.errors import UserError
from tests.helpers import FILES, runs
from training.pretrained_source import PretrainedSource, find_source
from training.result import read_result
from transfer.trained_weights import load_weights

# trained by commit 74b72b2, on images() with data.source.path=images, and these settings
RUN = FILES / "run_74b72b2/full-seed3-45b01c13"
SETTINGS = [
    "data=folder",
    "data.validation=0.2",
    "data.size=8",
    "data.channels=1",
    "data.flip=true",
    "model.classes=auto",
    "model.channels=4",
    "model.multipliers=[1]",
    "model.attention_levels=[]",
    "model.groups=2",
    "train.batch_size=2",
    "train.warmup=0",
    "train.precision=fp32",
    "run.device=cpu",
    "run.samples=1",
    "run.held_out_draws=8",
    "run.checkpoint_every=2",
    "sampler.steps=2",
    "schedule.steps=10",
    "transfer.rules=[{pattern: 'conv_out.*'}]",
]


@pytest.fixture
def root(tmp_path) -> Path:
    """images/, and the run in runs/custom/."""
    for k in range(12):
        file = tmp_path / "images" / "ab"[k % 2] / f"{k}.pgm"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = bytes((31 * k + 7 * i + i * i * (k % 3)) % 256 for i in range(64))
        file.write_bytes(b"P5 8 8 255\n" + pixels)
    shutil.copytree(RUN, tmp_path / "runs/custom" / RUN.name)
    return tmp_path


def train(root: Path, *settings: str) -> str:
    code, said = runs.train(root, [*SETTINGS, f"data.path={root}/images", *settings], tiny=())
    assert code == 0, said
    return said


def test_a_run_of_then_is_known_and_goes_on_under_its_name(root):
    directory = root / "runs/custom" / RUN.name
    assert f"finished: {directory} has 2 steps" in train(root, "seed=3", "train.steps=2")
    assert f"resuming at step 2: {directory}" in train(root, "seed=3", "train.steps=4")
    assert [p.name for p in (root / "runs/custom").iterdir()] == [RUN.name]
    assert runs.steps_of(directory) == [2, 4]
    assert (directory / "identity.json").read_bytes() == (RUN / "identity.json").read_bytes()


def test_a_checkpoint_of_then_opens_and_is_sampled(root):
    directory = root / "runs/custom" / RUN.name
    done = runs.command(
        "sample.py",
        f"checkpoint={directory}",
        "n=2",
        "sampler.steps=2",
        "label=all",
        f"out={root}/samples",
    )
    assert done.returncode == 0, done.stderr
    assert len(list((root / "samples").glob("0*.png"))) == 2
    data = load_weights(str(directory)).config.data
    assert (data.height_width, data.channels) == ((8, 8), 1)
    assert data.reader.func is resolve("data.sources.folder.Folder", READERS, "data")
    assert (
        data.reader.keywords["path"] == f"{root}/images"
        and data.reader.keywords["validation"] == 0.2
    )


def test_a_run_of_then_stands_in_one_row_with_a_new_one(root):
    train(root, "seed=4", "train.steps=2")
    train(root, "seed=3", "train.steps=2", "data.n_train=4")
    folder = root / "runs/custom"
    of_then = folder / RUN.name / "config.yaml"
    of_then.write_text(of_then.read_text().replace("path: images", f"path: {root}/images"))
    report = Report(folder, read_runs(folder))
    assert sorted(len(row.runs) for row in report.table) == [1, 2]
    assert list(report.settings) == ["data.n_train"]
    assert dict(report.facts)["target"] == f"Folder ({root}/images)"


def test_the_images_of_a_run_of_then_are_found_elsewhere(root):
    def finished(*overrides: str) -> TrainedRun:
        found = checkpoint.find(root / "runs/custom" / RUN.name)
        return TrainedRun(found, "ema", overrides, None, root / "cache")

    assert finished(f"data.path={root}/images").images[0].images.shape == (12, 8, 8, 1)
    with pytest.raises(
        UserError, match=r"^data.source.path=DIR: this is written data.path=DIR now"
    ):
        assert finished("data.source.path=DIR").images
    for line in ("data.size=9", "train.steps=3", "data.path"):
        with pytest.raises(UserError, match=f"overrides={line}: they are of the run's images"):
            assert finished(line).images


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("data.source.path=X", "data.path=X"),
        ("data.source.size=28", "data.file_size=28"),
        ("+data.source.crop=null", "+data.crop=null"),
        ("~data.source.crop", "~data.crop"),
        ("data.source.classes=true,false", "data.classes=true,false"),
        ("data.source={path: X}", "data={path: X}"),
    ],
)
def test_the_old_spelling_on_a_command_line_is_refused_with_the_new_one(line, new):
    for refuse in (check_overrides, composed):
        with pytest.raises(UserError) as raised:
            refuse("train", ["data=folder", line])
        assert str(raised.value).startswith(f"{line}: this is written {new} now.")


# data.download of MedMNIST, which is fetched without it now


@pytest.fixture
def medmnist(tmp_path) -> list[str]:
    """The command of a run on a file in the form of breastmnist.npz."""
    arrays = {}
    for split, n in (("train", 8), ("val", 4), ("test", 4)):
        pixels = np.arange(n * 784, dtype=np.uint8).reshape(n, 28, 28) // np.uint8(n)
        arrays |= {f"{split}_images": pixels, f"{split}_labels": np.arange(n)[:, None] % 2}
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    of_it = ["data.name=breastmnist", "data.file_size=28", f"data.root={tmp_path}"]
    others = [line for line in SETTINGS if not line.startswith(("data=", "data.validation"))]
    return ["data=medmnist", *of_it, *others]


def add_download(directory: Path, value: bool) -> None:
    """To the config that a run saved, where it stood."""
    saved = yaml.safe_load((directory / "config.yaml").read_text())
    saved["data"]["download"] = value
    (directory / "config.yaml").write_text(yaml.safe_dump(saved))
    for path in directory.glob("checkpoints/step_*/state.json"):
        state = json.loads(path.read_text())
        state["config"]["data"]["download"] = value
        del state[checkpoint.OWN]
        digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(state | {checkpoint.OWN: digest}, indent=1))


@pytest.mark.parametrize("value", [False, True])
def test_a_run_with_download_in_its_config_opens_and_goes_on_under_its_name(
    tmp_path, medmnist, value
):
    def train(*settings: str) -> str:
        code, said = runs.train(tmp_path, [*medmnist, *settings], tiny=())
        assert code == 0, said
        return said

    train("train.steps=2")
    directory = runs.directory_of(tmp_path)
    add_download(directory, value)
    read = read_result(directory).settings()
    assert "data.download" not in read and read["data.name"] == "breastmnist"
    config = load_weights(str(directory)).config
    assert "download" not in config.data.reader.keywords
    found = TrainedRun(checkpoint.find(directory), "ema", (), None, tmp_path / "cache")
    assert len(found.images[0].images) == 16
    assert f"finished: {directory} has 2 steps" in train("train.steps=2")
    assert f"resuming at step 2: {directory}" in train("train.steps=4")
    assert runs.directory_of(tmp_path) == directory and runs.steps_of(directory) == [2, 4]


@pytest.mark.parametrize("target", ["data.medmnist.MedMnist", "data.sources.medmnist.MedMnist"])
def test_download_was_no_part_of_a_name(target):
    """Neither beside the other settings nor inside data.source, as it was before; a setting of that
    name in a reader of one's own stays."""
    now = composed("train", ["data=medmnist"])
    reader = {"_target_": target, "name": "pneumoniamnist", "root": "datasets/medmnist"}
    own = {key: now["data"][key] for key in OWN_KEYS}
    beside = own | reader | {"file_size": 64, "classes": None, "download": True}
    inside = own | {"source": reader | {"size": 64, "classes": None, "download": True}}
    for data in (beside, inside):
        then = RunConfig.of_saved(now | {"data": data})
        assert then.raw["data"] == now["data"]
        assert identity(then, "images") == identity(RunConfig(now), "images")
    mine = {"data": {"_target_": "data.sources.mine.Mine", "download": True}}
    assert translate(mine) == mine


@pytest.mark.parametrize(
    "line",
    ["data.download=true", "+data.download=false", "~data.download", "data.source.download=1"],
)
def test_download_on_a_command_line_is_refused(line):
    for refuse in (check_overrides, composed):
        with pytest.raises(UserError) as raised:
            refuse("train", ["data=medmnist", line])
        assert str(raised.value) == (
            f"{line}: leave it out, as MedMNIST is fetched without it now where it is missing."
        )


def test_download_in_a_yaml_is_refused():
    now = composed("train", ["data=medmnist"])
    with pytest.raises(
        UserError, match=r"^data.download=True: leave it out, as MedMNIST is fetched"
    ):
        refuse_old_config(now | {"data": now["data"] | {"download": True}})


@pytest.mark.parametrize(
    "choice",
    [
        ["+experiment=transfer_imagenet_to_medical"],
        ["data=folder", "data._target_=data.sources.medmnist.MedMnist", "data.path=X"],
    ],
)
@pytest.mark.parametrize(
    "line", ["data.download=true", "+data.download=1", "data.source.download=1"]
)
def test_whose_download_it_is_does_not_hang_on_the_choice(choice, line):
    for refuse in (check_overrides, composed):
        with pytest.raises(UserError, match=re.escape(f"{line}: leave it out, as MedMNIST")):
            refuse("train", [*choice, line])


MINE = "data._target_=data.sources.mine.Mine"  # a reader of one's own


@pytest.mark.parametrize("choice", [["data=folder", "data.path=X"], ["data=medmnist"]])
def test_a_setting_of_ones_own_may_be_called_download(choice):
    lines = [*choice, MINE, "+data.download=true"]
    check_overrides("train", lines)
    config = composed("train", lines)
    assert config["data"]["download"] is True and translate(config) == config
    inside = {"source": {"_target_": "data.sources.mine.Mine", "download": True}}
    with pytest.raises(UserError, match=r"source.download=True: this is written .*data.download"):
        refuse_old_config({"data": inside})
    for line, said in (
        ("data.download=true", "data.download: there is no such setting"),
        ("data.source.download=1", "data.source.download=1: this is written data.download=1 now."),
    ):
        with pytest.raises(UserError, match=said):
            check_overrides("train", [*choice, MINE, line])


def test_download_in_a_sweep_is_refused_where_it_is_medmnists():
    with pytest.raises(UserError, match=r"as MedMNIST is fetched .*\(with data=medmnist\)"):
        check_overrides("train", ["-m", "data=folder,medmnist", "+data.download=true"])


@pytest.mark.parametrize("gone", ["data.download=true", "+data.download=false", "~data.download"])
def test_a_run_goes_on_that_is_named_with_download_among_its_sources_overrides(
    tmp_path, medmnist, gone
):
    """The line stays what it was in the run's name, and the source is the one without it."""

    def found(*more: str) -> tuple[RunConfig, PretrainedSource | None]:
        lines = json.dumps([*medmnist, *more])
        target = ["+experiment=transfer_demo", f"source.overrides={lines}"]
        target += [line for line in medmnist if line.startswith("model.")]
        folders = [f"run.root={tmp_path}/runs", f"run.cache={tmp_path}/cache"]
        config = RunConfig(composed("train", [*target, *folders]))
        return config, find_source(config)

    (_, plain), (config, source) = found(), found(gone)
    assert plain and source and source.identity == plain.identity
    assert source.config == plain.config and source.directory == plain.directory
    of_then = gone.replace("data.", "data.source.")
    assert identity(config, "images")["source"]["overrides"][-1] == of_then
    saved = RunConfig.of_saved(config.raw)
    assert saved == config and identity(saved, "images") == identity(config, "images")


def test_download_among_the_overrides_of_a_source_of_ones_own_is_its_own(monkeypatch):
    def check(raw: dict) -> None:
        raise KeyError(raw["data"]["download"])

    monkeypatch.setattr("training.pretrained_source.check_run_config", check)
    lines = '["data=folder","data.path=X","+data.download=true"]'
    config = RunConfig(
        composed("train", ["+experiment=transfer_demo", f"source.overrides={lines}"])
    )
    with pytest.raises(KeyError, match="True"):
        find_source(config)


def test_baselines_were_floors():
    for line in ("metrics=[loss,floors]", "metrics=floors"):
        with pytest.raises(UserError) as raised:
            check_overrides("evaluate", [line])
        new = line.replace("floors", "baselines")
        assert str(raised.value) == f"{line}: this is written {new} now."


def test_the_old_spelling_in_source_overrides_is_refused_with_the_new_one(root):
    code, said = runs.train(
        root, ["+experiment=transfer_demo", "source.overrides=['data.source.path=FACES']"]
    )
    assert code == 2 and said.count("error: ") == 1
    assert "source.overrides=['data.source.path=FACES']" in said
    assert "written source.overrides=['data.path=FACES'] now" in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": {"path": "X"}}, "data.source.path=X: this is written data.path=X now."),
        (
            {"source": {"_target_": "data.npz.Npz", "_partial_": True, "classes": None}},
            "data.source._target_=data.npz.Npz, data.source._partial_=True, "
            "data.source.classes=None: this is written data._target_=data.sources.npz.Npz, "
            "data.classes=None now.",
        ),
        (
            {"_target_": "data.medmnist.MedMnist"},
            "data._target_=data.medmnist.MedMnist: this is written "
            "data._target_=data.sources.medmnist.MedMnist now.",
        ),
    ],
)
def test_the_old_spelling_in_a_yaml_is_refused_with_the_new_one(data, said):
    with pytest.raises(UserError) as raised:
        refuse_old_config({"data": {"size": 8} | data})
    assert str(raised.value) == said


def test_a_yaml_of_the_users_is_refused(tmp_path, monkeypatch):
    conf = shutil.copytree(CONF, tmp_path / "conf")
    mine = "source: {_target_: data.folder.Folder, path: X}\nsize: 8\nchannels: 1\nflip: false\n"
    (conf / "data/mine.yaml").write_text(mine)
    monkeypatch.setattr("config.overrides.CONF", conf)
    with pytest.raises(
        UserError, match=r"written data._target_=data.sources.folder.Folder, data.path=X"
    ):
        composed("train", ["data=mine"])


def test_what_is_composed_now_is_not_old():
    for path in sorted((CONF / "data").glob("*.yaml")):
        path_given = ["data.path=X"] if path.stem in ("folder", "dicom", "nifti") else []
        config = composed("train", [f"data={path.stem}", *path_given])
        assert translate(config) == config
        assert reader_keys(config["data"]).isdisjoint(OWN_KEYS)


def test_every_new_name_is_there_and_every_old_one_is_gone():
    for old, new in RENAMED.items():
        package = new.split(".")[0]
        assert callable(resolve(new, [package], "x"))
        with pytest.raises(UserError):
            resolve(old, [package], "x")


def test_a_saved_config_is_translated_and_named_as_then():
    old = json.loads((RUN / "checkpoints/step_2/state.json").read_text())["config"]
    assert old["data"]["source"]["_target_"] == "data.folder.Folder"
    old["source"]["overrides"] = ["data=folder", "data.source.path=X", "data.size=8", "+seed=1"]
    now = translate(old)
    assert now["source"]["overrides"] == ["data=folder", "data.path=X", "data.size=8", "+seed=1"]
    assert as_then(now)["source"] == old["source"] and translate(now) == now
    who = identity(RunConfig(now), "images")
    data = {
        key: value for key, value in old["data"].items() if key not in ("source", "subset_seed")
    }
    assert who["data"] == data | {"images": "images"}
    assert who["source"]["overrides"] == old["source"]["overrides"]


def test_the_result_of_a_run_of_then_has_the_settings_of_now():
    settings = read_result(RUN).settings()
    assert (
        settings["data.path"] == "images"
        and settings["data._target_"] == "data.sources.folder.Folder"
    )
    assert not [path for path in settings if path.startswith("data.source")]
