"""Cost of a training step on busy cores, by the waiting policy of PyTorch's threads.

    python -m bundle.bench.busy_cores --load 4

Starts ``--load`` processes that compute without a pause, then times one training step in a separate
process for each policy: one thread, and as many threads as cores with the waiting policies of
OpenMP. A thread that spins takes the time slice that the thread it waits for needs. ``--load 0``
shows the cost of each policy on idle cores. Prints seconds and CPU-seconds per step and the ratio
to one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator

POLICIES = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all threads, system's default": {},
    "all threads, active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "all threads, bounded spin": {"GOMP_SPINCOUNT": "10000"},
    "all threads, passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
_OURS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def _compute() -> None:
    while True:
        sum(range(100_000))


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep cores busy with ``processes`` endless loops while the block runs."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_compute, daemon=True) for _ in range(processes)]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.join()


def step_seconds(policy: str, shape: tuple[int, ...], steps: int) -> dict[str, float]:
    """Seconds and CPU-seconds of the shipped training step under a policy."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    threads = 1 if policy == "one thread" else os.cpu_count() or 1
    finished = subprocess.run(
        [
            sys.executable, "-m", "bundle.bench.training_step", "--one", "bfloat16-as-shipped",
            "--shape", *map(str, shape), "--steps", str(steps), "--threads", str(threads),
        ],
        check=True, capture_output=True, text=True, env={**kept, **POLICIES[policy]},
    )  # fmt: skip
    measured: dict[str, float] = json.loads(finished.stdout.strip().split("\n")[-1])
    return measured


def main() -> None:
    """Print one line per policy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--load", type=int, default=4, help="processes that keep cores busy")
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 72, 64))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    given = parser.parse_args()
    with busy(given.load):
        first = None
        for policy in given.policies:
            measured = step_seconds(policy, tuple(given.shape), given.steps)
            first = first or measured["seconds"]
            print(
                f"{policy:30} {measured['seconds']:7.2f} s {measured['cpu_seconds']:7.2f} CPU-s "
                f"{measured['seconds'] / first:6.2f} times {given.policies[0]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
