"""Metadata of an exported file: written by export.py, read and checked by utils/inference/exported.py."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data.labels.annotation import Id
from data.labels.coco_categories import are_ids
from utils.errors import CheckpointError
from utils.wording import is_count

FORMAT_VERSION = 1
TASKS = ("detect", "segment")
INPUT_NAME = "images"
OUTPUT_NAMES = {"detect": ("output0",), "segment": ("output0", "prototypes")}
"""Output names by task: the prediction (B, 4 + nc (+ nm), A) and the mask prototypes (B, nm, H / 4, W / 4)."""


@dataclass(frozen=True)
class ExportMetadata:
    """Description of an exported network.

    Attributes:
        names: class names by class number.
        nc: number of classes.
        ch: channels of the images.
        stride: pixels per cell of each level.
        task: one of `TASKS`.
        image_hw: height and width in pixels of a static file; the default size of a dynamic one.
        batch: batch size of a static file.
        dynamic: batch size, height and width are free; height and width must be multiples of `multiple`.
        multiple: what height and width must be multiples of; files of older versions leave it out, then the largest
            stride.
        pixel_range: values that became 0 and 255 in training images of more than 8 bits, if there were any.
        category_ids: category id of each class in the COCO file of the training images, if there was one.
        yolo_loom: version of this format.
    """

    names: list[str]
    nc: int
    ch: int
    stride: list[int]
    task: str
    image_hw: list[int]
    batch: int
    dynamic: bool
    multiple: int
    pixel_range: list[float] | None = None
    category_ids: list[Id] | None = None
    yolo_loom: int = FORMAT_VERSION

    def entries(self) -> dict[str, str]:
        """Return every field as JSON, without those that are None."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: json.dumps(value, ensure_ascii=False) for key, value in fields.items()}


def parse_metadata(entries: Mapping[str, str], where: str) -> ExportMetadata:
    """Parse and check the metadata of a file.

    Args:
        entries: JSON by field name; unknown entries are ignored.
        where: the file, for messages.
    Raises:
        CheckpointError: not from export.py, from a newer version, or a value has a wrong type or range.
    """
    fields = ExportMetadata.__dataclass_fields__
    if "yolo_loom" not in entries:
        raise CheckpointError(f"{where}: no metadata of this framework: expected a file that export.py wrote")
    values: dict[str, Any] = {}
    for key in fields:
        if key in ("multiple", "pixel_range", "category_ids") and key not in entries:
            continue
        try:
            values[key] = json.loads(entries[key])
        except KeyError as error:
            raise CheckpointError(f"{where}: metadata has no '{key}': expected a file that export.py wrote") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{where}: metadata '{key}' is {entries[key][:40]!r}: expected JSON, as export.py writes"
            ) from error
    if not is_count(values["yolo_loom"]) or values["yolo_loom"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: export version {values['yolo_loom']!r}: this framework reads up to {FORMAT_VERSION}; update it"
        )
    for key, fits in checks(values).items():
        if not fits:
            shown = json.dumps(values[key], ensure_ascii=False)[:60]
            raise CheckpointError(f"{where}: metadata '{key}' is {shown}: wrong type or range; export it again")
    return ExportMetadata(**({"multiple": max(values["stride"])} | values))


def checks(values: Mapping[str, Any]) -> dict[str, bool]:
    """Tell for each field whether its value has the right type and range."""
    names, sides, strides = values["names"], values["image_hw"], values["stride"]
    return {
        "nc": is_count(values["nc"]),
        "names": isinstance(names, list)
        and len(names) == values["nc"]
        and all(isinstance(name, str) for name in names),
        "ch": is_count(values["ch"]),
        "stride": isinstance(strides, list) and bool(strides) and all(map(is_count, strides)),
        "task": values["task"] in TASKS,
        "image_hw": isinstance(sides, list) and len(sides) == 2 and all(map(is_count, sides)),
        "batch": is_count(values["batch"]),
        "dynamic": isinstance(values["dynamic"], bool),
        "multiple": is_count(values.get("multiple", 1)),
        "pixel_range": is_range(values.get("pixel_range")),
        "category_ids": values.get("category_ids") is None or are_ids(values["category_ids"], values["nc"]),
    }


def is_range(value: object) -> bool:
    """Tell whether a value is a lowest and a highest number, or None."""
    if not isinstance(value, list):
        return value is None
    return len(value) == 2 and all(type(one) in (int, float) for one in value) and value[0] < value[1]
