"""Trained weights from wherever they are: each kind of file and folder, the Hub without a network,
and what cannot be opened."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub.errors
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from config.overrides import composed
from config.run_config import RunConfig
from models.formats import published as pretrained
from models.formats.ddim import to_ddim
from models.formats.openai import to_openai
from runtime import checkpoint
from runtime.checkpoint import Checkpoint, Progress
from runtime.errors import UserError
from runtime.seeds import derive
from sampling import sample_to_folder as sample
from tests.helpers import runs
from tests.helpers.defaults import defaults
from tests.helpers.networks import randomize
from training import export_weights as export
from training.start_from_source import other_settings
from transfer.trained_weights import load_weights, stated_config

UNET = [
    "data.size=8",
    "data.channels=3",
    "model.channels=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
    "model.attention_levels=[1]",
]
ADM = [
    "model=adm_lsun256",
    "data.size=8",
    "data.channels=3",
    "model.channels=16",
    "model.multipliers=[1,2]",
    "model.groups=8",
    "model.attention_levels=[1]",
    "model.head_channels=8",
    "variance=learned_range",
    "loss=hybrid",
]


def network(overrides):
    """(config, network with random weights)"""
    config = composed("train", overrides)
    made = RunConfig(config).build_denoiser().network
    randomize(made)
    return config, made


@pytest.fixture
def run(tmp_path) -> Path:
    return run_of(tmp_path, UNET)


def run_of(tmp_path, overrides, moved: float = 1.0) -> Path:
    """moved: of the average from the last iterate."""
    config, made = network(overrides)
    average = {name: tensor + moved for name, tensor in made.state_dict().items()}
    checkpoint.save(
        Checkpoint(
            tmp_path / "run/checkpoints/step_7", 7, config, [], {}, Progress(validation_loss=1.0)
        ),
        made.state_dict(),
        average,
        {},
    )
    return tmp_path / "run"


@pytest.fixture
def folder(run, tmp_path) -> Path:
    """That run in diffusers' format."""
    export.export_pipeline(load_weights(str(run)), tmp_path / "folder")
    return tmp_path / "folder"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_a_checkpoint_and_a_folder(run, folder):
    of_run, of_checkpoint, of_folder = (
        load_weights(str(p)) for p in (run, run / "checkpoints" / "step_7", folder)
    )
    assert of_run == of_checkpoint and of_run.step == 7 and of_folder.step is None
    assert same(of_run.load("ema"), of_folder.load("ema")) and same(
        of_folder.load("ema"), of_folder.load("model")
    )
    assert not same(of_run.load("ema"), of_run.load("model"))
    assert of_folder.digests == {
        which: runs.sha256(folder / "unet/diffusion_pytorch_model.safetensors")
        for which in ("model", "ema")
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt", ".bin"])
def test_a_bare_file_of_ours(tmp_path, suffix):
    config, made = network(UNET)
    file = tmp_path / f"weights{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(
        made.state_dict(), file
    )
    found = load_weights(str(file), otherwise=RunConfig(config))
    assert same(found.load("ema"), made.state_dict())
    assert found.config.raw["model"] == config["model"] and set(found.config.raw) == set(
        pretrained.SECTIONS
    )
    with pytest.raises(UserError, match=r"does not say its network. Name the experiment"):
        load_weights(str(file))
    with pytest.raises(UserError, match=rf"{file}: the weights are not those.*more"):
        load_weights(
            str(file), otherwise=RunConfig(composed("train", [*UNET, "model.channels=16"]))
        ).load("ema")


@pytest.mark.parametrize("told", [0, 12])
def test_a_bare_file_shows_whether_it_was_told_of_augmentations(tmp_path, caplog, told):
    """Whatever the target, whose settings it is read with."""
    _, made = network([*UNET, f"+model.augmentations={told}"])
    safetensors.torch.save_file(made.state_dict(), tmp_path / "weights.safetensors")
    for target in ([], ["augmentation=edm"]):
        otherwise = RunConfig(composed("train", [*UNET, *target])).completed
        found = load_weights(str(tmp_path / "weights.safetensors"), otherwise=otherwise)
        assert same(found.load("ema"), made.state_dict())
        assert found.config.raw["model"].get("augmentations", 0) == told
    assert bool(caplog.records) == bool(told)


@pytest.mark.parametrize(("name", "new_order"), [("mine.pt", False), ("64x64_diffusion.pt", True)])
def test_openai(tmp_path, caplog, name, new_order):
    _, made = network([*ADM, "model.classes=3"])
    torch.save(to_openai(made.state_dict(), made, new_order), tmp_path / name)
    stated = stated_config(str(tmp_path / name), None, [*ADM, "model.classes=3"])
    # what is said wins over what its name says
    found = load_weights(str(tmp_path / name), stated=stated)
    weights = found.load("ema")
    weights["class_embedding.weight"][-1] = made.class_embedding.weight[
        -1
    ].detach()  # theirs has no null class
    assert same(weights, made.state_dict())
    assert found.classes == ["0", "1", "2"] and "never saw a null class" in caplog.text


def test_ddim_with_its_average(tmp_path):
    config, made = network(UNET)
    theirs = to_ddim(made.state_dict())
    torch.save(
        [theirs, {}, 1, 2, {name: tensor + 1 for name, tensor in theirs.items()}],
        tmp_path / "ckpt.pth",
    )
    found = load_weights(str(tmp_path / "ckpt.pth"), otherwise=RunConfig(config))
    model, average = found.load("model"), found.load("ema")
    assert same(model, made.state_dict()) and same(average, {k: v + 1 for k, v in model.items()})
    # or sample.py would take one for the other
    assert found.digests["model"] != found.digests["ema"]


@pytest.mark.parametrize("write", ["ours", "openai", "ddim"])
def test_a_source_with_other_ends_than_the_target(tmp_path, caplog, write):
    """A gray target without classes, from RGB weights with a learned variance, or with classes: the
    file's ends are the source's."""
    overrides = {
        "ours": [*UNET, "model.classes=3", "variance=learned_range", "loss=hybrid"],
        "openai": [*ADM, "model.classes=3"],
        "ddim": UNET,
    }[write]
    _, made = network(overrides)
    state = {"ours": dict, "openai": lambda s: to_openai(s, made), "ddim": to_ddim}[write](
        made.state_dict()
    )
    torch.save(state, tmp_path / "weights.pt")
    target = [
        o for o in overrides if "classes" not in o and "variance" not in o and "loss" not in o
    ]
    found = load_weights(
        str(tmp_path / "weights.pt"),
        otherwise=RunConfig(composed("train", [*target, "data.channels=1"])),
    )
    assert {k: v.shape for k, v in found.load("ema").items()} == {
        k: v.shape for k, v in made.state_dict().items()
    }
    assert "data.channels: 1 -> 3" in caplog.text and ("LearnedRange" in caplog.text) == (
        write != "ddim"
    )
    assert ("model.classes: 0 -> 3" in caplog.text) == (write != "ddim")
    assert other_settings(RunConfig(composed("train", target)), found.config) == []
    assert found.config.build_denoiser().network.conv_in.in_channels == 3


def test_published_files_are_known_by_their_names(tmp_path, caplog):
    """Their own settings, whatever the target's are."""
    config = RunConfig(
        composed(
            "train",
            ["model=improved_cifar10", "data.channels=3", "variance=learned_range", "loss=hybrid"],
        )
    )
    network = config.shape_network()
    network.to_empty(device="cpu")
    file = tmp_path / "cifar10_uncond_50M_500K.pt"
    torch.save(to_openai(network.state_dict(), network), file)
    for found in (
        load_weights(str(file)),
        load_weights(str(file), otherwise=RunConfig(composed("train", UNET))),
    ):
        schedule = found.config.raw["schedule"]
        assert schedule["_target_"] == "diffusion.schedule.cosine" and schedule["steps"] == 4000
        assert (
            found.config.raw["model"]["timestep_scale"] == 0.25
            and found.config.raw["data"]["size"] == 32
        )
        assert found.load("ema").keys() == network.state_dict().keys()
    assert not caplog.text


def test_diffusers_weights_without_their_config(folder, tmp_path):
    file = shutil.copy(
        folder / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "weights.safetensors"
    )
    assert same(
        load_weights(file, otherwise=RunConfig(composed("train", UNET))).load("ema"),
        load_weights(str(folder)).load("ema"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Path("x")}, "could run any code"),
        ({"epoch": 3, "net": {}}, "no state dict, but epoch, net"),
        (3, "no state dict, but int"),
        ({}, "no state dict, but nothing"),
        ({0: torch.zeros(3)}, "not under names"),
        ([{0: torch.zeros(3)}], "not under names"),
        (torch.zeros(3), "no state dict, but Tensor"),
        ([], "no state dict, but list"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message):
        load_weights(
            str(tmp_path / "weights.pt"), otherwise=RunConfig(composed("train", UNET))
        ).load("ema")


@pytest.mark.parametrize(
    "data", [b"", b"no weights", b"PK\x03\x04" + bytes(100), pickle.dumps(print, protocol=2)[:5]]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(tmp_path, suffix, data):
    (tmp_path / f"weights{suffix}").write_bytes(data)
    with pytest.raises(UserError, match=r"weights.*: (damaged|refused)"):
        load_weights(
            str(tmp_path / f"weights{suffix}"), otherwise=RunConfig(composed("train", UNET))
        ).load("ema")


def test_what_is_none(run, folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name))
    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    for name, message in [
        (
            "nothing",
            "no such folder or file, no name on the Hugging Face Hub, which is OWNER/NAME, and no",
        ),
        ("run/misspelt", "no such folder or file"),
        ("/no/such/run", "no such folder"),
        ("a/b/c", "no such folder"),
        (str(tmp_path), "no checkpoint there. There are runs in it: .*/run. Give a run directory"),
        ("notes.txt", "no file of weights, which ends in .safetensors"),
        (
            "run/checkpoints/step_7/ema.safetensors",
            r"state.json beside it says.* give the folder run/checkpoints/step_7 instead",
        ),
        (
            "folder/unet/diffusion_pytorch_model.safetensors",
            r"config.json beside it says.* give the folder folder/unet instead",
        ),
    ]:
        for settings in (None, composed("train", UNET)):
            with pytest.raises(UserError, match=message):
                load_weights(name, otherwise=RunConfig(settings))
    assert not asked


def test_settings_are_for_bare_files(run, tmp_path):
    _, made = network(["+experiment=pretrain_demo"])
    file = str(tmp_path / "weights.pt")
    torch.save(made.state_dict(), file)
    assert same(
        load_weights(file, stated=stated_config(file, "pretrain_demo", [])).load("ema"),
        made.state_dict(),
    )
    with pytest.raises(
        UserError, match=r"trained_as=pretrain_demo.*bare file of weights, and .*run is none"
    ):
        load_weights(str(run), stated=stated_config(str(run), "pretrain_demo", []))
    with pytest.raises(UserError, match="did you mean pretrain_demo"):
        load_weights(file, stated=stated_config(file, "pretrain_dmo", []))
    wider = load_weights(file, stated=stated_config(file, "pretrain_demo", ["model.channels=64"]))
    assert wider.config.shape_network().channels == 64


def test_settings_on_the_command_lines(tmp_path):
    """sample.py and export.py take them (experiment=NAME would be Hydra's group of that name), and
    sample as much."""
    _, made = network(["+experiment=pretrain_demo"])
    file = tmp_path / "weights.pt"
    torch.save(made.state_dict(), file)

    def command(script, *arguments):
        done = runs.command(script, f"checkpoint={file}", *arguments)
        return done.returncode, done.stderr + done.stdout

    code, text = command(
        "sample.py",
        "trained_as=pretrain_demo",
        'overrides=["data.size=16"]',
        "n=1",
        "sampler.steps=2",
        f"out={tmp_path}/images",
    )
    assert code == 0 and np.asarray(Image.open(tmp_path / "images" / "000000.png")).shape == (
        16,
        16,
        3,
    ), text
    code, text = command("export.py", "trained_as=pretrain_demo", f"out={tmp_path}/out")
    assert code == 0 and load_weights(str(tmp_path / "out")).config.raw["schedule"][
        "_target_"
    ].endswith("cosine"), text
    code, text = command("sample.py", "n=1")
    assert code == 2 and "trained_as=NAME" in text and "Traceback" not in text


# --- the Hub --------------------------------------------------------------------------------------


def test_the_hub(folder, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = load_weights("google/ddpm-celebahq-256")
    assert found.step is None and found.path == folder
    [(name, patterns)] = asked
    assert name == "google/ddpm-celebahq-256"
    assert {
        "model_index.json",
        "unet/config.json",
        "config.json",
        "scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
    } <= set(patterns) and not any(".bin" in p for p in patterns)


def test_the_hub_has_only_a_pickle(folder, monkeypatch):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    file.unlink()

    def snapshot_download(name, allow_patterns):
        if "unet/diffusion_pytorch_model.bin" in allow_patterns:
            torch.save(tensors, file.with_suffix(".bin"))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_weights("owner/name").digests["ema"] == runs.sha256(file.with_suffix(".bin"))


def test_a_folder_comes_before_the_hub(folder, monkeypatch, tmp_path):
    (tmp_path / "owner").mkdir()
    folder.rename(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert load_weights("owner/name").path == Path("owner/name")


class RepositoryNotFoundError(Exception):
    """By the name that the message goes by."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("404 Client Error"), "there is no such name, or it is private"),
        (
            ConnectionError("cannot reach huggingface.co\nmore"),
            "no network: cannot reach huggingface.co. By hand: hf download",
        ),
        (huggingface_hub.errors.LocalEntryNotFoundError("not in the cache"), "not in the cache"),
        (huggingface_hub.errors.OfflineModeIsEnabled("HF_HUB_OFFLINE"), "HF_HUB_OFFLINE"),
    ],
)
def test_the_hub_cannot_be_reached(monkeypatch, error, message):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=message) as told:
        load_weights("owner/name")
    assert "copy DIR here, and give that folder" in str(told.value) and "\n" not in str(told.value)


# --- train.py and sample.py -----------------------------------------------------------------------

TARGET = [
    "data.channels=3",
    "train.steps=1",
    "run.checkpoint_every=1",
    "run.samples=1",
    "run.held_out_draws=4",
]


def test_a_folder_is_a_source(folder, tmp_path):
    code, text = runs.train(tmp_path / "all", [*TARGET, f"source.from={folder}"])
    assert code == 0, text
    assert "0 resized, 0 new, 0 dropped" in text and "other settings" not in text
    told = json.loads((runs.directory_of(tmp_path / "all") / "source.json").read_text())
    assert (
        told["path"] == str(folder)
        and told["step"] is None
        and {row["status"] for row in told["tensors"]} == {"loaded"}
    )


def test_a_bare_file_is_a_source_with_the_targets_settings(folder, tmp_path):
    file = shutil.copy(
        folder / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "weights.safetensors"
    )
    code, text = runs.train(tmp_path / "bare", [*TARGET, f"source.from={file}"])
    assert code == 0 and "0 resized, 0 new, 0 dropped" in text, text


def test_other_settings_of_the_source_are_told(folder, tmp_path):
    code, text = runs.train(
        tmp_path / "some", [*TARGET, f"source.from={folder}", "model.multipliers=[1,2,2]"]
    )
    assert code == 0 and "(here -> source): model.multipliers=[1,2,2] -> [1,2]" in text, text
    code, text = runs.train(
        tmp_path / "none",
        [*TARGET, f"source.from={folder}", "model.channels=16", "source.include=['down.*']"],
    )
    assert (
        code == 2 and "no weight of the source fits" in text and "model.channels=16 -> 8" in text
    ), text


def test_a_source_that_is_none(tmp_path):
    code, text = runs.train(tmp_path, [*TARGET, "source.from=pretrain_dmo"])
    assert (
        code == 2
        and (
            "source.from=pretrain_dmo: neither a folder or file here, nor a name on the Hugging "
            "Face Hub"
        )
        in text
    )
    assert "did you mean pretrain_demo" in text


def test_settings_that_no_tensor_depends_on_are_not_told():
    ours, theirs = (
        RunConfig(composed("train", [*UNET, *more]))
        for more in ([], ["model.dropout=0.3", "model.classes=4"])
    )
    assert other_settings(ours, theirs) == []
    adm = RunConfig(composed("train", ADM))
    assert "model._target_=models.unet.UNet -> models.adm.ADMUNet" in other_settings(ours, adm)
    assert "model.head_channels=null -> 8" in other_settings(ours, adm)


def test_sample_makes_the_pipelines_images(tmp_path):
    """The command itself, PNG by PNG, against diffusers' pipeline with the same noise, in float64:
    rounding to 256 levels is half a level, and float32's part a hundredth. Ordinary weights of a
    network that says the velocity: from the noise that random weights say, x0 at T is 150 times as
    far, and float32's last digit becomes a gray level by the tenth step."""
    import runtime.torchvision  # noqa: F401  before anything that imports torchvision

    # isort: split
    from diffusers import DDIMScheduler, DDPMPipeline

    folder = tmp_path / "folder"
    export.export_pipeline(
        load_weights(str(run_of(tmp_path, [*UNET, "parameterization=velocity"], moved=0))), folder
    )
    done = runs.command(
        "sample.py",
        f"checkpoint={folder}",
        "n=3",
        "batch_size=2",
        "sampler.steps=10",
        "seed=5",
        "spacing=even",
        f"out={tmp_path}/images",
    )
    assert done.returncode == 0, done.stderr
    pipeline = DDPMPipeline.from_pretrained(str(folder))
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(10)
    x = torch.cat(
        [
            torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(derive(5, "image", k)))
            for k in range(3)
        ]
    ).double()
    unet = pipeline.unet.double()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    theirs = ((x.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    ours = np.stack(
        [
            np.asarray(Image.open(tmp_path / "images" / f"{k:06d}.png")).astype(float)
            for k in range(3)
        ]
    )
    assert np.abs(ours - theirs).max() < 0.51 and ours.std() > 10


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "step_7_seed3"),
        ({"sampler": "ancestral"}, "step_7_seed3_ancestral-1000"),
        ({"label": "all", "guidance": 2.0}, "step_7_seed3_label-all_guidance-2"),
        ({"label": "a/b c"}, "step_7_seed3_label-a-b-c"),
        ({"guidance": 1.5, "reference": "source"}, "step_7_seed3_guidance-1.5_source"),
        ({"weights": "model"}, "step_7_seed3_model"),
    ],
)
def test_label_and_guidance_are_in_the_name_of_the_folder(run, asked, name):
    """So that a command that adds them is not refused for what is there."""
    sampler = composed("sample", ["checkpoint=x", f"sampler={asked.get('sampler', 'ddim')}"])
    given = {"seed": 3, "checkpoint": str(run), **asked, "sampler": None}
    settings = sample.SampleSettings(**defaults("sample") | given)
    out = sample.default_out(load_weights(str(run)), settings, sampler["sampler"])
    assert out == run / "generated" / name


def test_where_images_of_a_folder_go(run, folder):
    """Not into the folder, which may be the Hub's cache."""
    settings = sample.SampleSettings(
        **defaults("sample") | {"sampler": None, "seed": 3, "checkpoint": str(folder)}
    )
    sampler = composed("sample", ["checkpoint=x"])["sampler"]
    out = sample.default_out(load_weights(str(folder)), settings, sampler)
    assert out == Path("generated/folder_seed3")
    with pytest.raises(UserError, match="sample_size"):
        _ = RunConfig({"data": {"size": None, "channels": 3}}).image_shape
