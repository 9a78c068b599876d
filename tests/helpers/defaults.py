"""What a script is asked for where its command line says nothing."""

from __future__ import annotations

from typing import Any

import yaml

from tests.helpers import ROOT


def defaults(script: str) -> dict[str, Any]:
    """The values of conf/SCRIPT.yaml, without what is chosen from other files."""
    content = yaml.safe_load((ROOT / "conf" / f"{script}.yaml").read_text())
    return {key: value for key, value in content.items() if key not in ("defaults", "hydra")}


def needed(experiment: str) -> list[str]:
    """What its command line has to give: the images, where they are a folder of the user's own."""
    text = (ROOT / "conf/experiment" / f"{experiment}.yaml").read_text()
    own = "override /data: folder" in text and "path: datasets" not in text
    return ["data.path=nowhere"] if own else []
