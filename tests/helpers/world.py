"""Stand-ins for what the world has published: files of the published forms, sizes and names, with
weights and images of ours, on a server of this machine; and a copy of this project whose
conf/downloads.yaml names that server.

The weights are random, but for a way from the input to the output: the networks say that the noise
is what they see of fine structure, so that they know it better than one pixel alone tells.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
from diffusers import DDPMPipeline, DDPMScheduler

from benchmarks.networks import Model, diffusers_unet
from config.overrides import composed
from config.run_config import RunConfig
from models.formats.ddim import to_ddim
from models.formats.openai import to_openai
from tests.helpers import ROOT
from tests.helpers.diffusers_2022 import flat
from tests.helpers.diffusers_names import to_diffusers
from tests.helpers.features import write_alexnet, write_dinov2, write_inception
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import add_repository
from tests.helpers.networks import randomize
from transfer.trained_weights import published_settings

COUNTS = {  # of EuroSAT
    "AnnualCrop": 3000,
    "Forest": 3000,
    "HerbaceousVegetation": 3000,
    "Highway": 2500,
    "Industrial": 2500,
    "Pasture": 2000,
    "PermanentCrop": 2500,
    "Residential": 3000,
    "River": 2500,
    "SeaLake": 3000,
}
SHARE = 0.05  # of what random layers add to the way from the input to the output


@torch.no_grad()
def says_what_it_sees(network) -> Any:
    """Random weights in all layers, and a way past them: the input less the mean of its neighbours,
    each colour as [x, -x, x, -x] in a group of channels of its own, goes by the longest skip
    connection to the last norm, and silu(x) - silu(-x) = x."""
    randomize(network)
    last = network.up[0].block[-1]
    width = network.conv_in.out_channels
    group = width // network.norm_out.num_groups
    signs = torch.tensor([1.0, -1.0]).repeat(group // 2)  # [group]
    ours = 3 * group  # channels of the way
    network.conv_in.weight[:ours] = 0
    for colour in range(3):
        rows = slice(colour * group, (colour + 1) * group)
        network.conv_in.weight[rows, colour] = signs[:, None, None] / -9
        network.conv_in.weight[rows, colour, 1, 1] += signs
    network.conv_in.bias[:ours] = 0
    for layer in (last.conv2, last.shortcut):
        layer.weight[:ours] *= SHARE
        layer.bias[:ours] = 0
    way = last.shortcut.weight[:ours, -width:]  # from the skip connection, which comes last
    way[:, :, 0, 0] = torch.eye(ours, width)
    network.norm_out.weight[:ours], network.norm_out.bias[:ours] = 1, 0
    network.conv_out.weight *= SHARE
    for colour in range(3):
        network.conv_out.weight[colour, colour * group : colour * group + 2, 1, 1] += signs[:2]
    network.conv_out.bias[:] = 0
    return network


def network_of(overrides: list[str]):
    torch.manual_seed(0)
    return says_what_it_sees(RunConfig(composed("train", overrides)).build_network())


def saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def published_weights(name: str) -> bytes:
    """The file of that name."""
    network = network_of(published_settings()[name])
    state = {key: tensor.detach() for key, tensor in network.state_dict().items()}
    if name != "ddim_celeba64.pth":
        return saved(to_openai(state, network))
    theirs = {f"module.{key}": tensor for key, tensor in to_ddim(state).items()}
    return saved([theirs, {}, 1, 500_000, theirs])


def hub_folder(folder: Path, model: Model, scheduler: Mapping[str, Any] = {}) -> Path:
    """google/ddpm-* of that model."""
    import diffusers

    network = network_of([f"model={model.config}", f"data.size={model.size}", "data.channels=3"])
    unet = diffusers_unet(diffusers, model)
    unet.load_state_dict(to_diffusers(network.state_dict(), len(network.down)))
    pipeline = DDPMPipeline(unet, DDPMScheduler(**scheduler))
    pipeline.save_pretrained(folder / "new")
    flat(folder / "flat", pipeline)
    return folder / "flat"


# images


def smooth(count: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    """[count, size, size, channels] uint8, whose pixels depend on their neighbours."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 5, 5, channels), dtype=np.uint8)
    return np.stack(
        [
            np.stack(
                [
                    np.asarray(Image.fromarray(plane).resize((size, size), Image.BICUBIC))
                    for plane in image.transpose(2, 0, 1)
                ],
                axis=-1,
            )
            for image in coarse
        ]
    )


def medmnist(
    counts: tuple[int, int, int], channels: int, classes: int, size: int = 64, seed: int = 0
) -> bytes:
    arrays, random = {}, np.random.default_rng(seed)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        some = smooth(min(count, 200), size, channels, seed=count)
        images = some[random.integers(0, len(some), count)]
        images[:, 0, 0] = random.integers(0, 256, (count, channels), dtype=np.uint8)
        arrays[f"{split}_images"] = images.squeeze(-1) if channels == 1 else images
        arrays[f"{split}_labels"] = random.integers(0, classes, (count, 1), dtype=np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def cifar10() -> bytes:
    """cifar-10-binary.tar.gz."""
    file, random = io.BytesIO(), np.random.default_rng(0)
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
            some = smooth(100, 32, 3, seed=len(archive.members)).transpose(0, 3, 1, 2)
            images = some[random.integers(0, 100, 10_000)].reshape(10_000, 3072)
            images[:, 0] = random.integers(0, 256, 10_000)
            labels = np.tile(np.arange(10, dtype=np.uint8), 1000)
            data = np.column_stack([labels, images]).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def eurosat() -> bytes:
    """EuroSAT.zip."""
    kinds = []
    for image in smooth(100, 64, 3):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=90)
        kinds.append(file.getvalue())
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, count in COUNTS.items():
            for k in range(1, count + 1):
                archive.writestr(f"2750/{name}/{name}_{k}.jpg", kinds[(k * 7) % len(kinds)])
    return whole.getvalue()


# the world, and a machine in it


def add_weights(server: FileServer, *names: str) -> None:
    for name in names:
        server.files[f"/{name}"] = published_weights(name)


def add_hub(server: FileServer, name: str) -> None:
    """google/ddpm-NAME."""
    model = Model("ddpm_cifar10", 32, 0) if "cifar10" in name else Model("ddpm_256", 256, 0)
    with tempfile.TemporaryDirectory() as folder:
        add_repository(server, f"google/ddpm-{name}", hub_folder(Path(folder), model))


def add_images(server: FileServer) -> None:
    server.files["/pneumoniamnist_64.npz"] = medmnist((4708, 524, 624), 1, 2)
    server.files["/bloodmnist_64.npz"] = medmnist((11959, 1712, 3421), 3, 8)
    server.files["/cifar-10-binary.tar.gz"] = cifar10()
    server.files["/EuroSAT.zip"] = eurosat()


def add_features(server: FileServer) -> None:
    import lpips

    linear = Path(lpips.__file__).parent / "weights/v0.1/alex.pth"
    server.files["/lpips_alex_v0.1.pth"] = linear.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (
            ("weights-inception-2015-12-05-6726825d.pth", write_inception),
            ("alexnet-owt-7be5be79.pth", write_alexnet),
            ("dinov2_vits14_pretrain.pth", write_dinov2),
        ):
            server.files[f"/{name}"] = write(Path(folder) / name).read_bytes()


def machine(folder: Path, server: FileServer) -> tuple[Path, dict[str, str]]:
    """A copy of this project on a machine that has nothing else, whose table names the server; and
    the environment of its processes."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "project" / name)
    table = yaml.safe_load((ROOT / "conf/downloads.yaml").read_text())
    for name, row in table.items():
        row["url"] = f"{server.url}/{name}"
        if f"/{name}" in server.files:
            data = server.files[f"/{name}"]
            kind = next((k for k in ("sha256", "md5") if k in row), None)
            row |= {kind: hashlib.new(kind, data).hexdigest()} if kind else {}
            row |= {"bytes": len(data)} if "bytes" in row else {}
    (folder / "project/conf/downloads.yaml").write_text(yaml.safe_dump(table))
    home = {"HOME": str(folder), "TORCH_HOME": str(folder / "torch"), "HF_HOME": str(folder / "hf")}
    return folder / "project", os.environ | home | {"HF_ENDPOINT": server.url}


def on(place: tuple[Path, dict[str, str]], *command: str) -> subprocess.CompletedProcess[str]:
    """Runs python with these arguments on a machine."""
    folder, environment = place
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
