"""Networks that several tests use: tiny ones that train in milliseconds, and the shipped ones without memory."""

from functools import cache
from typing import Any

import torch

from models.checks.layer_case import randomise  # noqa: F401 for the tests that import it from here
from models.yolo import Model

HEADS = {1: "DDetect", 2: "DualDDetect", 3: "TripleDDetect"}


def tiny_config(branches: int = 1, nc: int = 3, width: int = 8) -> dict[str, Any]:
    """A network of five convolutions, levels at strides 8, 16 and 32, all branches on the same maps."""
    return {
        "nc": nc,
        "backbone": [[-1, 1, "Conv", [width, 3, 2]] for _ in range(5)],
        "head": [[[2, 3, 4] * branches, 1, HEADS[branches], ["nc"]]],
    }


def tiny_segment_config(branches: int = 1, nc: int = 3, width: int = 8, num_masks: int = 4) -> dict[str, Any]:
    """The network of `tiny_config` with a segmentation head: YOLOv8's, or YOLOv9's of two branches."""
    levels, arguments = [2, 3, 4] * branches, ["nc", num_masks, width]
    head = [levels, 1, "Segment", arguments] if branches == 1 else [[*levels, 1, 1], 1, "DualDSegment", arguments]
    return tiny_config(nc=nc, width=width) | {"head": [head]}


def deep_config(deepest: int = 32, nc: int = 3, width: int = 8) -> dict[str, Any]:
    """A network with levels at strides 8 and 16 whose body goes down to `deepest` and up again to the second level."""
    rows = deepest.bit_length() - 1
    up = [-1, 1, "nn.Upsample", [None, deepest // 16, "nearest"]]
    return {
        "nc": nc,
        "backbone": [[-1, 1, "Conv", [width, 3, 2]] for _ in range(rows)],
        "head": [up, [[-1, 3], 1, "Concat", [1]], [[2, rows + 1], 1, "DDetect", ["nc"]]],
    }


def tiny_model(branches: int = 1, seed: int = 0, **settings: Any) -> Model:
    """The network of `tiny_config`, seeded."""
    torch.manual_seed(seed)
    return Model(tiny_config(branches, **settings))


@cache
def meta_model(name: str) -> Model:
    """A shipped network on the meta device: shapes and counts, no values. Shared: do not change it."""
    with torch.device("meta"):
        return Model(f"{name}.yaml")


@cache
def meta_deployed(name: str) -> Model:
    """The folded lead branch of `meta_model`. Shared: do not change it."""
    return meta_model(name).deploy()


@cache
def meta_pruned(name: str) -> Model:
    """The lead branch of `meta_model`, normalisation not merged. Shared: do not change it."""
    return meta_model(name).deploy(fold=False)


def seeded_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
