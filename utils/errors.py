"""Errors that a user can mend: one message (where: what was there: what was expected; a suggestion), exit status 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user wrote or pointed at; the command line prints it without a traceback."""


class ModelConfigError(UserError):
    """A network yaml that cannot be built."""


class PluginError(ModelConfigError):
    """A user's own Python file that cannot be loaded."""


class DataError(UserError):
    """A data set, label or image source that cannot be used."""


class CheckpointError(UserError):
    """Weights that cannot be read or do not belong to the network."""


class SettingsError(UserError):
    """A flag or hyperparameter that is unknown or out of range."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'X'?"`` for the nearest known name, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[nearest[0]]}'?" if nearest else ""


class TrainingStoppedError(RuntimeError):
    """A run that cannot go on, though the user asked for nothing wrong: the message says why and what is kept; exit status 1."""
