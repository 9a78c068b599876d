"""Whether generated images help: a small classifier trained on real images, on generated ones and
on both, each judged on real images that none of them saw."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.pixels import to_x0
from metrics.auroc import macro_auroc, resampled_by_class, within_its_range
from metrics.estimate import Estimate
from metrics.over_seeds import mean_over
from metrics.resampling import Groups, drawn_from, groups_of
from runtime.seeds import derive, generator

WIDTHS, GROUPS = (16, 32, 64, 64), 8
SIDE = 64  # of the images that it sees, at most
STEPS, BATCH = 150, 32
LR, WEIGHT_DECAY = 1e-3, 0.01
SEEDS = 3  # trainings on each set
FEWEST = 2  # test images of a class, without which it is not judged


class Labelled(NamedTuple):
    """images: [*, H, W, C] uint8. labels: [*] int64 of all of them. rows: of images, those that are
    meant. groups: of all of them, see metrics.resampling."""

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    groups: Groups = None


def build_classifier(channels: int, classes: int, seed: int) -> nn.Sequential:
    """[B, channels, H, W] -> logits [B, classes]: four 3x3 convolutions with group norm and SiLU,
    each at half the side of the one before, the mean over the image, a linear map. Its weights are
    torch's own, a function of the seed; the global random stream is left alone."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("classifier", seed))
        for k, (inputs, outputs) in enumerate(pairwise((channels, *WIDTHS))):
            if k:
                layers.append(nn.AvgPool2d(2, ceil_mode=True))
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            layers += [nn.GroupNorm(GROUPS, outputs), nn.SiLU()]
        linear = nn.Linear(WIDTHS[-1], classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def seen(images: np.ndarray, device: torch.device, flip: Tensor | None = None) -> Tensor:
    """[B, H, W, C] uint8 -> [B, C, h, w] in [-1, 1], scaled so that no side is above SIDE."""
    x = to_x0(torch.from_numpy(images).to(device), flip)
    if (scale := SIDE / max(x.shape[2:])) < 1:
        size = [max(1, round(side * scale)) for side in x.shape[2:]]
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
    return x


def train_classifier(
    sets: Sequence[Labelled], classes: int, seed: int, flip: bool, device: torch.device
) -> nn.Module:
    """STEPS steps of AdamW on the cross-entropy, with a cosine decay to 0. Each batch has as many
    images of each set, drawn with replacement: whatever the sets, the steps are as many and the
    weights begin alike.

    Args:
        flip: half of the images are mirrored.
    """
    network = build_classifier(sets[0].images.shape[-1], classes, seed).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
    share = BATCH // len(sets)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * step / STEPS)) / 2
        draw = generator("classifier batch", seed, step)
        x, y = [], []
        for images, labels, rows, _ in sets:
            index = rows[torch.randint(len(rows), (share,), generator=draw).numpy()]
            mirrored = torch.rand(share, generator=draw) < 0.5 if flip else None
            x.append(seen(images[index], device, mirrored))
            y.append(torch.from_numpy(labels[index]).to(device))
        loss = F.cross_entropy(network(torch.cat(x)), torch.cat(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def log_odds(network: nn.Module, judged: Labelled, device: torch.device) -> Tensor:
    """[N, K] float64 on the CPU: log p / (1 - p) of each class, which rises with p and does not
    round as p does."""
    logits = []
    for start in range(0, len(judged.rows), 256):
        x = seen(judged.images[judged.rows[start : start + 256]], device)
        logits.append(network(x).double().cpu())
    z = torch.cat(logits)
    others = ~torch.eye(z.shape[1], dtype=torch.bool)
    return torch.stack([z[:, c] - z[:, others[c]].logsumexp(1) for c in range(len(others))], 1)


def judged_classes(train: Labelled, test: Labelled) -> list[int]:
    """Those of which there is a training image, and FEWEST test images."""
    trained, counts = set(train.labels[train.rows].tolist()), np.bincount(test.labels[test.rows])
    return [c for c in sorted(trained) if c < len(counts) and counts[c] >= FEWEST]


def classification(
    real: Labelled,
    synthetic: Labelled,
    test: Labelled,
    judged: Sequence[int],
    classes: int,
    flip: bool,
    device: torch.device,
) -> dict[str, Estimate]:
    """AUROC on real test images of classifiers that were trained on real images, on generated ones,
    and on both in equal parts of each batch; and the gain, both - real, paired by the classifier's
    seed and by test image.

    Of several classes it is the mean of each against the others. An interval holds how SEEDS
    trainings of the classifier differ, and that of the test images, which are drawn class by class,
    or by their groups (resampled_by_class).

    Args:
        test: images of the classes that are judged alone.
        classes: that a classifier tells apart.
    Source:
        Ravuri and Vinyals 2019, whose classification accuracy score is that of generated images
        alone; AUROC in its place, as the classes of medical images are of unequal sizes.
    """
    labels = torch.from_numpy(test.labels[test.rows])
    groups = groups_of(test.groups, test.rows)
    counts = resampled_by_class(labels, 200, "classification", groups=groups)
    drawn = torch.cat([torch.ones(1, len(labels), dtype=torch.float64), counts])

    def areas(sets: Sequence[Labelled]) -> Tensor:
        """[SEEDS, 1 + draws], of all images and of each draw."""
        networks = [train_classifier(sets, classes, s, flip, device) for s in range(SEEDS)]
        scores = [log_odds(network, test, device) for network in networks]
        return torch.stack([macro_auroc(each, labels, judged, drawn) for each in scores])

    found = {
        name: areas(sets)
        for name, sets in (
            ("real", [real]),
            ("synthetic", [synthetic]),
            ("both", [real, synthetic]),
        )
    }
    classes_apart = [test.rows[(labels == c).numpy()] for c in judged]
    fewest = drawn_from(*((len(rows), groups_of(test.groups, rows)) for rows in classes_apart))
    estimates = {name: within_its_range(over_trainings(a, *fewest)) for name, a in found.items()}
    return estimates | {"gain": over_trainings(found["both"] - found["real"], *fewest)}


def over_trainings(areas: Tensor, images: int, of_images: int | None = None) -> Estimate:
    """areas: [SEEDS, 1 + draws], of all images and of each draw of these. A class of one group has
    no interval: that of the trainings alone would say nothing of other images."""
    values, replicates = areas[:, 0].tolist(), areas[:, 1:]
    mean = mean_over(values, replicates.tolist(), images)
    low, high = mean.interval() if images > 1 else (None, None)
    kept = [float(f"{r:.6g}") for r in replicates.mean(0).tolist()]
    found: Estimate = {
        "value": mean.value,
        "low": low,
        "high": high,
        "replicates": kept,
        "images": images,
    }
    return found if of_images is None else {**found, "of_images": of_images}
