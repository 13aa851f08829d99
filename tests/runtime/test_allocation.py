"""Large blocks are reused: in a fresh process, because the allocator's state is the process's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.runtime.allocation import _VARIABLES

ROOT = Path(__file__).resolve().parents[2]
FAULTS = """
import resource, sys
import numpy as np
from scripts.runtime.allocation import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
def use():
    np.ones(1 << 26, np.uint8)  # 64 MiB, each page touched
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(how: str, **more: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned, and the page faults of ten blocks of 64 MiB."""
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env={**environment, **more}, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_are_used_again():
    assert run("as it is")[1] >= 10 * 32  # huge pages of 2 MiB at best
    said, faults = run("kept")
    assert said == "True"
    assert faults < 32


def test_what_the_environment_says_stays():
    assert run("kept", MALLOC_TOP_PAD_="1000000")[0] == "False"
