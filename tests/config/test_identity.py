"""A run keeps its name: what does not concern it changes neither its identity nor the hash in its
directory's name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config import identity as names
from config.identity import digest, identity
from config.overrides import composed
from config.run_config import RunConfig
from runtime.content import differences
from tests.helpers import FILES
from training.pretrained_source import find_source
from training.run import complete_config
from training.run_directory import open_images

# What commit 11a2594 wrote as identity.json for these commands, in their spelling of now. The
# folder's images have a made-up fingerprint and three classes.
KEPT = json.loads((FILES / "identity_11a2594.json").read_text())
FOLDER = SimpleNamespace(fingerprint="0123456789abcdef" * 4, classes=["a", "b", "c"])


def identity_of(command: list[str], root: Path) -> tuple[dict[str, Any], Path]:
    """What train.run comes to for a command, and its directory, without training anything."""
    asked = RunConfig(
        composed("train", [*command, f"run.cache={root}/cache", f"run.root={root}/runs"])
    ).completed
    images = FOLDER if "data=folder" in command else open_images(asked)
    _, who, directory = complete_config(asked, images, find_source(asked))
    return who, directory


@pytest.mark.parametrize("kept", KEPT, ids=[" ".join(kept["command"]) for kept in KEPT])
def test_a_run_has_the_identity_that_it_had(tmp_path, kept):
    """A key that came since and stands at its default belongs into LATER; what changes a run's
    numbers is another run."""
    who, directory = identity_of(kept["command"], tmp_path)
    assert not differences(json.loads(json.dumps(who)), kept["identity"])
    assert digest(who) == kept["hash"] == digest(kept["identity"])
    assert directory.name.endswith(f"-seed{kept['identity']['seed']}-{kept['hash']}")


@pytest.mark.parametrize("section", ["data", "train", "source", "transfer", "model"])
def test_a_key_that_comes_new_counts_where_it_is_not_at_its_default(monkeypatch, section):
    content = composed("train", ["+experiment=pretrain_demo"])
    before = digest(identity(RunConfig(content), "images"))
    monkeypatch.setattr(
        names, "LATER", names.LATER | {section: names.LATER.get(section, {}) | {"new": None}}
    )
    assert digest(identity(RunConfig(content), "images")) == before
    for value, same in ((None, True), (0, False), (7, False)):
        later = copy.deepcopy(content)
        later[section]["new"] = value
        assert (digest(identity(RunConfig(later), "images")) == before) == same
