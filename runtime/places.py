"""Paths that files keep, found from any working directory."""

from pathlib import Path


def find_again(path: str, noted_in: Path, given_in: str | None) -> str:
    """A path that is kept in a file of noted_in. A relative one is of the folder given_in, where
    the command was given; or what it leads to has moved together with noted_in; or it is here."""
    if Path(path).expanduser().is_absolute():
        return path
    above = [*([Path(given_in)] if given_in else []), *noted_in.absolute().parents]
    return next((str(folder / path) for folder in above if (folder / path).exists()), path)
