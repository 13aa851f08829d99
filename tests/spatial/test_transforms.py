"""Transforms from elsewhere against closed forms."""

import nibabel as nib
import numpy as np
import pytest
from scipy.io import savemat

from scripts.errors import CohortError
from scripts.spatial.fields import write_field
from scripts.spatial.transform_files import TransformFile, read_affine, read_transform
from scripts.spatial.transforms import AffineTransform, FieldTransform, resample
from scripts.spatial.volumes import read_grid, read_volume

SHAPE = (9, 8, 7)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2.5, 0, -7], [0, 0, 1.5, 4], [0, 0, 0, 1]])
POINTS = np.array([[0.0, 3, -4], [1, 2, 5], [2, -6, 7]])
LPS = np.array([-1.0, -1, 1])


def mat(path, matrix, shift, centre=(0, 0, 0), kind="AffineTransform_double_3_3"):
    parameters = np.concatenate([np.ravel(matrix), shift]).astype(float)
    content = {kind: parameters[:, None], "fixed": np.array(centre, dtype=float)[:, None]}
    savemat(path, content, format="4")
    return path


def text(path, matrix, shift, centre=(0, 0, 0), kind="MatrixOffsetTransformBase_double_3_3"):
    numbers = " ".join(f"{v:.17g}" for v in (*np.ravel(matrix), *shift))
    fixed = " ".join(f"{v:.17g}" for v in centre)
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        f"Transform: {kind}\nParameters: {numbers}\nFixedParameters: {fixed}\n"
    )
    return path


def ramp(grid):
    """A volume whose value at a world point is 100 + x + 2 y + 3 z: linear, so exact."""
    indices = np.indices(grid.shape).reshape(3, -1)
    world = grid.affine[:3, :3] @ indices + grid.affine[:3, 3:]
    return (100 + np.array([1, 2, 3]) @ world).reshape(1, *grid.shape)


@pytest.fixture
def grid(make_grid):
    return make_grid(SHAPE, AFFINE)


@pytest.mark.parametrize(("write", "suffix"), [(mat, ".mat"), (text, ".txt"), (text, ".tfm")])
def test_an_affine_is_m_times_x_minus_c_plus_t_plus_c_in_lps(write, suffix, tmp_path):
    matrix = np.array([[1.1, 0.2, 0], [-0.1, 0.9, 0.3], [0.05, 0, 1.2]])
    shift, centre = np.array([4.0, -5, 6]), np.array([10.0, 20, -30])
    path = write(tmp_path / f"x{suffix}", matrix, shift, centre)
    there = read_affine(path).apply(POINTS)
    in_lps = POINTS * LPS[:, None]
    by_hand = matrix @ (in_lps - centre[:, None]) + shift[:, None] + centre[:, None]
    assert np.allclose(there, by_hand * LPS[:, None])
    back = read_transform(TransformFile(path, inverted=True)).apply(there)
    assert np.allclose(back, POINTS)


def test_a_translation_along_x_goes_left(tmp_path):
    path = mat(tmp_path / "x.mat", np.eye(3), (5, 0, 0))
    assert np.allclose(read_affine(path).apply(POINTS), POINTS + np.array([[-5], [0], [0]]))


def test_a_composite_of_matlab_is_its_affine_with_a_warning_of_lost_parts(tmp_path, caplog):
    shift = (np.eye(3), (5, 0, 0))
    path = mat(tmp_path / "x.mat", *shift, kind="CompositeTransform_double_3_3")
    assert np.allclose(read_affine(path).apply(POINTS), POINTS + np.array([[-5], [0], [0]]))
    assert "if it had other parts, MATLAB's format has lost them" in caplog.text


def test_a_planes_affine_leaves_z_alone(tmp_path):
    path = tmp_path / "x.mat"
    content = {"AffineTransform_double_2_2": np.array([[0.0, -1, 1, 0, 3, 4]]).T}
    savemat(path, {**content, "fixed": np.zeros((2, 1))}, format="4")
    x, y = POINTS[:2] * -1
    assert np.allclose(read_affine(path).apply(POINTS), [-(-y + 3), -(x + 4), POINTS[2]])


def test_a_field_moves_by_millimetres_and_not_at_all_outside(grid, tmp_path):
    """A quarter voxel along the second axis: 0.625 mm towards anterior."""
    displacement = np.zeros((3, *SHAPE))
    displacement[1] = 0.25
    write_field(tmp_path / "x.nii.gz", displacement, grid)
    field = read_transform(TransformFile(tmp_path / "x.nii.gz"))
    centre = AFFINE[:3] @ [4, 4, 3, 1]
    edge, beyond = AFFINE[:3] @ [8.4, 4, 3, 1], AFFINE[:3] @ [8.6, 4, 3, 1]
    there = field.apply(np.stack([centre, edge, beyond], axis=1))
    moved = np.array([0, 0.625, 0])
    assert np.allclose(there.T, [centre + moved, edge + moved, beyond], atol=1e-5)


def test_identity_gives_the_volume_back(grid):
    volume = np.random.default_rng(0).random((2, *SHAPE))
    assert np.allclose(resample(volume, grid, [], grid), volume, atol=1e-6)


def test_order_is_that_of_antsapplytransforms(grid):
    """First scaled, then shifted: value(2 x + d), not value(2 (x + d))."""
    scale = AffineTransform(np.diag([0.5, 0.5, 0.5, 1]))
    shift = AffineTransform(np.eye(4))
    shift.matrix[:3, 3] = (0.25, 0.5, -0.75)
    volume = ramp(grid)
    first, second = (resample(volume, grid, c, grid)[0] for c in ([scale, shift], [shift, scale]))
    inside = (slice(3, 6),) * 3
    indices = np.indices(SHAPE)[(slice(None), *inside)].reshape(3, -1)
    world = AFFINE[:3, :3] @ indices + AFFINE[:3, 3:]
    for got, place in (
        (first, 0.5 * world + shift.matrix[:3, 3:]),
        (second, 0.5 * (world + shift.matrix[:3, 3:])),
    ):
        voxels = np.linalg.inv(AFFINE)[:3] @ [*place, np.ones(place.shape[1])]
        seen = ((voxels >= 0) & (voxels <= np.array(SHAPE)[:, None] - 1)).all(axis=0)
        assert seen.any()
        by_hand = 100 + np.array([1, 2, 3]) @ place
        assert np.allclose(got[inside].ravel()[seen], by_hand[seen], rtol=1e-5)


def test_the_right_one_of_a_composition_comes_first(grid):
    """2 (x + 3) against 2 x + 3, and with a field that adds 0.5 mm everywhere inside."""
    double, shift = AffineTransform(np.diag([2.0, 2, 2, 1])), AffineTransform(np.eye(4))
    shift.matrix[:3, 3] = 3
    assert isinstance(double @ shift, AffineTransform)
    assert np.allclose((double @ shift).apply(POINTS), 2 * (POINTS + 3))
    assert np.allclose((shift @ double).apply(POINTS), 2 * POINTS + 3)

    field = FieldTransform(np.full((3, *SHAPE), 0.5), grid)
    place = AFFINE[:3] @ [[4.0], [4], [3], [1]]
    assert np.allclose((double @ field).apply(place), 2 * (place + 0.5))
    back = AffineTransform(np.diag([0.5, 0.5, 0.5, 1]))
    assert np.allclose((field @ back).apply(2 * place), place + 0.5)
    assert np.allclose((double @ field @ back).apply(2 * place), 2 * (place + 0.5))


def test_the_inverse_leads_back_and_a_field_has_none(grid):
    turn = AffineTransform(np.array([[0, -2.0, 0, 5], [1, 0, 0, -3], [0, 0, 4, 1], [0, 0, 0, 1]]))
    by_hand = [(POINTS[1] + 3), (5 - POINTS[0]) / 2, (POINTS[2] - 1) / 4]
    assert np.allclose((~turn).apply(POINTS), by_hand)
    assert np.allclose((~turn @ turn).matrix, np.eye(4))
    field = FieldTransform(np.zeros((3, *SHAPE)), grid)
    for one in (field, turn @ field):
        with pytest.raises(ValueError, match="give the field of the opposite direction"):
            _ = ~one
    with pytest.raises(TypeError, match="AffineTransform"):
        _ = turn @ np.eye(4)


def test_composition_interpolates_once(grid):
    """Half a voxel there and back is the identity, which two interpolations would blur."""
    half = np.eye(4)
    half[1, 3] = 1.25
    forward, backward = AffineTransform(half), AffineTransform(np.linalg.inv(half))
    volume = np.random.default_rng(1).random((1, *SHAPE))
    assert np.allclose(resample(volume, grid, [forward, backward], grid), volume, atol=1e-5)


def test_another_grid_sees_the_same_world(grid, make_grid):
    fine = make_grid((5, 6, 7), np.array(
        [[1.0, 0, 0, -3], [0, 1, 0, -2], [0, 0, 1, 5], [0, 0, 0, 1]]
    ))  # fmt: skip
    assert np.allclose(resample(ramp(grid), grid, [], fine), ramp(fine), rtol=1e-5)


def test_slabs_join_without_a_seam(make_grid):
    long = make_grid((37, 4, 5))
    assert np.allclose(resample(ramp(long), long, [], long), ramp(long), rtol=1e-6)


def test_a_plane_has_one_slice(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 5)), np.eye(4)), tmp_path / "x.nii.gz")
    volume, grid = read_volume(tmp_path / "x.nii.gz")
    assert volume.shape == (1, 4, 5, 1)
    assert grid.shape == read_grid(tmp_path / "x.nii.gz").shape == (4, 5, 1)
    assert np.allclose(resample(volume, grid, [], grid), 1)


def broken(case, path):
    if case == "missing":
        return path / "none.mat"
    if case == "garbage mat":
        (path / "x.mat").write_bytes(b"no matrix" * 40)
        return path / "x.mat"
    if case == "garbage text":
        (path / "x.txt").write_text("1 0 0 0\n0 1 0 0\n")
        return path / "x.txt"
    if case == "two transforms":
        one = text(path / "x.tfm", np.eye(3), (0, 0, 0)).read_text()
        (path / "x.tfm").write_text(one + one)
        return path / "x.tfm"
    if case == "a kind that isn't read":
        return text(path / "x.txt", [], (0, 0, 0, 1, 2, 3), kind="BSplineTransform_double_3_3")
    if case == "singular":
        return mat(path / "x.mat", np.zeros((3, 3)), (0, 0, 0))
    if case == "no vectors":
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4)), path / "x.nii.gz")
        return path / "x.nii.gz"
    if case == "not finite":
        data = np.full((3, 3, 3, 1, 3), np.nan, dtype=np.float32)
        nib.save(nib.Nifti1Image(data, np.eye(4)), path / "x.nii.gz")
        return path / "x.nii.gz"
    if case == "no image":
        (path / "x.nii.gz").write_bytes(b"nothing")
        return path / "x.nii.gz"
    (path / "x.xyz").write_text("1")
    return path / "x.xyz"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file"),
        ("garbage mat", "can't be read"),
        ("garbage text", "not a 4x4 matrix"),
        ("two transforms", "must be one ITK transform"),
        ("a kind that isn't read", "contains BSplineTransform_double_3_3 with 6 parameters"),
        ("singular", "can't be inverted"),
        ("no vectors", "must have shape"),
        ("not finite", "not all values are finite"),
        ("no image", "can't be read"),
        ("unknown kind", "not a supported transform"),
    ],
)
def test_what_is_no_transform_is_refused(case, message, tmp_path):
    path = broken(case, tmp_path)
    with pytest.raises(CohortError, match=message) as raised:
        read_transform(TransformFile(path))
    assert str(path) in str(raised.value)


def test_a_field_isnt_inverted(tmp_path):
    with pytest.raises(CohortError, match="InverseWarp"):
        read_transform(TransformFile(tmp_path / "1Warp.nii.gz", inverted=True))


def test_a_field_transform_composes_with_an_affine(grid):
    """u = 0.1 x in world terms on a ramp is linear again."""
    indices = np.indices(SHAPE).reshape(3, -1)
    world = (AFFINE[:3, :3] @ indices + AFFINE[:3, 3:]).reshape(3, *SHAPE)
    centre = AFFINE[:3] @ [4, 4, 3, 1]
    u = -0.1 * (world - centre[:, None, None, None])
    seen = resample(ramp(grid), grid, [FieldTransform(u, grid)], grid)
    by_hand = 100 + np.tensordot([1, 2, 3], world + u, axes=1)
    assert np.allclose(seen[0], by_hand, rtol=1e-5)


def test_a_plane_is_the_slice_of_its_volume(make_grid):
    plane = np.random.default_rng(1).random((2, 9, 8)).astype(np.float32)
    source, wanted = (
        make_grid((9, 8, 1), AFFINE),
        make_grid((6, 5, 1), AFFINE @ np.diag([1.3, 1.2, 1, 1])),
    )
    moved = resample(plane, source, [], wanted)
    assert moved.shape == (2, 6, 5)
    assert np.array_equal(moved, resample(plane[..., None], source, [], wanted)[..., 0])
