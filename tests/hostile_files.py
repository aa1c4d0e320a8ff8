"""Files that try to run something, to hang the reader or to exhaust memory, made from pickle instructions one by one.

Every payload that could run would create the canary file; `hostile_files` returns each file with what its refusal must say.
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


def running_payloads(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would run something, and the name that the refusal says."""
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
    return {
        f"runs {name}": (state_dict(x=payload), f"names {name.replace('.', '[.]')}") for name, payload in names.items()
    }


def instruction_payloads(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles with instructions and objects that no checkpoint needs."""
    touch, conv = text(f"touch {canary}"), named("models.common", "Conv")
    made = conv + EMPTY_TUPLE + NEWOBJ
    return {
        "EXT1": (state_dict(x=b"\x82\x07"), "instruction EXT1"),
        "EXT4": (state_dict(x=b"\x84\x07\0\0\0"), "instruction EXT4"),
        "INST": (state_dict(x=MARK + touch + b"iposix\nsystem\n"), "instruction INST"),
        "OBJ": (state_dict(x=MARK + conv + touch + b"o"), "instruction OBJ"),
        "PERSID": (state_dict(x=b"P/etc/passwd\n"), "instruction PERSID"),
        "NEXT_BUFFER": (state_dict(x=b"\x97"), "instruction NEXT_BUFFER"),
        "slot state": (
            state_dict(x=made + row(EMPTY_DICT, mapping(__class__=conv)) + BUILD),
            "sets attributes of an object of models.common.Conv",
        ),
        "attributes of a function": (
            state_dict(x=named("torch._utils", "_rebuild_parameter") + mapping(__code__=NONE) + BUILD),
            "sets attributes of torch._utils._rebuild_parameter",
        ),
        "call of an object": (state_dict(x=call(made, touch)), "calls an object of models.common.Conv"),
        "call of text": (state_dict(x=call(text("os.system"), touch)), "calls a str"),
        "object of a function": (
            state_dict(x=named("torch", "Size") + EMPTY_TUPLE + NEWOBJ),
            "makes an object of torch.Size",
        ),
        "call of numpy.ndarray": (state_dict(x=call(named("numpy", "ndarray"), number(2**40))), "calls numpy.ndarray"),
        "wrong arguments": (
            state_dict(x=call(named("torch._utils", "_rebuild_tensor_v2"), NONE)),
            "arguments that do not fit",
        ),
        "storage outside": (state_dict(x=tensor(held=storage(key="../../etc/passwd"))), "names the storage"),
        "storage not there": (state_dict(x=tensor(held=storage(key="1"))), "names the storage 1"),
        "other persistent id": (state_dict(x=row(text("file"), text("/etc/passwd")) + PERSISTENT), "outside of itself"),
        "tensor of no storage": (state_dict(x=tensor(held=text("/dev/mem"))), "without a storage"),
        "object array": (state_dict(x=call(named("numpy", "dtype"), text("O8"))), "number format O8"),
        "structured numbers": (
            state_dict(
                x=call(named("numpy", "dtype"), text("f8"))
                + row(number(3), text("<"), NONE, row(text("a")), NONE)
                + BUILD
            ),
            "structured numpy",
        ),
        "text codec": (state_dict(x=call(named("_codecs", "encode"), text("a"), text("zlib"))), "encoding zlib"),
        "path of no text": (state_dict(x=call(named("pathlib", "PosixPath"), NONE)), "not made of text"),
        "stack underflow": (START + REDUCE + STOP, "damaged"),
        "pop below a mark": (START + NONE + MARK + b"a" + STOP, "damaged"),
        "no end": (START + EMPTY_DICT, "damaged"),
        "unknown instruction": (START + b"\xff" + STOP, "damaged"),
        "future protocol": (b"\x80\x09" + EMPTY_DICT + STOP, "protocol 9"),
    }


def greedy_payloads() -> dict[str, tuple[bytes, str]]:
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
        "huge tensor": (
            state_dict(x=tensor((2**20, 2**20), (2**20, 1))),
            "declares a tensor of 1048576 x 1048576 numbers",
        ),
        "huge storage": (state_dict(x=tensor((2**40,), (1,), held=storage(2**40))), "declares 1099511627776 numbers"),
        "overflowing tensor": (state_dict(x=tensor((huge, huge, huge), (1, 1, 1))), "declares a tensor"),
        "repeated elements": (state_dict(x=tensor((10**9,), (0,))), "declares a tensor"),
        "stride outside": (state_dict(x=tensor((2,), (4,))), "declares a tensor"),
        "offset outside": (state_dict(x=tensor((2,), (1,), 3)), "declares a tensor"),
        "overflowing stride": (state_dict(x=tensor((2,), (huge,))), "declares a tensor"),
        "negative size": (state_dict(x=tensor((-1,), (1,))), "whole numbers of 0 or more"),
        "negative stride": (state_dict(x=tensor((4,), (-1,))), "whole numbers of 0 or more"),
        "negative offset": (state_dict(x=tensor((1,), (1,), -4)), "whole numbers of 0 or more"),
        "size of text": (state_dict(x=call(named("torch", "Size"), row(text("9")))), "whole numbers of 0 or more"),
        "many dimensions": (state_dict(x=tensor((1,) * 999, (1,) * 999)), "at most 16 numbers"),
        "negative storage": (state_dict(x=tensor(held=storage(-1))), "unknown way"),
        "huge array": (
            state_dict(x=array + row(number(1), row(number(2**40)), dtype, b"\x89", numbers) + BUILD),
            "declares 1099511627776 numpy",
        ),
        "long text": (START + b"\x8d" + struct.pack("<Q", 2**40) + b"a" + STOP, "damaged"),
        "longer text": (START + b"\x8d" + struct.pack("<Q", 2**64 - 1) + b"a" + STOP, "damaged"),
        "long bytes": (START + b"\x8e" + struct.pack("<Q", 2**62) + b"a" + STOP, "damaged"),
        "long number": (START + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a" + STOP, "damaged"),
        "many instructions": (START + NONE + b"N" * 2_100_000 + STOP, "instructions"),
        "many sets": (START + EMPTY_LIST * 700_000 + STOP, "objects"),
        "many copies of text": (START + copies + STOP, "objects"),
        "many copies of a set": (
            START
            + EMPTY_LIST
            + MARK
            + NONE * 100_000
            + APPENDS
            + put(1)
            + POP
            + call(named("__builtin__", "set"), get(1)) * 1000
            + STOP,
            "objects",
        ),
        "nested tuples as key": (
            START + doubling_tuples + put(99) + EMPTY_DICT + get(99) + NONE + SETITEM + STOP,
            "key of type tuple",
        ),
        "list as key": (state_dict(x=EMPTY_DICT + EMPTY_LIST + NONE + SETITEM), "key of type list"),
        "colliding keys": (state_dict(x=colliding), "key of type int"),
        "doubling lists in the settings": (
            START + doubling_lists + put(99) + mapping(model=mapping(w=tensor()), opt=get(99)) + STOP,
            "nested too deeply",
        ),
        "list in itself": (
            START + mapping(model=mapping(w=tensor()), opt=EMPTY_LIST + put(1) + MARK + get(1) + APPENDS) + STOP,
            "nested too deeply",
        ),
        "deep lists": (START + EMPTY_LIST * 200_000 + b"a" * 199_999 + STOP, "holds a single list"),
        "layer in itself": (START + mapping(model=layer_in_itself()) + STOP, "nested without end"),
        "doubling layers": (START + doubling_layers() + put(98) + mapping(model=get(98)) + STOP, "nested without end"),
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


def hostile_archives() -> dict[str, tuple[bytes, str]]:
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
        "overlapping views": (archive(views, more={"archive/data/1": bytes(1_000_000)}), "multiple of the file's size"),
        "compressed entries": (bomb, "compressed"),
        "double entries": (
            archive(good, more={"archive/data/1": b"x", "archive/data/2": b"y"}).replace(b"data/2", b"data/1"),
            "twice",
        ),
        "overlapping entries": (bytes(overlapping), "inside another|damaged"),
        "entry longer than the file": (bytes(longer), "damaged"),
        "huge table of contents": (bytes(directory), "table of contents"),
        "two checkpoints": (archive(good, more={"other/data.pkl": good}), "2 checkpoints"),
        "nested archive": (
            archive(state_dict(x=tensor(held=storage(key="9"))), more={"archive/data/9/inner.zip": archive(good)}),
            "names the storage 9",
        ),
        "archive in an archive": (archive(archive(good)), "damaged"),
        "big-endian": (archive(good, more={"archive/byteorder": b"big"}), "big-endian"),
        "wrong checksum": (
            archive(good).replace(struct.pack("<4f", 1, 2, 3, 4), struct.pack("<4f", 1, 2, 3, 5)),
            "damaged",
        ),
    }


class Runner:
    """Pickled by Python itself: runs a command when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return os.system, (f"touch {self.canary}",)


def hostile_files(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Return all of them: what each is called, its bytes, and a pattern of what its refusal says."""
    payloads = running_payloads(canary) | instruction_payloads(canary) | greedy_payloads()
    files = {name: (archive(content), message) for name, (content, message) in payloads.items()} | hostile_archives()
    saved, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": Runner(canary), "w": torch.zeros(2)}, saved)
    torch.save({"model": Runner(canary), "w": torch.zeros(2)}, legacy, _use_new_zipfile_serialization=False)
    files |= {
        "torch.save of a runner": (saved.getvalue(), "names posix[.]system"),
        "legacy torch.save of a runner": (legacy.getvalue(), "names posix[.]system"),
        "pickle of a runner": (pickle.dumps(Runner(canary)), "names posix[.]system"),
        "pickle of protocol 0": (pickle.dumps(Runner(canary), protocol=0), "names posix[.]system"),
    }
    return files
