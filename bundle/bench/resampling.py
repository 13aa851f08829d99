"""Compares our two resamplers, and the look-up of sparse maps that scores a demo cohort.

    python -m bundle.bench.resampling

Resamples the same image through an affine and a field: by `resample` (float64, SciPy), by PyTorch's
``grid_sample`` in float64 at the same points, and, without the field, by `resample_by_matrix`
(float32). Best of three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from scripts.phantom.scores import warp_sparse_maps
from scripts.spatial.grid import Grid
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.transforms import AffineTransform, FieldTransform, Transform, resample
from scripts.spatial.warp import sample

SHAPE = (97, 115, 97)
AFFINE = np.array([[1.25, 0, 0, -60], [0, 1.25, 0, -71], [0, 0, 1.25, -60], [0, 0, 0, 1]])


def by_torch(
    volume: np.ndarray, source: Grid, transforms: Sequence[Transform], wanted: Grid
) -> np.ndarray:
    """`resample` with ``grid_sample`` in float64 instead of SciPy."""
    points = AffineTransform(wanted.affine).apply(np.indices(wanted.shape).reshape(3, -1))
    for transform in transforms:
        points = transform.apply(points)
    voxels = torch.from_numpy((~AffineTransform(source.affine)).apply(points))
    sizes = torch.tensor(source.shape, dtype=torch.float64)
    places = ((2 * voxels.T + 1) / sizes - 1).flip(-1).reshape(1, *wanted.shape, 3)
    image = torch.from_numpy(volume)[None].double()
    return sample(image, places, align_corners=False)[0].float().numpy()


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """A result and the shortest of three runs, seconds."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return result, min(seconds)


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    grid = Grid(SHAPE, AFFINE, nib.Nifti1Header())
    moves = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 8) for _ in range(3)])
    voxels = (2 * moves / moves.std()).astype(np.float32)
    field = FieldTransform(np.tensordot(AFFINE[:3, :3], voxels, axes=1), grid)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    dense = rng.random((1, *SHAPE), dtype=np.float32)
    sparse = np.zeros((6, *SHAPE), np.float32)
    for number, tract in enumerate(sparse):
        tract[30 + 4 * number : 40 + 5 * number, 20:90, 40 + number : 48 + number] = 1

    affine = AffineTransform(turn)
    ours, seconds = timed(lambda: resample(dense, grid, [field, affine], grid))
    theirs, torchs = timed(lambda: by_torch(dense, grid, [field, affine], grid))
    print(f"field and affine: resample {seconds:.2f} s, grid_sample in float64 {torchs:.2f} s")
    print(f"  largest difference {np.abs(ours - theirs).max():.1e}")
    ours, seconds = timed(lambda: resample(dense, grid, [affine], grid))
    matrix, image = torch.from_numpy(turn)[None], torch.from_numpy(dense)[None]
    theirs, torchs = timed(
        lambda: resample_by_matrix(image, AFFINE, matrix, AFFINE, SHAPE)[0].numpy()
    )
    print(f"affine alone: resample {seconds:.2f} s, resample_by_matrix {torchs:.2f} s")
    print(f"  largest difference {np.abs(ours - theirs).max():.1e}")
    ours, seconds = timed(lambda: resample(sparse, grid, [field], grid))
    theirs, fast = timed(lambda: warp_sparse_maps(sparse, voxels))
    print(f"six sparse maps: resample {seconds:.2f} s, warp_sparse_maps {fast:.2f} s")
    print(f"  largest difference {np.abs(ours - theirs).max():.1e}")


if __name__ == "__main__":
    main()
