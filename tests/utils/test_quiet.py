"""Silence: nothing that a package says reaches the screen, from C++ neither, and everything is back afterwards."""

import ctypes
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from utils.quiet import quiet


def test_neither_python_nor_c_is_heard(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    print("before")
    with quiet():
        print("a print")
        os.write(1, b"bytes to standard output\n")
        os.write(2, b"bytes to standard error\n")
        if os.name == "posix":
            ctypes.CDLL(None).printf(b"held back by the C library\n")
        subprocess.run([sys.executable, "-c", "print('a process')"], check=True)
        warnings.warn("a warning", stacklevel=1)
        logging.getLogger("torch.onnx").error("a log line")
    print("after")
    sys.stderr.write("an error\n")
    assert capfd.readouterr() == ("before\nafter\n", "an error\n")
    assert len(recwarn) == 0


def test_errors_pass_and_the_streams_are_back(capfd: pytest.CaptureFixture[str]) -> None:
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no"), quiet():
            raise RuntimeError("no")
    print("after")
    assert capfd.readouterr().out == "after\n"
    assert (len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0) == opened


def test_a_process_without_streams() -> None:
    code = "import os; os.close(1); os.close(2)\nfrom utils.quiet import quiet\nwith quiet(): print('x')\nos._exit(7)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 7
