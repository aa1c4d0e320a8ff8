"""Box losses and their wrappers by name: the IoU family and its relatives.

A measure compares predicted boxes with their objects: 1 for a perfect box, less for others; the loss is 1 minus it.
Boxes are in pixels. docs/losses.md lists all measures. Each adds EPS to what it divides by, so that values and
gradients are finite for boxes without width or height.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from utils.geometry.boxes import EPS, complete_iou, intersection_and_union, paired_iou
from utils.losses.parts import Call, Range, part

LEAST_MEAN = 1e-3
"""Lower bound of Wise-IoU's running mean."""


def alone(value: Tensor) -> Tensor:
    """Return the sum over the ranks in a process alone."""
    return value


@dataclass
class Pairs:
    """Predicted boxes with their objects, and the terms that measures share; each is computed once, when it is used.

    Args:
        predicted_xyxy, goal_xyxy: (P, 4) pixels.
        image_hw: height and width of the network's input, pixels.
        summed: adds a tensor up over the ranks of a run; a measure with a state uses it, so that all ranks agree.
    """

    predicted_xyxy: Tensor
    goal_xyxy: Tensor
    image_hw: tuple[int, int]
    summed: Callable[[Tensor], Tensor] = alone

    @cached_property
    def predicted_wh(self) -> Tensor:
        """(P, 2) width and height."""
        return self.predicted_xyxy[:, 2:] - self.predicted_xyxy[:, :2]

    @cached_property
    def goal_wh(self) -> Tensor:
        """(P, 2) width and height."""
        return self.goal_xyxy[:, 2:] - self.goal_xyxy[:, :2]

    @cached_property
    def areas(self) -> tuple[Tensor, Tensor]:
        """(P,) area that both cover, and (P,) area that either covers."""
        return intersection_and_union(self.predicted_xyxy, self.goal_xyxy)

    @cached_property
    def iou(self) -> Tensor:
        """(P,) intersection over union."""
        intersection, union = self.areas
        return intersection / (union + EPS)

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


@part(short=("complete_iou",))
def ciou(pairs: Pairs) -> Tensor:
    """IoU less the squared distance of the centres over the hull's squared diagonal, less a term for the aspect ratios.

    Source: Zheng et al. 2020, arxiv.org/abs/1911.08287, eq. (10)
    Differs: see `utils.geometry.boxes.complete_iou`, which computes it.
    """
    return complete_iou(pairs.predicted_xyxy, pairs.goal_xyxy)


@part()
def iou(pairs: Pairs) -> Tensor:
    """Intersection over union; boxes that do not meet have no gradient.

    Source: Yu et al. 2016, arxiv.org/abs/1608.01471
    Differs: the loss is 1 - IoU and not its logarithm.
    """
    return pairs.iou


@part()
def giou(pairs: Pairs) -> Tensor:
    """IoU less the share of the hull that neither box covers.

    Source: Rezatofighi et al. 2019, arxiv.org/abs/1902.09630, algorithm 1
    """
    hull, (_, union) = pairs.hull_wh.prod(1), pairs.areas
    return pairs.iou - (hull - union) / (hull + EPS)


@part()
def diou(pairs: Pairs) -> Tensor:
    """IoU less the squared distance of the centres over the squared diagonal of the hull.

    Source: Zheng et al. 2020, arxiv.org/abs/1911.08287
    """
    return pairs.iou - pairs.apart.square().sum(1) / (pairs.hull_wh.square().sum(1) + EPS)


@part()
def eiou(pairs: Pairs) -> Tensor:
    """DIoU less the squared differences of width and height, each over the hull's.

    Source: Zhang et al. 2021, arxiv.org/abs/2101.08158
    Differs: without the paper's focal weight IoU^gamma (Focal-EIoU).
    """
    size = (pairs.predicted_wh - pairs.goal_wh).square() / (pairs.hull_wh.square() + EPS)
    return diou(pairs) - size.sum(1)


@part(theta=Range(2, 6))
def siou(pairs: Pairs, theta: float = 4.0) -> Tensor:
    """IoU less half of a distance cost, weighted by the direction between the centres, and half of a shape cost.

    Source: Gevorgyan 2022, arxiv.org/abs/2205.12740
    Differs: the angle cost 1 - 2 sin^2(arcsin(sin a) - pi/4) is computed as 2 |dx dy| / (dx^2 + dy^2), which is equal.
        The gradient of arcsin is infinite where one centre is above the other.
    """
    squared = pairs.apart.square()
    angle = 2 * pairs.apart.prod(1).abs() / (squared.sum(1) + EPS)
    distance = (1 - torch.exp((angle - 2)[:, None] * squared / (pairs.hull_wh.square() + EPS))).sum(1)
    shape = (1 - torch.exp(-pairs.size_difference)).pow(theta).sum(1)
    return pairs.iou - (distance + shape) / 2


@part(scale=Range(0, 5))
def shape_iou(pairs: Pairs, scale: float = 0.0) -> Tensor:
    """IoU less distance and shape costs whose directions are weighted by the object's shape.

    Args:
        scale: s; the paper uses 0 to 1.5, more for smaller objects; 0 weights both directions equally.
    Source: Zhang & Zhang 2023, arxiv.org/abs/2312.17663
    Differs: the weights 2 w^s / (w^s + h^s) are computed as 2 / (1 + (h / w)^s), which does not overflow.
    """
    log_wh = pairs.goal_wh.clamp(min=EPS).log()
    weight_w = 2 * torch.sigmoid(scale * (log_wh[:, 0] - log_wh[:, 1]))
    weights = torch.stack((2 - weight_w, weight_w), 1)  # x and w have the height's weight, y and h the width's
    distance = (weights * pairs.apart.square()).sum(1) / (pairs.hull_wh.square().sum(1) + EPS)
    shape = (1 - torch.exp(-weights * pairs.size_difference)).pow(4).sum(1)
    return pairs.iou - distance - shape / 2


@part()
def mpdiou(pairs: Pairs) -> Tensor:
    """IoU less the squared distances of both corners, over the squared diagonal of the network's input.

    Source: Ma & Xu 2023, arxiv.org/abs/2307.07662, algorithm 1
    """
    height, width = pairs.image_hw
    return pairs.iou - (pairs.predicted_xyxy - pairs.goal_xyxy).square().sum(1) / (height**2 + width**2)


@part(c=Range(0, 1e4, above=True), share=Range(0, 1, above=True))
def nwd(pairs: Pairs, c: float = 12.7, share: float = 1.0) -> Tensor:
    """exp(-W / c), W the Wasserstein distance of Gaussians fitted to the boxes: smooth for small objects.

    Args:
        c: pixels of the network's input; about the mean size (root of the area) of the data set's objects.
        share: weight of this measure; the rest is CIoU.
    Source: Wang et al. 2021, arxiv.org/abs/2110.13389
    Differs: `share` below 1 adds CIoU, which has a gradient where the exponential is flat; the paper has none.
    """
    difference = (pairs.predicted_wh - pairs.goal_wh) / 2
    distance = torch.linalg.vector_norm(torch.cat((pairs.apart, difference), 1), dim=1)  # its gradient at 0 is 0
    likeness = torch.exp(-distance / c)
    return likeness if share == 1 else share * likeness + (1 - share) * ciou(pairs)


class Measure:
    """A box measure; one with state, or with another loss than 1 minus itself, is a subclass of this.

    Args:
        measure: function of a part without state.
    """

    def __init__(self, measure: Callable[[Pairs], Tensor]) -> None:
        self.measure = measure

    def __call__(self, pairs: Pairs) -> Tensor:
        """Compare boxes: (P,), 1 for a perfect one."""
        return self.measure(pairs)

    def loss(self, pairs: Pairs) -> Tensor:
        """Return the loss (P,)."""
        return 1 - self(pairs)

    def update(self, pairs: Pairs) -> None:
        """Update the state by the lead branch's positives of a training batch."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; an older checkpoint may lack it."""


@part(
    name="wiou",
    short=("wiou_v3", "wise_iou"),
    alpha=Range(1, 10, above=True),
    delta=Range(0, 20, above=True),
    momentum=Range(0, 1, above=True),
)
class WiseIoU(Measure):
    """1 - R (1 - IoU), R = exp(squared distance of the centres over the hull's squared diagonal, the latter detached).

    Version 3 multiplies the loss by beta / (delta alpha^(beta - delta)), where beta is 1 - IoU over its running mean:
    boxes of middling quality count most.

    Source: Tong et al. 2023, arxiv.org/abs/2301.10051
    Differs: `momentum` is a number, where the paper derives it from the length of the run. The mean is that of the lead
        branch, starts at 1 and is updated in training only. Assigners use the measure without the factor, which does
        not tell how good a box is.
    """

    def __init__(self, alpha: float = 1.9, delta: float = 3.0, momentum: float = 0.01) -> None:
        self.alpha, self.delta, self.momentum = alpha, delta, momentum
        self.mean = torch.ones(())

    def __call__(self, pairs: Pairs) -> Tensor:
        diagonal = pairs.hull_wh.detach().square().sum(1) + EPS
        return 1 - torch.exp(pairs.apart.square().sum(1) / diagonal) * (1 - pairs.iou)

    def loss(self, pairs: Pairs) -> Tensor:
        """Return the loss (P,), multiplied by the focusing factor (without gradient)."""
        beta = (1 - pairs.iou.detach()) / self.mean.to(pairs.iou.device).clamp(min=LEAST_MEAN)
        return beta / self.delta * self.alpha ** (self.delta - beta) * (1 - self(pairs))

    def update(self, pairs: Pairs) -> None:
        """Move the running mean; a batch without positives or with values that are not finite leaves it."""
        missing = 1 - pairs.iou.detach()
        self.mean = self.mean.to(missing.device)
        total, count = pairs.summed(torch.stack((missing.sum(), missing.new_tensor(len(missing)))))
        moved = self.mean.lerp((total / count).to(self.mean.dtype), self.momentum)
        self.mean = torch.where(moved.isfinite(), moved, self.mean)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean.cpu().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"].clone() if "mean" in state else self.mean


@part(ratio=Range(0, 10, above=True))
def inner(pairs: Pairs, overlap: Tensor, ratio: float = 0.8) -> Tensor:
    """Replace IoU by that of both boxes scaled by `ratio` about their centres: below 1 stricter, above 1 milder.

    Source: Zhang et al. 2023, arxiv.org/abs/2311.02877
    Differs: CIoU's weight of the aspect term stays that of the plain IoU, as in the authors' code.
    """
    return paired_iou(scaled(pairs.predicted_xyxy, ratio), scaled(pairs.goal_xyxy, ratio))


@part(ascending=("d", "u"), rank=1, d=Range(0, 1), u=Range(0, 1))
def focaler(pairs: Pairs, overlap: Tensor, d: float = 0.0, u: float = 0.95) -> Tensor:
    """Replace IoU by (IoU - d) / (u - d), clamped to [0, 1]: it rises from 0 at d to 1 at u.

    Source: Zhang & Zhang 2024, arxiv.org/abs/2401.10525
    """
    return ((overlap - d) / (u - d)).clamp(0, 1)


def scaled(boxes_xyxy: Tensor, ratio: float) -> Tensor:
    """Scale boxes (P, 4) by `ratio` about their centres."""
    centre, half = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * (ratio / 2)
    return torch.cat((centre - half, centre + half), 1)


class BoxLoss:
    """A measure with its wrappers: 1 - measure + IoU - wrapped IoU.

    Args:
        measure: a box loss.
        wraps: wrappers, in any order: `inner`, which changes the boxes, is applied before `focaler`.
    """

    def __init__(self, measure: Call, wraps: Sequence[Call] = ()) -> None:
        made = measure.build()
        self.measure: Measure = made if isinstance(made, Measure) else Measure(made)
        ordered = sorted(wraps, key=lambda call: call.part.rank)
        self.wraps: list[Callable[[Pairs, Tensor], Tensor]] = [call.build() for call in ordered]

    def __call__(self, pairs: Pairs, learning: bool = False) -> Tensor:
        """Return the loss (P,) of each pair.

        Args:
            learning: update the measure's state by this batch first.
        """
        if learning:
            self.measure.update(pairs)
        loss = self.measure.loss(pairs)
        return loss - self.gain(pairs) if self.wraps else loss

    def overlap(self, goal_xyxy: Tensor, predicted_xyxy: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """Compare objects with predicted boxes (P, 4) as assigners do: the measure (P,) with its wrappers."""
        pairs = Pairs(predicted_xyxy, goal_xyxy, image_hw)
        overlap = self.measure(pairs)
        return overlap + self.gain(pairs) if self.wraps else overlap

    def gain(self, pairs: Pairs) -> Tensor:
        """Return wrapped IoU less IoU (P,)."""
        overlap = pairs.iou
        for wrap in self.wraps:
            overlap = wrap(pairs, overlap)
        return overlap - pairs.iou

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the measure; empty for most."""
        return self.measure.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.measure.load_state_dict(state)
