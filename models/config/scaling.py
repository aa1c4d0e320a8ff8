"""Width and depth of a network other than its yaml's: `Model(cfg, width=0.5, depth=0.33)`, `--width 0.5 --depth 0.33`."""

import math
from typing import Any

from models.config.foreign import rows_of
from models.config.reading import choose_scale, say_once
from models.config.rows import checked_row
from models.registry import Scale, bind, find_layer, with_inner_repeats
from utils.errors import ModelConfigError


def with_multiples(config: dict[str, Any], width: float | None, depth: float | None, where: str) -> dict[str, Any]:
    """Return a configuration with other multiples; what that turns on, or does not change, is printed.

    A yaml with `scales` keeps its chosen letter, whose multiples are replaced. Without, `scaling: full` is turned on: such a
    yaml writes out its hidden widths, which a multiple would not reach otherwise.

    Args:
        width: factor on channel counts; None keeps the yaml's.
        depth: factor on repeats; None keeps the yaml's.
        where: the file's name, for messages.
    Raises:
        ModelConfigError: no letter is chosen of the `scales`, or a multiple is no positive number.
    """
    given = {name: value for name, value in (("width", width), ("depth", depth)) if value is not None}
    if not given:
        return config
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise ModelConfigError(f"--{name} {value:g}: expected a positive number, such as 0.5")
    said = ", ".join(f"{name} {value:g}" for name, value in given.items())
    old = choose_scale(config, where)
    multiples = {"depth": old.depth, "width": old.width} | given
    if old.letter is not None:
        most = [old.max_channels] if old.max_channels else []
        config = config | {"scales": {old.letter: [multiples["depth"], multiples["width"], *most]}}
        say_once(f"{where}: {said}: in place of scale {old.letter}'s width {old.width:g} and depth {old.depth:g}")
    else:
        config = config | {"depth_multiple": multiples["depth"], "width_multiple": multiples["width"]}
        if config.get("scaling") != "full":
            config["scaling"] = "full"
            say_once(
                f"{where}: {said}: scaling: full is turned on, which scales hidden widths, inner repeats and CBLinear's lists too"
            )
    new = choose_scale(config, where)
    if depth is not None and new.depth != 1 and not deepens(config, new):
        say_once(f"{where}: depth {depth:g} changes nothing: no layer of this network is repeated that often")
    return config


def deepens(config: dict[str, Any], scale: Scale) -> bool:
    """Return whether the depth changes how often a layer of a configuration, or a unit in a block's chain, is repeated."""
    for raw in rows_of(config):
        try:
            _, repeats, name, arguments, _ = checked_row(raw)
            bind(entry := find_layer(name), arguments, num_classes=1)
        except ModelConfigError:  # said by parse_model, with the row's place
            return True
        if scale.repeats(repeats) != repeats or with_inner_repeats(entry, arguments, scale) != arguments:
            return True
    return False
