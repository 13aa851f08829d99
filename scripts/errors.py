"""Errors that a user can mend, and how they are shown: one message, no traceback."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import ClassVar

__all__ = [
    "EXIT_INTERRUPTED",
    "INTERRUPTED",
    "CheckpointError",
    "CohortError",
    "ConfigurationError",
    "FoldingError",
    "StorageError",
    "TractAtlasError",
    "TrainingError",
    "VerificationError",
    "find_user_error",
    "report_errors_in_one_line",
]


EXIT_INTERRUPTED = 130
"""Status of a command that Ctrl-C (SIGINT) ended, as shells count it."""
INTERRUPTED = "interrupted: an unfinished training run goes on when it is started again"


class TractAtlasError(Exception):
    """Base of every error that the message alone explains.

    Attributes:
        exit_code: status with which a command ends when this error stops it.
    """

    exit_code: ClassVar[int] = 1


class ConfigurationError(TractAtlasError, ValueError):
    """A setting breaks its rule; the message has one line per violation."""

    exit_code = 2


class CohortError(TractAtlasError):
    """A subject, or the cohort as a whole, can't be used."""

    exit_code = 3


class TrainingError(TractAtlasError):
    """Training can't go on, for instance after a non-finite loss."""

    exit_code = 4


class FoldingError(TractAtlasError):
    """A field folds (det J <= 0) where that was to be verified."""

    exit_code = 5


class CheckpointError(TractAtlasError):
    """A checkpoint belongs to other settings, another cohort or another program."""

    exit_code = 6


class StorageError(TractAtlasError):
    """Results can't be written or published."""

    exit_code = 7


class VerificationError(TractAtlasError):
    """A published atlas isn't what its description says."""

    exit_code = 8


def find_user_error(error: BaseException | None) -> TractAtlasError | None:
    """First `TractAtlasError` among ``error`` and the errors that it was raised from.

    MONAI wraps what a component raises in a ``RuntimeError``, sometimes several times over. The
    chain is walked as a traceback shows it: the cause, or else the context unless suppressed.
    An interruption (``KeyboardInterrupt``, ``SystemExit``) isn't explained by what came before it.

    Args:
        error: the error that reached the top.

    Returns:
        The error to show to the user, or None when the chain has none.
    """
    seen: set[int] = set()
    while isinstance(error, Exception) and id(error) not in seen:
        if isinstance(error, TractAtlasError):
            return error
        seen.add(id(error))
        suppressed = error.__suppress_context__
        error = error.__cause__ or (None if suppressed else error.__context__)
    return None


def report_errors_in_one_line() -> None:
    """Show user errors as ``error: <message>`` on stderr and exit with their own status.

    An interruption (Ctrl-C) is one line as well, and ends with `EXIT_INTERRUPTED`. Installs a
    ``sys.excepthook`` (once, however often it is called); every other exception goes to the hook
    that stood there before.
    """
    previous = sys.excepthook
    if getattr(previous, "reports_user_errors", False):
        return

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        sys.stdout.flush()  # what was printed before stays before, also in a redirected log
        if isinstance(error, KeyboardInterrupt):
            # On a line of its own: a progress bar and the terminal's ^C stand on the last one.
            print(f"\n{INTERRUPTED}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_INTERRUPTED)
        user_error = find_user_error(error)
        if user_error is None:
            previous(kind, error, traceback)
            return
        print(f"error: {user_error}", file=sys.stderr, flush=True)
        # An exit raised inside the hook is the only way to choose the interpreter's status.
        raise SystemExit(user_error.exit_code)

    hook.reports_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
