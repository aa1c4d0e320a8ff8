"""Find the layers of one network in another, edited one.

After an insertion a layer's index says nothing. Two layers are alike where their names and tensors agree, and more so
where their neighbours in the graph are alike. Of all pairings that keep the order, the one with the greatest total
likeness is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IMAGE = -1
"""Source index that stands for the image."""

ROUNDS = 12
"""Steps in the graph over which a difference has an effect."""

NEIGHBOURS = 0.6
"""Weight of the neighbours' likeness, relative to the layer's own."""

UNCHANGED = 0.5
"""What is added to the likeness of two equal layers that read the same, up to the image, whatever reads them."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Node:
    """A layer to be aligned.

    Attributes:
        name: the layer's yaml name; None where only its tensors are known.
        shapes: shape of every tensor, by name within the layer.
        sources: indices of its input nodes, in the order of the row; None where the graph is not known.
        inputs: a head's name for each of its sources ("lead 0", "auxiliary 2"); empty for other layers.
        consumers: indices of the nodes that it feeds, each with that node's name for the input.
    """

    name: str | None
    shapes: Shapes
    sources: list[int] | None = None
    inputs: list[str] = field(default_factory=list)
    consumers: list[tuple[int, str]] = field(default_factory=list)


def align(old: list[Node], new: list[Node]) -> dict[int, int]:
    """Return the index of the old node for each new node that has one. The last nodes, the heads, always match.

    Args:
        old: nodes of the network with the weights, in order.
        new: nodes of the network that receives them.
    """
    for nodes in (old, new):
        link_consumers(nodes)
    likeness = spread(own_likeness(old[:-1], new[:-1]), old, new)
    likeness += UNCHANGED * unchanged(old, new)
    return best_pairs(likeness) | {len(new) - 1: len(old) - 1}


def unchanged(old: list[Node], new: list[Node]) -> NDArray[np.float64]:
    """Return for each old and new node, heads left out, how far they compute the same, 0 to 1; 0 for different layers.

    Half of it is that the layers are equal, the other half is the mean of what they read. A new reader of such a layer
    (a finer level of the head) does not make it another layer.
    """
    same = np.zeros((len(old) - 1, len(new) - 1))
    for i, before in enumerate(old[:-1]):
        for j, after in enumerate(new[:-1]):
            if before.name is not None and before.name == after.name and before.shapes == after.shapes:
                same[i, j] = 0.5 + upstream(before, after, same) / 2
    return same


def link_consumers(nodes: list[Node]) -> None:
    """Set `consumers` of every node."""
    for node in nodes:
        node.consumers = []
    for index, node in enumerate(nodes):
        inputs = node.inputs or [""] * len(node.sources or ())
        for source, called in zip(node.sources or (), inputs, strict=True):
            if source != IMAGE:
                nodes[source].consumers.append((index, called))


def own_likeness(old: list[Node], new: list[Node]) -> NDArray[np.float64]:
    """Return the likeness of each old and new node without neighbours, (old, new); 0 for impossible pairs."""
    return np.array([[pair_likeness(before, after) for after in new] for before in old]).reshape(len(old), len(new))


def pair_likeness(before: Node, after: Node) -> float:
    """Return the share of tensors with the same name and shape, 0 to 1; layers without tensors agree by name alone.

    A layer of another name can match only if all its tensors are in the new one (a block with an added part).
    """
    if not before.shapes or not after.shapes:
        same_name = before.name is not None and before.name == after.name
        return 0.5 if same_name and not before.shapes and not after.shapes else 0.0
    agreeing = sum(after.shapes.get(name) == shape for name, shape in before.shapes.items())
    share = agreeing / max(len(before.shapes), len(after.shapes))
    if before.name is None or after.name is None:
        return share if share >= 0.5 else 0.0
    if before.name == after.name:
        return 0.1 + 0.9 * share
    return 0.9 * share if agreeing == len(before.shapes) else 0.0


def spread(own: NDArray[np.float64], old: list[Node], new: list[Node]) -> NDArray[np.float64]:
    """Add the likeness of the neighbours, up to ROUNDS steps away, to that of each pair."""
    if any(node.sources is None for node in (*old, *new)):
        return own
    heads = (len(old) - 1, len(new) - 1)
    possible = own > 0
    likeness = own
    for _ in range(ROUNDS):
        known = np.pad(likeness, ((0, 1), (0, 1)))
        known[heads] = 1.0
        around = np.zeros_like(own)
        for i, j in zip(*np.nonzero(possible), strict=True):
            around[i, j] = (upstream(old[i], new[j], known) + downstream(old[i], new[j], known)) / 2
        likeness = np.where(possible, (own + NEIGHBOURS * around) / (1 + NEIGHBOURS), 0.0)
    return likeness


def upstream(before: Node, after: Node, known: NDArray[np.float64]) -> float:
    """Return the likeness of two nodes' sources, 0 to 1, compared in order from the end of the row."""
    ours, theirs = before.sources or [], after.sources or []
    alike = [
        float(b == a) if IMAGE in (b, a) else known[b, a]
        for b, a in zip(reversed(ours), reversed(theirs), strict=False)
    ]
    return sum(alike) / max(len(ours), len(theirs), 1)


def downstream(before: Node, after: Node, known: NDArray[np.float64]) -> float:
    """Return the likeness of two nodes' consumers, 0 to 1: each with the other node's most similar one."""
    if not before.consumers or not after.consumers:
        return 0.0
    alike = np.array(
        [
            [known[b, a] if b_input == a_input else 0.0 for a, a_input in after.consumers]
            for b, b_input in before.consumers
        ]
    )
    return float(alike.max(0).sum() + alike.max(1).sum()) / sum(alike.shape)


def best_pairs(likeness: NDArray[np.float64]) -> dict[int, int]:
    """Return the pairs {column: row} in order with the greatest total likeness."""
    rows, columns = likeness.shape
    total = np.zeros((rows + 1, columns + 1))
    for row in range(rows):
        for column in range(columns):
            paired = total[row, column] + likeness[row, column] if likeness[row, column] > 0 else -1.0
            total[row + 1, column + 1] = max(paired, total[row, column + 1], total[row + 1, column])
    pairs, row, column = {}, rows, columns
    while row and column:
        if total[row, column] == total[row - 1, column]:
            row -= 1
        elif total[row, column] == total[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs[column] = row
    return pairs
