"""The command line: what composes, and what is refused with one message before any data is read."""

import json
import shutil
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from config.identity import digest, identity
from config.overrides import (
    CONF,
    _check_choice,
    check_overrides,
    composed,
    options,
    parsed,
    resolved,
)
from config.run_config import NODES, RunConfig
from runtime.config_schema import build, fits
from runtime.content import differences, sha256_of
from runtime.errors import UserError
from tests.helpers import runs
from tests.helpers.defaults import needed
from training.config_checks import check_network, check_run_config


def refused(*arguments: str) -> str:
    """The message with which a command line is refused, by the check of names or by that of
    types."""
    with pytest.raises(UserError) as error:
        check_overrides("train", arguments)
        config = composed("train", arguments)
        check_network(check_run_config(config))
    return str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "+experiment=transfer_demo",
            "transfer=lora",
            "seed=3",
            "transfer.inject.0.rank=2",
            "data.flip=true",
        ],
        ["data.size=16", "model.channels=${data.size}", "data.size=32"],
        ["model.channels=16", "model={channels: 8}", "+experiment=transfer_demo"],
        ["model={channels: 8}", "model.channels=16"],
        ["transfer.rules=[{pattern: 'x'}]", "transfer={rules: []}", "+model={new: 1}"],
        [
            "sampler.steps=7",
            "sampler=heun",
            "~model.dropout",
            "+wandb.tags=[a,b]",
            "++train.clip=2",
            "+train.new={a: 1}",
        ],
        [
            "transfer.rules=[{pattern: 'up.*'}]",
            "source.overrides=['train.steps=3']",
            "data.path='a b'",
        ],
        ["~sampler"],
        ["transfer.rules.0.pattern=x"],
        ["seed=1,2"],
        ["model.none=1"],
        ["~model.none"],
        ["+seed=1"],
        ["foo/bar=1"],
        ["model@x=demo"],
        ["hydra.none=1"],
        ["hydra.job.num=3", "seed=2"],
        ["model=none"],
    ],
    ids=" ".join,
)
def test_composed_is_hydras_own_composition(overrides):
    """In which values are set one by one after what is chosen; here all at once."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            expected = json.dumps(resolved(compose("train", overrides)))
        except HydraException as error:
            with pytest.raises(UserError) as ours:
                composed("train", overrides)
            assert str(error) in str(ours.value)
            return
    for _ in range(2):  # the second is of what the first has left
        assert json.dumps(composed("train", overrides)) == expected


def test_what_is_composed_is_a_copy():
    composed("train", ["seed=1"])["model"]["multipliers"].append(9)
    assert composed("train", ["seed=1"])["model"]["multipliers"][-1] != 9


NOWHERE = ["data.path=nowhere"]  # must be set


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiments_compose_and_build(experiment):
    config = composed("train", [f"+experiment={experiment}", *needed(experiment)])
    check_network(check_run_config(config))  # builds the network on the meta device
    assert config["experiment"] == experiment


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (g, c)
        for g in (
            "model",
            "schedule",
            "parameterization",
            "variance",
            "loss",
            "optimizer",
            "learning_rate",
            "sampler",
            "timesteps",
            "spacing",
            "wandb",
            "data",
            "copy",
        )
        for c in options(g)
    ],
)
def test_every_choice_composes_and_checks(group, choice):
    """But of transfer: test_presets has those."""
    more = {
        "folder": NOWHERE,
        "dicom": NOWHERE,
        "nifti": NOWHERE,
        "betas": ["schedule.betas=[0.1,0.2]", "sampler.steps=2"],
        "linear_zero_terminal": ["parameterization=velocity"],
        "learned": ["loss=bound"],
        "learned_range": ["loss=hybrid"],
        "hybrid": ["variance=learned_range"],
    }
    config = composed("train", [f"{group}={choice}", *more.get(choice, [])])
    check_run_config(config)
    for section in ("schedule", "parameterization", "variance", "loss"):
        build(config[section], NODES[section], section)


@pytest.mark.parametrize(
    "data", ["folder", "dicom", "nifti", "npz", "medmnist", "celeba", "eurosat"]
)
@pytest.mark.parametrize("experiment", ["transfer_celeba_to_medical", "transfer_folder"])
def test_any_images_go_into_the_transfer_experiments(experiment, data):
    more = NOWHERE if data in ("folder", "dicom", "nifti") else []
    config = composed("train", [f"+experiment={experiment}", f"data={data}", *more])
    check_run_config(config)


def test_what_the_caller_gives_is_not_among_the_known_settings():
    config = composed("train", ["data=folder", *NOWHERE])
    config["data"]["pth"] = "x"
    with pytest.raises(UserError, match="data.pth: no such setting; did you mean path"):
        check_run_config(config)
    config["data"]["zzzzzz"] = config["data"].pop("pth")
    with pytest.raises(UserError) as raised:
        check_run_config(config)
    assert "file_cache" not in str(raised.value) and "reader" not in str(raised.value)
    assert "validation" in str(raised.value) and "channels" in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["variance=learned_range"], "loss=hybrid"),
        (["variance=learned", "loss=min_snr"], "loss=bound"),
        (["loss=hybrid"], "variance=learned_range"),
    ],
)
def test_a_learned_variance_needs_a_loss_that_teaches_it(arguments, names):
    with pytest.raises(UserError, match=names):
        check_run_config(composed("train", arguments))


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("train.stpes=5", "train.steps"),
        ("trian.steps=5", "train"),
        ("transfer=freeze_encodr", "freeze_encoder"),
        ("+experiment=transfer_dmo", "transfer_demo"),
        ("experiment=transfer_demo", "+experiment=transfer_demo"),
        ("experiment=mine", "for the folder of runs is run.experiment=mine."),
        ("+experiment=mine", "for the folder of runs is run.experiment=mine."),
        ("run.experiment=a/b", "experiment='a/b' is the name of one folder below run.root"),
        ("train.steps=1.5e0", "train.steps=1.5 is not a whole number."),
        (
            "transfer.rules=[{pattern: 'up.*', from: 0.6}]",
            "pattern up.*: 0.6 is neither a step, which is a whole number, nor a share of the run, "
            "which is written 60%.",
        ),
        (
            "transfer.rules=[{pattern: 'decoder.*'}]",
            "decoder.* matches no parameter; here that is up.*.",
        ),
        (
            "sampler=heun sampler.function.churn=0.5",
            "(+sampler.function.churn= sets what diffusion.samplers.heun has a default for)",
        ),
        ("+transfer=full", "transfer=full"),
        ("model=cifar", "ddpm_cifar10"),
        ("modle=demo", "model"),
        ("+train.stepss=3", "steps"),
        ("+mistake=3", "no such setting"),
        ("data.pth=x", "there is no such setting"),
        ("train.steps=abc", "train.steps='abc' is not a whole number"),
        ("train.steps=1.5", "train.steps=1.5 is not a whole number"),
        ("train.batch_size=true", "not a whole number"),
        ("train.clip=high", "not a number or null"),
        ("train.precision=fp17", "one of auto, fp32, tf32, bf16"),
        ("model.channels=[32]", "model.channels=[32] is not a whole number"),
        ("model.multipliers=2", "a list in which each is a whole number"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("seed=one", "seed"),
        ("data.flip=maybe", "true or false"),
        ("wandb.mode=on", "one of disabled, offline, online"),
        ("sampler.steps=many", "sampler.steps"),
        ("sampler.steps=2000", "between 1 and the schedule's 1000"),
        ("schedule=linear_zero_terminal spacing=trailing", "parameterization=velocity"),
        (
            "schedule=linear_zero_terminal parameterization=velocity spacing=even",
            "use spacing=trailing",
        ),
        ("train.batch_size=10 train.accumulation=3", "multiple of accumulation"),
        ("model.channels=36", "divisible by groups"),
        ("data.size=25", "divisible by 4"),
        (
            "data.channels=3 model.in_channels=1",
            "model.in_channels=1, and images have data.channels=3",
        ),
        (r"data.patient=(P\d+)_", "brackets, twice"),
        (
            "transfer.rules=[{pattern: uq.*}]",
            "transfer.rules: uq.* matches no parameter; did you mean up",
        ),
        ("transfer.rules=[{pattern: up.*, learning_rate_scale: 0}]", "train nothing"),
        ("transfer.rules=[{patern: up.*}]", "pattern"),
        ("schedule._target_=os.system", "is not defined in diffusion"),
        (
            "transfer=l2_sp transfer.penalties.weight=1",
            "transfer.penalties is a list, whose 1 elements",
        ),
        (
            "transfer=l2_sp transfer.penalties.1.weight=1",
            "transfer.penalties is a list, whose 1 elements",
        ),
        (
            "~transfer.penalties.0 transfer=l2_sp",
            "no element of a list can be left out; give the whole list, transfer.penalties=[...]",
        ),
        (
            "~sampler",
            "~sampler: it cannot be left out; choose one, sampler=NAME of "
            + ", ".join(options("sampler")),
        ),
        (
            "transfer=glob(f*)",
            "transfer=glob(f*): several values are several runs: add -m, python train.py -m",
        ),
        (
            "transfer=l2_sp transfer.penalties.0.wieght=1",
            "did you mean transfer.penalties.0.weight",
        ),
        ("transfer.name=a/b", "no slash"),
        (
            "transfer=lp_ft train.steps=1",
            "train.steps=1 they are the steps 0 (until: 50%) and 0 (from: 0). Train longer",
        ),
        ("transfer.rules=[{pattern: up.*, from: 3}]", "nothing trains at step 0"),
        ("transfer.rules=[{pattern: up.*, until: 3}]", "nothing trains at step 3"),
    ],
)
def test_mistakes_are_named_with_what_was_meant(argument, names):
    parts = [argument] if "{" in argument else argument.split()
    assert names in refused(*parts)


RULES = 'rules: [{pattern: "*"}]\n'
LORA = "{_target_: transfer.lora.LoRA, patterns: ['*.qkv.weight'], rank: 2%s}"
GENERATED = "{_target_: transfer.source_images.generated, _partial_: true%s}"
REPLAY = "replay: {_target_: transfer.replay.Replay, _partial_: true, weight: 1%s}\n"
TIMES = "timesteps: {_target_: diffusion.timesteps.Uniform, _partial_: true}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "transfer.name must be set"),
        ("name: x\n", "transfer.rules must be set"),
        ("name: x\nrules: null\n", "transfer.rules=None is not a list"),
        ("- a\n", "is not a mapping"),
        ("# @package _global_\nname: x\n" + RULES, "no such setting"),
        ("# @package _global_\nmodel: {classes: auto}\n", "transfer=None is not a mapping"),
        ("name: x\nrules: [\n", "expected the node content"),
        ("name: x\nrules:\n\t- {pattern: '*'}\n", "cannot start any token"),
        ("name: x\n" + RULES + "inject: " + LORA % "", "transfer.inject must be a list"),
        ("name: x\n" + RULES + "inject: null\n", "transfer.inject=None is not a list"),
        (
            "name: x\n" + RULES + "inject: [" + LORA % ", _partial_: true" + "]\n",
            "transfer.inject[0]: transfer.lora.LoRA is built to nothing",
        ),
        (
            "name: x\n"
            + RULES
            + "inject: [{_target_: transfer.freezing_and_rates.Rule, pattern: a}]\n",
            "transfer.inject[0]: transfer.freezing_and_rates.Rule is built",
        ),
        (
            "name: x\n"
            + RULES
            + "penalties: {_target_: transfer.penalties.L2SP, _partial_: true, weight: 1}\n",
            "must be a list",
        ),
        (
            "name: x\n"
            + RULES
            + (
                "penalties: [{_target_: transfer.replay.Replay, _partial_: true, weight: 1, "
                "images: null, timesteps: null}]\n"
            ),
            "transfer.penalties[0].images=None",
        ),
        (
            "name: x\n"
            + RULES
            + "penalties: [{_target_: transfer.ant.AdversarialNoise, _partial_: true, images: "
            + GENERATED % ", n: 1, steps: 1, batch_size: 1"
            + "}]\n",
            "transfer.ant.AdversarialNoise builds cannot stand in transfer.penalties",
        ),
        (
            "name: x\n"
            + RULES
            + "loss: {_target_: transfer.penalties.L2SP, _partial_: true, weight: 1}\n",
            "cannot stand in transfer.loss",
        ),
        (
            "name: x\n" + RULES + REPLAY % ("," + TIMES),
            "transfer.replay: missing a required argument: 'images'",
        ),
        (
            "name: x\n" + RULES + REPLAY % (f", {TIMES}, images: {GENERATED % ''}"),
            "transfer.replay.images: missing a required argument: 'n'",
        ),
        (
            "name: x\n" + RULES + "replay: [" + REPLAY[8:-1] % f", {TIMES}" + "]\n",
            "transfer.replay must be",
        ),
    ],
)
def test_a_strategy_that_is_no_strategy(text, message, tmp_path, monkeypatch):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/transfer/own.yaml").write_text(text)
    monkeypatch.setattr("config.overrides.CONF", tmp_path / "conf")
    assert message in refused("transfer=own", "source.from=x")


def test_a_sweep_is_checked_value_by_value():
    assert "did you mean full" in refused("-m", "transfer=scratch,ful")
    check_overrides("train", ["-m", "transfer=scratch,full", "train.steps=1,2"])
    message = refused("-m", "transfer=l2_sp,full", "transfer.penalties.0.weight=1,2")
    assert message.startswith(
        "transfer.penalties.0.weight: there is no such setting"
    ) and message.endswith("(with transfer=full)")
    check_overrides("train", ["-m", "transfer=lora,locon", "transfer.inject.0.rank=1,2"])


def test_a_choice_of_a_sweep_that_is_no_yaml(tmp_path, monkeypatch):
    shutil.copytree(CONF / "transfer", tmp_path / "transfer")
    (tmp_path / "transfer/own.yaml").write_text("rules: [")
    monkeypatch.setattr("config.overrides.CONF", tmp_path)
    with pytest.raises(UserError, match="transfer=own: while parsing"):
        _check_choice(parsed(["transfer=full,own"])[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "train.steps=abc"], "error: train.steps='abc' is not a whole number."),
        (
            ["train.py", "+experiment=pretrain_cifar10", "data.path=TMP/cifar10"],
            "error: cifar-10-binary.tar.gz: no network: www.cs.toronto.edu does not answer",
        ),
        (["train.py", "source.from=pretrain_demoo"], "error: source.from=pretrain_demoo"),
        (
            [
                "train.py",
                "source.from=pretrain_celeba",
                "data=bundled_tissue",
                "model=ddpm_celeba64",
                "data.size=32",
            ],
            "datasets/celeba",
        ),
        (["sample.py", "checkpoint=nowhere"], "error: nowhere: no checkpoint there"),
        (["sample.py", "chekpoint=nowhere"], "did you mean checkpoint"),
        (["sample.py"], "checkpoint"),
        (
            ["train.py", "data=bundled_faces", "run.device=cuda:99"],
            "error: device=cuda:99: not usable here",
        ),
        (
            ["train.py", "seed=1,2"],
            "error: seed=1,2: several values are several runs: add -m, python train.py -m",
        ),
        (
            ["sample.py", "checkpoint=x", "n=1,2"],
            "error: n=1,2: several values are several runs: add -m, python sample.py -m",
        ),
        (["train.py", "--resolve"], "error: --resolve belongs to --cfg"),
        (["report.py", "--hepl"], "usage: python report.py runs/EXPERIMENT"),
        (["report.py", "runs/nowhere"], "error: runs/nowhere: no such folder"),
        (
            ["train.py", "data=bundled_faces", "run.directory=README.md/run"],
            "error: README.md/run: Not a directory. Where things are",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    overrides = (
        [f"run.root={tmp_path}", f"run.cache={tmp_path}"] if arguments[0] == "train.py" else []
    )
    arguments = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    done = runs.command(*arguments, *overrides)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_report_has_a_help_text():
    done = runs.command("report.py", "--help")
    assert done.returncode == 0 and "report.html, one page" in done.stdout


def test_a_reader_that_has_read_enough_is_no_mistake():
    """As in `python report.py runs/X | head -1`."""
    loop = (
        "from runtime.errors import one_message; one_message(lambda: [print('line', flush=True) "
        "for _ in range(100000)])()"
    )
    python = subprocess.Popen(
        [sys.executable, "-c", loop],
        cwd=CONF.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert python.stdout.readline() == b"line\n"
    python.stdout.close()
    said = python.stderr.read().decode()
    assert said.startswith("stdout is lost (Broken pipe)") and said.count("\n") == 1
    assert python.wait() == 0


def test_help_shows_the_commands():
    done = runs.command("train.py", "--help")
    assert done.returncode == 0
    assert "+experiment=transfer_demo" in done.stdout and "freeze_encoder" in done.stdout


def test_hydras_own_flags_pass():
    done = runs.command(
        "train.py", "--cfg", "job", "--resolve", "+experiment=transfer_demo", "train.steps=7"
    )
    assert done.returncode == 0, done.stderr
    assert "steps: 7" in done.stdout and "from: pretrain_demo" in done.stdout


def test_identity_is_what_changes_the_numbers():
    """Device, wandb, paths, logging and a larger number of steps stay out of it; everything else is
    in it."""
    base = identity(RunConfig(composed("train", [])), "images")
    same = [
        "run.device=cpu",
        "wandb=offline",
        "run.root=elsewhere",
        "run.cache=elsewhere",
        "run.log_every=1",
        "run.samples=1",
        "run.checkpoint_every=7",
        "train.steps=9999",
        "sampler=ancestral",
        "source.train=true",
        "run.directory=here",
    ]
    for override in same:
        assert identity(RunConfig(composed("train", [override])), "images") == base, override
    different = [
        "seed=1",
        "train.batch_size=16",
        "optimizer.lr=0.1",
        "model.dropout=0.1",
        "schedule=cosine",
        "loss=bound",
        "parameterization=x0",
        "variance=fixed_small",
        "transfer=freeze_encoder",
        "data.size=16",
        "data.n_train=10",
        "train.precision=bf16",
        "train.accumulation=2",
        "source.include=[up.*]",
        "data.flip=true",
    ]
    for override in different:
        assert identity(RunConfig(composed("train", [override])), "images") != base, override
    assert identity(RunConfig(composed("train", [])), "other images") != base
    assert "subset_seed" not in base["data"]  # it came after runs had names
    assert identity(
        RunConfig(composed("train", ["data.n_train=10", "data.subset_seed=0"])), "images"
    ) != identity(RunConfig(composed("train", ["data.n_train=10"])), "images")


def test_a_folder_counts_by_its_images_and_not_by_its_path():
    one, other = (
        identity(RunConfig(composed("train", ["data=folder", f"data.path={p}"])), "same")
        for p in ("a", "b")
    )
    assert one == other


def test_differences_name_the_path():
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == ["a.b: 2 -> 1", "c: 3 -> None"]


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        (1, int, True),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (True, int, False),
        (None, int | None, True),
        ([1, 2], list[int], True),
        ([1, "a"], list[int], False),
        (False, bool, True),
        (0, bool, False),
        ("a", int | str, True),
    ],
)
def test_types(value, hint, right):
    assert fits(value, hint) is right


def test_how_a_number_is_written_makes_no_other_run():
    def name(*overrides):
        return digest(identity(RunConfig(composed("train", overrides)), "x"))

    assert name("train.clip=1", "optimizer.eps=1") == name("train.clip=1.0", "optimizer.eps=1.0")
    assert name("train.clip=1", "optimizer.eps=1") != name("train.clip=1.5", "optimizer.eps=1")
    assert (
        sha256_of([[40, 400], 0.1, True])
        == sha256_of([[40.0, 400.0], 0.1, True])
        != sha256_of([[40, 400], 0.1, 1])
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["parameterization=mean"], "parameterization=PredictMean"),
        (["variance=learned", "loss=bound"], "variance=Learned"),
        (["parameterization=velocity", "variance=learned_range", "loss=hybrid"], None),
    ],
)
def test_a_network_that_speaks_of_its_own_schedules_steps_goes_to_no_other(settings, message):
    """The mean of q(x_{t-1} | x_t) and its variance are those of one schedule; noise, x0 and a
    share of a range are of any."""
    source, target = (
        RunConfig(composed("train", [*settings, f"schedule={schedule}"]))
        for schedule in ("cosine", "linear")
    )
    assert (
        target.with_schedule_of(None).network_schedule is None
        and source.with_schedule_of(source).network_schedule is None
    )
    if message:
        with pytest.raises(
            UserError,
            match=f"{message} is about the steps of the source's schedule.*take the source's "
            "schedule",
        ):
            target.with_schedule_of(source)
    else:
        assert target.with_schedule_of(source).raw["network_schedule"] == source.raw["schedule"]
