"""Shows errors of the user and of the system in one line."""

from __future__ import annotations

import errno
import re
import sys
from types import TracebackType

from scripts.errors import OutOfMemoryError, StorageError, TractAtlasError
from scripts.runtime.memory import warn_near_limit
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
"""Exit status of a command that Ctrl-C (SIGINT) ended, as shells define it."""

INTERRUPTED = "interrupted: start the same command again to continue a training or an alignment"

_ON_CPU = (
    "DefaultCPUAllocator", "could not create a primitive", "could not create a memory",
    "can't start new thread",  # its stack finds no room
)  # fmt: skip

# The last line of a traceback: the error's kind with its module, and what it says.
_RAISED = re.compile(r"^scripts\.(?:\w+\.)*(\w+Error): (.+)$", re.MULTILINE)

_memory_advice = "use fewer or smaller images, or another device"


def advise_on_memory(advice: str) -> None:
    """Set the advice that is shown when this process runs out of memory.

    Each job sets it when it loads its settings, because the code that notices the error doesn't
    know which job is running, and each block of settings has its own keys.

    Args:
        advice: names settings, such as ``use train#dtype bfloat16``.
    """
    global _memory_advice
    _memory_advice = advice


def _memory_error(error: Exception) -> OutOfMemoryError | None:
    """An `OutOfMemoryError` if the error means that memory ran out; doesn't import torch."""
    kinds = [kind for kind in type(error).__mro__ if kind.__name__ == "OutOfMemoryError"]
    of_torch = any(kind.__module__.partition(".")[0] == "torch" for kind in kinds)
    text = " ".join(str(error).split())
    # torch's CPU allocator raises a plain RuntimeError.
    on_cpu = isinstance(error, RuntimeError) and any(part in text for part in _ON_CPU)
    if not (of_torch or on_cpu or isinstance(error, MemoryError)):
        return None
    where = "the device" if of_torch else "the machine"
    detail = f" ({text[:200]})" if text else ""
    result = OutOfMemoryError(
        f"{where} is out of memory{detail}; {_memory_advice}; nothing was published; an "
        "interrupted run continues from its last checkpoint if its settings stay the same"
    )
    result.__cause__ = error
    return result


_OF_THE_SYSTEM = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT,
    errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


def _storage_error(error: Exception) -> StorageError | None:
    """System errors that can arise anywhere, such as a path that is too long."""
    if not isinstance(error, OSError) or error.errno not in _OF_THE_SYSTEM:
        return None
    place = "" if error.filename is None else f"{str(error.filename)[:200]}: "
    result = StorageError(f"{place}{error.strerror}")
    result.__cause__ = error
    return result


def _from_worker(error: Exception) -> TractAtlasError | None:
    """The user's error that a data loader's worker process raised.

    Torch reports it only in the text of its traceback.
    """
    text = str(error)
    if "DataLoader worker" not in text:
        return None
    if "Bus error" in text or "shared memory" in text:
        return StorageError(
            "a worker process ended because there is too little shared memory (/dev/shm); set "
            "cohort#num_workers to 0, or give the container more (docker run --shm-size)"
        )
    for name, message in reversed(_RAISED.findall(text)):
        kind = _kinds().get(name)
        if kind is not None:
            return kind(message)
    return None


def _kinds() -> dict[str, type[TractAtlasError]]:
    """Kinds of errors by name; those that are made otherwise stand for their base."""
    result: dict[str, type[TractAtlasError]] = {}
    open_kinds: list[type[TractAtlasError]] = list(TractAtlasError.__subclasses__())
    bases = set(open_kinds)
    for kind in open_kinds:
        result[kind.__name__] = next(base for base in kind.__mro__ if base in bases)
        open_kinds += kind.__subclasses__()
    return result


def find_user_error(error: BaseException | None) -> TractAtlasError | None:
    """The first `TractAtlasError` in the chain of errors that led to ``error``.

    MONAI wraps what a component raises in a ``RuntimeError``, sometimes several times. The chain is
    followed as a traceback shows it: the cause, or else the context unless it is suppressed.
    Running out of memory becomes an `OutOfMemoryError`. System errors that can arise anywhere (a
    full disk, a path that is too long) become a `StorageError`. An interruption
    (``KeyboardInterrupt``, ``SystemExit``) is never replaced by an earlier error.

    Args:
        error: the error that ended the command.

    Returns:
        The error to show to the user, or None when the chain has none.
    """
    seen: set[int] = set()
    while isinstance(error, Exception) and id(error) not in seen:
        if isinstance(error, TractAtlasError) and not str(error).startswith("Caught "):
            return error
        refused = _from_worker(error) or _memory_error(error) or _storage_error(error)
        if refused is not None:
            return refused
        seen.add(id(error))
        suppressed = error.__suppress_context__
        error = error.__cause__ or (None if suppressed else error.__context__)
    return None


def find_interruption(error: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """The interruption hidden inside another error.

    MONAI imports what a config names with Python's ``pydoc``, which replaces even a Ctrl-C or a
    SystemExit during an import by another error.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def report_errors_in_one_line() -> None:
    """Show user errors as ``error: <message>`` on stderr and exit with the error's status.

    An interruption (Ctrl-C) is one line as well and ends with `EXIT_INTERRUPTED`. Installs a
    ``sys.excepthook`` (once, however often it is called); every other exception goes to the hook
    that was installed before.
    """
    escape_records()
    warn_near_limit()
    previous = sys.excepthook
    if getattr(previous, "reports_user_errors", False):
        return

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        sys.stdout.flush()  # keep the order of the output in a redirected log
        user_error = find_user_error(error)
        if user_error is None and isinstance(find_interruption(error), KeyboardInterrupt):
            # Start a new line: the current one holds a progress bar or the terminal's ^C.
            print(f"\n{INTERRUPTED}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_INTERRUPTED)
        if user_error is None:
            previous(kind, error, traceback)
            return
        note(str(user_error))
        print(f"error: {user_error}", file=sys.stderr, flush=True)
        # Exiting inside the hook is the only way to choose the interpreter's status.
        raise SystemExit(user_error.exit_code)

    hook.reports_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
