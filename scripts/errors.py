"""Errors that a user can fix; `scripts.runtime.error_report` shows them in one line."""

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
]


class TractAtlasError(Exception):
    """Base class of the errors that their message alone explains.

    Attributes:
        exit_code: exit status of a command that this error stops.
    """

    exit_code: ClassVar[int] = 1


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
