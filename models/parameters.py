"""Parameters of a network: how many, which group of the optimizer each belongs to, and what their names tell."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

BIAS, DECAYED, OTHER = 0, 1, 2
"""Parameter groups: biases; weights that decay; norms and every other vector or scalar, which do not decay."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
BIASED = (_ConvNd, nn.Linear, nn.Bilinear, *NORMS)
"""Modules of torch whose `bias` is added to their output; subclasses included."""


def layer_index(name: str) -> int:
    """Return the layer that a parameter or buffer belongs to: 4 for ``model.4.conv.weight``."""
    return int(name.split(".")[1])


def is_constant(name: str) -> bool:
    """Tell whether a parameter is a DFL weight, 0 to 15, which training leaves alone."""
    return ".dfl." in name


def count_parameters(module: nn.Module) -> int:
    """Count the parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def bias_of(module: nn.Module) -> nn.Parameter | None:
    """Return the vector that a module of torch adds to its output, None if it has none."""
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_bias
    bias = module.bias if isinstance(module, BIASED) else None
    return bias if isinstance(bias, nn.Parameter) and bias.ndim == 1 else None


def parameter_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Divide the trainable parameters into biases, decayed weights and others; each is in exactly one group.

    Their names have no effect. A bias is what a convolution, linear map, normalisation or multi-head attention of torch
    (or a subclass) has as its bias. Matrices and kernels decay, unless a normalisation has them. Every other vector or
    scalar (layer scales, gates, mixing rates, a vector that a class of yours adds) is in the last group.
    """
    groups: list[list[nn.Parameter]] = [[], [], []]
    seen: set[int] = set()
    for module in model.modules():
        bias, is_norm = bias_of(module), isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if parameter is bias:
                groups[BIAS].append(parameter)
            elif is_norm or parameter.ndim <= 1:
                groups[OTHER].append(parameter)
            else:
                groups[DECAYED].append(parameter)
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert seen == trainable, "every trainable parameter must be in exactly one group"
    return groups
