"""A study of which layers to train, from its command to its page."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from runtime.log import read_metrics
from tests.helpers import runs, study_runs


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(images, source)"""
    root = tmp_path_factory.mktemp("given")
    source = study_runs.source(root, study_runs.images(root / "faces", 40))
    return study_runs.images(root / "mine", 24, first=100), source


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory):
    """(root, what it printed)"""
    return finished(tmp_path_factory.mktemp("undisturbed"), study_runs.command(*given))


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """The same with rates by halving, a subset and audits."""
    command = study_runs.command(*given, *study_runs.WHOLE)
    return finished(tmp_path_factory.mktemp("whole"), command)


def finished(root, command):
    code, text = runs.train(root, command, tiny=study_runs.TINY)
    assert code == 0, text
    return root, text


def killed(root, command, *patterns):
    """What the last driver printed, after others were killed when they printed these."""
    for pattern in patterns:
        run = runs.launch(root, command, tiny=study_runs.TINY)
        run.until(pattern)
        run.process.kill()
        run.process.join()
    return finished(root, command)[1]


def check_paragraph_and_page(root, text):
    answer, page = study_runs.answer_of(root), study_runs.folder_of(root) / "answer.html"
    assert answer["text"] in text.replace(str(root), "ROOT") and str(page) in text
    assert text.index("The plan:") < text.index("fold 0"), "the plan comes before the first cell"
    assert re.search(r"With your 24 images (train|keep)", answer["text"])
    html = page.read_text()
    assert all(word in html for word in ("When it turns", "full", "zero_shot", "test loss"))
    return html


def check_work(root, text):
    """Steps, looks and losses of the runs are those of the plan, within 10%."""
    steps, judged = map(int, re.search(r"(\d+) steps and (\d+) judged images", text).groups())
    done = looked = 0
    for run in study_runs.folder_of(root).glob("*-seed*"):
        rows = read_metrics(run / "metrics.jsonl")
        done += max((row["step"] for row in rows), default=0)
        looked += 15 * sum(row["step"] > 0 and "validation/loss" in row for row in rows)
        chosen = run / "averages/chosen.json"
        losses = json.loads(chosen.read_text()).get("losses", ()) if chosen.exists() else ()
        looked += 15 * len(losses)
        for path in run.glob("evaluation/*/evaluation.json"):
            if json.loads(path.read_text())["protocol"]["metrics"] == ["loss"]:
                looked += 3 * 32
    assert done == pytest.approx(steps, rel=0.1)
    assert looked == pytest.approx(judged, rel=0.1)


def test_it_ends_with_a_paragraph_and_a_page(undisturbed):
    check_paragraph_and_page(*undisturbed)


def test_runs_are_heard_in_their_own_logs(undisturbed):
    """What each says would hide how the study goes on; a warning is heard once."""
    root, text = undisturbed
    [log, *_] = study_runs.folder_of(root).glob("full-*/log.txt")
    assert "kernels: torch's own" in log.read_text()
    assert "kernels: torch's own" not in text
    assert len(re.findall(r"^\[\d+%, .* left\] fold 0, full", text, re.M)) == 1


def test_what_ran_is_what_was_counted(undisturbed):
    check_work(*undisturbed)


def test_every_image_judges_once_and_none_that_it_was_trained_on(undisturbed):
    root, _ = undisturbed
    points = {(p["strategy"], p["size"]): p for p in study_runs.answer_of(root)["points"]}
    assert points["full", None]["trained_on"] == 11, "16 of 24 less 5 to choose by"
    tested = []
    for path in study_runs.folder_of(root).glob("full-*/evaluation/*/evaluation.json"):
        found = json.loads(path.read_text())
        tested.append((found["protocol"]["test"], found["images"]["test"]))
    assert len({digest for digest, _ in tested}) == 3 and [n for _, n in tested] == [8, 8, 8]


def test_killed_twice_it_says_the_same(given, undisturbed, tmp_path):
    patterns = ("timing, full: finished", "fold 1, full at 0.001 to step 8: finished")
    text = killed(tmp_path, study_runs.command(*given), *patterns)
    assert study_runs.answer_of(tmp_path) == study_runs.answer_of(undisturbed[0])
    assert "fold 0, full at" not in text, "what had ended is not run again"


@pytest.mark.slow
def test_the_whole_of_it(given, whole, tmp_path):
    html = check_paragraph_and_page(*whole)
    assert "Does it help, does it leak" in html and "linear_probe" in html
    check_work(*whole)
    points = {(p["strategy"], p["size"]): p for p in study_runs.answer_of(whole[0])["points"]}
    assert {size for _, size in points} == {None, 10}
    assert points["full", 10]["trained_on"] == 5
    command = study_runs.command(*given, *study_runs.WHOLE)
    patterns = ("fold 0, full at 0.001 to step 4: finished", "fold 1, linear_probe at .* 8: fin")
    text = killed(tmp_path, command, *patterns)
    assert study_runs.answer_of(tmp_path) == study_runs.answer_of(whole[0])
    assert "fold 0, full at 0.001 to step 4" not in text


@pytest.mark.slow
def test_a_cell_that_lost_its_run_is_made_again(given, undisturbed, tmp_path):
    shutil.copytree(undisturbed[0] / "runs", tmp_path / "runs")
    for path in study_runs.folder_of(tmp_path).glob("study/*.json"):
        path.write_text(path.read_text().replace(str(undisturbed[0]), str(tmp_path)))
    record = next(r for r in study_runs.records(tmp_path) if "full-seed1" in r.get("run", ""))
    shutil.rmtree(record["run"])
    _, text = finished(tmp_path, study_runs.command(*given))
    assert study_runs.answer_of(tmp_path) == study_runs.answer_of(undisturbed[0])
    assert text.count(": finished, held-out loss") == 1


def test_other_images_are_not_taken_for_those_of_the_plan(given, undisturbed, tmp_path):
    shutil.copytree(undisturbed[0] / "runs", tmp_path / "runs")
    for path in study_runs.folder_of(tmp_path).glob("study/*.json"):
        path.write_text(path.read_text().replace(str(undisturbed[0]), str(tmp_path)))
    mine, source = given
    moved = mine.rename(mine.with_name("aside"))
    try:
        study_runs.images(mine, 24, first=500)
        code, text = runs.train(tmp_path, study_runs.command(mine, source), tiny=study_runs.TINY)
        assert code == 2 and "the images are not those that this plan was made for" in text, text
    finally:
        shutil.rmtree(mine)
        moved.rename(mine)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["transfer=full,lora"], "which chooses its runs itself"),
        (["budget=soon"], "is no duration"),
        (["study.strategies=[full,fulll]"], "there is no such transfer"),
        (["study.strategies=[full]"], "needs two or more"),
        (["study.rates=[1,2,3,4]"], "one to three factors"),
        (["study.folds=2"], "at least 3"),
        (["study.strategies={slow:['transfer=full']}"], "needs two or more"),
        (
            ["study.strategies={all:['transfer=full'],slow:['transfer=full','optimizer.lr=1e-4']}"],
            "slow: optimizer.lr=1e-4: a study chooses these alike",
        ),
        (["data.n_train=20"], "8 of the 24 images judge, which leaves 16"),
    ],
)
def test_what_is_wrong_is_said_before_it_trains(given, tmp_path, more, said):
    code, text = runs.train(tmp_path, study_runs.command(*given, *more), tiny=study_runs.TINY)
    assert code == 2 and said in text and "Traceback" not in text, text
    assert not list(tmp_path.glob("runs/which_layers-*")), "it leaves nothing"


def test_a_plan_that_is_there_outlives_a_study_that_is_refused(given, tmp_path):
    """As of a study that goes on on another machine."""
    command = study_runs.command(*given, "study.strategies=[full,fulll]")
    _, text = runs.train(tmp_path, command, tiny=study_runs.TINY)
    plan = tmp_path / re.search(r"study: (\S+)", text)[1] / "study/plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{}")
    assert runs.train(tmp_path, command, tiny=study_runs.TINY)[0] == 2
    assert plan.read_text() == "{}" and len(list(plan.parent.iterdir())) == 1


def test_a_budget_that_is_too_small_names_one_that_is_not(given, tmp_path):
    command = study_runs.command(*given, "budget=1s")
    code, text = runs.train(tmp_path, command, tiny=study_runs.TINY)
    assert code == 2 and re.search(r"the least plan takes .* Give budget=\d+m", text), text


@pytest.mark.slow
def test_test_images_of_the_users_own_judge_all_seeds(given, tmp_path):
    """No folds: three seeds, judged by the same images."""
    _, source = given
    for split, n in (("train", 20), ("test", 12), ("val", 6)):
        study_runs.images(tmp_path / "mine" / split, n, first=700 + 100 * n)
    command = study_runs.command(tmp_path / "mine", source, "study.sizes=[10]")
    root, text = finished(tmp_path, command)
    assert "judged by 12 test images of their own, 3 seeds; a run trains on 15, and 5" in text
    assert "6 of a validation folder are left aside" in text
    points = {(p["strategy"], p["size"]): p for p in study_runs.answer_of(root)["points"]}
    assert points["full", None]["trained_on"] == 15 and points["full", 10]["trained_on"] == 5
    found = [
        json.loads(path.read_text())
        for path in study_runs.folder_of(root).glob("full-*/evaluation/*/evaluation.json")
    ]
    assert {e["images"]["test"] for e in found} == {12}
    assert len({e["protocol"]["test"] for e in found}) == 1
    assert "With your 20 images" in study_runs.answer_of(root)["text"]
