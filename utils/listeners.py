"""What happens in a run, told to whoever listens: a logging service, a file, a script of the user's.

`--log tensorboard my_log.py`: a name of `LISTENERS`, or a Python file whose classes extend `Listener`. The file is run,
as a plug-in is, because the command names it. Only the first rank tells. docs/logging.md has examples.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import SettingsError, did_you_mean


@dataclass(frozen=True)
class RunFacts:
    """What a listener is told about a run.

    Attributes:
        folder: of the run; weights are in `folder / "weights"`.
        options: of train.py, by name.
        hyp: hyperparameters by name.
        epochs_done: more than 0 where a run goes on.
    """

    folder: Path
    options: dict[str, Any]
    hyp: dict[str, Any]
    epochs_done: int = 0


class Listener:
    """Hears of a run; each method may be left out.

    Numbers have the names of results.csv, such as "metrics/mAP_0.5"; those that were not measured are left out.
    """

    def start(self, run: RunFacts) -> None:
        """Hear that training begins, or goes on after --resume."""

    def epoch(self, run: RunFacts, number: int, numbers: Mapping[str, float]) -> None:
        """Hear that an epoch is done; `number` counts from 1."""

    def end(self, run: RunFacts, error: BaseException | None) -> None:
        """Hear that the run ended, and by what error if it did not finish."""


class TensorBoard(Listener):
    """Event files of TensorBoard in the run's folder; a resumed run goes on in them."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError(
                "--log tensorboard: TensorBoard is not installed: python -m pip install tensorboard"
            ) from error
        self.open = SummaryWriter

    def start(self, run: RunFacts) -> None:
        self.writer = self.open(str(run.folder / "tensorboard"), purge_step=run.epochs_done + 1)

    def epoch(self, run: RunFacts, number: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, number)
        self.writer.flush()

    def end(self, run: RunFacts, error: BaseException | None) -> None:
        self.writer.close()


LISTENERS: dict[str, type[Listener]] = {"tensorboard": TensorBoard}
"""Listeners that --log knows by name."""


class Audience:
    """All listeners of a run."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self.listeners = list(listeners)

    def start(self, run: RunFacts) -> None:
        """Tell that training begins."""
        for listener in self.listeners:
            listener.start(run)

    def epoch(self, run: RunFacts, number: int, numbers: Mapping[str, float]) -> None:
        """Tell that an epoch is done."""
        for listener in self.listeners:
            listener.epoch(run, number, numbers)

    def end(self, run: RunFacts, error: BaseException | None = None) -> None:
        """Tell that the run ended."""
        for listener in self.listeners:
            listener.end(run, error)


def open_listeners(names: Sequence[str]) -> Audience:
    """Return the listeners that --log names.

    Raises:
        SettingsError: an unknown name, or a file that cannot be run or has no listener.
    """
    listeners: list[Listener] = []
    for name in names:
        if name in LISTENERS:
            listeners.append(LISTENERS[name]())
        elif name.endswith(".py"):
            listeners += [kind() for kind in listeners_of(Path(name))]
        else:
            raise SettingsError(
                f"--log {name}: unknown: expected {', '.join(LISTENERS)}, or a Python file with a listener."
                f"{did_you_mean(name, LISTENERS)}"
            )
    return Audience(listeners)


def listeners_of(path: Path) -> list[type[Listener]]:
    """Run a Python file, and return the listeners that it defines.

    Raises:
        SettingsError: it cannot be read or run, or defines none.
    """
    if not path.is_file():
        raise SettingsError(f"--log {path}: no such file: expected a Python file with a class that extends Listener")
    name = f"loom_log_{re.sub(r'[^0-9a-zA-Z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        raise SettingsError(f"--log {path}: {type(error).__name__}: {error}: expected a file that runs") from error
    found: list[Any] = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Listener) and kind.__module__ == name
    ]
    if not found:
        raise SettingsError(f"--log {path}: no listener in it: expected a class that extends Listener")
    return found
