"""Which tables there are."""

import textwrap
from typing import Any

from omegaconf import OmegaConf

from config.overrides import CONF, options
from runtime.config_schema import build
from runtime.log import table
from studies.ablation.page import expected_text
from studies.ablation.study import Ablation, hours_text

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


def described(name: str) -> str:
    """One of them: what it compares, what the paper has, what is claimed, and what it costs."""
    found = read(name)
    names = [measure.name for measure in found.measures]
    rows = [["row", *names]]
    for row in found.rows:
        expected = (row.expects(measure) for measure in names)
        rows.append([row.name, *("" if e is None else expected_text(e) for e in expected)])
    claims = [["claim", "at small size"], *([c.text, c.small] for c in found.claims)]
    sizes = found.sizes
    return "\n\n".join(
        [
            f"{found.paper}, {found.table}\n"
            f"size=full: {hours_text('full', sizes.full.hours)}; "
            f"size=small: {hours_text('small', sizes.small.hours)}",
            f"What the paper has, with the band that counts as the same:\n{table(rows)}",
            table(claims),
            _paragraph(f"The small size shows {found.shows} Not: {found.cannot}"),
            f"python ablation.py {name} size=small [SETTING=VALUE ...]   settings of train.py, and "
            "study.sizes.small.seeds=[0,1,2]; conf/ablation/"
            f"{name}.yaml has it all. How a run is set: python train.py --help",
        ]
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    ")
