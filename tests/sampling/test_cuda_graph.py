"""What makes sampling fast changes no number: against the denoiser itself."""

import pytest
import torch

from diffusion.denoiser import Denoiser
from diffusion.generate import SamplerSettings, generate
from diffusion.parameterization import PredictNoise
from diffusion.samplers import ancestral, ddim
from diffusion.schedule import cosine, linear
from diffusion.spacing import even_steps
from diffusion.variance import Learned, LearnedRange
from models.adm import ADMUNet
from models.unet import UNet
from sampling import cuda_graph as sampling
from sampling.cuda_graph import Replayed, cast_ahead, prepared

STEPS = [31, 21, 11, 1]


def denoiser(kind=UNet, variance=None, known=None, **options) -> Denoiser:
    torch.manual_seed(0)
    more = {"heads": 2, "resample_blocks": True} if kind is ADMUNet else {}
    network = kind(
        16,
        [1, 2],
        1,
        [1],
        out_channels=6 if variance else 3,
        groups=4,
        classes=3,
        dropout=0.2,
        **more,
        **options,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    made = Denoiser(network, linear(40), PredictNoise(), variance, known)
    return made.to(memory_format=torch.channels_last).eval().requires_grad_(False)


@pytest.mark.parametrize("at_once", [2**26, 700, 1])
@pytest.mark.parametrize("label", [None, [2, 2, 2], [0, 2, 0]])
@pytest.mark.parametrize(
    ("kind", "variance", "known"),
    [(UNet, None, None), (UNet, Learned(), cosine(1000)), (ADMUNet, LearnedRange(), None)],
)
def test_prepared_says_what_the_denoiser_says(kind, variance, known, label, at_once, monkeypatch):
    """All steps' terms at once, in windows of some steps, and step by step; labels that are none,
    one, and mixed."""
    monkeypatch.setattr(sampling, "AHEAD", at_once)
    plain = denoiser(kind, variance, known)
    condition = None if label is None else {"label": torch.tensor(label)}
    denoise = prepared(plain, STEPS)(condition)
    x = torch.randn(3, 3, 8, 12)
    for t in [*STEPS, STEPS[0]]:  # some samplers come back
        for ours, theirs in zip(denoise(x, t)[:2], plain(x, t, condition)[:2], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        ours, theirs = (
            p.variance.log(plain.schedule, t - 1, t)
            for p in (denoise(x, t), plain(x, t, condition))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_time_terms_of_all_steps_take_one_pass(monkeypatch):
    plain, calls = denoiser(), []
    asked = plain.network.time_terms
    monkeypatch.setattr(
        plain.network, "time_terms", lambda *inputs: calls.append(1) or asked(*inputs)
    )
    settings = SamplerSettings(ddim, even_steps, 4)
    generate(
        prepared(plain, STEPS)({"label": torch.tensor([0, 2])}),
        plain.schedule,
        settings,
        (3, 8, 8),
        [1, 2],
    )
    assert len(calls) == 1


@pytest.mark.parametrize("function", [ancestral, ddim])
@pytest.mark.parametrize("variance", [None, Learned(), LearnedRange()])
def test_images_are_the_same(function, variance):
    plain, settings = denoiser(variance=variance), SamplerSettings(function, even_steps, 4)
    images = [
        generate(denoise, plain.schedule, settings, (3, 8, 8), [5, 6])
        for denoise in (plain, prepared(plain, STEPS)(None))
    ]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)


def test_weights_cast_ahead_are_those_that_autocast_casts():
    """To the bit, in bfloat16 on a CPU; norms keep theirs in float32."""
    plain = denoiser(ADMUNet, LearnedRange())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 30])
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain.network(x, t, {})
        cast_ahead(plain.network, torch.bfloat16)
        assert torch.equal(plain.network(x, t, {}), expected)
    assert (
        plain.network.norm_out.weight.dtype == torch.float32
        and plain.network.conv_in.weight.dtype == torch.bfloat16
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_a_recorded_network_gives_the_same_bits():
    """Also for a second batch, another size, and the same again after it."""
    plain = denoiser().to("cuda")
    graph, eager = (prepared(plain, STEPS, graph=on) for on in (True, False))
    recorded, launched = graph(None), eager(None)
    for count in (2, 5, 2):
        for t in STEPS:
            x = torch.randn(count, 3, 8, 8, device="cuda")
            kept = recorded(x, t).noise
            recorded(torch.randn_like(x), t)
            assert torch.equal(kept, launched(x, t).noise)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_replayed_is_its_function():
    replayed = Replayed(lambda x, y: x * y.sin())
    for _ in range(3):
        x, y = torch.randn(7, 3, device="cuda"), torch.randn(3, device="cuda")
        assert torch.equal(replayed(x, y), x * y.sin())
    assert len(replayed.recorded) == 1
