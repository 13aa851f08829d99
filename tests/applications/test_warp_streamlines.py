"""Streamlines move with the tissue: against the inverse of what warps the image."""

import zipfile

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from scripts.applications.warp_streamlines import (
    StreamlineWarper,
    move_streamlines,
    read_point_transform,
)
from scripts.errors import CohortError, ConfigurationError
from scripts.settings.warp_streamlines import load_warp_streamlines
from scripts.spatial.fields import write_field
from scripts.spatial.grid import Grid
from scripts.spatial.transform_files import TransformFile, read_transform, write_itk_affine
from scripts.spatial.transforms import resample
from scripts.tractograms import (
    DensityCounter,
    Streamlines,
    open_tractogram,
    write_tractogram,
)

SHAPE = (24, 28, 20)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def grid() -> Grid:
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_sform(AFFINE, code=1)
    return Grid(SHAPE, AFFINE, header)


def lines(count: int = 400) -> Streamlines:
    """Straight streamlines along the second axis through a small square, with a value each."""
    rng = np.random.default_rng(1)
    along = np.linspace(12, 42, 31)
    ends = rng.uniform((18, 14), (26, 22), (count, 2))
    points = [np.stack([np.full(31, x), along, np.full(31, z)], 1) for x, z in ends]
    return Streamlines.of([p.astype(np.float32) for p in points]).with_data(
        weight=rng.random(count).astype(np.float32)
    )


@pytest.fixture
def case(tmp_path, grid):
    """A tractogram and a smooth field, from points of A to points of B, on the grid of A."""
    source = tmp_path / "s1.trk"
    write_tractogram(source, lines(), SHAPE, AFFINE)
    rng = np.random.default_rng(3)
    smooth = [gaussian_filter(rng.standard_normal(SHAPE), 4) * 40 for _ in range(3)]
    write_field(tmp_path / "field.nii.gz", np.stack(smooth).astype(np.float32), grid)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), tmp_path / "reference.nii.gz")
    return tmp_path


def density_of(streamlines: Streamlines) -> np.ndarray:
    counter = DensityCounter(SHAPE, AFFINE)
    counter.add(streamlines)
    return counter.density


def warped(case, **changes) -> Streamlines:
    block = {
        "subjects": ["s1"], "tractogram": str(case / "{subject}.trk"),
        "transforms": [str(case / "field.nii.gz")], "reference": str(case / "reference.nii.gz"),
        **changes,
    }  # fmt: skip
    settings = load_warp_streamlines(block)
    folder = StreamlineWarper(settings, case / "no atlas", case, case / "out").run()
    (path,) = (p for p in (folder / "s1").iterdir() if p.suffix != ".json")
    return open_tractogram(path).read()


def test_a_shift_is_a_shift_and_values_stay(case):
    matrix = np.eye(4)
    matrix[:3, 3] = 3, -4, 5
    write_itk_affine(case / "shift.txt", matrix)
    moved = warped(case, transforms=[str(case / "shift.txt")])
    assert np.abs(moved.points - lines().points - (3, -4, 5)).max() < 1e-4
    assert np.array_equal(moved.data["weight"], lines().data["weight"])
    back = warped(case, transforms=[[str(case / "shift.txt"), 1]])
    assert np.abs(back.points - lines().points + (3, -4, 5)).max() < 1e-4


def test_there_and_back_in_every_format(case):
    there = warped(case)
    assert np.abs(there.points - lines().points).max() > 1
    for suffix in ("trk", "tck", "trx", "vtk"):
        again = case / suffix
        again.mkdir()
        write_tractogram(case / f"moved.{suffix}", there, SHAPE, AFFINE)
        settings = load_warp_streamlines({
            "subjects": ["moved"], "tractogram": str(case / f"{{subject}}.{suffix}"),
            "transforms": [[str(case / "field.nii.gz"), 1]],
            "reference": str(case / "reference.nii.gz"),
        })  # fmt: skip
        folder = StreamlineWarper(settings, case, case, again).run()
        home = open_tractogram(folder / "moved" / f"moved.{suffix}").read()
        assert np.abs(home.points - lines().points).max() < 0.01


def test_density_of_warped_streamlines_is_the_warped_density(case, grid):
    """Images are read through a transform, points move by its inverse: both must meet."""
    files = (TransformFile(case / "field.nii.gz"),)
    moved = move_streamlines(
        lines(4000), [read_point_transform(TransformFile(files[0].path, True))]
    )
    before, after = density_of(lines(4000)), density_of(moved)
    # The image of the target, read at x + u(x) of the source: the field warps images forward here.
    expected = resample(before[None], grid, [read_transform(files[0])], grid)[0]
    agreement = np.corrcoef(gaussian_filter(after, 1).ravel(), gaussian_filter(expected, 1).ravel())
    wrong = resample(after[None], grid, [read_transform(files[0])], grid)[0]
    apart = np.corrcoef(gaussian_filter(before, 1).ravel(), gaussian_filter(wrong, 1).ravel())
    assert agreement[0, 1] > 0.97 > apart[0, 1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reference": None}, ConfigurationError, "needs an image of the target space"),
        ({"transforms": ["absent.nii.gz"]}, CohortError, "no such transform absent.nii.gz"),
        ({"subjects": []}, ConfigurationError, "subjects"),
        ({"tractogram": ""}, ConfigurationError, "tractogram"),
        ({"transforms": []}, CohortError, "not an atlas"),
    ],
)
def test_bad_input_names_the_file_or_the_setting(case, changes, error, message):
    with pytest.raises(error, match=message):
        warped(case, **changes)
    assert not (case / "out" / "warped_streamlines" / "s1").exists()


def test_a_tractogram_elsewhere_is_refused_and_one_partly_outside_is_named(case, caplog):
    far = lines()
    write_tractogram(case / "s1.trk", Streamlines(far.points + 500, far.offsets), SHAPE, AFFINE)
    with pytest.raises(CohortError, match=r"no point of .* check that they share a space"):
        warped(case)
    write_tractogram(
        case / "s1.trk",
        Streamlines(far.points + np.float32([25, 0, 0]), far.offsets),
        SHAPE,
        AFFINE,
    )
    warped(case)
    assert "points are outside the field" in caplog.text


def test_a_trx_that_is_a_folder_is_moved_too(case):
    write_tractogram(case / "packed.trx", lines(), SHAPE, AFFINE)
    with zipfile.ZipFile(case / "packed.trx") as archive:
        archive.extractall(case / "s1.trx")
    moved = warped(case, tractogram=str(case / "{subject}.trx"), format="trk")
    assert len(moved) == len(lines())


def test_groups_of_a_trx_stay_and_a_format_without_room_says_so(case, caplog):
    groups = {"left": np.array([0, 2, 399]), "right": np.array([1])}
    write_tractogram(case / "s1.trx", lines(), SHAPE, AFFINE, groups)
    warped(case, tractogram=str(case / "{subject}.trx"))
    moved = open_tractogram(case / "out/warped_streamlines/s1/s1.trx").groups()
    assert {name: numbers.tolist() for name, numbers in moved.items()} == {
        "left": [0, 2, 399], "right": [1]
    }  # fmt: skip
    assert "which only a TRX has room for" not in caplog.text
    warped(case, tractogram=str(case / "{subject}.trx"), format="vtk")
    assert "s1.trx has 2 groups, which only a TRX has room for" in caplog.text


def test_a_group_with_a_streamline_that_is_not_there_is_refused(case):
    write_tractogram(case / "s1.trx", lines(), SHAPE, AFFINE, {"left": np.array([400])})
    with pytest.raises(CohortError, match="group left has a streamline that the file doesn't have"):
        warped(case, tractogram=str(case / "{subject}.trx"))
    assert not (case / "out").exists() or not list((case / "out").rglob("s1"))
