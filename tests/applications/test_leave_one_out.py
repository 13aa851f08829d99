"""Leave-one-out through the template: the others' average in each subject's space."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.applications import leave_one_out
from scripts.applications.leave_one_out import OthersAverage
from scripts.cohort import Cohort, DensityMap, Subject, load_density
from scripts.errors import CohortError
from scripts.publishing.published_atlas import sha256_of
from scripts.spatial.fields import field_names, write_field
from scripts.spatial.grid import CropBox, Grid

SHAPE = (12, 11, 10)


def body(shift: int, height: float) -> np.ndarray:
    """A block, moved by whole voxels along the first axis."""
    volume = np.zeros(SHAPE)
    volume[4 + shift : 7 + shift, 3:7, 2:6] = height * (1 + np.arange(4))
    return volume


class Case:
    """Subjects that are one template moved by whole voxels, with their true fields."""

    def __init__(self, folder: Path, grid: Grid, shifts: list[int], templates: list[int]) -> None:
        self.folder = folder
        self.grid = grid
        self.atlas = folder / "learned_atlas"
        (self.atlas / "fields").mkdir(parents=True)
        mean = self.atlas / "atlas_mean.nii.gz"
        nib.save(nib.Nifti1Image(body(0, 1.0), grid.affine), mean)
        subjects, self.folders = [], []
        for i, (shift, template) in enumerate(zip(shifts, templates, strict=True)):
            name = f"sub-{i}"
            path = folder / f"{name}.nii.gz"
            # A template's subjects are alike: those of another one are twice as dense.
            nib.save(nib.Nifti1Image(body(shift, float(template)), grid.affine), path)
            one = DensityMap(path, 0, 1.0, load_density(path).sha256)
            subjects.append(Subject(name, (one,)))
            for file, sign in zip(field_names(name), (1, -1), strict=True):
                field = np.zeros((3, *SHAPE))
                field[0] = sign * shift  # template point to subject point, and back
                write_field(self.atlas / "fields" / file, field, grid)
            place = folder / name / "atlas_in_patient_space"
            place.mkdir(parents=True)
            self.folders.append(place)
            way = self.atlas / "fields" / field_names(name)[1]
            about = {
                "atlas": {"folder": str(self.atlas), "template": template,
                          "maps": {mean.name: f"of template {template}"}},
                "transforms": [{"path": str(way), "inverted": False, "sha256": sha256_of(way)}],
            }  # fmt: skip
            (place / "carried.json").write_text(json.dumps(about))
        box = CropBox((0, 0, 0), SHAPE)
        nothing = np.zeros((1, *SHAPE), np.float32)
        self.cohort = Cohort(tuple(subjects), (), grid, box, nothing, "none", "{subject}")

    def rewrite(self, index: int, change) -> None:
        path = self.folders[index] / "carried.json"
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about))

    def averages(self) -> list[np.ndarray]:
        others = OthersAverage(self.cohort, 1, self.folders)
        others.gather()
        return [others.average(i)[0] for i in range(len(self.folders))]


@pytest.fixture
def make(tmp_path, make_grid):
    def case(shifts=(-2, 0, 1, 3), templates=(1, 1, 1, 1)) -> Case:
        return Case(tmp_path, make_grid(SHAPE), list(shifts), list(templates))

    return case


def test_others_lie_where_the_subject_does(make):
    """Moved onto each other by whole voxels, equal subjects average to every one of them."""
    shifts = (-2, 0, 1, 3)
    for shift, average in zip(shifts, make(shifts).averages(), strict=True):
        np.testing.assert_allclose(average, body(shift, 1.0), atol=1e-6)


def test_a_subject_is_not_among_its_others(make):
    """One subject that alone has a voxel doesn't find it in the others' average."""
    case = make()
    odd = case.cohort.subjects[0]
    density = body(-2, 1.0)
    density[9, 9, 9] = 50.0
    path = odd.maps[0].path
    nib.save(nib.Nifti1Image(density, case.grid.affine), path)
    changed = Subject(odd.name, (DensityMap(path, 0, 1.0, load_density(path).sha256),))
    case.cohort.__dict__["subjects"] = (changed, *case.cohort.subjects[1:])
    averages = case.averages()
    assert averages[0][9, 9, 9] == 0
    assert averages[1].max() > 10  # the odd voxel, carried to somebody else


def test_templates_of_a_mixture_are_kept_apart(make):
    averages = make((-1, 1, 0, 2), (1, 1, 2, 2)).averages()
    for shift, template, average in zip((-1, 1, 0, 2), (1, 1, 2, 2), averages, strict=True):
        np.testing.assert_allclose(average, body(shift, float(template)), atol=1e-5)


def test_without_a_way_maps_are_averaged_as_they_lie(make):
    """An averaging atlas."""
    case = make((0, 1, 2), (1, 1, 1))
    for i in range(3):
        case.rewrite(i, lambda about: about.update(transforms=[]))
    expected = (body(1, 1.0) + body(2, 1.0)) / 2
    np.testing.assert_allclose(case.averages()[0], expected, atol=1e-6)


def test_affines_are_inverted(make, tmp_path):
    case = make((0, 1), (1, 1))
    text = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
    text += "Parameters: 1 0 0 0 1 0 0 0 1 {} 0 0\nFixedParameters: 0 0 0\n"
    for i, shift in enumerate((0, 1)):  # LPS millimetres: subject point to template point
        path = tmp_path / f"{i}.txt"
        path.write_text(text.format(2.0 * shift))
        new = [{"path": str(path), "inverted": False, "sha256": sha256_of(path)}]
        case.rewrite(i, lambda about, new=new: about.update(transforms=new))
    first, second = case.averages()
    np.testing.assert_allclose(first, body(0, 1.0), atol=1e-6)
    np.testing.assert_allclose(second, body(1, 1.0), atol=1e-6)


def remove(case: Case, name: str) -> None:
    (case.atlas / "fields" / name).unlink()


BAD = {
    "alone": (lambda case: None, "at least 2 subjects of template 1"),
    "no report": (lambda case: (case.folders[1] / "carried.json").unlink(), "carried.json"),
    "damaged": (lambda case: (case.folders[1] / "carried.json").write_text("{"), "record how"),
    "other atlas": (
        lambda case: case.rewrite(1, lambda a: a["atlas"].update(maps={"atlas_mean.nii.gz": "x"})),
        "contains another atlas",
    ),
    "changed field": (
        lambda case: write_field(
            case.atlas / "fields" / field_names("sub-1")[1], np.ones((3, *SHAPE)), case.grid
        ),
        "has changed; run python -m bundle carry again",
    ),
    "no way back": (lambda case: remove(case, field_names("sub-1")[0]), "both directions"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_averaged_is_reported_before_anything_is_read(make, name):
    spoil, message = BAD[name]
    case = make((0, 1), (1, 2)) if name == "alone" else make((0, 1), (1, 1))
    spoil(case)
    with pytest.raises(CohortError, match=message):
        OthersAverage(case.cohort, 1, case.folders)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", "[" * 99_999, '{"atlas": 1e400}', '{"atlas": "$1", "transforms": []}',
     '{"atlas": {"folder": "a\\u0000b", "maps": {}, "template": 1}, "transforms": []}',
     '{"atlas": {"folder": "x", "maps": {}, "template": "@x"}, "transforms": []}',
     '{"atlas": {"folder": "x", "maps": 3, "template": 1}, "transforms": []}',
     '{"atlas": {"folder": "x", "maps": {}, "template": 1}, "transforms": [{"path": "%x"}]}',
     '{"atlas": {"folder": "x", "maps": {}, "template": 1}, "transforms": [{"path": "/dev/zero", '
     '"inverted": false, "sha256": "x"}]}',
     '{"atlas": {"folder": "x", "maps": {}, "template": 1}, "transforms": [{"path": "/proc/kmsg", '
     '"inverted": false, "sha256": "x"}]}'],
)  # fmt: skip
def test_a_way_that_makes_no_sense_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "carried.json").write_text(text)
    with pytest.raises(CohortError) as caught:
        leave_one_out._read("sub-1", tmp_path)
    assert str(caught.value).isprintable()


def test_a_way_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "carried.json").symlink_to("../other.json")
    with pytest.raises(CohortError, match="a link that leads out"):
        leave_one_out._read("sub-1", tmp_path / "a")
