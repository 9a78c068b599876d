"""Features whose weights are fetched by name: what is fetched, from where, and that they are those
of the same file by its path. The files are random ones, from a server on this machine."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from metrics.features import Features, extract
from runtime import download
from runtime.config_schema import build
from runtime.errors import UserError
from tests.helpers.features import drawn, node_of, write_alexnet, write_dinov2, write_inception
from tests.helpers.file_server import publish, serving, table_row

LINEAR = "lpips_alex_v0.1.pth"
WRITERS = {"inception": write_inception, "lpips": write_alexnet, "dinov2": write_dinov2}
SIZES = {"inception": {}, "lpips": {}, "dinov2": {"size": 56}}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """By the name of the features; and the linear weights of LPIPS, which are the real ones."""
    folder = tmp_path_factory.mktemp("files")
    made = {name: write(folder / f"{name}.pth") for name, write in WRITERS.items()}
    (package,) = importlib.util.find_spec("lpips").submodule_search_locations
    return made | {LINEAR: Path(package) / "weights/v0.1/alex.pth"}


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    """It has what the configs name. Nothing else is here, nor the package lpips."""
    named = {LINEAR: LINEAR} | {node_of(name)["path"]: name for name in WRITERS}
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.chdir(tmp_path)
    with serving({f"/{name}": files[file].read_bytes() for name, file in named.items()}) as running:
        publish(monkeypatch, tmp_path, {name: table_row(running, f"/{name}") for name in named})
        yield running


def features(name: str, **changed: str) -> Features:
    return build(node_of(name) | SIZES[name] | changed, ["metrics"], "features")


def names_of(name: str) -> list[str]:
    """The files that features are made of."""
    return [node_of(name)["path"], *[LINEAR] * (name == "lpips")]


def asked(server) -> list[str]:
    return [path.removeprefix("/") for _, path, _ in server.asked]


@pytest.mark.parametrize("name", WRITERS)
def test_a_name_is_fetched_once_and_is_the_same_file(server, files, tmp_path, name):
    """The identity is what evaluations and cached features are found by."""
    fetched, images, names = features(name), drawn(2, 56, 56, 3), names_of(name)
    assert asked(server) == names
    for each in names:
        assert (tmp_path / "torch/hub/checkpoints" / each).is_file()
    given, again = features(name, path=str(files[name])), features(name)
    assert fetched.identity == given.identity == again.identity and asked(server) == names
    for what in (given, again):
        assert torch.equal(extract(fetched, images).features, extract(what, images).features)


def test_a_file_of_that_name_in_the_working_directory_is_taken_as_it_is(server, files, tmp_path):
    name = node_of("inception")["path"]
    (tmp_path / name).symlink_to(files["inception"])
    features("inception")
    assert not server.asked


def test_the_linear_weights_of_an_installed_package_are_those_that_are_fetched(
    server, files, monkeypatch
):
    fetched = features("lpips")
    monkeypatch.undo()  # the package is here again
    assert importlib.util.find_spec("lpips")
    assert features("lpips", path=str(files["lpips"])).identity == fetched.identity


def test_the_published_linear_weights_are_those_of_the_package(files):
    download.published()[LINEAR].check(files[LINEAR])


@pytest.mark.parametrize("name", WRITERS)
def test_without_a_network_one_message_has_url_checksum_and_place(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError) as error:
        features(name)
    for known in (download.published()[each] for each in names_of(name)):
        by_hand = re.escape(
            f"By hand: download {known.url} ({known.size}sha256 {known.sha256}) where there is a "
            f"network, and put it at {tmp_path}/hub/checkpoints/{known.name}."
        )
        assert re.search(f"no network: {urlsplit(known.url).netloc} .*{by_hand}", str(error.value))
