"""Draw a network as one HTML file that works offline; a click on a layer shows its details.

The image is that of models/graph/svg.py. Frame, style and script of the page are page.html, page.css and page.js.
"""

import json
from pathlib import Path
from typing import Any

from models.graph.layout import Box, Graph
from models.graph.svg import ROLE_COLORS, draw_svg, escape, stride_name, totals_of


def read(name: str) -> str:
    """Read a file beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def draw_html(graph: Graph) -> str:
    """Return the page."""
    dark = "".join(
        f"  svg .{role} rect {{ fill: color-mix(in srgb, {stroke} 26%, #0f172a); "
        f"stroke: color-mix(in srgb, {stroke} 60%, #ffffff); }}\n"
        for role, (_, stroke) in ROLE_COLORS.items()
    )
    # without "<", no text can close the script element
    network = json.dumps(described(graph), ensure_ascii=False).replace("<", "\\u003c")
    return read("page.html").format(
        title=escape(graph.title),
        style="\n" + read("page.css").replace("  /* DARK */\n", dark),
        svg=draw_svg(graph),
        network=network,
        script="\n" + read("page.js"),
    )


def described(graph: Graph) -> dict[str, Any]:
    """Return the data for the page's script."""
    return {
        "title": graph.title,
        "size": graph.nodes[0].shape,
        "totals": totals_of(graph.totals, len(graph.nodes) - 1),
        "layers": [described_node(node, graph) for node in graph.nodes],
    }


def described_node(node: Box, graph: Graph) -> dict[str, Any]:
    """Return the details of a layer."""
    share = share_of(node.parameters, graph.totals["parameters"])
    facts = node.facts
    described = {
        "index": node.index,
        "title": f"{node.index} {node.name}" if facts else "image",
        "label": node.label,
        "shape": node.shape,
        "stride": ", ".join(stride_name(stride) for stride in node.strides) if facts else "1",
        "does": [facts["does"], *facts["sources"]] if facts else ["What the network is given."],
        "parameters": node.parameters,
        "share": share,
        "inputs": node.sources,
        "outputs": [edge.target for edge in graph.edges if edge.source == node.index],
        "facts": bool(facts),
    }
    if not facts:
        return described
    needed = "only training needs it" if node.auxiliary else "training and inference need it"
    return described | {
        "place": f"{node.section}, {node.role}; {needed}",
        "cost": [
            ["parameters", f"{node.parameters:,} ({share})"],
            ["GFLOPs", f"{node.gflops:.4g} ({share_of(node.gflops, graph.totals['gflops'])})"],
            *([["repeats", str(facts["repeats"])]] if facts["repeats"] > 1 else []),
        ],
        "arguments": list(facts["arguments"].items()),
        "yaml": facts["yaml"],
        "signature": facts["signature"],
    }


def share_of(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"
