"""What is done to training images: each operation against a formula of its own, the vector that
the network is told, and what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from config.overrides import composed, options
from config.run_config import RunConfig
from data.augmentation import (
    OFF,
    TOLD,
    Augmentation,
    augment,
    draw_flips,
    mirror,
    told,
)
from data.batches import Batches
from data.dataset import Dataset
from runtime.errors import UserError

# columns of what is drawn
MIRROR, UPSIDE_DOWN, ZOOM, ANGLE, DIRECTION, STRETCH, RIGHT, DOWN = range(8)
BRIGHTNESS, CONTRAST, SATURATION = range(8, 11)


def drawn(count: int = 1, **columns: float) -> torch.Tensor:
    values = torch.zeros(count, 11)
    for name, value in columns.items():
        values[:, globals()[name]] = value
    return values


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_an_image_that_nothing_is_done_to_stays_to_the_bit(channels):
    """Beside one of its batch that is changed, too; any direction, where nothing is stretched."""
    x0, values = noise(3, channels, 9, 7), drawn(3, DIRECTION=1.2)
    values[1] = torch.tensor([1, 1, 0.3, 0.5, 1, 0.4, 0.1, 0.2, 0.1, 0.2, 0.3])
    found = augment(x0, values)
    assert torch.equal(found[0], x0[0]) and torch.equal(found[2], x0[2])
    assert (found[1] - x0[1]).abs().max() > 0.1
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("turns", [-1, 1, 2])
def test_a_quarter_turn_is_rot90(size, turns):
    """Counter-clockwise, as torch turns the first axis, which runs downwards, to the second."""
    x0 = noise(2, 3, size, size)
    found = augment(x0, drawn(2, ANGLE=turns * math.pi / 2))
    torch.testing.assert_close(found, torch.rot90(x0, turns, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -3), (-1, 2), (7, 5)])
def test_a_move_by_whole_pixels_is_a_cut_of_the_image_and_its_mirror_images(right, down):
    """np.pad's "symmetric": the edge comes twice."""
    x0, (H, W) = noise(1, 2, 6, 8), (6, 8)
    wide = np.pad(x0[0].numpy(), ((0, 0), (H, H), (W, W)), mode="symmetric")
    expected = wide[:, H - down : 2 * H - down, W - right : 2 * W - right]
    found = augment(x0, drawn(RIGHT=right / W, DOWN=down / H))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_mirrored_and_upside_down_are_exact():
    x0 = noise(4, 3, 6, 5)
    values = drawn(4)
    values[:, :2] = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    found = augment(x0, values)
    for k, expected in enumerate((x0[0], x0[1].flip(-1), x0[2].flip(-2), x0[3].flip(-1).flip(-2))):
        assert torch.equal(found[k], expected)


def test_geometry_is_table_6():
    """Scale, then ROTATE2D(-a3), ROTATE2D(a4) SCALE2D ROTATE2D(-a4), TRANSLATE2D, multiplied and
    inverted in numpy, on a plane, from which torch's cubic is off by less than a tenth of a pixel.
    Not square."""
    H, W = 24, 32
    zoom, angle, direction, stretch, right, down = 0.3, 0.4, 1.1, -0.25, 0.06, -0.04
    y, x = np.mgrid[:H, :W].astype(float)
    y, x = y - (H - 1) / 2, x - (W - 1) / 2

    def turn(a):
        return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])

    s, a = 2**zoom, 2**stretch
    move = np.array([[1, 0, right * W], [0, 1, down * H], [0, 0, 1]])
    along = turn(direction) @ np.diag([a, 1 / a, 1]) @ turn(-direction)
    forward = move @ along @ turn(-angle) @ np.diag([s, s, 1])
    from_x, from_y, _ = np.linalg.inv(forward) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)

    def plane(x, y):
        return 0.03 * x - 0.02 * y + 0.05

    x0 = torch.tensor(plane(x, y), dtype=torch.float32)[None, None]
    values = drawn(
        ZOOM=zoom, ANGLE=angle, DIRECTION=direction, STRETCH=stretch, RIGHT=right, DOWN=down
    )
    found = augment(x0, values).numpy().reshape(-1)
    inside = (abs(from_x) < W / 2 - 3) & (abs(from_y) < H / 2 - 3)  # away from the mirror images
    assert inside.mean() > 0.4
    off = abs(found - plane(from_x, from_y))[inside]
    assert off.max() < 0.1 * 0.03 and abs(found[inside]).max() < 1


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_colours_by_hand(channels):
    x0 = noise(1, channels, 4, 4)
    x = x0.double().numpy()
    found = augment(x0, drawn(BRIGHTNESS=0.15, CONTRAST=-0.5, SATURATION=0.4))
    x = (x + 0.15) * 2**-0.5
    mean = x.mean(1, keepdims=True)
    x = np.clip(mean + 2**0.4 * (x - mean), -1, 1)
    np.testing.assert_allclose(found.numpy(), x, atol=1e-6)
    if channels == 1:
        assert torch.equal(augment(x0, drawn(SATURATION=3)), x0)


def test_values_stay_those_of_an_image():
    """A cubic overshoots, and a bright image gets brighter."""
    x0 = noise(8, 3, 8, 8).sign()
    values = Augmentation(0.9, zoom=0.3, rotation=180, brightness=0.5, contrast=1).draw(8, 0, 0)
    assert augment(x0, values).abs().max() == 1


# What the network is told


def test_what_the_network_is_told_is_table_6():
    a0, a1, a2, a3, a4, a5, a6, a7 = 1, 0, 0.7, -2.1, 0.9, -1.3, 0.4, 1.8
    values = drawn(
        MIRROR=a0, UPSIDE_DOWN=a1, ZOOM=0.2 * a2, ANGLE=a3, DIRECTION=a4, STRETCH=0.2 * a5,
        RIGHT=a6 / 8, DOWN=a7 / 8, BRIGHTNESS=0.2 * 0.3, CONTRAST=0.5 * 0.6, SATURATION=1.1,
    )  # fmt: skip
    turned = [math.cos(a3) - 1, math.sin(a3), a5 * math.cos(a4), a5 * math.sin(a4)]
    expected = [a0, a1, a2, *turned, a6, a7, 0.3, 0.6, 1.1]
    assert len(expected) == TOLD
    np.testing.assert_allclose(told(values)[0].numpy(), expected, rtol=1e-5)
    assert torch.equal(told(drawn(2, DIRECTION=1.0)), torch.zeros(2, TOLD))


# What is drawn


ALL = {
    "zoom": 0.2,
    "rotation": 90.0,
    "stretch": 0.1,
    "translation": 0.05,
    "brightness": 0.3,
    "contrast": 0.4,
    "saturation": 0.5,
}


def test_sizes_and_shares():
    n = 20_000
    values = Augmentation(0.3, True, True, **ALL).draw(n, 5, 0)
    done = values != 0
    shares = {MIRROR: 0.5, UPSIDE_DOWN: 0.15} | dict.fromkeys(
        (ZOOM, ANGLE, STRETCH, RIGHT, DOWN, BRIGHTNESS, CONTRAST, SATURATION), 0.3
    )
    for column, share in shares.items():
        assert abs(done[:, column].float().mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert torch.equal(done[:, RIGHT], done[:, DOWN])
    sizes = {ZOOM: "zoom", STRETCH: "stretch", RIGHT: "translation", DOWN: "translation",
             BRIGHTNESS: "brightness", CONTRAST: "contrast", SATURATION: "saturation"}  # fmt: skip
    for column, name in sizes.items():
        found = values[done[:, column], column]
        assert (
            found.std().item() == pytest.approx(ALL[name], rel=0.05)
            and abs(found.mean()) < 0.05 * ALL[name]
        )
    angle = values[done[:, ANGLE], ANGLE]
    assert angle.abs().max() <= math.pi / 2 and angle.std().item() == pytest.approx(
        math.pi / 2 / 3**0.5, rel=0.03
    )
    # one does not come with another
    together = (done[:, ZOOM] & done[:, ANGLE]).float().mean()
    assert abs(together - 0.09) < 0.01


def test_what_is_off_is_not_drawn():
    values = Augmentation(0.9, rotation=10).draw(100, 0, 0)
    others = [k for k in range(11) if k not in (ANGLE, DIRECTION)]
    assert not values[:, others].any() and values[:, ANGLE].any()
    assert not OFF.on and OFF.described() == "none"


def test_a_draw_is_a_function_of_the_seed_and_its_number():
    every = Augmentation(0.9, True, True, **ALL)
    assert torch.equal(every.draw(8, 3, 7), every.draw(8, 3, 7))
    for seed, k in ((3, 8), (4, 7)):
        assert not torch.equal(every.draw(8, seed, k)[:, ZOOM], every.draw(8, 3, 7)[:, ZOOM])


def pictures(n: int = 6) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return Dataset(images, np.zeros(n, np.int64), {"train": np.arange(n)}, [])


def test_a_batch_as_it_is_trained_on():
    every = Augmentation(0.9, True, True, **ALL)
    batches = Batches(pictures(), 16, True, 5, every)
    for k, batch in enumerate(batches.prefetched(0, 3)):
        assert torch.equal(batch.drawn, every.draw(16, 5, k))
        x0, condition = batches.as_trained_on(batch)
        plain = batch.images.permute(0, 3, 1, 2) / 127.5 - 1
        flipped = mirror(plain, draw_flips(16, 5, k))
        torch.testing.assert_close(x0, augment(flipped, batch.drawn))
        assert condition.keys() == {"augmentation"}
        assert torch.equal(condition["augmentation"], told(batch.drawn))
    off = Batches(pictures(), 16, False, 5)
    x0, condition = off.as_trained_on(off.batch(0))
    assert condition == {} and torch.equal(x0, off.batch(0).images.permute(0, 3, 1, 2) / 127.5 - 1)


# Settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["augmentation.rotation=200"], "augmentation: rotation=200 must be 0 to 180 degrees."),
        (["augmentation.zoom=-1"], "augmentation: zoom=-1 must not be negative."),
        (
            ["augmentation.probability=0"],
            "probability=0 must be above 0 (for none augmentation=none)",
        ),
        (["augmentation.probability=1"], "would never see an image as samples are to be"),
        (["augmentation.mirror=1"], "augmentation.mirror=1 is not true or false"),
    ],
)
def test_settings_that_cannot_be(settings, says):
    with pytest.raises(UserError) as raised:
        RunConfig(composed("train", settings)).augmentation  # noqa: B018
    assert says in str(raised.value)


def test_the_choices():
    """edm has the numbers of Karras et al. 2022, table 6; radiograph exchanges no sides."""
    found = {
        name: RunConfig(composed("train", [f"augmentation={name}"])).augmentation
        for name in options("augmentation")
    }
    assert found["none"] == OFF and all(found[name].on for name in found if name != "none")
    assert found["edm"] == Augmentation(0.12, True, True, 0.2, 180, 0.2, 0.125)
    radiograph = found["radiograph"]
    assert not radiograph.mirror and not radiograph.upside_down and radiograph.rotation <= 15
    assert (
        radiograph.described() == "zoom 0.1, rotation 10, translation 0.05, brightness 0.1, "
        "contrast 0.2, each in 50% of the images"
    )
    assert Augmentation(mirror=True).described() == "mirror"
