"""A setting as one types it, for messages to be pasted from; and text that Hydra takes as it is."""

import re
import shlex
from collections.abc import Mapping, Sequence

# text that Hydra takes without quotes, and for no number or other value
PLAIN = re.compile(r"(?!(?i:true|false|null|nan|inf)$)[A-Za-z_/*?][\w./*?@%+-]*", re.ASCII)

# in a value: what stands in quotes, or a text between commas and brackets
PIECE = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s'"(){}\[\],:](?:[^'"(){}\[\],:]*[^\s'"(){}\[\],:])?"""
)


def with_letters_quoted(word: str) -> str:
    """KEY=VALUE in which Hydra takes the letters as they are that its grammar lacks, such as ü."""
    key, equals, text = word.partition("=")
    if key.startswith("-") or text.isascii() or "${" in text:
        return word
    if not re.search(r"""^['"]|[](){},[]""", text):  # one text
        return f"{key}={hydra_quoted(text.strip())}"
    return key + equals + PIECE.sub(lambda found: _letters_quoted(found[0]), text)


def _letters_quoted(piece: str) -> str:
    return piece if piece.isascii() or piece[0] in "'\"" else hydra_quoted(piece)


def hydra_quoted(text: str) -> str:
    """By Hydra's grammar, of which nothing in the text is then a part; nor is ${ OmegaConf's."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def as_typed(key: str, value: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> str:
    """key=value for a shell."""
    return f"{key}={shlex.quote(_by_hydra(value))}"


def _by_hydra(value: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_by_hydra(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return "[" + ",".join(map(_by_hydra, value)) + "]"
    if PLAIN.fullmatch(value):
        return value
    return hydra_quoted(value) if re.search(r'"|\$\{|\\$', value) else f'"{value}"'
