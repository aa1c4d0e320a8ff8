"""Backbones of the timm package, by name. Only this file needs the package (requirements-timm.txt).

Source: Wightman 2019, PyTorch Image Models, doi.org/10.5281/zenodo.4414861.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from models.registry import Channels, Scale, layer, only, rule
from utils.errors import ModelConfigError, did_you_mean

OWN = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "out_indices",
    "in_chans",
)
"""timm keyword arguments that a row must not set."""


def import_timm() -> ModuleType:
    """Return the timm package.

    Raises:
        ModelConfigError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelConfigError(
            "TimmBackbone needs the timm package, which is not installed: "
            "python -m pip install -r requirements-timm.txt"
        ) from error
    return timm


def create(
    name: str,
    in_channels: int,
    out_indices: list[int] | None = None,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a network of timm that returns its feature maps; see TimmBackbone for the arguments.

    Raises:
        ModelConfigError: no such network, settings that it refuses, or weights that cannot be loaded.
    """
    timm = import_timm()
    if not timm.is_model(name) or any(mark in name for mark in ":/"):
        raise ModelConfigError(
            f"timm {timm.__version__} has no network '{name}'.{did_you_mean(name, timm.list_models())}"
        )
    if taken := [key for key in OWN if key in (options or {})]:
        raise ModelConfigError(f"options give {', '.join(taken)}: set them as arguments of the row, or leave them out")
    if out_indices is not None and not out_indices:
        raise ModelConfigError("out_indices is []: expected numbers of feature maps, such as [2, 3, 4]")
    settings = (options or {}) | ({} if out_indices is None else {"out_indices": tuple(out_indices)})
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=in_channels, **settings)
    except OSError as error:
        raise ModelConfigError(
            f"weights of timm's '{name}' cannot be had: {error}: pretrained: "
            "true needs the network once, or timm's cache"
        ) from error
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        what = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelConfigError(
            f"timm's '{name}' cannot be built with pretrained {pretrained}, out_indices {out_indices}, options "
            f"{options}: {what}"
        ) from error


@rule("in_channels")
def as_timm_says(inputs: list[Channels], arguments: dict[str, Any], scale: Scale) -> Channels:
    """One input; the output is a list of maps with the network's own widths, which no width multiple scales."""
    arguments["in_channels"] = only(inputs)
    with torch.device("meta"):
        built = create(
            arguments["name"], arguments["in_channels"], arguments.get("out_indices"), options=arguments.get("options")
        )
    feature_info: Any = built.feature_info
    return list(feature_info.channels())


@layer(
    as_timm_says,
    "block",
    example=("test_resnet", {"out_indices": [0, 1, 2], "options": {"zero_init_last": False}}),
    example_inputs=(3,),
)
class TimmBackbone(nn.Module):
    """A backbone of timm by name; the output is the list of its feature maps, the finest first.

    A row such as [backbone, 1, Pick, [2]] takes one map of the list; `python -m models.yolo` prints their sizes.

    Source: Wightman 2019, PyTorch Image Models, doi.org/10.5281/zenodo.4414861
    Differs: images are in [0, 1]; only `normalize` normalises them as timm's weights expect. The network yaml's
        `activation` and the merging of normalisations for inference do not apply to it.

    Args:
        name: an entry of timm.list_models(), with or without the tag of its weights, such as resnet18 or
            resnet18.a1_in1k.
        pretrained: start from timm's weights, which timm downloads or finds in its cache. Ignored when the network is
            built for a checkpoint's weights or only to be described.
        out_indices: which feature maps, by timm's numbers; all by default.
        normalize: subtract the mean and divide by the standard deviation that the weights were trained with.
        options: further settings of the network, by timm's names.
    Raises:
        ModelConfigError: timm is not installed, or has no such network, or refuses the settings.
    """

    requires = "timm"
    """Package that may be missing."""
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        name: str,
        in_channels: int,
        pretrained: bool = False,
        out_indices: list[int] | None = None,
        normalize: bool = False,
        options: dict | None = None,
    ) -> None:
        super().__init__()
        described = torch.get_default_device().type == "meta"
        self.body = create(name, in_channels, out_indices, pretrained and not described, options)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).rpartition(".")[2] == "NHWC"
        self.normalize = normalize
        if normalize:
            expected = getattr(self.body, "pretrained_cfg", None) or getattr(self.body, "default_cfg", {})
            mean, deviation = expected.get("mean", ()), expected.get("std", ())
            if len(mean) != in_channels:
                raise ModelConfigError(
                    f"normalize: timm's '{name}' knows a mean for {len(mean)} channels, and the input has "
                    f"{in_channels}: leave it out"
                )
            self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
            self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.normalize:
            x = (x - self.mean) / self.deviation
        try:
            maps_ = self.body(x)
        except AssertionError as error:  # networks with a fixed image size refuse others in this way
            raise ModelConfigError(
                f"timm's network does not take a map of {x.shape[2]} x {x.shape[3]}: {error}"
            ) from error
        return [y.permute(0, 3, 1, 2) for y in maps_] if self.channels_last else list(maps_)
