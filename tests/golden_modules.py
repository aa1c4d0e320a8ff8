"""Build the modules that the reference files describe: our layers, and compositions of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention.acmix import ACmix
from models.attention.attention import FocalModulation, FocalModulationBlock
from models.attention.dynamic_conv import DynamicConv, DynamicConv2d, ExpertConv2d
from models.attention.gather_excite import GatherExcite

Settings = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """A kind of reference module.

    Attributes:
        build: builds ours from the reference's constructor arguments.
        names: what the reference's array names start with, and what ours do; the first that fits counts.
        inputs: intermediates of the file that are inputs of the module, after the map.
    """

    build: Callable[[Settings], nn.Module]
    names: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    def our_name(self, name: str) -> str:
        """Return our name of a parameter or buffer."""
        start = next((start for start in self.names if name.startswith(start)), "")
        return self.names.get(start, "") + name.removeprefix(start)


def renamed(cfg: Settings, **names: str) -> Settings:
    """Return arguments by our names; the others keep theirs."""
    return {names.get(key, key): value for key, value in cfg.items()}


def focal_modulation(cfg: Settings) -> nn.Module:
    """Build the layer that a reference FocalModulation's arguments describe."""
    return FocalModulation(**renamed(cfg, dim="channels"))


def focal_block(defaults: Settings) -> Callable[[Settings], nn.Module]:
    """Return a builder of the layer that a reference block's arguments, over its own defaults, describe."""
    return lambda cfg: FocalModulationBlock(**renamed(defaults | cfg, dim="in_channels"))


def gather_excite(cfg: Settings) -> nn.Module:
    """Build timm's GatherExcite with these arguments.

    Its global convolution is zero-padded, and its MLP is on by default.
    """
    size_hw = (
        tuple(cfg["feat_size"])
        if cfg.get("feat_size") and cfg.get("extra_params") and not cfg.get("extent", 0)
        else None
    )
    return GatherExcite(
        cfg["channels"],
        cfg.get("extent", 0),
        "theta" if cfg.get("extra_params") else "theta-minus",
        size_hw,
        mlp=cfg.get("use_mlp", True),
        mlp_ratio=cfg.get("rd_ratio", 1 / 16),
        hidden_channels=cfg.get("rd_channels"),
        maxpool=cfg.get("add_maxpool", False),
        pad_global=size_hw is not None,
    )


def acmix(cfg: Settings) -> nn.Module:
    """Build the layer that a reference ACmix's arguments describe."""
    return ACmix(**renamed(cfg, in_planes="in_channels", out_planes="out_channels", head="heads"))


def dynamic_conv(cfg: Settings) -> nn.Module:
    """Build the bare convolution that a reference DynamicConv's arguments describe; its padding '' is ours for None."""
    ours = renamed(cfg, in_features="in_channels", out_features="out_channels", num_experts="experts")
    return DynamicConv2d(**ours | {"padding": ours.get("padding") if ours.get("padding") != "" else None})


def dynamic_conv_bn_act(cfg: Settings) -> nn.Module:
    """Build DynamicConv with the reference's eps."""
    ours = renamed(cfg, in_features="in_channels", out_features="out_channels", num_experts="experts")
    module = DynamicConv(**ours)
    module.bn.eps = 1e-5
    return module


def dynamic_conv_softmax(cfg: Settings) -> nn.Module:
    """Build the bare convolution with the paper's routing."""
    ours = renamed(cfg, in_ch="in_channels", out_ch="out_channels", k="kernel_size", hidden="router_channels")
    assert ours.pop("act") == "relu", "the hidden activation of the routing is ReLU"
    return DynamicConv2d(**ours, route="mlp_softmax")


class GhostModule(nn.Module):
    """ParameterNet's dynamic convolution: a 1 x 1 one, then a cheap depthwise one for half of the channels."""

    def __init__(self, inp: int, oup: int, num_experts: int = 4) -> None:
        super().__init__()
        self.channels, half = oup, -(-oup // 2)
        self.primary_conv = nn.Sequential(
            DynamicConv2d(inp, half, experts=num_experts), nn.BatchNorm2d(half), nn.ReLU()
        )
        cheap = DynamicConv2d(half, half, 3, groups=half, experts=num_experts)
        self.cheap_operation = nn.Sequential(cheap, nn.BatchNorm2d(half), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary_conv(x)
        return torch.cat((first, self.cheap_operation(first)), 1)[:, : self.channels]


class WindowACmix(nn.Module):
    """ACmix in windows that do not overlap, with a table of position biases: the form for Swin Transformers."""

    def __init__(self, dim: int, window_size: list[int], num_heads: int) -> None:
        super().__init__()
        (rows, columns), self.window = window_size, window_size
        self.heads, self.depth = num_heads, dim // num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * rows - 1) * (2 * columns - 1), num_heads))
        self.fc = nn.Conv2d(3 * num_heads, 9, 1)
        self.dep_conv = nn.Conv2d(9 * self.depth, dim, 3, padding=1, groups=self.depth, bias=False)
        self.rate1, self.rate2 = nn.Parameter(torch.full((1,), 0.5)), nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        projected = self.qkv(x.permute(0, 2, 3, 1)).view(batch, height, width, 3, self.heads, self.depth)
        mixed = self.fc(projected.permute(0, 3, 4, 5, 1, 2).reshape(batch, 3 * self.heads, self.depth, height * width))
        convolved = self.dep_conv(mixed.transpose(1, 2).reshape(batch, -1, height, width))
        rows, columns = self.window
        cells = projected.view(batch, height // rows, rows, width // columns, columns, 3, self.heads, self.depth)
        cells = cells.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)  # (3, B, windows down, across, heads, cells, D)
        query, key, value = cells.unbind()
        weights = (query @ key.transpose(-1, -2) * self.depth**-0.5 + self.position_biases()).softmax(-1)
        gathered = (weights @ value).unflatten(4, (rows, columns)).permute(0, 1, 4, 2, 5, 3, 6)
        gathered = self.proj(gathered.reshape(batch, height, width, channels)).permute(0, 3, 1, 2)
        return self.rate1 * gathered + self.rate2 * convolved

    def position_biases(self) -> Tensor:
        """Return (heads, cells, cells)."""
        rows, columns = self.window
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        row, column = (axis.flatten()[:, None] - axis.flatten() for axis in (row, column))
        index = (row + rows - 1) * (2 * columns - 1) + column + columns - 1
        return self.relative_position_bias_table[index].permute(2, 0, 1)


CAFFE_NAMES = {
    "gather.": "gather.conv1.",
    "gather_bn.": "gather.norm1.",
    "excite_down.": "mlp.fc1.",
    "excite_up.": "mlp.fc2.",
}

REFERENCES: dict[str, Reference] = {
    "FocalModulation": Reference(focal_modulation),
    "FocalModulation_det": Reference(lambda cfg: focal_modulation({"focal_window": 7, "focal_level": 2} | cfg)),
    "FocalNetBlock": Reference(focal_block({"focal_window": 3, "focal_level": 1})),
    "FocalModulationBlock_det": Reference(focal_block({})),
    "GatherExcite": Reference(gather_excite),
    "GE_caffe_theta": Reference(
        lambda cfg: GatherExcite(cfg["channels"], "global", "theta", tuple(cfg["feat_size"])), CAFFE_NAMES
    ),
    "GE_caffe_thetaplus": Reference(
        lambda cfg: GatherExcite(
            cfg["channels"], "global", "theta-plus", tuple(cfg["feat_size"]), hidden_channels=cfg["reduced"]
        ),
        CAFFE_NAMES,
    ),
    "ACmix": Reference(acmix),
    "WindowAttention_acmix": Reference(lambda cfg: WindowACmix(**cfg)),
    "DynamicConv": Reference(dynamic_conv),
    "DynamicConvBNAct": Reference(dynamic_conv_bn_act, {"0.": "conv.", "1.": "bn."}),
    "CondConv2d": Reference(
        lambda cfg: ExpertConv2d(**renamed(cfg, num_experts="experts")), inputs=("routing_weights",)
    ),
    "GhostModule": Reference(lambda cfg: GhostModule(**cfg)),
    "DynamicConv_softmax": Reference(dynamic_conv_softmax, {"weight": "cond_conv.weight", "fc": "routing.fc"}),
}
"""By the kind that a reference file names."""


def build(meta: str) -> tuple[Reference, nn.Module]:
    """Return the kind and our module, in float64 and evaluation mode, of a reference file's description.

    Raises:
        KeyError: another kind.
    """
    described = json.loads(meta)
    reference = REFERENCES[described["kind"]]
    return reference, reference.build(described["cfg"]).double().eval()


def gradients(module: nn.Module, inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of its product with `upstream` by parameter; frozen parameters' are zero."""
    output = module(*inputs)
    functional.linear(output.flatten(), upstream.flatten()[None]).backward()
    zero = {
        name: torch.zeros_like(parameter)
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    }
    return output, zero | {
        name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad
    }
