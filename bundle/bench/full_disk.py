"""Runs every job on disks that are full, read-only or removed, and checks what is left.

    python -m bundle.bench.full_disk

Needs root: it mounts small file systems in memory (Linux tmpfs). A job passes if it ends with
status 7 and one message, without a traceback, and leaves the earlier result intact, or if it
finishes. Sizes range from far too small to just too small, so that the disk is full at different
files. The check of space beforehand is switched off for half of the tries.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch

from bundle.bench.faults import WORKS, Work, content, opens, write_cohort
from bundle.bench.forked_jobs import Ended, in_process

FINE, CHECKPOINT, STORAGE = 0, 6, 7
SIZES_KB = (32, 100, 200, 400, 600, 900)


def mounted(folder: Path, size_kb: int) -> None:
    """A file system of that size in memory."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)], check=True
    )


def unmounted(folder: Path) -> None:
    """Unmount it."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Trial:
    """Jobs on disks with faults.

    Args:
        folder: for everything that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.data = write_cohort(folder / "data")
        self.good = folder / "good"
        self.good.mkdir()
        for name in ("train", "average", "register"):
            ended = in_process(WORKS[name].command(self.good, self.data), self.good)
            if ended.status != FINE:
                raise SystemExit(f"{name} failed on a sound disk:\n{ended.output}")
        self.disk = folder / "disk"
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.failures: list[str] = []

    def base(self, work: Work) -> Path:
        """An empty folder on the disk, with a model if the job needs one."""
        base = self.disk / "run"
        base.mkdir()
        if work.needs_model:
            (base / "models").mkdir()
            shutil.copy(self.good / "models" / "model.pt", base / "models")
        return base

    def judge(self, fault: str, work: Work, base: Path, ended: Ended) -> None:
        """Record how a try ended, and what is wrong with it."""
        wrong = []
        gone = fault == "folder removed" and ended.status == CHECKPOINT  # its model was in it
        if ended.status not in (FINE, STORAGE) and not gone:
            wrong.append(f"status {ended.status}")
        if "Traceback" in ended.output:
            wrong.append("traceback")
        whole = [content(self.good / name) for name in work.results]
        for name, expected in zip(work.results, whole, strict=True):
            folder = base / name
            if folder.exists() and content(folder).keys() != expected.keys():
                wrong.append(f"{name} is half there")
        try:
            if base.exists():
                opens(base)
        except Exception as error:
            wrong.append(f"damaged file: {error}")
        outcome = "; ".join(wrong) or (
            "finished" if ended.status == FINE else f"refused, status {ended.status}"
        )
        self.outcomes[fault, outcome] += 1
        print(f"{fault}, {work.verb}: {outcome}", flush=True)
        if wrong:
            self.failures.append(f"{fault}, {work.verb}: {outcome}\n{ended.output[-3000:]}")

    def full(self, work: Work, size_kb: int) -> None:
        """A disk that is too small."""
        mounted(self.disk, size_kb)
        try:
            base = self.base(work)
        except OSError:
            unmounted(self.disk)  # not even the model fits
            return
        log = self.good.with_name("full")
        ended = in_process(work.command(base, self.data), log, unchecked=True)
        self.judge("full disk", work, base, ended)
        unmounted(self.disk)

    def told_beforehand(self, work: Work) -> None:
        """Refused by the check of space before anything is computed."""
        mounted(self.disk, 1500)
        base = self.base(work)
        (self.disk / "filler").write_bytes(bytes(1024 * (1480 if not work.needs_model else 1300)))
        ended = in_process(work.command(base, self.data), self.good.with_name("told"))
        fault = "full disk, told beforehand" if "are needed" in ended.output else "full disk"
        self.judge(fault, work, base, ended)
        unmounted(self.disk)

    def read_only(self, work: Work) -> None:
        """A disk that can't be written."""
        mounted(self.disk, 5000)
        base = self.base(work)
        subprocess.run(["mount", "-o", "remount,ro", str(self.disk)], check=True)
        ended = in_process(work.command(base, self.data), self.good.with_name("read_only"))
        self.judge("read-only disk", work, base, ended)
        unmounted(self.disk)

    def removed(self, work: Work, seconds: float) -> None:
        """The folders go away in the middle of the run."""
        mounted(self.disk, 50_000)
        base = self.base(work)

        def remove() -> None:
            time.sleep(seconds)
            shutil.rmtree(base, ignore_errors=True)

        thread = threading.Thread(target=remove)
        thread.start()
        ended = in_process(work.command(base, self.data), self.good.with_name("removed"))
        thread.join()
        self.judge("folder removed", work, base, ended)
        unmounted(self.disk)


def main() -> int:
    """All faults, all jobs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", nargs="+", choices=WORKS, default=list(WORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="full-disk-"))
    trial = Trial(folder)
    for name in options.jobs:
        work = WORKS[name]
        for size in SIZES_KB:
            trial.full(work, size)
        trial.told_beforehand(work)
        trial.read_only(work)
        for seconds in (0.3, 0.9, 2.0):
            trial.removed(work, seconds)
    print("| fault | outcome | tries |\n|---|---|---|")
    for (fault, outcome), tries in sorted(trial.outcomes.items()):
        print(f"| {fault} | {outcome} | {tries} |")
    for failure in trial.failures:
        print(failure, file=sys.stderr)
    shutil.rmtree(folder)
    return int(bool(trial.failures))


if __name__ == "__main__":
    import monai.bundle  # noqa: F401  # once, for all processes

    sys.exit(main())
