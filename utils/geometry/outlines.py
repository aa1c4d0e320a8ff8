"""From a region to its outline: traced along pixel edges; several parts and holes are joined into one closed line."""

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.geometry.region import Region

Points = NDArray[np.float64]


def trace(region: Region) -> list[list[Points]]:
    """Trace the connected pieces of a region, the largest first.

    The lines follow the edges of the pixels but cut inner corners; filling them gives the same region.

    Returns:
        For each piece its outer outline and then its holes, (K, 2) x, y in pixels of the image. Holes run in the
        opposite direction.
    """
    if not region.mask.any():
        return []
    height, width = region.mask.shape
    lattice = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    lattice[1::2, 1::2] = region.mask  # pixels at odd indices, their edges and corners at even ones
    lattice = cv2.dilate(lattice, np.ones((3, 3), np.uint8))
    contours, tree = cv2.findContours(lattice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corner = np.array((region.left, region.top), np.float64)
    outlines = [contour.reshape(-1, 2) / 2 + corner for contour in contours]
    return nested(outlines, tree)


def nested(outlines: list[Points], tree: NDArray[np.int32]) -> list[list[Points]]:
    """Group the outlines of cv2.findContours (RETR_CCOMP) by piece: the outer one, then its holes; largest piece first.

    Args:
        outlines: (K, 2) each.
        tree: (1, len(outlines), 4) hierarchy that cv2.findContours returned.
    """
    parents = tree[0, :, 3].tolist()
    pieces = {number: [outlines[number]] for number, parent in enumerate(parents) if parent < 0}
    for number, parent in enumerate(parents):
        if parent >= 0:
            pieces[parent].append(outlines[number])
    return sorted(pieces.values(), key=lambda piece: -np.ptp(piece[0], axis=0).prod())


def join_outlines(pieces: list[list[Points]]) -> Points:
    """Join all outlines into one closed line (K, 2): a seam leads to each further outline and back.

    Args:
        pieces: from `trace`; no piece gives no points.
    """
    outlines = [outline for piece in pieces for outline in piece]
    if not outlines:
        return np.zeros((0, 2))
    line = outlines[0]
    for outline in outlines[1:]:
        distance = np.square(line[:, None] - outline[None]).sum(2)
        at, to = np.unravel_index(int(distance.argmin()), distance.shape)
        line = np.concatenate((line[: at + 1], outline[to:], outline[: to + 1], line[at:]))
    return line


def outline_norm(region: Region, size_hw: tuple[int, int]) -> Points:
    """Return the outline for a label row: one closed line (K, 2), x and y divided by the image's width and height."""
    return join_outlines(trace(region)) / (size_hw[1], size_hw[0])
