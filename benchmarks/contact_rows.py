"""The rows of benchmarks.contact, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contact_formulas import cosine, linear
from benchmarks.contact_images import by_bytes, by_numpy, by_pillow, try_experiment, try_images
from benchmarks.contact_row import Row
from benchmarks.contact_weights import try_features, try_weights
from tests.helpers import adm_reference, ddim_reference
from transfer.trained_weights import published_settings

# their own folder: what lies there was fetched, and compared before it was unpacked
ROOT = "data.root={out}/datasets/medmnist"
HUB = "from the Hugging Face Hub"
OPENAI = "OpenAI's file (Nichol and Dhariwal 2021)"


def of_medmnist(name: str, channels: int, counts: Sequence[int]) -> Row:
    chosen = ("data=medmnist", f"data.name={name}", f"data.channels={channels}", ROOT)
    about = f"MedMNIST's {name} at 64x64, from Zenodo"
    return Row(f"{name}_64", "images", about, try_images, chosen, counts=counts, again=by_numpy)


def of_openai(name: str) -> Row:
    """By their flags four heads, and 4000 timesteps that are scaled to 0..1000."""
    said = {"network": adm_reference.unet, "alpha_bar": cosine()}
    said |= {"blocks": 3, "heads": 4, "timestep_scale": 0.25}
    chosen = published_settings()[name]
    return Row(name, "weights", OPENAI, try_weights, chosen, formulas=said)


def of_features(name: str) -> Row:
    about = "features of images for evaluate.py"
    return Row(name, "features", about, try_features, (f"features={name}",))


ROWS = (
    Row("google/ddpm-cifar10-32", "weights", HUB, try_weights, ("model=ddpm_cifar10",)),
    Row("google/ddpm-celebahq-256", "weights", HUB, try_weights, ("model=ddpm_256",), batch=2),
    Row("google/ddpm-church-256", "weights", HUB, try_weights, ("model=ddpm_256",), batch=2),
    of_openai("cifar10_uncond_50M_500K.pt"),
    of_openai("imagenet64_uncond_100M_1500K.pt"),
    Row(
        "ddim_celeba64.pth",
        "weights",
        "DDIM's weights of CelebA (Song et al. 2021)",
        try_weights,
        ("model=ddpm_celeba64",),
        formulas={"network": ddim_reference.reference, "alpha_bar": linear(), "blocks": 2},
    ),
    of_medmnist("pneumoniamnist", 1, (4708, 524, 624)),
    of_medmnist("bloodmnist", 3, (11959, 1712, 3421)),
    Row(
        "cifar10",
        "images",
        "CIFAR-10, its binary version",
        try_images,
        ("data=cifar10", "data.path={out}/datasets/cifar10"),
        counts=(50_000, 5_000, 5_000),
        archive="cifar-10-binary.tar.gz",
        again=by_bytes,
    ),
    Row(
        "eurosat",
        "images",
        "EuroSAT in RGB (Helber et al. 2019)",
        try_images,
        ("data=eurosat", "data.root={out}/datasets/eurosat"),
        counts=(21_600, 2_700, 2_700),
        archive="EuroSAT.zip",
        again=by_pillow,
    ),
    of_features("inception"),
    of_features("dinov2"),
    of_features("lpips"),
    Row(
        "transfer_imagenet_to_medical",
        "experiment",
        "photographs to radiographs, both fetched",
        try_experiment,
        ("+experiment=transfer_imagenet_to_medical", "data.n_train=100"),
    ),
)
