"""Files like the checkpoints of the original YOLOv9 and of Ultralytics, made from what is known of such files.

A module tree is built from a network's tensors under the originals' names. It consists of torch's own layers and of
empty classes with the originals' paths (`models.common.Conv`, `ultralytics.nn.tasks.DetectionModel`, …). torch.save
writes it whole: protocol 2, a zip archive whose root folder is the file's first name. The classes exist only while the
file is written.
"""

import copy
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.yolo import Model
from utils.weights.foreign_names import foreign_head_names

Tree = dict[str, Any]
FOREIGN_HEADS = {"V9Detect": "Detect", "V9Segment": "Segment"}
UNKNOWN_SETTINGS = {"cls", "class_width", "box_width"}
"""Settings of a head's row that the originals' yamls do not have: the version that wrote the file decides there."""
CONV_MODULE = ("Conv", "Concat", "DWConv")
DATE = "2024-02-18T01:02:03.456789"


class Family:
    """Where a family's classes live."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: dict[str, type] = {}

    def module_of(self, class_name: str, is_head: bool = False) -> str:
        if self.name == "yolov9":
            return "models.yolo" if is_head or class_name.endswith("Model") else "models.common"
        if class_name.endswith("Model"):
            return "ultralytics.nn.tasks"
        if class_name == "IterableSimpleNamespace":
            return "ultralytics.utils"
        return f"ultralytics.nn.modules.{'head' if is_head else 'conv' if class_name in CONV_MODULE else 'block'}"

    def find(self, class_name: str, base: type = nn.Module, is_head: bool = False) -> type:
        """Return the empty class of that name, always the same."""
        path = f"{self.module_of(class_name, is_head)}.{class_name}"
        if path not in self.made:
            self.made[path] = type(class_name, (base,), {"__module__": path.rpartition(".")[0]})
        return self.made[path]

    def make(self, class_name: str, is_head: bool = False) -> nn.Module:
        return self.find(class_name, is_head=is_head)()

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Make the classes importable under their paths, as pickle asks for; what stood there comes back afterwards."""
        modules: dict[str, ModuleType] = {}
        for path, made in self.made.items():
            parts = path.split(".")[:-1]
            for depth in range(1, len(parts) + 1):
                modules.setdefault(".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
            setattr(modules[".".join(parts)], made.__name__, made)
        before = {name: sys.modules.get(name) for name in modules}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name, module in before.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


def nested(tensors: dict[str, Tensor]) -> Tree:
    """Return tensors by dotted names as a tree."""
    tree: Tree = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = tensor
    return tree


def real_layer(tree: Tree) -> nn.Module | None:
    """Return torch's own layer for a leaf of the tree, or None where it has none of a known form."""
    weight = tree.get("weight")
    if weight is None or not all(isinstance(value, Tensor) for value in tree.values()):
        return None
    if "running_mean" in tree:
        layer: nn.Module = nn.BatchNorm2d(len(weight), eps=1e-3, momentum=0.03)
    elif weight.dim() == 4:
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias="bias" in tree)
    elif weight.dim() == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tree)
    else:
        return None
    layer.load_state_dict(tree)
    return layer


def class_name_of(tree: Tree) -> str:
    """Return the class of an inner part, from its parts' names."""
    keys = set(tree)
    if "conv" in keys and keys <= {"conv", "bn"}:
        return "DFL" if tuple(tree["conv"]["weight"].shape) == (1, 16, 1, 1) else "Conv"
    if keys == {"conv1", "conv2"}:
        return "RepConvN"
    return "RepNBottleneck" if keys == {"cv1", "cv2"} else "RepNCSP"


def build(tree: Tree, family: Family, class_name: str | None = None, is_head: bool = False) -> nn.Module:
    """Return the module tree of a tensor tree; `class_name` names the outermost class if it has no form of its own."""
    if (layer := real_layer(tree)) is not None:
        return layer
    if class_name is None and tree and all(key.isdigit() for key in tree):
        return nn.Sequential(*(build(tree[key], family) for key in sorted(tree, key=int)))
    name = class_name or class_name_of(tree)
    module = family.make(name, is_head)
    for key, value in tree.items():
        if isinstance(value, dict):
            setattr(module, key, build(value, family))
        elif value.is_floating_point():
            module.register_parameter(key, nn.Parameter(value.clone()))
        else:
            module.register_buffer(key, value.clone())
    if name in ("Conv", "RepConvN"):
        module.act = nn.SiLU(inplace=True)
    if name == "RepConvN":
        module.bn = None
    return module


def foreign_name(name: str, head_index: int, table: dict[str, str]) -> str:
    """Return the originals' name of one of our state-dict entries."""
    prefix = f"model.{head_index}."
    if name.startswith(prefix):
        for ours, theirs in table.items():
            if name.startswith(f"{prefix}{ours}."):
                return f"{prefix}{theirs}.{name.removeprefix(f'{prefix}{ours}.')}"
    return name


def foreign_tensors(model: Model) -> dict[str, Tensor]:
    """Return a network's state under the originals' names."""
    table, head_index = foreign_head_names(model.head), len(model.model) - 1
    return {foreign_name(name, head_index, table): value.detach().clone() for name, value in model.state_dict().items()}


def foreign_config(model: Model, family: str) -> dict[str, Any]:
    """Return a network's yaml in the originals' words, which do not say how the towers of the head are built."""
    config = copy.deepcopy(model.config)
    for row in [*config["backbone"], *config["head"]]:
        if family == "yolov9":
            row[2] = FOREIGN_HEADS.get(row[2], row[2])
        row[3] = [
            False if argument == "mlx" else argument
            for argument in row[3]
            if not (isinstance(argument, dict) and argument.keys() & UNKNOWN_SETTINGS)
        ]
    return config | {"nc": model.nc, "ch": model.channels}


def module_tree(model: Model, family: Family, tensors: dict[str, Tensor] | None = None) -> nn.Module:
    """Return the module tree that the originals would save for a network.

    Args:
        tensors: under the originals' names; by default the network's own.
    """
    layers = nested(foreign_tensors(model) if tensors is None else tensors)["model"]
    root = family.make("DetectionModel")
    built = []
    for row in model.rows:
        is_head, tree = row.index == len(model.rows) - 1, layers.get(str(row.index), {})
        if row.name.startswith("nn."):
            layer: nn.Module = (
                nn.Upsample(scale_factor=2.0, mode="nearest") if row.name == "nn.Upsample" else nn.Identity()
            )
        elif row.repeats > 1 and tree and all(key.isdigit() for key in tree):
            layer = nn.Sequential(*(build(tree[key], family, row.name) for key in sorted(tree, key=int)))
        else:
            layer = build(tree, family, FOREIGN_HEADS.get(row.name, row.name), is_head)
        layer.i, layer.f, layer.np = row.index, -1, sum(parameter.numel() for parameter in layer.parameters())
        built.append(layer)
    head = built[-1]
    head.nc, head.nl, head.stride = model.nc, len(model.stride), torch.tensor([float(step) for step in model.stride])
    head.anchors = torch.empty(0)
    head.register_buffer("cached_points", torch.zeros(2, 3), persistent=False)
    root.model = nn.Sequential(*built)
    root.save = [row.index for row in model.rows[:3]]
    root.nc, root.inplace, root.stride, root.task = model.nc, True, head.stride, "detect"
    root.yaml = foreign_config(model, family.name)
    return root


def save_whole(path: Path, content: Any, family: Family, root: str) -> Path:
    """Save objects of a family's classes; `root` becomes the folder inside the archive."""
    with tempfile.TemporaryDirectory() as folder, family.importable():
        written = Path(folder) / f"{root}.pt"
        torch.save(content, written)
        shutil.copyfile(written, path)
    return path


def write_yolov9_checkpoint(
    path: Path,
    model: Model,
    *,
    half: bool = False,
    ema: Model | None = None,
    tensors: dict[str, Tensor] | None = None,
    root: str = "last",
    optimizer: bool = False,
    names_as_dict: bool = False,
    **root_attributes: Any,
) -> Path:
    """Write a network as the original YOLOv9 saves one.

    Args:
        half: fp16, as its own training writes.
        ema: averaged weights, a network of the same build; without it the file is a stripped one.
        tensors: values under the originals' names in place of the network's.
        root_attributes: set on the outermost module, in place of what it has.
    """
    family = Family("yolov9")

    def tree(network: Model) -> nn.Module:
        built = module_tree(network, family, tensors)
        built.names = dict(enumerate(network.names)) if names_as_dict else list(network.names)
        built.hyp = {"lr0": 0.01, "momentum": 0.937, "anchor_t": 5.0}
        for name, value in root_attributes.items():
            setattr(built, name, value)
        return built.half() if half else built

    trees = [tree(network) for network in (model, ema) if network is not None]
    content = {
        "epoch": 7 if optimizer else -1,
        "best_fitness": np.array([0.25]) if optimizer else np.float64(0.5),
        "model": trees[0],
        "ema": trees[1] if ema is not None else None,
        "updates": 100 if ema is not None else None,
        "optimizer": optimizer_state(trees[0]) if optimizer else None,
        "opt": {"epochs": 300, "batch_size": 16, "weights": "", "save_dir": Path("runs/train/exp"), "close_mosaic": 15},
        "git": {"remote": None, "branch": None, "commit": None},
        "date": DATE,
    }
    return save_whole(path, content, family, root)


def optimizer_state(module: nn.Module) -> dict[str, Any]:
    """Return an optimizer's state after one step on made-up gradients."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in module.parameters():
        parameter.grad = None
    return optimizer.state_dict()


def write_ultralytics_checkpoint(
    path: Path,
    model: Model,
    *,
    half: bool = True,
    ema: Model | None = None,
    tensors: dict[str, Tensor] | None = None,
    root: str = "best",
    **root_attributes: Any,
) -> Path:
    """Write a network as Ultralytics saves YOLOv8, YOLO11 or its YOLOv9; arguments as in `write_yolov9_checkpoint`."""
    family = Family("ultralytics")
    namespace = family.find("IterableSimpleNamespace", SimpleNamespace)
    settings = {
        "task": "detect",
        "model": "yolov8n.pt",
        "epochs": 100,
        "imgsz": 640,
        "lr0": 0.01,
        "cos_lr": False,
        "data": "coco.yaml",
    }

    def tree(network: Model) -> nn.Module:
        built = module_tree(network, family, tensors)
        built.names, built.args = dict(enumerate(network.names)), namespace(**settings, box=7.5)
        for name, value in root_attributes.items():
            setattr(built, name, value)
        return built.half() if half else built

    content = {
        "epoch": -1,
        "best_fitness": np.float64(0.375),
        "model": tree(model) if ema is None else None,
        "ema": tree(ema) if ema is not None else None,
        "updates": None,
        "optimizer": None,
        "train_args": settings,
        "train_metrics": {"metrics/mAP50(B)": np.float64(0.5), "fitness": np.float32(0.25)},
        "train_results": {"epoch": [1, 2], "time": [1.5, 3.0]},
        "date": DATE,
        "version": "8.1.0",
        "license": "AGPL-3.0",
    }
    return save_whole(path, content, family, root)
