"""The losses of a network: box, class and distribution focal loss, for instance segmentation the mask loss as well.

Box loss, class loss and assigner are chosen by name (utils/losses/settings.py). Every branch is assigned and scored on
its own; auxiliary branches have the weight `aux`.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from utils.errors import SettingsError
from utils.geometry.anchors import NUM_BINS, anchor_points, decode_boxes
from utils.geometry.boxes import cxcywh_to_xyxy
from utils.geometry.groups import rank_in_group
from utils.hyperparameters import Hyperparameters, load_hyperparameters
from utils.losses.assignment import Assigner, Assignment, Overlap, Scene
from utils.losses.box import Pairs, alone
from utils.losses.mask import fitted_maps, mask_loss
from utils.losses.settings import LossSettings, settle_loss


class DetectionLoss:
    """Callable `(outputs, batch) -> (total, items)` for one network.

    Args:
        stride: pixels per cell of each level.
        hyp: gains, auxiliary weight and the assigner's numbers.
        settings: losses and assigner; by default those that `hyp` names.
    """

    items: tuple[str, ...] = ("box", "cls", "dfl")

    def __init__(self, stride: list[int], hyp: Hyperparameters, settings: LossSettings | None = None) -> None:
        self.stride, self.hyp = stride, hyp
        self.settings = settings or settle_loss(hyp.loss)[0]
        self.box_loss, self.class_loss = self.settings.box_loss(), self.settings.cls.build()
        assigner, self.assigner_measure = self.settings.assigner, self.settings.assigner_measure(self.box_loss)
        beside = {parameter: getattr(hyp, name) for parameter, name in assigner.part.beside.items()}
        self.assigner: Assigner = assigner.build(**beside)
        self.ranks = 1
        self.summed: Callable[[Tensor], Tensor] = alone

    def across(self, ranks: int, summed: Callable[[Tensor], Tensor]) -> Self:
        """Return this loss for one rank of several: it divides by what the positives of all ranks add up to.

        The two share their state, such as the running mean of Wise-IoU.

        Args:
            ranks: number of ranks.
            summed: adds a tensor up over the ranks.
        """
        shared = copy.copy(self)
        shared.ranks, shared.summed = ranks, summed
        return shared

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Score every branch of a network's raw outputs.

        Args:
            outputs: {"main": output, "aux": [output, …]}; an output is the maps (B, 64 + K, h, w) of the levels.
            batch: "targets" (N, 6), and "images" (B, ch, H, W) or "image_hw"; "counts" False for images that do not
                count.
        Returns:
            The batch size times the sum of the items, and the detached items; gains and weights are included.
        """
        image_hw = tuple(batch["image_hw"]) if "image_hw" in batch else tuple(batch["images"].shape[-2:])
        items = self.branch(outputs["main"], batch, image_hw, lead=True)
        for aux in outputs["aux"]:
            items = items + self.hyp.aux * self.branch(aux, batch, image_hw)
        images = self.maps_of(outputs["main"])[0].shape[0]
        if not batch.get("counts", True):  # a rank that only keeps step with the others
            items, images = items * 0, 0
        total = items.sum() * self.weight_of(images, items)
        return total, dict(zip(self.items, items.detach(), strict=True))

    def weight_of(self, num_images: int, items: Tensor) -> Tensor | int:
        """Return what the items are multiplied by: the images of all ranks, times the ranks if there are several.

        The gradients of the ranks are averaged, so that the number of ranks cancels.
        """
        if self.ranks == 1:
            return num_images
        return self.summed(items.new_tensor(num_images)) * self.ranks

    def maps_of(self, output: Any) -> list[Tensor]:
        """Return the maps in a branch's output."""
        return output

    def branch(self, output: Any, batch: Mapping[str, Any], image_hw: tuple[int, int], lead: bool = False) -> Tensor:
        """Return the items of one branch, gains included."""
        return self.detection(self.maps_of(output), batch["targets"], image_hw, lead)[0]

    def detection(
        self, maps: list[Tensor], targets: Tensor, image_hw: tuple[int, int], lead: bool = False
    ) -> tuple[Tensor, Assignment]:
        """Score the boxes and classes of one branch.

        Args:
            maps: (B, 64 + K, h, w) of each level.
            targets: (N, 6) image, class, and centre and size, normalised.
            image_hw: height and width of the network's input, pixels.
            lead: this is the lead branch, which updates a box loss with state (in training only).
        Returns:
            The items box, cls and dfl (3,), gains included, and the assignment.
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            flat = torch.cat([in_float32(level.flatten(2)) for level in maps], 2)  # (B, 64 + K, A)
            box_logits, class_logits = flat[:, : 4 * NUM_BINS], flat[:, 4 * NUM_BINS :]
            points, strides = anchor_points([(level.shape[2], level.shape[3]) for level in maps], self.stride, flat)
            targets = targets.to(flat.device)
            target_class = targets[:, 1].long()
            target_xyxy = cxcywh_to_xyxy(targets[:, 2:] * targets.new_tensor((image_hw[1], image_hw[0]) * 2))
            scene = Scene(
                class_logits=class_logits.detach(),
                boxes_xyxy=decode(box_logits.detach(), points, strides),
                points=points,
                strides=strides,
                level_sizes=[level[0, 0].numel() for level in maps],
                target_image=targets[:, 0].long(),
                target_class=target_class,
                target_xyxy=target_xyxy,
            )
            positives = self.assigner(scene, self.overlap_of(image_hw))
            normalizer = self.summed(positives.score.sum()).clamp(min=1)
            positive_logits = class_logits[positives.image, target_class[positives.target], positives.anchor]

            side_logits = box_logits[positives.image, :, positives.anchor]  # (P, 64)
            goal_xyxy, cell = target_xyxy[positives.target], strides[positives.anchor]
            near = points[positives.anchor]
            predicted_xyxy = decode(side_logits.unsqueeze(2), near[:, None], cell[:, None]).squeeze(1)
            pairs = Pairs(predicted_xyxy, goal_xyxy, image_hw, self.summed)
            cls = self.class_loss(class_logits, positive_logits, positives.score, pairs)
            box = (self.box_loss(pairs, learning=lead and predicted_xyxy.requires_grad) * positives.score).sum()
            dfl = (distribution_focal(side_logits, near, goal_xyxy, cell) * positives.score).sum()
            gains = flat.new_tensor((self.hyp.box, self.hyp.cls, self.hyp.dfl))
            return torch.stack((box, cls, dfl)) * gains / normalizer, positives

    def overlap_of(self, image_hw: tuple[int, int]) -> Overlap | None:
        """Return what the assigner compares boxes by; None for its own CIoU."""
        if self.assigner_measure is None:
            return None
        return partial(self.assigner_measure.overlap, image_hw=image_hw)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs; empty for losses without state."""
        return self.box_loss.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.box_loss.load_state_dict(state)


class SegmentationLoss(DetectionLoss):
    """The detection loss with an item `mask`.

    A branch's output is {"maps", "coefficients" (B, M, A), "prototypes" (B, M, H / 4, W / 4)}. The batch has "masks",
    integer maps (B, H / 4, W / 4) whose value k is the k-th target of the image. If it has "outlined" (N,), the other
    targets have no mask term: only their boxes are known.
    """

    items = ("box", "cls", "dfl", "mask")

    def maps_of(self, output: Any) -> list[Tensor]:
        return output["maps"]

    def branch(self, output: Any, batch: Mapping[str, Any], image_hw: tuple[int, int], lead: bool = False) -> Tensor:
        items, positives = self.detection(self.maps_of(output), batch["targets"], image_hw, lead)
        device = items.device
        targets = batch["targets"].to(device)
        image, anchor, target = positives.image, positives.anchor, positives.target
        if "outlined" in batch:
            outlined = batch["outlined"].to(device)[target]
            image, anchor, target = image[outlined], anchor[outlined], target[outlined]
        with torch.autocast(device.type, enabled=False):
            prototypes = in_float32(output["prototypes"])
            maps = fitted_maps(batch["masks"].to(device), (prototypes.shape[2], prototypes.shape[3]))
            coefficients = in_float32(output["coefficients"][image, :, anchor])
            number = rank_in_group(targets[:, 0].long())[target] + 1
            boxes_xyxy = cxcywh_to_xyxy(targets[target, 2:] * targets.new_tensor((image_hw[1], image_hw[0]) * 2))
            count = None if self.ranks == 1 else self.summed(number.new_tensor(len(number))).clamp(min=1)
            mask = mask_loss(coefficients, prototypes, image, number, boxes_xyxy, maps, image_hw, count)
        return torch.cat((items, (self.hyp.mask * mask)[None]))


def in_float32(values: Tensor) -> Tensor:
    """Return 16-bit numbers in float32; float64 stays."""
    return values if values.dtype is torch.float64 else values.float()


def decode(box_logits: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Turn side-major logits (B, 64, A) into corners (B, A, 4); points (…A, 2) and strides (…A, 1), all in pixels."""
    probabilities = box_logits.unflatten(1, (4, NUM_BINS)).softmax(2)
    bins = torch.arange(NUM_BINS, dtype=box_logits.dtype, device=box_logits.device)
    return decode_boxes(torch.einsum("bsra,r->bas", probabilities, bins), points, strides)


def distribution_focal(side_logits: Tensor, points: Tensor, goal_xyxy: Tensor, strides: Tensor) -> Tensor:
    """Cross-entropy between each side's distribution and the two bins around its true distance, averaged over sides.

    Args:
        side_logits: (P, 64) side-major.
        points: (P, 2) pixels; strides (P, 1) pixels.
        goal_xyxy: (P, 4) objects, pixels.
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


LOSSES: dict[str, type[DetectionLoss]] = {"detect": DetectionLoss, "segment": SegmentationLoss}
"""The loss for each task of a head."""


def build_loss(
    model: Any,
    hyp: Mapping[str, Any] | str | Path | Hyperparameters | None = None,
    settings: LossSettings | None = None,
) -> DetectionLoss:
    """Build the loss that fits a network's head.

    Args:
        model: network with `stride`, `task` and `config`.
        hyp: hyperparameters as a mapping, a yaml path, or None for the defaults.
        settings: losses and assigner; by default those of `hyp`, which override those of the network's `config`.
    """
    if model.task not in LOSSES:
        raise SettingsError(f"the head's task is {model.task!r}: expected one with a loss: {', '.join(LOSSES)}")
    where = str(hyp) if isinstance(hyp, str | Path) else "hyperparameters"
    hyp = load_hyperparameters(hyp)
    return LOSSES[model.task](model.stride, hyp, settings or settle_loss(hyp.loss, model.config.get("loss"), where)[0])
