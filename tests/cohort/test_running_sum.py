"""One grid for all subjects, and warnings about subjects that may spoil an atlas."""

import logging

import nibabel as nib
import numpy as np
import pytest
from small_cohorts import affine, read, reasons, voxels

from scripts.cohort.density import subject_density
from scripts.errors import CohortError

# Row k of the new first axis is the old second one; the old first axis runs backwards.
REORDERED = affine() @ np.array([[0, -1, 0, 11], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("position", [1, 3, 5])
@pytest.mark.parametrize(
    "shape, other, words",
    [
        ((12, 10, 9), affine(), "shape 12 x 10 x 9 against 12 x 10 x 8"),
        ((10, 12, 8), affine(), "shape 10 x 12 x 8"),
        ((12, 10, 8), affine(shift=2), "affine shifted by (2, 0, 0) mm"),
        ((12, 10, 8), affine(shift=0.05), "affine shifted by"),
        ((12, 10, 8), affine(flip=-1), "affine flipped along axis 0"),
        ((12, 10, 8), np.diag([2.0, 2, 2, 1]), "affine flipped along axis 0"),
        ((12, 10, 8), np.diag([1.0, 1, 1, 1]), "against"),
        ((12, 10), affine(), "shape 12 x 10 against"),
    ],
)
def test_another_grid_is_an_error_that_names_both_subjects(
    five, make_blob, position, shape, other, words
):
    who = f"sub-{position}"
    five.add(who, make_blob(3, shape), affine=other)
    with pytest.raises(CohortError) as caught:
        read(five, min_subjects=1)
    message = str(caught.value)
    assert who in message
    assert ("sub-2" if position == 1 else "sub-1") in message
    if position != 1:
        assert words in message


@pytest.mark.parametrize("shift", [1e-4, 1e-3, 0.01])
def test_rounding_of_an_affine_is_no_other_grid(five, make_blob, shift):
    five.add("sub-3", make_blob(3), affine=affine(shift=shift))
    assert len(read(five).subjects) == 5


def test_the_tolerance_of_grids_is_a_setting(five, make_blob):
    five.add("sub-3", make_blob(3), affine=affine(shift=0.2))
    with pytest.raises(CohortError, match="raise --learned_atlas#cohort#grid_tolerance"):
        read(five)
    assert len(read(five, cohort={"grid_tolerance": 0.11}).subjects) == 5


@pytest.mark.parametrize("position", [1, 3])
def test_another_order_of_the_axes_is_no_other_grid(five, position, caplog):
    """The voxels of one subject are stored from the other side: nothing else changes."""
    caplog.set_level(logging.INFO)
    plain = read(five)
    densities = [[subject_density(one, 1, plain.grid.shape) for one in plain.subjects]]
    stored = voxels(plain.subjects[position - 1].maps[0].path)[::-1].transpose(1, 0, 2)
    five.add(f"sub-{position}", stored.astype(np.float32), affine=REORDERED)
    turned = read(five)
    assert "stored in another axis order" in caplog.text
    densities.append([subject_density(one, 1, turned.grid.shape) for one in turned.subjects])
    if position == 1:  # the first subject's order is the cohort's
        densities[1] = [one.transpose(0, 2, 1, 3)[:, ::-1] for one in densities[1]]
    np.testing.assert_array_equal(densities[0], densities[1])
    whole = [one.crop.paste(one.mean_density, one.grid.shape) for one in (plain, turned)]
    if position == 1:
        whole[1] = whole[1].transpose(0, 2, 1, 3)[:, ::-1]
    np.testing.assert_allclose(*whole, rtol=1e-6)


def test_an_unusable_subject_on_another_grid_is_only_left_out(five, make_blob):
    five.add("sub-6", make_blob(1, (4, 5, 6)) * np.nan)
    assert set(reasons(read(five))) == {"sub-6"}


def test_runs_of_one_subject_on_two_grids(five, make_blob):
    five.add("sub-6", make_blob(1), run="left")
    five.add("sub-6", make_blob(1, (12, 10, 9)), run="right")
    cohort = read(five)
    assert "is not on the grid of" in reasons(cohort)["sub-6"]
    assert cohort.rejected[0].path == str(five.path("sub-6", "right"))


def test_counts_among_densities_are_warned_of(five, caplog, make_blob):
    five.add("sub-4", make_blob(4) * 60)
    read(five)
    assert "the density of subject sub-4 sums to" in caplog.text
    assert "were counts mixed with densities?" in caplog.text


def test_a_scale_within_reason_is_not(five, caplog, make_blob):
    five.add("sub-4", make_blob(4) * 20)
    read(five)
    assert "counts mixed" not in caplog.text


def test_normalised_sums_are_what_is_compared(five, caplog, make_blob):
    five.add("sub-4", make_blob(4) * 6000)
    read(five, cohort={"normalisation": "streamline_density"})
    assert "counts mixed" not in caplog.text


def test_one_map_under_two_names_is_warned_of(five, caplog):
    data = voxels(five.path("sub-2")).astype(np.int16)  # another file, the same voxels
    five.add("sub-9", data)
    cohort = read(five)
    assert len(cohort.subjects) == 6
    assert "subjects sub-2, sub-9 have the same density, voxel by voxel" in caplog.text


def test_disagreeing_forms_are_warned_of(five, caplog):
    image = nib.load(five.path("sub-2"))
    image.set_sform(image.affine, 4)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, five.path("sub-2"))
    assert len(read(five).subjects) == 5
    assert "subject sub-2: " in caplog.text
    assert "sform and qform disagree" in caplog.text


def test_a_good_cohort_is_read_without_a_warning(five, caplog):
    with caplog.at_level(logging.WARNING):
        read(five)
    assert caplog.records == []
