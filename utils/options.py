"""Command-line flags that several scripts have in common."""

import argparse
from collections.abc import Mapping


def add_gone_flags(parser: argparse.ArgumentParser, gone: Mapping[str, str]) -> None:
    """Answer flags of the original that have no meaning here by one line that says what to use instead, exit status 2.

    Args:
        gone: advice by flag.
    """

    class GoneFlag(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, option_string: str | None = None) -> None:
            parser.exit(2, f"error: {option_string}: {gone[self.option_strings[0]]}\n")

    for name in gone:
        parser.add_argument(name, action=GoneFlag, nargs="*", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
