"""The restricted reader: what hostile files are told, that they run nothing, and what it does read."""

import io
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import hostile_files as hostile
from utils.errors import CheckpointError
from utils.weights.reading import read_weights
from utils.weights.safe_pickle import read_pickle
from utils.weights.stand_ins import RefusedError, StandIn, StoredTensor
from utils.weights.torch_file import load_torch_file

REPOSITORY = Path(__file__).parents[3]
NAMES = sorted(hostile.hostile_files(Path("canary")))


def no_storage(_: Any) -> Any:
    raise AssertionError("no storage was expected")


def read(content: bytes) -> Any:
    return read_pickle(io.BytesIO(content), no_storage)


def load_zip(path: Path, content: bytes, **more: Any) -> Any:
    path.write_bytes(hostile.archive(content, **more))
    return load_torch_file(path)


# --- hostile files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[bytes, str]]]:
    """The canary that must not appear, and the files."""
    canary = tmp_path_factory.mktemp("corpus") / "canary"
    return canary, hostile.hostile_files(canary)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused_and_runs_nothing(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (canary, files), path = corpus, tmp_path / "best.pt"
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w')\nclass Layer: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    content, message = files[name]
    path.write_bytes(content)
    modules = set(sys.modules)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        read_weights(path)
    assert time.process_time() - start < 2
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    assert not canary.exists()
    assert {module.partition(".")[0] for module in set(sys.modules) - modules} <= {"utils", "models", "encodings"}


def test_the_corpus_would_run(tmp_path: Path) -> None:
    """That the canary can appear at all: Python's own reader runs the same bytes."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(hostile.Runner(canary)))
    assert canary.exists()
    canary.unlink()
    content, _ = hostile.running_payloads(canary)["runs __builtin__.eval"]
    unpickler = pickle.Unpickler(io.BytesIO(content.replace(hostile.tensor(), hostile.NONE)))
    unpickler.load()
    assert canary.exists()


@pytest.mark.slow
def test_the_whole_corpus_in_bounded_memory(corpus: Any, tmp_path: Path) -> None:
    """In a process of its own, 700 MiB above what it takes to import torch."""
    canary, files = corpus
    for index, (content, _) in enumerate(files.values()):
        (tmp_path / f"{index}.pt").write_bytes(content)
    script = """
import resource, sys
from pathlib import Path
from utils.errors import CheckpointError
from utils.weights.reading import read_weights
import models.config.foreign
pages = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 700 * 2**20,) * 2)
refused = 0
for path in Path(sys.argv[1]).glob('*.pt'):
    try:
        read_weights(path)
    except CheckpointError:
        refused += 1
print(refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == [str(len(NAMES))], done.stderr[-2000:]
    assert not canary.exists()
    assert len(NAMES) > 100


# --- what is read


def test_plain_data() -> None:
    value = {
        "a": [1, -2, 2**40, 0.5, None, True],
        "b": ("x", (1, 2)),
        "c": {1, 2},
        3: b"bytes",
        "d": frozenset({"é"}),
        ("k", 1): {},
    }
    for protocol in (2, 3, 4, 5):
        assert read(pickle.dumps(value, protocol=protocol)) == value


def test_a_list_in_itself() -> None:
    value: list[Any] = [1]
    value.append((value,))
    held = read(pickle.dumps(value, protocol=2))
    assert held[1][0] is held


def test_numpy_numbers() -> None:
    value = [
        np.float64(0.5),
        np.float32(0.25),
        np.int64(-3),
        np.bool_(True),
        np.array([[1, 2], [3, 4]], order="F"),
        np.array([1.5], ">f4"),
    ]
    held = read(pickle.dumps(value, protocol=2))
    assert held[:4] == [0.5, 0.25, -3, True]
    assert held[4].values.tolist() == [[1, 2], [3, 4]]
    assert held[5].values.tolist() == [1.5]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_before_and_after_2(module: str) -> None:
    dtype = hostile.call(hostile.named("numpy", "dtype"), hostile.text("i2"), b"\x89", b"\x88")
    state = hostile.row(
        hostile.number(3),
        hostile.text("<"),
        *[hostile.NONE] * 3,
        hostile.number(-1),
        hostile.number(-1),
        hostile.number(0),
    )
    content = hostile.call(hostile.named("_codecs", "encode"), hostile.text("\x02\x01"), hostile.text("latin1"))
    assert (
        read(
            hostile.START
            + hostile.call(hostile.named(module, "scalar"), dtype + state + hostile.BUILD, content)
            + hostile.STOP
        )
        == 258
    )


def test_paths_namespaces_devices_and_formats_are_data() -> None:
    held = read(
        pickle.dumps(
            [
                Path("runs/train/exp"),
                SimpleNamespace(lr0=0.01),
                torch.device("cuda:1"),
                torch.float16,
                torch.Size([1, 2]),
            ],
            protocol=2,
        )
    )
    assert held[0] == "runs/train/exp"
    assert (held[1].kind.path, held[1].state) == ("types.SimpleNamespace", {"lr0": 0.01})
    assert held[2:] == ["cuda:1", "torch.float16", (1, 2)]


def test_a_layer_is_an_inert_stand_in() -> None:
    """`models.common.Conv` is a class of ours too: it is not what comes out."""
    content = hostile.call(hostile.named("models.common", "Conv"), hostile.number(3)) + hostile.mapping(
        __class__=hostile.NONE, x=hostile.number(1)
    )
    held = read(hostile.START + content + hostile.BUILD + hostile.STOP)
    assert type(held) is StandIn
    assert (held.kind.path, held.kind.name, held.arguments, held.state) == (
        "models.common.Conv",
        "Conv",
        (3,),
        {"__class__": None, "x": 1},
    )


def test_stand_ins_are_keys_by_identity() -> None:
    made = hostile.named("models.common", "Conv") + hostile.EMPTY_TUPLE + hostile.NEWOBJ
    content = (
        hostile.START + hostile.EMPTY_DICT + hostile.MARK + (made + hostile.NONE) * 3 + hostile.SETITEMS + hostile.STOP
    )
    assert len(read(content)) == 3


def test_the_message_shows_no_control_characters() -> None:
    with pytest.raises(RefusedError, match=r"^names bad\?\[2J") as caught:
        read(b"\x80\x04" + hostile.text("bad\x1b[2J") + hostile.text("n" * 10_000) + b"\x93.")
    assert len(str(caught.value)) < 300


# --- tensors


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_number_formats(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    value = torch.tensor([[0, 1, 2], [3, 4, 100]]).to(dtype)
    torch.save({"w": value}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    held = load_torch_file(tmp_path / "w.pt")["w"]
    assert isinstance(held, StoredTensor)
    assert held.read().dtype == dtype
    assert torch.equal(held.read(), value)


@pytest.mark.parametrize("legacy", [False, True])
def test_views_share_a_storage_and_come_out_contiguous(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0).view(4, 6)
    views = {
        "all": base,
        "turned": base.t(),
        "part": base[1:3, ::2],
        "one": base[2, 3],
        "none": base[:0],
        "again": base[1:3, ::2],
    }
    torch.save(
        views | {"parameter": torch.nn.Parameter(base)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy
    )
    held = load_torch_file(tmp_path / "w.pt")
    for name, value in (views | {"parameter": base}).items():
        assert torch.equal(held[name].read(), value)
        assert held[name].read().is_contiguous()
    assert held["part"].read() is held["again"].read()
    assert len({id(tensor.storage) for tensor in held.values()}) == 1


def test_a_truth_value_is_0_or_1(tmp_path: Path) -> None:
    content = (
        hostile.START
        + hostile.mapping(w=hostile.tensor((4,), (1,), held=hostile.storage(4, "1", "BoolStorage")))
        + hostile.STOP
    )
    held = load_zip(tmp_path / "w.pt", content, more={"archive/data/1": b"\x00\x01\x02\xff"})
    assert held["w"].read().tolist() == [False, True, True, True]


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    original = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, entry: (reads.append(entry.filename), original(self, entry))[1]
    )
    held = load_zip(tmp_path / "w.pt", hostile.state_dict(again=hostile.tensor((2, 2), (2, 1))))
    assert reads == ["archive/data.pkl"]
    assert held["model.0.conv.weight"].read().tolist() == [1, 2, 3, 4]
    assert held["again"].read().tolist() == [[1, 2], [3, 4]]
    assert reads == ["archive/data.pkl", "archive/data/0"]
