"""The averaging atlas without a command: channels, changed files, failures."""

import nibabel as nib
import numpy as np
import pytest

from scripts.baselines.averaging import AveragingAtlas
from scripts.cohort import read_cohort
from scripts.cohort.density import subject_density
from scripts.errors import CohortError
from scripts.settings.atlas import LearnedAtlasConfig


@pytest.fixture
def two_tracts(tmp_path):
    """Four subjects of two tracts, the second of which the first subject lacks."""
    rng = np.random.default_rng(0)
    for number in range(4):
        folder = tmp_path / "data" / f"sub-{number}" / "tracts"
        for tract in ("left", "right"):
            data = np.zeros((6, 7, 8))
            if (number, tract) != (0, "right"):
                data[2:4, 2:5, 3:6] = rng.random((2, 3, 3))
            (folder / tract).mkdir(parents=True)
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / tract / "densityNorm.nii.gz")
    settings = LearnedAtlasConfig.load(
        {
            "min_subjects": 4,
            "model": {"channels": 2},
            "cohort": {"layout": "xtract", "margin": 1, "normalisation": "none"},
        }
    )
    return read_cohort(tmp_path / "data", settings.cohort_request()), settings


def test_a_channel_per_tract(two_tracts, tmp_path):
    cohort, settings = two_tracts
    folder = AveragingAtlas(cohort, settings, tmp_path).publish()
    mean = np.asarray(nib.load(folder / "atlas_mean.nii.gz").dataobj)
    assert mean.shape == (6, 7, 8, 2)
    by_hand = np.mean([subject_density(s, 2, (6, 7, 8)) for s in cohort.subjects], axis=0)
    assert np.allclose(np.moveaxis(mean, -1, 0), by_hand, rtol=1e-6)
    present = np.asarray(nib.load(folder / "atlas_prob_threshold.nii.gz").dataobj)
    assert present[..., 0].max() > 75 >= present[..., 1].max()


def test_a_map_that_changed_since_it_was_checked_ends_the_run(two_tracts, tmp_path):
    cohort, settings = two_tracts
    path = cohort.subjects[2].maps[0].path
    nib.save(nib.Nifti1Image(np.full((6, 7, 8), np.nan), np.eye(4)), path)
    earlier = tmp_path / "atlas"
    earlier.mkdir()
    (earlier / "kept").touch()
    with pytest.raises(CohortError, match=r"densityNorm\.nii\.gz: changed while"):
        AveragingAtlas(cohort, settings, tmp_path).publish()
    assert [path.name for path in earlier.iterdir()] == ["kept"]
