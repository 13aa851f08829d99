"""Our fields read by ANTs: antspyx warps with them as we do, for every kind of affine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.registration import fields_of
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.transform_files import TransformFile, read_transform
from scripts.spatial.transforms import resample
from scripts.spatial.volumes import read_volume, write_map
from scripts.spatial.warp import warp

# As requirements-dev.txt installs it. Where it has wheels its absence is a failure.
pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 13) or platform.machine() == "aarch64",
    reason="antspyx 0.5.3 has no wheels for Python 3.13 and later, nor for Linux on ARM",
)

SHAPE = (24, 21, 18)
CROP = CropBox((2, 1, 0), (22, 21, 15))
TO_TEMPLATE, TO_SUBJECT = field_names("sub-1")


def rotated(spacing: tuple[float, float, float], seed: int, handed: int) -> np.ndarray:
    """An oblique affine with its origin elsewhere; ``handed`` is the determinant's sign."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation[:, 0] *= handed * np.sign(np.linalg.det(rotation))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = [-31, 14, 52]
    return affine


AFFINES = {
    "las, as FSL writes": np.array(
        [[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
    ),
    "oblique, anisotropic": rotated((1.2, 2.5, 0.8), 0, 1),
    "oblique, anisotropic, left-handed": rotated((0.9, 1.4, 3.0), 1, -1),
}


def smooth(channels: int, seed: int) -> torch.Tensor:
    """A random smooth array ``(1, channels, *SHAPE)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, 5, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, SHAPE, mode="trilinear", align_corners=True)


def density(seed: int) -> torch.Tensor:
    """A map that is 0 at the grid's border, as density maps are: programs differ beyond it."""
    inside = torch.zeros(1, 1, *SHAPE)
    inside[..., 2:-2, 2:-2, 2:-2] = 1
    return smooth(1, seed).clamp_min(0) * inside


@pytest.fixture(params=AFFINES.values(), ids=AFFINES.keys())
def grid(request: pytest.FixtureRequest, make_grid: Callable[..., Grid]) -> Grid:
    return make_grid(SHAPE, request.param)


def by_ants(moving: Path, field: Path) -> np.ndarray:
    """The image that antsApplyTransforms makes with the field, on the field's grid."""
    import ants

    image = ants.image_read(str(moving))
    warped = ants.apply_transforms(
        fixed=image, moving=image, transformlist=[str(field)], interpolator="linear"
    )
    return warped.numpy()


def test_ants_warps_as_the_bundle_does_in_both_directions(grid: Grid, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = AtlasNetwork(
        torch.rand(1, 1, *CROP.shape), enc_features=(4, 4), dec_features=(4, 4, 4), int_steps=5
    ).eval()
    generator = torch.Generator().manual_seed(3)
    coarse = 3 * torch.randn(1, 3, 3, 3, 3, generator=generator)
    velocity = torch.nn.functional.interpolate(
        coarse, network.reduced, mode="trilinear", align_corners=True
    )
    result = fields_of(network, velocity, CROP, SHAPE)
    write_field(tmp_path / TO_TEMPLATE, result.to_template[0].numpy(), grid)
    write_field(tmp_path / TO_SUBJECT, result.to_subject[0].numpy(), grid)
    subject, template = density(1), density(2)
    ours = {
        TO_TEMPLATE: (subject, result.subject_in_template(subject)),
        TO_SUBJECT: (template, warp(template, result.to_subject)),
    }
    for name, (moving, warped) in ours.items():
        write_map(tmp_path / "moving.nii.gz", moving[0].numpy(), grid)
        theirs = by_ants(tmp_path / "moving.nii.gz", tmp_path / name)
        bound = 1e-3 * float(moving.max() - moving.min())
        np.testing.assert_allclose(theirs, warped[0, 0].numpy(), atol=bound, err_msg=name)
        assert float((warped - moving).abs().max()) > 100 * bound  # the fields do move something


def test_a_field_of_ants_moves_our_maps_as_ants_does(grid: Grid, tmp_path: Path) -> None:
    """The other way round: a field and an affine that ANTs writes, read by `carry`'s code."""
    import ants

    write_map(tmp_path / "moving.nii.gz", density(1)[0].numpy(), grid)
    fixed = ants.image_read(str(tmp_path / "moving.nii.gz"))
    vectors = 2 * np.moveaxis(smooth(3, 5)[0].numpy(), 0, -1)
    field = ants.from_numpy(
        vectors.astype(np.float32), has_components=True,
        origin=fixed.origin, spacing=fixed.spacing, direction=fixed.direction,
    )  # fmt: skip
    ants.image_write(field, str(tmp_path / "field.nii.gz"))
    turn = ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3,
        matrix=np.array([[0.98, 0.1, 0], [-0.1, 1.02, 0.03], [0, 0, 0.97]]),
        translation=(2.0, -1.5, 1.0), center=(-20.0, 10.0, 40.0),
    )  # fmt: skip
    ants.write_transform(turn, str(tmp_path / "turn.mat"))
    files = [tmp_path / "field.nii.gz", tmp_path / "turn.mat"]
    theirs = ants.apply_transforms(
        fixed=fixed, moving=fixed, transformlist=[str(file) for file in files],
        interpolator="linear",
    ).numpy()  # fmt: skip

    volume, source = read_volume(tmp_path / "moving.nii.gz")
    ours = resample(volume, source, [read_transform(TransformFile(f)) for f in files], source)
    bound = 1e-3 * float(np.ptp(volume))
    np.testing.assert_allclose(theirs, ours[0], atol=bound)
    assert np.abs(theirs - volume[0]).max() > 100 * bound


def test_ants_reads_the_position_of_an_image_as_we_do(grid: Grid, tmp_path: Path) -> None:
    import ants

    write_map(tmp_path / "map.nii.gz", density(1)[0].numpy(), grid)
    image = ants.image_read(str(tmp_path / "map.nii.gz"))
    to_lps = np.diag([-1.0, -1, 1, 1]) @ nib.load(tmp_path / "map.nii.gz").affine
    np.testing.assert_allclose(image.origin, to_lps[:3, 3], atol=1e-4)
    columns = np.asarray(image.direction) * np.asarray(image.spacing)
    np.testing.assert_allclose(columns, to_lps[:3, :3], atol=1e-4)
