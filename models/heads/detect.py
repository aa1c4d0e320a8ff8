"""Detection heads: one class for any number of branches and any family's towers, and the decoding of raw maps into boxes.

A head's inputs split into as many equal groups as it has branches; the last group feeds the lead branch, the others
auxiliary ones that only training needs. Dimension letters: B batch, A anchor points of all levels, K classes, R = 16 bins.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from models.attention.dynamic_conv import DynamicConv, Route
from models.building import InnerLayer, build_inner
from models.common import Conv
from models.registry import Channels, Rule, Scale, layer, maps
from utils.errors import ModelConfigError
from utils.geometry.anchors import NUM_BINS, anchor_points, decode_boxes
from utils.geometry.boxes import xyxy_to_cxcywh


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


def widened(values: Tensor) -> Tensor:
    """Return half-precision values in float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class OutputConv(nn.Conv2d):
    """A tower's last convolution; it takes its input in its own number format.

    An inference network in bf16 or fp16 keeps it in float32 (utils/precision.py): box logits rounded to 8 bits move the
    mAP50-95 of a small validation set by 0.002, and these layers cost next to nothing.
    """

    full_precision = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


Tower = Literal["box", "cls", "mask"]
"""The towers of a head: box distances, class probabilities, mask coefficients."""

TowerUnit = InnerLayer | dict
"""A layer in place of the towers' second unit, as models/building.py takes it, or a mapping of towers to such layers."""


@dataclass(frozen=True)
class TowerStyle:
    """What differs between the towers of the families.

    Attributes:
        box_groups: groups of the box tower's second and last convolution.
        width_per_class, most_for_classes: the class tower is at least as wide as its first input, and as `width_per_class`
            times the number of classes, this at most `most_for_classes`.
        class_width: the class tower's hidden width, in place of that rule.
        depthwise: whether the class tower's units are a depthwise 3 x 3 and a 1 x 1 convolution in place of a 3 x 3.
        second: builds the second unit of a tower (input and output channels, kernel size, groups=…), by the tower's name; else a Conv.
        unit: a registered layer in place of the whole second unit, by the tower's name.
    """

    box_groups: int = 1
    width_per_class: int = 1
    most_for_classes: int = 100
    class_width: int | None = None
    depthwise: bool = False
    second: dict[str, Callable[..., nn.Module]] = field(default_factory=dict)
    unit: dict[str, InnerLayer] = field(default_factory=dict)

    def box_tower_width(self, first: int) -> int:
        """Return the hidden width of the box towers; `first` is the channel count of the first level."""
        return math.ceil(max(first // 4, 4 * NUM_BINS, 16) / self.box_groups) * self.box_groups

    def class_tower_width(self, first: int, num_classes: int) -> int:
        """Return the hidden width of the class towers."""
        return self.class_width or max(first, min(self.width_per_class * num_classes, self.most_for_classes))

    def tower(self, name: Tower, channels: int, width: int, outputs: int, groups: int = 1) -> nn.Sequential:
        """Return two 3 x 3 units and a 1 x 1 convolution; `groups` are those of the last two."""
        first = Conv(channels, width, 3)
        second = (
            self.inner_unit(name, width)
            if name in self.unit
            else self.second.get(name, Conv)(width, width, 3, groups=groups)
        )
        return nn.Sequential(first, second, OutputConv(width, outputs, 1, groups=groups))

    def inner_unit(self, name: Tower, width: int) -> nn.Module:
        """Return the registered layer that is a tower's second unit."""
        return build_inner(self.unit[name], width, f"unit of the {name} tower")

    def with_dynamic(self, dynamic: bool | list[Tower], experts: int, route: Route, masks: bool) -> "TowerStyle":
        """Return the style with a DynamicConv as the second unit of some towers.

        Args:
            dynamic: their names, or True for those that published heads replace.
            masks: whether there are mask towers.
        Raises:
            ModelConfigError: a mask tower is named, and there is none.
        """
        if isinstance(dynamic, list) and "mask" in dynamic and not masks:
            raise ModelConfigError("dynamic names the mask towers: this head has none; expected box, cls or both")
        usual: list[Tower] = ["box", *["mask"] * masks, *["cls"] * self.depthwise]
        named = dynamic if isinstance(dynamic, list) else usual * dynamic
        return replace(self, second={name: partial(DynamicConv, experts=experts, route=route) for name in named})

    def with_unit(self, unit: TowerUnit | None, masks: bool) -> "TowerStyle":
        """Return the style with a registered layer as the second unit of all towers, or of those that a mapping names.

        Raises:
            ModelConfigError: a tower that is not there, or that has a DynamicConv in this place.
        """
        towers: list[Tower] = ["box", "cls", *["mask"] * masks]
        named = unit if isinstance(unit, dict) else {} if unit is None else dict.fromkeys(towers, unit)
        if unknown := [name for name in named if name not in towers]:
            raise ModelConfigError(
                f"unit names the towers {', '.join(map(str, unknown))}: expected some of {', '.join(towers)}"
            )
        if taken := [name for name in named if name in self.second]:
            raise ModelConfigError(
                f"unit and dynamic both name the second unit of the towers {', '.join(taken)}: leave one of them out"
            )
        return replace(self, unit=named)

    def class_tower(self, channels: int, width: int, num_classes: int) -> nn.Sequential:
        """Return the class tower of one level."""
        if not self.depthwise:
            return self.tower("cls", channels, width, num_classes)
        first = nn.Sequential(Conv(channels, channels, 3, groups=channels), Conv(channels, width))
        if "cls" in self.unit:
            return nn.Sequential(first, self.inner_unit("cls", width), OutputConv(width, num_classes, 1))
        second = nn.Sequential(Conv(width, width, 3, groups=width), self.second.get("cls", Conv)(width, width, 1))
        return nn.Sequential(first, second, OutputConv(width, num_classes, 1))


YOLOV9 = TowerStyle(box_groups=4, width_per_class=2, most_for_classes=128)
YOLOV9_UNGROUPED = replace(YOLOV9, box_groups=1)
YOLOV8 = TowerStyle()


class Branch(nn.Module):
    """Box and class towers over the levels of one group of inputs.

    Args:
        in_channels: channels of each level; the first one sets the width of all towers.
    """

    def __init__(self, num_classes: int, in_channels: list[int], style: TowerStyle) -> None:
        super().__init__()
        box_width = style.box_tower_width(in_channels[0])
        class_width = style.class_tower_width(in_channels[0], num_classes)
        self.box = nn.ModuleList(
            style.tower("box", channels, box_width, 4 * NUM_BINS, style.box_groups) for channels in in_channels
        )
        self.cls = nn.ModuleList(style.class_tower(channels, class_width, num_classes) for channels in in_channels)
        self.dfl = DFL()

    def forward(self, features: list[Tensor]) -> Any:
        return self.maps(features)

    def maps(self, features: list[Tensor]) -> list[Tensor]:
        """Return the raw maps of each level, (B, 64 + K, h, w)."""
        return [torch.cat((box(x), cls(x)), 1) for box, cls, x in zip(self.box, self.cls, features, strict=True)]

    def initialize_biases(self, num_classes: int, stride: list[int]) -> None:
        """Start with boxes of about one cell and with the class prior of 5 objects in a 640-pixel image."""
        for box, cls, step in zip(self.box, self.cls, stride, strict=True):
            box[-1].bias.data.fill_(1.0)
            cls[-1].bias.data.fill_(math.log(5 / num_classes / (640 / step) ** 2))


Item = TypeVar("Item")


class DetectionHead(nn.Module):
    """Anchor-free head with one lead branch and any number of auxiliary ones.

    Args:
        num_classes: K.
        in_channels: channels of all inputs, auxiliary groups first.
        branches: number of equal groups that the inputs split into.
        box_groups: groups of the box towers' grouped convolutions, in place of the family's; 1 is the ungrouped form.
        cls: units of the class towers: full 3 x 3 convolutions, or depthwise ones with a 1 x 1 each (YOLO11's).
        class_width: hidden width of the class towers, in place of the family's rule.
        dynamic: towers whose second unit is a DynamicConv: a list of box, cls and mask, or true for the box and mask towers and,
            where its units are depthwise ones with a 1 x 1 each, the class tower (whose second 1 x 1 it is).
        experts, route: of those; see DynamicConv2d.
        unit: a layer in place of the second unit of every tower, such as MBConv or [MBConv, {expansion: 2}]; a mapping such as
            {cls: MBConv} says it for some.
    Raises:
        ModelConfigError: the inputs do not split into that many equal groups, or a width is not positive.
    """

    task = "detect"
    style = YOLOV9
    num_masks = 0
    """Mask coefficients of an anchor point."""
    extra_inputs = 0
    """Further inputs of each branch, named after the levels of all branches."""

    def __init__(
        self,
        num_classes: int,
        in_channels: list[int],
        branches: int = 1,
        box_groups: int | None = None,
        cls: Literal["dense", "depthwise"] | None = None,
        class_width: int | None = None,
        dynamic: bool | list[Tower] = False,
        experts: int = 4,
        route: Route = "sigmoid",
        unit: TowerUnit | None = None,
    ) -> None:
        super().__init__()
        style = (
            self.with_settings(box_groups, cls, class_width)
            .with_dynamic(dynamic, experts, route, masks=False)
            .with_unit(unit, masks=False)
        )
        self._build(num_classes, in_channels, branches, partial(Branch, style=style))

    @classmethod
    def with_settings(cls, box_groups: int | None, class_units: str | None, class_width: int | None) -> TowerStyle:
        """Return the family's tower style with what a row says in place of it.

        Raises:
            ModelConfigError: a number is not positive.
        """
        for key, value in (("box_groups", box_groups), ("class_width", class_width)):
            if value is not None and value < 1:
                raise ModelConfigError(f"{key} is {value}: expected a positive number")
        depthwise = cls.style.depthwise if class_units is None else class_units == "depthwise"
        return replace(
            cls.style, class_width=class_width, depthwise=depthwise, box_groups=box_groups or cls.style.box_groups
        )

    def _build(
        self, num_classes: int, in_channels: list[int], branches: int, make_branch: Callable[..., Branch]
    ) -> None:
        each = len(in_channels) // branches
        if len(in_channels) % branches or each <= self.extra_inputs:
            further = f", the last {branches * self.extra_inputs} of them for prototypes" * bool(self.extra_inputs)
            raise ModelConfigError(
                f"'from' names {len(in_channels)} layers: a head of {branches} branches takes a multiple of {branches}{further}"
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
        """Split what belongs to the inputs by branch, the lead one last: its levels in ascending stride, then its further inputs."""
        each = self.levels + self.extra_inputs
        branches = len(inputs) // each
        further = branches * self.levels
        return [
            inputs[self.levels * number : self.levels * (number + 1)]
            + inputs[further + self.extra_inputs * number : further + self.extra_inputs * (number + 1)]
            for number in range(branches)
        ]

    def lead_inputs(self) -> list[int]:
        """Return which of the inputs, by position, the lead branch needs."""
        return self.groups(list(range(self.branches * (self.levels + self.extra_inputs))))[-1]

    def forward(self, features: list[Tensor | None], lead_only: bool = False) -> dict[str, Any]:
        """Return {"main": output, "aux": [output, …]}; inputs of branches that `lead_only` leaves out may be None.

        An output is the list of raw maps (B, 64 + K, h, w), level by level.
        """
        groups = self.groups(features)
        aux = [] if lead_only else [branch(group) for branch, group in zip(self.aux, groups[:-1], strict=True)]
        return {"main": self.lead(groups[-1]), "aux": aux}

    def maps_of(self, output: Any) -> Any:
        """Return the raw maps in one branch's output (or their shapes in its shapes)."""
        return output

    def problem_with(self, shapes: Any, size: int) -> str | None:
        """Say what is wrong with one branch's output shapes for a `size` x `size` image, levels aside; None if nothing is."""
        return None

    def predict(self, output: Any) -> Any:
        """Return what the network returns in evaluation, from the lead branch's output."""
        return self.decode(output)

    def decode(self, output: Any) -> Tensor:
        """Turn one branch's output into (B, 4 + K, A): centre x, centre y, width, height in pixels, class probabilities.

        Half-precision maps are decoded in float32: their 8 or 11 bits do not hold a coordinate of a large image.
        """
        maps_ = self.maps_of(output)
        with torch.autocast(maps_[0].device.type, enabled=False):
            flat = widened(torch.cat([level.flatten(2) for level in maps_], 2))  # (B, 64 + K, A)
            box_logits, class_logits = flat.split((4 * NUM_BINS, flat.shape[1] - 4 * NUM_BINS), 1)
            boxes_xyxy = self.decode_boxes(box_logits, [tuple(level.shape[2:]) for level in maps_])
            return torch.cat((xyxy_to_cxcywh(boxes_xyxy).transpose(1, 2), class_logits.sigmoid()), 1)

    def decode_boxes(self, box_logits: Tensor, maps_hw: list[tuple[int, int]]) -> Tensor:
        """(B, 4 * R, A) logits to (B, A, 4) corners in pixels."""
        points, strides = anchor_points(maps_hw, self.stride, box_logits)
        return decode_boxes(self.lead.dfl(box_logits).transpose(1, 2), points, strides)

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


@layer(head(branches=1), "head", example=(3,))
class Detect(DetectionHead):
    """The head of YOLOv8; with `{cls: depthwise}` that of YOLO11.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); the published structure of YOLOv8
    """

    style = YOLOV8


@layer(head(branches=1), "head", example=(3,))
class V9Detect(DetectionHead):
    """The head that the original YOLOv9 repository calls Detect: DDetect with ungrouped box towers.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024, YOLOv9,
        arxiv.org/abs/2402.13616
    """

    style = YOLOV9_UNGROUPED


@layer(head(branches=1), "head", example=(3,))
class DDetect(DetectionHead):
    """One branch: the head of the GELAN networks.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024, YOLOv9,
        arxiv.org/abs/2402.13616
    """


@layer(head(branches=2), "head", example=(3,))
class DualDDetect(DetectionHead):
    """One auxiliary and one lead branch: the head of the YOLOv9 networks.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024, YOLOv9,
        arxiv.org/abs/2402.13616
    """

    single = "DDetect"


@layer(head(branches=3), "head", example=(3,))
class TripleDDetect(DetectionHead):
    """Two auxiliary branches and a lead one.

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388 (box distributions); Wang, Yeh, Liao 2024, YOLOv9,
        arxiv.org/abs/2402.13616
    """

    single = "DDetect"
