"""Errors that a user can fix; `scripts.runtime.error_report` shows them in one line.

Their messages name files, subjects and values that come from outside. `shown` writes such text so
that a terminal, a log or a table shows it and never obeys it.
"""

from __future__ import annotations

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
]

# Printable in Unicode's eyes, and yet nothing is seen of them.
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0x180B, 0x1810))))
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def shown(text: object, keep: str = "") -> str:
    r"""Text with all that isn't seen, or that a terminal obeys, written as an escape.

    Escaped are control characters, line ends, marks of direction, zero-width characters, bytes
    that are no UTF-8, and spaces other than the common one. Letters of any script stay.

    Args:
        text: anything; a path or a number becomes text first.
        keep: characters that stay all the same, such as line ends of our own.

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


def _escape(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8, as Python keeps it
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class TractAtlasError(Exception):
    """Base class of the errors that their message alone explains.

    The message names files and values from outside, so it is told by `shown`.

    Args:
        lines: of the message; one, as a rule.

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
