"""The first thing to run on a machine with a network: what the world has published, fetched, opened
and tried, one after the other.

    python -m benchmarks.contact --out contact [NAME ...]

A row is a file of weights, a data set, a network of features or an experiment that starts from such
ones. Each runs in a process of its own and ends as one line of DIR/results.jsonl, and in
DIR/page.html with its pictures: seen, failed and why, or waiting for a network. The same command
again tries those that are not seen yet, by the same code on the same device.
docs/compatibility.md is made from such files. A GPU is used where there is one. All rows fetch
about 4 GB; on two CPU cores a row of 256 pixels takes half an hour, the others minutes. Exit codes:
0, 1 where a row failed, 2 for a mistake in the command.
"""

from __future__ import annotations

import argparse
import html
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import contact_rows
from benchmarks.common import reason
from benchmarks.contact_row import Row
from benchmarks.record import Record, Results, spoken
from runtime.device import pick_device
from runtime.errors import UserError, near, one_message
from runtime.files import write_atomically
from runtime.log import log_to_terminal, table
from runtime.receive import NoNetwork

MODULE, PAGE = "benchmarks.contact", "page.html"
LEGEND = """<p>Of weights: gray_levels_apart is the largest difference, of 255, between eight
images of ours and of another implementation, from the same noise (at most 0.5). The losses are mean
squared errors of the predicted noise on four photographs: of the network; told 0.7 t and 1.4 t,
where it should be larger; and of the best guess from one pixel alone, which the first must be
below. Of images: counts of the official set, and pixels and labels of 64 images against the
file.</p>"""
STYLE = "body{font:15px sans-serif;margin:2em;max-width:60em} img{image-rendering:pixelated}"


def run(row: Row, results: Results, out: Path, steps: int) -> int:
    """One row, in this process. Returns the exit code."""
    began = time.monotonic()
    try:
        found: Record = {"state": "seen", **row.run(row, results.device, out, steps)}
    except NoNetwork as error:
        found = {"state": "waits", "why": str(error)}
    except (Exception, SystemExit) as error:  # it is told, and the other rows go on
        why = str(error) if isinstance(error, UserError) else reason(error, 600)
        found = {"state": "failed", "why": why}
    found["seconds"] = round(time.monotonic() - began, 1)
    results.add("contact", name=row.name, kind=row.kind, steps=steps, **found)
    return int(found["state"] == "failed")


def run_apart(row: Row, results: Results, out: Path, steps: int) -> None:
    """One row, in a process of its own, which may end as it likes."""
    before = results.lines()
    command = [sys.executable, "-m", MODULE, row.name, "--in-this-process"]
    command += ["--out", str(out), "--steps", str(steps), "--device", str(results.device)]
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # which it was given too
        process.wait()
        raise
    if results.lines() == before:
        why = f"its process ended with {code}"
        results.add("contact", name=row.name, kind=row.kind, steps=steps, state="failed", why=why)


def newest(results: Results, steps: int) -> dict[str, Record]:
    """The last line of each row that was tried with so many steps."""
    return {r["name"]: r for r in results.records() if r.get("steps") == steps}


def summary(record: Record) -> str:
    return record["why"] if "why" in record else spoken(record.get("found", {}))


def page(records: dict[str, Record], results: Results, out: Path) -> str:
    """All rows on one page, with their pictures."""
    where = ", ".join(f"{key} {value}" for key, value in results.where.items() if value)
    parts = [f"<!doctype html><meta charset=utf-8><title>contact</title><style>{STYLE}</style>"]
    parts.append(f"<h1>What the world has published, tried</h1><p>{html.escape(where)}</p>{LEGEND}")
    for row in (row for row in contact_rows.ROWS if row.name in records):
        record = records[row.name]
        title = f"{row.name}: {record['state']}"
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(row.about)}</p>")
        file = "; file: " + spoken(record["file"]) if "file" in record else ""
        parts.append(f"<p>{html.escape(summary(record) + file)}</p>")
        for picture, caption in record.get("pictures", {}).items():
            if (out / picture).is_file():
                parts.append(f"<p>{html.escape(caption)}</p><img src='{html.escape(picture)}'>")
    left = [row.name for row in contact_rows.ROWS if row.name not in records]
    parts.append(f"<p>not tried: {html.escape(', '.join(left)) or 'none'}</p>")
    return "\n".join(parts)


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """Those of the names; all where there are none.

    Raises:
        UserError: for a name that is none, with the near ones.
    """
    known = {row.name: row for row in contact_rows.ROWS}
    for name in names:
        if name not in known:
            raise UserError(f"{name}: no such row; {near(name, known)}")
    return [known[name] for name in names] or list(contact_rows.ROWS)


@one_message
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contact", description=__doc__)
    parser.add_argument("names", nargs="*", help="of the rows; all where none is given")
    parser.add_argument("--out", type=Path, default=Path("contact"))
    parser.add_argument("--device", default="auto", help="auto, cuda, or cpu")
    parser.add_argument("--steps", type=int, default=20, help="of sampling and of training")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    rows = chosen_rows(chosen.names)
    if chosen.steps < 1:
        raise UserError(f"--steps {chosen.steps}: at least 1.")
    if chosen.list:
        print(table([["row", "what"], *([row.name, row.about] for row in rows)]))
        return
    results = Results(chosen.out, pick_device(chosen.device))
    if chosen.in_this_process:
        log_to_terminal()
        sys.exit(run(rows[0], results, chosen.out, chosen.steps))
    for k, row in enumerate(rows, 1):
        if newest(results, chosen.steps).get(row.name, {}).get("state") == "seen":
            continue
        print(f"[{k} of {len(rows)}] {row.name}: {row.about}", flush=True)
        run_apart(row, results, chosen.out, chosen.steps)
        records = newest(results, chosen.steps)
        lost = {"state": "lost"}  # its line is of code that changed meanwhile
        record = records.get(row.name, lost)
        print(f"  {record['state']}: {summary(record)}", flush=True)
        write_atomically(chosen.out / PAGE, page(records, results, chosen.out))
    report(rows, newest(results, chosen.steps), results, chosen.out)


def report(rows: Sequence[Row], records: dict[str, Record], results: Results, out: Path) -> None:
    """The table of states. Exits with 1 where a row failed."""
    write_atomically(out / PAGE, page(records, results, out))
    states = {row.name: records.get(row.name, {}).get("state", "failed") for row in rows}
    print(f"\n{results.where['device']}, commit {results.where['commit']}; {results.path}")
    print(table([["row", "state"], *map(list, states.items())]))
    if waiting := [name for name, state in states.items() if state == "waits"]:
        print(f"waiting for a network: {', '.join(waiting)}. The same command goes on.")
    print(f"pictures: {out / PAGE}")
    sys.exit(int("failed" in states.values()))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; what came is kept, and the same command goes on", flush=True)
        sys.exit(130)
