"""group_norm_act under the interpreter."""

import pytest
import torch

from kernels import group_norm as kernels
from kernels import reference
from kernels.group_norm import schedule as schedule_module
from kernels.launch import watched
from tests.kernels.interpreted import norms

CASES = norms.cases({**norms.MATRIX, "adaptive": [False, True], "dropout": [0.0, 0.3]})


@pytest.mark.parametrize("case", CASES)
def test_against_float64(case, monkeypatch):
    random, groups, (N, C, H, W) = norms.begun(case, monkeypatch)
    inputs = {
        "x": norms.images((N, C, H, W), case["last"], random, case["offset"], case["slice"]),
        **norms.parameters(C, random),
    }
    inputs |= adaptive(case, C, random)
    options = {
        "groups": groups,
        "eps": norms.EPS,
        "act": case["act"],
        "dropout": case["dropout"],
        "seed": torch.tensor([1 << 40 | 12345]) if case["dropout"] else None,
    }
    dy = norms.gradient_like(torch.empty_like(inputs["x"]), case["dy"], random)
    norms.check_in_float32(
        kernels, reference, "group_norm_act", inputs, lambda i, y: dy, case["offset"], **options
    )


def adaptive(case, C, random):
    terms = norms.row_bias(case, C, random)
    if case["adaptive"]:
        both = 0.5 * torch.randn(case["N"], 2 * C, generator=random)
        terms["scale"], terms["shift"] = both.chunk(2, dim=1)  # views with a step of 2 C
    return terms


def made(dropout=0.0, dtype=torch.float32, last=True, shape=(2, 24, 6, 7), **more):
    """Inputs with every adaptive term, and the options."""
    random = torch.Generator().manual_seed(1)
    N, C, _, _ = shape
    inputs = {"x": norms.images(shape, last, random, dtype=dtype), **norms.parameters(C, random)}
    inputs |= {
        key: value.to(dtype)
        for key, value in adaptive({"N": N, "row_bias": "N", "adaptive": True}, C, random).items()
    }
    options = {
        "groups": 4,
        "eps": norms.EPS,
        "dropout": dropout,
        "seed": torch.tensor([77]) if dropout else None,
    }
    return inputs, {**options, **more}, norms.images(shape, last, random, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", [False, True])
def test_in_half_precision(dtype, split, monkeypatch):
    norms.schedule(monkeypatch, split, 32)
    inputs, options, dy = made(0.25, dtype)
    norms.check_in_half(kernels, reference, "group_norm_act", inputs, lambda i, y: dy, **options)


@pytest.mark.parametrize(
    ("shape", "groups", "rows"),
    [((1, 128, 3, 3), 1, 16), ((1, 8, 5, 9), 2, 4)],
    ids=["128 in a group", "6 chunks"],
)
def test_wide_groups_and_many_chunks(shape, groups, rows, monkeypatch):
    """6 chunks are more than the lanes that combine them."""
    norms.schedule(monkeypatch, rows == 4, rows)
    inputs, options, dy = made(shape=shape, groups=groups)
    norms.check_in_float32(
        kernels, reference, "group_norm_act", inputs, lambda i, y: dy, 0.0, **options
    )


def test_a_large_image_is_split_by_the_schedule_itself(monkeypatch):
    large = schedule_module.LARGE
    norms.schedule(monkeypatch, False, 512)
    monkeypatch.setattr(schedule_module, "LARGE", large)
    monkeypatch.setattr(schedule_module, "WAVE", 1)
    inputs, options, dy = made(shape=(1, 8, 65, 65), groups=2)
    # the sum of 4225 gradients that nearly cancel: torch's own is off by more than the tolerance
    del inputs["row_bias"]
    with watched() as seen:
        norms.check_in_float32(
            kernels, reference, "group_norm_act", inputs, lambda i, y: dy, 0.0, **options
        )
    assert [launch.constants["STAGE"] for launch in seen] == [1, 2, 1, 2]


@pytest.mark.parametrize("split", [False, True])
def test_the_same_bits_on_a_second_run(split, monkeypatch):
    norms.schedule(monkeypatch, split, 16)
    inputs, options, dy = made(0.5)
    (y, first), (again, second) = (
        norms.run(kernels, "group_norm_act", inputs, lambda i, y: dy, **options) for _ in range(2)
    )
    assert torch.equal(y[0], again[0]) and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize("last", [True, False])
def test_a_slice_of_the_channels_is_read_where_it_lies(last, monkeypatch):
    norms.schedule(monkeypatch, False, 16)
    random = torch.Generator().manual_seed(0)
    x = norms.images((2, 8, 4, 4), last, random, sliced=True)
    weight, bias = norms.parameters(8, random).values()
    with watched() as seen:
        y = kernels.group_norm_act(x, weight, bias, 2, norms.EPS)
    assert seen[0].arguments["h"].pointer.data_ptr() == x.data_ptr() and not x.is_contiguous(
        memory_format=torch.channels_last
    )
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_pixels_that_are_no_single_axis(monkeypatch):
    """A crop, and an image whose channels are spread out: copied, and right."""
    norms.schedule(monkeypatch, False, 16)
    random = torch.Generator().manual_seed(0)
    weight, bias = norms.parameters(8, random).values()
    wide = norms.images((2, 16, 6, 6), True, random)
    for x in (
        wide[:, :8, 1:5, 2:5],
        wide[:, ::2],
        wide[:1, :8].expand(2, 8, 6, 6),
        wide.transpose(2, 3)[:, :8],
    ):
        true = reference.group_norm_act(x.double(), weight.double(), bias.double(), 2, norms.EPS)
        assert norms.error(kernels.group_norm_act(x, weight, bias, 2, norms.EPS), true)[0] < 2e-6


@pytest.mark.parametrize(("shape", "last"), [((2, 8, 5, 7), True), ((1, 12, 16, 16), False)])
def test_dropout_is_the_masks_of_the_reference(shape, last, monkeypatch):
    """At p = 0.1, whose threshold has its highest bit clear, and at 0.9, whose has it set."""
    norms.schedule(monkeypatch, False, 16)
    random = torch.Generator().manual_seed(0)
    x = norms.images(shape, last, random)
    weight, bias = torch.zeros(shape[1]), torch.ones(shape[1])
    for p in (0.1, 0.9):
        for seed in (torch.tensor([3]), torch.tensor([-(1 << 62) - 5])):
            y = kernels.group_norm_act(
                x, weight, bias, 4, norms.EPS, "identity", dropout=p, seed=seed
            )
            assert torch.equal(y != 0, reference.keep(x, p, seed) != 0)
            torch.testing.assert_close(
                y[y != 0], torch.full_like(y[y != 0], 2**16 / (2**16 - round(p * 2**16)))
            )
            deviation = (p * (1 - p) / y.numel()) ** 0.5
            assert abs((y == 0).double().mean() - p) < 4 * deviation


def test_the_activation_s_backward_sees_the_affine_value(monkeypatch):
    """Fed xh in place of u = a xh + e, as in some public kernels, d x would be far off; the same
    formula with u is what comes out."""
    norms.schedule(monkeypatch, False, 16)
    random = torch.Generator().manual_seed(0)
    x, dy = (norms.images((1, 8, 4, 4), True, random).double() for _ in range(2))
    given = norms.parameters(8, random)
    _, found = norms.run(
        kernels,
        "group_norm_act",
        {"x": x.float(), **given},
        lambda i, y: dy,
        groups=2,
        eps=norms.EPS,
    )
    w, b = (value.double()[:, None, None] for value in given.values())
    grouped = x.reshape(1, 2, 64)
    r = (grouped.var(2, correction=0) + norms.EPS).rsqrt().repeat_interleave(4, 1)[..., None, None]
    xh = (x - grouped.mean(2).repeat_interleave(4, 1)[..., None, None]) * r

    def dx(u):
        sg = u.sigmoid()
        du = w * dy * sg * (1 + u * (1 - sg))
        c1, c2 = (
            (value.reshape(1, 2, 64).mean(2).repeat_interleave(4, 1)[..., None, None])
            for value in (du * xh, du)
        )
        return r * (du - c2 - xh * c1)

    assert norms.error(found["x"], dx(w * xh + b))[0] < 5e-6
    assert norms.error(found["x"], dx(xh))[0] > 0.2


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "row_bias", "scale"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen, monkeypatch):
    norms.schedule(monkeypatch, False, 64)
    inputs, options, dy = made()
    _, whole = norms.run(kernels, "group_norm_act", inputs, lambda i, y: dy, **options)
    leaves = {key: value.detach().requires_grad_(key != frozen) for key, value in inputs.items()}
    kernels.group_norm_act(**leaves, **options).backward(dy)
    assert leaves[frozen].grad is None
    assert all(torch.equal(leaf.grad, whole[key]) for key, leaf in leaves.items() if key != frozen)


def test_a_row_bias_made_of_other_parameters(monkeypatch):
    """As that of a convolution with injected parameters, plus a time embedding: their gradients
    pass through it."""
    norms.schedule(monkeypatch, False, 64)
    inputs, options, dy = made()
    random = torch.Generator().manual_seed(5)
    parts = [
        torch.randn(24, generator=random),
        torch.randn(24, 2, generator=random),
        torch.randn(2, 5, generator=random),
    ]
    time = torch.randn(2, 5, generator=random)

    def gradients(module, dtype):
        bias, up, down = leaves = [part.to(dtype).requires_grad_() for part in parts]
        given = {key: value.to(dtype) for key, value in inputs.items()} | {
            "row_bias": bias + time.to(dtype) @ (up @ down).T
        }
        return torch.autograd.grad(module.group_norm_act(**given, **options), leaves, dy.to(dtype))

    for found, true in zip(gradients(kernels, torch.float32), gradients(reference, torch.float64)):
        assert norms.error(found, true)[0] <= 4e-6 * true.abs().max()
