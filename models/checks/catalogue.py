"""Facts of registered layers, for a layer's module card and for docs/catalogue.md, the page of all layers."""

import re
import typing

from models.checks.graph_checks import count_gflops
from models.checks.layer_case import LayerCase, show, size_text
from models.checks.report import markdown_table
from models.parameters import count_parameters
from models.registry import Layer, Role, citations, defined_in, registered_layers

PAGE_HW = (64, 64)
"""Size of the largest map for the page's GFLOPs."""
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
"""Headings of the page, in order."""
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
    """Return the Source or Differs section of a layer's docstring; empty if it has none."""
    if is_torch(entry):
        return ""
    return next((text for found, text in citations(entry.documentation()) if found == label), "")


def signature(entry: Layer) -> str:
    """Return a layer's signature for rows; torch's layers without annotations, which depend on the version of torch."""
    if not is_torch(entry):
        return entry.signature()
    shown = [name if p.default is p.empty else f"{name}={p.default}" for name, p in entry.parameters().items()]
    return f"{entry.name}({', '.join(shown)})"


def layer_facts(entry: Layer) -> dict[str, str]:
    """Collect the facts of a layer from registry and docstring; leave out empty ones."""
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
    if package := getattr(entry.cls, "requires", None):  # the page must not depend on what is installed
        parameters = gflops = f"needs {package}"
    else:
        parameters, gflops = f"{count_parameters(case.build()):,}", f"{count_gflops(case, PAGE_HW):.4f}"
    inputs = ", ".join(map(str, case.inputs))
    says = [sentence(entry), *(f"*{label}:* {text}" for label in LABELS if (text := labelled(entry, label)))]
    example, file = f"`{show(list(case.arguments))}` on {inputs}", defined_in(entry.cls).removeprefix("models/")
    return [f"**{entry.name}**<br>`{signature(entry)}`", "<br>".join(says), example, parameters, gflops, file]


def catalogue() -> str:
    """Return the text of docs/catalogue.md: all layers except those of plug-ins."""
    built_in = [entry for entry in registered_layers().values() if entry.cls.__module__.startswith(BUILT_IN)]
    layers = sorted(built_in, key=lambda entry: entry.name.lower().removeprefix("nn."))
    lines = [
        "# Catalogue of layers",
        "",
        "This page is generated from the layers' docstrings by `python -m models.check --catalogue docs/catalogue.md`; "
        "do not edit it by hand.",
        "",
        f"It lists {len(layers)} layers. A yaml row is `[from, repeats, layer, arguments]`. Give the arguments in the "
        "order of the signature, or by name in a mapping at the end.",
        "",
        "Parameters and GFLOPs are those of the example row. The numbers after *on* are the channels of its inputs; "
        f"the largest input map has {size_text(PAGE_HW)} cells. One multiply-accumulate of a convolution or matrix "
        "product counts as two operations.",
        "",
        "`python -m models.check NAME` tests a layer and writes its module card.",
    ]
    for role, heading in ROLES.items():
        if rows := [page_row(entry) for entry in layers if entry.role == role]:
            header = ["layer", "what it does", "example row", "parameters", "GFLOPs", "file in models/"]
            lines += ["", f"## {heading}", "", *markdown_table(header, rows)]
    return "\n".join(lines) + "\n"
