"""Exit statuses and their one message; the parser."""

import errno
from collections.abc import Callable

import pytest
import torch

from utils import cli
from utils.errors import CheckpointError, DataError, ModelConfigError, SettingsError, TrainingStoppedError, did_you_mean


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: "anything") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [ModelConfigError, DataError, CheckpointError, SettingsError])
def test_the_users_mistakes(capsys: pytest.CaptureFixture[str], kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError)
    assert cli.run(raising(kind("here: this: that"))) == 2
    assert capsys.readouterr().err == "error: here: this: that\n"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (TrainingStoppedError("epoch 3: the loss is nan"), 1, "error: epoch 3: the loss is nan"),
        (OSError(errno.ENOSPC, "No space left on device", "best.pt"), 1, "error: disk full: best.pt: free some space"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: disk full: "),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "best.pt"), 1, "error: disk full: best.pt"),
        (MemoryError(), 1, "error: out of memory: "),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            "error: out of memory: CUDA out of memory",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            "error: out of memory: ",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2, "error: runs/x: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), 2, "error: runs/x: Read-only file system"),
    ],
)
def test_known_causes_take_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    assert cli.run(raising(error)) == status
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert len(said.splitlines()) == 1


def test_out_of_memory_says_what_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(raising(MemoryError("of 8 GiB\nand more")))
    said = capsys.readouterr().err
    assert "of 8 GiB: lower --batch, --img" in said
    assert "the last checkpoint is kept" in said


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("mine"),
        RuntimeError("mine"),
        KeyError("mine"),
        ValueError("mine"),
        FileNotFoundError(2, "mine"),
    ],
)
def test_anything_else_is_shown_whole(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    assert cli.run(raising(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert "mine" in said.splitlines()[-1]


def test_exits_pass_through() -> None:
    with pytest.raises(SystemExit):
        cli.run(raising(SystemExit(3)))


# --- the parser


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="train.py", retired={"--quad": "not supported", "--evolve": "pass --hyp FILE"})
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--img", "--imgsz", type=int)
    return parser


def test_parser_reads_its_flags() -> None:
    options = make_parser().parse_args(["--imgsz", "320"])
    assert (options.epochs, options.img) == (3, 320)
    assert vars(options) == {"epochs": 3, "img": 320}, "retired flags leave nothing behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "error: unrecognized arguments: --epoch 3: train.py --help lists what there is"),
        (
            ["--epochs", "many"],
            "error: argument --epochs: invalid int value: 'many': train.py --help lists what there is",
        ),
        (["--epochs"], "error: argument --epochs: expected one argument: train.py --help lists what there is"),
        (["--quad"], "error: --quad: does not exist here: not supported"),
        (["--evolve", "300"], "error: --evolve: does not exist here: pass --hyp FILE"),
    ],
)
def test_parser_refuses_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == message + "\n"
    assert captured.out == ""


def test_help_does_not_list_retired_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--imgsz" in shown
    assert "--quad" not in shown


def test_did_you_mean() -> None:
    assert did_you_mean("convv", ["Conv", "Concat"]) == " Did you mean 'Conv'?"
    assert did_you_mean("zzz", ["Conv", "Concat"]) == ""
    assert did_you_mean("x", []) == ""
