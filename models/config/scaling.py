"""Width and depth multiples of a network, from its yaml or from `--width` and `--depth`."""

import math
from typing import Any

from models.config.places import Places
from models.config.rows import NetworkConfig
from models.registry import Scale, bind, find_layer, with_inner_repeats
from utils.errors import ModelConfigError
from utils.wording import is_count, say_once

SCALINGS = ("full",)
"""Values of `scaling`: "full" lets the multiples reach hidden widths, inner repeats and the lists of CBLinear too."""


def choose_scale(config: dict[str, Any], where: str | Places) -> Scale:
    """Return the multiples of a configuration: those of its chosen scale, or its own.

    Raises:
        ModelConfigError: no scale or an unknown scale is chosen, or a multiple is not a positive number.
    """
    scales, letter = config.get("scales"), config.get("scale")
    if letter is not None and not scales:
        raise ModelConfigError(f"{where}: scale {letter!r}: this yaml has no 'scales' to choose from")
    factors, most = [config.get("depth_multiple", 1.0), config.get("width_multiple", 1.0)], config.get("max_channels")
    if scales:
        if not isinstance(scales, dict) or not all(
            isinstance(values, list) and len(values) in (2, 3) for values in scales.values()
        ):
            raise ModelConfigError(
                f"{where}: scales are {scales!r}: expected a mapping of letters to [depth, width, most channels]"
            )
        if letter not in scales:
            raise ModelConfigError(
                f"{where}: scale {letter!r}: choose one of {', '.join(map(str, scales))} with --scale"
            )
        factors, most = scales[letter][:2], scales[letter][2] if len(scales[letter]) == 3 else None
    if not all(map(is_factor, factors)):
        raise ModelConfigError(f"{where}: depth and width multiple are {factors}: expected positive numbers")
    if most is not None and not is_count(most):
        raise ModelConfigError(f"{where}: max_channels is {most!r}: expected a positive integer")
    if config.get("scaling") not in (None, *SCALINGS):
        raise ModelConfigError(
            f"{where}: scaling is {config['scaling']!r}: expected {' or '.join(SCALINGS)}, or no such key"
        )
    depth, width = factors
    return Scale(depth, width, most, letter=letter, full=config.get("scaling") == "full")


def is_factor(value: object) -> bool:
    """Tell whether a value is a positive, finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def apply_multiples(network: NetworkConfig, width: float | None, depth: float | None) -> None:
    """Replace the multiples of a network, in place, and print the consequences.

    A yaml with `scales` keeps its chosen letter. Any other yaml writes out its hidden widths,
    so `scaling: full` is turned on to scale them too.

    Args:
        width: factor on channel counts; None keeps the yaml's.
        depth: factor on repeats; None keeps the yaml's.
    Raises:
        ModelConfigError: no letter of the `scales` is chosen, or a multiple is not a positive number.
    """
    keys, where = network.keys, network.where
    wanted = {name: value for name, value in (("width", width), ("depth", depth)) if value is not None}
    if not wanted:
        return
    for name, value in wanted.items():
        if not is_factor(value):
            raise ModelConfigError(f"--{name} {value:g}: expected a positive number, such as 0.5")
    said = ", ".join(f"{name} {value:g}" for name, value in wanted.items())
    old = choose_scale(keys, where)
    multiples = {"depth": old.depth, "width": old.width} | wanted
    if old.letter is not None:
        most = [old.max_channels] if old.max_channels else []
        keys["scales"] = {old.letter: [multiples["depth"], multiples["width"], *most]}
        say_once(
            f"{where}: {said}: in place of scale {old.letter}'s width {old.width:g} and depth {old.depth:g}",
            to_errors=True,
        )
    else:
        keys |= {"depth_multiple": multiples["depth"], "width_multiple": multiples["width"]}
        if keys.get("scaling") != "full":
            keys["scaling"] = "full"
            say_once(
                f"{where}: {said}: scaling: full is turned on: "
                "hidden widths, inner repeats and CBLinear's lists are scaled too",
                to_errors=True,
            )
    if depth is not None:
        scale = choose_scale(keys, where)
        if scale.depth != 1 and not changes_repeats(network, scale):
            say_once(
                f"{where}: depth {depth:g} changes nothing: no layer's repeat count changes at this depth",
                to_errors=True,
            )


def changes_repeats(network: NetworkConfig, scale: Scale) -> bool:
    """Tell whether a depth changes the repeats of any row, or of a chain inside its block."""
    for row in network.rows:
        try:
            bind(entry := find_layer(row.name), row.arguments, num_classes=1)
        except ModelConfigError:  # building the network reports it, with the row's place
            return True
        if scale.repeats(row.repeats) != row.repeats:
            return True
        if with_inner_repeats(entry, row.arguments, scale) != row.arguments:
            return True
    return False
