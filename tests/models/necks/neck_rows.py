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
    """The tiny network, with maps of 8 channels at strides 8, 16 and 32 as 2, 3 and 4, and with these rows from 5 on before its head."""
    config = tiny_config()
    return config | {"backbone": [*config["backbone"], *rows]}


def refusal(*rows: list[Any]) -> str:
    """What building that network says."""
    with pytest.raises(ModelConfigError) as caught:
        Model(network(*rows))
    return str(caught.value)
