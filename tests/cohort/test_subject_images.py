"""One more image per subject: which files are taken, which are refused, and where they lie."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort.subject_images import find_subject_images
from scripts.errors import CohortError

KEY = "learned_atlas.cohort.labels"


@pytest.fixture
def find(make_grid, tmp_path):
    """Look for labels on a grid of 4 x 5 x 6 voxels."""

    def run(names=("a", "b"), pattern="{subject}_seg.nii.gz", shape=(4, 5, 6), **options):
        return find_subject_images(pattern, tmp_path, names, make_grid(shape), KEY, 0.01, **options)

    return run


def write(path, values, affine=None):
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.asarray(values), affine), path)


def test_a_subject_without_a_file_has_no_image(find, tmp_path, caplog):
    labels = np.arange(120, dtype=np.int32).reshape(4, 5, 6)
    write(tmp_path / "a_seg.nii.gz", labels)
    images = find()
    assert np.array_equal(images.read("a"), labels)
    assert images.read("b") is None
    assert "no file for b" in caplog.text


def test_an_absolute_pattern_leads_anywhere(find, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere/a.nii.gz", np.ones((4, 5, 6), np.int16))
    assert list(find(pattern=str(tmp_path / "elsewhere/{subject}.nii.gz")).files) == ["a"]


def test_another_storage_order_is_brought_into_the_cohorts(find, tmp_path):
    labels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    flipped = np.diag([-2.0, 2.0, 2.0, 1.0])
    flipped[0, 3] = 6
    write(tmp_path / "a_seg.nii.gz", labels[::-1], flipped)
    assert np.array_equal(find().read("a"), labels)


def test_a_finer_grid_is_read_by_the_nearest_voxel_if_asked(find, tmp_path):
    fine = np.repeat(np.repeat(np.repeat(np.arange(120).reshape(4, 5, 6), 2, 0), 2, 1), 2, 2)
    affine = np.eye(4)
    affine[:3, 3] = -0.5
    write(tmp_path / "a_seg.nii.gz", fine.astype(np.int16), affine)
    assert np.array_equal(find(resample=True).read("a"), np.arange(120).reshape(4, 5, 6))


@pytest.mark.parametrize(
    ("values", "affine", "message"),
    [
        (np.full((4, 5, 6), 1.5, np.float32), None, "contains the value 1.5; labels and masks"),
        (np.zeros((4, 5, 6, 2), np.int16), None, "has 2 volumes; must have one"),
        (np.full((4, 5, 6), np.nan, np.float32), None, "not all values are finite"),
        (np.zeros((4, 5, 7), np.int16), None, "is not on the grid of the density maps: shape"),
        (np.zeros((4, 5, 6), np.int16), np.eye(4), "is not on the grid of the density maps"),
    ],
)
def test_files_that_are_refused(find, tmp_path, values, affine, message):
    write(tmp_path / "a_seg.nii.gz", values, affine)
    with pytest.raises(CohortError, match=r"a_seg\.nii\.gz") as caught:
        find()
    assert message in str(caught.value)


def test_a_pattern_that_finds_nothing_is_an_error(find):
    with pytest.raises(CohortError, match=r"cohort.labels = .*no subject has such a file"):
        find()
    assert find(required=False).files == {}


def test_a_file_that_changes_after_the_check_is_refused(find, tmp_path):
    write(tmp_path / "a_seg.nii.gz", np.ones((4, 5, 6), np.int16))
    images = find()
    write(tmp_path / "a_seg.nii.gz", np.zeros((4, 5, 6), np.int16))
    with pytest.raises(CohortError, match="changed while it was in use"):
        images.read("a")
