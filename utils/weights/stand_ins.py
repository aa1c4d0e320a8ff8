"""Inert objects in place of the classes and functions that a pickled checkpoint names.

`torch.load(weights_only=True)` builds these under the names of the file. None of them imports, runs or copies anything.
"""

import math
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import numpy as np

from utils.wording import shown

EXPECTED = "expected tensors, plain data and layers of YOLOv9 or Ultralytics: not loaded; nothing was run"
MOST_DIMENSIONS = 16
STORAGE_BYTES = {
    **{"torch.DoubleStorage": 8, "torch.FloatStorage": 4, "torch.HalfStorage": 2, "torch.BFloat16Storage": 2},
    **{"torch.LongStorage": 8, "torch.IntStorage": 4, "torch.ShortStorage": 2, "torch.CharStorage": 1},
    **{"torch.ByteStorage": 1, "torch.BoolStorage": 1},
}
"""Kinds of storage that are read, and the bytes of one number."""
DTYPES = {f"torch.{name}" for name in ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64",
                                       "uint8", "bool")}  # fmt: skip
LAYER_MODULES = re.compile(
    r"torch\.nn\.modules\.\w+|models\.(?:yolo|common|experimental)"
    r"|ultralytics\.nn\.(?:tasks|modules(?:\.(?:block|conv|head|transformer|activation|utils))?)"
    r"|ultralytics\.(?:yolo\.)?utils(?:\.(?:loss|tal|ops|torch_utils))?"
)
CLASS_NAME = re.compile(r"_?(?:v\d+)?[A-Z][A-Za-z0-9_]{0,79}")
NAMESPACES = {"argparse.Namespace", "types.SimpleNamespace"}


class RefusedError(ValueError):
    """A file holds something that is not loaded; the caller adds the file's name."""


class StandIn:
    """An object of a class that the file names. `state` has its attributes; constructor arguments are dropped."""

    path: ClassVar[str]
    name: ClassVar[str]
    state: dict[Any, Any]

    def __new__(cls, *_: Any) -> "StandIn":
        made = object.__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.state = state  # no copy: the file may give one mapping to thousands of objects


class StoredDtype:
    """A number format of numpy: integers, floats and booleans only."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iuf][248]|[iu]1", code):
            raise RefusedError(f"numpy number format {shown(code)}: expected plain numbers: not loaded")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        """Take the byte order from (version, order, subtype, names, fields, ...)."""
        plain = isinstance(state, tuple) and len(state) >= 5 and state[2:5] == (None, None, None)
        if not plain or state[1] not in ("<", ">", "=", "|"):
            raise RefusedError("structured numpy number format: expected plain numbers: not loaded")
        self.order = state[1]


class StoredArray:
    """An array of numpy; `values` is None until BUILD sets it."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        """Take the values from (version, shape, dtype, column-major, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[1], tuple):
            raise RefusedError("numpy array of an unknown form: expected plain numbers: not loaded")
        if len(state[1]) > MOST_DIMENSIONS or any(type(size) is not int or size < 0 for size in state[1]):
            raise RefusedError("numpy array without a shape: expected plain numbers: not loaded")
        flat = decode_numbers(state[2], state[4], math.prod(state[1]))
        self.values = flat.reshape(state[1], order="F" if state[3] else "C")


def decode_numbers(dtype: Any, content: Any, count: int) -> np.ndarray:
    """Return `count` numbers from bytes.

    Raises:
        RefusedError: the bytes do not fit.
    """
    if not isinstance(dtype, StoredDtype) or not isinstance(content, bytes):
        raise RefusedError("numpy array of objects: expected plain numbers: not loaded")
    real = np.dtype(dtype.order.replace("|", "=") + dtype.code)
    if len(content) != count * real.itemsize:
        raise RefusedError(f"declares {shown(count)} numpy numbers in {len(content)} bytes: damaged or forged")
    return np.frombuffer(content, real)


def make_scalar(dtype: Any = None, content: Any = b"", *_: Any) -> Any:
    """Return the number of numpy's scalar(dtype, bytes) as Python's."""
    return decode_numbers(dtype, content, 1)[0].item()


def posix_path(*parts: str) -> str:
    """Return a path as text."""
    return str(PurePosixPath(*parts))


def windows_path(*parts: str) -> str:
    """Return a path of Windows as text."""
    return str(PureWindowsPath(*parts))


REPLACED: dict[str, Any] = {
    "numpy.dtype": StoredDtype,
    "numpy.ndarray": type("NumpyArrayName", (), {}),
    "builtins.frozenset": frozenset,
    **{f"numpy.{core}.multiarray.scalar": make_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": StoredArray for core in ("core", "_core")},
    **{f"{module}.{name}": posix_path for module in ("pathlib", "pathlib._local")
       for name in ("PosixPath", "PurePosixPath", "Path")},
    **{f"{module}.{name}": windows_path for module in ("pathlib", "pathlib._local")
       for name in ("WindowsPath", "PureWindowsPath")},
}  # fmt: skip
"""Replacements for names that torch's unpickler does not know itself."""


def is_layer(path: str) -> bool:
    """Tell whether a name is that of a layer, model or namespace, which a StandIn replaces."""
    module, _, name = path.rpartition(".")
    is_class = CLASS_NAME.fullmatch(name) is not None and LAYER_MODULES.fullmatch(module) is not None
    return is_class or path in NAMESPACES


def stand_in_class(path: str) -> type[StandIn]:
    """Return a new class that stands for the class `path`."""
    name = path.rpartition(".")[2]
    return type(name, (StandIn,), {"path": path, "name": name})
