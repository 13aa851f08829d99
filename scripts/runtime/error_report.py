"""Errors of the user and of the system, told in one line."""

from __future__ import annotations

import errno
import sys
from types import TracebackType

from scripts.errors import OutOfMemoryError, StorageError, TractAtlasError
from scripts.runtime.run_log import escape_records, note

__all__ = [
    "EXIT_INTERRUPTED",
    "INTERRUPTED",
    "advise_on_memory",
    "find_interruption",
    "find_user_error",
    "report_errors_in_one_line",
]


EXIT_INTERRUPTED = 130
"""Status of a command that Ctrl-C (SIGINT) ended, as shells count it."""

INTERRUPTED = "interrupted: an unfinished training or alignment goes on when it is started again"

_memory_advice = "use fewer or smaller images, or another device"


def advise_on_memory(advice: str) -> None:
    """Say what helps this process's job when memory runs out.

    A job's settings say it as they are loaded: out of memory is noticed where nobody knows the
    job, and each block has keys of its own.

    Args:
        advice: names settings, such as ``use train#dtype bfloat16``.
    """
    global _memory_advice
    _memory_advice = advice


def _memory_error(error: Exception) -> OutOfMemoryError | None:
    """The error in our words if it says that memory ran out; torch needn't be imported."""
    kinds = [kind for kind in type(error).__mro__ if kind.__name__ == "OutOfMemoryError"]
    of_torch = any(kind.__module__.partition(".")[0] == "torch" for kind in kinds)
    text = " ".join(str(error).split())
    # Without a kind of its own: torch's allocator on the CPU.
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text
    if not (of_torch or on_cpu or isinstance(error, MemoryError)):
        return None
    where = "the device" if of_torch else "the machine"
    said = f" ({text[:200]})" if text else ""
    found = OutOfMemoryError(
        f"{where} is out of memory{said}; {_memory_advice}; nothing was published, and an "
        "interrupted run goes on from its last checkpoint where its settings stay"
    )
    found.__cause__ = error
    return found


_OF_THE_SYSTEM = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT,
    errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


def _storage_error(error: Exception) -> StorageError | None:
    """What the system refuses wherever it is asked, such as a path longer than any may be."""
    if not isinstance(error, OSError) or error.errno not in _OF_THE_SYSTEM:
        return None
    place = "" if error.filename is None else f"{str(error.filename)[:200]}: "
    found = StorageError(f"{place}{error.strerror}")
    found.__cause__ = error
    return found


def find_user_error(error: BaseException | None) -> TractAtlasError | None:
    """First `TractAtlasError` among ``error`` and the errors that it was raised from.

    MONAI wraps what a component raises in a ``RuntimeError``, sometimes several times over. The
    chain is walked as a traceback shows it: the cause, or else the context unless suppressed.
    Memory that ran out is an `OutOfMemoryError`, and what the system refuses everywhere (a full
    disk, a path that is too long) a `StorageError`, whoever noticed it. An interruption
    (``KeyboardInterrupt``, ``SystemExit``) isn't explained by what came before it.

    Args:
        error: the error that reached the top.

    Returns:
        The error to show to the user, or None when the chain has none.
    """
    seen: set[int] = set()
    while isinstance(error, Exception) and id(error) not in seen:
        if isinstance(error, TractAtlasError):
            return error
        refused = _memory_error(error) or _storage_error(error)
        if refused is not None:
            return refused
        seen.add(id(error))
        suppressed = error.__suppress_context__
        error = error.__cause__ or (None if suppressed else error.__context__)
    return None


def find_interruption(error: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """The interruption that another error was made of.

    Python's ``pydoc`` (by which MONAI imports what a config names) turns even a Ctrl-C or a
    SystemExit during an import into an error of its own.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def report_errors_in_one_line() -> None:
    """Show user errors as ``error: <message>`` on stderr and exit with their own status.

    An interruption (Ctrl-C) is one line as well, and ends with `EXIT_INTERRUPTED`. Installs a
    ``sys.excepthook`` (once, however often it is called); every other exception goes to the hook
    that stood there before.
    """
    escape_records()
    previous = sys.excepthook
    if getattr(previous, "reports_user_errors", False):
        return

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        sys.stdout.flush()  # what was printed before stays before, also in a redirected log
        user_error = find_user_error(error)
        if user_error is None and isinstance(find_interruption(error), KeyboardInterrupt):
            # On a line of its own: a progress bar and the terminal's ^C stand on the last one.
            print(f"\n{INTERRUPTED}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_INTERRUPTED)
        if user_error is None:
            previous(kind, error, traceback)
            return
        note(str(user_error))
        print(f"error: {user_error}", file=sys.stderr, flush=True)
        # An exit raised inside the hook is the only way to choose the interpreter's status.
        raise SystemExit(user_error.exit_code)

    hook.reports_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
