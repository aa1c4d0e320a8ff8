"""Keep the hidden widths of a file's towers in a network whose own rule gives others."""

from models.yolo import Model
from utils.checkpoint.levels import level_channels
from utils.checkpoint.transfer import Source
from utils.weights.head_form import HeadForm, head_form, with_head_settings
from utils.wording import listed

TOWERS = {"class_width": "class", "box_width": "box", "mask_width": "mask"}
"""What the towers are called whose width a setting gives."""


def keep_hidden_width(model: Model, source: Source) -> tuple[Model, str]:
    """Keep the widths of the weights' towers where the network reads the same features.

    In these families the hidden widths follow from the class count and from the channels of the first level. Without
    this, a network of other classes, or with another first level, would lose the weights of the towers.
    Returns:
        The network with towers of the kept widths, or the same network; and a line about it, or "".
    """
    levels = source.levels(model)
    here, there = level_channels(model.state_dict()), level_channels(source.tensors)
    if not levels or not there or any(here[new] != there[old] for new, old in levels.items()):
        return model, ""
    ours, theirs = head_form(model.state_dict()), head_form(source.tensors)
    settings = {
        key: width
        for key, width in theirs.settings_beside(ours).items()
        if key in TOWERS and key not in model.rows[-1].keywords and fits(key, width, ours, theirs)
    }
    if not settings:
        return model, ""
    kept = Model(with_head_settings(model.config, settings), nc=model.nc, ch=model.channels)
    kept.names = model.names
    parts = [
        f"the {TOWERS[key]} towers stay {shown(width)} wide; the rule gives {shown(list(getattr(ours, key).values()))}"
        for key, width in settings.items()
    ]
    return kept, (
        f"head_hidden keep, as in {source.weights.path}: {', '.join(parts)} "
        f"for {model.nc} classes and {here[0]} channels of the first level"
    )


def fits(key: str, width: int | list[int], ours: HeadForm, theirs: HeadForm) -> bool:
    """Tell whether towers of a network can have a width of the file's, and would take its weights."""
    if key == "class_width":
        return ours.cls == theirs.cls
    groups = ours.box_groups or 1
    return key != "box_width" or all(one % groups == 0 for one in (width if isinstance(width, list) else [width]))


def shown(widths: int | list[int]) -> str:
    """Return a width for a message; where the branches have different ones, all of them, the lead branch last."""
    different = dict.fromkeys(widths if isinstance(widths, list) else [widths])
    if len(different) == 1:
        return str(*different)
    return f"{listed(widths if isinstance(widths, list) else [widths])} (branch by branch)"
