"""A source of another architecture: refused before data is read, unless a part of it was chosen."""

import pytest

from config.overrides import composed
from config.run_config import RunConfig
from runtime.errors import Misfit
from training.start_from_source import check_fits

IMAGES = ["data.channels=3", "data.size=64"]


def config(*overrides: str) -> RunConfig:
    return RunConfig(composed("train", [*IMAGES, "source.from=SOURCE", *overrides]))


def refused(here, there) -> str:
    with pytest.raises(Misfit) as raised:
        check_fits(config(*here), config(*there))
    return str(raised.value)


def test_a_published_network_into_the_default_of_an_experiment():
    """google/ddpm-cifar10-32 without its model=: of 113.7M values 18.5M fit, 16%."""
    assert refused(["model=ddpm_256"], ["model=ddpm_cifar10"]) == (
        "source.from=SOURCE: its network is another, and only 16% of the values here would come "
        "from it, while the rest begins at random. (Here -> source: "
        "model.multipliers=[1,1,2,2,4,4] -> [1,2,2,2]; model.attention_levels=[4] -> [1].) Take "
        "the source's network, model=ddpm_cifar10; or choose the part of it that is to be copied, "
        "with source.include=[...] or source.depth=N."
    )


@pytest.mark.parametrize(
    ("here", "there", "cure"),
    [
        # 90% of its tensors fit by shape
        (["model=ddpm_cifar10"], ["model=improved_cifar10"], "model=improved_cifar10;"),
        (["model=ddpm_256", "model.heads=4"], ["model=ddpm_256"], "model=ddpm_256;"),
        (["model=adm_lsun256", "model.timestep_scale=0.25"], ["model=adm_lsun256"], "adm_"),
        (
            ["model=demo"],
            ["model=demo", "model.groups=16"],
            "model._target_=models.unet.UNet model.channels=32 model.multipliers=[1,2,4] "
            "model.blocks=1 model.attention_levels=[2] model.heads=1 model.groups=16;",
        ),
    ],
)
def test_weights_that_fit_and_mean_something_else(here, there, cure):
    said = refused(here, there)
    assert "in which the same weights compute something else" in said and cure in said


@pytest.mark.parametrize(
    ("here", "there"),
    [
        # levels added below, of which 60% of the values are new
        (["model=ddpm_celeba64"], ["model=ddpm_celeba64", "model.multipliers=[1,2,2,2]"]),
        (["model=ddpm_celeba64"], ["model=ddpm_celeba64", "model.attention_levels=[1,2,3]"]),
        (["model=demo", "data.channels=1"], ["model=demo", "model.classes=5"]),
        (["model=demo"], ["model=demo", "variance=learned_range", "loss=hybrid"]),
        (["model=demo", "data.size=256", "model.dropout=0.3"], ["model=demo"]),
        (["model=ddpm_256", "source.include=['time_mlp.*']"], ["model=ddpm_cifar10"]),
        (["model=ddpm_256", "source.depth=2"], ["model=ddpm_cifar10"]),
    ],
    ids=str,
)
def test_what_is_a_source_all_the_same(here, there):
    check_fits(config(*here), config(*there))
