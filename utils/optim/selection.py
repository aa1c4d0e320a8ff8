"""Select parameters of a network by a phrase on the command line, for `--freeze` and `--lr-factor`."""

import fnmatch
import re
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from models.config.rows import PARTS, part_of
from models.parameters import count_parameters, is_constant, layer_index
from models.yolo import Model
from utils.errors import SettingsError, did_you_mean

EXPECTED = (
    f"expected layer indices, a range such as 0-9, {', '.join(PARTS)}, a row's label, a layer's name such as ADown, "
    "or a glob such as 'model.4.*'"
)


def layers_of(model: Model, phrase: str) -> set[int] | None:
    """Return the layer indices that a phrase names; None if it names none.

    Args:
        phrase: an index, a range `2-5` (both ends included), a part of the network (`models.config.rows.part_of`), a
            row's label, or a layer's yaml name (every layer of that name).
    """
    if phrase in PARTS:
        return {row.index for row in model.rows if part_of(row, model.rows) == phrase}
    if span := re.fullmatch(r"(\d+)(?:-(\d+))?", phrase):
        first, last = int(span[1]), int(span[2] or span[1])
        return set(range(first, last + 1))
    return {row.index for row in model.rows if phrase in (row.name, row.label)} or None


def select_parameters(model: Model, phrases: Sequence[str], flag: str) -> list[str]:
    """Return the names of the parameters that the phrases select, in the network's order.

    Args:
        flag: command-line flag, for messages.
    Raises:
        SettingsError: a phrase selects no layer and no parameter, or a layer that the network does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for phrase in phrases:
        layers = layers_of(model, phrase)
        if layers is None:
            found = fnmatch.filter(names, phrase)
            if not found:
                labels = [row.label for row in model.rows if row.label]
                hint = did_you_mean(phrase, (*PARTS, *(row.name for row in model.rows), *labels))
                raise SettingsError(f"{flag} {phrase}: matches no layer and no parameter: {EXPECTED}.{hint}")
            chosen |= set(found)
            continue
        if not layers:
            raise SettingsError(f"{flag} {phrase}: selects no layer of this network: {EXPECTED}")
        if max(layers) >= len(model.model):
            raise SettingsError(
                f"{flag} {phrase}: there is no layer {max(layers)}: the network has layers 0 to {len(model.model) - 1}"
            )
        chosen |= {name for name in names if layer_index(name) in layers}
    return [name for name in names if name in chosen]


def freeze(model: Model, phrases: Sequence[str]) -> list[nn.Module]:
    """Freeze the parameters that the phrases select.

    A single number n means the first n layers, as in the original. For all else see `layers_of`.

    Returns:
        The frozen normalisation layers; the training keeps them in evaluation mode.
    Raises:
        SettingsError: a phrase selects nothing.
    """
    if len(phrases) == 1 and phrases[0].isdigit():
        count = int(phrases[0])
        if count > len(model.model):
            raise SettingsError(f"--freeze {count}: the network has {len(model.model)} layers: expected no more")
        phrases = [f"0-{count - 1}"] if count else []
    for name in select_parameters(model, phrases, "--freeze"):
        model.get_parameter(name).requires_grad_(False)
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [norm for norm in norms if norm.weight is not None and not norm.weight.requires_grad]


def check_frozen_were_loaded(model: Model, new: Sequence[str]) -> None:
    """Check that `--weights` filled every frozen parameter; any other would stay random.

    Args:
        new: names of the tensors that were not loaded.
    Raises:
        SettingsError: names the layers that were not filled, and the phrase that freezes the others.
    """
    frozen = frozen_parameters(model)
    layers = {layer_index(name) for name in frozen}
    random = sorted({layer_index(name) for name in frozen.keys() & set(new)})
    if random:
        shown = ", ".join(f"{index} ({model.rows[index].name})" for index in random)
        kept = spans(sorted(layers - set(random))).replace(", ", " ")
        raise SettingsError(
            f"--freeze: layer {shown}: not all of its weights are in --weights, and a frozen layer would stay random: "
            f"expected --freeze {kept}"
        )


def frozen_parameters(model: Model) -> dict[str, nn.Parameter]:
    """Return the frozen parameters by name, without the constant DFL weights, which are never trained."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and not is_constant(name)
    }


def describe_frozen(model: Model, norms: Sequence[nn.Module]) -> str:
    """Return a line that says which part of a network is frozen.

    Args:
        norms: the frozen normalisation layers.
    """
    frozen = frozen_parameters(model)
    layers = sorted({layer_index(name) for name in frozen})
    share = sum(parameter.numel() for parameter in frozen.values()) / count_parameters(model)
    kept = f"{len(norms)} normalisations keep their statistics"
    return f"frozen: {len(frozen)} parameters, {share:.1%} of the weights, in layers {spans(layers)}; {kept}"


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, with ranges: `0-9, 22`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def learning_rate_factors(model: Model, rules: Sequence[str], layer_decay: float = 1.0) -> dict[str, float]:
    """Return the learning-rate factors other than 1, by parameter name.

    Args:
        rules: `PHRASE=FACTOR`; a later rule overrides an earlier one.
        layer_decay: each layer has the factor of the next layer times this; the head has 1.
    Raises:
        SettingsError: a rule cannot be read, or a factor is out of range.
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
                f"--lr-factor {rule}: expected PHRASE=FACTOR with a positive factor, such as backbone=0.1; "
                "--freeze stops training"
            )
        for name in select_parameters(model, [phrase], "--lr-factor"):
            factors[name] = factor
    return {name: factor for name, factor in factors.items() if factor != 1.0}
