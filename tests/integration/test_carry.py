"""`carrying`: the published maps in patients' space."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.io import savemat
from training_runs import resampled_by

from scripts.runtime.ownership import MARK
from scripts.spatial.fields import field_names

RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
MAPS = {f"atlas_{n}.nii.gz" for n in ("mean", "std", "std_error", "cov", "prob_threshold")}


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def carry(run_bundle, atlas: Path, output: Path, *words: object):
    return run_bundle(
        "carrying", "atlas_to_patient", f"--atlas_dir={atlas}", f"--output_dir={output}", *words
    )


def test_every_subject_gets_the_five_maps_as_itk_would_warp_them(trained, run_bundle, tmp_path):
    result = carry(run_bundle, trained.atlas, tmp_path)
    assert result.returncode == 0, result.stderr
    names = [f"sub-{number:02d}" for number in range(1, 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        folder = tmp_path / name / "atlas_in_patient_space"
        assert {path.name for path in folder.iterdir()} == {*MAPS, "carried.json", MARK}
        field = trained.atlas / "fields" / field_names(name)[1]
        for one in MAPS:
            atlas, carried = values(trained.atlas / one), values(folder / one)
            assert np.abs(carried - resampled_by(atlas, field)).max() <= 1e-3 * np.ptp(atlas)
            assert nib.load(folder / one).get_data_dtype() == np.float32
        assert not np.allclose(values(folder / "atlas_mean.nii.gz"),
                               values(trained.atlas / "atlas_mean.nii.gz"))  # fmt: skip


def test_a_registered_patient_gets_what_registering_made(trained, run_bundle, tmp_path):
    done = run_bundle(
        "registering", "inference", f"--dataset_dir={trained.held_out}",
        f"--ckpt_dir={trained.ckpt_dir}", f"--output_dir={tmp_path}", "--learned_atlas#device=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = carry(run_bundle, trained.atlas, tmp_path, "--atlas_to_patient#patients=['sub-06']")
    assert result.returncode == 0, result.stderr
    registered = tmp_path / "registered" / "sub-06"
    ours = values(tmp_path / "sub-06" / "atlas_in_patient_space" / "atlas_mean.nii.gz")
    theirs = values(registered / "atlas_in_patient_space" / "atlas_mean.nii.gz")
    assert np.abs(ours - theirs).max() <= 1e-3 * np.ptp(theirs)
    about = json.loads((tmp_path / "sub-06/atlas_in_patient_space/carried.json").read_text())
    assert [Path(one["path"]).name for one in about["transforms"]] == [field_names("sub-06")[1]]

    report = registered / "registration.json"
    content = json.loads(report.read_text())
    report.write_text(json.dumps({**content, "weights": "others"}))
    other = tmp_path / "other"
    result = carry(
        run_bundle, trained.atlas, other, "--atlas_to_patient#patients=['sub-06']",
        f"--registered_dir={registered.parent}",
    )  # fmt: skip
    assert result.returncode == 3
    assert "registered to another model" in result.stderr
    assert not other.exists()


def test_an_averaging_atlas_stays_as_it_is(averaged, run_verb, tmp_path):
    result = run_verb(
        "carry", f"--atlas_dir={averaged}", f"--output_dir={tmp_path}",
        "--atlas_to_patient#patients=['sub-02']",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for one in MAPS:
        carried = values(tmp_path / "sub-02" / "atlas_in_patient_space" / one)
        assert np.allclose(carried, values(averaged / one), rtol=1e-6)


def test_transforms_from_elsewhere_are_composed(trained, averaged, run_bundle, tmp_path):
    """A shift by a whole voxel (2.5 mm here) through a .mat after a field of zeros."""
    reference = nib.load(averaged / "atlas_mean.nii.gz")
    spacing = float(reference.header.get_zooms()[0])
    zeros = nib.Nifti1Image(np.zeros((*reference.shape, 1, 3), np.float32), reference.affine)
    zeros.header.set_intent(1007)
    nib.save(zeros, tmp_path / "p1_warp.nii.gz")
    shift = np.concatenate([np.eye(3).ravel(), [0, 0, spacing]])[:, None]
    savemat(
        tmp_path / "x.mat",
        {"AffineTransform_double_3_3": shift, "fixed": np.zeros((3, 1))},
        format="4",
    )
    files = [f"{tmp_path}/{{patient}}_warp.nii.gz", f"{tmp_path}/x.mat"]
    for case, transforms in (("there", files), ("back", [files[0], [files[1], 1]])):
        result = carry(
            run_bundle, averaged, tmp_path / case, "--atlas_to_patient#patients=['p1']",
            f"--atlas_to_patient#transforms={transforms}",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    mean = values(averaged / "atlas_mean.nii.gz")
    up, down = (
        values(tmp_path / case / "p1" / "atlas_in_patient_space" / "atlas_mean.nii.gz")
        for case in ("there", "back")
    )
    assert np.allclose(up[:, :, :-1], mean[:, :, 1:], atol=1e-6)
    assert np.allclose(down[:, :, 1:], mean[:, :, :-1], atol=1e-6)


def affine_native(atlas: Path, folder: Path) -> Path:
    """The atlas as training on affine_native maps would have described it."""
    shutil.copytree(atlas, folder)
    about = json.loads((folder / "atlas.json").read_text())
    about["training_space"] = "affine_native"
    (folder / "atlas.json").write_text(json.dumps(about))
    return folder


def test_affine_native_atlases_need_the_extra_warp(trained, run_bundle, refused, tmp_path):
    atlas = affine_native(trained.atlas, tmp_path / "affine")
    only = "--atlas_to_patient#patients=['sub-01']"
    output = tmp_path / "output"
    refused(carry(run_bundle, atlas, output, only), 2, "affine_native", "extra_transforms")
    assert not output.exists()

    result = carry(run_bundle, atlas, tmp_path / "own", only,
                   "--atlas_to_patient#space=affine_native")  # fmt: skip
    assert result.returncode == 0, result.stderr

    identity = np.concatenate([np.eye(3).ravel(), np.zeros(3)])[:, None]
    savemat(
        tmp_path / "x.mat",
        {"AffineTransform_double_3_3": identity, "fixed": np.zeros((3, 1))},
        format="4",
    )
    result = carry(
        run_bundle, atlas, tmp_path / "extra", only,
        f"--atlas_to_patient#extra_transforms=['{tmp_path}/x.mat']",
        f"--atlas_to_patient#reference={atlas}/atlas_mean.nii.gz",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    place = Path("sub-01/atlas_in_patient_space/atlas_mean.nii.gz")
    assert np.allclose(values(tmp_path / "own" / place), values(tmp_path / "extra" / place))


@pytest.mark.parametrize(
    ("words", "code", "messages"),
    [
        (("--atlas_dir=nowhere",), 3, ["not an atlas", "--atlas_dir"]),
        (("--atlas_to_patient#patients=['sub-99']",), 3, ["unknown subject sub-99", "sub-05"]),
        (("--atlas_to_patient#patients=['../x']",), 2, ["atlas_to_patient.patients"]),
        (("--atlas_to_patient#transforms=['none.mat']",), 3, ["no such transform none.mat"]),
        (("--atlas_to_patient#space=native",), 2, ["atlas_to_patient.space = 'native'"]),
        (("--atlas_to_patient#space=affine_native",), 2, ["must be template_native"]),
        (("--atlas_to_patient#reference=none.nii",), 3, ["no such reference image none.nii"]),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(
    words, code, messages, trained, run_bundle, refused, tmp_path
):
    output = tmp_path / "output"
    refused(carry(run_bundle, trained.atlas, output, *words), code, *messages)
    assert not output.exists()


def test_an_atlas_out_of_sight_is_reported(averaged, run_bundle, refused, tmp_path):
    affine = np.eye(4)
    affine[:3, 3] = 5000
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), affine), tmp_path / "far.nii.gz")
    output = tmp_path / "output"
    result = carry(
        run_bundle, averaged, output, "--atlas_to_patient#patients=['p1']",
        f"--atlas_to_patient#reference={tmp_path}/far.nii.gz",
    )  # fmt: skip
    refused(result, 3, "patient p1", "nothing of the atlas")
    assert not list(output.rglob("*.nii.gz"))
