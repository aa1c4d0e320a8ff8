"""Instance-segmentation heads: detection heads whose branches also return mask coefficients and prototypes.

A branch's output is {"maps": the detection maps, "coefficients": (B, M, A), "prototypes": (B, M, H / 4, W / 4)}; an
instance's mask is the sigmoid of the sum of the prototypes, weighted by its coefficients. M is the number of
prototypes.
Source: Bolya et al. 2019, YOLACT, arxiv.org/abs/1904.02689.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.common import Conv
from models.heads.detect import DetectionHead, head, widened
from models.heads.towers import YOLOV8, YOLOV9_UNGROUPED, Branch, Tower, TowerSettings, TowerStyle
from models.registry import Channels, Rule, Scale, layer
from utils.errors import ModelConfigError
from utils.geometry.anchors import PROTOTYPE_STRIDE


class OutputUnit(Conv):
    """The last Conv of the prototypes; like OutputConv, it converts its input to its own dtype."""

    full_precision = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.conv.weight.dtype))


class Prototypes(nn.Module):
    """Prototypes from the finest level, at twice its resolution.

    Args:
        upsampling: the module that doubles the size: a transposed convolution (YOLOv8, YOLO11) or nearest (YOLOv9).
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, num_masks: int, upsampling: Literal["transposed", "nearest"]
    ) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden_channels, 3)
        transposed = upsampling == "transposed"
        self.upsample = (
            nn.ConvTranspose2d(hidden_channels, hidden_channels, 2, 2)
            if transposed
            else nn.Upsample(scale_factor=2, mode="nearest")
        )
        self.cv2 = Conv(hidden_channels, hidden_channels, 3)
        self.cv3 = OutputUnit(hidden_channels, num_masks)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))


class SegmentBranch(Branch):
    """Box, class and mask-coefficient towers over the levels, and the branch's prototypes.

    Args:
        in_channels: channels of each level, then of the extra input.
        extra: number of inputs after the levels, 0 or 1; the prototypes are computed from it, else from the first
            level.
        prototypes: function that builds the prototype module for a number of input channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: list[int],
        style: TowerStyle,
        num_masks: int,
        extra: int,
        prototypes: Callable[[int], nn.Module],
    ) -> None:
        levels = in_channels[: len(in_channels) - extra]
        super().__init__(num_classes, levels, style)
        width = style.mask_tower_width(levels[0], num_masks)
        self.masks = nn.ModuleList(style.tower("mask", channels, width, num_masks) for channels in levels)
        self.prototypes = prototypes(in_channels[-1] if extra else levels[0])

    def forward(self, features: list[Tensor]) -> dict[str, Any]:
        levels = features[: len(self.masks)]
        return {
            "maps": self.maps(levels),
            "coefficients": torch.cat([tower(x).flatten(2) for tower, x in zip(self.masks, levels, strict=True)], 2),
            "prototypes": self.prototypes(features[-1] if len(features) > len(levels) else features[0]),
        }


class SegmentationHead(DetectionHead):
    """Detection head whose branches also segment.

    Args:
        num_classes, in_channels, branches: see DetectionHead.
        num_masks: M, the number of prototypes, and of an instance's coefficients.
        prototype_width: hidden channels of the prototype module.
        towers: see TowerSettings.
    Raises:
        ModelConfigError: `num_masks` is not positive.
    """

    task = "segment"
    towers: tuple[Tower, ...] = ("box", "cls", "mask")
    upsampling: Literal["transposed", "nearest"] = "transposed"

    def __init__(
        self,
        num_classes: int,
        in_channels: list[int],
        branches: int = 1,
        num_masks: int = 32,
        prototype_width: int = 256,
        **towers: Any,
    ) -> None:
        if num_masks < 1:
            raise ModelConfigError(f"num_masks is {num_masks}: expected a positive number")
        styles = self.style.of_branches(TowerSettings(**towers), self.towers, branches)
        prototypes = partial(self.make_prototypes, prototype_width, num_masks)

        def make_branch(classes: int, group: list[int]) -> SegmentBranch:
            return SegmentBranch(classes, group, next(styles), num_masks, self.extra_inputs, prototypes)

        super().__init__(num_classes, in_channels, branches, make_branch)
        self.num_masks = num_masks

    @classmethod
    def make_prototypes(cls, prototype_width: int, num_masks: int, in_channels: int) -> nn.Module:
        """Build the module that computes a branch's prototypes."""
        return Prototypes(in_channels, prototype_width, num_masks, cls.upsampling)

    def maps_of(self, output: Any) -> Any:
        return output["maps"]

    def problem_with(self, shapes: dict[str, Any], size: int) -> str | None:
        stride = size / shapes["prototypes"][2]
        if stride == PROTOTYPE_STRIDE:
            return None
        return f"its prototypes have stride {stride:g}: expected {PROTOTYPE_STRIDE}, a map of a quarter of the image"

    def decode(self, output: dict[str, Any]) -> Tensor:
        """Turn one branch's output into (B, 4 + K + M, A): box in pixels, class probabilities, mask coefficients."""
        detected = super().decode(output)
        return torch.cat((detected, widened(output["coefficients"]).to(detected.dtype)), 1)

    def predict(self, output: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.decode(output), widened(output["prototypes"])


class StraightSegmentationHead(SegmentationHead):
    """Segmentation head that computes each branch's prototypes from an extra input, by one 1 x 1 convolution.

    `prototype_width` has no effect; it is accepted because the published rows give it.
    """

    extra_inputs = 1

    @classmethod
    def make_prototypes(cls, prototype_width: int, num_masks: int, in_channels: int) -> nn.Module:
        return OutputUnit(in_channels, num_masks)


def segment_head(branches: int, extra_inputs: int = 0) -> Rule:
    """Return the rule of a segmentation head: a detection head's rule that also scales the prototypes' hidden width."""
    detection = head(branches, extra_inputs)

    def apply(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
        arguments["prototype_width"] = scale.channels(arguments.get("prototype_width", 256))
        return detection.apply(inputs, arguments, scale)

    return replace(detection, apply=apply)


@layer(segment_head(branches=1), "head", example=(3, 8, 16))
class Segment(SegmentationHead):
    """The segmentation head of YOLOv8; with `{cls: depthwise}` that of YOLO11.

    Source: Bolya et al. 2019, YOLACT, arxiv.org/abs/1904.02689 (prototypes); the published structure of YOLOv8
    """

    style = YOLOV8


@layer(segment_head(branches=1), "head", example=(3, 8, 16))
class V9Segment(SegmentationHead):
    """Segment of the original YOLOv9 repository: ungrouped box towers, prototypes by nearest upsampling.

    Source: Bolya et al. 2019, YOLACT, arxiv.org/abs/1904.02689 (prototypes); Wang, Yeh, Liao 2024, YOLOv9,
        arxiv.org/abs/2402.13616
    """

    style = YOLOV9_UNGROUPED
    upsampling = "nearest"


@layer(segment_head(1, StraightSegmentationHead.extra_inputs), "head", example=(3, 8, 16))
class DSegment(StraightSegmentationHead):
    """DDetect with masks; the last input feeds the prototypes.

    Source: Bolya et al. 2019, YOLACT, arxiv.org/abs/1904.02689 (prototypes); Wang, Yeh, Liao 2024, YOLOv9,
        arxiv.org/abs/2402.13616
    """


@layer(segment_head(2, StraightSegmentationHead.extra_inputs), "head", example=(3, 8, 16))
class DualDSegment(StraightSegmentationHead):
    """DualDDetect with masks; the last two inputs feed the prototypes of the auxiliary and the lead branch.

    Source: Bolya et al. 2019, YOLACT, arxiv.org/abs/1904.02689 (prototypes); Wang, Yeh, Liao 2024, YOLOv9,
        arxiv.org/abs/2402.13616
    """

    single = "DSegment"
