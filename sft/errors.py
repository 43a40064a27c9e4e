"""The exceptions that this package raises. Nothing here imports torch."""

from __future__ import annotations


class InputError(Exception):
    """A mistake in the user's input (a file, a flag). The scripts print it as one line and exit with 2."""


class RunError(Exception):
    """A run that cannot continue (NaN, out of memory). The scripts print it as one line and exit with 1."""


class Stopped(Exception):
    """A run that was stopped by a signal after saving a checkpoint. The scripts exit with 128 + ``signal_number``.

    Attributes:
        signal_number: of the signal, such as 15 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class RowError(Exception):
    """One raw row that cannot be used.

    Attributes:
        field: the field with the problem, ``""`` for the row as a whole.
        reason: what the problem is, in Chinese.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


def one_line(error: BaseException) -> str:
    """The error's message on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]
