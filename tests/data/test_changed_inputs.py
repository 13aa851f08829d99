"""A map's hash is that of the bytes that were used; shared memory decides about workers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.data import workers
from scripts.data.density_loading import density_dataset, density_transforms
from scripts.data.workers import workers_that_fit
from scripts.errors import CohortError, StorageError
from scripts.runtime.error_report import find_user_error
from scripts.runtime.storage import file_hash
from scripts.settings.atlas import LearnedAtlasConfig


def write(path: Path, seed: int = 0, shape: tuple[int, ...] = (5, 6, 7)) -> Path:
    values = np.random.default_rng(seed).random(shape, dtype=np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return path


def item(*paths: Path) -> dict[str, Any]:
    return {
        "subject": "sub-1",
        "image": [str(path) for path in paths],
        "divisor": [2.0] * len(paths),
        "channel": list(range(len(paths))),
        "sha256": [file_hash(path) for path in paths],
    }


def density_of(listed: dict[str, Any], workers: int = 0) -> torch.Tensor:
    channels = len(listed["image"])
    transform = density_transforms("none", channels, None, (0, 0, 0), (5, 6, 7))
    dataset = density_dataset([listed], transform, cache="none")
    loader: Any = torch.utils.data.DataLoader(dataset, num_workers=workers)
    return next(iter(loader))["image"][0]


def test_unchanged_maps_are_read(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.nii.gz", number) for number in (1, 2)]
    result = density_of(item(*paths))
    for path, density in zip(paths, result, strict=True):
        np.testing.assert_array_equal(density, nib.load(path).get_fdata(dtype=np.float32) / 2)


CHANGES = {
    "other values": lambda path: write(path, 9),
    "another shape": lambda path: write(path, 9, (4, 4, 4)),
    "garbage": lambda path: path.write_bytes(b"xx" * 999),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_map_is_named(change: str, workers: int, tmp_path: Path) -> None:
    if workers and change in ("empty", "a folder", "garbage"):
        return  # one kind of error is enough for a worker's
    first, second = (write(tmp_path / f"{number}.nii.gz", number) for number in (1, 2))
    listed = item(first, second)
    CHANGES[change](second)
    with pytest.raises(Exception) as raised:
        density_of(listed, workers)
    result = find_user_error(raised.value)
    assert isinstance(result, CohortError)
    assert str(result).startswith(f"{second}: ")
    assert "\n" not in str(result)


def test_a_list_without_hashes_is_read(tmp_path: Path) -> None:
    listed = item(write(tmp_path / "1.nii.gz"))
    del listed["sha256"]
    write(tmp_path / "1.nii.gz", 9)
    assert density_of(listed).shape == (1, 5, 6, 7)


def test_workers_need_room_in_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = LearnedAtlasConfig.load({"device": "cpu", "cohort": {"num_workers": 3}})
    monkeypatch.setattr(workers, "_SHARED", tmp_path)
    usage = shutil.disk_usage(tmp_path)
    for free, expected in ((1 << 30, 3), (1 << 16, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, f=free: usage._replace(free=f))
        assert workers_that_fit(settings, (64, 64, 64), 2) == expected
    assert "learned_atlas.cohort.num_workers = 3: the workers need 12.6 MB" in caplog.text
    assert workers_that_fit(LearnedAtlasConfig.load({"device": "cpu"}), (64, 64, 64)) == 0
    monkeypatch.setattr(workers, "_SHARED", tmp_path / "nowhere")  # another system
    assert workers_that_fit(settings, (64, 64, 64)) == 3


def test_a_worker_that_ran_out_of_shared_memory_is_reported_in_one_line() -> None:
    error = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory."
    )
    result = find_user_error(error)
    assert isinstance(result, StorageError)
    assert "num_workers" in str(result)
