"""From files to log densities: the chain of transforms, and caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from small_maps import AFFINE, SHAPE, counts, save, whole

from scripts.cohort import read_cohort
from scripts.data import (
    EpochBatches,
    MapsReader,
    density_dataset,
    density_transforms,
)
from scripts.settings.atlas import LearnedAtlasConfig


def test_crop_and_logarithm(tmp_path: Path) -> None:
    data = counts() / 1000
    path = save(tmp_path / "map.nii.gz", data)
    chain = whole(log_offset=0.01, crop_start=(1, 0, 2), crop_stop=(6, 6, 5))
    result = chain({"image": path})["image"]
    np.testing.assert_allclose(result[0].numpy(), np.log1p(data[1:6, :, 2:] / 0.01), rtol=1e-5)


@pytest.mark.parametrize("stored", [(7, 6), (7, 6, 1)])
def test_planes(stored: tuple[int, ...], tmp_path: Path) -> None:
    data = counts(shape=(7, 6))
    path = save(tmp_path / "map.nii.gz", data.reshape(stored))
    chain = density_transforms("none", 1, None, (1, 2), (6, 6))
    result = chain({"image": path})["image"]
    np.testing.assert_allclose(result[0].numpy(), data[1:6, 2:])


def test_metadata_is_kept_only_where_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "map.nii.gz", counts())
    assert type(whole()({"image": path})["image"]) is torch.Tensor
    kept = whole(track_meta=True)({"image": path})["image"]
    assert isinstance(kept, MetaTensor)
    np.testing.assert_allclose(np.asarray(kept.affine), AFFINE)


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        {
            "subject": f"sub-{i}",
            "image": [save(tmp_path / f"{i}.nii.gz", counts(i))],
            "divisor": [float(i + 1)],
            "channel": [0],
        }
        for i in range(3)
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cache", ["ram", "device", "disk", "none"])
def test_every_cache_gives_the_same(
    cache: str, num_workers: int, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    chain = whole(log_offset=1e-3)
    result = density_dataset(items, chain, cache, tmp_path / "cache", num_workers=num_workers)
    assert len(result) == 3
    for _ in range(2):  # filled, and read again
        for i, item in enumerate(items):
            got: Any = result[i]
            assert got["subject"] == item["subject"]
            assert torch.equal(torch.as_tensor(got["image"]), chain(item)["image"])


@pytest.mark.parametrize(
    ("cache", "reads_again"), [("ram", False), ("disk", False), ("none", True)]
)
def test_a_cache_reads_a_file_once(
    cache: str, reads_again: bool, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    result: Any = density_dataset(items, whole(), cache, tmp_path / "cache")
    first = [torch.as_tensor(result[i]["image"]).clone() for i in range(3)]
    for i, item in enumerate(items):
        nib.save(nib.Nifti1Image(counts(i) + 7, AFFINE), item["image"][0])
        assert torch.equal(torch.as_tensor(result[i]["image"]), first[i]) is not reads_again


def test_a_cache_on_disk_needs_a_folder(items: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="needs cache_dir"):
        density_dataset(items, whole(), "disk")


def test_two_threads_may_share_one_reader(tmp_path: Path) -> None:
    """One thread reads its files between another's reading and unpacking."""
    several = [save(tmp_path / f"{i}.nii.gz", counts(i)) for i in range(3)]
    reader = MapsReader()
    mine = reader.read(several)
    reader.read(several[:1])
    result, meta = reader.get_data(mine)
    np.testing.assert_array_equal(result, [counts(i) for i in range(3)])
    np.testing.assert_array_equal(meta["affine"], AFFINE)


def test_batches_are_collated_with_their_names(items: list[dict[str, Any]]) -> None:
    """Subjects with different numbers of maps, too."""
    items[1]["image"] = items[1]["image"] * 2
    items[1]["divisor"], items[1]["channel"] = [1.0, 1.0], [0, 0]
    result = density_dataset(items, whole(), "ram")
    loader = DataLoader(result, batch_sampler=EpochBatches(3, 2))
    batch = next(iter(loader))
    assert batch["image"].shape == (2, 1, *SHAPE)
    assert len(batch["subject"]) == 2


def test_the_training_sees_what_the_cohorts_inspection_saw(tmp_path: Path) -> None:
    """Other containers, axis orders, rounded headers, NaN, negative values, two maps a subject."""
    maps = [counts(i).astype(np.float32) for i in range(4)]
    maps[2][:2, 0, 0] = 0
    plain, odd = tmp_path / "plain", tmp_path / "odd"
    for folder in (plain, odd):
        for i, one in enumerate(maps):
            for side in ("left", "right"):
                save(folder / f"s{i}" / "tractography" / "probtrackx2" / side
                     / "warped_streamlines" / "fdt_paths.nii.gz", one)  # fmt: skip
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = -2, 2 * (SHAPE[0] - 1)
    shifted = AFFINE.copy()
    shifted[:3, 3] += 0.001
    spoilt = maps[2].copy()
    spoilt[0, 0, 0], spoilt[1, 0, 0] = np.nan, -1e-9
    at = "tractography/probtrackx2/{}/warped_streamlines/fdt_paths"
    for name, image in {
        f"s1/{at.format('left')}.nii.gz": nib.Nifti1Image(maps[1][::-1].copy(), flipped),
        f"s1/{at.format('right')}.nii.gz": nib.Nifti1Image(maps[1], shifted),
        f"s2/{at.format('right')}.nii.gz": nib.Nifti1Image(spoilt, AFFINE),
        f"s3/{at.format('left')}.mgz": nib.MGHImage(maps[3], AFFINE),
    }.items():
        (odd / name).with_name("fdt_paths.nii.gz").unlink()
        nib.save(image, odd / name)
    result = []
    for folder in (plain, odd):
        settings = LearnedAtlasConfig.load(
            {
                "cohort": {"normalisation": "max", "nan": "zero", "negative": "zero"},
                "min_subjects": 1,
            }
        )
        cohort = read_cohort(folder, settings.cohort_request())
        start, stop = cohort.crop.start, cohort.crop.stop
        transform = density_transforms("max", 1, 1e-3, start, stop)
        data = density_dataset(cohort.datalist(), transform)
        result.append([np.asarray(data[i]["image"]) for i in range(4)])
    np.testing.assert_allclose(result[0], result[1], rtol=1e-6)
