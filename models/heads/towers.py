"""Towers: the convolutions over each level that predict box distances, class logits and mask coefficients.

Dimension letters: B batch, A anchor points of all levels, K classes, R = 16 bins.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.attention.dynamic_conv import Route
from models.building import InnerLayer, build_inner
from models.common import Conv
from utils.errors import ModelConfigError
from utils.geometry.anchors import NUM_BINS
from utils.image_size import IMAGE_SIZE
from utils.wording import is_count


class DFL(nn.Module):
    """Expected distance of each box side from its distribution over bins 0 … 15 (frozen weights).

    Source: Li et al. 2020, Generalized Focal Loss, arxiv.org/abs/2006.04388, section 3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(NUM_BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.copy_(torch.arange(NUM_BINS, dtype=self.conv.weight.dtype).view(1, NUM_BINS, 1, 1))

    def forward(self, logits: Tensor) -> Tensor:
        """Turn (B, 4 * R, A) side-major logits into (B, 4, A) distances in cells."""
        # `view`, because ONNX writes `unflatten` with Mod, which some runtimes lack, and not below opset 13
        sides = logits.view(-1, 4, NUM_BINS, logits.shape[2]).transpose(1, 2).softmax(1)  # (B, R, 4, A)
        return nn.functional.conv2d(sides, self.conv.weight.to(sides.dtype)).squeeze(1)


class OutputConv(nn.Conv2d):
    """The last convolution of a tower; it converts its input to its own dtype.

    A network that runs inference in bf16 or fp16 keeps it in float32 (utils/precision.py): box logits rounded to 8 bits
    move the mAP50-95 of a small validation set by 0.002, and these layers cost next to nothing.
    """

    full_precision = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


Tower = Literal["box", "cls", "mask"]
"""The towers of a head: box distances, class logits, mask coefficients."""

TowerUnit = InnerLayer | dict
"""A layer that replaces the second unit of the towers (models/building.py), or a mapping of towers to such layers."""

Width = int | list[int]
"""A hidden width, or one for each branch."""
WIDTHS = ("class_width", "box_width", "mask_width")


@dataclass(frozen=True)
class TowerSettings:
    """Settings of a head's towers that a yaml row may give; None means the family's default.

    Attributes:
        box_groups: groups of the box towers' second and last convolution; 1 means ungrouped.
        cls: form of the class towers' units: a 3 x 3 convolution, or a depthwise 3 x 3 and a 1 x 1 (YOLO11).
        class_width, box_width, mask_width: hidden width of the class, box and mask towers; a list has one for each
            branch, the lead one last. Of a longer list the last ones are taken.
        dynamic: towers whose second unit is a DynamicConv: a list of box, cls and mask. `true` means the box and mask
            towers and, if its units are depthwise, the class tower. In a depthwise unit only the 1 x 1 is replaced.
        experts, route: of the DynamicConv; see DynamicConv2d.
        unit: a layer that replaces the second unit of every tower, such as MBConv or [MBConv, {expansion: 2}];
            a mapping such as {cls: MBConv} does so for the towers that it names.
    """

    box_groups: int | None = None
    cls: Literal["dense", "depthwise"] | None = None
    class_width: Width | None = None
    box_width: Width | None = None
    mask_width: Width | None = None
    dynamic: bool | list[Tower] = False
    experts: int = 4
    route: Route = "sigmoid"
    unit: TowerUnit | None = None

    def units(self, towers: Sequence[Tower]) -> dict[Tower, InnerLayer]:
        """Return the layer that `unit` gives each tower.

        Raises:
            ModelConfigError: it names a tower that the head does not have.
        """
        if self.unit is None:
            return {}
        named = self.unit if isinstance(self.unit, dict) else dict.fromkeys(towers, self.unit)
        if unknown := [name for name in named if name not in towers]:
            raise ModelConfigError(
                f"unit names the towers {', '.join(map(str, unknown))}: expected some of {', '.join(towers)}"
            )
        return dict(named)

    def dynamic_towers(self, towers: Sequence[Tower], depthwise: bool) -> list[Tower]:
        """Return the towers that `dynamic` selects.

        Raises:
            ModelConfigError: it names a tower that the head does not have.
        """
        if not isinstance(self.dynamic, list):
            return [name for name in towers if name != "cls" or depthwise] if self.dynamic else []
        if unknown := [name for name in self.dynamic if name not in towers]:
            raise ModelConfigError(
                f"dynamic names the towers {', '.join(unknown)}: expected some of {', '.join(towers)}"
            )
        return self.dynamic

    def dynamic_conv(self, kernel_size: int, groups: int = 1) -> InnerLayer:
        """Return the inner layer for a tower that `dynamic` selects."""
        return ["DynamicConv", kernel_size, {"groups": groups, "experts": self.experts, "route": self.route}]


def width_of(key: str, width: Width | None, branch: int, branches: int) -> int | None:
    """Return the width of one branch from a setting that has one width, or one for each branch.

    Args:
        key: name of the setting.
        branch: number of the branch; the lead one is the last.
    Raises:
        ModelConfigError: it is no positive number, or a list with too few of them.
    """
    numbers = width if isinstance(width, list) else [width] * branches
    if width is not None and not all(map(is_count, numbers)):
        raise ModelConfigError(f"{key} is {width}: expected a positive number, or a list of one for each branch")
    if len(numbers) < branches:
        raise ModelConfigError(
            f"{key} is {width}: expected {branches} numbers, one for each branch, or a single number"
        )
    return numbers[len(numbers) - branches + branch]


@dataclass(frozen=True)
class TowerStyle:
    """Form of the towers, which differs between the families.

    Attributes:
        box_groups: groups of the box tower's second and last convolution.
        width_per_class, most_for_classes: the class tower's hidden width is the first input's width or, if larger,
            `width_per_class` times the number of classes; that product counts at most `most_for_classes`.
        class_width, box_width, mask_width: the hidden width of these towers, if it does not follow the rule.
        depthwise: whether a class tower's unit is a depthwise 3 x 3 and a 1 x 1 convolution instead of a 3 x 3.
        units: layers that replace the second unit, by tower.
        pointwise: a layer that replaces the second 1 x 1 convolution of a depthwise class tower.
    """

    box_groups: int = 1
    width_per_class: int = 1
    most_for_classes: int = 100
    class_width: int | None = None
    box_width: int | None = None
    mask_width: int | None = None
    depthwise: bool = False
    units: dict[Tower, InnerLayer] = field(default_factory=dict)
    pointwise: InnerLayer | None = None

    def of_branches(self, settings: TowerSettings, towers: Sequence[Tower], branches: int) -> Iterator["TowerStyle"]:
        """Yield the style of each branch with a row's settings, the lead branch last.

        Args:
            towers: names of the head's towers.
        Raises:
            ModelConfigError: a number is not positive, a width does not fit the groups, the head has no such tower, or
                `unit` and `dynamic` name the same one.
        """
        style = self._with_settings(settings, towers)
        if settings.mask_width is not None and "mask" not in towers:
            raise ModelConfigError(f"mask_width is {settings.mask_width}: the head has no mask towers: leave it out")
        for branch in range(branches):
            class_width, box_width, mask_width = (
                width_of(key, getattr(settings, key), branch, branches) for key in WIDTHS
            )
            if (box_width or 0) % style.box_groups:
                raise ModelConfigError(
                    f"box_width is {settings.box_width}: expected a multiple of box_groups, {style.box_groups}"
                )
            yield replace(style, class_width=class_width, box_width=box_width, mask_width=mask_width)

    def _with_settings(self, settings: TowerSettings, towers: Sequence[Tower]) -> "TowerStyle":
        """Return the style with a row's settings, without its widths."""
        if settings.box_groups is not None and not is_count(settings.box_groups):
            raise ModelConfigError(f"box_groups is {settings.box_groups}: expected a positive number")
        box_groups = settings.box_groups or self.box_groups
        depthwise = self.depthwise if settings.cls is None else settings.cls == "depthwise"
        units, dynamic = settings.units(towers), settings.dynamic_towers(towers, depthwise)
        if taken := [name for name in units if name in dynamic]:
            raise ModelConfigError(
                f"unit and dynamic both name the second unit of the towers {', '.join(taken)}: leave one of them out"
            )
        pointwise = None
        for name in dynamic:
            if name == "cls" and depthwise:
                pointwise = settings.dynamic_conv(1)
            else:
                units[name] = settings.dynamic_conv(3, box_groups if name == "box" else 1)
        return replace(
            self,
            box_groups=box_groups,
            depthwise=depthwise,
            units=units,
            pointwise=pointwise,
        )

    def box_tower_width(self, first: int) -> int:
        """Return the hidden width of the box towers; `first` is the channel count of the first level."""
        return self.box_width or math.ceil(max(first // 4, 4 * NUM_BINS, 16) / self.box_groups) * self.box_groups

    def mask_tower_width(self, first: int, num_masks: int) -> int:
        """Return the hidden width of the mask towers; `first` is the channel count of the first level."""
        return self.mask_width or max(first // 4, num_masks)

    def class_tower_width(self, first: int, num_classes: int) -> int:
        """Return the hidden width of the class towers; `first` is the channel count of the first level."""
        return self.class_width or max(first, min(self.width_per_class * num_classes, self.most_for_classes))

    def tower(self, name: Tower, channels: int, width: int, outputs: int, groups: int = 1) -> nn.Sequential:
        """Build two 3 x 3 units and a 1 x 1 convolution; the last two have `groups` groups."""
        first = Conv(channels, width, 3)
        second = self._unit(name, width) if name in self.units else Conv(width, width, 3, groups=groups)
        return nn.Sequential(first, second, OutputConv(width, outputs, 1, groups=groups))

    def class_tower(self, channels: int, width: int, num_classes: int) -> nn.Sequential:
        """Build the class tower of one level."""
        if not self.depthwise:
            return self.tower("cls", channels, width, num_classes)
        first = nn.Sequential(Conv(channels, channels, 3, groups=channels), Conv(channels, width))
        second = self._unit("cls", width) if "cls" in self.units else self._depthwise_unit(width)
        return nn.Sequential(first, second, OutputConv(width, num_classes, 1))

    def _unit(self, name: Tower, width: int) -> nn.Module:
        return build_inner(self.units[name], width, f"unit of the {name} tower")

    def _depthwise_unit(self, width: int) -> nn.Sequential:
        depthwise = Conv(width, width, 3, groups=width)
        if self.pointwise is None:
            return nn.Sequential(depthwise, Conv(width, width))
        return nn.Sequential(depthwise, build_inner(self.pointwise, width, "1 x 1 of the cls tower"))


YOLOV9 = TowerStyle(box_groups=4, width_per_class=2, most_for_classes=128)
YOLOV9_UNGROUPED = replace(YOLOV9, box_groups=1)
YOLOV8 = TowerStyle()


def _output_bias(tower: nn.Module) -> Tensor:
    """Return the bias of a tower's last layer."""
    assert isinstance(tower, nn.Sequential)
    bias = tower[-1].bias
    assert isinstance(bias, Tensor)
    return bias


class Branch(nn.Module):
    """Box and class towers over the levels of one group of inputs.

    Args:
        in_channels: channels of each level; the first sets the width of all towers.
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
        """Set the biases to predict boxes of about one cell, and 5 objects in a 640-pixel image."""
        for box, cls, step in zip(self.box, self.cls, stride, strict=True):
            box_bias, class_bias = _output_bias(box), _output_bias(cls)
            box_bias.data.fill_(1.0)
            class_bias.data.fill_(math.log(5 / num_classes / (IMAGE_SIZE / step) ** 2))
