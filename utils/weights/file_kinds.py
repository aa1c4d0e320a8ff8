"""What a file is that was given for weights and is none: the sentence that tells the user."""

import io
import re
from pathlib import Path
from typing import Any

from utils.weights.safe_pickle import LARGEST_PICKLE, read_pickle
from utils.weights.stand_ins import RefusedError, UnknownNameError

STARTS: list[tuple[bytes, str]] = [
    *(
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"\x89PNG\r\n", "a PNG image"),
        (b"GIF8", "a GIF image"),
        (b"BM", "a BMP image"),
    ),
    *((b"II*\0", "a TIFF image"), (b"MM\0*", "a TIFF image"), (b"%PDF", "a PDF document")),
    *(
        (b"\x1f\x8b", "a gzip archive"),
        (b"7z\xbc\xaf", "a 7z archive"),
        (b"Rar!", "a RAR archive"),
        (b"BZh", "a bzip2 archive"),
    ),
    *(
        (b"\xfd7zXZ", "an xz archive"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a numpy array"),
        (b"PK\x05\x06", "an empty zip archive"),
    ),
]
"""First bytes of files that are given for weights by mistake."""
WEB_PAGE = re.compile(
    rb"\s*(?:<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
TEXT_CONTROLS = set(range(32)) - {9, 10, 12, 13, 27}


def describe_file(path: Path) -> str:
    """Return what a file is that holds no weights, and what was expected.

    Raises:
        RefusedError: it is a bare pickle that names something which is not loaded.
    """
    with path.open("rb") as file:
        start = file.read(1024)
        if not start:
            return "is empty: expected weights; the download or copy may have failed"
        file.seek(257)
        is_tar = file.read(5) == b"ustar"
    if WEB_PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        return "looks like a web page, probably a download or login page: expected weights; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file that it stands for: expected weights; run 'git lfs pull'"
    for first, kind in STARTS:
        if start.startswith(first):
            return f"is {kind}: expected weights (.pt or .safetensors)"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "is a WebP image: expected weights (.pt or .safetensors)"
    if is_tar:
        return (
            "is a tar archive: expected weights; unpack it, or save files of torch before 0.4 again with a newer torch"
        )
    if could_be_pickle(path, start):
        return describe_pickle(path)
    if is_text(start):
        return "is text: expected weights (.pt or .safetensors)"
    return "is no weights file, or only a part of one: expected what train.py wrote, a state dict, safetensors or a YOLOv9 or Ultralytics checkpoint"


def is_text(start: bytes) -> bool:
    """Whether bytes are text in UTF-8; the last letter may be cut off."""
    try:
        start[: len(start) - 3 if len(start) > 3 else None].decode()
    except UnicodeDecodeError:
        return False
    return not TEXT_CONTROLS & set(start)


def could_be_pickle(path: Path, start: bytes) -> bool:
    """Whether a file starts and ends as a pickle does: protocol 2 and newer, or the text form of protocol 0."""
    if path.stat().st_size > LARGEST_PICKLE:
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16))
        end = file.read().rstrip()
    return (start[:1] == b"\x80" and start[1:2] <= b"\x05") or (start[:1] in b"c(]}" and end.endswith(b"."))


def describe_pickle(path: Path) -> str:
    """Say that a file is a bare pickle; it is read for the names in it only.

    Raises:
        RefusedError: it names something that is not loaded.
    """

    def no_storage(_: Any) -> Any:
        raise RefusedError("a storage outside of an archive")

    try:
        read_pickle(io.BytesIO(path.read_bytes()), no_storage)
    except UnknownNameError:
        raise
    except RefusedError as error:
        return f"is a pickle, or a part of one, but none that torch.save wrote ({error}): expected weights: not loaded"
    return "is a pickle, but none that torch.save wrote: expected weights: not loaded; save them with torch.save"
