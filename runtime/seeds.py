"""Randomness as a function of named integers, such as (seed, "noise", step): nothing to store,
nothing to restore wrongly."""

import hashlib

import torch


def derive(*key: int | str) -> int:
    """A 63-bit seed from any key; different keys give unrelated seeds."""
    return (
        int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1
    )


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(derive(*key))
