"""Runs commands in processes forked from this one, which has loaded torch and MONAI.

Each line of standard input is a command as JSON, each line of standard output its exit status. The
child is otherwise what ``python -m <module> <arguments>`` starts: nothing of this bundle is loaded
before the fork, and the interpreter ends in the usual way.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys

LIBRARIES = (
    "fire", "filelock", "ignite.engine", "ignite.handlers", "isal.igzip", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "monai.bundle", "monai.bundle.__main__", "monai.data",
    "monai.engines", "monai.handlers", "monai.losses", "monai.networks", "monai.transforms",
    "nibabel", "numpy", "pydantic", "scipy.ndimage", "scipy.sparse.linalg", "scipy.spatial",
    "torch", "torch._dynamo", "torch.utils.tensorboard", "tqdm", "yaml",
)  # fmt: skip


def as_command(command: dict) -> None:
    """Become the process of a command; its module runs at the end of this file."""
    os.setpgid(0, 0)
    for path, number in ((os.devnull, 0), (command["out"], 1), (command["err"], 2)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        handle = os.open(path, flags, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    sys.argv = [command["module"], *command["arguments"]]
    sys.path[0] = command["cwd"]


for name in LIBRARIES:
    importlib.import_module(name)
print("ready", flush=True)
chosen: dict | None = None
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        chosen = asked
        break
    signal.alarm(0)

    def too_late(signum: int, frame: object, child: int = child) -> None:
        """End the child and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(int(asked["timeout"]))
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    print(os.waitstatus_to_exitcode(status), flush=True)
if chosen is not None:
    as_command(chosen)
    # As `python -m` does: a module named `module` or the `__main__` of such a package.
    runpy.run_module(chosen["module"], run_name="__main__", alter_sys=True)
