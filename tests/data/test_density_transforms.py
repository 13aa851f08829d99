"""Dictionary transforms on small arrays and real small files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from small_maps import AFFINE, SHAPE, counts, save, whole

from scripts.cohort import density_divisor
from scripts.data import (
    LogDensityd,
    NormaliseDensityd,
)
from scripts.errors import CohortError


def test_maps_are_divided_and_summed_by_channel() -> None:
    maps = torch.tensor(np.stack([counts(i) for i in range(3)]))
    item: dict[Any, Any] = {
        "image": maps,
        "divisor": [10.0, 4.0, 2.0],
        "channel": [1, 0, 1],
        "subject": "a",
    }
    result = NormaliseDensityd("image", "waytotal", channels=2)(item)
    assert set(result) == {"image", "subject"}  # what can't be collated is gone
    torch.testing.assert_close(result["image"][0], maps[1] / 4)
    torch.testing.assert_close(result["image"][1], maps[0] / 10 + maps[2] / 2)
    assert torch.equal(item["image"], maps)  # the input is left as it was
    assert "divisor" in item


@pytest.mark.parametrize("shape", [(7, 6, 5, 1), (7, 6, 5)])
def test_a_trailing_axis_of_one_is_dropped(shape: tuple[int, ...]) -> None:
    item: dict[Any, Any] = {"image": torch.ones(1, *shape), "divisor": [2.0], "channel": [0]}
    result = NormaliseDensityd("image", "none")(item)["image"]
    assert result.shape == (1, 7, 6, 5)
    assert (result == 0.5).all()


def test_a_plane_stored_as_a_volume_of_one_slice() -> None:
    item: dict[Any, Any] = {"image": torch.ones(1, 7, 6, 1), "divisor": [1.0], "channel": [0]}
    result = NormaliseDensityd("image", "none", spatial_dims=2)(item)["image"]
    assert result.shape == (1, 7, 6)


def test_as_many_divisors_as_maps() -> None:
    item: dict[Any, Any] = {"image": torch.ones(2, *SHAPE), "divisor": [2.0], "channel": [0, 0]}
    with pytest.raises(ValueError, match="zip"):
        NormaliseDensityd("image", "none")(item)


def test_log_density_is_zero_at_zero_and_log_two_at_the_offset() -> None:
    result = LogDensityd("image", 0.01)({"image": torch.tensor([0.0, 0.01, 1.0])})["image"]
    expected = torch.log(torch.tensor([1.0, 2.0, 101.0]))
    torch.testing.assert_close(result, expected)
    assert result[0] == 0


@pytest.mark.parametrize("method", ["waytotal", "streamline_density", "max", "none"])
def test_a_lone_map_finds_its_divisor_by_the_cohorts_rule(method: str, tmp_path: Path) -> None:
    """An annotation tool brings a path and nothing else."""
    data = counts()
    path = save(tmp_path / "fdt_paths.nii.gz", data, waytotal="300\n200\n")
    expected = {
        "waytotal": 500.0, "streamline_density": data.sum(), "max": data.max(), "none": 1.0,
    }[method]  # fmt: skip
    assert density_divisor(method, Path(path), data) == pytest.approx(expected)
    result = whole(method)({"image": path})["image"]
    np.testing.assert_allclose(result[0].numpy(), data / expected, rtol=1e-5)


def test_a_lone_map_without_its_waytotal_is_a_cohort_error(tmp_path: Path) -> None:
    path = save(tmp_path / "fdt_paths.nii.gz", counts())
    with pytest.raises(RuntimeError) as caught:
        whole("waytotal")({"image": path})
    causes = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(error)
        error = error.__cause__
    assert any(isinstance(cause, CohortError) for cause in causes)


def test_runs_and_tracts_come_from_their_files(tmp_path: Path) -> None:
    data = [counts(i) for i in range(3)]
    paths = [save(tmp_path / f"{i}.nii.gz", one) for i, one in enumerate(data)]
    item = {"subject": "s", "image": paths, "divisor": [10.0, 20.0, 5.0], "channel": [0, 0, 1]}
    result = whole(channels=2)(item)["image"]
    assert result.shape == (2, *SHAPE)
    np.testing.assert_allclose(result[0].numpy(), data[0] / 10 + data[1] / 20, rtol=1e-5)
    np.testing.assert_allclose(result[1].numpy(), data[2] / 5, rtol=1e-5)


def big_endian(path: Path, data: np.ndarray) -> None:
    image = nib.Nifti1Image(data.astype(">f4"), AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(image, path)
    assert path.read_bytes()[:4] == (348).to_bytes(4, "big")


def scaled_int16(path: Path, data: np.ndarray) -> None:
    stored = data.astype(np.int16)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE, header)
    image.header.set_slope_inter(0.25, 3.0)
    nib.save(image, path)
    raw = nib.load(path)
    assert raw.dataobj.slope == 0.25  # type: ignore[attr-defined]


def trailing_axis(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data[..., None], AFFINE), path)


def doubles(path: Path, data: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data.astype(np.float64), AFFINE), path)


@pytest.mark.parametrize("write", [big_endian, scaled_int16, trailing_axis, doubles])
def test_however_a_map_is_stored(write: Callable[[Path, np.ndarray], None], tmp_path: Path) -> None:
    path, data = tmp_path / "map.nii", counts()
    write(path, data)
    expected = np.asarray(nib.load(path).dataobj).reshape(SHAPE)  # type: ignore[attr-defined]
    if write is not scaled_int16:
        np.testing.assert_allclose(expected, data)
    result = whole()({"image": str(path)})["image"]
    assert result.shape == (1, *SHAPE)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-6)
