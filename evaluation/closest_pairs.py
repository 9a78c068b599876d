"""The generated images that are most like copies, each beside its training image: what a number
about copies looks like."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from data.pixels import to_picture
from evaluation.protocol import ReferenceImages
from metrics.memorization import nearest
from runtime.files import write_atomically, write_json
from runtime.image_grid import font_for, png

PAIRS, COLUMNS = 12, 4
SIDE, TEXT, GAP = 96, 16, 10  # in pixels of the sheet


def write_closest(
    folder: Path,
    generated: np.ndarray,
    pixels: Tensor,
    reference: ReferenceImages,
    train: Tensor,
    view: Callable[[np.ndarray], np.ndarray] = to_picture,
) -> None:
    """closest.png, pairs of a generated image (left) and the training image nearest to it, each
    called so, with the name of its file, and closest.json. First those that are so much nearer to
    it than to the next, d1 / d2, as by distance alone flat images come first, which are near to all
    (Carlini et al. 2023).

    Args:
        generated: [N, H, W, C] uint8.
        pixels: [N, D], the same in [0, 1].
        train: [M, D], the training images in [0, 1].
        view: [H, W, C] -> [H, W, 1 or 3], what the pictures show.
    The distance is the root of the mean squared difference of two pixels, of [0, 1].
    """
    near = nearest(pixels, train, min(2, len(train)))
    scale = pixels.shape[1] ** -0.5
    pairs: list[dict[str, Any]] = [
        {
            "generated": k,
            "train": int(reference.rows["train"][near.rows[k, 0]]),
            "distance": first * scale,
            # None where there is one training image, or both are copies
            "ratio": first / others[0] if any(others) else None,
        }
        for k, (first, *others) in enumerate(near.distances.tolist())
    ]
    pairs = sorted(pairs, key=lambda pair: (pair["ratio"] or 0.0, pair["distance"]))[:PAIRS]
    for pair in pairs:
        pair["train_name"] = reference.name_of(pair["train"])
    write_json(folder / "closest.json", pairs)
    shown = []
    for pair in pairs:
        ratio = "" if pair["ratio"] is None else f", d1/d2 {pair['ratio']:.2f}"
        name = pair["train_name"].rsplit("/", 1)[-1]
        text = f"d1 {pair['distance']:.3f}{ratio}\n{name:.34}"
        left, right = generated[pair["generated"]], reference.images[pair["train"]]
        shown.append((view(left), view(right), text))
    write_atomically(folder / "closest.png", png(sheet(shown)))


def sheet(pairs: list[tuple[np.ndarray, np.ndarray, str]]) -> np.ndarray:
    """(left, right, what stands below), [H, W, C] uint8 each -> one picture [H, W, 3]."""
    columns, lines = min(COLUMNS, len(pairs)), -(-len(pairs) // COLUMNS)
    height, width = SIDE + 3 * TEXT + GAP, 2 * SIDE + 2 * GAP
    picture = Image.new("RGB", (GAP + columns * width, GAP + lines * height), "white")
    draw = ImageDraw.Draw(picture)
    for n, (left, right, text) in enumerate(pairs):
        x, y = GAP + n % COLUMNS * width, GAP + n // COLUMNS * height
        for k, (pixels, side) in enumerate(((left, "generated"), (right, "training"))):
            tile = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
            tile = ImageOps.contain(tile, (SIDE, SIDE), Image.Resampling.NEAREST)
            picture.paste(tile, (x + k * (SIDE + 2), y))
            draw.text((x + k * (SIDE + 2), y + SIDE + 1), side, "black", font_for(side, TEXT - 4))
        draw.text((x, y + SIDE + 1 + TEXT), text, "black", font_for(text, TEXT - 4))
    return np.asarray(picture)
