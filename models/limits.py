"""Ranges of a layer's arguments, which stand in its constructor: `reduction: Annotated[int, UP_TO_CHANNELS] = 16`.

They hold for what a row writes. The default of an argument is valid at any width.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The values that make sense for an argument, or for each item of a list.

    Attributes:
        least, most: the smallest and the largest value. Text and None are not compared.
        above: `least` itself is too small.
        below: `most` itself is too large.
        of_channels: the channels of the layer's input are a further bound.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False
    of_channels: bool = False

    def allow(self, value: object, channels: int | None) -> bool:
        """Tell whether a value, or every item of a list, is in range.

        Args:
            channels: of the layer's input, the narrowest of several; None if it is not known.
        """
        if isinstance(value, list | tuple):
            return all(self.allow(item, channels) for item in value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        high_enough = value > self.least if self.above else value >= self.least
        low_enough = value < self.most if self.below else value <= self._most(channels)
        return high_enough and low_enough

    def describe(self, channels: int | None) -> str:
        """Return the range in words, such as "1 to 64, the channels of its input"."""
        least = f"more than {self.least:g}" if self.above else f"{self.least:g}"
        most = f"less than {self.most:g}" if self.below else f"{self._most(channels):g}"
        bound = ", the channels of its input" if self.of_channels and channels == self._most(channels) else ""
        return f"{least} to {most}{bound}"

    def _most(self, channels: int | None) -> float:
        return self.most if channels is None or not self.of_channels else min(self.most, channels)


KERNEL = Limits(1, 31)
"""Side of a kernel. The largest dense one that was published is 31."""
LARGE_KERNEL = Limits(1, 63)
"""Side of a depthwise kernel or of a strip; length of a kernel along the channels."""
STRIDE = Limits(1, 32)
PADDING = Limits(0, 63)
DILATION = Limits(1, 32)
UP_TO_CHANNELS = Limits(1, 4096, of_channels=True)
"""A number of groups or heads, or a reduction: more than the channels leave no channel for each."""
CHANNELS = Limits(1, 16384)
REPEATS = Limits(0, 48)
"""Units in a chain."""
FACTOR = Limits(0, 16, above=True)
"""Ratio of two widths."""
SHARE = Limits(0, 1)
DROPPED = Limits(0, 1, below=True)
"""Probability of leaving something out in training; 1 would leave everything out."""
SMALL = Limits(0, 1, above=True)
"""A number that is added to a sum or a variance so that it cannot be zero."""
CELLS = Limits(1, 32)
"""Parts, windows or cells along one side of a map."""
