"""Weights into an edited network: matched by layer and place in the graph, and every tensor accounted for."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.yolo import Model
from utils.checkpoint.alignment import Node, align
from utils.checkpoint.importing import check_constant, own_names, skeleton_of
from utils.errors import CheckpointError
from utils.files import write_csv, write_text
from utils.weights.reading import Weights

LOADED, NEW, DIFFERENT, UNUSED = "loaded", "new", "different shape", "not used"
SHOWN = 3
"""Layers named in the one line; the report names all."""


@dataclass
class TensorRecord:
    """What became of one tensor: `name` is the network's, `source` the file's; "" where there is none."""

    name: str
    source: str
    status: str
    shape: tuple[int, ...] = ()
    source_shape: tuple[int, ...] = ()
    reason: str = ""


@dataclass
class TransferReport:
    """What a network took over from a weights file.

    Attributes:
        records: every tensor of the network in order, then what the file had beyond that.
        coverage: share of the network's parameters that were loaded, 0 … 1.
        used: share of the values in the file that were loaded, 0 … 1.
        new_layers: layers of the network that have no counterpart in the file, by index.
        moved: layers that sit at another index in the file, {index here: index there}.
    """

    path: str
    records: list[TensorRecord] = field(default_factory=list)
    coverage: float = 0.0
    used: float = 0.0
    new_layers: dict[int, str] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)

    def names(self, status: str) -> list[str]:
        """Return the names of the tensors with one status, the file's names for those not used."""
        return [record.name or record.source for record in self.records if record.status == status]

    def describe(self) -> str:
        """One line: how much was loaded, which layers are new, and which differ in shape and why."""
        ours = [record for record in self.records if record.status != UNUSED]
        unused = len(self.records) - len(ours)
        line = f"{self.path}: {len(self.names(LOADED))} of {len(ours)} tensors loaded, {self.coverage:.1%} of the network's parameters"
        line += f" ({self.used:.1%} of the file's)"
        if self.new_layers:
            line += "; new: " + shorten([f"layer {index} {name}" for index, name in self.new_layers.items()])
        reasons = Counter((layer_of(record.name), record.reason) for record in ours if record.status == DIFFERENT)
        if reasons:
            line += "; different shape: " + shorten(
                [f"{count} in layer {index} ({why})" for (index, why), count in reasons.items()]
            )
        if missing := [
            record for record in ours if record.status == NEW and layer_of(record.name) not in self.new_layers
        ]:
            counts = Counter(layer_of(record.name) for record in missing)
            line += "; not in the file: " + shorten([f"{count} in layer {index}" for index, count in counts.items()])
        return line + (f"; {unused} tensors of the file have no place here" if unused else "")

    def write(self, folder: Path) -> None:
        """Write transfer.csv, a line a tensor, and transfer.txt, the summary and which layers moved."""
        header = ("tensor", "tensor in the file", "status", "shape", "shape in the file", "reason")
        rows = [
            (r.name, r.source, r.status, " x ".join(map(str, r.shape)), " x ".join(map(str, r.source_shape)), r.reason)
            for r in self.records
        ]
        write_csv(folder / "transfer.csv", header, rows)
        moved = "".join(f"layer {here} takes the weights of layer {there}\n" for here, there in self.moved.items())
        write_text(folder / "transfer.txt", f"{self.describe()}\n{moved}every tensor: transfer.csv\n")


def shorten(items: list[str]) -> str:
    """Return the first items, separated by commas, and how many more there are."""
    rest = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def layer_of(name: str) -> int:
    """Return the layer index in the name of a tensor."""
    return int(name.split(".")[1])


def network_nodes(model: Model) -> list[Node]:
    """Return a network's layers as the alignment sees them."""
    nodes = [
        Node(row.name, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, list(row.sources))
        for row, module in zip(model.rows, model.model, strict=True)
    ]
    called = {place: f"lead {number}" for number, place in enumerate(model.head.lead_inputs())}
    nodes[-1].inputs = [called.get(place, f"auxiliary {place}") for place in range(len(model.rows[-1].sources))]
    return nodes


def tensor_nodes(tensors: Mapping[str, Tensor]) -> tuple[list[Node], list[int]]:
    """Return nodes of a file that says nothing of its network, one for each layer with tensors, and the layers' indices."""
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"model\.(\d+)\.(.+)", name):
            layers.setdefault(int(found[1]), {})[found[2]] = tuple(tensor.shape)
    nodes, indices = [Node(None, layers[index]) for index in sorted(layers)], sorted(layers)
    if nodes and not any(name.startswith("lead.") for name in nodes[-1].shapes):  # a body alone
        return [*nodes, Node(None, {})], [*indices, indices[-1] + 1]
    return nodes, indices


def transfer(model: Model, weights: Weights) -> TransferReport:
    """Copy into a network the weights of every layer that it still shares with the network they come from.

    Layers are matched by name, tensors and place in the graph (utils/checkpoint/alignment.py), never by index; a tensor is copied where
    its layer has a counterpart and the shapes agree.

    Raises:
        CheckpointError: the file holds no weights of this family, folded ones for a network that is not, or DFL weights other than 0 … 15.
    """
    source = skeleton_of(weights) if weights.config else None
    tensors, file_names = own_names(weights.tensors, source)
    if source is not None:
        nodes = network_nodes(source)
        indices = list(range(len(nodes)))
    else:
        nodes, indices = tensor_nodes(tensors)
    if not nodes:
        held = ", ".join(list(weights.tensors)[:SHOWN])
        raise CheckpointError(
            f"{weights.path}: holds no weights of a network of layers (it has {held}): expected names such as model.0.conv.weight"
        )
    pairs: dict[int, int] = {here: indices[there] for here, there in align(nodes, network_nodes(model)).items()}
    check_unfolded(model, weights, tensors, pairs)
    return copy_tensors(model, weights, tensors, file_names, pairs)


def check_unfolded(model: Model, weights: Weights, tensors: Mapping[str, Tensor], pairs: Mapping[int, int]) -> None:
    """Refuse weights with normalisation merged into the convolutions for a network that normalises: shapes agree, values do not.

    Raises:
        CheckpointError: names the first such convolution.
    """
    for name in model.state_dict():
        index, within = layer_of(name), name.split(".", 2)[2]
        if index in pairs and within.endswith("bn.running_mean"):
            there = f"model.{pairs[index]}.{within.removesuffix('bn.running_mean')}"
            if f"{there}conv.bias" in tensors and f"{there}bn.running_mean" not in tensors:
                raise CheckpointError(
                    f"{weights.path}: {there}conv: folded, its normalisation merged into it, and layer {index} here normalises: "
                    "expected weights before folding (export.py without --fold)"
                )


def copy_tensors(
    model: Model,
    weights: Weights,
    tensors: Mapping[str, Tensor],
    file_names: Mapping[str, str],
    pairs: Mapping[int, int],
) -> TransferReport:
    """Copy what fits, layer by layer, and report.

    Args:
        tensors: the file's tensors under our names.
        file_names: the file's own name of each of them.
        pairs: layer index in the file by layer index here.
    """
    report, used, copied, parameters = TransferReport(str(weights.path)), set(), 0, dict(model.named_parameters())
    with torch.no_grad():
        for name, target in model.state_dict(keep_vars=True).items():
            index, within = layer_of(name), name.split(".", 2)[2]
            there = f"model.{pairs[index]}.{within}" if index in pairs else ""
            if there not in tensors:
                report.records.append(TensorRecord(name, "", NEW, tuple(target.shape)))
                continue
            used.add(there)
            tensor = tensors[there]
            record = TensorRecord(name, file_names[there], LOADED, tuple(target.shape), tuple(tensor.shape))
            report.records.append(record)
            if tensor.shape != target.shape:
                record.status, record.reason = DIFFERENT, difference(name, model, weights, record)
                continue
            check_constant(file_names[there], name, tensor, target)
            target.copy_(tensor)
            copied += parameters[name].numel() if name in parameters else 0
    unused = {name: tensor for name, tensor in tensors.items() if name not in used}
    report.records += [
        TensorRecord("", file_names[name], UNUSED, (), tuple(tensor.shape)) for name, tensor in unused.items()
    ]
    report.coverage = copied / sum(parameter.numel() for parameter in parameters.values())
    held = sum(tensor.numel() for name, tensor in tensors.items() if not is_statistic(name))
    report.used = copied / max(held, 1)
    shared = {layer_of(record.name) for record in report.records if record.source and record.name}
    with_tensors = {layer_of(record.name) for record in report.records if record.name}
    report.new_layers = {index: model.rows[index].name for index in sorted(with_tensors - shared)}
    report.moved = {index: pairs[index] for index in sorted(shared) if pairs[index] != index}
    return report


def is_statistic(name: str) -> bool:
    """Tell whether a tensor is a normalisation's running statistic rather than a parameter."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def difference(name: str, model: Model, weights: Weights, record: TensorRecord) -> str:
    """Say why a tensor's shape differs."""
    here, there = record.shape, record.source_shape
    if len(here) != len(there):
        return f"{len(here)} dimensions here, {len(there)} in the file"
    classes = weights.nc or (len(weights.names) if weights.names else None)
    if (
        is_head(name, model)
        and here[:1] == (model.nc,)
        and there[:1] != here[:1]
        and (classes is None or there[:1] == (classes,))
    ):
        return f"{model.nc} classes here, {there[0]} in the file"
    sides = zip(("outputs", "inputs", "kernel", "kernel"), here, there, strict=False)
    return ", ".join(
        dict.fromkeys(f"{what} {ours} here, {theirs} in the file" for what, ours, theirs in sides if ours != theirs)
    )


def is_head(name: str, model: Model) -> bool:
    """Tell whether a tensor belongs to the last row."""
    return layer_of(name) == len(model.model) - 1


def class_towers(tensors: Mapping[str, Tensor]) -> tuple[set[int], set[int]]:
    """Return the hidden widths and the class counts of the class towers among a file's tensors under our names."""
    last: dict[str, tuple[tuple[int, ...], Tensor]] = {}
    for name, tensor in tensors.items():
        if (
            found := re.fullmatch(r"model\.\d+\.((?:lead|aux\.\d+)\.cls\.\d+)\.([\d.]+)\.weight", name)
        ) and tensor.ndim == 4:
            place = tuple(map(int, found[2].split(".")))
            if place >= last.get(found[1], ((), tensor))[0]:
                last[found[1]] = (place, tensor)
    return {tensor.shape[1] for _, tensor in last.values()}, {tensor.shape[0] for _, tensor in last.values()}


def with_class_width(config: dict[str, Any], width: int) -> dict[str, Any]:
    """Return a configuration whose head has class towers of this hidden width; one that says a width of its own stays."""
    *rows, last = config["head"]
    arguments = list(last[3])
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    return config | {"head": [*rows, [*last[:3], [*arguments, {"class_width": width} | keywords], *last[4:]]]}


def keep_hidden_width(model: Model, weights: Weights) -> tuple[Model, str]:
    """Return a network whose class towers are as wide as the weights', where only the class count makes them differ; and a line about it.

    In these families the hidden width follows from the class count: a network of other classes would lose the towers' weights.
    """
    source = skeleton_of(weights) if weights.config else None
    widths, counts = class_towers(own_names(weights.tensors, source)[0])
    ours, _ = class_towers(model.state_dict())
    if len(widths) != 1 or len(counts) != 1 or ours == widths or counts == {model.nc}:
        return model, ""
    with torch.device("meta"):
        alike = Model(
            model.config, nc=next(iter(counts)), ch=model.channels
        )  # the same network with the classes of the weights
    if class_towers(alike.state_dict())[0] != widths:
        return model, ""
    width, before = next(iter(widths)), ", ".join(map(str, sorted(ours)))
    kept = Model(with_class_width(model.config, width), nc=model.nc, ch=model.channels)
    kept.names = model.names
    return (
        kept,
        f"head_hidden keep: the class towers stay {width} wide as in {weights.path} ({before} would follow from {model.nc} classes)",
    )
