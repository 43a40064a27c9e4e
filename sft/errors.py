"""The exceptions that this package raises. Nothing here imports torch."""

from __future__ import annotations

import re

# Control characters and the marks that turn the direction of a text, all but tab and newline: a terminal obeys them.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![A-Za-z0-9_])(?<![A-Za-z]-)\d+")  # but not the 8 of utf-8

# How gloo, NCCL and the store say that another process does not answer any more.
LOST_PROCESS = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Socket closed",
    "remote process exited", "NCCL communicator was aborted", "Failed to recv",
)  # fmt: skip
# What torch and the libraries below it say when memory is used up. Only some of these errors are OutOfMemoryError:
# cuBLAS, cuDNN and their kin fail in words of their own when what torch left over is too little for them.
OUT_OF_MEMORY = re.compile(
    r"out of memory|out_of_(device_|host_)?(memory|resources)|ALLOC(ATION)?_FAILED"  # CUDA, HIP, XPU, MPS, libraries
    r"|Invalid buffer size"  # one tensor larger than MPS allows
    r"|MODULE:PT_DEVMEM Allocation failed"  # HPU
    r"|DefaultCPUAllocator|not enough memory: you tried to allocate|can't allocate memory|bad_alloc|bad allocation",
    re.IGNORECASE,
)
OF_MAIN_MEMORY = re.compile(r"DefaultCPUAllocator|you tried to allocate|bad_alloc|bad allocation", re.IGNORECASE)


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
        given_kind: the kind that was given, or None.
        kind: the same without the particulars of this row, by which rows are counted.
    """

    def __init__(self, field: str, reason: str, kind: str | None = None) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason
        self.given_kind = kind

    @property
    def kind(self) -> str:
        """The kind that was given, else field and reason with every quotation and number left out."""
        return _PARTICULARS.sub("…", self.described) if self.given_kind is None else self.given_kind

    @property
    def described(self) -> str:
        """The kind that was given, else field and reason in full: what a person is shown of rows of this kind."""
        if self.given_kind is not None:
            return self.given_kind
        return f"{self.field}：{self.reason}" if self.field else self.reason


class LeftOut(RowError):
    """A raw row that by its own words is not to be used, such as one that an annotator rejected. It is not bad."""


class NotAnnotated(LeftOut):
    """A raw row that nobody has annotated yet. For prediction it is an ordinary row without gold."""


def one_line(error: BaseException | str) -> str:
    """The error's message, or a text, on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]


def printable(text: str) -> str:
    """A text for a terminal: what the terminal would obey, such as an escape sequence, is written as in JSON."""
    return text if text.isprintable() else _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up: this machine's (Python's own error, or torch's) or a device's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    )


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another of several processes has ended."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST_PROCESS)


def memory_name(error: BaseException) -> str:
    """What is used up after an error of `is_out_of_memory`: 内存, this machine's memory, or 显存, that of a device."""
    return "内存" if isinstance(error, MemoryError) or OF_MAIN_MEMORY.search(str(error)) else "显存"
