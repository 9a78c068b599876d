"""What make contact does with what it fetches: rows that are seen, wait, fail and die; small files
of the published forms; and, slow, every row at its full size, from a server of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
from diffusers import DDIMScheduler, DDPMPipeline

from benchmarks import contact_formulas, contact_images, contact_weights
from benchmarks.contact_formulas import cosine, linear
from benchmarks.contact_row import Row
from benchmarks.contact_rows import ROWS
from config.overrides import composed
from config.run_config import RunConfig
from docs import make_compatibility
from models.formats.ddim import to_ddim
from models.formats.openai import to_openai
from runtime.errors import UserError
from tests.helpers import ROOT, adm_reference, ddim_reference, world
from tests.helpers.features import write_alexnet
from tests.helpers.file_server import Fault, publish, serving, table_row
from tests.helpers.hub_server import COMMIT
from transfer import trained_weights
from transfer.trained_weights import published_settings

CPU = torch.device("cpu")
SMALL = ["data.size=32", "data.channels=3", "model.multipliers=[1,2]", "model.attention_levels=[1]"]
ADM = ["model=improved_cifar10", *SMALL, "model.channels=32", "model.groups=8", "model.blocks=1"]
ADM += ["schedule=cosine", "schedule.steps=4000", "variance=learned_range", "loss=hybrid"]
UNET = ["model=ddpm_celeba64", *SMALL, "model.channels=64", "model.blocks=1"]


def call(out: Path, *words: str, module: str = "tests.helpers.stub_contact"):
    command = [sys.executable, "-m", module, "--out", str(out), "--device", "cpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


# --- rows -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("contact")
    return out, call(out, "--steps", "7")


@pytest.mark.slow
def test_each_row_is_one_line_however_it_ended(first):
    out, done = first
    found = {r["name"]: r for r in lines(out)}
    assert len(lines(out)) == 5 and done.returncode == 1
    states = {name: r["state"] for name, r in found.items()}
    assert states == dict.fromkeys(("wrong", "breaks", "dies"), "failed") | {
        "seen": "seen",
        "waits": "waits",
    }
    assert found["seen"]["found"] == {"x": 1.5, "steps": 7}
    assert found["wrong"]["why"] == "small.pt opens, but differs."
    assert found["breaks"]["why"] == "failed: ZeroDivisionError: oh"
    assert found["dies"]["why"] == "its process ended with 9"
    for r in lines(out):
        assert {"device", "commit", "code", "torch", "at"} <= r.keys()
    assert "waiting for a network: waits. The same command goes on." in done.stdout


@pytest.mark.slow
def test_the_page_has_all_rows_and_their_pictures(first):
    out, _ = first
    page = (out / "page.html").read_text()
    assert "<img src='seen.png'>" in page and "a &lt; b" in page
    assert all(f"<h2>{name}: " in page for name in ("seen", "waits", "wrong", "breaks", "dies"))


@pytest.mark.slow
def test_what_is_seen_is_not_tried_again(first):
    out, _ = first
    call(out, "seen", "waits", "--steps", "7")
    names = [r["name"] for r in lines(out)]
    assert names.count("seen") == 1 and names.count("waits") == 2
    call(out, "seen", "breaks", "--steps", "8")  # which is another thing
    names = [r["name"] for r in lines(out)]
    assert names.count("seen") == 2 and names.count("breaks") == 2


def test_an_unknown_name_is_one_message_with_the_near_ones(tmp_path):
    done = call(tmp_path, "google/ddpm-cifar10", module="benchmarks.contact")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "did you mean google/ddpm-cifar10-32" in done.stderr


@pytest.mark.slow
def test_without_a_network_it_says_which_rows_wait(tmp_path):
    """tests/conftest.py takes the network away."""
    names = ["google/ddpm-cifar10-32", "cifar10_uncond_50M_500K.pt", "pneumoniamnist_64"]
    command = [sys.executable, "-m", "benchmarks.contact", *names, "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # in a folder without images
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "contact")
    assert [r["state"] for r in found] == ["waits"] * 3
    assert all("no network" in r["why"] or "Hub failed" in r["why"] for r in found)
    assert f"waiting for a network: {', '.join(names)}" in done.stdout


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """tried(state, overrides): what is found of such a file, by a server of this machine."""
    monkeypatch.setattr(contact_weights, "train", lambda *_: {"training_steps": 0})
    monkeypatch.chdir(tmp_path)

    def tried(state, overrides):
        with serving({"/small.pt": world.saved(state)}) as server:
            publish(monkeypatch, tmp_path, {"small.pt": table_row(server, "/small.pt")})
            known = published_settings() | {"small.pt": overrides}
            monkeypatch.setattr(trained_weights, "published_settings", lambda: known)
            said = {"network": ddim_reference.reference, "alpha_bar": linear(), "blocks": 1}
            if overrides[: len(ADM)] == ADM:
                said = {"network": adm_reference.unet, "alpha_bar": cosine(), "blocks": 1}
                said |= {"heads": 4, "timestep_scale": 0.25, "groups": 8}
            row = Row("small.pt", "weights", "", contact_weights.try_weights, formulas=said)
            return row.run(row, CPU, tmp_path, 2)

    return tried


def test_a_trained_file_is_seen(tried, tmp_path):
    network = world.network_of(ADM)
    found = tried(to_openai(network.state_dict(), network), ADM)
    values = found["found"]
    assert values["gray_levels_apart"] < 0.01 and values["loss"] < values["loss_of_a_pixel"]
    assert values["compared_with"] == "the published formulas"
    assert found["file"]["compared_with_a_published_checksum"]
    assert all((tmp_path / name).is_file() for name in found["pictures"])


def test_a_file_of_ddims_with_its_average_is_seen(tried):
    network = world.network_of(UNET)
    theirs = {f"module.{name}": tensor for name, tensor in to_ddim(network.state_dict()).items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    assert tried([other, {}, 1, 2, theirs], UNET)["found"]["gray_levels_apart"] < 0.01


CHANGED = ["model.heads=1", "model.timestep_scale=1.0", "schedule=linear", "schedule.steps=1000"]


@pytest.mark.parametrize("changed", CHANGED)
def test_a_network_that_is_read_otherwise_than_it_was_trained_is_told(tried, changed):
    """What no shape of a file shows: conf/ says one thing, the paper another."""
    network = world.network_of(ADM)
    with pytest.raises(UserError, match=r"opens, but [\d.]+ gray levels of 255 lie between"):
        tried(to_openai(network.state_dict(), network), [*ADM, changed])


@pytest.mark.slow
def test_the_average_of_ddims_file_is_told_from_its_last_iterate(tried, monkeypatch):
    from models.formats import ddim

    one, other = world.network_of(UNET), world.network_of(UNET)
    with torch.no_grad():
        other.conv_out.weight *= 1.5
    file = [to_ddim(network.state_dict()) for network in (other, one)]
    swapped = ddim.weights_of
    monkeypatch.setattr(ddim, "weights_of", lambda found, ema=True: swapped(found, not ema))
    with pytest.raises(UserError, match=r"opens, but [\d.]+ gray levels of 255 lie between"):
        tried([file[0], {}, 1, 2, file[1]], UNET)


@pytest.mark.parametrize(("schedule", "T"), [("linear", 1000), ("cosine", 4000)])
def test_one_that_only_says_what_it_sees_is_no_trained_network(schedule, T):
    class Echo(torch.nn.Module):
        def forward(self, x, timestep, condition):
            return torch.cat([x, x], 1)

    chosen = [*ADM, f"schedule={schedule}", f"schedule.steps={T}"]
    denoiser = RunConfig(composed("train", chosen)).build_denoiser()
    denoiser.network = Echo()
    found = contact_weights.losses_on_photographs(denoiser, (3, 32, 32), CPU)
    assert found["loss"] > found["loss_of_a_pixel"] > contact_weights.CLEARLY * found["loss"]


def test_the_error_of_a_pixel_alone_is_the_least_of_all_linear_guesses():
    """By least squares on drawn pixels, not by its formula."""
    random = np.random.default_rng(0)
    x0, noise = random.normal(0, 0.6, 200_000), random.normal(0, 1, 200_000)
    x_t = 0.8**0.5 * x0 + 0.2**0.5 * noise
    c = (x_t @ noise) / (x_t @ x_t)
    least = np.mean((c * x_t - noise) ** 2)
    assert contact_formulas.error_of_a_pixel_alone(0.8, 0.36) == pytest.approx(least, rel=0.02)


def test_the_formulas_ddim_is_diffusers():
    """And so is their schedule, in float64's rounding."""
    scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=True)
    scheduler.set_timesteps(5)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), linear(), rtol=1e-5, atol=1e-7)
    wave = lambda x, k: torch.sin(3 * x) * (1 + k[0] / 500)  # noqa: E731
    x = torch.stack(
        [torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    )
    for k in scheduler.timesteps:
        said = wave(x, k.expand(2))
        x = scheduler.step(said, k, x, use_clipped_model_output=True).prev_sample
    ours = contact_formulas.ddim_images(wave, linear(), (3, 4, 4), [1, 2], 5, lambda: None)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [[], ["schedule=linear"], ["model.timestep_scale=0.5"]])
def test_a_network_that_is_told_another_t_is_worse_where_its_schedule_is_ours(wrong):
    """With a network that knows the noise's size by t alone: x_t / sigma, of images that are 0."""
    config = RunConfig(composed("train", [*ADM, *wrong]))
    right = RunConfig(composed("train", ADM)).schedule

    class Knows(torch.nn.Module):
        def forward(self, x, timestep, condition):
            # timesteps as its training counted them, by its scale
            t = timestep * config.raw["model"]["timestep_scale"] / 0.25 + 1
            sigma = right.alpha_sigma(t.round().long().clamp(1, 4000))[1].float()
            said = x / sigma[:, None, None, None]
            return torch.cat([said, said], 1)

    denoiser = config.build_denoiser()
    denoiser.network = Knows()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(contact_weights, "photographs", lambda shape: torch.zeros(4, *shape))
        found = contact_weights.losses_on_photographs(denoiser, (3, 16, 16), CPU)
    own, less, more, _ = found.values()
    assert (own < min(less, more)) == (not wrong), (own, less, more)


def test_weights_that_nobody_trained_are_told(tried):
    from tests.helpers.networks import randomize

    network = world.network_of(ADM)
    randomize(network)
    with pytest.raises(UserError, match="is that of no trained network"):
        tried(to_openai(network.state_dict(), network), ADM)


def test_photographs_are_photographs():
    crops = contact_weights.photographs((3, 64, 64))
    assert crops.shape == (4, 3, 64, 64) and crops.min() >= -1 and crops.max() <= 1
    assert (crops.std(dim=(1, 2, 3)) > 0.15).all()
    # neighbours depend on each other
    assert ((crops[..., 1:] - crops[..., :-1]).abs().mean() / crops.std()) < 0.5


# --- images ---------------------------------------------------------------------------------------


def images_row(**changed) -> Row:
    (row,) = (row for row in ROWS if row.name == "pneumoniamnist_64")
    return row._replace(**changed)


@pytest.fixture
def pneumonia(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_images, "train", lambda *_: {"training_steps": 0})
    monkeypatch.chdir(tmp_path)
    with serving({"/p.npz": world.medmnist((40, 20, 30), 1, 2)}) as server:
        row = table_row(server, "/p.npz")
        publish(monkeypatch, tmp_path, {"pneumoniamnist_64.npz": row})
        yield server


def test_images_are_seen(pneumonia, tmp_path):
    row = images_row(counts=(40, 20, 30))
    found = row.run(row, CPU, tmp_path, 2)
    counts = {"train": 40, "validation": 20, "test": 30, "classes": 2}
    assert counts.items() <= found["found"].items()
    assert found["file"]["sha256"] == table_row(pneumonia, "/p.npz")["sha256"]


def test_another_number_of_images_is_told(pneumonia, tmp_path):
    row = images_row()
    with pytest.raises(UserError, match=r"\[40, 20, 30\] images, and the official set has"):
        row.run(row, CPU, tmp_path, 2)


def test_pixels_that_another_library_reads_otherwise_are_told(pneumonia, tmp_path):
    def mirrored(reader, item):
        image, label = contact_images.by_numpy(reader, item)
        return np.fliplr(image), label

    def relabelled(reader, item):
        image, label = contact_images.by_numpy(reader, item)
        return image, 1 - label

    for again in (mirrored, relabelled):
        row = images_row(counts=(40, 20, 30), again=again)
        with pytest.raises(UserError, match="is read otherwise than it stands there"):
            row.run(row, CPU, tmp_path, 2)


def test_a_file_of_images_that_is_not_the_published_one_is_told(pneumonia, tmp_path):
    file = tmp_path / "datasets/medmnist/pneumoniamnist_64.npz"
    file.parent.mkdir(parents=True)
    file.write_bytes(world.medmnist((40, 20, 30), 1, 2, seed=1))
    row = images_row(counts=(40, 20, 30))
    with pytest.raises(UserError, match="its sha256 is"):
        row.run(row, CPU, tmp_path, 2)


# --- features -------------------------------------------------------------------------------------


def test_features_of_another_file_than_the_published_are_told(tmp_path, monkeypatch):
    (row,) = (row for row in ROWS if row.name == "lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    file.parent.mkdir(parents=True)
    write_alexnet(file)
    with pytest.raises(UserError, match=r"has \d+ bytes, and alexnet-owt-7be5be79.pth has 24"):
        row.run(row, CPU, tmp_path, 2)


def test_a_folder_of_the_hub_that_diffusers_reads_otherwise_is_told(tmp_path, monkeypatch):
    """Ours of one set of weights, theirs of another."""
    from benchmarks.networks import Model

    monkeypatch.setattr(contact_weights, "train", lambda *_: {"training_steps": 0})
    folder = world.hub_folder(tmp_path / "one", Model("demo", 32, 0))
    row = Row(str(folder), "weights", "", contact_weights.try_weights)
    row = type("Named", (Row,), {"file": "named"})(*row)
    assert row.run(row, CPU, tmp_path, 2)["found"]["gray_levels_apart"] < 0.1
    theirs = DDPMPipeline.from_pretrained

    def changed(path):
        pipeline = theirs(path)
        with torch.no_grad():
            pipeline.unet.conv_out.weight[:] *= 1.05
        return pipeline

    monkeypatch.setattr(DDPMPipeline, "from_pretrained", changed)
    with pytest.raises(UserError, match=r"opens, but [\d.]+ gray levels of 255 lie between"):
        row.run(row, CPU, tmp_path, 2)


# --- docs/compatibility.md ------------------------------------------------------------------------


def test_the_page_of_compatibility_is_what_the_results_say():
    assert make_compatibility.PAGE.read_text() == make_compatibility.page()


def test_a_result_that_is_kept_is_a_row_that_is_seen(tmp_path, monkeypatch):
    record = {"step": "contact", "name": "google/ddpm-cifar10-32", "state": "failed", "why": "no"}
    record |= {
        "at": "2026-12-01 10:00:00",
        "device": "A GPU",
        "torch": "2.13",
        "commit": "abcdefgh",
    }
    found = {"gray_levels_apart": 0.0012, "compared_with": "diffusers 0.42.1"}
    found |= {"loss": 0.0234, "loss_told_0.7_t": 0.05, "loss_told_1.4_t": 0.06}
    found |= {"loss_of_a_pixel": 0.3, "ms_per_training_step": 12.34, "batch": 8}
    later = record | {"state": "seen", "found": found, "file": {"sha256": "0123456789abcdef" * 4}}
    later |= {"at": "2026-12-02 10:00:00"}
    waits = record | {"state": "waits", "at": "2026-12-03 10:00:00"}
    wrong = record | {"name": "lpips", "why": "a | b\nand c"}
    text = "\n".join(map(json.dumps, (later, record, waits, wrong))) + '\n{"step": "con'
    (tmp_path / "contact_a.jsonl").write_text(text)
    monkeypatch.setattr(make_compatibility, "RESULTS", tmp_path)
    row = (
        "| seen, 2026-12-02, A GPU, torch 2.13, abcdefg | 0.0012 gray levels to diffusers 0.42.1; "
    )
    row += "losses 0.023, 0.05, 0.06, 0.3; sha256 0123456789abcdef; 12 ms a training step of 8 |"
    assert "| a \\| b and c |" in make_compatibility.page()
    assert row in make_compatibility.page() and "1 of 14 are seen" in make_compatibility.page()


# --- all rows -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_every_row_at_its_full_size_on_a_machine_with_nothing(tmp_path):
    """Files of the published sizes, each cut once; one is wrong at first."""
    with serving() as server:
        world.add_images(server)
        world.add_features(server)
        world.add_weights(server, *(r.name for r in ROWS if r.name.endswith((".pt", ".pth"))))
        for row in ROWS:
            if row.name.startswith("google/"):
                world.add_hub(server, row.name.removeprefix("google/ddpm-"))
        large = [path for path in server.files if len(server.files[path]) > 1_000_000]
        server.faults |= {path: Fault(cut=900_000, times=1) for path in large}
        place = world.machine(tmp_path, server)
        whole = server.files["/EuroSAT.zip"]
        server.files["/EuroSAT.zip"] = whole[:-1] + b"x"
        command = ["-m", "benchmarks.contact", "--device", "cpu", "--steps", "2"]
        done = world.on(place, *command)
        states = {r["name"]: r["state"] for r in lines(place[0] / "contact")}
        assert done.returncode == 1, done.stderr
        assert states == {row.name: "seen" for row in ROWS} | {"eurosat": "failed"}, done.stdout
        assert (place[0] / "contact/datasets/eurosat/EuroSAT.zip.wrong").is_file()
        server.files["/EuroSAT.zip"] = whole
        done = world.on(place, *command)
        assert done.returncode == 0, done.stdout
        found = {r["name"]: r for r in lines(place[0] / "contact")}
        assert len(lines(place[0] / "contact")) == len(ROWS) + 1
        assert found["eurosat"]["state"] == "seen"
        assert found["google/ddpm-cifar10-32"]["file"]["commit"] == COMMIT
        each = {"weights": 2, "images": 1, "features": 0, "experiment": 1}  # pictures of a row
        page = (place[0] / "contact/page.html").read_text()
        assert page.count("<img") == sum(each[row.kind] for row in ROWS)
