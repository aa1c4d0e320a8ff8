"""What a run was made from, as digests in its checkpoint, and what of it has changed since."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray

from data.dataset import DetectionDataset
from models.config.reading import find_config
from models.plugins.record import COPIES, copy_name, read_plugins_entry
from utils.errors import CheckpointError, ModelConfigError
from utils.files import find_shipped
from utils.hyperparameters import load_hyperparameters
from utils.training.options import TrainOptions

SPLIT_TITLES = {"train": "training", "val": "validation"}
PARTS = {
    "files": "files of the {} images",
    "sizes": "sizes of the {} images",
    "labels": "labels of the {} images",
}


def describe_sources(
    options: TrainOptions, datasets: Mapping[str, DetectionDataset], before: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a run is made from, as plain data.

    Args:
        datasets: by split.
        before: the same at the start of the run that goes on, or nothing; its yaml files are looked at where they were then.
    """
    cfg = Path(before["cfg"]["path"]) if before.get("cfg") else _found_config(options.cfg)
    hyp = Path(before["hyp"]["path"]) if before.get("hyp") else find_shipped(options.hyp, "data")
    return {
        "names": list(datasets["train"].names),
        **{split: describe_images(dataset) for split, dataset in datasets.items()},
        "cfg": {"path": str(cfg.resolve()), "digest": yaml_digest(cfg)} if cfg and cfg.is_file() else None,
        "hyp": {"path": str(hyp.resolve()), "digest": yaml_digest(hyp), "values": _hyperparameters(hyp)}
        if hyp and hyp.is_file()
        else None,
    }


def describe_images(dataset: DetectionDataset) -> dict[str, Any]:
    """Return the number of images, and digests of their files (names and bytes, not contents), sizes and labels."""
    files, sizes, labels = (hashlib.blake2b(digest_size=16) for _ in range(3))
    for one in dataset.annotations:
        files.update(f"{one.path.name}\0{one.path.stat().st_size if one.path.is_file() else -1}\0".encode())
        sizes.update(f"{tuple(map(int, one.file_hw))}".encode())
        labels.update(f"{len(one)} {[[len(part) for part in polygon] for polygon in one.polygons if polygon]}".encode())
        parts = [part for polygon in one.polygons for part in polygon]
        arrays: list[NDArray[Any]] = [one.classes, one.boxes_xyxy, one.crowd, *parts]
        for array in arrays:
            labels.update(array.tobytes())
    return {
        "images": len(dataset),
        "files": files.hexdigest(),
        "sizes": sizes.hexdigest(),
        "labels": labels.hexdigest(),
    }


def yaml_digest(path: Path) -> str:
    """Return a digest of what a yaml file says: comments and layout do not count."""
    text = path.read_bytes()
    try:
        text = json.dumps(yaml.safe_load(text), default=str).encode()
    except (yaml.YAMLError, UnicodeDecodeError, TypeError):  # no yaml any more: its bytes differ from any that was
        pass
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _found_config(cfg: str) -> Path | None:
    try:
        return find_config(cfg)[0] if cfg else None
    except ModelConfigError:  # the file is gone: the network is in the checkpoint
        return None


def _hyperparameters(path: Path) -> dict[str, Any]:
    try:
        return load_hyperparameters(path).as_dict()
    except ValueError:  # no hyperparameters any more: the digest tells
        return {}


@dataclass
class Changes:
    """What differs from the start of a run, and what its checkpoint cannot say; a line each."""

    found: list[str]
    unknown: list[str]


def compare_sources(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compare what `describe_sources` returned at the start of a run and now; a yaml file that is gone is no change."""
    changes = Changes(_changed_names(before["names"], now["names"]), [])
    for split, title in SPLIT_TITLES.items():
        if split in before:
            changes.found += _changed_images(before[split], now[split], title)
        else:
            changes.unknown.append(f"the {title} images and labels")
    for key, title, kept in (("cfg", "network", "network"), ("hyp", "hyperparameter", "hyperparameters")):
        if key not in before:
            changes.unknown.append(f"the {title} yaml")
        elif before[key] and now[key] and before[key]["digest"] != now[key]["digest"]:
            details = _changed_values(before[key].get("values", {}), now[key].get("values", {}))
            changes.found.append(
                f"{title} yaml {now[key]['path']}{details} (the run keeps the {kept} of its checkpoint)"
            )
    changes.found += _changed_plugins(before.get("plugins"), now.get("plugins"))
    return changes


def _changed_plugins(before: object, now: object) -> list[str]:
    """Return a line for each plug-in of which a layer has another source now; both as `models.plugins.record.plugins_entry` returns them."""
    current = {name: plugin for plugin in read_plugins_entry(now) for name in plugin.layers}
    return [
        f"plug-in {plugin.path} (layer {', '.join(plugin.layers)}; the run's {COPIES}/{copy_name(plugin)} is as it was)"
        for plugin in read_plugins_entry(before)
        if any(name not in current or current[name].sha256 != plugin.sha256 for name in plugin.layers)
    ]


def _changed_names(before: list[str], now: list[str]) -> list[str]:
    if len(before) != len(now):
        return [f"class names: {len(before)} are now {len(now)}"]
    differing = [
        f"{index} '{old}' is now '{new}'"
        for index, (old, new) in enumerate(zip(before, now, strict=True))
        if old != new
    ]
    return [f"class names: {_shortened(differing)}"] if differing else []


def _changed_images(before: Mapping[str, Any], now: Mapping[str, Any], title: str) -> list[str]:
    if before["images"] != now["images"]:
        return [f"number of {title} images: {before['images']} are now {now['images']}"]
    return [text.format(title) for part, text in PARTS.items() if before[part] != now[part]]


def _changed_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    differing = [f"{key} {before[key]} is now {now[key]}" for key in before if key in now and before[key] != now[key]]
    return f": {_shortened(differing)}" if differing else ""


def _shortened(texts: list[str], limit: int = 5) -> str:
    return ", ".join([*texts[:limit], *([f"and {len(texts) - limit} more"] if len(texts) > limit else [])])


def check_sources(before: Mapping[str, Any], now: Mapping[str, Any], where: str, force: bool) -> None:
    """Refuse to go on with another data set or other settings, or say so with `force`.

    Args:
        before: what the checkpoint `where` says; one of an older version has the class names only.
    Raises:
        CheckpointError: something changed; says what.
    """
    changes = compare_sources(before, now)
    if changes.unknown:
        print(f"{where}: from an older version, cannot be checked for changes: {', '.join(changes.unknown)}")
    if not changes.found:
        return
    said = f"{where}: changed since the run began: {'; '.join(changes.found)}"
    if not force:
        raise CheckpointError(
            f"{said}: expected what it was started with; --resume {where} --force goes on with what is there now"
        )
    print(f"{said}; goes on all the same (--force)")
