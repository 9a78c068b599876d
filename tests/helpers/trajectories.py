"""Whole trajectories of diffusers' pipelines and of our samplers, from the same noise."""

from __future__ import annotations

from functools import partial

import torch

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding

import models.adm
import models.unet
from diffusion.generate import SamplerSettings, generate
from diffusion.spacing import even_steps
from tests.helpers.networks import difference, randomize
from transfer.trained_weights import load_weights

# google/ddpm-*
HO = {
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
}


SMALL = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def saved(folder, unet, scheduler=None, kind=DDPMScheduler):
    """A pipeline with random weights, written to folder by diffusers."""
    network = UNet2DModel(**unet).eval()
    randomize(network)
    pipeline = (DDIMPipeline if kind is DDIMScheduler else DDPMPipeline)(
        network, kind(**scheduler or {})
    )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def opened(folder):
    """Our denoiser of that folder, and the shape of its images."""
    found = load_weights(str(folder))
    denoiser = found.config.build_denoiser().eval()
    denoiser.network.load_state_dict(found.load("ema"))
    size = found.config.raw["data"]["size"]
    return denoiser, (
        found.config.raw["data"]["channels"],
        *((size, size) if isinstance(size, int) else size),
    )


def their_trajectory(pipeline, count, seeds, **options):
    """Every x that the network sees, and the images, which the pipeline clips and scales."""
    xs = []
    hook = pipeline.unet.register_forward_pre_hook(lambda module, args: xs.append(args[0].clone()))
    images = pipeline(
        len(seeds),
        [torch.Generator().manual_seed(s) for s in seeds],
        num_inference_steps=count,
        output_type="pt",
        **options,
    )
    hook.remove()
    return [*xs, images.images]


def leading(schedule, count):
    """diffusers' default: the lowest count of the even steps."""
    return even_steps(schedule, count)[-count - 1 :]


def our_trajectory(denoiser, shape, function, count, seeds, spacing=leading):
    xs = []

    def watched(x_t, t, condition=None):
        xs.append(x_t)
        return denoiser(x_t, t, condition)

    x0 = generate(
        watched, denoiser.schedule, SamplerSettings(function, spacing, count), shape, seeds
    )
    return [*xs, (x0 / 2 + 0.5).clamp(0, 1)]


def embed_as_diffusers(monkeypatch):
    """Both UNets take the embedding of time from diffusers, so that it is the same to the bit."""
    monkeypatch.setattr(
        models.unet, "timestep_embedding", partial(get_timestep_embedding, downscale_freq_shift=1)
    )
    monkeypatch.setattr(
        models.adm,
        "cosine_first_embedding",
        partial(get_timestep_embedding, flip_sin_to_cos=True, downscale_freq_shift=0),
    )


def assert_same(a, b, bound, what):
    assert len(a) == len(b)
    worst = max(difference(x, y) for x, y in zip(a, b, strict=True))
    print(f"\n{what}: largest relative difference of {len(a)} x: {worst:.1e}")
    assert worst < bound
