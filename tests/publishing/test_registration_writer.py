"""Registered subjects on disk: one that folds is left out, the others are written."""

import json
from types import SimpleNamespace

import nibabel as nib
import pytest
import torch

from scripts.atlas.components import atlas_loss
from scripts.cohort import NewSubjects, Rejection
from scripts.errors import CohortError, FoldingError
from scripts.publishing.registration_writer import RegistrationWriter
from scripts.runtime.ownership import MARK, write_mark


@pytest.fixture
def write(make_network, make_cohort, make_settings, tmp_path):
    """Write subjects with given velocities; gives the writer and its folder."""
    network = make_network().eval()
    cohort = make_cohort()
    loss = atlas_loss(cohort.grid.spacing, make_settings())

    def run(velocities, rejected=(), **changes):
        settings = make_settings(**changes)
        subjects = NewSubjects(cohort.subjects[: len(velocities)], rejected)
        folder = tmp_path / "registered"
        writer = RegistrationWriter(network, subjects, settings, loss, folder)
        whole = (network.channels, *cohort.grid.shape)
        output = [
            {
                "subject": subject.name,
                "image": network.template.detach()[0],
                "velocity": velocity.expand(network.mean_velocity.shape[1:]),
                "template": 0,
                "density": torch.zeros(whole),
                "seconds": 0.5,
            }
            for subject, velocity in zip(subjects.subjects, velocities, strict=True)
        ]
        writer(SimpleNamespace(state=SimpleNamespace(output=output)))
        writer.behind.finish()
        return writer, folder

    return run


def rough(network_shape=(3, 6, 5, 6)):
    return 30 * torch.randn(network_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise(make_network):
    return rough(tuple(make_network().mean_velocity.shape[1:]))


def test_a_fold_stops_its_own_subject_alone(write, noise):
    still = torch.zeros(1)
    writer, folder = write([still, noise, still])
    assert sorted(path.name for path in folder.glob("sub-*")) == ["sub-1", "sub-3"]
    with pytest.raises(FoldingError, match=r"1 of 3 subjects: sub-2 \(its field folds"):
        writer.finish(SimpleNamespace())


def test_a_field_that_is_not_finite_is_never_written(write):
    writer, folder = write([torch.full((1,), torch.nan)], verify_jacobian=False)
    assert not folder.exists()
    with pytest.raises(FoldingError, match="not finite"):
        writer.finish(SimpleNamespace())


def test_subjects_left_out_before_are_reported_at_the_end(write):
    writer, folder = write([torch.zeros(1)], (Rejection("sub-9", "x.nii.gz", "is empty"),))
    assert (folder / "sub-1").is_dir()
    with pytest.raises(CohortError, match=r"sub-9 \(x.nii.gz: is empty\)"):
        writer.finish(SimpleNamespace())


def test_a_new_registration_takes_the_place_of_the_earlier_one_and_a_failed_one_doesnt(
    write, noise
):
    _, folder = write([torch.zeros(1)])
    (folder / "sub-1" / "stale").touch()
    write_mark(folder / "sub-1")  # or it were somebody else's
    write([noise])
    assert (folder / "sub-1" / "stale").exists()
    write([torch.zeros(1)], save_fields=False)
    assert sorted(path.name for path in (folder / "sub-1").iterdir()) == [
        MARK,
        "atlas_in_patient_space",
        "quality.html",
        "registration.json",
        "sub-1_misfit.json",
        "sub-1_misfit.nii.gz",
        "sub-1_space-template_density.json",
        "sub-1_space-template_density.nii.gz",
    ]
    report = json.loads((folder / "sub-1" / "registration.json").read_text())
    assert report["displacement_rms_voxels"] == 0
    assert report["loss"]["before"] == report["loss"]["after"]


def test_the_registered_subjects_share_4d_files(write, noise):
    still = torch.zeros(1)
    writer, folder = write([still, noise, still], save_warped=True, save_jacobians=True)
    with pytest.raises(FoldingError):
        writer.finish(SimpleNamespace())
    group = folder.with_name("registered_group")
    rows = (group / "subjects.tsv").read_text().splitlines()
    assert rows == ["participant_id\tdensity\tlogjacobian\tdseg", "sub-1\t0\t0\tn/a",
                    "sub-3\t1\t1\tn/a"]  # fmt: skip
    both = nib.load(group / "space-template_density.nii.gz").get_fdata()
    alone = nib.load(folder / "sub-3/sub-3_space-template_density.nii.gz").get_fdata()
    assert alone.any()
    assert (both[..., 1] == alone).all()
    growth = nib.load(folder / "sub-1/sub-1_space-template_logjacobian.nii.gz").get_fdata()
    assert abs(growth).max() < 1e-6
    assert json.loads((group / "dataset_description.json").read_text())["GeneratedBy"]
