"""Draw a network layout (models/graph/layout.py) as one self-contained SVG file."""

from typing import Any
from xml.sax.saxutils import escape, quoteattr

from models.graph.layout import LEFT, Box, Edge, Graph
from utils.image_size import IMAGE_SIZE

ROLE_COLORS = {
    "convolution": ("#dbeafe", "#2563eb"),
    "downsample": ("#cffafe", "#0e7490"),
    "block": ("#dcfce7", "#15803d"),
    "attention": ("#fce7f3", "#be185d"),
    "pooling": ("#ede9fe", "#6d28d9"),
    "upsample": ("#ecfccb", "#4d7c0f"),
    "fusion": ("#fef3c7", "#b45309"),
    "activation": ("#ffe4e6", "#e11d48"),
    "other": ("#f1f5f9", "#64748b"),
    "head": ("#fee2e2", "#b91c1c"),
    "image": ("#ffffff", "#475569"),
}
"""Fill and border of each role's boxes."""

LINE_COLORS = ("#2563eb", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#be185d", "#a16207")
"""Colours of the lines that pass rows, in rotation, so that neighbouring lanes differ."""

CHARACTER = 0.602
"""Width of a character divided by its font size; within 2 % for common monospaced fonts."""

RADIUS = 9

STYLE = """
text { font-family: "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace; fill: #0f172a; }
.paper { fill: #ffffff; } .section { fill: #f8fafc; } .section.even { fill: #eef2f7; } \
.column { fill: #94a3b8; fill-opacity: 0.10; }
.title { font-size: 18px; font-weight: bold; } .note, .cell { font-size: 10.5px; } \
.note, .index, .cost { fill: #475569; }
.name, .index, .stride { font-size: 12px; font-weight: bold; } \
.label { font-size: 11px; font-style: italic; font-weight: bold; fill: #1d4ed8; }
.cost { font-size: 10.5px; text-anchor: end; } .label { text-anchor: end; } .stride { text-anchor: middle; }
.box rect { stroke-width: 1.5; } .auxiliary rect, .line.auxiliary path { stroke-dasharray: 5 4; }
.line path { fill: none; stroke-width: 1.7; } .line.next path { stroke: #475569; } .line.next polygon { fill: #475569; }
""" + "\n".join(f".{role} rect {{ fill: {fill}; stroke: {stroke}; }}" for role, (fill, stroke) in ROLE_COLORS.items())


def draw_svg(graph: Graph) -> str:
    """Return the text of the SVG file."""
    columns_top = graph.nodes[0].y - 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {graph.width:g} {graph.height:g}" '
        f'width="{graph.width:g}" height="{graph.height:g}">',
        f"<title>{escape(graph.title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{graph.width:g}" height="{graph.height:g}"/>',
        *draw_sections(graph),
        *(
            f'<rect class="column" x="{left - 8:g}" y="{columns_top:g}" width="{right - left + 16:g}" '
            f'height="{graph.nodes[-1].y - columns_top - 8:g}"/>'
            for _, left, right in graph.columns
        ),
        *(
            draw_text("stride", (left + right) / 2, columns_top - 6, stride_name(stride))
            for stride, left, right in graph.columns
        ),
        *draw_heading(graph),
        *(draw_edge(edge) for edge in graph.edges),
        *(draw_node(node) for node in graph.nodes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def stride_name(stride: float) -> str:
    """Return the name of a pyramid level: P3 for stride 8."""
    level = round(stride).bit_length() - 1
    return f"P{level}, stride {stride:g}" if 2**level == stride else f"stride {stride:.3g}"


def draw_text(style: str, x: float, y: float, text: str) -> str:
    """Return a line of text."""
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def draw_sections(graph: Graph) -> list[str]:
    """Return the bands of backbone, neck and head, with their names at the left."""
    parts = []
    for number, (name, top, bottom) in enumerate(graph.sections):
        even = " even" if number % 2 == 0 else ""
        parts.append(f'<rect class="section{even}" y="{top:g}" width="{graph.width:g}" height="{bottom - top:g}"/>')
        middle = (top + bottom) / 2
        parts.append(f'<text class="stride" x="18" y="{middle:g}" transform="rotate(-90 18 {middle:g})">{name}</text>')
    return parts


def draw_heading(graph: Graph) -> list[str]:
    """Return title, totals and the legend."""
    parts = [draw_text("title", LEFT, 32, graph.title)]
    parts += [
        draw_text("note", LEFT, 52 + 15 * number, line)
        for number, line in enumerate(totals_of(graph.totals, len(graph.nodes) - 1))
    ]
    roles = {node.role for node in graph.nodes[1:]}
    shown = [role for role in ROLE_COLORS if role in roles]
    if any(node.auxiliary for node in graph.nodes):
        shown.append("only training needs it")
    x, y = float(LEFT), 94.0
    for role in shown:
        wide = 34 + CHARACTER * 10.5 * len(role)
        if x + wide > graph.width:
            x, y = float(LEFT), y + 20
        style = role if role in ROLE_COLORS else "other auxiliary"
        parts.append(
            f'<g class="{style}"><rect x="{x:g}" y="{y:g}" width="18" height="12" rx="3"/>'
            f"{draw_text('note', x + 23, y + 10, role)}</g>"
        )
        x += wide
    return parts


def totals_of(totals: dict[str, Any], layers: int) -> list[str]:
    """Return the network's figures, in two lines."""
    deployed = totals["deployed"]
    return [
        f"{layers} layers, {totals['task']}, {totals['nc']} classes; "
        f"a box: arguments, output shape, parameters, GFLOPs at {IMAGE_SIZE}",
        f"trained {amount(totals['parameters'])} parameters, {totals['gflops']:.4g} GFLOPs; "
        f"deployed {amount(deployed['parameters'])}, {deployed['gflops']:.4g} GFLOPs",
    ]


def amount(count: float) -> str:
    """Return a count in at most 5 characters: 950, 7.4k, 25.3M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def draw_node(node: Box) -> str:
    """Return a box with its texts. A text that is too long ends in an ellipsis; the tooltip has all of it."""
    inside = int((node.width - 16) / (CHARACTER * 10.5))
    left, right = node.x + 8, node.x + node.width - 8
    index = "" if node.index < 0 else str(node.index)
    letters = int((node.width - 16) / (CHARACTER * 12)) - (len(index) + 1 if index else 0)
    label = shorten(node.label or "", max(letters - len(node.name) - 1, 5))
    name = shorten(node.name, letters - (len(label) + 1 if label else 0))
    cost = " ".join(
        part
        for part in (amount(node.parameters) if node.parameters else "", f"{node.gflops:.3g}G" if node.gflops else "")
        if part
    )
    shape = shorten(joined_maps(node.shape), inside - len(cost) - 1)
    style = f"box {node.role}{' auxiliary' if node.auxiliary else ''}"
    told = " · ".join(
        part for part in (f"{index} {node.name}".strip(), node.label or "", node.arguments, node.shape) if part
    )
    return "".join(
        [
            f'<g class="{style}" id="box-{node.index}" data-layer="{node.index}"><title>{escape(told)}</title>',
            f'<rect x="{node.x:g}" y="{node.y:g}" width="{node.width:g}" height="{node.height:g}" rx="7"/>',
            draw_text("index", left, node.y + 17, index) if index else "",
            draw_text("name", left + (CHARACTER * 12 * (len(index) + 1) if index else 0), node.y + 17, name),
            draw_text("label", right, node.y + 17, label) if label else "",
            draw_text("cell", left, node.y + 32, shorten(node.arguments, inside)) if node.arguments else "",
            draw_text("cell", left, node.y + (46 if node.arguments else 32), shape),
            draw_text("cost", right, node.y + 46, cost) if cost else "",
            "</g>",
        ]
    )


def shorten(text: str, most: int) -> str:
    """Shorten a text to at most `most` characters."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def joined_maps(shape: str) -> str:
    """Join the shapes of maps of one size: 256x40x40 + 512x40x40 to 256+512 x40x40. Others stay unchanged."""
    parts = [part.partition("x") for part in shape.split(" + ")]
    sizes = {size for _, _, size in parts}
    return (
        shape
        if len(parts) == 1 or len(sizes) > 1
        else "+".join(channels for channels, _, _ in parts) + " x" + sizes.pop()
    )


def draw_edge(edge: Edge) -> str:
    """Return a line with rounded corners and an arrow head."""
    color = "" if edge.gutter is None else LINE_COLORS[edge.source % len(LINE_COLORS)]
    style = "line" + (" next" if not color else "") + (" auxiliary" if edge.auxiliary else "")
    stroke, fill = (f' style="stroke: {color}"', f' style="fill: {color}"') if color else ("", "")
    (x, y), (before_x, before_y) = edge.points[-1], edge.points[-2]
    step_x, step_y = sign(x - before_x), sign(y - before_y) if x == before_x else 0
    tip = [
        (x, y),
        (x - 7 * step_x - 3.5 * step_y, y - 7 * step_y - 3.5 * step_x),
        (x - 7 * step_x + 3.5 * step_y, y - 7 * step_y + 3.5 * step_x),
    ]
    corners = " ".join(f"{a:g},{b:g}" for a, b in tip)
    return (
        f'<g class="{style}" data-from={quoteattr(str(edge.source))} data-to={quoteattr(str(edge.target))}>'
        f'<path d="{rounded(edge.points)}"{stroke}/><polygon points="{corners}"{fill}/></g>'
    )


def sign(value: float) -> int:
    """Return -1, 0 or 1."""
    return (value > 0) - (value < 0)


def rounded(points: list[tuple[float, float]]) -> str:
    """Return a path of horizontal and vertical lines through the points, with rounded corners."""
    points = [point for number, point in enumerate(points) if number == 0 or point != points[number - 1]]
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (ax, ay), (bx, by), (cx, cy) in zip(points, points[1:], points[2:], strict=False):
        first, second = abs(ax - bx) + abs(ay - by), abs(cx - bx) + abs(cy - by)
        radius = min(RADIUS, first / 2, second / 2)
        path += f" L{bx - sign(bx - ax) * radius:g} {by - sign(by - ay) * radius:g}"
        path += f" Q{bx:g} {by:g} {bx + sign(cx - bx) * radius:g} {by + sign(cy - by) * radius:g}"
    return path + f" L{points[-1][0]:g} {points[-1][1]:g}"
