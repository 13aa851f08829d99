"""Odd numbers in settings and maps: a right atlas, or a refusal with its reason; never NaN."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from training_runs import published

from scripts.baselines.averaging import AveragingAtlas, open_averaged_cohort
from scripts.runtime.error_report import find_user_error
from scripts.settings.atlas import LearnedAtlasConfig

ROOT = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = {
    "learned_atlas#device": "cpu",
    "learned_atlas#dtype": "float32",
    "learned_atlas#cohort#layout": "flat",
    "learned_atlas#cohort#normalisation": "none",
    "learned_atlas#cohort#margin": 2,
    "learned_atlas#min_subjects": 1,
    "learned_atlas#model#enc_features": [4, 4],
    "learned_atlas#model#dec_features": [4, 4, 4],
    "learned_atlas#optimizer#epochs": 2,
    "learned_atlas#refine#rounds": 0,
    "learned_atlas#refine#network_epochs": 1,
}


def bumps(shape: Sequence[int] = (10, 10, 10), count: int = 3) -> list[np.ndarray]:
    axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
    result = []
    for index in range(count):
        centre = [(n - 1) / 2 for n in shape]
        centre[0] += index - (count - 1) / 2
        far = sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True))
        result.append(np.where(far < 7, 0.05 * np.exp(-far / 3), 0).astype(np.float32))
    return result


def save(folder: Path, maps: Sequence[np.ndarray]) -> Path:
    folder.mkdir()
    for index, one in enumerate(maps):
        nib.save(nib.Nifti1Image(one, np.diag([2.0, 2, 2, 1])), folder / f"sub-{index}.nii.gz")
    return folder


def train(data: Path, base: Path, **overrides: Any) -> dict[str, np.ndarray]:
    """The published maps by name, and the fields; everything finite."""
    atlas = published(data, base, QUICK, **overrides)
    result = {}
    for path in sorted(atlas.rglob("*.nii.gz")):
        result[path.name] = np.asarray(nib.load(path).dataobj)
        assert np.isfinite(result[path.name]).all(), path
    return {name.removeprefix("atlas_").removesuffix(".nii.gz"): v for name, v in result.items()}


def refusal(data: Path, base: Path, **overrides: Any) -> str:
    with pytest.raises(RuntimeError) as caught:
        train(data, base, **overrides)
    error = find_user_error(caught.value)
    assert error is not None
    assert not (base / "output" / "learned_atlas").exists()
    return str(error)


def test_identical_subjects_have_no_spread(tmp_path: Path) -> None:
    maps = train(save(tmp_path / "data", bumps(count=1) * 3), tmp_path)
    assert maps["std"].max() < 1e-6
    assert set(np.unique(maps["prob_threshold"])) == {0, 100}


def test_one_subject_is_its_own_atlas(tmp_path: Path) -> None:
    maps = train(save(tmp_path / "data", bumps(count=1)), tmp_path)
    for name in ("std", "std_error", "cov"):
        assert not maps[name].any()


def test_disjoint_supports(tmp_path: Path) -> None:
    apart = []
    for index in range(3):
        one = np.zeros((10, 10, 10), np.float32)
        one[3 * index : 3 * index + 2, 4:6, 4:6] = 0.05
        apart.append(one)
    maps = train(save(tmp_path / "data", apart), tmp_path)
    assert maps["mean"].max() > 0
    assert maps["prob_threshold"].max() <= 100


def test_one_voxel_of_density(tmp_path: Path) -> None:
    one = np.zeros((10, 10, 10), np.float32)
    one[5, 5, 5] = 0.05
    data = save(tmp_path / "data", [one] * 2)
    maps = train(data, tmp_path)
    assert np.unravel_index(maps["mean"].argmax(), one.shape) == (5, 5, 5)
    message = refusal(data, tmp_path / "bare", **{"learned_atlas#cohort#margin": 0})
    assert "box has 1 x 1 x 1 voxels" in message


def test_constant_maps(tmp_path: Path) -> None:
    maps = train(save(tmp_path / "data", [np.full((8, 8, 8), 0.05, np.float32)] * 2), tmp_path)
    np.testing.assert_allclose(maps["mean"], 0.05, rtol=1e-2)


@pytest.mark.parametrize("shape", [(7, 7, 7), (9, 9, 1), (2, 3, 2)])
def test_small_grids_and_single_slices(tmp_path: Path, shape: tuple[int, ...]) -> None:
    flat = len(shape) == 2 or shape[-1] == 1
    planes = [one.reshape(shape) for one in bumps(shape[:2] if flat else shape)]
    maps = train(save(tmp_path / "data", planes), tmp_path)
    assert maps["mean"].shape == shape


def test_every_storage_of_one_density(tmp_path: Path) -> None:
    """int16 with a slope, big-endian, float64 and NIfTI-2 are one and the same map."""
    density = bumps(count=1)[0]
    affine = np.diag([2.0, 2, 2, 1])
    data = tmp_path / "data"
    data.mkdir()
    short = nib.Nifti1Image(density, affine)
    short.set_data_dtype(np.int16)
    big = nib.Nifti1Image(density, affine, nib.Nifti1Header(endianness=">"))
    big.set_data_dtype(">f4")
    for name, image in {
        "short": short,
        "big": big,
        "double": nib.Nifti1Image(density.astype(np.float64), affine),
        "two": nib.Nifti2Image(density, affine),
    }.items():
        nib.save(image, data / f"{name}.nii.gz")
    maps = train(data, tmp_path)
    assert maps["std"].max() < 1e-5 * maps["mean"].max() + 1e-6


def test_counts_above_2_to_the_24_are_summed_exactly(tmp_path: Path) -> None:
    counts = np.zeros((4, 4, 4), np.int32)
    counts[1, 1, 1], counts[2, 2, 2] = 2**24 + 1, 2**30 + 1
    data = save(tmp_path / "data", [counts])
    block = {
        "device": "cpu",
        "min_subjects": 1,
        "cohort": {"layout": "flat", "normalisation": "streamline_density"},
    }
    settings = LearnedAtlasConfig.load(block)
    cohort = open_averaged_cohort(data, settings)
    assert cohort.subjects[0].maps[0].divisor == 2**24 + 2**30 + 2
    folder = AveragingAtlas(cohort, settings, tmp_path).publish()
    mean = np.asarray(nib.load(folder / "atlas_mean.nii.gz").dataobj)
    assert mean[1, 1, 1] == np.float32((2**24 + 1) / (2**24 + 2**30 + 2))


def test_counts_mixed_with_densities_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maps = bumps()
    maps[1] = maps[1] * np.float32(1e6)
    train(save(tmp_path / "data", maps), tmp_path)
    assert "were counts mixed with densities?" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"learned_atlas#optimizer#lr": 1e38}, "overflows float32 in epoch 1"),
        ({"learned_atlas#optimizer#lr": 1e39}, "exceeds the range of float32"),
    ],
)
def test_learning_rates_that_no_float_holds(
    tmp_path: Path, overrides: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(save(tmp_path / "data", bumps()), tmp_path, **overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"learned_atlas#optimizer#lr": 1e3},
        {f"learned_atlas#loss#{name}_weight": 1e6 for name in ("similarity", "smoothness")},
        {"learned_atlas#loss#log_offset": 1e-30},
    ],
)
def test_wild_settings_give_finite_maps_or_a_reason(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    data = save(tmp_path / "data", bumps())
    try:
        train(data, tmp_path, **overrides)
    except RuntimeError as error:
        message = find_user_error(error)
        assert message is not None and any(w in str(message) for w in ("not finite", "folds"))
        assert not (tmp_path / "output" / "learned_atlas").exists()


def test_memory_that_runs_out_is_reported_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("scripts.losses.atlas_loss.AtlasLoss.forward", exhausted)
    message = refusal(save(tmp_path / "data", bumps()), tmp_path)
    for advice in ("Tried to allocate", "dtype", "field_resolution", "checkpointing"):
        assert advice in message
