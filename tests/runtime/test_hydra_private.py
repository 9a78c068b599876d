"""What we take of Hydra and submitit that they do not promise: what each name does, within the
pinned ranges."""

from importlib import metadata

import pytest
import submitit
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from config.overrides import CONF
from runtime.hydra_private import (
    flags_first,
    parse_command_line,
    parse_overrides,
    replaced_job_results,
    set_values,
    split_cells,
)


def test_the_versions_are_within_the_pinned_ranges():
    pinned = {
        Requirement(line.split("#")[0]).name: Requirement(line.split("#")[0]).specifier
        for line in (CONF.parent / "requirements.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    for name in ("hydra-core", "omegaconf", "submitit", "hydra-submitit-launcher"):
        assert "<" in str(pinned[name]) and metadata.version(name) in pinned[name], name


def test_flags_and_overrides_are_told_apart():
    asked = parse_command_line(["-m", "--cfg", "job", "seed=1", "transfer=lora"])
    assert asked.multirun and asked.cfg == "job" and asked.overrides == ["seed=1", "transfer=lora"]


@pytest.mark.parametrize(
    "given",
    [
        "seed=1 transfer=lora -m --cfg job",
        "seed=1 -m transfer=lora --cfg job",
        "-m seed=1 --cfg job transfer=lora",
    ],
)
def test_flags_may_stand_anywhere(given):
    arguments = flags_first(given.split())
    assert arguments == ["-m", "--cfg", "job", "seed=1", "transfer=lora"]
    asked = get_args_parser().parse_args(arguments)  # as Hydra itself reads them
    assert asked.multirun and asked.cfg == "job" and asked.overrides == ["seed=1", "transfer=lora"]
    assert parse_command_line(given.split()) == asked


def test_overrides_by_hydras_grammar():
    choice, sweep, glob = parse_overrides(
        ["+experiment=transfer_demo", "seed=0,1", "transfer=glob(l*)"], CONF
    )
    assert choice.is_add() and choice.key_or_group == "experiment" and sweep.is_sweep_override()
    assert [str(v) for v in glob.sweep_string_iterator()] == [
        "l2_sp",
        "linear_probe",
        "locon",
        "lora",
        "lp_ft",
    ]


def test_values_are_set_as_a_composition_sets_them():
    lines = ["train.steps=7", "+train.new={a: [1, 2]}", "~model.dropout", "data.size=[8,4]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain, expected = compose("train"), compose("train", lines)
    set_values(parse_overrides(lines, CONF), plain)
    assert OmegaConf.to_container(plain) == OmegaConf.to_container(expected)


def test_cells_are_the_product_in_order():
    assert split_cells(parse_overrides(["seed=0,1", "transfer=full,lora", "x=1"], CONF)) == [
        ["seed=0", "transfer=full", "x=1"],
        ["seed=0", "transfer=lora", "x=1"],
        ["seed=1", "transfer=full", "x=1"],
        ["seed=1", "transfer=lora", "x=1"],
    ]


def test_the_results_of_jobs_are_replaced_for_a_while():
    before = submitit.Job.results
    with replaced_job_results(lambda results, job: [results is before, job]):
        assert submitit.Job.results("job") == [True, "job"]
    assert submitit.Job.results is before
