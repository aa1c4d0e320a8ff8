"""Read yaml files, find the files shipped with the repository, write files atomically, create the folder of a run."""

import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


class YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads 1e-3, 1E5 and 1.5e3 as numbers.

    Differs: PyYAML follows YAML 1.1, where an exponent needs a point and a sign, and takes them for text.
    """


class YamlDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes a text that `YamlLoader` would read as a number."""


EXPONENTS = "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
YamlLoader.add_implicit_resolver(*EXPONENTS)
YamlDumper.add_implicit_resolver(*EXPONENTS)


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = YamlLoader) -> Any:
    """Return the content of a yaml text.

    Raises:
        yaml.YAMLError: the text is no yaml.
    """
    return yaml.load(text, loader)


def yaml_text(content: object, **settings: Any) -> str:
    """Return `content` as yaml that `parse_yaml` reads back; key order is kept.

    Args:
        settings: of `yaml.dump`, such as width.
    """
    return yaml.dump(content, Dumper=YamlDumper, sort_keys=False, allow_unicode=True, **settings)


def read_yaml(
    path: Path,
    error: type[UserError],
    name: str | Path | None = None,
    loader: type[yaml.SafeLoader] = YamlLoader,
) -> Any:
    """Return the content of a yaml file.

    Args:
        error: class of the error to raise.
        name: name of the file in messages; its path by default.
        loader: yaml.SafeLoader leaves 1e3 as text, for files of names.
    Raises:
        UserError: the file cannot be read or is no yaml; of the class `error`.
    """
    name = name or path
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        text = getattr(problem, "problem", None) or " ".join(str(problem).split())
        raise error(f"{name}: {where}not valid yaml: {text}") from problem
    except UnicodeDecodeError as problem:
        raise error(
            f"{name}: not valid yaml: expected text in UTF-8 ({problem.reason} at byte {problem.start})"
        ) from problem
    except OSError as problem:
        raise error(f"{name}: cannot be read: {problem.strerror}: expected a yaml file") from problem


def find_shipped(path: str | Path, folder: str) -> Path | None:
    """Find a file at `path`, else at that path in the repository, else in its `folder`; None if there is none."""
    return next(
        (place for place in (Path(path), REPOSITORY / path, REPOSITORY / folder / path) if place.is_file()), None
    )


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file beside `path`; rename it to `path` on success, else remove it."""
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
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
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
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))  # for file names that are no Unicode


def write_yaml(path: str | Path, content: object) -> None:
    """Replace `path` by `content` as yaml (key order kept), atomically."""
    write_text(path, yaml_text(content))


def write_csv(path: str | Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Replace `path` by a table with one header line, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def copy_file(source: Path, target: Path) -> None:
    """Replace `target` by the content of `source`: a second name of it where the file system has those, else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # no hard links here
        shutil.copyfile(source, target)


def next_run_dir(project: str | Path, name: str, exist_ok: bool = False) -> Path:
    """Create and return the folder `project/name`; if it exists, `project/name2` and so on, unless `exist_ok`."""
    number = 1
    while True:
        folder = Path(project) / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            number += 1
            continue
        return folder
