"""Commands of tests in processes that needn't load torch and MONAI each; see `warm_server`."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Started", "run_code", "run_module", "run_path", "started_module"]

_SERVER = Path(__file__).with_name("warm_server.py")
_AS_PATH = """
import os, runpy, sys
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])  # a folder puts itself before it
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_running: list[subprocess.Popen[str]] = []


class Started:
    """A command at work, as far as tests need it what `subprocess.Popen` is.

    Args:
        words: of the command.
        command: what the server gets.
        folder: of its output; removed by whoever made it.
    """

    def __init__(self, words: list[str], command: dict[str, Any], folder: Path) -> None:
        self.words = words
        self._files = [folder / "out", folder / "err"]
        for path in self._files:
            path.touch()
        names = dict(zip(("out", "err"), map(str, self._files), strict=True))
        self.pid: int = _ask({"start": {**command, **names}})
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"poll": self.pid})
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def output(self) -> tuple[str, str]:
        """Standard output and standard error so far."""
        out, err = (path.read_text(errors="replace") for path in self._files)
        return out, err

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Its result.

        Raises:
            subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
        """
        if self.poll() is None:
            self.returncode = _ask({"wait": self.pid, "timeout": timeout})
        if self.returncode is None:
            self.returncode = -9
            raise subprocess.TimeoutExpired(self.words, timeout, *self.output())
        return subprocess.CompletedProcess(self.words, self.returncode, *self.output())


@contextmanager
def started_module(
    module: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]
) -> Iterator[Started]:
    """``python -m <module> <arguments>``, left at work; it is killed at the end of the block."""
    with _started(module, None, arguments, cwd, env) as process:
        yield process


def run_module(
    module: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m <module> <arguments>``; its libraries are loaded already.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
    """
    with _started(module, None, arguments, cwd, env) as process:
        return process.wait(timeout)


def run_code(
    code: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """``python -c <code> <arguments>``; as `run_module`."""
    with _started(None, code, arguments, cwd, env) as process:
        return process.wait(timeout)


def run_path(
    path: Path, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """``python <path> <arguments>``, a program or a folder with a ``__main__``; as `run_module`."""
    return run_code(_AS_PATH, [str(path), *arguments], cwd, env, timeout)


@contextmanager
def _started(
    module: str | None,
    code: str | None,
    arguments: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
) -> Iterator[Started]:
    program = ["-c", str(code)] if module is None else ["-m", module]
    command = {
        "module": module, "code": code, "arguments": list(arguments), "cwd": str(cwd),
        "env": dict(env),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        process = Started([sys.executable, *program, *arguments], command, Path(folder))
        try:
            yield process
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()


def _ask(request: dict[str, Any]) -> Any:
    """The server's answer."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _server() -> subprocess.Popen[str]:
    """The one of this test process, started on first use."""
    if not _running:
        server = subprocess.Popen(
            [sys.executable, str(_SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        )  # fmt: skip
        _running.append(server)
        atexit.register(server.kill)
        assert server.stdout is not None
        ready = server.stdout.readline()
        assert ready == "ready\n", ready
    return _running[0]
