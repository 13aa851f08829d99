"""Small sections with known transforms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.phantom.serial_sections import SerialSections


@pytest.fixture(scope="session")
def small() -> SerialSections:
    """Seven sections of 72x96, the fifth of which shows something else."""
    return SerialSections(7, (72, 96), seed=4, angle=2.0, shift=2.5, noise=0.03, ruined=(4,))


@pytest.fixture(scope="session")
def small_values(small: SerialSections) -> np.ndarray:
    """Their values, uint8 ``(7, 72, 96)``."""
    return np.stack([small.section(z) for z in range(small.count)])


@pytest.fixture
def write_zarr(tmp_path: Path) -> Callable[..., Path]:
    """Write a plain zarr array with the attributes of a stack."""
    import zarr

    def write(values: np.ndarray, name: str = "stack.zarr", zarr_format: int = 3) -> Path:
        path = tmp_path / name
        array = zarr.create_array(
            str(path), data=values, chunks=(1, *values.shape[1:]), zarr_format=zarr_format
        )
        array.attrs.update({"spacing": [50.0, 10.0, 10.0], "unit": "micrometer"})
        return path

    return write
