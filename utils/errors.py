"""Errors that the user can fix: one message and exit status 2.

A message says where: what was there: what was expected; a suggestion.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's files or flags; the command line prints its message without a traceback."""


class ModelConfigError(UserError):
    """A network yaml that cannot be built."""


class PluginError(ModelConfigError):
    """A plug-in file that cannot be loaded."""


class DataError(UserError):
    """A data set, label or image source that cannot be used."""


class CheckpointError(UserError):
    """Weights that cannot be read or do not belong to the network."""


class SettingsError(UserError):
    """A flag or hyperparameter that is unknown or out of range."""


class ExportError(UserError):
    """A network that cannot be exported, or an exported file that computes something else."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'X'?"`` for the nearest known name, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[nearest[0]]}'?" if nearest else ""


class TrainingStoppedError(RuntimeError):
    """A training run that cannot continue, such as after a loss that is not finite; exit status 1."""


class SignalledError(RuntimeError):
    """A run that a signal told to stop, and that has saved what is done; exit status 143."""
