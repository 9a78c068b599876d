"""What is here runs through tests/test_interpreted.py, or by hand with TRITON_INTERPRET=1."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
