"""What is said of fewer than ten images."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from config.overrides import composed
from runtime.errors import UserError
from studies import regret
from studies.cells import Context
from studies.which_layers import few
from studies.which_layers.images import Images
from tests.helpers.study_rows import rows

STRATEGIES = {name: [f"transfer={name}"] for name in ("full", "freeze_decoder", "lora")}
ARGUMENTS = ["+experiment=which_layers", "data.path=mine", "budget=60m"]


def table(monkeypatch, freeze_decoder=-0.05, steps=(20, 30, 40)):
    """Three targets with 10 images of which 5 train, and one with 30."""
    full, noise = np.ones(5), 1e-3 * np.arange(5)
    lines = rows("faces", 30, full=full, freeze_decoder=full - 0.9, lora=full)
    for name, step in zip("abc", steps, strict=True):
        losses = {"freeze_decoder": full + freeze_decoder + noise, "lora": full + 0.1}
        lines += rows(name, 10, step=step, full=full, **losses)
    monkeypatch.setattr(few, "read", lambda path: lines)


def told(n, batch=16, strategies=tuple(STRATEGIES)):
    images = Images("", n, 0, ["validation", "test"])
    config = {"train": {"batch_size": batch}, "optimizer": {"lr": 2e-4}}
    context = Context(ARGUMENTS, config, None, None)
    return few.of_few(images, context, {s: STRATEGIES[s] for s in strategies})


@pytest.mark.parametrize(
    ("n", "batch", "steps"), [(6, 16, 36), (6, 8, 72), (9, 16, 54), (1, 16, 6)]
)
def test_as_many_passes_as_with_the_next_larger_number(monkeypatch, n, batch, steps):
    """30 steps of 16 images pass 96 times over 5."""
    table(monkeypatch)
    text = told(n, batch)
    assert steps == round(96 * n / batch)
    words = shlex.split(text.partition("Command: ")[2])
    config = composed("train", words[2:])
    assert config["train"]["steps"] == steps and config["transfer"]["name"] == "freeze_decoder"
    assert config["optimizer"]["lr"] == 2e-4, "the user's own, as the middle rate was chosen"
    assert config["data"]["test"] == config["data"]["validation"] == 0
    assert not any(word.startswith("budget") for word in words)


def test_it_says_whose_numbers_these_are(monkeypatch):
    table(monkeypatch)
    text = told(6)
    assert "Of your 6 images none can be held out" in text
    assert "with 10 images of 3 other kinds (a, b and c" in text
    assert "train freeze_decoder, which had the lowest test loss of those asked for" in text
    assert "is better than full (-4.80%" in text
    assert "Trained on 5 of the 10, it stopped after 20 to 40 steps of 16 images" in text


def test_what_is_not_distinguished_is_not_called_better(monkeypatch):
    table(monkeypatch, freeze_decoder=-1e-4 - 2e-3)
    assert "is not distinguished from full" in told(6)
    table(monkeypatch, freeze_decoder=0.1)
    assert "train full, which had the lowest test loss" in told(6)


def test_what_full_is_not_distinguished_from_is_said(monkeypatch):
    table(monkeypatch, freeze_decoder=-1e-3)
    said = "train full, which had the lowest test loss of those asked for"
    assert f"{said}, and is not distinguished from freeze_decoder. Trained" in told(6)
    table(monkeypatch, freeze_decoder=0.1)
    assert f"{said}. Trained" in told(6)


def test_who_chose_the_stop_is_said_and_that_passes_are_a_guess(monkeypatch):
    table(monkeypatch)
    text = told(6)
    assert "(the median of each kind), chosen by the other 5, and you have none to" in text
    assert "Whether passes or steps carry over to other numbers was not measured" in text


def test_the_best_of_those_asked_for_may_be_worse_than_full(monkeypatch):
    table(monkeypatch)
    assert "is worse than full (+10.00%" in told(6, strategies=["lora"])


def test_a_strategy_that_was_not_tried_is_said(monkeypatch):
    table(monkeypatch)
    monkeypatch.setitem(STRATEGIES, "mine", ["transfer=full"])
    with pytest.raises(UserError, match="tried with so few: full, freeze_decoder and lora"):
        told(6, strategies=["mine"])


def test_the_table_that_is_kept_has_ten_images():
    assert {n for _, n in few.next_larger(regret.comparisons(regret.read(regret.TABLE)), 3)} == {10}
