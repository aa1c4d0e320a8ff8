"""Boxes, labels and masks drawn on images.

The font of opencv-python 5 has Chinese, Japanese, Korean, Cyrillic, Greek and Latin letters; opencv-python 4 has ASCII
only. A class name that the installed font cannot draw is replaced by the class number.
"""

import colorsys
import functools
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.files import write_bytes
from utils.geometry.region import Region

HAS_FONT_FACE = hasattr(cv2, "FontFace")
FONT_NAME = "uni"
PROBE_SIZE = 24
RIGHT_TO_LEFT = ("R", "AL")
MASK_OPACITY = 0.45
WRITABLE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

Colour = tuple[int, int, int]


def class_colour(number: int) -> Colour:
    """Return the RGB colour of a class; consecutive numbers differ clearly in hue."""
    hue = (0.02 + number * 0.618034) % 1.0
    value = (1.0, 0.8, 0.9)[number % 3]
    saturation = (0.85, 1.0, 0.65)[(number // 3) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Return black or white: the one with the higher WCAG contrast on an RGB `background`."""
    linear = [(c / 255 / 12.92) if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


@functools.cache
def _probe(character: str) -> bytes:
    canvas = np.zeros((2 * PROBE_SIZE, 2 * PROBE_SIZE), np.uint8)
    cv2.putText(canvas, character, (4, PROBE_SIZE + 8), (255,), cv2.FontFace(FONT_NAME), PROBE_SIZE)
    return canvas.tobytes()


def _can_draw(character: str) -> bool:
    if character.isascii():
        return character.isprintable()
    if not HAS_FONT_FACE or unicodedata.bidirectional(character) in RIGHT_TO_LEFT:  # drawn in the wrong order
        return False
    return character.isspace() or _probe(character) not in (_probe("?"), _probe(" "))


@functools.lru_cache(maxsize=64)
def _drawable(names: tuple[str, ...]) -> tuple[str, ...]:
    texts = [unicodedata.normalize("NFC", name) for name in names]
    good = [bool(text.strip()) and all(_can_draw(character) for character in text) for text in texts]
    numbered = [f"{number} ({names[number]})" for number, drawn in enumerate(good) if not drawn]
    if numbered:
        reason = (
            "the font lacks these letters"
            if HAS_FONT_FACE
            else f"OpenCV {cv2.__version__} draws ASCII only; install opencv-python >= 5 for others"
        )
        print(f"class names drawn as their number ({reason}): {', '.join(numbered)}", file=sys.stderr)
    return tuple(text if drawn else str(number) for number, (text, drawn) in enumerate(zip(texts, good, strict=True)))


def drawable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Replace names that the font cannot draw by class numbers; say so on stderr once for each list of names."""
    return _drawable(tuple(names))


def text_width(text: str, size: int) -> int:
    """Measure the width in pixels of a line of `text` in letters of `size` pixels."""
    if HAS_FONT_FACE:
        return int(cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace(FONT_NAME), size)[2]) if text else 0
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, max(1, size // 14))[0][0])


def text_height(size: int) -> int:
    """Return the height in pixels of a line in letters of `size` pixels, with ascenders and descenders."""
    return round(1.35 * size)


def put_text(image: np.ndarray, text: str, left: int, top: int, size: int, colour: Colour) -> None:
    """Draw a line of `text` into `image`, in place; `left`, `top` is the corner of its line box (see `text_height`)."""
    baseline = (left, top + round(1.02 * size))
    if HAS_FONT_FACE:
        cv2.putText(image, text, baseline, colour, cv2.FontFace(FONT_NAME), size)
    else:
        cv2.putText(image, text, baseline, cv2.FONT_HERSHEY_SIMPLEX, size / 30, colour, max(1, size // 14), cv2.LINE_AA)


def line_width_for(size_hw: tuple[int, int]) -> int:
    """Choose the box line width in pixels for an image of this height and width."""
    return max(1, round(sum(size_hw) / 2 * 0.003))


def letter_size_for(size_hw: tuple[int, int], line_width: int) -> int:
    """Choose the letter size in pixels for an image of this height and width and this line width."""
    return int(np.clip(max(0.018 * sum(size_hw) / 2, 5 * line_width), 11, max(11, min(size_hw) // 6)))


def _draw_regions(image: np.ndarray, regions: Sequence[Region], colours: Sequence[Colour], line_width: int) -> None:
    """Tint the pixels of each region and outline them."""
    for region, colour in zip(regions, colours, strict=True):
        pixels = image[region.window]
        blended = pixels[region.mask] * (1 - MASK_OPACITY) + np.asarray(colour) * MASK_OPACITY
        pixels[region.mask] = blended.round().astype(np.uint8)
        around = np.pad(region.mask, 1).astype(np.uint8)
        contours, _ = cv2.findContours(
            around, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(region.left - 1, region.top - 1)
        )
        cv2.drawContours(image, contours, -1, colour, max(1, line_width // 2))


def _label_corner(
    box: np.ndarray, size_wh: tuple[int, int], limit_wh: tuple[int, int], placed: np.ndarray
) -> tuple[int, int]:
    """Choose a label's top left corner: above the box, inside its top or below it, where it covers no other label."""
    width, height = size_wh
    x1, y1, _, y2 = (int(value) for value in box)
    left = max(0, min(x1, limit_wh[0] - width))
    tops = [top for top in (y1 - height, y1, y2, y2 - height) if 0 <= top <= limit_wh[1] - height]
    for top in tops:
        overlap_w = np.minimum(placed[:, 2], left + width) - np.maximum(placed[:, 0], left)
        overlap_h = np.minimum(placed[:, 3], top + height) - np.maximum(placed[:, 1], top)
        if not ((overlap_w > 0) & (overlap_h > 0)).any():
            return left, top
    return left, tops[0] if tops else max(0, min(y1, limit_wh[1] - height))


def _draw_labels(
    image: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Colour], size: int
) -> None:
    limit_wh = (image.shape[1], image.shape[0])
    placed = np.zeros((len(texts), 4), np.int64)
    margin = max(2, size // 5)
    for index, (box, text, colour) in enumerate(zip(boxes, texts, colours, strict=True)):
        width, height = text_width(text, size) + 2 * margin, text_height(size)
        left, top = _label_corner(box, (width, height), limit_wh, placed[:index])
        placed[index] = left, top, left + width, top + height
        cv2.rectangle(image, (left, top), (left + width - 1, top + height - 1), colour, -1)
        put_text(image, text, left + margin, top, size, text_colour(colour))


def label_texts(
    classes: np.ndarray, scores: np.ndarray | None, names: Sequence[str], hide_conf: bool = False
) -> list[str]:
    """Return the label of each object: the class name and, unless hidden, the confidence with two decimals."""
    shown = drawable_names(names)
    texts = [shown[number] if 0 <= number < len(shown) else str(number) for number in classes.tolist()]
    if scores is None or hide_conf:
        return texts
    return [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray | None = None,
    regions: Sequence[Region] | None = None,
    line_width: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
) -> np.ndarray:
    """Draw objects on a copy of an image, the most confident ones on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) pixels.
        classes: (N,) class numbers.
        names: class names by number.
        scores: (N,) confidences in [0, 1]; None draws labels without them.
        regions: pixels of each object, tinted and outlined; None draws boxes only.
        line_width: pixels; None chooses it by image size.
        hide_labels: draw no labels.
        hide_conf: draw labels without confidences.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    classes = np.asarray(classes).astype(np.int64).reshape(-1)
    order = np.arange(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable")
    size_hw = canvas.shape[:2]
    width = line_width or line_width_for(size_hw)
    colours = [class_colour(number) for number in classes[order].tolist()]
    if regions is not None:
        _draw_regions(canvas, [regions[index] for index in order], colours, width)
    limit = np.array((size_hw[1] - 1, size_hw[0] - 1) * 2)
    corners = boxes[order].round().clip(0, limit).astype(np.int64)
    for (x1, y1, x2, y2), colour in zip(corners.tolist(), colours, strict=True):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, width)
    if not hide_labels and len(boxes):
        ranked = order[::-1]
        texts = label_texts(classes[ranked], None if scores is None else np.asarray(scores)[ranked], names, hide_conf)
        _draw_labels(canvas, corners[::-1], texts, colours[::-1], letter_size_for(size_hw, width))
    return canvas


def write_image(path: str | Path, image: np.ndarray) -> Path:
    """Write an (H, W, 3) uint8 RGB image, whole or not at all; as JPEG where OpenCV cannot write the suffix.

    Returns:
        The path written to: `path`, or the same with the suffix .jpg.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        path = path.with_name(path.name + ".jpg") if not path.suffix else path.with_suffix(".jpg")
    encoded = cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    write_bytes(path, encoded.tobytes())
    return path
