"""Whether generated images are copies of training images: distances to the nearest ones, against
those of images nobody trained on.

What is a sign of copying is said here, by near_sign and copy_sign, and nowhere else.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.checks import check_features
from metrics.distances import chunks
from metrics.estimate import Estimate, estimate
from metrics.intervals import share_interval, wilson
from metrics.resampling import Groups, bootstrap_mean, drawn_from, resampled, resampled_rows
from runtime.errors import UserError
from runtime.seeds import generator

# generated or test images of a cell below which C_T does not judge it; the authors' tau is 20 /
# (generated images)
FEW = 20
IN_CELL = 50  # of each kind of image, at least, on the average of the cells
CELLS = 10  # at most
STEPS = 100  # of k-means, at most
NEAR, COPIED = 0.5, 0.05  # rho below the first is copying, and a share of copies above the second
OUTRIGHT = 0.1  # rho below which half of the images are copies outright, and not only near


class Nearest(NamedTuple):
    """distances: [N, k] float64, rising. rows: [N, k] int64, of the training images they are to."""

    distances: Tensor
    rows: Tensor


def nearest(x: Tensor, train: Tensor, k: int = 2) -> Nearest:
    """The k nearest rows of train [M, D] to each row of x [N, D], or all M where there are fewer,
    Euclidean; 0 exactly where they are equal."""
    k = min(k, len(train))
    found = [distances.topk(k, largest=False) for _, distances in chunks(x, train)]
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


# rho


def rho(generated: Tensor, test: Tensor) -> Any:
    """The median distance of generated images to their nearest training image, over that of test
    images: about 1 where the generated ones are as new as test images are, 0 where they are copies.

    Args:
        generated: [..., N] distances.
        test: [..., T] distances.
    Returns:
        [...], a float of one set each.
    Raises:
        UserError: where half of the test images are copies.
    """
    below = median(test)
    if not (below > 0).all():
        raise UserError(
            "rho is not defined: about half of the test images or more are at distance 0 of a "
            "training image. Are they among the training images? Duplicates should be on one side "
            "of the split."
        )
    return median(generated) / below


def median(values: Tensor) -> Any:
    """Of the last dimension, a float of [N]; the mean of the middle two where N is even."""
    return np.median(values.double().cpu().numpy(), axis=-1)


def rho_replicates(
    generated: Tensor, test: Tensor, draws: int = 200, groups: Groups = None
) -> Tensor:
    """A bootstrap of rho over both sets of images, [draws]; that of two generators on the same test
    images, each with N images, is paired. Raises UserError where rho is not defined in one of them.

    groups: of the test images.
    """
    ours = generated.cpu()[resampled_rows(len(generated), draws, "generated")]
    test = test.cpu()
    if groups is None:
        return torch.from_numpy(rho(ours, test[resampled_rows(len(test), draws, "test")]))
    counts = resampled(len(test), draws, "test", groups=groups).long()
    found = [rho(drawn, test.repeat_interleave(own)) for drawn, own in zip(ours, counts)]
    return torch.tensor(found, dtype=torch.float64)


# d1 / d2


def copies(near: Nearest) -> Tensor:
    """Which images are copies: so much nearer to one training image than to the next, d1 <= d2 / 3.

    Returns:
        [N] bool. An image at 0 from both is one: what it copies is there twice.
    Source:
        Yoon et al. 2023, on pixels.
    """
    d1, d2 = near.distances[:, 0], near.distances[:, 1]
    return d1 <= 1 / 3 * d2


# What is a sign of it


class Band(NamedTuple):
    """A number with its 95% interval; low and high are None where it has none."""

    value: float
    low: float | None
    high: float | None


def near_sign(rho: Band, untouched: Band | None) -> bool:
    """Whether half of the images or more are nearer to training images than new images are: the
    interval of rho lies below 0.5, and below the rho of the untouched source, which saw none of
    them (None where there is none). Images that are a little bland are nearer to all others, by
    some hundredths; C_T, the same distances as a z that grows with the number of images, calls them
    copies and is no sign."""
    return rho.high is not None and rho.high < min(NEAR, untouched.value if untouched else NEAR)


def innocent_share(test: Band | None, untouched: Band | None) -> float:
    """The share of copies that is no sign yet: 5%, or what images come to that copy nothing, the
    test images and the untouched source's. Of few test images it is high: 26% of 11 of which none
    looks like a copy."""
    innocent = [band for band in (test, untouched) if band]
    return max([COPIED, *(b.value if b.high is None else b.high for b in innocent)])


def copy_sign(share: Band, test: Band | None, untouched: Band | None) -> bool:
    """Whether some of the images are copies by pixels, be it a part of them, which a median does
    not show: the interval of their share lies above innocent_share."""
    return share.low is not None and share.low > innocent_share(test, untouched)


# C_T


def c_t(generated: Tensor, test: Tensor, train: Tensor) -> float:
    """Whether generated images lie nearer to the training images than test images do, in standard
    deviations. Far below 0: copying; about 0: as test images; far above 0: away from the data.

    The Mann-Whitney z of the distances in each cell of a k-means of the training images, weighted
    by its share of the test images; cells with fewer than 20 generated or test images do not count,
    and with few images all is one cell. Distances are to all training images.

    Source:
        Meehan, Chaudhuri and Dasgupta 2020.
    """
    ours, theirs = (nearest(x, train, 1).distances[:, 0] for x in (generated, test))
    fewest = min(len(generated), len(test), len(train))
    centres = k_means(train, max(1, min(CELLS, fewest // IN_CELL)))
    cell_of_ours, cell_of_theirs = (nearest(x, centres, 1).rows[:, 0] for x in (generated, test))
    return over_cells(ours, cell_of_ours, theirs, cell_of_theirs, len(centres))


def over_cells(
    generated: Tensor, generated_cell: Tensor, test: Tensor, test_cell: Tensor, cells: int
) -> float:
    """C_T from the distances [N], [T] and the cell of each image in 0..cells - 1."""
    total, weight = 0.0, 0
    for cell in range(cells):
        ours, theirs = generated[generated_cell == cell], test[test_cell == cell]
        if min(len(ours), len(theirs)) >= FEW:
            total += len(theirs) * mann_whitney(ours, theirs)
            weight += len(theirs)
    return total / weight if weight else mann_whitney(generated, test)


def mann_whitney(x: Tensor, y: Tensor) -> float:
    """The z of the Mann-Whitney U of x [n] over y [m], corrected for ties; below 0 where x is the
    smaller. 0 where all are equal."""
    from scipy.stats import rankdata, ranksums, tiecorrect  # takes half a second

    ties = tiecorrect(rankdata(torch.cat([x, y]).cpu()))  # 0 where all are equal
    z = ranksums(x.cpu().numpy(), y.cpu().numpy()).statistic
    return float(z / math.sqrt(ties)) if ties > 0 else 0.0


def k_means(x: Tensor, k: int) -> Tensor:
    """k-means++, then Lloyd's steps until nothing moves.

    Args:
        x: [N, D].
    Returns:
        Centres [k, D], or fewer where x has fewer different rows.
    Source:
        Arthur and Vassilvitskii 2007.
    """
    x, draw = x.double(), generator("k-means")
    centres = x[torch.randint(len(x), (1,), generator=draw).to(x.device)]
    while len(centres) < k:
        weight = nearest(x, centres, 1).distances[:, 0].square()
        if not weight.sum() > 0:
            break
        row = torch.multinomial(weight.cpu(), 1, generator=draw)
        centres = torch.cat([centres, x[row.to(x.device)]])
    for _ in range(STEPS if k > 1 else 0):
        cell = nearest(x, centres, 1).rows[:, 0]
        member = F.one_hot(cell, len(centres)).T.double()  # [k, N]
        count = member.sum(1, keepdim=True)
        moved = torch.where(count > 0, member @ x / count, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


# AuthPct


def authentic(generated: Nearest, train: Tensor) -> Tensor:
    """Which generated images are new: farther from their nearest training image than that one is
    from its own nearest.

    None of copies. The share of images that nobody trained on depends on the data (0.8 for 2,000 to
    1,000 normal vectors of 64 values): compare with the test images' own.

    Returns:
        [N] bool.
    Source:
        Alaa et al. 2022, section 3.3.
    """
    # fewer than all of a large training set
    asked, which = generated.rows[:, 0].unique(return_inverse=True)
    # the first is the image itself, or its duplicate
    between = nearest(train[asked], train).distances[:, 1]
    return generated.distances[:, 0] > between[which]


# All of it


def memorization(
    generated: Tensor, train: Tensor, test: Tensor, groups: Groups = None
) -> dict[str, Any]:
    """Everything above on feature matrices, for evaluation.json.

    Args:
        groups: of the test images, by which rho draws them. Wilson's interval of copy_share_test
            takes each for itself.
    Returns:
        {"rho", "copy_share", "authentic_share": Estimate, "copy_share_test": {"value", "low",
        "high"}, "c_t", "median_distance", "nearest_test": float, "notes": [str]}
        What the images do not allow is absent, and "notes" says why. median_distance: of generated
        images to their nearest training image; nearest_test: of test images. copy_share_test: how
        many of the test images the copy share would call copies, with Wilson's interval: what
        images that are none come to.
    Raises:
        UserError: where features are no float matrices of one width, or hold NaN.
    """
    check_features(generated, "the generated images", least=1)
    check_features(train, "the training images", least=1)
    notes: list[str] = []
    near = nearest(generated, train)
    ours = near.distances[:, 0]
    result: dict[str, Any] = {"notes": notes, "median_distance": median(ours)}
    if len(train) > 1:
        result["copy_share"] = _share(copies(near))
        result["authentic_share"] = _share(authentic(near, train))
    else:
        notes.append(
            "copy share and AuthPct are left out: they compare two training images, and there "
            "is one"
        )
    if not len(test):
        notes.append("rho and C_T are left out: there are no test images to compare with")
        return result
    check_features(test, "the test images", least=1)
    near_test = nearest(test, train)
    theirs = near_test.distances[:, 0]
    result["nearest_test"] = median(theirs)
    if len(train) > 1:
        copied = int(copies(near_test).sum())
        low, high = wilson(copied, len(test))
        result["copy_share_test"] = {"value": copied / len(test), "low": low, "high": high}
    result["c_t"] = c_t(generated, test, train)
    try:
        fewest = drawn_from((len(ours), None), (len(theirs), groups))
        replicates = rho_replicates(ours, theirs, groups=groups)
        result["rho"] = estimate(rho(ours, theirs), replicates, *fewest)
    except UserError as error:
        notes.append(str(error))
    return result


def _share(flags: Tensor) -> Estimate:
    """Of generated images, those of which something holds."""
    flags = flags.double().cpu()
    n, replicates = len(flags), bootstrap_mean(flags, key=("generated",))
    found = estimate(flags.mean().item(), replicates, n)
    if (low := found["low"]) is not None and (high := found["high"]) is not None:
        found["low"], found["high"] = share_interval(found["value"], low, high, n)
    return found
