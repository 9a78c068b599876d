"""Images of the source beside the target's: how many, in which order, flipped or not, with which
t."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from data.batches import Batches
from diffusion.timesteps import MirroredPower, Power, Range, Uniform
from runtime.config_schema import build
from runtime.errors import UserError
from runtime.seeds import generator
from tests.helpers.starts import begun, given, pictures, trained
from transfer.replay import Replay
from transfer.source_images import generated


@pytest.mark.parametrize(
    ("batch_size", "share", "expected"),
    [(8, 1.0, 8), (26, 0.25, 6), (8, 0.5, 4), (2, 0.1, 1), (4, 2.0, 8)],
)
def test_so_many_images_of_the_source_in_a_batch(tmp_path, batch_size, share, expected):
    """26 and 0.25 are the numbers of Diff-Tuning's code: 32 images, int(0.2 * 32) = 6 of them the
    source's."""
    start = replace(begun(tmp_path), batch_size=batch_size)
    replay = Replay(start, weight=0.1, images=given(pictures(10)), timesteps=Uniform, share=share)
    assert replay.weight == 0.1 and replay.batches.batch_size == expected
    assert replay.batches.batch(0).images.shape == (expected, 8, 8, 1)


def test_the_order_is_by_the_runs_seed_and_not_the_targets(tmp_path):
    start = begun(tmp_path)
    order = [
        Replay(
            replace(start, seed=seed), weight=1.0, images=given(pictures(100)), timesteps=Uniform
        )
        .batches.indices(3)
        .tolist()
        for seed in (0, 0, 1)
    ]
    assert order[0] == order[1] != order[2]
    # a source and a target of equal size do not march in step
    assert order[0] != Batches(pictures(100), 8, False, 0).indices(3).tolist()


def test_the_t_of_the_source_is_its_own(tmp_path):
    """Built for the schedule of the run."""
    replay = Replay(
        begun(tmp_path),
        weight=1.0,
        images=given(pictures(4)),
        timesteps=partial(MirroredPower, exponent=3),
    )
    t, weight = replay.timesteps.draw(5000, generator(0, "t"))
    expected = sum(t * (21 - t) ** 3 for t in range(1, 21)) / sum(
        (21 - t) ** 3 for t in range(1, 21)
    )
    assert (
        t.min() == 1
        and t.max() <= 20
        and abs(t.double().mean().item() - expected) < 0.2
        and (weight == 1).all()
    )


@pytest.mark.parametrize("flip", [True, False])
def test_the_sources_images_flip_as_the_source_saw_them(tmp_path, flip):
    """And not as the target's do: a radiograph must not, a face may."""
    source = trained([f"data.flip={str(flip).lower()}"])
    replay = Replay(
        begun(tmp_path, [f"data.flip={str(not flip).lower()}"], source),
        weight=1.0,
        images=given(pictures(64)),
        timesteps=Uniform,
    )
    assert (
        replay.batches.flip
        == flip
        == bool(torch.stack([replay.batches.batch(k).flip for k in range(8)]).any())
    )


def test_weights_that_do_not_say_whether_they_flipped(tmp_path):
    source = trained(step=None)
    start = begun(tmp_path, source=source)
    source.config.raw["data"] = {"size": 8, "channels": 1}
    assert not Replay(start, weight=1.0, images=given(pictures(4)), timesteps=Uniform).batches.flip


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weight": 0.0}, "weight=0.0"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"share": 0.0}, "share=0.0"),
        ({"share": -1.0}, "share=-1.0"),
        ({"timesteps": partial(Power, exponent=-1)}, "transfer.replay.timesteps: exponent"),
        (
            {"timesteps": partial(Range, low=0.9, high=0.1)},
            "transfer.replay.timesteps: low and high",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        Replay(
            begun(tmp_path),
            **{"weight": 1.0, "images": given(pictures(2)), "timesteps": Uniform} | settings,
        )


NODE = {
    "_target_": "transfer.replay.Replay",
    "_partial_": True,
    "weight": 0.1,
    "share": 0.25,
    "images": {
        "_target_": "transfer.source_images.generated",
        "_partial_": True,
        "n": 6,
        "steps": 2,
        "batch_size": 4,
    },
    "timesteps": {
        "_target_": "diffusion.timesteps.MirroredPower",
        "_partial_": True,
        "exponent": 1,
    },
}


def test_a_config_builds_it(tmp_path):
    """Diff-Tuning's replay, from what YAML holds to a batch."""
    start = begun(tmp_path)
    replay = build(NODE, ["transfer", "diffusion"], "transfer.replay")(start)
    np.testing.assert_array_equal(
        replay.batches.dataset.images, generated(start, n=6, steps=2, batch_size=4).images
    )
    assert (
        replay.batches.batch_size == 2
        and replay.weight == 0.1
        and isinstance(replay.timesteps, MirroredPower)
    )
    for wrong in ({"weigth": 1}, {"weight": "much"}):
        with pytest.raises(UserError, match="transfer.replay.weig"):
            build(NODE | wrong, ["transfer", "diffusion"], "transfer.replay")
