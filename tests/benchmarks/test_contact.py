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

from benchmarks import contact_images, contact_weights
from benchmarks.contact_row import Row
from benchmarks.contact_rows import ROWS
from config.overrides import composed
from config.run_config import RunConfig
from docs import make_compatibility
from models.formats.ddim import to_ddim
from models.formats.openai import to_openai
from runtime.errors import UserError
from tests.helpers import ROOT, world
from tests.helpers.file_server import Fault, publish, serving, table_row
from tests.helpers.hub_server import COMMIT
from transfer import trained_weights
from transfer.trained_weights import published_settings

CPU = torch.device("cpu")
SMALL = ["data.size=16", "data.channels=3", "model.multipliers=[1,2]", "model.attention_levels=[1]"]
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


def test_the_page_has_all_rows_and_their_pictures(first):
    out, _ = first
    page = (out / "page.html").read_text()
    assert "<img src='seen.png'>" in page and "a &lt; b" in page
    assert all(f"<h2>{name}: " in page for name in ("seen", "waits", "wrong", "breaks", "dies"))


def test_what_is_seen_is_not_tried_again(first):
    out, _ = first
    call(out, "seen", "waits")
    names = [r["name"] for r in lines(out)]
    assert names.count("seen") == 1 and names.count("waits") == 2


def test_an_unknown_name_is_one_message_with_the_near_ones(tmp_path):
    done = call(tmp_path, "google/ddpm-cifar10", module="benchmarks.contact")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "did you mean google/ddpm-cifar10-32" in done.stderr


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
            said = {"blocks": 1}
            if overrides[: len(ADM)] == ADM:
                said |= {"heads": 4, "timestep_scale": 0.25, "groups": 8}
            row = Row("small.pt", "weights", "", contact_weights.try_weights, formulas=said)
            return row.run(row, CPU, tmp_path, 2)

    return tried


def test_a_trained_file_is_seen(tried, tmp_path):
    network = world.network_of(ADM)
    found = tried(to_openai(network.state_dict(), network), ADM)
    values = found["found"]
    assert values["gray_levels_apart"] < 0.01 and values["loss_on_photographs"] < 0.4
    assert values["compared_with"] == "the published formulas"
    assert found["file"]["compared_with_a_published_checksum"]
    assert all((tmp_path / name).is_file() for name in found["pictures"])


def test_a_file_of_ddims_with_its_average_is_seen(tried):
    network = world.network_of(UNET)
    theirs = {f"module.{name}": tensor for name, tensor in to_ddim(network.state_dict()).items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    assert tried([other, {}, 1, 2, theirs], UNET)["found"]["gray_levels_apart"] < 0.01


@pytest.mark.parametrize("changed", ["model.heads=1", "model.timestep_scale=1.0"])
def test_a_network_that_is_read_otherwise_than_it_was_trained_is_told(tried, changed):
    """What no shape of a file shows: conf/model says one thing, the paper another."""
    network = world.network_of(ADM)
    with pytest.raises(UserError, match=r"opens, but [\d.]+ gray levels of 255 lie between"):
        tried(to_openai(network.state_dict(), network), [*ADM, changed])


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
        patched.setattr(contact_weights, "photographs", lambda shape: torch.zeros(8, *shape))
        own, less, more = (
            contact_weights.loss_on_photographs(denoiser, (3, 16, 16), CPU, told)
            for told in (1.0, 0.7, 1.4)
        )
    assert (own < min(less, more)) == (not wrong), (own, less, more)


def test_weights_that_nobody_trained_are_told(tried):
    from tests.helpers.networks import randomize

    network = world.network_of(ADM)
    randomize(network)
    with pytest.raises(UserError, match="is that of no trained network"):
        tried(to_openai(network.state_dict(), network), ADM)


def test_photographs_are_photographs():
    crops = contact_weights.photographs((3, 64, 64))
    assert crops.shape == (8, 3, 64, 64) and crops.min() >= -1 and crops.max() <= 1
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
    mirrored = lambda reader, item: np.fliplr(contact_images.by_numpy(reader, item))  # noqa: E731
    row = images_row(counts=(40, 20, 30), again=mirrored)
    with pytest.raises(UserError, match="is read otherwise by another library"):
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
    found |= {"loss_on_photographs": 0.0234, "ms_per_training_step": 12.34, "batch": 8}
    found |= {"loss_on_photographs_told_0.7_t": 0.05, "loss_on_photographs_told_1.4_t": 0.06}
    later = record | {"state": "seen", "found": found, "file": {"sha256": "0123456789abcdef" * 4}}
    later |= {"at": "2026-12-02 10:00:00"}
    waits = record | {"state": "waits", "at": "2026-12-03 10:00:00"}
    text = "\n".join(map(json.dumps, (later, record, waits)))
    (tmp_path / "contact_a.jsonl").write_text(text)
    monkeypatch.setattr(make_compatibility, "RESULTS", tmp_path)
    row = (
        "| seen, 2026-12-02, A GPU, torch 2.13, abcdefg | 0.0012 gray levels to diffusers 0.42.1; "
    )
    row += "loss 0.023, 0.05, 0.06; sha256 0123456789abcdef; 12 ms a training step of 8 |"
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
        assert (place[0] / "datasets/eurosat/EuroSAT.zip.wrong").is_file()
        server.files["/EuroSAT.zip"] = whole
        done = world.on(place, *command)
        assert done.returncode == 0, done.stdout
        found = {r["name"]: r for r in lines(place[0] / "contact")}
        assert len(lines(place[0] / "contact")) == len(ROWS) + 1
        assert found["eurosat"]["state"] == "seen"
        assert found["google/ddpm-cifar10-32"]["file"]["commit"] == COMMIT
        assert (place[0] / "contact/page.html").read_text().count("<img") == 19
