"""export.py: what it writes, opened by diffusers.DDPMPipeline.from_pretrained, samples as we do
from the same noise; and read again by us it is what it was. tests/models/formats/test_diffusers.py
says how the noise is matched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import runtime.torchvision  # noqa: F401  before anything that imports torchvision
from runtime.checkpoint import Checkpoint, Progress
from tests.helpers import ROOT

# isort: split
from diffusers import DDPMPipeline, DDPMScheduler

import training.export_weights as script
from config.overrides import composed
from config.run_config import RunConfig
from diffusion import schedule as schedules
from diffusion.samplers import ancestral
from diffusion.spacing import trailing_steps
from runtime import checkpoint
from runtime.errors import UserError
from tests.helpers import runs
from tests.helpers.networks import difference, randomize
from tests.helpers.trajectories import (
    assert_same,
    embed_as_diffusers,
    opened,
    our_trajectory,
    their_trajectory,
)
from transfer.adapters import inject, parameters
from transfer.trained_weights import DIFFERENCE, load_weights, said_of_difference

UNET = [
    "data.size=[16,8]",
    "data.channels=3",
    "model.channels=16",
    "model.multipliers=[1,2]",
    "model.groups=8",
    "model.attention_levels=[1]",
    "model.dropout=0.1",
]
ADM = [
    "model=adm_lsun256",
    "data.size=16",
    "data.channels=3",
    "model.channels=16",
    "model.multipliers=[1,1.5,2]",
    "model.groups=8",
    "model.attention_levels=[1]",
    "model.head_channels=8",
]
RUNS = {
    "noise, linear": (UNET, ["schedule=linear"]),
    "velocity, cosine": (
        UNET,
        ["schedule=cosine", "parameterization=velocity", "variance=fixed_small"],
    ),
    "x0, sigmoid": (UNET, ["schedule=sigmoid", "parameterization=x0"]),
    "noise, betas": (UNET, ["schedule=linear_rescaled", "schedule.steps=400"]),
    "learned range, scaled linear": (
        ADM,
        ["schedule=scaled_linear", "variance=learned_range", "loss=hybrid"],
    ),
    "told of augmentations": ([*UNET, "+model.augmentations=12"], []),
    "heads": ([*UNET, "model.heads=4", "model.attention_levels=[]"], []),
}


def run_of(directory: Path, overrides, classes=()) -> Path:
    """A run with random weights, the average's other than the model's: as good as a trained one
    here."""
    config = composed("train", overrides)
    network = RunConfig(config).build_denoiser().network
    randomize(network)
    average = {name: tensor + 0.01 for name, tensor in network.state_dict().items()}
    checkpoint.save(
        Checkpoint(
            directory / "checkpoints/step_7",
            7,
            config,
            list(classes),
            {},
            Progress(validation_loss=1.0),
        ),
        network.state_dict(),
        average,
        {},
    )
    return directory


def exported(run: Path, out: Path, weights="ema"):
    """The pipeline that diffusers opens."""
    script.export_pipeline(load_weights(str(run)), out, weights)
    pipeline = DDPMPipeline.from_pretrained(str(out))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", RUNS)
def test_ddpm_pipeline_samples_as_we_do(name, tmp_path):
    model, rest = RUNS[name]
    run = run_of(tmp_path / "run", [*model, *rest])
    pipeline = exported(run, tmp_path / "out")
    theirs = their_trajectory(pipeline, 10, [3, 4])
    assert_same(
        our_trajectory(*opened(run), ancestral, 10, [3, 4]), theirs, 2e-4, f"{name}, float32"
    )


@pytest.mark.parametrize(
    "name", ["noise, linear", "learned range, scaled linear", "heads", "told of augmentations"]
)
def test_the_network_in_float64(name, tmp_path, monkeypatch):
    embed_as_diffusers(monkeypatch)
    model, rest = RUNS[name]
    run = run_of(tmp_path / "run", [*model, *rest])
    theirs = torch.nn.Module.to(exported(run, tmp_path / "out").unet, torch.float64)
    ours = opened(run)[0].network.double()
    x, t = torch.randn(2, 3, 16, 8, dtype=torch.float64), torch.tensor([3, 900])
    with torch.no_grad():
        worst = difference(ours(x, t, {}), theirs(x, t).sample)
    print(f"\n{name}, float64: {worst:.1e}")
    assert worst < 1e-12


LABELS = ["cat", "dog", "eel"]


@pytest.mark.parametrize("model", [UNET, ADM], ids=["unet", "adm"])
@pytest.mark.parametrize(("label", "row"), [("eel", 2), (1, 1), ("null_class", 3)])
def test_one_class_is_a_network_without_classes(model, label, row, tmp_path, monkeypatch):
    """diffusers' network, which is told no label, answers as ours does to that one; in float64 to
    its rounding, of which the sum of bias and row in float32 is a part."""
    embed_as_diffusers(monkeypatch)
    run = run_of(tmp_path / "run", [*model, "model.classes=3"], LABELS)
    one = script.for_label(load_weights(str(run)), label)
    script.export_pipeline(one, tmp_path / "out")
    theirs = DDPMPipeline.from_pretrained(str(tmp_path / "out")).unet
    ours = opened(run)[0].network
    x, t = torch.randn(2, 3, 16, 8), torch.tensor([3, 900])
    assert ours.class_embedding.weight[row].abs().max() > 0.1
    with torch.no_grad():
        asked = ours(x, t, {"label": torch.full((2,), row)})
        assert difference(asked, theirs(x, t).sample) < 1e-5
        assert difference(asked, ours(x, t, {"label": torch.full((2,), (row + 1) % 4)})) > 1e-3


def test_textual_inversion_is_exported(tmp_path, monkeypatch):
    """Its new row stands in a parameter of its own, beside a table whose first row is unused."""
    embed_as_diffusers(monkeypatch)
    config = composed(
        "train", [*UNET, "transfer=textual_inversion", "source.from=x", "model.classes=3"]
    )
    config["transfer"]["inject"][0]["count"] = 1
    network = RunConfig(config).build_denoiser().network
    randomize(network)
    inject(network, RunConfig(config).transfer.inject)
    tensors = dict(parameters(network))
    tensors["class_embedding.weight.rows.new"] = torch.randn(1, 64)
    progress = Progress(validation_loss=1.0)
    reached = Checkpoint(
        tmp_path / "run/checkpoints/step_7",
        7,
        config,
        ["new", "source/0", "source/1"],
        {},
        progress,
    )
    checkpoint.save(reached, tensors, tensors, {})
    one = script.for_label(load_weights(str(tmp_path / "run")), "new")
    script.export_pipeline(one, tmp_path / "out")
    theirs = DDPMPipeline.from_pretrained(str(tmp_path / "out")).unet
    with torch.no_grad():
        row = tensors["class_embedding.weight.rows.new"][0]
        bias = tensors["time_mlp.2.bias"] + row
        assert torch.equal(theirs.time_embedding.linear_2.bias, bias)
        ours = opened(tmp_path / "run")[0].network
        x, t = torch.randn(2, 3, 16, 8), torch.tensor([3, 900])
        asked = ours(x, t, {"label": torch.zeros(2, dtype=torch.long)})
        assert difference(asked, theirs(x, t).sample) < 1e-5


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (
            3,
            None,
            "diffusers has nothing for model.classes=3: DDPMPipeline passes no labels to the "
            "network. For one class give label=NAME, one of cat, dog, eel; for none "
            "label=null_class.",
        ),
        (3, "dgo", "label=dgo: no such class; did you mean dog?"),
        (3, 3, "label=3: no such class; known: cat, dog, eel, null_class."),
        (3, "all", None),
        (0, "cat", "label=cat: this model has no classes: leave label= out."),
    ],
)
def test_which_class_is_exported(classes, label, message, tmp_path):
    run = run_of(tmp_path / "run", [*UNET, f"model.classes={classes}"], LABELS)
    with pytest.raises(UserError) as raised:
        script.for_label(load_weights(str(run)), label)
    assert message is None or str(raised.value) == message


@pytest.mark.parametrize(
    ("overrides", "scheduler"),
    [
        ([*UNET, "schedule.steps=200"], "DDIMScheduler"),
        (
            [*ADM, "schedule.steps=200", "variance=learned_range", "loss=hybrid"],
            "DPMSolverMultistepScheduler",
        ),
    ],
)
def test_what_it_says_of_few_steps_runs(overrides, scheduler, tmp_path):
    """As it is printed: 50 steps, evenly from T on, with a scheduler that takes this network."""
    run = run_of(tmp_path / "run", overrides)
    found = load_weights(str(run))
    script.export_pipeline(found, tmp_path / "out")
    lines = script.how_to(found.config, tmp_path / "out").splitlines()
    code = [line.strip() for line in lines if "num_inference_steps=200" not in line]
    assert len(code) == len(lines) - 1
    made = {}
    exec("\n".join(code).replace('"image.png"', f'"{tmp_path}/image.png"'), made)
    assert type(made["pipeline"].scheduler).__name__ == scheduler
    steps = made["pipeline"].scheduler.timesteps.tolist()
    assert steps == list(range(199, -1, -4)) and (tmp_path / "image.png").exists()


def test_zero_terminal_snr(tmp_path):
    """Trailing steps from no signal: all of them, since diffusers adds noise to the finished image
    of fewer, as tests/diffusion/test_samplers_diffusers.py says."""
    run = run_of(
        tmp_path / "run",
        [
            *UNET,
            "schedule=linear_zero_terminal",
            "schedule.schedule.steps=20",
            "parameterization=velocity",
            "spacing=trailing",
            "sampler.steps=5",
        ],
    )
    pipeline = exported(run, tmp_path / "out")
    assert pipeline.scheduler.betas[-1] == 1 and pipeline.scheduler.alphas_cumprod[-1] == 0
    # of fewer steps leading ones would not begin at T
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    theirs = their_trajectory(pipeline, 20, [3])
    assert_same(
        our_trajectory(*opened(run), ancestral, 20, [3], trailing_steps),
        theirs,
        2e-4,
        "zero terminal SNR, float32",
    )
    assert (
        load_weights(str(tmp_path / "out"))
        .config.raw["schedule"]["_target_"]
        .endswith("from_betas")
    )


@pytest.mark.parametrize(
    "name", ["noise, linear", "velocity, cosine", "learned range, scaled linear", "heads"]
)
def test_there_and_back(name, tmp_path):
    """The weights to the bit and the config."""
    model, rest = RUNS[name]
    run = run_of(tmp_path / "run", [*model, *rest])
    script.export_pipeline(load_weights(str(run)), tmp_path / "out")
    before, after = (load_weights(str(path)) for path in (run, tmp_path / "out"))
    a, b = before.load("ema"), after.load("ema")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    config = before.config.raw
    assert after.config.raw == {
        section: config[section]
        for section in ("model", "schedule", "parameterization", "variance")
    } | {"data": {"size": config["data"]["size"], "channels": 3}}


def test_the_last_iterate(tmp_path):
    run = run_of(tmp_path / "run", UNET)
    average, model = (
        exported(run, tmp_path / "ema").unet,
        exported(run, tmp_path / "model", "model").unet,
    )
    assert torch.allclose(average.conv_in.weight, model.conv_in.weight + 0.01)
    assert not torch.equal(average.conv_in.weight, model.conv_in.weight)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.sigmoid(1000),
        schedules.linear(4000, 2.5e-5, 0.005),
        schedules.cosine(1000, max_beta=0.99),
        schedules.zero_terminal(schedules.cosine(1000)),
        schedules.sigmoid(1000, -3, 3, 0.3),
    ],
)
def test_written_betas_are_as_near_as_float32_allows(schedule):
    """At every step within the rounding of that step's beta alone, and of the product; betas
    written as they are drift away."""
    exact = schedule.alpha_bar[1:]
    alpha = exact / schedule.alpha_bar[:-1]
    written, naive = (
        DDPMScheduler(schedule.steps, trained_betas=betas).alphas_cumprod.double() - exact
        for betas in (script.betas_for_float32(schedule), (1 - alpha).tolist())
    )
    allowed = exact * (2**-24 / alpha + 2**-23)
    shares = [(error.abs() / allowed)[exact > 0].max().item() for error in (written, naive)]
    print(
        "\nlargest error over what float32 allows: {:.2f}, of betas as they are {:.2f}".format(
            *shares
        )
    )
    assert shares[0] <= 1 and shares[0] < shares[1]
    assert written[exact == 0].abs().sum() == 0


def test_no_beta_is_written_as_zero():
    """Nor below, where rounding has gone ahead of a schedule that falls less than float32 can tell.
    We would not read it either."""
    schedule = schedules.from_betas([1e-9] * 100 + [0.5])
    betas = script.betas_for_float32(schedule)
    assert min(betas) > 0
    written = DDPMScheduler(len(betas), trained_betas=betas).alphas_cumprod.double()
    torch.testing.assert_close(written, schedule.alpha_bar[1:], rtol=0, atol=1e-7)


def test_schedules_have_their_name_only_where_they_are_the_same():
    for schedule, name in (
        (schedules.cosine(10), "squaredcos_cap_v2"),
        (schedules.cosine(10, max_beta=0.99), None),
        (schedules.sigmoid(), None),
        (schedules.linear(10), "linear"),
        (schedules.linear(10, beta_end=0.03), None),
    ):
        assert script.name_of(schedule, 1e-4, 0.02) == name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*UNET, "parameterization=mean", "schedule.steps=100"],
            r"PredictMean.*parameterization=noise",
        ),
        (
            [*UNET, "variance=learned", "loss=bound"],
            r"variance Learned.*not for its log.*learned_range",
        ),
        (
            [*UNET, "model.heads=2", "model.attention_levels=[0]"],
            r"model.heads=2.*\[8, 16\] wide.*head_channels",
        ),
        ([*UNET, "model.multipliers=[2,2]"], r"width 32 beside model.channels=16.*begin with 1"),
        ([*ADM, "model.timestep_scale=0.25"], r"model.timestep_scale=0.25"),
    ],
)
def test_what_diffusers_has_not(overrides, message, tmp_path):
    run = run_of(tmp_path / "run", overrides)
    with pytest.raises(UserError, match=message):
        script.export_pipeline(load_weights(str(run)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left(tmp_path):
    run, out = run_of(tmp_path / "run", UNET), tmp_path / "out"
    out.mkdir()  # an empty one is filled
    script.export_pipeline(load_weights(str(run)), out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    script.export_pipeline(load_weights(str(run)), out)  # the same again is there already
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    with pytest.raises(UserError, match="holds something else"):
        script.export_pipeline(load_weights(str(run)), out, "model")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        script.export_pipeline(load_weights(str(run)), tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out", "run"]


def test_nothing_is_left_where_writing_fails(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", UNET)
    monkeypatch.setattr(
        "runtime.files.write_durably", lambda *_: (_ for _ in ()).throw(OSError("no"))
    )
    with pytest.raises(OSError, match="no"):
        script.export_pipeline(load_weights(str(run)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_command_line(tmp_path):
    """The lines that it prints, run as they are; what it refuses is one message."""
    run = run_of(tmp_path / "run", [*UNET, "schedule.steps=3", "sampler.steps=3"])

    def command(*arguments):
        return runs.command("export.py", *arguments)

    done = command(f"checkpoint={run}", f"out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    code = "\n".join(
        line.strip() for line in (done.stdout + done.stderr).splitlines() if line.startswith("  ")
    )
    assert code.count("\n") == 5
    exec(code.replace('"image.png"', f'"{tmp_path}/image.png"'), {})
    assert (tmp_path / "image.png").exists()
    assert (
        json.loads((tmp_path / "out/model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    )
    wrong = command(f"checkpoint={run}", f"out={tmp_path}/other", "weights=emma")
    assert (
        wrong.returncode == 2
        and wrong.stderr == "error: weights='emma' is not one of ema, model, average.\n"
    )
    wrong = command(f"checkpoint={run}", f"out={tmp_path}/small.safetensors", "weights=model")
    assert wrong.returncode == 2 and wrong.stderr.startswith(
        "error: weights=model: a small file has the EMA"
    ), wrong.stderr
    wrong = command(f"checkpoint={run}", f"out={tmp_path}/small.safetensors", "label=cat")
    assert wrong.returncode == 2 and wrong.stderr.startswith(
        "error: label=cat: a small file keeps the classes"
    ), wrong.stderr


def test_nothing_of_diffusers_is_imported():
    code = "import sys, export; sys.exit(any(n.split('.')[0] == 'diffusers' for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_every_published_model_is_written_or_refused_by_name():
    """What of conf/model diffusers can hold, for one of its classes where it has some, told without
    memory for the network."""
    found = {}
    for name in sorted(p.stem for p in (ROOT / "conf/model").glob("*.yaml")):
        images = ["data.channels=3", "data.size=64", "model.classes=0"]
        config = RunConfig(composed("train", [f"model={name}", *images]))
        try:
            script.unet_config(config)
            found[name] = "written"
        except UserError as error:
            found[name] = (
                str(error).split(":")[0].removeprefix("diffusers has nothing for ").split("=")[0]
            )
        assert config.shape_network().conv_in.weight.is_meta
    written = {name for name, what in found.items() if what == "written"}
    assert written >= {
        "demo",
        "ddpm_cifar10",
        "ddpm_celeba64",
        "ddpm_256",
        "adm_lsun256",
        "adm_imagenet256",
        "adm_imagenet256_uncond",
        "improved_lsun256",
    }
    refused = {what for name, what in found.items() if name not in written}
    assert refused == {
        "model.timestep_scale",
        "model.heads",  # adm_imagenet128
        "a first level of width 128 beside model.channels",  # adm_imagenet512
    }


def test_a_small_file_that_is_cut_short_is_named_as_such(tmp_path):
    whole = safetensors.torch.save({"a": torch.zeros(9)}, {DIFFERENCE: "{}"})
    for content, expected in (
        (whole, "{}"),
        (safetensors.torch.save({"a": torch.zeros(9)}), None),
    ):
        (tmp_path / "lora.safetensors").write_bytes(content)
        assert said_of_difference(tmp_path / "lora.safetensors") == expected
    (tmp_path / "lora.safetensors").write_bytes(whole[:-4])
    with pytest.raises(UserError, match="lora.safetensors: damaged"):
        said_of_difference(tmp_path / "lora.safetensors")


def test_a_small_file_is_put_where_it_is_asked_for_and_overwrites_nothing(tmp_path, monkeypatch):
    """A folder that is missing is made."""
    monkeypatch.setattr(script, "difference", lambda *_: b"small")
    monkeypatch.setattr(
        script,
        "find",
        lambda _: SimpleNamespace(
            path=tmp_path / "run/checkpoints/step_1", config=composed("train", [])
        ),
    )
    monkeypatch.setattr(script, "origin_of", lambda _: {"path": "x"})
    out = tmp_path / "new/folder/lora.safetensors"
    for _ in range(2):
        script.export_difference("run", out)
        assert out.read_bytes() == b"small"
    out.write_bytes(b"something else")
    with pytest.raises(UserError, match="not overwritten"):
        script.export_difference("run", out)
    assert out.read_bytes() == b"something else"
