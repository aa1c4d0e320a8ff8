"""From a region back to its outline: traced along the edges of its pixels, and joined into one closed line where it has parts or holes."""

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.geometry.region import Region

Points = NDArray[np.float64]


def trace(region: Region) -> list[list[Points]]:
    """Return a region's pieces, each as its outer outline and then those of its holes, (K, 2) x, y in the image, the largest first.

    The lines run along the edges of the pixels (but cut the inner corners of a pixel), so filling them gives the region again.
    Outer outlines and holes run round in opposite senses.
    """
    if not region.mask.any():
        return []
    height, width = region.mask.shape
    lattice = np.zeros(
        (2 * height + 1, 2 * width + 1), np.uint8
    )  # pixels at odd places, their edges and corners at even ones
    lattice[1::2, 1::2] = region.mask
    lattice = cv2.dilate(lattice, np.ones((3, 3), np.uint8))
    contours, tree = cv2.findContours(lattice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corner = np.array((region.left, region.top), np.float64)
    outlines = [contour.reshape(-1, 2) / 2 + corner for contour in contours]
    return nested(outlines, tree)


def nested(outlines: list[Points], tree: NDArray[np.int32]) -> list[list[Points]]:
    """Return the outlines that cv2.findContours found with RETR_CCOMP piece by piece, the largest first, holes after their piece."""
    parents = tree[0, :, 3].tolist()
    pieces = {number: [outlines[number]] for number, parent in enumerate(parents) if parent < 0}
    for number, parent in enumerate(parents):
        if parent >= 0:
            pieces[parent].append(outlines[number])
    return sorted(pieces.values(), key=lambda piece: -np.ptp(piece[0], axis=0).prod())


def join_outlines(pieces: list[list[Points]]) -> Points:
    """Return one closed line (K, 2) around everything: each further outline is reached by a seam and left by the same one.

    Args:
        pieces: as `trace` gives them; no piece gives no points.
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
    """Return a region's outline as a label row holds it: one closed line (K, 2), in parts of the image's width and height."""
    return join_outlines(trace(region)) / (size_hw[1], size_hw[0])
