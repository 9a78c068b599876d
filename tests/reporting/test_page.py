"""The page of a report: that it stands alone, is whole HTML, says what the numbers say, and draws
what is known."""

from __future__ import annotations

import csv
import itertools
import json
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import report
from evaluation import suite
from evaluation.image_features import ImageFeatures
from evaluation.suite import noise_images
from metrics.features.random import RandomConvolutional
from metrics.intervals import wilson
from reporting.columns import AUDIT_COLUMNS, COLUMNS, HELD_OUT, KID, further, hours_of
from reporting.figures import Plot, pareto
from reporting.numbers import interval, number
from reporting.page import Report, look
from reporting.runs import read_runs
from reporting.table import baselines_table
from reporting.table import rows as rows_of
from tests.helpers.report_runs import estimate, evaluated, evaluation, write_evaluation, write_run

EMPTY = {"meta", "img", "br", "hr", "input", "link"}  # elements without an end


class Page(HTMLParser):
    """Holds that every element ends where it should; keeps attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.attributes, self.text, self.rows = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open, self.getpos())

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()


def page_of(folder: Path) -> Page:
    report.main([str(folder)])
    return Page((folder / "report.html").read_text())


def verdict_of(folder: Path) -> list[str]:
    ((_, sentences),) = Report(folder, read_runs(folder)).verdicts
    return sentences


def figures_of(folder: Path) -> dict[str, Plot]:
    return {figure.title: figure for figure in Report(folder, read_runs(folder)).figures}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Two shots, two rates, three seeds, pictures, curves; and names that would be tags."""
    folder = tmp_path_factory.mktemp("experiment")
    for strategy, n, seed in itertools.product(("full", "lora", "zero_shot"), (10, 100), range(3)):
        directory = evaluated(
            folder,
            strategy,
            seed,
            settings={"data.n_train": n},
            kid=0.02 + 0.01 * (n == 10) + 0.001 * seed,
        )
        rows = [
            {"step": s, "validation/loss": 1 / s, "validation/kid": 0.1 / s + 0.001 * seed}
            for s in (100, 200, 300)
        ]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Image.new("RGB", (40, 40), "red").save(directory / "samples/samples_0000300.png")
        Image.new("RGB", (80, 40), "blue").save(directory / "evaluation/default/closest.png")
        pairs = [{"generated": 3, "train": 17, "distance": 0.25, "ratio": 0.2}]
        (directory / "evaluation/default/closest.json").write_text(json.dumps(pairs))
    evaluated(
        folder,
        "full",
        settings={"data.n_train": 100, "optimizer.lr": 0.01},
        kid=0.04,
        result={"held_out_loss": 0.2},
    )
    write_run(
        folder,
        "<script>alert(1)",
        0,
        settings={"source.from": '"><b>&', "data.n_train": 10},
        held_out_loss=0.5,
    )
    report.main([str(folder)])
    return folder


def test_the_page_is_whole_and_stands_alone(experiment):
    source = (experiment / "report.html").read_text()
    page = Page(source)
    assert not re.search(r"https?://|@import|url\((?!#)", source)
    for tag, name, value in page.attributes:
        if name == "src":
            assert value.startswith("data:image/png;base64,")
        if name == "href":
            assert tag == "a" and (experiment / unquote(value)).is_dir()
        assert not name.startswith("on") and (tag, name) != ("link", "rel")
    assert not [value for tag, name, value in page.attributes if tag == "script"]


def test_what_configs_say_is_text(experiment):
    source = (experiment / "report.html").read_text()
    assert source.count("<script>") == 1 and "&lt;script&gt;alert(1)" in source
    assert "<b>" not in source and "&#34;&gt;&lt;b&gt;&amp;" in source


def test_the_numbers_of_the_table(experiment):
    rows = Page((experiment / "report.html").read_text()).rows
    head = next(row for row in rows if row and row[0] == "strategy")
    full = next(row for row in rows if row and row[0] == "full")
    assert head[:2] == ["strategy", "n_train"] and full[1] == "10"
    cells = dict(zip([name.split(" ↓")[0].split(" ↑")[0] for name in head], full, strict=True))
    # the variances that both add
    of_seeds, of_images = (
        1e-6 / 3,
        np.var(np.linspace(-0.001, 0.001, 201), ddof=1),
    )
    freedom = (2 * of_seeds + of_images) ** 2 / ((2 * of_seeds) ** 2 / 2 + of_images**2 / 200)
    middle, half = 0.031, stats.t.ppf(0.975, freedom) * (of_seeds + of_images) ** 0.5
    assert (
        cells["KID test"] == f"{middle:.4f}[{middle - half:.4f}, {middle + half:.4f}]"
        and cells["seeds"] == "3"
    )
    assert (
        cells["precision"] == "0.500"
        and cells["learning rate"] == "0.001"
        and cells["trained"] == "2.5%"
    )
    assert [row[0] for row in rows].count(
        "memoriser"
    ) == 2 * 2  # of each number of images, in both tables
    assert sum(row[0].startswith("full-seed") for row in rows if row) == 7  # single runs


def test_every_figure_of_a_full_experiment_is_drawn(experiment):
    figures = figures_of(experiment)
    assert not [f.title for f in figures.values() if f.missing]
    for title, plot in figures.items():
        assert len(plot.figure.axes) == (
            1 if title in ("Quality against shots", "Sensitivity to the learning rate") else 2
        ), title
        root = ElementTree.fromstring(plot.svg)
        texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert len(texts) > 5 and "nan" not in texts
    written = sorted(p.name for p in (experiment / "report_figures").iterdir())
    assert written == sorted(
        f"{plot.name}.{suffix}" for plot in figures.values() for suffix in ("svg", "pdf")
    )
    text = (experiment / "report.md").read_text()
    assert all(f"](report_figures/{plot.name}.svg)" in text for plot in figures.values())


@pytest.mark.usefixtures("real_pdfs")
def test_figures_have_the_same_bytes_each_time_and_follow_the_page(experiment):
    first, again = (figures_of(experiment)["Quality against forgetting"] for _ in range(2))
    assert (
        first.svg == again.svg == (experiment / "report_figures/forgetting.svg").read_bytes()
        and first.pdf == again.pdf
    )
    assert (
        b"var(" not in first.svg
        and b"<metadata>" not in first.svg
        and first.pdf.startswith(b"%PDF")
    )
    text = re.search(r"<text[^>]*>KID test</text>", first.inline).group()
    assert (
        "fill: var(--text)" in text
        and "var(--back)" in first.inline
        and first.inline in (experiment / "report.html").read_text()
    )


def test_a_plot_without_data_says_what_makes_it(tmp_path):
    write_run(tmp_path, "full", held_out_loss=0.1)
    (tmp_path / "report_figures").mkdir()
    for old in ("report_old.svg", "report_figures/old.pdf"):
        (tmp_path / old).write_text("of an earlier report")
    text = " ".join(page_of(tmp_path).text)
    needs = "needs evaluations with KID and the loss on source images"
    assert f"Quality against forgetting: {needs}: python evaluate.py checkpoint={tmp_path}" in text
    assert (
        "needs run.kid_images above 0 in training" in text
        and "+sweep=shots" in text
        and "+sweep=learning_rate" in text
    )
    assert not [*tmp_path.glob("report_*.svg"), *tmp_path.glob("report_figures/*")]


def test_how_images_were_made_is_said_in_full(tmp_path):
    path = evaluated(tmp_path, "full") / "evaluation/default/evaluation.json"
    content = json.loads(path.read_text())
    sampler = {
        "function": {"_target_": "diffusion.samplers.ddim", "eta": 0.0},
        "spacing": {"_target_": "diffusion.spacing.even_steps"},
        "steps": 50,
        "clip": True,
    }
    content["protocol"] |= {"sampler": sampler, "held_out_draws": 2048, "bound": [16, 100]}
    path.write_text(json.dumps(content))
    (said,) = [
        text for term, text in Report(tmp_path, read_runs(tmp_path)).facts if term == "evaluation"
    ]
    for words in (
        "500 images sampled once by ddim (eta 0.0), 50 steps, even_steps, x0 clipped",
        "losses over 2,048 draws of (image, t, noise)",
        "bound of 16 images with 100 steps each",
    ):
        assert words in said, said
    content["images"]["test"] = 10
    for bound, words in (
        ([16, 100], "bound of 10 images with 100 steps each"),
        ([None, None], "bound of 10 images with all steps each"),
    ):
        content["protocol"]["bound"] = bound
        path.write_text(json.dumps(content))
        assert words in dict(Report(tmp_path, read_runs(tmp_path)).facts)["evaluation"]


@pytest.mark.parametrize(("source", "blind"), [(1.0, True), (0.3, False)])
def test_precision_that_the_source_passes_too_is_said_to_rank_nothing(tmp_path, source, blind):
    path = next(evaluated(tmp_path, "full").glob("evaluation/*/evaluation.json"))
    content = json.loads(path.read_text())
    content["baselines"] |= {
        "untouched source": {"quality": {"test": {"precision": source}}},
        "train against test": {"quality": {"test": {"precision": 0.72}}},
    }
    path.write_text(json.dumps(content))
    assert ("Precision and density rank nothing here" in " ".join(verdict_of(tmp_path))) == blind


def test_the_page_says_what_made_its_numbers(tmp_path):
    directory = evaluated(tmp_path, "full")
    (directory / "environment.json").write_text(
        json.dumps(
            {
                "commit": "abc+",
                "device": "NVIDIA H100",
                "threads": 1,
                "python": "3.12",
                "packages": {"torch": "2.12", "triton": "absent"},
            }
        )
    )
    text = " ".join(page_of(tmp_path).text)
    for words in (
        "commit abc+, NVIDIA H100, 1 thread, Python 3.12, torch 2.12",
        "commit 0, cpu (Xeon, AVX512), 2 threads, Python 3.11, torch 2.13",
    ):
        assert words in text and words in (tmp_path / "report.md").read_text()


def test_without_an_evaluation_one_seed_tells_nothing_of_the_source(tmp_path):
    write_run(tmp_path, "full", held_out_loss=0.0651)
    write_run(tmp_path, "scratch", include=(), held_out_loss=0.0728)
    assert verdict_of(tmp_path)[:2] == [
        "full has the lowest held-out loss: 0.0651 (one seed), on validation images.",
        (
            "Did the source help? By held-out loss unknown, as there is no interval (scratch "
            "+0.00770 against full, one seed)."
        ),
    ]


def test_a_single_run_and_one_that_has_not_begun(tmp_path):
    write_run(tmp_path, "full")
    assert "nothing can be said" in " ".join(page_of(tmp_path).text)
    evaluated(tmp_path, "lora")
    assert "lora has the lowest KID test: 0.0200 [0.0190, 0.0210] (one seed)" in " ".join(
        page_of(tmp_path).text
    )


# the verdict


def test_a_clear_winner(tmp_path):
    """By what ranks alone, here KID; the intervals hold what the images add to the spread of the
    seeds."""
    for seed, kid in enumerate((0.010, 0.011, 0.012)):
        evaluated(tmp_path, "full", seed, kid=kid, forgot=0.05 + 0.001 * seed, loss=None)
        evaluated(tmp_path, "lora", seed, kid=kid + 0.02 + 0.001 * seed, loss=None)
    headline, compared, forgot, copying, *_ = sentences = verdict_of(tmp_path)
    assert headline == (
        "full is best, with the lowest KID test: 0.0110 [0.0088, 0.0132] (3 seeds), on 413 test "
        "images in random features in full."
    )
    assert (
        compared == "Against full, by KID test: worse: lora +0.0210 [+0.0185, +0.0235] (3 seeds)."
    )
    assert (
        forgot
        == "full forgot: the loss on source images changed by +0.0510 [+0.0488, +0.0532] (3 seeds)."
    )
    assert copying.startswith(
        "No sign of copying; full: rho 1.000 [0.977, 1.023] (3 seeds), copies 0.00% [0.00, "
        "0.92] (3 seeds)."
    )
    assert (
        not any("seed only" in s or "Two seeds" in s for s in sentences)
        and "memoriser 0.0050 [0.0040, 0.0060]" in sentences[-1]
    )


def test_the_loss_leads_and_kid_stands_beside_it(tmp_path):
    """Did the source help? By loss yes, by KID not told: as on 149 radiographs, where KID alone
    said that nothing is told apart."""
    for seed, (kid, loss) in enumerate(((0.30, 0.0805), (0.33, 0.0807))):
        evaluated(tmp_path, "full", seed, kid=kid, loss=loss)
        evaluated(
            tmp_path, "freeze_encoder", seed, kid=kid - 0.002, loss=loss + (0.0003, -0.0001)[seed]
        )
        evaluated(
            tmp_path,
            "scratch",
            seed,
            include=(),
            kid=0.314 + 0.03 * (1 - seed),
            loss=0.0976 + 0.0013 * seed,
        )
    headline, source, compared, kid, *_ = verdict_of(tmp_path)
    assert headline.startswith("full has the lowest test loss: 0.0806 ") and headline.endswith(
        "on 413 test images."
    )
    assert source.startswith("Did the source help? By test loss yes (scratch +0.0177")
    assert re.search(
        r"; by KID test not significant \(scratch \+0.014 \[-\S+ \+\S+\] against full, 2 "
        r"seeds\)\.$",
        source,
    )
    assert compared.startswith(
        "Against full, by test loss: not significantly different: freeze_encoder "
    )
    assert (
        kid.startswith("freeze_encoder has the lowest KID test")
        and "in random features in full. Against full, by KID test:" in kid
    )


def test_a_second_seed_does_not_hide_what_the_images_tell(tmp_path):
    """Student's t of two seeds alone has one degree of freedom: its interval of 0.014 +- 0.025 held
    0, where one seed's did not."""
    replicates = np.random.default_rng(0).normal(0, 0.003, 200)
    for seed, apart in enumerate((0.012, 0.016)):
        evaluated(tmp_path, "full", seed, kid=0.03, replicates=0.03 + np.zeros(200), loss=None)
        evaluated(
            tmp_path,
            "scratch",
            seed,
            include=(),
            kid=0.03 + apart,
            replicates=0.03 + apart + replicates,
            loss=None,
        )
    said = verdict_of(tmp_path)[1]
    low, high = stats.t.interval(0.95, 1, 0.014, 0.002)
    assert low < 0 < high
    assert said == (
        "Did the source help? By KID test yes (scratch +0.014 [+0.003, +0.025] against full, 2 "
        "seeds)."
    )


def test_the_table_is_in_the_verdicts_order(tmp_path):
    """By the loss, though zero_shot's KID is lowest, to test images of another kind."""
    for name, kid, loss in (("zero_shot", 0.4, 0.12), ("full", 0.6, 0.05), ("lora", 0.5, 0.07)):
        path = next(
            evaluated(tmp_path, name, kid=kid, loss=loss).glob("evaluation/*/evaluation.json")
        )
        content = json.loads(path.read_text())
        content["baselines"] |= {
            name: {"quality": {"test": {"kid": estimate(value, 0.005)}}}
            for name, value in (
                ("train against test", 0.9),
                ("half of test against the other half", 0.0),
            )
        }
        path.write_text(json.dumps(content))
    page = page_of(tmp_path)
    names = [row[0] for row in page.rows if row and row[0] in ("full", "lora", "zero_shot")]
    assert names[:3] == [
        "full",
        "lora",
        "zero_shot",
    ] and "In the verdict's order, by test loss, the lowest first" in " ".join(page.text)
    assert [
        line.split(" | ")[0]
        for line in (tmp_path / "report.md").read_text().splitlines()
        if line.startswith("| ")
    ][1:5] == ["| ---", "| full", "| lora", "| zero_shot"]
    assert verdict_of(tmp_path)[0].startswith("full has the lowest test loss")


def test_what_was_forgotten_stands_in_the_first_columns(experiment):
    """A page of 1240 pixels shows eight columns or so."""
    rows = Page((experiment / "report.html").read_text()).rows
    head = [
        name.split(" ")[0] for name in next(row for row in rows if row and row[0] == "strategy")
    ]
    assert head[:7] == ["strategy", "n_train", "test", "source", "KID", "rho", "copies"]
    assert not {"recall", "C_T", "KID train"} & set(head)


def discs(n: int, seed: int, contrast: float = 1.0) -> np.ndarray:
    """[n, 16, 16, 3] uint8: bright and dark discs on a slope."""
    draw, grid = torch.Generator().manual_seed(seed), torch.linspace(-1, 1, 16)
    x, y, r, tone = (torch.rand(n, 1, 1, generator=draw) for _ in range(4))
    disc = ((grid[:, None] - x + 0.5) ** 2 + (grid - y + 0.5) ** 2 < (0.3 + 0.5 * r) ** 2).double()
    values = 0.5 + contrast * (0.2 * grid + disc * (tone - 0.5) - 0.1)
    return (
        ((values + 0.01 * torch.randn(values.shape, generator=draw)) * 255)
        .clamp(0, 255)
        .byte()[..., None]
        .repeat(1, 1, 1, 3)
        .numpy()
    )


def seen(
    images: np.ndarray, features=lambda images: RandomConvolutional()(images).features
) -> ImageFeatures:
    values = torch.from_numpy(images)
    return ImageFeatures(features(values), values.flatten(1).double() / 255, features(values))


def measured(generated: ImageFeatures, train: ImageFeatures, test: ImageFeatures) -> dict:
    notes = suite.Notes()
    return {
        "quality": suite.compare_quality(generated, train, test, "Fréchet distance", notes),
        "memorization": suite.measure_memorization(generated, train, test, notes),
    }


def blocks(images: torch.Tensor) -> torch.Tensor:
    """[N, 48]: the means of 4x4 pixels, features that cost nothing."""
    return images.double().reshape(-1, 4, 4, 4, 4, 3).mean((2, 4)).flatten(1)


def test_noise_wins_no_arrow(tmp_path):
    """It has the highest rho, C_T and distances of all, and no copies: what has an arrow is won by
    images that are like the data."""
    train, test = seen(discs(80, 0)), seen(discs(120, 1))
    for name, images in (("fresh", discs(100, 2)), ("noise", noise_images(100, (16, 16, 3)))):
        content = evaluation() | json.loads(json.dumps(measured(seen(images), train, test)))
        write_evaluation(write_run(tmp_path, name, held_out_loss=0.1), content)
    found = {row.name: row for row in rows_of(read_runs(tmp_path))}
    of_images = [
        c
        for c in (*COLUMNS, *further("FID"))
        if c.group in ("quality", "copying") and found["noise"].value(c) is not None
    ]
    for column in of_images:
        ours, theirs = found["fresh"].value(column), found["noise"].value(column)
        assert not column.better or (
            ours < theirs if column.better == "lower" else ours > theirs
        ), column.heading
    value = {column.key: found["noise"].value(column) for column in of_images}
    assert (
        value["rho"] > 1.5
        and value["c_t"] > 3
        and value["copy_share"] == value["coverage"] == 0
        and value["authentic_share"] == 1
    )
    assert {c.key for c in of_images if c.better} == {
        "kid_test",
        "precision",
        "density",
        "coverage",
        "frechet_test",
        "frechet_infinity",
    }


@pytest.mark.parametrize("count", [15, 60])
def test_who_copies_and_who_does_not(tmp_path, count):
    """Of images made up of discs: a memoriser, one that copies half of its images, one that is 10%
    blander than the data and one that is right, neither of which saw any of them."""
    train, draw, look = discs(count, 0), np.random.default_rng(0), partial(seen, features=blocks)
    copied = (
        (train[draw.integers(0, count, 300)] + draw.normal(0, 2, (300, 16, 16, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )
    generators = {
        "memoriser": copied,
        "half": np.concatenate([copied[:150], discs(150, 3)]),
        "bland": discs(300, 4, 0.9),
        "fresh": discs(300, 5),
    }

    def remembered(images: np.ndarray) -> dict:
        return suite.measure_memorization(
            look(images), look(train), look(discs(150, 1)), suite.Notes()
        )

    for name, images in generators.items():
        content = evaluation() | {"memorization": remembered(images)}
        content["baselines"]["untouched source"] = {
            "memorization": remembered(discs(300, 6)[:, ::-1].copy())
        }
        write_evaluation(
            write_run(tmp_path, name, held_out_loss=0.1), json.loads(json.dumps(content))
        )
    said = said_of_copying(tmp_path)
    assert said.startswith("Signs of copying") and re.search(
        r"memoriser \(rho 0[^;]*\] copies; one seed\)", said
    ), said
    assert (
        re.search(r"half \([^;]*\] copies; one seed\)", said)
        and "bland" not in said
        and "fresh" not in said
    ), said


def test_a_tie_names_which_forgot_least(tmp_path):
    for seed, (a, b) in enumerate(((0.010, 0.012), (0.012, 0.011), (0.011, 0.0115))):
        evaluated(tmp_path, "full", seed, kid=a, forgot=0.05 + 0.001 * seed, loss=None)
        evaluated(tmp_path, "lora", seed, kid=b, forgot=0.01 + 0.001 * seed, loss=None)
    headline, compared, forgot, *_ = verdict_of(tmp_path)
    assert headline.startswith("full has the lowest KID test") and "best" not in headline
    assert compared == (
        "Against full, by KID test: not significantly different: lora +0.00050 [-0.00323, "
        "+0.00423] (3 seeds)."
    )
    assert "forgot least, +0.0110 [+0.0088, +0.0132] (3 seeds)" in forgot


def test_one_that_is_ahead_on_the_seeds_that_both_have_is_not_called_a_tie(tmp_path):
    for seed in range(3):
        evaluated(tmp_path, "full", seed, kid=0.020 + 0.001 * seed, loss=None)
        evaluated(tmp_path, "lora", seed, kid=0.010 + 0.0011 * seed, loss=None)
    evaluated(tmp_path, "lora", 3, kid=0.09, loss=None)
    headline, compared, *_ = verdict_of(tmp_path)
    assert headline.startswith("full has the lowest KID test")
    assert (
        compared
        == "Against full, by KID test: better: lora -0.00990 [-0.01015, -0.00965] (3 seeds)."
    )


def test_scratch_has_nothing_to_forget(tmp_path):
    """It has no source, so its evaluation says nothing of one; that is no gap in the
    measurement."""
    directory = evaluated(tmp_path, "scratch", kid=0.01, include=(), loss=None)
    path = directory / "evaluation/default/evaluation.json"
    content = json.loads(path.read_text())
    for key in ("source", "source_start", "source_change"):
        del content["loss"][key]
    path.write_text(json.dumps(content))
    evaluated(
        tmp_path,
        "lora",
        kid=0.01001,
        replicates=np.linspace(0, 0.03, 201)[::-1],
        forgot=0.04,
        loss=None,
    )
    forgot = verdict_of(tmp_path)[2]
    assert forgot == (
        "scratch starts from random weights, with nothing to forget; of those not significantly "
        "different lora forgot least, +0.0400 [+0.0390, +0.0410] (one seed)."
    )


def test_images_that_chose_the_checkpoint_are_no_test(tmp_path):
    path = evaluated(tmp_path, "full") / "evaluation/default/evaluation.json"
    assert not any("no test split" in sentence for sentence in verdict_of(tmp_path))
    content = json.loads(path.read_text())
    content["protocol"]["held_out"] = "validation"
    path.write_text(json.dumps(content))
    said = (
        "no test split: the images that chose checkpoints and settings are those of the evaluation"
    )
    assert any(said in sentence for sentence in verdict_of(tmp_path))


def said_of_copying(folder: Path) -> str:
    (found,) = [s for s in verdict_of(folder) if "copying" in s]
    return found


def with_untouched(directory: Path, **features) -> None:
    """Gives its evaluation an untouched source among the baselines."""
    path = next(directory.glob("evaluation/*/evaluation.json"))
    content = json.loads(path.read_text())
    content["baselines"]["untouched source"] = {
        "quality": {"test": {"kid": estimate(0.1)}},
        "memorization": {"features": features},
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("numbers", "sign"),
    [
        ({"rho": 0.04}, "rho 0.040 [0.020, 0.060] below 0.5"),
        ({"copies": 0.2}, "20.0% [16.4, 24.1] copies"),
        ({"copies": 0.2, "c_t": -5.0}, "20.0% [16.4, 24.1] copies"),
    ],
)
def test_a_memoriser_is_named_and_another_one_recommended(tmp_path, numbers, sign):
    evaluated(tmp_path, "full", kid=0.001, **numbers)
    evaluated(tmp_path, "lora", kid=0.02)
    copying = said_of_copying(tmp_path)
    assert copying == (
        f"Signs of copying the training images: full ({sign}; one seed). The KID of full is worth "
        "little then: take lora, the best without a sign of copying."
    )
    page = page_of(tmp_path)
    assert ("li", "class", "warn") in page.attributes


def test_nearness_is_told_from_copies(tmp_path):
    """Bland images are near to everything: that is a sign, and no proof."""
    evaluated(tmp_path, "full", kid=0.001, rho=0.3)
    evaluated(tmp_path, "lora", kid=0.02)
    assert said_of_copying(tmp_path) == (
        "Signs of copying the training images: full (rho 0.300 [0.280, 0.320] below 0.5; one "
        "seed). Images without detail are near to all others too, and few are copies outright: "
        "look at the closest pairs."
    )


@pytest.mark.parametrize("numbers", [{"c_t": -17.0, "rho": 0.94}, {"rho": 0.49}, {"copies": 0.049}])
def test_c_t_alone_and_an_interval_that_reaches_over_the_limit_are_no_sign(tmp_path, numbers):
    evaluated(tmp_path, "full", kid=0.001, **numbers)
    assert said_of_copying(tmp_path).startswith("No sign of copying; full: rho ")


def test_seeds_of_which_one_copies_are_no_sign_for_all(tmp_path):
    """The interval of rho over seeds reaches above 0.5."""
    for seed, rho in enumerate((0.1, 0.5, 0.6)):
        evaluated(tmp_path, "full", seed, rho=rho)
    assert said_of_copying(tmp_path).startswith("No sign of copying; full: rho 0.40 [-0.2")


@pytest.mark.parametrize(("untouched", "sign"), [(0.9, True), (0.35, True), (0.25, False)])
def test_what_the_untouched_source_shows_too_is_no_sign(tmp_path, untouched, sign):
    """It has seen none of the images: with few of them all distances to them are much alike."""
    with_untouched(evaluated(tmp_path, "full", kid=0.001, rho=0.3), rho=estimate(untouched, 0.01))
    said = said_of_copying(tmp_path)
    assert said.startswith("Signs of copying") == sign
    if not sign:
        assert said.startswith("No sign of copying; full: rho 0.300") and said.endswith(
            "No sign: full comes no nearer to the training images than the untouched source, "
            "which saw none of them (rho 0.250 [0.240, 0.260])."
        )


def test_a_share_that_new_images_come_to_as_well_is_no_sign(tmp_path):
    path = next(evaluated(tmp_path, "full", copies=0.12).glob("evaluation/*/evaluation.json"))
    assert said_of_copying(tmp_path).startswith("Signs of copying")
    content = json.loads(path.read_text())
    content["memorization"]["pixels"]["copy_share_test"] = {
        "value": 0.11,
        "low": 0.07,
        "high": 0.16,
    }
    path.write_text(json.dumps(content))
    assert said_of_copying(tmp_path).startswith("No sign of copying")


def test_what_few_test_images_cannot_show_is_said(tmp_path):
    """Of 11 of which none looks like a copy Wilson's interval reaches to 26%."""
    directory = evaluated(tmp_path, "full", copies=0.12)
    path = next(directory.glob("evaluation/*/evaluation.json"))
    content = json.loads(path.read_text())
    test = stats.binomtest(0, 11).proportion_ci(method="wilson")
    content["memorization"]["pixels"]["copy_share_test"] = {
        "value": 0.0,
        "low": test.low,
        "high": test.high,
    }
    path.write_text(json.dumps(content))
    assert "Up to 25.9% of copies by pixels would not be a sign here" in said_of_copying(tmp_path)


def test_copying_is_said_to_be_of_the_step_that_was_looked_at(tmp_path):
    assert "last step" not in said_of_copying(evaluated(tmp_path / "last", "full", step=300).parent)
    said = said_of_copying(evaluated(tmp_path / "best", "full", step=150).parent)
    assert said.endswith(
        "Not of the last step, which samples.png and sample.py show (`select=last` evaluates "
        "it): full."
    )


def test_a_baseline_over_seeds_has_the_spread_of_its_images(tmp_path):
    """Two seeds whose numbers are near to one another by chance: the interval is no narrower than
    that of the images, which all share."""
    draws = np.random.default_rng(0).normal(0, 0.03, 200)
    for seed, value in enumerate((-0.0190, -0.0181)):
        path = next(evaluated(tmp_path, "full", seed).glob("evaluation/*/evaluation.json"))
        content = json.loads(path.read_text())
        content["baselines"]["memoriser"]["quality"]["test"]["kid"] = {
            "value": value,
            "low": value - 0.06,
            "high": value + 0.06,
            "replicates": list(value + draws),
            "images": 110,
        }
        path.write_text(json.dumps(content))
    memoriser = next(
        row for row in baselines_table(read_runs(tmp_path)) if row.name == "memoriser"
    ).cell(KID)
    assert memoriser.high - memoriser.low == pytest.approx(
        2 * stats.t.ppf(0.975, 109) * draws.std(ddof=1) * (110 / 109) ** 0.5, rel=0.02
    )


def test_runs_of_one_seed_on_other_images_are_no_seeds_of_one_row(tmp_path):
    for images in ("before", "after"):
        for seed in (0, 1):
            path = evaluated(tmp_path, "full", seed) / "identity.json"
            # as a real one
            identity = {k: v for k, v in json.loads(path.read_text()).items() if k != "run"}
            path.write_text(json.dumps(identity | {"data": identity["data"] | {"images": images}}))
    evaluated(tmp_path, "lora", 0)
    table = rows_of(read_runs(tmp_path))
    assert sorted((row.name, row.cell(KID).n, len(row.runs)) for row in table) == [
        ("full", 2, 2),
        ("full", 2, 2),
        ("lora", 1, 1),
    ]
    text = report.main([str(tmp_path)]) or (tmp_path / "report.md").read_text()
    assert "| data.images |" in text and "\n**data.images = after**\n" in text


def test_strategies_on_other_images_do_not_contend(tmp_path):
    """An image was removed between them: another split, so that no number compares."""
    for k, (strategy, images) in enumerate({"full": "a" * 64, "lora": "b" * 64}.items()):
        directory = write_run(tmp_path, strategy, held_out_loss=0.07 - k / 100)
        identity = json.loads((directory / "identity.json").read_text())
        identity["data"]["images"] = images
        (directory / "identity.json").write_text(json.dumps(identity))
        content = evaluation(kid=0.02)
        content["protocol"]["test"] = images
        write_evaluation(directory, content, age=60 * k)
    found = report.Report(tmp_path, read_runs(tmp_path))
    assert [*found.panels] == ["data.images = aaaaaaaa", "data.images = bbbbbbbb"]
    assert all(len(contenders) == 1 for contenders in found.panels.values())
    missing = "\n".join(found.missing)
    assert "lora-seed0-1 was trained on other images than the runs that are evaluated" in missing
    assert "images were added, removed or changed between the runs (data.images)" in missing
    assert "is left out, under another protocol (other test images)" in missing
    assert "evaluate.py" not in missing


@pytest.mark.parametrize(("real", "ranks"), [(0.45, False), (0.006, True), (0.02, True)])
def test_test_images_of_another_kind_rank_nothing(tmp_path, real, ranks):
    """A generator can then be nearer to them than real training images are. At 0.006 they are of
    one kind, as far as can be told; at 0.02 of another, yet all generators are much farther from
    them."""
    for seed, (name, kid, loss) in itertools.product(
        range(2), (("zero_shot", 0.4, 0.12), ("full", 0.6, 0.05))
    ):
        path = next(
            evaluated(tmp_path, name, seed, kid=kid, loss=loss).glob("evaluation/*/evaluation.json")
        )
        content = json.loads(path.read_text())
        content["baselines"] |= {
            name: {"quality": {"test": {"kid": estimate(value, 0.005)}}}
            for name, value in (
                ("train against test", real),
                ("half of test against the other half", 0.0),
            )
        }
        path.write_text(json.dumps(content))
    headline, compared, kid, *_ = verdict_of(tmp_path)
    (axes,) = figures_of(tmp_path)["Quality against forgetting"].figure.axes
    assert axes.get_ylabel() == ("KID test" if ranks else "test loss")
    assert any(line.get_ydata()[0] == (0.6 if ranks else 0.05) for line in axes.lines)
    assert headline == (
        "full is best, with the lowest test loss: 0.0500 [0.0489, 0.0511] (2 seeds), on 413 "
        "test images."
    )
    assert compared.startswith("Against full, by test loss: worse: zero_shot +0.0700")
    if ranks:
        assert (
            kid.startswith("zero_shot has the lowest KID test")
            and "better: zero_shot -0.200" in kid
        )
    else:
        assert kid.startswith(
            "KID test ranks nothing here: the training images themselves are at 0.4500 [0.4450, "
            "0.4550]"
        )


def test_two_seeds_are_few(tmp_path):
    for seed in range(2):
        evaluated(tmp_path, "full", seed)
    assert any(
        "Two seeds only: they tell little of how trainings differ" in sentence
        for sentence in verdict_of(tmp_path)
    )


def test_what_was_not_evaluated_may_be_better(tmp_path):
    evaluated(tmp_path, "full", loss=None)
    for seed in range(2):
        write_run(tmp_path, "lora", seed, held_out_loss=0.01)
    headline, compared, *_ = verdict_of(tmp_path)
    assert headline.startswith("full has the lowest KID test")
    assert (
        compared
        == "Against full, by KID test: not measured, so that any of them may be better: lora."
    )
    assert any(
        line.startswith(
            "2 runs (lora-seed0-1, lora-seed1-2) are not evaluated under this protocol: python "
            f"evaluate.py checkpoint={tmp_path} n=500"
        )
        for line in Report(tmp_path, read_runs(tmp_path)).missing
    )


def test_of_many_strategies_the_nearest_are_named(tmp_path):
    """And where there is no full the lowest is what all are compared with: chosen by the data, so
    that all pairs count."""
    for k in range(12):
        evaluated(tmp_path, f"s{k:02}", kid=0.01 + 0.01 * k, loss=None)
    compared = verdict_of(tmp_path)[1]
    assert compared.startswith(
        "Against s00, by KID test (66 contrasts, 95% for all together by Holm's steps): higher, "
        "of one training"
    )
    assert (
        compared.endswith(" s06 +0.0600 [+0.0600, +0.0600] and 5 more, +0.0700 and up (one seed).")
        and "s07" not in compared
    )


def test_one_seed_says_what_its_interval_means(tmp_path):
    """Two networks are told apart by it, and not two strategies: nothing is best, better or
    worse."""
    noise = np.random.default_rng(0).normal(0, 0.001, 200)
    evaluated(tmp_path, "full", kid=0.02, replicates=0.02 + noise, forgot=0.0, loss=None)
    evaluated(
        tmp_path,
        "lora",
        kid=0.03,
        replicates=0.03 + noise + np.random.default_rng(1).normal(0, 0.001, 200),
        loss=None,
    )
    evaluated(tmp_path, "scratch", kid=0.05, replicates=0.05 + noise, include=(), loss=None)
    headline, source, compared, forgot, _, caveat, _ = verdict_of(tmp_path)
    assert headline.startswith("full has the lowest KID test")
    assert source.startswith(
        "Did the source help? By KID test in these two trainings yes, and one of each says "
        "nothing of others (scratch +0.03"
    )
    assert compared.startswith(
        "Against full, by KID test: higher, of one training each: lora +0.0100 [+0.00"
    )
    assert compared.endswith("(one seed).") and not re.search(
        "best|better|worse", headline + source + compared
    )
    assert "forgot nothing that could be measured" in forgot
    assert (
        caveat.startswith("One seed only")
        and "says nothing of how another training would end" in caveat
    )


def test_nothing_evaluated_is_judged_by_held_out_loss(tmp_path):
    for seed, loss in enumerate((0.05, 0.06, 0.07)):
        write_run(tmp_path, "full", seed, held_out_loss=loss)
        write_run(tmp_path, "lora", seed, held_out_loss=loss + 0.02 + 0.001 * seed)
    write_run(tmp_path, "bitfit", 0, held_out_loss=0.5)
    headline, compared, unknown, *_ = verdict_of(tmp_path)
    assert headline.startswith(
        "full has the lowest held-out loss: 0.060 [0.035, 0.085] (3 seeds), on validation images."
    )
    assert "worse: lora +0.0210" in compared
    assert "not compared, as they share no seed or have no interval: bitfit" in compared
    assert (
        unknown == "full is not evaluated yet, so its quality, copying and forgetting are unknown."
    )


def test_an_evaluation_that_does_not_rank_is_not_denied(tmp_path):
    """Of quality alone, where the kinds of images differ: the held-out loss leads, and what was
    evaluated is told."""
    for name, loss in (("full", 0.06), ("lora", 0.08)):
        content = evaluation(kid=0.02, loss=None)
        del content["quality"]["test"]["kid"]
        write_evaluation(write_run(tmp_path, name, held_out_loss=loss), content)
    text = " ".join(verdict_of(tmp_path))
    assert "full has the lowest held-out loss" in text and "not evaluated yet" not in text


def test_what_has_not_ended_is_said(tmp_path):
    """Best at the last step, of more looks than one; and EMA weights that still are the start."""
    for strategy, best in (("full", 300), ("lora", 200)):
        directory = evaluated(
            tmp_path,
            strategy,
            kid=0.02 + best / 1e5,
            result={"best_step": best, "ema_share_of_start": best / 1000},
        )
        (directory / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": s, "validation/loss": 0.1}) + "\n" for s in (150, 300))
        )
    # no wonder that it was the best
    once = evaluated(tmp_path, "once", kid=0.5, result={"best_step": 300})
    (once / "metrics.jsonl").write_text('{"step": 300, "validation/loss": 0.1}\n')
    evaluated(tmp_path, "zero_shot", kid=0.6, result={"step": 300, "ema_share_of_start": 0.1})
    (caveat,) = [s for s in verdict_of(tmp_path) if s.startswith("Still improving")]
    assert "more steps may change the order: full;" in caveat
    assert (
        "whether more steps would change the order is unknown of once, which were validated once"
        in caveat
    )
    assert (
        "EMA weights, which are evaluated, still are the start in part: lora 20% and full 30%."
        in caveat
    )
    for path in tmp_path.glob("*/evaluation/*/evaluation.json"):
        there = json.loads(path.read_text())
        there["protocol"] |= {"weights": "average", "select": "chosen"}
        path.write_text(json.dumps(there))
    (caveat,) = [s for s in verdict_of(tmp_path) if s.startswith("Still improving")]
    assert "EMA" not in caveat


def test_each_setting_of_the_data_has_its_verdict(tmp_path):
    for n, names in ((10, ("lora", "full")), (100, ("full", "lora")), (9, ("lora", "full"))):
        for k, name in enumerate(names):
            evaluated(tmp_path, name, settings={"data.n_train": n}, kid=0.01 * (k + 1))
    found = Report(tmp_path, read_runs(tmp_path)).verdicts
    assert [(heading, sentences[0].split()[0]) for heading, sentences in found] == [
        ("data.n_train = 9", "lora"),
        ("data.n_train = 10", "lora"),
        ("data.n_train = 100", "full"),
    ]


# pieces


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 1)], [0]),
        ([(1, 3), (2, 2), (3, 1)], [0, 1, 2]),
        ([(3, 1), (2, 2), (1, 3), (3, 3)], [2, 1, 0]),
        ([(1, 1), (1, 2), (2, 1)], [0]),
        ([(1, 1), (1, 1)], [0, 1]),
        ([(0, 5), (1, 5), (2, 0)], [0, 2]),
    ],
)
def test_pareto_front(points, front):
    assert pareto(points) == [points[k] for k in front]


def test_rho_has_a_limit_and_no_front(tmp_path):
    """It is right at about 1: neither less nor more of it is better. Of forgetting less is."""
    for name, rho, kid, forgot in (
        ("a", 1.0, 0.03, 0.01),
        ("b", 0.8, 0.02, 0.02),
        ("c", 0.7, 0.025, 0.03),
        ("d", 2.6, 0.03, 0.04),
    ):
        evaluated(tmp_path, name, rho=rho, kid=kid, forgot=forgot)
    figures = figures_of(tmp_path)
    fronts = {}
    for title in ("Quality against memorization", "Quality against forgetting"):
        (axes,) = figures[title].figure.axes
        fronts[title] = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert (
        not fronts["Quality against memorization"]
        and "Pareto" not in figures["Quality against memorization"].caption
    )
    assert any(
        list(line.get_xdata()) == [0.5, 0.5]
        for line in figures["Quality against memorization"].figure.axes[0].lines
    )
    (front,) = fronts["Quality against forgetting"]
    assert list(zip(*front.get_data(), strict=True)) == [(0.01, 0.03), (0.02, 0.02)]  # a and b


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.01234, 0.0112, 0.0136, "0.0123 [0.0112, 0.0136]"),
        (0.5, None, None, "0.500"),
        (123.456, 100, 150, "123 [100, 150]"),
        (0.0, -0.01, 0.01, "0.000 [-0.010, 0.010]"),
        (0.7, 0.7, 0.7, "0.700 [0.700, 0.700]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (0.04, -0.4, 0.5, "0.040 [-0.400, 0.500]"),
        (-0.00052, -0.0012, 0.0002, "-0.00052 [-0.00120, 0.00020]"),
    ],
)
def test_digits(value, low, high, text):
    assert f"{number(value, low, high)} {interval(value, low, high)}".strip() == text


def test_signs():
    assert (
        f"{number(0.012, 0.01, 0.014, True)} {interval(0.012, 0.01, 0.014, True)}"
        == "+0.0120 [+0.0100, +0.0140]"
    )
    # its lower end is 0 but for rounding
    assert interval(0.0, *(100 * end for end in wilson(0, 500))) == "[0.00, 0.76]"
    assert interval(0.00035, 3e-6, 0.0007, True) == "[+0.000003, +0.000700]"  # 0 lies outside
    assert f"{number(0.0, 0.0, 0.0, True)} {interval(-0.5, -1.0, 0.0, True)}" == "0 [-1.00, 0.00]"


def test_hours_are_called_by_their_device():
    found = [
        hours_of(d).heading
        for d in (
            ["cpu (x86_64)"],
            ["NVIDIA H100", "NVIDIA A100"],
            ["NVIDIA H100", "cpu (x86_64)"],
            [],
        )
    ]
    assert found == ["CPU-hours", "GPU-hours", "hours, GPU or CPU", "GPU-hours"]


def test_marks_are_told_apart():
    assert len({tuple(look(k).values()) for k in range(56)}) == 56


def test_intervals_and_points_of_a_figure_are_those_of_the_table(experiment):
    """Of shots: a mean for each number of images, with its interval, the strategies side by
    side."""
    axes = figures_of(experiment)["Quality against shots"].figure.axes[0]
    drawn = {bars.get_label(): bars for bars in axes.containers}
    table = [
        row
        for row in rows_of(read_runs(experiment))
        if row.name == "full" and row.settings.get("optimizer.lr") == 0.001
    ]
    line, _, (_, segments) = drawn["full"]  # bars along x, and along y
    assert line.get_ydata() == pytest.approx([row.value(KID) for row in table])
    assert line.get_xdata() == pytest.approx([10, 100], rel=0.05) and len(drawn) == 3
    for segment, row in zip(segments.get_segments(), table, strict=True):
        assert segment[:, 1] == pytest.approx(row.cell(KID)[1:3])


def test_columns_have_words_and_their_own_keys():
    columns = [*COLUMNS, *further("FID"), *AUDIT_COLUMNS]
    assert len({c.key for c in columns}) == len({c.heading for c in columns}) == len(
        columns
    ) and all(c.means for c in columns)
    assert KID in columns and HELD_OUT in columns


AUDITS = ["AUROC, real", "AUROC, generated", "AUROC, both", "gain of AUROC"]
AUDITS += ["membership AUC", "AUC of the source", "AUC above the source", "rho", "copies"]


def test_what_helps_and_what_leaks_stands_in_a_table_of_its_own(tmp_path):
    """An evaluation of before counts as the others do, and shows what it has."""
    evaluated(tmp_path, "full")
    old = {k: v for k, v in evaluation().items() if k not in ("membership", "classification")}
    write_evaluation(write_run(tmp_path, "old", held_out_loss=0.1), old)
    report.main([str(tmp_path)])
    rows = Page((tmp_path / "report.html").read_text()).rows
    heads = [re.sub(" [↓↑]$", "", name) for name in next(r for r in rows if "membership AUC" in r)]
    assert heads == ["strategy", *AUDITS]
    full, before = (
        next(r for r in rows if r[0] == name and len(r) == len(heads)) for name in ("full", "old")
    )
    assert full[1:] == [
        "0.810[0.780, 0.840]°",
        "0.740[0.710, 0.770]°",
        "0.860[0.830, 0.890]°",
        "+0.050[+0.030, +0.070]°",
        "0.620[0.580, 0.660]°",
        "0.520[0.480, 0.560]°",
        "+0.100[+0.070, +0.130]°",
        "1.000[0.980, 1.020]°",
        full[-1],
    ]
    assert before[1:8] == ["-"] * 7 and before[8] == full[8]
    text = (tmp_path / "report.md").read_text()
    assert "## Does it help, does it leak" in text and "not evaluated" not in text
    assert all(f"- {name}" in text for name in AUDITS)
    lines = list(csv.DictReader((tmp_path / "report.csv").open()))
    ours = next(line for line in lines if line["strategy"] == "full")
    assert [ours[f"membership{end}"] for end in ("", "_low", "_high")] == ["0.62", "0.58", "0.66"]
    assert ours["auroc_gain"] == "0.05" and ours["membership_excess"] == "0.1"


def test_there_is_no_such_table_where_nobody_asked(tmp_path):
    old = {k: v for k, v in evaluation().items() if k not in ("membership", "classification")}
    write_evaluation(write_run(tmp_path, "old", held_out_loss=0.1), old)
    report.main([str(tmp_path)])
    for name in ("report.html", "report.md"):
        assert "does it leak" not in (tmp_path / name).read_text()
    missing = [f.missing for f in Report(tmp_path, read_runs(tmp_path)).figures if f.missing]
    assert any(line.startswith("needs evaluations with membership: python") for line in missing)
