"""The kinds of error that this package raises. Nothing here imports torch."""

from __future__ import annotations


class InputError(Exception):
    """A mistake in what the user gave (a file, a flag); the scripts print it as one line and exit with 2."""


class RunError(Exception):
    """A run that could not go on (NaN, no memory); the scripts print it as one line and exit with 1."""


class Stopped(Exception):
    """A run that was asked to stop by a signal, and did so after saving a checkpoint; the scripts exit with 128 + n.

    Attributes:
        signal_number: n.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class RowError(Exception):
    """One raw row that cannot be used.

    Attributes:
        field: the field at fault, ``""`` when the row as a whole is.
        reason: what is wrong with it, for a person.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


def one_line(error: BaseException) -> str:
    """The error's message on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]
