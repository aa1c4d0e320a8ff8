"""Files are written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest
import yaml

from tests.saying import assert_says
from utils import files
from utils.errors import DataError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    with files.atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists(), "the file appears when it is whole"
    assert path.read_bytes() == b"one"
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["a.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "error", [RuntimeError("mine"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), files.atomic_write(path) as file:  # noqa: PT012
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"], "no half of a file is left over"


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC) as caught:
        files.write_bytes(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_text_formats(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "红细胞\n")
    assert (tmp_path / "a.txt").read_bytes() == "红细胞\n".encode()
    files.write_json(tmp_path / "a.json", {"名": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"名": [1, 2.5, None]}
    assert "名" in (tmp_path / "a.json").read_text(encoding="utf-8")
    files.write_yaml(tmp_path / "a.yaml", {"z": 1, "a": ["б"]})
    assert (tmp_path / "a.yaml").read_text(encoding="utf-8") == "z: 1\na:\n- б\n"
    files.write_csv(tmp_path / "a.csv", ["x", "y z"], [[1, "a,b"], [None, 2.5]])
    assert (tmp_path / "a.csv").read_text() == 'x,y z\n1,"a,b"\n,2.5\n'


def test_json_takes_file_names_that_are_no_unicode(tmp_path: Path) -> None:
    names = ["\udce4.jpg", "ä 名.jpg", "\\udce4"]
    files.write_json(tmp_path / "a.json", names)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == names


def test_next_run_dir(tmp_path: Path) -> None:
    assert [files.next_run_dir(tmp_path / "runs", "exp").name for _ in range(3)] == ["exp", "exp2", "exp3"]
    assert files.next_run_dir(tmp_path / "runs", "exp", exist_ok=True).name == "exp"
    (tmp_path / "runs" / "exp2").rmdir()
    assert files.next_run_dir(tmp_path / "runs", "exp").name == "exp2"
    (tmp_path / "runs" / "mine").write_text("a file of that name")
    assert files.next_run_dir(tmp_path / "runs", "mine").name == "mine2"


def test_read_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1, б]\n", encoding="utf-8")
    assert files.read_yaml(tmp_path / "a.yaml", DataError) == {"a": [1, "б"]}
    (tmp_path / "a.yaml").write_text("a: [1\nb: 2\n")
    for name in (None, "mine"):
        with pytest.raises(DataError) as caught:
            files.read_yaml(tmp_path / "a.yaml", DataError, name)
        assert_says(caught.value, name or "a.yaml", "line 2", "column 2")
    (tmp_path / "a.yaml").write_text("!!python/object/apply:os.getcwd []\n")
    with pytest.raises(DataError) as caught:
        files.read_yaml(tmp_path / "a.yaml", DataError)
    assert_says(caught.value, "a.yaml", "constructor")
    for path in (tmp_path / "b.yaml", tmp_path):
        with pytest.raises(DataError) as caught:
            files.read_yaml(path, DataError)
        assert_says(caught.value, path, "cannot be read")


def test_written_yaml_is_read_back(tmp_path: Path) -> None:
    content = {"epochs": 3, "name": "yes", "share": 0.1, "none": None, "list": [1, "2"], "text": "a: b"}
    files.write_yaml(tmp_path / "a.yaml", content)
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 0.001), ("1E-3", 0.001), ("1.e-3", 0.001), ("1.0e-3", 0.001), ("+1e-3", 0.001), ("-1e-3", -0.001)),
        *(("1e3", 1000.0), ("1.5e3", 1500.0), (".5e1", 5.0), ("1e-05", 0.00001), ("2e+2", 200.0)),
        *(
            ("1", 1),
            ("0.5", 0.5),
            ("1e", "1e"),
            ("e3", "e3"),
            ("1e3x", "1e3x"),
            ("'1e3'", "1e3"),
            ("1e-3.yaml", "1e-3.yaml"),
        ),
    ],
)
def test_exponents_are_numbers(text: str, value: object, tmp_path: Path) -> None:
    assert files.parse_yaml(f"a: {text}") == {"a": value}
    (tmp_path / "a.yaml").write_text(f"[{text}]")
    assert files.read_yaml(tmp_path / "a.yaml", DataError) == [value]
    files.write_yaml(tmp_path / "b.yaml", {"a": value, "as text": text})
    assert files.read_yaml(tmp_path / "b.yaml", DataError) == {"a": value, "as text": text}


def test_nothing_of_a_yaml_text_is_run() -> None:
    with pytest.raises(yaml.YAMLError):
        files.parse_yaml("!!python/object/apply:os.getcwd []")


def test_find_shipped(tmp_path: Path) -> None:
    assert files.find_shipped("hyp.yaml", "data") == files.REPOSITORY / "data" / "hyp.yaml"
    assert files.find_shipped("data/hyp.yaml", "data") is not None
    assert files.find_shipped(tmp_path / "none.yaml", "data") is None
    (tmp_path / "mine.yaml").write_text("")
    assert files.find_shipped(tmp_path / "mine.yaml", "data") == tmp_path / "mine.yaml"
