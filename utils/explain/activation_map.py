"""Class-activation maps: where in a layer's output a detector's class scores come from.

Source: Draelos and Carin 2020, HiResCAM, arxiv.org/abs/2011.08891; after Selvaraju et al. 2017, Grad-CAM, arxiv.org/abs/1610.02391.

Grad-CAM averages the gradient over the whole map before it weighs the channels. A classifier sees an image as a whole and may do
that; a detector's scores belong to places, and the average also lights up what looks like a detection elsewhere but added nothing to
it. HiResCAM multiplies gradient and activation cell by cell: a cell that the scores do not depend on is exactly zero, and where the
rest of the network is linear the cells add up to the score.
Differs: the score is that of a detector, summed over its detections, and of class log-odds. The gradient of a probability p has a
factor p (1 - p): sure detections would vanish behind doubtful ones. (Grad-CAM takes the score before the softmax, too.)
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
        value: scalar, with its graph.
        detections: (n, 6) corners in pixels of the network's input, probability, class; most confident first.
        strongest: the class that was taken where there is no detection, and its highest probability; None where there are some.
    """

    value: Tensor
    detections: Tensor
    strongest: tuple[int, float] | None


def kept_detections(
    prediction: Tensor,
    nc: int,
    conf_thres: float,
    iou_thres: float,
    max_det: int,
    classes: Sequence[int] | None,
    agnostic: bool,
) -> tuple[Tensor, Tensor]:
    """Return what non-maximum suppression keeps of one image, (n, 6), and the anchor point of each, (n,) int64.

    Args:
        prediction: (1, 4 + nc (+ nm), A), see `non_max_suppression`.
    """
    places = torch.arange(prediction.shape[2], device=prediction.device, dtype=torch.float32)[
        None, None
    ]  # exact below 2 ** 24
    numbered = torch.cat((prediction[:, : 4 + nc].float(), places), 1)
    rows = non_max_suppression(numbered, nc, conf_thres, iou_thres, max_det, classes, agnostic)[0]
    return rows[:, :6], rows[:, 6].long()


def class_score(logits: Tensor, detections: Tensor, anchors: Tensor, classes: Sequence[int] | None = None) -> Score:
    """Return the class log-odds of the detections, added up; without any, the probability of the strongest class at all anchor points.

    Args:
        logits: (K, A) class log-odds, with their graph.
        detections: (n, 6), see `Score`.
        anchors: (n,) their anchor points.
        classes: class numbers that may be the strongest; None for all.
    """
    if len(detections):
        return Score(logits[detections[:, 5].long(), anchors].sum(), detections, None)
    highest = logits.detach().amax(1)
    allowed = range(len(highest)) if classes is None else classes
    strongest = max(allowed, key=lambda number: float(highest[number]))
    return Score(logits[strongest].sigmoid().sum(), detections, (strongest, float(highest[strongest].sigmoid())))


def activation_maps(score: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Return the class-activation map of each layer, for one image.

    Args:
        score: scalar.
        outputs: (1, C, h, w) outputs of layers by label, in the score's graph.
    Returns:
        (h, w) maps, the positive part of activation times gradient, summed over the channels; None where the score does not depend on
        the layer.
    """
    if not outputs:
        return {}
    gradients = torch.autograd.grad(score, list(outputs.values()), allow_unused=True)
    return {
        label: None if gradient is None else (output.detach() * gradient)[0].sum(0).clamp(min=0)
        for (label, output), gradient in zip(outputs.items(), gradients, strict=True)
    }
