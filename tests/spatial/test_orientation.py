"""Where voxels lie: the rule for each kind of header, and files that nibabel and ITK read alike."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.spatial.image_files import open_image_file
from scripts.spatial.orientation import require_right_angles
from scripts.spatial.volumes import read_grid, read_volume, write_labels, write_map

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
MOVED = AFFINE + np.pad(np.full((3, 1), 9.0), ((0, 1), (3, 0)))
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]


def stored(
    path: Path, sform: np.ndarray | None, qform: np.ndarray | None, s: int = 1, q: int = 1,
    units: str = "mm",
) -> Path:  # fmt: skip
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.set_sform(sform, s if sform is not None else 0)
    image.set_qform(qform, q if qform is not None else 0)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("forms", "expected", "remark"),
    [
        ((AFFINE, AFFINE), AFFINE, ""),
        ((AFFINE, None), AFFINE, ""),
        ((None, AFFINE), AFFINE, ""),
        ((AFFINE, MOVED), AFFINE, "sform and qform disagree"),
        ((None, None), np.diag([-1.5, -2.0, 3.0, 1]), "records no orientation"),
    ],
)
def test_each_pair_of_forms(tmp_path: Path, forms, expected, remark) -> None:
    opened = open_image_file(stored(tmp_path / "a.nii.gz", *forms))
    np.testing.assert_allclose(opened.image.affine, expected, atol=1e-4)
    assert " ".join(opened.remarks).count(remark) == 1 if remark else not opened.remarks
    assert opened.placed is any(form is not None for form in forms)


@pytest.mark.parametrize(("units", "scale"), [("micron", 1e-3), ("mm", 1), ("unknown", 1)])
def test_units_are_converted_size_and_place_alike(tmp_path: Path, units, scale) -> None:
    opened = open_image_file(stored(tmp_path / "a.nii.gz", AFFINE, AFFINE, units=units))
    np.testing.assert_allclose(opened.image.affine[:3], AFFINE[:3] * scale, rtol=1e-5)
    assert opened.image.header.get_xyzt_units()[0] == "mm"
    assert len(opened.remarks) == (scale != 1)
    small = np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE
    metres = open_image_file(stored(tmp_path / "m.nii.gz", small, small, units="meter"))
    np.testing.assert_allclose(metres.image.affine, AFFINE, rtol=1e-4)


def test_a_slip_of_units_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="a voxel has 3000 mm; if mm are meant"):
        open_image_file(stored(tmp_path / "a.nii.gz", AFFINE, AFFINE, units="meter"))


def test_a_quaternion_a_little_too_long_is_rounding(tmp_path: Path) -> None:
    half_turn = np.diag([-2.0, -2, 2, 1])
    path = stored(tmp_path / "a.nii", None, half_turn)
    raw = bytearray(path.read_bytes())
    raw[256:268] = np.array([0, 0, 1.0000008], "<f4").tobytes()
    path.write_bytes(bytes(raw))
    np.testing.assert_allclose(open_image_file(path).image.affine, half_turn, atol=1e-5)
    raw[256:268] = np.array([0, 0, 1.1], "<f4").tobytes()
    path.write_bytes(bytes(raw))
    with pytest.raises(CohortError, match="damaged qform"):
        open_image_file(path)


def test_a_sheared_grid_is_read_and_not_written_on(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    path = stored(tmp_path / "a.nii.gz", sheared, None)
    assert read_volume(path)[1].affine[0, 1] == 0.5
    with pytest.raises(CohortError, match="degrees off right angles"):
        read_grid(path)
    slightly = np.eye(4)
    slightly[0, 1] = 1e-4  # less than a hundredth of a voxel at the corners
    require_right_angles(path, slightly, VALUES.shape)


@pytest.mark.parametrize("write", [write_map, write_labels])
@pytest.mark.parametrize(
    "forms",
    [(AFFINE, None), (None, AFFINE), (AFFINE, MOVED), (None, None), "micron", "oblique", "codes"],
)
def test_what_is_written_nibabel_and_itk_read_alike(tmp_path: Path, forms, write) -> None:
    ants = pytest.importorskip("ants")
    path = tmp_path / "a.nii.gz"
    if isinstance(forms, tuple):
        stored(path, *forms)
    elif forms == "micron":
        stored(path, AFFINE, AFFINE, units="micron")
    elif forms == "oblique":
        oblique = AFFINE.copy()
        oblique[:3, :3] = TURN @ AFFINE[:3, :3]
        oblique[0, 1] += 1e-5  # as a registration leaves it: a little off right angles
        stored(path, oblique, None)
    else:
        stored(path, AFFINE, AFFINE, s=4, q=2)
    values, grid = read_volume(path)
    write(tmp_path / "b.nii.gz", values.astype(np.float32), grid)
    ours = nib.load(tmp_path / "b.nii.gz").affine
    np.testing.assert_allclose(ours, grid.affine, atol=1e-4)
    theirs = ants.image_read(str(tmp_path / "b.nii.gz"))
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = theirs.direction @ np.diag(theirs.spacing), theirs.origin
    np.testing.assert_allclose(np.diag([-1.0, -1, 1, 1]) @ lps, ours, atol=1e-3)


def test_pairs_and_mgh_are_the_same_image(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VALUES, AFFINE), tmp_path / "p.img")
    nib.save(nib.MGHImage(VALUES, AFFINE), tmp_path / "m.mgz")
    nib.save(nib.MGHImage(VALUES, AFFINE), tmp_path / "m.mgh")
    for name in ("p.img", "p.hdr", "m.mgz", "m.mgh"):
        values, grid = read_volume(tmp_path / name)
        np.testing.assert_array_equal(values[0], VALUES)
        np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-4)
    (tmp_path / "p.hdr").unlink()
    with pytest.raises(CohortError, match=r"its header \(\.hdr\) is not beside it"):
        read_volume(tmp_path / "p.img")
    nib.save(nib.AnalyzeImage(VALUES, np.eye(4)), tmp_path / "old.img")
    with pytest.raises(CohortError, match="doesn't record left and right"):
        read_volume(tmp_path / "old.img")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("offset", [0, 100, 352])
def test_start_of_voxels_follows_from_the_file_size(
    tmp_path: Path, offset: int, packed: bool
) -> None:
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 3000))
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    if offset < 352:
        raw[108:112] = np.float32(offset).tobytes()
    (tmp_path / "b.nii").write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    opened = open_image_file(tmp_path / "b.nii")
    np.testing.assert_array_equal(np.asarray(opened.image.dataobj), VALUES)
    assert len(opened.remarks) == (offset < 352)
    if offset < 352:
        (tmp_path / "c.nii").write_bytes(bytes(raw) + b"more")
        with pytest.raises(CohortError, match="doesn't show where; set vox_offset"):
            open_image_file(tmp_path / "c.nii")
