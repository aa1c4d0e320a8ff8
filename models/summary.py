"""The layer table of a network, with parameters and GFLOPs as trained and as deployed: `python -m models.yolo CFG [--json] [--graph FILE]`."""

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config.composed import show_difference
from models.config.reading import base_of, find_config, read_config
from models.deploy import numbered_source
from models.parameters import count_parameters
from models.plugins.held import used_plugins
from models.plugins.loading import load_plugins
from models.registry import find_layer
from models.yolo import Model
from utils import cli
from utils.errors import ModelConfigError

IMAGE_SIZE = 640
"""Side of the image that GFLOPs are counted for."""


def count_gflops(model: Model, size: int = IMAGE_SIZE) -> list[float]:
    """Return each row's 10^9 operations for one image of `size` x `size`: two per multiply-accumulate of convolutions and matrix products."""
    totals = [0]
    with FlopCounterMode(display=False) as counter:
        handles = [
            module.register_forward_hook(lambda *_: totals.append(counter.get_total_flops())) for module in model.model
        ]
        try:
            model.trace(size)
        finally:
            for handle in handles:
                handle.remove()
    return [(after - before) / 1e9 for before, after in pairwise(totals)]


def summarize(model: Model) -> dict[str, Any]:
    """Return the description of a network that `--json` prints: totals, layers, and totals of the deployed form."""
    gflops = count_gflops(model)
    layers = [
        {
            "index": row.index,
            "name": f"model.{row.index}",
            "label": row.label,
            "role": find_layer(row.name).role,
            "from": numbered_source(row),
            "module": row.name,
            "args": row.arguments,
            "output_shape": shape,
            "parameters": count_parameters(module),
            "gflops": gflops[row.index],
        }
        for row, module, shape in zip(model.rows, model.model, model.trace(IMAGE_SIZE), strict=True)
    ]
    deployed = model.deploy()
    return {
        "parameters": count_parameters(model),
        "gflops": sum(gflops),
        "stride": model.stride,
        "task": model.task,
        "nc": model.nc,
        "layers": layers,
        "deployed": {"parameters": count_parameters(deployed), "gflops": sum(count_gflops(deployed))},
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
    rows = [("layer", "label", "from", "parameters", "module", "arguments")] + [
        (
            str(layer["index"]),
            layer["label"] or "",
            str(layer["from"]),
            f"{layer['parameters']:,}",
            layer["module"],
            str(layer["args"]),
        )
        for layer in summary["layers"]
    ]
    shapes = [
        f"output at {IMAGE_SIZE} x {IMAGE_SIZE}",
        *(format_shape(layer["output_shape"]) for layer in summary["layers"]),
    ]
    index, label, source, parameters, module, arguments = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{row[0]:>{index}}  {row[1]:<{label}}  {row[2]:<{source}}  {row[3]:>{parameters}}  {row[4]:<{module}}  {row[5]:<{arguments}}  {shape}"
        for row, shape in zip(rows, shapes, strict=True)
    ]
    deployed = summary["deployed"]
    lines.append(
        f"{len(summary['layers'])} layers, task {summary['task']}, {summary['nc']} classes, stride {summary['stride']}"
    )
    lines.append(f"as trained   {summary['parameters']:>12,} parameters  {summary['gflops']:>8.2f} GFLOPs")
    lines.append(
        f"as deployed  {deployed['parameters']:>12,} parameters  {deployed['gflops']:>8.2f} GFLOPs  (lead branch, folded)"
    )
    return "\n".join(lines)


def difference(cfg: str, base: str, scale: str | None, patches: Sequence[str]) -> str:
    """Return what a network changes in another, as a unified diff of their yamls; "" means its own base, or the yaml before the patches.

    Raises:
        ModelConfigError: neither has it a base nor are there patches, or one of them cannot be read.
    """
    config, places = read_config(cfg, scale, patches)
    with torch.device("meta"):
        Model(config)
    if not base:
        base = base_of(cfg) or (cfg if patches else "")
    if not base:
        raise ModelConfigError(f"{cfg}: has no base: expected --diff OTHER.yaml, a yaml with a base, or a --patch")
    other, _ = read_config(base, None if find_config(base)[1] else scale)
    return (
        show_difference(other, base, config, str(places) + " and patches" * bool(patches))
        or f"{cfg}: no difference from {base}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m models.yolo`; return the exit status."""
    parser = cli.Parser(prog="python -m models.yolo", description="Print the layers of a network.")
    parser.add_argument("cfg", help="network yaml, a path or the name of a shipped one")
    parser.add_argument("--nc", type=int, help="number of classes, in place of the yaml's")
    parser.add_argument("--ch", type=int, help="channels of the images")
    parser.add_argument("--scale", help="letter of a family yaml's scales")
    parser.add_argument("--width", type=float, help="factor on channel counts, in place of the yaml's")
    parser.add_argument("--depth", type=float, help="factor on repeats, in place of the yaml's")
    parser.add_argument("--patch", default=[], **cli.SHARED["patch"])
    parser.add_argument(
        "--diff",
        nargs="?",
        const="",
        metavar="BASE",
        help="print what changes in another network; by default in the yaml's base",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--graph", metavar="FILE", help="draw the network into an .svg, or an .html in which layers can be clicked"
    )
    parser.add_argument("--plugin", default=[], **cli.SHARED["plugin"])
    options = parser.parse_args(arguments)

    def show() -> None:
        from models.graph.file import check_graph_path, write_graph  # it needs `summarize`

        if options.graph:
            check_graph_path(options.graph)
        load_plugins(options.plugin)
        if options.diff is not None:
            for flag in ("nc", "ch", "width", "depth", "json", "graph"):
                if getattr(options, flag):
                    raise ModelConfigError(
                        f"--diff --{flag}: --diff compares yamls as they are written: leave one of them out"
                    )
            print(difference(options.cfg, options.diff, options.scale, options.patch))
            return
        with torch.device("meta"):
            multiples = {"width": options.width, "depth": options.depth}
            model = Model(
                options.cfg, nc=options.nc, ch=options.ch, scale=options.scale, patches=options.patch, **multiples
            )
            summary = summarize(model)
        if options.graph:
            written = write_graph(model, summary, options.graph, Path(options.cfg).stem)
            print(written, file=sys.stderr if options.json else sys.stdout)
        if options.json or not options.graph:
            used = [plugin.describe() for plugin, _ in used_plugins(model)]
            print(json.dumps(summary) if options.json else "\n".join([format_table(summary), *used]))

    return cli.run(show)
