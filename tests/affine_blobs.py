"""Small images for the tests of the affine and elastic networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np


def blobs(shape: Sequence[int], seed: int, count: int = 6) -> np.ndarray:
    """An image of a few bright ellipsoids on 0, different for each seed."""
    rng = np.random.default_rng(seed)
    mesh = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    image = np.zeros(shape)
    for _ in range(count):
        centre = rng.uniform(-0.4, 0.4, len(shape))
        width = rng.uniform(0.1, 0.25, len(shape))
        far = sum(((x - c) / w) ** 2 for x, c, w in zip(mesh, centre, width, strict=True))
        image += rng.uniform(0.4, 1) * np.exp(-far / 2)
    return image


def write_blobs(
    folder: Path, subjects: int = 4, shape: Sequence[int] = (18, 20, 16), first: int = 0
) -> Path:
    """A flat dataset folder of `blobs`, each image on a different grid."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(subjects):
        size = [n + number % 2 for n in shape]
        affine = np.diag([2.0, 2.0, 2.5, 1.0])
        affine[:3, 3] = 10 * number
        image = nib.Nifti1Image(blobs(size, first + number).astype(np.float32), affine)
        nib.save(image, folder / f"sub-{number + 1}.nii.gz")
    return folder
