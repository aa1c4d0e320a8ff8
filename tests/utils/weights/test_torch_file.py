"""Files of torch.save: hostile ones run nothing and are refused or inert; what is read from the others."""

import io
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import hostile_files as hostile
from utils.errors import CheckpointError
from utils.weights.reading import read_weights
from utils.weights.stand_ins import StandIn
from utils.weights.torch_file import load_torch_file

REPOSITORY = Path(__file__).parents[3]
NAMES = sorted(hostile.hostile_files(Path("canary")))


def load_zip(path: Path, content: bytes, **more: Any) -> Any:
    path.write_bytes(hostile.archive(content, **more))
    return load_torch_file(path)


# --- hostile files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The canary that must not appear, and the files."""
    canary = tmp_path_factory.mktemp("corpus") / "canary"
    return canary, hostile.hostile_files(canary)


def test_every_hostile_file_has_a_reason() -> None:
    assert {*hostile.REFUSALS, *hostile.LOADED} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused_or_inert(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (canary, files), path = corpus, tmp_path / "best.pt"
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w')\nclass Layer: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path.write_bytes(files[name])
    modules = set(sys.modules)
    start = time.process_time()
    if name in hostile.LOADED:
        assert all(type(value) is torch.Tensor for value in read_weights(path).tensors.values())
    else:
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert hostile.REFUSALS[name] in text
        assert "\n" not in text
        assert len(text) < 500 + len(str(path))
    assert time.process_time() - start < 2
    assert not canary.exists()
    assert {module.partition(".")[0] for module in set(sys.modules) - modules} <= {
        "utils",
        "models",
        "encodings",
        "torch",
    }


def test_the_corpus_would_run(tmp_path: Path) -> None:
    """That the canary can appear at all: Python's own reader runs the same bytes."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(hostile.Runner(canary)))
    assert canary.exists()
    canary.unlink()
    content = hostile.running_payloads(canary)["runs __builtin__.eval"]
    unpickler = pickle.Unpickler(io.BytesIO(content.replace(hostile.tensor(), hostile.NONE)))
    unpickler.load()
    assert canary.exists()


@pytest.mark.slow
def test_the_whole_corpus_in_bounded_memory(corpus: Any, tmp_path: Path) -> None:
    """In a process of its own, 700 MiB above what it takes to import torch."""
    canary, files = corpus
    for index, content in enumerate(files.values()):
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
    assert done.stdout.split() == [str(len(hostile.REFUSALS))], done.stderr[-2000:]
    assert not canary.exists()
    assert len(NAMES) > 100


# --- what is read


def test_plain_data(tmp_path: Path) -> None:
    value = {"a": [1, -2, 2**40, 0.5, None, True], "b": ("x", (1, 2)), "c": {1, 2}, 3: b"bytes", ("k", 1): {}}
    torch.save(value | {"d": frozenset({"é"})}, tmp_path / "w.pt")
    assert load_torch_file(tmp_path / "w.pt") == value | {"d": frozenset({"é"})}


def test_numpy_numbers(tmp_path: Path) -> None:
    value = [np.float64(0.5), np.float32(0.25), np.int64(-3), np.bool_(True)]
    arrays = [np.array([[1, 2], [3, 4]], order="F"), np.array([1.5], ">f4")]
    torch.save(value + arrays, tmp_path / "w.pt")
    held = load_torch_file(tmp_path / "w.pt")
    assert held[:4] == [0.5, 0.25, -3, True]
    assert [array.values.tolist() for array in held[4:]] == [[[1, 2], [3, 4]], [1.5]]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_before_and_after_2(tmp_path: Path, module: str) -> None:
    dtype = hostile.call(hostile.named("numpy", "dtype"), hostile.text("i2"), b"\x89", b"\x88")
    numbers = (hostile.number(number) for number in (-1, -1, 0))
    state = hostile.row(hostile.number(3), hostile.text("<"), *[hostile.NONE] * 3, *numbers)
    content = hostile.call(hostile.named("_codecs", "encode"), hostile.text("\x02\x01"), hostile.text("latin1"))
    scalar = hostile.call(hostile.named(module, "scalar"), dtype + state + hostile.BUILD, content)
    assert load_zip(tmp_path / "w.pt", hostile.START + scalar + hostile.STOP) == 258


def test_paths_namespaces_devices_and_formats(tmp_path: Path) -> None:
    value = [
        Path("runs/train/exp"),
        SimpleNamespace(lr0=0.01),
        torch.device("cuda:1"),
        torch.float16,
        torch.Size([1, 2]),
    ]
    torch.save(value, tmp_path / "w.pt")
    held = load_torch_file(tmp_path / "w.pt")
    assert held[0] == "runs/train/exp"
    assert (held[1].path, held[1].state) == ("types.SimpleNamespace", {"lr0": 0.01})
    assert held[2:] == [torch.device("cuda:1"), torch.float16, (1, 2)]


def test_a_layer_is_an_inert_stand_in(tmp_path: Path) -> None:
    """`models.common.Conv` is a class of ours too: it is not what comes out."""
    made = hostile.call(hostile.named("models.common", "Conv"), hostile.number(3))
    state = hostile.mapping(__class__=hostile.NONE, x=hostile.number(1))
    held = load_zip(tmp_path / "w.pt", hostile.START + made + state + hostile.BUILD + hostile.STOP)
    assert isinstance(held, StandIn)
    assert (held.path, held.name, held.state) == ("models.common.Conv", "Conv", {"__class__": None, "x": 1})
    assert not hasattr(held, "x")


def test_stand_ins_are_keys_by_identity(tmp_path: Path) -> None:
    made = hostile.named("models.common", "Conv") + hostile.EMPTY_TUPLE + hostile.NEWOBJ
    entries = hostile.EMPTY_DICT + hostile.MARK + (made + hostile.NONE) * 3 + hostile.SETITEMS
    assert len(load_zip(tmp_path / "w.pt", hostile.START + entries + hostile.STOP)) == 3


def test_names_of_torch_stay_as_before(tmp_path: Path) -> None:
    """The stand-ins are allowed while the file is read only."""
    before = set(torch.serialization.get_safe_globals())
    load_zip(tmp_path / "w.pt", hostile.state_dict())
    assert set(torch.serialization.get_safe_globals()) == before


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
    assert type(held) is torch.Tensor
    assert held.dtype == dtype
    assert torch.equal(held, value)


@pytest.mark.parametrize("legacy", [False, True])
def test_views_share_a_storage(tmp_path: Path, legacy: bool) -> None:
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
        assert torch.equal(held[name], value)
    assert len({tensor.untyped_storage().data_ptr() for tensor in held.values() if len(tensor.shape)}) <= 2
