"""The barycentre atlas: maps, description, and how it stands beside the average."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from scripts.baselines.averaging import AveragingAtlas
from scripts.baselines.barycentre import BarycentreAtlas
from scripts.cohort import Cohort, Subject
from scripts.errors import ConfigurationError
from scripts.publishing.published_atlas import open_atlas
from scripts.runtime.storage import file_hash
from scripts.settings.applications import load_barycentre


@pytest.fixture
def cohort_of(make_cohort):
    """Cohorts whose files have the hashes that they were inspected with."""

    def make(**options) -> Cohort:
        cohort = make_cohort(**options)
        subjects = tuple(
            Subject(
                one.name, tuple(replace(part, sha256=file_hash(part.path)) for part in one.maps)
            )
            for one in cohort.subjects
        )
        return replace(cohort, subjects=subjects)

    return make


def values(folder, name: str) -> np.ndarray:
    return nib.load(folder / f"atlas_{name}.nii.gz").get_fdata()


def test_it_has_the_averages_maps_with_its_own_mean(cohort_of, make_settings, tmp_path):
    cohort, settings = cohort_of(spread=2.0), make_settings()
    average = AveragingAtlas(cohort, settings, tmp_path).publish()
    folder = BarycentreAtlas(
        cohort, settings, load_barycentre({"iterations": 10}), tmp_path
    ).publish()
    assert folder == tmp_path / "barycentre"
    for name in ("std", "std_error", "cov", "prob_threshold"):
        np.testing.assert_array_equal(values(folder, name), values(average, name))
    mean, plain = values(folder, "mean"), values(average, "mean")
    assert mean.sum() == pytest.approx(plain.sum(), rel=1e-3)
    assert mean.max() > 1.1 * plain.max()  # bumps meet instead of lying side by side
    assert (mean >= 0).all()
    assert (mean == 0).any()
    opened = open_atlas(folder)
    assert opened.averaged  # no field leads to it
    about = json.loads((folder / "atlas.json").read_text())
    assert about["kind"] == "barycentre"
    assert about["transport"]["blur"] == 2.0  # a voxel, mm
    assert len(about["transport"]["moved"]) == 1


def test_channels_are_transported_one_by_one(cohort_of, make_settings, tmp_path):
    cohort = cohort_of(subjects=3, channels=2)
    settings = make_settings(model={"channels": 2})
    folder = BarycentreAtlas(
        cohort, settings, load_barycentre({"iterations": 5}), tmp_path
    ).publish()
    mean = values(folder, "mean")
    assert mean.shape[-1] == 2
    assert mean[..., 0].sum() == pytest.approx(mean[..., 1].sum(), rel=0.05)


def test_too_few_iterations_are_reported(cohort_of, make_settings, tmp_path, caplog):
    hasty = load_barycentre({"iterations": 1, "scaling": 0.1})
    BarycentreAtlas(cohort_of(spread=3.0), make_settings(), hasty, tmp_path).publish()
    assert "--barycentre#iterations" in caplog.text


@pytest.mark.parametrize(
    "block", [{"blur": 0}, {"blur": "wide"}, {"iterations": 0}, {"scaling": 1}, {"steps": 3}]
)
def test_settings_that_break_a_rule_are_refused(block):
    with pytest.raises(ConfigurationError, match=f"barycentre.{next(iter(block))}"):
        load_barycentre(block)
