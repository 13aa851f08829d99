"""Sections are interpolated once, and never wrap around."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.stack import resampling
from scripts.stack.cropping import CropBox
from scripts.stack.resampling import resample_section

WHOLE = CropBox(0, 20, 0, 24)
MODES = ("cubic", "linear", "nearest")


def shifted(rows: float, columns: float) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = rows, columns
    return matrix


def noise(dtype: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=(20, 24)).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max, (20, 24), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint64", "float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_the_identity_copies(dtype: str, mode: str) -> None:
    values = noise(dtype)
    result = resample_section(values, np.eye(3), CropBox(2, 15, 3, 20), mode, (0,))
    assert result.dtype == values.dtype
    assert np.array_equal(result, values[2:15, 3:20])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("mode", MODES)
def test_whole_pixels_are_moved_exactly(dtype: str, mode: str) -> None:
    values = noise(dtype)
    result = resample_section(values, shifted(3, -2), WHOLE, mode, (7,))
    np.testing.assert_allclose(result[:17, 2:], values[3:, :22], rtol=1e-6, atol=1e-6)
    assert (result[17:] == 7).all()
    assert (result[:, :2] == 7).all()


def test_an_overshoot_is_clipped_not_wrapped() -> None:
    step = np.zeros((20, 24), dtype=np.uint8)
    step[:, 12:] = 255
    result = resample_section(step, shifted(0, 0.5), WHOLE, "cubic", (0,))[:, :-1]
    # Wrapped, an overshoot would make a dark line beside the edge, and a bright one before it.
    assert result[:, 12:].min() > 200
    assert result[:, :11].max() < 40
    assert result.max() == 255


def test_labels_of_any_size_stay_the_same_numbers() -> None:
    labels = np.full((20, 24), 614454277, dtype=np.uint32)
    labels[5:9, 5:9] = 4294967295
    result = resample_section(labels, shifted(0.3, 1.2), WHOLE, "nearest", (0,))
    assert set(np.unique(result)) == {0, 614454277, 4294967295}
    assert (result == 4294967295).sum() == 16


@pytest.mark.parametrize("mode", ["cubic", "linear"])
def test_a_ramp_stays_a_ramp_and_colours_go_alike(mode: str) -> None:
    shape, box = (40, 44), CropBox(0, 40, 0, 44)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    values = np.stack([rows, columns, rows + 2 * columns], axis=-1)
    matrix = np.array([[0.98, -0.1, 1.0], [0.1, 0.98, -0.5], [0, 0, 1]])
    result = resample_section(values, matrix, box, mode, (-1, -2, -3))
    y, x = matrix[0, 0] * rows + matrix[0, 1] * columns + 1, 0.1 * rows + 0.98 * columns - 0.5
    # A spline is that of the section mirrored at its border, which a ramp feels near it.
    inner = (y > 14) & (y < 25) & (x > 14) & (x < 29)
    for channel, wanted in enumerate((y, x, y + 2 * x)):
        np.testing.assert_allclose(result[inner, channel], wanted[inner], atol=1e-6)
    outside = (y < -0.01) | (x < -0.01)
    assert (result[outside] == (-1, -2, -3)).all()


def test_bands_give_the_same_result_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    values, matrix = noise("uint16"), np.array([[0.9, 0.1, 0.2], [-0.1, 1.0, 1.1], [0, 0, 1]])
    whole = resample_section(values, matrix, WHOLE, "cubic", (0,))
    monkeypatch.setattr(resampling, "_BAND", 70)
    assert np.array_equal(resample_section(values, matrix, WHOLE, "cubic", (0,)), whole)
