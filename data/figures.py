"""Plane figures, textures and backgrounds of the built-in data set's images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from data.augment.sample import SUBPIXEL_BITS, clip_part
from data.labels.annotation import outline_area
from utils.geometry.outlines import join_outlines, nested

Points = NDArray[np.float64]
Pixels = NDArray[np.uint8]
TEXTURES = ("plain", "gradient", "stripes", "squares")
COLOUR_ATTEMPTS = 30
HUE_SPREAD = 18.0  # degrees
MIN_CONTRAST = 110.0  # distance in RGB between a figure's mean colour and the pixels below it
BOX_TOLERANCE = 1.5  # pixels between the box of an outline and the box of its drawn pixels
OVERSAMPLING = 8
MIN_INSIDE = 0.6  # share of a figure that lies inside the image
MIN_PIECE = 4.0  # square pixels; smaller visible pieces and holes are left out of the outline


def _ring_points(radii: NDArray[np.float64] | float, count: int, start: float = -math.pi / 2) -> Points:
    """Return `count` points around the origin at even angles; several `radii` are used in turn."""
    angles = start + 2 * math.pi * np.arange(count) / count
    return np.stack((np.cos(angles), np.sin(angles)), 1) * np.broadcast_to(radii, count)[:, None]


def _star() -> Points:
    return _ring_points(np.tile((1.0, 0.42), 5), 10)


def _ring() -> Points:
    """Return a ring as one outline: around the ring, through a seam, and back around the hole."""
    outer, inner = _ring_points(1.0, 40), 0.55 * _ring_points(1.0, 28)
    return np.concatenate((outer, outer[:1], inner[:1], inner[:0:-1], inner[:1]))


def _cross(arm: float = 0.3) -> Points:
    quarter = np.array(((arm, -1.0), (arm, -arm), (1.0, -arm)))
    turn = np.array(((0.0, 1.0), (-1.0, 0.0)))  # a quarter clockwise on the screen, for row vectors
    outline = np.concatenate([quarter @ np.linalg.matrix_power(turn, count) for count in range(4)])
    return outline / np.linalg.norm(outline, axis=1).max()


FIGURES: dict[str, Callable[[], Points]] = {
    "circle": partial(_ring_points, 1.0, 40),
    "ring": _ring,
    "square": partial(_ring_points, 1.0, 4),
    "triangle": partial(_ring_points, 1.0, 3),
    "star": _star,
    "cross": _cross,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in an image.

    Attributes:
        name: key of FIGURES.
        points: (K, 2) outline x, y in pixels; may reach beyond the image.
        inside: (K, 2) outline of the part inside the image.
        coverage: (H, W) uint8, 255 where the figure covers a pixel whole.
        area: pixels covered by more than half.
    """

    name: str
    points: Points
    inside: Points
    coverage: Pixels
    area: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Return (H, W), True where the figure covers more than half of a pixel."""
        return self.coverage > 127


def random_figure(
    rng: np.random.Generator, name: str, size: tuple[int, int], canvas_hw: tuple[int, int]
) -> Figure | None:
    """Return a figure of random size, stretch, angle and place; None if too much of it would lie outside the image.

    Args:
        size: lowest and highest diameter of the circle around it in pixels; at most 0.8 of the image's shorter side is
            used.
    """
    height, width = canvas_hw
    diameter = rng.uniform(size[0], min(size[1], 0.8 * min(canvas_hw)))
    angle, stretch = rng.uniform(0, 2 * math.pi), np.array((1.0, rng.uniform(0.85, 1.0)))
    turn = np.array(((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))))
    centre = np.array((rng.uniform(0, width), rng.uniform(0, height)))
    points = np.round(FIGURES[name]() * stretch * (diameter / 2) @ turn + centre, 3)
    inside: Points = np.asarray(clip_part(points, (width, height)), np.float64)
    if len(inside) < 3 or outline_area(inside) < MIN_INSIDE * outline_area(points):
        return None
    coverage = _coverage(points, canvas_hw)
    left, top, box_width, box_height = cv2.boundingRect(coverage)
    drawn_xyxy = np.array((left, top, left + box_width, top + box_height))
    if np.abs(np.concatenate((inside.min(0), inside.max(0))) - drawn_xyxy).max() > BOX_TOLERANCE:
        return None  # the clipped outline includes a corner of the image, so its box would be too large
    return Figure(name, points, inside, coverage, int((coverage > 127).sum()))


def _coverage(points: Points, canvas_hw: tuple[int, int]) -> Pixels:
    """Return (H, W) uint8, the share of each pixel inside an outline times 255.

    The outline is drawn enlarged and then shrunk: cv2's own smooth edges make a figure about a pixel too wide.
    """
    coverage = np.zeros(canvas_hw, np.uint8)
    low = np.maximum(np.floor(points.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int), canvas_hw[::-1])
    width, height = (high - low).tolist()
    large = _drawn_large(points, low, (width, height))
    coverage[low[1] : high[1], low[0] : high[0]] = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    return coverage


def _drawn_large(points: Points, corner: NDArray[np.int64], size_wh: tuple[int, int]) -> Pixels:
    """Draw an enlarged outline, filled with 255, in the window of the image at `corner` with size `size_wh`."""
    large = np.zeros((size_wh[1] * OVERSAMPLING, size_wh[0] * OVERSAMPLING), np.uint8)
    fixed = np.round(((points - corner) * OVERSAMPLING - 0.5) * 2**SUBPIXEL_BITS).astype(
        np.int32
    )  # cv2: centre of pixel 0 at 0
    cv2.fillPoly(large, [fixed], 255, cv2.LINE_8, SUBPIXEL_BITS)
    return large


def visible_outline(figure: Figure, above: Sequence[Figure]) -> Points:
    """Return one closed line (K, 2) around the visible part of a figure; exact if no later figure covers it.

    Pieces and holes are joined by seams (`join_outlines`).
    """
    left, top, width, height = cv2.boundingRect(figure.coverage)
    hiding = [other for other in above if (other.coverage[top : top + height, left : left + width] > 0).any()]
    if not any(((other.coverage > 0) & (figure.coverage > 0)).any() for other in hiding):
        return figure.inside
    corner = np.array((left, top))
    large = _drawn_large(figure.points, corner, (width, height))
    for other in hiding:
        large[_drawn_large(other.points, corner, (width, height)) > 0] = 0
    contours, tree = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [
        (cv2.approxPolyDP(contour, 1.0, True).reshape(-1, 2) + 0.5) / OVERSAMPLING + corner for contour in contours
    ]
    pieces = [[outline for outline in piece if outline_area(outline) >= MIN_PIECE] for piece in nested(outlines, tree)]
    return join_outlines([piece for piece in pieces if piece])


def paint_background(rng: np.random.Generator, canvas_hw: tuple[int, int]) -> Pixels:
    """Paint (H, W, 3): a gradient of two colours with coarse and fine noise, sometimes with stripes or squares."""
    colours = rng.integers(20, 236, (2, 3)).astype(np.float32)
    pixels = _texture(rng, canvas_hw, colours, str(rng.choice(TEXTURES, p=(0.2, 0.4, 0.2, 0.2))), contrast=0.35)
    coarse = rng.normal(0, 14, (int(rng.integers(3, 12)), int(rng.integers(3, 12)), 3)).astype(np.float32)
    pixels += cv2.resize(coarse, canvas_hw[::-1], interpolation=cv2.INTER_CUBIC)
    pixels += rng.normal(0, rng.uniform(2, 10), (*canvas_hw, 1))
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def paint_clutter(rng: np.random.Generator, pixels: Pixels) -> None:
    """Draw lines and open arcs that belong to no class."""
    height, width = pixels.shape[:2]
    for _ in range(int(rng.integers(0, 5))):
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        ends = rng.integers(0, (width, height), (2, 2))
        thickness = int(rng.integers(1, 4))
        if rng.random() < 0.5:
            cv2.line(pixels, ends[0].tolist(), ends[1].tolist(), colour, thickness, cv2.LINE_AA)
        else:
            axes = rng.integers(8, max(width, height) // 2, 2).tolist()
            start = int(rng.integers(0, 360))
            cv2.ellipse(
                pixels,
                ends[0].tolist(),
                axes,
                int(rng.integers(0, 180)),
                start,
                start + int(rng.integers(30, 130)),
                colour,
                thickness,
                cv2.LINE_AA,
            )


def random_colours(rng: np.random.Generator, below: NDArray[np.float32], hue: float | None) -> NDArray[np.float32]:
    """Choose two RGB colours (2, 3); the first contrasts with `below` and is near `hue` (degrees) if given."""
    colours = rng.integers(0, 256, (COLOUR_ATTEMPTS, 2, 3)).astype(np.float32)
    if hue is not None:
        wanted = np.stack(
            (
                (hue + rng.uniform(-HUE_SPREAD, HUE_SPREAD, COLOUR_ATTEMPTS)) % 360,
                rng.uniform(0.5, 1, COLOUR_ATTEMPTS),
                rng.uniform(0.35, 1, COLOUR_ATTEMPTS),
            ),
            1,
        ).astype(np.float32)
        colours[:, 0] = 255 * cv2.cvtColor(wanted[None], cv2.COLOR_HSV2RGB)[0]
    return colours[int((np.linalg.norm(colours[:, 0] - below, axis=1) > MIN_CONTRAST).argmax())]


def paint_figure(rng: np.random.Generator, pixels: Pixels, figure: Figure, hue: float | None) -> None:
    """Paint a figure on `pixels` in a random texture that contrasts with them; `hue` as in `random_colours`."""
    left, top, box_width, box_height = cv2.boundingRect(figure.coverage)
    window = slice(top, top + box_height), slice(left, left + box_width)
    below = pixels[window][figure.mask[window]].astype(np.float32).mean(0)
    colours = random_colours(rng, below, hue)
    kind = str(rng.choice(TEXTURES, p=(0.5, 0.2, 0.15, 0.15)))
    paint = _texture(rng, (box_height, box_width), colours, kind, contrast=0.4)
    paint += rng.normal(0, rng.uniform(0, 12), (box_height, box_width, 1))
    alpha = figure.coverage[window][..., None].astype(np.float32) / 255
    pixels[window] = np.clip(np.round(pixels[window] * (1 - alpha) + paint * alpha), 0, 255).astype(np.uint8)


def _texture(
    rng: np.random.Generator, canvas_hw: tuple[int, int], colours: NDArray[np.float32], kind: str, contrast: float
) -> NDArray[np.float32]:
    """Return (H, W, 3) float32: the first colour mixed with up to `contrast` of the second one in a pattern."""
    height, width = canvas_hw
    angle, period = rng.uniform(0, 2 * math.pi), rng.uniform(5, 24)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    if kind == "plain":
        share = np.zeros(canvas_hw, np.float32)
    elif kind == "gradient":
        share = (along - along.min()) / max(float(np.ptp(along)), 1.0)
    elif kind == "stripes":
        share = (np.floor(along / period) % 2).astype(np.float32)
    else:
        share = ((np.floor(along / period) + np.floor(across / period)) % 2).astype(np.float32)
    share = contrast * share[..., None].astype(np.float32)
    return colours[0] * (1 - share) + colours[1] * share
