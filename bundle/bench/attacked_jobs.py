"""Jobs that attacks run, and checks of how they end; see `bundle.bench.attacks`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bundle.bench.attacks import Outcome
from bundle.bench.forked_jobs import Ended, in_process

__all__ = ["Job", "last_line"]

_LONGEST_S = 300  # of a job that hangs


def last_line(ended: Ended, folder: Path) -> str:
    """Status and last line of a job, without the folder's path."""
    lines = [line for line in ended.output.replace("\r", "\n").splitlines() if line.strip()]
    messages = [line for line in lines if "it/s" not in line and not line.startswith("see: ")]
    last = messages[-1] if messages else ""
    return f"{ended.status}: {last.replace(str(folder), 'W')[:160]}"


class Job:
    """Runs verbs in separate processes, whose working folder is ``folder``.

    Args:
        folder: for all that the jobs read and write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, verb: str, *words: str, watch: Callable[[int], None] | None = None,
        longest: float = _LONGEST_S,
    ) -> Ended:  # fmt: skip
        """A verb; it is killed when it hangs.

        Args:
            verb: of the command line.
            words: after it.
            watch: see `in_process`.
            longest: seconds.
        """

        def guard(process: int) -> None:
            timer = threading.Timer(longest, os.kill, (process, signal.SIGKILL))
            timer.daemon = True
            timer.start()
            if watch is not None:
                watch(process)
            with contextlib.suppress(ChildProcessError):  # gone already
                os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
            timer.cancel()

        with contextlib.chdir(self.folder):
            return in_process([verb, *words], self.folder / "job", watch=guard)

    def require(self, ended: Ended) -> None:
        """Make sure that a job that sets the scene ended well.

        Raises:
            RuntimeError: with its output.
        """
        if ended.status != 0:
            raise RuntimeError(ended.output)

    def done(self, ended: Ended) -> bool:
        """Whether a job ended well."""
        return ended.status == 0 and "Traceback" not in ended.output

    def one_line(self, ended: Ended, *statuses: int) -> bool:
        """Whether a job ended with one of the statuses and a message, without a traceback."""
        right = ended.status in statuses and "error: " in ended.output
        return right and "Traceback" not in ended.output

    def outcome(self, what: str, ended: Ended, held: bool) -> Outcome:
        """An outcome with the last line of the job's output."""
        return Outcome(
            what, held and "Traceback" not in ended.output, last_line(ended, self.folder)
        )

    def refused(self, what: str, ended: Ended, status: int, *names: str) -> Outcome:
        """An outcome that is right if the job ended with a status and named something."""
        described = ended.output.rpartition("error: ")[2]
        held = self.one_line(ended, status) and all(name in described for name in names)
        return self.outcome(what, ended, held)

    def keeps(self, what: str, job: Callable[[], Ended], file: Path) -> Outcome:
        """An outcome that is right if a job is refused, names a file, and leaves it as it is."""
        before = file.read_bytes()
        ended = job()
        one = self.refused(what, ended, 7, file.name)
        kept = file.is_file() and file.read_bytes() == before
        return Outcome(one.tried, one.held and kept, one.message)

    def until(
        self, reached: Callable[[], bool], then: Callable[[], object]
    ) -> Callable[[int], None]:
        """Do something once a running job has come so far."""

        def watch(process: int) -> None:
            while not reached():
                time.sleep(0.002)
                try:
                    os.kill(process, 0)
                except ProcessLookupError:
                    return
            then()

        return watch
