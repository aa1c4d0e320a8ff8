"""Files that try to run something, to hang the reader or to exhaust memory, made from pickle instructions one by one.

Every payload that could run would create the canary file. REFUSALS has the fact that each refusal must say.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

MARK, TUPLE, REDUCE, BUILD, STOP = b"(", b"t", b"R", b"b", b"."
NEWOBJ, PERSISTENT, EMPTY_TUPLE, EMPTY_DICT, EMPTY_LIST, NONE = b"\x81", b"Q", b")", b"}", b"]", b"N"
SETITEM, SETITEMS, APPENDS, POP = b"s", b"u", b"e", b""
"""POP is empty: torch's unpickler has no such instruction, and what it would drop may stay on the stack."""
START = b"\x80\x02"

REFUSALS = {
    "runs posix.system": "names posix.system",
    "runs os.system": "names os.system",
    "runs __builtin__.eval": "names __builtin__.eval",
    "runs builtins.exec": "names builtins.exec",
    "runs __builtin__.getattr": "names __builtin__.getattr",
    "runs __builtin__.__import__": "names __builtin__.__import__",
    "runs operator.attrgetter": "names operator.attrgetter",
    "runs functools.partial": "names functools.partial",
    "runs subprocess.Popen": "names subprocess.Popen",
    "runs subprocess.check_output": "names subprocess.check_output",
    "runs pickle.loads": "names pickle.loads",
    "runs torch.storage._load_from_bytes": "names torch.storage._load_from_bytes",
    "runs torch.load": "names torch.load",
    "runs torch.hub.load": "names torch.hub.load",
    "runs torch.serialization.load": "names torch.serialization.load",
    "runs torch.jit.load": "names torch.jit.load",
    "runs numpy.load": "names numpy.load",
    "runs numpy.testing._private.utils.runstring": "names numpy.testing._private.utils.runstring",
    "runs copy_reg._reconstructor": "names copy_reg._reconstructor",
    "runs copyreg.add_extension": "names copyreg.add_extension",
    "runs webbrowser.open": "names webbrowser.open",
    "runs pty.spawn": "names pty.spawn",
    "runs runpy._run_code": "names runpy._run_code",
    "runs types.FunctionType": "names types.FunctionType",
    "runs types.CodeType": "names types.CodeType",
    "runs argparse.ArgumentParser": "names argparse.ArgumentParser",
    "runs __builtin__.bytearray": "names __builtin__.bytearray",
    "runs canary_module.Layer": "names canary_module.Layer",
    "runs models.yolo.parse_model": "names models.yolo.parse_model",
    "runs models.yolo.os.system": "instruction STACK_GLOBAL",
    "runs models.yolo.subprocess.Popen": "names models.yolo.subprocess.Popen",
    "runs ultralytics.utils.os.Popen": "instruction STACK_GLOBAL",
    "runs torch._utils.__builtins__.eval": "instruction STACK_GLOBAL",
    "runs torch._utils._rebuild_tensor_v2.__globals__": "instruction STACK_GLOBAL",
    "runs torch.nn.modules.module.os": "names torch.nn.modules.module.os",
    "EXT1": "EXT1",
    "EXT4": "EXT4",
    "INST": "INST posix system",
    "OBJ": "OBJ",
    "PERSID": "PERSID /etc/passwd",
    "NEXT_BUFFER": "NEXT_BUFFER",
    "slot state": "attributes of an object from a tuple",
    "attributes of a function": "attributes of torch._utils._rebuild_parameter from a dict",
    "call of an object": "calls an object",
    "call of text": "calls a text",
    "object of a function": "makes an object of torch.Size",
    "call of numpy.ndarray": "calls numpy.ndarray",
    "wrong arguments": "a tensor without a storage",
    "storage outside": "storage ../../etc/passwd of 0 bytes",
    "storage not there": "storage 1 of 0 bytes",
    "other persistent id": "outside of itself",
    "tensor of no storage": "a tensor without a storage",
    "object array": "number format O8",
    "structured numbers": "structured numpy number format",
    "text codec": "'zlib' codec",
    "path of no text": "arguments that do not fit",
    "stack underflow": "damaged (pop from empty list)",
    "pop below a mark": "damaged (pop from empty list)",
    "no end": "before seeing STOP",
    "unknown instruction": "opcode b'\\xff' unknown",
    "future protocol": "PROTO 9",
    "huge tensor": "a tensor of 1048576 x 1048576 numbers",
    "huge storage": "1099511627776 numbers in storage 0 of 16 bytes",
    "overflowing tensor": "a tensor of 4611686018427387903 x 4611686018427387903 x 4611686018427387903 numbers",
    "repeated elements": "a tensor of 1000000000 numbers where the file has 4",
    "stride outside": "a tensor of 2 numbers where the file has 4",
    "offset outside": "a tensor of 2 numbers where the file has 4",
    "overflowing stride": "a tensor of 2 numbers where the file has 4",
    "negative size": "a tensor's shape",
    "negative stride": "a tensor's strides",
    "negative offset": "a tensor's offset",
    "size of text": "a tensor's shape",
    "many dimensions": "a tensor's shape: expected at most 16 integers",
    "negative storage": "-1 numbers in storage 0 of 16 bytes",
    "huge array": "1099511627776 numpy numbers in 8 bytes",
    "long text": "1099511627776 bytes",
    "longer text": "18446744073709551615",
    "long bytes": "4611686018427387904 bytes",
    "long number": "long4",
    "many instructions": "1000000 instructions",
    "many sets": "500000 objects",
    "many copies of text": "2000000 copied letters and items",
    "many copies of a set": "2000000 copied letters and items",
    "nested tuples as key": "key of type tuple",
    "list as key": "key of type list",
    "colliding keys": "key of type number",
    "doubling lists in the settings": "settings are nested",
    "list in itself": "settings are nested",
    "deep lists": "a single list",
    "layer in itself": "layers are nested",
    "doubling layers": "layers are nested",
    "compressed entries": "compressed or encrypted entry archive/data.pkl",
    "double entries": "archive/data/1 twice",
    "overlapping entries": "archive/data/0 twice or inside another",
    "entry longer than the file": "archive/version twice or inside another",
    "huge table of contents": "table of contents takes 2147483648 bytes",
    "two checkpoints": "2 checkpoints",
    "nested archive": "storage 9 of 0 bytes",
    "archive in an archive": "its pickle is damaged ('ascii' codec",
    "big-endian": "big-endian",
    "wrong checksum": "Bad CRC-32 for file 'archive/data/0'",
    "torch.save of a runner": "names posix.system",
    "legacy torch.save of a runner": "names posix.system",
    "pickle of a runner": "is not a weights file",
    "pickle of protocol 0": "is not a weights file",
}
"""What the refusal of each file must say: the name, instruction, number or entry that is the reason."""
LOADED = {"overlapping views"}
"""Malformed files that load inertly: their tensors lie inside their storages."""


def text(value: str) -> bytes:
    """BINUNICODE."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    """LONG1, or BININT where it fits."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = pickle.encode_long(value)
    return b"\x8a" + bytes([len(content)]) + content


def named(module: str, name: str) -> bytes:
    """GLOBAL."""
    return b"c" + f"{module}\n{name}\n".encode()


def named_on_stack(module: str, name: str) -> bytes:
    """STACK_GLOBAL of protocol 4."""
    return text(module) + text(name) + b"\x93"


def row(*items: bytes) -> bytes:
    """A tuple."""
    return MARK + b"".join(items) + TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + row(*arguments) + REDUCE


def mapping(**entries: bytes) -> bytes:
    """A dictionary with text keys."""
    return EMPTY_DICT + MARK + b"".join(text(key) + value for key, value in entries.items()) + SETITEMS


def put(index: int) -> bytes:
    """LONG_BINPUT."""
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """LONG_BINGET."""
    return b"j" + struct.pack("<I", index)


def storage(numel: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """A persistent id."""
    return row(text("storage"), named("torch", kind), text(key), text("cpu"), number(numel)) + PERSISTENT


def tensor(
    shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, held: bytes | None = None
) -> bytes:
    """A tensor, by default of the four numbers that every archive here has."""
    sizes, steps = (row(*map(number, values)) for values in (shape, stride))
    hooks = call(named("collections", "OrderedDict"))
    return call(
        named("torch._utils", "_rebuild_tensor_v2"), held or storage(), number(offset), sizes, steps, b"\x89", hooks
    )


def state_dict(**entries: bytes) -> bytes:
    """A pickled mapping of names to what is given, with one good tensor."""
    return START + mapping(**{"model.0.conv.weight": tensor()}, **entries) + STOP


def archive(
    content: bytes, root: str = "archive", more: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip archive as torch.save writes it, with one storage of four float32."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", content)
        file.writestr(f"{root}/data/0", struct.pack("<4f", 1, 2, 3, 4))
        file.writestr(f"{root}/version", "3\n")
        for name, part in (more or {}).items():
            file.writestr(name, part)
    return stream.getvalue()


def running_payloads(canary: Path) -> dict[str, bytes]:
    """Pickles that would run something, by the name that they call."""
    touch, code = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w')")
    imported = call(named("__builtin__", "__import__"), text("os"))
    conv = named("models.common", "Conv")
    names = {
        "posix.system": call(named("posix", "system"), touch),
        "os.system": call(named("os", "system"), touch),
        "__builtin__.eval": call(named("__builtin__", "eval"), code),
        "builtins.exec": call(named("builtins", "exec"), code),
        "__builtin__.getattr": call(named("__builtin__", "getattr"), conv + EMPTY_TUPLE + NEWOBJ, text("forward")),
        "__builtin__.__import__": imported,
        "operator.attrgetter": call(call(named("operator", "attrgetter"), text("system")), imported),
        "functools.partial": call(named("functools", "partial"), named("torch", "Size"), touch),
        "subprocess.Popen": call(named("subprocess", "Popen"), touch),
        "subprocess.check_output": named("subprocess", "check_output") + row(touch) + NEWOBJ,
        "pickle.loads": call(named("pickle", "loads"), text("cos\nsystem\n")),
        "torch.storage._load_from_bytes": call(named("torch.storage", "_load_from_bytes"), text("x")),
        "torch.load": call(named("torch", "load"), text(str(canary))),
        "torch.hub.load": call(named("torch.hub", "load"), text("a/b"), text("c")),
        "torch.serialization.load": call(named("torch.serialization", "load"), text("x")),
        "torch.jit.load": call(named("torch.jit", "load"), text("x")),
        "numpy.load": call(named("numpy", "load"), text(str(canary))),
        "numpy.testing._private.utils.runstring": call(
            named("numpy.testing._private.utils", "runstring"), code, EMPTY_DICT
        ),
        "copy_reg._reconstructor": call(
            named("copy_reg", "_reconstructor"), conv, named("__builtin__", "object"), NONE
        ),
        "copyreg.add_extension": call(named("copyreg", "add_extension"), text("os"), text("system"), number(7)),
        "webbrowser.open": call(named("webbrowser", "open"), text("file:///")),
        "pty.spawn": call(named("pty", "spawn"), touch),
        "runpy._run_code": call(named("runpy", "_run_code"), code, EMPTY_DICT),
        "types.FunctionType": call(named("types", "FunctionType"), NONE),
        "types.CodeType": call(named("types", "CodeType"), NONE),
        "argparse.ArgumentParser": call(named("argparse", "ArgumentParser")),
        "__builtin__.bytearray": call(named("__builtin__", "bytearray"), number(2**40)),
        "canary_module.Layer": call(named("canary_module", "Layer")),
        "models.yolo.parse_model": call(named("models.yolo", "parse_model"), EMPTY_DICT, EMPTY_LIST),
        "models.yolo.os.system": call(named_on_stack("models.yolo", "os.system"), touch),
        "models.yolo.subprocess.Popen": call(named("models.yolo.subprocess", "Popen"), touch),
        "ultralytics.utils.os.Popen": call(named_on_stack("ultralytics.utils", "os.Popen"), touch),
        "torch._utils.__builtins__.eval": call(named_on_stack("torch", "_utils.__builtins__.eval"), code),
        "torch._utils._rebuild_tensor_v2.__globals__": named_on_stack("torch._utils", "_rebuild_tensor_v2.__globals__"),
        "torch.nn.modules.module.os": named("torch.nn.modules.module", "os"),
    }
    return {f"runs {name}": state_dict(x=payload) for name, payload in names.items()}


def instruction_payloads(canary: Path) -> dict[str, bytes]:
    """Pickles with instructions and objects that no checkpoint needs."""
    touch, conv = text(f"touch {canary}"), named("models.common", "Conv")
    made = conv + EMPTY_TUPLE + NEWOBJ
    return {
        "EXT1": (state_dict(x=b"\x82\x07")),
        "EXT4": (state_dict(x=b"\x84\x07\0\0\0")),
        "INST": (state_dict(x=MARK + touch + b"iposix\nsystem\n")),
        "OBJ": (state_dict(x=MARK + conv + touch + b"o")),
        "PERSID": (state_dict(x=b"P/etc/passwd\n")),
        "NEXT_BUFFER": (state_dict(x=b"\x97")),
        "slot state": (state_dict(x=made + row(EMPTY_DICT, mapping(__class__=conv)) + BUILD)),
        "attributes of a function": (
            state_dict(x=named("torch._utils", "_rebuild_parameter") + mapping(__code__=NONE) + BUILD)
        ),
        "call of an object": (state_dict(x=call(made, touch))),
        "call of text": (state_dict(x=call(text("os.system"), touch))),
        "object of a function": (state_dict(x=named("torch", "Size") + EMPTY_TUPLE + NEWOBJ)),
        "call of numpy.ndarray": (state_dict(x=call(named("numpy", "ndarray"), number(2**40)))),
        "wrong arguments": (state_dict(x=call(named("torch._utils", "_rebuild_tensor_v2"), NONE))),
        "storage outside": (state_dict(x=tensor(held=storage(key="../../etc/passwd")))),
        "storage not there": (state_dict(x=tensor(held=storage(key="1")))),
        "other persistent id": (state_dict(x=row(text("file"), text("/etc/passwd")) + PERSISTENT)),
        "tensor of no storage": (state_dict(x=tensor(held=text("/dev/mem")))),
        "object array": (state_dict(x=call(named("numpy", "dtype"), text("O8")))),
        "structured numbers": (
            state_dict(
                x=call(named("numpy", "dtype"), text("f8"))
                + row(number(3), text("<"), NONE, row(text("a")), NONE)
                + BUILD
            )
        ),
        "text codec": (state_dict(x=call(named("_codecs", "encode"), text("a"), text("zlib")))),
        "path of no text": (state_dict(x=call(named("pathlib", "PosixPath"), NONE))),
        "stack underflow": (START + REDUCE + STOP),
        "pop below a mark": (START + NONE + MARK + b"a" + STOP),
        "no end": (START + EMPTY_DICT),
        "unknown instruction": (START + b"\xff" + STOP),
        "future protocol": (b"\x80\x09" + EMPTY_DICT + STOP),
    }


def greedy_payloads() -> dict[str, bytes]:
    """Pickles that would hang the reader or exhaust memory."""
    huge = 2**62 - 1
    doubling_tuples = EMPTY_TUPLE + b"".join(put(index) + POP + row(get(index), get(index)) for index in range(60))
    doubling_lists = EMPTY_LIST + b"".join(
        put(index) + POP + EMPTY_LIST + MARK + get(index) + get(index) + APPENDS for index in range(60)
    )
    colliding = EMPTY_DICT + MARK + b"".join(number(index * (2**61 - 1)) + NONE for index in range(1, 5000)) + SETITEMS
    copied = text("a" * 1_000_000) + put(1) + POP
    copies = copied + EMPTY_LIST + MARK + call(named("_codecs", "encode"), get(1), text("latin1")) * 5000 + APPENDS
    array = call(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), row(number(0)), text("b"))
    numbers = call(named("_codecs", "encode"), text("abcdefgh"), text("latin1"))
    dtype = call(named("numpy", "dtype"), text("f8"))
    return {
        "huge tensor": (state_dict(x=tensor((2**20, 2**20), (2**20, 1)))),
        "huge storage": (state_dict(x=tensor((2**40,), (1,), held=storage(2**40)))),
        "overflowing tensor": (state_dict(x=tensor((huge, huge, huge), (1, 1, 1)))),
        "repeated elements": (state_dict(x=tensor((10**9,), (0,)))),
        "stride outside": (state_dict(x=tensor((2,), (4,)))),
        "offset outside": (state_dict(x=tensor((2,), (1,), 3))),
        "overflowing stride": (state_dict(x=tensor((2,), (huge,)))),
        "negative size": (state_dict(x=tensor((-1,), (1,)))),
        "negative stride": (state_dict(x=tensor((4,), (-1,)))),
        "negative offset": (state_dict(x=tensor((1,), (1,), -4))),
        "size of text": (state_dict(x=call(named("torch", "Size"), row(text("9"))))),
        "many dimensions": (state_dict(x=tensor((1,) * 999, (1,) * 999))),
        "negative storage": (state_dict(x=tensor(held=storage(-1)))),
        "huge array": (state_dict(x=array + row(number(1), row(number(2**40)), dtype, b"\x89", numbers) + BUILD)),
        "long text": (START + b"\x8d" + struct.pack("<Q", 2**40) + b"a" + STOP),
        "longer text": (START + b"\x8d" + struct.pack("<Q", 2**64 - 1) + b"a" + STOP),
        "long bytes": (START + b"\x8e" + struct.pack("<Q", 2**62) + b"a" + STOP),
        "long number": (START + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a" + STOP),
        "many instructions": (START + NONE + b"N" * 2_100_000 + STOP),
        "many sets": (START + EMPTY_LIST * 700_000 + STOP),
        "many copies of text": (START + copies + STOP),
        "many copies of a set": (
            START
            + EMPTY_LIST
            + MARK
            + NONE * 100_000
            + APPENDS
            + put(1)
            + POP
            + call(named("__builtin__", "set"), get(1)) * 1000
            + STOP
        ),
        "nested tuples as key": (START + doubling_tuples + put(99) + EMPTY_DICT + get(99) + NONE + SETITEM + STOP),
        "list as key": (state_dict(x=EMPTY_DICT + EMPTY_LIST + NONE + SETITEM)),
        "colliding keys": (state_dict(x=colliding)),
        "doubling lists in the settings": (
            START + doubling_lists + put(99) + mapping(model=mapping(w=tensor()), opt=get(99)) + STOP
        ),
        "list in itself": (
            START + mapping(model=mapping(w=tensor()), opt=EMPTY_LIST + put(1) + MARK + get(1) + APPENDS) + STOP
        ),
        "deep lists": (START + EMPTY_LIST * 200_000 + b"a" * 199_999 + STOP),
        "layer in itself": (START + mapping(model=layer_in_itself()) + STOP),
        "doubling layers": (START + doubling_layers() + put(98) + mapping(model=get(98)) + STOP),
    }


def layer(kind: bytes, content: bytes) -> bytes:
    """A layer with these children (a mapping)."""
    return kind + EMPTY_TUPLE + NEWOBJ + mapping(_modules=content) + BUILD


def layer_in_itself() -> bytes:
    """A network whose only child is itself."""
    root = named("models.yolo", "DetectionModel") + EMPTY_TUPLE + NEWOBJ + put(9)
    return root + mapping(_modules=mapping(model=get(9))) + BUILD


def doubling_layers() -> bytes:
    """A network of 40 levels, each with twice the same child."""
    conv = named("models.common", "Conv")
    inner = layer(conv, EMPTY_DICT)
    for index in range(40):
        inner += put(100 + index) + POP + layer(conv, mapping(a=get(100 + index), b=get(100 + index)))
    return inner + put(99) + POP + layer(named("models.yolo", "DetectionModel"), mapping(model=get(99)))


def hostile_archives() -> dict[str, bytes]:
    """Archives that are hostile as such."""
    good = state_dict()
    views = state_dict(
        **{f"w{index}": tensor((200_000,), (1,), index, held=storage(250_000, "1")) for index in range(30)}
    )
    bomb = archive(good, more={"archive/data/1": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED)
    stream = io.BytesIO(archive(good))
    with zipfile.ZipFile(stream) as file:
        first, second = file.infolist()[0], file.infolist()[1]
    overlapping = bytearray(stream.getvalue())
    place = overlapping.rfind(b"PK\x01\x02", 0, overlapping.rfind(b"archive/data/0"))
    overlapping[place + 42 : place + 46] = struct.pack("<I", first.header_offset + 10)
    assert second.header_offset > first.header_offset
    longer = bytearray(stream.getvalue())
    longer[place + 20 : place + 28] = struct.pack("<II", 2**31, 2**31)
    directory = bytearray(stream.getvalue())
    end = directory.rfind(b"PK\x05\x06")
    directory[end + 12 : end + 16] = struct.pack("<I", 2**31)
    return {
        "overlapping views": (archive(views, more={"archive/data/1": bytes(1_000_000)})),
        "compressed entries": (bomb),
        "double entries": (
            archive(good, more={"archive/data/1": b"x", "archive/data/2": b"y"}).replace(b"data/2", b"data/1")
        ),
        "overlapping entries": (bytes(overlapping)),
        "entry longer than the file": (bytes(longer)),
        "huge table of contents": (bytes(directory)),
        "two checkpoints": (archive(good, more={"other/data.pkl": good})),
        "nested archive": (
            archive(state_dict(x=tensor(held=storage(key="9"))), more={"archive/data/9/inner.zip": archive(good)})
        ),
        "archive in an archive": (archive(archive(good))),
        "big-endian": (archive(good, more={"archive/byteorder": b"big"})),
        "wrong checksum": (archive(good).replace(struct.pack("<4f", 1, 2, 3, 4), struct.pack("<4f", 1, 2, 3, 5))),
    }


class Runner:
    """Pickled by Python itself: runs a command when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return os.system, (f"touch {self.canary}",)


def hostile_files(canary: Path) -> dict[str, bytes]:
    """Return the bytes of all of them by name; REFUSALS says why each is refused."""
    payloads = running_payloads(canary) | instruction_payloads(canary) | greedy_payloads()
    files = {name: archive(content) for name, content in payloads.items()} | hostile_archives()
    saved, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": Runner(canary), "w": torch.zeros(2)}, saved)
    torch.save({"model": Runner(canary), "w": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
    files |= {
        "torch.save of a runner": (saved.getvalue()),
        "legacy torch.save of a runner": (legacy.getvalue()),
        "pickle of a runner": (pickle.dumps(Runner(canary))),
        "pickle of protocol 0": (pickle.dumps(Runner(canary), protocol=0)),
    }
    return files
