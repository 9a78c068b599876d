"""Features of images: what extract promises, the random network, pixels, and the configs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from config.overrides import options
from data.pixels import to_picture
from metrics.features import Embedding, extract
from metrics.features.distances import Pixels
from metrics.features.random import CHANNELS, RandomConvolutional
from runtime.config_schema import build
from runtime.errors import UserError
from tests.helpers.features import drawn, node_of


class Numbers:
    """The first pixel of each image; logits where they are wanted; NaN at 13."""

    name, short, frechet, identity = (
        "first pixels",
        "first",
        "Fréchet distance (first)",
        {"kind": "first"},
    )

    def __init__(self, logits: bool = False):
        self.logits, self.batches = logits, []

    def to(self, device):
        return self

    def __call__(self, images: Tensor) -> Embedding:
        assert images.dtype == torch.uint8
        self.batches.append(len(images))
        first = images[:, 0, 0, :1].double()
        return Embedding(
            torch.where(first == 13, torch.nan, first), -first if self.logits else None
        )


def numbered(n: int) -> np.ndarray:
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 5, 1))


def test_extract_keeps_the_order_of_rows_and_the_size_of_batches(tmp_path):
    np.save(tmp_path / "images.npy", numbered(12))
    images, rows = np.load(tmp_path / "images.npy", mmap_mode="r"), [7, 0, 11, 7, 3]
    features = Numbers(logits=True)
    found = extract(features, images, rows, batch_size=2)
    assert found.features[:, 0].tolist() == rows and found.logits[:, 0].tolist() == [
        -row for row in rows
    ]
    assert features.batches == [2, 2, 1]
    assert found.features.dtype == found.logits.dtype == torch.float32
    everything = extract(Numbers(), list(images))
    assert everything.features[:, 0].tolist() == list(range(12)) and everything.logits is None


def test_extract_computes_in_fp32_whatever_a_run_computes_in():
    class Watched(RandomConvolutional):
        def __call__(self, images):
            assert (
                torch.get_float32_matmul_precision() == "highest"
                and not torch.backends.cudnn.allow_tf32
            )
            return super().__call__(images)

    images, before = (
        drawn(2, 24, 24, 1),
        (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
    )
    expected = extract(RandomConvolutional(), images).features
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(extract(Watched(), images).features, expected)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_extract_counts_the_images_whose_features_are_not_finite():
    with pytest.raises(UserError, match="first pixels of 2 of 4 images, the first in row 13"):
        extract(Numbers(), numbered(20), [1, 13, 2, 13])


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 4, 4, 3), np.float32), "uint8"),
        (np.zeros((2, 4, 4, 3), np.int64), "uint8"),
        (np.zeros((2, 4, 4), np.uint8), r"\[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no images"),
    ],
)
def test_what_is_no_array_of_images_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        extract(Numbers(), images)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_features_see_gray_or_colour_or_the_channels_that_are_shown(channels):
    images = drawn(5, 8, 8, channels)
    with pytest.raises(ValueError, match=r"\[N, H, W, 1 or 3\], not \[5, 8, 8, " + str(channels)):
        extract(RandomConvolutional(), images)
    some = [2, 1, 2] if channels == 2 else [4, 1, 3]
    seen = extract(RandomConvolutional(), images, view=lambda x: to_picture(x, some)).features
    chosen = np.stack([images[..., k - 1] for k in some], -1)
    assert torch.equal(seen, extract(RandomConvolutional(), chosen).features)


def test_pixels_are_themselves():
    for channels in (1, 3, 13):
        images = drawn(3, 5, 4, channels)
        assert np.array_equal(
            extract(Pixels(), images).features.numpy(),
            images.reshape(3, -1).astype(np.float32) / 255,
        )


# --- the random network ---------------------------------------------------------------------------


def test_the_random_network_is_a_function_of_its_seed_and_leaves_the_global_stream_alone():
    images, state = drawn(4, 24, 24, 3), torch.get_rng_state()
    one, again, other = (extract(RandomConvolutional(seed), images).features for seed in (0, 0, 1))
    assert torch.equal(one, again) and torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(one, other, atol=0.1)
    assert RandomConvolutional(0).identity != RandomConvolutional(1).identity
    assert "seed 1" in RandomConvolutional(1).name and "not FID" in RandomConvolutional(1).name
    assert "FID" not in RandomConvolutional().frechet


def test_filters_have_no_mean_and_no_layer_repeats_another():
    network = RandomConvolutional(3)
    for k, each in enumerate([*network.filters, network.linear]):
        flat = each.flatten(1).double()
        assert flat.sum(1).abs().max() < 1e-4
        # as random.GAIN says
        assert float(flat.square().sum(1).mean()) == pytest.approx(3, rel=0.25 if k == 0 else 0.05)
    assert [each.shape[0] for each in network.filters] == list(CHANNELS)
    a, b = network.filters[1].flatten()[:5000], network.filters[2].flatten()[:5000]
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.05


@pytest.mark.parametrize("size", [(1, 1), (24, 24), (50, 30), (96, 128)])
def test_it_takes_any_size_and_gray_as_three_equal_colours(size):
    gray = drawn(2, *size, 1)
    found = extract(RandomConvolutional(), gray).features
    assert found.shape == (2, 64) and found.isfinite().all()
    assert torch.allclose(
        found, extract(RandomConvolutional(), np.repeat(gray, 3, -1)).features, atol=1e-5
    )


def test_batches_do_not_matter():
    images = drawn(7, 24, 24, 1)
    whole, single = (
        extract(RandomConvolutional(), images, batch_size=size).features for size in (7, 1)
    )
    assert torch.allclose(whole, single, atol=1e-4)


def pictures() -> np.ndarray:
    """[4 kinds, 100, 24, 24] gray: faces, what is around faces, stained tissue, retina."""
    lfw = (skimage.data.lfw_subset() * 255).round().astype(np.uint8)[:, :24, :24]
    kinds = [lfw[:100], lfw[100:]]
    for image in (skimage.data.immunohistochemistry(), skimage.data.retina()[300:1100, 300:1100]):
        small = np.asarray(
            Image.fromarray(image).convert("L").resize((240, 240), Image.Resampling.LANCZOS)
        )
        kinds.append(small.reshape(10, 24, 10, 24).transpose(0, 2, 1, 3).reshape(100, 24, 24))
    return np.stack(kinds)


def mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared distance of KID, as in Gretton et al. 2012, eq. 3."""
    x, y = x.double(), y.double()
    kxx, kyy, kxy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    return float(
        (kxx.sum() - kxx.trace()) / (n * (n - 1))
        + (kyy.sum() - kyy.trace()) / (m * (m - 1))
        - 2 * kxy.mean()
    )


def features_of(images: np.ndarray) -> Tensor:
    return extract(RandomConvolutional(), images.reshape(-1, *images.shape[-2:], 1)).features


@pytest.fixture(scope="module")
def kinds() -> Tensor:
    """[4 kinds, 100, 64] their features."""
    return features_of(pictures()).view(4, 100, -1)


def test_activations_are_of_order_one_and_of_many_directions(kinds):
    found = kinds.flatten(0, 1).double()
    assert 0.1 < float(found.square().mean().sqrt()) < 3
    variances = torch.linalg.eigvalsh(torch.cov(found.T))
    # that of as many directions of equal variance
    assert float(variances.sum() ** 2 / variances.square().sum()) > 6


def test_kinds_of_images_lie_far_apart(kinds):
    orders = [
        torch.randperm(100, generator=torch.Generator().manual_seed(seed)) for seed in range(10)
    ]
    half = max(abs(mmd(kinds[0, order[:50]], kinds[0, order[50:]])) for order in orders)
    assert all(mmd(kinds[0], kinds[k]) > 20 * half for k in (1, 2, 3))


def test_a_lost_kind_is_seen(kinds):
    x, y = kinds[:, ::2], kinds[:, 1::2]
    same = abs(mmd(x.flatten(0, 1), y.flatten(0, 1)))
    for lost in range(4):
        assert mmd(x.flatten(0, 1), torch.cat([y[k] for k in range(4) if k != lost])) > same


def test_distances_rise_with_blur_and_with_noise(kinds):
    test = pictures()[:, 1::4]
    blurred = [
        np.stack(
            [
                np.asarray(Image.fromarray(each).filter(ImageFilter.GaussianBlur(radius)))
                for each in test.reshape(-1, 24, 24)
            ]
        )
        for radius in (0.5, 1.5)
    ]
    noise = np.random.default_rng(0).standard_normal(test.shape)
    noisy = [np.clip(test + std * noise, 0, 255).round().astype(np.uint8) for std in (10, 30)]
    x, y = kinds[:, ::2].flatten(0, 1), kinds[:, 1::4].flatten(0, 1)
    for little, much in (blurred, noisy):
        assert mmd(x, y) < mmd(x, features_of(little)) < mmd(x, features_of(much))


# --- configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "pixels"])
def test_features_without_files_build_from_their_configs(name):
    features = build(node_of(name), ["metrics"], "features")
    assert json.loads(json.dumps(features.identity)) == features.identity
    assert extract(features, drawn(2, 8, 8, 3)).features.shape[0] == 2
    assert features.name and features.short and features.frechet != "FID"


def test_a_missing_file_is_named_with_where_it_comes_from_and_the_setting():
    sources = {
        "inception": "without it they are fetched",
        "dinov2": "hf download timm/vit_small_patch14_dinov2.lvd142m model.safetensors",
        "torchscript": "torch.jit.trace",
        "timm": "hf download timm/resnet18.a1_in1k model.safetensors",
        "lpips": "without it they are fetched",
    }
    assert set(sources) == set(options("features")) - {"random", "pixels"}
    for name, source in sources.items():
        node = (
            node_of(name)
            | {"path": "nowhere/weights.pth"}
            | ({"name": "resnet18.a1_in1k"} if name == "timm" else {})
        )
        with pytest.raises(
            UserError,
            match=r"the weights of .*: nowhere/weights\.pth is not there.*"
            rf"features\.path=FILE; .*{source}",
        ):
            build(node, ["metrics"], "features")
        with pytest.raises(UserError, match="is a folder, and a file is needed"):
            build(node | {"path": "tests"}, ["metrics"], "features")
