"""benchmarks.contact with rows that are told what to do, for tests of what it does about them."""

import os

from benchmarks import contact, contact_rows
from benchmarks.contact_row import Row
from runtime.errors import UserError
from runtime.receive import NoNetwork


def seen(row, device, out, steps):
    (out / "seen.png").write_bytes(b"picture")
    return {"found": {"x": 1.5, "steps": steps}, "pictures": {"seen.png": "a < b"}}


def waits(*_):
    raise NoNetwork("small.pt: no network: put it at DIR.")


def wrong(*_):
    raise UserError("small.pt opens, but differs.")


def breaks(*_):
    raise ZeroDivisionError("oh")


def dies(*_):
    os._exit(9)


RUNS = (seen, waits, wrong, breaks, dies)
contact.MODULE = "tests.helpers.stub_contact"
contact_rows.ROWS = tuple(Row(run.__name__, "kind", f"what {run.__name__}", run) for run in RUNS)

if __name__ == "__main__":
    contact.main()
