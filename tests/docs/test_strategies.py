"""docs/strategies.md against the presets: their files, their shares, their papers, and its own
example."""

import re

import pytest
import yaml

from config.overrides import CONF, composed, options
from config.run_config import RunConfig
from runtime.build import resolve
from training.checks import check_network, check_run_config

TEXT = (CONF.parent / "docs" / "strategies.md").read_text()
# name of a section: its text
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S))
# name of a strategy: its share, in percent, as printed
SHARES = dict(re.findall(r"^\| \[(\w+)\]\(#\1\) \|[^|]*\| ([\d.]+) \|", TEXT, re.M))
PAPER = r"\b\d{4}\.\d{4,5}\b"


def split(name: str) -> tuple[str, str]:
    """A preset's leading comment lines, and what it says: the line that says where its keys belong
    is none of them."""
    head, body = re.fullmatch(
        r"((?:#[^\n]*\n)*)(.*)", (CONF / "transfer" / f"{name}.yaml").read_text(), re.S
    ).groups()
    package = re.findall(r"^# @package.*\n", head, re.M)
    return head, "".join(package) + body


def code(language: str, text: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return found


def test_every_preset_has_a_section_and_a_row_in_the_same_order():
    assert list(SECTIONS) == list(SHARES) and sorted(SECTIONS) == options("transfer")


@pytest.mark.parametrize("name", options("transfer"))
def test_a_section_has_the_preset_and_its_papers(name):
    head, body = split(name)
    assert code("yaml", SECTIONS[name]) == body
    assert set(re.findall(PAPER, head)) == set(re.findall(PAPER, SECTIONS[name]))
    (row,) = re.findall(rf"^\| \[{name}\].*$", TEXT, re.M)
    assert set(re.findall(PAPER, row)) <= set(re.findall(PAPER, head)) and (
        "arXiv:" not in head or re.search(PAPER, row)
    )


@pytest.mark.parametrize("name", options("transfer"))
def test_a_share_is_that_of_the_celeba_network(name):
    config = composed(
        "train",
        [
            "model=ddpm_celeba64",
            "data.size=64",
            "data.channels=3",
            f"transfer={name}",
            "source.from=x",
        ],
    )
    plan = check_network(RunConfig(config).completed)
    classes = config["model"]["classes"] == "auto"
    # one class and the null class
    assert sum(plan.parameters[n].numel() for n in plan.plain) == 78_700_803 + 2 * 512 * classes
    digits = len(SHARES[name].partition(".")[2])
    assert f"{100 * plan.share():.{digits}f}" == SHARES[name]


@pytest.mark.parametrize("name", options("transfer"))
def test_a_row_names_the_rates(name):
    """Every rate above 0 stands in the row, those of a sequence by its ends."""
    (rates,) = re.findall(rf"^\| \[{name}\].*\| ([^|]*) \| [^|]* \|$", TEXT, re.M)
    preset = yaml.safe_load(split(name)[1])
    rules = preset.get("transfer", preset)["rules"]
    wanted = {float(rule.get("learning_rate_scale", 1)) for rule in rules} - {0.0}
    if " to " in rates:
        wanted = {max(wanted), round(min(wanted), 3)}
    assert {float(rate) for rate in re.findall(r"[\d.]+", rates)} == wanted


def test_the_example_is_a_strategy_whose_plan_is_the_one_printed():
    section = TEXT.split("## Write your own")[1].split("\n## ")[0]
    config = composed("train", ["+experiment=transfer_demo"]) | {
        "transfer": yaml.safe_load(code("yaml", section))
    }
    plan = check_network(check_run_config(config))
    assert all(name.startswith("up.") for name in plan.trains())
    rows = [",".join(map(str, row)) for row in plan.rows(config["optimizer"]["lr"])]
    printed = code("", section.split("**Look before")[1]).splitlines()
    assert printed and set(printed) <= set(rows)


def test_the_listing_of_names_runs(capsys):
    (program,) = re.findall(r'^python -c "(.*?)"$', TEXT, re.M | re.S)
    exec(program, {})
    lines = capsys.readouterr().out.splitlines()
    assert (
        "mid.attention.0.qkv.weight.lora.down 24x128 0 1.0 0 end" in lines
        and "time_mlp.0.bias 128  0.0 0 end" in lines
    )


def test_what_it_names_is_there():
    """Every target of the prose."""
    for target in set(re.findall(r"`(transfer\.\w+\.\w+)`", TEXT)) | set(
        re.findall(r"^\| (transfer\.\w+\.\w+) ", TEXT, re.M)
    ):
        resolve(target, ["transfer"], "docs/strategies.md")
