"""Command lines: flags derived from a dataclass, one message for each mistake, and exit statuses."""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import torch

from utils.errors import SettingsError, SignalledError, TrainingStoppedError, UserError
from utils.ranks import LostRankError
from utils.wording import first_line

SHARED: dict[str, dict[str, Any]] = {
    "img": {"aliases": ("--imgsz", "--img-size"), "metavar": "PIXELS"},
    "batch": {"aliases": ("--batch-size",), "metavar": "N"},
    "device": {"help": "cpu, mps, or a CUDA number; empty for the best one present"},
    "project": {"metavar": "DIR", "help": "folder of the runs"},
    "name": {"help": "folder of this run; numbered if it exists"},
    "exist_ok": {"help": "write into an existing folder of this name"},
    "plugin": {
        "action": "append",
        "metavar": "FILE",
        "help": "Python file with layers of yours, which is run; may be repeated",
    },
    "cfg": {
        "metavar": "YAML",
        "help": "network of the weights, in place of their own description; plain tensors have none",
    },
    "patch": {
        "action": "append",
        "metavar": "EDIT",
        "help": "edit of the network: 'insert GatherExcite after p5'; may be repeated",
    },
}
"""What flags of several commands have in common, by field name: arguments of `option`."""
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "--model": ("--weights", "--cfg"),
    **dict.fromkeys(("--checkpoint", "--ckpt", "--pretrained", "--weight-file"), ("--weights",)),
    **dict.fromkeys(("--config", "--yaml"), ("--cfg",)),
    **dict.fromkeys(("--input", "--images", "--image", "--video", "--path"), ("--source",)),
    **dict.fromkeys(("--dataset", "--data-yaml"), ("--data",)),
    **dict.fromkeys(("--size", "--image-size", "--input-size", "--resolution", "--shape"), ("--img",)),
    **dict.fromkeys(("--bs", "--num-images"), ("--batch",)),
    **dict.fromkeys(("--num-epochs", "--max-epochs"), ("--epochs",)),
    **dict.fromkeys(("--num-workers", "--jobs", "--threads"), ("--workers",)),
    **dict.fromkeys(("--gpu", "--gpus", "--gpu-id", "--cpu", "--cuda"), ("--device",)),
    **dict.fromkeys(("--threshold", "--thres", "--thresh", "--score-threshold", "--confidence"), ("--conf-thres",)),
    **dict.fromkeys(("--nms-thres", "--nms-threshold", "--nms-iou"), ("--iou-thres",)),
    **dict.fromkeys(("--output", "--output-dir", "--out-dir", "--save-dir"), ("--out", "--project", "--name")),
    **dict.fromkeys(("--fp16", "--float16"), ("--half", "--amp")),
    **dict.fromkeys(("--show", "--view", "--display"), ("--view-img",)),
    **dict.fromkeys(("--line-width", "--thickness"), ("--line-thickness",)),
    **dict.fromkeys(("--format", "--formats"), ("--include",)),
    "--split": ("--task",),
    **dict.fromkeys(("--hyperparameters", "--hyperparams"), ("--hyp",)),
    **dict.fromkeys(("--early-stopping", "--early-stop"), ("--patience",)),
}
"""Names that other programs give to flags, and ours; those that the command has are offered."""
LIKENESS, PART_LIKENESS = 0.8, 0.7
"""How alike a misspelt flag and ours must be as a whole, and each of their parts between hyphens, to be offered."""
FALSE_WORDS = ("false", "no", "off", "0")
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
"""Dashes that text editors put in place of hyphens."""
REQUIRED = dataclasses.MISSING
"""Default of an option that must be given."""
EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED, EXIT_SIGNALLED = 0, 1, 2, 130, 143
GRACE_SECONDS = 2
"""How long a rank waits before it speaks of a mistake, since the first rank has mostly said the same; three times as
long before it speaks of a lost rank, which has mostly said why. torchrun ends it meanwhile."""
OUT_OF_MEMORY_TEXTS = (
    *("out of memory", "out of shared memory", "not enough memory", "insufficient memory", "can't allocate memory"),
    "killed by signal: killed",
)
"""Texts of out-of-memory errors that have no class of their own: torch's devices and allocators, OpenCV, workers."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def run(main: Callable[[], object]) -> int:
    """Call `main` and return the exit status.

    It is 0 done, 2 the user's mistake, 130 interrupted, 143 told to stop by a signal, 1 anything else. Of several
    ranks only the first prints to the standard output; an error names its rank.
    """
    rank = rank_in_environment()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name that the terminal cannot show ends no run
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.ExitStack() as stack:
        if rank:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            main()
        except KeyboardInterrupt:
            say("interrupted", rank)
            return EXIT_INTERRUPTED
        except SignalledError as error:
            if rank == 0:  # all ranks were told, and have saved the same
                say(str(error), rank)
            return EXIT_SIGNALLED
        except (UserError, TrainingStoppedError, LostRankError) as error:
            if isinstance(error, LostRankError):
                time.sleep(3 * GRACE_SECONDS)
            elif rank:
                time.sleep(GRACE_SECONDS)
            say(f"error: {error}", rank)
            return EXIT_USER if isinstance(error, UserError) else EXIT_FAILED
        except Exception as error:  # noqa: BLE001 the last resort: prints the whole traceback unless the cause is known
            status, message = known_cause(error)
            say(f"error: {message}" if message else traceback.format_exc().rstrip(), rank)
            return status
    return EXIT_DONE


def rank_in_environment() -> int:
    """Return the number that torchrun gave this process; 0 for a process alone, or where it is no number."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() and "WORLD_SIZE" in os.environ else 0


def say(message: str, rank: int) -> None:
    """Print a message to the standard error; one of several ranks says which it is."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    print(f"rank {rank}: {message}" if several else message, file=sys.stderr, flush=True)


def known_cause(error: Exception) -> tuple[int, str | None]:
    """Return the exit status of a machine's error, and its message if the cause is known (else None: a traceback)."""
    line = first_line(error)
    out_of_memory = any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS)
    if out_of_memory or isinstance(error, MemoryError | torch.OutOfMemoryError):
        advice = "lower --batch, --img or --workers; the last checkpoint is kept"
        return EXIT_FAILED, f"out of memory: {line}: {advice}"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return EXIT_FAILED, f"disk full: {error.filename or line}: free some space; the earlier files are kept"
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        place = error.filename or "a file"
        return EXIT_USER, f"{place}: {error.strerror}: expected a place that can be read and written; see --project"
    return EXIT_FAILED, None


# --- options as fields of a dataclass


def option(
    default: Any,
    help: str,
    *,
    aliases: Sequence[str] = (),
    choices: Sequence[str] = (),
    least: int | None = None,
    switches: Mapping[str, tuple[Any, str]] | None = None,
    switches_only: bool = False,
    **settings: Any,
) -> Any:
    """Return a dataclass field that is also a flag: `--` and the field's name; its type is the field's annotation.

    Args:
        default: `REQUIRED` if there is none.
        aliases: other spellings of the flag.
        choices: the values that `check_values` accepts.
        least: the lowest number that `check_values` accepts.
        switches: further flags, each with the value that it sets and its help text; they exclude one another.
        switches_only: the field has its switches, and no flag of its own name.
        settings: other arguments of `argparse.ArgumentParser.add_argument`.
    """
    metadata = {
        "argparse": {"help": help} | settings,
        "aliases": tuple(aliases),
        "choices": tuple(choices),
        "least": least,
        "switches": dict(switches or {}),
        "switches_only": switches_only,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(name: str) -> str:
    """Return the flag of a field: `--save-txt` of save_txt."""
    return f"--{name.replace('_', '-')}"


def options_of(kind: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass (or of an instance) that `option` made."""
    return [field for field in dataclasses.fields(kind) if "argparse" in field.metadata]


def parse(kind: type, arguments: Sequence[str] | None, **settings: Any) -> dict[str, Any]:
    """Return the options that a command line gives, by field name; the others keep the dataclass's defaults.

    Args:
        kind: a dataclass whose fields are made by `option`.
        arguments: the words of the command line; None for those of this process.
        settings: arguments of `Parser`.
    """
    parser, hints = Parser(argument_default=argparse.SUPPRESS, **settings), get_type_hints(kind)
    for field in options_of(kind):
        add_option(parser, field, hints[field.name])
    return vars(parser.parse_args(arguments))


def add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    """Add the flags of one field; `hint` is its type."""
    details, default = field.metadata, field.default
    if not details["switches_only"]:
        settings = type_settings(hint, default) | details["argparse"]
        if settings.get("action") == "append":
            settings.pop("nargs")
        if details["choices"]:
            settings["help"] += f": one of {', '.join(details['choices'])}"
        if default is REQUIRED:
            settings["required"] = field.default_factory is REQUIRED
        elif default is not None and default is not False and default != "":
            settings["help"] += f" (default: {' '.join(default) if isinstance(default, tuple) else default})"
        settings["help"] = settings["help"].replace("%", "%%")
        parser.add_argument(flag_of(field.name), *details["aliases"], **settings)
    if details["switches"]:
        group = parser.add_mutually_exclusive_group()
        for flag, (value, text) in details["switches"].items():
            group.add_argument(flag, dest=field.name, action="store_const", const=value, help=text)


def type_settings(hint: Any, default: Any) -> dict[str, Any]:
    """Return how argparse reads a type: a flag without a value for bool, several values for a sequence."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) in (list, Sequence):
        return {"nargs": "+", "type": reader_of(get_args(hint)[0])}
    return {"type": reader_of(hint)}


def reader_of(kind: Any) -> Callable[[str], Any]:
    """Return the function that reads a value of a type from its word on the command line."""
    return {int: whole_number, float: number}.get(kind, kind)


def whole_number(word: str) -> int:
    """Return the integer that a word is.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{word}': expected a whole number") from None


def number(word: str) -> float:
    """Return the number that a word is.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{word}': expected a number") from None


def check_values(options: Any) -> None:
    """Refuse values that are none of an option's choices, or below its least.

    Raises:
        SettingsError: names the flag, its value and what was expected.
    """
    for field in options_of(options):
        value, choices, least = getattr(options, field.name), field.metadata["choices"], field.metadata["least"]
        if choices and value not in choices:
            raise SettingsError(f"{flag_of(field.name)} {value}: expected one of {', '.join(choices)}")
        if least is not None and value is not None and value < least:
            raise SettingsError(f"{flag_of(field.name)} {value}: expected at least {least}")


# --- the parser


Action = TypeVar("Action", bound=argparse.Action)


class Parser(argparse.ArgumentParser):
    """Argument parser whose mistakes take one line and exit status 2; it accepts unambiguous abbreviations of flags.

    Words of a flag may be separated by `_` as well as by `-`.

    Args:
        retired: advice by flag, for flags of the original that do not exist here.
        advice: the same for other flags, which cannot be abbreviated.
    """

    def __init__(
        self,
        *,
        retired: Mapping[str, str] | None = None,
        advice: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self._flags: dict[str, argparse.Action] = {}
        self._advice = dict(advice or {})
        super().__init__(allow_abbrev=False, **settings)
        for flag, text in (retired or {}).items():
            self.add_argument(
                flag, action=_RetiredFlag, nargs="*", const=text, help=argparse.SUPPRESS, default=argparse.SUPPRESS
            )

    def _add_action(self, action: Action) -> Action:
        added = super()._add_action(action)
        self._flags |= dict.fromkeys(action.option_strings, action)
        return added

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words; a word that belongs to no flag is an error that says where it stands."""
        words = list(sys.argv[1:] if args is None else args)
        parsed, rest = self.parse_known_args(words, namespace)
        left = [word for word in rest if word != "--"]
        if left:
            self.error(self._about_leftover(left[0], words))
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the words after completing abbreviated flags (argparse's own completion takes aliases for rivals)."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self.completed, words[:end]), *words[end:]], namespace)

    def completed(self, word: str) -> str:
        """Return a word with its flag written out, if it is an unambiguous abbreviation of one.

        An unknown or ambiguous flag ends the program with a message.
        """
        start, equals, value = word.partition("=")
        if not start.startswith("--") or " " in start or start == "--":
            self._check_hyphens(word)
            return word
        flag = start if start in self._flags else self._written_out(start)
        action = self._flags[flag]
        if equals and action.nargs == 0:
            self.error(about_switch(start, value, action))
        return flag + equals + value

    def _written_out(self, start: str) -> str:
        plain = start.replace("_", "-")
        exact = [flag for flag in self._flags if flag.replace("_", "-") == plain]
        if exact:
            return exact[0]
        candidates = {flag: action for flag, action in self._flags.items() if flag.replace("_", "-").startswith(plain)}
        existing = {flag: action for flag, action in candidates.items() if not isinstance(action, _RetiredFlag)}
        if not candidates:
            self.error(self._about_unknown(start, plain))
        if len({(id(action), flag.startswith("--no-")) for flag, action in existing.items()}) > 1:
            self.error(f"{start}: ambiguous: expected one of {', '.join(existing)}")
        return next(iter(existing or candidates))

    def _about_unknown(self, start: str, plain: str) -> str:
        """Say that a flag does not exist, and which one does where that is sure."""
        if plain in self._advice:
            return f"{start}: does not exist here: {self._advice[plain]}"
        known = [flag for flag, action in self._flags.items() if not isinstance(action, _RetiredFlag)]
        ours = [flag for flag in OTHER_NAMES.get(plain, ()) if flag in known]
        if ours:
            return f"{start}: does not exist here: use {' and '.join(ours) if '--name' in ours else ' or '.join(ours)}"
        near = max(known, key=lambda flag: likeness(plain, flag))
        return f"{start}: no such flag" + (f"; the nearest is {near}" if likeness(plain, near) >= LIKENESS else "")

    def _check_hyphens(self, word: str) -> None:
        """Refuse a flag with another number of hyphens, or with a dash of a text editor in their place."""
        name = word.lstrip(f"-{DASHES}")
        start = f"--{name.partition('=')[0]}".replace("_", "-")
        hyphens = word[: len(word) - len(name)]
        if len(hyphens) and hyphens != "--" and len(name) > 1 and any(flag.startswith(start) for flag in self._flags):
            self.error(f"{word}: flags begin with two hyphens: expected --{name}")

    def _about_leftover(self, word: str, words: Sequence[str]) -> str:
        """Say why a word belongs to no flag."""
        place = len(words) - 1 - words[::-1].index(word)
        before = next((index for index in range(place - 1, -1, -1) if words[index].startswith("--")), 0)
        name, equals, value = word.partition("=")
        if equals and f"--{name}" in self._flags:
            return f"{word}: expected --{name} {value}"
        action = self._flags.get(self.completed(words[before]).partition("=")[0])
        if action is None:
            return f"{word}: belongs to no flag"
        given = " ".join(words[before : place + 1])
        return about_switch(words[before], word, action) if action.nargs == 0 else f"{given}: expected one value"

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(EXIT_USER, f"error: {message}: {self.prog} --help lists what there is\n")


def about_switch(flag: str, value: str, action: argparse.Action) -> str:
    """Say that a flag takes no value, and how it is turned off if that was meant."""
    message = f"{flag} {value}: expected no value"
    if value.lower() not in FALSE_WORDS:
        return message
    opposite = next((one for one in action.option_strings if one.startswith("--no-")), None)
    return f"{message}; {opposite} turns it off" if opposite else f"{message}; leave {flag} out"


def likeness(flag: str, other: str) -> float:
    """Return from 0 to 1 how alike two flags are; 0 if a part between hyphens is another word."""
    parts, others = flag.lower().strip("-").split("-"), other.strip("-").split("-")
    if "".join(parts) == "".join(others):
        return 1.0
    if len(parts) != len(others):
        return 0.0
    alike = [difflib.SequenceMatcher(None, part, one).ratio() for part, one in zip(parts, others, strict=True)]
    whole = difflib.SequenceMatcher(None, "-".join(parts), "-".join(others)).ratio()
    return whole if min(alike) >= PART_LIKENESS else 0.0


class _RetiredFlag(argparse.Action):
    """Answers a flag that does not exist here by what to do instead."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None
    ) -> NoReturn:
        parser.exit(EXIT_USER, f"error: {option_string}: does not exist here: {self.const}\n")
