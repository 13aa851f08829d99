"""Each format reads back what was written, agrees with nibabel, and refuses what is damaged."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import CohortError, ConfigurationError
from scripts.tractograms import (
    SUFFIXES,
    Streamlines,
    is_tractogram,
    open_tractogram,
    write_tractogram,
)

SHAPE = (20, 24, 18)
# Flipped, sheared and shifted, so that no convention passes by luck.
AFFINE = np.array([[-2, 0.2, 0, 19], [0.1, 2.2, 0, -21], [0, 0.1, 2.5, -13], [0, 0, 0, 1.0]])


def some_streamlines(count: int = 40, seed: int = 0) -> Streamlines:
    rng = np.random.default_rng(seed)
    lines = [rng.normal(0, 12, (rng.integers(1, 30), 3)).astype(np.float32) for _ in range(count)]
    data = {"weight": rng.random((count, 1)), "pair": rng.random((count, 2))}
    return Streamlines.of(lines, data)


@pytest.fixture(params=SUFFIXES)
def written(request, tmp_path) -> tuple[Path, Streamlines]:
    streamlines = some_streamlines()
    path = tmp_path / f"some{request.param}"
    assert write_tractogram(path, streamlines, SHAPE, AFFINE) == 40
    return path, streamlines


def test_what_is_written_reads_back(written):
    path, streamlines = written
    tractogram = open_tractogram(path)
    result = tractogram.read()
    assert tractogram.count in (40, None)
    np.testing.assert_array_equal(result.offsets, streamlines.offsets)
    np.testing.assert_allclose(result.points, streamlines.points, atol=2e-5)
    if path.suffix == ".tck":
        beside = np.loadtxt(path.with_name("some_weight.txt"))
        np.testing.assert_allclose(beside, streamlines.data["weight"][:, 0], rtol=1e-6)
    else:
        for name, values in streamlines.data.items():
            np.testing.assert_allclose(result.data[name], values, rtol=1e-6)


def test_pieces_of_any_size_make_the_same_whole(written):
    path, streamlines = written
    for size in (1, 7, 100):
        parts = list(open_tractogram(path).chunks(size))
        assert len(parts) > 1
        whole = Streamlines.join(parts)
        np.testing.assert_array_equal(whole.offsets, streamlines.offsets)
        np.testing.assert_allclose(whole.points, streamlines.points, atol=2e-5)


@pytest.mark.parametrize("suffix", [".trk", ".tck"])
def test_nibabel_reads_ours_and_we_read_nibabels(suffix, tmp_path):
    streamlines = some_streamlines()
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    write_tractogram(ours, streamlines, SHAPE, AFFINE)
    loaded = nib.streamlines.load(ours)
    np.testing.assert_allclose(loaded.streamlines.get_data(), streamlines.points, atol=2e-5)
    if suffix == ".trk":
        values = loaded.tractogram.data_per_streamline
        np.testing.assert_allclose(values["pair"], streamlines.data["pair"], rtol=1e-6)
    header = dict(loaded.header)
    if suffix == ".trk":
        header["voxel_order"] = b"LPS"  # not the order of the affine's axes: points are flipped
    nib.streamlines.save(loaded.tractogram, theirs, header=header)
    np.testing.assert_allclose(open_tractogram(theirs).read().points, streamlines.points, atol=1e-4)


def test_big_endian_and_scalars_of_a_trk(tmp_path):
    path = tmp_path / "scalars.trk"
    lines = [np.arange(6.0).reshape(2, 3), np.arange(9.0).reshape(3, 3)]
    made = nib.streamlines.Tractogram(
        lines, affine_to_rasmm=np.eye(4), data_per_point={"fa": [np.ones((2, 1)), np.ones((3, 1))]}
    )
    header = {"voxel_to_rasmm": np.eye(4), "dimensions": (9, 9, 9), "voxel_sizes": (1, 1, 1)}
    nib.streamlines.save(made, path, header={**header, "voxel_order": b"RAS"})
    result = open_tractogram(path).read()
    np.testing.assert_allclose(result.points, np.concatenate(lines), atol=1e-6)
    raw = path.read_bytes()
    swapped = nib.streamlines.trk.header_2_dtype
    head = np.frombuffer(raw[:1000], swapped).byteswap().tobytes()
    body = np.frombuffer(raw[1000:], "<i4").byteswap().tobytes()
    other = tmp_path / "big.trk"
    other.write_bytes(head + body)
    np.testing.assert_allclose(open_tractogram(other).read().points, result.points)


@pytest.mark.parametrize("kind", ["Float32BE", "Float64LE"])
def test_other_number_types_of_a_tck(kind, tmp_path):
    dtype = {"Float32BE": ">f4", "Float64LE": "<f8"}[kind]
    body = np.array([[1, 2, 3], [4, 5, 6], [np.nan] * 3, [7, 8, 9], [np.inf] * 3], dtype)
    text = f"mrtrix tracks\ndatatype: {kind}\nfile: . 100\nEND\n".encode().ljust(100, b" ")
    path = tmp_path / "other.tck"
    path.write_bytes(text + body.tobytes())
    result = open_tractogram(path).read()
    assert result.lengths.tolist() == [2, 1]  # the last one lacks its NaN, and counts
    assert result.points[-1].tolist() == [7, 8, 9]


def test_trx_groups_compression_and_folders(tmp_path):
    streamlines = some_streamlines()
    path = tmp_path / "some.trx"
    write_tractogram(path, streamlines, SHAPE, AFFINE, groups={"left": np.array([1, 3, 5])})
    source = open_tractogram(path).source
    assert source.groups()["left"].tolist() == [1, 3, 5]
    np.testing.assert_allclose(source.affine, AFFINE)
    packed, folder = tmp_path / "packed.trx", tmp_path / "folder.trx"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
            for name in archive.namelist():
                target.writestr(name, archive.read(name))
    # Older writers leave the last offset out, or have 16-bit positions.
    starts = streamlines.offsets[:-1].astype("<u4")
    (folder / "offsets.uint64").unlink()
    (folder / "offsets.uint32").write_bytes(starts.tobytes())
    (folder / "positions.3.float32").unlink()
    (folder / "positions.3.float16").write_bytes(streamlines.points.astype("<f2").tobytes())
    np.testing.assert_array_equal(open_tractogram(packed).read().points, streamlines.points)
    result = open_tractogram(folder).read()
    np.testing.assert_array_equal(result.offsets, streamlines.offsets)
    np.testing.assert_allclose(result.points, streamlines.points, rtol=1e-3, atol=1e-3)


TEXT = """# vtk DataFile Version {version}
{title}
ASCII
DATASET POLYDATA
POINTS 4 float
0 0 0 1 2 3
4 5 6 7 8 9
VERTICES 1 2
1 0
LINES {lines}
CELL_DATA 3
SCALARS weight float 1
LOOKUP_TABLE default
9 0.5 2.5
"""


@pytest.mark.parametrize(
    "lines",
    ["2 6\n2 0 1\n2 3 2", "3 4\nOFFSETS vtktypeint64\n0 2 4\nCONNECTIVITY vtktypeint64\n0 1 3 2"],
)
@pytest.mark.parametrize("title", ["Data values for Tracks", "vtk output SPACE=LPS"])
def test_vtk_text_of_both_generations_and_spaces(lines, title, tmp_path):
    path = tmp_path / "text.vtk"
    path.write_text(
        TEXT.format(version="5.1" if "OFF" in lines else "3.0", title=title, lines=lines)
    )
    result = open_tractogram(path).read()
    sign = np.array([-1, -1, 1]) if "LPS" in title else 1
    expected = np.array([[0, 0, 0], [1, 2, 3], [7, 8, 9], [4, 5, 6.0]]) * sign
    np.testing.assert_array_equal(result.points, expected)
    assert result.lengths.tolist() == [2, 2]
    assert result.data["weight"].ravel().tolist() == [0.5, 2.5]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_tractogram_is_valid(suffix, tmp_path):
    path = tmp_path / f"empty{suffix}"
    write_tractogram(path, Streamlines.of([]), SHAPE, AFFINE)
    assert len(open_tractogram(path).read()) == 0


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_what_is_cut_off_is_refused(written, share):
    path, _ = written
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CohortError, match=path.name) as caught:
        open_tractogram(path).read()
    assert "\n" not in str(caught.value)


def test_points_that_are_no_numbers_name_their_streamline(tmp_path):
    for suffix in SUFFIXES:
        streamlines = some_streamlines()
        streamlines.points[streamlines.offsets[17], 1] = np.nan  # one coordinate: no TCK separator
        path = tmp_path / f"nan{suffix}"
        write_tractogram(path, streamlines, SHAPE, AFFINE)
        with pytest.raises(CohortError, match="not finite, first in streamline 17"):
            for _ in open_tractogram(path).chunks(100):
                pass


def test_a_nan_point_that_cuts_a_streamline_of_a_tck_in_two_is_warned_of(tmp_path, caplog):
    path = tmp_path / "cut.tck"
    streamlines = some_streamlines()
    at = int(streamlines.lengths.argmax())
    streamlines.points[streamlines.offsets[at] + 1] = np.nan  # the same bytes as an end
    write_tractogram(path, streamlines, SHAPE, AFFINE)
    assert len(open_tractogram(path).read()) == 41
    (record,) = caplog.records
    assert f"{path}: contains 41 streamlines, its header says 40" in record.getMessage()
    assert "a point that is NaN ends a streamline of a TCK" in record.getMessage()


def _without_place(path: Path) -> None:
    write_tractogram(path, some_streamlines(), SHAPE, AFFINE)
    raw = bytearray(path.read_bytes())
    at = nib.streamlines.trk.header_2_dtype.fields["voxel_to_rasmm"][1]
    raw[at : at + 64] = bytes(64)
    path.write_bytes(raw)


def _more_promised(path: Path) -> None:
    write_tractogram(path, some_streamlines(), SHAPE, AFFINE)
    raw = bytearray(path.read_bytes())
    at = nib.streamlines.trk.header_2_dtype.fields["nb_streamlines"][1]
    raw[at : at + 4] = np.int32(41).tobytes()
    path.write_bytes(raw)


def _wrong_offsets(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        header = {"DIMENSIONS": [1, 1, 1], "VOXEL_TO_RASMM": np.eye(4).tolist()}
        archive.writestr(
            "header.json", json.dumps({**header, "NB_VERTICES": 4, "NB_STREAMLINES": 2})
        )
        archive.writestr("positions.3.float32", np.zeros(12, "<f4").tobytes())
        archive.writestr("offsets.uint64", np.array([0, 3, 2], "<u8").tobytes())


DAMAGED = {
    "text.trk": (lambda path: path.write_text("hello"), "is not a TRK file"),
    "place.trk": (_without_place, "has no vox_to_ras"),
    "more.trk": (_more_promised, "40 streamlines, its header says 41"),
    "text.tck": (lambda path: path.write_text("hello"), "is not a TCK file"),
    "end.tck": (lambda path: path.write_text("mrtrix tracks\ncount: 1\n"), "no END"),
    "type.tck": (
        lambda path: path.write_text("mrtrix tracks\ndatatype: Int8\nfile: . 9\nEND\n"),
        "datatype is 'Int8'",
    ),
    "text.trx": (lambda path: path.write_text("hello"), "not a zip file"),
    "offsets.trx": (_wrong_offsets, "offsets decrease"),
    "xml.vtk": (lambda path: path.write_text("<VTKFile/>"), "not a legacy VTK file"),
    "number.vtk": (
        lambda path: path.write_text(TEXT.format(version=3, title="", lines="1 3\n2 0 9")),
        "names a missing point",
    ),
    "list.csv": (lambda path: path.write_text(""), "not a tractogram"),
    "missing.trk": (lambda path: None, "does not exist"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_in_one_line(name, tmp_path):
    damage, reason = DAMAGED[name]
    path = tmp_path / name
    damage(path)
    with pytest.raises(CohortError, match=reason) as caught:
        open_tractogram(path).read()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_tractograms_are_written(tmp_path):
    with pytest.raises(ConfigurationError, match="must end with"):
        write_tractogram(tmp_path / "some.nii", some_streamlines())
    assert not list(tmp_path.iterdir())
    assert is_tractogram("a/b.TRK")
    assert not is_tractogram("a/b.nii.gz")


def test_a_name_that_a_trk_has_no_room_for_leaves_no_file(tmp_path):
    long = some_streamlines().with_data(**{"x" * 30: np.zeros(40)})
    with pytest.raises(ConfigurationError, match="can't store"):
        write_tractogram(tmp_path / "long.trk", long)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_of_values_never_lead_out_of_the_folder(suffix, tmp_path):
    names = ["../../x", "/etc/x", "a b", "a/b", "", "..", "n\nx", "\u8133"]
    values = {name: np.full(40, float(i)) for i, name in enumerate(names)}
    path = tmp_path / "a" / "b" / f"some{suffix}"
    write_tractogram(path, some_streamlines().with_data(**values), SHAPE, AFFINE)
    files = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert all(one.parent == path.parent for one in files)
    if suffix == ".trx":
        with zipfile.ZipFile(path) as archive:
            parts = archive.namelist()
        assert all(".." not in part and part.count("/") <= 1 for part in parts)
    if suffix == ".tck":
        assert len(files) >= 1 + len(names)
    else:
        result = open_tractogram(path).read()
        stored = sorted(float(v[0, 0]) for v in result.data.values() if (v == v[0]).all())
        assert [float(i) in stored for i in range(len(names))] == [True] * len(names)


BIG = np.array([614454277, 997, 0])


@pytest.mark.parametrize("suffix", [".trx", ".vtk"])
def test_whole_numbers_stay_what_they_are(suffix, tmp_path):
    lines = Streamlines.of([np.ones((2, 3), np.float32)] * 3).with_data(label=BIG)
    write_tractogram(tmp_path / f"a{suffix}", lines, SHAPE, AFFINE)
    result = open_tractogram(tmp_path / f"a{suffix}").read().data["label"]
    assert result[:, 0].tolist() == BIG.tolist() and result.dtype.kind == "i"


def test_whole_numbers_that_a_format_would_change_are_refused_or_text(tmp_path):
    lines = Streamlines.of([np.ones((2, 3), np.float32)] * 3).with_data(label=BIG)
    with pytest.raises(ConfigurationError, match=r"label 614454277.*write \.trx"):
        write_tractogram(tmp_path / "a.trk", lines, SHAPE, AFFINE)
    assert not list(tmp_path.iterdir())
    write_tractogram(tmp_path / "a.tck", lines)
    assert (tmp_path / "a_label.txt").read_text().split() == ["614454277", "997", "0"]


@pytest.mark.parametrize("suffix", [".trk", ".trx", ".vtk"])
def test_values_per_point_and_names_with_blanks_come_back(suffix, tmp_path):
    points = [np.ones((n, 3), np.float32) for n in (2, 3, 1)]
    fa, pair = np.arange(6, dtype=np.float32)[:, None], np.arange(12, dtype=np.float32)
    given = Streamlines.of(points)
    given = Streamlines(
        given.points, given.offsets, {"w": np.ones((3, 1))}, {"fa": fa, "two": pair.reshape(6, 2)}
    )
    write_tractogram(tmp_path / f"a{suffix}", given, SHAPE, AFFINE)
    source = open_tractogram(tmp_path / f"a{suffix}")
    assert source.read().point_data == {}  # not requested
    result = source.read(per_point=True)
    assert set(source.source.point_names) == {"fa", "two"}
    np.testing.assert_array_equal(result.point_data["fa"], fa)
    np.testing.assert_array_equal(result.point_data["two"], pair.reshape(6, 2))
    taken = result.take(np.array([2, 0]))
    assert taken.point_data["fa"][:, 0].tolist() == [5, 0, 1]
    with pytest.raises(ConfigurationError, match="TCK has no room for values per point"):
        write_tractogram(tmp_path / "b.tck", given)


def test_names_of_vtk_may_hold_blanks(tmp_path):
    head = TEXT.partition("VERTICES")[0].format(version=3, title="")
    text = head + (
        "LINES 1 3\n2 0 1\n"
        "CELL_DATA 1\nSCALARS AF%20left float 1\nLOOKUP_TABLE default\n5\n"
        "FIELD Field Data 2\nmy own name 1 1 float\n7\nmade%20by 1 1 string\nx%20y\n"
    )
    (tmp_path / "a.vtk").write_text(text)
    result = open_tractogram(tmp_path / "a.vtk").read().data
    assert {name: values.item() for name, values in result.items()} == {
        "AF left": 5, "my own name": 7,
    }  # fmt: skip
