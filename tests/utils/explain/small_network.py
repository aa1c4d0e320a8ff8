"""A network of four layers for the tests of feature maps and recorders."""

from torch import Tensor, nn

from models.attention.attention import FocalModulation


class Pair(nn.Module):
    """Gives two maps, as a CBLinear does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Head(nn.Module):
    """Gives a mapping, as a detection head does."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"main": pair[0]}


class SmallNetwork(nn.Module):
    """Four layers: a convolution, a block that holds a Focal Modulation, one with two outputs, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(FocalModulation(4)), Pair(), Head()])

    def forward(self, images: Tensor, raw: bool = False) -> dict[str, Tensor]:
        assert raw, "auxiliary layers must run, too"
        for layer in self.model:
            images = layer(images)
        return images
