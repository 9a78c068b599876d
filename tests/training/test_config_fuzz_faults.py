"""Random damage to a run's config: accepted, or refused by one message, and never a traceback."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.overrides import composed
from runtime.errors import UserError
from training.config_checks import check_run_config

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10_000)
    | st.floats()
    | st.sampled_from(["", "auto", "full", "0", "1e4", "a.b", "null", "☃", "up.*"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_target_", "name", "rate", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
FEW = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}
EXPERIMENTS = ["transfer_demo", "transfer_folder", "pretrain_cifar10"]


def places(node: object, path: tuple = ()) -> list[tuple]:
    items = node.items() if isinstance(node, dict) else ()
    return [path, *(each for key, value in items for each in places(value, (*path, key)))]


def check_with(experiment: str, which: float, value: object, change: str) -> None:
    words = [f"+experiment={experiment}"]
    words += ["data.path=X"] if experiment == "transfer_folder" else []
    raw = copy.deepcopy(composed("train", words))
    *above, key = (found := places(raw)[1:])[int(which * (len(found) - 1))]
    node = raw
    for step in above:
        node = node[step]
    if change == "gone":
        del node[key]
    elif change == "renamed":
        node[f"{key}s"] = node.pop(key)
    else:
        node[key] = value
    try:
        check_run_config(raw)
    except UserError as error:
        assert str(error)


CHANGED = (
    st.sampled_from(EXPERIMENTS),
    st.floats(0, 1),
    VALUES,
    st.sampled_from(["gone", "renamed", "another", "another"]),
)


@settings(max_examples=20, **FEW)
@given(*CHANGED)
def test_a_damaged_config_is_one_message(experiment, which, value, change):
    check_with(experiment, which, value, change)


@pytest.mark.slow
@settings(max_examples=200, **FEW)
@given(*CHANGED)
def test_damaged_configs(experiment, which, value, change):
    check_with(experiment, which, value, change)
