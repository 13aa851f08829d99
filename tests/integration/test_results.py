"""From atlas to results: streamlines and numbers per tract by the documented commands."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.tractograms import Streamlines, open_tractogram, write_tractogram


def lines_within(image: Path) -> tuple[Streamlines, tuple[int, ...], np.ndarray]:
    """Streamlines between voxels of a map's support, in the middle of its grid."""
    loaded = nib.load(image)
    inside = np.argwhere(np.asarray(loaded.dataobj) > 0)
    rng = np.random.default_rng(0)
    ends = inside[rng.integers(0, len(inside), (60, 2))]
    steps = np.linspace(0, 1, 25)[:, None]
    voxels = [a + steps * (b - a) for a, b in ends]
    points = [nib.affines.apply_affine(loaded.affine, one) for one in voxels]
    streamlines = Streamlines.of([one.astype(np.float32) for one in points])
    return streamlines.with_data(number=np.arange(60)), loaded.shape[:3], loaded.affine


def test_streamlines_go_to_the_template_and_back(trained, run_bundle, refused, tmp_path):
    streamlines, shape, affine = lines_within(trained.atlas / "atlas_mean.nii.gz")
    write_tractogram(tmp_path / "sub-02.trk", streamlines, shape, affine)
    words = (
        f"--atlas_dir={trained.atlas}", f"--output_dir={tmp_path}",
        "--warp_streamlines#subjects=['sub-02']",
    )  # fmt: skip
    there = run_bundle(
        "warping_streamlines", "warp_streamlines", *words,
        f"--warp_streamlines#tractogram={tmp_path}/{{subject}}.trk",
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    moved = tmp_path / "warped_streamlines" / "sub-02" / "sub-02.trk"
    (tmp_path / "moved").mkdir()
    moved.rename(tmp_path / "moved" / "sub-02.trk")
    back = run_bundle(
        "warping_streamlines", "warp_streamlines", *words,
        f"--warp_streamlines#tractogram={tmp_path}/moved/{{subject}}.trk",
        "--warp_streamlines#direction=to_subject",
        f"--warp_streamlines#reference={trained.atlas}/atlas_mean.nii.gz",
    )  # fmt: skip
    assert back.returncode == 0, back.stderr
    template = open_tractogram(tmp_path / "moved" / "sub-02.trk").read()
    returned = open_tractogram(moved).read()
    distance = np.linalg.norm(returned.points - streamlines.points, axis=1)
    assert np.linalg.norm(template.points - streamlines.points, axis=1).max() > 0.5  # mm
    assert np.median(distance) < 0.1  # voxels have 5 mm
    assert np.array_equal(returned.data["number"][:, 0], np.arange(60))
    unknown = run_bundle(
        "warping_streamlines", "warp_streamlines", *words,
        "--warp_streamlines#subjects=['sub-99']",
        f"--warp_streamlines#tractogram={tmp_path}/sub-02.trk",
    )  # fmt: skip
    refused(unknown, 3, "unknown subject sub-99", "warp_streamlines#transforms")


def test_numbers_per_tract_of_every_subject(trained, run_bundle, tmp_path):
    carried = run_bundle(
        "carrying", "atlas_to_patient", f"--atlas_dir={trained.atlas}", f"--output_dir={tmp_path}"
    )
    assert carried.returncode == 0, carried.stderr
    result = run_bundle(
        "measuring", "tract_stats", f"--output_dir={tmp_path}",
        f"--tract_stats#images={{'density': '{trained.atlas}/atlas_mean.nii.gz'}}",
    )  # fmt: skip
    assert result.returncode != 0
    assert "contains a name that the table reserves" in result.stderr
    fields = f"{trained.atlas}/fields/{{subject}}_from-template_to-subject_mode-image_xfm.nii.gz"
    result = run_bundle(
        "measuring", "tract_stats", f"--output_dir={tmp_path}",
        f"--tract_stats#images={{'mean': '{trained.atlas}/atlas_mean.nii.gz'}}",
        f"--tract_stats#log_jacobian={fields}", "--tract_stats#tracts=['whole brain']",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    with (tmp_path / "tract_statistics" / "tract_statistics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["subject"] for row in rows} == {f"sub-{n:02d}" for n in range(1, 6)}
    growth = [float(row["value"]) for row in rows if row["image"] == "log_jacobian"]
    assert len(growth) == 5
    assert 0 < max(map(abs, growth)) < 1
