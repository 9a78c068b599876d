"""Published weights and networks of features: opened, and compared with another implementation in
the same process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import version
from benchmarks.contact_formulas import (
    ddim_images,
    error_of_a_pixel_alone,
    weights_as_published,
)
from benchmarks.contact_row import Row, show, train
from benchmarks.record import Record
from config.overrides import composed
from data.pixels import to_uint8
from diffusion.denoiser import Denoiser
from diffusion.generate import SamplerSettings, generate
from diffusion.samplers import ddim
from diffusion.schedule import NoiseSchedule
from diffusion.spacing import even_steps, log_snr_steps
from metrics.features import Features, extract
from models.formats.published import read_weights
from runtime.config_schema import build
from runtime.device import free_memory
from runtime.download import published, weights_named
from runtime.errors import UserError
from runtime.files import sha256
from runtime.receive import NoNetwork
from runtime.seeds import derive
from sampling.pipeline import Pipeline, SampleRequest, load
from transfer.trained_weights import TrainedWeights

IMAGES, COMPARED_STEPS = 8, 3  # images that are sampled; steps of those that are compared
SAME = 0.5  # gray levels of 255 that two implementations may differ by in float32
SHARES = (0.05, 0.1, 0.2, 0.35, 0.6)  # of T, the t of the losses
CLEARLY = 0.9  # of the loss of a pixel alone, by which one that says what it sees has 1.03 and more
SEEDS = [derive(0, "contact", k) for k in range(IMAGES)]  # of the noise of those
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # of scikit-image


def try_weights(row: Row, device: torch.device, out: Path, steps: int) -> Record:
    """Opens, samples, compares with another implementation, asks about photographs, transfers."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = load(row.name, str(device))
    found: Record = {"parameters": sum(p.numel() for p in model.denoiser.network.parameters())}
    if model.weights.path.is_dir():
        peer, ours, theirs = against_diffusers(model.weights, model.denoiser, device)
    else:
        peer, ours, theirs = against_formulas(model.weights, model.denoiser, **row.formulas)
    apart = 255 / 2 * (ours.clamp(-1, 1) - theirs.clamp(-1, 1)).abs().max().item()
    found |= {"compared_with": peer, "gray_levels_apart": apart}
    if device.type == "cuda":
        sampled(model, 2)  # its graph is captured, and is not what is timed
    began = time.monotonic()
    images = sampled(model, steps)
    found["ms_per_sampling_step"] = 1000 * (time.monotonic() - began) / steps
    found |= losses_on_photographs(model.denoiser, images.shape[1:], device)
    below = f"{COMPARED_STEPS} steps from the same noise: above ours, below by {peer}"
    made = f"{IMAGES} images from fixed noise, DDIM, {steps} steps"
    pictures = {f"{row.file}.png": made, f"{row.file}_compared.png": below}
    show(out / f"{row.file}.png", to_uint8(images), IMAGES)
    show(out / f"{row.file}_compared.png", to_uint8(torch.cat([ours, theirs])), IMAGES)
    check_weights(row.name, found)
    facts = about_file(row.name, model.weights)
    del model
    free_memory()
    size = f"data.size={images.shape[-1]}"
    target = [f"source.from={row.name}", "data=bundled_tissue", size, "data.upscale=true"]
    found |= train([*row.overrides, *target], row, device, out, steps)
    return {"found": found, "file": facts, "pictures": pictures}


def sampled(model: Pipeline, steps: int) -> Tensor:
    """Images of fixed noise: [8, C, H, W] in about [-1, 1], on the CPU."""
    settings = SamplerSettings(ddim, log_snr_steps, steps)
    request = SampleRequest(settings, IMAGES, seed=0, batch_size=IMAGES)
    with tqdm(total=steps, desc="sampling", unit="step", delay=2) as bar:
        made = model.batches(request, range(IMAGES), lambda *_: bar.update())
        return torch.cat([x0.cpu() for _, x0 in made])


def check_weights(name: str, found: Record) -> None:
    """Whether the two implementations agree, and the network is a trained one.

    Raises:
        UserError: where not.
    """
    apart, loss, alone = (found[key] for key in ("gray_levels_apart", "loss", "loss_of_a_pixel"))
    if not apart <= SAME:
        raise UserError(
            f"{name} opens, but {apart:.3g} gray levels of 255 lie between its images and those of "
            f"{found['compared_with']} (at most {SAME})."
        )
    if not loss <= CLEARLY * alone:
        raise UserError(
            f"{name} opens, but its loss on photographs, {loss:.3g}, is that of no trained "
            f"network: one pixel alone tells the noise to {alone:.3g}."
        )


def about_file(name: str, weights: TrainedWeights) -> Record:
    """What is known of the file that was opened."""
    if weights.path.is_dir():  # the Hub's cache, whose folder is named by the commit
        files = [p for end in ("safetensors", "bin") for p in weights.path.rglob(f"*.{end}")]
        about = {"bytes": files[0].stat().st_size, "sha256": weights.digests["ema"]}
        return about | ({"commit": weights.path.name} if "snapshots" in weights.path.parts else {})
    known = published()[name]
    known.check(weights.path)
    return {
        "bytes": weights.path.stat().st_size,
        "sha256": sha256(weights.path),
        "compared_with_a_published_checksum": bool(known.checksums),
    }


def compared(denoiser: Denoiser, shape: tuple[int, int, int]) -> Tensor:
    """Images of the same noise as another implementation's. [8, C, H, W] on the CPU."""
    settings = SamplerSettings(ddim, leading, COMPARED_STEPS)
    with torch.no_grad(), tqdm(total=COMPARED_STEPS, desc="comparing", unit="step", delay=2) as bar:
        return generate(
            denoiser, denoiser.schedule, settings, shape, SEEDS, lambda *_: bar.update()
        ).cpu()


def leading(schedule: NoiseSchedule, count: int) -> list[int]:
    """diffusers' default: the lowest count of the even steps."""
    return list(even_steps(schedule, count)[-count - 1 :])


def against_diffusers(
    weights: TrainedWeights, denoiser: Denoiser, device: torch.device
) -> tuple[str, Tensor, Tensor]:
    """Its pipeline of the same folder, from the same noise."""
    import runtime.torchvision  # noqa: F401  before what imports torchvision

    # isort: split
    try:
        from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise NoNetwork(
            "diffusers is compared with, and is not here: pip install -r requirements-contact.txt"
        ) from error
    theirs = DDPMPipeline.from_pretrained(str(weights.path))
    scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    pipeline = DDIMPipeline(theirs.unet.to(device), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    shape = weights.config.image_shape
    random = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    # the noise that goes with the clipped x0, as ours
    options = {"use_clipped_model_output": True, "output_type": "np"}
    made = pipeline(IMAGES, random, num_inference_steps=COMPARED_STEPS, **options).images
    images = torch.from_numpy(np.asarray(made)).permute(0, 3, 1, 2) * 2 - 1
    return f"diffusers {version('diffusers')}", compared(denoiser, shape), images


def against_formulas(
    weights: TrainedWeights,
    denoiser: Denoiser,
    network: Callable[..., Tensor],
    alpha_bar: Tensor,
    **settings: Any,
) -> tuple[str, Tensor, Tensor]:
    """The published network and schedule, written again on the names of the file, on the CPU.

    Args:
        settings: what its paper says of the network and no shape shows. Nothing here is of our
            conf/.
    """
    state, shape = weights_as_published(read_weights(weights.path)), weights.config.image_shape
    compute = partial(network, state, **settings)
    with tqdm(total=COMPARED_STEPS, desc="formulas", unit="step", delay=2) as bar:
        theirs = ddim_images(compute, alpha_bar, shape, SEEDS, COMPARED_STEPS, bar.update)
    return "the published formulas", compared(denoiser, shape), theirs


def photographs(shape: Sequence[int]) -> Tensor:
    """Four photographs in scikit-image's wheel, their middle, scaled: [4, 3, H, W] in [-1, 1]."""
    import skimage

    folder, (_, height, width) = Path(skimage.__file__).parent / "data", shape
    crops = []
    for name in PHOTOGRAPHS:
        whole = Image.open(folder / name).convert("RGB")
        side = min(whole.size)
        left, upper = (whole.width - side) // 2, (whole.height - side) // 2
        crop = whole.crop((left, upper, left + side, upper + side))
        crops.append(np.asarray(crop.resize((width, height), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def losses_on_photographs(denoiser: Denoiser, shape: Sequence[int], device: torch.device) -> Record:
    """Mean squared errors of the predicted noise, the mean over SHARES of T: of the network; told
    another t than the noise is of, where it should be worse, unless schedule or timesteps are not
    those that it was trained with; and of the best guess from one pixel alone."""
    x0, schedule = photographs(shape).to(device), denoiser.schedule
    random, variance = torch.Generator().manual_seed(0), x0.square().mean().item()
    told = {"loss": 1.0, "loss_told_0.7_t": 0.7, "loss_told_1.4_t": 1.4}
    errors: Record = dict.fromkeys([*told, "loss_of_a_pixel"], 0.0)
    for t in (round(share * schedule.steps) for share in SHARES):
        noise = torch.randn(x0.shape, generator=random).to(device)
        x_t = schedule.add_noise(x0, noise, t)
        for name, times in told.items():
            said, _ = denoiser.outputs(x_t, round(times * t))
            _, predicted = denoiser.parameterization.decode(schedule, said, x_t, t)
            errors[name] += (predicted - noise).square().mean().item() / len(SHARES)
        alone = error_of_a_pixel_alone(schedule.alpha_bar[t].item(), variance)
        errors["loss_of_a_pixel"] += alone / len(SHARES)
    return errors


def try_features(row: Row, device: torch.device, out: Path, steps: int) -> Record:
    """Opens, and maps photographs."""
    config = composed("evaluate", list(row.overrides))
    name = config["features"]["path"]
    features: Features = build(config["features"], ["metrics"], "features")
    file = weights_named(name) or Path(name)
    published()[name].check(file)
    images = to_uint8(photographs((3, 64, 64))).numpy()
    values = extract(features, images, device=device).features
    facts = {"bytes": file.stat().st_size, "sha256": features.identity["sha256"]}
    return {"found": {"dimensions": values.shape[1]}, "file": facts, "pictures": {}}
