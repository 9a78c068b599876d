"""Folders that diffusers wrote, read by us: what sample.py then makes against diffusers' own
pipeline, from the same noise.

Every weight is drawn anew, those that start at zero included. A pipeline draws the noise of image k
from generator k, start and steps alike, as NoisePerImage does, so the trajectories share every
draw. float32 is held to 2e-4 of the largest value, since the tables of diffusers' schedulers are
float32 (`pytest -s` prints what it is); float64, where they are given ours, to 1e-9.
"""

from __future__ import annotations

import json
import logging
import pickle
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import runtime.torchvision  # noqa: F401  before anything that imports torchvision
from tests.helpers.trajectories import (
    HO,
    SMALL,
    assert_same,
    embed_as_diffusers,
    opened,
    our_trajectory,
    saved,
    their_trajectory,
)

# isort: split
import diffusers
from diffusers import DDIMScheduler, DDPMScheduler

from config.overrides import composed
from config.run_config import RunConfig
from diffusion.clipping import clip_x0
from diffusion.samplers import ancestral, ddim
from diffusion.schedule import cosine
from diffusion.spacing import even_steps, trailing_steps
from models.formats.diffusers import _multiplier, read_folder
from models.formats.diffusers_scheduler import read_scheduler
from runtime.config_schema import build
from runtime.errors import UserError
from tests.helpers.diffusers_2022 import flat
from tests.helpers.networks import difference
from transfer.trained_weights import load_weights

ADM = SMALL | {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
    "out_channels": 6,
    "sample_size": (16, 8),
    "block_out_channels": (16, 24, 40),
}
CIFAR10 = HO | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
CELEBAHQ = HO | {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}
MODELS = {
    "ho": (SMALL | HO, {"variance_type": "fixed_small"}),
    "default": (
        SMALL | {"attention_head_dim": 8},
        {
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "v_prediction",
            "variance_type": "fixed_large",
        },
    ),
    "adm": (
        ADM,
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "variance_type": "learned_range",
        },
    ),
    "gray": (
        SMALL | HO | {"in_channels": 1, "out_channels": 1},
        {"beta_schedule": "sigmoid", "prediction_type": "sample"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_ancestral_is_ddpm_pipeline(name, tmp_path):
    unet, scheduler = MODELS[name]
    pipeline = saved(tmp_path, unet, scheduler)
    theirs = their_trajectory(pipeline, 10, [3, 4])
    assert_same(
        our_trajectory(*opened(tmp_path), ancestral, 10, [3, 4]),
        theirs,
        2e-4,
        f"{name}, ancestral, float32",
    )


@pytest.mark.parametrize("name", ["ho", "default"])
def test_ddim_is_ddim_pipeline(name, tmp_path):
    unet, scheduler = MODELS[name]
    pipeline = saved(
        tmp_path, unet, {k: v for k, v in scheduler.items() if k != "variance_type"}, DDIMScheduler
    )
    theirs = their_trajectory(pipeline, 10, [3, 4], use_clipped_model_output=True)
    assert_same(
        our_trajectory(*opened(tmp_path), ddim, 10, [3, 4]), theirs, 2e-4, f"{name}, ddim, float32"
    )


@pytest.mark.parametrize("name", ["ho", "default", "adm"])
def test_both_samplers_in_float64(name, tmp_path, monkeypatch):
    """With its tables in float64 no difference of formulas can hide behind rounding."""
    embed_as_diffusers(monkeypatch)
    unet, options = MODELS[name]
    network = saved(tmp_path, unet, options).unet
    network = torch.nn.Module.to(network, torch.float64)
    denoiser, shape = opened(tmp_path)
    denoiser.network.double()
    x_T = 1.5 * torch.randn(
        2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    shared = {k: v for k, v in options.items() if k != "variance_type"}
    cases = [("ancestral", DDPMScheduler(**options), ancestral, {})]
    if name != "adm":  # diffusers' DDIM does not know a learned variance
        cases.append(
            (
                "ddim",
                DDIMScheduler(**shared),
                partial(ddim, eta=0.5),
                {"eta": 0.5, "use_clipped_model_output": True},
            )
        )
    for what, scheduler, sampler, step_options in cases:
        scheduler.alphas_cumprod = denoiser.schedule.alpha_bar[1:]
        scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
        scheduler.set_timesteps(10)
        theirs, generator, x = [], torch.Generator().manual_seed(1), x_T
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(
                    network(x, t).sample, t, x, generator=generator, **step_options
                ).prev_sample
                theirs.append(x)
        ours, generator = [], torch.Generator().manual_seed(1)
        clipped = clip_x0(denoiser, denoiser.schedule)

        def watched(x, t, ours=ours, clipped=clipped):
            ours.append(x)
            return clipped(x, t)

        with torch.no_grad():
            out = sampler(
                watched,
                denoiser.schedule,
                x_T,
                even_steps(denoiser.schedule, 10),
                lambda like, g=generator: torch.randn(like.shape, dtype=like.dtype, generator=g),
            )
        assert_same([*ours[1:], out], theirs, 1e-9, f"{name}, {what}, float64")


def test_cifar10_at_full_size(tmp_path):
    """google/ddpm-cifar10-32's configuration, 35.7 M parameters, ours by name."""
    pipeline = saved(tmp_path, CIFAR10, {"variance_type": "fixed_large"})
    theirs = their_trajectory(pipeline, 5, [1])
    assert_same(
        our_trajectory(*opened(tmp_path), ancestral, 5, [1]),
        theirs,
        2e-4,
        "CIFAR-10, ancestral, float32",
    )
    config = read_folder(tmp_path)[0]
    assert sum(p.numel() for p in RunConfig(config).shape_network().parameters()) == 35_746_307
    assert (
        config["model"]
        == composed("train", ["model=ddpm_cifar10", "data.channels=3", "model.dropout=0"])["model"]
    )


@pytest.mark.slow
def test_celebahq256_at_full_size(tmp_path):
    """google/ddpm-celebahq-256's configuration, 113.7 M parameters."""
    pipeline = saved(tmp_path, CELEBAHQ, {"variance_type": "fixed_small"})
    theirs = their_trajectory(pipeline, 3, [1])
    assert_same(
        our_trajectory(*opened(tmp_path), ancestral, 3, [1]),
        theirs,
        1e-3,
        "CelebA-HQ 256, ancestral, float32",
    )


def test_celebahq256_is_our_ddpm_256(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **CELEBAHQ}))
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    assert (
        read_folder(tmp_path)[0]["model"]
        == composed("train", ["model=ddpm_256", "data.channels=3"])["model"]
    )


def test_celebahq256_narrower(tmp_path):
    widths = {"block_out_channels": (32, 32, 64, 64, 128, 128), "sample_size": 64}
    pipeline = saved(tmp_path, CELEBAHQ | widths, {"variance_type": "fixed_small"})
    theirs = their_trajectory(pipeline, 5, [1])
    assert_same(
        our_trajectory(*opened(tmp_path), ancestral, 5, [1]),
        theirs,
        2e-4,
        "CelebA-HQ, narrower, ancestral, float32",
    )


def test_labels(tmp_path):
    """num_class_embeds: the same output for each label; the null class, which theirs has not, is
    the mean."""
    network = saved(tmp_path, SMALL | {"num_class_embeds": 3}).unet
    denoiser, _ = opened(tmp_path)
    x, t, label = torch.randn(3, 3, 16, 16), torch.tensor([0, 5, 999]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        assert (
            difference(
                denoiser.network(x, t, {"label": label}), network(x, t, class_labels=label).sample
            )
            < 1e-5
        )
    table = denoiser.network.class_embedding.weight
    torch.testing.assert_close(table[3], table[:3].mean(0))
    assert load_weights(str(tmp_path)).classes == ["0", "1", "2"]


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    saved(path, SMALL | HO)
    return path


def test_flat_layout_with_old_names(tmp_path):
    pipeline = saved(tmp_path / "new", SMALL | HO)
    flat(tmp_path / "old", pipeline)
    assert "proj_attn" in str(list(torch.load(tmp_path / "old" / "diffusion_pytorch_model.bin")))
    new, old = (load_weights(str(tmp_path / name)) for name in ("new", "old"))
    assert new.config == old.config
    a, b = new.load("ema"), old.load("ema")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Malicious:
    def __reduce__(self):
        return (print, ("this code ran",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_could_run_code_is_refused(tmp_path, capsys, legacy):
    pipeline = saved(tmp_path / "new", SMALL | HO)
    flat(tmp_path / "old", pipeline)
    file = tmp_path / "old" / "diffusion_pytorch_model.bin"
    content = {"conv_in.weight": Malicious()}
    file.write_bytes(pickle.dumps(content, protocol=2)) if legacy else torch.save(content, file)
    with pytest.raises(UserError, match="could run any code"):
        load_weights(str(tmp_path / "old")).load("ema")
    assert "this code ran" not in capsys.readouterr().out


def test_a_unet_alone(tmp_path, caplog):
    """Its pipeline's scheduler, beside it, counts; where there is none, Ho's schedule, and the log
    says so."""
    saved(tmp_path, SMALL | HO, {"prediction_type": "v_prediction"})
    assert read_folder(tmp_path / "unet")[0]["parameterization"]["_target_"].endswith(
        "PredictVelocity"
    )
    assert not caplog.text
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    config, _ = read_folder(tmp_path / "unet")
    assert "Ho et al. 2020" in caplog.text and "scheduler_config.json" in caplog.text
    assert config["schedule"] == {
        "_target_": "diffusion.schedule.linear",
        "steps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
    }


@pytest.fixture
def edited(folder, tmp_path):
    """edited(file, key=value): a copy of a pipeline with a changed config; the weights stay."""

    def edit(file, **changes):
        for path in folder.rglob("*.*"):
            (tmp_path / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
        config = json.loads((tmp_path / file).read_text()) | changes
        (tmp_path / file).write_text(json.dumps(config))
        return tmp_path

    return edit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"norm_eps": 1e-5},
            (
                r"config.json: norm_eps=1e-05 is not what our networks can be: models.unet.UNet "
                r"has norm_eps=1e-06"
            ),
        ),
        ({"flip_sin_to_cos": True}, r"flip_sin_to_cos=true"),
        ({"freq_shift": 0}, r"freq_shift=0"),
        ({"downsample_padding": 1}, r"downsample_padding=1"),
        (
            {"attention_head_dim": 7},
            r"attention_head_dim=7.*must divide the widths that have attention, \[32\]",
        ),
        (
            {"attention_head_dim": 8, "block_out_channels": [16, 32, 64]},
            r"attention_head_dim=8.*one number of heads.*\[4, 8\]",
        ),
        (
            {"down_block_types": ["SkipDownBlock2D"] * 3},
            r'down_block_types="SkipDownBlock2D".*known: DownBlock2D',
        ),
        ({"down_block_types": ["DownBlock2D"] * 2}, r"down_block_types.*needs 3 entries"),
        (
            {"up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"]},
            r"attention must be at the same levels",
        ),
        ({"downsample_type": "resnet"}, r'downsample_type="resnet".*same way'),
        ({"upsample_type": "fir"}, r"same way"),
        ({"mid_block_type": None}, r"mid_block_type=null"),
        ({"mid_block_scale_factor": 1.41}, r"mid_block_scale_factor=1.41"),
        ({"add_attention": False}, r"add_attention=false"),
        ({"attn_norm_num_groups": 4}, r"attn_norm_num_groups=4"),
        ({"resnet_time_scale_shift": "scale_shift"}, r"attn_norm_num_groups=null"),
        (
            {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
            r'resnet_time_scale_shift="scale_shift".*models.adm.ADMUNet',
        ),
        ({"resnet_time_scale_shift": "spatial"}, r'resnet_time_scale_shift="spatial"'),
        ({"act_fn": "mish"}, r'act_fn="mish"'),
        ({"center_input_sample": True}, r"center_input_sample=true"),
        ({"time_embedding_type": "fourier"}, r'time_embedding_type="fourier"'),
        ({"time_embedding_dim": 100}, r"time_embedding_dim=100.*64"),
        ({"class_embed_type": "timestep"}, r'class_embed_type="timestep"'),
        ({"out_channels": 6}, r"out_channels=6.*learned_range"),
        ({"in_channels": 6}, r"out_channels=3.*in_channels=6"),
        ({"sample_size": [1, 2, 3]}, r"sample_size=\[1, 2, 3\]"),
        (
            {"block_out_channels": [16, 24, 32]},
            r"block_out_channels=\[16, 24, 32\].*multiple of the first, and 24 is not",
        ),
        ({"norm_num_groups": 5}, r"groups=5"),
        ({"layers_per_block": 0}, r"at least 1"),
        ({"layers_per_block": "2"}, r"layers_per_block='2' is not a whole number"),
        (
            {"layers_per_blok": 2},
            r"layers_per_blok: no such setting; did you mean layers_per_block",
        ),
        (
            {"_class_name": "UNet2DConditionModel"},
            r"_class_name=UNet2DConditionModel: only UNet2DModel",
        ),
        ({"layers_per_block": 2}, r"the weights are not those of the network.*lacks.*more"),
        ({"num_class_embeds": 3}, r"lacks 1 tensors of the network: class_embedding.weight"),
    ],
)
def test_what_the_unet_cannot_be(edited, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_weights(str(edited("unet/config.json", **changes))).load("ema")
    assert "unet" in str(error.value) or "model" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"variance_type": "learned"},
            (
                r'variance_type="learned": diffusers takes the output for the variance itself and '
                r"not for its log"
            ),
        ),
        ({"variance_type": "learned_range"}, r"out_channels=3.*6"),
        ({"variance_type": "fixed"}, r'variance_type="fixed".*did you mean'),
        ({"prediction_type": "flow_prediction"}, r'prediction_type="flow_prediction"'),
        ({"beta_schedule": "laplace"}, r'beta_schedule="laplace".*trained_betas'),
        (
            {"beta_schedule": None, "_class_name": "FlowMatchEulerDiscreteScheduler"},
            r"FlowMatchEulerDiscreteScheduler says no betas",
        ),
        ({"trained_betas": [0.1, 0.2]}, r"2 trained_betas, but num_train_timesteps=1000"),
        ({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, r"schedule.*betas must be"),
        ({"num_train_timesteps": 10**9}, r"num_train_timesteps=1000000000"),
        ({"num_train_timesteps": "many"}, r"num_train_timesteps='many' is not a whole number"),
        ({"beta_start": -1}, r"beta_start=-1"),
        ({"rescale_betas_zero_snr": True}, r"zero terminal SNR"),
    ],
)
def test_what_the_scheduler_cannot_be(edited, changes, message):
    with pytest.raises(UserError, match=message):
        load_weights(
            str(edited("scheduler/scheduler_config.json", **changes))
        ).config.build_denoiser()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_sample": False}, "sampler.clip=false"),
        ({"clip_sample_range": 3.0}, "clip_sample_range=3.0"),
        ({"thresholding": True}, "no dynamic thresholding"),
        ({"timestep_spacing": "trailing"}, "spacing=trailing"),
    ],
)
def test_how_a_scheduler_samples_is_told(edited, caplog, changes, message):
    caplog.set_level(logging.INFO)
    read_folder(edited("scheduler/scheduler_config.json", **changes))
    assert message in caplog.text


def test_latents_are_refused(edited):
    with pytest.raises(UserError, match=r"also has vqvae"):
        load_weights(str(edited("model_index.json", vqvae=["diffusers", "VQModel"])))


def test_damaged_folders(edited, tmp_path):
    path = str(edited("model_index.json"))
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        load_weights(path).load("ema")
    weights.rename(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(UserError, match=r"no diffusion_pytorch_model.safetensors.*fp16"):
        load_weights(path)
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        load_weights(path)
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json of a UNet"):
        load_weights(path)


def test_every_width_is_hit():
    """int(channels * multiplier) is the width, also where the quotient falls short of it."""
    pairs = [(c, w) for c in range(8, 400, 8) for w in range(8, 1200, 8)]
    assert any(int(c * (w / c)) != w for c, w in pairs)
    assert all(int(c * _multiplier(w, c)) == w for c, w in pairs)


def test_a_padding_that_nothing_has_is_not_asked_for(tmp_path):
    """Residual blocks that halve the size have no downsample_padding."""
    saved(tmp_path, ADM | {"downsample_padding": 0}, {"variance_type": "learned_range"})
    assert read_folder(tmp_path)[0]["model"]["resample_blocks"]


def test_the_last_block_does_not_change_the_size(tmp_path):
    """So its kind says nothing of how the others do."""
    plain = {
        "down_block_types": (*ADM["down_block_types"][:2], "DownBlock2D"),
        "up_block_types": (*ADM["up_block_types"][:2], "UpBlock2D"),
    }
    pipeline = saved(tmp_path, ADM | plain, {"variance_type": "learned_range"})
    theirs = their_trajectory(pipeline, 3, [3])
    assert_same(
        our_trajectory(*opened(tmp_path), ancestral, 3, [3]),
        theirs,
        2e-4,
        "adm with a plain last level, float32",
    )


# --- schedules ------------------------------------------------------------------------------------

OPTIONS = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    {"beta_schedule": "linear", "num_train_timesteps": 50},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values()))[:30])
def test_schedules_are_theirs(options):
    """Our alpha_bar is their alphas_cumprod, which is float32, to 1e-6."""
    scheduler = DDPMScheduler(**options)
    node = read_scheduler(json.loads(scheduler.to_json_string()), "here")["schedule"]
    alpha_bar = build(node, ["diffusion"], "schedule").alpha_bar
    torch.testing.assert_close(
        alpha_bar[1:].float(), scheduler.alphas_cumprod, rtol=1e-5, atol=1e-6
    )


def test_squaredcos_is_our_cosine():
    """Their betas, computed in float64, are ours to 1e-10."""
    curve = [np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(1001)]
    betas = np.array([min(1 - later / earlier, 0.999) for earlier, later in pairwise(curve)])
    np.testing.assert_allclose(cosine(1000).alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-10)


def test_zero_terminal_snr(tmp_path):
    """Trailing steps from no signal at all, with their DDIM."""
    pipeline = saved(
        tmp_path,
        SMALL,
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
        DDIMScheduler,
    )
    denoiser, shape = opened(tmp_path)
    assert denoiser.schedule.zero_terminal_snr
    theirs = their_trajectory(pipeline, 10, [3], use_clipped_model_output=True)
    assert_same(
        our_trajectory(denoiser, shape, ddim, 10, [3], trailing_steps),
        theirs,
        2e-4,
        "zero terminal SNR, ddim, float32",
    )


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_other_schedulers_say_the_same(name):
    """Which sampler a folder names makes no difference to the schedule."""
    options = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.001,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
    }
    config = json.loads(getattr(diffusers, name)(**options).to_json_string())
    expected = read_scheduler(json.loads(DDPMScheduler(**options).to_json_string()), "here")
    found = read_scheduler(config, "here")
    assert (
        found["schedule"] == expected["schedule"]
        and found["parameterization"] == expected["parameterization"]
    )


def test_predict_epsilon_of_2022():
    config = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "predict_epsilon": False,
    }
    assert read_scheduler(config, "here")["parameterization"]["_target_"].endswith("PredictX0")
