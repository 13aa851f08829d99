"""An atlas by antspyx' `build_template` for `bundle.bench.peers`; runs in the peers' environment.

    python bundle/bench/peer_ants.py <exchange folder> <iterations>

`build_template` returns only the template, so every subject is registered to it again, by the same
SyN, to get the fields.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import ants
import numpy as np


def voxel_displacement(path: str, affine: np.ndarray) -> np.ndarray:
    """A composed ITK field (mm, LPS) as voxels, (3, X, Y, Z)."""
    vectors = ants.image_read(path).numpy()
    ras = vectors * np.array([-1.0, -1.0, 1.0])
    return np.moveaxis(ras @ np.linalg.inv(affine[:3, :3]).T, -1, 0).astype(np.float32)


def main() -> None:
    """Build, register, write `template.npy` and the fields."""
    folder, iterations = Path(sys.argv[1]), int(sys.argv[2])
    affine = np.load(folder / "affine.npy")
    names = (folder / "subjects.txt").read_text().split()
    images = [ants.image_read(str(folder / "log" / f"{name}.nii.gz")) for name in names]
    template = ants.build_template(image_list=images, iterations=iterations)
    np.save(folder / "template_log.npy", template.numpy())
    for name, image in zip(names, images, strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            result = ants.registration(
                template, image, type_of_transform="SyN", outprefix=f"{scratch}/out"
            )
            # The field that resamples the subject to the template's grid, and the inverse.
            there = ants.apply_transforms(
                template, image, result["fwdtransforms"], compose=f"{scratch}/there"
            )
            back = ants.apply_transforms(
                image, template, result["invtransforms"], whichtoinvert=[True, False],
                compose=f"{scratch}/back",
            )  # fmt: skip
            np.save(folder / "to_template" / f"{name}.npy", voxel_displacement(there, affine))
            np.save(folder / "to_subject" / f"{name}.npy", voxel_displacement(back, affine))


if __name__ == "__main__":
    main()
