"""What holds weights near the source's: L2-SP and EWC against numbers worked by hand, the Fisher
information against closed forms and against torch.func, and what of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from config.overrides import composed
from data.batches import Batches
from data.pixels import to_x0
from diffusion.denoiser import Denoiser, ForwardPass
from diffusion.losses import simple_loss
from diffusion.parameterization import PredictNoise, PredictX0
from diffusion.schedule import from_betas
from runtime.config_schema import build
from runtime.errors import UserError
from runtime.files import read_checked
from runtime.seeds import derive, generator
from tests.helpers.starts import begun, given, in_two_processes, pictures, trained
from training.config_checks import check_run_config
from transfer import penalties
from transfer.penalties import EWC, L2SP, HalfSquare, fisher, known_fisher

SEEN = ForwardPass(
    None, torch.zeros(1), torch.ones(1), torch.zeros(1), {}, torch.zeros(1), torch.zeros(1), None
)


class Scaled(nn.Module):
    """output = a x + b, a and b one number for each channel; `unused` takes no part, `step` is what
    no penalty knows."""

    classes = 0

    def __init__(self, a: Sequence[float], b: Sequence[float], dtype=torch.float64):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=dtype)) for v in (a, b))
        self.unused, self.new = (
            nn.Parameter(torch.ones(2, dtype=dtype)),
            nn.Parameter(torch.ones(3, dtype=dtype)),
        )

    def forward(self, x: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.a[:, None, None].to(x.dtype) * x + self.b[:, None, None].to(x.dtype)


def scaled(
    tmp_path,
    copied=("a", "b", "unused"),
    channels=2,
    betas=(0.1, 0.3, 0.5),
    parameterization=None,
    **other,
):
    """A start of Scaled, as small as one can be."""
    network = Scaled([0.5, -1.0][:channels], [0.2, 0.1][:channels])
    denoiser = Denoiser(network, from_betas(betas), parameterization or PredictNoise())
    start = replace(begun(tmp_path), denoiser=denoiser, copied=set(copied))
    return replace(start, **other)


def moved(start, a=(0.6, -1.3), b=(0.2, 0.5)) -> None:
    with torch.no_grad():
        start.denoiser.network.a.copy_(torch.tensor(a))
        start.denoiser.network.b.copy_(torch.tensor(b))
        start.denoiser.network.new.add_(10)


# --- L2-SP ----------------------------------------------------------------------------------------


def test_l2sp_by_hand(tmp_path):
    """a moved by (0.1, -0.3), b by (0, 0.4): 3 / 2 * (0.01 + 0.09 + 0.16) = 0.39, gradients 3 times
    the moves. What is new is free."""
    start = scaled(tmp_path)
    penalty = L2SP(start, weight=3)
    assert penalty(SEEN).item() == 0
    moved(start)
    value = penalty(SEEN)
    assert value.shape == () and value.item() == pytest.approx(0.39, rel=1e-6)
    value.backward()
    network = start.denoiser.network
    torch.testing.assert_close(
        network.a.grad, torch.tensor([0.3, -0.9], dtype=torch.float64), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(
        network.b.grad, torch.tensor([0.0, 1.2], dtype=torch.float64), rtol=1e-6, atol=1e-7
    )
    assert (network.unused.grad == 0).all() and network.new.grad is None


def test_what_is_frozen_at_a_step_does_not_count_in_it(tmp_path):
    start = scaled(tmp_path)
    penalty = L2SP(start, weight=3)
    moved(start)
    network = start.denoiser.network
    network.a.requires_grad_(False)
    value = penalty(SEEN)
    assert value.item() == pytest.approx(1.5 * 0.16)
    value.backward()
    assert network.a.grad is None and network.b.grad is not None
    for w in network.parameters():
        w.requires_grad_(False)
    assert penalty(SEEN).item() == 0 and not penalty(SEEN).requires_grad
    # thawed again: it is held to where the source had it, and not to where it was frozen
    network.a.requires_grad_(True)
    assert penalty(SEEN).item() == pytest.approx(1.5 * 0.10)


def test_only_what_was_copied_is_held(tmp_path):
    start = scaled(tmp_path, copied=("b", "no parameter of this network"))
    penalty = L2SP(start, weight=3)
    moved(start)
    assert penalty(SEEN).item() == pytest.approx(1.5 * 0.16)
    with pytest.raises(UserError, match="source.include"):
        L2SP(scaled(tmp_path, copied=()), weight=1)


@pytest.mark.parametrize("kind", [L2SP, EWC])
def test_what_is_held_of_a_source_with_classes_is_its_null_class(tmp_path, kind):
    """A target without classes starts with the null row in the last bias of what embeds time, and
    is held to that."""
    source = trained(["model.classes=2"], classes=["a", "b"])
    start = begun(tmp_path, source=source)
    more = {"n": 4, "images": given(pictures(4))} if kind is EWC else {}
    penalty = kind(start, weight=1.0, **more)
    w = source.load("ema")
    torch.testing.assert_close(
        penalty.w0["time_mlp.2.bias"], w["time_mlp.2.bias"] + w["class_embedding.weight"][2]
    )
    assert penalty(SEEN).item() == 0


def test_the_fisher_information_of_a_source_with_classes_is_that_of_its_null_class(tmp_path):
    """Of the folded network, and of the source's own, which is given no class."""
    source, images = trained(["model.classes=2"], classes=["a", "b"]), pictures(4)
    start = begun(tmp_path, source=source)
    own = source.config.build_denoiser().eval()
    own.network.load_state_dict(source.load("ema"))
    w = {name: p for name, p in own.network.named_parameters() if name != "class_embedding.weight"}
    null = replace(images, labels=np.full(4, 2))
    expected = fisher(
        own, list(w.values()), Batches(null, 1, False, derive(start.seed, "fisher")), 4, start.seed
    )
    measured = known_fisher(start, images, 4)
    for name, value in zip(w, expected, strict=True):
        torch.testing.assert_close(measured[name], value, rtol=1e-3, atol=1e-9, msg=name)


@pytest.mark.parametrize("kept", [0, 2])
def test_rows_that_the_source_does_not_have_are_free(tmp_path, kept):
    """Three new rows at the mean of the source's two, those where they are kept, the null row: only
    what is the source's is held."""
    network = nn.Module()
    network.class_embedding, network.other = (
        nn.Embedding(4 + kept, 2).double(),
        nn.Parameter(torch.zeros(1, dtype=torch.float64)),
    )
    start = replace(
        scaled(tmp_path),
        denoiser=SimpleNamespace(network=network),
        copied={"class_embedding.weight", "other"},
        new_rows=3,
    )
    penalty = L2SP(start, weight=2.0)
    with torch.no_grad():
        network.class_embedding.weight[:3] += 7
        network.class_embedding.weight[3:] += 0.5
    value = penalty(SEEN)
    value.backward()
    assert value.item() == pytest.approx((1 + kept) * 2 * 0.25)
    gradient = network.class_embedding.weight.grad
    assert not gradient[:3].any() and torch.equal(
        gradient[3:], torch.full((1 + kept, 2), 1.0, dtype=torch.float64)
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_cannot_be(tmp_path, weight):
    with pytest.raises(UserError, match=f"L2SP: weight={weight}"):
        L2SP(scaled(tmp_path), weight=weight)


@pytest.mark.parametrize("with_importance", [False, True])
def test_the_fused_gradient_is_that_of_autograd(with_importance):
    """On tensors of several shapes and strides, float64; and by gradcheck."""
    torch.manual_seed(0)
    w0 = [
        torch.randn(4, 3, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last),
        torch.randn(5, dtype=torch.float64),
        torch.randn((), dtype=torch.float64),
    ]
    F = [torch.rand_like(v) for v in w0] if with_importance else None
    w = [(v + 0.1 * torch.randn_like(v)).requires_grad_() for v in w0]
    expected = (
        sum(
            ((v - v0).square() * (F[k] if F else 1)).sum()
            for k, (v, v0) in enumerate(zip(w, w0, strict=True))
        )
        / 2
    )
    ours = HalfSquare.apply(w0, F, *w)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(5 * ours, w), torch.autograd.grad(5 * expected, w), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda *w: HalfSquare.apply(w0, F, *w), w)


def test_a_penalty_waits_for_no_device(tmp_path):
    """On the meta device whatever asks for a value raises."""
    penalty = L2SP(scaled(tmp_path), weight=1)
    penalty.w = {name: nn.Parameter(w.to("meta")) for name, w in penalty.w.items()}
    penalty.w0 = {name: w.to("meta") for name, w in penalty.w0.items()}
    penalty(SEEN).backward()
    penalty.importance = penalty.w0
    penalty(SEEN).backward()


def test_l2sp_pulls_back_to_the_source(tmp_path):
    """Gradient descent on 10 / 2 (w - w0)^2 alone ends at w0, of a real network; and it does not
    touch a buffer or a flag of it."""
    start = begun(tmp_path)
    penalty = L2SP(start, weight=10.0)
    before = {name: w.detach().clone() for name, w in start.denoiser.network.named_parameters()}
    assert set(penalty.w) == set(before)
    with torch.no_grad():
        for w in start.denoiser.network.parameters():
            w += 0.1
    optimizer = torch.optim.SGD(start.denoiser.parameters(), 0.05)
    for _ in range(40):
        optimizer.zero_grad()
        penalty(SEEN).backward()
        optimizer.step()
    for name, w in start.denoiser.network.named_parameters():
        torch.testing.assert_close(w, before[name], rtol=0, atol=1e-6)


# --- the Fisher information -----------------------------------------------------------------------


def triples(start, images, n: int):
    """(x0, t, noise, label) as they are documented: images in their stream's order, t evenly over
    1..T, noise by (seed, k)."""
    T, batches = (
        start.denoiser.schedule.steps,
        Batches(images, 1, False, derive(start.seed, "fisher")),
    )
    for k in range(n):
        batch = batches.batch(k)
        x0 = to_x0(batch.images)
        yield (
            x0,
            1 + int((k + 0.5) / n * T),
            torch.randn(x0.shape, generator=generator(start.seed, "fisher noise", k)),
            batch.label,
        )


@pytest.mark.parametrize("parameterization", [PredictNoise(), PredictX0()])
def test_the_fisher_of_a_linear_denoiser_by_hand(tmp_path, parameterization):
    """L = mean over D values of (a_c x_t + b_c - target)^2, so dL/da_c = 2/D sum_c (residual x_t),
    dL/db_c = 2/D sum_c residual."""
    images, n = pictures(5, (3, 4), 2), 7
    start = scaled(tmp_path, parameterization=parameterization)
    a, b = np.array([0.5, -1.0]), np.array([0.2, 0.1])
    alpha_bar = np.cumprod([1, 0.9, 0.7, 0.5])
    F_a, F_b, seen = np.zeros(2), np.zeros(2), []
    for x0, t, noise, _ in triples(start, images, n):
        x0, noise = x0[0].double().numpy(), noise[0].double().numpy()
        x_t = np.sqrt(alpha_bar[t]) * x0 + np.sqrt(1 - alpha_bar[t]) * noise
        target = noise if isinstance(parameterization, PredictNoise) else x0
        residual = a[:, None, None] * x_t + b[:, None, None] - target
        F_a += (2 / 24 * (residual * x_t).sum((1, 2))) ** 2 / n
        F_b += (2 / 24 * residual.sum((1, 2))) ** 2 / n
        seen.append(t)
    assert seen == [1, 1, 2, 2, 2, 3, 3]  # all of 1..3, as evenly as 7 can be
    ours = known_fisher(start, images, n)
    np.testing.assert_allclose(ours["a"].numpy(), F_a, rtol=1e-5)
    np.testing.assert_allclose(ours["b"].numpy(), F_b, rtol=1e-5)
    assert (ours["unused"] == 0).all() and "new" not in ours


def test_every_t_is_seen_and_so_is_every_image(tmp_path, monkeypatch):
    start, seen, loss = scaled(tmp_path), [], penalties.simple_loss
    monkeypatch.setattr(
        penalties,
        "simple_loss",
        lambda step: (seen.append((step.t.tolist(), step.x0.sum().item())), loss(step))[1],
    )
    known_fisher(start, pictures(4, channels=2), 12)
    assert sorted(t for (t,), _ in seen) == [1] * 4 + [2] * 4 + [3] * 4
    assert sorted(np.unique([x for _, x in seen], return_counts=True)[1]) == [3, 3, 3, 3]


def test_the_fisher_of_a_unet_is_that_of_torch_func(tmp_path):
    """Per-sample gradients by another route: one functional call for all samples. Labels count;
    dropout does not."""
    start = begun(tmp_path, ["model.classes=3", "model.dropout=0.5"], trained(["model.classes=3"]))
    start.denoiser.train()
    images = pictures(4, labels=[0, 1, 2, 3])
    ours = known_fisher(start, images, 6)
    denoiser = start.frozen()
    parameters = dict(denoiser.network.named_parameters())
    every = list(triples(start, images, 6))

    def loss(parameters, x0, t, noise, label):
        x_t = denoiser.schedule.add_noise(x0, noise, t)
        out = torch.func.functional_call(
            denoiser.network, parameters, (x_t, t - 1, {"label": label})
        )
        return (out - noise).square().mean()

    total = {name: torch.zeros_like(w) for name, w in parameters.items()}
    for x0, t, noise, label in every:
        gradient = torch.func.grad(loss)(parameters, x0, torch.tensor([t]), noise, label)
        total = {name: f + gradient[name].square() / 6 for name, f in total.items()}
    assert ours.keys() == total.keys()
    for name, f in total.items():
        torch.testing.assert_close(ours[name], f, rtol=1e-3, atol=1e-5 * f.max().item(), msg=name)
    rows = ours["class_embedding.weight"].sum(1)
    assert (rows > 0).all()  # each label has its row


def test_it_is_the_square_of_each_samples_gradient_and_not_of_their_mean(tmp_path):
    """Two samples whose gradients cancel have a Fisher information all the same."""
    start = scaled(tmp_path)
    batches = Batches(pictures(6, channels=2), 1, False, derive(start.seed, "fisher"))
    w = [start.denoiser.network.b]
    of_six = fisher(start.denoiser, w, batches, 6, start.seed)[0]
    gradients = []
    for x0, t, noise, _ in triples(start, batches.dataset, 6):
        gradients.append(
            torch.autograd.grad(
                simple_loss(start.denoiser.forward_pass(x0, torch.tensor([t]), noise)).sum(), w
            )[0]
        )
    stacked = torch.stack(gradients)
    torch.testing.assert_close(of_six, stacked.square().mean(0), rtol=1e-5, atol=0)
    assert not torch.allclose(of_six, stacked.mean(0).square(), rtol=0.1)


# --- EWC ------------------------------------------------------------------------------------------


def test_ewc_by_hand(tmp_path):
    """weight / 2 * (F_a1 0.1^2 + F_a2 0.3^2 + F_b2 0.4^2), gradients weight F (w - w0)."""
    start, images = scaled(tmp_path), pictures(5, channels=2)
    penalty = EWC(start, weight=50.0, n=6, images=given(images))
    F = {name: f.double() for name, f in known_fisher(start, images, 6).items()}
    assert penalty(SEEN).item() == 0
    moved(start)
    value = penalty(SEEN)
    expected = 25 * (F["a"][0] * 0.01 + F["a"][1] * 0.09 + F["b"][1] * 0.16)
    assert expected > 0.1 and value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    network = start.denoiser.network
    torch.testing.assert_close(
        network.a.grad, 50 * F["a"] * torch.tensor([0.1, -0.3]), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        network.b.grad, 50 * F["b"] * torch.tensor([0.0, 0.4]), rtol=1e-5, atol=1e-7
    )
    network.a.requires_grad_(False)
    assert penalty(SEEN).item() == pytest.approx((25 * F["b"][1] * 0.16).item(), rel=1e-5)


def test_measuring_leaves_the_network_as_it_was(tmp_path):
    """Flags, mode, gradients, weights, and the random stream that dropout draws from."""
    start = begun(tmp_path, ["model.dropout=0.5"])
    network = start.denoiser.network
    network.down.requires_grad_(False)
    start.denoiser.train()
    network.mid.eval()
    flags, modes = (
        {n: f(m) for n, m in s}
        for s, f in (
            (network.named_parameters(), lambda p: p.requires_grad),
            (network.named_modules(), lambda m: m.training),
        )
    )
    weights = {name: w.clone() for name, w in network.state_dict().items()}
    stream = torch.get_rng_state()
    penalty = EWC(start, weight=1.0, n=3, images=given(pictures(4)))
    assert flags == {n: p.requires_grad for n, p in network.named_parameters()}
    assert modes == {n: m.training for n, m in network.named_modules()}
    assert all(p.grad is None for p in network.parameters()) and torch.equal(
        stream, torch.get_rng_state()
    )
    assert all(torch.equal(w, weights[name]) for name, w in network.state_dict().items())
    # frozen now, and thawed later
    assert any(f.any() for name, f in penalty.importance.items() if name.startswith("down"))
    for name, f in penalty.importance.items():
        assert f.stride() == dict(network.named_parameters())[name].stride() and not f.requires_grad


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many triples each measurement took."""
    made, measure = [], penalties.fisher
    monkeypatch.setattr(
        penalties, "fisher", lambda d, w, b, n, seed: (made.append(n), measure(d, w, b, n, seed))[1]
    )
    return made


def test_it_is_measured_once(tmp_path, counted):
    images = pictures(4)
    first = EWC(begun(tmp_path), weight=1.0, n=3, images=given(images))
    # another weight, another process
    again = EWC(begun(tmp_path), weight=2.0, n=3, images=given(images))
    assert counted == [3] and first.importance.keys() == again.importance.keys()
    assert all(torch.equal(f, again.importance[name]) for name, f in first.importance.items())
    (path,) = tmp_path.glob("fisher-*.safetensors")
    assert safetensors.torch.load(read_checked(path)).keys() == first.importance.keys()


def test_two_processes_measure_it_once(tmp_path):
    """The second one waits for the first."""
    got = in_two_processes(_both, tmp_path)
    assert sorted(measured for measured, _ in got) == [0, 1] and got[0][1] == got[1][1]


def _both(cache, results) -> None:
    torch.set_num_threads(1)
    made, measure = [], penalties.fisher
    penalties.fisher = lambda *a: (made.append(1), measure(*a))[1]
    known = known_fisher(begun(cache), pictures(4), 8)
    results.put((len(made), known["conv_in.weight"].numpy().tobytes()))


CHANGES = {
    "n": {},
    "seed": {"seed": 1},
    "copied": {},
    "weights": {},
    "images": {},
    "labels": {},
    "version": {},
    "schedule": ["schedule.beta_end=0.03"],
    "parameterization": ["parameterization=x0"],
    "heads": ["model.heads=2"],
    "network_schedule": ["network_schedule={_target_: diffusion.schedule.cosine, steps: 20}"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_it_measures_it_anew(tmp_path, counted, monkeypatch, change):
    images = pictures(4)
    known_fisher(begun(tmp_path), images, 3)
    target = CHANGES[change] if isinstance(CHANGES[change], list) else []
    start = begun(tmp_path, target, trained(target, seed=int(change == "weights")))
    if change == "images":
        used = Batches(images, 1, False, derive(0, "fisher")).indices(1)[0]
        images.images[used, 0, 0, 0] ^= 1
    elif change == "labels":
        images = images.__class__(images.images, images.labels + 1, images.splits, images.classes)
    elif change == "version":
        monkeypatch.setattr(penalties, "FISHER", 0)
    elif change == "copied":
        start = replace(start, copied=set(start.copied) - {"conv_in.weight"})
    elif change == "seed":
        start = replace(start, seed=1)
    known_fisher(start, images, 4 if change == "n" else 3)
    assert len(counted) == 2


def test_what_does_not_change_it_does_not(tmp_path, counted):
    """Images that it was not measured on, what trains, the batch size."""
    images = pictures(4)
    known_fisher(begun(tmp_path), images, 2)
    unused = set(range(4)) - {
        int(Batches(images, 1, False, derive(0, "fisher")).indices(k)[0]) for k in range(2)
    }
    images.images[sorted(unused)] ^= 255
    start = replace(begun(tmp_path), batch_size=3)
    start.denoiser.network.up.requires_grad_(False)
    start.denoiser.eval()
    known_fisher(start, images, 2)
    assert len(counted) == 1


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="EWC: n=0"):
        EWC(scaled(tmp_path), weight=1.0, n=0, images=given(pictures(2)))
    with pytest.raises(UserError, match="EWC: weight=0"):
        EWC(scaled(tmp_path), weight=0, n=1, images=given(pictures(2)))


def test_configs_build_them(tmp_path):
    start = begun(tmp_path)
    l2sp = build(
        {"_target_": "transfer.penalties.L2SP", "_partial_": True, "weight": 0.01},
        ["transfer"],
        "transfer.penalties[0]",
    )(start)
    ewc = build(
        {
            "_target_": "transfer.penalties.EWC",
            "_partial_": True,
            "weight": 100,
            "n": 2,
            "images": {
                "_target_": "transfer.source_images.generated",
                "_partial_": True,
                "n": 2,
                "steps": 2,
                "batch_size": 2,
            },
        },
        ["transfer"],
        "transfer.penalties[1]",
    )(start)
    assert l2sp.weight == 0.01 and ewc.weight == 100 and l2sp(SEEN).item() == ewc(SEEN).item() == 0
    assert SimpleNamespace(**ewc.importance)


def test_weight_decay_that_the_optimizer_has_of_its_own_is_refused_too():
    with pytest.raises(UserError, match="weight_decay=0.01 draws the weights to 0"):
        check_run_config(
            composed(
                "train",
                [
                    "transfer=l2_sp",
                    "optimizer=adamw",
                    "~optimizer.weight_decay",
                    "source.from=pretrain_demo",
                ],
            )
        )


def test_a_setting_that_the_optimizer_refuses_is_named_at_once():
    with pytest.raises(UserError, match="optimizer: Invalid learning rate: -1"):
        check_run_config(composed("train", ["optimizer.lr=-1"]))
