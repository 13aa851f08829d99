"""Peak memory and time of registering large stacks, each in a separate process."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scripts.phantom.serial_sections import SerialSections

__all__ = ["memory"]

_RUN = """
import resource, sys, time
from scripts.settings.stack import RegisterStackConfig
from scripts.stack.registering import StackRegistration
stack, output, workers, pairs = sys.argv[1:]
most = None if pairs == "None" else int(pairs)
settings = RegisterStackConfig.load(
    {"stack": stack, "n_workers": int(workers), "max_pairs": most}
)
start = time.perf_counter(), time.process_time()
StackRegistration(settings, output).run()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak, time.perf_counter() - start[0], time.process_time() - start[1])
"""


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory and time a section of large stacks, which are made first."""
    import zarr

    rows, size = [], options.size or 2048
    for count in options.sections:
        path = Path(options.folder) / f"large_{size}_{count}.zarr"
        if not path.exists():
            # A few sections, turned over and over again: what they show takes no time to make.
            few = SerialSections(6, (size // 2, size // 2), seed=1, shift=size / 100)
            images = [np.kron(few.section(z), np.ones((2, 2), np.uint8)) for z in range(6)]
            array = zarr.create_array(
                str(path), shape=(count, size, size), chunks=(1, 1024, 1024), dtype=np.uint8
            )
            array.attrs.update({"spacing": [40.0, 4.0, 4.0], "unit": "micrometer"})
            for z in range(count):
                place = z % 10
                array[z] = images[place if place < 6 else 10 - place]
        output = Path(options.folder) / f"large_{size}_{count}_out"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [
                sys.executable, "-c", _RUN, str(path), str(output), str(options.workers),
                str(options.pairs),
            ],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        peak, wall, cpu = (float(word) for word in done.stdout.split()[-3:])
        rows.append(
            {
                "sections": count,
                "pixels a side": size,
                "pairs": "all" if options.pairs is None else options.pairs,
                "workers": options.workers,
                "peak memory, GiB": peak / 2**20,
                "wall seconds a section": wall / count,
                "CPU-s a section": cpu / count,
            }
        )
    return rows
