"""The documentation's commands that need a network, on a machine that has this project, what
`make install` installs, and nothing else; the world is a server of this machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import ROOT, world
from tests.helpers.file_server import serving

# command, as README.md or a page of docs/ has it; what makes it short
FEW = "train.steps=1 train.batch_size=1 train.warmup=0 run.held_out_draws=2 run.samples=1"
FEW += " sampler.steps=1"
EVALUATED = "n=3 sampler.steps=1 held_out_draws=2 metrics=[quality]"
COMMANDS = [
    ("sample.py checkpoint=google/ddpm-cifar10-32 n=16", "n=1 sampler.steps=1"),
    ("sample.py checkpoint=ddim_celeba64.pth n=16", "n=1 sampler.steps=1"),
    ("train.py +experiment=transfer_folder data.path=MY_IMAGES", FEW),
    ("train.py +experiment=transfer_imagenet_to_medical data.n_train=100", FEW),
    (
        "train.py +experiment=transfer_celeba_to_medical source.from=ddim_celeba64.pth "
        "data.n_train=100",
        FEW,
    ),
    (
        "train.py data=eurosat source.from=imagenet64_uncond_100M_1500K.pt "
        "model=improved_imagenet64 schedule=cosine schedule.steps=4000 variance=learned_range "
        "loss=hybrid",
        FEW,
    ),
    ("train.py +experiment=pretrain_cifar10", FEW),
    ("evaluate.py checkpoint=runs/transfer_imagenet_to_medical features=inception", EVALUATED),
    ("evaluate.py checkpoint=RUN features=dinov2", EVALUATED),
    ("evaluate.py checkpoint=RUN features=lpips", EVALUATED),
]
# of requirements-dev.txt alone
DEV = ("diffusers", "accelerate", "lpips", "torchmetrics", "prdc", "pytest", "medmnist")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    with serving() as server:
        world.add_images(server)
        world.add_features(server)
        world.add_weights(server, "imagenet64_uncond_100M_1500K.pt", "ddim_celeba64.pth")
        for name in ("cifar10-32", "ema-celebahq-256"):
            world.add_hub(server, name)
        project, environment = world.machine(folder, server)
        images = project / "MY_IMAGES"
        images.mkdir()
        for k, image in enumerate(world.smooth(20, 256, 3)):
            Image.fromarray(image).save(images / f"{k}.png")
        refuse = f"import sys\nfor name in {DEV}:\n    sys.modules[name] = None\n"
        (folder / "site").mkdir()
        (folder / "site/sitecustomize.py").write_text(refuse)
        yield project, environment | {"PYTHONPATH": str(folder / "site")}


def documented() -> str:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    pages += sorted((ROOT / "conf").rglob("*.yaml"))
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_the_documentation_has_the_command(command):
    assert f"python {command}" in documented()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("command", "short"), COMMANDS)
def test_it_runs_from_a_machine_with_nothing(place, command, short):
    command = command.replace("RUN", "runs/transfer_imagenet_to_medical")
    done = world.on(place, *command.split(), *short.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pip install" not in done.stderr + done.stdout
    if command.startswith("sample"):
        assert list(Path(place[0] / "generated").rglob("000000.png"))
