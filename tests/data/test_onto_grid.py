"""New maps on an atlas's grid, and densities as labels."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.processing import resample_from_to

from scripts.data import OntoGridd, PresenceLabeld
from scripts.errors import CohortError
from scripts.spatial.density_resampling import visits_ratio
from scripts.spatial.grid import Grid

AFFINE = np.array([[0, 2.0, 0, -7], [1.5, 0, 0, 3], [0, 0, 2.5, 1], [0, 0, 0, 1]])


@pytest.fixture
def image():
    values = np.random.default_rng(0).random((2, 7, 6, 8))
    return MetaTensor(
        torch.from_numpy(values), affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": "a.nii"}
    )


def grid(shape=(9, 5, 7), affine=None):
    moved = np.diag([0.8, 1.3, 1.1, 1.0])
    moved[:3, 3] = (0.4, -0.2, 1.0)
    return Grid(shape, AFFINE @ moved if affine is None else affine, nib.Nifti1Header())


def test_an_image_on_the_grid_stays_as_it_is(image):
    here = OntoGridd("image", grid((7, 6, 8), AFFINE))({"image": image, "subject": "a"})
    assert here["image"] is image
    assert here["subject"] == "a"


def test_another_grid_is_refused_by_name(image):
    with pytest.raises(CohortError, match=r"a\.nii is not on the atlas's grid: shape 7 x 6 x 8"):
        OntoGridd("image", grid())({"image": image})


def test_resampling_is_nibabels_linear_one_and_counts_what_visits_a_voxel(image):
    moved = np.diag([0.8, 0.9, 1.0, 1.0])  # finer: nothing is averaged
    moved[:3, 3] = (0.4, -0.2, 1.0)
    finer = AFFINE @ moved
    result = OntoGridd("image", grid(affine=finer), resample=True)({"image": image})["image"]
    ratio = visits_ratio(AFFINE, finer)
    assert result.dtype == torch.float32
    assert np.array_equal(result.affine, finer)
    assert result.meta["filename_or_obj"] == "a.nii"
    inside = slice(1, -2)  # nibabel's border ends abruptly, ours within a voxel
    for channel, own in zip(result.numpy(), image.numpy(), strict=True):
        target = ((9, 5, 7), finer)
        theirs = resample_from_to(nib.Nifti1Image(own, AFFINE), target, order=1)
        ours, theirs = channel[1:-2, 1:-1, 1:-2] / ratio, theirs.get_fdata()[1:-2, 1:-1, inside]
        assert np.allclose(ours, theirs, atol=1e-6)
        assert np.ptp(ours) > 0.1


def test_a_plane_is_resampled_in_its_plane_alone():
    ramp = torch.arange(6.0).expand(1, 5, 6)
    image = MetaTensor(ramp, affine=torch.eye(4))
    shifted = np.eye(4)
    shifted[1, 3] = 0.5
    result = OntoGridd("image", grid((5, 5), shifted), resample=True)({"image": image})["image"]
    assert np.allclose(result, np.arange(5) + 0.5)
    tilted = np.eye(4)
    tilted[2, 3] = 3
    with pytest.raises(CohortError, match="another plane"):
        OntoGridd("image", grid((5, 5), tilted), resample=True)({"image": image})
    with pytest.raises(CohortError, match="2 dimensions"):
        OntoGridd("image", grid(), resample=True)({"image": image})


def test_labels_are_the_densest_tract_where_one_is_present():
    density = torch.tensor([[[0.0, 0.1, 0.3, 0.2]], [[0.0, 0.05, 0.4, 0.1]]])
    labels = PresenceLabeld("pred", presence_value=0.1)({"pred": density})["pred"]
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[[0, 0, 2, 1]]]  # 0.1 is not above 0.1
