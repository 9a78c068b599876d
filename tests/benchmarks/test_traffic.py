"""The meter of launches, bytes and FLOP: against hand counts, torch's own counter, and the bounds
that a training step has to keep."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import traffic
from benchmarks.networks import MODELS, gflop, settings
from benchmarks.traffic import Meter, Rates, candidate, measured, multi_tensor_launches, on_cuda
from models.layers import ResBlock, Sum
from models.unet import UNet

RATES = Rates(bandwidth=3.0, flops=400.0)
BF16 = torch.bfloat16


def counted(function) -> Meter:
    """Of what a function, made outside, does to fake tensors."""
    with on_cuda():
        run = function()
        with Meter(RATES) as meter:
            run()
    return meter


def test_a_convolution_by_hand():
    def step():
        x, weight, bias = torch.empty(2, 3, 8, 8), torch.empty(4, 3, 3, 3), torch.empty(4)
        return lambda: F.conv2d(x, weight, bias, padding=1)

    found = counted(step).kinds
    assert found.keys() == {"convolution"}
    count = found["convolution"]
    read, written = 2 * 3 * 64 + 4 * 27 + 4, 2 * 4 * 64
    assert (count.calls, count.launches) == (1, 2)  # the bias is a pass of its own
    assert count.bytes == 4 * (read + written) + 4 * 2 * written
    assert count.flop == 2 * (2 * 4 * 64) * 27
    assert count.ms == pytest.approx(max(count.bytes / 3e12, count.flop / 400e12) * 1e3)


def test_views_and_memory_cost_nothing():
    def step():
        x = torch.empty(4, 6)
        return lambda: (x.view(6, 4).t()[1:], torch.empty_like(x), x.detach(), x.chunk(2, 1))

    assert not counted(step).kinds


def test_an_expanded_tensor_is_read_once_and_the_same_one_too():
    def step():
        x, row = torch.empty(8, 16), torch.empty(1, 16)
        return lambda: (x * row.expand(8, 16), x * x)

    assert counted(step).kinds["pointwise"].bytes == 4 * (2 * 128 + 16 + 2 * 128)


@pytest.mark.parametrize(
    ("sizes", "lists", "expected"),
    [
        ([1], 1, 1),
        ([1] * 110, 1, 1),  # so many tensors are one launch
        ([1] * 111, 1, 2),
        ([1] * 65, 2, 2),
        ([65536 * 320], 1, 1),  # and so many blocks of 65,536 values
        ([65536 * 320 + 1], 1, 2),
        ([65536 * 200, 65536 * 200], 1, 2),
    ],
)
def test_a_list_of_tensors_is_cut_as_torch_cuts_it(sizes, lists, expected):
    tensors = [torch.empty(n, device="meta") for n in sizes]
    assert multi_tensor_launches([tensors] * lists) == expected


@pytest.mark.parametrize("fused", [True, False])
def test_a_residual_block_moves_what_docs_kernels_says(fused):
    """U is one pass over its activation: 6 U beside its convolutions by our kernels, and by torch
    19 U, of which dropout, which is left out here, is 2 U."""
    N, C, H = 512, 64, 32

    def step():
        block = traffic.fake(ResBlock(C, C, 4 * C, 32, 0.1 * fused), torch.channels_last, BF16)
        x = torch.empty(N, C, H, H, dtype=BF16, memory_format=torch.channels_last)
        stream = Sum(x, torch.empty_like(x), torch.empty(C, dtype=BF16)) if fused else Sum(x)
        time = torch.empty(N, C, dtype=BF16)

        @torch.no_grad()
        def run():
            _, out = block(stream, time)
            return out if fused else out.total()

        return run

    with on_cuda(fused):
        run = step()
        with Meter(RATES) as meter:
            run()
    U = N * C * H * H * 2
    sizes = {kind: count.bytes / U for kind, count in meter.kinds.items()}
    if fused:  # 4 U of the sum and its norm, 2 U of the norm with dropout; two convolutions of 2 U
        assert sizes["norm"] == pytest.approx(6, abs=0.01)
        assert sizes["convolution"] == pytest.approx(4, abs=0.01)
        assert sizes["pointwise"] < 0.01 and meter.total.triton == 2
    else:  # two norms and two SiLU of 2 U, two biases of 2 U, + time 2 U, + shortcut 3 U
        assert sizes["norm"] == pytest.approx(8, abs=0.01)
        assert sizes["convolution"] == pytest.approx(4 + 4, abs=0.01)
        assert sizes["pointwise"] == pytest.approx(2 + 3, abs=0.01)


def test_the_flop_of_a_forward_are_those_that_torch_counts():
    network = UNet(**settings(MODELS["demo"])).eval()
    expected = gflop(lambda x, t: network(x, t, {}), MODELS["demo"].size)
    found = measured(candidate("ours", MODELS["demo"]), "sampling", MODELS["demo"], 3, RATES)
    assert found.total.flop == pytest.approx(3 * expected * 1e9, rel=1e-6)


def test_a_training_step_launches_and_moves_no_more_than_it_did():
    """A cast, a pass or a launch that creeps into the step fails here. By the architecture: 22
    residual blocks of two norms, 6 of attention and one at the end are 51 norms, forward and
    backward; 65 convolutions; a time projection in each block beside two of the embedding, four
    products of each attention block's two projections, and their gradients."""
    model = MODELS["cifar10"]
    ours = measured(candidate("ours", model), "training", model, 128, RATES)
    norms = 22 * 2 + 6 + 1
    assert ours.total.triton == ours.kinds["norm"].launches - ours.kinds["norm"].calls + 2 * norms
    assert ours.kinds["convolution"].calls == 2 * 65
    assert ours.kinds["matrix product"].calls == 107 and ours.kinds["cast"].calls <= 327
    assert ours.total.launches <= 1098 and ours.total.bytes <= 19.1e9
    forward = measured(candidate("ours", model), "sampling", model, 128, RATES).total
    assert forward.launches <= 379 and forward.bytes <= 6.8e9


@pytest.mark.slow
def test_diffusers_moves_more():
    pytest.importorskip("diffusers")
    model = MODELS["cifar10"]
    theirs = measured(candidate("diffusers", model), "training", model, 128, RATES)
    ours = measured(candidate("ours", model), "training", model, 128, RATES)
    assert theirs.total.flop == ours.total.flop  # the same network
    assert theirs.total.bytes > 2.8 * ours.total.bytes
    assert theirs.total.launches > 1.8 * ours.total.launches


@pytest.mark.slow
def test_both_tables_are_printed(capsys):
    traffic.main(["--model", "demo", "--batch", "8"])
    out = capsys.readouterr().out
    for step in ("training", "sampling"):
        for name in ("ours", "diffusers"):
            assert f"{step}, {name}: GPU" in out
    assert out.count("together") == 4
