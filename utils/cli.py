"""What every command line shares: exit statuses and the one message that goes with each."""

import argparse
import errno
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch

from utils.errors import TrainingStoppedError, UserError

PLUGIN_FLAG: dict[str, Any] = {
    "action": "append",
    "metavar": "FILE",
    "help": "Python file with layers of yours, which is run; may be repeated",
}
"""How every command takes plug-ins (docs/plugins.md)."""
PATCH_FLAG: dict[str, Any] = {
    "action": "append",
    "metavar": "EDIT",
    "help": "edit of the network: 'insert GatherExcite after p5'; may be repeated",
}
"""How commands take edits of a network (docs/composing.md)."""
EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130
OUT_OF_MEMORY_TEXTS = (
    *("out of memory", "out of shared memory", "not enough memory", "insufficient memory", "can't allocate memory"),
    "killed by signal: killed",
)
"""How torch's devices and CPU allocator, OpenCV, and torch's loader of a killed worker say it, in errors of no kind of their own."""
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
    except Exception as error:  # noqa: BLE001 the last line of defence: shown whole unless its cause is known, never swallowed
        status, message = explain(error)
        print(f"error: {message}" if message else traceback.format_exc().rstrip(), file=sys.stderr)
        return status
    return EXIT_DONE


def explain(error: Exception) -> tuple[int, str | None]:
    """Return the exit status of an error that the machine had, and what to say instead of a traceback if its cause is known."""
    first_line = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS
    ):
        return (
            EXIT_FAILED,
            f"out of memory: {first_line}: lower --batch, --img or --workers; the last checkpoint is kept",
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return EXIT_FAILED, f"disk full: {error.filename or first_line}: free some space; what was there before is kept"
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return (
            EXIT_USER,
            f"{error.filename or 'a file'}: {error.strerror}: expected a place that can be read and written; see --project",
        )
    return EXIT_FAILED, None


class Parser(argparse.ArgumentParser):
    """Argument parser without abbreviations whose mistakes take one line and exit status 2.

    Args:
        retired: advice by flag, for flags of the original that do not exist here.
    """

    def __init__(self, *, retired: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        for flag, advice in (retired or {}).items():
            self.add_argument(
                flag, action=_RetiredFlag, nargs="*", const=advice, help=argparse.SUPPRESS, default=argparse.SUPPRESS
            )

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(EXIT_USER, f"error: {message}: {self.prog} --help lists what there is\n")


class _RetiredFlag(argparse.Action):
    """Answers a flag that does not exist here by what to do instead."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None
    ) -> NoReturn:
        parser.exit(EXIT_USER, f"error: {option_string}: does not exist here: {self.const}\n")
