"""Contact sheets: panels with captions in a grid; a panel shows an image, a map over an image, or numbers as bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.drawing.draw import Colour, put_text, text_height, text_width
from utils.geometry.placement import Placement

PANEL_WIDTH = 320
HIGHEST = 480
"""Images are scaled to the panel's width, but to at most this height in pixels."""
COLUMNS = 4
GAP = 14
LETTERS = 14
BLACK, GREY, BLUE = (0, 0, 0), (110, 110, 110), (49, 104, 142)
OPACITY, MOST_OPACITY = 0.62, 0.85
MOST_BARS = 16
PROFILE_HEIGHT = 90

Image = NDArray[np.uint8]
Scale = Literal["heat", "level", "signed"]
"""Colours of a map: heat, from transparent to bright; level, from dark blue to yellow; signed, blue < 0 < red."""


def _scale_table(scale: Scale) -> Image:
    """Return the 256 RGB colours of a scale, (256, 3)."""
    if scale != "signed":
        ramp = np.arange(256, dtype=np.uint8)[:, None]
        table = cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO if scale == "heat" else cv2.COLORMAP_VIRIDIS)
        return cv2.cvtColor(table, cv2.COLOR_BGR2RGB)[:, 0]
    ends = np.array([(15, 82, 186), (247, 247, 247), (190, 20, 40)], np.float64)
    return (
        np.stack([np.interp(np.arange(256), (0, 127.5, 255), ends[:, channel]) for channel in range(3)], 1)
        .round()
        .astype(np.uint8)
    )


TABLES: dict[Scale, Image] = {scale: _scale_table(scale) for scale in ("heat", "level", "signed")}


class Panel(Protocol):
    """One cell of a contact sheet.

    Attributes:
        caption: paragraphs above the panel.
    """

    caption: Sequence[str]

    def draw(self) -> Image:
        """Draw the panel without its caption: an RGB image, at most `PANEL_WIDTH` pixels wide."""


def shown_size(original_hw: tuple[int, int]) -> tuple[int, int]:
    """Return height and width that an image of `original_hw` has in a panel."""
    factor = min(PANEL_WIDTH / original_hw[1], HIGHEST / original_hw[0])
    return max(1, round(original_hw[0] * factor)), max(1, round(original_hw[1] * factor))


def resized(image: Image, size_hw: tuple[int, int]) -> Image:
    """Resize an RGB image."""
    smaller = size_hw[1] < image.shape[1]
    return cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def laid_over(
    values: NDArray[np.float32], placement: Placement, input_hw: tuple[int, int], size_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Interpolate a map over the network's input linearly at every pixel of the original image, shown at `size_hw`.

    Args:
        values: (h, w), one for each cell; the cells cover the network's input.
        placement: of the original image in the input.
        input_hw: height and width of the input.
        size_hw: height and width of the result; it covers the original image exactly, without the letterbox border.
    """
    for axis in (0, 1):
        side, cells = input_hw[axis], values.shape[axis]
        original, ratio, pad = placement.original_hw[axis], placement.ratio_wh[1 - axis], placement.pad_wh[1 - axis]
        centres = (np.arange(size_hw[axis]) + 0.5) * original / size_hw[axis]
        at = ((centres * ratio + pad) * cells / side - 0.5).clip(0, cells - 1)
        low = np.floor(at).astype(np.int64)
        share = np.expand_dims(at - low, 1 - axis)
        values = (
            np.take(values, low, axis) * (1 - share) + np.take(values, np.minimum(low + 1, cells - 1), axis) * share
        )
    return values.astype(np.float32)


def number(value: float) -> str:
    """Format a number with three digits."""
    return "0" if value == 0 else f"{value:.3g}"


def is_flat(low: float, high: float) -> bool:
    """Tell whether values from `low` to `high` differ by rounding only."""
    return high - low <= 1e-5 * max(abs(low), abs(high))


def wrapped(text: str, width: int = PANEL_WIDTH, size: int = LETTERS) -> list[str]:
    """Break a text between words into lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def text_block(paragraphs: Sequence[str], width: int = PANEL_WIDTH, colour: Colour = BLACK) -> Image:
    """Draw paragraphs on white, `width` pixels wide."""
    lines = [line for paragraph in paragraphs for line in wrapped(paragraph, width)]
    canvas = np.full((len(lines) * text_height(LETTERS) + 4, width, 3), 255, np.uint8)
    for row, line in enumerate(lines):
        put_text(canvas, line, 0, row * text_height(LETTERS), LETTERS, colour)
    return canvas


def stacked(*parts: Image) -> Image:
    """Stack images vertically; pad each with white to the width of the widest."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [cv2.copyMakeBorder(p, 0, 0, 0, width - p.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255)) for p in parts]
    )


@dataclass
class ImagePanel:
    """An image above a legend of its colours.

    Attributes:
        caption: paragraphs above the panel.
        image: (h, w, 3) RGB at the size shown.
        meanings: text and RGB colour of each entry of the legend.
    """

    caption: Sequence[str]
    image: Image
    meanings: Sequence[tuple[str, Colour]] = ()

    def draw(self) -> Image:
        """See Panel."""
        step, left, top, places = text_height(LETTERS), 0, 2, []
        for text, colour in self.meanings:
            width = text_width(text, LETTERS) + 30
            if left and left + width > PANEL_WIDTH:
                left, top = 0, top + step
            places.append((left, top, text, colour))
            left += width
        legend = np.full((top + step + 2, PANEL_WIDTH, 3), 255, np.uint8)
        for left, top, text, colour in places:
            cv2.rectangle(legend, (left, top + 5), (left + 10, top + step - 4), colour, -1)
            put_text(legend, text, left + 15, top, LETTERS, BLACK)
        return stacked(self.image, legend)


@dataclass
class MapPanel:
    """A map over a grey image, above its colour scale.

    Attributes:
        caption: paragraphs above the panel.
        image: (h, w, 3) RGB at the size shown.
        values: (h, w), one for each pixel of `image` (see `laid_over`).
        scale: see `Scale`.
        limits: values at the ends of the colour scale; None takes the map's own range.
        unit: unit of the values.
    """

    caption: Sequence[str]
    image: Image
    values: NDArray[np.float32]
    scale: Scale
    limits: tuple[float, float] | None = None
    unit: str = ""

    def ends(self) -> tuple[float, float]:
        """Return the values at the ends of the colour scale: heat starts at zero, signed is symmetric about zero."""
        low, high = self.limits or (float(self.values.min()), float(self.values.max()))
        if self.scale == "signed":
            high = max(abs(low), abs(high))
            return -high, high
        return (0.0, high) if self.scale == "heat" else (low, high)

    def draw(self) -> Image:
        """See Panel."""
        low, high = self.ends()
        if is_flat(low, high):
            return stacked(self.image, text_block([f"{number(high)} {self.unit}".strip() + " everywhere"]))
        share = ((self.values - low) / (high - low)).clip(0, 1)
        grey = cv2.cvtColor(cv2.cvtColor(self.image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        opacity = self._opacity(share)[:, :, None]
        blended = (grey * (1 - opacity) + self._colours(share) * opacity).round().astype(np.uint8)
        return stacked(blended, self._legend(low, high))

    def _colours(self, share: NDArray[np.floating]) -> Image:
        """Return the colours of values in [0, 1]; heat rises quickly, so that one peak does not hide the rest."""
        return TABLES[self.scale][((share**0.5 if self.scale == "heat" else share) * 255).round().astype(np.uint8)]

    def _opacity(self, share: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the opacity of the colours; heat and signed maps are transparent near zero."""
        if self.scale == "level":
            return np.full_like(share, OPACITY)
        strength = share if self.scale == "heat" else abs(2 * share - 1)
        return MOST_OPACITY * strength**0.5

    def _legend(self, low: float, high: float) -> Image:
        """Draw the colour scale between the numbers at its ends."""
        canvas = np.full((text_height(LETTERS) + 4, PANEL_WIDTH, 3), 255, np.uint8)
        left, right = number(low), f"{number(high)} {self.unit}".strip()
        start, stop = text_width(left, LETTERS) + 6, PANEL_WIDTH - text_width(right, LETTERS) - 6
        canvas[6:-6, start:stop] = self._colours(np.linspace(0, 1, stop - start))
        put_text(canvas, left, 0, 2, LETTERS, BLACK)
        put_text(canvas, right, stop + 6, 2, LETTERS, BLACK)
        return canvas


@dataclass
class BarPanel:
    """Numbers as labelled bars; more than `MOST_BARS` as a profile from the smallest to the largest.

    Attributes:
        caption: paragraphs above the panel.
        values: (n,).
        label: label of a bar; `{}` stands for its number, from 1.
    """

    caption: Sequence[str]
    values: NDArray[np.float32]
    label: str = "{}"

    def draw(self) -> Image:
        """See Panel."""
        return self._bars() if len(self.values) <= MOST_BARS else self._profile()

    def _ends(self) -> tuple[float, float]:
        """Return the range of the axis: 0 to 1, extended to values outside it."""
        return min(0.0, float(self.values.min())), max(1.0, float(self.values.max()))

    def _bars(self) -> Image:
        (low, high), step = self._ends(), text_height(LETTERS) + 4
        names = [self.label.format(index + 1) for index in range(len(self.values))]
        start = max(text_width(name, LETTERS) for name in names) + 8
        room = PANEL_WIDTH - start - text_width("-0.0000", LETTERS) - 6
        canvas = np.full((step * len(names), PANEL_WIDTH, 3), 255, np.uint8)
        zero = start + round(room * -low / (high - low))
        for index, (name, value) in enumerate(zip(names, self.values.tolist(), strict=True)):
            top = index * step
            end = start + round(room * (value - low) / (high - low))
            cv2.rectangle(canvas, (start, top + 4), (start + room, top + step - 5), (232, 232, 232), -1)
            cv2.rectangle(canvas, (min(zero, end), top + 4), (max(zero, end), top + step - 5), BLUE, -1)
            put_text(canvas, name, 0, top + 1, LETTERS, BLACK)
            put_text(canvas, f"{value:.3f}", start + room + 6, top + 1, LETTERS, BLACK)
        return canvas

    def _profile(self) -> Image:
        low, high = self._ends()
        ordered = np.sort(self.values)
        heights = np.interp(np.linspace(0, len(ordered) - 1, PANEL_WIDTH), np.arange(len(ordered)), ordered)
        canvas = np.full((PROFILE_HEIGHT, PANEL_WIDTH, 3), 232, np.uint8)
        zero = PROFILE_HEIGHT - 1 - round((PROFILE_HEIGHT - 1) * -low / (high - low))
        for column, value in enumerate(heights.tolist()):
            end = PROFILE_HEIGHT - 1 - round((PROFILE_HEIGHT - 1) * (value - low) / (high - low))
            canvas[min(zero, end) : max(zero, end) + 1, column] = BLUE
        lowest, mean, highest = (number(float(value)) for value in (ordered[0], ordered.mean(), ordered[-1]))
        numbers = f"lowest {lowest}, mean {mean}, highest {highest}"
        return stacked(
            canvas,
            text_block([numbers, f"axis: {number(low)} to {number(high)}, lowest channel at the left"], colour=GREY),
        )


def contact_sheet(heading: Sequence[str], groups: Sequence[Sequence[Panel]]) -> Image:
    """Draw the heading and the panels row by row, images before bars; a group that fits into a row is not split."""
    images = [[panel for panel in group if not isinstance(panel, BarPanel)] for group in groups]
    charts = [[panel] for group in groups for panel in group if isinstance(panel, BarPanel)]
    rows = [*_rows(images), *_rows(charts)]
    width = max(2, *(len(row) for row in rows)) * (PANEL_WIDTH + GAP) - GAP
    parts = [text_block(heading, width)]
    for row in rows:
        parts += [np.full((GAP, width, 3), 255, np.uint8), _row(row)]
    return cv2.copyMakeBorder(stacked(*parts), *(GAP,) * 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _rows(groups: Sequence[Sequence[Panel]]) -> list[list[Panel]]:
    """Distribute panels over rows."""
    rows: list[list[Panel]] = []
    for group in groups:
        if not rows or len(rows[-1]) + len(group) > COLUMNS:
            rows.append([])
        for panel in group:
            if len(rows[-1]) == COLUMNS:
                rows.append([])
            rows[-1].append(panel)
    return [row for row in rows if row]


def _row(panels: Sequence[Panel]) -> Image:
    """Draw panels beside each other on white; captions end and images start at the same height."""
    captions, bodies = [text_block(panel.caption) for panel in panels], [panel.draw() for panel in panels]
    first = max(len(caption) for caption in captions)
    canvas = np.full(
        (first + max(len(body) for body in bodies), len(panels) * (PANEL_WIDTH + GAP) - GAP, 3), 255, np.uint8
    )
    for index, (caption, body) in enumerate(zip(captions, bodies, strict=True)):
        left = index * (PANEL_WIDTH + GAP)
        canvas[first - len(caption) : first, left : left + PANEL_WIDTH] = caption
        canvas[first : first + len(body), left : left + body.shape[1]] = body
    return canvas
