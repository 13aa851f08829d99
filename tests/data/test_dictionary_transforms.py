"""Dictionary transforms on real small files, the caches, and the order of the subjects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose

from scripts.cohort import density_divisor, read_cohort
from scripts.data import (
    EpochBatches,
    LogDensityd,
    MapsReader,
    NormaliseDensityd,
    density_dataset,
    density_transforms,
)
from scripts.errors import CohortError
from scripts.settings.atlas import LearnedAtlasConfig

SHAPE = (7, 6, 5)
AFFINE = np.diag([2.0, 2, 2, 1])


def counts(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.float32)


def save(path: Path, data: np.ndarray, waytotal: str | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    if waytotal is not None:
        (path.parent / "waytotal").write_text(waytotal)
    return str(path)


def whole(normalisation: str = "none", channels: int = 1, **changes: Any) -> Compose:
    """Transforms of the uncropped grid, linear unless asked otherwise."""
    settings = {
        "log_offset": None, "crop_start": (0, 0, 0), "crop_stop": SHAPE, **changes,
    }  # fmt: skip
    return density_transforms(normalisation, channels, **settings)


# -- the single transforms -------------------------------------------------------------------


def test_maps_are_divided_and_summed_by_channel() -> None:
    maps = torch.tensor(np.stack([counts(i) for i in range(3)]))
    item: dict[Any, Any] = {
        "image": maps,
        "divisor": [10.0, 4.0, 2.0],
        "channel": [1, 0, 1],
        "subject": "a",
    }
    found = NormaliseDensityd("image", "waytotal", channels=2)(item)
    assert set(found) == {"image", "subject"}  # what can't be collated is gone
    torch.testing.assert_close(found["image"][0], maps[1] / 4)
    torch.testing.assert_close(found["image"][1], maps[0] / 10 + maps[2] / 2)
    assert torch.equal(item["image"], maps)  # the input is left as it was
    assert "divisor" in item


@pytest.mark.parametrize("shape", [(7, 6, 5, 1), (7, 6, 5)])
def test_a_trailing_axis_of_one_is_dropped(shape: tuple[int, ...]) -> None:
    item: dict[Any, Any] = {"image": torch.ones(1, *shape), "divisor": [2.0], "channel": [0]}
    found = NormaliseDensityd("image", "none")(item)["image"]
    assert found.shape == (1, 7, 6, 5)
    assert (found == 0.5).all()


def test_a_plane_stored_as_a_volume_of_one_slice() -> None:
    item: dict[Any, Any] = {"image": torch.ones(1, 7, 6, 1), "divisor": [1.0], "channel": [0]}
    found = NormaliseDensityd("image", "none", spatial_dims=2)(item)["image"]
    assert found.shape == (1, 7, 6)


def test_as_many_divisors_as_maps() -> None:
    item: dict[Any, Any] = {"image": torch.ones(2, *SHAPE), "divisor": [2.0], "channel": [0, 0]}
    with pytest.raises(ValueError, match="zip"):
        NormaliseDensityd("image", "none")(item)


def test_log_density_is_zero_at_zero_and_log_two_at_the_offset() -> None:
    found = LogDensityd("image", 0.01)({"image": torch.tensor([0.0, 0.01, 1.0])})["image"]
    expected = torch.log(torch.tensor([1.0, 2.0, 101.0]))
    torch.testing.assert_close(found, expected)
    assert found[0] == 0


# -- the chain from files --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["waytotal", "streamline_density", "max", "none"])
def test_a_lone_map_finds_its_divisor_by_the_cohorts_rule(method: str, tmp_path: Path) -> None:
    """An annotation tool brings a path and nothing else."""
    data = counts()
    path = save(tmp_path / "fdt_paths.nii.gz", data, waytotal="300\n200\n")
    expected = {
        "waytotal": 500.0, "streamline_density": data.sum(), "max": data.max(), "none": 1.0,
    }[method]  # fmt: skip
    assert density_divisor(method, Path(path), data) == pytest.approx(expected)
    found = whole(method)({"image": path})["image"]
    np.testing.assert_allclose(found[0].numpy(), data / expected, rtol=1e-5)


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
    found = whole(channels=2)(item)["image"]
    assert found.shape == (2, *SHAPE)
    np.testing.assert_allclose(found[0].numpy(), data[0] / 10 + data[1] / 20, rtol=1e-5)
    np.testing.assert_allclose(found[1].numpy(), data[2] / 5, rtol=1e-5)


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
    found = whole()({"image": str(path)})["image"]
    assert found.shape == (1, *SHAPE)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-6)


def test_crop_and_logarithm(tmp_path: Path) -> None:
    data = counts() / 1000
    path = save(tmp_path / "map.nii.gz", data)
    chain = whole(log_offset=0.01, crop_start=(1, 0, 2), crop_stop=(6, 6, 5))
    found = chain({"image": path})["image"]
    np.testing.assert_allclose(found[0].numpy(), np.log1p(data[1:6, :, 2:] / 0.01), rtol=1e-5)


@pytest.mark.parametrize("stored", [(7, 6), (7, 6, 1)])
def test_planes(stored: tuple[int, ...], tmp_path: Path) -> None:
    data = counts(shape=(7, 6))
    path = save(tmp_path / "map.nii.gz", data.reshape(stored))
    chain = density_transforms("none", 1, None, (1, 2), (6, 6))
    found = chain({"image": path})["image"]
    np.testing.assert_allclose(found[0].numpy(), data[1:6, 2:])


def test_metadata_is_kept_only_where_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "map.nii.gz", counts())
    assert type(whole()({"image": path})["image"]) is torch.Tensor
    kept = whole(track_meta=True)({"image": path})["image"]
    assert isinstance(kept, MetaTensor)
    np.testing.assert_allclose(np.asarray(kept.affine), AFFINE)


# -- datasets --------------------------------------------------------------------------------


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
    found = density_dataset(items, chain, cache, tmp_path / "cache", num_workers=num_workers)
    assert len(found) == 3
    for _ in range(2):  # filled, and read again
        for i, item in enumerate(items):
            got: Any = found[i]
            assert got["subject"] == item["subject"]
            assert torch.equal(torch.as_tensor(got["image"]), chain(item)["image"])


@pytest.mark.parametrize(
    ("cache", "reads_again"), [("ram", False), ("disk", False), ("none", True)]
)
def test_a_cache_reads_a_file_once(
    cache: str, reads_again: bool, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    found: Any = density_dataset(items, whole(), cache, tmp_path / "cache")
    first = [torch.as_tensor(found[i]["image"]).clone() for i in range(3)]
    for i, item in enumerate(items):
        nib.save(nib.Nifti1Image(counts(i) + 7, AFFINE), item["image"][0])
        assert torch.equal(torch.as_tensor(found[i]["image"]), first[i]) is not reads_again


def test_a_cache_on_disk_needs_a_folder(items: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="needs cache_dir"):
        density_dataset(items, whole(), "disk")


def test_two_threads_may_share_one_reader(tmp_path: Path) -> None:
    """One thread reads its files between another's reading and unpacking."""
    several = [save(tmp_path / f"{i}.nii.gz", counts(i)) for i in range(3)]
    reader = MapsReader()
    mine = reader.read(several)
    reader.read(several[:1])
    found, meta = reader.get_data(mine)
    np.testing.assert_array_equal(found, [counts(i) for i in range(3)])
    np.testing.assert_array_equal(meta["affine"], AFFINE)


def test_batches_are_collated_with_their_names(items: list[dict[str, Any]]) -> None:
    """Subjects with different numbers of maps, too."""
    items[1]["image"] = items[1]["image"] * 2
    items[1]["divisor"], items[1]["channel"] = [1.0, 1.0], [0, 0]
    found = density_dataset(items, whole(), "ram")
    loader = DataLoader(found, batch_sampler=EpochBatches(3, 2))
    batch = next(iter(loader))
    assert batch["image"].shape == (2, 1, *SHAPE)
    assert len(batch["subject"]) == 2


# -- the order of the subjects ---------------------------------------------------------------


def epochs(batches: EpochBatches, number: int) -> list[list[list[int]]]:
    flat = list(islice(iter(batches), number * len(batches)))
    return [flat[e * len(batches) : (e + 1) * len(batches)] for e in range(number)]


sizes = {"size": st.integers(1, 20), "batch_size": st.integers(1, 7), "seed": st.integers(0, 5)}


@given(**sizes)
def test_every_subject_comes_once_an_epoch(size: int, batch_size: int, seed: int) -> None:
    batches = EpochBatches(size, batch_size, seed)
    for epoch in epochs(batches, 3):
        assert sorted(i for batch in epoch for i in batch) == list(range(size))
        assert all(len(batch) == batch_size for batch in epoch[:-1])
        assert len(epoch[-1]) == (size - 1) % batch_size + 1  # the last part-batch is kept


@given(**sizes)
def test_the_order_is_that_of_seed_and_epoch_alone(size: int, batch_size: int, seed: int) -> None:
    unbroken = epochs(EpochBatches(size, batch_size, seed), 4)
    assert epochs(EpochBatches(size, batch_size, seed), 4) == unbroken
    resumed = EpochBatches(size, batch_size, seed)
    resumed.first_epoch = 2
    assert epochs(resumed, 2) == unbroken[2:]


def test_orders_differ_between_epochs_and_seeds() -> None:
    first, second = epochs(EpochBatches(20, 20, 0), 2)
    (other,) = epochs(EpochBatches(20, 20, 1), 1)
    assert first != second
    assert first != other
    assert first != [[list(range(20))]]


@given(world_size=st.integers(1, 4), **sizes)
def test_processes_share_each_batch_out(
    world_size: int, size: int, batch_size: int, seed: int
) -> None:
    one = epochs(EpochBatches(size, batch_size, seed), 2)

    def make(rank: int) -> EpochBatches:
        return EpochBatches(size, batch_size, seed, rank, world_size)

    each = [epochs(make(rank), 2) for rank in range(world_size)]
    for e, epoch in enumerate(one):
        for b, batch in enumerate(epoch):
            sizes = [make(rank).sizes(e * len(epoch) + b + 1) for rank in range(world_size)]
            assert [whole for _, whole in sizes] == [len(batch)] * world_size
            parts = []
            for ranks, (own, _) in zip(each, sizes, strict=True):
                given_out = ranks[e][b]
                assert given_out  # a process without a subject of its own gets a stand-in,
                assert set(given_out) <= set(batch)
                assert len(given_out) == max(own, 1)
                parts.append(given_out[:own])  # which doesn't count
            assert sorted(i for part in parts for i in part) == sorted(batch)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


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
    found = []
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
        found.append([np.asarray(data[i]["image"]) for i in range(4)])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
