"""Files as they come from anywhere: damaged, absurd, huge by their own account, oddly named."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from limited_memory import within

from scripts.cohort import find_subjects, read_cohort, read_density
from scripts.cohort.density import check_density
from scripts.errors import CohortError
from scripts.settings.atlas import LearnedAtlasConfig

FLAT = {"cohort": {"layout": "flat", "normalisation": "none"}, "min_subjects": 1}
MAP = np.zeros((6, 5, 4), np.float32)
MAP[2:4, 2:4, 1:3] = 0.05


def raw_map(**fields: Any) -> bytes:
    """A small NIfTI-1 file's bytes, header fields replaced."""
    image = nib.Nifti1Image(MAP, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header["magic"] = b"n+1"
    image.header["vox_offset"] = 352
    with np.errstate(all="ignore"):
        for name, value in fields.items():
            image.header[name] = value
    return bytes(image.header.binaryblock) + bytes(4) + MAP.tobytes(order="F")


def refused(path: Path) -> str:
    """The reason why a file can't be read."""
    with pytest.raises(CohortError) as caught:
        read_density(path)
    return str(caught.value)


def written(folder: Path, data: bytes, name: str = "sub-1.nii.gz") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_gzip(tmp_path: Path, share: float) -> None:
    data = gzip.compress(raw_map())
    assert "damaged gzip" in refused(written(tmp_path, data[: int(share * len(data))]))


def test_flipped_bits_of_gzip_are_noticed_or_harmless(tmp_path: Path) -> None:
    data = gzip.compress(raw_map(), mtime=0)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        path = written(tmp_path, bytes(flipped))
        try:
            result, _ = read_density(path)
        except CohortError:
            continue
        np.testing.assert_array_equal(result, MAP)  # a byte of the name or of the time


def test_claim_of_gigabytes_in_a_small_file(tmp_path: Path) -> None:
    header = raw_map(dim=[3, 1024, 1024, 1024, 1, 1, 1, 1])[:1024]
    for name, data in (("a.nii", header), ("a.nii.gz", gzip.compress(header))):
        path = written(tmp_path, data, name)
        with within(30e6):
            assert "truncated" in refused(path)


def test_gzip_bomb_is_limited_by_its_own_header(tmp_path: Path) -> None:
    bomb = gzip.compress(raw_map() + bytes(200_000_000), compresslevel=1)
    path = written(tmp_path, bomb)
    with within(30e6):
        assert "unpacks to more than" in refused(path)


def test_nested_members_count_as_one_file(tmp_path: Path) -> None:
    data = raw_map()
    path = written(tmp_path, gzip.compress(data[:500]) + gzip.compress(data[500:]))
    np.testing.assert_array_equal(read_density(path)[0], MAP)


def test_a_map_that_memory_cannot_hold_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.spatial.image_files.available_memory", lambda: 2879)
    assert "120 voxels need" in refused(written(tmp_path, raw_map(), "a.nii"))
    monkeypatch.setattr("scripts.spatial.image_files.available_memory", lambda: 2880)
    read_density(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [3, -5, 5, 4, 1, 1, 1, 1]}, ""),
        ({"dim": [3, 0, 5, 4, 1, 1, 1, 1]}, ""),
        ({"dim": [9, 6, 5, 4, 1, 1, 1, 1]}, ""),
        ({"dim": [4, 6, 5, 2, 2, 1, 1, 1]}, "must be (X, Y, Z)"),
        ({"vox_offset": 1e9}, "truncated"),
        ({"vox_offset": -1e9}, ""),
        ({"vox_offset": np.nan}, ""),
        ({"sform_code": 1, "srow_x": [np.nan, 0, 0, 0]}, "affine"),
        ({"sform_code": 1, "srow_x": [np.inf, 0, 0, 0]}, "affine"),
        ({"sform_code": 1, "srow_x": [0, 0, 0, 0]}, "affine"),
        ({"sform_code": 1, "srow_x": [1e20, 0, 0, 0]}, "must be between"),
        ({"datatype": 32, "bitpix": 64}, ""),
        ({"datatype": 12345}, ""),
        ({"scl_slope": 1e38, "scl_inter": 3.4e38}, "too large"),
    ],
)
def test_absurd_header_is_refused_with_a_reason(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    path = written(tmp_path, raw_map(**fields), "sub-1.nii")
    with pytest.raises(CohortError) as caught:
        read_cohort(tmp_path, LearnedAtlasConfig.load(FLAT).cohort_request())
    assert "sub-1" in str(caught.value)
    assert reason in str(caught.value)
    assert path.exists()


@settings(max_examples=150)
@given(
    changes=st.dictionaries(
        st.integers(0, 347), st.binary(min_size=1, max_size=8), min_size=1, max_size=6
    ),
    packed=st.booleans(),
)
@example(changes={0: b"\0\0\0\x01"}, packed=False)  # MGH without a voxel
def test_any_header_gives_a_map_or_a_reason(
    changes: dict[int, bytes], packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(raw_map())
    for place, value in changes.items():
        data[place : min(place + len(value), 348)] = value[: 348 - place]
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    path = written(folder, gzip.compress(bytes(data)) if packed else bytes(data))
    with within(20e6):
        try:
            result, grid = read_density(path)
            check_density(path, result)
            assert np.isfinite(result).all()
            assert result.shape == grid.shape
            assert np.isfinite(grid.affine).all()
        except CohortError as error:
            assert str(path) in str(error)


@settings(max_examples=60)
@given(
    dim=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=8, max_size=8),
    offset=st.floats(width=32),
    slope=st.floats(width=32),
    zooms=st.lists(st.floats(width=32), min_size=8, max_size=8),
    datatype=st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 0, -1]),
)
def test_fields_over_their_whole_range(
    dim: list[int],
    offset: float,
    slope: float,
    zooms: list[float],
    datatype: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fields = {"dim": dim, "vox_offset": offset, "scl_slope": slope, "pixdim": zooms}
    data = raw_map(**fields, datatype=datatype)
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    path = written(folder, gzip.compress(data))
    with within(20e6):
        try:
            read_density(path)
        except CohortError as error:
            assert str(path) in str(error)


# ---------------------------------------------------------------------------------------------
# Names and links
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["with space", "it's", 'a"b', "ünïcødé-脳", "$(touch x)", "%s{0}", "-rf", "a" * 200],
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(MAP, np.eye(4)), tmp_path / f"{name}.nii.gz")
    cohort = read_cohort(tmp_path, LearnedAtlasConfig.load(FLAT).cohort_request())
    assert [subject.name for subject in cohort.subjects] == [name]


@pytest.mark.parametrize("name", ["line\nbreak", "bell\x07", "a" * 201, "back\\slash"])
def test_names_that_no_file_can_be_named_after(tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(MAP, np.eye(4)), tmp_path / f"{name}.nii.gz")
    result = find_subjects(tmp_path, LearnedAtlasConfig.load(FLAT).subject_search())
    assert not result.candidates
    assert "has a name" in result.rejected[0].reason


@pytest.mark.parametrize("name", ["..", "a/../../b", "/etc/passwd"])
def test_listed_names_never_leave_a_folder(tmp_path: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(MAP, np.eye(4)), tmp_path / "map.nii.gz")
    (tmp_path / "list.csv").write_text(f"{name},map.nii.gz\n")
    block = {**FLAT, "cohort": {**FLAT["cohort"], "subjects": "list.csv"}}
    result = find_subjects(tmp_path, LearnedAtlasConfig.load(block).subject_search())
    assert not result.candidates
    assert "can't be a file name" in result.rejected[0].reason


def test_links_are_followed_and_only_read(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / "object.nii.gz"
    outside.parent.mkdir()
    nib.save(nib.Nifti1Image(MAP, np.eye(4)), outside)
    before = outside.stat()
    data = tmp_path / "data"
    data.mkdir()
    (data / "sub-1.nii.gz").symlink_to(outside)  # as git-annex lays them
    (data / "sub-2.nii.gz").symlink_to(data / "nowhere")
    (data / "sub-3.nii.gz").symlink_to("sub-3.nii.gz")
    (data / "sub-4.nii.gz").symlink_to("/dev/zero")
    os.mkfifo(data / "sub-5.nii.gz")
    cohort = read_cohort(data, LearnedAtlasConfig.load(FLAT).cohort_request())
    assert [subject.name for subject in cohort.subjects] == ["sub-1"]
    assert "elsewhere" not in str(cohort.subjects[0].maps[0].path)
    after = outside.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


@pytest.mark.parametrize("content", [b"", b"P", b"\x1f\x8b", b"PK\x03\x04" + bytes(400), b"{}"])
def test_wrong_content_under_the_right_name(tmp_path: Path, content: bytes) -> None:
    assert "can't be read" in refused(written(tmp_path, content))


def test_right_content_under_the_other_extension(tmp_path: Path) -> None:
    for name, data in (("a.nii", gzip.compress(raw_map())), ("b.nii.gz", raw_map())):
        np.testing.assert_array_equal(read_density(written(tmp_path, data, name))[0], MAP)
