"""Errors that a user can fix; `scripts.runtime.error_report` shows them in one line.

Messages contain names of files, subjects and values from outside. `shown` escapes such text so that
a terminal, a log or a table displays it and never interprets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "CheckpointError",
    "CohortError",
    "ConfigurationError",
    "FoldingError",
    "OutOfMemoryError",
    "StorageError",
    "TractAtlasError",
    "TrainingError",
    "VerificationError",
    "shown",
    "some_names",
]

# Printable according to Unicode, but invisible.
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0x180B, 0x1810))))
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def shown(text: object, keep: str = "") -> str:
    r"""Escape all characters that are invisible, or that a terminal interprets.

    Escaped are control characters, line ends, direction marks, zero-width characters, bytes that
    aren't UTF-8, and spaces other than the common one. Letters of any script are kept.

    Args:
        text: any value; a path or a number is converted to text first.
        keep: characters to keep, such as our own line ends.

    Example:
        >>> shown("a\x1b[2J\nb")
        'a\\x1b[2J\\nb'
        >>> shown("Müller")
        'Müller'
    """
    text = str(text)
    if text.isprintable() and _UNSEEN.isdisjoint(text):
        return text
    return "".join(
        char if char in keep or (char.isprintable() and char not in _UNSEEN) else _escape(char)
        for char in text
    )


def some_names(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, by `shown`, and the number of the others, for a message.

    Example:
        >>> some_names(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def _escape(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that isn't UTF-8, as Python keeps it
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class TractAtlasError(Exception):
    """Base class of the errors that their message alone explains.

    The message contains names of files and values from outside, so `shown` escapes it.

    Args:
        lines: of the message; usually one.

    Attributes:
        exit_code: exit status of a command that this error stops.
    """

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return "\n".join(map(shown, self.args))


class ConfigurationError(TractAtlasError, ValueError):
    """A setting breaks its rule; the message has one line per violation."""

    exit_code = 2


class CohortError(TractAtlasError):
    """A subject, or the whole cohort, can't be used."""

    exit_code = 3


class TrainingError(TractAtlasError):
    """Training can't continue, for example after a non-finite loss."""

    exit_code = 4


class FoldingError(TractAtlasError):
    """A field folds (det J <= 0) although it must not."""

    exit_code = 5


class CheckpointError(TractAtlasError):
    """A checkpoint belongs to other settings, another cohort or another program."""

    exit_code = 6


class StorageError(TractAtlasError):
    """Results can't be written or published."""

    exit_code = 7


class VerificationError(TractAtlasError):
    """A published atlas doesn't match its description."""

    exit_code = 8


class OutOfMemoryError(TractAtlasError):
    """The device or the machine has too little memory for the run."""

    exit_code = 9
