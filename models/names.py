"""Suggestions for unknown layer names: other names of the same layer, then near spellings."""

import difflib
import re
from collections.abc import Iterable

ALIASES = {
    "SE": "SEAttention SEBlock SELayer SEModule SENet SqueezeExcite SqueezeExcitation SqueezeAndExcitation",
    "ECA": "ECAAttention ECABlock ECALayer ECAModule ECANet EfficientChannelAttention",
    "CBAM": "CBAMAttention CBAMBlock CBAMLayer CBAMModule ConvolutionalBlockAttentionModule",
    "CoordAtt": "CA CAAttention CABlock CoordAttention CoordAttn CoordinateAttention CoorAttention",
    "EMAttention": "EMA EMAAttention EMABlock EMAModule EMAttn EfficientMultiScaleAttention",
    "SimAM": "SimAMAttention SimAMBlock SimAMLayer SimAMModule",
    "MLCA": "MLCAAttention MLCABlock MixedLocalChannelAttention",
    "SCSA": "SCSAAttention SCSABlock SCSAModule",
    "GatherExcite": "GE GEBlock GELayer GENet GatherExcitation",
    "MSCA": "MSCAAttention MSCAttention MSCALayer",
    "LSK": "LSKAttention LSKBlock LSKModule LSKNet LargeSelectiveKernel",
    "LSKA": "LSKAAttention LSKABlock LargeSeparableKernelAttention",
    "FocalModulation": "FocalModulationAttention FocalModulationLayer",
    "FocalModulationBlock": "FocalNetBlock FocalBlock",
    "ACmix": "ACmixAttention ACmixBlock",
    "DynamicConv": "CondConv DynamicConvolution",
    "Conv": "BaseConv CBS ConvBNSiLU ConvBNAct",
    "RepNCSPELAN4": "GELAN RepNCSPELAN RepELAN",
    "SPPF": "SPPFast",
    "SPDConv": "SPDConvolution",
    "MBConv": "MBConvBlock",
    "iRMB": "iRMBAttention iRMBBlock",
    "MSBlock": "MSBlockLayer",
    "VoVGSCSP": "VoVGSCSPNet",
    "TimmBackbone": "Timm TimmModel",
    "BiFPNAdd": "BiFPN BiFPNAdd2 BiFPNAdd3 BiFPNFusion WeightedAdd",
    "ASFF": "ASFF2 ASFF3 ASFF4",
    "Concat": "Cat Concatenate",
    "nn.Upsample": "Upsample UpSampling",
    "nn.MaxPool2d": "MaxPool MaxPool2d MP",
    "nn.AvgPool2d": "AvgPool AvgPool2d",
    "nn.Identity": "Identity",
}
"""For each layer other names under which the same module is known, in upper or lower case, with `_` or without."""

GENERIC = re.compile(r"attention|attn|att|block|bottleneck|conv|detect|head|layer|module|segment")
"""Words that many names contain: what is left of a name tells which layer it is."""
NEAR = 0.7
"""Least similarity of two spellings, 0 to 1."""
REPEATED = re.compile(r"(.)\1+")


def plain(name: str) -> str:
    """Return a name in lower case, letters and digits only."""
    return re.sub(r"[\W_]", "", name.lower())


OTHER_NAMES = {plain(other): layer for layer, others in ALIASES.items() for other in others.split()}


def suggested_layer(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'X'?"`` for another name of X or a near spelling of it, or an empty string.

    A name that shares only a word such as "attention" with a layer is not near: it is another layer.
    """
    layers = {plain(layer): layer for layer in known}
    wanted = plain(name)
    if wanted in layers:
        return f" Did you mean '{layers[wanted]}'?"
    same = OTHER_NAMES.get(wanted)
    if same in layers.values():
        return f" Did you mean '{same}'?"
    if name.startswith("nn."):  # a layer of torch is like no layer of ours
        layers = {key: layer for key, layer in layers.items() if layer.startswith("nn.")}
    nearest = max(layers, key=lambda layer: likeness(wanted, layer), default="")
    return f" Did you mean '{layers[nearest]}'?" if nearest and likeness(wanted, nearest) >= NEAR else ""


def likeness(name: str, other: str) -> float:
    """Return how much alike two plain names are, 0 to 1.

    Of names with generic words the remaining letters count, unless letters are only doubled or swapped: "Convv" and
    "Cnov" are slips, "PConv" is another layer.
    """
    whole = difflib.SequenceMatcher(None, name, other).ratio()
    slip = REPEATED.sub(r"\1", name) == REPEATED.sub(r"\1", other) or sorted(name) == sorted(other)
    if slip or not GENERIC.search(name):
        return whole
    return min(whole, difflib.SequenceMatcher(None, GENERIC.sub("", name), GENERIC.sub("", other)).ratio())
