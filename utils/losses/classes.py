"""Class losses by name, from logits: each is a sum over all anchor points and classes.

Only P of the (B, K, A) elements have a target above 0. They are passed separately, so no dense target is built.
"""

import torch
from torch import Tensor
from torch.nn import functional

from utils.losses.box import Pairs
from utils.losses.parts import Range, part

LEAST_SLIDE_MEAN = 0.2
"""Lower bound of Slide's mean IoU, as in its authors' code."""


def cross_entropy(logits: Tensor, target: Tensor | float) -> Tensor:
    """Compute binary cross-entropy from logits, element by element."""
    return functional.softplus(logits) - logits * target


@part()
def bce(logits: Tensor, positive_logits: Tensor, score: Tensor, pairs: Pairs) -> Tensor:
    """Binary cross-entropy with the assigner's score as the target.

    Args:
        logits: (B, K, A) of all classes at all anchor points.
        positive_logits: (P,) those of the object's class at the positives; they are also in `logits`.
        score: (P,) targets of the positives, in [0, 1].
        pairs: the P predicted boxes with their objects.
    Returns:
        A scalar.
    Source: Feng et al. 2021, TOOD, arxiv.org/abs/2108.07755
    Differs: without TOOD's focal factor, as YOLOv8 and YOLOv9 train.
    """
    return functional.softplus(logits).sum() - (positive_logits * score).sum()


@part(short=("vfl",), alpha=Range(0, 10, above=True), gamma=Range(1, 5))
def varifocal(
    logits: Tensor, positive_logits: Tensor, score: Tensor, pairs: Pairs, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy times the target q where q > 0, and times alpha p^gamma elsewhere.

    Positives with good boxes count most, easy background little.

    Source: Zhang et al. 2021, arxiv.org/abs/2008.13367, eq. (2)
    Differs: q is the assigner's score, not the IoU. Arguments as `bce`.
    """

    def background(values: Tensor) -> Tensor:
        return alpha * values.sigmoid().pow(gamma) * functional.softplus(values)

    positive = torch.where(score > 0, score * cross_entropy(positive_logits, score), background(positive_logits))
    return background(logits).sum() + (positive - background(positive_logits)).sum()


@part(short=("qfl",), beta=Range(1, 5))
def quality_focal(logits: Tensor, positive_logits: Tensor, score: Tensor, pairs: Pairs, beta: float = 2.0) -> Tensor:
    """Cross-entropy times |target - p|^beta: predictions close to the target count little.

    Source: Li et al. 2020, arxiv.org/abs/2006.04388, eq. (5)
    Differs: the target is the assigner's score, not the IoU. Arguments as `bce`.
    """

    def focal(values: Tensor, target: Tensor | float) -> Tensor:
        return (values.sigmoid() - target).abs().pow(beta) * cross_entropy(values, target)

    return focal(logits, 0.0).sum() + (focal(positive_logits, score) - focal(positive_logits, 0.0)).sum()


@part()
def slide(logits: Tensor, positive_logits: Tensor, score: Tensor, pairs: Pairs) -> Tensor:
    """Cross-entropy with a weight by the IoU x of positives and its mean m.

    The weight is 1 up to x = m - 0.1, e^(1 - m) from there to m, and e^(1 - x) from m.

    Source: Yu et al. 2022, YOLO-FaceV2, arxiv.org/abs/2208.02019
    Differs: m is the mean over the branch's positives of the batch, at least 0.2; x is their IoU even if the target is
        another score; background has weight 1. Arguments as `bce`.
    """
    overlap = pairs.iou.detach()
    mean = overlap.mean().clamp(min=LEAST_SLIDE_MEAN)
    weight = torch.where(overlap < mean, torch.exp(1 - mean), torch.exp(1 - overlap))
    weight = torch.where(overlap <= mean - 0.1, 1.0, weight)
    positive = weight * cross_entropy(positive_logits, score)
    return functional.softplus(logits).sum() + (positive - functional.softplus(positive_logits)).sum()
