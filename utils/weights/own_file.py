"""The checkpoint file: tensors and plain data only, written whole or not at all."""

import hashlib
import inspect
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.plugins.held import plugin_of
from models.plugins.record import plugins_entry
from models.registry import registered_layers
from models.yolo import Model
from utils.errors import CheckpointError
from utils.files import REPOSITORY, atomic_write

VERSION = 2
"""1: before runs could be resumed exactly. 2: state of a run, layer files."""
NETWORK_TYPES = {"config": dict, "nc": int, "ch": int, "names": list, "stride": list}
"""Entries that describe a network, in a checkpoint and in the metadata of safetensors, and their types."""
RUN_STATE = ("partial", "rows", "sources", "schedule")
"""Further entries of a checkpoint that only a resumed run needs."""


def plain(value: Any) -> Any:
    """Return settings as plain data: paths become strings, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def network_entry(model: Model) -> dict[str, Any]:
    """Return the description of a network from which it is built again, without weights."""
    return {
        "config": plain(model.config),
        "nc": model.nc,
        "ch": model.channels,
        "names": list(model.names),
        "stride": list(model.stride),
        "pixel_range": plain(model.pixel_range),
        "category_ids": plain(model.category_ids),
        "layer_files": layer_files(model),
        "plugins": plugins_entry(model),
    }


def layer_files(model: Model) -> dict[str, str]:
    """Return the source file of each layer, `file (sha256 …)` by yaml name, without torch's own layers."""
    layers, found = registered_layers(), {}
    for name in sorted({row.name for row in model.rows}):
        if plugin := plugin_of(name):  # what was run, whatever the file says now
            found[name] = f"{plugin.path.as_posix()} (sha256 {plugin.sha256[:12]})"
            continue
        if layers[name].cls.__module__.startswith("torch."):
            continue
        path = Path(inspect.getfile(layers[name].cls))
        shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
        found[name] = f"{shown.as_posix()} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]})"
    return found


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; `content` holds tensors and plain data only."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION} | content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one of our checkpoints.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file: expected the weights of a run, such as runs/train/exp/weights/best.pt"
        )
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: is not a checkpoint, or only a part of one: expected one that train.py wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to switch the protection off
        raise CheckpointError(
            f"{path}: holds more than tensors and plain data: expected a checkpoint that train.py wrote"
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged: {reason}: expected a checkpoint that train.py wrote") from error
    if not isinstance(content, dict) or type(content.get("version")) is not int or "network" not in content:
        raise CheckpointError(f"{path}: is not a checkpoint of this framework: expected one that train.py wrote")
    if content["version"] > VERSION:
        raise CheckpointError(f"{path}: version {content['version']}: this framework reads up to {VERSION}; update it")
    check_content(path, content)
    return content


def check_content(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with a part that is missing or of another type.

    Raises:
        CheckpointError: names the part.
    """
    network = content["network"]
    if not isinstance(network, dict):
        raise CheckpointError(
            f"{path}: damaged: its network is {type(network).__name__}: expected a mapping; "
            "use another checkpoint of the run"
        )
    for key, kind in NETWORK_TYPES.items():
        if not isinstance(network.get(key), kind):
            raise CheckpointError(
                f"{path}: damaged: its network has no {key} ({kind.__name__}): expected one; "
                "use another checkpoint of the run"
            )
    for key in ("model", "ema"):
        tensors = content.get(key, {})
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
        ):
            raise CheckpointError(
                f"{path}: damaged: its '{key}' is not a mapping of names to tensors: expected one; "
                "use another checkpoint of the run"
            )
    if not content.get("model") and not content.get("ema"):
        raise CheckpointError(f"{path}: holds no weights: expected a checkpoint that train.py wrote")
