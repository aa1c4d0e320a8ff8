"""Which parameters of a network a phrase on the command line means: for `--freeze` and `--lr-factor`."""

import fnmatch
import re
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from models.parameters import is_constant, layer_index
from models.yolo import Model
from utils.errors import SettingsError, did_you_mean

SECTIONS = ("backbone", "neck", "head")
EXPECTED = "expected layer indices, a range such as 0-9, backbone, neck, head, a row's label, a layer's name such as ADown, or a glob such as 'model.4.*'"


def layers_of(model: Model, phrase: str) -> set[int] | None:
    """Return the layer indices that a phrase names; None if it is no phrase of that kind.

    Args:
        phrase: an index, a range `2-5` (both ends included), `backbone` (the yaml's section), `neck` (what lies between it and
            the last row), `head` (the last row), a row's label, or a layer's yaml name (every layer of that name).
    """
    count, backbone = len(model.model), len(model.config["backbone"])
    if phrase in SECTIONS:
        bounds = {"backbone": (0, min(backbone, count - 1)), "neck": (backbone, count - 1), "head": (count - 1, count)}
        return set(range(*bounds[phrase]))
    if span := re.fullmatch(r"(\d+)(?:-(\d+))?", phrase):
        first, last = int(span[1]), int(span[2] or span[1])
        return set(range(first, last + 1))
    return {row.index for row in model.rows if phrase in (row.name, row.label)} or None


def select_parameters(model: Model, phrases: Sequence[str], flag: str) -> list[str]:
    """Return the names of the parameters that any of the phrases means, in the network's order.

    Args:
        flag: what to call the command-line flag in messages.
    Raises:
        SettingsError: a phrase that means no layer and no parameter, or a layer that the network does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for phrase in phrases:
        layers = layers_of(model, phrase)
        if layers is None:
            found = fnmatch.filter(names, phrase)
            if not found:
                hint = did_you_mean(
                    phrase,
                    (*SECTIONS, *(row.name for row in model.rows), *(row.label for row in model.rows if row.label)),
                )
                raise SettingsError(f"{flag} {phrase}: matches no layer and no parameter: {EXPECTED}.{hint}")
            chosen |= set(found)
            continue
        if not layers:
            raise SettingsError(f"{flag} {phrase}: means no layer of this network: {EXPECTED}")
        if max(layers) >= len(model.model):
            raise SettingsError(
                f"{flag} {phrase}: there is no layer {max(layers)}: the network has layers 0 to {len(model.model) - 1}"
            )
        chosen |= {name for name in names if layer_index(name) in layers}
    return [name for name in names if name in chosen]


def freeze(model: Model, phrases: Sequence[str]) -> list[nn.Module]:
    """Stop the training of what the phrases mean, and return the frozen normalisations, to be kept in evaluation mode.

    A single number n means the first n layers, as in the original; everything else is as in `layers_of`.

    Raises:
        SettingsError: a phrase that means nothing here.
    """
    if len(phrases) == 1 and phrases[0].isdigit():
        count = int(phrases[0])
        if count > len(model.model):
            raise SettingsError(
                f"--freeze {count}: the network has {len(model.model)} layers: expected at most as many"
            )
        phrases = [f"0-{count - 1}"] if count else []
    for name in select_parameters(model, phrases, "--freeze"):
        model.get_parameter(name).requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [norm for norm in norms if norm.weight is not None and not norm.weight.requires_grad]


def check_frozen_were_loaded(model: Model, new: Sequence[str]) -> None:
    """Refuse to freeze parameters that `--weights` did not bring: they would stay random.

    Args:
        new: names of the tensors that were not loaded.
    Raises:
        SettingsError: names their layers, and the frozen ones that can stay so.
    """
    fixed = {
        name for name, parameter in model.named_parameters() if not parameter.requires_grad and not is_constant(name)
    }
    layers = {layer_index(name) for name in fixed}
    random = sorted({layer_index(name) for name in fixed & set(new)})
    if random:
        shown = ", ".join(f"{index} ({model.rows[index].name})" for index in random)
        kept = spans(sorted(layers - set(random))).replace(", ", " ")
        raise SettingsError(
            f"--freeze: layer {shown}: not all of it is in --weights, and frozen it would stay random: expected --freeze {kept}"
        )


def describe_frozen(model: Model, frozen: Sequence[nn.Module]) -> str:
    """Return a line about how much of a network stays as it is (the constant DFL weights, never trained, are left out)."""
    fixed = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and not is_constant(name)
    }
    layers = sorted({layer_index(name) for name in fixed})
    share = sum(fixed.values()) / sum(parameter.numel() for parameter in model.parameters())
    kept = f"{len(frozen)} normalisations keep their statistics"
    return f"frozen: {len(fixed)} parameters, {share:.1%} of the weights, in layers {spans(layers)}; {kept}"


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, runs as ranges: `0-9, 22`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def learning_rate_factors(model: Model, rules: Sequence[str], layer_decay: float = 1.0) -> dict[str, float]:
    """Return the factor on the learning rate of every parameter that has one other than 1, by name.

    Args:
        rules: `PHRASE=FACTOR`; a later one overrides an earlier one.
        layer_decay: factor from each layer to the one before it; the head has 1.
    Raises:
        SettingsError: a rule that cannot be read, or a factor out of range.
    """
    if not 0 < layer_decay <= 1:
        raise SettingsError(f"--layer-decay {layer_decay}: expected a factor above 0 and at most 1")
    last = len(model.model) - 1
    factors = {name: layer_decay ** (last - layer_index(name)) for name, _ in model.named_parameters()}
    for rule in rules:
        phrase, separator, written = rule.rpartition("=")
        try:
            factor = float(written)
        except ValueError:
            factor = -1.0
        if not separator or not 0 < factor < 1000:
            raise SettingsError(
                f"--lr-factor {rule}: expected PHRASE=FACTOR with a positive factor, such as backbone=0.1; --freeze stops training"
            )
        for name in select_parameters(model, [phrase], "--lr-factor"):
            factors[name] = factor
    return {name: factor for name, factor in factors.items() if factor != 1.0}
