"""Loss: boxes (by default by CIoU), classes (by binary cross-entropy), box sides by distribution focal loss; masks in utils/losses/mask.py.

Which box loss, class loss and assigner it is, utils/losses/settings.py reads.
One code path for any number of branches: each is assigned and scored on its own, auxiliary ones weighted by `aux`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.geometry.anchors import NUM_BINS, anchor_points, decode_boxes
from utils.geometry.boxes import cxcywh_to_xyxy
from utils.hyperparameters import Hyperparameters, load_hyperparameters
from utils.losses.assigners import Scene
from utils.losses.box import Pairs
from utils.losses.mask import fitted_maps, mask_loss, numbers_in_image
from utils.losses.settings import build_settings, choose_loss
from utils.losses.task_aligned import Assignment


class DetectionLoss:
    """Callable `(outputs, batch) -> (total, items)` for one network.

    Args:
        stride: pixels per cell of each level.
        hyp: gains, auxiliary weight and assigner settings.
        loss: which losses and assigner (utils/losses/settings.py); those of `hyp` by default.
    """

    items = ("box", "cls", "dfl")

    def __init__(self, stride: list[int], hyp: Hyperparameters, loss: Mapping[str, Any] | None = None) -> None:
        self.stride, self.hyp = stride, hyp
        settings = build_settings(hyp.loss if loss is None else loss)
        self.box_loss, self.class_loss, self.assigner = (
            settings.box_loss(),
            settings.cls.build(),
            settings.assigner.build(),
        )
        self.assigner_measure = settings.assigner_measure(self.box_loss)

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Score every branch of a network's raw outputs.

        Args:
            outputs: {"main": output, "aux": [output, …]}; an output is the maps (B, 64 + K, h, w) of the levels.
            batch: "targets" (N, 6), and "images" (B, ch, H, W) or "image_hw".
        Returns:
            The batch size times the sum of the items, and the detached items box, cls and dfl, gains and weights included.
        """
        image_hw = tuple(batch["image_hw"]) if "image_hw" in batch else tuple(batch["images"].shape[-2:])
        items = self.branch(outputs["main"], batch, image_hw, lead=True)
        for aux in outputs["aux"]:
            items = items + self.hyp.aux * self.branch(aux, batch, image_hw)
        total = items.sum() * self.maps_of(outputs["main"])[0].shape[0]
        return total, dict(zip(self.items, items.detach(), strict=True))

    def maps_of(self, output: Any) -> list[Tensor]:
        """Return the maps in a branch's output."""
        return output

    def branch(self, output: Any, batch: Mapping[str, Any], image_hw: tuple[int, int], lead: bool = False) -> Tensor:
        """Return the items of one branch, gains included."""
        return self.detection(self.maps_of(output), batch["targets"], image_hw, lead)[0]

    def detection(
        self, maps: list[Tensor], targets: Tensor, image_hw: tuple[int, int], lead: bool = False
    ) -> tuple[Tensor, Assignment]:
        """Return the items (3,) of one branch, box, cls and dfl, gains included, and which anchor points answer for which target.

        Args:
            lead: this is the lead branch, from which a box loss with state learns; not where no gradient is recorded (validation).
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            flat = torch.cat([level.flatten(2).float() for level in maps], 2)  # (B, 64 + K, A)
            box_logits, class_logits = flat[:, : 4 * NUM_BINS], flat[:, 4 * NUM_BINS :]
            points, strides = anchor_points([tuple(level.shape[2:]) for level in maps], self.stride, flat)
            targets = targets.to(flat.device)
            scale = targets.new_tensor((image_hw[1], image_hw[0], image_hw[1], image_hw[0]))
            target_xyxy = cxcywh_to_xyxy(targets[:, 2:] * scale)
            scene = Scene(
                class_logits.detach(),
                decode(box_logits.detach(), points, strides),
                points,
                strides,
                [level[0, 0].numel() for level in maps],
                targets[:, 0].long(),
                targets[:, 1].long(),
                target_xyxy,
            )
            measure = self.assigner_measure
            found = self.assigner(
                scene, None if measure.is_default else partial(measure.overlap, image_hw=image_hw), self.hyp
            )
            normalizer = found.score.sum().clamp(min=1)
            positive_logits = class_logits[found.image, targets[found.target, 1].long(), found.anchor]

            side_logits = box_logits[found.image, :, found.anchor]  # (P, 64)
            goal_xyxy, cell = target_xyxy[found.target], strides[found.anchor]
            predicted_xyxy = decode(side_logits.unsqueeze(2), points[found.anchor, None], cell[:, None]).squeeze(1)
            pairs = Pairs(predicted_xyxy, goal_xyxy, image_hw)
            cls = self.class_loss(class_logits, positive_logits, found.score, pairs)
            box = (self.box_loss(pairs, learning=lead and predicted_xyxy.requires_grad) * found.score).sum()
            dfl = (distribution_focal(side_logits, points[found.anchor], goal_xyxy, cell) * found.score).sum()
            gains = flat.new_tensor((self.hyp.box, self.hyp.cls, self.hyp.dfl))
            return torch.stack((box, cls, dfl)) * gains / normalizer, found

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run has to go on with; empty for losses without state."""
        return self.box_loss.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        self.box_loss.load_state_dict(state)


class SegmentationLoss(DetectionLoss):
    """The detection loss with an item `mask`.

    A branch's output is {"maps", "coefficients" (B, M, A), "prototypes" (B, M, H / 4, W / 4)}, and the batch has "masks", integer maps
    (B, H / 4, W / 4) with k at the k-th of an image's targets. Where it has "outlined" (N,), only those targets have a mask term:
    nothing is known of the others' pixels.
    """

    items = ("box", "cls", "dfl", "mask")

    def maps_of(self, output: Any) -> list[Tensor]:
        return output["maps"]

    def branch(self, output: Any, batch: Mapping[str, Any], image_hw: tuple[int, int], lead: bool = False) -> Tensor:
        items, found = self.detection(self.maps_of(output), batch["targets"], image_hw, lead)
        device = items.device
        targets = batch["targets"].to(device)
        image, anchor, target = found.image, found.anchor, found.target
        if "outlined" in batch:
            known = batch["outlined"].to(device)[target]
            image, anchor, target = image[known], anchor[known], target[known]
        with torch.autocast(device.type, enabled=False):
            prototypes = output["prototypes"].float()
            maps = fitted_maps(batch["masks"].to(device), tuple(prototypes.shape[2:]))
            coefficients = output["coefficients"][image, :, anchor].float()
            numbers = numbers_in_image(targets[:, 0].long())[target]
            boxes_xyxy = cxcywh_to_xyxy(targets[target, 2:] * targets.new_tensor((image_hw[1], image_hw[0]) * 2))
            mask = mask_loss(coefficients, prototypes, image, numbers, boxes_xyxy, maps, image_hw)
        return torch.cat((items, (self.hyp.mask * mask)[None]))


def decode(box_logits: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """(B, 64, A) side-major logits, points (…A, 2) and strides (…A, 1) in pixels, to (B, A, 4) corners in pixels."""
    probabilities = box_logits.unflatten(1, (4, NUM_BINS)).softmax(2)
    bins = torch.arange(NUM_BINS, dtype=box_logits.dtype, device=box_logits.device)
    return decode_boxes(torch.einsum("bsra,r->bas", probabilities, bins), points, strides)


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
        model: network with `stride`, `task` and `config`, whose `loss` holds where the hyperparameters say nothing else.
        hyp: hyperparameters as a mapping, a yaml path, or None for the defaults.
    """
    kind, hyp = SegmentationLoss if model.task == "segment" else DetectionLoss, load_hyperparameters(hyp)
    return kind(model.stride, hyp, choose_loss(hyp.loss, model.config.get("loss")))
