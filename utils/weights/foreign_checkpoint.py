"""Read the network of a pickled checkpoint of YOLOv9 or Ultralytics, which is a tree of StandIns.

In those files each layer has `_modules`, `_parameters` and `_buffers`. The outermost one has the layers under `model`,
its yaml under `yaml`, class names under `names` (list or mapping) and strides under `stride`.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config.foreign import Family
from utils.weights.stand_ins import RefusedError, StandIn, StoredArray
from utils.wording import is_count, shown

FAMILIES: dict[str, Family] = {"models": "yolov9", "ultralytics": "ultralytics"}
"""Family by the first part of the outermost class's path."""
DEEPEST_TREE = 48
MOST_LAYERS = 100_000
DEEPEST_DATA = 24
MOST_DATA = 200_000
LARGEST_LISTED = 4096
"""Most numbers of an array or tensor in plain data; a larger one is left out."""
STATE = {"optimizer", "scaler", "scheduler", "rng"}
"""Entries of a checkpoint that are neither weights nor settings."""


@dataclass
class ForeignNetwork:
    """A module tree as plain data. `tensors` have the file's own names; `config` is the file's own yaml."""

    family: Family
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    nc: int | None
    ch: int | None
    names: list[str] | None
    stride: list[int] | None
    folded: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class PlainData:
    """Converter of a file's content to text, numbers, lists and mappings. `left_out` counts other values by type."""

    def __init__(self) -> None:
        self.visited = 0
        self.left_out: dict[str, int] = {}

    def convert(self, value: Any, depth: int = 0) -> Any:
        """Return a value as plain data; None if it has no such form.

        Raises:
            RefusedError: it is nested too deeply, or too large with its shared parts written out.
        """
        self.visited += 1
        if depth > DEEPEST_DATA or self.visited > MOST_DATA:
            raise RefusedError("its settings are nested too deeply or too large: forged; not loaded")
        if value is None or isinstance(value, str | bool | int | float):
            return value
        if isinstance(value, torch.dtype | torch.device):
            return str(value)
        if isinstance(value, StandIn) and value.name.endswith("Namespace"):
            value = value.state
        if isinstance(value, dict):
            items = (
                (key if isinstance(key, str | int) else shown_key(key), self.convert(item, depth + 1))
                for key, item in value.items()
            )
            return dict(items)
        if isinstance(value, list | tuple | set):
            return [self.convert(item, depth + 1) for item in value]
        if isinstance(value, StoredArray) and value.values is not None and value.values.size <= LARGEST_LISTED:
            return value.values.tolist()
        if isinstance(value, Tensor) and value.numel() <= LARGEST_LISTED:
            return value.tolist()
        kind = value.path if isinstance(value, StandIn) else type(value).__name__
        self.left_out[kind] = self.left_out.get(kind, 0) + 1
        return None

    def notes(self) -> list[str]:
        """Return a line about what was left out, or none."""
        if not self.left_out:
            return []
        kinds = ", ".join(f"{shown(kind)} ({count})" for kind, count in list(self.left_out.items())[:5])
        return [f"{sum(self.left_out.values())} settings are not plain data and are left out: {kinds}"]


def shown_key(key: Any) -> str:
    """Return the text for a mapping's key that is neither text nor an integer."""
    return shown(key) if not isinstance(key, tuple) else ", ".join(map(shown, key))


def settings_of(content: dict[Any, Any], weights: Collection[str], plain: PlainData) -> dict[str, Any]:
    """Return the settings of a checkpoint as plain data: arguments, epoch, date, metrics and the like.

    Args:
        weights: keys of the weights.
    """
    left = (*weights, *STATE)
    return {
        shown_key(key): plain.convert(value)
        for key, value in content.items()
        if key not in left and not isinstance(value, Tensor)
    }


def family_of(root: StandIn) -> Family:
    """Return "yolov9" or "ultralytics".

    Raises:
        RefusedError: it is another kind of object.
    """
    family = FAMILIES.get(root.path.partition(".")[0])
    if family is None or not isinstance(root.state.get("_modules"), dict) or "model" not in root.state["_modules"]:
        raise RefusedError(
            f"holds an object of {shown(root.path)}: "
            "expected the DetectionModel of YOLOv9 or Ultralytics, or a state dict"
        )
    return family


def children_of(module: StandIn, key: str) -> dict[str, Any]:
    """Return a layer's `_modules`, `_parameters` or `_buffers`."""
    held = module.state.get(key)
    if held is None:
        return {}
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise RefusedError(
            f"a layer of {shown(module.path)} has {key} that are not a mapping of names: damaged or forged; not loaded"
        )
    return held


def walk(root: StandIn) -> Iterator[tuple[str, StandIn]]:
    """Yield every layer with its name, parents first, in the order of definition.

    Raises:
        RefusedError: the tree is endless or larger than any network.
    """
    waiting: list[tuple[str, StandIn, int]] = [("", root, 0)]
    count = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        count += 1
        if depth > DEEPEST_TREE or count > MOST_LAYERS or len(prefix) > 1000:
            raise RefusedError("its layers are nested without end: forged; not loaded")
        yield prefix, module
        inner = [
            (f"{prefix}{name}.", child, depth + 1)
            for name, child in children_of(module, "_modules").items()
            if isinstance(child, StandIn)
        ]
        waiting.extend(reversed(inner))


def stored_tensors(root: StandIn) -> dict[str, Tensor]:
    """Return the state dict of a module tree, without its non-persistent buffers."""
    found = {}
    for prefix, module in walk(root):
        transient = module.state.get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, set) else set()
        buffers = {name: value for name, value in children_of(module, "_buffers").items() if name not in transient}
        for name, value in (children_of(module, "_parameters") | buffers).items():
            if isinstance(value, Tensor):
                found[prefix + name] = value.detach()
    return found


def folded_layers(root: StandIn) -> int:
    """Count the folded convolutions: Conv without bn, RepConvN without its two branches."""
    count = 0
    for _, module in walk(root):
        inner = children_of(module, "_modules")
        if module.name == "Conv" or module.name.startswith("RepConv"):
            count += isinstance(inner.get("conv"), StandIn) and not isinstance(inner.get("bn"), StandIn)
    return count


def class_names(held: Any, nc: int | None, notes: list[str]) -> list[str] | None:
    """Return class names from a list or a mapping of numbers to names; None and a note if they do not fit."""
    if isinstance(held, dict) and all(type(key) is int for key in held):
        held = [held[key] for key in sorted(held)]
    if held is None:
        return None
    if (
        not isinstance(held, list | tuple)
        or not all(isinstance(name, str) for name in held)
        or (nc is not None and len(held) != nc)
    ):
        count = len(held) if isinstance(held, list | tuple | dict) else "unreadable"
        notes.append(f"its class names ({count}) do not fit its {nc} classes and are left out")
        return None
    return list(held)


def whole_strides(held: Any, notes: list[str]) -> list[int] | None:
    """Return strides from a tensor, an array or a list; None and a note if they are not integers."""
    if isinstance(held, Tensor) and held.numel() <= 16:
        held = held.flatten().tolist()
    elif isinstance(held, StoredArray) and held.values is not None and held.values.size <= 16:
        held = np.ravel(held.values).tolist()
    if held is None:
        return None
    if not isinstance(held, list | tuple) or not all(
        isinstance(step, int | float) and 1 <= step <= 4096 and step == int(step) for step in held
    ):
        notes.append("its strides are not integers from 1 to 4096 and are left out")
        return None
    return [int(step) for step in held]


def positive(value: Any) -> int | None:
    """Return a value that is a count, else None."""
    return value if is_count(value) and value < 2**31 else None


def read_network(root: StandIn) -> ForeignNetwork:
    """Return the weights of a module tree and what it says about its network.

    Raises:
        RefusedError: it is not a detection network of these families, or it is forged.
    """
    family, plain, notes = family_of(root), PlainData(), []
    tensors = stored_tensors(root)
    if not any(re.match(r"model\.\d+\.", name) for name in tensors):
        raise RefusedError(
            "its network has no layers with weights: expected names such as model.0.conv.weight; not loaded"
        )
    held = root.state.get("yaml")
    config = plain.convert(held) if isinstance(held, dict) else None
    if config is None:
        notes.append("it does not describe its network: give the network with --cfg")
    nc = positive(root.state.get("nc")) or positive((config or {}).get("nc"))
    names = class_names(root.state.get("names"), nc, notes)
    layers = [
        child
        for _, child in children_of(children_of(root, "_modules")["model"], "_modules").items()
        if isinstance(child, StandIn)
    ]
    stride = root.state.get("stride")
    stride = whole_strides(layers[-1].state.get("stride") if stride is None and layers else stride, notes)
    if folded := folded_layers(root):
        notes.append(
            f"{folded} of its convolutions are folded (normalisation merged): good for inference, not for training on"
        )
    ch = positive((config or {}).get("ch")) or positive((config or {}).get("channels"))
    training = {key: plain.convert(root.state[key]) for key in ("hyp", "args", "task") if key in root.state}
    classes = nc or (len(names) if names else None)
    return ForeignNetwork(
        family, tensors, config, classes, ch, names, stride, folded > 0, training, notes + plain.notes()
    )
