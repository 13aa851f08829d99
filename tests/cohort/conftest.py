"""Small datasets, written where a test says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
SHAPE = (12, 10, 8)


class Dataset:
    """A dataset folder in the default layout that is filled subject by subject."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def path(self, subject: str, run: str = "whole_brain", method: str = "probtrackx2") -> Path:
        """Where the default layout has a subject's map."""
        parts = ("tractography", method, run, "warped_streamlines", "fdt_paths.nii.gz")
        return self.folder.joinpath(subject, *parts)

    def write(
        self,
        path: str | Path,
        data: np.ndarray,
        affine: np.ndarray | None = None,
        waytotal: str | None = None,
        **header: object,
    ) -> Path:
        """Write a map, relative to the folder, and a waytotal file if there is one to write."""
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(data, AFFINE if affine is None else affine)
        for name, value in header.items():
            image.header[name] = value
        nib.save(image, path)
        if waytotal is not None:
            (path.parent / "waytotal").write_text(waytotal)
        return path

    def add(
        self,
        subject: str,
        data: np.ndarray | None = None,
        run: str = "whole_brain",
        waytotal: str | None = "1000\n",
        method: str = "probtrackx2",
        affine: np.ndarray | None = None,
    ) -> Path:
        """Write a subject in the default layout."""
        data = blob(hash_of(subject + run)) if data is None else data
        return self.write(self.path(subject, run, method), data, affine, waytotal)


def hash_of(text: str) -> int:
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(text))


def blob(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Counts in the middle of the grid, two voxels from every side."""
    data = np.zeros(shape, dtype=np.float32)
    inside = tuple(slice(2, n - 2) for n in shape)
    size = tuple(n - 4 for n in shape)
    data[inside] = np.random.default_rng(seed).integers(1, 900, size)
    return data


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "dataset")


@pytest.fixture
def five(dataset: Dataset) -> Dataset:
    """Five good subjects, sub-1 to sub-5."""
    for number in range(1, 6):
        dataset.add(f"sub-{number}")
    return dataset


@pytest.fixture
def make_blob() -> Callable[..., np.ndarray]:
    return blob
