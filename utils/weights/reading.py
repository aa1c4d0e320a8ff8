"""Read weights: our checkpoints, state dicts, safetensors, pickled checkpoints of YOLOv9 and Ultralytics.

The content of a file decides its kind, not its name. Nothing that a file names is imported or run.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from data.images.pixels import PixelRange, parse_pixel_range
from data.labels.annotation import Id
from data.labels.coco_categories import are_ids
from models.config.foreign import translate_config
from models.plugins.record import RecordedPlugin, read_plugins_entry
from utils.errors import CheckpointError, ModelConfigError
from utils.weights.file_kinds import describe_file
from utils.weights.foreign_checkpoint import PlainData, read_network, settings_of
from utils.weights.foreign_names import NAME_WRAPPERS, own_names
from utils.weights.head_form import class_count, complete_head
from utils.weights.own_file import NETWORK_TYPES, RUN_STATE, read_checkpoint
from utils.weights.stand_ins import RefusedError, StandIn
from utils.weights.torch_file import is_torch_file, load_torch_file
from utils.wording import listed, shown

WRAPPERS = (
    "ema",
    "model_ema",
    "ema_state_dict",
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "weights",
    "network",
    "net",
    "params",
)
"""Keys under which weights are wrapped; averaged (EMA) ones first."""
EXPORTED = {".onnx": "an ONNX file", ".torchscript": "a TorchScript file"}
FOREIGN_KINDS = {"yolov9": "YOLOv9 checkpoint", "ultralytics": "Ultralytics checkpoint"}
LARGEST_HEADER = 100 * 2**20
"""Bytes of a safetensors header, as that library limits it."""


@dataclass
class Weights:
    """The content of a weights file of any kind.

    Attributes:
        kind: "checkpoint" (ours), "state dict", "safetensors", "YOLOv9 checkpoint" or "Ultralytics checkpoint".
        tensors: averaged (EMA) weights where the file has them, under its own names without the wrappers before
            `model.<index>.`, in its own dtypes. Tied weights share memory.
        config: the network yaml in our terms; None if the file does not describe its network.
        training: plain data: training arguments, epoch, hyperparameters, metrics, …
        layer_files: source file of each layer of one of our checkpoints, by layer name.
        plugins: the users' own files with layers of one of our checkpoints.
        pixel_range: values that became 0 and 255 in training images of more than 8 bits.
        category_ids: category id of each class in the COCO file of the training images.
        notes: a line for each thing that was translated or left out.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None
    nc: int | None = None
    ch: int | None = None
    names: list[str] | None = None
    stride: list[int] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    layer_files: dict[str, str] = field(default_factory=dict)
    plugins: list[RecordedPlugin] = field(default_factory=list)
    pixel_range: PixelRange | None = None
    category_ids: list[Id] | None = None
    notes: list[str] = field(default_factory=list)


def read_weights(path: str | Path) -> Weights:
    """Read a weights file of any kind.

    Raises:
        CheckpointError: there is no such file; it holds no weights, or ones that are not finite; it is damaged, forged,
            or of a newer version.
    """
    path = Path(path)
    try:
        start = read_start(path)
        if is_torch_file(start):
            weights = from_torch_file(path)
        elif is_safetensors(start):
            weights = from_safetensors(path)
        else:
            raise RefusedError(describe_file(path))
    except RefusedError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}: expected weights") from error
    check_finite(weights)
    return weights if weights.kind == "checkpoint" else complete_description(weights)


def complete_description(weights: Weights) -> Weights:
    """Return weights whose description has the head and the number of classes that the tensors show."""
    if weights.config is None:
        return weights
    nc, notes = class_count(own_names(weights.tensors, None)[0]), []
    if nc and weights.nc and nc != weights.nc:
        notes.append(f"its description has {weights.nc} classes, its head {nc}: {nc} are used")
    nc = nc or weights.nc
    try:
        config, completed = complete_head(weights.config, weights.tensors, nc, weights.ch)
    except ModelConfigError:  # whoever builds the network reports it, with the place
        return weights
    said = dict.fromkeys([*weights.notes, *notes, *completed])  # a --cfg may say the same as the file's description
    return replace(weights, config=config, nc=nc, notes=list(said))


def read_start(path: Path) -> bytes:
    """Return a file's first bytes.

    Raises:
        RefusedError: there is no such file, or it is an exported network by its suffix.
    """
    if path.is_dir():
        raise RefusedError("is a folder: expected a weights file, such as weights/best.pt in the folder of a run")
    if not path.exists():
        raise RefusedError("no such file: expected weights, such as runs/train/exp/weights/best.pt")
    if not path.is_file():
        raise RefusedError("is a device or pipe: expected a weights file")
    if path.suffix.lower() in EXPORTED:
        raise RefusedError(
            f"is {EXPORTED[path.suffix.lower()]}, an exported network: expected weights; "
            "detect.py and val.py run exported networks"
        )
    with path.open("rb") as file:
        return file.read(64)


# --- files of torch.save


def from_torch_file(path: Path) -> Weights:
    """Read a file of torch.save: ours, a state dict, or a foreign checkpoint."""
    content = load_torch_file(path)
    if isinstance(content, dict) and "version" in content and "network" in content:
        return from_own(path, content)
    found = find_network(content)
    if found is None:
        raise RefusedError(
            f"holds {describe_content(content)}: expected a checkpoint, or a mapping of names to tensors (state dict)"
        )
    network, averaged = found
    weights = from_modules(path, network) if isinstance(network, StandIn) else from_state_dict(path, network)
    if isinstance(content, dict) and content is not network:
        plain = PlainData()
        weights.training = settings_of(content, WRAPPERS, plain) | weights.training
        weights.notes += plain.notes()
        if averaged and any(find_network(content.get(key)) for key in WRAPPERS if "ema" not in key):
            weights.notes.append("it holds averaged (EMA) and raw weights: the averaged ones are used")
    return weights


def describe_content(content: Any) -> str:
    """Name what a file holds for a message."""
    if isinstance(content, StandIn):
        return f"an object of {shown(content.path)}"
    if isinstance(content, dict) and content:
        return f"a mapping without weights (keys {listed(map(shown, content), 8)})"
    if isinstance(content, dict):
        return "an empty mapping"
    return f"a single {'tensor' if isinstance(content, Tensor) else type(content).__name__}"


def find_network(content: Any, depth: int = 0) -> tuple[StandIn | dict[str, Any], bool] | None:
    """Return the module tree or state dict in a file's content, and whether it is averaged (EMA); None without one."""
    if isinstance(content, StandIn):
        return content, False
    if not isinstance(content, dict):
        return None
    if depth < 2:
        for key in WRAPPERS:
            found = find_network(content.get(key), depth + 1)
            if found is not None:
                return found[0], "ema" in key or found[1]
    is_state_dict = any(isinstance(value, Tensor) for value in content.values()) and all(
        isinstance(key, str) for key in content
    )
    return (content, False) if is_state_dict else None


def from_own(path: Path, content: dict[Any, Any]) -> Weights:
    """Read one of our checkpoints; utils/weights/own_file.py checks its version and parts."""
    if type(content["version"]) is not int:
        raise RefusedError(f"version {shown(content['version'])}: expected an integer: damaged; not loaded")
    content = read_checkpoint(path)
    training = settings_of(content, ("version", *WRAPPERS, *RUN_STATE), PlainData())
    return of_own_network(path, content["network"], dict(content.get("ema") or content["model"]), training)


def of_own_network(
    path: Path, network: Mapping[str, Any], tensors: dict[str, Tensor], training: dict[str, Any]
) -> Weights:
    """Return weights of the network that one of our checkpoints describes."""
    described = {key: network[key] for key in ("config", "nc", "ch", "names", "stride")}
    files = network.get("layer_files")
    described["layer_files"] = (
        {str(name): shown(place) for name, place in files.items()} if isinstance(files, dict) else {}
    )
    if network.get("pixel_range") is not None:  # a checkpoint of an older version, or of images of 8 bits, has none
        described["pixel_range"] = parse_pixel_range(network["pixel_range"], f"{path}: its pixel_range")
    if are_ids(network.get("category_ids"), network["nc"]):
        described["category_ids"] = list(network["category_ids"])
    return Weights(
        path, "checkpoint", tensors, training=training, plugins=read_plugins_entry(network.get("plugins")), **described
    )


def from_state_dict(path: Path, content: dict[str, Any]) -> Weights:
    """Read a mapping of names to tensors."""
    notes = []
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        notes.append(f"{len(others)} entries are not tensors and are left out: {listed(map(shown, others), 3)}")
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    return Weights(path, "state dict", clean_names(tensors), notes=notes)


def from_modules(path: Path, root: StandIn) -> Weights:
    """Read the module tree of a foreign checkpoint."""
    network = read_network(root)
    notes = [
        f"read from pickled {shown(root.path)} without running anything; see docs/weights.md for its licence",
        *network.notes,
    ]
    config = network.config
    if config is not None:
        config |= {"folded": True} if network.folded else {}
        config, translated = translate_config(config, network.family, str(path))
        notes += translated
    return Weights(
        path,
        FOREIGN_KINDS[network.family],
        clean_names(network.tensors),
        config,
        network.nc,
        network.ch,
        network.names,
        network.stride,
        network.training,
        notes=notes,
    )


def clean_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the wrappers before `model.<index>.` (`module.`, a second `model.`); add `model.` to bare indices.

    Raises:
        RefusedError: two names become the same.
    """
    bare = bool(tensors) and all(re.match(r"\d+\.", name) for name in tensors)
    cleaned: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = f"model.{name}" if bare else NAME_WRAPPERS.sub("", name)
        if short in cleaned:
            raise RefusedError(f"holds {shown(short)} twice, once as {shown(name)}: expected one network: not loaded")
        cleaned[short] = tensor
    return cleaned


# --- safetensors


def is_safetensors(start: bytes) -> bool:
    """Tell whether a file starts like safetensors: with the length of a JSON mapping and the mapping."""
    return start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= LARGEST_HEADER


def from_safetensors(path: Path) -> Weights:
    """Read a safetensors file; names, stride, nc, ch and config come from JSON values of its metadata."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise RefusedError(
            f"damaged or truncated safetensors file ({shown(str(error))}): expected a whole one; copy it again"
        ) from error
    if not tensors:
        raise RefusedError("is a safetensors file without tensors: expected weights")
    notes: list[str] = []
    known = {
        key: from_json(metadata[key], key, notes)
        for key in ("config", "names", "stride", "nc", "ch")
        if key in metadata
    }
    training = {key: value for key, value in metadata.items() if key not in known}
    return Weights(path, "safetensors", clean_names(tensors), training=training, notes=notes, **known)


def from_json(text: str, key: str, notes: list[str]) -> Any:
    """Return one metadata entry; None and a note if it is not of the expected type."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    items = {"names": str, "stride": int}
    fits = isinstance(value, NETWORK_TYPES[key])
    if not fits or (key in items and not all(type(item) is items[key] for item in value)):
        notes.append(f"its metadata '{key}' is not as expected and is left out")
        return None
    return value


# --- values


def check_finite(weights: Weights) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        CheckpointError: names the first such tensor and counts its numbers and the other tensors.
    """
    broken = list(not_finite(weights.tensors.items()))
    if broken:
        name, count = broken[0]
        more = f" (and {len(broken) - 1} more tensors)" if len(broken) > 1 else ""
        share = f"{count} of {weights.tensors[name].numel()} numbers"
        raise CheckpointError(
            f"{weights.path}: {shown(name)}{more}: {share} are NaN or infinite: expected finite weights: "
            "the run diverged; use an earlier checkpoint, or train with a lower learning rate"
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, int]]:
    """Yield the name of each tensor with NaN or infinity, and how many of its numbers those are."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            yield name, int((~finite).sum())
