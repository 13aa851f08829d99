"""Runs commands in processes forked from this one, which has loaded torch and MONAI.

Each line of standard input is a request as JSON, each line of standard output its answer:
``{"start": command}`` gives the new process's number, ``{"poll": number}`` its exit status or
null, ``{"wait": number, "timeout": seconds}`` its exit status, or null if it was killed because
time was out. A child is otherwise what ``python -m <module> <arguments>`` or ``python -c <code>
<arguments>`` starts: nothing of this bundle is loaded before the fork.

The first command of a kind that ends with some status ends as the interpreter ends. At the end of
the next ones of that kind and status threads are waited for, exit handlers run and output is
written, but the modules of torch and MONAI are not taken apart, which takes longer than a short
command itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import types

LIBRARIES = (
    "fire", "filelock", "ignite.engine", "ignite.handlers", "isal.igzip", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "monai.bundle", "monai.bundle.__main__", "monai.data",
    "monai.engines", "monai.handlers", "monai.losses", "monai.networks", "monai.transforms",
    "nibabel", "numpy", "pydantic", "scipy.ndimage", "scipy.sparse.linalg", "scipy.spatial",
    "torch", "torch._dynamo", "torch.utils.tensorboard", "tqdm", "yaml",
)  # fmt: skip


def as_command(command: dict) -> None:
    """Become the process of a command; its program runs at the end of this file."""
    os.setpgid(0, 0)
    # As a shell in the foreground leaves them, even if this test run was started with nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for path, number in ((os.devnull, 0), (command["out"], 1), (command["err"], 2)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        handle = os.open(path, flags, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    code = command["code"] is not None
    sys.argv = ["-c" if code else command["module"], *command["arguments"]]
    sys.path[0] = "" if code else command["cwd"]
    # A fresh interpreter puts these after the program's folder.
    sys.path[1:1] = [p for p in command["env"].get("PYTHONPATH", "").split(os.pathsep) if p]


def ended(child: int, timeout: float) -> int | None:
    """Exit status of a child; None: it was killed with all that it started, as time was out."""
    late = []

    def too_late(signum: int, frame: object) -> None:
        late.append(child)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return None if late else os.waitstatus_to_exitcode(status)


def kind_of(command: dict) -> tuple:
    """What commands that end alike have in common: the program and its verb or run."""
    if command["code"] is not None:
        return ("-c", command["code"], *command["arguments"][:1])
    return (command["module"], *command["arguments"][: 1 + (command["module"] != "bundle")])


def end_quickly(status: int) -> None:
    """End with what a user sees of the interpreter's end; come back where that needs the latter."""
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return  # the interpreter knows what to say of closed or full outputs
    os._exit(status)


for name in LIBRARIES:
    importlib.import_module(name)
# What the children share with this process stays shared if their collector doesn't visit it.
gc.collect()
gc.freeze()
print("ready", flush=True)
chosen: dict | None = None
kinds: dict[int, tuple] = {}  # of the children
ended_fully: set[tuple] = set()  # kind and exit status of those that are over
over: dict[int, int] = {}  # exit status of children that `poll` saw ending
for line in sys.stdin:
    asked = json.loads(line)
    if "start" in asked:
        answer: int | None = os.fork()
        if answer == 0:
            chosen = asked["start"]
            break
        kinds[answer] = kind_of(asked["start"])
    elif "poll" in asked:
        number = asked["poll"]
        if number not in over:
            found, status = os.waitpid(number, os.WNOHANG)
            if found:
                over[number] = os.waitstatus_to_exitcode(status)
        answer = over.get(number)
    else:
        number = asked["wait"]
        answer = over.pop(number) if number in over else ended(number, asked["timeout"])
    if "start" not in asked and answer is not None:
        ended_fully.add((kinds[number], answer))
    print(json.dumps(answer), flush=True)
if chosen is not None:
    as_command(chosen)
    kind = kind_of(chosen)
    status: object = 0
    try:
        try:
            if chosen["code"] is None:
                # As `python -m` does: a module of this name or the `__main__` of such a package.
                runpy.run_module(chosen["module"], run_name="__main__", alter_sys=True)
            else:
                sys.modules["__main__"] = program = types.ModuleType("__main__")
                exec(compile(chosen["code"], "<string>", "exec"), program.__dict__)
        except Exception:
            status = 1
            sys.excepthook(*sys.exc_info())  # which may end with another status
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    if (kind, status) in ended_fully:
        end_quickly(int(status))
    sys.exit(status)
