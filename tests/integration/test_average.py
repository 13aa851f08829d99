"""`averaging`: the five maps of an unregistered cohort."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
NAMES = ("mean", "std", "std_error", "cov", "prob_threshold")


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def densities(folder: Path) -> np.ndarray:
    return np.stack(
        [
            values(path) / float((path.parent / "waytotal").read_text())
            for path in sorted(folder.glob(f"sub-*/{RUN}/fdt_paths.nii.gz"))
        ]
    )


def test_the_maps_are_those_of_numpy(averaged, demo_cohort):
    result = {path.name for path in averaged.iterdir()}
    images = {f"atlas_{name}.nii.gz" for name in NAMES}
    sidecars = {f"atlas_{name}.json" for name in NAMES}
    assert result == {*images, *sidecars, "atlas.json", "dataset_description.json"}
    x = densities(demo_cohort)
    mean, std = x.mean(axis=0), x.std(axis=0)
    firm = mean > 0.01 * mean.max()
    expected = {
        "mean": mean,
        "std": std,
        "std_error": std / np.sqrt(5),
        "cov": np.divide(std, mean, out=np.zeros_like(std), where=firm),
        "prob_threshold": 20.0 * (x > 1e-3).sum(axis=0),
    }
    assert (expected["prob_threshold"] > 0).any()
    for name, by_hand in expected.items():
        image = nib.load(averaged / f"atlas_{name}.nii.gz")
        assert image.get_data_dtype() == np.float32
        assert np.allclose(np.asarray(image.dataobj), by_hand, rtol=1e-6, atol=1e-9), name


def test_the_header_is_the_first_subjects(averaged, demo_cohort):
    ours = nib.load(averaged / "atlas_mean.nii.gz")
    first = nib.load(demo_cohort / "sub-01" / RUN / "fdt_paths.nii.gz")
    assert ours.shape == first.shape
    assert np.allclose(ours.affine, first.affine)
    for code in ("sform_code", "qform_code", "xyzt_units"):
        assert ours.header[code] == first.header[code]


def test_the_description_names_inputs_and_maps(averaged, demo_cohort):
    about = json.loads((averaged / "atlas.json").read_text())
    assert about["kind"] == "averaged"
    assert about["training_space"] == "template_native"
    assert about["n_subjects"] == 5
    for subject in about["cohort"]["subjects"]:
        path = demo_cohort / subject["subject"] / RUN / "fdt_paths.nii.gz"
        assert subject["maps"][0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for name in NAMES:
        path = averaged / f"atlas_{name}.nii.gz"
        assert about["maps"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_learned_atlas_says_so(trained):
    assert json.loads((trained.atlas / "atlas.json").read_text())["kind"] == "learned"


def test_contract_example_and_strict_presence(run_bundle, tmp_path):
    """The contract's x = [0, .2, .1, .3]: .1 is not above the default presence of .1."""
    dataset = tmp_path / "flat"
    dataset.mkdir()
    for number, density in enumerate((0.0, 0.2, 0.1, 0.3)):
        data = np.zeros((4, 5, 6))
        data[1, 1, 1], data[2, 2, 2] = 1, density
        nib.save(nib.Nifti1Image(data, np.eye(4)), dataset / f"s{number}.nii.gz")
    result = run_bundle(
        "averaging",
        "average",
        *(f"--dataset_dir={dataset}", f"--output_dir={tmp_path / 'out'}"),
        *("--learned_atlas#cohort#layout=flat", "--learned_atlas#cohort#normalisation=none"),
        *("--learned_atlas#min_subjects=4", "--learned_atlas#presence_value=0.1"),
    )
    assert result.returncode == 0, result.stderr
    at = {n: values(tmp_path / "out/atlas" / f"atlas_{n}.nii.gz")[2, 2, 2] for n in NAMES}
    assert at == pytest.approx(
        {"mean": 0.15, "std": 0.111803, "std_error": 0.0559017, "cov": 0.745356,
         "prob_threshold": 50.0},
        rel=1e-5,
    )  # fmt: skip


def test_the_verb_publishes_the_maps_asked_for_over_an_earlier_atlas(
    demo_cohort, run_verb, tmp_path
):
    earlier = tmp_path / "atlas"
    earlier.mkdir()
    (earlier / "atlas_cov.nii.gz").write_text("old")
    (earlier / "atlas.json").write_text(
        '{"name": "tract_density_atlas", "kind": "averaged", "cohort": {}}'
    )
    result = run_verb(
        "average", f"--dataset_dir={demo_cohort}", f"--output_dir={tmp_path}",
        "--learned_atlas#emit_baseline_maps=['mean','std']",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {path.name for path in earlier.iterdir()} == {
        *("atlas_mean.nii.gz", "atlas_std.nii.gz", "atlas_mean.json", "atlas_std.json"),
        *("atlas.json", "dataset_description.json"),
    }


@pytest.mark.parametrize(
    ("words", "code", "messages"),
    [
        (("--learned_atlas#min_subjects=6",), 3, ["5 usable subjects", "sub-05"]),
        (("--dataset_dir=nowhere",), 3, ["nowhere does not exist"]),
        (("--learned_atlas#presence_value=-1",), 2, ["learned_atlas.presence_value = -1"]),
    ],
)
def test_mistakes_are_one_message_and_leave_no_folder(
    words, code, messages, demo_cohort, run_bundle, refused, tmp_path
):
    output = tmp_path / "output"
    folders = (f"--dataset_dir={demo_cohort}", f"--output_dir={output}")
    result = run_bundle("averaging", "average", *folders, *words)
    refused(result, code, *messages)
    assert not output.exists()
