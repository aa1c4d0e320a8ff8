"""A check of a pickle before torch's own unpickler reads it.

torch's unpickler refuses code. It does not bound memory and time: one text may be copied a thousand times, nested
tuples take exponential time to hash, a tensor may declare more numbers than the file has. The check follows the
instructions with sizes and kinds only; it builds nothing.
"""

import gc
import io
import math
import pickletools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from utils.weights.stand_ins import DTYPES, EXPECTED, MOST_DIMENSIONS, REPLACED, STORAGE_BYTES, RefusedError, is_layer
from utils.wording import shown

LARGEST_PICKLE = 32 * 2**20
"""Bytes. yolov9-e with averaged weights and optimizer takes 1.3 MB, 550,000 instructions and 230,000 objects."""
MOST_INSTRUCTIONS = 1_000_000
MOST_CONTAINERS = 500_000
MOST_COPIED = 2_000_000
"""Letters and items that all calls together may copy."""


@dataclass(eq=False, slots=True)
class Item:
    """One object of the pickle.

    `value`: text, number or the path of a name; `items`: those of a container, or the keys of a mapping.
    """

    kind: str
    value: Any = None
    items: Any = ()

    def is_key(self) -> bool:
        """Tell whether it may be a key: it hashes in constant time and cannot be forged to collide."""
        if self.kind == "tuple":
            return len(self.items) <= MOST_DIMENSIONS and all(i.kind != "tuple" and i.is_key() for i in self.items)
        if self.kind == "number" and isinstance(self.value, int):
            return abs(self.value) < 2**60
        return self.kind in ("number", "text", "constant", "name", "object")

    def numbers(self, what: str) -> list[int]:
        """Return the numbers of a shape.

        Raises:
            RefusedError: they are no few integers from 0 to 2^62.
        """
        values = [item.value for item in self.items]
        few = self.kind in ("tuple", "list") and len(values) <= MOST_DIMENSIONS
        if not few or any(type(value) is not int or not 0 <= value < 2**62 for value in values):
            raise RefusedError(
                f"a tensor's {what}: expected at most {MOST_DIMENSIONS} integers of 0 or more: not loaded"
            )
        return values


VALUES = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), "number"),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), "text"),
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE"), "constant"),
    **{"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set", "EMPTY_TUPLE": "tuple"},
}
MUTABLE = ("list", "dict")
CONTAINERS = ("list", "dict", "set", "tuple")
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleScan:
    """Stack and memo of one pickle, as torch's unpickler has them.

    Args:
        storage_size: bytes that the file has for a storage's key; None without that storage.
    """

    def __init__(self, storage_size: Callable[[str], int | None]) -> None:
        self.storage_size = storage_size
        self.storages: dict[str, tuple[str, int]] = {}
        self.layers: set[str] = set()
        self.stack: list[Item] = []
        self.outer: list[list[Item]] = []
        self.memo: dict[int, Item] = {}
        self.containers = self.copied = 0

    def run(self, stream: io.BytesIO) -> Item:
        """Check one pickle; `stream` stands behind it afterwards.

        Returns:
            The outermost object.
        Raises:
            RefusedError: it names something unknown, is damaged, or takes too much memory or time.
        """
        if stream.getbuffer().nbytes - stream.tell() > LARGEST_PICKLE:
            raise RefusedError(
                f"its pickle is larger than {LARGEST_PICKLE // 2**20} MiB: damaged or forged; not loaded"
            )
        self.stack, self.outer, self.memo = [], [], {}
        try:
            with paused_collection():
                return self.follow(stream)
        except RefusedError:
            raise
        except (ValueError, OverflowError, IndexError, KeyError) as error:
            raise RefusedError(f"its pickle is damaged ({shown(str(error))}): expected a whole checkpoint") from error

    def follow(self, stream: io.BytesIO) -> Item:
        """Follow all instructions of one pickle."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MOST_INSTRUCTIONS:
                raise too_many(MOST_INSTRUCTIONS, "instructions")
            self.step(opcode.name, argument)
            if self.containers > MOST_CONTAINERS:
                raise too_many(MOST_CONTAINERS, "objects")
            if self.copied > MOST_COPIED:
                raise too_many(MOST_COPIED, "copied letters and items")
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in VALUES:
            self.push(Item(VALUES[name], argument, [] if VALUES[name] in MUTABLE else ()))
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MARK":
            self.outer.append(self.stack)
            self.stack = []
        elif name in SHORT_TUPLES or name == "TUPLE":
            self.push(Item("tuple", items=self.take(SHORT_TUPLES[name]) if name != "TUPLE" else self.to_mark()))
        elif name in HANDLERS:
            HANDLERS[name](self, argument)
        elif name != "STOP" and not (name == "PROTO" and argument == 2):
            raise RefusedError(f"uses the pickle instruction {name} {shown(argument or '')}: {EXPECTED}")

    def push(self, item: Item) -> None:
        self.containers += item.kind in CONTAINERS
        self.stack.append(item)

    def take(self, count: int) -> list[Item]:
        """Take objects from the stack, the lowest first."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def to_mark(self) -> list[Item]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def named(self, argument: str) -> None:
        """GLOBAL."""
        path = argument.replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)
        if is_layer(path):
            self.layers.add(path)
        elif path not in KNOWN:
            raise RefusedError(f"names {shown(argument.replace(' ', '.'))}: {EXPECTED}")
        self.stack.append(Item("name", path))

    def append(self, items: list[Item]) -> None:
        """Append to the list on the stack."""
        if self.stack[-1].kind != "list":
            raise RefusedError(f"appends to {describe(self.stack[-1])}: {EXPECTED}")
        self.stack[-1].items.extend(items)

    def set_items(self, items: list[Item]) -> None:
        """Set entries of the mapping on the stack."""
        target, keys = self.stack[-1], items[::2]
        if target.kind not in ("dict", "ordered") or len(items) % 2:
            raise RefusedError(f"sets entries of {describe(target)}: {EXPECTED}")
        require_keys(keys)
        target.items.extend(keys)

    def call(self, _: Any) -> None:
        """REDUCE: the arguments of every function are checked, and what it copies is counted."""
        function, arguments = self.take(2)
        if arguments.kind != "tuple" or function.kind != "name":
            raise RefusedError(f"calls {describe(function)}: {EXPECTED}")
        for item in (arguments, *arguments.items):
            self.copied += len(item.value) if item.kind == "text" else len(item.items)
        if function.value in CALLS:
            self.push(CALLS[function.value](arguments.items))
        elif is_layer(function.value):
            self.push(Item("object"))
        else:
            raise RefusedError(f"calls {describe(function)}: {EXPECTED}")

    def make(self, _: Any) -> None:
        """NEWOBJ."""
        kind, arguments = self.take(2)
        if kind.kind != "name" or not is_layer(kind.value) or arguments.kind != "tuple":
            raise RefusedError(f"makes an object of {describe(kind)}: {EXPECTED}")
        self.copied += len(arguments.items)
        self.push(Item("object"))

    def set_state(self, _: Any) -> None:
        """BUILD: objects take a mapping, numpy's a tuple, an OrderedDict only the `_metadata` of a state dict."""
        state = self.stack.pop()
        target = self.stack[-1]
        metadata = target.kind == "ordered" and all(key.value == "_metadata" for key in state.items)
        if not (state.kind == "dict" and (target.kind == "object" or metadata)) and target.kind != "numpy":
            raise RefusedError(f"sets attributes of {describe(target)} from {describe(state)}: {EXPECTED}")

    def storage(self, _: Any) -> None:
        """BINPERSID: ("storage", kind, key, device, numel[, None])."""
        parts = self.stack.pop().items
        if (
            len(parts) not in (5, 6)
            or parts[0].value != "storage"
            or any(part.kind != "constant" for part in parts[5:])
        ):
            raise RefusedError("refers to something outside of itself: expected its own storages: not loaded")
        kind, key, numel = parts[1].value, parts[2].value, parts[4].value
        if kind not in STORAGE_BYTES or parts[2].kind != "text" or parts[3].kind != "text" or type(numel) is not int:
            raise RefusedError("describes a storage in an unknown way: damaged or forged; not loaded")
        there, needed = self.storage_size(key), numel * STORAGE_BYTES[kind]
        if there is None or not 0 <= needed <= there:
            raise RefusedError(
                f"declares {numel} numbers in storage {shown(key)} of {there or 0} bytes: damaged or forged; not loaded"
            )
        if self.storages.setdefault(key, (kind, numel)) != (kind, numel):
            raise RefusedError(
                f"declares storage {shown(key)} twice with different sizes: damaged or forged; not loaded"
            )
        self.stack.append(Item("storage", numel))


@contextmanager
def paused_collection() -> Iterator[None]:
    """Keep the garbage collector from visiting hundreds of thousands of new objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def too_many(most: int, what: str) -> RefusedError:
    """Return the refusal of a pickle that goes beyond a limit."""
    return RefusedError(f"its pickle has more than {most} {what}: forged; not loaded")


def require_keys(items: list[Item]) -> None:
    """Refuse keys that take long to hash."""
    for item in items:
        if not item.is_key():
            raise RefusedError(f"holds a key of type {item.kind}: expected text or numbers: not loaded")


def describe(item: Item) -> str:
    """Name an object for a message."""
    if item.kind == "name":
        return shown(item.value)
    return f"an {item.kind}" if item.kind in ("object", "ordered") else f"a {item.kind}"


def rebuilt_tensor(arguments: list[Item]) -> Item:
    """Check torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)."""
    if len(arguments) != 6 or arguments[0].kind != "storage":
        raise RefusedError(f"a tensor without a storage, or with special flags: {EXPECTED}")
    there = arguments[0].value
    (offset,), shape = Item("tuple", items=arguments[1:2]).numbers("offset"), arguments[2].numbers("shape")
    stride = arguments[3].numbers("strides")
    if len(shape) != len(stride):
        raise RefusedError(f"a tensor of {len(shape)} dimensions with {len(stride)} strides: damaged; not loaded")
    numel = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if numel > there or (numel and last >= there) or offset > there:
        size = " x ".join(map(str, shape))
        raise RefusedError(f"declares a tensor of {shown(size)} numbers where the file has {there}: damaged or forged")
    return Item("tensor")


def expecting(made: str, *kinds: str, least: int | None = None) -> Callable[[list[Item]], Item]:
    """Return the check of a function that takes arguments of these kinds (`least` of them are needed)."""

    def check(arguments: list[Item]) -> Item:
        fits = len(kinds) >= len(arguments) >= (len(kinds) if least is None else least)
        if not fits or any(item.kind not in kind.split("|") for item, kind in zip(arguments, kinds, strict=False)):
            raise RefusedError(f"calls a function with arguments that do not fit: {EXPECTED}")
        return Item(made, items=[] if made == "ordered" else ())

    return check


def made_set(arguments: list[Item]) -> Item:
    """Check set(items) and frozenset(items)."""
    expecting("set", "list|tuple", least=0)(arguments)
    require_keys([item for argument in arguments for item in argument.items])
    return Item("set")


def made_size(arguments: list[Item]) -> Item:
    """Check torch.Size(numbers)."""
    expecting("tuple", "tuple|list")(arguments)
    arguments[0].numbers("shape")
    return Item("other")


CALLS: dict[str, Callable[[list[Item]], Item]] = {
    "torch._utils._rebuild_tensor_v2": rebuilt_tensor,
    "torch._utils._rebuild_parameter": expecting("tensor", "tensor", "constant", "ordered"),
    "torch.Size": made_size,
    "torch.device": expecting("other", "text", "number", least=1),
    "collections.OrderedDict": expecting("ordered"),
    "_codecs.encode": expecting("bytes", "text", "text"),
    "builtins.set": made_set,
    "builtins.frozenset": made_set,
    "numpy.dtype": expecting("numpy", "text", *["constant|number"] * 2, least=1),
    **{f"numpy.{core}.multiarray.scalar": expecting("number", "numpy", "bytes") for core in ("core", "_core")},
    **{
        f"numpy.{core}.multiarray._reconstruct": expecting("numpy", "name", "tuple", "bytes|text")
        for core in ("core", "_core")
    },
    **{path: expecting("text", *["text"] * 64, least=0) for path in REPLACED if path.startswith("pathlib")},
}
"""The functions that a checkpoint may call, each with the check of its arguments."""
KNOWN = frozenset({*CALLS, *STORAGE_BYTES, *DTYPES, *REPLACED})
"""The names that a checkpoint may hold beside those of layers."""

HANDLERS: dict[str, Callable[[PickleScan, Any], None]] = {
    "GLOBAL": PickleScan.named,
    "REDUCE": PickleScan.call,
    "NEWOBJ": PickleScan.make,
    "BUILD": PickleScan.set_state,
    "BINPERSID": PickleScan.storage,
    "APPEND": lambda scan, _: scan.append(scan.take(1)),
    "APPENDS": lambda scan, _: scan.append(scan.to_mark()),
    "SETITEM": lambda scan, _: scan.set_items(scan.take(2)),
    "SETITEMS": lambda scan, _: scan.set_items(scan.to_mark()),
}
