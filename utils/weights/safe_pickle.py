"""A reader of pickled data that imports nothing and runs nothing: an interpreter of the few instructions that checkpoints need.

The instructions are split by `pickletools.genops`, which only reads. Every name is looked up in the table of utils/weights/stand_ins.py;
what is not there ends the reading with a message. Size, instructions and containers are counted, so that no file hangs the reader
or exhausts memory.
"""

import gc
import io
import pickletools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.weights.stand_ins import (
    EXPECTED,
    Maker,
    RefusedError,
    StandIn,
    StandInClass,
    StoredArray,
    StoredDtype,
    check_key,
    find_global,
    make_set,
    set_array_state,
    set_dtype_state,
    shown,
)  # fmt: skip

LARGEST_PICKLE = 32 * 2**20
"""Bytes; yolov9-e with averaged weights and optimizer takes 1.3 MB, 550,000 instructions and 230,000 objects."""
MOST_INSTRUCTIONS = 2_000_000
MOST_CONTAINERS = 600_000
TEXT_PER_CONTAINER = 64
"""Letters or bytes of a function's argument that count as one container."""
NEWEST_PROTOCOL = 5

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
"""Instructions whose argument is the value."""
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
SKIPPED = ("FRAME",)


def read_pickle(stream: io.BytesIO, find_storage: Callable[[Any], Any]) -> Any:
    """Return what a pickle describes; `stream` stands behind it afterwards.

    Args:
        find_storage: what a persistent id, a tuple, stands for.
    Returns:
        Plain data, StoredTensors and StandIns.
    Raises:
        RefusedError: it names something that is not in the table, uses an instruction that checkpoints do not, is damaged or too large.
    """
    with paused_collection():
        return _Machine(find_storage).run(stream)


@contextmanager
def paused_collection() -> Iterator[None]:
    """Keep the cycle collector from going over hundreds of thousands of new containers again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, find_storage: Callable[[Any], Any]) -> None:
        self.find_storage = find_storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.classes: dict[str, StandInClass] = {}
        self.containers = 0

    def run(self, stream: io.BytesIO) -> Any:
        if stream.getbuffer().nbytes - stream.tell() > LARGEST_PICKLE:
            raise RefusedError(
                f"its pickled part is larger than {LARGEST_PICKLE // 2**20} MiB: damaged or forged; not loaded"
            )
        count = 0
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                count += 1
                if count > MOST_INSTRUCTIONS:
                    raise RefusedError(
                        f"its pickled part has more than {MOST_INSTRUCTIONS} instructions: forged; not loaded"
                    )
                name = opcode.name
                if name in VALUES:
                    self.stack.append(argument)
                elif name in CONSTANTS:
                    self.stack.append(CONSTANTS[name])
                elif name in HANDLERS:
                    HANDLERS[name](self, argument)
                elif name in EMPTY:
                    self.push_container(EMPTY[name]())
                elif name in SHORT_TUPLES:
                    self.push_container(tuple(self.take(SHORT_TUPLES[name])))
                elif name not in (*SKIPPED, "STOP"):
                    raise RefusedError(f"uses the pickle instruction {name}: {EXPECTED}")
        except RefusedError:
            raise
        except (ValueError, OverflowError) as error:  # of genops: an argument that is not there, an unknown instruction
            raise RefusedError(
                f"its pickled part is damaged ({shown(str(error))}): expected a whole checkpoint; copy it again"
            ) from error
        if len(self.stack) != 1 or self.marks:
            raise self.damaged()
        return self.stack[0]

    @staticmethod
    def damaged() -> RefusedError:
        return RefusedError("its pickled part is damaged (instructions without their arguments): not loaded")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.damaged()
        return self.stack.pop()

    def take(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def take_to_mark(self) -> list[Any]:
        if not self.marks:
            raise self.damaged()
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type | tuple[type, ...]) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            raise self.damaged()
        return self.stack[-1]

    def charge(self, count: int) -> None:
        self.containers += count
        if self.containers > MOST_CONTAINERS:
            raise RefusedError(f"its pickled part makes more than {MOST_CONTAINERS} objects: forged; not loaded")

    def push_container(self, value: Any) -> None:
        self.charge(1)
        self.stack.append(value)

    def protocol(self, version: int) -> None:
        if version > NEWEST_PROTOCOL:
            raise RefusedError(f"pickle protocol {version}: expected at most {NEWEST_PROTOCOL}: not loaded")

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop_mark(self, _: Any) -> None:
        self.take_to_mark()

    def drop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):  # a POP takes a mark as well
            self.marks.pop()
        else:
            self.pop()

    def put(self, index: int) -> None:
        self.memo[index] = self.top(object)

    def memoize(self, _: Any) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.damaged()
        self.stack.append(self.memo[index])

    def named(self, pair: str) -> None:
        module, _, name = pair.partition(" ")
        self.stack.append(find_global(module, name, self.classes))

    def named_on_stack(self, _: Any) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.damaged()
        self.stack.append(find_global(module, name, self.classes))

    def call(self, _: Any) -> None:
        """REDUCE: a function of the table, or a class that is stood in for; its constructor's arguments are kept, not used."""
        callee, arguments = self.take(2)
        if not isinstance(arguments, tuple):
            raise self.damaged()
        if isinstance(callee, Maker):
            for argument in (
                arguments,
                *arguments,
            ):  # they may come from the memo, again and again, and are copied each time
                if isinstance(argument, str | bytes | list | tuple | set):
                    self.charge(len(argument) // (TEXT_PER_CONTAINER if isinstance(argument, str | bytes) else 1))
            try:
                self.push_container(callee.make(*arguments))
            except TypeError as error:  # another number of arguments
                raise RefusedError(f"calls {callee.path} with arguments that do not fit: not loaded") from error
        elif isinstance(callee, StandInClass) and not callee.path.startswith("numpy."):
            self.push_container(StandIn(callee, arguments))
        else:
            raise RefusedError(f"calls {describe(callee)}: {EXPECTED}")

    def make(self, _: Any) -> None:
        """NEWOBJ: an object of a class that is stood in for."""
        kind, arguments = self.take(2)
        if not isinstance(kind, StandInClass) or kind.path.startswith("numpy.") or not isinstance(arguments, tuple):
            raise RefusedError(f"makes an object of {describe(kind)}: {EXPECTED}")
        self.push_container(StandIn(kind, arguments))

    def make_with_keywords(self, _: Any) -> None:
        kind, arguments, _ = self.take(3)
        self.stack.extend((kind, arguments))
        self.make(None)

    def set_state(self, _: Any) -> None:
        """BUILD: attributes of a stand-in; those of an OrderedDict (a state dict's `_metadata`) are not needed."""
        state, target = self.pop(), self.top(object)
        if isinstance(target, StoredDtype):
            set_dtype_state(target, state)
        elif isinstance(target, StoredArray):
            set_array_state(target, state)
        elif isinstance(target, StandIn) and isinstance(state, dict) and not target.state:
            target.state = state  # not a copy: the memo may hold the same mapping for thousands of objects
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            raise RefusedError(f"sets attributes of {describe(target)} from {describe(state)}: {EXPECTED}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise self.damaged()
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value

    def find_persistent(self, _: Any) -> None:
        self.push_container(self.find_storage(self.pop()))


def describe(value: Any) -> str:
    """Name a value for a message without showing its content."""
    if isinstance(value, Maker | StandInClass):
        return shown(value.path)
    return f"an object of {shown(value.kind.path)}" if isinstance(value, StandIn) else f"a {type(value).__name__}"


HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.pop_mark,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.make,
    "NEWOBJ_EX": _Machine.make_with_keywords,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.find_persistent,
    "TUPLE": lambda machine, _: machine.push_container(tuple(machine.take_to_mark())),
    "LIST": lambda machine, _: machine.push_container(machine.take_to_mark()),
    "FROZENSET": lambda machine, _: machine.push_container(make_set(machine.take_to_mark())),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_to_mark()),
    "APPEND": lambda machine, _: (lambda item: machine.top(list).append(item))(machine.pop()),
    "APPENDS": lambda machine, _: (lambda items: machine.top(list).extend(items))(machine.take_to_mark()),
    "ADDITEMS": lambda machine, _: (lambda items: machine.top(set).update(make_set(items)))(machine.take_to_mark()),
}
"""What each instruction does that is more than a constant."""
