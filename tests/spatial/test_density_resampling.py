"""A map on another grid has the values of a count of the same streamlines on it."""

import nibabel as nib
import numpy as np
import pytest

from scripts.spatial.density_resampling import resample_density, visits_ratio
from scripts.spatial.grid import Grid
from scripts.tractograms import DensityCounter, Streamlines


def grid(voxel, extent: float = 48.0) -> Grid:
    voxel = np.broadcast_to(np.asarray(voxel, dtype=float), (3,))
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = (voxel - extent) / 2
    return Grid(tuple(round(extent / v) for v in voxel), affine, nib.Nifti1Header())


def bundle() -> Streamlines:
    """Smooth curves in all directions through the middle, as of a crossing."""
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(600):
        along, bend = generator.normal(size=(2, 3))
        along /= np.linalg.norm(along)
        t = np.linspace(-1, 1, 60)[:, None]
        lines.append(generator.normal(size=3) * 4 + 16 * t * along + 3 * bend * (t**2 - 0.5))
    return Streamlines.of(lines)


def counted(on: Grid) -> np.ndarray:
    counter = DensityCounter(on.shape, on.affine)
    counter.add(bundle())
    return counter.density[None]


DIVISORS = {
    "waytotal": lambda density: 600.0,
    "none": lambda density: 1.0,
    "streamline_density": np.sum,
    "max": np.max,
}


@pytest.mark.parametrize("normalisation", DIVISORS)
@pytest.mark.parametrize(("source", "wanted"), [(1, 2), (1, 1.5), (2, 1), (2, 3), (1, (1, 2, 3))])
def test_it_is_the_density_of_the_same_streamlines(normalisation, source, wanted):
    divide = DIVISORS[normalisation]
    here, there = counted(grid(source)), counted(grid(wanted))
    result = resample_density(here / divide(here), grid(source).affine, grid(wanted), normalisation)
    truth = there / divide(there)
    assert result.shape == truth.shape
    assert np.corrcoef(result.ravel(), truth.ravel())[0, 1] > 0.85
    if normalisation == "streamline_density":
        assert result.sum() == pytest.approx(1, rel=1e-5)
    elif normalisation == "max":
        assert result.max() == pytest.approx(1, rel=1e-5)
    else:
        # Curves end in voxels and turn within them, which Cauchy's formula doesn't know.
        assert result.sum() == pytest.approx(truth.sum(), rel=0.06)


def test_the_ratio_is_that_of_surfaces():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned = np.eye(4)
    turned[:3, :3] = turn @ np.diag([2.0, 2, 4])
    assert visits_ratio(np.eye(4), turned) == pytest.approx((4 + 8 + 8) / 3)
    assert visits_ratio(np.eye(4), np.diag([3.0, 1, 1, 1]), 2) == pytest.approx(2)


def test_a_mask_stays_a_mask():
    mask = np.zeros((1, 24, 24, 24))
    mask[:, 6:18, 6:18, 6:18] = 1
    result = resample_density(mask, grid(2).affine, grid(4), "none")
    assert result.max() == 1 and result.sum() == 6**3
