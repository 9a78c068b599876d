"""Settings as people write them: whole numbers with an exponent, a name of one's own."""

from pathlib import Path

import pytest

from config.identity import digest, identity
from config.overrides import composed
from runtime.config_schema import parse
from runtime.errors import UserError
from sampling.sample_to_folder import SampleSettings
from training.config_checks import check_run_config
from training.run_directory import name_run


def at(node, key):
    for part in key.split("."):
        node = node[int(part) if part.isdecimal() else part]
    return node


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("train.steps", "1e4", 10000),
        ("train.steps", "10_000", 10000),
        ("train.batch_size", "6.4E1", 64),
        ("seed", "1e1", 10),
        ("data.size", "[1.6e1,16]", [16, 16]),
        ("data.n_train", "1e2", 100),
        ("model.channels", "6.4e+1", 64),
        ("model.classes", "2e0", 2),
        ("sampler.steps", "2e1", 20),
    ],
)
def test_a_whole_number_is_one_however_it_is_written(key, written, value):
    """And it makes no other run."""
    ours, plain = (
        check_run_config(composed("train", [f"{key}={text}".replace(" ", "")]))
        for text in (written, str(value))
    )
    assert repr(at(ours.raw, key)) == repr(value)
    assert ours.raw == plain.raw
    assert digest(identity(ours, "images")) == digest(identity(plain, "images"))


def test_a_number_that_is_not_whole_is_refused():
    with pytest.raises(UserError) as raised:
        check_run_config(composed("train", ["train.steps=1.5e0"]))
    assert str(raised.value) == "train.steps=1.5 is not a whole number."


def test_other_scripts_take_them_too():
    config = composed("sample", ["checkpoint=x", "n=1e2", "sampler.steps=2e1", "seed=1_0"])
    del config["spacing"]
    settings = parse(SampleSettings, config, ["diffusion"], "")
    assert repr([settings.n, settings.sampler.steps, settings.seed]) == "[100, 20, 10]"


def test_a_name_of_ones_own_for_the_folder_of_runs_makes_no_other_run():
    plain, named = (
        name_run(
            check_run_config(composed("train", ["+experiment=transfer_demo", "run.root=R", *more])),
            "images",
            None,
            (),
        )
        for more in ([], ["run.experiment=mine"])
    )
    assert plain[0] == named[0]
    assert plain[1].parent == Path("R/transfer_demo")
    assert named[1] == Path("R/mine") / plain[1].name
