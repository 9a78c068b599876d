"""Several trainings, each judged by images of its own: the folds of a cross-validation."""

from collections.abc import Sequence

from metrics.intervals import finite
from metrics.over_seeds import Mean, Spread, spread_of


def mean_over_folds(
    values: Sequence[float],
    replicates: Sequence[Sequence[float]],
    images: Sequence[int],
    overlap: float,
    spread: Spread | None = None,
) -> Mean:
    """The mean of one value for each fold, with the variance that its images and its training add.

    values [K]. replicates [K, draws]: of each its bootstrap over the images of its fold. images
    [K]: how many these are. overlap: of the folds, images to test on over images to train on,
    1 / (K - 1) where nothing is left out. spread: the variance between folds (moderated), in place
    of that of values.

    With x_k = mu + b_k + e_k (e_k: the images of fold k, which no other has; b_k: its training),
        var(mean) = mean(var(e_k)) / K + (1 / K + overlap) max(0, S^2 - mean(var(e_k))),
    where S^2 is the variance of values. Two folds share most of the images that they train on, so
    that S^2 is too small for what another set of images would change: this is the correction of
    Nadeau and Bengio 2003 (Machine Learning 52, 239), section 3, for the part that is not the test
    images'. No unbiased estimate exists (Bengio and Grandvalet 2004). The degrees of freedom as in
    metrics.over_seeds.mean_over: Satterthwaite's, of S^2 with those of spread or K - 1, and of the
    images, one less in each fold.
    """
    found, n = finite(values), len(values)
    value = float(found.mean())
    of_images = [
        float(finite(r).var()) * count / (count - 1)
        for r, count in zip(replicates, images, strict=True)
        if count > 1
    ]
    inside = sum(of_images) / len(of_images) if len(of_images) == n else 0.0
    known = max(1, sum(images) - n)
    if n == 1:
        return Mean(value, n, inside, known) if inside else Mean(value, n)
    seeds, free = spread or spread_of(values)
    variance = inside / n + (1 / n + overlap) * max(0.0, seeds - inside)
    if not variance > 0:
        return Mean(value, n, variance, known)
    a, i = (1 / n + overlap) * (1 + 2 / free) * seeds, inside / n
    return Mean(value, n, variance, (a + i) ** 2 / (a**2 / free + i**2 / known))
