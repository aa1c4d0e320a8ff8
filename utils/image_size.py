"""Choose the image size of a run: the given one, that of an exported file, or that of the training."""

from collections.abc import Sequence
from typing import Protocol

from utils.errors import SettingsError

IMAGE_SIZE = 640
"""Size that networks are described at, and used at if neither --img nor the weights give one."""


def size_on_multiple(size: int | Sequence[int], multiple: int) -> tuple[int, int]:
    """Round a size, or a height and width, up to multiples of `multiple`; print a line if that changes it.

    Raises:
        SettingsError: not one or two numbers above 0.
    """
    given = (size,) if isinstance(size, int) else tuple(size)
    if len(given) not in (1, 2) or min(given) < 1:
        raise SettingsError(f"--img {' '.join(map(str, given))}: expected one size, or height and width, in pixels")
    height, width = (-(-side // multiple) * multiple for side in (given[0], given[-1]))
    if (height, width) != (given[0], given[-1]):
        print(
            f"--img {' '.join(map(str, given))}: not a multiple of {multiple}, as the network needs: "
            f"{height} x {width} (height x width) is used"
        )
    return height, width


class SizedNetwork(Protocol):
    """What `Model` and `ExportedNetwork` say about sizes of images.

    Attributes:
        multiple: what the sides of an image must be multiples of.
        trained_size: image size of the training; None where the weights do not say.
        static_hw: the only height and width that a static exported file takes; None for every other network.
    """

    @property
    def multiple(self) -> int: ...

    @property
    def trained_size(self) -> int | None: ...

    @property
    def static_hw(self) -> tuple[int, int] | None: ...


def choose_image_size(asked: int | Sequence[int] | None, network: SizedNetwork) -> tuple[int, int]:
    """Return the height and width for a network's images, multiples of what it needs; print where a default is from.

    Args:
        asked: --img: a size, a height and width, or None where it was not given.
        network: a `Model` or an `ExportedNetwork`.
    Raises:
        SettingsError: not one or two numbers above 0.
    """
    if fixed := network.static_hw:
        if asked is not None and size_on_multiple(asked, network.multiple) != fixed:
            shown = asked if isinstance(asked, int) else " ".join(map(str, asked))
            print(
                f"--img {shown}: does not apply to a static file: "
                f"exactly {fixed[0]} x {fixed[1]} (height x width) is used"
            )
        return fixed
    if asked is None:
        asked = network.trained_size
        reason = (
            "at which the network was trained"
            if asked
            else "since the weights do not say at which size they were trained"
        )
        asked = asked or IMAGE_SIZE
        print(f"image size {asked}, {reason} (--img chooses another)")
    return size_on_multiple(asked, network.multiple)
