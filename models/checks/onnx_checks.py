"""Checks of ONNX graphs, of a layer alone and inside a network, by both exporters, and in other readers."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.checks.checking import CheckFailedError, CheckSkippedError, Suite, demand_close, first_line, run
from models.checks.graph_checks import RECORDED_BATCH, TOLERANCE, how_free, recorded_size
from models.checks.layer_case import ERRORS, REPEATABLE, RUNS, FlatForm, LayerCase, apply_to, randomise, tensors_of
from models.checks.network_checks import COPIES, image_size
from models.yolo import Model
from utils.errors import UserError
from utils.onnx_graph.readers import readings
from utils.onnx_graph.recording import INSTALL, exported_onnx, simplified, traced_onnx
from utils.onnx_graph.running import OnnxRuntimeError, OnnxSession

ONNX_CHECKS: Suite[LayerCase] = Suite()
NETWORK_ONNX_CHECKS: Suite[Model] = Suite()
EXPORT_PACKAGES = ("onnx", "onnxruntime")
FREE = (0, 2, 3)
"""Dimensions of an input that stay open: batch, height and width."""


class InsideNetwork(nn.Module):
    """A layer between a convolution and a step that reads the shape of each output, as networks have.

    Exporters that note a wrong shape for an output write graphs that only fail in what comes after the layer.

    Args:
        like: an input of the layer.
    """

    def __init__(self, layer: nn.Module, like: Any) -> None:
        super().__init__()
        widths = [tensor.shape[1] for tensor in tensors_of(like)]
        self.layer, self.before = layer, nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.eval()

    def forward(self, given: Any) -> list[Tensor]:
        convolutions = iter(self.before)
        outputs = tensors_of(self.layer(apply_to(given, lambda tensor: next(convolutions)(tensor))))
        return [placed(output) if output.ndim == 4 else output for output in outputs]


def placed(x: Tensor) -> Tensor:
    """Add its row and its column, in cells, to every cell of a map."""
    batch, _, height, width = x.shape
    rows, columns = (torch.arange(side, dtype=x.dtype, device=x.device) for side in (height, width))
    return x + (rows[:, None] + columns) * x.new_ones(batch, 1, 1, 1)


def require_packages() -> None:
    """Skip the running check where a package is not installed.

    Raises:
        CheckSkippedError: names it.
    """
    missing = [package for package in EXPORT_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise CheckSkippedError(f"needs {' and '.join(missing)}: {INSTALL}")


@ONNX_CHECKS.add(
    "onnx",
    "Write it in operations that ONNX has (opset 18): most of torch.nn.functional; view in place of unflatten; "
    "for the recording choose another form while "
    "torch.onnx.is_in_onnx_export().",
    needs=(RUNS, REPEATABLE),
    slow=True,
)
def check_onnx(case: LayerCase) -> str:
    """The layer's ONNX graph is equal, alone and in a network, with a dynamic batch and, if it allows it, any size."""
    require_packages()
    module = randomise(case.build()).eval()
    given = case.given(recorded_size(case), RECORDED_BATCH)
    inside = InsideNetwork(module, given)
    attempts: list[tuple[str, list[Callable[[], str]]]] = [
        ("tracing", [partial(traced_freedom, case, form, given) for form in (module, inside)]),
        ("torch.export", [lambda: how_free(case, inside, onnx_runner(layer_by_dynamo(inside, given)))]),
    ]
    found = either(attempts)
    return "; ".join([found, *reader_texts(module, case.given(recorded_size(case)))])


def traced_freedom(case: LayerCase, form: nn.Module, given: Any) -> str:
    """Trace a layer, alone or inside a network, and describe the sizes that the graph accepts."""
    where = "inside a network: " if isinstance(form, InsideNetwork) else ""
    try:
        return how_free(case, form, onnx_runner(onnx_by_tracing(form, given, run(form, given))))
    except CheckFailedError as problem:
        raise CheckFailedError(f"{where}{problem}") from problem


def either(attempts: Sequence[tuple[str, list[Callable[[], str]]]]) -> str:
    """Return what was found by the exporters that succeed, and why the others do not.

    Args:
        attempts: by exporter, what is tried with it; all of it must succeed.
    Raises:
        CheckFailedError: none of them succeeds.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for exporter, tries in attempts:
        try:
            found[exporter] = "; ".join(dict.fromkeys(attempt() for attempt in tries))
        except (CheckFailedError, *ERRORS) as error:
            kind = "" if isinstance(error, CheckFailedError | UserError) else f"{type(error).__name__}: "
            problems.append(f"{kind}{first_line(error)} (by {exporter})")
    if not found:
        raise CheckFailedError("; ".join(problems))
    if not problems and len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join([*(f"{text}, by {exporter}" for exporter, text in found.items()), *problems])


def names_of(kind: str, tensors: Sequence[Tensor]) -> list[str]:
    """Return the names of a graph's inputs or outputs: input0, input1 and so on."""
    return [f"{kind}{number}" for number in range(len(tensors))]


def onnx_by_tracing(module: nn.Module, given: Any, expected: list[Tensor], free: bool = True) -> bytes:
    """Return a layer as an ONNX model; `free`: batch and size stay open."""
    tensors = tuple(tensors_of(given))
    names, outputs = names_of("input", tensors), names_of("output", expected)
    axes = {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names}
    axes |= {
        name: {number: f"{name}_{number}" for number in range(tensor.ndim) if number != 1}
        for name, tensor in zip(outputs, expected, strict=True)
    }
    return traced_onnx(FlatForm(module, given).eval(), tensors, names, outputs, axes if free else {})


def layer_by_dynamo(module: nn.Module, given: Any, free: bool = True) -> bytes:
    """Return a layer as an ONNX model, made by torch.export; `free`: batch and size stay open."""
    tensors = tuple(tensors_of(given))
    shapes = (tuple(dict.fromkeys(FREE, torch.export.Dim.DYNAMIC) for _ in tensors),)
    names, outputs = names_of("input", tensors), names_of("output", run(module, given))
    form = FlatForm(module, given).eval()
    return exported_onnx(form, tensors, names, outputs, shapes if free else None).SerializeToString()


def onnx_runner(written: bytes) -> Callable[..., list[Tensor]]:
    """Return a function that runs an ONNX model in onnxruntime.

    Raises:
        CheckFailedError: onnxruntime refuses the model.
    """
    try:
        session = OnnxSession(written)
    except OnnxRuntimeError as error:
        raise CheckFailedError(f"onnxruntime refuses the model: {first_line(error)}") from error

    def graph(*tensors: Tensor) -> list[Tensor]:
        try:
            return session.run(dict(zip(names_of("input", tensors), tensors, strict=True)))
        except OnnxRuntimeError as error:
            raise CheckFailedError(first_line(error)) from error

    return graph


def reader_texts(module: nn.Module, given: Any) -> list[str]:
    """Return a clause for each other reader of ONNX that is installed, for a graph of one size."""
    expected = run(module, given)
    try:
        written = onnx_by_tracing(module, given, expected, free=False)
    except ERRORS:
        written = layer_by_dynamo(module, given, free=False)
    tensors = tensors_of(given)
    values = dict(zip(names_of("input", tensors), tensors, strict=True))
    outputs = dict(zip(names_of("output", expected), expected, strict=True))
    found = readings(written, values, outputs)
    if all(reading.problem is None for reading in found) or importlib.util.find_spec("onnxslim") is None:
        return [reading.describe() for reading in found]
    import onnx

    try:
        slim = simplified(onnx.load_model_from_string(written)).SerializeToString()
    except ERRORS:
        return [reading.describe() for reading in found]
    again = {reading.reader: reading for reading in readings(slim, values, outputs)}
    return [
        f"{reading.reader} reads it after --simplify only"
        if reading.problem is not None and again[reading.reader].problem is None
        else reading.describe()
        for reading in found
    ]


@NETWORK_ONNX_CHECKS.add(
    "onnx",
    "See 'onnx' of the layers below.",
    needs=(RUNS, COPIES),
    slow=True,
)
def check_network_onnx(model: Model) -> str:
    """The network's ONNX graph is equal, for any batch and, where its layers allow it, any size."""
    require_packages()
    network = randomise(model.deploy()).eval()
    size, step = image_size(model), model.multiple
    fixed = any(getattr(module, "size_hw", None) for module in network.modules())
    other = (size, size) if fixed else (size + step, size)
    images, others = (torch.rand(2, model.channels, size, size), torch.rand(3, model.channels, *other))

    def agree(written: bytes) -> str:
        graph = onnx_runner(written)
        demand_close(graph(images), run(network, images), *TOLERANCE, "as recorded")
        demand_close(graph(others), run(network, others), *TOLERANCE, f"3 images of {other[0]} x {other[1]}")
        return "any batch" if fixed else "any batch and size"

    return either(
        [
            ("tracing", [lambda: agree(onnx_by_tracing(network, images, run(network, images)))]),
            ("torch.export", [lambda: agree(network_by_dynamo(network, images, step, fixed))]),
        ]
    )


def network_by_dynamo(network: nn.Module, images: Tensor, step: int, fixed: bool) -> bytes:
    """Return a network as an ONNX model, made by torch.export, with sizes in multiples of `step` unless `fixed`."""
    dim = torch.export.Dim
    free: dict[int, Any] = {0: dim("batch", min=1, max=4096)}
    if not fixed:
        free |= {2: step * dim("rows", min=1, max=4096), 3: step * dim("columns", min=1, max=4096)}
    outputs = names_of("output", run(network, images))
    return exported_onnx(
        FlatForm(network, images).eval(), (images,), ["input0"], outputs, ((free,),)
    ).SerializeToString()
