"""Maps and rows for the tests of necks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.yolo import Model
from tests.networks import tiny_config
from utils.errors import ModelConfigError


def pyramid(*widths: int, size: int = 8, batch: int = 1) -> list[Tensor]:
    """Seeded maps of these widths in float64, each half as large as the one before it, rounded up."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(batch, width, -(-size // 2**n), -(-size // 2**n), generator=generator, dtype=torch.float64)
        for n, width in enumerate(widths)
    ]


def network(*rows: list[Any]) -> dict[str, Any]:
    """The tiny network with 8-channel maps at strides 8, 16, 32 as rows 2, 3, 4, then these rows, then the head."""
    config = tiny_config()
    return config | {"backbone": [*config["backbone"], *rows]}


def refusal(*rows: list[Any]) -> str:
    """What building that network says."""
    with pytest.raises(ModelConfigError) as caught:
        Model(network(*rows))
    return str(caught.value)
