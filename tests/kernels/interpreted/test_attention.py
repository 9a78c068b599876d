"""The attention kernels, interpreted (TRITON_INTERPRET=1), against attention written out in
float64.

bf16 is wider here than on a GPU: the interpreter cuts fp32 to bf16 where a GPU rounds, in P and dS,
in the output that delta is made of, and in what is stored. Errors of out reach 6e-3 and those of
the gradients, which see two cuts more, 1.1e-2; torch's are 3e-3 and 5e-3.
"""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels import attention as triton
from kernels import configs, dispatch, reference
from kernels.launch import watched
from tests.helpers.tuned_files import read_again

# of out, of gradients
TOLERANCE = {
    torch.float32: (2e-6, 2e-6),
    torch.bfloat16: (8e-3, 1.5e-2),
    torch.float16: (1e-3, 1.5e-3),
}
F32, BF16, F16 = TOLERANCE
if torch.get_default_device().type == "cuda":  # twice torch's own error
    TOLERANCE[BF16] = (6e-3, 1e-2)
CASES = [  # B, T, heads, d, type: every pair of a value and a type, of a T and a d that is cheap
    (1, 1, 1, 16, F32),
    (2, 1, 4, 48, BF16),
    (1, 1, 2, 256, F16),
    (2, 16, 4, 64, F32),
    (1, 16, 1, 128, BF16),
    (2, 16, 2, 16, F16),
    (1, 64, 2, 32, F32),
    (2, 64, 1, 128, BF16),
    (1, 64, 4, 48, F16),
    (1, 200, 1, 48, F32),
    (1, 256, 1, 16, F32),
    (1, 16, 2, 128, F32),
    (2, 20, 1, 256, F32),
    (2, 33, 3, 24, F32),
    (1, 70, 1, 160, BF16),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            (1, 200, 2, 64, BF16),
            (1, 200, 1, 128, F16),
            (1, 256, 4, 32, BF16),
            (2, 256, 1, 64, F16),
            (1, 1024, 1, 16, F16),
            (1, 256, 1, 256, BF16),
        ]
    ),
]


def inputs(
    B: int, T: int, heads: int, d: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """qkv and the gradient of the output."""
    random = torch.Generator().manual_seed(seed)
    qkv = torch.randn(B, T, 3 * heads * d, generator=random)
    return qkv.to(dtype), torch.randn(B, T, heads * d, generator=random).to(dtype)


def written_out(qkv: Tensor, heads: int) -> Tensor:
    """In float64. [B, T, 3 C] -> [B, T, C]."""
    B, T, width = qkv.shape
    # [B, heads, T, d]
    q, k, v = qkv.double().reshape(B, T, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, T, width // 3)


def with_gradient(attention, qkv: Tensor, heads: int, dout: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().requires_grad_()
    out = attention(qkv, heads)
    out.backward(dout.to(out.dtype))
    return out.detach(), qkv.grad


def errors(
    got: tuple[Tensor, Tensor], true: tuple[Tensor, Tensor], floor: Tensor | float = 0.0
) -> list[float]:
    """Of out, dq, dk and dv: the largest error over the largest value. floor: what dq and dk count
    as at least."""
    (out, dqkv), (true_out, true_dqkv) = got, true
    assert out.isfinite().all() and dqkv.isfinite().all()
    pairs = [
        (out, true_out, 0.0),
        *zip(dqkv.chunk(3, -1), true_dqkv.chunk(3, -1), (floor, floor, 0.0)),
    ]
    return [
        (a.double() - b).abs().max().item() / max(b.abs().max().item(), float(least))
        for a, b, least in pairs
    ]


@pytest.mark.parametrize("B, T, heads, d, dtype", CASES)
def test_output_and_gradients(B, T, heads, d, dtype):
    qkv, dout = inputs(B, T, heads, d, dtype)
    true = with_gradient(written_out, qkv.double(), heads, dout)
    floor = dout.abs().max() if T == 1 else 0.0  # one token attends to itself: dq = dk = 0
    found = errors(with_gradient(triton.attention, qkv, heads, dout), true, floor)
    of_out, of_gradients = TOLERANCE[dtype]
    assert found[0] <= of_out and max(found[1:]) <= of_gradients, found
    if dtype != BF16:
        torchs = errors(with_gradient(reference.attention, qkv, heads, dout), true, floor)
        assert all(a <= max(2 * b, of_gradients) for a, b in zip(found, torchs)), (found, torchs)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("mean", [0, 30, -30])
def test_large_scores(mean, dtype):
    """Scores of some thousands. dq and dk are then differences that cancel: their error is measured
    by what cancels. Far below 0, the keys past T, whose score is 0, must not count, and their huge
    exponential must not meet a 0."""
    qkv, dout = inputs(1, 20, 2, 32, dtype)
    q, k, v = qkv.chunk(3, -1)
    qkv = torch.cat([30 + q / 10, mean + k / 10, v] if mean else [30 * q, 30 * k, v], -1)
    true = with_gradient(written_out, qkv.double(), 2, dout)
    floor = (dout.double() @ v.double().mT).abs().max() * qkv.abs().max() / 32**0.5
    found = errors(with_gradient(triton.attention, qkv, 2, dout), true, floor)
    assert max(found) <= (2e-3 if dtype == F32 else TOLERANCE[dtype][1]), found


def test_the_same_bits_again():
    qkv, dout = inputs(2, 40, 2, 32, F32)
    first, second = (with_gradient(triton.attention, qkv, 2, dout) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_strided_projection_is_read_in_place(dtype):
    larger = torch.randn(3, 25, 3 * 64 + 40).to(dtype)
    view = larger[1:, 2:22, 16:208]
    dout = torch.randn(2, 20, 64).to(dtype)
    with watched() as seen:
        out, dqkv = with_gradient(triton.attention, view, 2, dout)
    assert [launch.arguments["qkv"].data_ptr() for launch in seen] == [view.data_ptr()] * 3
    copied = with_gradient(triton.attention, view.contiguous(), 2, dout)
    assert torch.equal(out, copied[0]) and torch.equal(dqkv, copied[1])


def test_any_strides_of_the_gradient():
    qkv, dout = inputs(2, 16, 2, 32, F32)
    wide = torch.zeros(2, 19, 100)
    wide[:, 3:, 4:68] = dout
    _, expected = with_gradient(triton.attention, qkv, 2, dout)
    for strided, in_place in ((wide[:, 3:, 4:68], True), (dout.mT.contiguous().mT, False)):
        assert not strided.is_contiguous()
        with watched() as seen:
            _, dqkv = with_gradient(triton.attention, qkv, 2, strided)
        assert torch.equal(dqkv, expected)
        assert (seen[1].arguments["dout"].data_ptr() == strided.data_ptr()) == in_place
    for expanded in (dout[:1, :1].expand(2, 16, 64), dout[:, :, :1].expand(2, 16, 64)):
        _, dqkv = with_gradient(triton.attention, qkv, 2, expanded)
        assert torch.equal(dqkv, with_gradient(triton.attention, qkv, 2, expanded.contiguous())[1])


def test_images_may_lie_further_apart_than_32_bits_count():
    apart = 2**30 + 16
    # virtual: only what is written below is ever held
    memory = torch.empty(2 * apart + 16 * 48, dtype=F16)
    far = memory.as_strided((3, 16, 48), (apart, 48, 1))
    near, dout = inputs(3, 16, 1, 16, F16)
    far.copy_(near)
    out, lse = torch.ops.diffusion_transfer.attention(far, 1)
    expected, _ = torch.ops.diffusion_transfer.attention(near, 1)
    assert torch.equal(out, expected)
    gradients = [
        torch.ops.diffusion_transfer.attention_backward(dout, qkv, out, lse) for qkv in (far, near)
    ]
    assert torch.equal(*gradients)


def test_operators_are_well_formed():
    qkv, dout = inputs(1, 16, 2, 16, F32)
    ops = torch.ops.diffusion_transfer
    torch.library.opcheck(ops.attention.default, (qkv.requires_grad_(), 2))
    qkv = qkv.detach()
    torch.library.opcheck(
        ops.attention.default,
        (torch.randn(2, 20, 200)[..., 8:104], 2),
        test_utils=("test_schema", "test_faketensor"),
    )
    torch.library.opcheck(ops.attention_backward.default, (dout, qkv, *ops.attention(qkv, 2)))


def test_compiled_in_one_graph(monkeypatch):
    monkeypatch.setattr(dispatch, "_chosen", "triton")

    def twice(qkv, heads):
        # asked by auto on a GPU, so it must not break the graph
        assert not triton.faster(qkv, heads)
        return dispatch.attention(qkv * 2, heads) * 2

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for T in (20, 32, 48):  # from the second on T is a symbol
        qkv, dout = inputs(2, T, 2, 16, F32)
        for a, b in zip(with_gradient(compiled, qkv, 2, dout), with_gradient(twice, qkv, 2, dout)):
            assert torch.equal(a, b)


def test_autocast_gives_its_type():
    qkv, dout = inputs(2, 20, 2, 16, F32)
    with torch.autocast(torch.get_default_device().type, BF16):
        out, gradient = with_gradient(triton.attention, qkv, 2, dout)
        assert out.dtype == reference.attention(qkv, 2).dtype == BF16 and gradient.dtype == F32
        compiled = torch.compile(triton.attention, fullgraph=True, backend="aot_eager")(qkv, 2)
    assert torch.equal(out, triton.attention(qkv.to(BF16), 2)) and torch.equal(out, compiled)
    true = with_gradient(written_out, qkv.double(), 2, dout)
    assert max(errors((out, gradient), true)) <= TOLERANCE[BF16][1]


def test_checkpointed():
    qkv, dout = inputs(2, 20, 2, 16, F32)
    with watched() as seen:
        again = with_gradient(
            lambda qkv, heads: checkpoint(triton.attention, qkv, heads, use_reentrant=False),
            qkv,
            2,
            dout,
        )
    assert [launch.kernel.__name__ for launch in seen] == [
        f"attention_{name}_kernel" for name in ("forward", "forward", "backward_q", "backward_kv")
    ]
    for a, b in zip(again, with_gradient(triton.attention, qkv, 2, dout)):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "qkv, heads",
    [
        (torch.randn(1, 4, 3 * 32, dtype=torch.float64), 2),
        (torch.randn(1, 4, 3 * 8), 1),
        (torch.randn(1, 4, 3 * 272), 1),
        (torch.randn(1, 3 * 32, 4).mT, 1),
        (torch.randn(2, 4, 6 * 32)[..., ::2], 1),
    ],
    ids=["float64", "narrow head", "wide head", "tokens last", "every second channel"],
)
def test_what_it_cannot_do_is_torchs(monkeypatch, qkv, heads):
    monkeypatch.setattr(dispatch, "_chosen", "triton")
    assert not triton.supports(qkv, heads)
    with watched() as seen:
        out = dispatch.attention(qkv, heads) if qkv.is_contiguous() else None
    assert not seen and (out is None or torch.equal(out, reference.attention(qkv, heads)))


def test_what_it_can_do(monkeypatch):
    monkeypatch.setattr(dispatch, "_chosen", "triton")
    for d in (16, 40, 256):
        qkv, _ = inputs(1, 4, 1, d, F32)
        assert triton.supports(qkv, 1)
        with watched() as seen:
            dispatch.attention(qkv, 1)
        assert len(seen) == 1
    too_large = torch.empty_strided((2, 4096, 96), (2**31, 2**20, 1), device="meta")
    assert triton.supports(too_large[:, :1024], 1) and not triton.supports(too_large, 1)


def test_faster_is_what_was_measured_at_the_nearest_shape(monkeypatch, tmp_path):
    qkv, _ = inputs(1, 300, 2, 40, BF16)
    assert not triton.faster(qkv, 2)  # nothing was measured
    tile = {"queries": 64, "keys": 64, "num_warps": 4, "num_stages": 2}
    shapes = [
        ({"head": 64, "tokens": 256, "itemsize": 2}, True),
        ({"head": 64, "tokens": 1024, "itemsize": 2}, False),
    ]
    entries = [{"shape": shape, "config": tile | {"faster": faster}} for shape, faster in shapes]
    (tmp_path / "attention_forward.json").write_text(json.dumps({"entries": entries}))
    monkeypatch.setattr(configs, "TUNED", tmp_path)
    read_again()
    try:
        assert triton.faster(qkv, 2) and not triton.faster(inputs(1, 900, 2, 40, BF16)[0], 2)
    finally:
        read_again()


@pytest.mark.parametrize(
    "kernel", ["attention_forward", "attention_backward_q", "attention_backward_kv"]
)
def test_tiles_are_kept_for_every_width_and_type(kernel):
    """At the same token counts, or the nearest entry of fp32 could be one of 16 bits, whose tiles
    are too large for it."""
    kept = [
        tuple(entry["shape"][key] for key in ("head", "tokens", "itemsize"))
        for entry in configs.entries(kernel)
    ]
    heads, tokens, itemsizes = map(set, zip(*kept))
    assert heads == {16, 32, 64, 128, 256} and itemsizes == {2, 4}
    assert sorted(kept) == sorted(product(heads, tokens, itemsizes))
