"""Layers that wrap another layer, given as an argument: `[-1, 1, Residual, [[RepNCSPELAN4, 512, 512, 256, 1]]]`."""

from typing import Any

import torch
from torch import Tensor, nn

from models.building import InnerLayer, Plan, name_and_arguments, plan_layer
from models.parts import Start
from models.registry import Channels, Rule, Scale, find_layer, layer, only
from utils.errors import ModelConfigError

UNSCALED = Scale()


def plan_wrapped(wrapped: InnerLayer, in_channels: int, repeats: int, scale: Scale) -> Plan:
    """Plan a wrapped layer.

    Raises:
        ModelConfigError: no such layer, arguments that it refuses, or a layer without exactly one input and one output
            map.
    """
    name, arguments = name_and_arguments(wrapped, "layer")
    try:
        plan = plan_layer(find_layer(name), arguments, [in_channels], scale, repeats)
        if not isinstance(plan.channels, int):
            raise ModelConfigError("gives no single map: expected a layer with one input and one output")
    except ModelConfigError as error:
        raise ModelConfigError(f"layer {name}: {error}") from error
    return plan


def build_wrapped(wrapped: InnerLayer, in_channels: int, repeats: int, scale: Scale) -> nn.Module:
    """Build a wrapped layer.

    Raises:
        ModelConfigError: see `plan_wrapped`; or the layer's constructor refuses the arguments.
    """
    plan = plan_wrapped(wrapped, in_channels, repeats, scale)
    try:
        return plan.build()
    except ModelConfigError as error:
        raise ModelConfigError(f"layer {plan.entry.name}: {error}") from error


def around_layer(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """One input; the wrapped layer is scaled like a row of its own and must keep the width."""
    arguments |= {"in_channels": only(inputs), "scale": scale}
    plan = plan_wrapped(arguments["layer"], arguments["in_channels"], arguments.get("repeats", 1), scale)
    width = only([plan.channels])
    if width != arguments["in_channels"]:
        raise ModelConfigError(
            f"the wrapped layer gives {width} channels for {arguments['in_channels']}: "
            "expected one that keeps its width"
        )
    return width


around = Rule(around_layer, fills=("in_channels", "scale"), wraps="layer")


@layer(around, "block", repeats="repeats", example=(["Conv", 16, 3],))
class Residual(nn.Module):
    """Add the wrapped layer's output, times a gain per channel, to its input.

    Source: He et al. 2016, arxiv.org/abs/1512.03385; the gain is the layer scale of Touvron et al. 2021,
        arxiv.org/abs/2103.17239
    Differs: the gain starts at 1, or at 0 with `start: identity`, and can be trained in both cases.

    Args:
        layer: a layer that keeps width and size: its name, or a list of its name and arguments.
        start: `identity` makes the output equal the input at first; `random` is the plain sum.
    """

    def __init__(
        self,
        layer: InnerLayer,
        in_channels: int,
        repeats: int = 1,
        scale: Scale = UNSCALED,
        start: Start = "random",
    ) -> None:
        super().__init__()
        self.inner = build_wrapped(layer, in_channels, repeats, scale)
        self.gain = nn.Parameter(torch.full((in_channels,), 0.0 if start == "identity" else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) * self.gain[:, None, None]
