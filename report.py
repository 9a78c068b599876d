"""What the runs of an experiment came to: python report.py runs/EXPERIMENT

Prints a table and writes into that folder: report.html, one page that needs no other file; the same
as report.md, with its plots in report_figures/; report.csv, a row for each run; and samples.png,
the newest samples side by side."""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

import sys
from itertools import product
from pathlib import Path

from reporting.page import FIGURES, LEGEND, Report
from reporting.report_pictures import side_by_side
from reporting.runs import read_runs
from reporting.table import OF_IMAGES
from runtime.checkpoint import told_below
from runtime.errors import UserError, near, script
from runtime.files import write_atomically, write_csv
from runtime.log import table

LEFT_OUT = ("precision", "density", "coverage")  # on the terminal, which is narrow


@script
def main(arguments: list[str]) -> None:
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("usage: python report.py runs/EXPERIMENT")
    folder = Path(arguments[0])
    if not folder.is_dir():
        siblings = [str(p) for p in folder.parent.glob("*") if p.is_dir()]
        raise UserError(f"{folder}: no such folder; {near(str(folder), siblings)}")
    report = Report(folder, read_runs(folder))
    if not report.runs:
        raise UserError(
            f"{folder}: no runs in it. {told_below(folder)}Give the folder of an experiment, "
            "runs/EXPERIMENT."
        )
    text = printed(report)
    print(text)
    if OF_IMAGES in text:
        print(LEGEND)
    for heading, sentences in report.verdicts:
        print("", *[f"{heading}:"] * (heading != ""), *sentences, sep="\n")
    if report.missing:
        print("\nMissing:\n  " + "\n  ".join(report.missing))
    print("\n" + "\n".join(str(folder / name) for name in write(report)))


def write(report: Report) -> list[str]:
    """The files -> their names. Figures of an earlier report are removed once all are written, as
    the disk may be full."""
    contents: dict[str, str | bytes] = {
        "report.html": report.written("page.html.j2"),
        "report.md": report.written("page.md.j2"),
    }
    if report.samples:
        contents["samples.png"] = side_by_side(report.samples)
    figures = {
        f"{FIGURES}/{plot.name}.{suffix}": getattr(plot, suffix)
        for plot, suffix in product(report.drawn, ("svg", "pdf"))
    }
    earlier = {*report.folder.glob("report_*.svg"), *report.folder.glob(f"{FIGURES}/*")}
    (report.folder / FIGURES).mkdir(exist_ok=True)
    for name, content in (figures | contents).items():
        write_atomically(report.folder / name, content)
    write_csv(report.folder / "report.csv", report.raw())
    for old in earlier - {report.folder / name for name in figures}:
        old.unlink()
    return [*contents, "report.csv", *([f"{FIGURES}/"] if figures else [])]


def printed(report: Report) -> str:
    """The main columns, over seeds."""
    columns = [column for column in report.columns if column.key not in LEFT_OUT]
    lines = [["strategy", *report.settings, *(column.heading for column in columns), "seeds"]]
    for row in report.table:
        settings = (str(row.settings.get(path, "-")) for path in report.settings)
        last = row.counted_text if row.finished else row.counted[0].progress
        lines.append([row.name, *settings, *(row.cell(c).in_table for c in columns), last])
    return table(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
