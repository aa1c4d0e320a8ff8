"""Class-activation maps: where in a layer's output a detector's class scores come from.

Grad-CAM averages the gradient over the whole map and weighs the channels with these means. That suits a classifier,
which scores the whole image. A detector scores places: the mean would also highlight cells that look like a detection
but do not contribute to it. HiResCAM multiplies gradient and activation cell by cell. A cell that the score does not
depend on is exactly zero; where the rest of the network is linear, the cells add up to the score.

Source: Draelos and Carin 2020, HiResCAM, arxiv.org/abs/2011.08891; after Selvaraju et al. 2017, Grad-CAM,
    arxiv.org/abs/1610.02391.
Differs: the score is the sum of the class log-odds of a detector's detections. With probabilities p, the gradient would
    have a factor p (1 - p), and confident detections would be darker than doubtful ones. (Grad-CAM also takes the score
    before the softmax.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.geometry.nms import non_max_suppression


@dataclass
class Score:
    """The number that a class-activation map explains.

    Attributes:
        value: scalar, with its autograd graph.
        detections: (n, 6) corners in pixels of the network's input, probability, class; most confident first.
        strongest: without a detection, the class that the score belongs to and its highest probability; else None.
    """

    value: Tensor
    detections: Tensor
    strongest: tuple[int, float] | None


def kept_detections(
    prediction: Tensor,
    nc: int,
    conf_thres: float | Sequence[float],
    iou_thres: float,
    max_det: int,
    classes: Sequence[int] | None,
    agnostic: bool,
) -> tuple[Tensor, Tensor]:
    """Return the detections of one image after non-maximum suppression, (n, 6), and their anchor points, (n,) int64.

    Args:
        prediction: (1, 4 + nc (+ nm), A), see `non_max_suppression`.
    """
    anchors = torch.arange(prediction.shape[2], device=prediction.device, dtype=torch.float32)  # exact below 2 ** 24
    numbered = torch.cat((prediction[:, : 4 + nc].float(), anchors[None, None]), 1)
    rows = non_max_suppression(numbered, nc, conf_thres, iou_thres, max_det, classes, agnostic)[0]
    return rows[:, :6], rows[:, 6].long()


def class_score(logits: Tensor, detections: Tensor, anchors: Tensor, classes: Sequence[int] | None = None) -> Score:
    """Sum the class log-odds of the detections; without any, the probabilities of the strongest class.

    Args:
        logits: (K, A) class log-odds, with their autograd graph.
        detections: (n, 6), see `Score`.
        anchors: (n,) their anchor points.
        classes: class numbers that the strongest class is chosen from; None for all.
    """
    if len(detections):
        return Score(logits[detections[:, 5].long(), anchors].sum(), detections, None)
    highest = logits.detach().amax(1)
    allowed = range(len(highest)) if classes is None else classes
    strongest = max(allowed, key=lambda number: float(highest[number]))
    return Score(logits[strongest].sigmoid().sum(), detections, (strongest, float(highest[strongest].sigmoid())))


def activation_maps(score: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Compute the class-activation map of each layer for one image.

    Args:
        score: scalar.
        outputs: (1, C, h, w) outputs of layers by label, in the score's graph.
    Returns:
        (h, w) maps: activation times gradient, summed over the channels, negative sums set to 0. None for a layer that
        the score does not depend on.
    """
    if not outputs:
        return {}
    gradients = torch.autograd.grad(score, list(outputs.values()), allow_unused=True)
    return {
        label: None if gradient is None else (output.detach() * gradient)[0].sum(0).clamp(min=0)
        for (label, output), gradient in zip(outputs.items(), gradients, strict=True)
    }
