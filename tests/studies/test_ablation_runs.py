"""A small table from the command to its page: stopped anywhere it goes on, and what diverges is a
result."""

from __future__ import annotations

import csv
import os
import re
import signal
from pathlib import Path

import pytest

from runtime.files import read_sealed
from tests.helpers import runs

EVALUATE = '["select=last","n=6","metrics=[quality,bound]","bound_images=3","bound_steps=4",' + (
    '"sampler=ancestral","sampler.steps=3"]'
)
TABLE = [
    "+ablation=ddpm_table1",
    "size=small",
    "study.sizes.small.seeds=[0,1]",
    f"study.sizes.small.evaluate={EVALUATE}",
    "schedule.steps=40",
]
TINY = ["-m", *(line for line in runs.TINY if "dropout" not in line)]


def of_table(root: Path) -> Path:
    """The folder of its runs."""
    [folder] = root.glob("runs/ablation_ddpm_table1-*")
    return folder


def lines(root: Path) -> list[list[str]]:
    """Of table.csv, all but the places."""
    with open(of_table(root) / "table.csv") as file:
        return [line[:7] for line in csv.reader(file)]


def tables(root: Path) -> str:
    """Of table.md, down to what made the numbers."""
    return (of_table(root) / "table.md").read_text().partition("- command")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A table that nothing disturbed, and what was printed."""
    root = tmp_path_factory.mktemp("whole")
    code, text = runs.train(root, TABLE, tiny=TINY)
    assert code == 0, text
    return root, text


def test_what_is_printed_and_on_the_page(whole):
    root, text = whole
    found = lines(root)
    rows = {(row, seed, measure): float(value) for row, seed, measure, value, *_ in found[1:]}
    assert len(rows) == 2 * 2 * 2 == len(found) - 1
    mean = (rows["L", "0", "bits"] + rows["L", "1", "bits"]) / 2
    [line] = re.findall(r"^L +([\d.]+) \[", text, re.M)
    assert float(line) == pytest.approx(mean, rel=1e-2)
    for told in (
        "the file says",
        "bits: L < L_simple",
        "2 seeds",
        "90 training, 5 held out",
        "1 thread",
    ):
        assert told in text, told
    assert "of the paper" not in text  # no number of the paper's is expected at this size
    folder = of_table(root)
    html, markdown = (folder / "table.html").read_text(), tables(root)
    assert html.count("<svg") == 1, "rows as points"
    for row in ("L_simple", "KID: L_simple &lt; L", "training images", "held out", "hours"):
        assert row in html, row
    assert "| L_simple |" in markdown and "| claim |" in markdown
    assert not re.search(r"^\|.*\|\n\n\|", markdown, re.M), "a table that Markdown takes for text"


def test_at_full_size_the_numbers_of_the_paper_stand_beside(tmp_path):
    """Of images, a network and features that are none of the paper's; the minimum over training is
    that of the checkpoints that are kept."""
    full = [
        "+ablation=ddpm_table1",
        "data=bundled_faces",
        "data.channels=1",
        f"study.sizes.full.evaluate={EVALUATE.replace('=last', '=every')}",
        "study.sizes.full.measures=[KID,FID,IS,bits]",
    ]
    code, text = runs.train(tmp_path, full, tiny=TINY)
    assert code == 0, text
    assert re.search(r"^row +KID .*FID +FID of the paper +in its band +IS ", text, re.M), text
    assert re.search(r"^L_simple .* - +3.17 \[2.97 to 4.17\] +- ", text, re.M), text
    assert re.search(r"^L_simple .* \d[.\d]+ \[.*\]° +3.75 \[3.7 to 3.8\] +above$", text, re.M)
    assert "Ho et al. 2020, table 1 (read)" in (of_table(tmp_path) / "table.md").read_text()
    assert re.search(r"bits: L < L_simple .* its images", text)
    made = of_table(tmp_path).glob("full-seed0-*/evaluation/step_*/evaluation.json")
    kids = {path: read_sealed(path)["quality"]["train"]["kid"]["value"] for path in made}
    counted = {line[3] for line in lines(tmp_path) if line[2] == "KID"}
    for run in {path.parents[2] for path in kids}:
        own = [kid for path, kid in kids.items() if path.parents[2] == run]
        assert len(own) > 1 and str(min(own)) in counted


@pytest.mark.slow
def test_killed_and_started_again_it_is_the_undisturbed_table(whole, tmp_path):
    """Within a training, between two evaluations, and once it is done."""
    for until in (r"\] L, seed 0: finished[\s\S]*6/12", r"\] L, seed 1: finished"):
        run = runs.launch(tmp_path, TABLE, tiny=TINY)
        run.until(until)
        os.kill(run.process.pid, signal.SIGKILL)
        code, text = run.wait()
        assert code == -signal.SIGKILL, text
    code, text = runs.train(tmp_path, TABLE, tiny=TINY)
    assert code == 0 and "L, seed 0: finished" not in text, text
    assert lines(tmp_path) == lines(whole[0]) and tables(tmp_path) == tables(whole[0])
    trained = sorted(of_table(tmp_path).glob("full-*"))
    before = [runs.snapshot(run) for run in trained]
    code, text = runs.train(tmp_path, TABLE, tiny=TINY)
    assert code == 0 and "finished, held-out loss" not in text
    assert len(trained) == 4 and [runs.snapshot(run) for run in trained] == before


def test_what_diverges_is_a_result_and_no_failure(tmp_path):
    code, text = runs.train(tmp_path, [*TABLE, "optimizer.lr=1e38"], tiny=TINY)
    assert code == 0, text
    assert len(re.findall(r"^L.*unstable at step \d+ \(seeds? 0", text, re.M)) == 2, text
    assert re.search(r"bits: L < L_simple +not measured", text)
    assert re.search(r"^L,0,,,,,\d+", (of_table(tmp_path) / "table.csv").read_text(), re.M)


def test_what_fails_otherwise_is_told_and_tried_again(tmp_path):
    given = [*TABLE, "data.n_train=1000"]
    code, text = runs.train(tmp_path, given, tiny=TINY)
    assert code == 2 and "4 of 4 runs failed; the same command tries them again" in text
    assert "L, seed 0: " in text and "Traceback" not in text


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_improved_ddpm_shows_at_small_size_what_its_file_says(tmp_path):
    """Nichol and Dhariwal's order in bits, with intervals clear of 0 by Holm's steps."""
    command = [f"run.root={tmp_path}/runs", f"run.cache={tmp_path}/cache"]
    done = runs.command("ablation.py", "improved_ddpm", "size=small", *command, timeout=7000)
    assert done.returncode == 0, done.stderr
    for less, than in (
        ("cosine, L_simple", "linear, L_simple"),
        ("linear, L_hybrid", "linear, L_simple"),
        ("cosine, L_hybrid", "cosine, L_simple"),
        ("cosine, L_hybrid", "linear, L_hybrid"),
    ):
        assert re.search(rf"^bits: {less} < {than} +shown ", done.stdout, re.M), done.stdout
