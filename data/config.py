"""The data yaml: the images of each split and the class names. docs/data.md describes every key.

`path` is the root; `train`, `val` and `test` are relative to it; `names` are the class names; `images` is the folder of
the pictures of COCO files. `download` is a note for readers; it is never run.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.images.paths import exists, missing_home, named_path, printable, spellings, suffix_of
from data.images.pixels import PixelRange, parse_pixel_range
from data.labels.coco_categories import is_writable
from data.labels.coco_json import read_categories
from data.labels.yolo_rows import Keypoints, parse_keypoints
from data.places import Search
from data.shapes import draw_if_needed
from utils.errors import DataError, did_you_mean
from utils.files import find_shipped, read_yaml
from utils.wording import is_count, shown

SPLITS = ("train", "val", "test")
INERT_KEYS = ("download", "roboflow")
"""Notes about the origin of the files, which are common enough to be passed over in silence."""
UNUSED_KEYS = (
    *("author", "colors", "colours", "date", "description", "info", "is_coco", "license", "licence", "task", "url"),
    *("flip_idx", "kpt_names", "skeleton", "version"),
)
"""Keys of other programs' data yamls that change nothing here; one line names them."""
OWN_KEYS = ("path", *SPLITS, "names", "nc", "images", "channels", "pixel_range", "kpt_shape", "shapes")
KNOWN_KEYS = (*OWN_KEYS, *INERT_KEYS, *UNUSED_KEYS)
OTHER_NAMES = {
    "path": ("base", "base_path", "data_dir", "data_path", "dataset", "dataset_path", "dir", "folder", "root"),
    "train": ("train_dir", "train_images", "train_path", "training", "trainset"),
    "val": ("valid", "validation", "validate", "val_dir", "val_images", "val_path", "valid_path", "valset", "dev"),
    "test": ("test_dir", "test_images", "test_path", "testing", "testset"),
    "names": ("categories", "class", "class_names", "classes", "category_names", "label_names", "name"),
    "nc": ("num_classes", "n_classes", "number_of_classes", "class_count", "ncls"),
    "images": ("image", "image_dir", "image_dirs", "image_root", "images_dir", "img_dir", "img_prefix", "imgs"),
    "channels": ("ch", "in_channels", "input_channels"),
    "pixel_range": ("bit_depth", "bits", "depth", "range", "value_range", "dynamic_range", "max_value"),
}
"""Names that a key of ours has elsewhere."""
ANSWERS = {
    **dict.fromkeys(
        ("labels", "label", "label_dir", "labels_dir", "train_labels", "val_labels"),
        "Labels are found by the path of the images: images/train/a.jpg has labels/train/a.txt.",
    ),
    **dict.fromkeys(
        ("ann_file", "anno_path", "annotation", "annotations", "train_json", "val_json"),
        "Name a COCO json as 'train' or 'val'.",
    ),
    **dict.fromkeys(
        ("batch", "batch_size", "cache", "epochs", "img_size", "imgsz", "model", "weights", "workers"),
        "Give it on the command line.",
    ),
}
"""What to write in place of keys that have no counterpart here."""
NEAR = 0.7
"""Similarity from which an unknown key is taken for a slip of the pen."""
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class DataConfig:
    """A data yaml with resolved paths; `sources` checks that a split exists.

    Attributes:
        path: the yaml file.
        root: folder that the splits are relative to.
        splits: sources by split ("train", "val", "test"): image folders, .txt lists of images or COCO .json files.
        names: class names by class index.
        image_dirs: image folder of the COCO files by split, if the yaml gives one.
        written: text of the yaml for a source that was not found.
        notes: lines to print: keys that are not used, and files that were not found at the first place.
        pixel_range: values that become 0 and 255 in images of more than 8 bits, if the yaml gives them.
        keypoints: key points after the box of each label row, if the yaml states them (`kpt_shape`).
    """

    path: Path
    root: Path
    splits: dict[str, tuple[Path, ...]]
    names: list[str]
    image_dirs: dict[str, Path] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pixel_range: PixelRange | None = None
    keypoints: Keypoints | None = None

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
            if not exists(source):
                raise DataError(
                    f"{self.path}: {split}: {printable(source)} does not exist: "
                    f"expected a folder, a .txt list or a COCO .json; {self._hint(source)}"
                )
        return self.splits[split]

    def _hint(self, source: Path) -> str:
        """Say what may help to find a source that does not exist."""
        if os.path.islink(source):
            return f"it is a link that leads nowhere ({printable(os.readlink(source))})"
        text = self.written.get(source, str(source))
        here = named_path(Path.cwd(), text)
        if exists(here):
            return f"{here} in the working folder was not taken: write its path if you mean it"
        parts = Path(spellings(text)[-1]).parts
        tails = (Path(*parts[start:]) for start in range(1, len(parts) - 1) if ".." not in parts[start:])
        folders = dict.fromkeys((self.root, self.path.absolute().parent))
        near = next((folder / tail for tail in tails for folder in folders if exists(folder / tail)), None)
        if near is not None:
            return f"is it {near}?"
        root = f"the root is {printable(self.root)}"
        if not exists(self.root):
            root = f"the root {printable(self.root)} does not exist; set 'path'"
        return root + missing_home(text)


def load_data_config(path: str | Path) -> DataConfig:
    """Read a data yaml; draw the built-in set (`shapes`) if its files do not exist yet.

    Args:
        path: the yaml, or the name of a yaml in the folder data/.
    Raises:
        DataError: the file is missing or is no yaml, a key is unknown, or a value is invalid.
    """
    path = _find_yaml(path)
    content = _read_mapping(path)
    unused = _check_keys(path, content)
    search = Search(path, bool(content.get("roboflow")))
    search.set_root(content.get("path"))
    root = search.root
    if content.get("shapes") is not None:
        draw_if_needed(root, content["shapes"], _read_names(path, content.get("names")), path)
    texts = {split: _texts(path, split, content[split]) for split in SPLITS if content.get(split) is not None}
    splits = search.resolve(texts)
    if not splits:
        raise DataError(
            f"{path}: no split: expected 'train', 'val' or 'test' with a folder, a .txt list or a COCO .json"
        )
    names = _names_or_categories(path, content, splits)
    folders = search.resolve(_image_folders(path, content.get("images"), splits), "images")
    image_dirs = {split: found[0] for split, found in folders.items()}
    unused_line = [f"{path}: not used here: {', '.join(unused)}"] if unused else []
    notes = (*search.notes, *unused_line)
    given = content.get("pixel_range")
    pixel_range = None if given is None else parse_pixel_range(given, f"{path}: pixel_range")
    shape = content.get("kpt_shape")
    keypoints = None if shape is None else parse_keypoints(shape, f"{path}: kpt_shape")
    return DataConfig(path, root, splits, names, image_dirs, search.written, notes, pixel_range, keypoints)


def print_notes(config: DataConfig) -> None:
    """Print the notes of a data yaml, a line each."""
    for note in config.notes:
        print(note)


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
    content = read_yaml(path, DataError, loader=yaml.SafeLoader)  # a class may be called 1e3
    if not isinstance(content, dict):
        raise DataError(f"{path}: {type(content).__name__}: expected a mapping with train, val and names")
    return content


def _check_keys(path: Path, content: Mapping[str, object]) -> list[str]:
    """Return the keys that are known and not used; raise an error for an unknown key, and for more than RGB."""
    for key in content:
        if key not in KNOWN_KEYS:
            raise DataError(f"{path}: unknown key '{shown(key)}': expected some of {', '.join(OWN_KEYS)}.{_key(key)}")
    channels = content.get("channels")
    if channels not in (None, IMAGE_CHANNELS):
        raise DataError(
            f"{path}: channels is {channels!r}: expected {IMAGE_CHANNELS}: all pictures are read as RGB, "
            "grey ones as three equal channels; leave the key out"
        )
    return [key for key in UNUSED_KEYS if content.get(key) is not None]


def _key(key: object) -> str:
    """Return what to write in place of an unknown key; "" where nothing comes near."""
    plain = str(key).lower().replace("-", "_")
    if plain in ANSWERS:
        return f" {ANSWERS[plain]}"
    other = next((own for own, names in OTHER_NAMES.items() if plain in names), None)
    near = difflib.get_close_matches(plain, OWN_KEYS, n=1, cutoff=NEAR)
    return f" Did you mean '{other or near[0]}'?" if other or near else ""


def _texts(path: Path, split: str, value: object) -> list[str]:
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) and item for item in values):
        raise DataError(
            f"{path}: {split} is {value!r}: expected a folder, a .txt list, a COCO .json, or a list of these"
        )
    return values


def _coco_files(splits: Mapping[str, Iterable[Path]]) -> list[Path]:
    return [source for sources in splits.values() for source in sources if suffix_of(source) == ".json"]


def _names_or_categories(path: Path, content: Mapping[str, object], splits: Mapping[str, Iterable[Path]]) -> list[str]:
    """Return the class names of the yaml, or else of its first COCO file; check `nc` against them."""
    coco_files, nc = _coco_files(splits), content.get("nc")
    if content.get("names") is not None or not coco_files:
        names = _read_names(path, content.get("names"))
    else:
        source = next((file for file in coco_files if file.is_file()), None)
        if source is None:
            raise DataError(f"{path}: no names, and {coco_files[0]} that would give them does not exist")
        names = list(read_categories(source).values())
    if nc is not None and not is_count(nc):
        raise DataError(f"{path}: nc is {nc!r}: expected the number of classes; leave nc out, names are counted")
    if nc not in (None, len(names)):
        raise DataError(f"{path}: nc is {nc} but there are {len(names)} names: leave nc out, names are counted")
    return names


def _read_names(path: Path, value: object) -> list[str]:
    if isinstance(value, dict):
        by_index = {int(key) if _is_digits(key) else key: name for key, name in value.items()}
        if any(type(key) is not int for key in by_index) or sorted(by_index) != list(range(len(value))):
            raise DataError(f"{path}: names has the keys {list(value)[:10]}: expected 0 to {len(value) - 1}, each once")
        value = [by_index[index] for index in range(len(value))]
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{path}: names is {value!r}: expected a list of class names, or a mapping from class index to name"
        )
    for index, name in enumerate(value):
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            raise DataError(f"{path}: names[{index}] is {name!r}: expected text; put it in quotes")
        if not is_writable(str(name)):
            raise DataError(f"{path}: names[{index}] is {name!r}: expected whole characters; correct the name")
    return [str(name) for name in value]


def _is_digits(key: object) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit()


def _image_folders(path: Path, value: object, splits: Iterable[str]) -> dict[str, list[str]]:
    """Return the text of the image folder of each split's COCO files."""
    if value is None:
        return {}
    by_split: dict[Any, Any] = value if isinstance(value, dict) else dict.fromkeys(splits, value)
    for split, folder in by_split.items():
        if split not in SPLITS or not isinstance(folder, str) or not folder:
            raise DataError(
                f"{path}: images: {split}: {folder!r}: expected an image folder, or a mapping from split to folder"
            )
    return {split: [folder] for split, folder in by_split.items()}
