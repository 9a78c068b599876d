"""What a report says, and the templates that write it as a page and as Markdown."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reporting.columns import (
    AUDIT_COLUMNS,
    BASELINES,
    COLUMNS,
    COPIES,
    HOURS,
    RHO,
    Column,
    further,
    hours_of,
    own_metrics,
)
from reporting.report_pictures import Shown, embedded, last_pictures
from reporting.runs import Run, baselines_of, look_up, missing
from reporting.table import (
    OF_IMAGES,
    Row,
    Situation,
    baselines_table,
    known_columns,
    ranking,
    rows,
    situations,
)
from reporting.templates import render
from reporting.verdict import verdict
from training.result import varied

if TYPE_CHECKING:
    from reporting.figures import Plot

FIGURES = "report_figures"  # folder
# Both are told apart on white and on black. Of 8 colours and 7 shapes no two of 56 are alike.
COLORS = ["#0072b2", "#c04a00", "#00866a", "#b2478c", "#b57a00", "#2f9fd6", "#7464d2", "#7d858f"]
SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "*": "★", "P": "✚"}
# how an interval in a table is to be read
LEGEND = (
    "95% intervals: over seeds they hold how trainings differ, and that of the images where those "
    f"were resampled; {OF_IMAGES} is of the images alone, of one training or none, and does not "
    "compare with the others."
)
AUDITS_TEXT = (
    "Help: a gain whose interval lies above 0 means that a small classifier is better for the "
    "generated images. Leak: an AUC above that of the untouched source, which saw none of the "
    "images, means that the loss gives away which were trained on; one that is not above it is no "
    "proof of the contrary, as other attacks tell more."
)
# of result.json, as they are, in report.csv
VALUES = (
    "step",
    "held_out_loss",
    "trained_parameters",
    "parameters",
    "trained_share",
    "ema_share_of_start",
    "hours",
    "device",
    "peak_memory_bytes",
    "bytes_to_store",
    "source_sha256",
)


@dataclass(frozen=True)
class Report:
    """All that a report says, whatever it is written as."""

    folder: Path
    runs: Sequence[Run]

    @cached_property
    def table(self) -> list[Row]:
        return rows(self.runs)

    @cached_property
    def baselines(self) -> list[Row]:
        return baselines_table(self.runs)

    @cached_property
    def evaluated(self) -> list[Run]:
        return [run for run in self.runs if run.evaluation]

    @cached_property
    def example(self) -> Run:
        """An evaluated run, where there is one: their protocol is the same."""
        return [*self.evaluated, *self.runs][0]

    @cached_property
    def columns(self) -> list[Column]:
        devices = (run.came_to("device") for run in self.runs)
        hours = hours_of(filter(None, devices))
        columns = [hours if column is HOURS else column for column in COLUMNS]
        return known_columns(columns, [*self.table, *self.baselines])

    @cached_property
    def further(self) -> list[Column]:
        frechet = self.example.at("features.frechet") or "Fréchet distance"
        return known_columns([*further(frechet), *own_metrics(self.evaluated)], self.table)

    @cached_property
    def audits(self) -> list[Column]:
        """Of the table of what leaks and what helps; none where no run was asked."""
        known = known_columns(AUDIT_COLUMNS, self.table)
        return [*known, *known_columns((RHO, COPIES), self.table)] if known else []

    @property
    def explained(self) -> list[Column]:
        """Every column of the page, once."""
        return list(dict.fromkeys([*self.columns, *self.further, *self.audits]))

    @cached_property
    def settings(self) -> list[str]:
        return sorted({path for row in self.table for path in row.settings} - {"optimizer.lr"})

    @cached_property
    def missing(self) -> list[str]:
        return missing(self.folder, self.runs)

    @cached_property
    def notes(self) -> list[str]:
        """What the evaluations say of their numbers, each thing once."""
        counts = Counter(note for run in self.evaluated for note in run.at("notes") or ())
        n = len(self.evaluated)
        return [note + f" ({k} of {n} evaluations)" * (k < n) for note, k in counts.items()]

    @cached_property
    def looks(self) -> dict[str, dict[str, Any]]:
        """Strategy -> its colour and marker, everywhere."""
        names = sorted({row.name for row in self.table})
        return {name: look(k) for k, name in enumerate(names)}

    @cached_property
    def panels(self) -> dict[str, list[Row]]:
        return {data_text(key): contenders for key, contenders in situations(self.table).items()}

    @cached_property
    def figures(self) -> "list[Plot]":
        """matplotlib is imported here, after the table is printed."""
        from reporting.figures import figures

        return figures(self)

    @property
    def drawn(self) -> "list[Plot]":
        return [plot for plot in self.figures if plot.figure]

    @cached_property
    def verdicts(self) -> list[tuple[str, list[str]]]:
        """(what the data are, sentences)."""
        return [
            (heading, verdict(contenders, self.baselines, judged_text(self.example)))
            for heading, contenders in (self.panels or {"": []}).items()
        ]

    @cached_property
    def samples(self) -> list[Shown]:
        """The newest grid of each row."""
        return last_pictures(
            self.table, lambda run: run.result.directory.glob("samples/samples_*.png")
        )

    @cached_property
    def closest(self) -> list[Shown]:
        return last_pictures(
            self.table,
            lambda run: run.evaluation.path.parent.glob("closest.png") if run.evaluation else (),
        )

    @property
    def ordered_by(self) -> str:
        """What the table is put in order by: what the verdict speaks of first."""
        panels = self.panels.values()
        ranked = (known_columns(ranking(rows, self.baselines), rows) for rows in panels)
        headings = several(columns[0].heading for columns in ranked if columns)
        if not headings:
            return "In order of names"
        each = " for each setting of the data" * (len(panels) > 1)
        return f"In the verdict's order, by {headings}, the lowest first{each}"

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """What was run, and how it was evaluated: (term, words)."""
        results = [run.result for run in self.runs]
        trained = [r for r in results if look_up(r.config, "transfer.rules") != []]
        finished = sum(result.finished for result in results)
        facts = {
            "runs": f"{len(results)}, {finished} of them finished; {len(self.looks)} strategies, "
            f"seeds {several(look_up(r.config, 'seed') for r in results)}",
            "source": several(look_up(r.config, "source.from") for r in results),
            "target": several(reader_text(r.config.get("data", {})) for r in results),
            "training images": several(images_text(row.runs[0]) for row in self.table),
            "steps": several(look_up(r.config, "train.steps") for r in trained),
            "device": several(r.values.get("device") for r in results),
            "evaluation": self.evaluated and protocol_text(self.example),
            "features": self.example.at("features.name"),
            "perceptual distance": self.example.at("perceptual.name"),
            "trained by": several((machine_text(run.environment) for run in self.runs), "; "),
            "evaluated by": several((machine_text(run.content) for run in self.evaluated), "; "),
        }
        return [(term, text) for term, text in facts.items() if text]

    def written(self, template: str) -> str:
        """By page.html.j2 or page.md.j2."""
        return render(
            template,
            report=self,
            audits_text=AUDITS_TEXT,
            baselines_text=BASELINES,
            by_data=by_data,
            embedded=embedded,
            figures_folder=FIGURES,
            legend=LEGEND,
            pairs_text=pairs_text,
            shapes=SHAPES,
            words=words,
        )

    def raw(self) -> list[list[Any]]:
        """Plain numbers: a row for each run, and for each baseline beside its evaluation; the names
        first. Intervals are of the images of that one run. subset: what drew its training images.
        """
        paths = varied([run.result for run in self.runs])
        every = (*COLUMNS, *further(""), *AUDIT_COLUMNS, *own_metrics(self.evaluated))
        columns = [column for column in every if column.key not in VALUES]
        lines = []
        for run in (run for row in self.table for run in row.runs):
            beside = {f"baseline: {name}": found for name, found in baselines_of(run).items()}
            for name, numbers in {run.result.strategy: run, **beside}.items():
                result, settings = numbers.result, numbers.result.settings()
                line: dict[str, Any] = {
                    "strategy": name,
                    "seed": result.seed,
                    "subset": result.subset,
                    **{path: settings.get(path) for path in paths},
                    **{key: result.values.get(key) for key in VALUES},
                }
                for column in columns:
                    ends = ("", "_low", "_high") if column.band else ("",)
                    keys = [column.key + end for end in ends]
                    line |= zip(keys, column.read(numbers) or [None] * 3)
                path = run.evaluation and run.evaluation.path
                line |= {"intervals": "images", "evaluation": path, "run": result.directory}
                lines.append(line)
        return [list(lines[0]), *(list(line.values()) for line in lines)]


def look(index: int) -> dict[str, Any]:
    """Of the lines of a strategy, in matplotlib's words."""
    marker = list(SHAPES)[index % len(SHAPES)]
    size = 5.5 if marker in "osD" else 7.5
    return {"color": COLORS[index % len(COLORS)], "marker": marker, "markersize": size}


def by_data(shown: Sequence[Shown]) -> Iterable[tuple[str, Iterable[Shown]]]:
    """(what the data are, its pictures)."""
    return groupby(shown, lambda found: data_text(found.row.situation))


def data_text(situation: Situation) -> str:
    return ", ".join(f"{path} = {words(value)}" for path, value in situation)


def several(values: Iterable[Any], between: str = ", ") -> str:
    """Each once, in order; "" for none."""
    return between.join(dict.fromkeys(str(v) for v in values if v is not None))


def words(value: Any) -> str:
    return "all" if value is None else str(value)


def judged_text(run: Run) -> str:
    """The images that an evaluation judged by, and their features; "" where there were none."""
    count, split = run.at("images.test"), run.at("protocol.held_out")
    patients = run.at("images.test_patients")
    of = f" of {patients:,} patients" if patients else ""
    return f"{count:,} {split} images{of} in {run.at('features.name')}" if count else ""


def images_text(run: Run) -> str:
    """How many images a run trained on."""
    n, counted = look_up(run.result.config, "data.n_train"), run.at("images.train")
    return f"all ({counted})" if n is None and counted else words(n)


def reader_text(data: dict[str, Any]) -> str | None:
    """What reads the images, and its path or name."""
    if "_target_" not in data:
        return None
    return _named(data["_target_"], data.get("path") or data.get("name"))


def protocol_text(run: Run) -> str:
    """How the images were made, in words; every key of the protocol that is not named elsewhere."""
    return render(
        "protocol.txt.j2",
        called=called,
        protocol=run.at("protocol") or {},
        counts=run.at("images") or {},
    )


def machine_text(content: dict[str, Any]) -> str | None:
    """The code, its packages and what they ran on, of environment.json or evaluation.json."""
    texts = {
        "commit": "commit {}",
        "device": "{}",
        "threads": "{} thread" if content.get("threads") == 1 else "{} threads",
        "python": "Python {}",
    }
    parts = [text.format(content[key]) for key, text in texts.items() if content.get(key)]
    packages = content.get("packages") or {}
    parts += [f"{name} {version}" for name, version in packages.items() if version != "absent"]
    return ", ".join(parts) or None


def called(node: dict[str, Any] | str | None) -> str:
    """A function of a config: its name and what it is given."""
    node = node if isinstance(node, dict) else {"_target_": str(node or "")}
    given = ", ".join(f"{key} {value}" for key, value in node.items() if not key.startswith("_"))
    return _named(node.get("_target_", ""), given)


def _named(target: str, inside: str | None) -> str:
    return target.rsplit(".", 1)[-1] + (f" ({inside})" if inside else "")


def pairs_text(pairs: Sequence[dict[str, Any]], most: int = 6) -> list[str]:
    return [
        f"generated {p['generated']} – training {p['train']}: {p['distance']:.4g}"
        + (f" (d1/d2 {p['ratio']:.2f})" if p.get("ratio") is not None else "")
        for p in pairs[:most]
    ]
