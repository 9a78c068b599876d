"""Several trainings, each judged by images of its own: the folds of a cross-validation."""

from collections.abc import Sequence

from metrics.intervals import finite
from metrics.over_seeds import Mean, Spread, spread_of


def mean_over_folds(
    values: Sequence[float],
    replicates: Sequence[Sequence[float]],
    images: Sequence[int],
    spread: Spread | None = None,
) -> Mean:
    """The mean of one value for each fold, with the variance that its images and its training add.

    values [K]. replicates [K, draws]: of each its bootstrap over the images of its fold. images
    [K]: how many these are. spread: the variance between folds (moderated), in place of that of
    values.

    With x_k = mu + b_k + e_k (e_k: the images of fold k, which no other has; b_k: its training),
        var(mean) = max(S^2, mean(var(e_k))) / K,
    where S^2 is the variance of values. mu is what these images to train on lead to, on images like
    them, over trainings: two folds share most of what they train on, so that nothing here tells how
    other images to train on would change it (Bengio and Grandvalet 2004, Journal of Machine
    Learning Research 5, 1089: no unbiased estimate of that exists). The degrees of freedom are
    those of the larger: of spread, or K - 1; or of the images, one less in each fold.
    """
    found, n = finite(values), len(values)
    value = float(found.mean())
    of_images = [
        float(finite(r).var()) * count / (count - 1)
        for r, count in zip(replicates, images, strict=True)
        if count > 1
    ]
    inside = sum(of_images) / len(of_images) / n if len(of_images) == n else 0.0
    known = max(1, sum(images) - n)
    if n == 1:
        return Mean(value, n, inside, known) if inside else Mean(value, n)
    seeds, free = spread or spread_of(values)
    return Mean(value, n, seeds / n, free) if seeds / n > inside else Mean(value, n, inside, known)
