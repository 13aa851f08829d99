"""Files as people have them, by the documented commands: right results, or one line that helps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from many_commands import output_of, run_program

from scripts.tractograms import open_tractogram

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "integration" / "files_of_people.py"


class People(NamedTuple):
    """Where the files are, and the status and output of each command."""

    folder: Path
    seen: dict[str, tuple[int, str]]

    def printed(self, name: str) -> str:
        return self.seen[name][1]

    def output(self, name: str, path: str = "") -> Path:
        return output_of(self.folder, name) / path

    def warped(self, name: str, image: str) -> np.ndarray:
        return np.asanyarray(nib.load(self.output(name, f"warped/x/{image}")).dataobj)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    folder = tmp_path_factory.mktemp("people")
    return People(folder, run_program(PROGRAM, folder))


REFUSED = {
    "bids": (3, "give --dataset_dir"),
    "ages": (3, "write 20.5 (a point, no unit)"),
    "flirt": (3, "looks like FLIRT's"),
    "fixed decimals": (3, "looks like FLIRT's"),
    "text mat": (3, "not ITK's .mat; it may be FLIRT's (kind fsl), or one in RAS mm"),
    "metre": (3, "set the header's xyzt_units to mm"),
    "field apart": (3, "no point of the reference comes into the grid of the field"),
    "sheared reference": (3, "resample it onto a rectangular grid"),
    "density noforms": (3, "write the true orientation into the file"),
    "labels apart": (3, "shares no space with the atlas"),
    "labels reference apart": (3, "touches the grid of the reference"),
    "labels without a grid": (2, "must come with --reference IMAGE"),
    "labels overlap": (3, "in both group left and group right"),
    "refine apart": (3, "give refine#start"),
    # Not only apart: the network of this test is too poor for these two.
    "estimate apart": (3, "their grids are apart in the world, and only the network"),
    "elastic apart": (3, "bring them together by register_elastic#start"),
    "carry apart": (3, "no point of the reference comes into the grid of the field"),
    "compare apart": (3, "run python -m bundle carry with the subject's map as"),
    "compare corner": (3, "have no voxel in common"),
    "register apart": (3, "shares no space with the atlas"),
    "align apart": (3, "name centre among align#starts"),
    "streamlines apart": (3, "comes into the grid of the reference"),
}
SAID = {
    "noforms": "subjects sub-1, sub-2, sub-3: its header records no orientation",
    "micro": "subjects sub-1, sub-2, sub-3: its header's unit is the micrometre; it is converted",
    "disputed": "subjects sub-1, sub-2, sub-3: its sform and qform disagree; the sform is used",
    "sheared": "rejected  {folder}/sheared/sub-2.nii.gz: has a sheared grid",
    "offset": "the voxels start at byte 0; they start at 352",
    "las": "stored in another axis order, and reordered exactly: sub-2\n",
    "holes": "--learned_atlas#cohort#nan zero reads NaN as 0",
    "holes zeroed": "3 subjects found, 0 rejected",
    "kinds": "sub-5.mif: is an MRtrix image",
    "exclude": "2 subjects found, 0 rejected",
    "subjects": "2 subjects found, 0 rejected",
    "list": "2 subjects found, 0 rejected",
    "unpacked": "2 subjects found, 0 rejected",
    "density": "5 streamlines, 45 voxels",
    "density packed": "5 streamlines, 45 voxels",
    "density count": "contains 5 streamlines, its header says 2",
    "density order": "voxel_order is empty; LPS is assumed",
    "density vtk": "5 streamlines, 45 voxels",
    "density fib": "5 streamlines, 45 voxels",
    "labels own": "the per-streamline value label of the input is kept as label_before",
    "compare order": "1 subjects compared",
    "register corner": "shares no space with the atlas, so its result will mean nothing",
    "two covariates": "atlas published in",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_refused_with_what_to_do(people: People, name: str) -> None:
    status, output = people.seen[name]
    code, words = REFUSED[name]
    assert (status, "Traceback" in output) == (code, False), output
    assert output.count("error: ") == 1 and words in output
    assert not any(path.is_file() for path in people.output(name).rglob("*"))


@pytest.mark.parametrize("name", SAID)
def test_what_can_be_read_is_read_and_what_is_doubtful_is_reported(
    people: People, name: str
) -> None:
    status, output = people.seen[name]
    assert (status, "Traceback" in output) == (0, False), output
    assert SAID[name].format(folder=people.folder) in output


def test_other_containers_are_read_or_named_and_a_mask_is_pointed_out(people: People) -> None:
    printed = people.printed("kinds")
    assert "5 subjects found, 1 rejected" in printed
    for name in ("sub-2.img", "sub-3.NII.GZ", "sub-4.mgz"):
        assert f"/kinds/{name}\n" in printed
    assert "brain_mask: a mask among densities?" in printed
    assert "aligned" not in printed


def test_both_codes_of_what_is_doubtful_are_reported_once(people: People) -> None:
    for name in ("noforms", "micro", "disputed"):
        assert people.printed(name).count("subjects sub-1, sub-2, sub-3: ") == 1, people.printed(
            name
        )


@pytest.mark.parametrize(
    ("name", "image"), [("labels kept", "labels.nii.gz"), ("wide labels kept", "wide.nii.gz")]
)
def test_labels_keep_every_digit(people: People, name: str, image: str) -> None:
    before = np.asanyarray(nib.load(people.folder / "l" / image).dataobj)
    after = people.warped(name, image)
    assert after.dtype == before.dtype
    # Moved by a voxel: a point of the reference is read 2 mm further to the right.
    np.testing.assert_array_equal(after[:-1], before[1:])


def test_flirts_matrix_and_a_composite_move_the_image_as_they_say(people: People) -> None:
    before = nib.load(people.folder / "c #1,2 [x] @y ~" / "image.nii.gz").get_fdata()
    # FSL's x runs to the left here: what FLIRT moves by 2 mm is moved to the left.
    np.testing.assert_allclose(
        people.warped("flirt named", "image.nii.gz")[:-1], before[1:], atol=1e-4
    )
    # -1 mm in LPS by the field, then -1 mm by the affine: read 2 mm further to the right.
    np.testing.assert_allclose(
        people.warped("composite", "image.nii.gz")[1:-2], before[2:-1], atol=1e-4
    )


def test_packed_and_left_handed_tractograms_give_the_same_map(people: People) -> None:
    first, *others = (
        nib.load(people.folder / "out" / f"{name}.nii.gz").get_fdata()
        for name in ("density", "density_packed", "density_count")
    )
    for other in others:
        np.testing.assert_array_equal(other, first)
    vtk, fib = (
        nib.load(people.folder / "out" / f"density_{name}.nii.gz").get_fdata()
        for name in ("vtk", "fib")
    )
    # Moved by 1 mm within the voxels; as RAS they would come to others.
    np.testing.assert_array_equal(vtk, first)
    np.testing.assert_array_equal(fib, first)


def test_labels_keep_the_subjects_own_values(people: People) -> None:
    result = open_tractogram(people.output("labels own", "labels/labelled.trx"))
    lines = result.read(per_point=True)
    assert set(result.names) == {"label", "mass", "label_before"}
    assert lines.data["label_before"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert lines.data["label"][:, 0].tolist() == [1, 1, 2, 2, 2]
    assert lines.point_data["fa"][:, 0].tolist() == list(range(45))


def test_a_start_of_flirt_is_taken_when_asked_for(people: People) -> None:
    assert people.seen["refine start"][0] == 0, people.printed("refine start")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("path #", "out#3"),
        ("path digits", "20240116"),
        ("path comma", "out,2"),
        ("path at", "@out"),
        ("path dash", "-out"),
        ("path brackets", "[out] y"),
        ("path home", "home/there"),
        ("path file", "file#out"),
    ],
)
def test_a_path_is_what_was_typed(people: People, name: str, place: str) -> None:
    assert people.seen[name][0] == 0, people.printed(name)
    assert (people.folder / place / "atlas" / "atlas_mean.nii.gz").is_file()
