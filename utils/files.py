"""Files that are written whole or not at all, and the numbered folders that runs write into."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent


def find_shipped(path: str | Path, folder: str) -> Path | None:
    """Return `path` if it is a file, else the repository's own file at that path or of that name in `folder`; None without either."""
    return next((place for place in (Path(path), REPOSITORY / path, REPOSITORY / folder / path) if place.is_file()), None)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file beside `path`; on success it is synced and renamed over `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: object) -> None:
    """Replace `path` by `content` as JSON, atomically."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_yaml(path: str | Path, content: object) -> None:
    """Replace `path` by `content` as yaml (key order kept), atomically."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def write_csv(path: str | Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Replace `path` by a table with one header line, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def next_run_dir(project: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Create and return `project/name`, or `project/name2`, `name3`, … where that exists already (unless `exist_ok`)."""
    number = 1
    while True:
        folder = Path(project) / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            number += 1
            continue
        return folder
