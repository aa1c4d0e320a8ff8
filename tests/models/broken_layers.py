"""Layers that break one promise each, for the checks that must see it."""

from typing import Any, Literal

import torch
from torch import Tensor, nn


class Sound(nn.Module):
    """A 3 x 3 convolution, which keeps all promises."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


class GivesNothing(Sound):
    def forward(self, x: Tensor) -> Any:
        self.conv(x)


class EvenSizesOnly(Sound):
    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return self.conv(x.reshape(batch, channels, height // 2, 2, width // 2, 2).reshape(x.shape))


class RoundsOddSizesUp(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)


class TwiceTheChannels(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), 1)


class LooksAtValues(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.abs().max().item() > 0 else x


class RandomInEvaluation(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x.new_empty(()).uniform_()


class CountsInEvaluation(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.conv(x)


class StateOutsideTheStateDict(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.factor = float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.factor


class KeepsItsOutput(Sound):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.conv(x)
        return self.last


class MixesImages(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x - x.mean(0, keepdim=True))


class ChangesItsInput(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mul_(2))


class AlwaysFloat32(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).float()


class CountsOnStrides(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(len(y), -1).view(x.shape)


class FoldsWrongly(Sound):
    def fold(self) -> None:
        self.conv.weight.data *= 2


class NormalisesOneValue(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.norm(x.mean((2, 3), keepdim=True)).sigmoid()


class UnusedParameter(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.unused = nn.Parameter(torch.ones(channels))


class CutsTheInputOff(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.detach())


class ParameterInAList(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gains = [nn.Parameter(torch.ones(()))]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gains[0].to(x.dtype)


class FormatsMeet(Sound):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mix = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.lerp(y, 2 * y, self.mix.expand(y.shape))


class StartsSomehow(Sound):
    def __init__(self, channels: int, start: Literal["random", "identity"] = "random") -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class OtherWhenCompiled(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (2 if torch.compiler.is_dynamo_compiling() else 1)


class BranchesOnValues(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return x if not x.is_meta and x.sum() > 1e9 else self.conv(x)


class NoOnnxOperation(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(self.conv(x).abs() + 1)


class NoTracedOperation(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sinc(self.conv(x))


class WrongShapeForTheNext(Sound):
    """The tracing exporter takes the batch of the recorded output for a constant, and what follows fails."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(0, 1).unflatten(0, (-1, x.shape[1]))


class FailsAtOneSize(Sound):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 64:
            raise RuntimeError("64 rows are too many")
        return self.conv(x)


BROKEN: dict[str, tuple[type[nn.Module], str]] = {
    "runs": (GivesNothing, "TypeError: gives NoneType: expected a tensor, or a list, tuple or mapping of tensors"),
    "sizes": (EvenSizesOnly, "7 x 12: shape '[1, 8, 3, 2, 6, 2]' is invalid for input of size 672; 9 x 5: "),
    "channels": (TwiceTheChannels, "gives [16] channels at 8 x 8, its rule declares [8]"),
    "shapes": (LooksAtValues, "RuntimeError: Tensor.item() cannot be called on meta tensors"),
    "repeatable": (RandomInEvaluation, "a second evaluation: differs by up to "),
    "modes": (CountsInEvaluation, "evaluation changes calls"),
    "state": (StateOutsideTheStateDict, "another instance with the same state: differs by up to "),
    "copies": (KeepsItsOutput, "RuntimeError: Only Tensors created explicitly by the user"),
    "neighbours": (MixesImages, "the second of three images, alone: differs by up to "),
    "input kept": (ChangesItsInput, "changed in training, by up to "),
    "number formats": (AlwaysFloat32, "float64 in, float32 out"),
    "channels last": (CountsOnStrides, "RuntimeError: view size is not compatible"),
    "folding": (FoldsWrongly, "folded: differs by up to "),
    "one image": (NormalisesOneValue, "ValueError: Expected more than 1 value per channel when training"),
    "gradients": (UnusedParameter, "1 of 3 parameters get none: unused"),
    "input gradients": (CutsTheInputOff, "input 0 of 1 gets none"),
    "optimizer": (ParameterInAList, "1 tensor that learns is no registered parameter"),
    "mixed precision": (FormatsMeet, "RuntimeError: "),
    "identity start": (StartsSomehow, "the input: differs by up to "),
    "compile": (OtherWhenCompiled, "compiled: differs by up to "),
    "export": (BranchesOnValues, "GuardOnDataDependentSymNode: "),
    "cost": (FailsAtOneSize, "RuntimeError: 64 rows are too many"),
    "onnx": (
        NoOnnxOperation,
        "UnsupportedOperatorError: Exporting the operator 'aten::lgamma' to ONNX opset version 18 is not supported",
    ),
}
"""By check: the layer that it is for, and how what it sees begins."""
