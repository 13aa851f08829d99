"""Arrays of sections are read back as they were given, and others are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts import api
from scripts.settings.stack import RegisterStackConfig
from scripts.stack.arrays import write_sections
from scripts.stack.source import open_stack

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "sections",
    [
        RANDOM.integers(0, 255, (3, 30, 40), dtype=np.uint8),
        RANDOM.normal(size=(2, 30, 40)).astype(np.float32),
        RANDOM.integers(0, 65535, (2, 30, 40, 3), dtype=np.uint16),
        RANDOM.random((2, 30, 40)) > 0.5,
    ],
    ids=["bytes", "floats", "colours", "mask"],
)
def test_sections_come_back(sections: np.ndarray, tmp_path: Path) -> None:
    path = write_sections(tmp_path / "stack", sections, (50, 10, 10), "um")
    stack = open_stack(RegisterStackConfig.load({"stack": str(path)}), None)
    assert (stack.spacing, stack.unit) == ((50.0, 10.0, 10.0), "micrometer")
    assert len(stack) == len(sections)
    for index, section in enumerate(sections):
        np.testing.assert_array_equal(stack.raw(index), section)


@pytest.mark.parametrize(
    ("shape", "spacing", "unit", "message"),
    [
        ((30, 40), (1, 1, 1), "mm", r"sections of shape \(30, 40\): must be"),
        ((3, 30, 40, 2), (1, 1, 1), "mm", "3 or 4 colours at most"),
        ((3, 30, 40), (1, 1), "mm", r"spacing = \(1, 1\): must be z, y, x"),
        ((3, 30, 40), (1, 0, 1), "mm", "each above 0"),
        ((3, 30, 40), (1, 1, 1), "inch", "unit = 'inch': must be one of nanometer"),
    ],
)
def test_no_stack_is_refused(
    shape: tuple[int, ...], spacing: tuple[float, ...], unit: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_sections(tmp_path / "stack", np.zeros(shape), spacing, unit)
    assert not (tmp_path / "stack").exists()


def test_an_array_needs_its_spacing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spacing of sections = None"):
        api.register_stack(np.zeros((3, 30, 40)), tmp_path)
