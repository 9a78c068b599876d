"""The page of a table: what was measured beside what the paper has, its claims, and by what the
numbers were made."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reporting.figures import Plot
from reporting.numbers import MISSING, counted, interval, number
from reporting.page import machine_text, several
from reporting.table import OF_IMAGES
from reporting.templates import render
from runtime.environment import ENVIRONMENT
from runtime.files import read_json, write_atomically, write_csv
from runtime.log import table
from studies.ablation.figure import figure
from studies.ablation.judge import Judged
from studies.ablation.measured import Found, failures
from studies.ablation.settings import Expected, Measure, Row
from studies.cells import Context
from training.result import RESULT, read_result

if TYPE_CHECKING:
    from studies.ablation.study import Ablation

FILES = "table.html", "table.md", "table.csv"
LEGEND = (
    "Intervals are 95%: over seeds and images (Student's t); those marked "
    f"{OF_IMAGES} are of one training, over its images alone."
)


class Entry(NamedTuple):
    """One number: as measured with its interval, as expected, and whether it is in the band."""

    measured: str
    expected: str
    within: str


class Line(NamedTuple):
    row: Row
    entries: Sequence[Entry]
    state: str


@dataclass(frozen=True)
class Page:
    """found: by the names of rows."""

    ablation: "Ablation"
    context: Context
    found: dict[str, Found]
    judged: Sequence[Judged]

    @property
    def title(self) -> str:
        return f"{self.ablation.paper}, {self.ablation.table}: {self.ablation.size} size"

    @property
    def expects(self) -> bool:
        """Whether the paper's numbers can be met at this size."""
        return self.ablation.size == "full"

    @cached_property
    def lines(self) -> list[Line]:
        return [
            Line(
                row,
                [self._entry(row, measure) for measure in self.ablation.measured],
                self.found[row.name].state,
            )
            for row in self.ablation.compared
        ]

    def _entry(self, row: Row, measure: Measure) -> Entry:
        found, expected = self.found[row.name], row.expects(measure.name)
        measured, value = measured_text(found, measure.path)
        if expected is None or not self.expects:
            return Entry(measured, "", "")
        return Entry(measured, expected_text(expected), within_text(expected, value, found))

    @cached_property
    def plot(self) -> Plot | None:
        rows = [line.row for line in self.lines]
        return figure(rows, self.found, self.ablation.measured, self.expects)

    @property
    def notes(self) -> list[str]:
        """What the evaluations say of their numbers."""
        every = (e for found in self.found.values() for e in found.evaluations.values())
        return list(dict.fromkeys(note for e in every for note in e.content.get("notes", ())))

    @property
    def failures(self) -> list[str]:
        return failures(self.found)

    @property
    def sources(self) -> list[str]:
        """Of the expected numbers."""
        every = (e for row in self.ablation.rows for e in row.expected)
        return list(dict.fromkeys(f"{e.source} ({e.mark})" for e in every))

    @property
    def claims(self) -> list[list[str]]:
        """A line for each: what is claimed, what became of it, than - less, and a word on it."""
        return [
            [each.claim.text, each.verdict, difference_text(each), self._known(each)]
            for each in self.judged
        ]

    def _known(self, judged: Judged) -> str:
        """What the file says of the small size."""
        claim = judged.claim
        if judged.why or self.ablation.size == "full":
            return judged.why
        if claim.because is None:
            return "" if judged.verdict == claim.small else f"the file says: {claim.small}"
        if judged.verdict == claim.small:
            return f"as the file says: {claim.because}"
        return f"the file says: {claim.small}, {claim.because}"

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """By what the numbers were made: (term, words)."""
        found = list(self.found.values())
        runs = list(dict.fromkeys(run for each in found for run in each.runs.values()))
        contents = [e.content for each in found for e in each.evaluations.values()]
        protocols = [content.get("protocol", {}) for content in contents]
        environments = [read_json(run / ENVIRONMENT) for run in runs]
        hours = sum(read_json(run / RESULT).get("hours", 0) for run in runs)
        evaluated = sum(content.get("hours", 0) for content in contents)
        facts = {
            "command": self.context.command,
            "seeds": several(self.ablation.chosen.seeds),
            "trained by": several((machine_text(e) for e in environments), "; "),
            "evaluated by": several((machine_text(content) for content in contents), "; "),
            "precision": several(
                [e.get("precision") for e in environments] + [p.get("precision") for p in protocols]
            ),
            "images": several(map(images_text, contents), "; "),
            "features": several(map(features_text, contents), "; "),
            "training images": several(read_result(run).images for run in runs),
            "reference": several(map(reference_text, protocols), "; "),
            "weights": several(map(weights_text, contents)),
            "hours": f"{hours:.2f} of training, {evaluated:.2f} of evaluation",
        }
        return [(term, text) for term, text in facts.items() if text]

    @property
    def heads(self) -> list[str]:
        heads = ["row"]
        for measure in self.ablation.measured:
            heads.append(measure.name)
            heads += [f"{measure.name} of the paper", "in its band"] * self.expects
        return [*heads, ""]

    @property
    def table(self) -> list[list[str]]:
        """A line for each row, under heads."""
        return [self._cells(line) for line in self.lines]

    def _cells(self, line: Line) -> list[str]:
        cells = [line.row.name]
        for entry in line.entries:
            cells.append(entry.measured)
            cells += [entry.expected, entry.within] * self.expects
        return [*cells, line.state]

    @property
    def text(self) -> str:
        """For the terminal."""
        rows = table([self.heads, *self.table])
        claims = table([["claim", "", "difference", ""], *self.claims])
        facts = table(self.facts)
        return "\n\n".join([self.title, rows, *self.failures, LEGEND, claims, facts])

    def raw(self) -> list[list[Any]]:
        """Plain numbers: each measure of each run, the names first."""
        lines: list[list[Any]] = [
            ["row", "seed", "measure", "value", "low", "high", "unstable", "run", "evaluation"]
        ]
        for name, found in self.found.items():
            lines += [
                [name, seed, "", "", "", "", step, "", ""] for seed, step in found.unstable.items()
            ]
            for measure in self.ablation.measured:
                for seed, value in found.values(measure.path).items():
                    places = found.runs[seed], found.evaluations[seed].path
                    lines.append([name, seed, measure.name, *value[:3], "", *places])
        return lines


def measured_text(found: Found, path: str) -> tuple[str, float | None]:
    """With the interval; and the number."""
    values, mean = list(found.values(path).values()), found.mean(path)
    if mean is None:
        return MISSING, None
    low, high = mean.interval()
    if mean.n == 1:
        low, high = values[0].low, values[0].high
    band = interval(mean.value, low, high)
    mark = OF_IMAGES * (mean.n == 1 and band != "")
    return f"{number(mean.value, low, high)} {band}{mark}".strip(), mean.value


def expected_text(expected: Expected) -> str:
    if expected.band is None:
        return str(expected.value)
    low, high = expected.band
    return f"{expected.value:g} [{low:g} to {high:g}]"


def within_text(expected: Expected, value: float | None, found: Found) -> str:
    if expected.value == "unstable":
        return "yes" if found.unstable else MISSING if value is None else "no, it trained"
    if value is None:
        return MISSING
    if expected.band is None:
        return "order alone"
    low, high = expected.band
    return "yes" if low <= value <= high else "below" if value < low else "above"


def difference_text(judged: Judged) -> str:
    difference = judged.difference
    if difference is None:
        return MISSING
    value, (low, high) = difference.value, difference.interval(judged.level)
    text = f"{number(value, low, high, True)} {interval(value, low, high, True)}"
    if difference.variance is None:
        return text.strip()
    of = "its images" if difference.n == 1 else counted(difference.n)
    return f"{text} at {judged.level:.2%}, {of}"


def images_text(content: dict[str, Any]) -> str | None:
    """How many were made, and how many they are compared with."""
    images = content.get("images", {})
    made = f"{images['n']} generated, " if "n" in images else ""
    return f"{made}{images.get('train')} training, {images.get('test', 0)} held out"


def features_text(content: dict[str, Any]) -> str | None:
    identity = content.get("protocol", {}).get("features", {})
    digest = f", sha256 {identity['sha256']}" if "sha256" in identity else ""
    return f"{content.get('features', {}).get('name')}{digest}"


def reference_text(protocol: dict[str, Any]) -> str | None:
    if not protocol.get("test"):
        return None
    return f"{protocol['held_out']} images, {protocol['test'][:16]}"


def weights_text(content: dict[str, Any]) -> str | None:
    return content.get("checkpoint", {}).get("sha256", "")[:16] or None


def write(page: Page) -> Iterable[Path]:
    """The files, beside the runs."""
    folder = page.context.runs
    html, markdown, plain = (folder / name for name in FILES)
    write_atomically(html, render("ablation.html.j2", page=page, legend=LEGEND))
    write_atomically(markdown, render("ablation.md.j2", page=page, legend=LEGEND))
    write_csv(plain, page.raw())
    return html, markdown, plain
