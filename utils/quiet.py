"""Silence for what other packages say while a network is recorded."""

import contextlib
import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

STREAMS = (1, 2)
"""File descriptors of standard output and standard error."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log lines and prints of other packages from the user, those of their C++ parts too."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            closed_streams(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def closed_streams() -> Iterator[None]:
    """Lead standard output and standard error of the process to nowhere; torch prints whole graphs from C++."""
    flush_streams()
    with contextlib.ExitStack() as undo:
        for stream in STREAMS:
            try:
                kept = os.dup(stream)
            except OSError:  # the process has no such stream
                continue
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, stream)
            undo.callback(flush_streams)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
        yield


def flush_streams() -> None:
    """Write out what Python and the C library hold back."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
