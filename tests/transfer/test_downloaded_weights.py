"""Published weights by their names, from a server on this machine: files that conf/published.yaml
knows, and folders of the Hub by its own library."""

from __future__ import annotations

import io
import json
import re
import signal
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

import runtime.torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from config.overrides import composed
from config.run_config import RunConfig
from models.formats import hub
from models.formats.ddim import to_ddim
from models.formats.openai import to_openai
from models.formats.published import read_weights
from runtime.download import published
from runtime.errors import UserError
from runtime.receive import NoNetwork
from runtime.signals import Preempted
from tests.helpers import ROOT, runs
from tests.helpers.file_server import Fault, publish, serving, table_row
from tests.helpers.hub_server import COMMIT, add_repository
from tests.helpers.networks import randomize
from training.config_checks import check_run_config
from training.pretrained_source import find_source
from transfer import trained_weights
from transfer.trained_weights import load_weights, published_settings, source_of, stated_config

SMALL = ["data.size=8", "model.multipliers=[1,2]", "model.attention_levels=[1]"]
ADM = ["model=adm_lsun256", *SMALL, "data.channels=3", "model.channels=16", "model.groups=8"]
ADM += ["model.head_channels=8", "variance=learned_range", "loss=hybrid"]
UNET = [*SMALL, "data.channels=3", "model.channels=8", "model.groups=4"]
AT = "/diffusion/march-2021/small.pt"


def network(overrides) -> torch.nn.Module:
    made = RunConfig(composed("train", overrides)).build_denoiser().network
    randomize(made)
    return made


def saved(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def publish_small(server, monkeypatch, tmp_path, state, settings, name="small.pt"):
    server.files[AT] = saved(state)
    publish(monkeypatch, tmp_path, {name: table_row(server, AT)})
    known = published_settings() | {name: settings}
    monkeypatch.setattr(trained_weights, "published_settings", lambda: known)
    monkeypatch.setattr("training.pretrained_source.published_settings", lambda: known)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "torch/hub/checkpoints" / name


def test_a_published_name_is_fetched_and_known_by_its_settings(server, monkeypatch, tmp_path):
    made = network(ADM)
    file = publish_small(server, monkeypatch, tmp_path, to_openai(made.state_dict(), made), ADM)
    server.faults[AT] = Fault(cut=10_000, times=1)
    found = load_weights("small.pt")
    assert found.path == file and same(found.load("ema"), made.state_dict())
    assert found.digests["ema"] == runs.sha256(file)
    load_weights("small.pt")
    assert len(server.asked) == 2  # cut once, and not asked for again


def test_as_a_source_it_is_known_by_its_content(server, monkeypatch, tmp_path):
    """By its name, and by the path to the same file: one run."""
    made = network(ADM)
    file = publish_small(server, monkeypatch, tmp_path, to_openai(made.state_dict(), made), ADM)
    target = [*ADM, "data=bundled_tissue", "data.size=8", "train.steps=1"]

    def source(name):
        return find_source(check_run_config(composed("train", [*target, f"source.from={name}"])))

    by_name, by_path = source("small.pt"), source(file)
    assert by_name.identity == by_path.identity
    assert same(by_name.find_weights().load("ema"), made.state_dict())


def test_a_file_here_comes_before_the_published_one(server, monkeypatch, tmp_path):
    made, other = network(ADM), network(ADM)
    torch.nn.init.ones_(other.conv_in.bias)
    publish_small(server, monkeypatch, tmp_path, to_openai(made.state_dict(), made), ADM)
    (tmp_path / "small.pt").write_bytes(saved(to_openai(other.state_dict(), other)))
    assert same(load_weights("small.pt").load("ema"), other.state_dict())
    assert not server.asked


def test_settings_may_be_stated_of_a_published_file(server, monkeypatch, tmp_path):
    made = network(UNET)
    publish_small(server, monkeypatch, tmp_path, to_ddim(made.state_dict()), ADM)
    stated = stated_config("small.pt", None, UNET)
    assert same(load_weights("small.pt", stated=stated).load("ema"), made.state_dict())


def test_without_a_network_it_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = "imagenet64_uncond_100M_1500K.pt"
    where = re.escape(f"put it at {tmp_path}/hub/checkpoints/{name}")
    with pytest.raises(NoNetwork, match=rf"no network.*download https://.*{name}.*{where}"):
        load_weights(name)


def test_a_name_that_is_nearly_one(monkeypatch, tmp_path):
    near = "did you mean imagenet64_uncond_100M_1500K.pt"
    with pytest.raises(UserError, match=near):
        load_weights("imagenet64_uncond_100M_150K.pt")
    config = composed(
        "train", ["+experiment=transfer_demo", "source.from=imagenet64_uncond_100M.pt"]
    )
    with pytest.raises(UserError, match=near):
        find_source(check_run_config(config))


def test_a_fetched_file_that_is_damaged_says_how_it_is_fetched_again(server, monkeypatch, tmp_path):
    made = network(ADM)
    file = publish_small(server, monkeypatch, tmp_path, to_openai(made.state_dict(), made), ADM)
    file.parent.mkdir(parents=True)
    file.write_bytes(server.files[AT][:1000])
    with pytest.raises(
        UserError, match=rf"{file} has 1000 bytes.*Remove it, and the same command fetches"
    ):
        load_weights("small.pt")
    row = {"url": server.url + AT, "licence": "MIT"}  # nor does anybody know its size or checksum
    publish(monkeypatch, tmp_path, {"small.pt": row})
    with pytest.raises(UserError, match=rf"{file}: .*Remove it, and the same command fetches"):
        load_weights("small.pt")
    file.write_text("<html>quota</html>")
    with pytest.raises(UserError, match="a web page, and no file of weights.*Remove it, and the"):
        load_weights("small.pt")
    file.unlink()
    assert load_weights("small.pt").path == file
    stated = stated_config("small.pt", None, [*ADM, "model.groups=7"])
    with pytest.raises(UserError) as error:  # of the settings, and not of the file
        load_weights("small.pt", stated=stated)
    assert "Remove it" not in str(error.value)


def test_a_source_that_does_not_fit_is_told_before_it_is_fetched(server, monkeypatch, tmp_path):
    made = network(ADM)
    publish_small(server, monkeypatch, tmp_path, to_openai(made.state_dict(), made), ADM)
    monkeypatch.setattr(
        "training.pretrained_source.published_config",
        lambda name: RunConfig(composed("train", ADM)) if name == "small.pt" else None,
    )
    config = composed("train", ["+experiment=transfer_demo", "source.from=small.pt"])
    with pytest.raises(UserError, match="model"):
        find_source(check_run_config(config))
    assert not server.asked


def test_a_run_finds_its_downloaded_source_again_on_another_machine(server, monkeypatch, tmp_path):
    made = network(ADM)
    file = publish_small(server, monkeypatch, tmp_path, to_openai(made.state_dict(), made), ADM)
    config = RunConfig(composed("train", ADM))
    origin = {"from": "small.pt", "path": "/another/machine/small.pt", "weights": "ema.safetensors"}
    origin |= {"sha256": table_row(server, AT)["sha256"]}
    assert source_of(origin, config, None).path == file
    # a path of then is no name of now, though it looks like one of the Hub
    moved = origin | {"from": "runs/pretrain", "path": "runs/pretrain/checkpoints/step_1"}
    with pytest.raises(UserError, match="was in runs/pretrain/checkpoints/step_1"):
        source_of(moved, config, None)


def test_every_published_file_of_weights_can_be_fetched():
    known = yaml.safe_load((ROOT / "conf/published.yaml").read_text())
    assert known.keys() <= published().keys()
    for name in known:
        assert RunConfig(composed("train", known[name])).raw["model"]


# --- the Hub --------------------------------------------------------------------------------------


def write_diffusers(folder: Path, safe: bool) -> Path:
    """A small model of diffusers', by its own writer; its weights are large enough for the Hub to
    keep them apart."""
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    blocks |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(16, block_out_channels=(32, 32), layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder, safe_serialization=safe)
    return folder


@pytest.fixture
def on_the_hub(server, monkeypatch, tmp_path):
    """on_the_hub(safe): the path of the weights in a repository google/ddpm-small."""
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(safe: bool) -> str:
        add_repository(server, "google/ddpm-small", write_diffusers(tmp_path / "made", safe))
        suffix = "safetensors" if safe else "bin"
        return f"/google/ddpm-small/resolve/{COMMIT}/unet/diffusion_pytorch_model.{suffix}"

    return add


@pytest.mark.parametrize("safe", [True, False])
def test_a_name_on_the_hub_is_downloaded_once(on_the_hub, server, safe, tmp_path, caplog):
    at = on_the_hub(safe)
    server.faults[at] = Fault(cut=100_000, times=1)
    with caplog.at_level("INFO"):
        found = load_weights("google/ddpm-small")
    theirs = UNet2DModel.from_pretrained(tmp_path / "made/unet", use_safetensors=safe)
    assert found.load("ema")["conv_in.bias"].tolist() == theirs.conv_in.bias.tolist()
    assert "HTTP Request" not in caplog.text  # of its client, a line for each request
    before = server.sent[at]
    load_weights("google/ddpm-small")
    assert server.sent[at] == before


def test_what_does_not_have_the_hubs_sha256_is_put_aside(on_the_hub, server, tmp_path):
    """The library of the Hub compares sizes alone."""
    at = on_the_hub(True)
    whole = server.files[at]
    server.files[at] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(UserError, match=r"has the sha256 \w+, and the Hub states \w+.*put aside"):
        load_weights("google/ddpm-small")
    assert list((tmp_path / "hub").rglob("*.wrong"))
    server.files[at] = whole
    assert load_weights("google/ddpm-small").digests["ema"] == json.loads(
        server.headers[at]["ETag"]
    )


def of_client(package: str) -> type[Exception]:
    """An error of the network, which is of whatever package the Hub's library uses."""
    return type("ReadTimeout", (Exception,), {"__module__": f"{package}._exceptions"})


def wrapped(error: Exception, **of_cause: object) -> Exception:
    """As the Hub's library does with what it was answered."""
    error.__cause__ = Exception()
    vars(error.__cause__).update(of_cause)
    return error


@pytest.mark.parametrize(
    ("error", "silence"),
    [
        (of_client("httpx")("slow"), True),
        (of_client("requests")("peer closed connection"), True),
        (ConnectionResetError("reset"), True),
        (NotADirectoryError(20, "Not a directory"), False),
        (OSError(28, "No space left on device"), False),
        (PermissionError(13, "Permission denied"), False),
        (
            wrapped(huggingface_hub.errors.LocalEntryNotFoundError("403 Forbidden"), response=403),
            False,
        ),
        (wrapped(huggingface_hub.errors.LocalEntryNotFoundError("no answer")), True),
    ],
)
def test_a_network_that_is_gone_and_a_disk_that_is_full_are_two_things(monkeypatch, error, silence):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=re.escape(str(error.args[-1]))) as told:
        hub.download("google/ddpm-small")
    assert isinstance(told.value, NoNetwork) == silence


def test_no_such_name_and_no_network_are_two_things(on_the_hub, monkeypatch):
    on_the_hub(True)
    with pytest.raises(UserError, match="no such name, or it is private") as error:
        load_weights("google/ddpm-smal")
    assert not isinstance(error.value, NoNetwork)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        NoNetwork, match=r"failed: no network: .*hf download google/ddpm-other --local"
    ):
        hub.download("google/ddpm-other")


def test_a_signal_while_weights_are_read_is_no_damage(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Preempted(signal.SIGTERM)

    torch.save({}, tmp_path / "weights.pt")
    monkeypatch.setattr(torch, "load", stopped)
    with pytest.raises(Preempted):
        read_weights(tmp_path / "weights.pt")
