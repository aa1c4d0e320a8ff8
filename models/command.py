"""The command `python -m models.yolo CFG`: print the layers of a yaml's or a checkpoint's network, or draw them."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from models.config.composed import show_difference
from models.config.reading import base_of, find_config, read_config
from models.graph.file import check_graph_path, write_graph
from models.loose_ends import loose_ends
from models.plugins.held import used_plugins
from models.plugins.loading import load_plugins
from models.summary import format_shape, summarize
from models.yolo import Model, network_of
from utils import cli
from utils.errors import ModelConfigError
from utils.image_size import IMAGE_SIZE


def format_table(summary: dict[str, Any]) -> str:
    """Return the layer table as text."""
    heading = ("layer", "label", "from", "parameters", "module", "arguments", f"output at {IMAGE_SIZE} x {IMAGE_SIZE}")
    rows = [heading, *map(table_row, summary["layers"])]
    index, label, source, parameters, module, arguments, _ = (
        max(map(len, column)) for column in zip(*rows, strict=True)
    )
    lines = [
        f"{row[0]:>{index}}  {row[1]:<{label}}  {row[2]:<{source}}  {row[3]:>{parameters}}  "
        f"{row[4]:<{module}}  {row[5]:<{arguments}}  {row[6]}"
        for row in rows
    ]
    deployed = summary["deployed"]
    return "\n".join(
        [
            *lines,
            f"{len(summary['layers'])} layers, task {summary['task']}, {summary['nc']} classes, "
            f"stride {summary['stride']}",
            f"as trained   {totals(summary)}",
            f"as deployed  {totals(deployed)}  (lead branch, folded)",
        ]
    )


def table_row(layer: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a layer."""
    return (
        str(layer["index"]),
        layer["label"] or "",
        str(layer["from"]),
        f"{layer['parameters']:,}",
        layer["module"],
        str(layer["args"]),
        format_shape(layer["output_shape"]),
    )


def totals(figures: dict[str, Any]) -> str:
    """Format parameters and GFLOPs for the last lines of the table."""
    return f"{figures['parameters']:>12,} parameters  {figures['gflops']:>8.2f} GFLOPs"


WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".torchscript")
"""Suffixes of files that are no yaml, even if there is no such file."""


def is_weights(cfg: str) -> bool:
    """Tell whether a network is given by a weights file, and not by a yaml, whose suffix may be left out."""
    suffix = Path(cfg).suffix.lower()
    return suffix in WEIGHTS_SUFFIXES or (suffix not in ("", ".yaml", ".yml") and Path(cfg).is_file())


def content_of(cfg: str) -> str | dict[str, Any]:
    """Return a yaml's name as it is; for a weights file the content of its network's yaml.

    What the reader of the file prints goes to standard error.
    """
    if not is_weights(cfg):
        return cfg
    with redirect_stdout(sys.stderr):
        return network_of(cfg)


def difference(cfg: str, base: str, scale: str | None, patches: Sequence[str]) -> str:
    """Return a unified diff from one network to another.

    Args:
        cfg: the network at the end of the diff, a yaml or a weights file.
        base: the network at its start. "" means the yaml's own base or, without one, the network before the patches.
    Raises:
        ModelConfigError: the yaml has no base and there are no patches, or one of the networks cannot be read.
    """
    network, name = read_config(content_of(cfg), scale, patches), cfg
    config = network.as_yaml()
    with torch.device("meta"):
        Model(config)
    if not base:
        own = None if is_weights(cfg) else base_of(cfg)
        base = own or (cfg if patches else "")
    if not base:
        raise ModelConfigError(f"{cfg}: has no base: expected --diff OTHER.yaml, a yaml with a base, or a --patch")
    scaled = is_weights(base) or find_config(base)[1] is not None
    other = read_config(content_of(base), None if scaled else scale).as_yaml()
    if patches:
        name += " and patches"
    return show_difference(other, base, config, name) or f"{cfg}: no difference from {base}"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(prog="python -m models.yolo", description="Print the layers of a network.")
    parser.add_argument("cfg", help="network yaml, a path or the name of a shipped one; or weights, such as best.pt")
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
        help="print a diff from another network; by default from the yaml's base",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--graph", metavar="FILE", help="draw the network into an .svg, or an .html in which layers can be clicked"
    )
    parser.add_argument("--plugin", default=[], **cli.SHARED["plugin"])
    return parser.parse_args(arguments)


def show(options: argparse.Namespace) -> None:
    """Print the table, the JSON object or the diff, or draw the graph."""
    if options.graph:
        check_graph_path(options.graph)
    load_plugins(options.plugin)
    if options.diff is not None:
        for flag in ("nc", "ch", "width", "depth", "json", "graph"):
            if getattr(options, flag):
                raise ModelConfigError(f"--diff --{flag}: --diff compares yamls as written: leave one of them out")
        print(difference(options.cfg, options.diff, options.scale, options.patch))
        return
    content = content_of(options.cfg)
    with torch.device("meta"):
        names = ("nc", "ch", "scale", "width", "depth")
        model = Model(content, **{name: getattr(options, name) for name in names}, patches=options.patch)
        summary, signs = summarize(model), loose_ends(model)
    if options.graph:
        written = write_graph(model, summary, options.graph, Path(options.cfg).stem)
        print(written, file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(summary))
    elif not options.graph:
        print("\n".join([format_table(summary), *(plugin.describe() for plugin, _ in used_plugins(model))]))
    for line in signs:
        print(line, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m models.yolo`; return the exit status."""
    options = parse_arguments(arguments)
    return cli.run(lambda: show(options))
