"""The report as Markdown, with its plots as files beside it."""

from __future__ import annotations

from collections.abc import Sequence

from reporting.columns import FLOORS
from reporting.page import PLOT_CSS, Report, pairs_text, words
from reporting.plots import Absent, Figure
from reporting.table import Row


def markdown(report: Report) -> str:
    """Without the pictures but samples.png: those that are in the page."""
    parts = [f"# {report.name}"]
    for data, sentences in report.verdicts:
        parts += [*([f"**{data}**"] if data else []), "\n".join(f"- {sentence}" for sentence in sentences)]
    parts.append("\n".join(f"- {term}: {text}" for term, text in report.facts))
    parts += ["## All strategies", "The best first; \"-\" is not known yet. In brackets 95% intervals, over seeds where there are two or more.",
              markdown_table([heading(report, "seeds"), *(cells(report, row, str(len(row.counted)) if row.finished else "unfinished")
                                                          for row in report.table)])]
    if report.floors:
        parts += ["### Floors", markdown_table([heading(report, "n"), *(cells(report, row, str(len(row.runs))) for row in report.floors)])]
    parts += ["### Single runs", markdown_table([heading(report, "run"), *(
        cells(report, row.single(run), " ".join(filter(None, [run.name, run.progress]))) for row in report.table for run in row.runs)])]
    for figure in report.figures:
        if isinstance(figure, Absent):
            parts.append(f"{figure.title}: {figure.why}")
        else:
            parts += [f"## {figure.title}", figure.caption, *(f"{name and name + ' '}![{figure.title}]({file})"
                                                              for file, name in zip(files(figure), (p[0] for p in figure.panels), strict=True))]
    if report.samples:
        parts += ["## Samples", "The newest of each strategy, from the same noise.", "![samples](samples.png)"]
    if report.closest:
        parts += ["## Closest pairs", "Generated image and its nearest training image; the pictures are closest.png of each evaluation."]
        parts += [f"- {found.label}: {'; '.join(pairs_text(found.pairs, 3))}" for found in report.closest]
    if report.missing:
        parts += ["## Missing", "\n".join(f"- {line}" for line in report.missing)]
    parts += ["## How to read it", "\n".join(f"- {column.heading}{f' ({column.better} is better)' * bool(column.better)}: {column.means}"
                                             for column in report.columns)]
    if report.floors:
        parts.append("\n".join(f"- floor, {name}: {means}" for name, means in FLOORS.items()))
    return "\n\n".join(parts) + "\n"


def heading(report: Report, last: str) -> list[str]:
    return ["strategy", *report.settings, *(column.heading for column in report.columns), last]


def cells(report: Report, row: Row, last: str) -> list[str]:
    found = [row.name, *(words(row.settings[path]) if path in row.settings else "-" for path in report.settings)]
    for column in report.columns:
        cell = row.cell(column)
        found.append(" ".join(filter(None, [cell.text(column), column.band and cell.band(column)])))
    return [*found, last]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, ["---"] * len(head), *body))
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)


def files(figure: Figure) -> list[str]:
    """The names of its panels as files."""
    return [f"report_{figure.name}{f'_{k}' if len(figure.panels) > 1 else ''}.svg" for k in range(1, len(figure.panels) + 1)]


def standalone(svg: str) -> str:
    """A plot as a file of its own: it follows the light or dark of who looks at it."""
    begin, rest = svg.split(">", 1)
    return f'{begin} xmlns="http://www.w3.org/2000/svg" style="background:var(--back)">\n<style>\n{PLOT_CSS}</style>{rest}\n'
