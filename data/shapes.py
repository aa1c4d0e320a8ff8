"""The built-in data set: images of plane figures with YOLO labels; the same settings give the same bytes.

A label describes the visible part of a figure: inside the image and not covered by a later figure. Files mix rows with
outlines and rows with boxes.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.figures import FIGURES, Figure, paint_background, paint_clutter, paint_figure, random_figure, visible_outline
from data.labels.yolo_txt import row_text
from utils.errors import DataError, did_you_mean
from utils.files import write_json

STAMP = "shapes.json"
GENERATOR = 5  # increase it when a change alters the images: sets with an older number are drawn again
SPLITS = ("train", "val")
BACKGROUND_SHARE = 0.04  # images without any figure
JPEG_QUALITY = 92
ATTEMPTS = 60  # per image, to place figures that are visible enough


@dataclass(frozen=True)
class ShapesSettings:
    """Settings of the built-in set; a pair is the lowest and the highest value, both inclusive.

    Attributes:
        seed: another seed draws another set.
        train, val: images per split.
        image_size: pixels, in steps of 32; height and width are drawn separately.
        figure_size: pixels, diameter of the circle around a figure, uniform.
        figures: per image.
        max_hidden: share of a figure that others may cover.
        box_rows: share of label rows that are boxes instead of outlines.
        hue_hint: share of figures painted near their class's hue; the others have any colour.
    """

    seed: int = 0
    train: int = 400
    val: int = 100
    image_size: tuple[int, int] = (160, 224)
    figure_size: tuple[int, int] = (24, 110)
    figures: tuple[int, int] = (2, 7)
    max_hidden: float = 0.5
    box_rows: float = 0.3
    hue_hint: float = 0.95


def draw_if_needed(root: Path, settings: object, names: Sequence[str], source: Path) -> bool:
    """Draw the set into `root` unless it exists with these settings; return whether it was drawn.

    Args:
        root: folder to draw into: absent, empty, or an older built-in set, which is then replaced.
        settings: mapping from the yaml; its keys are the fields of `ShapesSettings`.
        names: classes to draw.
        source: the yaml, for messages.
    Raises:
        DataError: a setting or class is unknown or out of range, or `root` has other files.
    """
    chosen = _settings(settings, source)
    for name in names:
        if name not in FIGURES:
            raise DataError(
                f"{source}: names: no figure '{name}': expected some of {', '.join(FIGURES)}."
                f"{did_you_mean(name, FIGURES)}"
            )
    wanted = json.loads(json.dumps({"generator": GENERATOR, "names": list(names), **asdict(chosen)}))
    if _read_stamp(root) == wanted:
        return False
    if root.is_dir() and any(root.iterdir()) and not (root / STAMP).is_file():
        raise DataError(
            f"{root}: holds other files (no {STAMP}): "
            f"expected an empty or absent folder to draw into; set another 'path' in {source}"
        )
    print(f"drawing {chosen.train} + {chosen.val} images into {root}")
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for split in SPLITS:
            for index in range(getattr(chosen, split)):
                _write_sample(temporary, split, index, chosen, names)
        write_json(temporary / STAMP, wanted)
        temporary.chmod(0o755)
        _replace_folder(root, temporary, wanted)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def draw_sample(
    settings: ShapesSettings, names: Sequence[str], split: str, index: int
) -> tuple[np.ndarray, list[tuple[Figure, bool]]]:
    """Draw one image.

    Returns:
        (H, W, 3) uint8 RGB, and its figures from bottom to top, each with True if its label row is a box.
    """
    rng = np.random.default_rng((settings.seed, SPLITS.index(split), index))
    low, high = settings.image_size
    height, width = (32 * int(rng.integers(low // 32, high // 32 + 1)) for _ in range(2))
    pixels = paint_background(rng, (height, width))
    paint_clutter(rng, pixels)
    count = 0 if rng.random() < BACKGROUND_SHARE else int(rng.integers(settings.figures[0], settings.figures[1] + 1))
    placed: list[Figure] = []
    visible: list[np.ndarray] = []  # per placed figure the mask of its part that no later figure covers
    for _ in range(ATTEMPTS):
        if len(placed) == count:
            break
        figure = random_figure(rng, str(rng.choice(names)), settings.figure_size, (height, width))
        if figure is None or figure.area == 0:
            continue
        remaining = [other & ~figure.mask for other in visible]
        hidden = [1 - int(part.sum()) / whole.area for part, whole in zip(remaining, placed, strict=True)]
        if max(hidden, default=0) > settings.max_hidden:
            continue
        hue = 360 * names.index(figure.name) / len(names) if rng.random() < settings.hue_hint else None
        paint_figure(rng, pixels, figure, hue)
        placed.append(figure)
        visible = [*remaining, figure.mask]
    return pixels, [(figure, bool(rng.random() < settings.box_rows)) for figure in placed]


def visible_outlines(figures: Sequence[tuple[Figure, bool]]) -> list[np.ndarray]:
    """Return the visible outline (K, 2) in pixels of each figure of `draw_sample`, from bottom to top."""
    return [
        visible_outline(figure, [other for other, _ in figures[number + 1 :]])
        for number, (figure, _) in enumerate(figures)
    ]


def label_row(outline: np.ndarray, class_index: int, as_box: bool, file_hw: tuple[int, int]) -> str:
    """Return the YOLO row of an outline (K, 2) in pixels, or of its box, divided by the image's size."""
    outline = outline / (file_hw[1], file_hw[0])
    low, high = outline.min(0), outline.max(0)
    values = np.concatenate(((low + high) / 2, high - low)) if as_box else outline.reshape(-1)
    return row_text(class_index, values, ".6f")


def _write_sample(root: Path, split: str, index: int, settings: ShapesSettings, names: Sequence[str]) -> None:
    pixels, figures = draw_sample(settings, names, split, index)
    done, encoded = cv2.imencode(".jpg", pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    assert done, "cv2 encodes every uint8 image"
    outlines = visible_outlines(figures)
    rows = [
        label_row(outline, names.index(figure.name), as_box, pixels.shape[:2])
        for outline, (figure, as_box) in zip(outlines, figures, strict=True)
    ]
    name = f"{split}_{index:04d}"
    for kind, file, content in (
        ("images", f"{name}.jpg", encoded.tobytes()),
        ("labels", f"{name}.txt", "".join(f"{row}\n" for row in rows).encode()),
    ):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)  # the whole set is renamed into place once it is complete


def _settings(settings: object, source: Path) -> ShapesSettings:
    known = {field.name: field.default for field in fields(ShapesSettings)}
    if not isinstance(settings, Mapping):
        raise DataError(f"{source}: shapes is {settings!r}: expected a mapping with some of {', '.join(known)}")
    for key, value in settings.items():
        if key not in known:
            raise DataError(
                f"{source}: shapes: unknown key '{key}': expected some of {', '.join(known)}.{did_you_mean(key, known)}"
            )
        if not _fits(value, known[key]):
            raise DataError(
                f"{source}: shapes: {key} is {value!r}: expected {_expected(known[key])}, such as {known[key]}"
            )
    checked: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    chosen = ShapesSettings(**checked)
    if chosen.image_size[0] < 32 or chosen.figure_size[0] < 4:
        raise DataError(f"{source}: shapes: expected image_size from 32 and figure_size from 4 pixels")
    return chosen


def _fits(value: Any, default: object) -> bool:
    if isinstance(default, tuple):
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(type(item) is int for item in value)
            and 0 <= value[0] <= value[1]
        )
    if isinstance(default, float):
        return type(value) in (int, float) and 0 <= value <= 1
    return type(value) is int and value >= 0


def _expected(default: object) -> str:
    if isinstance(default, tuple):
        return "two whole numbers, the lower one first"
    return "a share from 0 to 1" if isinstance(default, float) else "a whole number from 0"


def _read_stamp(root: Path) -> object:
    try:
        return json.loads((root / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _replace_folder(root: Path, drawn: Path, wanted: object) -> None:
    """Replace `root` by the drawn folder, unless another process has drawn the same set meanwhile."""
    old = drawn.with_name(drawn.name + "-old")
    if root.is_dir():
        root.rename(old)
    try:
        drawn.rename(root)
    except OSError:
        if _read_stamp(root) != wanted:
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
