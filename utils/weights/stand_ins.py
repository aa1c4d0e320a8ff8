"""What a pickled checkpoint may name, and the inert things that are built for it: nothing named there is ever imported or called.

`find_global` is the one table. Layers become `StandIn`s: objects that remember their class's name and hold their attributes as
plain data. Tensors become `StoredTensor`s, checked against the bytes that are really there and read only when asked for.
"""

import codecs
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from utils.wording import shown

EXPECTED = (
    "expected only tensors, plain data and the layers of YOLOv9 or Ultralytics checkpoints: not loaded; nothing was run"
)
MOST_DIMENSIONS = 16


class RefusedError(ValueError):
    """What a file holds that is not loaded; the caller adds the file's name."""


class UnknownNameError(RefusedError):
    """A file names something that is not in the table of what checkpoints need."""


# --- layers


@dataclass(frozen=True, eq=False)
class StandInClass:
    """The name of a class that is not here; compared and hashed by identity."""

    path: str

    @property
    def name(self) -> str:
        """The class's own name, without its module."""
        return self.path.rpartition(".")[2]


@dataclass(eq=False)
class StandIn:
    """An object of a class that is not here: its attributes are data in `state`, never attributes of ours."""

    kind: StandInClass
    arguments: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict, repr=False)


# --- tensors


class Records(Protocol):
    """Where a file keeps the numbers of its tensors."""

    def size(self, key: str) -> int:
        """Bytes that are there for a storage; RefusedError where there is no such storage."""

    def read(self, key: str) -> bytearray:
        """Those bytes."""

    def claim(self, num_bytes: int) -> None:
        """Count bytes that are copied out of a storage; RefusedError above what a file of this size can mean."""


@dataclass(eq=False)
class Storage:
    """A flat run of numbers in a file, read once."""

    records: Records
    key: str
    dtype: torch.dtype
    numel: int
    flat: Tensor | None = field(default=None, repr=False)
    views: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)

    def read(self) -> Tensor:
        """Return all numbers, (numel,)."""
        if self.flat is None:
            if not self.numel:
                self.flat = torch.empty(0, dtype=self.dtype)
            elif self.dtype == torch.bool:  # a byte other than 0 and 1 is no truth value
                self.flat = torch.frombuffer(self.records.read(self.key), dtype=torch.uint8, count=self.numel) != 0
            else:
                self.flat = torch.frombuffer(self.records.read(self.key), dtype=self.dtype, count=self.numel)
        return self.flat


@dataclass(eq=False)
class StoredTensor:
    """A view of a storage that is known to lie inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """Return the values, contiguous; the same tensor for the same view."""
        place = (self.offset, self.shape, self.stride)
        if place not in self.storage.views:
            flat = self.storage.read()
            view = flat.as_strided(self.shape, self.stride, self.offset) if self.numel else flat.new_empty(self.shape)
            if self.numel != self.storage.numel or not view.is_contiguous():
                self.storage.records.claim(self.numel * flat.element_size())
                view = view.clone(memory_format=torch.contiguous_format)
            self.storage.views[place] = view
        return self.storage.views[place]


@dataclass(frozen=True, eq=False)
class StorageClass:
    """The name of a kind of storage, such as torch.HalfStorage."""

    dtype: torch.dtype


def whole_numbers(value: object, what: str) -> tuple[int, ...]:
    """Return a tensor's shape or strides.

    Raises:
        RefusedError: not a short row of numbers from 0 to 2^62.
    """
    if not isinstance(value, tuple | list) or len(value) > MOST_DIMENSIONS:
        raise RefusedError(f"a tensor's {what} is no row of at most {MOST_DIMENSIONS} numbers: {EXPECTED}")
    if any(type(number) is not int or not 0 <= number < 2**62 for number in value):
        raise RefusedError(f"a tensor's {what} holds something else than whole numbers of 0 or more: {EXPECTED}")
    return tuple(value)


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    """Stand in for torch._utils._rebuild_tensor_v2, before any memory is taken.

    Raises:
        RefusedError: the view does not lie in the storage, or repeats elements (more of them than the storage has).
    """
    if not isinstance(storage, Storage):
        raise RefusedError(f"a tensor without a storage: {EXPECTED}")
    if len(rest) > 2 and rest[2]:
        raise RefusedError(f"a tensor with special flags (conjugate or negative view): {EXPECTED}")
    (offset,), shape, stride = (
        whole_numbers([offset], "offset"),
        whole_numbers(shape, "shape"),
        whole_numbers(stride, "stride"),
    )
    if len(shape) != len(stride):
        raise RefusedError(f"a tensor of {len(shape)} dimensions with {len(stride)} strides: {EXPECTED}")
    numel = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if numel > storage.numel or (numel and last >= storage.numel):
        size = " x ".join(map(str, shape))
        raise RefusedError(
            f"declares a tensor of {shown(size)} numbers where the file has {storage.numel}: damaged or forged; not loaded"
        )
    return StoredTensor(storage, offset, shape, stride)


def rebuild_parameter(data: Any, *_: Any) -> Any:
    """Stand in for torch._utils._rebuild_parameter: the tensor itself."""
    return data


# --- numpy


@dataclass(eq=False)
class StoredDtype:
    """A plain number format of numpy."""

    code: str
    order: str = "="

    def real(self) -> np.dtype:
        """The number format itself; the code was checked when this was made."""
        return np.dtype(self.order.replace("|", "=") + self.code)


@dataclass(eq=False)
class StoredArray:
    """An array of numpy; None until its state came."""

    values: np.ndarray | None = None


def make_dtype(code: Any, *_: Any) -> StoredDtype:
    """Stand in for numpy.dtype, for whole and floating numbers and truth values only."""
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iuf][248]|[iu]1", code):
        raise RefusedError(f"names the numpy number format {shown(code)}: expected plain numbers: not loaded")
    return StoredDtype(code)


def set_dtype_state(dtype: StoredDtype, state: Any) -> None:
    """Take a dtype's byte order from (version, order, subtype, names, fields, …)."""
    if (
        not isinstance(state, tuple)
        or len(state) < 5
        or state[1] not in ("<", ">", "=", "|")
        or state[2:5] != (None, None, None)
    ):
        raise RefusedError("holds a structured numpy number format: expected plain numbers: not loaded")
    dtype.order = state[1]


def decode_numbers(dtype: Any, content: Any, count: int) -> np.ndarray:
    """Return `count` numbers from bytes; RefusedError where there are more or fewer bytes."""
    if not isinstance(dtype, StoredDtype) or not isinstance(content, bytes):
        raise RefusedError("holds a numpy array of objects: expected plain numbers: not loaded")
    real = dtype.real()
    if len(content) != count * real.itemsize:
        raise RefusedError(
            f"declares {shown(count)} numpy numbers in {len(content)} bytes: damaged or forged; not loaded"
        )
    return np.frombuffer(content, real)


def make_scalar(dtype: Any = None, content: Any = b"", *_: Any) -> Any:
    """Stand in for numpy's scalar(dtype, bytes): the number as Python's."""
    return decode_numbers(dtype, content, 1)[0].item()


def make_array(*_: Any) -> StoredArray:
    """Stand in for numpy's _reconstruct(ndarray, (0,), b"b"): an array without values yet."""
    return StoredArray()


def set_array_state(array: StoredArray, state: Any) -> None:
    """Take an array's values from (version, shape, dtype, column-major, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise RefusedError("holds a numpy array of an unknown form: expected plain numbers: not loaded")
    shape = whole_numbers(state[1], "shape")
    flat = decode_numbers(state[2], state[4], math.prod(shape))
    array.values = flat.reshape(shape, order="F" if state[3] else "C")


# --- plain data


def encode(text: Any = "", encoding: Any = "", *_: Any) -> bytes:
    """Stand in for _codecs.encode, which is how bytes are written in protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"asks for the encoding {shown(encoding)}: expected latin1: not loaded")
    return codecs.encode(text, "latin1")


def is_key(value: Any) -> bool:
    """Whether something may be a key: what hashes in constant time, and cannot be forged to collide.

    Nested tuples take exponential time to hash; whole numbers beyond 2^60 can be chosen to share one hash.
    """
    if type(value) is int:
        return abs(value) < 2**60
    if type(value) is tuple:
        return len(value) <= MOST_DIMENSIONS and all(type(item) is not tuple and is_key(item) for item in value)
    return value is None or type(value) in (str, bytes, bool, float) or isinstance(value, StandIn | StandInClass)


def check_key(value: Any) -> Any:
    """Return a key; RefusedError where it is not `is_key`."""
    if not is_key(value):
        raise RefusedError(f"holds a key of type {type(value).__name__}: expected text or numbers: not loaded")
    return value


def make_set(items: Any = ()) -> set[Any]:
    """Stand in for set and frozenset."""
    if not isinstance(items, list | tuple | set):
        raise RefusedError(f"holds a set of a {type(items).__name__}: {EXPECTED}")
    return {check_key(item) for item in items}


def make_dict(items: Any = ()) -> dict[Any, Any]:
    """Stand in for dict and OrderedDict, filled now or by later instructions."""
    if not isinstance(items, list | tuple) or any(
        not isinstance(pair, list | tuple) or len(pair) != 2 for pair in items
    ):
        raise RefusedError(f"holds a mapping that is not made of pairs: {EXPECTED}")
    return {check_key(key): value for key, value in items}


def make_size(items: Any = ()) -> tuple[int, ...]:
    """Stand in for torch.Size."""
    return whole_numbers(items, "shape")


def make_device(kind: Any = "cpu", index: Any = None) -> str:
    """Stand in for torch.device: its name."""
    return shown(kind) if index is None else f"{shown(kind)}:{shown(index)}"


def path_maker(flavour: type[PurePosixPath | PureWindowsPath]) -> Callable[..., str]:
    """Return a stand-in for a path class: the path as text."""

    def make(*parts: Any) -> str:
        if not all(isinstance(part, str) for part in parts):
            raise RefusedError(f"holds a path that is not made of text: {EXPECTED}")
        return str(flavour(*parts))

    return make


# --- the table


@dataclass(frozen=True, eq=False)
class Maker:
    """A function of ours that takes the place of what a file names, when the file calls it."""

    path: str
    make: Callable[..., Any]


STORAGES = {
    **{
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Double": torch.float64,
        "Bool": torch.bool,
    },
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
}
MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch.Size": make_size,
    "torch.device": make_device,
    "collections.OrderedDict": make_dict,
    "_codecs.encode": encode,
    "numpy.dtype": make_dtype,
    **{f"{module}.{name}": make_set for module in ("__builtin__", "builtins") for name in ("set", "frozenset")},
    **{f"{module}.dict": make_dict for module in ("__builtin__", "builtins")},
    **{f"numpy.{core}.multiarray.scalar": make_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": make_array for core in ("core", "_core")},
    **{
        f"{module}.{name}": path_maker(PurePosixPath)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "Path")
    },
    **{
        f"{module}.{name}": path_maker(PureWindowsPath)
        for module in ("pathlib", "pathlib._local")
        for name in ("WindowsPath", "PureWindowsPath")
    },
}
"""Functions and classes of the originals' files by full name, and what is called in their place."""

DTYPES = {f"torch.{dtype}".replace("torch.torch.", "torch."): str(dtype) for dtype in STORAGES.values()}
NAMES_ONLY = ("numpy.ndarray",)
"""What a file may name as an argument, but not make."""

LAYER_MODULES = re.compile(
    r"torch\.nn\.modules\.\w+|models\.(?:yolo|common|experimental)"
    r"|ultralytics\.nn\.(?:tasks|modules(?:\.(?:block|conv|head|transformer|activation|utils))?)"
    r"|ultralytics\.(?:yolo\.)?utils(?:\.(?:loss|tal|ops|torch_utils))?"
    r"|argparse|types"
)
NAMESPACES = {"argparse.Namespace", "types.SimpleNamespace"}
"""Settings as attributes: the only classes of Python's own that are stood in for."""


def find_global(module: str, name: str, classes: dict[str, StandInClass]) -> Any:
    """Return what stands in for a name of a file.

    Args:
        classes: stand-ins that the file named already; a new one is added.
    Raises:
        RefusedError: the name is none of those that checkpoints need.
    """
    path = f"{module}.{name}"
    if path in MAKERS and "." not in name:
        return Maker(path, MAKERS[path])
    if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in STORAGES:
        return StorageClass(STORAGES[name.removesuffix("Storage")])
    if path in DTYPES:
        return DTYPES[path]
    if path in NAMES_ONLY:
        return StandInClass(path)
    is_class = re.fullmatch(r"_?(?:v\d+)?[A-Z][A-Za-z0-9_]{0,79}", name)
    if (
        is_class
        and LAYER_MODULES.fullmatch(module)
        and (not module.startswith(("argparse", "types")) or path in NAMESPACES)
    ):
        return classes.setdefault(path, StandInClass(path))
    raise UnknownNameError(f"names {shown(path)}: {EXPECTED}")
