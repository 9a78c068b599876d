"""Fetching published files by name, from a server on this machine that cuts, changes, slows and
refuses."""

from __future__ import annotations

import multiprocessing
import random
import re
import socket
from pathlib import Path

import pytest
import yaml

from runtime import download
from runtime.download import NoNetwork, fetch, published
from runtime.errors import UserError
from tests.helpers import ROOT
from tests.helpers.file_server import Fault, publish, serving, table_row

DATA = random.Random(0).randbytes(3_000_000)
AT = "/files/weights.pt"


@pytest.fixture
def server():
    with serving({AT: DATA}) as running:
        yield running


@pytest.fixture
def path(tmp_path, monkeypatch, server) -> Path:
    publish(monkeypatch, tmp_path, {"weights.pt": table_row(server, AT)})
    return tmp_path / "some/weights.pt"


def asked(server) -> list[str | None]:
    return [found for _, _, found in server.asked]


def test_a_file_is_fetched_once_with_a_bar_and_is_whole(server, path, capsys, caplog):
    with caplog.at_level("INFO"):
        assert fetch("weights.pt", path) == path
    assert path.read_bytes() == DATA
    assert "licence: MIT" in caplog.text and server.url in caplog.text
    assert "weights.pt: 100%" in capsys.readouterr().err
    fetch("weights.pt", path)
    assert len(server.asked) == 1
    # nothing else is left
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == ["weights.pt"]


def test_one_that_is_cut_goes_on_where_it_was_cut(server, path):
    server.faults[AT] = Fault(cut=1_000_001, times=2)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA
    assert asked(server) == [None, "bytes=1000001-", "bytes=2000002-"]
    assert server.sent[AT] == len(DATA)  # no byte twice


def test_one_that_brings_nothing_is_given_up_and_the_next_start_goes_on(server, path):
    fetched = path.with_name("weights.pt.part")
    server.faults[AT] = Fault(cut=0)
    with pytest.raises(NoNetwork, match="stopped answering"):
        fetch("weights.pt", path)
    assert len(server.asked) == download.TRIES
    fetched.write_bytes(DATA[:500_000])
    with pytest.raises(NoNetwork, match="0.50 MB of it are kept, and the same command goes on"):
        fetch("weights.pt", path)
    server.faults.clear()
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA and asked(server)[-1] == "bytes=500000-"


def test_a_start_of_another_time_is_gone_on_with(server, path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(download.time, "sleep", killed)
        server.faults[AT] = Fault(cut=1_234_567, times=1)
        with pytest.raises(KeyboardInterrupt):
            fetch("weights.pt", path)
    assert not path.exists() and path.with_name("weights.pt.part").stat().st_size == 1_234_567
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA and asked(server) == [None, "bytes=1234567-"]


def test_a_file_that_changed_in_between_is_fetched_from_its_first_byte(server, path, monkeypatch):
    """Half of one version and half of another would have the right size and a wrong checksum."""
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(b"x" * 1000)
    path.with_name(".weights.pt.part.etag").write_text('"of another version"')
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server, path):
    server.faults[AT] = Fault(cut=1_000_000, times=2, ranges=False)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("there", [len(DATA), len(DATA) + 5])
def test_more_than_the_file_has_is_no_beginning_of_it(server, path, there):
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(b"x" * there)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_a_wrong_checksum_is_refused_and_put_aside(server, path):
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    server.files[AT] = wrong
    with pytest.raises(
        UserError, match=r"sha256 is \w+, and that of weights.pt \w+\. What 127.0.0.1"
    ):
        fetch("weights.pt", path)
    assert not path.exists() and path.with_name("weights.pt.wrong").read_bytes() == wrong
    server.files[AT] = DATA  # and the next start is not held up by it
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_a_beginning_that_is_wrong_is_found_and_not_gone_on_with_for_ever(server, path):
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="put aside as weights.pt.wrong"):
        fetch("weights.pt", path)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_md5_serves_where_it_is_what_was_published(server, path, monkeypatch, tmp_path):
    import hashlib

    row = table_row(server, AT, md5=hashlib.md5(DATA[1:]).hexdigest())
    publish(monkeypatch, tmp_path, {"weights.pt": {k: v for k, v in row.items() if k != "sha256"}})
    with pytest.raises(UserError, match=rf"md5 is.*By hand: .*{AT} \(md5 {row['md5']}\) where"):
        fetch("weights.pt", path)


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, path):
    server.files[AT] = DATA + b"more"
    server.faults[AT] = Fault(rate=1e6)
    with pytest.raises(
        UserError, match="3000004 bytes under that name, and the published file has 3000000"
    ):
        fetch("weights.pt", path)
    assert server.sent[AT] < len(DATA)


def test_without_a_published_checksum_the_one_found_is_told(server, tmp_path, monkeypatch, caplog):
    publish(monkeypatch, tmp_path, {"weights.pt": {"url": server.url + AT, "licence": "MIT"}})
    server.faults[AT] = Fault(cut=10, times=1)
    fetch("weights.pt", tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == DATA
    assert table_row(server, AT)["sha256"] in caplog.text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=404), "answers 404"),
        (Fault(status=403), "answers 403"),
        (Fault(page=True), "a web page in place of the file"),
    ],
)
def test_what_cannot_be_had_is_told_with_the_place_to_put_it(server, path, fault, message):
    server.faults[AT] = fault
    sha256 = table_row(server, AT)["sha256"]
    where = re.escape(
        f"By hand: download {server.url}{AT} (sha256 {sha256}) where there is a network, and put "
        f"it at {path}."
    )
    with pytest.raises(UserError, match=f"{message}.*{where}") as error:
        fetch("weights.pt", path)
    assert not isinstance(error.value, NoNetwork) and len(server.asked) == 1


def test_a_server_that_is_busy_is_asked_again(server, path):
    server.faults[AT] = Fault(status=503, times=3)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_a_machine_without_a_network_is_told_at_once(path, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/weights.pt"
    publish(monkeypatch, tmp_path, {"weights.pt": {"url": url, "licence": "MIT"}})
    with pytest.raises(
        NoNetwork, match="no network: 127.0.0.1.*Connection refused.*weights.pt where.*put it at"
    ):
        fetch("weights.pt", path, "Or do without.")
    assert not path.exists()


def test_a_server_that_goes_silent_is_given_up(server, path, monkeypatch):
    server.faults[AT] = Fault(rate=40.0, cut=20)  # two bytes each 0.05 s, then silence is a cut
    monkeypatch.setattr(download, "TIMEOUT", 0.02)
    monkeypatch.setattr(download, "TRIES", 2)
    with pytest.raises(NoNetwork, match="stopped answering"):
        fetch("weights.pt", path)


def _fetch_in(path: Path, table: Path) -> None:
    download.TABLE = table
    fetch("weights.pt", path)


def test_processes_that_want_the_same_file_fetch_it_once(server, path):
    server.faults[AT] = Fault(rate=8_000_000)
    at_once = [
        multiprocessing.get_context("spawn").Process(target=_fetch_in, args=(path, download.TABLE))
        for _ in range(3)
    ]
    for process in at_once:
        process.start()
    for process in at_once:
        process.join()
    assert [process.exitcode for process in at_once] == [0, 0, 0]
    assert path.read_bytes() == DATA and len(server.asked) == 1


def test_every_row_of_the_table_can_be_read_and_says_what_its_name_promises():
    rows = yaml.safe_load((ROOT / "conf/downloads.yaml").read_text())
    assert published().keys() == rows.keys()
    for name, row in published().items():
        assert row.url.startswith("https://") and row.licence
        assert row.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", row.sha256), name
        assert row.md5 is None or re.fullmatch(r"[0-9a-f]{32}", row.md5), name
        # torch's convention: the first digits of the sha256 in the name
        if in_name := re.search(r"-([0-9a-f]{8})\.pth", name):
            assert row.sha256.startswith(in_name[1])
