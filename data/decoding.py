"""Many images decoded on threads, and which of them could not be."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

from tqdm import tqdm

from data.file_cache import Changed
from data.library_warnings import heard
from data.threads import threads
from runtime.errors import UserError

AT_A_TIME = 256  # images that are given to the threads
SHOWN = 20  # images that a message names
# what a library raises for the content of a file; anything else is an error of the code
IN_A_FILE = (OSError, ValueError, LookupError, EOFError, TypeError)

log = logging.getLogger("data")


def decode_all(
    decode: Callable[[int], None], count: int, said: str, name_of: Callable[[int], object]
) -> dict[int, UserError]:
    """Calls decode(0) .. decode(count - 1), nearly in this order. What libraries warn of is logged,
    once, with the first image that it is of.

    Args:
        said: beside the progress.
        name_of: how a message calls an image.

    Returns:
        Which of them could not be read, and why.

    Raises:
        Changed: where one of them does.
    """
    failures: dict[int, UserError] = {}

    def attempt(item: int) -> None:
        try:
            with warned.of(item):
                decode(item)
        except Changed:
            raise
        except UserError as error:
            failures[item] = error
        except IN_A_FILE as error:  # of a reader of one's own
            if getattr(error, "errno", None):  # the disk's, and not what is in a file
                raise
            failures[item] = UserError(f"cannot be read ({type(error).__name__}: {error})")

    with heard() as warned, threads() as pool:
        parts = (range(count)[k : k + AT_A_TIME] for k in range(0, count, AT_A_TIME))
        done = chain.from_iterable(pool.map(attempt, part) for part in parts)
        for _ in tqdm(done, said, count, unit=" images", delay=2):
            pass
    for line in warned.lines(name_of, failures):
        log.warning(line)
    return failures


def list_broken(
    broken: Mapping[int, object],
    name_of: Callable[[int], object],
    heading: str,
    file_of: Callable[[int], object] = lambda item: item,
) -> str:
    """heading, and a line for each of the first broken images, which says why it is; for those of
    one file that are so for the same reason it is one line."""
    same: defaultdict[object, list[int]] = defaultdict(list)
    for item in sorted(broken):
        same[file_of(item), str(broken[item])].append(item)
    lines = []
    for first, *others in [*same.values()][:SHOWN]:
        more = f" (and {len(others)} more of this file)" if others else ""
        lines.append(f"  {name_of(first)}: {broken[first]}{more}")
    if left := sum(map(len, [*same.values()][SHOWN:])):
        lines.append(f"  ... and {left} more")
    return "\n".join([heading, *lines])


@contextmanager
def told_as(kind: str) -> Iterator[None]:
    """A broken file can raise anything: inside, it becomes a UserError that says of which kind the
    file should be."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot be read as {kind} ({str(error) or type(error).__name__})"
        ) from error
