"""A plug-in and a network with its layer, for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.networks import tiny_config

GATE = """\
from torch import Tensor, nn
from models.registry import layer, same


@layer(same)
class Gate(nn.Module):
    def __init__(self, channels: int, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.strength * x * self.gate(x)
"""
RULE_LINE = 5
"""Line of `@layer(same)`."""

Write = Callable[..., Path]


def gated_config(**arguments: Any) -> dict[str, Any]:
    """The tiny network with a Gate at the end of its backbone."""
    config = tiny_config()
    config["backbone"].append([-1, 1, "Gate", [arguments] if arguments else []])
    return config
