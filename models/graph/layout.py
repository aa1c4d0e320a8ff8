"""Place the layers of a network in an image, and route the lines between them.

A column is a stride, so that the pyramid of a detector is visible. Each row of the yaml has its own height, top to
bottom. A line that leaves or enters a box at its side therefore meets no other box. A line that passes several rows
runs down in a lane between two columns.
"""

import inspect
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from models.config.rows import IMAGE, Row, part_of, show_row
from models.deploy import needed_rows
from models.registry import Role, bind, citations, find_layer
from models.summary import format_shape, summarize
from models.yolo import Model
from utils.image_size import IMAGE_SIZE

BOX_WIDTH, BOX_HEIGHT, GAP = 218, 54, 26
LEFT, TOP, MARGIN = 40, 162, 24
LEAST_WIDTH = 800
"""Width that the heading needs, in pixels."""
LANE, GUTTER = 9, 30
"""Distance of two lanes and least distance of two columns, in pixels."""


@dataclass
class Box:
    """A row of the network, or the image (index -1), as a box.

    Attributes:
        section: backbone, neck or head; empty for the image.
        strides: pixels per cell of its output; for a head, of its inputs.
        auxiliary: only training needs it.
        x, y, width, height: the box, in pixels.
        facts: details for the panel of the HTML page.
    """

    index: int
    name: str
    label: str | None
    role: Role | str
    section: str
    arguments: str
    shape: str
    strides: list[float]
    parameters: int
    gflops: float
    sources: list[int]
    auxiliary: bool
    facts: dict[str, Any] = field(default_factory=dict)
    columns: tuple[int, int] = (0, 0)
    x: float = 0.0
    y: float = 0.0
    width: float = BOX_WIDTH
    height: float = BOX_HEIGHT


@dataclass
class Edge:
    """A line from a layer to a layer that reads it.

    Attributes:
        gutter: space between columns for its vertical part; 0 is left of the first column.
            None if the target is the next row.
        points: its corners, in pixels.
    """

    source: int
    target: int
    auxiliary: bool
    gutter: int | None = None
    points: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Graph:
    """A network laid out.

    Attributes:
        columns: stride, left and right of each column.
        sections: name, top and bottom of each.
        totals: figures of the whole network, from the summary.
    """

    title: str
    nodes: list[Box]
    edges: list[Edge]
    columns: list[tuple[float, float, float]]
    sections: list[tuple[str, float, float]]
    width: float
    height: float
    totals: dict[str, Any]


def lay_out(model: Model, title: str, summary: dict[str, Any] | None = None) -> Graph:
    """Return the network as boxes and lines.

    Args:
        title: name of the network.
        summary: result of `summarize`; computed if not given.
    """
    summary = summary or summarize(model)
    nodes, edges = [image(model), *boxes(model, summary)], lines(model)
    nodes[0].strides = nodes[1].strides
    strides = sorted({stride for node in nodes for stride in node.strides})
    for node in nodes:
        node.columns = strides.index(min(node.strides)), strides.index(max(node.strides))
    for node in nodes:
        node.y = TOP + (node.index + 1) * (BOX_HEIGHT + GAP)
    lanes = choose_lanes(nodes, edges, len(strides))
    columns, edge_of_gutter, width = place_columns(nodes, lanes, strides)
    route(nodes, edges, lanes, edge_of_gutter)
    bottom = nodes[-1].y + BOX_HEIGHT + MARGIN
    totals = {key: value for key, value in summary.items() if key != "layers"}
    return Graph(title, nodes, edges, columns, bands(nodes), width, bottom, totals)


def image(model: Model) -> Box:
    """Return the box of the input image. It stands above its first reader, as no other box would share its column."""
    shape = f"{model.channels}x{IMAGE_SIZE}x{IMAGE_SIZE}"
    return Box(IMAGE, "image", None, "image", "", "", shape, [], 0, 0.0, [], False)


def strides_of(model: Model, summary: dict[str, Any]) -> list[float]:
    """Return the stride of each row's first output map; for a row without maps, that of its first input."""
    strides: list[float] = []
    for row, layer in zip(model.rows[:-1], summary["layers"], strict=False):
        first = layer["output_shape"]
        while first and not isinstance(first[0], int):
            first = first[0]
        before = strides[row.sources[0]] if row.sources[0] != IMAGE else 1.0
        strides.append(IMAGE_SIZE / first[2] if len(first) == 4 else before)
    return strides


def boxes(model: Model, summary: dict[str, Any]) -> list[Box]:
    """Return the box of each row, without position."""
    strides, lead, nodes = strides_of(model, summary), set(needed_rows(model.rows, model.head)), []
    last = len(model.rows) - 1
    for row, layer in zip(model.rows, summary["layers"], strict=True):
        own = (
            [strides[row.index]]
            if row.index < last
            else sorted({strides[source] for source in row.sources if source != IMAGE})
        )
        shape = format_shape(layer["output_shape"])
        node = Box(
            row.index, row.name, row.label, layer["role"], part_of(row, model.rows),
            show_arguments(row.arguments), shape, own,
            layer["parameters"], layer["gflops"], list(dict.fromkeys(row.sources)), row.index not in lead,
        )  # fmt: skip
        node.facts = facts_of(model, row)
        nodes.append(node)
    return nodes


def show_arguments(arguments: list[Any]) -> str:
    """Return a row's arguments as its yaml writes them, without the outer brackets."""
    return show_row(arguments)[1:-1]


def facts_of(model: Model, row: Row) -> dict[str, Any]:
    """Return the details of a row for the panel."""
    entry = find_layer(row.name)
    own, of_file = entry.documentation(), inspect.getdoc(inspect.getmodule(entry.cls)) or ""
    bound = bind(entry, row.arguments, model.nc)
    return {
        "yaml": show_row(row.as_yaml()),
        "repeats": row.repeats,
        "arguments": {
            name: show_row(value if not isinstance(value, tuple) else list(value)) for name, value in bound.items()
        },
        "does": own.split("\n")[0],
        "sources": source_lines(own) or source_lines(of_file),
        "signature": entry.signature(),
    }


def source_lines(docstring: str) -> list[str]:
    """Return the Source and Differs sections of a docstring, each as one line."""
    return [f"{label}: {text}" for label, text in citations(docstring)]


def lines(model: Model) -> list[Edge]:
    """Return a line for each source of each row, without route."""
    lead, head = set(needed_rows(model.rows, model.head)), model.rows[-1]
    kept = {head.sources[position] for position in model.head.lead_inputs()}
    edges = []
    for row in model.rows:
        for source in dict.fromkeys(row.sources):
            needed = source in kept if row is head else row.index in lead
            edges.append(Edge(source, row.index, not needed))
    return edges


Lanes = dict[tuple[int, int], tuple[int, int]]
"""For each (gutter, source): the number of its lane, and the number of lanes in that gutter."""


def choose_lanes(nodes: list[Box], edges: list[Edge], columns: int) -> Lanes:
    """Choose the cheapest gutter and a lane for each line that passes rows; lines of one source share a lane."""
    box = {node.index: node for node in nodes}
    steps = [sorted((a.columns[0], b.columns[0])) for a, b in pairwise(nodes)]
    spans: dict[int, dict[int, tuple[int, bool]]] = {gutter: {} for gutter in range(columns + 1)}
    for edge in sorted(edges, key=lambda edge: (edge.target - edge.source, edge.source)):
        if edge.target == edge.source + 1:
            continue
        start, end = box[edge.source].columns[0], box[edge.target].columns
        wide = end[0] != end[1] or box[edge.target].section == "head"

        def cost(
            gutter: int, edge: Edge = edge, start: int = start, end: tuple[int, int] = end, wide: bool = wide
        ) -> tuple[float, int]:
            away = 0 if wide else min(abs(gutter - end[0]), abs(gutter - end[0] - 1))
            passed = min(abs(gutter - start), abs(gutter - start - 1)) + away
            crossed = sum(low < gutter <= high for low, high in steps[edge.source + 1 : edge.target + 1])
            shared = edge.source in spans[gutter]
            return 3 * passed + crossed - 2 * shared + len(spans[gutter]) / 4, gutter

        near = {start, start + 1} if wide else {start, start + 1, end[0], end[0] + 1}
        edge.gutter = min(near, key=cost)
        furthest, _ = spans[edge.gutter].get(edge.source, (0, False))
        spans[edge.gutter][edge.source] = max(furthest, edge.target), edge.gutter in (start, end[0])
    return {(gutter, source): lane for gutter, taken in spans.items() for source, lane in numbered_lanes(taken).items()}


def numbered_lanes(taken: dict[int, tuple[int, bool]]) -> dict[int, tuple[int, int]]:
    """Number the lanes of one gutter from the left; of two that overlap, the shorter is nearer to its boxes.

    Args:
        taken: for each source, the last row of its lane, and whether its boxes are right of the gutter.
    Returns:
        For each source the number of its lane, and the number of lanes.
    """
    sides: dict[bool, list[list[tuple[int, int]]]] = {False: [], True: []}
    place: dict[int, tuple[bool, int]] = {}
    for source, (last, at_right) in sorted(taken.items(), key=lambda item: (item[1][0] - item[0], item[0])):
        lanes = sides[at_right]
        number = next((n for n, lane in enumerate(lanes) if all(last <= a or source >= b for a, b in lane)), len(lanes))
        if number == len(lanes):
            lanes.append([])
        lanes[number].append((source, last))
        place[source] = at_right, number
    count = len(sides[False]) + len(sides[True])
    return {source: (count - 1 - number if at_right else number, count) for source, (at_right, number) in place.items()}


def place_columns(
    nodes: list[Box], lanes: Lanes, strides: list[float]
) -> tuple[list[tuple[float, float, float]], list[float], float]:
    """Set x of every box; return the columns (stride, left, right), the left of each gutter, and the total width."""
    count = [
        max((of for (gutter, _), (_, of) in lanes.items() if gutter == number), default=0)
        for number in range(len(strides) + 1)
    ]
    left, x, columns = [], float(LEFT), []
    for number, lanes_here in enumerate(count):
        left.append(x)
        x += max(GUTTER, (lanes_here + 1) * LANE + 14)
        if number < len(strides):
            columns.append((strides[number], x, x + BOX_WIDTH))
            x += BOX_WIDTH
    for node in nodes:
        first, last = node.columns
        node.x = columns[first][1]
        if node.section == "head":  # its inputs come down in the gutters beside it
            node.x = left[first] + 6
            node.width = (left[last + 1] + max(GUTTER, (count[last + 1] + 1) * LANE + 14) - 6) - node.x
    return columns, left, max(x + MARGIN, LEAST_WIDTH)


def route(nodes: list[Box], edges: list[Edge], lanes: Lanes, left_of_gutter: list[float]) -> None:
    """Set the corners of every line."""
    box = {node.index: node for node in nodes}
    for edge in edges:
        start, end = box[edge.source], box[edge.target]
        if edge.gutter is None:
            x = start.x + start.width / 2
            x_end = x if end.section == "head" else end.x + end.width / 2
            middle = (start.y + start.height + end.y) / 2
            edge.points = [(x, start.y + start.height), (x, middle), (x_end, middle), (x_end, end.y)]
            continue
        number, _ = lanes[edge.gutter, edge.source]
        lane = left_of_gutter[edge.gutter] + 7 + (number + 1) * LANE
        leaves_right = edge.gutter > start.columns[0]
        y = start.y + start.height - 12
        edge.points = [(start.x + start.width if leaves_right else start.x, y), (lane, y)]
        if end.section == "head":
            edge.points.append((lane, end.y))
            continue
        enters_right = edge.gutter > end.columns[0]
        column = end.columns[0]
        into = [other for other in edges if other.target == edge.target]
        beside = [line for line in into if line.gutter is not None and (line.gutter > column) is enters_right]
        port = end.y + 8 + (end.height - 28) * (beside.index(edge) + 0.5) / len(beside)
        edge.points += [(lane, port), (end.x + end.width if enters_right else end.x, port)]


def bands(nodes: list[Box]) -> list[tuple[str, float, float]]:
    """Return the sections with their top and bottom."""
    found: dict[str, tuple[float, float]] = {}
    for node in nodes:
        if node.section:
            top, _ = found.get(node.section, (node.y - GAP / 2, 0.0))
            found[node.section] = top, node.y + node.height + GAP / 2
    return [(name, top, bottom) for name, (top, bottom) in found.items()]
