"""Detection heads: one class for any number of branches, their presets, and the decoding of raw maps into boxes.

A head's inputs split into as many equal groups as it has branches; the last group feeds the lead branch, the others
auxiliary ones that only training needs. Dimension letters: B batch, A anchor points of all levels, K classes, R = 16 bins.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.common import Conv
from models.registry import Channels, Rule, Scale, layer, maps
from utils.boxes import xyxy_to_cxcywh
from utils.errors import ModelConfigError

NUM_BINS = 16
"""Bins of the distribution over each box side's distance (R)."""


def anchor_points(maps_hw: list[tuple[int, int]], stride: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cell centres (A, 2) as x, y in pixels, and their strides (A, 1), level by level, row-major."""
    points, strides = [], []
    for (height, width), step in zip(maps_hw, stride, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, dtype=like.dtype, device=like.device) + 0.5,
            torch.arange(width, dtype=like.dtype, device=like.device) + 0.5,
            indexing="ij",
        )
        points.append(torch.stack((x, y), -1).view(-1, 2) * step)
        strides.append(x.new_full((height * width, 1), step))
    return torch.cat(points), torch.cat(strides)


class DFL(nn.Module):
    """Expected distance of each box side from its distribution over bins 0 … 15 (frozen weights).

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388, section 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(NUM_BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.copy_(torch.arange(NUM_BINS, dtype=self.conv.weight.dtype).view(1, NUM_BINS, 1, 1))

    def forward(self, logits: Tensor) -> Tensor:
        """(B, 4 * R, A) side-major logits to (B, 4, A) distances in cells."""
        sides = logits.unflatten(1, (4, NUM_BINS)).transpose(1, 2).softmax(1)  # (B, R, 4, A)
        return nn.functional.conv2d(sides, self.conv.weight.to(sides.dtype)).squeeze(1)


class OutputConv(nn.Conv2d):
    """A tower's last convolution; it takes its input in its own number format.

    An inference network in bf16 or fp16 keeps it in float32 (utils/precision.py): box logits rounded to 8 bits move the
    mAP50-95 of a small validation set by 0.002, and these layers cost next to nothing.
    """

    full_precision = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class Branch(nn.Module):
    """Box and class towers over the levels of one group of inputs.

    Args:
        in_channels: channels of each level; the first one sets the width of all towers.
        box_groups: groups of the box tower's second and last convolution.
    """

    def __init__(self, num_classes: int, in_channels: list[int], box_groups: int) -> None:
        super().__init__()
        first = in_channels[0]
        box_width = math.ceil(max(first // 4, 4 * NUM_BINS, 16) / box_groups) * box_groups
        class_width = max(first, min(2 * num_classes, 128))
        self.box = nn.ModuleList(
            nn.Sequential(
                Conv(channels, box_width, 3),
                Conv(box_width, box_width, 3, groups=box_groups),
                OutputConv(box_width, 4 * NUM_BINS, 1, groups=box_groups),
            )
            for channels in in_channels
        )
        self.cls = nn.ModuleList(
            nn.Sequential(Conv(channels, class_width, 3), Conv(class_width, class_width, 3), OutputConv(class_width, num_classes, 1))
            for channels in in_channels
        )
        self.dfl = DFL()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [torch.cat((box(x), cls(x)), 1) for box, cls, x in zip(self.box, self.cls, features, strict=True)]

    def initialize_biases(self, num_classes: int, stride: list[int]) -> None:
        """Start with boxes of about one cell and with the class prior of 5 objects in a 640-pixel picture."""
        for box, cls, step in zip(self.box, self.cls, stride, strict=True):
            box[-1].bias.data.fill_(1.0)
            cls[-1].bias.data.fill_(math.log(5 / num_classes / (640 / step) ** 2))


class DetectionHead(nn.Module):
    """Anchor-free head with one lead branch and any number of auxiliary ones.

    Args:
        num_classes: K.
        in_channels: channels of all inputs, auxiliary groups first.
        branches: number of equal groups that the inputs split into.
        box_groups: groups of the box towers' grouped convolutions; 1 is the ungrouped form.
    Raises:
        ModelConfigError: the inputs do not split into that many equal groups.
    """

    task = "detect"

    def __init__(self, num_classes: int, in_channels: list[int], branches: int = 1, box_groups: int = 4) -> None:
        super().__init__()
        if len(in_channels) % branches or not in_channels:
            raise ModelConfigError(f"'from' names {len(in_channels)} layers: a head of {branches} branches takes a multiple of {branches}")
        self.num_classes = num_classes
        self.levels = len(in_channels) // branches
        self.stride: list[int] = []
        groups = [in_channels[start : start + self.levels] for start in range(0, len(in_channels), self.levels)]
        self.aux = nn.ModuleList(Branch(num_classes, group, box_groups) for group in groups[:-1])
        self.lead = Branch(num_classes, groups[-1], box_groups)

    @property
    def branches(self) -> int:
        """Number of branches, the lead one included."""
        return len(self.aux) + 1

    def forward(self, features: list[Tensor | None], lead_only: bool = False) -> dict[str, Any]:
        """Return {"main": maps, "aux": [maps, …]}; maps are (B, 64 + K, h, w) per level. Inputs of unused branches may be None."""
        groups = [features[start : start + self.levels] for start in range(0, len(features), self.levels)]
        aux = [] if lead_only else [branch(group) for branch, group in zip(self.aux, groups[:-1], strict=True)]
        return {"main": self.lead(groups[-1]), "aux": aux}

    def decode(self, output: list[Tensor]) -> Tensor:
        """Turn one branch's maps into (B, 4 + K, A): centre x, centre y, width, height in pixels, class probabilities.

        Half-precision maps are decoded in float32: their 8 or 11 bits do not hold a coordinate of a large picture.
        """
        with torch.autocast(output[0].device.type, enabled=False):
            flat = torch.cat([level.flatten(2) for level in output], 2)  # (B, 64 + K, A)
            flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
            box_logits, class_logits = flat.split((4 * NUM_BINS, flat.shape[1] - 4 * NUM_BINS), 1)
            boxes_xyxy = self.decode_boxes(box_logits, [tuple(level.shape[2:]) for level in output])
            return torch.cat((xyxy_to_cxcywh(boxes_xyxy).transpose(1, 2), class_logits.sigmoid()), 1)

    def decode_boxes(self, box_logits: Tensor, maps_hw: list[tuple[int, int]]) -> Tensor:
        """(B, 4 * R, A) logits to (B, A, 4) corners in pixels."""
        points, strides = anchor_points(maps_hw, self.stride, box_logits)
        distances = self.lead.dfl(box_logits).transpose(1, 2) * strides
        return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)

    def attach(self, stride: list[int]) -> None:
        """Take the strides of the lead levels and start the biases accordingly."""
        self.stride = stride
        for branch in (*self.aux, self.lead):
            branch.initialize_biases(self.num_classes, stride)

    def keep_lead(self) -> None:
        """Drop the auxiliary branches for good."""
        self.aux = nn.ModuleList()


def head(branches: int) -> Rule:
    """Channel rule of a head: all inputs' widths go to the constructor, nothing comes out for later rows."""

    def apply(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
        arguments |= {"in_channels": maps(inputs), "branches": branches}
        return []

    return Rule(apply, fills=("in_channels", "branches"))


@layer(head(branches=1), example=(3,))
class DDetect(DetectionHead):
    """One branch: the head of the GELAN networks."""


@layer(head(branches=2), example=(3,))
class DualDDetect(DetectionHead):
    """One auxiliary and one lead branch: the head of the YOLOv9 networks."""

    single = "DDetect"


@layer(head(branches=3), example=(3,))
class TripleDDetect(DetectionHead):
    """Two auxiliary branches and a lead one."""

    single = "DDetect"
