"""Non-maximum suppression: from the network's dense predictions to a short list of boxes an image."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.geometry.boxes import box_iou, cxcywh_to_xyxy

BLOCK = 512  # boxes whose mutual overlaps are held at once
MANY_ON_CPU = 2048  # from here on stopping at max_det, which torchvision cannot, is worth more than its speed


def non_max_suppression(
    prediction: Tensor,
    nc: int,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_candidates: int = 30000,
) -> list[Tensor]:
    """Return the boxes of each image that survive, most confident first; equal scores keep the order of anchors.

    Args:
        prediction: (B, 4 + nc + nm, A) centre x, centre y, width, height in pixels, class probabilities, mask coefficients.
        nc: number of classes.
        conf_thres: a box counts when its probability is above this.
        iou_thres: of two boxes of one class that overlap more than this, the less confident one goes.
        max_det: most boxes an image.
        classes: class indices to keep; None keeps all.
        agnostic: boxes of different classes suppress each other too.
        multi_label: an anchor gives one box for every class above `conf_thres`, not only for its best one.
        max_candidates: most boxes an image that go into the suppression.

    Returns:
        B tensors (n, 6 + nm), at least float32: x1, y1, x2, y2 in pixels, probability, class index, mask coefficients.
    """
    scores = prediction[:, 4 : 4 + nc]
    above = scores.amax(1) > conf_thres  # (B, A): the rest is never copied
    rows = []
    for image, anchors in zip(prediction, above, strict=True):
        candidates = image[:, anchors].T
        candidates = candidates.to(torch.promote_types(candidates.dtype, torch.float32))
        candidates = _one_class_each(candidates, nc, conf_thres, multi_label)
        if classes is not None:
            candidates = candidates[torch.isin(candidates[:, 5], candidates.new_tensor(list(classes)))]
        candidates = candidates[candidates[:, :4].isfinite().all(1)]
        order = candidates[:, 4].sort(stable=True, descending=True).indices[:max_candidates]
        candidates = candidates[order]
        rows.append(candidates[suppress(candidates[:, :4], None if agnostic else candidates[:, 5], iou_thres, max_det)])
    return rows


def _one_class_each(candidates: Tensor, nc: int, conf_thres: float, multi_label: bool) -> Tensor:
    """(n, 4 + nc + nm) cxcywh, probabilities, coefficients to (m, 6 + nm) xyxy, probability, class, coefficients."""
    boxes, scores, coefficients = candidates.split((4, nc, candidates.shape[1] - 4 - nc), 1)
    boxes = cxcywh_to_xyxy(boxes)
    if multi_label and nc > 1:
        anchor, label = (scores > conf_thres).nonzero(as_tuple=True)
        return torch.cat(
            (boxes[anchor], scores[anchor, label, None], label[:, None].to(scores.dtype), coefficients[anchor]), 1
        )
    best, label = scores.max(1, keepdim=True)
    return torch.cat((boxes, best, label.to(scores.dtype), coefficients), 1)


def suppress(boxes_xyxy: Tensor, labels: Tensor | None, iou_thres: float, max_det: int) -> Tensor:
    """Return the rows that stay, ascending, of boxes sorted by falling confidence.

    Args:
        boxes_xyxy: (n, 4) finite corners in pixels.
        labels: (n) class indices; boxes of different classes never meet. None: all meet.
        iou_thres: overlap above which the later box goes.
        max_det: most rows to return.
    """
    if len(boxes_xyxy) < 2:
        return torch.arange(min(len(boxes_xyxy), max_det), device=boxes_xyxy.device)
    if labels is not None:
        if boxes_xyxy.device.type != "mps":  # no float64 there; elsewhere the offset must not cost digits of the boxes
            boxes_xyxy = boxes_xyxy.double()
        span = boxes_xyxy.max() - boxes_xyxy.min() + 1
        boxes_xyxy = boxes_xyxy + labels.to(boxes_xyxy.dtype)[:, None] * span
    fast = torchvision_nms(boxes_xyxy.device.type)
    if fast is None or (boxes_xyxy.device.type == "cpu" and len(boxes_xyxy) > MANY_ON_CPU):
        return greedy_nms(boxes_xyxy, iou_thres, max_det)
    falling = torch.arange(
        len(boxes_xyxy), 0, -1, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype
    )  # no ties left to torchvision
    return fast(boxes_xyxy, falling, iou_thres)[:max_det]


@functools.cache
def torchvision_nms(device_type: str) -> Callable[[Tensor, Tensor, float], Tensor] | None:
    """Return torchvision's operator where it is installed and works on this kind of device, else None.

    A torchvision built for another torch is common: it fails on import or at the first call, and that is no reason to fail here.
    """
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4, device=device_type), torch.ones(1, device=device_type), 0.5)
    except (ImportError, RuntimeError, AttributeError, OSError):
        return None
    return nms


def greedy_nms(boxes_xyxy: Tensor, iou_thres: float, max_det: int) -> Tensor:
    """Return the rows that exact greedy suppression keeps, of boxes sorted by falling confidence; memory is linear in n."""
    kept_rows: list[Tensor] = []
    kept_boxes = boxes_xyxy[:0]
    for start in range(0, len(boxes_xyxy), BLOCK):
        block = boxes_xyxy[start : start + BLOCK]
        alive = (box_iou(block, kept_boxes) <= iou_thres).all(1)
        rows = alive.nonzero()[:, 0]
        rows = rows[_survivors(box_iou(block[rows], block[rows]) > iou_thres)]
        kept_rows.append(rows + start)
        kept_boxes = torch.cat((kept_boxes, block[rows]))
        if len(kept_boxes) >= max_det:
            break
    return torch.cat(kept_rows)[:max_det] if kept_rows else torch.zeros(0, dtype=torch.long, device=boxes_xyxy.device)


def _survivors(overlaps: Tensor) -> Tensor:
    """(n, n) 'these two overlap' to (n) 'this one stays', earlier rows first.

    A row stays when no earlier row that stays overlaps it. Iterating that sentence settles row k after at most k rounds, and in practice
    after as many as the longest chain of overlapping boxes.
    """
    overlaps = overlaps.triu(1)
    stays = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    while True:
        update = ~(overlaps & stays[:, None]).any(0)
        if torch.equal(update, stays):
            return stays
        stays = update
