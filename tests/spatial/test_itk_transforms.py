"""ITK's transforms of every kind that is read, beside what ITK itself makes of a point."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.spatial.transform_files import TransformFile, read_affine, read_transform

ants = pytest.importorskip("ants")

CENTRE = (5.0, -3.0, 2.0)
KINDS = {
    "AffineTransform": [1.05, 0.1, -0.3, 0, 0.9, 0, 0.3, 0, 1.1, 3, -2, 4],
    "Euler3DTransform": [0.2, -0.1, 0.3, 3, -2, 4],
    "VersorRigid3DTransform": [0.03, 0.08, 0.12, 3, -2, 4],
    "Similarity3DTransform": [0.03, 0.08, 0.12, 3, -2, 4, 1.3],
    "ScaleVersor3DTransform": [0.03, 0.08, 0.12, 3, -2, 4, 1.3, 0.8, 1.1],
    "ScaleTransform": [1.3, 0.8, 1.1],
    "TranslationTransform": [3, -2, 4],
}
POINTS = np.random.default_rng(0).normal(size=(3, 5)) * 20
TO_LPS = np.array([[-1.0], [-1.0], [1.0]])


def text(*parts: tuple[str, list[float], tuple[float, ...]]) -> str:
    lines = ["#Insight Transform File V1.0"]
    for number, (kind, parameters, fixed) in enumerate(parts):
        lines += [f"#Transform {number}", f"Transform: {kind}_double_3_3"]
        if kind != "CompositeTransform":
            lines += [f"Parameters: {' '.join(map(str, parameters))}"]
            lines += [f"FixedParameters: {' '.join(map(str, fixed))}"]
    return "\n".join(lines) + "\n"


def by_itk(path: Path) -> np.ndarray:
    """Where ITK takes the points, RAS mm."""
    transform = ants.read_transform(str(path))
    moved = [transform.apply_to_point(tuple(point)) for point in (POINTS * TO_LPS).T]
    return np.array(moved).T * TO_LPS


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_moves_points_as_in_itk(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "one.tfm"
    fixed = () if kind == "TranslationTransform" else CENTRE
    path.write_text(text((kind, KINDS[kind], fixed)))
    np.testing.assert_allclose(read_affine(path).apply(POINTS), by_itk(path), atol=1e-5)
    back = read_transform(TransformFile(path, inverted=True))
    np.testing.assert_allclose(back.apply(by_itk(path)), POINTS, atol=1e-5)


def test_a_fourth_fixed_parameter_turns_the_order_of_euler_angles(tmp_path: Path) -> None:
    path = tmp_path / "zyx.tfm"
    path.write_text(text(("Euler3DTransform", KINDS["Euler3DTransform"], (*CENTRE, 1.0))))
    np.testing.assert_allclose(read_affine(path).apply(POINTS), by_itk(path), atol=1e-5)


def test_a_composite_applies_its_last_transform_first(tmp_path: Path) -> None:
    kinds = ("AffineTransform", "Euler3DTransform", "ScaleTransform")
    parts = [(kind, KINDS[kind], CENTRE) for kind in kinds]
    both = tmp_path / "both.tfm"
    both.write_text(text(("CompositeTransform", [], ()), *parts))
    points = POINTS
    for part in reversed(parts):
        one = tmp_path / "one.tfm"
        one.write_text(text(part))
        points = read_affine(one).apply(points)
    np.testing.assert_allclose(read_affine(both).apply(POINTS), points, atol=1e-9)
    with pytest.raises(CohortError, match="without a CompositeTransform"):
        both.write_text(text(*parts))
        read_affine(both)


def composite(path: Path, field: np.ndarray, affine: np.ndarray) -> Path:
    """As ITK writes a composite of an affine and a field; `affine` LPS, `field` (x, y, z, 3)."""
    import h5py

    size = field.shape[:3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    kinds = (
        ("CompositeTransform_double_3_3", None, None),
        ("AffineTransform_double_3_3", KINDS["AffineTransform"], CENTRE),
        (
            "DisplacementFieldTransform_double_3_3",
            field.transpose(2, 1, 0, 3).ravel(),
            [*size, *affine[:3, 3], *spacing, *direction.ravel()],
        ),
    )
    with h5py.File(path, "w") as file:
        for number, (kind, parameters, fixed) in enumerate(kinds):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = np.array([kind], dtype=h5py.string_dtype("ascii"))
            if parameters is not None:
                group["TransformParameters"] = np.asarray(parameters, dtype=np.float64)
                group["TransformFixedParameters"] = np.asarray(fixed, dtype=np.float64)
    return path


def smooth_field(shape: tuple[int, ...]) -> np.ndarray:
    places = np.indices(shape) / 4
    return np.stack([np.sin(places[0]), np.cos(places[1]), 0.5 * np.sin(places[2])], axis=-1)


def test_a_composite_of_affine_and_field_is_what_its_parts_are(tmp_path: Path) -> None:
    """The same as ANTs makes of the parts, each in a file of its own, on an oblique grid."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array([2.0, 2.5, 3.0])
    affine[:3, 3] = (-15, -20, -18)
    field = smooth_field((14, 16, 12))
    path = composite(tmp_path / "both.h5", field, affine)
    ras = np.diag([-1.0, -1, 1, 1]) @ affine
    image = nib.Nifti1Image(field[:, :, :, None].astype(np.float32), ras)
    image.header.set_intent(1007)
    image.set_qform(ras, 1)
    image.set_sform(ras, 1)
    nib.save(image, tmp_path / "field.nii.gz")
    (tmp_path / "affine.tfm").write_text(
        text(("AffineTransform", KINDS["AffineTransform"], CENTRE))
    )
    parts = [
        read_transform(TransformFile(tmp_path / name)) for name in ("field.nii.gz", "affine.tfm")
    ]
    inside = ras[:3, :3] @ np.random.default_rng(2).uniform(1, 10, (3, 20)) + ras[:3, 3:]
    expected = parts[1].apply(parts[0].apply(inside))
    both = read_transform(TransformFile(path))
    np.testing.assert_allclose(both.apply(inside), expected, atol=1e-5)
    with pytest.raises(CohortError, match="can't be inverted"):
        read_transform(TransformFile(path, inverted=True))
    with pytest.raises(CohortError, match="an affine is needed"):
        read_affine(path)


@pytest.mark.parametrize("name", ["text.h5", "empty.h5", "bspline.h5", "claims.h5"])
def test_hdf5_that_is_no_transform_is_one_clear_error(tmp_path: Path, name: str) -> None:
    import h5py

    path = tmp_path / name
    if name == "text.h5":
        path.write_text("no transform")
    else:
        with h5py.File(path, "w") as file:
            if name != "empty.h5":
                kind = {"bspline.h5": "BSplineTransform_double_3_3"}.get(
                    name, "DisplacementFieldTransform_double_3_3"
                )
                group = file.create_group("TransformGroup/0")
                group["TransformType"] = np.array([kind], dtype=h5py.string_dtype("ascii"))
                group["TransformParameters"] = np.zeros(12)
                group["TransformFixedParameters"] = np.array([1e9] * 18)
    with pytest.raises(CohortError) as caught:
        read_transform(TransformFile(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
