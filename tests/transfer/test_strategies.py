"""Each preset by what a run of it does to the weights of a source: which moved and which did not,
by name and by bits, and whether it changes what its paper says. A few steps here; the slow tests
take 200.

Terms are compared with the same run without them, at equal steps and seed. At this size most need a
larger weight than their preset's to be told from noise in a few steps; it stands beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from config.overrides import options
from config.run_config import RunConfig
from data.sources.bundled import Faces, Tissue
from diffusion.denoiser import Denoiser
from models.layers import output_of
from runtime.checkpoint import EMA, MODEL, find
from runtime.files import read_checked
from tests.helpers import runs
from tests.helpers.parts import INJECTED, SUBSETS, bias, inside_attention, norm, owners, part
from tests.helpers.transfers import Transfers, denoiser_of, moved, weights
from transfer.adapters import inject, parameters
from transfer.ant import Classifier, towards_target

TABLE = "class_embedding.weight"
# in so many parts of the run, to see what trained in each
CHECKPOINTS = {
    "lp_ft": 2,
    "gradual_unfreezing": 5,
}
# Of the injected presets: which of the source's own parameters train as well.
BESIDE = {name: lambda p, m: False for name in INJECTED} | {
    "difffit": lambda p, m: norm(p, m) or bias(p, m) or part("class_embedding")(p, m),
    "svdiff": norm,
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(10, id="few"), pytest.param(200, id="200", marks=pytest.mark.slow)],
)
def steps(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def transfers(tmp_path_factory, steps) -> Transfers:
    return Transfers(
        tmp_path_factory.mktemp("transfers"), ["train.steps=100"] if steps == 10 else []
    )


def run(transfers: Transfers, name: str, steps: int, *more: str) -> Path:
    return transfers.target(
        name,
        f"train.steps={steps}",
        f"run.checkpoint_every={steps // CHECKPOINTS.get(name, 1)}",
        *more,
    )


def start_of(transfers: Transfers, directory: Path) -> dict[str, Tensor]:
    """The source fitted, by hand: all shapes are the source's, and a class table that it lacks is
    zero."""
    state = RunConfig(find(directory).config).shape_network().state_dict()
    return transfers.started() | {
        name: torch.zeros(w.shape) for name, w in state.items() if name == TABLE
    }


def injected_at_start(before: dict[str, Tensor], directory: Path) -> dict[str, Tensor]:
    config = RunConfig(find(directory).config)
    network = config.build_network()
    network.load_state_dict(before)
    inject(network, config.transfer.inject, config.seed)
    return {name: w.detach() for name, w in parameters(network).items() if name not in before}


def trained(directory: Path, name: str) -> set[str]:
    """The source's parameters that the preset's paper trains."""
    network = RunConfig(find(directory).config).shape_network()
    if name == "attention_only":
        return inside_attention(network)
    # the rest train everything in the end
    belongs = (SUBSETS | BESIDE).get(name, lambda p, m: True)
    return {n for n, (path, module) in owners(network).items() if belongs(path, module)}


# What they train follows from rules alone, which test_presets tells; of their kind others run.
BY_RULES = (
    "bitfit",
    "norm_only",
    "time_embedding",
    "time_conditioning",
    "middle_only",
    "freeze_decoder",
    "freeze_high_resolution",
    "freeze_low_resolution",
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in BY_RULES else n for n in options("transfer")],
)
def test_what_moves(transfers, steps, name):
    directory = run(transfers, name, steps)
    before = start_of(transfers, directory)
    for file in (MODEL, EMA):
        after = weights(directory, file=file)
        if name == "scratch":
            assert moved(before, after) == set(before)
            continue
        assert moved(before, after) == trained(directory, name), file
        injected = injected_at_start(before, directory)
        assert injected.keys() == after.keys() - before.keys() and bool(injected) == (
            name in INJECTED
        )
        assert moved(injected, after) == set(injected), file


@pytest.mark.timeout(600)
def test_lp_ft_leaves_the_body_until_the_half(transfers, steps):
    directory = run(transfers, "lp_ft", steps)
    start, half, end = (
        transfers.started(),
        weights(directory, steps // 2),
        weights(directory, steps),
    )
    assert moved(start, half) == trained(directory, "linear_probe")
    assert moved(half, end) == set(start)


@pytest.mark.timeout(600)
def test_gradual_unfreezing_stage_by_stage(transfers, steps):
    directory = run(transfers, "gradual_unfreezing", steps)
    before, expected = transfers.started(), set()
    for stage, parts in enumerate(
        [("norm_out", "conv_out"), ("up",), ("mid",), ("down",), ("conv_in", "time_mlp")]
    ):
        after = weights(directory, (stage + 1) * steps // 5)
        expected |= {n for n in before if n.split(".")[0] in parts}
        assert moved(before, after) == expected
        before = after


def test_zero_shot_is_the_source_after_no_step(transfers):
    directory = run(transfers, "zero_shot", 10)
    result = json.loads((directory / "result.json").read_text())
    assert (
        result["step"],
        result["ema_share_of_start"],
        result["trained_parameters"],
        result["bytes_to_store"],
    ) == (0, 1.0, 0, 0)
    assert result["held_out_loss"] > 0 and runs.steps_of(directory) == [0]
    assert not moved(transfers.started(), weights(directory, 0)) and not moved(
        transfers.started(), weights(directory, 0, EMA)
    )


def test_injected_parameters_are_where_the_papers_put_them(transfers):
    """By layer: LoRA on what makes q, k, v and what mixes the heads; DiffFit's g at the end of each
    residual branch, and so on."""
    names = set(transfers.started())
    attention = {n for n in names if n.endswith((".qkv.weight", ".out.weight"))}
    matrices = {n for n, w in transfers.started().items() if w.ndim > 1}
    expected = {
        "lora": attention,
        "difffit": {n for n in names if n.endswith((".conv2.weight", ".out.weight"))},
        "svdiff": matrices,
        "locon": {n for n in matrices if n.split(".")[0] in ("down", "mid", "up")},
    }
    expected["ant"] = expected["locon"]
    for name, layers in expected.items():
        added = weights(run(transfers, name, 10)).keys() - names
        assert {n.rpartition(".")[0].rpartition(".")[0] for n in added} == layers, name


# --- what a term changes --------------------------------------------------------------------------


def shown(images: Faces | Tissue, n: int = 12) -> Tensor:
    """[n, 3, 8, 8] in [-1, 1]"""
    picked = [
        images.read_image(k).convert("RGB").resize((8, 8), Image.Resampling.BOX)
        for k in np.linspace(0, 89, n).round().astype(int)
    ]
    return (
        torch.from_numpy(np.stack([np.asarray(p) for p in picked])).permute(0, 3, 1, 2) / 127.5 - 1
    )


def noisy(denoiser: Denoiser, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and noise: t evenly from low to high."""
    t = 1 + torch.arange(len(x0)) * (denoiser.schedule.steps - 1) // (len(x0) - 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    return denoiser.schedule.add_noise(x0, noise, t), t, noise


def end_of(directory: Path) -> Denoiser:
    return denoiser_of(RunConfig(find(directory).config), weights(directory))


def source_of(transfers: Transfers) -> Denoiser:
    return denoiser_of(RunConfig(find(transfers.source).config), transfers.started())


def distance(transfers: Transfers, directory: Path) -> float:
    end = weights(directory)
    return sum((end[name] - w).square().sum().item() for name, w in transfers.started().items())


def fisher_distance(transfers: Transfers, directory: Path) -> float:
    [path] = transfers.root.glob("cache/fisher-*.safetensors")
    importance, end = safetensors.torch.load(read_checked(path)), weights(directory)
    return sum(
        (importance[name] * (end[name] - w).square()).sum().item()
        for name, w in transfers.started().items()
    )


def features(denoiser: Denoiser, x_t: Tensor, t: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    network = denoiser.network
    for block in [*(b for level in network.down for b in level.block), *network.mid.block]:
        block.register_forward_hook(lambda module, inputs, output: found.append(output_of(output)))
    denoiser(x_t, t)
    return found


def feature_distance(transfers: Transfers, directory: Path) -> float:
    denoisers = source_of(transfers), end_of(directory)
    x_t, t, _ = noisy(denoisers[0], shown(Tissue(None)))
    pairs = zip(*(features(d, x_t, t) for d in denoisers), strict=True)
    return torch.stack([F.mse_loss(a, b) for a, b in pairs]).mean().item()


def similarity_distance(transfers: Transfers, directory: Path) -> float:
    """KL of each image's distribution over the others, one image after the other."""
    denoisers = source_of(transfers), end_of(directory)
    x0, total = shown(Tissue(None)), 0.0
    for k in (25, 50, 75):
        t = torch.full((len(x0),), k)
        x_t = denoisers[0].schedule.add_noise(x0, noisy(denoisers[0], x0)[2], t)
        source, student = (d(x_t, t).x0.flatten(1).double() for d in denoisers)
        for i in range(len(x0)):
            others = [j for j in range(len(x0)) if j != i]
            p, q = (
                torch.softmax(F.cosine_similarity(x[i : i + 1], x[others]), 0)
                for x in (source, student)
            )
            total += (p * (p / q).log()).sum().item()
    return total


def loss(denoiser: Denoiser, x0: Tensor) -> float:
    """Without a label."""
    x_t, t, noise = noisy(denoiser, x0)
    return F.mse_loss(denoiser(x_t, t).noise, noise).item()


def loss_on_faces(transfers: Transfers, directory: Path) -> float:
    return loss(end_of(directory), shown(Faces(None), 48))


def loss_on_self_made(transfers: Transfers, directory: Path) -> float:
    """On images that the source makes itself."""
    made = np.concatenate(
        [np.load(path) for path in sorted(transfers.root.glob("cache/generated/*/*.npy"))]
    )
    return loss(end_of(directory), torch.from_numpy(made).permute(0, 3, 1, 2) / 127.5 - 1)


def away_from_target(transfers: Transfers, directory: Path) -> float:
    """How far the predicted noise points along grad log p(target | x_t), against which the target
    of ANT is shifted."""
    [path] = transfers.root.glob("cache/classifier-*.safetensors")
    classifier = Classifier(3).eval()
    classifier.load_state_dict(
        {
            name: w
            for name, w in safetensors.torch.load(read_checked(path)).items()
            if name != "accuracy"
        }
    )
    denoiser = denoiser_of(RunConfig(find(directory).config), merged_weights(directory))
    x_t, t, _ = noisy(denoiser, shown(Tissue(None), 48))
    return (denoiser(x_t, t).noise * towards_target(classifier, x_t, t)).sum().item()


def merged_weights(directory: Path) -> dict[str, Tensor]:
    """W + B A by hand, q, k and v apart."""
    found = weights(directory)
    plain = {name: w for name, w in found.items() if ".lora." not in name}
    for name in [n.removesuffix(".lora.up") for n in found if n.endswith(".lora.up")]:
        A, B, w = found[f"{name}.lora.down"], found[f"{name}.lora.up"], plain[name]
        n = len(A) // B.shape[1]
        plain[name] = w + torch.cat(
            [b @ a for b, a in zip(B.chunk(n), A.chunk(n), strict=True)]
        ).view(w.shape)
    return plain


class Term(NamedTuple):
    """measure: of a run, lower with the term. more: overrides to see it by. without: overrides that
    take it out. left: what is left then, a strategy and overrides of it."""

    measure: Callable[[Transfers, Path], float]
    more: Sequence[str]
    without: Sequence[str]
    left: Sequence[str] = ("full",)


TERMS = {
    "l2_sp": Term(distance, ["transfer.penalties.0.weight=1"], ["transfer.penalties=[]"]),
    "ewc": Term(fisher_distance, [], ["transfer.penalties=[]"]),
    "feature_distillation": Term(
        feature_distance, ["transfer.penalties.0.weight=10"], ["transfer.penalties=[]"]
    ),
    "pairwise_similarity": Term(
        similarity_distance, ["transfer.penalties.0.weight=100"], ["transfer.penalties=[]"]
    ),
    "dreambooth": Term(
        loss_on_self_made,
        [],
        ["transfer.replay=null"],
        [
            "full",
            "model.classes=auto",
            "source.keep_classes=true",
            "train.label_dropout=0",
            (
                "transfer.rules=[{pattern: '*'}, {pattern: 'class_embedding.*', "
                "learning_rate_scale: 10}]"
            ),
        ],
    ),
    "diff_tuning": Term(
        loss_on_self_made,
        ["transfer.replay.weight=1"],
        ["transfer.replay=null"],
        ["full", "timesteps=power"],
    ),
    "ant": Term(
        away_from_target,
        ["transfer.loss.guidance=100"],
        ["transfer.loss=null"],
        ["locon", "transfer.inject.0.rank=14", "transfer.inject.1.rank=14"],
    ),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TERMS)
def test_what_a_term_changes(transfers, steps, name):
    term = TERMS[name]
    with_term, other = (
        run(transfers, name, steps, *term.more),
        run(transfers, term.left[0], steps, *term.left[1:]),
    )
    ours, theirs = (term.measure(transfers, directory) for directory in (with_term, other))
    print(f"{name}, {steps} steps: {ours:.4g} with the term, {theirs:.4g} without")
    assert ours < theirs - 0.02 * abs(theirs)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["dreambooth", "diff_tuning"])
def test_replay_of_real_images_forgets_less(transfers, steps, name):
    """The presets replay what the source makes, and so small a source makes no faces."""
    real = [
        "transfer.replay.images._target_=transfer.source_images.real",
        "~transfer.replay.images.steps",
        "~transfer.replay.images.batch_size",
        "transfer.replay.images.n=80",
    ]
    with_replay, other = (
        run(transfers, name, steps, *TERMS[name].more, *real),
        run(transfers, TERMS[name].left[0], steps, *TERMS[name].left[1:]),
    )
    before, ours, theirs = (
        loss_on_faces(transfers, directory) for directory in (transfers.source, with_replay, other)
    )
    print(
        f"{name}, {steps} steps: {ours:.4g} with real images, {theirs:.4g} without, "
        f"{before:.4g} before"
    )
    assert ours < 0.95 * theirs


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TERMS)
def test_without_its_term_nothing_is_left_of_a_strategy(transfers, steps, name):
    """To the bit: so the tests above compare the term and nothing else, and fail where it is
    lost."""
    term = TERMS[name]
    without, other = (
        run(transfers, name, steps, *term.without),
        run(transfers, term.left[0], steps, *term.left[1:]),
    )
    runs.assert_same_weights(without, other, steps)
    assert moved(weights(without), weights(run(transfers, name, steps)))
