"""What a user can mend: one message that names the thing, the place and the way out."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from runtime.signals import last_line, stoppable, told
from runtime.terminal import guard_terminal

USER_ERROR = 2  # exit code
# of a folder to write to, most often
PLACE = (
    "Where things are written is set by run.root, run.directory and run.cache of train.py, by out "
    "of sample.py and export.py, and by out and cache of evaluate.py."
)
DEVICE = "The disk, or the server that has it, fails: run the same command again once it is mended."
NOT_OURS = {  # what the system refuses -> the cure
    errno.EACCES: PLACE,
    errno.EPERM: PLACE,
    errno.EROFS: PLACE,
    errno.ENOTDIR: PLACE,
    errno.EISDIR: PLACE,
    errno.EEXIST: PLACE,
    errno.ENAMETOOLONG: "Give a shorter one.",
    errno.EIO: DEVICE,
    errno.ESTALE: DEVICE,
}


class UserError(ValueError):
    """A mistake of the user's, or of the data's. Its text is all that is shown."""


class Busy(UserError):
    """Another process is at it."""


class Misfit(UserError):
    """Of settings that cannot go together: told at once, whatever else is missing."""


def near(name: str, known: Iterable[str]) -> str:
    """ "Did you mean ..." with the nearest known names, or a list of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    listed = ", ".join(known[:24]) + (", ..." if len(known) > 24 else "")
    return f"did you mean {' or '.join(close)}?" if close else f"known: {listed or 'none'}."


def numbers_as_0(text: str) -> str:
    """Messages, or names, that differ in their numbers alone are one."""
    return re.sub(r"\d+", "0", text)


def together(*steps: Callable[[], Any]) -> list[Any]:
    """What the steps return, or one UserError with the messages of all that fail: what is missing
    is missing at once. A Misfit ends it: the steps after it are not taken."""
    results, errors = [], list[UserError]()
    for step in steps:
        try:
            results.append(step())
        except Misfit:
            raise
        except UserError as error:
            errors.append(error)
    if errors:
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else UserError
        raise kind("\n\nand ".join(map(str, errors)))
    return results


def message_of(error: BaseException) -> str | None:
    """What to tell the user of an error, or None where it is no mistake of the user's and the
    traceback tells more."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in NOT_OURS and error.filename is not None:
        return f"{error.filename}: {error.strerror}. {NOT_OURS[error.errno]}"
    return None


def one_message(main: Callable) -> Callable:
    """It prints a UserError, or what the system refuses, as its message and exits with 2, and where
    it is stopped with 130 or 75. HYDRA_FULL_ERROR=1 shows the traceback instead."""

    @wraps(main)
    def wrapped(*args, **kwargs):
        guard_terminal()
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as stop:
            print(last_line(stop), end="", file=sys.stderr)
            sys.exit(told(stop)[1])
        except (UserError, OSError) as error:
            message = message_of(error)
            if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {message}", file=sys.stderr, flush=True)
            sys.exit(USER_ERROR)

    return wrapped


def script(main: Callable) -> Callable:
    """How a script runs: see one_message, and signals that ask it to stop are heeded."""

    @one_message
    @wraps(main)
    def wrapped(*args, **kwargs):
        with stoppable():
            return main(*args, **kwargs)

    return wrapped
