"""Weights into an edited network: layers are matched by content and place in the graph; every tensor is reported."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.parameters import layer_index
from models.yolo import Model
from utils.checkpoint.alignment import Node, align
from utils.checkpoint.class_rows import class_rows
from utils.checkpoint.importing import SHOWN, build_model, check_constant
from utils.checkpoint.levels import describe_levels, name_at_level, paired_levels
from utils.errors import CheckpointError
from utils.files import write_csv, write_text
from utils.weights.foreign_names import own_names
from utils.weights.head_form import head_form
from utils.weights.reading import Weights
from utils.wording import listed

FORM_SETTINGS = ("cls", "box_groups")
"""Settings of a head's row that say of which convolutions its towers consist (`TowerSettings`)."""
LOADED, NEW, DIFFERENT, UNUSED = "loaded", "new", "different shape", "not used"
PARTLY = "other classes"
"""Status of an output of a class tower that is loaded for the classes that the file has too."""


@dataclass
class Source:
    """Weights that are transferred into another network.

    Attributes:
        skeleton: the network that they belong to, on the meta device; None where the file describes none.
        tensors: the file's tensors under our names.
        file_names: the file's own name of each tensor.
    """

    weights: Weights
    skeleton: Model | None
    tensors: dict[str, Tensor]
    file_names: dict[str, str]

    @classmethod
    def of(cls, weights: Weights) -> "Source":
        """Build the skeleton of weights and rename their tensors.

        Raises:
            CheckpointError: the network that the file describes cannot be built here.
        """
        skeleton = None
        if weights.config is not None:
            with torch.device("meta"):
                skeleton = build_model(weights)
        return cls(weights, skeleton, *own_names(weights.tensors, skeleton))

    @property
    def stride(self) -> list[int] | None:
        """Strides of the levels; None where the file does not say them."""
        return self.weights.stride if self.skeleton is None else self.skeleton.stride

    def levels(self, model: Model) -> dict[int, int]:
        """Return the level of this head for each level of a network's head that it has, by number."""
        return paired_levels(model, self.tensors, self.stride)


@dataclass
class TensorRecord:
    """The status of one tensor. `name` is the network's, `source` the file's; either may be ""."""

    name: str
    source: str
    status: str
    shape: tuple[int, ...] = ()
    source_shape: tuple[int, ...] = ()
    reason: str = ""


@dataclass
class TransferReport:
    """What was copied from a weights file into a network.

    Attributes:
        records: every tensor of the network in order, then the unused ones of the file.
        coverage: share of the network's parameters that were loaded, 0 to 1.
        used: share of the values in the file that were loaded, 0 to 1.
        new_layers: names of the layers that have no counterpart in the file, by index.
        shared: layers with a counterpart in the file, by index.
        moved: layers with another index in the file, {index here: index there}.
        classes: how the outputs of class towers were matched, unless the names are equal; or "".
        levels: which levels of the head are new, and which of the file's are left out; or "".
        advice: what differs in the head's towers, and the edit that builds them as in the file; or "".
    """

    path: str
    records: list[TensorRecord] = field(default_factory=list)
    coverage: float = 0.0
    used: float = 0.0
    new_layers: dict[int, str] = field(default_factory=dict)
    shared: list[int] = field(default_factory=list)
    moved: dict[int, int] = field(default_factory=dict)
    classes: str = ""
    levels: str = ""
    advice: str = ""

    def names(self, status: str) -> list[str]:
        """Return the names of the tensors with one status; for unused ones the file's names."""
        return [record.name or record.source for record in self.records if record.status == status]

    def describe(self) -> str:
        """Say in one line how much was loaded, which layers are new, and which differ in shape and why."""
        ours = [record for record in self.records if record.status != UNUSED]
        line = (
            f"{self.path}: {len(self.names(LOADED))} of {len(ours)} tensors loaded, "
            f"{self.coverage:.1%} of the network's parameters ({self.used:.1%} of the file's)"
        )
        parts = [f"layer {index} {name}" for index, name in self.new_layers.items()]
        line += f"; new: {listed(parts, SHOWN)}" if parts else ""
        reasons = Counter((layer_index(record.name), record.reason) for record in ours if record.status == DIFFERENT)
        parts = [f"{count} in layer {index} ({why})" for (index, why), count in reasons.items()]
        line += f"; different shape: {listed(parts, SHOWN)}" if parts else ""
        absent = Counter(layer_index(record.name) for record in ours if record.status == NEW)
        parts = [f"{count} in layer {index}" for index, count in absent.items() if index not in self.new_layers]
        line += f"; not in the file: {listed(parts, SHOWN)}" if parts else ""
        unused = len(self.records) - len(ours)
        line += f"; {unused} tensors of the file have no place here" if unused else ""
        return "; ".join(filter(None, (line, self.classes, self.levels)))

    def write(self, folder: Path) -> None:
        """Write transfer.csv (a line for each tensor) and transfer.txt (the summary and the layers that moved)."""
        header = ("tensor", "tensor in the file", "status", "shape", "shape in the file", "reason")
        rows = [
            (r.name, r.source, r.status, " x ".join(map(str, r.shape)), " x ".join(map(str, r.source_shape)), r.reason)
            for r in self.records
        ]
        write_csv(folder / "transfer.csv", header, rows)
        moved = "".join(f"layer {here} takes the weights of layer {there}\n" for here, there in self.moved.items())
        advice = f"{self.advice}\n" if self.advice else ""
        write_text(folder / "transfer.txt", f"{self.describe()}\n{advice}{moved}every tensor: transfer.csv\n")


def network_nodes(model: Model) -> list[Node]:
    """Return a network's layers as the alignment sees them."""
    nodes = [
        Node(row.name, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, list(row.sources))
        for row, module in zip(model.rows, model.model, strict=True)
    ]
    head = model.head
    called: dict[int, str] = {}
    for number, group in enumerate(head.groups(list(range(len(model.rows[-1].sources))))):
        branch = f"auxiliary {number}" if number < len(head.aux) else "lead"
        steps = [f"stride {step}" for step in head.stride] + ["prototypes"] * head.extra_inputs
        called |= {place: f"{branch} {step}" for place, step in zip(group, steps, strict=True)}
    nodes[-1].inputs = [called[place] for place in range(len(called))]
    return nodes


def tensor_nodes(tensors: Mapping[str, Tensor]) -> tuple[list[Node], list[int]]:
    """Return a node for each layer with tensors in a file that describes no network, and the layers' indices."""
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"model\.(\d+)\.(.+)", name):
            layers.setdefault(int(found[1]), {})[found[2]] = tuple(tensor.shape)
    nodes, indices = [Node(None, layers[index]) for index in sorted(layers)], sorted(layers)
    if nodes and not any(name.startswith("lead.") for name in nodes[-1].shapes):  # a body alone
        return [*nodes, Node(None, {})], [*indices, indices[-1] + 1]
    return nodes, indices


def transfer(model: Model, source: Source) -> TransferReport:
    """Copy into a network the weights of every layer that it shares with the network that they come from.

    Layers are matched by name, tensors and place in the graph (utils/checkpoint/alignment.py), never by index.
    A tensor is copied where its layer has a counterpart and the shapes agree.
    Raises:
        CheckpointError: the file holds no weights of this family, folded weights for a network that is not folded,
            or DFL weights other than 0 to 15.
    """
    if source.skeleton is not None:
        nodes = network_nodes(source.skeleton)
        indices = list(range(len(nodes)))
    else:
        nodes, indices = tensor_nodes(source.tensors)
    if not nodes:
        raise CheckpointError(
            f"{source.weights.path}: holds {listed(source.weights.tensors, SHOWN)}: "
            "expected weights of a network of layers, with names such as model.0.conv.weight"
        )
    pairs: dict[int, int] = {here: indices[there] for here, there in align(nodes, network_nodes(model)).items()}
    names = names_in_file(model, pairs, source.levels(model))
    check_unfolded(model, source, names)
    report = copy_tensors(model, source, names)
    report.moved = {index: pairs[index] for index in report.shared if pairs[index] != index}
    report.levels = describe_levels(model, source.tensors, source.stride)
    report.advice = head_advice(model, source)
    return report


def head_advice(model: Model, source: Source) -> str:
    """Say how the towers of the file's head differ in form, and which edits build such ones; "" if they do not."""
    here, there = head_form(model.state_dict()), head_form(source.tensors)
    settings = {key: value for key, value in there.settings_beside(here).items() if key in FORM_SETTINGS}
    if not settings:
        return ""
    parts = [f"{key} is {value} in the file and {getattr(here, key)} here" for key, value in settings.items()]
    edits = " ".join(f'--patch "set head {key} = {value}"' for key, value in settings.items())
    return f"the towers of the head have another form: {', '.join(parts)}: {edits} builds them as in the file"


def names_in_file(model: Model, pairs: Mapping[int, int], levels: Mapping[int, int]) -> dict[str, str]:
    """Return the name that each tensor of a network has in the file, under our names, if its layer is there.

    Args:
        pairs: layer index in the file by layer index in the network.
        levels: number of each level of the head in the file.
    """
    names = {}
    for name in model.state_dict():
        index, within = layer_index(name), name.split(".", 2)[2]
        there = name_at_level(within, levels) if is_head(name, model) else within
        if index in pairs and there is not None:
            names[name] = f"model.{pairs[index]}.{there}"
    return names


def check_unfolded(model: Model, source: Source, names: Mapping[str, str]) -> None:
    """Refuse folded weights (normalisation merged into the convolutions) for a network that normalises.

    The shapes agree, the values do not.
    Args:
        names: name in the file of each tensor of the network that has one.
    Raises:
        CheckpointError: names the first such convolution.
    """
    for name, held in names.items():
        there = held.removesuffix("bn.running_mean")
        if there != held and f"{there}conv.bias" in source.tensors and held not in source.tensors:
            raise CheckpointError(
                f"{source.weights.path}: {there}conv: is folded, but layer {layer_index(name)} of the network "
                "normalises: expected weights before folding; export them without --fold"
            )


def copy_tensors(model: Model, source: Source, names: Mapping[str, str]) -> TransferReport:
    """Copy the tensors that fit, layer by layer, and report.

    Args:
        names: name in the file of each tensor of the network that has one.
    """
    weights, tensors, file_names = source.weights, source.tensors, source.file_names
    rows = class_rows(model, weights)
    report, used, copied, parameters = TransferReport(str(weights.path)), set(), 0, dict(model.named_parameters())
    with torch.no_grad():
        for name, target in model.state_dict(keep_vars=True).items():
            there = names.get(name, "")
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
            share = rows.copy(name, target, tensor)
            if share < 1:
                record.status, record.reason = PARTLY, f"{share:.0%} of the classes are in the file"
            copied += round(share * parameters[name].numel()) if name in parameters else 0
    unused = {name: tensor for name, tensor in tensors.items() if name not in used}
    report.records += [
        TensorRecord("", file_names[name], UNUSED, (), tuple(tensor.shape)) for name, tensor in unused.items()
    ]
    report.coverage = copied / sum(parameter.numel() for parameter in parameters.values())
    held = sum(tensor.numel() for name, tensor in tensors.items() if not is_statistic(name))
    report.used = copied / max(held, 1)
    shared = {layer_index(record.name) for record in report.records if record.source and record.name}
    with_tensors = {layer_index(record.name) for record in report.records if record.name}
    report.new_layers = {index: model.rows[index].name for index in sorted(with_tensors - shared)}
    report.shared = sorted(shared)
    report.classes = rows.note if rows.used else ""
    return report


def is_statistic(name: str) -> bool:
    """Tell whether a tensor is a running statistic of a normalisation, not a parameter."""
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
    return layer_index(name) == len(model.model) - 1
