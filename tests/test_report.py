"""The report of an experiment, against directories written by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import report
from runtime.results import averages, by_loss, percent, read_result, size, varied

RESULT = {"step": 300, "trained_parameters": 50, "parameters": 2000, "trained_share": 0.025, "held_out_loss": 0.07,
          "ema_share_of_start": 0.5, "hours": 1.5, "device": "NVIDIA H100",
          "peak_memory_bytes": 3_400_000_000, "bytes_to_store": 12_345, "source_sha256": None}


def write_run(folder: Path, strategy: str, seed: int = 0, color=None, settings=None, include=("*",), **result) -> Path:
    """A run's directory as train.py leaves it. result: what differs from RESULT; none at all is a run that has no result yet."""
    config = {"seed": seed, "transfer": {"name": strategy, "rules": [{"pattern": strategy}]}, "optimizer": {"lr": 0.001},
              "data": {"n_train": None}, "source": {"include": list(include)}, "train": {"steps": 300}, "run": {"root": str(seed)}}
    for path, value in (settings or {}).items():
        section, key = path.split(".")
        config[section][key] = value
    directory = folder / f"{strategy}-seed{seed}-{len(list(folder.glob('*')))}"
    (directory / "samples").mkdir(parents=True)
    (directory / "identity.json").write_text(json.dumps(config | {"train": {}}))
    if result:
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        (directory / "result.json").write_text(json.dumps(RESULT | result))
    if color:
        for step, shade in ((100, "black"), (300, color)):
            Image.new("RGB", (50, 50), shade).save(directory / f"samples/samples_{step:07d}.png")
    return directory


def results_of(folder: Path):
    return by_loss([read_result(p.parent) for p in folder.glob("*/identity.json")])


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_runs_stand_by_their_loss_and_seeds_are_averaged(tmp_path, capsys):
    for seed, loss in enumerate((0.08, 0.05, 0.11)):
        write_run(tmp_path, "full", seed, held_out_loss=loss)
    write_run(tmp_path, "scratch", 0, include=(), held_out_loss=0.07, device="cpu (x86_64)")
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert [(row[0], row[1], row[3]) for row in lines(printed)[1:5]] == [
        ("full", "1", "0.0500"), ("scratch", "0", "0.0700"), ("full", "0", "0.0800"), ("full", "2", "0.1100")]
    assert lines(printed)[1][4:11] == ["2.5%", "50%", "1.50", "3.4", "GB", "12.3", "kB"]
    assert "1.50 (CPU)" in printed and "settings" not in printed and "Missing" not in printed
    assert ["scratch", "0.0700", "1", "0.0700", "to", "0.0700"] in lines(printed)
    assert ["full", "0.0800", "3", "0.0500", "to", "0.1100"] in lines(printed)
    written = (tmp_path / "report.md").read_text()
    assert "| full | 0.0800 | 3 | 0.0500 to 0.1100 |" in written and "samples.png" not in written
    read = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [float(row["held_out_loss"]) for row in read] == [0.05, 0.07, 0.08, 0.11]
    assert read[1]["strategy"] == "scratch" and read[1]["bytes_to_store"] == "12345" and read[1]["source_sha256"] == ""


def test_what_else_differs_is_named_and_not_averaged_over(tmp_path):
    """Settings that come with a strategy, as scratch copies nothing, are no column."""
    write_run(tmp_path, "scratch", 0, include=(), held_out_loss=0.30)
    for n, losses in ((10, (0.20, 0.22)), (100, (0.10, 0.14))):
        for seed, loss in enumerate(losses):
            write_run(tmp_path, "full", seed, settings={"data.n_train": n}, held_out_loss=loss)
    assert varied(results_of(tmp_path)) == ["data.n_train"]
    assert [(r["strategy"], r["settings"], r["held-out loss, mean"], r["n"]) for r in averages(results_of(tmp_path))] == [
        ("full", "data.n_train=100", "0.1200", "2"), ("full", "data.n_train=10", "0.2100", "2"),
        ("scratch", "data.n_train=None", "0.3000", "1")]
    report.main([str(tmp_path)])
    assert [row["data.n_train"] for row in csv.DictReader((tmp_path / "report.csv").open())] == ["100", "100", "10", "10", ""]


def test_a_setting_inside_a_list_is_named_by_its_own_path(tmp_path, capsys):
    """And a run that failed at its start, which has an identity alone, makes no setting differ."""
    for weight, loss in ((0.1, 0.3), (1, 0.2)):
        penalties = [{"_target_": "transfer.penalties.L2SP", "weight": weight}]
        write_run(tmp_path, "l2_sp", settings={"transfer.penalties": penalties}, held_out_loss=loss)
    failed = write_run(tmp_path, "l2_sp", settings={"transfer.penalties": penalties})
    identity = json.loads((failed / "identity.json").read_text())
    identity["transfer"]["rules"] = [{"pattern": "l2_sp", "learning_rate_scale": 1.0, "from_": 0}]
    (failed / "identity.json").write_text(json.dumps(identity))
    assert varied(results_of(tmp_path)) == ["transfer.penalties.0.weight"]
    report.main([str(tmp_path)])
    assert "transfer.penalties.0.weight=0.1" in capsys.readouterr().out


def test_one_setting_of_two_strategies_is_named_too(tmp_path):
    write_run(tmp_path, "full", settings={"optimizer.lr": 1e-4}, held_out_loss=0.1)
    write_run(tmp_path, "bitfit", settings={"optimizer.lr": 1e-2}, held_out_loss=0.2)
    assert varied(results_of(tmp_path)) == ["optimizer.lr"]


def test_what_is_missing_is_said(tmp_path, capsys):
    write_run(tmp_path, "full", 0, held_out_loss=0.05, step=200)
    write_run(tmp_path, "full", 1, held_out_loss=0.15)
    write_run(tmp_path, "lora", 0, held_out_loss=None)
    write_run(tmp_path, "bitfit", 3)
    sweep = tmp_path / "sweeps/demo-12345678"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"cells": ["transfer=full", "transfer=svdiff", "transfer=lora"]}))
    (sweep / "0.json").write_text(json.dumps({"status": "finished", "run": "x", "seconds": 1}))
    (sweep / "1.json").write_text(json.dumps({"status": "failed", "message": "no memory\nat all", "seconds": 1}))
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    for name in ("full-seed0-0 is at step 200", "bitfit-seed3-3 has no result yet", "demo-12345678: transfer=svdiff failed: no memory",
                 "demo-12345678: transfer=lora is not finished"):
        assert f"\n  {name}\n" in printed and f"- {name}\n" in (tmp_path / "report.md").read_text(), printed
    assert "lora-seed0-2" not in printed.split("Missing")[1]
    assert "200 of 300" in printed
    assert ["full", "0.1500", "1", "0.1500", "to", "0.1500"] in lines(printed)  # the loss at step 200 is not among it
    assert next(row for row in lines(printed) if row[:1] == ["bitfit"]) == ["bitfit", "3", *["-"] * 7, "bitfit-seed3-3"]


def test_the_newest_samples_stand_side_by_side_by_loss(tmp_path):
    write_run(tmp_path, "full", 0, "red", held_out_loss=0.2)
    write_run(tmp_path, "full", 1, "blue", held_out_loss=0.1)  # the lowest seed is shown
    write_run(tmp_path, "lora", 1, "lime", held_out_loss=0.05)
    write_run(tmp_path, "bitfit", 0, held_out_loss=0.01)
    report.main([str(tmp_path)])
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    y, x = report.GAP + report.TEXT + report.SIDE // 2, report.GAP + report.SIDE // 2
    assert [tuple(pixels[y, x + n * (report.SIDE + report.GAP)]) for n in range(2)] == [(0, 255, 0), (255, 0, 0)]
    assert pixels.shape[1] == report.GAP + 2 * (report.SIDE + report.GAP)
    assert pixels[report.GAP : report.GAP + report.TEXT].min() < 128  # names
    assert "![samples](samples.png)" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("count", "text"), [
    (0, "0.0 B"), (999, "999.0 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7.8e12, "7800.0 GB")])
def test_sizes(count, text):
    assert size(count) == text


def test_shares_keep_their_first_digits():
    assert [percent(x) for x in (1.0, 0.0249, 0.000312, None)] == ["100%", "2.49%", "0.0312%", "-"]
