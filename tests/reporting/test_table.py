"""The report of an experiment, against directories written by hand: what is read, averaged and
written."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import special, stats

import report
from evaluation import evaluator
from metrics import estimate as record
from metrics.estimate import GRID
from reporting import report_pictures, verdict
from reporting.columns import FORGOT, HELD_OUT, KID, TEST_LOSS
from reporting.page import Report, judged_text, protocol_text
from reporting.runs import Evaluation, Run, Value, missing, read_runs, value_of
from reporting.table import (
    baselines_table,
    contrasts,
    mean_value,
    paired_replicates,
    rows,
    situations,
)
from runtime.files import write_sealed
from tests.helpers.report_runs import estimate, evaluated, evaluation, write_evaluation, write_run
from training.result import percent, read_result, size, varied


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def read_csv(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "report.csv").open()))


def t_interval(values) -> tuple[float, float]:
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


# over seeds


def test_rows_are_means_over_seeds_with_their_t_interval(tmp_path, capsys):
    losses = (0.08, 0.05, 0.11)
    for seed, loss in enumerate(losses):
        write_run(tmp_path, "full", seed, held_out_loss=loss)
    write_run(tmp_path, "scratch", 0, include=(), held_out_loss=0.07, device="cpu (x86_64)")
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    low, high = t_interval(losses)
    assert lines(printed)[1] == ["scratch", "0.0700", "2.5%", "0.001", "1.50", "12.3", "kB", "1"]
    assert lines(printed)[2] == [
        "full",
        "0.080",
        f"[{low:.3f},",
        f"{high:.3f}]",
        "2.5%",
        "0.001",
        "1.50",
        "12.3",
        "kB",
        "3",
    ]
    assert "settings" not in printed and "is at step" not in printed
    row = next(row for row in rows(read_runs(tmp_path)) if row.name == "full")
    assert row.cell(HELD_OUT)[:4] == pytest.approx((0.08, low, high, 3))
    written = (tmp_path / "report.md").read_text()
    assert (
        f"| full | 0.080 [{low:.3f}, {high:.3f}] | 2.5% | 0.001 | 1.50 | 12.3 kB | 3 |" in written
        and "samples.png" not in written
    )
    read = read_csv(tmp_path)
    assert [(row["strategy"], float(row["held_out_loss"])) for row in read] == [
        ("scratch", 0.07),
        ("full", 0.08),
        ("full", 0.05),
        ("full", 0.11),
    ]
    assert read[0]["bytes_to_store"] == "12345" and read[0]["source_sha256"] == ""


# of the replicates of tests.helpers.report_runs.estimate, the same for all: of images alone
SPREAD = np.linspace(-0.001, 0.001, 201)


def with_images(values, of_images: float) -> tuple[float, float]:
    """The interval of the mean of values over seeds, by Satterthwaite; of_images: the variance that
    the images add to all alike."""
    of_seeds, free = np.var(values, ddof=1) / len(values), len(values) - 1
    of_images *= 413 / 412  # a bootstrap's variance is too small by this
    larger = of_seeds * (1 + 2 / free)
    freedom = (larger + of_images) ** 2 / (larger**2 / free + of_images**2 / 200)
    return stats.t.interval(0.95, freedom, np.mean(values), (of_seeds + of_images) ** 0.5)


def test_an_evaluation_of_one_run_keeps_its_own_interval(tmp_path):
    """And one over seeds holds both spreads: that of the trainings and that of the images."""
    evaluated(tmp_path, "full", kid=0.02)
    for seed, kid in enumerate((0.03, 0.05)):
        evaluated(tmp_path, "lora", seed, kid=kid)
    full, lora = rows(read_runs(tmp_path))
    assert (
        full.cell(KID)[:4] == pytest.approx((0.02, 0.019, 0.021, 1))
        and "bootstrap" in full.cell(KID).explanation
    )
    assert lora.cell(KID)[:4] == pytest.approx(
        (0.04, *with_images((0.03, 0.05), np.var(SPREAD, ddof=1)), 2)
    )
    assert "over 2 seeds and the images" in lora.cell(KID).explanation and full.cell(KID).n == 1


def test_what_holds_no_other_training_is_marked(tmp_path, capsys):
    """zero_shot's interval over images stands in a column of intervals over seeds."""
    for seed in range(3):
        evaluated(tmp_path, "full", seed, kid=0.02 + 0.001 * seed)
        evaluated(
            tmp_path, "zero_shot", seed, result={"step": 0}, settings={"train.steps": 0}, kid=0.3
        )
    report.main([str(tmp_path)])
    source = (tmp_path / "report.html").read_text()
    page, other = (re.sub(r"<[^>]*>", " ", part) for part in source.split("<tbody")[1:3])
    texts = [capsys.readouterr().out, (tmp_path / "report.md").read_text()]
    found = [
        [
            next(line for line in text.splitlines() if line.strip("| ").startswith(name))
            for name in ("full ", "zero_shot ")
        ]
        for text in texts
    ]
    for full, zero_shot in [
        *found,
        [part.split("full-seed")[0].split("zero_shot-seed")[0] for part in (page, other)],
    ]:
        assert "]°" in zero_shot and "]" in full and "]°" not in full
    for text in [*texts, source]:
        assert (
            "° is of the images alone, of one training or none, and does not compare with the "
            "others"
        ) in text
    assert {row["intervals"] for row in read_csv(tmp_path)} == {"images"}  # a row is a run


def test_differences_are_paired_by_seed(tmp_path):
    """Two strategies that rise and fall together differ by far less than each varies."""
    for seed, kid in enumerate((0.02, 0.06, 0.10)):
        evaluated(tmp_path, "full", seed, kid=kid, loss=None)
        evaluated(tmp_path, "lora", seed, kid=kid + 0.01 + 0.001 * seed, loss=None)
    evaluated(tmp_path, "lora", 7, kid=5.0, loss=None)  # no partner
    full, lora = rows(read_runs(tmp_path))
    (found,) = contrasts([full, lora], full, KID).values()
    assert (found.value, *found.interval(), found.n) == pytest.approx(
        (0.011, *t_interval((0.01, 0.011, 0.012)), 3)
    )


def test_the_other_contrasts_steady_how_trainings_vary(tmp_path):
    """Variances that are alike are averaged in their logarithm, with the degrees of freedom that so
    many contrasts have."""
    table = np.zeros((4, 3)) + np.array([[0.05], [0.051], [0.052], [0.05]])
    table[1:] += 0.001 * np.array([[1.0, -1.0, 0.1], [0.2, 1.0, -1.1], [-1.0, 0.15, 1.0]])
    for (k, seed), kid in np.ndenumerate(table):
        evaluated(tmp_path, f"s{k}", seed, kid=kid, loss=None)
    # tells nothing of it, and takes nothing away
    evaluated(tmp_path, "once", 0, kid=0.5, loss=None)
    found = {row.name: row for row in rows(read_runs(tmp_path))}
    d = table[1:] - table[0]
    own = d.var(1, ddof=1)
    # of 3 contrasts: 4 * 3 / 6 times 2, less their own 2
    common, d0 = (
        np.exp(np.log(own).mean() - special.digamma(1)),
        2,
    )
    variances = np.maximum((d0 * common + 2 * own) / (d0 + 2), own)
    assert (variances > own).all()
    known = contrasts(list(found.values()), found["s0"], KID)
    for k in range(3):
        assert known[f"s{k + 1}"].interval() == pytest.approx(
            stats.t.interval(0.95, 4, d[k].mean(), (variances[k] / 3) ** 0.5)
        )
    assert "once" in known and "s0" not in known


@pytest.mark.parametrize("noisy", ["scratch", "svdiff"])
def test_one_that_varies_more_keeps_its_spread_and_leaves_the_others_theirs(tmp_path, noisy):
    rng = np.random.default_rng(3)
    for seed in range(3):
        for k in range(4):
            evaluated(tmp_path, f"s{k}", seed, kid=0.05 + 0.001 * rng.normal(), loss=None)
        evaluated(
            tmp_path,
            noisy,
            seed,
            include=() if noisy == "scratch" else ("*",),
            kid=0.05 + 0.02 * seed,
            loss=None,
        )
    table = rows(read_runs(tmp_path))
    found = {row.name: row for row in table}
    known, calm = (
        contrasts(among, found["s0"], KID)
        for among in (table, [row for row in table if row.name != noisy])
    )
    alone = contrasts([found[noisy]], found["s0"], KID)[noisy]
    assert known[noisy] == alone
    for k in (1, 2, 3):
        assert (
            known[f"s{k}"].variance < 1.5 * calm[f"s{k}"].variance
            and known[f"s{k}"].variance < alone.variance / 10
        )


def test_what_no_seed_changes_stands_beside_every_seed(tmp_path):
    for seed, kid in enumerate((0.02, 0.03, 0.07)):
        evaluated(tmp_path, "full", seed, kid=kid, loss=None)
    evaluated(
        tmp_path,
        "zero_shot",
        5,
        result={"step": 0},
        settings={"train.steps": 0},
        kid=0.3,
        loss=None,
    )
    full, zero_shot = rows(read_runs(tmp_path))
    found = contrasts([full, zero_shot], full, KID)[zero_shot.label]
    assert (found.value, *found.interval(), found.n) == pytest.approx(
        (0.26, *t_interval((0.28, 0.27, 0.23)), 3)
    )


def test_with_one_seed_the_replicates_are_paired(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.01, 200)
    apart = np.random.default_rng(1).normal(0.002, 0.0005, 200)
    evaluated(tmp_path, "full", kid=0.02, replicates=0.02 + noise, loss=None)
    evaluated(tmp_path, "lora", kid=0.022, replicates=0.02 + noise + apart, loss=None)
    evaluated(tmp_path, "bitfit", 3, kid=0.03, loss=None)
    full, lora, bitfit = rows(read_runs(tmp_path))
    found = contrasts([full, lora, bitfit], full, KID)
    assert bitfit.label not in found  # no seed in common
    found = found[lora.label]
    assert (found.value, *found.interval(), found.n) == pytest.approx(
        (0.002, *stats.t.interval(0.95, 199, 0.002, np.std(apart, ddof=1) * (413 / 412) ** 0.5), 1)
    )
    # of one run each there are no replicates
    assert contrasts([lora], full, HELD_OUT)[lora.label].variance is None


def test_subsets_and_trainings_are_told_apart(tmp_path):
    """3 drawn subsets by 2 trainings: the mean is over subsets, whose trainings are averaged first;
    both spreads are told."""
    table = np.array([[0.10, 0.12], [0.20, 0.23], [0.31, 0.33]])
    for (subset, seed), loss in np.ndenumerate(table):
        evaluated(
            tmp_path,
            "full",
            seed,
            settings={"data.n_train": 10, "data.subset_seed": subset + 5},
            loss=loss,
        )
    (row,) = rows(read_runs(tmp_path))
    means, of_images = table.mean(1), np.var(SPREAD, ddof=1)
    assert row.cell(TEST_LOSS)[:4] == pytest.approx(
        (means.mean(), *with_images(means, of_images), 3)
    )
    assert row.cell(TEST_LOSS).counted == "3 subsets"
    within = np.mean(table.var(1, ddof=1))
    between = means.var(ddof=1) - within / 2
    assert verdict.two_spreads(row, TEST_LOSS) == pytest.approx((between**0.5, within**0.5))
    said = " ".join(Report(tmp_path, read_runs(tmp_path)).verdicts[0][1])
    assert (
        "Which images were drawn spreads the test loss of full by 0.104, training again on the "
        "same ones by 0.0168"
    ) in said
    report.main([str(tmp_path)])
    assert "| 3 subsets, 6 runs |" in (tmp_path / "report.md").read_text()
    assert row.runs[0].result.cells()["seed"] == "0, images by 5"
    assert [row["subset"] for row in read_csv(tmp_path) if row["strategy"] == "full"] == [
        "5",
        "6",
        "7",
        "5",
        "6",
        "7",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"data.n_train": 10},
            "Each seed draws its own training images too (data.subset_seed=null)",
        ),
        (
            {"data.n_train": 10, "data.subset_seed": 3},
            "All seeds train on the same drawn images (data.subset_seed)",
        ),
        ({}, None),
    ],
)
def test_which_spread_an_interval_over_seeds_holds_is_said(tmp_path, settings, said):
    for seed in range(3):
        evaluated(tmp_path, "full", seed, settings=settings, loss=0.08 + 0.01 * seed)
    ((_, sentences),) = Report(tmp_path, read_runs(tmp_path)).verdicts
    assert any(said in s for s in sentences) if said else "drawn" not in " ".join(sentences)
    assert rows(read_runs(tmp_path))[0].cell(TEST_LOSS).counted == "3 seeds"


def test_what_else_differs_is_named_and_not_averaged_over(tmp_path):
    """Settings that come with a strategy, as scratch copies nothing, are no column."""
    write_run(tmp_path, "scratch", 0, include=(), held_out_loss=0.30)
    for n, losses in ((100, (0.10, 0.14)), (10, (0.20, 0.22))):
        for seed, loss in enumerate(losses):
            write_run(tmp_path, "full", seed, settings={"data.n_train": n}, held_out_loss=loss)
    runs = read_runs(tmp_path)
    assert varied([run.result for run in runs]) == ["data.n_train"]
    assert [
        (row.name, row.settings["data.n_train"], *row.cell(HELD_OUT)[:4:3]) for row in rows(runs)
    ] == [
        ("full", 10, pytest.approx(0.21), 2),
        ("full", 100, pytest.approx(0.12), 2),
        ("scratch", None, 0.30, 1),
    ]
    report.main([str(tmp_path)])
    assert [row["data.n_train"] for row in read_csv(tmp_path)] == ["10", "10", "100", "100", ""]


def test_a_setting_inside_a_list_is_named_by_its_own_path(tmp_path, capsys):
    """And a run that failed at its start, which has an identity alone, makes no setting differ."""
    for weight, loss in ((0.1, 0.3), (1, 0.2)):
        penalties = [{"_target_": "transfer.penalties.L2SP", "weight": weight}]
        write_run(tmp_path, "l2_sp", settings={"transfer.penalties": penalties}, held_out_loss=loss)
    failed = write_run(tmp_path, "l2_sp", settings={"transfer.penalties": penalties})
    identity = json.loads((failed / "identity.json").read_text())
    identity["transfer"]["rules"] = [{"pattern": "l2_sp", "learning_rate_scale": 1.0, "from_": 0}]
    (failed / "identity.json").write_text(json.dumps(identity))
    assert varied([read_result(p.parent) for p in tmp_path.glob("*/identity.json")]) == [
        "transfer.penalties.0.weight"
    ]
    report.main([str(tmp_path)])
    printed = lines(capsys.readouterr().out)
    assert printed[0][:2] == ["strategy", "transfer.penalties.0.weight"] and [
        row[1] for row in printed[1:3]
    ] == ["1", "0.1"]


def test_one_setting_of_two_strategies_is_named_too(tmp_path):
    write_run(tmp_path, "full", settings={"optimizer.lr": 1e-4}, held_out_loss=0.1)
    write_run(tmp_path, "bitfit", settings={"optimizer.lr": 1e-2}, held_out_loss=0.2)
    assert varied([run.result for run in read_runs(tmp_path)]) == ["optimizer.lr"]


def test_each_strategy_contends_with_the_setting_of_its_lowest_held_out_loss(tmp_path):
    """And not with that of its lowest KID to the test images, which would be a choice on them."""
    for rate, loss, kid in ((1e-3, 0.06, 0.03), (1e-2, 0.09, 0.01)):
        evaluated(
            tmp_path,
            "full",
            settings={"optimizer.lr": rate},
            result={"held_out_loss": loss},
            kid=kid,
        )
    evaluated(tmp_path, "lora", settings={"optimizer.lr": 1e-2}, kid=0.02)
    (contenders,) = situations(rows(read_runs(tmp_path))).values()
    assert [(row.name, row.settings["optimizer.lr"]) for row in contenders] == [
        ("lora", 1e-2),
        ("full", 1e-3),
    ]


def test_settings_are_chosen_by_the_checkpoint_that_is_judged(tmp_path):
    """And not by where a run went after it."""
    for rate, losses, kid in ((1e-2, (0.05, 0.20), 0.02), (1e-3, (0.09, 0.08), 0.03)):
        directory = evaluated(
            tmp_path,
            "full",
            settings={"optimizer.lr": rate},
            result={"held_out_loss": losses[1]},
            kid=kid,
            step=150 if rate == 1e-2 else 300,
        )
        (directory / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"step": step, "validation/loss": loss}) + "\n"
                for step, loss in zip((150, 300), losses)
            )
        )
    table = rows(read_runs(tmp_path))
    assert [(row.settings["optimizer.lr"], row.value(HELD_OUT)) for row in table] == [
        (1e-2, 0.05),
        (1e-3, 0.08),
    ]
    ((contender,),) = situations(table).values()
    assert contender.settings["optimizer.lr"] == 1e-2


def test_baselines_stand_apart_once(tmp_path):
    for seed in range(3):
        evaluated(tmp_path, "full", seed, kid=0.02)
    (baseline,) = baselines_table(read_runs(tmp_path))
    assert baseline.name == "memoriser" and baseline.cell(KID)[:4] == pytest.approx(
        (0.005, 0.004, 0.006, 1)
    )
    assert baseline.cell(HELD_OUT).value is None and baseline.cell(FORGOT).value is None
    report.main([str(tmp_path)])
    assert [row["strategy"] for row in read_csv(tmp_path)].count("baseline: memoriser") == 3


def test_baselines_of_an_evaluation_that_calls_them_floors_are_read(tmp_path):
    content = evaluation()
    content["floors"] = content.pop("baselines")
    write_evaluation(write_run(tmp_path, "full", held_out_loss=0.07), content)
    (baseline,) = baselines_table(read_runs(tmp_path))
    assert baseline.name == "memoriser"


def test_baselines_stand_beside_the_further_numbers_too(tmp_path):
    content = evaluation()
    content["baselines"]["memoriser"]["quality"]["test"]["frechet"] = 3.21
    write_evaluation(write_run(tmp_path, "full", held_out_loss=0.07), content)
    report.main([str(tmp_path)])
    more = (tmp_path / "report.md").read_text().split("### More numbers")[1].split("###")[0]
    assert "| full | 12.5 |" in more and "| memoriser | 3.21 |" in more
    assert "3.21" in (tmp_path / "report.html").read_text().split("More numbers")[1]


def test_a_metric_of_ones_own_is_shown_under_its_key(tmp_path):
    content = evaluation()
    content["quality"]["test"]["mean_gap"] = estimate(0.0414, 0.002)
    write_evaluation(write_run(tmp_path, "full", held_out_loss=0.07), content)
    report.main([str(tmp_path)])
    more = (tmp_path / "report.md").read_text().split("### More numbers")[1].split("###")[0]
    assert "mean_gap" in more and "0.041" in more
    assert read_csv(tmp_path)[0]["mean_gap"] == "0.0414"


def test_what_no_training_changes_keeps_the_interval_of_its_images(tmp_path):
    """The untouched source gives the same images for every seed, though their distance to each
    seed's training images differs: seeds that agree to the bit are no sign of certainty."""
    for seed in range(3):
        content = evaluation()
        content["baselines"]["memoriser"]["quality"]["train"] = {"kid": 0.1 * seed}
        write_evaluation(write_run(tmp_path, "full", seed, held_out_loss=0.07), content)
        evaluated(
            tmp_path, "zero_shot", seed, result={"step": 0}, settings={"train.steps": 0}, kid=0.3
        )
    (baseline,) = baselines_table(read_runs(tmp_path))
    assert baseline.cell(KID)[:4] == pytest.approx((0.005, 0.004, 0.006, 1))
    zero_shot = next(row for row in rows(read_runs(tmp_path)) if row.name == "zero_shot")
    assert len(zero_shot.counted) == 3 and zero_shot.cell(KID)[:4] == pytest.approx(
        (0.3, 0.299, 0.301, 1)
    )
    full = next(row for row in rows(read_runs(tmp_path)) if row.name == "full")
    # trained thrice
    assert full.cell(KID)[:4] == pytest.approx(
        (0.02, *with_images((0.02,) * 3, np.var(SPREAD, ddof=1)), 3)
    )


def test_runs_that_differ_in_a_list_stand_apart(tmp_path):
    for k, window in enumerate(([40, 400], [50, 350], None)):
        settings = {"data.window": window}
        evaluated(tmp_path, "full", kid=0.1 + k, settings=settings)
    table = rows(read_runs(tmp_path))
    assert [row.situation for row in table] == [
        (("data.window", "[40, 400]"),),
        (("data.window", "[50, 350]"),),
        (("data.window", None),),
    ]
    assert len(baselines_table(read_runs(tmp_path))) == 3
    report.main([str(tmp_path)])


# what is missing


def test_what_is_missing_is_said(tmp_path, capsys):
    write_run(tmp_path, "full", 0, held_out_loss=0.05, step=200)
    write_run(tmp_path, "full", 1, held_out_loss=0.15)
    write_run(tmp_path, "lora", 0, held_out_loss=None)
    write_run(tmp_path, "bitfit", 3)
    sweep = tmp_path / "sweeps/demo-12345678"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(
        json.dumps({"cells": ["transfer=full", "transfer=svdiff", "transfer=lora"]})
    )
    (sweep / "0.json").write_text(json.dumps({"status": "finished", "run": "x", "seconds": 1}))
    (sweep / "1.json").write_text(
        json.dumps({"status": "failed", "message": "no memory\nat all", "seconds": 1})
    )
    report.main([str(tmp_path)])
    printed, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for name in (
        "full-seed0-0 is at step 200",
        "bitfit-seed3-3 has no result yet",
        "demo-12345678: transfer=svdiff failed: no memory",
        "demo-12345678: transfer=lora is not finished",
        f"no run is evaluated: python evaluate.py checkpoint={tmp_path}",
    ):
        assert (
            f"\n  {name}\n" in printed and f"- {name}\n" in (tmp_path / "report.md").read_text()
        ), printed
        assert f"<li>{name}</li>" in page
    assert "lora-seed0-2" not in printed.split("Missing")[1]
    assert "at step 200 of 300" in page
    # the loss at step 200 is not among it
    assert ["full", "0.150", "2.5%", "0.001", "1.50", "12.3", "kB", "1"] in lines(printed)
    assert ["bitfit", "-", "-", "0.001", "-", "-", "no", "result", "yet"] in lines(printed)


def test_only_evaluations_of_one_protocol_are_compared(tmp_path):
    """The one that most runs have; of one run the newest; the newest protocol where several have as
    many."""
    for seed in range(2):
        evaluated(tmp_path, "full", seed, kid=0.02)
    odd = write_run(tmp_path, "lora", held_out_loss=0.07)
    write_evaluation(odd, evaluation(kid=0.0001, n=50), age=-60)  # the newest of all
    write_evaluation(tmp_path / "full-seed0-0", evaluation(kid=0.9), "older", age=60)
    runs = read_runs(tmp_path)
    full, lora = rows(runs)
    assert full.cell(KID).value == pytest.approx(0.02) and lora.cell(KID).value is None
    assert f"python evaluate.py checkpoint={odd}" in lora.cell(KID).why
    missing = Report(tmp_path, runs).missing
    assert (
        f"{odd.name} is not evaluated under this protocol: python evaluate.py checkpoint={odd} "
        "n=500 sampler.steps=50 'metrics=[quality,loss]'"
    ) in missing
    assert f"{odd.name}: evaluation/default is left out, under another protocol (n: 500 -> 50)" in [
        line.replace("n: 50 -> 500", "n: 500 -> 50") for line in missing
    ]
    assert "full-seed0-0: evaluation/older is left out, a newer one is here" in missing
    write_evaluation(odd, evaluation(kid=0.03), "again")
    assert rows(read_runs(tmp_path))[1].cell(KID).value == pytest.approx(0.03)


def test_draws_of_images_and_of_patients_are_not_paired():
    """Of two seeds, one drawn by images: the interval is that of the seeds alone, as without
    replicates. Where both are drawn by patients it is as wide as that of as many images."""
    draws = [np.random.default_rng(k).normal(0.1, 0.01, 200).tolist() for k in range(2)]
    by_images = Value(0.1, 0.0, 0.2, draws[0], 80)
    by_patients = Value(0.12, 0.0, 0.2, draws[1], 4, 80)
    assert paired_replicates([by_images, by_patients]) == ([], 4)
    assert paired_replicates([by_patients, by_patients]) == ([draws[1]] * 2, 4)
    assert mean_value([by_patients, by_patients]).of_images == 80
    assert value_of(estimate(0.1) | {"of_images": 413}).of_images == 413


def test_patients_are_named_where_they_are_drawn(tmp_path):
    for k, of_images in enumerate((None, 413)):
        folder = tmp_path / str(k)
        directory = write_run(folder, "full", held_out_loss=0.07)
        content = evaluation()
        if of_images:
            content["loss"]["target"]["loss"] |= {"images": 6, "of_images": of_images}
            content["images"]["test_patients"] = 6
            content["protocol"]["drawn_by"] = "patient"
        write_evaluation(directory, content)
        runs, unit = read_runs(folder), "patients" if of_images else "images"
        said = rows(runs)[0].cell(TEST_LOSS).explanation
        assert said == f"one run; 95% bootstrap interval over its {unit}, no other training in it"
        told = "413 test images of 6 patients" if of_images else "413 test images"
        assert f"against {told} and the training images" in protocol_text(runs[0])
        assert judged_text(runs[0]).startswith(f"{told} in random")


def test_of_two_protocols_with_as_many_runs_the_newest_counts(tmp_path):
    directory = write_run(tmp_path, "full", held_out_loss=0.07)
    write_evaluation(directory, evaluation(kid=0.2, n=50), "a", age=60)
    write_evaluation(directory, evaluation(kid=0.1, n=500), "b")
    assert rows(read_runs(tmp_path))[0].value(KID) == pytest.approx(0.1)
    os.utime(directory / "evaluation/a/evaluation.json")
    assert rows(read_runs(tmp_path))[0].value(KID) == pytest.approx(0.2)


def test_an_evaluation_of_what_no_longer_is_the_best_checkpoint_is_named(tmp_path):
    directory = evaluated(tmp_path, "full", result={"best_step": 300}, step=200)
    assert any(
        f"{directory.name} was evaluated at step 200, and its best is step 300 now" in line
        for line in Report(tmp_path, read_runs(tmp_path)).missing
    )


def test_an_evaluation_of_what_no_longer_is_the_last_checkpoint_is_named(tmp_path):
    directory = write_run(tmp_path, "full", held_out_loss=0.07)
    content = evaluation(step=200)
    content["protocol"]["select"] = "last"
    content["arguments"] = ["select=last"]
    write_evaluation(directory, content)
    (line,) = [
        line
        for line in Report(tmp_path, read_runs(tmp_path)).missing
        if "its last is step 300 now" in line
    ]
    assert line.endswith(f"checkpoint={directory} select=last")


def test_a_step_that_was_asked_for_counts_only_where_no_rule_chose(tmp_path):
    directory = write_run(tmp_path, "full", held_out_loss=0.07)
    write_evaluation(directory, evaluation(kid=0.2), "a", age=60)
    content = evaluation(kid=0.1)
    content["protocol"]["select"] = "step_100"
    write_evaluation(directory, content, "b")
    assert rows(read_runs(tmp_path))[0].value(KID) == pytest.approx(0.2)
    assert "checkpoint step_100 of each run" in protocol_text(
        Run(read_runs(tmp_path)[0].result, Evaluation(tmp_path, content))
    )


def test_evaluations_along_training_are_one_line_and_count_only_where_no_rule_chose(tmp_path):
    """As evaluate.py select=every leaves them, the newest at the last step."""
    directory = write_run(tmp_path, "full", held_out_loss=0.07)
    write_evaluation(directory, evaluation(kid=0.2), "best", age=60)
    for step in (900, 1000, 1100):
        content = evaluation(kid=0.1)
        content["protocol"]["select"] = f"step_{step}"
        write_evaluation(directory, content, f"step_{step}")
        content["protocol"]["features"] = {"kind": "inception"}
        write_evaluation(directory, content, f"other_{step}")
    found = read_runs(tmp_path)
    assert rows(found)[0].value(KID) == pytest.approx(0.2)
    lines = [line for line in Report(tmp_path, found).missing if "left out" in line]
    what = f"{directory.name}: 3 evaluations of single checkpoints are left out, "
    assert sorted(lines) == [
        f"{what}of step 900 to 1100",
        f"{what}under another protocol (features.kind: random -> inception)",
    ]


def of_one_image(node):
    """An evaluation's content as it is where one image is held out: no number has an interval."""
    if isinstance(node, dict) and "replicates" in node:
        return record.estimate(
            node["value"], torch.full((200,), node["value"], dtype=torch.float64), 1
        )
    return {key: of_one_image(v) for key, v in node.items()} if isinstance(node, dict) else node


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_held_out_image_tells_no_interval(tmp_path, capsys, seeds):
    """Its replicates are all alike: nothing is told apart by that, whatever the difference; over
    seeds it is the trainings alone."""
    for seed in range(seeds):
        for name, loss, include in (("full", 0.05, ("*",)), ("scratch", 0.5, ())):
            content = of_one_image(evaluation(loss=loss * (1 + 0.01 * seed), kid=loss))
            write_evaluation(
                write_run(tmp_path, name, seed, include=include, held_out_loss=loss), content
            )
    (told,) = (
        line for line in evaluator.summarize(content).splitlines() if "loss on test images" in line
    )
    assert told.split()[-1].startswith("0.5") and "(" not in told
    report.main([str(tmp_path)])
    full = rows(read_runs(tmp_path))[0]
    assert full.cell(TEST_LOSS).text.startswith("0.05") and bool(full.cell(TEST_LOSS).band) == (
        seeds > 1
    )
    assert ("one run, no interval" if seeds == 1 else "the images are not in it") in full.cell(
        TEST_LOSS
    ).explanation
    assert {(row["test_loss_low"], row["test_loss_high"]) for row in read_csv(tmp_path)} == {
        ("", "")
    }
    (said,) = [
        s
        for s in Report(tmp_path, read_runs(tmp_path)).verdicts[0][1]
        if s.startswith("Did the source help?")
    ]
    assert (
        ("unknown, as there is no interval" in said)
        if seeds == 1
        else ("by test loss yes" in said.lower())
    )


def test_what_could_not_be_computed_says_why(tmp_path):
    content = evaluation()
    del content["loss"]["target"]
    write_evaluation(write_run(tmp_path, "full", held_out_loss=0.07), content)
    cell = rows(read_runs(tmp_path))[0].cell(TEST_LOSS)
    assert cell.text == "-" and cell.why == "FID is left out: 413 test images, it needs 2,000"


def test_an_evaluation_without_held_out_images(tmp_path, capsys):
    content = evaluation()
    del (
        content["quality"]["test"],
        content["images"]["test"],
        content["loss"],
        content["memorization"],
    )
    content["protocol"]["held_out"] = None
    write_evaluation(write_run(tmp_path, "full", held_out_loss=None), content)
    report.main([str(tmp_path)])
    assert "nothing can be said" in capsys.readouterr().out
    assert "against the training images of each run" in (tmp_path / "report.md").read_text()


def test_what_evaluations_say_of_their_numbers_is_in_the_report(tmp_path):
    """Each thing once, and of how many."""
    for seed, notes in enumerate(
        (
            ["the Frechet distance is biased"],
            ["the Frechet distance is biased", "of images it was trained on"],
        )
    ):
        write_evaluation(
            write_run(tmp_path, "full", seed, held_out_loss=0.07), evaluation() | {"notes": notes}
        )
    report.main([str(tmp_path)])
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert (
            text.count("the Frechet distance is biased") == 1
            and "of images it was trained on (1 of 2 evaluations)" in text
        )


@pytest.mark.parametrize(
    "name", ["evaluation/default/evaluation.json", "result.json", "identity.json", "config.yaml"]
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name, capsys):
    directory = evaluated(tmp_path, "full")
    (directory / name).write_text('{"a": [')
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    message = capsys.readouterr().err
    assert (
        f"error: {directory / name} is damaged" in message
        and "delete" in message
        and "Traceback" not in message
    )
    assert ("python evaluate.py checkpoint=" in message) == ("evaluation" in name)
    assert not (tmp_path / "report.html").exists()


def test_a_number_that_was_changed_is_not_shown(tmp_path, capsys):
    """As evaluate.py writes it, one digit is another one."""
    directory = evaluated(tmp_path, "full")
    path = directory / "evaluation/default/evaluation.json"
    write_sealed(path, json.loads(path.read_text()), indent=1)
    report.main([str(tmp_path)])
    path.write_text(path.read_text().replace('"value": 0', '"value": 9'))
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    message = capsys.readouterr().err
    assert (
        f"error: {path} is damaged (its content does not have the sha256 that it says): delete "
        "it and evaluate"
    ) in message


def test_an_evaluation_of_another_version_is_refused(tmp_path, capsys):
    write_evaluation(write_run(tmp_path, "full", held_out_loss=0.07), evaluation() | {"version": 1})
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert (
        "version 1 of the format, and this code reads 2; delete it and evaluate again"
        in capsys.readouterr().err
    )


def test_numbers_that_are_none_are_unknown(tmp_path):
    evaluated(tmp_path, "full", kid=float("nan"), rho=float("inf"))
    row = rows(read_runs(tmp_path))[0]
    assert row.cell(KID).text == "-"
    report.main([str(tmp_path)])
    assert "nan" not in (tmp_path / "report.md").read_text().lower().replace("dominan", "")


# pictures


def test_the_newest_samples_stand_side_by_side_by_loss(tmp_path):
    write_run(tmp_path, "full", 0, "red", held_out_loss=0.2)
    write_run(tmp_path, "full", 1, "blue", held_out_loss=0.1)  # the lowest seed is shown
    write_run(tmp_path, "lora", 1, "lime", held_out_loss=0.05)
    write_run(tmp_path, "bitfit", 0, held_out_loss=0.01)
    report.main([str(tmp_path)])
    pixels = np.asarray(Image.open(tmp_path / "samples.png"))
    y, x = (
        report_pictures.GAP + report_pictures.TEXT + report_pictures.SIDE // 2,
        report_pictures.GAP + report_pictures.SIDE // 2,
    )
    assert [
        tuple(pixels[y, x + n * (report_pictures.SIDE + report_pictures.GAP)]) for n in range(2)
    ] == [
        (0, 255, 0),
        (255, 0, 0),
    ]
    assert pixels.shape[1] == report_pictures.GAP + 2 * (report_pictures.SIDE + report_pictures.GAP)
    assert (
        pixels[report_pictures.GAP : report_pictures.GAP + report_pictures.TEXT].min() < 128
    )  # names
    assert "![samples](samples.png)" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0.0 B"),
        (999, "999.0 B"),
        (1000, "1.0 kB"),
        (2_500_000, "2.5 MB"),
        (7.8e12, "7800.0 GB"),
    ],
)
def test_sizes(count, text):
    assert size(count) == text


def test_shares_keep_their_first_digits():
    assert [percent(x) for x in (1.0, 0.0249, 0.000312, None)] == ["100%", "2.49%", "0.0312%", "-"]


def test_a_loss_on_other_images_is_not_compared(tmp_path):
    """A sweep that was continued with a later version: its old cell has the lowest loss, of the
    first files alone."""
    for rate, loss, grid in ((1e-3, 0.05, None), (3e-3, 0.07, GRID)):
        evaluated(
            tmp_path,
            "full",
            settings={"optimizer.lr": rate},
            result={"held_out_loss": loss, "held_out_grid": grid},
        )
    evaluated(tmp_path, "lora", result={"held_out_loss": 0.09})
    table = rows(read_runs(tmp_path))
    old, new = (
        next(row for row in table if row.name == "full" and row.settings["optimizer.lr"] == rate)
        for rate in (1e-3, 3e-3)
    )
    assert old.value(HELD_OUT) is None and new.value(HELD_OUT) == 0.07
    (contenders,) = situations(table).values()
    assert [row.settings["optimizer.lr"] for row in contenders if row.name == "full"] == [3e-3]
    assert any(
        "earlier version" in line and "first files" in line
        for line in missing(tmp_path, read_runs(tmp_path))
    )
