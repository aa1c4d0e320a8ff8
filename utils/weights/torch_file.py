"""Files that torch.save wrote, opened without torch.load: the zip archives since torch 1.6 and the plain files before."""

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from utils.weights.safe_pickle import LARGEST_PICKLE, read_pickle
from utils.weights.stand_ins import RefusedError, Storage, StorageClass, shown

LARGEST_DIRECTORY = 8 * 2**20
"""Bytes of an archive's table of contents; a large checkpoint with its optimizer takes 1 MiB."""
COPIES_ALLOWED = 2
"""Copied-out parts of shared storages may take this many times the file's size."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\n" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001
ZIP_START = b"PK\x03\x04"


class Records:
    """Base of both kinds: what is copied out of the file is counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = COPIES_ALLOWED * path.stat().st_size

    def claim(self, num_bytes: int) -> None:
        """Count bytes copied out of a storage.

        Raises:
            RefusedError: more than a file of this size can mean.
        """
        self.left -= num_bytes
        if self.left < 0:
            raise RefusedError(
                "its tensors overlap so much that they take a multiple of the file's size: forged; not loaded"
            )


class ZipRecords(Records):
    """The records of a zip archive: `<root>/data.pkl`, and `<root>/data/<key>` for each storage."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        check_directory(path)
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise RefusedError(
                f"damaged or truncated zip archive ({shown(str(error))}): expected a whole checkpoint; copy it again"
            ) from error
        if any(name.endswith("/constants.pkl") for name in self.archive.namelist()):
            raise RefusedError(
                "is a TorchScript archive: expected weights; with a name ending in .torchscript, detect.py and val.py take it"
            )
        self.entries = self.checked_entries()
        roots = [
            name.removesuffix("/data.pkl")
            for name in self.entries
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1:
            what = "an ordinary zip archive" if not roots else f"a zip archive with {len(roots)} checkpoints"
            raise RefusedError(
                f"is {what}: expected a checkpoint that torch.save wrote; unpack it if there is one inside"
            )
        self.root = roots[0]
        order = self.entries.get(f"{self.root}/byteorder")
        if order and (order.file_size > 16 or self.read_entry(order).strip() != b"little"):
            raise RefusedError("was written on a big-endian machine: expected little-endian numbers")

    def checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        """Return the archive's entries by name.

        Raises:
            RefusedError: compressed, encrypted, overlapping or double entries; torch writes none of them.
        """
        entries: dict[str, zipfile.ZipInfo] = {}
        end = 0
        for entry in sorted(self.archive.infolist(), key=lambda entry: entry.header_offset):
            name = shown(entry.filename)
            if entry.filename in entries:
                raise RefusedError(f"holds the entry {name} twice: forged or damaged; not loaded")
            if (
                entry.compress_type != zipfile.ZIP_STORED
                or entry.file_size != entry.compress_size
                or entry.flag_bits & 1
            ):
                kind = (
                    "an ordinary zip archive: its"
                    if not any(e.filename.endswith("data.pkl") for e in self.archive.infolist())
                    else "forged: the"
                )
                raise RefusedError(
                    f"is {kind} entry {name} is compressed or encrypted: expected a checkpoint that torch.save wrote"
                )
            if entry.header_offset < end:
                raise RefusedError(f"holds the entry {name} inside another one: forged or damaged; not loaded")
            end = entry.header_offset + 30 + len(entry.filename.encode()) + entry.file_size
            entries[entry.filename] = entry
        if end > self.path.stat().st_size:
            raise RefusedError("damaged or truncated zip archive: expected a whole checkpoint; copy it again")
        return entries

    def read_entry(self, entry: zipfile.ZipInfo) -> bytes:
        """Return one entry's bytes, its checksum verified."""
        try:
            return self.archive.read(entry)
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, struct.error) as error:
            raise RefusedError(f"damaged: {shown(str(error))}: expected a whole checkpoint; copy it again") from error

    def entry(self, key: str) -> zipfile.ZipInfo:
        """Return the entry of a storage."""
        name = f"{self.root}/data/{key}"
        if not (key.isascii() and key.isdigit()) or name not in self.entries:
            raise RefusedError(f"names the storage {shown(key)}, which it does not hold: damaged or forged; not loaded")
        return self.entries[name]

    def size(self, key: str) -> int:
        """Bytes of a storage."""
        return self.entry(key).file_size

    def read(self, key: str) -> bytearray:
        """The bytes of a storage."""
        return bytearray(self.read_entry(self.entry(key)))

    def load(self) -> Any:
        """Return what the archive describes, tensors unread."""
        entry = self.entries[f"{self.root}/data.pkl"]
        if entry.file_size > LARGEST_PICKLE:
            raise RefusedError(
                f"its pickled part is larger than {LARGEST_PICKLE // 2**20} MiB: damaged or forged; not loaded"
            )
        return read_pickle(io.BytesIO(self.read_entry(entry)), StorageFinder(self).find)


class StorageFinder:
    """Turns persistent ids ("storage", kind, key, device, numel[, view]) into storages, one for each key and kind."""

    def __init__(self, records: Any) -> None:
        self.records = records
        self.storages: dict[tuple[str, Any, int], Storage] = {}

    def find(self, identity: Any) -> Any:
        """Return the storage that a persistent id names.

        Raises:
            RefusedError: the id is none, or declares more numbers than there are.
        """
        if isinstance(identity, tuple) and len(identity) >= 2 and identity[0] == "module":
            return identity[1]  # torch before 1.6 kept a layer's source text beside its class
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise RefusedError("refers to something outside of itself: expected its own storages only: not loaded")
        _, kind, key, _, numel = identity[:5]
        if (
            not isinstance(kind, StorageClass)
            or not isinstance(key, str)
            or type(numel) is not int
            or not 0 <= numel < 2**62
        ):
            raise RefusedError("describes a storage in an unknown way: damaged or forged; not loaded")
        if len(identity) == 6 and identity[5] is not None:
            raise RefusedError(
                "holds a view of a storage as torch before 0.4 wrote them: expected a newer file; save it again"
            )
        needed, there = numel * kind.dtype.itemsize, self.records.size(key)
        if needed > there:
            raise RefusedError(
                f"declares {numel} numbers ({needed} bytes) in a storage of {there} bytes: damaged or forged; not loaded"
            )
        return self.storages.setdefault((key, kind.dtype, numel), Storage(self.records, key, kind.dtype, numel))


class LegacyRecords(Records):
    """A file of torch before 1.6: five pickles one after another, then the storages with their lengths before them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.file_size = path.stat().st_size
        self.places: dict[str, tuple[int, int]] = {}

    def size(self, key: str) -> int:
        """Bytes that a storage can have: the true number follows when the file was read through."""
        return self.places[key][1] if key in self.places else self.file_size

    def read(self, key: str) -> bytearray:
        """The bytes of a storage."""
        start, size = self.places[key]
        with self.path.open("rb") as file:
            file.seek(start)
            return bytearray(file.read(size))

    def load(self) -> Any:
        """Return what the file describes, tensors unread."""
        with self.path.open("rb") as file:
            stream = io.BytesIO(file.read(LARGEST_PICKLE))
            finder = StorageFinder(self)
            if read_pickle(stream, finder.find) != LEGACY_MAGIC or read_pickle(stream, finder.find) != LEGACY_PROTOCOL:
                raise RefusedError("is a pickle, but none that torch.save wrote: expected weights: not loaded")
            read_pickle(stream, finder.find)
            content = read_pickle(stream, finder.find)
            keys = read_pickle(stream, finder.find)
            file.seek(stream.tell())
            self.find_places(file, keys, finder)
        return content

    def find_places(self, file: BinaryIO, keys: Any, finder: StorageFinder) -> None:
        """Note where each storage lies, and check that every one is there."""
        item_sizes = {key: dtype.itemsize for key, dtype, _ in finder.storages}
        for key in keys if isinstance(keys, list) else []:
            header = file.read(8)
            if not isinstance(key, str) or key not in item_sizes or len(header) < 8:
                raise RefusedError("truncated or damaged: expected a whole checkpoint; copy it again")
            size = struct.unpack("<q", header)[0] * item_sizes[key]
            start = file.tell()
            if not 0 <= size <= self.file_size - start:
                raise RefusedError(
                    "truncated: its last tensors are missing: expected a whole checkpoint; copy it again"
                )
            self.places[key] = (start, size)
            file.seek(start + size)
        for key, dtype, numel in finder.storages:
            if key not in self.places or self.places[key][1] < numel * dtype.itemsize:
                raise RefusedError(
                    "truncated: some of its tensors are missing: expected a whole checkpoint; copy it again"
                )


def check_directory(path: Path) -> None:
    """Refuse a zip archive whose end is missing, or whose table of contents is too large to be read.

    Raises:
        RefusedError: with the reason.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2**16 - 128))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < 22:
        raise RefusedError(
            "truncated: the end of the zip archive is missing: expected a whole checkpoint; copy it again"
        )
    directory = struct.unpack("<L", tail[place + 12 : place + 16])[0]
    if directory == 0xFFFFFFFF:
        wide = tail.rfind(b"PK\x06\x06", 0, place)
        directory = (
            struct.unpack("<Q", tail[wide + 40 : wide + 48])[0] if wide >= 0 and len(tail) - wide >= 48 else math.inf
        )
    if directory > LARGEST_DIRECTORY:
        raise RefusedError(
            f"a zip archive whose table of contents takes {directory} bytes: expected a checkpoint that torch.save wrote"
        )


def is_torch_file(start: bytes) -> bool:
    """Whether a file's first bytes are those of a zip archive or of a pickle that torch.save wrote."""
    return start.startswith((ZIP_START, LEGACY_START))


def load_torch_file(path: Path) -> Any:
    """Return what a file of torch.save describes: plain data, StandIns for layers, StoredTensors not yet read.

    Raises:
        RefusedError: it holds something else, or is damaged.
    """
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
    return (ZipRecords(path) if start.startswith(ZIP_START) else LegacyRecords(path)).load()
