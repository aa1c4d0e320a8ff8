"""Detection heads: one class for any number of branches and any family's towers, and its decoding of raw maps.

A head's inputs are split into one equal group per branch. The last group feeds the lead branch; the others feed
auxiliary branches, which only training needs.
Dimension letters: B batch, A anchor points of all levels, K classes, R = 16 bins.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.heads.towers import YOLOV8, YOLOV9, YOLOV9_UNGROUPED, Branch, Tower, TowerSettings, TowerStyle
from models.registry import Channels, Rule, Scale, layer, maps
from utils.errors import ModelConfigError
from utils.geometry.anchors import NUM_BINS, anchor_points, decode_boxes
from utils.geometry.boxes import xyxy_to_cxcywh

Item = TypeVar("Item")


def widened(values: Tensor) -> Tensor:
    """Convert half-precision values to float32; return others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class DetectionHead(nn.Module):
    """Anchor-free head with one lead branch and any number of auxiliary ones; the base of all heads.

    Args:
        num_classes: K.
        in_channels: channels of all inputs, auxiliary groups first.
        branches: number of branches, and of equal groups of inputs.
        make_branch: function that builds a branch from the number of classes and the channels of its inputs.
    Raises:
        ModelConfigError: the number of inputs is no multiple of the branches.
    """

    task = "detect"
    style: TowerStyle = YOLOV9
    towers: tuple[Tower, ...] = ("box", "cls")
    num_masks = 0
    """Number of mask coefficients of an anchor point."""
    single: str | None = None
    """Name of the head that is left when only the lead branch stays; None for a head that has one branch."""
    extra_inputs = 0
    """Number of inputs of each branch besides its levels; they come after the levels of all branches."""

    def __init__(
        self,
        num_classes: int,
        in_channels: list[int],
        branches: int,
        make_branch: Callable[[int, list[int]], Branch],
    ) -> None:
        super().__init__()
        each = len(in_channels) // branches
        if len(in_channels) % branches or each <= self.extra_inputs:
            extra = branches * self.extra_inputs
            further = f", the last {extra} of them for prototypes" if extra else ""
            raise ModelConfigError(
                f"'from' names {len(in_channels)} layers: "
                f"a head of {branches} branches takes a multiple of {branches}{further}"
            )
        self.num_classes = num_classes
        self.levels = each - self.extra_inputs
        self.stride: list[int] = []
        made = [make_branch(num_classes, group) for group in self.groups(in_channels)]
        self.aux, self.lead = nn.ModuleList(made[:-1]), made[-1]

    @property
    def branches(self) -> int:
        """Number of branches, the lead one included."""
        return len(self.aux) + 1

    def groups(self, inputs: list[Item]) -> list[list[Item]]:
        """Split items, one per input, by branch, the lead branch last; a group is levels, then extra inputs."""
        each = self.levels + self.extra_inputs
        branches = len(inputs) // each
        further = branches * self.levels
        return [
            inputs[self.levels * number : self.levels * (number + 1)]
            + inputs[further + self.extra_inputs * number : further + self.extra_inputs * (number + 1)]
            for number in range(branches)
        ]

    def lead_inputs(self) -> list[int]:
        """Return the positions of the inputs that the lead branch needs."""
        return self.groups(list(range(self.branches * (self.levels + self.extra_inputs))))[-1]

    def forward(self, features: list[Tensor | None], lead_only: bool = False) -> dict[str, Any]:
        """Run the branches.

        Args:
            features: one map per input; with `lead_only` the maps of the other branches may be None.
            lead_only: leave out the auxiliary branches.
        Returns:
            {"main": output, "aux": [output, …]}; an output is the list of raw maps (B, 64 + K, h, w), level by level.
        """
        groups = self.groups(features)
        aux = [] if lead_only else [branch(group) for branch, group in zip(self.aux, groups[:-1], strict=True)]
        return {"main": self.lead(groups[-1]), "aux": aux}

    def maps_of(self, output: Any) -> Any:
        """Return the raw maps of one branch's output; also works on a structure of shapes."""
        return output

    def problem_with(self, shapes: Any, size: int) -> str | None:
        """Describe an error in the shapes of one branch's output besides its levels; None if there is none.

        Args:
            size: side of the square image that gave the shapes.
        """
        return None

    def predict(self, output: Any) -> Any:
        """Turn the lead branch's output into the network's output in evaluation."""
        return self.decode(output)

    def decode(self, output: Any) -> Tensor:
        """Decode one branch's output.

        Half-precision maps are decoded in float32: 8 or 11 bits cannot hold a large coordinate.

        Returns:
            (B, 4 + K, A): centre x, centre y, width, height in pixels, class probabilities.
        """
        maps_ = self.maps_of(output)
        with torch.autocast(maps_[0].device.type, enabled=False):
            flat = widened(torch.cat([level.flatten(2) for level in maps_], 2))  # (B, 64 + K, A)
            box_logits, class_logits = flat[:, : 4 * NUM_BINS], flat[:, 4 * NUM_BINS :]
            boxes_xyxy = self.decode_boxes(box_logits, [tuple(level.shape[2:]) for level in maps_])
            return torch.cat((xyxy_to_cxcywh(boxes_xyxy).transpose(1, 2), class_logits.sigmoid()), 1)

    def decode_boxes(self, box_logits: Tensor, maps_hw: list[tuple[int, int]]) -> Tensor:
        """Turn (B, 4 * R, A) logits into (B, A, 4) corners in pixels."""
        points, strides = anchor_points(maps_hw, self.stride, box_logits)
        return decode_boxes(self.lead.dfl(box_logits).transpose(1, 2), points, strides)

    def attach(self, stride: list[int]) -> None:
        """Set the strides of the levels, and the initial biases, which depend on them."""
        self.stride = stride
        for branch in (*self.aux, self.lead):
            branch.initialize_biases(self.num_classes, stride)

    def keep_lead(self) -> None:
        """Drop the auxiliary branches for good."""
        self.aux = nn.ModuleList()


class BoxHead(DetectionHead):
    """Detection head whose branches predict boxes and classes.

    Args:
        num_classes, in_channels, branches: see DetectionHead.
        towers: see TowerSettings.
    """

    def __init__(self, num_classes: int, in_channels: list[int], branches: int = 1, **towers: Any) -> None:
        styles = self.style.of_branches(TowerSettings(**towers), self.towers, branches)
        super().__init__(
            num_classes, in_channels, branches, lambda classes, group: Branch(classes, group, next(styles))
        )


def head(branches: int, extra_inputs: int = 0) -> Rule:
    """Return the channel rule of a head: it takes all inputs' widths and has no output for later rows."""

    def apply(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
        arguments |= {"in_channels": maps(inputs), "branches": branches}
        return []

    return Rule(
        apply,
        fills=("in_channels", "branches"),
        settings=TowerSettings,
        branches=branches,
        extra_inputs=extra_inputs,
    )


@layer(head(branches=1), "head", example=(3,))
class Detect(BoxHead):
    """The head of YOLOv8; with `{cls: depthwise}` that of YOLO11.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); the published
        structure of YOLOv8
    """

    style = YOLOV8


@layer(head(branches=1), "head", example=(3,))
class V9Detect(BoxHead):
    """The head that the original YOLOv9 repository calls Detect: DDetect with ungrouped box towers.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024,
        YOLOv9, arxiv.org/abs/2402.13616
    """

    style = YOLOV9_UNGROUPED


@layer(head(branches=1), "head", example=(3,))
class DDetect(BoxHead):
    """One branch: the head of the GELAN networks.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024,
        YOLOv9, arxiv.org/abs/2402.13616
    """


@layer(head(branches=2), "head", example=(3,))
class DualDDetect(BoxHead):
    """One auxiliary and one lead branch: the head of the YOLOv9 networks.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024,
        YOLOv9, arxiv.org/abs/2402.13616
    """

    single = "DDetect"


@layer(head(branches=3), "head", example=(3,))
class TripleDDetect(BoxHead):
    """Two auxiliary branches and a lead one.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024,
        YOLOv9, arxiv.org/abs/2402.13616
    """

    single = "DDetect"
