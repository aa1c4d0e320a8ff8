"""Plots of a run as PNG: training curves, label statistics, batches with boxes, metric curves, the confusion matrix.

Plots do not use pyplot, so no global state changes. Class names are drawn by utils/drawing/draw.py, whose font has more
letters than matplotlib's.
"""

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, AnnotationBbox, DrawingArea, HPacker, OffsetImage, VPacker
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data.labels.annotation import Annotation
from utils.drawing.draw import (
    class_colour,
    draw_boxes,
    drawable_names,
    put_text,
    text_height,
    text_width,
    write_image,
)
from utils.errors import DataError
from utils.files import write_bytes
from utils.geometry.region import Region
from utils.geometry.rle import cropped
from utils.metrics.detection import DetectionResult

MAX_NAMED_CLASSES = 30
MAX_LEGEND_CLASSES = 20
MAX_BATCH_SIDE = 1920
DPI = 130
FONT_POINTS = 9.0
LETTERS = 32
TRAIN_COLOUR, VAL_COLOUR, MEAN_COLOUR = "#1f6fb2", "#d95f02", "#222222"
HEAT_BINS = 64
MAX_POINTS = 50_000


def _save(figure: Figure, path: str | Path) -> Path:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_bytes(path, content.getvalue())
    return Path(path)


def _figure(width: float, height: float) -> Figure:
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # silences its message about building a cache
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _name_image(name: str, upright: bool = False) -> OffsetImage:
    """Draw a drawable class name in letters of `FONT_POINTS` on transparent ground."""
    ink = np.zeros((text_height(LETTERS), text_width(name, LETTERS) + 4, 3), np.uint8)
    put_text(ink, name, 2, 0, LETTERS, (255, 255, 255))
    pixels = np.concatenate((np.zeros_like(ink), ink[..., :1]), 2)
    if upright:
        pixels = np.ascontiguousarray(np.rot90(pixels))
    return OffsetImage(pixels, zoom=FONT_POINTS / LETTERS, interpolation="antialiased")


def _name_ticks(axes: Axes, names: Sequence[str], axis: str) -> None:
    """Put drawable class names at 0, 1, 2, … beside the x or y axis; keep numbers for more than `MAX_NAMED_CLASSES`."""
    ticks = axes.xaxis if axis == "x" else axes.yaxis
    if len(names) > MAX_NAMED_CLASSES:
        return
    shown = [_name_image(name, upright=axis == "x") for name in names]
    ticks.set_ticks(range(len(names)), [""] * len(names))
    longest = 0.0
    for position, image in enumerate(shown):
        place, alignment = ((position, 0), (0.5, 1)) if axis == "x" else ((0, position), (1, 0.5))
        transform = axes.get_xaxis_transform() if axis == "x" else axes.get_yaxis_transform()
        offset = (0, -5) if axis == "x" else (-5, 0)
        axes.add_artist(
            AnnotationBbox(
                image,
                place,
                offset,
                transform,
                "offset points",
                box_alignment=alignment,
                frameon=False,
                pad=0,
                annotation_clip=False,
            )
        )
        longest = max(longest, np.asarray(image.get_data()).shape[0 if axis == "x" else 1] * FONT_POINTS / LETTERS)
    ticks.labelpad = longest + 4


def _name_legend(axes: Axes, entries: Sequence[tuple[str, object]], location: str) -> None:
    """Add a legend whose entries are (drawable name, matplotlib colour)."""
    rows: list[Artist] = []
    for name, colour in entries:
        swatch = DrawingArea(16, FONT_POINTS)
        swatch.add_artist(Rectangle((0, FONT_POINTS / 2 - 1.5), 16, 3, facecolor=colour, linewidth=0))
        rows.append(HPacker(children=[swatch, _name_image(name)], align="center", pad=0, sep=5))
    box = VPacker(children=rows, align="left", pad=0, sep=2)
    anchored = AnchoredOffsetbox(location, child=box, pad=0.4, borderpad=0.6, frameon=True)
    anchored.patch.set(alpha=0.85, edgecolor="#cccccc")
    axes.add_artist(anchored)


def _unit_colour(number: int) -> tuple[float, float, float]:
    red, green, blue = class_colour(number)
    return red / 255, green / 255, blue / 255


def _read_results(csv_path: str | Path) -> dict[str, NDArray[np.float64]]:
    """Read the columns of a results.csv by name; cells that are no numbers become nan.

    Raises:
        DataError: no rows, or no `epoch` column.
    """
    with Path(csv_path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    header = [name.strip() for name in rows[0]] if rows else []
    if "epoch" not in header or len(rows) < 2:
        raise DataError(
            f"{csv_path}: {max(len(rows) - 1, 0)} rows of columns {header}: expected 'epoch' and at least one row"
        )
    values = np.full((len(rows) - 1, len(header)), np.nan)
    for index, row in enumerate(rows[1:]):
        for column, cell in enumerate(row[: len(header)]):
            try:
                values[index, column] = float(cell)
            except ValueError:
                continue  # stays nan: a gap in the curve
    return {name: values[:, column] for column, name in enumerate(header)}


def plot_results(csv_path: str | Path, png_path: str | Path) -> Path:
    """Draw every column of a results.csv over the epochs: losses (train and val together), metrics, learning rates.

    Raises:
        DataError: the file holds no rows, or no `epoch` column.
    """
    columns = _read_results(csv_path)
    epochs = columns.pop("epoch")
    losses = sorted(
        {name.partition("/")[2] for name in columns if name.startswith(("train/", "val/"))},
        key=list(_tails(columns)).index,
    )
    panels = [
        (loss.replace("_", " "), [(name, label, colour) for name, label, colour in _pair(loss) if name in columns])
        for loss in losses
    ]
    panels += [(name.partition("/")[2], [(name, "val", VAL_COLOUR)]) for name in columns if name.startswith("metrics/")]
    rates = [name for name in columns if name.startswith("x/")]
    if rates:
        panels.append(
            ("learning rate", [(name, name.partition("/")[2], f"C{index}") for index, name in enumerate(rates)])
        )
    across = min(4, max(1, len(panels)))
    down = math.ceil(len(panels) / across)
    figure = _figure(3.4 * across, 2.7 * down)
    for index, (title, series) in enumerate(panels):
        axes = figure.add_subplot(down, across, index + 1)
        for name, label, colour in series:
            axes.plot(
                epochs,
                columns[name],
                marker="." if len(epochs) <= 50 else None,
                color=colour,
                label=label,
                linewidth=1.6,
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=FONT_POINTS)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        if title.endswith("loss") or title == "learning rate":
            axes.legend(fontsize=8)
            axes.set_ylim(bottom=0)
        else:
            axes.set_ylim(0, 1)
    return _save(figure, png_path)


def _tails(columns: dict[str, NDArray[np.float64]]) -> dict[str, None]:
    return dict.fromkeys(name.partition("/")[2] for name in columns)


def _pair(loss: str) -> list[tuple[str, str, str]]:
    return [(f"train/{loss}", "train", TRAIN_COLOUR), (f"val/{loss}", "val", VAL_COLOUR)]


def plot_labels(annotations: Sequence[Annotation], names: Sequence[str], path: str | Path) -> Path:
    """Draw label statistics: objects per class, box centres, box sizes, objects per image.

    Args:
        annotations: one for each image; crowd regions are left out.
        names: class names by number.
        path: PNG file to write.
    """
    kept = [~annotation.crowd for annotation in annotations]
    classes = np.concatenate([a.classes[k] for a, k in zip(annotations, kept, strict=True)] or [np.zeros(0, np.int64)])
    boxes_norm = np.concatenate(
        [
            a.boxes_xyxy[k].reshape(-1, 4) / np.array(a.file_hw[::-1] * 2, np.float64)
            for a, k in zip(annotations, kept, strict=True)
        ]
        or [np.zeros((0, 4))]
    )
    figure = _figure(11, 8.5)
    top_left, top_right, bottom_left, bottom_right = (figure.add_subplot(2, 2, number) for number in range(1, 5))
    _class_bars(top_left, np.bincount(classes, minlength=len(names)), names)
    centres, sizes = (boxes_norm[:, :2] + boxes_norm[:, 2:]) / 2, boxes_norm[:, 2:] - boxes_norm[:, :2]
    heat = np.histogram2d(centres[:, 1], centres[:, 0], bins=HEAT_BINS, range=((0, 1), (0, 1)))[0]
    image = top_right.imshow(heat, extent=(0, 1, 1, 0), cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=top_right, label="objects")
    top_right.set(title="box centres", xlabel="x / image width", ylabel="y / image height")
    chosen = np.random.default_rng(0).permutation(len(classes))[:MAX_POINTS]
    colours = np.array([_unit_colour(number) for number in classes[chosen].tolist()]).reshape(-1, 3)
    bottom_left.scatter(sizes[chosen, 0], sizes[chosen, 1], s=5, c=colours, alpha=0.4, linewidths=0)
    shown = f", {MAX_POINTS} of {len(classes)}" if len(classes) > MAX_POINTS else ""
    bottom_left.set(
        title=f"box sizes{shown}",
        xlabel="width / image width",
        ylabel="height / image height",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    bottom_left.grid(alpha=0.3)
    counts = [int(k.sum()) for k in kept]
    most = max(counts, default=0)
    bins = (np.arange(most + 2) - 0.5).tolist() if most < 60 else 60
    bottom_right.hist(counts, bins=bins, color=TRAIN_COLOUR)
    bottom_right.set(
        title=f"{len(annotations)} images, {len(classes)} objects", xlabel="objects per image", ylabel="images"
    )
    bottom_right.grid(alpha=0.3)
    return _save(figure, path)


def _class_bars(axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    bars = axes.bar(
        range(len(names)), counts[: len(names)], color=[_unit_colour(number) for number in range(len(names))]
    )
    if len(names) <= MAX_LEGEND_CLASSES:
        axes.bar_label(bars, fontsize=8)
    axes.set(title="objects per class", ylabel="objects", xlabel="class", xlim=(-0.6, len(names) - 0.4))
    _name_ticks(axes, drawable_names(names), "x")


def _to_array(values: Tensor | ArrayLike) -> NDArray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def plot_batch(
    images: Tensor | ArrayLike,
    rows: Tensor | ArrayLike,
    names: Sequence[str],
    path: str | Path,
    max_images: int = 16,
    masks: Tensor | ArrayLike | None = None,
) -> Path:
    """Draw the images of a batch side by side, with their objects.

    Args:
        images: (B, 3, H, W) uint8 RGB.
        rows: (N, 6) or (N, 7): image index in the batch, class, centre x, centre y, width, height (normalised), and
            confidence.
        names: class names by number.
        path: image file to write.
        max_images: most images to show.
        masks: (B, h, w) index maps of any size, k at the object in the image's k-th row; None draws boxes only.
    """
    shown = _to_array(images)[:max_images].transpose(0, 2, 3, 1)
    table = _to_array(rows).astype(np.float64)
    table = table if len(table) else np.zeros((0, 6))
    maps = None if masks is None else _to_array(masks)
    across = math.ceil(math.sqrt(len(shown)))
    down = math.ceil(len(shown) / across)
    height, width = shown.shape[1:3]
    scale = min(1.0, MAX_BATCH_SIDE / (max(across * width, down * height)))
    cell_h, cell_w = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = np.full((down * cell_h, across * cell_w, 3), 255, np.uint8)
    for index, image in enumerate(shown):
        small = cv2.resize(np.ascontiguousarray(image), (cell_w, cell_h), interpolation=cv2.INTER_AREA)
        mine = table[table[:, 0] == index]
        boxes = np.concatenate((mine[:, 2:4] - mine[:, 4:6] / 2, mine[:, 2:4] + mine[:, 4:6] / 2), 1) * (
            cell_w,
            cell_h,
            cell_w,
            cell_h,
        )
        regions = None if maps is None else _regions_of(maps[index], len(mine), (cell_h, cell_w))
        drawn = draw_boxes(small, boxes, mine[:, 1], names, mine[:, 6] if mine.shape[1] > 6 else None, regions)
        drawn[[0, -1]], drawn[:, [0, -1]] = 255, 255
        top, left = index // across * cell_h, index % across * cell_w
        canvas[top : top + cell_h, left : left + cell_w] = drawn
    return write_image(path, canvas)


def _regions_of(index_map: NDArray, count: int, size_hw: tuple[int, int]) -> list[Region]:
    """Resize an index map to `size_hw` and return the regions of its `count` objects."""
    large = cv2.resize(index_map.astype(np.int16), size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return [cropped(large == number) for number in range(1, count + 1)]


def plot_curves(result: DetectionResult, names: Sequence[str], folder: str | Path, prefix: str = "") -> list[Path]:
    """Write PR_curve.png, F1_curve.png, P_curve.png and R_curve.png at IoU 0.5: a line for each class and the mean.

    Args:
        prefix: start of the file names.
    """
    folder = Path(folder)
    area = [f"AP {value:.3f}" for value in result.class_ap[:, 0].tolist()]
    best = f"F1 {result.f1:.2f} at {result.confidence:.2f}"
    mean = f"mAP {result.map50:.3f}"
    files = [
        _plot_curve(
            result.recall_points,
            result.pr_curve,
            result,
            names,
            folder / f"{prefix}PR_curve.png",
            ("recall", "precision"),
            area,
            mean,
        )
    ]
    for curves, label, file in (
        (result.f1_curve, "F1", "F1_curve.png"),
        (result.precision_curve, "precision", "P_curve.png"),
        (result.recall_curve, "recall", "R_curve.png"),
    ):
        note = best if label == "F1" else ""
        files.append(
            _plot_curve(
                result.confidence_points,
                curves,
                result,
                names,
                folder / f"{prefix}{file}",
                ("confidence", label),
                [],
                note,
            )
        )
    return files


def _plot_curve(
    points: NDArray[np.float64],
    curves: NDArray[np.float64],
    result: DetectionResult,
    names: Sequence[str],
    path: Path,
    labels: tuple[str, str],
    class_notes: Sequence[str],
    mean_note: str,
) -> Path:
    figure = _figure(7.5, 5)
    axes = figure.add_subplot()
    shown = drawable_names(names)
    entries: list[tuple[str, object]] = [(f"all classes {mean_note}".strip(), MEAN_COLOUR)]
    few = len(curves) <= MAX_LEGEND_CLASSES
    for row, (number, curve) in enumerate(zip(result.classes.tolist(), curves, strict=True)):
        colour = _unit_colour(number) if few else (0.7, 0.7, 0.7)
        axes.plot(points, curve, linewidth=1.1, color=colour)
        if few:
            entries.append((f"{shown[number]} {class_notes[row] if class_notes else ''}".strip(), colour))
    if len(curves):
        axes.plot(points, curves.mean(0), linewidth=2.4, color=MEAN_COLOUR)
    else:
        axes.text(0.5, 0.5, "no labelled object", ha="center")
    axes.set(
        xlabel=labels[0], ylabel=labels[1], xlim=(0, 1), ylim=(0, 1.02), title=f"{labels[1]} over {labels[0]}, IoU 0.5"
    )
    axes.grid(alpha=0.3)
    _name_legend(axes, entries, "lower left")
    return _save(figure, path)


def plot_confusion(matrix: ArrayLike, names: Sequence[str], path: str | Path) -> Path:
    """Draw a confusion matrix; each column shows shares of its true class.

    Args:
        matrix: (nc + 1, nc + 1) counts: rows predicted, columns true, the background last.
        names: class names by number.
        path: PNG file to write.
    """
    counts = np.asarray(matrix, np.float64)
    shares = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    labels = [*drawable_names(names), "background"]
    side = float(np.clip(0.42 * len(labels) + 3, 5, 16))
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    image = axes.imshow(np.where(counts > 0, shares, np.nan), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class (column)", shrink=0.8)
    if len(labels) <= MAX_NAMED_CLASSES:
        for row, column in np.argwhere(counts > 0).tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = (
                f"{shares[row, column]:.2f}\n{counts[row, column]:.0f}"
                if len(labels) <= 12
                else f"{shares[row, column]:.2f}"
            )
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8 if len(labels) <= 12 else 6)
    axes.set(xlabel="true", ylabel="predicted", title="confusion matrix: share (and count) of each true class")
    _name_ticks(axes, labels, "x")
    _name_ticks(axes, labels, "y")
    return _save(figure, path)
