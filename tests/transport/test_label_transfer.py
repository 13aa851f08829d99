"""The whole transfer, from files to files."""

import fcntl
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CohortError, ConfigurationError, StorageError
from scripts.runtime.lock import LOCK_FILE
from scripts.settings.label_transfer import LabelTransferConfig
from scripts.tractograms import Streamlines, TractogramError, open_tractogram, write_tractogram
from scripts.transport import transfer
from scripts.transport.transfer import LabelTransfer


def run(atlas, subject, output, reference=None, **settings) -> tuple[Path, dict]:
    block = LabelTransferConfig.load({"threads": 1, **settings})
    folder = LabelTransfer(str(atlas), str(subject), block, output, reference).publish()
    return folder, json.loads((folder / "labels.json").read_text())


def labels(folder, suffix="trk"):
    result = open_tractogram(folder / f"labelled.{suffix}").read(finite=False)
    return result.data["label"][:, 0].astype(int), result.data["mass"][:, 0]


def test_labels_counts_masses_maps_and_picture(case, tmp_path):
    image = nib.Nifti1Image(np.zeros((40, 48, 36), np.uint8), np.diag([5.0, 5, 5, 1]))
    image.affine[:3, 3] = (-98, -118, -88)
    reference = tmp_path / "reference.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((40, 48, 36), np.uint8), image.affine), reference)
    folder, about = run(case.atlas, case.subject, tmp_path / "out", str(reference))

    result, mass = labels(folder)
    assert np.array_equal(result, case.truth)
    assert ((mass < 0.2) == (result < 0)).all()
    given = open_tractogram(case.subject).read()
    np.testing.assert_allclose(
        open_tractogram(folder / "labelled.trk").read().points, given.points, atol=1e-3
    )
    assert [c["id"] for c in about["classes"]] == [3, 5, 8, 13, 21]
    assert [c["count"] for c in about["classes"]] == [12] * 5
    assert [c["atlas_count"] for c in about["classes"]] == [20] * 5
    assert [c["atlas_weight"] for c in about["classes"]] == [0.2] * 5
    assert sum(c["mass"] for c in about["classes"]) == pytest.approx(mass.mean(), abs=0.02)
    assert about["outliers"]["count"] == about["outliers"]["below_threshold"] == 6
    for entry in about["classes"]:
        part = open_tractogram(folder / entry["file"]).read()
        assert np.array_equal(part.data["label"][:, 0], [entry["id"]] * 12)
        density = nib.load(folder / "density" / f"{entry['name']}.nii.gz")
        assert density.shape == (40, 48, 36)
        np.testing.assert_allclose(density.affine, image.affine)
        voxels = np.asarray(density.dataobj)
        assert 1 <= voxels.max() <= 12
        centre = np.rint(
            np.linalg.inv(image.affine) @ [*part.points.mean(0) * (1, 0, 1), 1]
        ).astype(int)[:3]  # fmt: skip
        near = tuple(slice(max(0, c - 4), c + 5) for c in centre)
        assert voxels[near].sum() > 0
    assert len(open_tractogram(folder / "outliers.trk").read()) == 6
    assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", ["trx", "vtk", "tck"])
def test_every_format_is_written_and_ours_can_be_an_atlas(case, tmp_path, suffix):
    folder, about = run(case.atlas, case.subject, tmp_path, format=suffix)
    if suffix == "tck":
        result = np.loadtxt(folder / "labelled_label.txt").astype(int)
        again, _ = run(
            folder / "labelled.tck", case.subject, tmp_path / "again",
            labels=str(folder / "labelled_label.txt"),
        )  # fmt: skip
    else:
        result, _ = labels(folder, suffix)
        again, _ = run(folder / f"labelled.{suffix}", case.subject, tmp_path / "again")
    assert np.array_equal(result, case.truth)
    assert np.array_equal(labels(again)[0], case.truth)
    assert {c["file"].rsplit(".")[-1] for c in about["classes"]} == {suffix}
    if suffix == "trx":
        groups = open_tractogram(folder / "labelled.trx").source.groups()
        assert {name: len(who) for name, who in groups.items()} == dict.fromkeys(
            ("3", "5", "8", "13", "21"), 12
        )


def test_arrays_are_labelled_from_arrays(case, tmp_path):
    """`.npy` as people save it: an atlas and its classes, a subject, and the result."""
    atlas, subject = (open_tractogram(one).read() for one in (case.atlas, case.subject))
    for name, lines in (("atlas", atlas), ("subject", subject)):
        points = int(lines.lengths[0])
        np.save(tmp_path / f"{name}.npy", lines.points.reshape(len(lines), points, 3))
    np.save(tmp_path / "classes.npy", atlas.data["label"][:, 0].astype(np.int32))
    folder, about = run(
        tmp_path / "atlas.npy", tmp_path / "subject.npy", tmp_path / "out",
        labels=str(tmp_path / "classes.npy"),
    )  # fmt: skip
    assert np.array_equal(np.loadtxt(folder / "labelled_label.txt"), case.truth)
    assert np.load(folder / "labelled.npy").shape == (66, 15, 3)
    assert np.load(folder / about["classes"][0]["file"]).shape == (12, 15, 3)
    again, _ = run(folder / "classes", tmp_path / "subject.npy", tmp_path / "again")
    names = sorted(path.stem for path in (again / "classes").glob("*.npy"))
    assert names == ["13", "21", "3", "5", "8"]
    run(folder / "classes", tmp_path / "subject.npy", tmp_path / "again")  # replaces it
    np.save(tmp_path / "classes.npy", np.zeros(3))
    with pytest.raises(TractogramError, match=r"classes\.npy: is an array \(3,\) of float64"):
        run(
            tmp_path / "atlas.npy", tmp_path / "subject.npy", tmp_path / "no",
            labels=str(tmp_path / "classes.npy"),
        )  # fmt: skip


def test_degenerate_streamlines_are_outliers_and_counted(case, tmp_path):
    good = open_tractogram(case.subject).read()
    broken = good[1].copy()
    broken[3] = np.nan
    lines = [good[0], broken, good[2][:1], np.repeat(good[3][:1], 5, 0), good[4]]
    write_tractogram(tmp_path / "odd.trk", Streamlines.of(lines))
    folder, about = run(case.atlas, tmp_path / "odd.trk", tmp_path)
    result, mass = labels(folder)
    assert result.tolist() == [case.truth[0], -1, -1, -1, case.truth[4]]
    assert mass[1:4].tolist() == [0, 0, 0]
    assert about["outliers"] == {
        "count": 3,
        "degenerate": {"not_finite": 1, "fewer_than_two_points": 1, "no_length": 1},
        "below_threshold": 0,
    }
    with pytest.raises(TractogramError, match=r"1 streamlines .* which TCK can't store"):
        run(case.atlas, tmp_path / "odd.trk", tmp_path, format="tck")


@pytest.mark.parametrize("suffix", ["trk", "tck", "trx", "vtk"])
def test_an_empty_subject_is_a_valid_one(case, tmp_path, suffix):
    write_tractogram(tmp_path / f"empty.{suffix}", Streamlines.of([]))
    folder, about = run(case.atlas, tmp_path / f"empty.{suffix}", tmp_path)
    assert sum(c["count"] for c in about["classes"]) == about["outliers"]["count"] == 0
    assert len(open_tractogram(folder / f"labelled.{suffix}").read()) == 0


def test_a_damaged_atlas_class_is_left_out(case, tmp_path):
    atlas = open_tractogram(case.atlas).read()
    points = atlas.points.copy()
    ids = atlas.data["label"][:, 0]
    points[(ids == 8)[atlas.owners]] = np.nan
    write_tractogram(tmp_path / "atlas.trk", Streamlines(points, atlas.offsets, atlas.data))
    _, about = run(tmp_path / "atlas.trk", case.subject, tmp_path)
    assert [c["id"] for c in about["classes"]] == [3, 5, 13, 21]
    assert about["atlas"]["degenerate"]["not_finite"] == 20
    points[:] = np.nan
    write_tractogram(tmp_path / "atlas.trk", Streamlines(points, atlas.offsets, atlas.data))
    with pytest.raises(TractogramError, match="no usable streamline with a class"):
        run(tmp_path / "atlas.trk", case.subject, tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("moment", ["label_fibres", "draw_classes"])
def test_what_ends_early_leaves_nothing_and_what_was_there_stays(
    case, tmp_path, monkeypatch, moment, error
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(transfer, moment, fail)
    with pytest.raises(error):
        run(case.atlas, case.subject, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    folder, _ = run(case.atlas, case.subject, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(transfer, moment, fail)
    with pytest.raises(error):
        run(case.atlas, case.subject, tmp_path / "out", blur=4.0)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["labels"]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"atlas": None}, ConfigurationError, "atlas = None: must be a path; give --atlas FILE"),
        ({"subject": ""}, ConfigurationError, "subject = '': must be a path"),
        ({"subject": "none.trk"}, TractogramError, "none.trk: does not exist"),
        ({"subject": "none.nii"}, TractogramError, "none.nii: not a tractogram"),
        ({"reference": "none.nii.gz"}, CohortError, "none.nii.gz"),
        ({"device": "cuda:77"}, ConfigurationError, "label_transfer.device: 'cuda:77'"),
    ],
)
def test_mistakes_are_reported_and_publish_nothing(case, tmp_path, change, kind, message):
    given = {"atlas": str(case.atlas), "subject": str(case.subject), **change}
    settings = LabelTransferConfig.load({"device": given.pop("device", "cpu")})
    with pytest.raises(kind, match=message.replace("(", r"\(")):
        LabelTransfer(
            given["atlas"], given["subject"], settings, tmp_path / "out", given.get("reference")
        ).publish()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_run_writes_to_is_refused(case, tmp_path):
    with (tmp_path / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another run"):
            run(case.atlas, case.subject, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / LOCK_FILE]
