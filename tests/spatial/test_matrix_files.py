"""4x4 matrices: which kind they are, and what FLIRT's and FreeSurfer's mean."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.spatial.grid import Grid
from scripts.spatial.matrix_files import ras_of_fsl
from scripts.spatial.transform_files import TransformFile, read_affine, read_transform

MATRIX = np.array([[0.9, 0.1, 0, 3], [-0.1, 1.1, 0.05, -2], [0, 0, 1, 4], [0, 0, 0, 1.0]])


def flirt(path: Path, matrix: np.ndarray) -> Path:
    """As FLIRT writes: ten decimals, two blanks after each number."""
    rows = ("".join(f"{value:.10f}  " for value in row) for row in matrix)
    path.write_text("\n".join(rows) + "\n")
    return path


def grid(affine: np.ndarray, shape: tuple[int, ...] = (10, 12, 14)) -> Grid:
    return Grid(shape, affine, nib.Nifti1Header())


def image(path: Path, on: Grid) -> Path:
    nib.save(nib.Nifti1Image(np.ones(on.shape, np.float32), on.affine), path)
    return path


RAS = np.diag([2.0, 2.5, 3.0, 1.0])
LAS = np.diag([-1.5, 2.0, 1.0, 1.0])
LAS[:3, 3] = (20, -10, -5)


@pytest.mark.parametrize("moving", [RAS, LAS])
@pytest.mark.parametrize("fixed", [RAS, LAS])
def test_flirts_matrix_maps_scaled_voxels_of_moving_to_fixed(moving, fixed) -> None:
    """Written out for a point: FSL's x runs from the last voxel where the affine is positive."""
    on_moving, on_fixed = grid(moving), grid(fixed, (9, 8, 7))
    result = ras_of_fsl(MATRIX, on_moving, on_fixed)

    def fsl(on: Grid, world: np.ndarray) -> np.ndarray:
        voxel = np.linalg.solve(on.affine, [*world, 1.0])[:3]
        if np.linalg.det(on.affine[:3, :3]) > 0:
            voxel[0] = on.shape[0] - 1 - voxel[0]
        return voxel * np.linalg.norm(on.affine[:3, :3], axis=0)

    point = np.array([1.0, 2.0, 3.0])
    there = (result @ [*point, 1.0])[:3]
    arrives = (MATRIX @ [*fsl(on_moving, there), 1.0])[:3]
    np.testing.assert_allclose(arrives, fsl(on_fixed, point), atol=1e-9)


@pytest.mark.parametrize("name", ["m.txt", "m.mat"])
def test_flirts_file_is_not_taken_for_another(tmp_path: Path, name: str) -> None:
    path = flirt(tmp_path / name, MATRIX)
    with pytest.raises(CohortError, match=r"FLIRT's.*'kind': 'ras'.*'kind': 'fsl', 'moving'"):
        read_affine(path)
    moving, fixed = (
        image(tmp_path / f"{one}.nii.gz", grid(affine)) for one, affine in (("a", RAS), ("b", LAS))
    )
    result = read_transform(TransformFile(path, kind="fsl", moving=moving, fixed=fixed))
    np.testing.assert_allclose(result.matrix, ras_of_fsl(MATRIX, grid(RAS), grid(LAS)), atol=1e-6)
    np.testing.assert_allclose(read_affine(path, "ras").matrix, MATRIX)
    with pytest.raises(CohortError, match="must be named as 'moving'"):
        read_affine(path, "fsl")
    with pytest.raises(CohortError, match=r"can't be read|no transform"):
        read_affine(path, "lta")


def test_a_matrix_of_unknown_kind_is_taken_for_ras_with_a_warning(tmp_path, caplog) -> None:
    for name, known in (("m.txt", False), ("m_ras.txt", True), ("mrtrix.txt", True)):
        path = tmp_path / name
        head = "command_history: transformconvert a itk_import b" if name[:2] == "mr" else ""
        np.savetxt(path, MATRIX, header=head)
        caplog.clear()
        np.testing.assert_allclose(read_affine(path).matrix, MATRIX)
        assert ("is read as RAS mm" in caplog.text) is not known
    path = tmp_path / "greedy.mat"
    np.savetxt(path, MATRIX, fmt="%g")
    with pytest.raises(CohortError, match="is text, a 4x4 matrix, and not ITK's"):
        read_affine(path)
    assert logging.getLogger("scripts.spatial.matrix_files") is not None


LTA = """# transform file /x.lta
type      = {kind} # LINEAR_VOX_TO_VOX
nxforms   = 1
mean      = 0.0000 0.0000 0.0000
sigma     = 1.0000
1 4 4
{rows}
src volume info
valid = 1  # volume info valid
filename = a.mgz
volume = 10 12 14
voxelsize = 2 2 2
xras   = -1 0 0
yras   = 0 0 -1
zras   = 0 1 0
cras   = 1 2 3
dst volume info
valid = 1  # volume info valid
filename = b.mgz
volume = 20 20 20
voxelsize = 1 1.5 2
xras   = 1 0 0
yras   = 0 1 0
zras   = 0 0 1
cras   = 4 5 6
"""


def test_an_lta_in_voxels_and_in_ras_agree(tmp_path: Path) -> None:
    source = np.array([[-2, 0, 0, 11], [0, 0, 2, -12], [0, -2, 0, 15], [0, 0, 0, 1.0]])
    target = np.array([[1, 0, 0, -6], [0, 1.5, 0, -10], [0, 0, 2, -14], [0, 0, 0, 1.0]])

    def written(name: str, kind: int, matrix: np.ndarray) -> Path:
        rows = "\n".join(" ".join(f"{value:.15e}" for value in row) for row in matrix)
        (tmp_path / name).write_text(LTA.format(kind=kind, rows=rows))
        return tmp_path / name

    in_voxels = written("v.lta", 0, np.linalg.inv(target) @ MATRIX @ source)
    in_ras = written("r.lta", 1, MATRIX)
    for path in (in_voxels, in_ras):
        # It maps the source to the destination; resampling needs the way back.
        np.testing.assert_allclose(read_affine(path).matrix, np.linalg.inv(MATRIX), atol=1e-9)
    with pytest.raises(CohortError, match=r"type is 14.*lta_convert"):
        read_affine(written("w.lta", 14, MATRIX))
