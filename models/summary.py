"""The layer table of a network, with parameters and GFLOPs as trained and as deployed: `python -m models.yolo CFG [--json]`."""

import json
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.deploy import written_source
from models.registry import find_layer
from models.yolo import Model
from utils import cli

IMAGE_SIZE = 640
"""Side of the picture that GFLOPs are counted for."""


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_gflops(model: Model, size: int = IMAGE_SIZE) -> float:
    """Return the 10^9 operations of one picture of `size` x `size`: two per multiply-accumulate of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        model.trace(size)
    return counter.get_total_flops() / 1e9


def summarize(model: Model) -> dict[str, Any]:
    """Return the description of a network that `--json` prints: totals, layers, and totals of the deployed form."""
    layers = [
        {
            "index": row.index,
            "name": f"model.{row.index}",
            "label": row.label,
            "role": find_layer(row.name).role,
            "from": written_source(row),
            "module": row.name,
            "args": row.arguments,
            "output_shape": shape,
            "parameters": count_parameters(module),
        }
        for row, module, shape in zip(model.rows, model.model, model.trace(IMAGE_SIZE), strict=True)
    ]
    deployed = model.deploy()
    return {
        "parameters": count_parameters(model),
        "gflops": count_gflops(model),
        "stride": model.stride,
        "task": model.task,
        "nc": model.nc,
        "layers": layers,
        "deployed": {"parameters": count_parameters(deployed), "gflops": count_gflops(deployed)},
    }


def format_shape(shape: Any) -> str:
    """Return an output shape without its batch dimension, nested ones joined by '+'; of a head the lead branch's."""
    if isinstance(shape, dict) and "main" in shape:
        return format_shape(shape["main"])
    if isinstance(shape, dict):
        maps, *others = shape
        return ", ".join([format_shape(shape[maps]), *(f"{key} {format_shape(shape[key])}" for key in others)])
    if shape and isinstance(shape[0], int):
        return "x".join(map(str, shape[1:]))
    return " + ".join(format_shape(part) for part in shape)


def format_table(summary: dict[str, Any]) -> str:
    """Return the layer table as text."""
    rows = [("layer", "from", "parameters", "module", "arguments")] + [
        (str(layer["index"]), str(layer["from"]), f"{layer['parameters']:,}", layer["module"], str(layer["args"])) for layer in summary["layers"]
    ]
    shapes = [f"output at {IMAGE_SIZE} x {IMAGE_SIZE}", *(format_shape(layer["output_shape"]) for layer in summary["layers"])]
    index, source, parameters, module, arguments = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{row[0]:>{index}}  {row[1]:<{source}}  {row[2]:>{parameters}}  {row[3]:<{module}}  {row[4]:<{arguments}}  {shape}"
        for row, shape in zip(rows, shapes, strict=True)
    ]
    deployed = summary["deployed"]
    lines.append(f"{len(summary['layers'])} layers, task {summary['task']}, {summary['nc']} classes, stride {summary['stride']}")
    lines.append(f"as trained   {summary['parameters']:>12,} parameters  {summary['gflops']:>8.2f} GFLOPs")
    lines.append(f"as deployed  {deployed['parameters']:>12,} parameters  {deployed['gflops']:>8.2f} GFLOPs  (lead branch, folded)")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m models.yolo`; return the exit status."""
    parser = cli.Parser(prog="python -m models.yolo", description="Print the layers of a network.")
    parser.add_argument("cfg", help="network yaml, a path or the name of a shipped one")
    parser.add_argument("--nc", type=int, help="number of classes, in place of the yaml's")
    parser.add_argument("--ch", type=int, help="channels of the pictures")
    parser.add_argument("--scale", help="letter of a family yaml's scales")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    def show() -> None:
        with torch.device("meta"):
            summary = summarize(Model(options.cfg, nc=options.nc, ch=options.ch, scale=options.scale))
        print(json.dumps(summary) if options.json else format_table(summary))

    return cli.run(show)
