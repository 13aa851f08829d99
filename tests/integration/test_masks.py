"""Voxels that don't count, in `register` and `evaluate`: no influence, and a field that follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.api import register
from scripts.spatial.fields import field_names, read_field

RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
SETTINGS = {"device": "cpu", "dtype": "float32", "refine": {"new_subject_iterations": 3}}


@pytest.fixture(scope="module")
def lesioned(trained, tmp_path_factory) -> Path:
    """The held-out subject three times: with 0, with 7 and with its density under a mask."""
    folder = tmp_path_factory.mktemp("lesioned")
    run = trained.held_out / "sub-06" / RUN
    image = nib.load(run / "fdt_paths.nii.gz")
    density = image.get_fdata().astype(np.float32)
    centre = np.array(np.unravel_index(density.argmax(), density.shape))
    away = np.stack(np.indices(density.shape), -1) - centre
    ball = np.linalg.norm(away, axis=-1) < 3
    for name, values in (
        ("zero", np.where(ball, 0, density)),
        ("seven", np.where(ball, 7 * density.max(), density)),
        ("whole", density),
    ):
        nib.save(nib.Nifti1Image(values, image.affine), folder / f"{name}.nii.gz")
        shutil.copy(run / "waytotal", folder / f"{name}_waytotal")
        if name != "whole":
            mask = nib.Nifti1Image(ball.astype(np.uint8), image.affine)
            (folder / "masks").mkdir(exist_ok=True)
            nib.save(mask, folder / "masks" / f"{name}.nii.gz")
    return folder


def registered(lesioned: Path, output: Path, names=("zero", "seven", "whole"), **options) -> Path:
    settings = {**SETTINGS, "cohort": {"mask": f"{lesioned}/masks/{{subject}}.nii.gz"}}
    settings["cohort"] |= options.pop("cohort", {})
    paths = [lesioned / f"{name}.nii.gz" for name in names]
    return register(paths, options.pop("ckpt_dir", None), output, settings=settings, **options)


def files_of(folder: Path, name: str) -> list[bytes]:
    own = folder / name
    paths = [*field_names(name), "atlas_in_patient_space/atlas_mean.nii.gz"]
    return [(own / path).read_bytes() for path in [*paths, f"{name}_misfit.nii.gz"]]


def test_values_under_the_mask_change_nothing_bit_for_bit(trained, lesioned, tmp_path, caplog):
    folder = registered(lesioned, tmp_path, ckpt_dir=trained.ckpt_dir)
    assert "no file for whole" in caplog.text
    assert files_of(folder, "zero") == files_of(folder, "seven")
    reports = [
        json.loads((folder / n / "registration.json").read_text()) for n in ("zero", "seven")
    ]
    assert reports[0]["loss"] == reports[1]["loss"]
    assert reports[0]["log_density_correlation"] == reports[1]["log_density_correlation"]
    assert reports[0]["mask"]["path"].endswith("zero.nii.gz")
    whole = read_field(folder / "whole" / field_names("whole")[1])
    masked = read_field(folder / "zero" / field_names("zero")[1])
    mask = nib.load(lesioned / "masks/zero.nii.gz").get_fdata() > 0
    assert np.linalg.norm(masked - whole, axis=0)[mask].max() < 1


def test_the_same_with_a_template_and_maps_that_are_divided_by_their_maximum(
    trained, lesioned, tmp_path
):
    shutil.copy(trained.atlas / "atlas_mean.nii.gz", tmp_path / "template.nii.gz")
    folder = registered(
        lesioned, tmp_path / "out", ("zero", "seven"), template=tmp_path / "template.nii.gz",
        cohort={"normalisation": "max"},
    )  # fmt: skip
    assert files_of(folder, "zero") == files_of(folder, "seven")


def test_a_hole_without_a_mask_is_reported_and_mapped(trained, lesioned, tmp_path, caplog):
    paths = [lesioned / "zero.nii.gz", lesioned / "whole.nii.gz"]
    folder = register(paths, trained.ckpt_dir, tmp_path, settings=SETTINGS)
    output = [record.getMessage() for record in caplog.records]
    assert any(one.startswith("subject zero: the atlas fits poorly in") for one in output)
    assert any("cohort#mask" in one for one in output)
    regions = json.loads((folder / "zero/registration.json").read_text())["poor_fit"]
    mask = nib.load(lesioned / "masks/zero.nii.gz")
    centre = mask.affine @ [*np.argwhere(mask.get_fdata()).mean(axis=0), 1]
    away = [np.linalg.norm(np.array(one["centre_ras_mm"]) - centre[:3]) for one in regions]
    assert min(away) < 3 * float(mask.header.get_zooms()[0])
    misfit = nib.load(folder / "zero/zero_misfit.nii.gz").get_fdata()
    assert 0 <= misfit.min() <= misfit.max() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("all", "covers the whole density of subject zero"),
        ("grid", "is not on the grid of the density maps"),
        (None, "no subject has such a file"),
    ],
)
def test_masks_that_are_refused(trained, lesioned, tmp_path, values, message):
    image = nib.load(lesioned / "zero.nii.gz")
    shape = (5, 6, 7) if values == "grid" else image.shape
    if values is not None:
        mask = nib.Nifti1Image(np.ones(shape, np.uint8), image.affine)
        nib.save(mask, tmp_path / "zero_mask.nii.gz")
    settings = {**SETTINGS, "cohort": {"mask": str(tmp_path / "{subject}_mask.nii.gz")}}
    with pytest.raises(Exception, match=message):
        register([lesioned / "zero.nii.gz"], trained.ckpt_dir, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out/registered").exists()


def test_evaluate_leaves_masked_voxels_out(trained, run_bundle, tmp_path):
    dataset = tmp_path / "data"
    source = trained.held_out / "sub-06"
    found = []
    for value in (0, 7):
        shutil.rmtree(dataset, ignore_errors=True)
        shutil.copytree(source, dataset / "sub-06")
        path = dataset / "sub-06" / RUN / "fdt_paths.nii.gz"
        image = nib.load(path)
        density = image.get_fdata()
        mask = np.zeros(density.shape, np.uint8)
        mask[tuple(slice(c - 2, c + 3) for c in np.unravel_index(density.argmax(), mask.shape))] = 1
        nib.save(nib.Nifti1Image(mask, image.affine), dataset / "sub-06/lesion.nii.gz")
        nib.save(nib.Nifti1Image(np.where(mask, value, density), image.affine), path)
        result = run_bundle(
            "evaluating", "evaluate", f"--dataset_dir={dataset}", f"--ckpt_dir={trained.ckpt_dir}",
            f"--output_dir={tmp_path / 'out'}", "--learned_atlas#device=cpu",
            "--learned_atlas#cohort#mask={subject}/lesion.nii.gz",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        about = json.loads((tmp_path / "out/evaluation/evaluation.json").read_text())
        found.append({**about["subjects"][0], "seconds": None})
    assert found[0] == found[1]


def test_a_training_with_masks_is_refused(trained, run_bundle, refused, tmp_path):
    result = run_bundle(
        "training", "train", f"--dataset_dir={trained.dataset_dir}", f"--output_dir={tmp_path}",
        f"--ckpt_dir={tmp_path / 'm'}", *trained.overrides,
        "--learned_atlas#cohort#mask={subject}/lesion.nii.gz",
    )  # fmt: skip
    refused(result, 2, "learned_atlas.cohort.mask", "masks are for register and evaluate")
