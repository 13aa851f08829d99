"""Files of other programs by the documented commands: each row of docs/files.md, "Tool by tool"."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from many_commands import output_of, run_program

from scripts.tractograms import open_tractogram

pytest.importorskip("SimpleITK")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "integration" / "files_of_tools.py"


class Tools(NamedTuple):
    """Where the files are, and the end and output of each command."""

    folder: Path
    seen: dict[str, tuple[int, str]]

    def output(self, name: str) -> Path:
        return output_of(self.folder, name)

    def warped(self, name: str) -> np.ndarray:
        (path,) = (self.output(name) / "warped" / "x").glob("*.nii.gz")
        return nib.load(path).get_fdata()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    folder = tmp_path_factory.mktemp("tools")
    return Tools(folder, run_program(PROGRAM, folder))


READ = {
    "fsl": "3 subjects found, 0 rejected",
    "xtract": "3 subjects found, 0 rejected",
    "mrtrix": "5 streamlines, 45 voxels",
    "mrtrix weights": "weights sum to 5.25",
    "dsi": "5 streamlines",
    "tractseg": "3 subjects found, 0 rejected",
    "tractseg tracts": "3 subjects found, 0 rejected",
    "pyafq": "3 subjects found, 0 rejected",
    "qsirecon": "3 subjects found, 0 rejected",
}


@pytest.mark.parametrize("name", READ)
def test_what_other_programs_write_is_read(tools: Tools, name: str) -> None:
    status, output = tools.seen[name]
    assert (status, "Traceback" in output) == (0, False), output
    assert READ[name] in output
    assert "WARNING" not in output, output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dsi own", "a DSI Studio file; export the tracts as .trk.gz or .tck"),
        ("qsirecon root", "derivatives/qsirecon-DSIAutoTrack"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tools: Tools, name: str, words: str) -> None:
    status, output = tools.seen[name]
    assert (status, "Traceback" in output) == (3, False), output
    assert words in output


@pytest.mark.parametrize(
    ("name", "by_itk"),
    [("itk affine", "affine"), ("itk rigid", "affine"), ("itk chain", "both"),
     ("itk both", "both")],
)  # fmt: skip
def test_transforms_of_itk_do_what_they_do_in_itk(tools: Tools, name: str, by_itk: str) -> None:
    assert tools.seen[name][0] == 0, tools.seen[name][1]
    result = tools.warped(name)
    wanted = nib.load(tools.folder / "itk" / f"by_itk_{by_itk}.nii.gz").get_fdata()
    assert (wanted > 1).mean() > 0.2
    np.testing.assert_allclose(result, wanted, atol=2e-3)


@pytest.mark.parametrize("name", ["mrtrix linear", "freesurfer vox", "freesurfer ras"])
def test_linear_transforms_move_by_what_they_say(tools: Tools, name: str) -> None:
    """A voxel: points of the wanted image are read 2 mm further to the right."""
    assert tools.seen[name][0] == 0, tools.seen[name][1]
    before = nib.load(tools.folder / "grid.nii.gz").get_fdata()
    np.testing.assert_allclose(tools.warped(name)[:-1], before[1:], atol=1e-4)


def test_a_trk_of_dsi_studio_lies_half_a_voxel_off_as_its_format_is_defined(tools: Tools) -> None:
    """Its points count from the centre of the first voxel (LPS), TrackVis's from its corner."""
    paths = (tools.folder / "dsi" / "cst.trk.gz", tools.folder / "mrtrix" / "t.tck")
    result, true = (open_tractogram(path).read().points for path in paths)
    np.testing.assert_allclose(result - true, np.broadcast_to([1, 1, -1], true.shape), atol=1e-4)
