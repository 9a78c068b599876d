"""Fetching published files by name, from a server on this machine that cuts, changes, slows and
refuses."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import socket
import ssl
import urllib.error
from pathlib import Path

import pytest
import yaml

from runtime import download, receive
from runtime.download import fetch, published
from runtime.errors import UserError
from runtime.receive import NoNetwork
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
    assert len(server.asked) == receive.TRIES
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
        patched.setattr(receive.time, "sleep", killed)
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
    path.with_name(".weights.pt.part.version").write_text('"of another version"')
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_a_server_without_ranges_is_asked_for_all_of_it_again(server, path):
    server.faults[AT] = Fault(cut=1_000_000, times=2, ranges=False)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_more_than_the_file_has_is_no_beginning_of_it(server, path):
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(b"x" * (len(DATA) + 5))
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA


def test_one_that_was_killed_at_its_end_is_not_fetched_again(server, path):
    """While its checksum was computed, which takes seconds of gigabytes."""
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(DATA)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA and not server.asked


# --- files that nobody has published a size or a checksum of --------------------------------------


@pytest.fixture
def unknown(server, tmp_path, monkeypatch) -> Path:
    publish(monkeypatch, tmp_path, {"weights.pt": {"url": server.url + AT, "licence": "MIT"}})
    return tmp_path / "weights.pt"


def test_without_a_published_checksum_the_one_found_is_told(server, unknown, caplog):
    server.faults[AT] = Fault(cut=10, times=1)
    fetch("weights.pt", unknown)
    assert unknown.read_bytes() == DATA and asked(server) == [None, "bytes=10-"]
    assert table_row(server, AT)["sha256"] in caplog.text


def test_two_versions_are_never_mixed(server, unknown, monkeypatch):
    """Cut, and changed before it is asked again: by the version that the server names."""
    server.faults[AT] = Fault(cut=1000, times=1)
    other = bytes(reversed(DATA))

    def changed(_):
        server.files[AT] = other

    monkeypatch.setattr(receive.time, "sleep", changed)
    fetch("weights.pt", unknown)
    assert unknown.read_bytes() == other


def test_a_beginning_of_unknown_version_is_not_gone_on_with(server, unknown):
    unknown.with_name("weights.pt.part").write_bytes(b"x" * 1000)
    fetch("weights.pt", unknown)
    assert unknown.read_bytes() == DATA and asked(server) == [None]


def test_another_version_in_answer_to_a_range_is_seen(server, unknown):
    """A server that does not know If-Range."""
    unknown.with_name("weights.pt.part").write_bytes(b"x" * 1000)
    unknown.with_name(".weights.pt.part.version").write_text('"of another version"')
    server.headers[AT] = {"ETag": '"now"'}

    class Deaf(str):
        def __eq__(self, other):
            return True

        __hash__ = str.__hash__

    server.headers[AT]["ETag"] = Deaf('"now"')
    fetch("weights.pt", unknown)
    assert unknown.read_bytes() == DATA and asked(server) == ["bytes=1000-", None]


def test_a_weak_tag_is_no_name_of_a_version_and_a_date_is(server, unknown):
    """If-Range with a weak tag never holds (RFC 9110, 13.1.5)."""
    date = "Wed, 21 Oct 2020 07:28:00 GMT"
    server.faults[AT] = Fault(cut=1000, times=1, say={"ETag": 'W/"a"', "Last-Modified": date})
    server.headers[AT] = {"ETag": date}  # what the server holds If-Range against
    fetch("weights.pt", unknown)
    assert unknown.read_bytes() == DATA and asked(server) == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    "say",
    [
        {"Content-Length": None},
        {"Content-Length": "abc"},
        {"Content-Encoding": "gzip"},
        {"Content-Type": "application/json"},
    ],
)
def test_what_could_be_a_part_or_another_thing_is_refused(server, unknown, say):
    server.faults[AT] = Fault(say=say, cut=100_000)
    with pytest.raises(UserError, match="does not say how long|in place of the file"):
        fetch("weights.pt", unknown)
    assert not unknown.exists()


def test_an_empty_answer_is_no_file(server, unknown):
    server.files[AT] = b""
    with pytest.raises(UserError, match="does not say how long"):
        fetch("weights.pt", unknown)
    assert not unknown.exists()


def test_a_version_that_a_range_does_not_name_again_is_the_same(server, unknown):
    """RFC 9110, 15.3.7: what was asked for with If-Range need not be repeated."""
    date = "Wed, 21 Oct 2020 07:28:00 GMT"
    server.headers[AT] = {"ETag": date}  # what the server holds If-Range against
    server.faults[AT] = Fault(cut=1000, times=1, say={"ETag": None, "Last-Modified": date})

    def silent(_):
        server.faults[AT] = Fault(say={"ETag": None})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(receive.time, "sleep", silent)
        fetch("weights.pt", unknown)
    assert unknown.read_bytes() == DATA and asked(server) == [None, "bytes=1000-"]


def test_an_answer_that_is_refused_costs_nothing_of_what_was_there(server, path):
    part = path.with_name("weights.pt.part")
    part.parent.mkdir()
    part.write_bytes(DATA[:1000])
    server.files[AT] = b"quota is used up"
    server.faults[AT] = Fault(ranges=False)
    with pytest.raises(UserError, match="it is another one"):
        fetch("weights.pt", path)
    assert part.read_bytes() == DATA[:1000]


def test_a_range_shorter_than_asked_for_is_gone_on_with(server, path):
    server.faults[AT] = Fault(cut=1_000_000, times=1, short=700_000)
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA
    assert asked(server) == [None, "bytes=1000000-", "bytes=1700000-", "bytes=2400000-"]


@pytest.mark.parametrize("extent", [None, "bytes 5-9/10", "bytes */10", "nonsense"])
def test_a_range_that_was_not_asked_for_is_not_taken(server, path, extent):
    path.parent.mkdir()
    path.with_name("weights.pt.part").write_bytes(DATA[:1000])
    server.faults[AT] = Fault(say={"Content-Range": extent})
    fetch("weights.pt", path)
    assert path.read_bytes() == DATA and asked(server) == ["bytes=1000-", None]


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
    with pytest.raises(
        UserError, match=rf"md5 is.*By hand: .*{AT} \(3.00 MB, md5 {row['md5']}\) where"
    ):
        fetch("weights.pt", path)


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, path):
    server.files[AT] = DATA + b"more"
    server.faults[AT] = Fault(rate=1e6)
    with pytest.raises(
        UserError, match="3000004 bytes under that name, and the published file has 3000000"
    ):
        fetch("weights.pt", path)
    assert server.sent[AT] < len(DATA)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=404), "answers 404"),
        (Fault(status=403), "answers 403"),
        (Fault(page=True), "sent text/html in place of the file"),
    ],
)
def test_what_cannot_be_had_is_told_with_the_place_to_put_it(server, path, fault, message):
    server.faults[AT] = fault
    sha256 = table_row(server, AT)["sha256"]
    where = re.escape(
        f"By hand: download {server.url}{AT} (3.00 MB, sha256 {sha256}) where there is a network, "
        f"and put it at {path}."
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
    monkeypatch.setattr(receive, "TIMEOUT", 0.02)
    monkeypatch.setattr(receive, "TRIES", 2)
    with pytest.raises(NoNetwork, match="stopped answering"):
        fetch("weights.pt", path)


def test_a_certificate_is_distrusted_and_a_handshake_that_breaks_is_tried_again(path, monkeypatch):
    tries = []

    def refused(*_, **__):
        tries.append(1)
        raise urllib.error.URLError(error)

    monkeypatch.setattr(receive.urllib.request, "urlopen", refused)
    error = ssl.SSLCertVerificationError("self-signed certificate")
    with pytest.raises(UserError, match="cannot be trusted"):
        fetch("weights.pt", path)
    assert len(tries) == 1
    error = ssl.SSLEOFError("EOF occurred in violation of protocol")
    with pytest.raises(NoNetwork, match="stopped answering"):
        fetch("weights.pt", path)
    assert len(tries) == 1 + receive.TRIES


def test_a_full_disk_is_told(path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        fetch("weights.pt", path)
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_told_with_another(server, tmp_path, monkeypatch):
    publish(monkeypatch, tmp_path, {"weights.pt": table_row(server, AT)})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written.*TORCH_HOME=DIR is another place"):
        download.weights_named("weights.pt")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints/weights.pt").mkdir(parents=True)
    with pytest.raises(UserError, match="is there and is no file"):
        download.weights_named("weights.pt")
    assert not server.asked


def test_a_data_set_is_no_file_of_weights():
    assert download.weights_named("EuroSAT.zip") is None


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
