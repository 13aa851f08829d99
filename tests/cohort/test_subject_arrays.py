"""Arrays of subjects become files that jobs read; files of an earlier, larger cohort go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.cohort.subject_arrays import map_source, subject_masks, write_native_images
from scripts.errors import StorageError
from scripts.spatial.volumes import read_volume

MAPS = [np.full((3, 4, 5), float(number)) for number in (1, 2, 3)]


def test_a_folder_and_paths_stay_as_they_are(tmp_path: Path):
    folder = map_source(tmp_path, None, tmp_path / "out")
    assert (folder.folder, folder.files) == (str(tmp_path), ())
    paths = map_source([Path("a.nii.gz"), "b.nii.gz"], None, tmp_path / "out")
    assert (paths.folder, paths.files) == (None, ("a.nii.gz", "b.nii.gz"))
    for source in (folder, paths):
        assert source.with_layout({"min_subjects": 3}) == {"min_subjects": 3}
    assert not (tmp_path / "out").exists()


def test_arrays_are_written_in_order_and_a_smaller_cohort_replaces_a_larger_one(tmp_path: Path):
    map_source(MAPS, np.eye(4), tmp_path)
    source = map_source(MAPS[::-1][:2], np.eye(4), tmp_path)
    assert [read_volume(file)[0].max() for file in source.files] == [3, 2]
    assert len(list((tmp_path / "cohort").glob("*.nii.gz"))) == 2
    block = source.with_layout({"cohort": {"normalisation": "total"}})
    assert block == {"cohort": {"layout": "flat", "normalisation": "total"}}


def test_a_smaller_cohort_of_native_images_replaces_a_larger_one(tmp_path: Path):
    folder = tmp_path / "native"
    write_native_images(MAPS, [np.eye(4)] * 3, folder)
    write_native_images(MAPS[:2], [np.eye(4)] * 2, folder)
    names = [path.name for path in sorted(folder.glob("subject_*"))]
    assert names == ["subject_001", "subject_002"]


def test_masks_of_a_smaller_cohort_replace_those_of_a_larger_one(tmp_path: Path):
    source = map_source(MAPS, np.eye(4), tmp_path)
    pattern = subject_masks(list(MAPS), np.eye(4), source, tmp_path)
    subject_masks([None, MAPS[0], None], np.eye(4), source, tmp_path)
    masks = [path.name for path in Path(pattern).parent.glob("*.nii.gz")]
    assert masks == ["subject_002.nii.gz"]
    with pytest.raises(ValueError, match="1 masks: must be one per array"):
        subject_masks([None], np.eye(4), source, tmp_path)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], "must be a folder, a list of paths, or a list of arrays"),
        ([MAPS[0], "b.nii.gz"], "must be a folder"),
        ([MAPS[0], np.zeros((2, 2, 2))], r"maps of shapes \[\(2, 2, 2\), \(3, 4, 5\)\]"),
    ],
)
def test_refused(maps: list, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        map_source(maps, np.eye(4), tmp_path)


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"mine\.txt"):
        map_source(MAPS, np.eye(4), tmp_path)
