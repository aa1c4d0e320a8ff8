"""Errors of plug-ins in one line: file, line, what went wrong, what was expected."""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from models.plugins.held import plugin_of
from models.registry import LayerTakenError, defined_in
from utils.errors import PluginError
from utils.wording import first_line

EXAMPLE = "`from models.registry import layer, same`, and @layer(same) above the class"
BARE_DECORATOR = "layer.<locals>.register"
"""Qualified name of the function that a bare `@layer`, without a rule, puts in place of the class."""


@contextmanager
def explained(path: Path, source: bytes, module: ModuleType) -> Iterator[None]:
    """Turn any error of a plug-in that is being run into one line.

    Raises:
        PluginError: the error, in one line with its place and advice.
    """
    try:
        yield
    except LayerTakenError as error:
        raise PluginError(f"{path}: {line_of(error, path, source)}{describe_holder(error, module)}") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        kind = type(error).__name__
        what = first_line(error.msg if isinstance(error, SyntaxError) else error)
        shown = kind if what == kind else f"{kind}: {what}"
        advice = "expected a file that runs when it is imported"
        if isinstance(error, ModuleNotFoundError):
            advice = "a plug-in is one file: install what it imports, or put it into the file itself"
        raise PluginError(f"{path}: {line_of(error, path, source)}{shown}: {advice}") from error


def line_of(error: BaseException, path: Path, source: bytes) -> str:
    """Return the place of an error in the plug-in, as "line 3 (`text`): "; empty if unknown."""
    number: int | None
    if isinstance(error, SyntaxError) and error.filename == str(path):
        number = error.lineno
    else:
        numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        number = numbers[-1] if numbers else None
    lines = source.decode(errors="replace").splitlines()
    if not number or number > len(lines):
        return ""
    return f"line {number} (`{lines[number - 1].strip()}`): "


def describe_holder(error: LayerTakenError, module: ModuleType) -> str:
    """Describe the layer that has the name already, and its place."""
    holder = error.holder
    advice = f"expected another name: @layer(…, name='My{holder.name.rpartition('.')[2]}')"
    if holder.cls.__module__ == module.__name__:
        return f"layer '{holder.name}' is registered twice in this file: {advice}"
    owner = plugin_of(holder.name)
    kind = f"a layer of the plug-in {owner.path}" if owner else f"a built-in layer, {place_of(holder.cls)}"
    return f"'{holder.name}' is {kind}: {advice}"


def place_of(cls: type) -> str:
    """Return file and line of a class of this repository, or the module of any other class."""
    file = defined_in(cls)
    return f"{file} line {inspect.getsourcelines(cls)[1]}" if file != cls.__module__ else file


def missing_layers(module: ModuleType) -> str:
    """Explain why a file registered nothing."""
    own = [
        name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    bare = [name for name, value in vars(module).items() if getattr(value, "__qualname__", "") == BARE_DECORATOR]
    if bare:
        return (
            f"registers nothing: @layer above {', '.join(bare)} has no channel rule: "
            "expected one in parentheses, such as @layer(same)"
        )
    found = f"its classes {', '.join(own)} have no @layer" if own else "it has no class"
    return f"registers nothing: {found}: expected {EXAMPLE}"
