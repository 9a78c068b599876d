"""A checkpoint as a pipeline of diffusers, or as a small file on top of its source: python
export.py --help"""

from runtime.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # also while the rest is imported, which takes seconds

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.overrides import run_script
from runtime.checkpoint import Which
from runtime.config_schema import Settings, parse
from runtime.errors import UserError
from training.export_weights import export_difference, export_pipeline, for_label
from transfer.trained_weights import open_weights, stated_config


@dataclass(frozen=True)
class ExportSettings(Settings):
    """See conf/export.yaml."""

    checkpoint: str
    out: str
    weights: Which
    trained_as: str | None
    overrides: Sequence[str]
    source: str | None
    label: int | str | None


def main(config: dict[str, Any]) -> None:
    settings = parse(ExportSettings, config, [], "")
    name, out = settings.checkpoint, Path(settings.out).expanduser()
    if out.suffix != ".safetensors":
        stated = stated_config(name, settings.trained_as, settings.overrides)
        weights = open_weights(name, settings.weights, stated=stated, source=settings.source)
        export_pipeline(for_label(weights, settings.label), out, settings.weights)
    elif settings.label is not None:
        raise UserError(
            f"label={settings.label}: a small file keeps the classes of a run: leave label= out, "
            "or give out= a folder."
        )
    elif settings.weights == "ema":
        export_difference(name, out)
    else:
        raise UserError(
            f"weights={settings.weights}: a small file has the EMA of a run: leave "
            "weights=ema, or give out= a folder."
        )


if __name__ == "__main__":
    run_script("export", main)
