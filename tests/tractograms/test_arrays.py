"""Tractograms as arrays: read back, read in parts, and refused when they are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.errors import ConfigurationError
from scripts.tractograms import Streamlines, TractogramError, open_tractogram, write_tractogram

LINES = np.random.default_rng(0).normal(0, 30, (7, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int16])
def test_an_array_is_read_whole_and_in_parts(tmp_path: Path, kind: type) -> None:
    np.save(tmp_path / "lines.npy", LINES.astype(kind))
    tractogram = open_tractogram(tmp_path / "lines.npy")
    assert tractogram.count == 7
    whole = tractogram.read()
    assert len(whole) == 7 and set(whole.lengths) == {5}
    np.testing.assert_array_equal(whole.points.reshape(7, 5, 3), LINES.astype(kind))
    parts = list(tractogram.chunks(size=10))
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    np.testing.assert_array_equal(Streamlines.join(parts).points, whole.points)


def test_what_is_written_reads_back_with_values_in_text_beside_it(tmp_path: Path) -> None:
    streamlines = Streamlines.of(list(LINES)).with_data(label=np.arange(7))
    assert write_tractogram(tmp_path / "out.npy", streamlines) == 7
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), LINES)
    assert (tmp_path / "out_label.txt").read_text().split() == [str(n) for n in range(7)]
    assert write_tractogram(tmp_path / "none.npy", Streamlines.of([])) == 0
    assert len(open_tractogram(tmp_path / "none.npy").read()) == 0


def test_streamlines_of_several_lengths_are_no_array(tmp_path: Path) -> None:
    ragged = Streamlines.of([LINES[0], LINES[1, :3]])
    with pytest.raises(ConfigurationError, match=r"these have 3 to 5; write \.trk"):
        write_tractogram(tmp_path / "out.npy", ragged)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (LINES[0], r"is an array \(5, 3\) of float32; must be \(streamlines, points, 3\)"),
        (LINES[..., :2], r"is an array \(7, 5, 2\)"),
        (LINES.astype(complex), "of complex128"),
        (np.array([LINES[0], LINES[1, :2]], dtype=object), "contains Python objects, which are"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "lines.npy", array, allow_pickle=True)
    with pytest.raises(TractogramError, match=message):
        open_tractogram(tmp_path / "lines.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"rubbish" * 9])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lines.npy").write_bytes(content)
    with pytest.raises(TractogramError, match=r"lines\.npy"):
        open_tractogram(tmp_path / "lines.npy")


def test_a_truncated_array_and_points_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "lines.npy", LINES)
    content = (tmp_path / "lines.npy").read_bytes()
    (tmp_path / "lines.npy").write_bytes(content[:-9])
    with pytest.raises(TractogramError, match="can't be read"):
        open_tractogram(tmp_path / "lines.npy")
    broken = LINES.copy()
    broken[3, 2, 1] = np.nan
    np.save(tmp_path / "lines.npy", broken)
    with pytest.raises(TractogramError, match="not finite, first in streamline 3"):
        open_tractogram(tmp_path / "lines.npy").read()
