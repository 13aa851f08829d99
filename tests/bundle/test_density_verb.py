"""``python -m bundle density``."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bundle.cli import main
from scripts.tractograms import Streamlines, write_tractogram


@pytest.fixture
def folder(tmp_path, monkeypatch):
    affine = np.diag([-2.0, 2, 2, 1])
    reference = nib.Nifti1Image(np.zeros((6, 5, 4, 2), np.uint8), affine)
    reference.set_sform(affine, code=4)
    nib.save(reference, tmp_path / "reference.nii.gz")
    line = np.array([[0.0, 0, 0], [-10, 0, 0]])
    both = Streamlines.of([line, line[:1]]).with_data(weight=np.array([0.5, 2.0]))
    write_tractogram(tmp_path / "a.trk", both, (6, 5, 4), affine)
    write_tractogram(tmp_path / "b.tck", Streamlines.of([line + 2]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    return main(["density", *words, "--reference", "reference.nii.gz", "--output", "map.nii.gz"])


def test_tractograms_add_up_on_the_references_grid(folder, capsys):
    assert run("a.trk", "b.tck") == 0
    image = nib.load("map.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert int(image.header["sform_code"]) == 4
    expected = np.zeros((6, 5, 4))
    expected[:, 0, 0] = [2, 1, 1, 1, 1, 1]
    expected[:5, 1, 1] = 1  # the sixth voxel of the shifted one begins outside
    np.testing.assert_array_equal(image.get_fdata(), expected)
    output = capsys.readouterr().out
    assert "3 streamlines, 11 voxels visited" in output
    assert "1 points of 1 streamlines are outside the grid" in output


def test_weights_and_ends(folder, capsys):
    assert run("a.trk", "--weights", "weight", "--ends") == 0
    density = nib.load("map.nii.gz").get_fdata()
    assert density[0, 0, 0] == 2.5
    assert density[5, 0, 0] == 0.5
    assert density.sum() == 3
    assert "weights sum to 2.5" in capsys.readouterr().out


MISTAKES = {
    "missing": (("c.trk",), 3, "c.trk: does not exist"),
    "weights": (("a.trk", "b.tck", "--weights", "weight"), 2, "as many as tractograms"),
    "away": (("away.tck",), 3, "none of 1 streamlines touches"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_no_map(name, folder, capsys):
    words, code, message = MISTAKES[name]
    write_tractogram(folder / "away.tck", Streamlines.of([np.full((2, 3), 900.0)]))
    assert run(*words) == code
    output = capsys.readouterr().err
    assert message in output
    assert [line for line in output.splitlines() if line.startswith("error: ")] == [
        output.strip().splitlines()[-1]
    ]
    assert not (folder / "map.nii.gz").exists()


def test_an_output_of_another_kind_is_refused(folder, capsys):
    words = ["a.trk", "--reference", "reference.nii.gz", "--output", "map.mgz"]
    assert main(["density", *words]) == 2
    assert "must end with .nii or .nii.gz" in capsys.readouterr().err
    assert not (folder / "map.mgz").exists()


@pytest.mark.parametrize("what", ["an image", "text", "a link"])
def test_files_of_others_are_not_replaced(what, folder, capsys):
    if what == "an image":
        nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)), "map.nii.gz")
    elif what == "text":
        (folder / "map.nii.gz").write_text("mine")
    else:
        (folder / "map.nii.gz").symlink_to(folder / "reference.nii.gz")
    before = (folder / "map.nii.gz").read_bytes()
    assert run("a.trk") in (2, 7)
    assert "map.nii.gz: " in capsys.readouterr().err
    assert (folder / "map.nii.gz").read_bytes() == before


def test_an_earlier_map_is_replaced(folder):
    assert run("a.trk") == 0
    assert run("b.tck") == 0


def test_an_empty_tractogram_gives_an_empty_map(folder):
    write_tractogram(folder / "none.tck", Streamlines.of([]))
    assert run("none.tck") == 0
    assert not nib.load("map.nii.gz").get_fdata().any()
