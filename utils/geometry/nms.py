"""Non-maximum suppression: from the predictions at all anchor points to a short list of boxes for each image."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.errors import SettingsError
from utils.geometry.boxes import cxcywh_to_xyxy
from utils.wording import first_line

FIRST_ON_CPU = 512
"""On a CPU, suppression starts with this many boxes and doubles them until `max_det` stay (times: docs/LOG.md)."""
MOST_CANDIDATES = 30000
"""Most boxes of an image that enter the suppression; the least confident ones are dropped."""


def non_max_suppression(
    prediction: Tensor,
    nc: int,
    conf_thres: float | Sequence[float] = 0.25,
    iou_thres: float = 0.45,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
) -> list[Tensor]:
    """Return the boxes that stay in each image, most confident first; equal scores keep the order of anchor points.

    Args:
        prediction: (B, 4 + nc + nm, A): centre x, centre y, width, height in pixels, class probabilities, mask
            coefficients.
        nc: number of classes.
        conf_thres: confidence threshold, or one for each class; a box must be above that of its class.
        iou_thres: IoU above which the less confident of two boxes of a class is dropped.
        max_det: most boxes of an image.
        classes: class indices to keep; None keeps all.
        agnostic: let boxes of different classes suppress each other too.
        multi_label: return one box for every class above `conf_thres` at an anchor point, not only for the best class.

    Returns:
        B tensors (n, 6 + nm), at least float32: x1, y1, x2, y2 in pixels, probability, class index, mask coefficients.
    """
    scores = prediction[:, 4 : 4 + nc]
    limits = conf_thres if isinstance(conf_thres, float | int) else scores.new_tensor(conf_thres, dtype=torch.float32)
    if isinstance(limits, Tensor):
        above = (scores > limits[:, None]).any(1)  # (B, A): the rest is never copied
    else:
        above = scores.amax(1) > limits
    rows = []
    for image, anchors in zip(prediction, above, strict=True):
        candidates = image[:, anchors].T
        candidates = candidates.to(torch.promote_types(candidates.dtype, torch.float32))
        candidates = _one_class_each(candidates, nc, limits, multi_label)
        if classes is not None:
            candidates = candidates[torch.isin(candidates[:, 5], candidates.new_tensor(list(classes)))]
        candidates = candidates[candidates[:, :4].isfinite().all(1)]
        order = candidates[:, 4].sort(stable=True, descending=True).indices[:MOST_CANDIDATES]
        candidates = candidates[order]
        rows.append(candidates[suppress(candidates[:, :4], None if agnostic else candidates[:, 5], iou_thres, max_det)])
    return rows


def _one_class_each(candidates: Tensor, nc: int, limits: float | Tensor, multi_label: bool) -> Tensor:
    """Split anchor points into boxes of one class each.

    Args:
        candidates: (n, 4 + nc + nm) centre and size, probabilities, mask coefficients.
        nc, multi_label: as for `non_max_suppression`.
        limits: confidence threshold, or (nc) thresholds.
    Returns:
        (m, 6 + nm) corners, probability, class index, mask coefficients.
    """
    boxes, scores, coefficients = candidates.split((4, nc, candidates.shape[1] - 4 - nc), 1)
    boxes = cxcywh_to_xyxy(boxes)
    if multi_label and nc > 1:
        anchor, label = (scores > limits).nonzero(as_tuple=True)
        return torch.cat(
            (boxes[anchor], scores[anchor, label, None], label[:, None].to(scores.dtype), coefficients[anchor]), 1
        )
    best, label = scores.max(1, keepdim=True)
    rows = torch.cat((boxes, best, label.to(scores.dtype), coefficients), 1)
    return rows[best[:, 0] > limits[label[:, 0]]] if isinstance(limits, Tensor) else rows


def suppress(boxes_xyxy: Tensor, labels: Tensor | None, iou_thres: float, max_det: int) -> Tensor:
    """Return the rows that stay, ascending, of boxes sorted by descending confidence.

    Args:
        boxes_xyxy: (n, 4) finite corners in pixels.
        labels: (n) class indices; only boxes of the same class suppress each other. None ignores classes.
        iou_thres: IoU above which the later box is dropped.
        max_det: most rows to return.
    """
    count = len(boxes_xyxy)
    if count < 2:
        return torch.arange(min(count, max_det), device=boxes_xyxy.device)
    if labels is not None:
        if boxes_xyxy.device.type != "mps":  # it has no float64; elsewhere the offset must not cost precision
            boxes_xyxy = boxes_xyxy.double()
        span = boxes_xyxy.max() - boxes_xyxy.min() + 1
        boxes_xyxy = boxes_xyxy + labels.to(boxes_xyxy.dtype)[:, None] * span
    nms = torchvision_nms(boxes_xyxy.device.type)
    order = torch.arange(count, 0, -1, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)  # scores without ties
    size = FIRST_ON_CPU if boxes_xyxy.device.type == "cpu" else count
    while True:  # later boxes cannot suppress earlier ones
        stays = nms(boxes_xyxy[:size], order[:size], iou_thres)
        if len(stays) >= max_det or size >= count:
            return stays[:max_det]
        size *= 2


@functools.cache
def torchvision_nms(device_type: str) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return torchvision's operator after one trial on this type of device.

    Raises:
        SettingsError: torchvision is missing, or was built for another torch.
    """
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4, device=device_type), torch.ones(1, device=device_type), 0.5)
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise SettingsError(
            f"torchvision: non-maximum suppression fails on '{device_type}' ({first_line(error)}): expected the build "
            f"for torch {torch.__version__}; pip install -r requirements.txt"
        ) from error
    return nms
