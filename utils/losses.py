"""Detection loss: boxes by CIoU, classes by binary cross-entropy, box sides by distribution focal loss.

One code path for any number of branches: each is assigned and scored on its own, auxiliary ones weighted by `aux`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.heads import NUM_BINS, anchor_points
from utils.assign import assign
from utils.boxes import complete_iou, cxcywh_to_xyxy
from utils.config import Hyperparameters, load_hyperparameters


class DetectionLoss:
    """Callable `(outputs, batch) -> (total, items)` for one network.

    Args:
        stride: pixels per cell of each level.
        hyp: gains, auxiliary weight and assigner settings.
    """

    def __init__(self, stride: list[int], hyp: Hyperparameters) -> None:
        self.stride, self.hyp = stride, hyp

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Score every branch of a network's raw outputs.

        Args:
            outputs: {"main": maps, "aux": [maps, …]}, maps (B, 64 + K, h, w) per level.
            batch: "targets" (N, 6), and "images" (B, ch, H, W) or "image_hw".
        Returns:
            The batch size times the sum of the items, and the detached items box, cls and dfl, gains and weights included.
        """
        image_hw = tuple(batch["image_hw"]) if "image_hw" in batch else tuple(batch["images"].shape[-2:])
        items = self.branch(outputs["main"], batch["targets"], image_hw)
        for aux in outputs["aux"]:
            items = items + self.hyp.aux * self.branch(aux, batch["targets"], image_hw)
        total = items.sum() * outputs["main"][0].shape[0]
        return total, dict(zip(("box", "cls", "dfl"), items.detach(), strict=True))

    def branch(self, maps: list[Tensor], targets: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """Return the items (3,) of one branch: box, cls, dfl, gains included."""
        with torch.autocast(maps[0].device.type, enabled=False):
            flat = torch.cat([level.flatten(2).float() for level in maps], 2)  # (B, 64 + K, A)
            box_logits, class_logits = flat[:, : 4 * NUM_BINS], flat[:, 4 * NUM_BINS :]
            points, strides = anchor_points([tuple(level.shape[2:]) for level in maps], self.stride, flat)
            targets = targets.to(flat.device)
            scale = targets.new_tensor((image_hw[1], image_hw[0], image_hw[1], image_hw[0]))
            target_xyxy = cxcywh_to_xyxy(targets[:, 2:] * scale)
            found = assign(
                class_logits.detach(),
                decode(box_logits.detach(), points, strides),
                points,
                targets[:, 0].long(),
                targets[:, 1].long(),
                target_xyxy,
                self.hyp.tal_topk,
                self.hyp.tal_alpha,
                self.hyp.tal_beta,
            )
            normalizer = found.score.sum().clamp(min=1)
            positive_logits = class_logits[found.image, targets[found.target, 1].long(), found.anchor]
            cls = functional.softplus(class_logits).sum() - (positive_logits * found.score).sum()

            side_logits = box_logits[found.image, :, found.anchor]  # (P, 64)
            goal_xyxy, cell = target_xyxy[found.target], strides[found.anchor]
            predicted_xyxy = decode(side_logits.unsqueeze(2), points[found.anchor, None], cell[:, None]).squeeze(1)
            box = ((1 - complete_iou(predicted_xyxy, goal_xyxy)) * found.score).sum()
            dfl = (distribution_focal(side_logits, points[found.anchor], goal_xyxy, cell) * found.score).sum()
            gains = flat.new_tensor((self.hyp.box, self.hyp.cls, self.hyp.dfl))
            return torch.stack((box, cls, dfl)) * gains / normalizer


def decode(box_logits: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """(B, 64, A) side-major logits, points (…A, 2) and strides (…A, 1) in pixels, to (B, A, 4) corners in pixels."""
    probabilities = box_logits.unflatten(1, (4, NUM_BINS)).softmax(2)
    bins = torch.arange(NUM_BINS, dtype=box_logits.dtype, device=box_logits.device)
    distances = torch.einsum("bsra,r->bas", probabilities, bins) * strides
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)


def distribution_focal(side_logits: Tensor, points: Tensor, goal_xyxy: Tensor, strides: Tensor) -> Tensor:
    """Cross-entropy between each side's distribution and the two bins around its true distance, averaged over the sides.

    Args:
        side_logits: (P, 64) side-major; points (P, 2), goal_xyxy (P, 4) pixels; strides (P, 1).
    Returns:
        (P,)
    Source: Li et al. 2020, arxiv.org/abs/2006.04388, eq. (6).
    """
    goal = torch.cat((points - goal_xyxy[:, :2], goal_xyxy[:, 2:] - points), 1) / strides
    goal = goal.clamp(0, NUM_BINS - 1 - 0.01)
    lower = goal.floor().long()
    fraction = goal - lower
    log_probabilities = side_logits.view(-1, 4, NUM_BINS).log_softmax(2)
    pick = log_probabilities.gather(2, torch.stack((lower, lower + 1), 2))  # (P, 4, 2)
    return -(pick[..., 0] * (1 - fraction) + pick[..., 1] * fraction).mean(1)


def build_loss(model: Any, hyp: Mapping[str, Any] | str | Path | Hyperparameters | None = None) -> DetectionLoss:
    """Return the loss that fits a network's head.

    Args:
        model: network with `stride` and `task`.
        hyp: hyperparameters as a mapping, a yaml path, or None for the defaults.
    """
    return DetectionLoss(model.stride, load_hyperparameters(hyp))
