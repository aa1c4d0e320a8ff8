"""Choose layers of a network, and record their outputs and inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.yolo import Model
from utils.errors import SettingsError, did_you_mean


def pick_layers(model: Model, wanted: Sequence[str | int], flag: str = "--visualize") -> dict[str, nn.Module]:
    """Find layers by index, class name or module path; return them by label.

    Args:
        model: a network whose `model` lists its layers.
        wanted: indices, class names (all layers of that class) or module paths such as `10.modulation`; empty for
            every layer of the yaml.
        flag: the command-line flag, for messages.

    Raises:
        SettingsError: no layer matches an entry.
    """
    modules = {path: module for path, module in model.model.named_modules() if path}
    if not wanted:
        wanted = [path for path in modules if path.isdigit()]
    picked: dict[str, nn.Module] = {}
    for entry in map(str, wanted):
        key = entry.removeprefix("model.")
        chosen = {path: module for path, module in modules.items() if type(module).__name__.lower() == key.lower()}
        if key in modules:
            chosen = {key: modules[key]}
        if not chosen:
            kinds = {type(module).__name__ for module in modules.values()}
            count = len(list(model.model))
            raise SettingsError(
                f"{flag} {entry}: no such layer: expected 0..{count - 1}, a layer's class name or a module path."
                f"{did_you_mean(entry, kinds)}"
            )
        picked.update(chosen)
    return {layer_label(path, module): module for path, module in picked.items()}


def layer_label(path: str, module: nn.Module) -> str:
    """Return a label that can be a file name, such as `03_RepNCSPELAN4` or `10.attention_SE`."""
    index, _, rest = path.partition(".")
    return f"{int(index):02d}{'.' + rest if rest else ''}_{type(module).__name__}"


def explaining_modules(root: nn.Module) -> dict[str, nn.Module]:
    """Return the modules in `root` (and itself) with a method `explain`, by path; of nested ones only the outermost."""
    found: dict[str, nn.Module] = {}
    within: set[nn.Module] = set()
    for path, module in root.named_modules():
        if module not in within and callable(getattr(module, "explain", None)):
            found[path] = module
            within.update(module.modules())
    return found


@dataclass
class LayerRecorder:
    """Context manager that records the outputs of layers, and the inputs of modules with a method `explain`.

    Attributes:
        layers: modules by label.
        outputs: output of each layer by label.
        inputs: by label, each module with `explain` in these layers and its input; of nested ones only the outermost.
    """

    layers: dict[str, nn.Module]
    outputs: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, tuple[nn.Module, Tensor]] = field(default_factory=dict)
    _handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)

    def __enter__(self) -> "LayerRecorder":
        explained: set[nn.Module] = set()
        for label, layer in self.layers.items():
            self._record_output(label, layer)
            for path, module in explaining_modules(layer).items():
                if module not in explained:
                    explained.update(module.modules())
                    self._record_input(f"{label}.{path}" if path else label, module)
        return self

    def _record_output(self, label: str, layer: nn.Module) -> None:
        def hook(_module: nn.Module, _given: tuple[Any, ...], output: Any) -> Tensor | None:
            self.outputs[label] = output
            # a copy, since the next layer may work in place
            return output.clone() if isinstance(output, Tensor) else None

        self._handles.append(layer.register_forward_hook(hook))

    def _record_input(self, label: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            self.inputs[label] = (module, given[0])

        self._handles.append(module.register_forward_pre_hook(hook))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
