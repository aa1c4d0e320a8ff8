"""Paths as users write them: in data yamls and in lists of images."""

import codecs
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.errors import DataError
from utils.wording import shown

COMMENT = "#"


def named_path(folder: Path, text: str) -> Path:
    """Return the absolute path of `text` below `folder`, with every link kept as it is named.

    `~` and `~user` become home folders where they are known. `..` after a link leads to the folder above the link's
    target, as it does for the system.
    """
    path = Path(os.getcwd(), folder, os.path.expanduser(text))
    if ".." not in path.parts:
        return path
    above = Path(path.anchor)
    for part in path.parts[1:]:
        if part == "..":
            above = Path(os.path.realpath(above)).parent if os.path.islink(above) else above.parent
        else:
            above = above / part
    return above


def exists(path: str | Path) -> bool:
    """Tell whether there is a file or folder; a name that no file can have does not exist."""
    return os.path.exists(path)  # `Path.exists` raises an error where a name is too long


def suffix_of(path: Path) -> str:
    """Return a path's suffix in lower case; of a link without one, that of the file that it leads to."""
    file = Path(os.path.realpath(path)) if not path.suffix and os.path.islink(path) else path
    return file.suffix.lower()


def spellings(text: str) -> list[str]:
    r"""Return a path as written, and then with slashes where it has the backslashes of Windows."""
    return [text, text.replace("\\", "/")] if "\\" in text and os.sep != "\\" else [text]


def printable(path: object) -> str:
    """Return a path, or a line with paths, as the screen can show it: "?" for control characters and broken text."""
    return "".join("?" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in str(path))


def read_list(path: Path) -> list[tuple[int, str]]:
    """Return (line number, text) of each line of a list that is neither empty nor a comment (`# ...`).

    Raises:
        DataError: the file cannot be read, or is no text in UTF-8, or in UTF-16 with a byte-order mark.
    """
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = content.decode("utf-16" if utf16 else "utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}: expected one image path per line") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not a text list: expected one image path per line in UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    numbered = enumerate(map(str.strip, lines), 1)
    return [(number, line) for number, line in numbered if line and not line.startswith(COMMENT)]


def readings(line: str) -> Iterator[str]:
    """Return what a line of a list may mean: as it stands, with slashes, and without a comment and quotes."""
    yield from spellings(line)
    bare = line.split(f" {COMMENT}")[0].split(f"\t{COMMENT}")[0].strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        bare = bare[1:-1].strip()
    if bare and bare != line:
        yield from spellings(bare)


def list_folders(path: Path) -> tuple[Path, ...]:
    """Return the folder of a list, and that of the list which a link leads to."""
    return tuple(dict.fromkeys((named_path(path.parent, ""), Path(os.path.realpath(path)).parent)))


def find_listed(line: str, folders: Iterable[Path]) -> tuple[Path, Path] | None:
    """Return the file that a line of a list names and the folder that it was found from; None if there is none."""
    for folder in folders:
        for text in readings(line):
            path = named_path(folder, text)
            if os.path.isfile(path):
                return path, folder
    return None


def missing_home(text: str) -> str:
    """Return a remark on a path that begins with `~` where no such home folder is known; "" for any other path."""
    name = text.replace("\\", "/").partition("/")[0]
    if not name.startswith("~") or os.path.expanduser(name) != name:
        return ""
    return f"; this computer knows no home folder {shown(name)}"
