"""`labelling` as a user runs it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np

from scripts.tractograms import Streamlines, open_tractogram, write_tractogram


def lines(offset: float, count: int = 8) -> list[np.ndarray]:
    along = np.linspace(0, 60, 12)
    return [np.stack([along, np.full(12, offset + 0.5 * i), 0 * along], 1) for i in range(count)]


def test_labels_from_elsewhere_and_a_mistake(run_bundle, refused, tmp_path):
    ids = np.repeat([4.0, 9.0], 8)
    atlas = Streamlines.of(lines(0) + lines(50)).with_data(label=ids)
    write_tractogram(tmp_path / "atlas.trk", atlas)
    write_tractogram(tmp_path / "subject.tck", Streamlines.of([x[::-1] for x in lines(51)]))
    nib.save(
        nib.Nifti1Image(np.zeros((90, 90, 90)), nib.affines.from_matvec(np.eye(3), (-20,) * 3)),
        tmp_path / "reference.nii.gz",
    )
    words = ("labelling", "transfer_labels", "--atlas=atlas.trk", "--subject=subject.tck")
    result = run_bundle(
        *words, f"--output_dir={tmp_path}/out", "--label_transfer#format=trk",
        f"--reference={tmp_path}/reference.nii.gz", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out" / "labels"
    found = open_tractogram(folder / "labelled.trk").read()
    assert found.data["label"][:, 0].tolist() == [9] * 8
    about = json.loads((folder / "labels.json").read_text())
    assert [c["count"] for c in about["classes"]] == [0, 8]
    assert "labels: 100%" in result.stderr

    wrong = run_bundle(*words, f"--output_dir={tmp_path}/no", "--label_transfer#blur=0")
    refused(wrong, 2, "label_transfer.blur = 0: must be a number > 0")
    assert not (tmp_path / "no").exists()
