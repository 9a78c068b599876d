"""The report as Markdown, with its plots as files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reporting.columns import BASELINES, Column
from reporting.page import Report, pairs_text, words
from reporting.table import Row

FIGURES = "report_figures"  # folder


def markdown(report: Report) -> str:
    """Without the pictures but samples.png: those are in the page."""
    parts = [f"# {report.name}"]
    for data, sentences in report.verdicts:
        parts += [*([f"**{data}**"] if data else []), bullets(sentences)]
    parts += [
        bullets(f"{term}: {text}" for term, text in report.facts),
        "## All strategies",
        f'{report.ordered_by}; "-" is not known yet. In brackets {report.legend}',
        tabulated(report, report.columns, report.table),
    ]
    if report.baselines:
        parts += ["### Baselines", tabulated(report, report.columns, report.baselines)]
    if report.further:
        parts += [
            "### More numbers",
            tabulated(report, report.further, [*report.table, *report.baselines]),
        ]
    single = [
        (row.single(run), " ".join(filter(None, [run.name, run.progress])))
        for row in report.table
        for run in row.runs
    ]
    parts += [
        "### Single runs",
        markdown_table(
            [
                heading(report, report.columns, "run"),
                *(cells(report, report.columns, row, name) for row, name in single),
            ]
        ),
    ]
    for plot in report.figures:
        parts += (
            [f"## {plot.title}", plot.caption, f"![{plot.title}]({FIGURES}/{plot.name}.svg)"]
            if plot.figure
            else [f"{plot.title}: {plot.missing}"]
        )
    if report.samples:
        parts += [
            "## Samples",
            "The newest of each strategy, from the same noise. They are of its last step, and the "
            "best step, which is evaluated, may be an earlier one.",
            "![samples](samples.png)",
        ]
    if report.closest:
        parts += [
            "## Closest pairs",
            (
                "Generated image and its nearest training image; the pictures are closest.png of "
                "each evaluation."
            ),
            bullets(
                f"{found.row.label}: {'; '.join(pairs_text(found.pairs, 3))}"
                for found in report.closest
            ),
        ]
    if report.notes:
        parts += ["## Notes of the evaluations", bullets(report.notes)]
    if report.missing:
        parts += ["## Missing", bullets(report.missing)]
    columns = [
        f"{c.heading}{f' ({c.better} is better)' * bool(c.better)}: {c.means}"
        for c in (*report.columns, *report.further)
    ]
    baselines = (
        [f"baseline, {name}: {means}" for name, means in BASELINES.items()]
        if report.baselines
        else []
    )
    return "\n\n".join([*parts, "## How to read it", bullets([*columns, *baselines])]) + "\n"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def tabulated(report: Report, columns: Sequence[Column], table: Sequence[Row]) -> str:
    return markdown_table(
        [
            heading(report, columns, "seeds"),
            *(
                cells(
                    report,
                    columns,
                    row,
                    row.counted_text if row.finished or row in report.baselines else "unfinished",
                )
                for row in table
            ),
        ]
    )


def heading(report: Report, columns: Sequence[Column], last: str) -> list[str]:
    return ["strategy", *report.settings, *(column.heading for column in columns), last]


def cells(report: Report, columns: Sequence[Column], row: Row, last: str) -> list[str]:
    settings = (
        words(row.settings[path]) if path in row.settings else "-" for path in report.settings
    )
    return [row.name, *settings, *(row.cell(column).in_table(column) for column in columns), last]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    escaped = (
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        for row in (head, ["---"] * len(head), *body)
    )
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)
