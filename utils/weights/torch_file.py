"""Read files of torch.save by `torch.load(weights_only=True)`, after a check of their sizes, checksums and names."""

import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.weights.pickle_scan import LARGEST_PICKLE, Item, PickleScan
from utils.weights.stand_ins import EXPECTED, REPLACED, STORAGE_BYTES, RefusedError, stand_in_class
from utils.wording import first_line, shown

LARGEST_DIRECTORY = 8 * 2**20
"""Bytes of an archive's table of contents; a large checkpoint with its optimizer takes 1 MiB."""
LEGACY_START = b"\x80\x02\x8a\n" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
ZIP_START = b"PK\x03\x04"
WHOLE = "expected a whole checkpoint; copy it again"
FAILURES = (
    *(pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, EOFError, ArithmeticError, struct.error),
)
"""What torch's unpickler raises for malformed files."""


def is_torch_file(start: bytes) -> bool:
    """Tell whether a file's first bytes are those of a zip archive or of a pickle that torch.save wrote."""
    return start.startswith((ZIP_START, LEGACY_START))


def load_torch_file(path: Path) -> Any:
    """Return the content of a file of torch.save: plain data, tensors, StandIns for layers.

    Raises:
        RefusedError: it holds anything else, or is damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP_START
    scan, stream = checked_archive(path) if is_zip else checked_legacy(path)
    names = REPLACED | {name: stand_in_class(name) for name in scan.layers}
    try:
        with torch.serialization.safe_globals([(made, name) for name, made in names.items()]):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except RefusedError:
        raise
    except FAILURES as error:
        raise RefusedError(f"not readable ({shown(first_line(error))}): {EXPECTED}") from error


def checked_archive(path: Path) -> tuple[PickleScan, io.BytesIO]:
    """Check a zip archive.

    Returns:
        The names in its pickle, and a new archive with only the checked parts. torch reads the new one, so that two zip
        readers cannot see two different files.
    """
    check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = checked_entries(archive, path.stat().st_size)
            root = checkpoint_root(entries)
            if f"{root}/byteorder" in entries and archive.read(f"{root}/byteorder") != b"little":
                raise RefusedError("was written on a big-endian machine: expected little-endian numbers")
            if entries[f"{root}/data.pkl"] > LARGEST_PICKLE:
                raise RefusedError(f"its pickle is larger than {LARGEST_PICKLE // 2**20} MiB: damaged or forged")
            content = archive.read(f"{root}/data.pkl")
            scan = PickleScan(lambda key: entries.get(f"{root}/data/{key}") if key.isdecimal() else None)
            scan.run(io.BytesIO(content))
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as copy:
                copy.writestr("archive/data.pkl", content)
                copy.writestr("archive/version", "3\n")
                for key in scan.storages:
                    copy.writestr(f"archive/data/{key}", archive.read(f"{root}/data/{key}"))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, struct.error) as error:
        raise RefusedError(f"damaged or truncated zip archive ({shown(str(error))}): {WHOLE}") from error
    stream.seek(0)
    return scan, stream


def checked_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, int]:
    """Return the size of each entry by name.

    Raises:
        RefusedError: compressed, encrypted, overlapping or double entries (torch writes none of them), or TorchScript.
    """
    if any(name.endswith("/constants.pkl") for name in archive.namelist()):
        raise RefusedError("is a TorchScript archive: expected weights; detect.py and val.py take it as x.torchscript")
    entries: dict[str, int] = {}
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        name = shown(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise RefusedError(f"is a zip archive with a compressed or encrypted entry {name}: {EXPECTED}")
        if entry.filename in entries or entry.header_offset < end:
            raise RefusedError(f"holds the entry {name} twice or inside another one: damaged or forged; not loaded")
        end = entry.header_offset + 30 + len(entry.filename.encode()) + entry.file_size
        entries[entry.filename] = entry.file_size
    if end > file_size:
        raise RefusedError(f"damaged or truncated zip archive: {WHOLE}")
    return entries


def checkpoint_root(entries: dict[str, int]) -> str:
    """Return the folder that holds `data.pkl`.

    Raises:
        RefusedError: none or several.
    """
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise RefusedError(f"is a zip archive with {len(roots)} checkpoints: expected one that torch.save wrote")
    return roots[0]


def check_directory(path: Path) -> None:
    """Refuse a zip archive without an end, or with a table of contents that is too large to read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2**16 - 128))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < 22:
        raise RefusedError(f"truncated: the end of the zip archive is missing: {WHOLE}")
    directory: float = struct.unpack("<L", tail[place + 12 : place + 16])[0]
    if directory == 0xFFFFFFFF:
        wide = tail.rfind(b"PK\x06\x06", 0, place)
        there = wide >= 0 and len(tail) - wide >= 48
        directory = struct.unpack("<Q", tail[wide + 40 : wide + 48])[0] if there else math.inf
    if directory > LARGEST_DIRECTORY:
        raise RefusedError(f"a zip archive whose table of contents takes {directory} bytes: {EXPECTED}")


def checked_legacy(path: Path) -> tuple[PickleScan, io.BytesIO]:
    """Check a file of torch before 1.6: five pickles, then each storage with its length in front."""
    content = path.read_bytes()
    scan = PickleScan(lambda _: len(content))
    head = io.BytesIO(content[:LARGEST_PICKLE])
    keys = [scan.run(head) for _ in range(5)][-1]
    total = sum(numel * STORAGE_BYTES[kind] for kind, numel in scan.storages.values())
    place = head.tell()
    for key in keys.items:
        kind, numel = storage_of(scan, key)
        length = struct.unpack("<q", content[place : place + 8])[0] if place + 8 <= len(content) else -1
        place += 8 + numel * STORAGE_BYTES[kind]
        if length != numel or place > len(content):
            raise RefusedError(f"truncated or damaged: some of its tensors are missing: {WHOLE}")
    if total > len(content) or {key.value for key in keys.items} != set(scan.storages):
        raise RefusedError(f"truncated or damaged: some of its tensors are missing: {WHOLE}")
    return scan, io.BytesIO(content)


def storage_of(scan: PickleScan, key: Item) -> tuple[str, int]:
    """Return the kind and size of a storage that a file of torch before 1.6 lists."""
    if key.kind != "text" or key.value not in scan.storages:
        raise RefusedError(f"lists a storage that it does not use: {WHOLE}")
    return scan.storages[key.value]
