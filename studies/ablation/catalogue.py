"""Which tables there are."""

import textwrap
from typing import Any

from omegaconf import OmegaConf

from config.overrides import CONF, options
from runtime.config_schema import build
from runtime.log import table
from studies.ablation.study import Ablation

# table -> why no file of conf/ablation is it
NOT_EXPRESSED = {
    "Karras et al. 2022 (EDM), table 2": "its rows are the preconditioning of the network, the "
    "distribution of sigma and the spacing with rho 7; networks here predict noise, x0, velocity "
    "or mean at whole t of a schedule",
    "Kornblith et al. 2019": "its tables are the accuracy of classifiers on twelve data sets; "
    "there is no classifier here, and no such number of a diffusion model",
    "Mo et al. 2020 (FreezeD)": "it freezes layers of a GAN's discriminator, which a diffusion "
    "model has none of",
}


def read(name: str) -> Ablation:
    """The table of this name. Raises UserError where its file is wrong."""
    content: Any = OmegaConf.to_container(
        OmegaConf.load(CONF / "ablation" / f"{name}.yaml"), resolve=True
    )
    return build(content["study"], ["studies"], f"{name}: study")


def catalogue() -> str:
    """For the terminal."""
    found = {name: read(name) for name in options("ablation")}
    lines = [["name", "paper and table", "rows", "full, hours", "small, minutes"]]
    for name, ablation in found.items():
        full, small = ablation.sizes.full.hours, ablation.sizes.small.hours
        what = f"{ablation.paper}, {ablation.table}"
        lines.append([name, what, str(len(ablation.rows)), f"{full:g}", f"{small * 60:.0f}"])
    shows = [_paragraph(f"{n}: {a.shows} Not: {a.cannot}") for n, a in found.items()]
    apart = [_paragraph(f"{what}: {why}.") for what, why in NOT_EXPRESSED.items()]
    return "\n".join(
        [
            table(lines),
            "\nHours are of one A100, estimates; minutes of two quiet CPU cores.",
            "\nWhat the small sizes show:",
            *shows,
            "\nWhat cannot be expressed:",
            *apart,
        ]
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    ")
