"""A server of files on this machine, in place of those of the world: it serves ranges, and cuts,
changes, slows or refuses what a test says."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from runtime import download, receive
from tests.helpers import ROOT


@dataclass
class Fault:
    """What goes wrong with one file.

    Args:
        cut: bytes of an answer after which the connection is closed.
        times: how often, of all requests of the file; the later ones are served whole.
        status: an answer of this code in place of the file.
        ranges: whether the server knows Range.
        rate: bytes a second.
        page: a web page in place of the file.
        say: header lines in place of the right ones; None leaves one out.
        short: bytes of a range that is asked for, which then is all that the answer says to be.
    """

    cut: int | None = None
    times: int = 10**9
    status: int | None = None
    ranges: bool = True
    rate: float | None = None
    page: bool = False
    say: dict[str, str | None] = field(default_factory=dict)
    short: int | None = None


@dataclass
class FileServer:
    """files: path -> content, by "/a/b". asked: (method, path, Range) of each request."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    about: FileServer  # of the class that serving makes

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        server, path = self.about, self.path.split("?")[0]
        before = sum((m, p) == (self.command, path) for m, p, _ in server.asked)
        server.asked.append((self.command, path, self.headers.get("Range")))
        fault = server.faults.get(path, Fault())
        wrong = with_body and before < fault.times
        if path not in server.files:
            self._say(404, b"no\n", {"X-Error-Code": "RepoNotFound"})  # as the Hub says it
        elif wrong and fault.status:
            self._say(fault.status, b"no\n", {})
        elif wrong and fault.page:
            self._say(200, b"<html>quota</html>", {"Content-Type": "text/html"})
        else:
            self._serve(path, fault, fault.cut if wrong else None, with_body)

    def _serve(self, path: str, fault: Fault, cut: int | None, with_body: bool) -> None:
        data, asked = self.about.files[path], self.headers.get("Range")
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": tag, "Content-Type": "application/octet-stream"}
        headers |= self.about.headers.get(path, {})
        begin = 0
        if asked and fault.ranges and self.headers.get("If-Range") in (None, headers["ETag"]):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            if begin >= len(data):
                return self._say(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        end = len(data) if cut is None else begin + cut
        if begin and fault.short:
            end = begin + fault.short
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        length = (end if begin and fault.short else len(data)) - begin
        headers |= {"Content-Length": str(length), **fault.say}
        self._head(206 if begin else 200, {k: v for k, v in headers.items() if v is not None})
        if with_body:
            self._send(path, data[begin:end], fault.rate)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, headers | {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _send(self, path: str, data: bytes, rate: float | None) -> None:
        step = max(1, int(rate / 20) if rate else 1 << 16)
        for start in range(0, len(data), step):
            part = data[start : start + step]
            self.about.sent[path] += len(part)  # before who asked has it, and looks here
            try:
                self.wfile.write(part)
            except OSError:  # the other side has gone
                return
            if rate:
                time.sleep(0.05)


@contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[FileServer]:
    """A running server of these files; more may be added while it runs."""
    about = FileServer(0, dict(files or {}))
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"about": about})
    ) as http:
        about.port = http.server_address[1]
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield about
        finally:
            http.shutdown()
            thread.join()


def table_row(server: FileServer, path: str, **changed: object) -> dict[str, object]:
    """What conf/downloads.yaml would say of a file that the server has."""
    data = server.files[path]
    row = {"url": server.url + path, "licence": "MIT", "bytes": len(data)}
    return row | {"sha256": hashlib.sha256(data).hexdigest()} | changed


def publish(monkeypatch, folder: Path, rows: dict[str, dict[str, object]]) -> None:
    """Puts rows into the table of this process in place of those with their names, and the weights
    that are fetched into folder."""
    real = yaml.safe_load((ROOT / "conf/downloads.yaml").read_text())
    table = folder / "downloads.yaml"
    table.write_text(yaml.safe_dump(real | rows))
    monkeypatch.setattr(download, "TABLE", table)
    monkeypatch.setattr(receive, "PAUSE", 0.0)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
