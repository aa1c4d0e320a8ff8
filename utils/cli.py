"""What every command line shares: exit statuses and the one message that goes with each."""

import argparse
import errno
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch

from utils.errors import TrainingStoppedError, UserError

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_INTERRUPTED = 0, 1, 2, 130
OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)


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
    except OUT_OF_MEMORY as error:
        print(f"error: out of memory: {error}: lower --batch or --img; the last checkpoint is kept", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            traceback.print_exc()
            return EXIT_FAILED
        print(f"error: disk full: {error.filename or error}: free some space; the previous checkpoint is kept", file=sys.stderr)
        return EXIT_FAILED
    except Exception:  # noqa: BLE001 the last line of defence: shown whole, never swallowed
        traceback.print_exc()
        return EXIT_FAILED
    return EXIT_DONE


class Parser(argparse.ArgumentParser):
    """Argument parser without abbreviations whose mistakes take one line and exit status 2.

    Args:
        retired: advice by flag, for flags of the original that do not exist here.
    """

    def __init__(self, *, retired: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        for flag, advice in (retired or {}).items():
            self.add_argument(flag, action=_RetiredFlag, nargs="*", const=advice, help=argparse.SUPPRESS, default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(EXIT_USER, f"error: {message}: {self.prog} --help lists what there is\n")


class _RetiredFlag(argparse.Action):
    """Answers a flag that does not exist here by what to do instead."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None) -> NoReturn:
        parser.exit(EXIT_USER, f"error: {option_string}: does not exist here: {self.const}\n")
