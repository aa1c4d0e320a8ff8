"""Mask loss of instance segmentation: binary cross-entropy of each positive's mask inside its object's box.

Source: Bolya et al. 2019, YOLACT, arxiv.org/abs/1904.02689, section 3.1. Differs: the mean over the whole map is
divided by the box's share of the image, so that objects of all sizes count equally.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 1 << 22
"""Mask pixels computed at once: memory does not grow with the number of positives."""

LEAST_SHARE = 1e-9
"""Lower bound of a box's share of the image."""


def fitted_maps(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize index maps (B, h, w) to the prototypes' size, which multi-scale training changes."""
    if tuple(maps.shape[1:]) == tuple(size_hw):
        return maps
    return functional.interpolate(maps[:, None].float(), size_hw, mode="nearest-exact")[:, 0].to(maps.dtype)


def mask_loss(
    coefficients: Tensor,
    prototypes: Tensor,
    image: Tensor,
    number: Tensor,
    boxes_xyxy: Tensor,
    maps: Tensor,
    image_hw: tuple[int, int],
    count: Tensor | None = None,
) -> Tensor:
    """Average over positives the cross-entropy inside the object's box, divided by the box's area.

    Args:
        coefficients: (P, M) of each positive.
        prototypes: (B, M, h, w).
        image: (P,) image of each positive.
        number: (P,) value of the object's pixels in the index map.
        boxes_xyxy: (P, 4) objects, pixels; in cells of the map, columns x1 <= x < x2 are inside, rows likewise.
        maps: (B, h, w) integer index maps.
        image_hw: height and width of the network's input, pixels.
        count: number of positives of all ranks, at least 1; None for P.
    Returns:
        A scalar; without positives 0, with gradients of 0.
    """
    height, width = prototypes.shape[2:]
    boxes_norm = boxes_xyxy / boxes_xyxy.new_tensor((image_hw[1], image_hw[0]) * 2)
    cells = boxes_norm * boxes_norm.new_tensor((width, height) * 2)
    share = (boxes_norm[:, 2:] - boxes_norm[:, :2]).prod(1).clamp(min=LEAST_SHARE)
    weight = 1 / (share * height * width * (max(len(image), 1) if count is None else count))
    return _CroppedCrossEntropy.apply(coefficients, prototypes, image, number, cells, weight, maps)


class _CroppedCrossEntropy(torch.autograd.Function):
    """Weighted sum of the cross-entropies; forward computes the gradients too, so no mask is kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        coefficients: Tensor,
        prototypes: Tensor,
        image: Tensor,
        number: Tensor,
        cells: Tensor,
        weight: Tensor,
        maps: Tensor,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad[:2])
        gradients = (torch.zeros_like(coefficients), torch.zeros_like(prototypes)) if wanted else None
        height, width = prototypes.shape[2:]
        column, row = torch.arange(width, device=cells.device), torch.arange(height, device=cells.device)
        order, total = image.argsort(stable=True), coefficients.new_zeros(())
        counts = torch.bincount(image, minlength=len(prototypes)).tolist()
        for number_in_batch, rows in enumerate(order.split(counts)):
            basis, marks = prototypes[number_in_batch].flatten(1), maps[number_in_batch].flatten()
            for part in rows.split(max(1, CHUNK // (height * width))):
                x1, y1, x2, y2 = cells[part, :, None].unbind(1)
                inside = ((row >= y1) & (row < y2))[:, :, None] & ((column >= x1) & (column < x2))[:, None]
                factor = inside.flatten(1) * weight[part, None]
                logits = coefficients[part] @ basis
                target = (marks == number[part, None]).to(logits.dtype)
                total += (functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * factor).sum()
                if gradients is not None:
                    slope = logits.sigmoid_().sub_(target).mul_(factor)
                    gradients[0][part] = slope @ basis.T
                    gradients[1][number_in_batch] += (coefficients[part].T @ slope).unflatten(1, (height, width))
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_coefficients, for_prototypes = ctx.saved_tensors
        return gradient * for_coefficients, gradient * for_prototypes, None, None, None, None, None
