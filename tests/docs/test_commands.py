"""Every command that the documentation and the experiments print is one that the program
understands."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from config.overrides import check_overrides, composed, options
from config.run_config import RunConfig
from runtime.config_schema import parse
from runtime.errors import UserError
from sampling.sample_to_folder import SampleSettings, default_out
from tests.helpers import ROOT
from training import run
from training.config_checks import check_run_config

FILES = [  # results.md has scripts with loops: commands_of_scripts
    "README.md",
    *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md")) if p.name != "results.md"),
    *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("conf/**/*.yaml"))),
]


def commands() -> list[tuple[str, str]]:
    """(script, arguments) of every `python SCRIPT.py ...` in the files, words in capitals standing
    for the reader's own."""
    found = set()
    for name in FILES:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        for script, arguments in re.findall(
            r"python (train|sample|evaluate|export)\.py((?: +[^\s`#()]*(?:'[^']*'|\"[^\"]*\")?)*)",
            text,
        ):
            words = [
                w
                for w in shlex.split(re.split(r"\s{3,}|;", arguments.strip())[0])
                if ("=" in w or w == "-m") and "..." not in w
            ]
            found.add((script, " ".join(map(shlex.quote, words))))
    return sorted(found | set(commands_of_scripts()))


def commands_of_scripts() -> list[tuple[str, str]]:
    """The same of docs/results.md, whose blocks are scripts with loops: bash runs them, and python
    only says what it was given."""
    found = []
    for block in re.findall(
        r"```bash\n(.*?)```", (ROOT / "docs/results.md").read_text(), re.DOTALL
    ):
        said = "python() { printf '%q ' \"$@\"; echo; }\n"
        told = subprocess.run(
            ["bash", "-euc", said + block], capture_output=True, text=True, check=True
        )
        for script, *words in map(shlex.split, told.stdout.splitlines()):
            if script != "report.py":
                found.append(
                    (
                        script.removesuffix(".py"),
                        " ".join(shlex.quote(w) for w in words if "=" in w or w == "-m"),
                    )
                )
    return found


def test_there_are_commands():
    assert len(commands()) > 20, commands()


@pytest.mark.parametrize(("script", "arguments"), commands())
def test_the_command_line_is_understood(script, arguments):
    check_overrides(script, shlex.split(arguments))


def test_commands_of_sample_can_be_given_one_after_the_other():
    """Those of the same weights go into one folder only where they make the same images."""
    made: dict[tuple[str, str], tuple] = {}
    found = SimpleNamespace(step=7, path=Path("RUN/checkpoints/step_7"))
    told = [arguments for script, arguments in commands() if script == "sample"]
    assert len(told) > 6
    for arguments in told:
        config = composed("sample", shlex.split(arguments))
        del config["spacing"]
        asked = parse(SampleSettings, config, ["diffusion"], "")
        place = (asked.checkpoint, asked.out or str(default_out(found, asked, config["sampler"])))
        made_by = (config["sampler"], asked.label, asked.guidance, asked.reference, asked.seed)
        assert made.setdefault(place, made_by) == made_by, arguments


@pytest.mark.parametrize(
    ("file", "overrides"), yaml.safe_load((ROOT / "conf/published.yaml").read_text()).items()
)
def test_published_files_have_settings_that_build(file, overrides):
    config = composed("train", overrides)
    check_run_config(config)
    network = RunConfig(config).shape_network()
    # OpenAI's learn a variance
    outputs = 3 if file == "ddim_celeba64.pth" else 6
    assert network.conv_in.in_channels == 3 and network.conv_out.out_channels == outputs
    assert file in (ROOT / "docs/pretrained.md").read_text()


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_opens_with_its_command_its_hours_and_what_to_expect(experiment):
    lines = (ROOT / f"conf/experiment/{experiment}.yaml").read_text().split("defaults:")[0]
    assert f"python train.py +experiment={experiment}" in lines
    assert re.search(r"hours|minute", lines) and "o expect:" in lines.replace(
        "To\n# expect:", "To expect:"
    )


def test_improved_cifar10_is_the_published_model():
    """Nichol and Dhariwal's flags for cifar10_uncond_50M_500K.pt, and the parameters of its
    file."""
    config = composed("train", ["+experiment=pretrain_cifar10_improved"])
    check_run_config(config)
    with torch.device("meta"):
        denoiser = RunConfig(config).build_denoiser()
    assert sum(p.numel() for p in denoiser.network.parameters()) == 52_546_438
    assert denoiser.schedule.steps == 4000 and denoiser.network.timestep_scale * 4000 == 1000
    assert (
        config["train"]["clip"] is None
        and config["train"]["warmup"] == 0
        and config["optimizer"]["weight_decay"] == 0
    )


def test_what_is_missing_is_named_at_once(tmp_path, monkeypatch):
    """Neither the source's images nor the target's: one message with both places, and what to run
    meanwhile."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        run.train(composed("train", ["+experiment=transfer_celeba_to_medical", "run.device=cpu"]))
    message = str(raised.value)
    for word in (
        "datasets/celeba",
        "img_align_celeba.zip",
        "pneumoniamnist_64.npz",
        "docs/pretrained.md",
        "+experiment=transfer_demo",
    ):
        assert word in message
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_must_be_named():
    with pytest.raises(UserError, match="data.path must be set"):
        composed("train", ["+experiment=transfer_folder"])


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_files_that_a_page_names_are_there(page):
    """A path of code, such as metrics/kid.py; names of others' files have no folder of ours."""
    ours = "|".join(p.parent.name for p in ROOT.glob("*/__init__.py"))
    named = re.findall(rf"(?<![\w/])(?:{ours})/[\w/]+\.py\b", (ROOT / page).read_text())
    assert not [path for path in named if not (ROOT / path).is_file()]
