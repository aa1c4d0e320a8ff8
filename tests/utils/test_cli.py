"""Exit statuses and their one message; options and their flags; the four commands."""

import errno
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import detect
import export
import train
import val
from tests.saying import assert_says
from utils import cli
from utils.errors import CheckpointError, DataError, ModelConfigError, SettingsError, TrainingStoppedError, did_you_mean
from utils.runs.detect import DetectOptions
from utils.runs.export import ExportOptions
from utils.runs.validate import ValOptions
from utils.training.options import TrainOptions

ROOT = Path(__file__).parent.parent.parent


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
    ("error", "status", "facts"),
    [
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (TrainingStoppedError("epoch 3: the loss is nan"), 1, ["epoch 3: the loss is nan"]),
        (OSError(errno.ENOSPC, "No space left on device", "best.pt"), 1, ["disk full", "best.pt"]),
        (OSError(errno.ENOSPC, "No space left on device"), 1, ["disk full"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "best.pt"), 1, ["disk full", "best.pt"]),
        (MemoryError(), 1, ["out of memory", "MemoryError"]),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            ["out of memory: CUDA out of memory. Tried to allocate 2 GiB"],
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            ["out of memory"],
        ),
        (MemoryError("of 8 GiB\nand more"), 1, ["of 8 GiB", "--batch", "--img", "--workers", "checkpoint"]),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2, ["runs/x", "Permission denied", "--project"]),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), 2, ["runs/x", "Read-only file system"]),
    ],
)
def test_known_causes_take_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, facts: list[str]
) -> None:
    assert cli.run(raising(error)) == status
    said = capsys.readouterr().err
    assert_says(said, *facts)
    assert len(said.splitlines()) == 1


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


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_the_terminal_cannot_show_end_no_run(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", screen)
    assert cli.run(lambda: print("街 \udce4.jpg: 2 cats", flush=True)) == 0
    shown = screen.buffer.getvalue().decode(encoding)
    assert "\\udce4.jpg: 2 cats" in shown
    assert ("街" in shown) == (encoding == "utf-8")


def test_exits_pass_through() -> None:
    with pytest.raises(SystemExit):
        cli.run(raising(SystemExit(3)))


# --- options as fields of a dataclass


@dataclass
class Options:
    weights: str = cli.option(cli.REQUIRED, "the weights")
    img: int = cli.option(64, "size", aliases=("--imgsz", "--img-size"), least=32)
    share: float | None = cli.option(None, "50 % of all")
    amp: str = cli.option("auto", "format", choices=("auto", "off", "fp16"), switches={"--half": ("fp16", "as fp16")})
    schedule: str = cli.option(
        "linear",
        "rates",
        choices=("linear", "fixed"),
        switches={"--cos-lr": ("cosine", "one"), "--fixed-lr": ("fixed", "other")},
        switches_only=True,
    )
    classes: Sequence[int] | None = cli.option(None, "some")
    layers: list[str] = cli.option([], "any number", nargs="*")
    patch: list[str] = cli.option([], **cli.SHARED["patch"])
    save_txt: bool = cli.option(False, "labels")
    save_json: bool = cli.option(False, "results")
    rect: bool = cli.option(True, "rectangles")
    note: str = "no flag of its own"


RETIRED = {"--quad": "not supported", "--label-smoothing": "no effect", "--image-weights": "not supported"}


ADVICE = {"--lr0": "write it into a yaml"}


def read(*words: str) -> dict[str, Any]:
    return cli.parse(Options, ["--weights", "w.pt", *words], prog="try.py", retired=RETIRED, advice=ADVICE)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {}),
        (["--img", "320"], {"img": 320}),
        (["--imgsz=320"], {"img": 320}),
        (["--share", "0.5"], {"share": 0.5}),
        (["--half"], {"amp": "fp16"}),
        (["--half", "--weights", "x"], {"amp": "fp16", "weights": "x"}),
        (["--amp", "off"], {"amp": "off"}),
        (["--cos-lr"], {"schedule": "cosine"}),
        (["--classes", "1", "2"], {"classes": [1, 2]}),
        (["--layers"], {"layers": []}),
        (["--patch", "one", "--patch", "two words"], {"patch": ["one", "two words"]}),
        (["--save-txt", "--no-rect"], {"save_txt": True, "rect": False}),
        (["--rect"], {"rect": True}),
    ],
)
def test_types_come_from_the_annotations(words: list[str], given: dict[str, Any]) -> None:
    assert read(*words) == {"weights": "w.pt"} | given


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--im", "320"], {"img": 320}),
        (["--img-s=320"], {"img": 320}),
        (["--sh", "0.5"], {"share": 0.5}),
        (["--save-t"], {"save_txt": True}),
        (["--no-r"], {"rect": False}),
        (["--layers", "a", "--r"], {"layers": ["a"], "rect": True}),
        (["--pat=insert SE after p5 --x"], {"patch": ["insert SE after p5 --x"]}),
        (["--img_size", "320", "--save_t"], {"img": 320, "save_txt": True}),
    ],
)
def test_unambiguous_abbreviations(words: list[str], given: dict[str, Any]) -> None:
    assert read(*words) == {"weights": "w.pt"} | given


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--sa"], ["--sa", "--save-txt", "--save-json"]),
        (["--nonsense", "3"], ["--nonsense"]),
        (["--img", "many"], ["--img", "many"]),
        (["--img", "6.5"], ["--img", "6.5", "whole number"]),
        (["--share", "a=1"], ["--share", "a=1", "number"]),
        (["--share"], ["--share"]),
        (["--img", "64", "64"], ["--img 64 64", "one value"]),
        (["--img=64", "96"], ["--img=64 96", "one value"]),
        (["--weights", "a.pt", "b.pt"], ["--weights a.pt b.pt", "one value"]),
        (["--save-txt", "true"], ["--save-txt true", "no value"]),
        (["--save-txt=false"], ["--save-txt false", "no value"]),
        (["--save-t", "False"], ["--save-t False", "leave"]),
        (["--rect", "False"], ["--rect False", "--no-rect"]),
        (["img=64"], ["img=64", "--img 64"]),
        (["--", "x.jpg"], ["x.jpg"]),
        (["-weights", "x"], ["-weights", "--weights"]),
        (["\u2014weights", "x"], ["--weights"]),
        (["\u2013-img=3"], ["--img=3"]),
        (["--wieghts", "x"], ["--wieghts", "--weights"]),
        (["--imgsiz", "3"], ["--imgsiz", "--imgsz"]),
        (["--savetxt"], ["--savetxt", "--save-txt"]),
        (["--Save-Txt"], ["--Save-Txt", "--save-txt"]),
        (["--image-size", "3"], ["--image-size", "--img"]),
        (["--fp16"], ["--fp16", "--half", "--amp"]),
        (["--lr0", "0.1"], ["--lr0", "into a yaml"]),
        (["--cos-lr", "--fixed-lr"], ["--cos-lr", "--fixed-lr"]),
    ],
)
def test_mistakes_take_one_line(capsys: pytest.CaptureFixture[str], words: list[str], facts: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(*words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert_says(captured.err, *facts, "try.py --help")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize("words", [["--quad"], ["--label-smoothing", "0.1"], ["--label", "0.1"], ["--image-w"]])
def test_retired_flags_are_answered(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(*words)
    assert caught.value.code == 2
    flag = next(flag for flag in RETIRED if flag.startswith(words[0]))
    assert_says(capsys.readouterr().err, flag, RETIRED[flag])


@pytest.mark.parametrize("flag", ["--epochs", "--save-csv", "--save-dir", "--tta", "--conf", "--data"])
def test_no_suggestion_is_better_than_a_wrong_one(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parse(Options, [flag, "3"], prog="try.py")
    assert caught.value.code == 2
    assert set(re.findall(r"--[\w-]+", capsys.readouterr().err)) == {flag, "--help"}


def test_what_the_words_before_an_unknown_flag_lack_is_not_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(Options, ["--model", "w.pt"], prog="try.py")
    assert_says(capsys.readouterr().err, "--model", "--weights")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert_says(shown, "--imgsz", "64", "50 %", "--half", "--no-rect", "auto, off, fp16")
    assert not re.search("--quad|--schedule|--note|None|False", shown)


def test_a_required_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(Options, [], prog="try.py")
    assert_says(capsys.readouterr().err, "--weights")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [({"img": 31}, ["--img 31", 32]), ({"amp": "fp8"}, ["--amp fp8", "auto", "off", "fp16"])],
)
def test_values_out_of_range(changes: dict[str, Any], facts: list[object]) -> None:
    cli.check_values(Options("w.pt"))
    with pytest.raises(SettingsError) as caught:
        cli.check_values(Options("w.pt", **changes))
    assert_says(caught.value, *facts)


# --- the four commands

COMMANDS = {
    TrainOptions: (train.parse_options, "utils/training"),
    ValOptions: (val.parse_options, "utils/runs/validate.py"),
    DetectOptions: (detect.parse_options, "utils/runs/detect*.py"),
    ExportOptions: (export.parse_options, "utils/runs/export.py"),
}
FIELDS = [(kind, field) for kind in COMMANDS for field in fields(kind) if field.name != "given"]


def names_read(pattern: str) -> set[str]:
    """Return the attributes that are read of `options`, `settings`, `run.options` and so on in some files."""
    paths = [path for path in ROOT.glob(pattern) if path.is_file()] or list(ROOT.glob(f"{pattern}/*.py"))
    assert paths, pattern
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return set(re.findall(r"\b(?:options|settings)\.(\w+)", text))


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[f"{kind.__name__}-{field.name}" for kind, field in FIELDS])
def test_every_option_has_a_flag_and_is_used(kind: type, field: Field[Any], capsys: pytest.CaptureFixture[str]) -> None:
    parse, pattern = COMMANDS[kind]
    assert field.metadata["argparse"]["help"].strip()
    with pytest.raises(SystemExit):
        parse(["--help"])
    flags = [*field.metadata["switches"]]
    if not field.metadata["switches_only"]:
        flags.append(cli.flag_of(field.name))
    assert_says(capsys.readouterr().out.partition("\noptions:")[2], *flags, *field.metadata["aliases"])
    assert field.name in names_read(pattern)


def test_one_flag_has_one_spelling_in_every_command() -> None:
    aliases: dict[str, set[tuple[str, ...]]] = {}
    for _, field in FIELDS:
        aliases.setdefault(field.name, set()).add(field.metadata["aliases"])
    assert {name: found for name, found in aliases.items() if len(found) > 1} == {}
    assert {"img", "batch", "weights", "device", "plugin"} <= set.intersection(
        *({field.name for field in fields(kind)} for kind in COMMANDS if kind is not DetectOptions)
    )


ORIGINAL = {
    TrainOptions: (
        "weights cfg data hyp epochs batch-size imgsz img img-size rect resume nosave noval noplots "
        "noautoanchor evolve bucket cache image-weights device multi-scale optimizer sync-bn workers "
        "local_rank seed project name exist-ok quad cos-lr flat-cos-lr fixed-lr label-smoothing patience "
        "freeze save-period min-items close-mosaic single-cls entity upload_dataset bbox_interval "
        "artifact_alias mask-ratio no-overlap poly-lr evolve_population resume_evolve ndjson-console "
        "ndjson-file adam linear-lr"
    ),
    ValOptions: (
        "data weights batch-size imgsz img img-size conf-thres iou-thres max-det task device workers "
        "single-cls augment verbose save-txt save-hybrid save-conf save-json project name exist-ok half dnn "
        "min-items"
    ),
    DetectOptions: (
        "weights source data imgsz img img-size conf-thres iou-thres max-det device view-img save-txt "
        "save-conf save-crop nosave classes agnostic-nms augment visualize update project name exist-ok "
        "line-thickness hide-labels hide-conf half dnn vid-stride retina-masks save-csv save-format no-trace"
    ),
    ExportOptions: (
        "data weights imgsz img img-size batch-size device half inplace keras optimize int8 dynamic simplify "
        "opset verbose workspace nms agnostic-nms topk-per-class topk-all iou-thres conf-thres include "
        "per-tensor mlmodel cache"
    ),
}
"""The flags of YOLOv9 and YOLOv5, by command."""


@pytest.mark.parametrize(("kind", "flag"), [(kind, flag) for kind, flags in ORIGINAL.items() for flag in flags.split()])
def test_every_flag_of_the_original_is_taken_or_answered(
    kind: type, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["1"]):
        with pytest.raises(SystemExit) as caught:
            COMMANDS[kind][0]([f"--{flag}", *words, "--help"])
        if caught.value.code == 0:
            return
    assert_says(capsys.readouterr().err, "does not exist here", f"--{flag}")


@pytest.mark.parametrize("kind", COMMANDS)
def test_every_unambiguous_abbreviation_is_completed(kind: type) -> None:
    parser = cli.Parser(prog="try.py", argument_default=None)
    for field in cli.options_of(kind):
        cli.add_option(parser, field, get_type_hints(kind)[field.name])
    flags = {flag: id(action) for action in parser._actions for flag in action.option_strings if flag[:2] == "--"}
    tried = 0
    for flag, action in flags.items():
        for end in range(3, len(flag)):
            rivals = {found for other, found in flags.items() if other.startswith(flag[:end])}
            if flag[:end] not in flags and len(rivals) == 1 and not flag.startswith("--no-"):
                assert flags[parser.completed(flag[:end])] == action
                tried += 1
    assert tried > 50


@pytest.mark.parametrize("name", sorted(cli.OTHER_NAMES))
def test_other_names_lead_to_flags_that_exist(name: str) -> None:
    known = {flag for _, field in FIELDS for flag in (cli.flag_of(field.name), *field.metadata["switches"])}
    assert name not in known
    assert set(cli.OTHER_NAMES[name]) <= known


def test_did_you_mean() -> None:
    assert did_you_mean("convv", ["Conv", "Concat"]) == " Did you mean 'Conv'?"
    assert did_you_mean("zzz", ["Conv", "Concat"]) == ""
    assert did_you_mean("x", []) == ""
