"""Facts of registered layers: for the card of a layer, and for docs/catalogue.md, the page of all layers."""

import re
import typing

from models.checks.graph_checks import count_gflops
from models.checks.layer_case import LayerCase, show, size_text
from models.checks.report import markdown_table
from models.parameters import count_parameters
from models.registry import Layer, Role, citations, defined_in, registered_layers

PAGE_HW = (64, 64)
"""Size of the largest map that the page's GFLOPs are counted for."""
BUILT_IN = ("models.", "torch.")
LABELS = ("Source", "Differs")
ROLES = {
    "block": "Blocks",
    "convolution": "Convolutions",
    "downsample": "Downsampling",
    "upsample": "Upsampling",
    "pooling": "Pooling",
    "attention": "Attention",
    "activation": "Activations",
    "fusion": "Fusion of several maps",
    "head": "Heads",
    "other": "Other",
}
"""Headings of the page, in its order."""
assert set(ROLES) == set(typing.get_args(Role)), "every role has its heading"


def is_torch(entry: Layer) -> bool:
    """Tell whether a layer is torch's own."""
    return entry.cls.__module__.startswith("torch.")


def sentence(entry: Layer) -> str:
    """Return the first sentence of a layer's docstring."""
    if is_torch(entry):
        return f"torch.nn.{entry.cls.__name__}, as PyTorch documents it."
    text = " ".join(entry.documentation().partition("\n\n")[0].split())
    found = re.match(r".*?[^.]\.(?=\s+[A-Z]|$)", text)
    return found[0] if found else text


def labelled(entry: Layer, label: str) -> str:
    """Return the section of a layer's docstring with a label, Source or Differs; empty without one."""
    if is_torch(entry):
        return ""
    return next((text for found, text in citations(entry.documentation()) if found == label), "")


def signature(entry: Layer) -> str:
    """Return a layer as a row sees it; of torch's own without annotations, which depend on its version."""
    if not is_torch(entry):
        return entry.signature()
    shown = [name if p.default is p.empty else f"{name}={p.default}" for name, p in entry.parameters().items()]
    return f"{entry.name}({', '.join(shown)})"


def layer_facts(entry: Layer) -> dict[str, str]:
    """Collect the facts of a layer from registry and docstring, without empty ones."""
    facts = {
        "layer": signature(entry),
        "role": entry.role,
        "what it does": sentence(entry),
        "source": labelled(entry, "Source"),
        "differs": labelled(entry, "Differs"),
        "file": defined_in(entry.cls),
    }
    return {key: value for key, value in facts.items() if value}


def page_row(entry: Layer) -> list[str]:
    """Return a layer's row of the page."""
    case = LayerCase.of_example(entry)
    if package := getattr(entry.cls, "requires", None):  # the page is the same whether it is installed or not
        parameters = gflops = f"needs {package}"
    else:
        parameters, gflops = f"{count_parameters(case.build()):,}", f"{count_gflops(case, PAGE_HW):.4f}"
    inputs = ", ".join(map(str, case.inputs))
    says = [sentence(entry), *(f"*{label}:* {text}" for label in LABELS if (text := labelled(entry, label)))]
    example, file = f"`{show(list(case.arguments))}` on {inputs}", defined_in(entry.cls).removeprefix("models/")
    return [f"**{entry.name}**<br>`{signature(entry)}`", "<br>".join(says), example, parameters, gflops, file]


def catalogue() -> str:
    """Return docs/catalogue.md: all layers but those of plug-ins."""
    built_in = [entry for entry in registered_layers().values() if entry.cls.__module__.startswith(BUILT_IN)]
    layers = sorted(built_in, key=lambda entry: entry.name.lower().removeprefix("nn."))
    lines = [
        "# Catalogue of layers",
        "",
        "Written by `python -m models.check --catalogue docs/catalogue.md` from the layers themselves; "
        "do not edit it by hand.",
        "",
        f"{len(layers)} layers. A yaml row is `[from, repeats, layer, arguments]`; "
        "the arguments are those of the signature, in its order, or by "
        "name in a mapping at the end. Parameters and GFLOPs (two operations per multiply-accumulate of convolutions "
        "and matrix products) are those "
        "of the example row, whose input has the channels given after *on* and, for the largest map, "
        f"{size_text(PAGE_HW)} cells. "
        "`python -m models.check NAME` makes the conformance test of a layer and writes its card.",
    ]
    for role, heading in ROLES.items():
        if rows := [page_row(entry) for entry in layers if entry.role == role]:
            header = ["layer", "what it does", "example row", "parameters", "GFLOPs", "file in models/"]
            lines += ["", f"## {heading}", "", *markdown_table(header, rows)]
    return "\n".join(lines) + "\n"
