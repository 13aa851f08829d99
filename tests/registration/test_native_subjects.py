"""Native subjects: found from any folder; a message names the pattern and each subject left out."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.registration.native_subjects import find_native_subjects
from scripts.settings.align import AlignConfig


def write(folder, names):
    values = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)


@pytest.mark.parametrize("pattern", ["{subject}.nii.gz", "{subject}/t2.nii.gz"])
def test_a_relative_folder_gives_the_same_subjects_as_an_absolute_one(
    tmp_path, monkeypatch, pattern
):
    write(tmp_path / "data", [pattern.format(subject=name) for name in ("a", "b")])
    monkeypatch.chdir(tmp_path)
    settings = AlignConfig.load({"image": pattern})
    (result, _), (same, _) = (
        find_native_subjects(folder, settings) for folder in ("data", tmp_path / "data")
    )
    assert [one.name for one in result] == ["a", "b"]
    assert [one.files for one in result] == [one.files for one in same]


def test_missing_label_files_are_named_in_a_line_each(tmp_path):
    write(tmp_path, ["a.nii.gz", "b.nii.gz"])
    settings = AlignConfig.load({"image": "{subject}.nii.gz", "labels": ["seg/{subject}.nii.gz"]})
    with pytest.raises(CohortError, match=r"0 usable subjects at \{subject\}.nii.gz") as caught:
        find_native_subjects(tmp_path, settings)
    assert str(caught.value).splitlines()[1:] == [
        "  a: has no image at seg/a.nii.gz",
        "  b: has no image at seg/b.nii.gz",
    ]
