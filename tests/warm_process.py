"""Commands of tests in processes that needn't load torch and MONAI each; see `warm_server`."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["run_module"]

_SERVER = Path(__file__).with_name("warm_server.py")
_running: list[subprocess.Popen[str]] = []


def run_module(
    module: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m <module> <arguments>``; its libraries are loaded already.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        command = {
            "module": module, "arguments": list(arguments), "cwd": str(cwd), "env": dict(env),
            "out": str(out), "err": str(err), "timeout": timeout,
        }  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(command) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        said = [path.read_text(errors="replace") for path in (out, err)]
    words = [sys.executable, "-m", module, *arguments]
    if code == -9:
        raise subprocess.TimeoutExpired(words, timeout, *said)
    return subprocess.CompletedProcess(words, code, *said)


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
