"""How alike a predicted box and its object's are: the IoU family and its relatives by name, and the wrappers around them.

A measure is 1 for a perfect box and falls from there; the loss is 1 minus it. Boxes are in pixels. docs/losses.md lists all of them.
Each adds EPS to what it divides by, so that values and gradients are finite for boxes without width or height.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from utils.geometry.boxes import complete_iou
from utils.losses.parts import Call, Range, part

EPS = 1e-7
"""Square pixels; that of `complete_iou`."""

LEAST_MEAN = 1e-3
"""What the running mean of Wise-IoU is at least taken for."""


@dataclass
class Pairs:
    """Predicted boxes and their objects', pair by pair, and what measures compute from them, each once and only where it is used.

    Args:
        predicted_xyxy, goal_xyxy: (P, 4) pixels.
        image_hw: size of the network's input, pixels.
    """

    predicted_xyxy: Tensor
    goal_xyxy: Tensor
    image_hw: tuple[int, int]

    @cached_property
    def predicted_wh(self) -> Tensor:
        """(P, 2) width and height."""
        return self.predicted_xyxy[:, 2:] - self.predicted_xyxy[:, :2]

    @cached_property
    def goal_wh(self) -> Tensor:
        """(P, 2) width and height."""
        return self.goal_xyxy[:, 2:] - self.goal_xyxy[:, :2]

    @cached_property
    def union(self) -> Tensor:
        """(P,) area that either covers."""
        return self.predicted_wh.prod(1) + self.goal_wh.prod(1) - self.intersection

    @cached_property
    def intersection(self) -> Tensor:
        """(P,) area that both cover."""
        low = torch.maximum(self.predicted_xyxy[:, :2], self.goal_xyxy[:, :2])
        high = torch.minimum(self.predicted_xyxy[:, 2:], self.goal_xyxy[:, 2:])
        return (high - low).clamp(min=0).prod(1)

    @cached_property
    def iou(self) -> Tensor:
        """(P,) intersection over union."""
        return self.intersection / (self.union + EPS)

    @cached_property
    def hull_wh(self) -> Tensor:
        """(P, 2) size of the smallest box around both."""
        low = torch.minimum(self.predicted_xyxy[:, :2], self.goal_xyxy[:, :2])
        return torch.maximum(self.predicted_xyxy[:, 2:], self.goal_xyxy[:, 2:]) - low

    @cached_property
    def apart(self) -> Tensor:
        """(P, 2) from the object's centre to the predicted one, x and y."""
        corners = self.predicted_xyxy - self.goal_xyxy
        return (corners[:, :2] + corners[:, 2:]) / 2

    @cached_property
    def size_difference(self) -> Tensor:
        """(P, 2) width and height, each over the larger of the two: in [0, 1]."""
        return (self.predicted_wh - self.goal_wh).abs() / (torch.maximum(self.predicted_wh, self.goal_wh) + EPS)


@part("box", short=("complete_iou",))
def ciou(pairs: Pairs) -> Tensor:
    """IoU less the centres' distance over the hull's diagonal (squared), less a term for differing aspect ratios.

    Source: Zheng et al. 2020, arxiv.org/abs/1911.08287, eq. (10)
    Differs: see `utils.geometry.boxes.complete_iou`, which computes it.
    """
    return complete_iou(pairs.predicted_xyxy, pairs.goal_xyxy)


@part("box")
def iou(pairs: Pairs) -> Tensor:
    """Intersection over union: no gradient for boxes that do not meet.

    Source: Yu et al. 2016, arxiv.org/abs/1608.01471
    Differs: the loss is 1 - IoU and not its logarithm.
    """
    return pairs.iou


@part("box")
def giou(pairs: Pairs) -> Tensor:
    """IoU less the share of the hull that neither box covers.

    Source: Rezatofighi et al. 2019, arxiv.org/abs/1902.09630, algorithm 1
    """
    hull = pairs.hull_wh.prod(1)
    return pairs.iou - (hull - pairs.union) / (hull + EPS)


@part("box")
def diou(pairs: Pairs) -> Tensor:
    """IoU less the squared distance of the centres over the squared diagonal of the hull.

    Source: Zheng et al. 2020, arxiv.org/abs/1911.08287
    """
    return pairs.iou - pairs.apart.square().sum(1) / (pairs.hull_wh.square().sum(1) + EPS)


@part("box")
def eiou(pairs: Pairs) -> Tensor:
    """DIoU less the squared differences of width and height, each over the hull's.

    Source: Zhang et al. 2021, arxiv.org/abs/2101.08158
    Differs: without the paper's focal weight IoU^gamma (Focal-EIoU).
    """
    size = (pairs.predicted_wh - pairs.goal_wh).square() / (pairs.hull_wh.square() + EPS)
    return diou(pairs) - size.sum(1)


@part("box", theta=Range(2, 6))
def siou(pairs: Pairs, theta: float = 4.0) -> Tensor:
    """IoU less half of a distance cost, which the direction between the centres weighs, and half of a shape cost.

    Source: Gevorgyan 2022, arxiv.org/abs/2205.12740
    Differs: the angle cost 1 - 2 sin^2(arcsin(sin a) - pi/4) is written as what it equals, 2 |dx dy| / (dx^2 + dy^2): no arcsin, whose
        gradient is infinite where the centres stand on one vertical line.
    """
    squared = pairs.apart.square()
    angle = 2 * pairs.apart.prod(1).abs() / (squared.sum(1) + EPS)
    distance = (1 - torch.exp((angle - 2)[:, None] * squared / (pairs.hull_wh.square() + EPS))).sum(1)
    shape = (1 - torch.exp(-pairs.size_difference)).pow(theta).sum(1)
    return pairs.iou - (distance + shape) / 2


@part("box", scale=Range(0, 5))
def shape_iou(pairs: Pairs, scale: float = 0.0) -> Tensor:
    """IoU less distance and shape costs in which the object's shape says how much each direction counts.

    Source: Zhang & Zhang 2023, arxiv.org/abs/2312.17663
    Differs: the weights 2 w^s / (w^s + h^s) are computed as 2 / (1 + (h / w)^s), which does not overflow.

    Args:
        scale: s, which the paper ties to how small the data set's objects are (0 to 1.5); 0 weighs both directions alike.
    """
    log_wh = pairs.goal_wh.clamp(min=EPS).log()
    weight_w = 2 * torch.sigmoid(scale * (log_wh[:, 0] - log_wh[:, 1]))
    weights = torch.stack((2 - weight_w, weight_w), 1)  # of x and w the height's, of y and h the width's
    distance = (weights * pairs.apart.square()).sum(1) / (pairs.hull_wh.square().sum(1) + EPS)
    shape = (1 - torch.exp(-weights * pairs.size_difference)).pow(4).sum(1)
    return pairs.iou - distance - shape / 2


@part("box")
def mpdiou(pairs: Pairs) -> Tensor:
    """IoU less the squared distances of both corners, over the squared diagonal of the network's input.

    Source: Ma & Xu 2023, arxiv.org/abs/2307.07662, algorithm 1
    """
    height, width = pairs.image_hw
    return pairs.iou - (pairs.predicted_xyxy - pairs.goal_xyxy).square().sum(1) / (height**2 + width**2)


@part("box", c=Range(0, 1e4, above=True), share=Range(0, 1, above=True))
def nwd(pairs: Pairs, c: float = 12.7, share: float = 1.0) -> Tensor:
    """exp(-W / c), W the Wasserstein distance of the Gaussians that stand for the boxes: smooth for small objects, almost flat far away.

    Source: Wang et al. 2021, arxiv.org/abs/2110.13389
    Differs: `share` below 1 mixes it with CIoU, which pulls where the exponential is flat; the paper has it alone.

    Args:
        c: pixels of the network's input; about the mean size (root of the area) of the data set's objects.
    """
    difference = (pairs.predicted_wh - pairs.goal_wh) / 2
    distance = torch.linalg.vector_norm(torch.cat((pairs.apart, difference), 1), dim=1)  # its gradient at 0 is 0
    alike = torch.exp(-distance / c)
    return alike if share == 1 else share * alike + (1 - share) * ciou(pairs)


@part(
    "box",
    name="wiou",
    short=("wiou_v3", "wise_iou"),
    alpha=Range(1, 10, above=True),
    delta=Range(0, 20, above=True),
    momentum=Range(0, 1, above=True),
)
class WiseIoU:
    """1 - R (1 - IoU), R = exp(squared distance of the centres over that of the hull's diagonal, the latter without gradient).

    Version 3 multiplies the loss by beta / (delta alpha^(beta - delta)), beta = (1 - IoU) over its running mean: middling boxes count most.

    Source: Tong et al. 2023, arxiv.org/abs/2301.10051
    Differs: `momentum` is a number (the paper's follows from the run's length); the mean is that of the lead branch, starts at 1 and
        moves in training only. An assigner takes the measure without the factor, which says nothing of how good a box is.
    """

    def __init__(self, alpha: float = 1.9, delta: float = 3.0, momentum: float = 0.01) -> None:
        self.alpha, self.delta, self.momentum = alpha, delta, momentum
        self.mean = torch.ones(())

    def __call__(self, pairs: Pairs) -> Tensor:
        diagonal = pairs.hull_wh.detach().square().sum(1) + EPS
        return 1 - torch.exp(pairs.apart.square().sum(1) / diagonal) * (1 - pairs.iou)

    def factor(self, pairs: Pairs, learning: bool) -> Tensor:
        """Return what the loss is multiplied by, without gradient; `learning` moves the mean first."""
        missing = 1 - pairs.iou.detach()
        self.mean = self.mean.to(missing.device)
        if learning and len(missing):
            moved = self.mean.lerp(missing.mean().to(self.mean.dtype), self.momentum)
            self.mean = torch.where(moved.isfinite(), moved, self.mean)
        beta = missing / self.mean.clamp(min=LEAST_MEAN)
        return beta / self.delta * self.alpha ** (self.delta - beta)


@part("wrap", ratio=Range(0, 10, above=True))
def inner(pairs: Pairs, overlap: Tensor, ratio: float = 0.8) -> Tensor:
    """Replaces IoU by that of both boxes scaled by `ratio` about their centres: below 1 stricter, above 1 milder.

    Source: Zhang et al. 2023, arxiv.org/abs/2311.02877
    Differs: CIoU's weight of the aspect term stays that of the plain IoU, as in the authors' code.
    """
    return Pairs(scaled(pairs.predicted_xyxy, ratio), scaled(pairs.goal_xyxy, ratio), pairs.image_hw).iou


@part("wrap", order=("d", "u"), d=Range(0, 1), u=Range(0, 1))
def focaler(pairs: Pairs, overlap: Tensor, d: float = 0.0, u: float = 0.95) -> Tensor:
    """Replaces IoU by (IoU - d) / (u - d), kept within 0 and 1: all of the slope lies between d and u.

    Source: Zhang & Zhang 2024, arxiv.org/abs/2401.10525
    """
    return ((overlap - d) / (u - d)).clamp(0, 1)


def scaled(boxes_xyxy: Tensor, ratio: float) -> Tensor:
    """(P, 4) corners to those of boxes with the same centres and `ratio` times the size."""
    centre, half = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * (ratio / 2)
    return torch.cat((centre - half, centre + half), 1)


class BoxLoss:
    """A measure with its wrappers: 1 - measure + IoU - wrapped IoU.

    Args:
        measure: a call of a part "box".
        wraps: calls of parts "wrap"; whatever their order, `inner` changes the boxes and then `focaler` the value.
    """

    def __init__(self, measure: Call, wraps: Sequence[Call] = ()) -> None:
        self.measure: Callable[[Pairs], Tensor] = measure.build()
        ordered = sorted(wraps, key=lambda call: call.part.make is focaler)
        self.wraps: list[Callable[[Pairs, Tensor], Tensor]] = [call.build() for call in ordered]

    def __call__(self, pairs: Pairs, learning: bool = False) -> Tensor:
        """Return the loss (P,) of each pair.

        Args:
            learning: state, if there is any, takes this batch in.
        """
        loss = 1 - self.measure(pairs)
        if isinstance(self.measure, WiseIoU):
            loss = self.measure.factor(pairs, learning) * loss
        return loss - self.gain(pairs) if self.wraps else loss

    def overlap(self, goal_xyxy: Tensor, predicted_xyxy: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """Return (P,) how alike boxes are, in the form that assigners take: object first, and without Wise-IoU's factor."""
        pairs = Pairs(predicted_xyxy, goal_xyxy, image_hw)
        alike = self.measure(pairs)
        return alike + self.gain(pairs) if self.wraps else alike

    @property
    def is_default(self) -> bool:
        """Whether this is CIoU alone, that by which assigners compare of themselves."""
        return self.measure is ciou and not self.wraps

    def gain(self, pairs: Pairs) -> Tensor:
        """Return (P,) wrapped IoU less IoU."""
        overlap = pairs.iou
        for wrap in self.wraps:
            overlap = wrap(pairs, overlap)
        return overlap - pairs.iou

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run has to go on with; empty for a measure without state."""
        return {"mean": self.measure.mean.cpu().clone()} if isinstance(self.measure, WiseIoU) else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        if isinstance(self.measure, WiseIoU) and "mean" in state:
            self.measure.mean = state["mean"].clone()
