"""Describe the data and settings of a run by digests, for its checkpoint, and find what has changed since."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from numpy.typing import NDArray

from data.dataset import DetectionDataset
from models.config.reading import base_of, find_config
from models.plugins.record import COPIES, copy_name, read_plugins_entry
from utils.errors import CheckpointError, ModelConfigError
from utils.files import find_shipped
from utils.hyperparameters import load_hyperparameters
from utils.training.options import TrainOptions
from utils.weights.own_file import plain
from utils.wording import listed

SPLIT_TITLES = {"train": "training", "val": "validation"}
PARTS = {
    "files": "files of the {} images",
    "sizes": "sizes of the {} images",
    "labels": "labels of the {} images",
}


def describe_sources(
    options: TrainOptions, datasets: Mapping[str, DetectionDataset | None], before: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the data and settings of a run as plain data.

    Args:
        datasets: data set of each split; None for a val split that the data does not have.
        before: for a resumed run, the description from its start: the yaml files are read at the paths given there.
    """
    training = datasets["train"]
    assert training is not None, "only the val split may be missing"
    cfg = Path(before["cfg"]["path"]) if before.get("cfg") else _found_config(options.cfg)
    hyp = Path(before["hyp"]["path"]) if before.get("hyp") else find_shipped(options.hyp, "data")
    return {
        "names": list(training.names),
        **{split: describe_images(dataset) if dataset is not None else None for split, dataset in datasets.items()},
        "pixel_range": plain((datasets["val"] or training).pixel_range),
        "cfg": describe_network(cfg) if cfg and cfg.is_file() else None,
        "hyp": {"path": str(hyp.resolve()), "digest": yaml_digest(hyp), "values": _hyperparameters(hyp)}
        if hyp and hyp.is_file()
        else None,
    }


def describe_network(cfg: Path) -> dict[str, Any]:
    """Return path and digest of a network yaml, and of every yaml that it is built on."""
    own, *bases = [{"path": str(path), "digest": yaml_digest(path)} for path in network_files(cfg)]
    return own | {"bases": bases}


def network_files(cfg: Path) -> list[Path]:
    """Return the paths of a network yaml, of its base, of that one's base and so on, as far as they can be read."""
    files = [cfg.resolve()]
    try:
        while base := base_of(files[-1]):
            path = find_config(base)[0].resolve()
            if path in files:
                break
            files.append(path)
    except ModelConfigError:  # gone or broken: the digest of the file before it, or its own, tells
        pass
    return files


def describe_images(dataset: DetectionDataset) -> dict[str, Any]:
    """Return the number of images, and digests of their files (names and sizes in bytes), image sizes and labels."""
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
    """Return a digest of the content of a yaml file, without comments and layout."""
    text = path.read_bytes()
    try:
        text = json.dumps(yaml.safe_load(text), default=str).encode()
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        TypeError,
    ):  # not a valid yaml now: the digest of its bytes is another one
        pass
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _found_config(cfg: str) -> Path | None:
    try:
        return find_config(cfg)[0] if cfg else None
    except ModelConfigError:  # the file is gone; the network is in the checkpoint
        return None


def _hyperparameters(path: Path) -> dict[str, Any]:
    try:
        return load_hyperparameters(path).as_dict()
    except ValueError:  # not valid hyperparameters now: the digest differs
        return {}


@dataclass
class Changes:
    """Differences from the start of a run, and sources that its checkpoint does not describe; a line each."""

    found: list[str]
    unknown: list[str]


def compare_sources(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Compare two results of `describe_sources`, from the start of a run and from now; a missing yaml is no change."""
    changes = Changes(_changed_names(before["names"], now["names"]), [])
    for split, title in SPLIT_TITLES.items():
        if split in before:
            changes.found += _changed_images(before[split], now[split], title)
        else:
            changes.unknown.append(f"the {title} images and labels")
    changes.found += _changed_range(before, now)
    for key, title, kept in (("cfg", "network", "network"), ("hyp", "hyperparameter", "hyperparameters")):
        if key not in before:
            changes.unknown.append(f"the {title} yaml")
        elif before[key] and now[key]:
            if now[key].get("bases") and "bases" not in before[key]:
                changes.unknown.append(f"the base of the {title} yaml")
            if place := _changed_yaml(before[key], now[key]):
                details = _changed_values(before[key].get("values", {}), now[key].get("values", {}))
                changes.found.append(f"{title} yaml {place}{details} (the run keeps the {kept} of its checkpoint)")
    changes.found += _changed_plugins(before.get("plugins"), now.get("plugins"))
    return changes


def _changed_yaml(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the path of the yaml that changed, with its base if that is what changed; None if nothing did."""
    if before["digest"] != now["digest"]:
        return str(now["path"])
    for old, new in zip(
        before.get("bases", []), now.get("bases", []), strict=False
    ):  # a file that is gone has no entry
        if old["digest"] != new["digest"]:
            return f"{now['path']}: its base {new['path']}"
    return None


def _changed_plugins(before: object, now: object) -> list[str]:
    """Return a line for each plug-in of which a layer has another source now.

    Args:
        before: see `models.plugins.record.plugins_entry`.
        now: the same, of the current process.
    """
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
    return [f"class names: {listed(differing)}"] if differing else []


def _changed_images(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, title: str) -> list[str]:
    if before is None or now is None:
        gone = "none before, some now" if now else "some before, none now"
        return [f"{title} images: {gone}"] if before != now else []
    if before["images"] != now["images"]:
        return [f"number of {title} images: {before['images']} are now {now['images']}"]
    return [text.format(title) for part, text in PARTS.items() if before[part] != now[part]]


def _changed_range(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line if the pixel values that become 0 and 255 are others now; an older checkpoint does not tell."""
    old, new = (one.get("pixel_range", now.get("pixel_range")) for one in (before, now))
    return [] if old == new else [f"range of pixel values: {old} is now {new}"]


def _changed_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    differing = [f"{key} {before[key]} is now {now[key]}" for key in before if key in now and before[key] != now[key]]
    return f": {listed(differing)}" if differing else ""


def check_sources(before: Mapping[str, Any], now: Mapping[str, Any], where: str, force: bool) -> None:
    """Check that a run goes on with the data and settings that it began with.

    Args:
        before: the description in the checkpoint; in an older version, the class names only.
        where: the checkpoint, for messages.
        force: print the changes and go on.
    Raises:
        CheckpointError: lists the changes; not with `force`.
    """
    changes = compare_sources(before, now)
    if changes.unknown:
        print(f"{where}: from an older version, cannot be checked for changes: {', '.join(changes.unknown)}")
    if not changes.found:
        return
    said = f"{where}: changed since the run began: {'; '.join(changes.found)}"
    if not force:
        raise CheckpointError(
            f"{said}: expected the sources of its start; --resume {where} --force goes on with the current ones"
        )
    print(f"{said}; goes on anyway (--force)")
