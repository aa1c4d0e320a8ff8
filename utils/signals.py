"""Signals that tell a run to stop: SIGTERM and SIGUSR1, as Slurm, spot machines and containers send them."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from utils.errors import SignalledError

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
EXIT_AT_ONCE = 143


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object], signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Handle signals by a function in the body; afterwards they do what they did before."""
    try:
        before = {number: signal.signal(number, handler) for number in signals}
    except ValueError:  # not in the main thread: signals go elsewhere
        yield
        return
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopSignal:
    """Notes the first signal; the second one ends the process at once.

    Attributes:
        name: the signal that came, or "".
        saved: everything is saved, so that the first signal may end the run where it is.
    """

    def __init__(self) -> None:
        self.name = ""
        self.saved = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.name:
            os._exit(EXIT_AT_ONCE)
        self.name = signal.Signals(number).name
        if self.saved:
            raise SignalledError(self.name)

    def handled(self) -> AbstractContextManager[None]:
        """Handle the signals in the body."""
        return handling(self, STOPPING)

    @contextmanager
    def while_saved(self) -> Iterator[None]:
        """Let a signal end the run within the body, since everything before it is saved."""
        if self.name:
            raise SignalledError(self.name)
        self.saved = True
        try:
            yield
        finally:
            self.saved = False
