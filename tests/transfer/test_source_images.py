"""Images of the source's domain: those of its own run, and those that it makes, which are made once
and in one sequence."""

from __future__ import annotations

import multiprocessing
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.identity import identity
from config.overrides import CONF, composed, options
from config.run_config import RunConfig
from data.dataset import open_dataset
from data.resize import to_array
from diffusion.generate import SamplerSettings
from diffusion.image_noise import NoisePerImage
from diffusion.spacing import log_snr_steps
from runtime.content import sha256_of
from runtime.errors import UserError
from runtime.seeds import derive
from tests.helpers.starts import OPENED, begun, in_two_processes, trained
from training.pretrained_source import PretrainedSource
from training.run_directory import name_run
from transfer import source_images
from transfer.source_images import generated, real
from transfer.trained_weights import load_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three classes of colour noise, 12 high and 10 wide; two images are smaller."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (root / name).mkdir()
        for k in range(8):
            shape = (5, 5, 3) if name == "b" and k < 2 else (12, 10, 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(
                root / name / f"{k}.png"
            )
    return root


def of_folder(folder: Path, *more: str) -> list[str]:
    return ["data=folder", f"data.path={folder}", "data.channels=3", "data.skip_broken=true", *more]


# --- real -----------------------------------------------------------------------------------------


def own_images(source, cache: Path):
    """What the run of the source trained on, by the way that train.py goes."""
    settings = source.config.data
    return open_dataset(settings, settings.open_reader(cache), source.config.seed, cache)


@pytest.mark.parametrize(
    "more", [[], ["data.n_train=5", "seed=3"], ["data.n_train=5", "data.subset_seed=4"]]
)
def test_real_images_are_those_that_the_source_trained_on(folder, tmp_path, more):
    """Also where it drew some of them by its own seed, or could not use two; the target's seed is
    another one. Where the sizes agree the source's own memory map is read and none is made."""
    source = trained(of_folder(folder, *more))
    theirs = own_images(source, tmp_path)
    maps = set(tmp_path.glob("*.npy"))
    ours = real(
        begun(
            tmp_path,
            [
                "data.channels=3",
                "seed=9",
                *(["data.n_train=8", "data.subset_seed=2"] if more else []),
            ],
            source,
        )
    )
    assert ours.splits.keys() == {"train"} and list(ours.classes) == ["a", "b", "c"]
    np.testing.assert_array_equal(
        ours.images[ours.splits["train"]], theirs.images[theirs.splits["train"]]
    )
    assert set(tmp_path.glob("*.npy")) == maps
    assert len(ours.splits["train"]) == (5 if more else len(theirs.splits["train"]))
    if not more:
        assert (
            len(theirs.splits["train"])
            < 24 - len(theirs.splits["validation"]) - len(theirs.splits["test"]) + 1
        )


def test_real_images_at_another_size_and_in_gray(folder, tmp_path):
    """Each is its file at the target's size, channels and filter; larger than the file, too. What
    the source did not use stays out."""
    source = trained(of_folder(folder))
    start = begun(tmp_path, ["data.size=[16,14]", "data.channels=1", "data.resample=box"], source)
    ours, theirs = real(start), own_images(source, tmp_path)
    settings = source.config.data
    images = settings.open_reader(tmp_path)
    assert ours.images.shape[1:] == (16, 14, 1)
    # without the two that are too small for 8x8
    np.testing.assert_array_equal(ours.splits["train"], theirs.splits["train"])
    for row in ours.splits["train"]:
        np.testing.assert_array_equal(
            ours.images[row], to_array(images.read_image(row), (16, 14), 1, True, "box")
        )


def test_so_many_real_images_by_the_runs_seed(folder, tmp_path):
    source = trained(of_folder(folder))
    rows = [
        real(begun(tmp_path, ["data.channels=3", f"seed={seed}"], source), n=6)
        .splits["train"]
        .tolist()
        for seed in (0, 0, 1)
    ]
    everything = own_images(source, tmp_path).splits["train"]
    assert rows[0] == rows[1] != rows[2] and all(
        len(set(r)) == 6 and set(r) <= set(everything) for r in rows
    )
    for n in (0, len(everything) + 1):
        with pytest.raises(
            UserError, match=f"n={n}: the source was trained on {len(everything)} images"
        ):
            real(begun(tmp_path, ["data.channels=3"], source), n=n)


def test_labels_of_kept_classes_and_the_null_class(folder, tmp_path):
    """The source's classes behind the target's two; without them the null class, whose label is the
    number of classes."""
    source = trained(of_folder(folder))
    kept = begun(tmp_path, ["data.channels=3", "model.classes=5"], source, first_kept=2)
    ours = real(kept)
    images = source.config.data.open_reader(tmp_path)
    assert ours.labels.tolist() == [2 + k for k in images.labels] and set(ours.labels) == {2, 3, 4}
    assert set(real(begun(tmp_path, ["data.channels=3", "model.classes=5"], source)).labels) == {5}


def test_published_weights_have_no_images(folder, tmp_path):
    """Also a bare file of weights, whose config was read with the settings of an experiment, images
    among them."""
    for source in (trained(of_folder(folder), step=None), trained()):
        if source.step is not None:
            source.config.raw["data"] = {"size": 8, "channels": 1}
        with pytest.raises(UserError, match="published weights.*transfer.source_images.generated"):
            real(begun(tmp_path, source=source))


def test_images_that_are_not_here_any_more(tmp_path):
    source = trained(of_folder(tmp_path / "gone"))
    with pytest.raises(
        UserError, match=r"(?s)step_7 was trained on: .*gone.*transfer.source_images.generated"
    ):
        real(begun(tmp_path, ["data.channels=3"], source))


@pytest.mark.parametrize(
    "target", ["os.system", "training.config_checks.check_network", "torch.load"]
)
def test_the_sources_config_builds_nothing_but_data(tmp_path, target):
    source = trained()
    source.config.raw["data"]["_target_"] = target
    with pytest.raises(UserError, match="nothing else is built"):
        real(begun(tmp_path, source=source))


def test_a_finished_run_is_such_a_source(undisturbed, tmp_path):
    """With its own checkpoint in place of the fake: its config, its labels, its weights."""
    directory = undisturbed()
    (own,) = (directory.parents[2] / "cache").glob("*.npy")
    start = begun(tmp_path, source=load_weights(str(directory)))
    ours = real(start)
    np.testing.assert_array_equal(ours.images, np.load(own))
    assert ours.splits["train"].tolist() == list(range(90)) and set(ours.labels) == {0}
    assert generated(start, n=3, steps=2, batch_size=2).images.shape == (3, 8, 8, 1)


# --- generated ------------------------------------------------------------------------------------


def by_hand(source, k: int, steps: int, seed: int = 0) -> np.ndarray:
    """Image k at the source's size, by the formula of DDIM (Song et al. 2021, eq. 12) from noise by
    (seed, "replay", k). [H, W, C]"""
    denoiser = source.config.build_denoiser()
    denoiser.network.load_state_dict(source.load("ema"))
    denoiser.eval()
    schedule, data = denoiser.schedule, source.config.raw["data"]
    x = NoisePerImage([derive(seed, "replay", k)])(
        torch.empty(1, data["channels"], data["size"], data["size"])
    )
    classes = denoiser.network.classes
    evenly = [round(schedule.steps * j / steps) for j in range(steps, -1, -1)]
    path = evenly if schedule.zero_terminal_snr else log_snr_steps(schedule, steps)
    assert path[0] == schedule.steps
    with torch.no_grad():
        for t, s in pairwise(path):
            (a, b), (a_s, b_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            x0 = denoiser(x, t, {"label": torch.tensor([k % classes])} if classes else {}).x0.clamp(
                -1, 1
            )
            x = (a_s * x0 + b_s * (x - a * x0) / b).float()
    return ((x[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)


def assert_nearly(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The same but for a level here and there, which rounding decides."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


ZERO_TERMINAL = [
    "schedule=linear_zero_terminal",
    "schedule.schedule.steps=20",
    "parameterization=velocity",
    "spacing=trailing",
]


@pytest.mark.parametrize(
    ("overrides", "classes"),
    [([], []), (["model.classes=3"], ["a", "b", "c"]), (ZERO_TERMINAL, [])],
)
def test_generated_images_are_what_the_source_makes(tmp_path, overrides, classes):
    source = trained(overrides, classes=classes)
    ours = generated(begun(tmp_path, source=source, seed=4), n=5, steps=4, batch_size=2)
    assert (
        ours.splits["train"].tolist() == [0, 1, 2, 3, 4]
        and list(ours.classes) == classes
        and OPENED == ["ema"]
    )
    assert ours.images.std() > 20  # no plain gray
    for k in range(5):
        assert_nearly(ours.images[k], by_hand(source, k, 4, seed=4))


def test_generated_images_do_not_depend_on_the_batch_nor_on_how_many(tmp_path):
    """Nor on the target: at its size and channels each is the source's image, scaled."""
    source = trained(["data.channels=3"])
    first = generated(
        begun(tmp_path / "a", ["data.channels=3"], source), n=5, steps=3, batch_size=5
    )
    other = generated(
        begun(tmp_path / "b", ["data.channels=3"], source), n=3, steps=3, batch_size=1
    )
    assert_nearly(first.images[:3], other.images)
    assert len({image.tobytes() for image in first.images}) == 5
    start = begun(
        tmp_path / "a", ["data.size=[12,16]", "data.channels=1", "data.resample=bilinear"], source
    )
    OPENED.clear()
    gray = generated(start, n=5, steps=3, batch_size=5)
    assert not OPENED  # nothing is generated again
    for image, theirs in zip(gray.images, first.images, strict=True):
        np.testing.assert_array_equal(
            image, to_array(Image.fromarray(theirs), (12, 16), 1, True, "bilinear")
        )


def test_gray_becomes_three_equal_channels(tmp_path):
    source = trained()
    gray = generated(begun(tmp_path, source=source), n=2, steps=2, batch_size=2)
    rgb = generated(begun(tmp_path, ["data.channels=3"], source), n=2, steps=2, batch_size=2)
    np.testing.assert_array_equal(rgb.images, np.repeat(gray.images, 3, -1))


def test_other_channels_are_the_gray_of_the_source(folder, tmp_path):
    """Where the target has bands, each is the luma of colour; where the source has them, gray is
    their mean."""
    source = trained(of_folder(folder))
    start = begun(tmp_path, ["data.channels=5"], source)
    ours, theirs = real(start), own_images(source, tmp_path)
    images = source.config.data.open_reader(tmp_path)
    for row in ours.splits["train"]:
        luma = to_array(images.read_image(row), (8, 8), 1, True)
        np.testing.assert_array_equal(ours.images[row], np.repeat(luma, 5, -1))
    assert ours.images.shape[-1] == 5 and len(ours.splits["train"]) == len(theirs.splits["train"])

    bands = trained(["data.channels=5"])
    made = generated(begun(tmp_path, ["data.channels=5"], bands), n=2, steps=2, batch_size=2).images
    for channels in (1, 3, 4):
        start = begun(tmp_path, [f"data.channels={channels}"], bands)
        other = generated(start, n=2, steps=2, batch_size=2).images
        mean = made.mean(-1, keepdims=True)
        assert other.shape[-1] == channels and np.abs(other - mean).max() <= 0.51


def test_generated_images_are_made_once_and_added_to(tmp_path, monkeypatch):
    source, made = trained(), []
    start, generate = begun(tmp_path, source=source), source_images.generate
    monkeypatch.setattr(
        source_images, "generate", lambda *a, **k: (made.append(len(a[4])), generate(*a, **k))[1]
    )
    four = np.array(generated(start, n=4, steps=2, batch_size=3).images)
    assert made == [3, 1]
    np.testing.assert_array_equal(generated(start, n=4, steps=2, batch_size=3).images, four)
    np.testing.assert_array_equal(generated(start, n=2, steps=2, batch_size=3).images, four[:2])
    assert made == [3, 1]
    np.testing.assert_array_equal(generated(start, n=7, steps=2, batch_size=8).images[:4], four)
    assert made == [3, 1, 3]


@pytest.mark.parametrize(
    "change", ["weights", "steps", "seed", "schedule", "parameterization", "heads", "version"]
)
def test_what_changes_the_images_makes_new_ones(tmp_path, monkeypatch, change):
    generated(begun(tmp_path, source=trained()), n=2, steps=2, batch_size=2)
    overrides = {
        "schedule": ["schedule.beta_end=0.03"],
        "parameterization": ["parameterization=x0"],
        "heads": ["model.heads=2"],
    }
    source = trained(overrides.get(change, []), seed=int(change == "weights"))
    if change == "version":
        monkeypatch.setattr(source_images, "GENERATOR", 0)
    generated(
        begun(tmp_path, source=source, seed=int(change == "seed")),
        n=2,
        steps=3 if change == "steps" else 2,
        batch_size=2,
    )
    assert OPENED and len(list((tmp_path / "generated").iterdir())) == 2


@pytest.mark.parametrize(
    ("overrides", "steps", "same"), [([], 4, False), ([], 20, True), (ZERO_TERMINAL, 4, True)]
)
def test_images_of_other_steps_are_not_read_from_an_old_cache(tmp_path, overrides, steps, same):
    """Even steps began below T; these images have a new name, and those that did not change keep
    theirs."""
    source = trained(overrides)
    config = source.config.raw
    sections = ("model", "schedule", "parameterization", "variance")
    old = sha256_of(
        {
            "version": 1,
            "weights": source.digests["ema"],
            "shape": (1, 8, 8),
            "steps": steps,
            "seed": 0,
        }
        | {section: config[section] for section in sections}
    )
    generated(begun(tmp_path, source=source), n=1, steps=steps, batch_size=1)
    assert (tmp_path / "generated" / old[:16]).exists() == same


USE_THEM = ["ant", "diff_tuning", "dreambooth", "ewc"]


@pytest.mark.parametrize("strategy", [*USE_THEM, "full", "l2_sp"])
def test_a_run_that_uses_them_has_another_name_and_no_other_has(strategy):
    config, linear = (
        composed("train", [f"transfer={strategy}", "source.from=somewhere"]),
        composed("train", [])["schedule"],
    )
    zero_terminal = {"_target_": "diffusion.schedule.zero_terminal", "schedule": linear}

    def same(schedule):
        own = PretrainedSource("s", RunConfig({"schedule": schedule}), {"from": "1"})
        who, _ = name_run(RunConfig(config), "x", own, ())
        before = identity(RunConfig(config), "x")
        before["transfer"] = before["transfer"] | {"rules": who["transfer"]["rules"]}
        before["source"] |= {"from": "1"}
        return who == before

    assert same(linear) == (strategy not in USE_THEM)
    assert same(zero_terminal) and same(linear | {"steps": 50})  # all presets have 50 steps
    assert (
        sorted(
            n
            for n in options("transfer")
            if "source_images.generated" in (CONF / f"transfer/{n}.yaml").read_text()
        )
        == USE_THEM
    )


def killed(cache: Path, after: int) -> None:
    """In a process of its own: ends without a word, as by SIGKILL, while batch `after` is
    written."""
    write, count = source_images.write_checked, []

    def dying(path, data):
        count.append(path)
        if len(count) > after:
            path.with_name(f".{path.name}.{os.getpid()}").write_bytes(data[:50])
            os._exit(9)
        write(path, data)

    source_images.write_checked = dying
    torch.set_num_threads(1)
    generated(begun(cache), n=9, steps=2, batch_size=2)


def test_generation_that_was_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    process = multiprocessing.get_context("fork").Process(
        target=killed, args=(tmp_path / "killed", 3)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 9
    made, generate = [], source_images.generate
    monkeypatch.setattr(
        source_images, "generate", lambda *a, **k: (made.append(len(a[4])), generate(*a, **k))[1]
    )
    ours = generated(begun(tmp_path / "killed"), n=9, steps=2, batch_size=2)
    assert made == [2, 1]  # six were kept
    whole = generated(begun(tmp_path / "whole"), n=9, steps=2, batch_size=2)
    np.testing.assert_array_equal(ours.images, whole.images)
    # what was half written is gone
    assert [p.name for p in (tmp_path / "killed" / "generated").glob("*/.*")] == [".lock"]


def test_a_batch_that_someone_deleted_is_made_again(tmp_path):
    start = begun(tmp_path)
    whole = np.array(generated(start, n=6, steps=2, batch_size=2).images)
    for path in (*tmp_path.glob("generated/*/00000002.npy"), *tmp_path.glob("*.npy")):
        path.unlink()
    assert_nearly(np.asarray(generated(start, n=6, steps=2, batch_size=3).images), whole)


def test_two_processes_make_them_once(tmp_path):
    """The second one waits for the first; both see the same images."""
    got = in_two_processes(_both, tmp_path)
    assert got[0][1] == got[1][1] and sorted(loads for loads, _ in got) == [0, 1]


def _both(cache: Path, results) -> None:
    torch.set_num_threads(1)
    source = trained()
    images = generated(begun(cache, source=source), n=4, steps=2, batch_size=2).images
    results.put((len(OPENED), images.tobytes()))


def test_the_global_random_stream_is_left_alone(tmp_path):
    start = begun(tmp_path)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generated(start, n=1, steps=2, batch_size=1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_network_of_the_target_is_left_alone(tmp_path):
    start = begun(tmp_path)
    start.denoiser.train()
    before = {name: w.clone() for name, w in start.denoiser.network.state_dict().items()}
    generated(start, n=1, steps=2, batch_size=1)
    assert start.denoiser.training and all(w.requires_grad for w in start.denoiser.parameters())
    assert all(
        torch.equal(w, before[name]) for name, w in start.denoiser.network.state_dict().items()
    )


def test_labels_of_generated_images(tmp_path):
    """In turn through the source's classes, as the target's network knows them."""
    source = trained(["model.classes=3"], classes=["a", "b", "c"])
    kept = begun(tmp_path, ["model.classes=5"], source, first_kept=2)
    assert generated(kept, n=5, steps=2, batch_size=2).labels.tolist() == [2, 3, 4, 2, 3]
    assert generated(
        begun(tmp_path, ["model.classes=2"], source), n=4, steps=2, batch_size=2
    ).labels.tolist() == [2, 2, 2, 2]
    assert generated(
        begun(tmp_path, ["model.classes=2"]), n=2, steps=2, batch_size=2
    ).labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n": 0}, "n=0"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 21}, "steps=21.*only 20"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, says):
    with pytest.raises(UserError, match=f"transfer.source_images.generated.*{says}"):
        generated(begun(tmp_path), **{"n": 2, "steps": 2, "batch_size": 2} | settings)


def test_a_batch_too_large_for_the_device(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory, tried to allocate\n more")

    monkeypatch.setattr(source_images, "generate", full)
    with pytest.raises(UserError, match="batch_size=64: .*tried to allocate.. A smaller one"):
        generated(begun(tmp_path), n=100, steps=2, batch_size=64)


def test_a_published_network_of_unknown_size(tmp_path):
    source = trained(step=None)
    start = begun(tmp_path, source=source)
    source.config.raw["data"] = {"size": None, "channels": 1}
    with pytest.raises(UserError, match="does not say the size"):
        generated(start, n=1, steps=2, batch_size=1)


def test_ddim_is_deterministic_and_its_steps_are_those_asked_for(tmp_path, monkeypatch):
    seen: list[SamplerSettings] = []
    generate = source_images.generate
    monkeypatch.setattr(
        source_images, "generate", lambda *a, **k: (seen.append(a[2]), generate(*a, **k))[1]
    )
    generated(begun(tmp_path), n=1, steps=5, batch_size=1)
    assert (
        seen[0].steps == 5
        and seen[0].function.__name__ == "ddim"
        and seen[0].spacing is log_snr_steps
        and seen[0].clip
    )
