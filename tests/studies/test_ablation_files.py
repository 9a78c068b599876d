"""The files of conf/ablation: every row is a run that could start, every number has a source, every
claim is about what there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from config.overrides import CONF, composed, options
from evaluation.after_training import asked_settings
from runtime.errors import UserError
from studies.ablation.catalogue import NOT_EXPRESSED, catalogue, described, read
from studies.ablation.study import Ablation
from tests.helpers import runs
from training.config_checks import check_run_config

TABLES = options("ablation")
IN_MINUTES = 0.25  # hours, at most, of a small size


def of_size(name: str, size: str) -> Ablation:
    return dataclasses.replace(read(name), size=size)


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_run_and_an_evaluation_that_could_start(name, size):
    """Of the first seed, as the others differ in that alone. Inception's features are a file, which
    is not here: its lines are composed with other features."""
    ablation, arguments = of_size(name, size), [f"+ablation={name}", f"size={size}"]
    trainings = [training for training in ablation.trainings() if training[1] == 0]
    shapes = set()
    for cell in ablation.cells(arguments, trainings):
        raw = composed("train", [*arguments, *cell.overrides])
        assert raw["experiment"] == f"ablation_{name}" and raw["study"]["size"] == size
        config = check_run_config({k: v for k, v in raw.items() if k not in ("study", "size")})
        shapes.add(config.image_shape)
        for line in config.run.evaluate:
            line = line.replace("features=inception", "features=random")
            settings, _ = asked_settings(line, Path("run"), raw["run"])
            assert settings.select != "best" or config.train.steps
    assert len(shapes) == 1 and (size == "full" or shapes.pop()[1:] == (16, 16))


@pytest.mark.parametrize("name", TABLES)
def test_every_expected_number_has_a_source_and_a_mark(name):
    """In the file itself, beside the checks of Expected."""
    rows = yaml.safe_load((CONF / "ablation" / f"{name}.yaml").read_text())["study"]["rows"]
    for number in (number for row in rows for number in row.get("expected", ())):
        assert number["source"][-4:].strip() and number["mark"] in ("read", "second hand"), number
        assert any(digit.isdigit() for digit in number["source"]), "no year"
        band = number["band"]
        assert band is None or band[0] <= number["value"] <= band[1], number


@pytest.mark.parametrize("name", TABLES)
def test_a_table_opens_with_its_command_and_stands_in_the_docs(name):
    described = (CONF / f"ablation/{name}.yaml").read_text().split("defaults:")[0]
    assert f"# python ablation.py {name} " in described and "[size=small]" in described
    assert f"{name}" in (CONF.parent / "docs/ablations.md").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_every_claim_says_what_the_small_size_shows_and_why_not(name):
    ablation = read(name)
    assert ablation.claims and ablation.shows and ablation.cannot
    assert 0 < ablation.sizes.small.hours <= IN_MINUTES < ablation.sizes.full.hours
    small = {row.name for row in of_size(name, "small").compared}
    for claim in ablation.claims:
        measured = {claim.less, claim.than} <= small
        assert measured == (claim.small != "not measured"), claim
        assert claim.small == "shown" or len(claim.because or "") > 10, claim


def test_the_numbers_of_the_papers_are_those_of_the_papers():
    """Typed a second time, from the papers."""
    ddim = {row.name: row.expected[0].value for row in read("ddim_cifar10").rows}
    assert ddim["eta 0, S 10"] == 13.36 and ddim["eta 0.2, S 50"] == 4.77
    assert ddim["eta 0.5, S 1000"] == 4.29 and ddim["eta 1, S 20"] == 18.36
    assert ddim["sigma-hat, S 10"] == 367.43 and ddim["sigma-hat, S 1000"] == 3.17
    ddpm = {row.name: row.expects("FID").value for row in read("ddpm_table2").rows}
    assert ddpm == {
        "mean, L, learned variance": 23.69,
        "mean, L": 13.22,
        "mean, squared error": "unstable",
        "noise, L, learned variance": "unstable",
        "noise, L": 13.51,
        "noise, L_simple": 3.17,
    }
    bits = [row.expects("bits").value for row in read("improved_ddpm").rows]
    assert bits == [3.73, 3.37, 3.26, 3.26, 3.17, 2.94]


def test_what_ddim_clips():
    """The eta rows never, the sigma-hat rows always."""
    for name in ("ddim_cifar10", "ddim_celeba"):
        for size in ("full", "small"):
            ablation = of_size(name, size)
            for row in ablation.compared:
                line = ablation.evaluation_of(row)
                hat = row.name.startswith("sigma-hat")
                assert f"sampler.clip={str(hat).lower()}" in line and line.count("sampler=") == 1
                assert ("sampler=ancestral" in line) == hat


def test_rows_of_one_set_of_weights_are_one_training():
    ablation = of_size("ddim_cifar10", "full")
    [cell] = ablation.cells([], ablation.trainings())
    assert cell.overrides[-1].count("sampler.steps=") == 25


def test_the_command_line_comes_before_the_size_and_after_the_row():
    ablation = of_size("improved_ddpm", "small")
    arguments = ["+ablation=improved_ddpm", "size=small", "train.steps=7", "data=folder"]
    cell = ablation.cells(arguments, ablation.trainings())[0]
    keys = [line.split("=")[0] for line in cell.overrides]
    assert "train.steps" not in keys and "data" not in keys
    assert not any(key.startswith("data") for key in keys), "all of a group that is chosen"
    assert "train.warmup=10" in cell.overrides and "schedule.steps=25" in cell.overrides
    given = [*arguments[:2], "data=folder", "data.path=DIR", "data.size=16"]
    [cell] = ablation.cells(given, ablation.trainings()[:1])
    raw = composed("train", [*given, *cell.overrides])
    check_run_config({k: v for k, v in raw.items() if k not in ("study", "size")})


WRONG = {
    "claims.0.than": ("cosine L_simple", "there is no cosine L_simple; did you mean"),
    "claims.0.by": ("bit", "there is no bit; did you mean bits"),
    "claims.0.small": ("not shown", "says why (because)"),
    "claims.5.because": (None, "says why (because)"),
    "rows.1.expected.0.source": ("", "has no source"),
    "rows.1.expected.0.band": ([3.4, 3.5], "does not hold the value, 3.37"),
    "rows.1.train": ({"full": []}, "one for each of full and small"),
    "sizes.small.rows": (["none"], "there is no none"),
    "sizes.small.measures": (["bits"], "there is no KID"),
}


@pytest.mark.parametrize("path", WRONG)
def test_a_file_that_is_wrong_is_refused_by_name(path, tmp_path, monkeypatch):
    content = yaml.safe_load((CONF / "ablation/improved_ddpm.yaml").read_text())
    value, message = WRONG[path]
    *way, last = path.split(".")
    node = content["study"]
    for key in way:
        node = node[int(key) if isinstance(node, list) else key]
    node[last] = value
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation/wrong.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr("studies.ablation.catalogue.CONF", tmp_path)
    with pytest.raises(UserError) as caught:
        read("wrong")
    assert message in str(caught.value), caught.value


def test_the_list_names_all_with_their_hours_and_what_is_left_out():
    text = catalogue()
    for name in TABLES:
        [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert f" {read(name).sizes.full.hours:g} " in line
    assert all(what in text for what in NOT_EXPRESSED) and "rho 7" in text


def test_the_command_names_near_tables():
    done = runs.command("ablation.py", "ddpm_table3")
    assert done.returncode == 2 and "there is no such table; did you mean" in done.stderr, done
    assert "Traceback" not in done.stderr


def test_a_table_without_m_or_with_a_seed_is_told_the_way(tmp_path):
    done = runs.command("train.py", "+ablation=improved_ddpm", "size=small")
    assert done.returncode == 2 and "python train.py -m +ablation=improved_ddpm" in done.stderr
    given = ["size=small", "seed=3", f"run.root={tmp_path}"]
    done = runs.command("ablation.py", "improved_ddpm", *given)
    assert done.returncode == 2 and "study.sizes.small.seeds=[0,1,2]" in done.stderr, done.stderr


@pytest.mark.parametrize("name", options("ablation"))
def test_a_table_describes_itself(name):
    text = described(name)
    ablation = read(name)
    for row in ablation.rows:
        assert row.name in text
        assert all(str(e.value) in text or f"{e.value:g}" in text for e in row.expected)
    assert all(claim.text in text for claim in ablation.claims)
