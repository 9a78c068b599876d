"""docs/strategies.md against the presets: what is made from them, their shares, their papers, and
its own example."""

import re
import shutil

import pytest
import yaml

from config.overrides import CONF, composed, options
from config.run_config import RunConfig
from docs import make_strategies
from runtime.config_schema import resolve
from training.config_checks import check_network, check_run_config

TEXT = (CONF.parent / "docs" / "strategies.md").read_text()
# name of a section: its text
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S))
# name of a strategy: its share, in percent, as printed
SHARES = dict(re.findall(r"^\| \[(\w+)\]\(#\1\) \|[^|]*\| ([\d.]+) \|", TEXT, re.M))
PAPER = r"\b\d{4}\.\d{4,5}\b"


def head(name: str) -> str:
    """A preset's leading comment lines."""
    return re.match(r"(?:#.*\n)+", (CONF / "transfer" / f"{name}.yaml").read_text())[0]


def code(language: str, text: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return found


def test_the_page_is_the_one_that_the_presets_make():
    """What make docs writes is not edited by hand, and the rest of the page stays as it is."""
    assert make_strategies.made(TEXT) == TEXT


@pytest.fixture
def own_presets(tmp_path, monkeypatch):
    """The folder of the presets, to be edited."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr("config.overrides.CONF", tmp_path / "conf")
    return tmp_path / "conf" / "transfer"


@pytest.mark.parametrize(
    ("name", "old", "new", "was", "then"),
    [
        ("lora", "rank: 8", "rank: 16", "| 0.146 | 1 |", "| 0.291 | 1 |"),
        ("bitfit", "scale: 10", "scale: 3", "| 0.0782 | 10 |", "| 0.0782 | 3 |"),
        ("full", "everything", "all of it", "everything", "all of it"),
        ("ewc", "arXiv:1612.00796", "arXiv:1234.56789", "1612.00796", "1234.56789"),
        ("ant", "11 passes", "12 passes", "", ""),
    ],
)
def test_a_preset_that_is_edited_changes_its_row_and_its_section(
    name, old, new, was, then, own_presets
):
    (row,) = re.findall(rf"^\| \[{name}\].*\n", TEXT, re.M)
    section = make_strategies.section(name)
    assert section in TEXT and old in section and was in row
    path = own_presets / f"{name}.yaml"
    path.write_text(path.read_text().replace(old, new))
    assert make_strategies.row(name) == row.replace(was, then)
    assert make_strategies.section(name) == section.replace(old, new)


def test_a_preset_without_a_place_or_a_head_is_named(own_presets):
    (own_presets / "own.yaml").write_text("name: own\nrules: []\n")
    with pytest.raises(SystemExit, match=r"ORDER .* differ in \['own'\]"):
        make_strategies.made(TEXT)
    with pytest.raises(SystemExit, match=r"own.yaml must begin with .*# Trains"):
        make_strategies.row("own")


@pytest.mark.parametrize("name", options("transfer"))
def test_a_section_and_a_row_have_the_papers_of_the_preset(name):
    papers = re.findall(PAPER, head(name))
    assert set(papers) == set(re.findall(PAPER, SECTIONS[name]))
    (row,) = re.findall(rf"^\| \[{name}\].*$", TEXT, re.M)
    assert re.findall(PAPER, row) == papers[:1]


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
    values = 78_700_803 + 2 * 512 * classes
    assert sum(plan.parameters[n].numel() for n in plan.plain) == values
    # three digits
    assert float(SHARES[name]) == pytest.approx(100 * plan.count() / values, rel=0.005)


@pytest.mark.parametrize("name", options("transfer"))
def test_a_row_names_the_rates(name):
    """Every rate above 0 stands in the row, those of a sequence by its ends."""
    (rates,) = re.findall(rf"^\| \[{name}\].*\| ([^|]*) \| [^|]* \|$", TEXT, re.M)
    preset = yaml.safe_load((CONF / "transfer" / f"{name}.yaml").read_text())
    rules = preset.get("transfer", preset)["rules"]
    wanted = {float(rule.get("learning_rate_scale", 1)) for rule in rules} - {0.0}
    if " to " in rates:
        wanted = {max(wanted), round(min(wanted), 3)}
    assert {float(rate) for rate in re.findall(r"\d[\d.]*", rates)} == wanted


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
