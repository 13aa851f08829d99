"""New subjects against an atlas's grid and box."""

import nibabel as nib
import numpy as np
import pytest
from small_cohorts import affine, config, read

from scripts.cohort import read_new_subjects
from scripts.errors import CohortError


@pytest.fixture
def atlas(five):
    return read(five, cohort={"margin": 0})


def test_new_subjects_of_a_file_of_files_and_of_a_folder(five, atlas):
    path = five.path("sub-3")
    for source in (path, str(path), [path], [str(path)]):
        new = read_new_subjects(source, config(), atlas.grid, atlas.crop)
        assert new.datalist() == [atlas.datalist()[2]]
    new = read_new_subjects(five.folder, config(), atlas.grid, atlas.crop)
    assert new.datalist() == atlas.datalist()


def test_one_new_subject_is_enough(dataset, five, atlas):
    values = {"subjects": ["sub-2"]}
    new = read_new_subjects(five.folder, config(cohort=values), atlas.grid, atlas.crop)
    assert [subject.name for subject in new.subjects] == ["sub-2"]


def test_a_new_subject_on_another_grid_is_refused_or_let_through(five, atlas, make_blob):
    path = five.add("new", make_blob(1, (6, 7, 8)), affine=affine(shift=1))
    with pytest.raises(CohortError) as caught:
        read_new_subjects(path, config(), atlas.grid, atlas.crop)
    message = str(caught.value)
    assert str(path) in message
    assert "shape 6 x 7 x 8 against 12 x 10 x 8" in message
    assert "--learned_atlas#cohort#resample true" in message
    values = {"resample": True}
    new = read_new_subjects(path, config(cohort=values), atlas.grid, atlas.crop)
    assert [subject.name for subject in new.subjects] == ["new"]


@pytest.mark.parametrize("inside, share", [(1.0, "50"), (0.0, "1e+02")])
def test_density_outside_the_box_is_reported(five, atlas, caplog, inside, share):
    data = np.zeros((12, 10, 8), dtype=np.float32)
    data[0, 0, 0] = 1
    data[5, 5, 5] = inside
    path = five.add("new", data)
    read_new_subjects(path, config(), atlas.grid, atlas.crop)
    assert f"subject new has {share} % of its density outside the atlas's box" in caplog.text


def test_disagreeing_forms_of_a_new_subject_are_warned_of(five, caplog):
    atlas = read(five)
    image = nib.load(five.path("sub-2"))
    image.set_sform(image.affine, 4)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, five.path("sub-2"))
    read_new_subjects(five.path("sub-2"), config(), atlas.grid, atlas.crop)
    assert "sform and qform disagree" in caplog.text


def test_unusable_new_subjects_are_left_out(five, atlas, caplog):
    (five.path("sub-3").parent / "waytotal").write_text("0")
    new = read_new_subjects(five.folder, config(), atlas.grid, atlas.crop)
    assert len(new.subjects) == 4
    assert [one.subject for one in new.rejected] == ["sub-3"]
    assert "subject sub-3 is left out" in caplog.text
    with pytest.raises(CohortError, match=r"no usable subject\n.*\n.*sub-3 .*is zero"):
        read_new_subjects(five.path("sub-3"), config(), atlas.grid, atlas.crop)


@pytest.mark.parametrize(
    "source, words",
    [("none.nii.gz", "No such file"), ("nowhere", "does not exist")],
)
def test_a_new_subject_that_is_not_there(tmp_path, atlas, source, words):
    with pytest.raises(CohortError, match=words):
        read_new_subjects(tmp_path / source, config(), atlas.grid, atlas.crop)


def test_a_folder_among_maps_is_reported_by_the_option_for_folders(five, atlas):
    with pytest.raises(CohortError, match="is a folder, not a map; give it as --dataset_dir"):
        read_new_subjects([five.path("sub-1"), five.folder], config(), atlas.grid, atlas.crop)


def test_a_mask_that_covers_most_of_a_subject_may_be_inverted(five, atlas, caplog):
    density = nib.load(five.path("sub-3")).get_fdata()
    lesion = np.zeros(density.shape, np.uint8)
    lesion[tuple(np.argwhere(density > 0)[0])] = 1
    config_with_mask = config(cohort={"mask": str(five.folder / "mask_{subject}.nii.gz")})
    for mask in (lesion, 1 - lesion):
        nib.save(nib.Nifti1Image(mask, atlas.grid.affine), five.folder / "mask_sub-3.nii.gz")
        assert "inverted" not in caplog.text
        read_new_subjects(five.path("sub-3"), config_with_mask, atlas.grid, atlas.crop)
    assert (
        "voxels with density of subject sub-3, which then don't count; is the mask inverted?"
        in (caplog.text)
    )


def test_a_label_map_without_labels_is_named(five, atlas, caplog):
    empty = np.zeros(atlas.grid.shape, np.uint8)
    nib.save(nib.Nifti1Image(empty, atlas.grid.affine), five.folder / "labels_sub-3.nii.gz")
    labelled = config(cohort={"labels": str(five.folder / "labels_{subject}.nii.gz")})
    read_new_subjects(five.path("sub-3"), labelled, atlas.grid, atlas.crop)
    assert "the label map is 0 everywhere, so it has no label, for sub-3" in caplog.text
