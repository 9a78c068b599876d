"""Writes docs/compatibility.md from the results of make contact that are kept in
benchmarks/results/contact_*.jsonl: python -m docs.make_compatibility"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from benchmarks.contact_row import Row
from benchmarks.contact_rows import ROWS
from runtime.download import published

PAGE = Path(__file__).with_name("compatibility.md")
RESULTS = Path(__file__).parent.parent / "benchmarks/results"
HEAD = """# Which published files this code has opened

Made by `make docs` from the results of `make contact` (`benchmarks/results/contact_*.jsonl`): a
machine with a network, and a GPU or not, fetches each, opens it, compares it in the same process,
and trains a few steps. A row is "not yet seen" until such a result is kept: copy
`contact/results.jsonl` to `benchmarks/results/contact_NAME.jsonl`, and `make docs`.

Of weights: eight images of the same noise as those of diffusers, or of the published formulas,
differ by at most so many gray levels of 255. The losses are mean squared errors of the predicted
noise on four photographs, the mean over five t from 0.05 T to 0.6 T: of the network; of the same
network told 0.7 t and 1.4 t, larger where schedule and timesteps are those that it was trained
with; and of the best guess from one pixel alone, which no trained network is as bad as. Of sets of
images: their official counts, and pixels and label of 64 images as they stand in the file. Times
are UTC.

| | what | licence | state | found |
|---|---|---|---|---|
"""
TAIL = """
{seen} of {all} are seen. Other files by the same publishers: [pretrained.md](pretrained.md).
"""
LICENCES = {
    "transfer_imagenet": "MIT; CC BY 4.0",
    "google/": "Apache-2.0",
    "pneumoniamnist": "CC BY 4.0",
    "bloodmnist": "CC BY 4.0",
}
FILES = {  # of rows that are not called as their file
    "cifar10": "cifar-10-binary.tar.gz",
    "eurosat": "EuroSAT.zip",
    "inception": "weights-inception-2015-12-05-6726825d.pth",
    "dinov2": "dinov2_vits14_pretrain.pth",
    "lpips": "alexnet-owt-7be5be79.pth",
}


def kept() -> dict[str, dict[str, Any]]:
    """The newest result of each row, among all that are kept."""
    files = sorted(RESULTS.glob("contact_*.jsonl"))
    lines = []
    for line in (line for file in files for line in file.read_text().splitlines()):
        with contextlib.suppress(ValueError):  # what a kill has torn
            lines.append(json.loads(line))
    lines = [r for r in lines if r["step"] == "contact" and r["state"] in ("seen", "failed")]
    return {r["name"]: r for r in sorted(lines, key=lambda r: r["at"])}


def licence(row: Row) -> str:
    name = FILES.get(row.name, row.name)
    if name in published():
        return published()[name].licence
    return next((text for start, text in LICENCES.items() if name.startswith(start)), "")


def found(record: dict[str, Any]) -> str:
    """What a result says, short."""
    if record["state"] == "failed":
        return " ".join(str(record["why"]).split()).replace("|", "\\|")
    values = record["found"]
    parts = []
    if "gray_levels_apart" in values:
        apart = f"{values['gray_levels_apart']:.2g}"
        parts.append(f"{apart} gray levels to {values['compared_with']}")
        losses = [values[f"loss{of}"] for of in ("", "_told_0.7_t", "_told_1.4_t", "_of_a_pixel")]
        parts.append("losses {:.2g}, {:.2g}, {:.2g}, {:.2g}".format(*losses))
        parts.append(f"sha256 {record['file']['sha256'][:16]}")
    if "pixels_compared" in values:
        counts = [str(values[split]) for split in ("train", "validation", "test")]
        parts.append(f"{' + '.join(counts)} images, {values['pixels_compared']} compared")
    if "dimensions" in values:
        parts.append(f"{values['dimensions']} features, sha256 {record['file']['sha256'][:16]}")
    if "ms_per_training_step" in values:
        step = f"{values['ms_per_training_step']:.0f} ms a training step of {values['batch']}"
        parts.append(step)
    return "; ".join(parts)


def line(row: Row, record: dict[str, Any] | None) -> str:
    if record is None:
        return f"| {row.name} | {row.about} | {licence(row)} | not yet seen | |\n"
    where = f"{record['at'][:10]}, {record['device']}, torch {record['torch']}"
    state = f"{record['state']}, {where}, {record['commit'][:7]}"
    return f"| {row.name} | {row.about} | {licence(row)} | {state} | {found(record)} |\n"


def page() -> str:
    records = kept()
    seen = sum(records.get(row.name, {}).get("state") == "seen" for row in ROWS)
    rows = "".join(line(row, records.get(row.name)) for row in ROWS)
    return HEAD + rows + TAIL.format(seen=seen, all=len(ROWS))


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {page().splitlines()[-1]}")
