"""Things that several rooms' tests need: threads, small cohorts, small networks."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from atlas_training import make_training  # noqa: F401 (a fixture)
from hypothesis import HealthCheck, settings

from scripts.atlas.building import build_network
from scripts.atlas.network import AtlasNetwork
from scripts.cohort import Cohort, DensityMap, Subject
from scripts.runtime import run_log
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.grid import CropBox, Grid

# The same examples in every run, and no judgement by the clock: test machines are busy.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

SHAPE = (14, 12, 13)  # of the whole grid; nothing is even everywhere or a multiple of 8
MODEL = {"enc_features": [4, 4], "dec_features": [4, 4, 4], "int_steps": 5}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of jobs first: they take longest, and short ones fill the end on every process."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Remove what a fixture of a module wrote when the module is done, unless a test failed."""
    if fixturedef.scope not in ("class", "module"):
        return (yield)
    base, session = request.getfixturevalue("tmp_path_factory").getbasetemp(), request.session
    before, failed = set(base.iterdir()), session.testsfailed
    made: set[Path] = set()

    def clear() -> None:
        if session.testsfailed == failed:
            for folder in made:
                shutil.rmtree(folder, ignore_errors=True)

    fixturedef.addfinalizer(clear)  # before the fixture's own, so that it comes after it
    try:
        return (yield)
    finally:
        made.update(path for path in set(base.iterdir()) - before if not path.is_symlink())


@pytest.fixture(autouse=True)
def _log_ends_with_its_test() -> Iterator[None]:
    """The log of a job that ran in this process lies in a folder that is removed now."""
    yield
    if run_log._kept is not None:
        logging.getLogger().removeHandler(run_log._kept)
        run_log._kept.close()
        run_log._kept = None


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One and two threads of torch, put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend that so many bytes are free."""

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=count))

    return free


@pytest.fixture
def make_grid() -> Callable[..., Grid]:
    """Grids with a header such as a file would bring."""

    def make(shape: Sequence[int] = SHAPE, affine: np.ndarray | None = None) -> Grid:
        affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
        header = nib.Nifti1Header()
        header.set_data_shape(tuple(shape))
        header.set_sform(affine, code=4)
        header.set_qform(affine, code=1)
        header.set_xyzt_units("mm")
        return Grid(tuple(shape), affine, header)

    return make


@pytest.fixture
def make_settings() -> Callable[..., LearnedAtlasConfig]:
    """Settings of a tiny model; sections given are laid over it."""

    def make(**changes: Any) -> LearnedAtlasConfig:
        block: dict[str, Any] = {
            "device": "cpu",
            "presence_value": 1e-3,
            "model": dict(MODEL),
            "loss": {"window": 5, "scales": [1, 2]},
            "optimizer": {"lr": 1e-3, "epochs": 2, "batch_size": 2},
            "cohort": {"normalisation": "none"},
        }
        for key, value in changes.items():
            block[key] = {**block.get(key, {}), **value} if isinstance(value, dict) else value
        return LearnedAtlasConfig.load(block)

    return make


def _bump(shape: Sequence[int], centre: Sequence[float], width: float) -> np.ndarray:
    """A density of compact support: exactly 0 beyond three widths."""
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    far = sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) / width**2
    return np.where(far < 9, 0.05 * np.exp(-far / 2), 0).astype(np.float32)


@pytest.fixture
def make_cohort(tmp_path: Path, make_grid: Callable[..., Grid]) -> Callable[..., Cohort]:
    """Cohorts of shifted bumps, written as files; the box leaves a border of the grid out."""

    def make(
        subjects: int = 4, shape: Sequence[int] = SHAPE, channels: int = 1, spread: float = 1.0
    ) -> Cohort:
        grid = make_grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
        folder = tmp_path / "maps"
        folder.mkdir(exist_ok=True)
        crop = CropBox(tuple(1 for _ in shape), tuple(n - 1 for n in shape))
        result, total = [], np.zeros((channels, *shape))
        for i in range(subjects):
            maps = []
            for c in range(channels):
                move = spread * ((i + 0.5) - subjects / 2) / max(1, subjects / 2)
                centre = [(n - 1) / 2 for n in shape]
                centre[c % len(shape)] += move
                density = _bump(shape, centre, 1.4)
                path = folder / f"sub-{i + 1}_{c}.nii.gz"
                nib.save(nib.Nifti1Image(density, grid.affine), path)
                total[c] += density / subjects
                maps.append(DensityMap(path, c, 1.0, f"{i}-{c}"))
            result.append(Subject(f"sub-{i + 1}", tuple(maps)))
        mean = crop.crop(total).astype(np.float32)
        tracts = tuple(f"tract-{c}" for c in range(channels)) if channels > 1 else ()
        return Cohort(tuple(result), (), grid, crop, mean, "none", "{subject}", tracts=tracts)

    return make


@pytest.fixture
def make_network(
    make_cohort: Callable[..., Cohort], make_settings: Callable[..., LearnedAtlasConfig]
) -> Callable[..., AtlasNetwork]:
    """Networks of a small cohort; ``moving``: with fields that are not near zero."""

    def make(moving: bool = False, **changes: Any) -> AtlasNetwork:
        network = build_network(make_cohort(), make_settings(**changes))
        if moving:
            torch.manual_seed(1)
            torch.nn.init.normal_(network.unet.field.weight, std=0.03)
            assert network.unet.field.bias is not None
            torch.nn.init.normal_(network.unet.field.bias, std=0.3)
        return network

    return make
