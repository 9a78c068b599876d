"""What begins alike, as zeros or as copies: rows of a class table, channels and augmentations that
the source does not know. In every preset that trains they train, so that labels and channels are
told apart; what does not train says so."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from config.overrides import CONF, composed_keys, groups, options, resolved
from config.run_config import RunConfig
from data.batches import Batches
from data.dataset import Dataset
from diffusion.denoiser import Denoiser
from diffusion.losses import simple_loss
from diffusion.timesteps import Uniform
from runtime.checkpoint import EMA, find
from tests.helpers.starts import trained as source_with
from tests.helpers.transfers import Transfers, folders, weights
from training import export_weights as export
from training.config_checks import check_network
from training.loop import Stream, Trainer, streams_of
from training.optimizer import build_optimizer
from training.result import read_result
from training.run_directory import changed_since
from training.start_from_source import copied, patterns_beside, start_of, with_alike_trained
from transfer.adapt_weights import planned_fit
from transfer.adapters import inject
from transfer.context import Start
from transfer.freezing_and_rates import ParameterPlan, rules_of
from transfer.merge_adapters import merged
from transfer.resize_weights import AUGMENTATION, TABLE
from transfer.trained_weights import fitted, load_weights, write_origin

TINY = (
    "model.channels=16",
    "model.multipliers=[1]",
    "model.groups=4",
    "model.attention_levels=[0]",
    "model.blocks=1",
    "model.dropout=0",
    "data.size=8",
    "sampler.steps=2",
    "schedule.steps=20",
)
TARGET = (
    "data.channels=3",
    "model.classes=auto",
    "optimizer.lr=1e-2",
    "train.batch_size=6",
    "train.warmup=0",
    "source.from=x",
)
TRAIN = sorted(set(options("transfer")) - {"zero_shot"})
FEW = {
    "dreambooth": ["transfer.replay.images.n=6", "transfer.replay.images.steps=2"],
    "diff_tuning": ["transfer.replay.images.n=6", "transfer.replay.images.steps=2"],
    "ewc": [
        "transfer.penalties.0.n=6",
        "transfer.penalties.0.images.n=6",
        "transfer.penalties.0.images.steps=2",
    ],
    "ant": [
        "transfer.loss.images.n=6",
        "transfer.loss.images.steps=2",
        "transfer.loss.classifier_steps=1",
        "transfer.loss.ascent_steps=1",
    ],
}
GROUPS = groups()
CLASSES = ("A", "B", "C")
ENDS = {"conv_in.weight", "conv_out.weight", "conv_out.bias"}


@lru_cache
def config_of(name: str, *overrides: str) -> RunConfig:
    """A preset in a config that is composed once for all: Hydra takes longer over one than a tiny
    run does."""
    preset = OmegaConf.load(CONF / "transfer" / f"{name}.yaml")
    preset.pop("defaults", None)  # of diff_tuning: which t its target sees
    choices = tuple(o for o in overrides if o.split("=")[0] in GROUPS)
    config = OmegaConf.merge(
        OmegaConf.create(plain(choices)), preset if "transfer" in preset else {"transfer": preset}
    )
    for override in (o for o in (*FEW.get(name, []), *overrides) if o not in choices):
        key, _, value = override.partition("=")
        OmegaConf.update(config, key, yaml.safe_load(value))
    return RunConfig(resolved(config)).completed


@lru_cache
def plain(choices: tuple[str, ...]) -> dict[str, Any]:
    """With its interpolations, and no strategy."""
    config = composed_keys("train", [*TINY, *TARGET, *choices])
    return {key: value for key, value in config.items() if key != "transfer"}


@lru_cache
def source(classes: int, channels: int = 1, *more: str) -> Any:
    """Random weights, none near zero, of a network for gray images with so many classes."""
    return source_with(
        [*TINY, f"data.channels={channels}", f"model.classes={classes}", *more],
        classes=[f"old {k}" for k in range(classes)],
    )


def colored() -> Dataset:
    """Stripes, sorted by class; each class has a color of its own."""
    stripes = (
        25
        * np.sin(np.arange(8)[:, None] * (1 + np.arange(12))[:, None, None])[..., None]
        * np.ones((1, 1, 8, 3))
    )
    colors = np.repeat([[220, 60, 40], [40, 200, 80], [60, 60, 210]], 4, axis=0)
    images = (colors[:, None, None] + stripes).clip(0, 255).astype(np.uint8)
    return Dataset(images, np.repeat([0, 1, 2], 4), {"train": np.arange(12)}, list(CLASSES))


class Begun:
    """A run at its first step, in memory."""

    def __init__(self, config: RunConfig, trained: Any, cache):
        scratch = not config.source.include
        kept = 0 if scratch else config.kept_classes(trained.config)
        self.config = config.with_classes(3, kept)
        self.table = [] if scratch else planned_fit(self.config, trained.config)
        self.config = with_alike_trained(self.config, self.table)
        torch.manual_seed(0)
        self.denoiser = self.config.build_denoiser()
        if not scratch:
            state, self.table = fitted(self.config, self.denoiser.network, trained)
            self.denoiser.network.load_state_dict(state)
        strategy = self.config.transfer
        inject(self.denoiser.network, strategy.inject)
        self.plan = ParameterPlan(self.denoiser.network, rules_of(self.config))
        classes, data = self.denoiser.network.classes, self.config.data
        start = Start(
            self.denoiser,
            trained,
            copied(self.table),
            colored(),
            data,
            classes - kept if kept else None,
            0,
            6,
            cache,
        )
        batches = Batches(colored(), 6, False, 0, self.config.augmentation)
        plain = Stream(batches, Uniform(20), simple_loss)
        self.streams = streams_of(strategy, start, plain)

    def after(self, steps: int) -> Denoiser:
        trainer = Trainer(
            self.denoiser,
            build_optimizer(self.config, self.plan.groups()),
            self.plan,
            colored(),
            self.streams,
            self.config,
            None,
            contextlib.nullcontext,
            {},
        )
        for k in range(steps):
            trainer.step(k, *(stream.batches.batch(k) for stream in self.streams.values()))
        return self.denoiser.eval()


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """(preset, classes of its gray source) -> its denoiser after a few steps on colored images of
    three classes."""
    cache = tmp_path_factory.mktemp("cache")

    @lru_cache
    def trained(name: str, classes: int) -> Denoiser:
        return Begun(config_of(name, "train.steps=100"), source(classes), cache).after(3)

    return trained


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([5, 15])


@torch.no_grad()
def said(denoiser: Denoiser, label: int | None = None, x: Tensor = X) -> Tensor:
    return denoiser(x, T, None if label is None else {"label": torch.full((2,), label)}).noise


def apart(*outputs: Tensor) -> bool:
    """Each from each, by more than rounding does."""
    size = 1e-5 * outputs[0].abs().mean()
    return min((a - b).abs().mean() for a, b in combinations(outputs, 2)) > size


OF = pytest.mark.parametrize("classes", [0, 2], ids=["of none", "of two"])
IN = pytest.mark.parametrize("name", TRAIN)


@OF
@IN
def test_labels_say_something_in_every_preset_that_trains(after, name, classes):
    """From a source without classes, and from one with another number."""
    assert apart(*(said(after(name, classes), label) for label in range(3)))


@OF
@IN
def test_channels_of_a_gray_source_are_told_apart_in_every_preset_that_trains(after, name, classes):
    """At the output, on a gray input, in what they say of the pixels and not in a bias alone; and
    at the input: with equal weights the network would see no more than the sum of the channels,
    whose three noises cannot be told from it to better than a mean square of 2/3."""
    denoiser = after(name, classes)
    out = said(denoiser, 0, X.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert apart(*(out - out.mean((2, 3), keepdim=True)).unbind(1))
    assert apart(*(said(denoiser, 0, X.roll(k, 1)) for k in range(3)))


def test_equal_channels_cannot_pass_two_thirds():
    """What the test above is about, by the best linear predictor of each of three noises from what
    the network sees of them."""
    noise = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = noise.mean(1, keepdim=True)
    predicted = seen @ torch.linalg.lstsq(seen, noise).solution
    assert (noise - predicted).square().mean().item() == pytest.approx(2 / 3, abs=0.01)


# --- which rules come on top ----------------------------------------------------------------------


def added(
    name: str, *overrides: str, theirs: tuple[int, int] = (0, 3), **more: Any
) -> dict[str, float]:
    """The rules that a preset gets from a source of (classes, channels) for three classes in
    color."""
    kept = theirs[0] if name in ("dreambooth", "textual_inversion") else 0
    config = config_of(name, *overrides).with_sections(**more).with_classes(3, kept)
    full = with_alike_trained(config, planned_fit(config, source(*theirs).config)).transfer.rules
    n = len(config.transfer.rules)
    assert full[:n] == config.transfer.rules
    return {rule.pattern: rule.learning_rate_scale for rule in full[n:]}


# Those that freeze the table, and those that train it late or slowly.
TABLE_ALONE = [
    "lora",
    "locon",
    "svdiff",
    "ant",
    "bitfit",
    "norm_only",
    "norm_bias",
    "attention_only",
    "middle_only",
    "freeze_high_resolution",
    "freeze_low_resolution",
    "time_embedding",
    "time_conditioning",
    "discriminative_lr",
    "gradual_unfreezing",
]


@pytest.mark.parametrize("name", TRAIN)
def test_a_new_table_gets_a_rule_where_it_would_not_train_from_the_start(name):
    if name != "scratch":
        assert added(name, theirs=(2, 3)) == ({TABLE: 1.0} if name in TABLE_ALONE else {})


def test_a_table_of_the_sources_own_classes_gets_no_rule():
    """Each row is the source's of its number."""
    assert added("lora", theirs=(0, 3)) == {TABLE: 1.0} and added("lora", theirs=(3, 3)) == {}


def test_new_channels_get_rules_where_they_would_not_train_from_the_start():
    everything = dict.fromkeys(ENDS, 1.0)
    expected = {
        "lora": everything,
        "svdiff": everything,
        "norm_only": everything,
        "gradual_unfreezing": {"conv_in.weight": 1.0},
        "bitfit": {"conv_in.weight": 1.0, "conv_out.weight": 1.0},
        "freeze_encoder": {"conv_in.weight": 1.0},
        "freeze_decoder": {"conv_out.weight": 1.0, "conv_out.bias": 1.0},
        "linear_probe": {},
        "full": {},
        "lp_ft": {},
    }
    for name, rules in expected.items():
        assert added(name, "model.classes=0", theirs=(0, 1)) == rules, name
    assert added("lora", "model.classes=0", theirs=(0, 3)) == {}
    # nothing is new in gray from color
    assert added("lora", "model.classes=0", "data.channels=1", theirs=(0, 3)) == {}


def test_a_variance_that_is_new_trains():
    new = ["variance=learned_range", "loss=hybrid", "model.classes=0"]
    for channels in (1, 3):  # in gray from color too: one output became two
        assert added("lora", *new, f"data.channels={channels}", theirs=(0, 3)) == {
            "conv_out.weight": 1.0,
            "conv_out.bias": 1.0,
        }


# what trains all of a network from the start, and so what is new in it
WHOLE = ["scratch", "full", "l2_sp", "ewc", "feature_distillation", "pairwise_similarity",
         "dreambooth", "diff_tuning", "freeze_encoder", "freeze_decoder"]  # fmt: skip


@pytest.mark.parametrize("name", TRAIN)
def test_augmentations_that_the_source_was_not_told_of_get_a_rule(name):
    of_the_map = added(name, "augmentation=edm", theirs=(3, 3)).get(AUGMENTATION)
    assert of_the_map == (None if name in WHOLE else 1.0)
    told = source(3, 3, "+model.augmentations=12").config
    config = config_of(name, "augmentation=edm").with_classes(3)
    if name != "scratch":  # the source's own
        (row,) = [r for r in planned_fit(config, told) if r.name == AUGMENTATION]
        assert row.status == "loaded" and not row.alike


TERMS = [
    "lora",
    "svdiff",
    "ewc",
    "feature_distillation",
    "pairwise_similarity",
    "dreambooth",
    "ant",
]


@pytest.mark.parametrize("name", TERMS)
def test_a_network_learns_of_augmentations_beside_every_term(tmp_path, name):
    """The source, which answers in some of them, was told of none."""
    settings = ["augmentation=edm", "augmentation.probability=0.9", "train.steps=100"]
    denoiser = Begun(config_of(name, *settings), source(2), tmp_path).after(2)
    assert denoiser.network.augmentation_embedding.weight[:, :9].any(0).all()
    assert not denoiser.network.augmentation_embedding.weight[:, 9:].any()  # not of edm


@pytest.mark.parametrize("left_out", [["source.depth=1"], ["source.include=['*.bias','conv*']"]])
def test_what_is_told_begins_at_zero_also_where_it_is_left_out(left_out):
    config = config_of("lora", "augmentation=edm", *left_out).with_classes(3)
    for theirs in ([], ["+model.augmentations=12"]):
        table = {row.name: row for row in planned_fit(config, source(3, 3, *theirs).config)}
        loaded = bool(theirs) and left_out == ["source.depth=1"]  # it is before the first level
        assert table[AUGMENTATION].alike is not loaded
        assert (table[AUGMENTATION].status == "loaded") is loaded


def test_a_source_that_was_told_of_augmentations_goes_without():
    """And is what it was, where images are as they are."""
    told = source(0, 3, "+model.augmentations=12")
    config = config_of("full", "model.classes=0")
    state, table = fitted(config, config.build_network(), told)
    (row,) = [row for row in table if row.name == AUGMENTATION]
    assert row == (AUGMENTATION, "dropped", "images here are as they are, of which it says nothing",
                   False)  # fmt: skip
    network, theirs = config.build_network().eval(), told.config.build_network().eval()
    network.load_state_dict(state)
    theirs.load_state_dict(told.load("ema"))
    assert torch.equal(network(X, T, {}), theirs(X, T, {"augmentation": torch.zeros(2, 12)}))
    zeros = torch.zeros(2, 12).index_fill(1, torch.tensor([3]), 0.5)
    assert not torch.equal(network(X, T, {}), theirs(X, T, {"augmentation": zeros}))


def test_a_new_row_begins_at_the_rate_of_what_trains_fastest_if_that_is_low():
    assert added("full", "transfer.rules=[{pattern: 'up.*', learning_rate_scale: 0.2}]") == {
        TABLE: 0.2
    }
    assert added("full", "transfer.rules=[{pattern: '*', learning_rate_scale: 0.2}]") == {}
    assert added("full", "transfer.rules=[{pattern: '*', from: 50}, {pattern: 'up.*'}]") == {
        TABLE: 1.0
    }


@pytest.mark.parametrize(
    "rule",
    [
        "{pattern: 'class_embedding.*', learning_rate_scale: 0}",
        "{pattern: class_embedding.weight, from: 10}",
    ],
)
def test_a_rule_about_the_table_alone_is_obeyed(rule):
    assert added("full", f"transfer.rules=[{{pattern: 'up.*'}}, {rule}]") == {}


def test_a_weight_that_trains_has_nothing_injected_that_needs_it_frozen():
    """Shifts of singular values that are zero, as a matrix of equal rows has them, would be along
    vectors that rounding chose."""
    config = config_of("svdiff", "model.classes=0")
    config = with_alike_trained(config, planned_fit(config, source(0).config))
    plan = check_network(config)
    assert set(plan.trains()) >= ENDS and not any(
        n.startswith(("conv_in.weight.", "conv_out.weight.")) for n in plan.parameters
    )
    assert "time_mlp.0.weight.spectral.shift" in plan.trains()


def test_a_pattern_beside_some_names():
    names = ["a.weight", "b.weight", "b.bias", "c.weight"]
    assert patterns_beside(["*.weight", "b.weight", "*.bias"], names, ["b.weight"]) == [
        "a.weight",
        "c.weight",
        "*.bias",
    ]
    assert patterns_beside(["*.weight"], names, []) == ["*.weight"]


def test_random_rows_are_no_copies():
    """copy=mean_and_variance draws them apart; a table that such a source lacks is zero all the
    same."""
    assert added("lora", "copy=mean_and_variance", theirs=(2, 1)) == {}
    assert added("lora", "copy=mean_and_variance", theirs=(0, 1)) == {TABLE: 1.0}


# --- what is said, and what a run is --------------------------------------------------------------


@pytest.fixture(scope="module")
def transfers(tmp_path_factory) -> Transfers:
    root = tmp_path_factory.mktemp("transfers")
    images = {
        name: (
            lambda k, color=color: Image.new(
                "RGB", (8, 8), tuple(min(255, c + 3 * k) for c in color)
            )
        )
        for name, color in {"A": (200, 20, 20), "B": (20, 200, 20), "C": (20, 20, 200)}.items()
    }
    folders(root / "target", images, 10)
    return Transfers(root, ["data.channels=1", "train.steps=4"])


def run(transfers: Transfers, strategy: str, *more: str) -> Path:
    return transfers.run(
        "data=folder",
        f"data.path={transfers.root}/target",
        f"transfer={strategy}",
        "model.classes=auto",
        "train.steps=2",
        f"source.from={transfers.source}",
        *more,
    )


def log_of(directory: Path) -> str:
    return (directory / "log.txt").read_text()


def test_what_a_log_says(transfers, caplog):
    caplog.set_level(logging.INFO)
    text = log_of(run(transfers, "lora"))
    counts = dict(re.findall(r"(\w) \((\d+)\)", re.search("3 classes: (.*)", text)[1]))
    trained = re.search(r"fp32, (\d+) training images", text)[1]
    assert list(counts) == ["A", "B", "C"] and sum(map(int, counts.values())) == int(trained)
    assert (
        f"new to the source, so that it trains: {TABLE}, conv_in.weight, conv_out.weight, "
        "conv_out.bias"
    ) in text
    assert "repeated 1 -> 3" in text and "does not train" not in text and "freezes it" not in text
    text = log_of(
        run(
            transfers,
            "full",
            "transfer.rules=[{pattern: '*'}, {pattern: 'conv_*', learning_rate_scale: 0}]",
        )
    )
    assert all(
        f"{name} trains, though {{pattern: 'conv_*', learning_rate_scale: 0}} freezes it: it is "
        f"new to the source. A rule for it alone is obeyed: {{pattern: {name}," in text
        for name in ("conv_in.weight", "conv_out.weight", "conv_out.bias")
    )
    text = log_of(run(transfers, "zero_shot", "train.warmup=50"))
    assert "train.warmup" not in text  # it trains no step
    assert (
        f"{TABLE} is new to the source and does not train with transfer=zero_shot: its labels "
        "do nothing"
    ) in text
    assert (
        "conv_out.weight is new to the source and does not train with transfer=zero_shot: new "
        "outputs cannot"
    ) in text
    assert "which the network is not told" not in text
    text = log_of(run(transfers, "zero_shot", "model.classes=0"))
    assert re.search(
        r"3 classes: A \(\d+\), B \(\d+\), C \(\d+\), which the network is not told, as "
        r"model.classes is 0",
        text,
    )
    text = log_of(
        run(
            transfers,
            "full",
            (
                "transfer.rules=[{pattern: 'up.*'}, {pattern: 'class_embedding.*', "
                "learning_rate_scale: 0}]"
            ),
        )
    )
    assert (
        f"{TABLE} is new to the source and does not train with transfer=full: its labels do nothing"
        in text
    )


def test_the_share_is_that_of_all_rows_and_says_when_it_trains(transfers, caplog):
    """Three new rows of the table, counted before the images were known as one."""
    caplog.set_level(logging.INFO)
    directory = run(transfers, "textual_inversion", "data.channels=1")
    config = RunConfig(find(directory).config)
    rows, everything = 3 * 64, sum(w.numel() for w in config.shape_network().state_dict().values())
    assert f"{100 * rows / everything:.3g}% of the parameters train\n" in caplog.text
    directory = run(transfers, "lp_ft", "data.channels=1", "train.steps=4")
    assert "100% of the parameters train, all from step 2\n" in caplog.text
    assert read_result(directory).cells()["trained"] == "100%, all from step 2"


def test_a_run_is_another_one_only_where_a_rule_came_on_top(transfers):
    """From the rules that its own files say, by which it had its name before."""

    def rules(directory: Path) -> list[dict]:
        return json.loads((directory / "identity.json").read_text())["transfer"]["rules"]

    theirs = [
        {
            "pattern": "*.lora.*",
            "learning_rate_scale": 1.0,
            "from_": 0,
            "until": None,
            "optional": False,
        }
    ]
    assert rules(run(transfers, "lora", "data.channels=1", "model.classes=0")) == theirs
    assert [rule["pattern"] for rule in rules(run(transfers, "lora"))] == [
        "*.lora.*",
        TABLE,
        *sorted(ENDS)[:1],
        *sorted(ENDS)[:0:-1],
    ]


def test_a_small_file_has_what_a_rule_on_top_trained(transfers, tmp_path):
    directory = run(transfers, "lora")
    export.export_difference(str(directory), tmp_path / "x.safetensors")
    laid = load_weights(str(tmp_path / "x.safetensors"))
    expected = merged(RunConfig(find(directory).config), weights(directory, file=EMA))
    assert all(torch.equal(w, expected[name]) for name, w in laid.load("ema").items())
    assert {TABLE, *ENDS} <= load_file(tmp_path / "x.safetensors").keys()


# --- what else came later, where it applies -------------------------------------------------------


def test_other_numbers_are_another_run_and_equal_ones_are_not():
    """Runs that had their names before, and what is computed otherwise since."""

    def changed(name: str, *overrides: str, theirs: int = 0) -> list[str]:
        config = config_of(name, "data.channels=1", *overrides).with_classes(3)
        return changed_since(config, planned_fit(config, source(theirs).config))

    assert changed("difffit", "optimizer=adamw", "optimizer.weight_decay=0.1") == [
        "weight decay leaves scales alone"
    ]
    assert (
        changed("lora", "optimizer=adamw", "optimizer.weight_decay=0.1")
        == changed("difffit", "optimizer=adamw")
        == []
    )
    assert changed("l2_sp", theirs=2) == ["L2-SP does not hold new rows of the class table"]
    assert (
        changed("l2_sp")
        == changed("l2_sp", theirs=3)
        == changed("ewc", theirs=2)
        == changed("full", theirs=2)
        == []
    )
    assert changed("full", "model.classes=0", theirs=2) == [
        "the null row of the source's classes is folded"
    ]


@pytest.mark.parametrize(
    ("theirs", "kept", "new"), [(2, False, 3), (2, True, 3), (3, False, 0), (0, False, 0)]
)
def test_which_rows_a_term_is_told_to_be_new(tmp_path, theirs, kept, new):
    config = config_of(
        "full", "data.channels=1", f"source.keep_classes={str(kept).lower()}"
    ).with_classes(3, theirs if kept else 0)
    table = planned_fit(config, source(theirs).config)
    write_origin(tmp_path, {"path": "", "weights": "", "sha256": ""}, table)
    start = start_of(config, source(theirs), config.build_denoiser(), colored(), tmp_path)
    assert start.new_rows == new
