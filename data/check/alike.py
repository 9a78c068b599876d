"""Which images are nearly the same as others, and which are like no others, by the correlation of
thumbnails."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

FEW = 5  # of which one that is odd itself is not the last
BLOCK = 1024  # thumbnails that are compared at once
# 1 - correlation of two images that are one: saved again, scaled, brightened, or neighbouring
# slices of a volume. Different radiographs of the chest are 0.016 apart or more, photographs 0.06.
SAME = 0.003


def nearest(thumbnails: np.ndarray, others: np.ndarray, said: str) -> tuple[np.ndarray, ...]:
    """For each of the thumbnails [N, D], over the others [M, D]: the most alike, the correlation
    with it, and the correlation with one of the few that are least alike, each [N]. An image is no
    other of itself: where two are the very same array, its own column does not count."""
    best = np.zeros(len(thumbnails), np.int64)
    greatest, least = np.zeros((2, len(thumbnails)), np.float32)
    few = min(FEW, len(others) - 1)
    with tqdm(total=len(thumbnails), desc=said, unit=" images", delay=2) as bar:
        for start in range(0, len(thumbnails), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(thumbnails)))
            alike = thumbnails[rows] @ others.T
            if others is thumbnails:
                alike[np.arange(len(rows)), rows] = 0
            best[rows] = alike.argmax(1)
            greatest[rows], least[rows] = alike.max(1), np.partition(alike, few, 1)[:, few]
            bar.update(len(rows))
    return best, greatest, least


def copies_across(thumbnails: np.ndarray, splits: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of images (one of a later split, one of an earlier) that are nearly the same: for each
    of the later splits' images at most one. Images without contrast are like no other.

    Args:
        splits: items of each.
    """
    pairs, earlier = [], np.asarray(splits[0])
    for split in map(np.asarray, splits[1:]):
        if len(split) and len(earlier):
            best, alike, _ = nearest(thumbnails[split], thumbnails[earlier], "comparing splits")
            same = np.flatnonzero(1 - alike < SAME)
            pairs += list(zip(split[same].tolist(), earlier[best[same]].tolist()))
        earlier = np.concatenate([earlier, split])
    return pairs
