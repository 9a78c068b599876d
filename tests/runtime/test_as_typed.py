"""A setting as it is typed is what a shell, Hydra and OmegaConf make of it."""

from __future__ import annotations

import random
import shlex

import pytest
from omegaconf import OmegaConf

from config.overrides import CONF
from runtime.as_typed import as_typed, hydra_quoted, with_letters_quoted
from runtime.hydra_private import parse_overrides


def read(line: str) -> object:
    [override] = parse_overrides([line], CONF)
    config = OmegaConf.create({"key": override.value(), "a": 1})
    return OmegaConf.to_container(config, resolve=True)["key"]


def texts() -> list[str]:
    drawn = random.Random(0)
    pieces = [*"ab \\'\"${}[](),=:#&;!~%@*?-.0", "é", "数据", "${a}", "true", "null"]
    made = ["".join(drawn.choices(pieces, k=drawn.randint(1, 9))) for _ in range(150)]
    return ["true", "null", "NaN", "1e3", "007", "-5", ".5", "a\\", "it's", *made]


def test_any_text_is_itself():
    for text in texts():
        assert read(f"key={hydra_quoted(text)}") == text
        [word] = shlex.split(as_typed("key", text))
        assert read(word) == text


@pytest.mark.parametrize(
    "value, typed",
    [
        ("*_mask*", "data.exclude='*_mask*'"),
        ("masks", "data.exclude=masks"),
        ("Ground Truth/*", "data.exclude='\"Ground Truth/*\"'"),
        (["a/*", "b (1)"], "data.exclude='[a/*,\"b (1)\"]'"),
        ({"train": "tr", "test": ["a b", "c"]}, "data.exclude='{train:tr,test:[\"a b\",c]}'"),
        ({}, "data.exclude='{}'"),
        (r"(P\d+)_", "data.exclude='\"(P\\d+)_\"'"),
    ],
)
def test_it_is_as_short_as_the_grammar_allows(value, typed):
    assert as_typed("data.exclude", value) == typed
    [word] = shlex.split(typed)
    assert read(word.replace("data.exclude", "key")) == value


@pytest.mark.parametrize(
    "written, value",
    [
        ("Lungenentzündung", "Lungenentzündung"),
        ("une œdème ", "une œdème"),
        ("l'œdème", "l'œdème"),
        ("肺炎:1", "肺炎:1"),
        ('"a, ü"', "a, ü"),
        ("[ü b, 'c, é',d, 1]", ["ü b", "c, é", "d", 1]),
        ("{train: größe/*, test:[é]}", {"train": "größe/*", "test": ["é"]}),
        ("ü\\d+", "ü\\d+"),
    ],
)
def test_letters_of_other_languages_are_taken_as_they_are(written, value):
    assert read(with_letters_quoted(f"key={written}")) == value
    assert with_letters_quoted(f"--config-dir={written}") == f"--config-dir={written}"


def test_letters_of_other_languages_in_a_sweep():
    [override] = parse_overrides([with_letters_quoted("key=ü,a é,x")], CONF)
    assert [str(v).strip("'") for v in override.sweep_string_iterator()] == ["ü", "a é", "x"]
    plain = ["seed=1", "seed=0,1", "key=[a,b]", "key=${oc.env:Ü}", "-m", "a='ü'", "ü"]
    assert [with_letters_quoted(word) for word in plain] == plain
