"""Globs on the names of a network."""

import fnmatch
import re
from collections.abc import Collection, Sequence
from itertools import accumulate

from runtime.errors import UserError, near

# What papers and other codes call the parts of these networks.
OTHER_WORDS = {
    "attn": "attention",
    "attentions": "attention",
    "bottleneck": "mid",
    "class_emb": "class_embedding",
    "class_embed": "class_embedding",
    "decoder": "up",
    "down_blocks": "down",
    "downsamplers": "downsample",
    "encoder": "down",
    "head": "conv_out",
    "input_blocks": "down",
    "label_emb": "class_embedding",
    "label_embedding": "class_embedding",
    "mid_block": "mid",
    "middle": "mid",
    "middle_block": "mid",
    "out": "conv_out",
    "output_blocks": "up",
    "resnets": "block",
    "temb": "time_mlp",
    "time_embed": "time_mlp",
    "time_emb_proj": "time_proj",
    "time_embedding": "time_mlp",
    "to_k": "qkv",
    "to_q": "qkv",
    "to_v": "qkv",
    "up_blocks": "up",
    "upsamplers": "upsample",
}


def checked_matches(
    patterns: Sequence[str], names: Collection[str], where: str, kind: str = "parameter"
) -> list[str]:
    """The names that match one of some globs, in their own order.

    Args:
        kind: what they name, for messages.
    Raises:
        UserError: with near names, where a glob matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        if not (matched := fnmatch.filter(names, pattern)):
            raise UserError(f"{where}: {pattern} matches no {kind}; {_meant(pattern, names)}")
        found.update(matched)
    return [name for name in names if name in found]


def _meant(pattern: str, names: Collection[str]) -> str:
    """What the user of a glob that matches nothing may have meant."""
    ours = re.sub(r"[a-z_]+", lambda word: OTHER_WORDS.get(word[0], word[0]), pattern.lower())
    if ours != pattern and fnmatch.filter(names, ours):
        by_level = re.search(r"(up|down)\.\d", ours)
        levels = ", where level 0 has the full resolution" if by_level else ""
        return f"here that is {ours}{levels}."
    known = {part for name in names for part in accumulate(name.split("."), "{}.{}".format)}
    return near(pattern.rstrip(".*"), known)
