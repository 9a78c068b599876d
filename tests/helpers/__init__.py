"""What tests share: where things lie, and (one file for one thing) what they build on."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "tests/files"
# real images that are not committed; a test that needs them skips where they are absent
SHARED = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared/data"))
