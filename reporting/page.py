"""The page, the Markdown and the CSV of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from reporting.columns import BASELINES, COLUMNS, HOURS, Column, further, hours_of
from reporting.copying import SIGNS
from reporting.pictures import Shown, closest, embedded, samples
from reporting.runs import Run, Value, baselines_of, look_up, missing
from reporting.table import (
    OF_IMAGES,
    Row,
    baselines_table,
    known_columns,
    ranking,
    rows,
    situations,
)
from reporting.verdict import verdict
from training.result import varied

if TYPE_CHECKING:
    from reporting.figures import Plot

HERE = Path(__file__).parent
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
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def table(self) -> list[Row]:
        return rows(self.runs)

    @cached_property
    def baselines(self) -> list[Row]:
        return baselines_table(self.runs)

    @cached_property
    def columns(self) -> list[Column]:
        hours = hours_of(
            run.result.values["device"] for run in self.runs if run.result.values.get("device")
        )
        return known_columns(
            [hours if column is HOURS else column for column in COLUMNS],
            [*self.table, *self.baselines],
        )

    @cached_property
    def further(self) -> list[Column]:
        frechet = self.evaluated.at("features.frechet") if self.evaluated else None
        return known_columns(further(frechet or "Fréchet distance"), self.table)

    @cached_property
    def settings(self) -> list[str]:
        return sorted({path for row in self.table for path in row.settings} - {"optimizer.lr"})

    @cached_property
    def evaluate(self) -> str:
        return f"python evaluate.py checkpoint={self.folder}"

    @cached_property
    def missing(self) -> list[str]:
        return missing(self.folder, self.runs)

    @cached_property
    def notes(self) -> list[str]:
        """What the evaluations say of their numbers, each thing once."""
        evaluated = [run for run in self.runs if run.evaluation]
        counts = Counter(note for run in evaluated for note in run.at("notes") or ())
        return [
            note + (f" ({n} of {len(evaluated)} evaluations)" if n < len(evaluated) else "")
            for note, n in counts.items()
        ]

    @cached_property
    def indices(self) -> dict[str, int]:
        """Strategy -> its colour and shape, everywhere."""
        return {name: k for k, name in enumerate(sorted({row.name for row in self.table}))}

    @cached_property
    def panels(self) -> dict[str, list[Row]]:
        return {data_text(key): contenders for key, contenders in situations(self.table).items()}

    @cached_property
    def figures(self) -> list[Plot]:
        """matplotlib is imported here, after the table is printed."""
        from reporting.figures import figures

        return figures(self.panels, self.table, self.indices, self.evaluate, self.baselines)

    @cached_property
    def drawn(self) -> list[Plot]:
        return [plot for plot in self.figures if plot.figure]

    @cached_property
    def verdicts(self) -> list[tuple[str, list[str]]]:
        """(what the data are, sentences)."""
        found = [
            (heading, verdict(contenders, self.baselines, self.judged_on))
            for heading, contenders in self.panels.items()
        ]
        return found or [("", verdict([], [], ""))]

    @cached_property
    def samples(self) -> list[Shown]:
        return samples(self.table)

    @cached_property
    def closest(self) -> list[Shown]:
        return closest(self.table)

    @cached_property
    def evaluated(self) -> Run | None:
        return next((run for run in self.runs if run.evaluation), None)

    @cached_property
    def ordered_by(self) -> str:
        """What the table is put in order by: what the verdict speaks of first."""
        ranked = (
            known_columns(ranking(rows, self.baselines), rows) for rows in self.panels.values()
        )
        headings = several(columns[0].heading for columns in ranked if columns)
        each = " for each setting of the data" * (len(self.panels) > 1)
        return (
            f"In the verdict's order, by {headings}, the lowest first{each}"
            if headings
            else "In order of names"
        )

    @cached_property
    def legend(self) -> str:
        """How an interval in a table is to be read."""
        return (
            "95% intervals: over seeds they hold how trainings differ, and that of the images "
            f"where those were resampled; {OF_IMAGES} is of the images alone, of one training or "
            "none, and does not compare with the others."
        )

    @cached_property
    def judged_on(self) -> str:
        if not (run := self.evaluated):
            return ""
        count = run.at("images.test")
        return (
            f"{count:,} {run.at('protocol.held_out')} images in {run.at('features.name')}"
            if count
            else ""
        )

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """What was run, and how it was evaluated: (term, words)."""
        results = [run.result for run in self.runs]
        trained = [result for result in results if look_up(result.config, "transfer.rules") != []]
        evaluated = [run for run in self.runs if run.evaluation]
        finished = sum(result.finished for result in results)
        facts = {
            "runs": f"{len(results)}, {finished} of them finished; {len(self.indices)} strategies, "
            f"seeds {several(look_up(result.config, 'seed') for result in results)}",
            "source": several(look_up(result.config, "source.from") for result in results),
            "target": several(described(look_up(result.config, "data")) for result in results),
            "training images": several(self._images(row.runs[0]) for row in self.table),
            "steps": several(look_up(result.config, "train.steps") for result in trained),
            "device": several(result.values.get("device") for result in results),
            "evaluation": several(protocol_text(run) for run in evaluated[:1]),
            "features": several(run.at("features.name") for run in evaluated[:1]),
            "perceptual distance": several(run.at("perceptual.name") for run in evaluated[:1]),
            "trained by": several((machine_text(run.environment) for run in self.runs), "; "),
            "evaluated by": several((machine_text(r.evaluation.content) for r in evaluated), "; "),
        }
        return [(term, text) for term, text in facts.items() if text]

    def _images(self, run: Run) -> str | None:
        n = run.result.config.get("data", {}).get("n_train")
        counted = run.at("images.train")
        if n is not None:
            return str(n)
        every = f"all ({counted})" if counted else "all"
        return every if "data" in run.result.config else None

    # written

    def html(self) -> str:
        from reporting.figures import SHAPES, look

        return template().render(
            report=self,
            css=(HERE / "page.css").read_text(),
            js=(HERE / "page.js").read_text(),
            baselines_text=BASELINES,
            signs=SIGNS,
            arrows={"lower": " ↓", "higher": " ↑"},
            look=look,
            shapes=SHAPES,
        )

    def raw(self) -> list[list[Any]]:
        """Plain numbers: a row for each run, and for each baseline beside its evaluation.

        Intervals are of the images of that one run. subset: what drew its training images.
        """
        paths = varied([run.result for run in self.runs])
        columns = [column for column in (*COLUMNS, *further("")) if column.key not in VALUES]

        def line(name: str, run: Run, settings: dict[str, Any], numbers: Run) -> dict[str, Any]:
            found = {"strategy": name, "seed": run.result.seed, "subset": run.result.subset}
            found |= {path: settings.get(path, "") for path in paths}
            found |= {key: numbers.result.values.get(key, "") for key in VALUES}
            for column in columns:
                found |= plain(column, column.read(numbers))
            path = run.evaluation and run.evaluation.path
            return found | {"intervals": "images", "evaluation": path, "run": run.result.directory}

        found = []
        for run in (run for row in self.table for run in row.runs):
            settings = run.result.settings()
            found.append(line(run.result.strategy, run, settings, run))
            data = {path: value for path, value in settings.items() if path.startswith("data.")}
            found += [line(f"baseline: {k}", run, data, b) for k, b in baselines_of(run).items()]
        return [list(found[0]), *(["" if v is None else v for v in row.values()] for row in found)]


@cache
def template() -> Template:
    """What it is given it escapes, but for what it marks as safe: our own style, script and
    plots."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        embedded=embedded, pairs_text=pairs_text, words=words, by_data=by_data
    )
    return environment.get_template("page.html.j2")


def plain(column: Column, value: Value | None) -> dict[str, float | None]:
    names = [column.key, f"{column.key}_low", f"{column.key}_high"][: 3 if column.band else 1]
    return dict(zip(names, (value or [None] * 3)[:3], strict=False))


def data_text(situation: tuple) -> str:
    return ", ".join(f"{path} = {words(value)}" for path, value in situation)


def by_data(shown: Sequence[Shown]) -> list[tuple[str, list[Shown]]]:
    """(what the data are, its pictures)."""
    found: dict[str, list[Shown]] = {}
    for each in shown:
        found.setdefault(data_text(each.row.situation), []).append(each)
    return list(found.items())


def several(values, between: str = ", ") -> str:
    """Each once, in order; "" for none."""
    return between.join(dict.fromkeys(str(v) for v in values if v is not None))


def words(value: Any) -> str:
    return "all" if value is None else str(value)


def described(data: dict | None) -> str | None:
    """Images in words: what reads them, and its path or name."""
    if not isinstance(data, dict) or "_target_" not in data:
        return None
    where = data.get("path") or data.get("name")
    return data["_target_"].rsplit(".", 1)[-1] + (f" ({where})" if where else "")


def protocol_text(run: Run) -> str:
    """How the images were made, in words; every key of the protocol that is not named elsewhere."""
    protocol = run.at("protocol") or {}
    sampler = protocol.get("sampler") or {}
    how = [
        called(sampler.get("function") or sampler.get("name")) or "the sampler of the run",
        f"{sampler['steps']} steps" if "steps" in sampler else "",
        called(sampler.get("spacing")),
        "x0 clipped" if sampler.get("clip") else "",
    ]
    parts = [
        (
            f"{protocol.get('n', run.at('images.n'))} images sampled once by "
            f"{', '.join(filter(None, how))}"
        )
    ]
    if "weights" in protocol:
        parts.append(
            "EMA weights" if protocol["weights"] == "ema" else f"weights: {protocol['weights']}"
        )
    if "select" in protocol:
        rule = {
            "best": "the best checkpoint of each run, by the same rule",
            "last": "the last checkpoint of each run",
        }
        parts.append(rule.get(protocol["select"], f"checkpoint {protocol['select']} of each run"))
    parts.append(f"the same noise for all (seed {protocol.get('seed', 0)})")
    if protocol.get("label") is not None:
        parts.append(f"class {protocol['label']}")
    counts = run.at("images") or {}
    held_out = (
        f"{counts['test']:,} {protocol.get('held_out')} images and " if counts.get("test") else ""
    )
    parts.append(f"against {held_out}the training images of each run")
    if "held_out_draws" in protocol:
        parts.append(f"losses over {protocol['held_out_draws']:,} draws of (image, t, noise)")
    if "bound" in protocol and "bound" in protocol.get("metrics", ["bound"]):
        count, steps = protocol["bound"]
        parts.append(
            f"bound of {min(count, counts.get('test') or count)} images with {steps or 'all'} "
            "steps each"
        )
    return ", ".join(parts)


def machine_text(content: dict[str, Any]) -> str | None:
    """The code, its packages and what they ran on, of environment.json or evaluation.json."""
    packages = [
        f"{name} {version}"
        for name, version in (content.get("packages") or {}).items()
        if version != "absent"
    ]
    threads = content.get("threads")
    parts = [
        f"commit {content['commit']}" if content.get("commit") else "",
        content.get("device"),
        f"{threads} thread{'s' * (threads != 1)}" if threads else "",
        f"Python {content['python']}" if content.get("python") else "",
        *packages,
    ]
    return ", ".join(filter(None, parts)) or None


def called(node: dict[str, Any] | str | None) -> str:
    """A function of a config: its name and what it is given."""
    node = node if isinstance(node, dict) else {"_target_": str(node or "")}
    given = ", ".join(f"{key} {value}" for key, value in node.items() if not key.startswith("_"))
    return node.get("_target_", "").rsplit(".", 1)[-1] + (f" ({given})" if given else "")


def pairs_text(pairs: Sequence[dict[str, Any]], most: int = 6) -> list[str]:
    return [
        f"generated {p['generated']} – training {p['train']}: {p['distance']:.4g}"
        + (f" (d1/d2 {p['ratio']:.2f})" if p.get("ratio") is not None else "")
        for p in pairs[:most]
    ]
