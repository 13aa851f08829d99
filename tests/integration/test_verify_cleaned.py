"""`verify` reads maps as the atlas did: values read as 0, axes in another order."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle import cli


@pytest.mark.parametrize("normalisation", ["none", "max", "streamline_density"])
def test_an_atlas_of_cleaned_and_reordered_maps_agrees(
    normalisation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for number in range(5):
        values = np.zeros((9, 8, 7), np.float32)
        values[2:6, 2:6, 2:5] = rng.random((4, 4, 3)) + 0.1
        image = nib.Nifti1Image(values, affine)
        if number == 1:
            values[0, 0], values[8, 7] = np.nan, -0.25
        if number == 2:
            axes = nib.orientations.axcodes2ornt("LAS")
            image = image.as_reoriented(axes)
        folder = tmp_path / "data" / f"s{number}"
        folder.mkdir(parents=True)
        nib.save(image, folder / "tdi.nii.gz")
    words = [
        "average", "--dataset_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"),
        "--learned_atlas#cohort#pattern", "{subject}/tdi.nii.gz",
        "--learned_atlas#cohort#normalisation", normalisation,
        "--learned_atlas#cohort#nan", "zero", "--learned_atlas#cohort#negative", "zero",
    ]  # fmt: skip
    assert cli.main(words) == 0, capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "out" / "atlas")]) == 0, capsys.readouterr().err
