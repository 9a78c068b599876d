"""Source weights in another network: where the result is exact, it is held to the source's own
output."""

from itertools import combinations

import pytest
import torch

from config.sections import SourceSettings
from models.adm import ADMUNet
from models.unet import UNet
from runtime.errors import UserError
from transfer.adapt_weights import fit, mean_and_variance, summary
from transfer.resize_weights import Ends, resize_input_channels


def unet(kind=UNet, **more) -> UNet:
    torch.manual_seed(more.pop("seed", 0))
    network = kind(8, [1, 2], 1, [1], groups=4, **more)
    for p in network.parameters():  # no layer near zero, so that nothing hides
        torch.nn.init.normal_(p, std=0.2)
    return network.eval()


def adm(**more) -> UNet:
    return unet(ADMUNet, heads=2, resample_blocks=True, **more)


def fitted(source: UNet, target: UNet, include=("*",)) -> dict[str, str]:
    state, rows = fit(source.state_dict(), target.state_dict(), SourceSettings(include=include))
    target.load_state_dict(state)
    return {row.name: row.status for row in rows}


X, T = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])


def test_the_same_network_is_copied_whole():
    source, target = unet(), unet(seed=1)
    assert set(fitted(source, target).values()) == {"loaded"}
    x = X.expand(-1, 3, -1, -1)
    assert torch.equal(source(x, T, {}), target(x, T, {}))


def test_rgb_to_gray_is_exact_for_an_image_of_equal_channels():
    """The gray network's output is the mean over the channels of the source's on the same image as
    RGB."""
    source, target = unet(), unet(in_channels=1, out_channels=1, seed=1)
    status = fitted(source, target)
    assert {n for n, s in status.items() if s == "resized"} == {
        "conv_in.weight",
        "conv_out.weight",
        "conv_out.bias",
    }
    expected = source(X.expand(-1, 3, -1, -1), T, {}).mean(1, keepdim=True)
    torch.testing.assert_close(target(X, T, {}), expected, rtol=1e-5, atol=1e-5)


def test_gray_to_rgb_is_exact_for_an_image_of_equal_channels():
    source, target = unet(in_channels=1, out_channels=1), unet(seed=1)
    fitted(source, target)
    expected = source(X, T, {}).expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        target(X.expand(-1, 3, -1, -1), T, {}), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_rgb_to_bands_is_exact_for_an_image_of_equal_channels(channels):
    """Each channel's output is the mean over the source's on the same image as RGB; and back."""
    source, target = unet(), unet(in_channels=channels, out_channels=channels, seed=1)
    status = fitted(source, target)
    assert status["conv_in.weight"] == status["conv_out.bias"] == "resized"
    gray = source(X.expand(-1, 3, -1, -1), T, {}).mean(1, keepdim=True)
    ours = target(X.expand(-1, channels, -1, -1), T, {})
    torch.testing.assert_close(ours, gray.expand(-1, channels, -1, -1), rtol=1e-5, atol=1e-5)
    back = unet(seed=2)
    fitted(target, back)
    torch.testing.assert_close(
        back(X.expand(-1, 3, -1, -1), T, {}), gray.expand(-1, 3, -1, -1), rtol=1e-5, atol=1e-5
    )


def test_another_resolution_changes_no_tensor():
    """Attention belongs to a level, not to a pixel count."""
    source, target = unet(), unet(seed=1)
    fitted(source, target)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(source(x, T[:1], {}), target(x, T[:1], {}))


def test_class_tables():
    source, target = unet(classes=3), unet(classes=5, seed=1)
    assert fitted(source, target)["class_embedding.weight"] == "resized"
    table, mean = source.class_embedding.weight, source.class_embedding.weight[:3].mean(0)
    torch.testing.assert_close(target.class_embedding.weight[:5], mean.expand(5, -1))
    assert torch.equal(target.class_embedding.weight[5], table[3])
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(source(x, T, {}), target(x, T, {}))  # the null class


def test_a_class_table_that_the_source_lacks_is_new_and_one_that_the_target_lacks_is_folded():
    assert fitted(unet(), unet(classes=2, seed=1))["class_embedding.weight"] == "new"
    assert fitted(unet(classes=2), unet(seed=1))["class_embedding.weight"] == "folded"


@pytest.mark.parametrize("kind", [unet, adm])
@pytest.mark.parametrize(
    "include",
    [["*"], ["time_mlp.2.bias", "down.*", "mid.*", "up.*", "conv*", "norm_out.*", "time_mlp.*"]],
)
def test_a_network_without_classes_starts_as_the_null_class_of_its_source(kind, include):
    """In float64, on images and at times of several kinds; and not as the source without its table,
    nor as one of its classes."""
    source, target = kind(classes=3).double(), kind(seed=1).double()
    fitted(source, target, include)
    x = torch.randn(4, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0, 3, 500, 999])
    torch.testing.assert_close(
        target(x, t, {}), source(x, t, {"label": torch.full((4,), 3)}), rtol=0, atol=1e-12
    )
    assert (target(x, t, {}) - source(x, t, {"label": torch.full((4,), 0)})).abs().max() > 1e-3


def test_the_null_row_goes_nowhere_where_what_it_is_added_to_is_not_copied():
    source, target, untouched = unet(classes=3), unet(seed=1), unet(seed=1)
    assert fitted(source, target, ["down.*"])["class_embedding.weight"] == "dropped"
    assert torch.equal(target.time_mlp[2].bias, untouched.time_mlp[2].bias)
    _, rows = fit(source.state_dict(), target.state_dict(), SourceSettings(copy=mean_and_variance))
    assert {row.name: row.status for row in rows}["class_embedding.weight"] == "dropped"
    before = source.time_mlp[2].bias.clone()
    fit(source.state_dict(), target.state_dict())
    assert torch.equal(source.time_mlp[2].bias, before)  # the source itself stays as it is


def test_of_gray_from_color_noise_gets_another_response():
    """The variance of what conv_in says of noise, by the sum over its weights: exact for gray
    images, up to three times as much here."""
    equal = torch.ones(4, 3, 3, 3, dtype=torch.float64)
    for weight in (
        equal,
        torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    ):
        gray = resize_input_channels(weight, torch.empty(4, 1, 3, 3), Ends(3, 1)).value
        ratio = gray.square().sum((1, 2, 3)) / weight.square().sum((1, 2, 3))
        assert (ratio <= 3 + 1e-12).all()
        assert torch.allclose(ratio, torch.tensor(3.0, dtype=torch.float64)) == torch.equal(
            weight, equal
        )


CHANNELS = [(1, 3), (3, 6), (2, 4), (3, 4), (4, 3), (2, 3), (3, 13), (13, 1), (13, 4), (3, 1)]


@pytest.mark.parametrize(("n_source", "n_target"), CHANNELS)
def test_equal_channels_give_the_sources_response(n_source, n_target):
    weight = torch.randn(
        4, n_source, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    value, _, alike = resize_input_channels(
        weight, torch.empty(4, n_target, 3, 3), Ends(n_source, n_target)
    )
    assert torch.allclose(value.sum(1), weight.sum(1)) and value.shape[1] == n_target
    assert torch.allclose(value[:, 0], weight.mean(1) * n_source / n_target)
    columns = [column.flatten().tolist() for column in value.unbind(1)]
    assert alike == any(a == b for a, b in combinations(columns, 2))


def test_which_tensors_begin_alike():
    def alike(source: UNet, target: UNet) -> set[str]:
        return {row.name for row in fit(source.state_dict(), target.state_dict())[1] if row.alike}

    table, ends = {"class_embedding.weight"}, {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
    gray = {"in_channels": 1, "out_channels": 1}
    assert alike(unet(), unet(classes=2)) == alike(unet(classes=3), unet(classes=2)) == table
    assert (
        alike(unet(classes=2), unet(classes=2))
        == alike(unet(), unet(**gray))
        == alike(unet(classes=2), unet())
        == set()
    )
    assert alike(unet(**gray), unet()) == ends and alike(unet(), unet(out_channels=6)) == ends - {
        "conv_in.weight"
    }
    # the variance's half
    assert alike(unet(), unet(in_channels=1, out_channels=2)) == ends - {"conv_in.weight"}
    assert alike(unet(out_channels=6), unet()) == set()


def test_every_tensor_has_one_row():
    source, target = unet(classes=2), UNet(8, [1, 2, 2], 2, [1], groups=4, in_channels=1)
    _, rows = fit(source.state_dict(), target.state_dict())
    assert sorted(row.name for row in rows) == sorted(
        source.state_dict().keys() | target.state_dict().keys()
    )
    text = summary(rows)
    assert (
        "folded class_embedding.weight: the target has no classes: its null row is added to "
        "time_mlp.2.bias"
    ) in text
    assert "resized conv_in.weight" in text and "new up.*" in text


def test_include_copies_some_layers_and_leaves_the_rest_as_they_were():
    source, target, untouched = unet(), unet(seed=1), unet(seed=1)
    status = fitted(source, target, ["down.*", "conv_in.*"])
    for name, p in target.state_dict().items():
        copied = name.startswith(("down.", "conv_in."))
        assert torch.equal(p, (source if copied else untouched).state_dict()[name])
        assert status[name] == ("loaded" if copied else "new")


def test_mistakes():
    with pytest.raises(UserError, match="source.include: dwn"):
        fit(unet().state_dict(), unet().state_dict(), SourceSettings(include=["dwn.*"]))
    with pytest.raises(UserError, match="no weight of the source fits"):
        fit({"conv_in.weight": torch.zeros(1, 3, 3, 3)}, unet().state_dict())


def test_a_bias_that_fits_by_chance_makes_no_source():
    """The output's bias has one entry a channel in any network."""
    torch.manual_seed(0)
    other = UNet(16, [1, 2], 1, [1], groups=4)
    with pytest.raises(UserError, match="no weight of the source fits"):
        fit(other.state_dict(), unet().state_dict())
    with pytest.raises(UserError, match="no weight of the source fits"):
        fit(other.state_dict(), unet(in_channels=1, out_channels=1).state_dict())
    # which is what was asked for
    fit(other.state_dict(), unet().state_dict(), SourceSettings(include=["conv_out.bias"]))


def test_a_variance_that_is_learned_anew_starts_at_zero_beside_the_sources_prediction():
    source, target = unet(), unet(out_channels=6, seed=1)
    status = fitted(source, target)
    assert {n for n, s in status.items() if s == "resized"} == {"conv_out.weight", "conv_out.bias"}
    x = X.expand(-1, 3, -1, -1)
    prediction, variance = target(x, T, {}).chunk(2, dim=1)
    torch.testing.assert_close(prediction, source(x, T, {}))
    assert not variance.any()


def test_a_variance_that_is_no_longer_learned_is_left_out():
    source, target = unet(out_channels=6), unet(seed=1)
    fitted(source, target)
    x = X.expand(-1, 3, -1, -1)
    torch.testing.assert_close(target(x, T, {}), source(x, T, {})[:, :3])


def test_rgb_to_gray_with_a_learned_variance():
    """Both halves are averaged, each by itself."""
    source, target = unet(out_channels=6), unet(in_channels=1, out_channels=2, seed=1)
    fitted(source, target)
    expected = source(X.expand(-1, 3, -1, -1), T, {}).unflatten(1, (2, 3)).mean(2)
    torch.testing.assert_close(target(X, T, {}), expected, rtol=1e-5, atol=1e-5)


def test_gray_without_to_rgb_with_a_learned_variance():
    source, target = unet(in_channels=1, out_channels=1), unet(out_channels=6, seed=1)
    state, rows = fit(source.state_dict(), target.state_dict())
    target.load_state_dict(state)
    out = target(X.expand(-1, 3, -1, -1), T, {})
    torch.testing.assert_close(
        out[:, :3], source(X, T, {}).expand(-1, 3, -1, -1), rtol=1e-5, atol=1e-5
    )
    assert not out[:, 3:].any()
    assert "repeated 1 -> 3" in summary(rows) and "variance's half starts at zero" in summary(rows)


def test_a_new_class_table_starts_at_zero_so_that_the_network_starts_as_the_source():
    source, target = unet(), unet(classes=2, seed=1)
    fitted(source, target)
    x = torch.randn(2, 3, 8, 8)
    for label in (torch.tensor([0, 1]), torch.tensor([2, 2])):
        assert torch.equal(target(x, T, {"label": label}), source(x, T, {}))


def test_kept_classes_stand_after_the_new_ones():
    """Two new classes, then the source's three, then the null class; each kept row gives the
    source's output of its class."""
    source, target = unet(classes=3), unet(classes=5, seed=1)
    state, rows = fit(source.state_dict(), target.state_dict(), kept=3)
    target.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8)
    for label in range(3):
        ours, theirs = (
            network(x, T, {"label": torch.tensor([k, k])})
            for network, k in ((target, label + 2), (source, label))
        )
        assert torch.equal(ours, theirs)
    assert torch.equal(target(x, T, {}), source(x, T, {}))
    torch.testing.assert_close(
        state["class_embedding.weight"][:2], source.class_embedding.weight[:3].mean(0).expand(2, -1)
    )
    assert "3 of them and null kept" in summary(rows)


ORDER = ["conv_in", "down.0", "down.1", "mid", "up.1", "up.0", "conv_out"]


@pytest.mark.parametrize("depth", range(7))
def test_depth_copies_the_first_parts_as_they_are_run(depth):
    """With two levels: the input and the time, down, down, middle, up, up, the output."""
    source, target, untouched = unet(), unet(seed=1), unet(seed=1).state_dict()
    state, rows = fit(source.state_dict(), target.state_dict(), SourceSettings(depth=depth))
    first = {"time_mlp": 0, "norm_out": 6} | {part: k for k, part in enumerate(ORDER)}
    for name, tensor in state.items():
        part = next(p for p in first if name.startswith(p + "."))
        assert torch.equal(
            tensor, (source.state_dict() if first[part] <= depth else untouched)[name]
        ), name
    assert {row.how for row in rows if row.status == "new"} == (
        {"beyond source.depth"} if depth < 6 else set()
    )


def test_a_depth_that_no_network_has():
    with pytest.raises(UserError, match=r"source.depth=7: this network has the parts 0 .* to 6"):
        fit(unet().state_dict(), unet().state_dict(), SourceSettings(depth=7))


def test_random_weights_with_the_mean_and_variance_of_the_sources():
    """Raghu et al. 2019: every tensor keeps its own two moments and no value."""
    source = {
        name: 3 + 2 * torch.randn(tensor.shape) if tensor.numel() > 1000 else tensor
        for name, tensor in unet().state_dict().items()
    }
    state, rows = fit(
        source, unet(seed=1).state_dict(), SourceSettings(copy=mean_and_variance), seed=5
    )
    assert {row.status for row in rows} == {"drawn"}
    for name, tensor in source.items():
        assert not (state[name] == tensor).any() or tensor.numel() == 1
        if tensor.numel() > 1000:
            assert state[name].mean().item() == pytest.approx(
                tensor.mean().item(), abs=4 * 2 / tensor.numel() ** 0.5
            )
            assert state[name].std().item() == pytest.approx(
                tensor.std().item(), rel=4 / (2 * tensor.numel()) ** 0.5
            )
    again, _ = fit(
        source, unet(seed=1).state_dict(), SourceSettings(copy=mean_and_variance), seed=5
    )
    other, _ = fit(
        source, unet(seed=1).state_dict(), SourceSettings(copy=mean_and_variance), seed=6
    )
    assert all(torch.equal(again[n], state[n]) for n in state) and not any(
        torch.equal(other[n], state[n]) for n in state
    )
