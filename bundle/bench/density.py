"""Compares the counting of streamlines with DIPY's ``density_map``: time, and missed voxels.

    python -m bundle.bench.density [--streamlines 100000] [--voxel 2] [--file some.trk]

Both count the same streamlines in one run, on one thread, with times in CPU-seconds. DIPY looks up
only the voxels of the points, so there are gaps between points. After resampling to ``--dense``
points per voxel there are few; that is timed as well, on a part of the streamlines, and scaled. The
verb's peak memory is measured for the whole file and for a tenth of it. DIPY isn't among the
bundle's requirements (``pip install dipy==1.12.1``); without it only ours is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.tractograms import (
    DensityCounter,
    Streamlines,
    count_tractogram,
    open_tractogram,
    write_tractogram,
)


def draw(count: int, step: float, seed: int = 0) -> Streamlines:
    """Arcs of 60 to 140 points through a brain-sized volume around 0, ``step`` mm apart."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(60, 141, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first = rng.normal(size=(count, 3))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(first, rng.normal(size=(count, 3)))
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    radius, turn = rng.uniform(30, 80, count), rng.uniform(0, 2 * np.pi, count)
    centre = rng.uniform(-20, 20, (count, 3))
    owner = np.repeat(np.arange(count), lengths)
    nth = np.arange(offsets[-1]) - offsets[owner] - lengths[owner] / 2
    angle = turn[owner] + nth * step / radius[owner]
    points = centre[owner]
    for axis, wave in ((first, np.cos), (second, np.sin)):
        points += (radius[owner] * (wave(angle) - wave(turn[owner])))[:, None] * axis[owner]
    return Streamlines(points.astype(np.float32), offsets)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the CPU-seconds that it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def count(streamlines: Streamlines, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Our map of streamlines in memory."""
    counter = DensityCounter(shape, affine)
    counter.add(streamlines)
    return counter.density


def count_file(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Our map of a file."""
    counter = DensityCounter(shape, affine)
    count_tractogram(counter, open_tractogram(path))
    return counter.density


def verb_peak(path: Path, reference: Path) -> float:
    """Peak memory of the verb ``density`` on a file, MB."""
    # Measured inside: the system's number for children includes this process at the fork.
    program = (
        "import re, sys; from pathlib import Path; from bundle.cli import main; main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    words = ["density", path, "--reference", reference, "--output", path.with_name("map.nii.gz")]
    command = [sys.executable, "-c", program, *map(str, words)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(finished.stdout.split()[-1]) / 1024


def against_dipy(
    streamlines: Streamlines, path: Path, shape: tuple[int, ...], affine: np.ndarray, dense: float
) -> dict[str, float]:
    """DIPY's times on the same streamlines, and the voxels that its map misses."""
    from dipy.tracking.streamline import set_number_of_points
    from dipy.tracking.utils import density_map
    from nibabel.streamlines import ArraySequence

    every = ArraySequence(streamlines[i] for i in range(len(streamlines)))
    ours = count(streamlines, shape, affine)
    theirs, seconds = timed(lambda: density_map(every, affine, shape))
    _, from_file = timed(lambda: density_map(nib.streamlines.load(path).streamlines, affine, shape))
    part = every[: max(1, len(every) // 50)]
    voxel = float(np.linalg.norm(affine[:3, 0]))

    def resampled() -> np.ndarray:
        finer = [
            set_number_of_points(
                one,
                max(2, int(np.linalg.norm(np.diff(one, axis=0), axis=1).sum() / voxel * dense)),
            )
            for one in part
        ]
        return density_map(finer, affine, shape)

    fine, some = timed(resampled)
    ours_of_part = count(Streamlines.of([np.asarray(one) for one in part]), shape, affine)
    return {
        "dipy_cpu_s": seconds,
        "dipy_from_file_cpu_s": from_file,
        "dipy_resampled_cpu_s": some * len(every) / len(part),
        "visits_dipy_misses": float(1 - theirs.sum() / ours.sum()),
        "visits_dipy_resampled_misses": float(1 - fine.sum() / ours_of_part.sum()),
        "voxels_where_dipy_has_more": int((theirs > ours).sum()),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streamlines", type=int, default=100_000)
    parser.add_argument("--step", type=float, default=1.0, help="between points, mm (%(default)s)")
    parser.add_argument("--voxel", type=float, default=2.0, help="mm (%(default)s)")
    parser.add_argument("--dense", type=float, default=10.0, help="points a voxel (%(default)s)")
    parser.add_argument("--file", type=Path, help="a tractogram instead of drawn streamlines")
    arguments = parser.parse_args()
    voxel = arguments.voxel
    shape = tuple(int(np.ceil(n / voxel)) for n in (182, 218, 182))
    affine = np.diag([voxel, voxel, voxel, 1.0])
    if arguments.file is None:
        streamlines = draw(arguments.streamlines, arguments.step)
        affine[:3, 3] = -(np.array(shape) - 1) / 2 * voxel
    else:
        streamlines = open_tractogram(arguments.file).read()
        affine[:3, 3] = np.floor(streamlines.points.min(axis=0)) - voxel
        shape = tuple(
            int(n) for n in np.ceil((streamlines.points.max(axis=0) - affine[:3, 3]) / voxel) + 2
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "streamlines.trk"
        write_tractogram(path, streamlines, shape, affine)
        _, from_file = timed(lambda: count_file(path, shape, affine))
        ours, in_memory = timed(lambda: count(streamlines, shape, affine))
        result: dict[str, Any] = {
            "streamlines": len(streamlines),
            "points": len(streamlines.points),
            "shape": shape,
            "voxel_mm": voxel,
            "visits": float(ours.sum()),
            "cpu_s": in_memory,
            "from_file_cpu_s": from_file,
        }
        tenth = Path(folder) / "tenth.trk"
        write_tractogram(tenth, streamlines.take(np.arange(len(streamlines) // 10)), shape, affine)
        reference = Path(folder) / "reference.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), reference)
        result["verb_mb_for_a_tenth"] = verb_peak(tenth, reference)
        result["verb_mb"] = verb_peak(path, reference)
        try:
            result |= against_dipy(streamlines, path, shape, affine, arguments.dense)
        except ModuleNotFoundError:
            result["dipy"] = "not installed"
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
