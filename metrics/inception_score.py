"""The Inception score, of a classifier's logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.checks import check_features


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL(p(class | image) || p(class)): mean and deviation over the splits, each in
    1..classes.

    It knows no reference: a model that draws ImageNet's classes instead of faces scores well.

    Args:
        logits: [N, classes].
        splits: consecutive rows; the deviation is over splits, not splits - 1, as in their code.
    Raises:
        UserError: where a split has fewer than 2 rows, and where logits hold NaN.
    Source:
        Salimans et al. 2016, section 4.
    """
    check_features(logits, "the generated images", least=2 * splits)
    log_p = logits.double().log_softmax(1)
    ends = [len(logits) * split // splits for split in range(1, splits)]
    scores = torch.stack([_score(part) for part in log_p.tensor_split(ends)])
    return float(scores.mean()), float(scores.std(correction=0))


def _score(log_p: Tensor) -> Tensor:
    log_mean = (log_p.logsumexp(0) - math.log(len(log_p))).expand_as(log_p)
    return F.kl_div(log_mean, log_p, reduction="batchmean", log_target=True).exp()
