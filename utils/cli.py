"""Command lines: flags derived from a dataclass, one message for each mistake, and exit statuses."""

import argparse
import dataclasses
import errno
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import torch

from utils.errors import SettingsError, TrainingStoppedError, UserError
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
REQUIRED = dataclasses.MISSING
"""Default of an option that must be given."""
EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130
OUT_OF_MEMORY_TEXTS = (
    *("out of memory", "out of shared memory", "not enough memory", "insufficient memory", "can't allocate memory"),
    "killed by signal: killed",
)
"""Texts of out-of-memory errors that have no class of their own: torch's devices and allocators, OpenCV, workers."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def run(main: Callable[[], object]) -> int:
    """Call `main` and return the exit status: 0 done, 2 the user's mistake, 130 interrupted, 1 anything else."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except TrainingStoppedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 the last resort: prints the whole traceback unless the cause is known
        status, message = known_cause(error)
        print(f"error: {message}" if message else traceback.format_exc().rstrip(), file=sys.stderr)
        return status
    return EXIT_DONE


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
        return {"nargs": "+", "type": get_args(hint)[0]}
    return {"type": hint}


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

    Args:
        retired: advice by flag, for flags of the original that do not exist here.
    """

    def __init__(self, *, retired: Mapping[str, str] | None = None, **settings: Any) -> None:
        self._flags: dict[str, argparse.Action] = {}
        super().__init__(allow_abbrev=False, **settings)
        for flag, advice in (retired or {}).items():
            self.add_argument(
                flag, action=_RetiredFlag, nargs="*", const=advice, help=argparse.SUPPRESS, default=argparse.SUPPRESS
            )

    def _add_action(self, action: Action) -> Action:
        added = super()._add_action(action)
        self._flags |= dict.fromkeys(action.option_strings, action)
        return added

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the words after completing abbreviated flags (argparse's own completion takes aliases for rivals)."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self.completed, words[:end]), *words[end:]], namespace)

    def completed(self, word: str) -> str:
        """Return a word with its flag written out, if it is an unambiguous abbreviation of one."""
        start, equals, value = word.partition("=")
        if not start.startswith("--") or " " in start or start in self._flags:
            return word
        candidates = {flag: action for flag, action in self._flags.items() if flag.startswith(start)}
        existing = {flag: action for flag, action in candidates.items() if not isinstance(action, _RetiredFlag)}
        candidates = existing or candidates
        if not candidates:
            return word
        if len({(id(action), flag.startswith("--no-")) for flag, action in candidates.items()}) > 1:
            self.error(f"{start}: ambiguous: expected one of {', '.join(candidates)}")
        return next(iter(candidates)) + equals + value

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(EXIT_USER, f"error: {message}: {self.prog} --help lists what there is\n")


class _RetiredFlag(argparse.Action):
    """Answers a flag that does not exist here by what to do instead."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None
    ) -> NoReturn:
        parser.exit(EXIT_USER, f"error: {option_string}: does not exist here: {self.const}\n")
