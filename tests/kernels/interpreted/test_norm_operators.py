"""The three fused norms as torch's operators: opcheck, compile, autocast, checkpointing, layouts,
the gradients that nobody asks for."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kernels import group_norm as kernels
from tests.kernels.interpreted import norms

NAMES = ["group_norm_act", "add_group_norm_act", "group_norm_act_cat"]
OPTIONS = {"groups": 2, "eps": norms.EPS}


@pytest.fixture(autouse=True)
def one_tile(monkeypatch):
    norms.schedule(monkeypatch, False, 64)


def made(
    name: str, dtype: torch.dtype = torch.float32, last: bool = True
) -> dict[str, torch.Tensor]:
    """Every tensor that the operator takes."""
    random = torch.Generator().manual_seed(2)

    def image(channels):
        return norms.images((2, channels, 3, 4), last, random, dtype=dtype)

    inputs = norms.parameters(8, random)
    rows = [torch.randn(2, 8, generator=random).to(dtype) for _ in range(3)]
    if name == "group_norm_act":
        return {"x": image(8), **inputs, "row_bias": rows[0], "scale": rows[1], "shift": rows[2]}
    if name == "add_group_norm_act":
        return {"x": image(8), "residual": image(8), **inputs, "row_bias": rows[0]}
    return {
        "x": image(5),
        "skip": image(3),
        **inputs,
        "residual": image(5),
        "row_bias": rows[0][:, :5],
    }


def upstream(i: int, y: torch.Tensor) -> torch.Tensor:
    return norms.images(tuple(y.shape), True, torch.Generator().manual_seed(i), dtype=y.dtype)


@pytest.mark.parametrize(
    ("name", "last"), [*((name, True) for name in NAMES), ("add_group_norm_act", False)]
)
def test_opcheck(name, last):
    """Schema, fake tensors, registration of the gradient, dynamic shapes under AOT dispatch."""
    leaves = {key: value.requires_grad_() for key, value in made(name, last=last).items()}
    overload = getattr(torch.ops.diffusion_transfer, name).default
    names = [argument.name for argument in overload._schema.arguments]
    given = {**leaves, **OPTIONS, "act": "silu", "dropout": 0.0}
    torch.library.opcheck(overload, tuple(given.get(key) for key in names))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_the_backward(name):
    """On what the backward is really called with."""
    calls = []

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "backward" in str(function) and "diffusion_transfer" in str(function):
                calls.append((function, args))
            return function(*args, **(kwargs or {}))

    with Recorded():
        norms.run(kernels, name, made(name), upstream, **OPTIONS)
    ((function, args),) = calls
    torch.library.opcheck(
        function,
        tuple(value.detach() if isinstance(value, torch.Tensor) else value for value in args),
    )


@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_a_graph_break_it_is_what_it_is_eagerly(name):
    inputs = made(name)

    class Compiled:
        pass

    setattr(
        Compiled,
        name,
        staticmethod(torch.compile(getattr(kernels, name), fullgraph=True, backend="aot_eager")),
    )
    (eager, gradients), (compiled, through) = (
        norms.run(module, name, inputs, upstream, **OPTIONS) for module in (kernels, Compiled)
    )
    for a, b in zip(eager, compiled):
        assert torch.equal(a, b) and a.stride() == b.stride()
    for key, true in gradients.items():  # what autograd sums in another order is equal to rounding
        torch.testing.assert_close(through[key], true, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_bfloat16_under_autocast(name):
    inputs = made(name, torch.bfloat16)
    outputs, gradients = norms.run(kernels, name, inputs, upstream, **OPTIONS)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        within, through = norms.run(kernels, name, inputs, upstream, **OPTIONS)
    for a, b in zip(outputs, within):
        assert b.dtype == torch.bfloat16 and torch.equal(a, b)
    for key, value in through.items():
        assert value.dtype == inputs[key].dtype and torch.equal(value, gradients[key])


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_it_has_the_same_gradients(name):
    class Checkpointed:
        pass

    setattr(
        Checkpointed,
        name,
        staticmethod(
            lambda **given: checkpoint(getattr(kernels, name), **given, use_reentrant=False)
        ),
    )
    (_, plain), (_, again) = (
        norms.run(module, name, made(name), upstream, **OPTIONS)
        for module in (kernels, Checkpointed)
    )
    assert all(torch.equal(plain[key], again[key]) for key in plain)


def test_the_same_bits_of_sum_and_concatenation_on_a_second_run(monkeypatch):
    norms.schedule(monkeypatch, True, 4)
    for name in NAMES[1:]:
        (y, first), (again, second) = (
            norms.run(kernels, name, made(name), upstream, **OPTIONS) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(y, again)) and all(
            torch.equal(first[key], second[key]) for key in first
        )


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("frozen", [("x", "bias"), ("weight", "row_bias", "residual")])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(name, frozen):
    inputs = made(name)
    _, whole = norms.run(kernels, name, inputs, upstream, **OPTIONS)
    leaves = {
        key: value.detach().requires_grad_(key not in frozen) for key, value in inputs.items()
    }
    outputs = getattr(kernels, name)(**leaves, **OPTIONS)
    torch.autograd.backward(outputs, [upstream(i, y) for i, y in enumerate(outputs)])
    assert all(leaves[key].grad is None for key in frozen)
    assert all(torch.equal(leaves[key].grad, whole[key]) for key in leaves if key not in frozen)
