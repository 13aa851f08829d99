"""Runs many commands, each forked from one process that has loaded torch and MONAI.

A program makes files and calls `run_commands`; a test starts the program by `run_program`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from warm_process import run_path

__all__ = ["output_of", "run_commands", "run_program"]

ROOT = Path(__file__).resolve().parents[1]
_SEEN = "seen.json"


def output_of(folder: Path, name: str) -> Path:
    """Where a command's output goes."""
    return folder / "out" / name.replace(" ", "_")


def run_commands(
    folder: Path,
    commands: Mapping[str, list[str]],
    with_output: Callable[[list[str], Path], list[str]],
) -> None:
    """Run each command in ``folder``, and write what is seen for `run_program`.

    Args:
        folder: of the files.
        commands: the words of each command line, by a name.
        with_output: the words with the place of the output, which is below ``out``.
    """
    import monai.bundle  # noqa: F401 (children are forked from here)
    import torch

    from bundle.bench.forked_jobs import in_process

    torch.set_num_threads(1)
    os.chdir(folder)
    (folder / "logs").mkdir()
    (folder / "out").mkdir(exist_ok=True)
    seen = {}
    for number, (name, words) in enumerate(commands.items()):
        words = with_output(words, output_of(folder, name))
        ended = in_process(words, folder / "logs" / str(number))
        seen[name] = ended.status, ended.output
    (folder / _SEEN).write_text(json.dumps(seen))


def run_program(program: Path, folder: Path) -> dict[str, tuple[int, str]]:
    """Status and output of each command of a program that gets the folder as argument."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ran = run_path(program, [str(folder)], ROOT, environment, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    seen = json.loads((folder / _SEEN).read_text())
    return {name: (status, output) for name, (status, output) in seen.items()}
