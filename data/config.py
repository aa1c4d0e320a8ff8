"""The data yaml: the images of each split and the class names.

Keys: `path` (root; relative to the yaml's folder, then to the working folder), `train`, `val`, `test` (an image folder,
a .txt list of images, a COCO .json file, or a list of these; relative to the root), `names` (list, or mapping from
0..n-1; may be left out where a split is a COCO file), `nc` (checked against names), `images` (image folder of
COCO files: one, or a mapping by split), `shapes` (settings of the drawn set, data/shapes.py). `download` is a note for
readers; it is never run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.labels.coco_json import read_categories
from data.shapes import draw_if_needed
from utils.errors import DataError, did_you_mean
from utils.files import find_shipped, read_yaml

SPLITS = ("train", "val", "test")
INERT_KEYS = ("download", "roboflow")  # common notes about the origin of the files
KNOWN_KEYS = ("path", *SPLITS, "names", "nc", "images", "shapes", *INERT_KEYS)


@dataclass(frozen=True)
class DataConfig:
    """A data yaml with resolved paths; `sources` checks that a split exists.

    Attributes:
        path: the yaml file.
        root: folder that the splits are relative to.
        splits: sources by split ("train", "val", "test"): image folders, .txt lists of images or COCO .json files.
        names: class names by class index.
        image_dirs: image folder of the COCO files by split, if the yaml gives one.
    """

    path: Path
    root: Path
    splits: dict[str, tuple[Path, ...]]
    names: list[str]
    image_dirs: dict[str, Path] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return "coco" when a split is a COCO file, else "yolo"."""
        return "coco" if _coco_files(self.splits) else "yolo"

    def sources(self, split: str) -> tuple[Path, ...]:
        """Return the existing sources of a split.

        Raises:
            DataError: the yaml has no such split, or one of its sources is missing.
        """
        if split not in self.splits:
            raise DataError(f"{self.path}: no '{split}' split: expected one of {', '.join(self.splits)}")
        for source in self.splits[split]:
            if not source.exists():
                hint = (
                    f"the root is {self.root}"
                    if self.root.is_dir()
                    else f"the root {self.root} does not exist either; set 'path'"
                )
                raise DataError(
                    f"{self.path}: {split}: {source} does not exist: "
                    f"expected a folder, a .txt list or a COCO .json; {hint}"
                )
        return self.splits[split]


def load_data_config(path: str | Path) -> DataConfig:
    """Read a data yaml; draw the built-in set (`shapes`) if its files do not exist yet.

    Args:
        path: the yaml, or the name of a yaml in the folder data/.
    Raises:
        DataError: the file is missing or is no yaml, a key is unknown, or a value is invalid.
    """
    path = _find_yaml(path)
    content = _read_mapping(path)
    for key in content:
        if key not in KNOWN_KEYS:
            raise DataError(
                f"{path}: unknown key '{key}': expected some of {', '.join(KNOWN_KEYS)}.{did_you_mean(key, KNOWN_KEYS)}"
            )
    root = _resolve_root(path, content.get("path"))
    if content.get("shapes") is not None:
        draw_if_needed(root, content["shapes"], _read_names(path, content.get("names")), path)
    splits = {
        split: _resolve_split(path, split, content[split], root) for split in SPLITS if content.get(split) is not None
    }
    if not splits:
        raise DataError(
            f"{path}: no split: expected 'train', 'val' or 'test' with a folder, a .txt list or a COCO .json"
        )
    names = _names_or_categories(path, content.get("names"), splits)
    if content.get("nc") is not None and content["nc"] != len(names):
        raise DataError(
            f"{path}: nc is {content['nc']} but there are {len(names)} names: leave nc out, names are counted"
        )
    return DataConfig(path, root, splits, names, _image_dirs(path, content.get("images"), splits, root))


def _find_yaml(path: str | Path) -> Path:
    if found := find_shipped(path, "data"):
        return found
    path, shipped = Path(path), Path(__file__).parent
    folder = path.parent if path.parent.is_dir() else shipped
    known = [file.name for place in (folder, shipped) for file in place.glob("*.yaml") if file.name != "hyp.yaml"]
    raise DataError(
        f"{path}: no such data yaml: expected a file, or the name of one in data/.{did_you_mean(path.name, known)}"
    )


def _read_mapping(path: Path) -> dict[str, object]:
    content = read_yaml(path, DataError)
    if not isinstance(content, dict):
        raise DataError(f"{path}: {type(content).__name__}: expected a mapping with train, val and names")
    return content


def _resolve_root(path: Path, value: object) -> Path:
    if value is None:
        return path.resolve().parent
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: path is {value!r}: expected a folder")
    return _first_existing(value, (path.resolve().parent, Path.cwd()))


def _first_existing(value: str, folders: Iterable[Path]) -> Path:
    """Return `value` below the first folder where it exists, else below the first folder."""
    places = [(folder / Path(value).expanduser()).resolve() for folder in folders]
    return next((place for place in places if place.exists()), places[0])


def _resolve_split(path: Path, split: str, value: object, root: Path) -> tuple[Path, ...]:
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) and item for item in values):
        raise DataError(
            f"{path}: {split} is {value!r}: expected a folder, a .txt list, a COCO .json, or a list of these"
        )
    return tuple(_first_existing(item, (root, path.resolve().parent, Path.cwd())) for item in values)


def _coco_files(splits: Mapping[str, Iterable[Path]]) -> list[Path]:
    return [source for sources in splits.values() for source in sources if source.suffix.lower() == ".json"]


def _names_or_categories(path: Path, value: object, splits: Mapping[str, Iterable[Path]]) -> list[str]:
    coco_files = _coco_files(splits)
    if value is not None or not coco_files:
        return _read_names(path, value)
    source = next((file for file in coco_files if file.is_file()), None)
    if source is None:
        raise DataError(f"{path}: no names, and {coco_files[0]} that would give them does not exist")
    return list(read_categories(source).values())


def _read_names(path: Path, value: object) -> list[str]:
    if isinstance(value, dict):
        if any(type(key) is not int for key in value) or sorted(value) != list(range(len(value))):
            raise DataError(f"{path}: names has the keys {list(value)[:10]}: expected 0 to {len(value) - 1}, each once")
        value = [value[index] for index in range(len(value))]
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{path}: names is {value!r}: expected a list of class names, or a mapping from class index to name"
        )
    for index, name in enumerate(value):
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            raise DataError(f"{path}: names[{index}] is {name!r}: expected text; put it in quotes")
    return [str(name) for name in value]


def _image_dirs(path: Path, value: object, splits: Iterable[str], root: Path) -> dict[str, Path]:
    if value is None:
        return {}
    by_split: dict[Any, Any] = value if isinstance(value, dict) else dict.fromkeys(splits, value)
    for split, folder in by_split.items():
        if split not in SPLITS or not isinstance(folder, str):
            raise DataError(
                f"{path}: images: {split}: {folder!r}: expected an image folder, or a mapping from split to folder"
            )
    return {
        split: _first_existing(folder, (root, path.resolve().parent, Path.cwd())) for split, folder in by_split.items()
    }
