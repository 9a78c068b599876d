"""Features of networks whose weights lie on disk, against the packages that they come from. The
weights are random ones."""

from __future__ import annotations

import json
import pickle
import sys
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

import runtime.torchvision  # noqa: F401  before what imports torchvision
from metrics.features import extract
from metrics.features.distances import Lpips
from metrics.features.inception import Inception
from metrics.features.networks import Normalized, Timm, TorchScript
from runtime.config_schema import build
from runtime.errors import UserError
from tests.helpers.features import (
    drawn,
    node_of,
    scaled,
    write_alexnet,
    write_dinov2,
    write_inception,
)

import lpips as lpips_package  # isort: skip
import timm  # isort: skip
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # isort: skip
from torch_fidelity.utils import get_featuresdict_from_dataset  # isort: skip


# --- Inception ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp("inception") / "weights.pth")


class Images(torch.utils.data.Dataset):
    def __init__(self, images: np.ndarray):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, k):
        return self.images[k]


def test_inception_is_torch_fidelitys_to_the_bit(inception_file):
    theirs = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(inception_file))
    ours = Inception(str(inception_file))
    for images in (drawn(1, 24, 24, 3), drawn(1, 320, 301, 1)):
        expected = get_featuresdict_from_dataset(
            Images(np.repeat(images, 3 // images.shape[-1], -1)), theirs, 2, False, True, False
        )
        found = extract(ours, images, batch_size=2)
        assert found.features.shape == (len(images), 2048) and found.logits.shape == (
            len(images),
            1008,
        )
        assert torch.equal(found.features, expected["2048"]) and torch.equal(
            found.logits, expected["logits_unbiased"]
        )
        assert found.features.std() > 1e-2 and found.logits.std() > 1e-2
    assert ours.frechet == "FID" and len(ours.identity["sha256"]) == 64


class Trap:
    ran = False

    def __reduce__(self):
        return exec, ("import tests.metrics.features.test_networks as here; here.Trap.ran = True",)


def test_an_inception_file_that_holds_code_is_refused_before_it_runs(tmp_path):
    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap\.pth: refused"):
        Inception(str(tmp_path / "trap.pth"))
    assert not Trap.ran
    # and it is such a file
    with (
        open(tmp_path / "trap.pth", "rb") as file,
        pytest.raises(pickle.UnpicklingError),
    ):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "kind", [Inception, Lpips, lambda path: Timm("test_resnet.r160_in1k", path)]
)
def test_other_weights_and_damaged_files_are_refused(tmp_path, kind):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth holds no weights of"):
        kind(str(tmp_path / "other.pth"))
    (tmp_path / "damaged.pth").write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=r"damaged\.pth: (damaged|refused)"):
        kind(str(tmp_path / "damaged.pth"))
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth: no state dict"):
        kind(str(tmp_path / "list.pth"))


# --- timm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, file",
    [
        ("test_resnet.r160_in1k", "w.safetensors"),
        ("test_vit.r160_in1k", "w.pth"),
        ("test_convnext.r160_in1k", "w.safetensors"),
    ],
)
def test_timm_networks_give_what_they_pool(tmp_path, name, file):
    network = timm.create_model(name)  # with its classifier, as files have it
    network.load_state_dict(scaled(network))
    network.eval()
    (torch.save if file.endswith("pth") else safetensors.torch.save_file)(
        network.state_dict(), tmp_path / file
    )
    images = drawn(2, 160, 160, 3)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
    features = Timm(name, str(tmp_path / file))
    found = extract(features, images).features
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5) and found.std() > 1e-3
    assert features.short == name.split(".")[0] and "FID" not in features.frechet
    assert json.loads(json.dumps(features.identity)) == features.identity
    assert Timm(name, str(tmp_path / file), size=64).identity != features.identity


def test_positions_are_scaled_to_another_size_as_timm_scales_them(tmp_path):
    name, path = "test_vit.r160_in1k", tmp_path / "w.safetensors"
    safetensors.torch.save_file(scaled(timm.create_model(name)), path)
    theirs = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        img_size=64,
        pretrained_cfg_overlay={"file": str(path)},
    ).eval()
    images = drawn(2, 64, 64, 3)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.allclose(
        extract(Timm(name, str(path), size=64), images).features, expected, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UserError, match=r"features\.size=70.*patches of 16"):
        Timm(name, str(path), size=70)
    with pytest.raises(ValueError, match="size=0"):
        Timm(name, str(path), size=0)


@pytest.fixture(scope="module")
def dinov2_file(tmp_path_factory):
    return write_dinov2(tmp_path_factory.mktemp("dinov2") / "meta.pth")


def dinov2(file, size: int) -> Timm:
    return build(node_of("dinov2") | {"path": str(file), "size": size}, ["metrics"], "features")


def normalised(images: np.ndarray) -> Tensor:
    imagenet = [
        torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ]
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - imagenet[0]) / imagenet[1]


def test_metas_file_of_dinov2_is_timms_network_with_the_same_weights(dinov2_file):
    """At the size of its training each tensor is taken as it is, but for the token of masked
    patches, which timm's network lacks."""
    state = torch.load(dinov2_file)
    assert state.pop("mask_token").shape == (1, 384)
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    theirs = timm.create_model(node_of("dinov2")["name"], num_classes=0).eval()
    theirs.load_state_dict(state)
    images = drawn(2, 518, 518, 3)
    with torch.no_grad():
        expected = theirs(normalised(images))
    found = extract(dinov2(dinov2_file, 518), images).features
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4) and found.std(0).mean() > 1e-3


def test_dinov2_builds_from_its_config_and_metas_file(dinov2_file):
    features, images = dinov2(dinov2_file, 56), drawn(2, 56, 56, 1)
    theirs = timm.create_model(
        node_of("dinov2")["name"],
        pretrained=True,
        img_size=56,
        pretrained_cfg_overlay={"file": str(dinov2_file)},
    ).eval()
    with torch.no_grad():
        tokens = theirs.forward_features(normalised(images))
    found = extract(features, images).features
    # the class token
    assert torch.allclose(found, tokens[:, 0], rtol=1e-4, atol=1e-4) and found.std(0).mean() > 1e-3
    assert features.short == "DINOv2" and features.frechet == "Fréchet distance (DINOv2)"
    assert torch.equal(
        features.network.blocks[11].mlp.fc2.weight,
        torch.load(dinov2_file)["blocks.11.mlp.fc2.weight"],
    )


def test_the_weights_of_another_network_say_which_setting_names_them(dinov2_file):
    """As the small one's do where only the name was set."""
    name = "vit_base_patch14_dinov2.lvd142m"
    with pytest.raises(UserError, match=rf"holds no weights of {name}: the setting path of these"):
        build(node_of("dinov2") | {"path": str(dinov2_file), "name": name}, ["metrics"], "features")


def test_an_unknown_network_of_timm_is_refused_with_near_names(tmp_path):
    for name in ("resnet18.a1_in1000", "vit_small_patch14_dinov2.lvd143m"):
        with pytest.raises(
            UserError, match="did you mean .*(resnet18.a1_in1k|vit_small_patch14_dinov2.lvd142m)"
        ):
            Timm(name, str(tmp_path))


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match="pip install torch-fidelity"):
        Inception("w")


# --- TorchScript ----------------------------------------------------------------------------------


class Colours(nn.Module):
    """[B, 3, H, W] -> what a test wants of it."""

    def __init__(self, shape: str):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor):
        return {
            "map": x,
            "vector": x.mean((2, 3)),
            "tuple": (x, x),
            "whole": x.flatten(1).long(),
            "number": x.mean(),
        }[self.shape]


def torchscript(path, **given) -> TorchScript:
    """As conf/features/torchscript.yaml has it."""
    node = node_of("torchscript") | {"path": str(path)} | given
    return TorchScript(**{key: value for key, value in node.items() if key != "_target_"})


def traced(path, shape: str, size: int) -> str:
    torch.jit.trace(Colours(shape), torch.zeros(2, 3, size, size), strict=False).save(str(path))
    return str(path)


@pytest.mark.parametrize("shape", ["map", "vector"])
def test_torchscript_takes_normalised_images_and_gives_features_or_maps(tmp_path, shape):
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    features = TorchScript(traced(tmp_path / "net.pt", shape, 16), 16, mean, std, "bilinear")
    images = drawn(5, 16, 16, 3)
    expected = (images.mean((1, 2)) / 255 - mean) / std
    assert np.allclose(extract(features, images, batch_size=2).features, expected, atol=1e-5)
    assert features.short == "net" and "TorchScript" in features.name
    other = TorchScript(traced(tmp_path / "net.pt", shape, 16), 16, mean, std, "bicubic")
    assert json.loads(json.dumps(features.identity)) == features.identity != other.identity


@pytest.mark.parametrize("shape", ["tuple", "whole", "number"])
def test_what_a_torchscript_file_gives_is_checked(tmp_path, shape):
    features = torchscript(traced(tmp_path / "net.pt", shape, 16), size=16)
    with pytest.raises(
        UserError, match=r"net\.pt maps images \[2, 3, 16, 16\] to .*\[2, D\] are needed"
    ):
        extract(features, drawn(2, 16, 16, 3))


def test_torchscript_of_another_size_and_damaged_files_are_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    torch.jit.trace(network, torch.zeros(2, 3, 16, 16)).save(str(tmp_path / "fixed.pt"))
    with pytest.raises(
        UserError, match=r"fixed\.pt takes no images \[2, 3, 20, 20\].*features\.size"
    ):
        extract(torchscript(tmp_path / "fixed.pt", size=20), drawn(2, 20, 20, 3))
    torch.save(network.state_dict(), tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt: damaged, or no TorchScript"):
        torchscript(tmp_path / "state.pt")
    for wrong in ({"size": 0}, {"mean": [0.5]}, {"std": [1.0, 1.0, 0.0]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            torchscript(tmp_path / "fixed.pt", **wrong)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [20, 90])
def test_images_are_scaled_as_pillow_scales_them(resample, size):
    smooth = np.asarray(Image.fromarray(drawn(8, 8, 3)).resize((60, 48), Image.Resampling.BICUBIC))
    expected = (
        np.asarray(Image.fromarray(smooth).resize((size, size), Image.Resampling[resample.upper()]))
        / 255
    )
    found = Normalized(size, [0, 0, 0], [1, 1, 1], resample)(torch.tensor(smooth)[None])[0].permute(
        1, 2, 0
    )
    assert np.abs(found.numpy() - expected).max() < 3 / 255


# --- LPIPS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    return write_alexnet(tmp_path_factory.mktemp("alexnet") / "alexnet.pth")


@pytest.fixture(scope="module")
def lpips(alexnet_file):
    with warnings.catch_warnings():  # it builds torchvision's network in an old way
        warnings.simplefilter("ignore")
        network = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = {
        name.removeprefix("features."): tensor
        for name, tensor in torch.load(alexnet_file).items()
        if name.startswith("features.")
    }
    for part in range(1, 6):
        slice_ = getattr(network.net, f"slice{part}")
        slice_.load_state_dict({name: state[name] for name in slice_.state_dict()})
    return network


@pytest.mark.parametrize("size", [(31, 31), (64, 64), (40, 75)])
def test_squared_distances_are_lpips(alexnet_file, lpips, size):
    x, y = drawn(4, *size, 3), drawn(4, *size, 3, seed=1)
    y[2:] = np.clip(x[2:].astype(int) + 3, 0, 255)  # near ones too
    y[3] = x[3]
    a, b = (extract(Lpips(str(alexnet_file)), images).features.double() for images in (x, y))
    with torch.no_grad():
        expected = (
            lpips(*(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1 for images in (x, y)))
            .flatten()
            .double()
        )
    found = (a - b).square().sum(1)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert expected[:2].min() > 0.05 and 0 < expected[2] < expected[0] and found[3] == 0


def test_lpips_of_small_images_says_how_they_are_scaled(alexnet_file):
    images = drawn(2, 24, 24, 1)
    with pytest.raises(
        UserError, match="31 pixels a side, and these are 24 high and 24 wide.*size=64"
    ):
        extract(Lpips(str(alexnet_file)), images)
    features = Lpips(str(alexnet_file), size=64)
    found = extract(features, images).features
    assert found.shape == (2, 31872) and "at 64x64" in features.name
    assert torch.allclose(found, extract(features, np.repeat(images, 3, -1)).features, atol=1e-6)
    assert features.identity != Lpips(str(alexnet_file)).identity
    with pytest.raises(ValueError, match="size=30"):
        Lpips(str(alexnet_file), size=30)
