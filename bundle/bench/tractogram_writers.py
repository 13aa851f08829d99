"""Time and memory of our writers of TRK and TCK compared with nibabel's.

    python -m bundle.bench.tractogram_writers --streamlines 100000

The same random streamlines, with two values each in a TRK, come in parts of 10,000. nibabel writes
them from a generator (`LazyTractogram`), to keep its memory flat. Each writer runs in a separate
process.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.streamlines import LazyTractogram, TckFile, TrkFile
from nibabel.streamlines.tractogram import TractogramItem

from scripts.tractograms import Streamlines, write_tractogram

PIECE = 10_000
SHAPE = (91, 109, 91)
AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def pieces(streamlines: int) -> Iterator[Streamlines]:
    """Random walks of 20 to 59 points."""
    for number, first in enumerate(range(0, streamlines, PIECE)):
        rng = np.random.default_rng(number)
        n = min(PIECE, streamlines - first)
        lengths = rng.integers(20, 60, n)
        points = np.cumsum(rng.normal(0, 1, (lengths.sum(), 3)), axis=0) % 170 - 85
        values = {name: rng.random((n, 1)).astype(np.float32) for name in ("weight", "label")}
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        yield Streamlines(points.astype(np.float32), offsets, values)


def write(writer: str, path: Path, streamlines: int) -> None:
    """Write them with our writer or with nibabel's."""
    if writer == "ours":
        write_tractogram(path, pieces(streamlines), SHAPE, AFFINE)
        return
    trk = path.suffix == ".trk"

    def items() -> Iterator[TractogramItem]:
        for piece in pieces(streamlines):
            for i in range(len(piece)):
                values = {name: column[i] for name, column in piece.data.items()} if trk else {}
                yield TractogramItem(piece[i], values, {})

    tractogram = LazyTractogram.from_data_func(items)
    tractogram.affine_to_rasmm = np.eye(4)
    header = {
        "voxel_to_rasmm": AFFINE.astype(np.float32), "dimensions": SHAPE,
        "voxel_sizes": (2.0, 2.0, 2.0), "voxel_order": "RAS",
    }  # fmt: skip
    (TrkFile(tractogram, header) if trk else TckFile(tractogram)).save(str(path))


def measured(writer: str, suffix: str, streamlines: int) -> str:
    """Seconds without making the streamlines, and memory beyond that of the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    for _ in pieces(streamlines):
        pass
    making = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        started = time.perf_counter()
        write(writer, path, streamlines)
        seconds = time.perf_counter() - started - making
        size = path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{suffix} {writer:8} {seconds:6.2f} s {peak / 1024:5.0f} MB for {size / 1e6:.0f} MB"


def main() -> None:
    """Measure all four."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streamlines", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        writer, suffix = options.one
        print(measured(writer, suffix, options.streamlines))
        return
    for suffix in (".trk", ".tck"):
        for writer in ("ours", "nibabel"):
            command = [sys.executable, "-m", "bundle.bench.tractogram_writers"]
            words = ["--streamlines", str(options.streamlines), "--one", writer, suffix]
            subprocess.run([*command, *words], check=True)


if __name__ == "__main__":
    main()
