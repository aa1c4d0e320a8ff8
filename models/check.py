"""The conformance test of layers and networks: `python -m models.check LAYER|CFG|my_layers.py`.

Each check has its promise and its remedy beside it: models/checks. The test suite runs the
same checks over the whole registry.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from models.checks.catalogue import catalogue, layer_facts
from models.checks.checking import Check, make_all
from models.checks.graph_checks import GRAPH_CHECKS
from models.checks.layer_case import SIZES, LayerCase
from models.checks.layer_checks import FORM_CHECKS
from models.checks.network_checks import NETWORK_CHECKS
from models.checks.onnx_checks import NETWORK_ONNX_CHECKS, ONNX_CHECKS
from models.checks.report import Report, part_lines, result_lines, write_card
from models.checks.training_checks import TRAINING_CHECKS
from models.config.reading import find_config
from models.plugins.held import plugin_of
from models.plugins.loading import load_plugin, load_plugins
from models.registry import find_layer, registered_layers
from models.yolo import Model
from utils import cli
from utils.errors import ModelConfigError, SettingsError, did_you_mean
from utils.files import parse_yaml, write_text
from utils.image_size import IMAGE_SIZE

CARDS = "runs/check"


def layer_checks() -> list[Check[LayerCase]]:
    """Return all checks of a layer, in their order."""
    suites = FORM_CHECKS, TRAINING_CHECKS, GRAPH_CHECKS, ONNX_CHECKS
    return [check for suite in suites for check in suite.checks.values()]


def network_checks() -> list[Check[Model]]:
    """Return all checks of a whole network, in their order."""
    return [check for suite in (NETWORK_CHECKS, NETWORK_ONNX_CHECKS) for check in suite.checks.values()]


def check_layer(case: LayerCase, quick: bool = False, say: Callable[[str], None] = lambda line: None) -> Report:
    """Check one layer.

    Args:
        quick: leave out what takes seconds.
        say: is given the lines of the table as they come.
    """
    report = Report(case.entry.name, layer_facts(case.entry) | {"checked as": case.describe()} | surroundings())
    for result in make_all(layer_checks(), case, quick, {SIZES: LayerCase.only_plain}):
        report.results.append(result)
        for line in result_lines(result):
            say(line)
    return report


def check_network(
    model: Model, name: str, quick: bool = False, say: Callable[[str], None] = lambda line: None
) -> Report:
    """Check a network and each of its distinct layers; arguments as in `check_layer`."""
    report = Report(
        name, {"network": name, "scale": str(model.config.get("scale", "")), "task": model.task} | surroundings()
    )
    for result in make_all(network_checks(), model, quick):
        report.results.append(result)
        for line in result_lines(result):
            say(line)
    for case, rows in distinct_layers(model):
        part = check_layer(case, quick)
        word = "layer" if len(rows) == 1 else "layers"
        part.name = f"{word} {', '.join(map(str, rows))}: {case.describe()}"
        report.parts.append(part)
        for line in part_lines(part):
            say(line)
    return report


def distinct_layers(model: Model) -> list[tuple[LayerCase, list[int]]]:
    """Return a network's distinct layers (same layer, arguments and inputs), each with its rows."""
    shapes = model.trace(IMAGE_SIZE)
    found: dict[tuple[Any, ...], tuple[LayerCase, list[int]]] = {}
    for row in model.rows:
        case = LayerCase.of_row(model, row, shapes)
        found.setdefault((case.describe(), case.strides, case.repeats, case.listed), (case, []))[1].append(row.index)
    return list(found.values())


def surroundings() -> dict[str, str]:
    """Return what figures depend on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "figures of": f"CPU, {torch.get_num_threads()} threads",
    }


def cases_of(target: str, arguments: str | None, inputs: list[int] | None) -> Iterator[LayerCase]:
    """Yield the layers that a target names: one of the registry, or all of a plug-in's.

    Raises:
        SettingsError: arguments or inputs with a file of several layers, or arguments that are no list.
    """
    names = load_plugin(target).layers if target.endswith(".py") else (target,)
    if len(names) != 1 and (arguments or inputs):
        raise SettingsError(
            f"{target}: has {len(names)} layers: --arguments and --inputs are those of one; name it: "
            f"--plugin {target} {names[0]}"
        )
    for name in names:
        yield LayerCase.of_example(find_layer(name), read_arguments(arguments), tuple(inputs) if inputs else None)


def read_arguments(text: str | None) -> tuple[Any, ...] | None:
    """Return the arguments of a row from their yaml.

    Raises:
        SettingsError: they are no list.
    """
    if text is None:
        return None
    try:
        found = parse_yaml(text)
    except yaml.YAMLError:
        found = text
    if not isinstance(found, list):
        raise SettingsError(f"--arguments {text!r}: expected a list as in a yaml row, such as '[16, 3, {{groups: 2}}]'")
    return tuple(found)


def is_network(target: str) -> bool:
    """Tell whether a target is a network yaml and no layer.

    Raises:
        ModelConfigError: it is nothing that can be checked.
    """
    if target.endswith(".py") or target in registered_layers():
        return False
    try:
        find_config(target)
    except ModelConfigError:
        if target.endswith((".yaml", ".yml")):
            raise
        expected = "expected a layer's name, a network yaml, or a Python file"
        raise ModelConfigError(
            f"{target}: no such layer or network: {expected}.{did_you_mean(target, registered_layers())}"
        ) from None
    return True


def check_target(target: str, network: bool, options: argparse.Namespace) -> list[Report]:
    """Check what the command line names, a network or layers, print its tables and write its cards."""
    reports = []
    if network:
        if options.arguments or options.inputs:
            raise SettingsError(
                f"--arguments, --inputs: {target} is a network, whose rows say them: leave them out, or name a layer"
            )
        model = Model(target, nc=options.nc, scale=options.scale, patches=options.patch)
        print(f"\n{target}: network of {len(model.rows)} layers")
        reports.append(check_network(model, Path(target).stem, options.quick, print_now))
    else:
        if options.nc or options.scale or options.patch:
            raise SettingsError(f"--nc, --scale, --patch: {target} is no network: leave them out")
        for case in cases_of(target, options.arguments, options.inputs):
            print(f"\n{case.entry.name}: {layer_facts(case.entry).get('what it does', '')}")
            report = check_layer(case, options.quick, print_now)
            if plugin := plugin_of(case.entry.name):
                report.facts |= {"plug-in": plugin.path.name, "sha256": plugin.sha256}
            reports.append(report)
    for report in reports:
        print(f"{report.name}: {report.verdict()}")
        if not options.no_card:
            print(f"{report.name}: card in {' and '.join(map(str, write_card(report, options.card)))}")
    return reports


def print_now(line: str) -> None:
    """Print a line at once: what follows may take a while."""
    print(line, flush=True)


def build_parser() -> cli.Parser:
    """Return the parser of the command line."""
    parser = cli.Parser(
        prog="python -m models.check",
        description="Check layers and networks: what they promise, and the remedy if it is broken.",
    )
    parser.add_argument(
        "target", nargs="*", help="a layer's name, a network yaml, or a Python file with layers of yours, which is run"
    )
    parser.add_argument("--all", action="store_true", help="every registered layer")
    parser.add_argument(
        "--arguments",
        metavar="LIST",
        help="arguments of the layer's row, in place of its example, such as '[16, {groups: 2}]'",
    )
    parser.add_argument(
        "--inputs",
        type=int,
        nargs="+",
        metavar="CHANNELS",
        help="channels of each of the layer's inputs, in place of its example's",
    )
    parser.add_argument("--nc", type=int, help="number of classes of a network, in place of the yaml's")
    parser.add_argument("--scale", help="letter of a family yaml's scales")
    parser.add_argument(
        "--patch", action="append", default=[], metavar="EDIT", help="edit of the network's rows; may be repeated"
    )
    parser.add_argument("--plugin", default=[], **cli.SHARED["plugin"])
    parser.add_argument(
        "--quick", action="store_true", help="leave out what takes seconds: compile, export, onnx, cost"
    )
    parser.add_argument(
        "--card", default=CARDS, metavar="FOLDER", help=f"where the module cards go, NAME.md and NAME.json ({CARDS})"
    )
    parser.add_argument("--no-card", action="store_true", help="write no cards")
    parser.add_argument(
        "--catalogue", metavar="FILE", help="write the page of all registered layers, and check nothing"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m models.check`; return 0 if nothing failed, 1 if a check failed, 2 for a user's mistake."""
    options = build_parser().parse_args(arguments)
    reports: list[Report] = []

    def work() -> None:
        built_in = sorted(registered_layers())
        if options.catalogue:
            write_text(options.catalogue, catalogue())
            print(f"{options.catalogue}: written")
            return
        load_plugins(options.plugin)
        targets = [*options.target, *(built_in if options.all else [])]
        if not targets:
            raise SettingsError("nothing to check: name a layer, a network yaml or a Python file, or say --all")
        networks = [is_network(target) for target in targets]
        for target, network in zip(targets, networks, strict=True):
            reports.extend(check_target(target, network, options))

    status = cli.run(work)
    return status or (cli.EXIT_FAILED if any(report.failed for report in reports) else cli.EXIT_DONE)


if __name__ == "__main__":
    sys.exit(main())
