"""Training of other models and on other data, in one process."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from training_runs import (
    COUNTS,
    SUBJECTS,
    assert_complete,
    published,
    resampled,
    round_trip,
    volume,
    voxel_field,
    workflow,
)

from scripts.phantom import write_demo_cohort
from scripts.settings.atlas import BASELINE_MAPS
from scripts.spatial.fields import field_names


def test_config_has_every_property_that_monai_asks_for(trained, tmp_path):
    assert not workflow(trained.dataset_dir, tmp_path).check_properties()


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A cohort whose sizes no pooling divides."""
    folder = tmp_path_factory.mktemp("odd") / "demo"
    write_demo_cohort(folder, subjects=5, held_out=0, shape=(31, 35, 29), streamlines=60)
    return folder


def test_odd_sizes_and_cache_on_disk(odd, tmp_path):
    shape = (31, 35, 29)
    in_ram = published(odd, tmp_path / "ram")
    assert_complete(in_ram, shape, SUBJECTS)
    cached = {"learned_atlas#cohort#cache": "disk"}
    on_disk = published(odd, tmp_path / "disk", **cached)
    for name in BASELINE_MAPS:
        file = f"atlas_{name}.nii.gz"
        np.testing.assert_array_equal(volume(in_ram / file), volume(on_disk / file))
    # What was prepared for one offset doesn't serve another.
    other = {"learned_atlas#loss#log_offset": 1e-2}
    again = published(odd, tmp_path / "disk", **cached, **other)
    fresh = published(odd, tmp_path / "fresh", **other)
    for name in BASELINE_MAPS:
        file = f"atlas_{name}.nii.gz"
        np.testing.assert_array_equal(volume(again / file), volume(fresh / file))


def test_plain_displacement_without_integration(odd, tmp_path):
    atlas = published(odd, tmp_path, **{"learned_atlas#model#int_steps": 0})
    assert_complete(atlas, (31, 35, 29), SUBJECTS)
    assert round_trip(atlas / "fields", "sub-01") < 0.1


def test_two_tracts_under_one_deformation(odd, tmp_path):
    named = {"callosum": 0, "arcuate": 1}
    for subject in SUBJECTS:
        image = nib.load(odd / ".truth" / "subjects" / subject / "bundles.nii.gz")
        folder = tmp_path / "data" / subject / "maps"
        folder.mkdir(parents=True)
        for tract, channel in named.items():
            counts = np.asarray(image.dataobj)[..., channel]
            nib.save(nib.Nifti1Image(counts, image.affine), folder / f"{tract}.nii.gz")
    atlas = published(
        tmp_path / "data", tmp_path,
        **{"learned_atlas#cohort#pattern": "{subject}/maps/{tract}.nii.gz",
           "learned_atlas#cohort#tracts": list(named),
           "learned_atlas#cohort#normalisation": "streamline_density",
           "learned_atlas#model#channels": 2},
    )  # fmt: skip
    assert_complete(atlas, (31, 35, 29, 2), SUBJECTS)
    std = volume(atlas / "atlas_std.nii.gz")
    for tract, channel in named.items():
        warped = []
        for subject in SUBJECTS:
            counts = volume(tmp_path / "data" / subject / "maps" / f"{tract}.nii.gz")
            field = voxel_field(atlas / "fields" / field_names(subject)[0])
            warped.append(resampled(counts / counts.sum(), field))
        expected = np.std(warped, axis=0)
        np.testing.assert_allclose(std[..., channel], expected, atol=1e-5 * expected.max())


def test_two_templates_divide_the_subjects(tmp_path):
    data = tmp_path / "data"
    write_demo_cohort(data, subjects=6, held_out=0, shape=(32, 36, 32), streamlines=60, anatomies=2)
    names = [f"sub-{number:02d}" for number in range(1, 7)]
    atlas = published(data, tmp_path, **{"learned_atlas#model#n_templates": 2})
    assert_complete(atlas, (32, 36, 32), names, templates=2)
    mixture = json.loads((atlas / "atlas.json").read_text())["mixture"]
    shares = np.array([mixture[name] for name in names])
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    anatomy = json.loads((data / ".truth" / "truth.json").read_text())["anatomy"]
    assigned = shares.argmax(1)
    kinds = np.array([anatomy[name] for name in names])
    assert set(assigned[kinds == 0]).isdisjoint(assigned[kinds == 1])
    one, other = (volume(atlas / f"template-{k}" / "atlas_mean.nii.gz") for k in (1, 2))
    assert np.abs(one - other).max() > 0.1 * one.max()


def test_planes(odd, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for subject in SUBJECTS:
        image = nib.load(odd / subject / COUNTS)
        plane = np.asarray(image.dataobj).sum(2, keepdims=True)
        nib.save(nib.Nifti1Image(plane, image.affine), data / f"{subject}.nii.gz")
    atlas = published(
        data, tmp_path,
        **{"learned_atlas#cohort#layout": "flat", "learned_atlas#cohort#normalisation": "max"},
    )  # fmt: skip
    assert_complete(atlas, (31, 35, 1), SUBJECTS)
    planes, warped = [volume(data / f"{subject}.nii.gz")[..., 0] for subject in SUBJECTS], []
    for subject, plane in zip(SUBJECTS, planes, strict=True):
        field = voxel_field(atlas / "fields" / field_names(subject)[0])
        assert not field[2].any()
        warped.append(resampled(plane / plane.max(), field[:2, :, :, 0]))
    std = volume(atlas / "atlas_std.nii.gz")[..., 0]
    np.testing.assert_allclose(std, np.std(warped, axis=0), atol=1e-5)
