"""Whatever a person names is read within the limits that a cohort's maps have."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limited_memory import within

from scripts.cohort import find_subjects, read_density, read_participants, waytotal_file
from scripts.errors import CohortError, ConfigurationError, TractAtlasError
from scripts.publishing.published_atlas import open_atlas
from scripts.registration.images import ReadImage
from scripts.runtime.input_files import (
    FileError,
    check_file,
    check_named,
    read_json,
    read_text,
)
from scripts.runtime.storage import check_replaceable, check_writable
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import read_field
from scripts.spatial.transform_files import TransformFile, read_affine, read_transform
from scripts.spatial.volumes import read_grid, read_reference, read_volume
from scripts.tractograms import Streamlines, open_tractogram, open_weights
from scripts.tractograms.writing import write_tractogram

IMAGES: dict[str, Callable[[Path], object]] = {
    "a cohort's map": read_density,
    "an image to warp, align or refine": read_volume,
    "an image as alignment sees it": ReadImage,
    "a reference of carry or warp": read_grid,
    "a reference of density": read_reference,
    "a displacement field": lambda path: read_transform(TransformFile(path)),
    "a published field": read_field,
}
LITTLE = 30e6  # bytes: what a refusal may take, whatever a file claims


@pytest.mark.parametrize("path", [20240115, ("pilot", 2), 1.5])
def test_a_path_that_monai_made_a_number_of_is_refused(path: Any, tmp_path: Path) -> None:
    """Fire reads ``--dataset_dir 20240115`` as a number, and ``pilot,2`` as two values."""
    for check in (
        lambda: check_named(path, "dataset_dir"),
        lambda: check_writable(path),
        lambda: check_replaceable(tmp_path / "out", inputs=[path]),
    ):
        with pytest.raises(ConfigurationError, match=r"is not text.*quotes inside quotes"):
            check()


def image(shape: tuple[int, ...], claim: tuple[int, ...] | None = None) -> bytes:
    """An image's bytes, and a header that may claim another shape."""
    header = nib.Nifti1Header()
    header.set_data_shape(claim or shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4) + np.ones(shape, "<f4").tobytes()


def shapes(kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape that is right for a kind of image, and one of gigabytes."""
    if "field" in kind:
        return (5, 4, 3, 1, 3), (1024, 1024, 1024, 1, 3)
    return (5, 4, 3), (1024, 1024, 1024)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_claim_of_gigabytes_takes_no_memory(kind: str, tmp_path: Path) -> None:
    small, large = shapes(kind)
    for name, data in (
        ("a.nii", image(small, large)),
        ("b.nii.gz", gzip.compress(image(small, large))),
        ("c.nii", image(small, large)[:352]),  # a header alone
    ):
        (tmp_path / name).write_bytes(data)
        with within(LITTLE), pytest.raises(CohortError, match=r"truncated|memory") as caught:
            IMAGES[kind](tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


@pytest.fixture(scope="module")
def zeros() -> bytes:
    """200 MB, packed."""
    return gzip.compress(bytes(200_000_000), compresslevel=1)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_gzip_bomb_is_limited_by_its_own_header(kind: str, zeros: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(image(shapes(kind)[0])) + zeros)
    with within(LITTLE), pytest.raises(CohortError, match="unpacks to more than"):
        IMAGES[kind](path)


@pytest.mark.parametrize("kind", IMAGES)
def test_pipes_devices_folders_and_damage_are_refused(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "device.nii").symlink_to("/dev/zero")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "folder.nii").mkdir()
    packed = gzip.compress(image(shapes(kind)[0]))
    (tmp_path / "cut.nii.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "text.nii").write_text("hello")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    for path in (*sorted(tmp_path.iterdir()), tmp_path / "nothing.nii"):
        with pytest.raises(CohortError, match=path.name) as caught:
            IMAGES[kind](path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", IMAGES)
def test_any_header_of_an_image_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "any.nii"
    whole = image(shapes(kind)[0])

    @settings(max_examples=25, deadline=None)
    @given(
        st.dictionaries(st.integers(0, 347), st.binary(min_size=1, max_size=8), min_size=1),
    )
    def read(changes: dict[int, bytes]) -> None:
        data = bytearray(whole)
        for place, value in changes.items():
            data[place : min(place + len(value), 348)] = value[: 348 - place]
        path.write_bytes(data)
        with within(LITTLE), contextlib.suppress(CohortError):
            IMAGES[kind](path)

    read()


# ---------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------


def long_file(path: Path) -> Path:
    """A gigabyte that takes no room on disk."""
    with path.open("wb") as file:
        file.truncate(1 << 30)
    return path


def list_subjects(path: Path) -> object:
    cohort = {"layout": "flat", "subjects": path.name}
    return find_subjects(path.parent, LearnedAtlasConfig.load({"cohort": cohort}).subject_search())


def weights(path: Path) -> object:
    tractogram = path.with_name("one.tck")
    write_tractogram(tractogram, Streamlines.of([np.zeros((2, 3))]))
    return open_weights(str(path), open_tractogram(tractogram))


TEXTS: dict[str, Callable[[Path], object]] = {
    "participants.tsv": lambda path: read_participants(path, ["age"]),
    "list.csv": list_subjects,
    "list.json": list_subjects,
    "affine.txt": read_affine,
    "affine.mat": read_affine,
    "weights.txt": weights,
    "weights.npy": weights,
    "atlas.json": lambda path: open_atlas(path.parent),
    "waytotal": lambda path: read_density_with_waytotal(path),
}


def read_density_with_waytotal(path: Path) -> object:
    from scripts.cohort import density_divisor

    density = path.with_name("map.nii.gz")
    assert waytotal_file(density) == path
    return density_divisor("waytotal", density, np.ones((2, 2)))


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_of_a_gigabyte_is_not_read(name: str, tmp_path: Path) -> None:
    path = long_file(tmp_path / name)
    with within(LITTLE), pytest.raises(TractAtlasError, match=name):
        TEXTS[name](path)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff\xfe\x80" * 300, b"[" * 100_000, b"{}", b"\xff", b"9" * 500_000, b"PK"],
)
def test_a_text_of_anything_is_refused_in_a_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        TEXTS[name](tmp_path / name)
    except TractAtlasError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
    else:  # nothing, or too many streamlines for it to matter: told when weights are used
        assert name == "weights.txt"


@pytest.mark.parametrize("name", TEXTS)
def test_a_pipe_in_the_place_of_a_text_does_not_hang(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(TractAtlasError, match=name):
        TEXTS[name](tmp_path / name)


def test_texts_are_read_whole_and_up_to_their_limit(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(b"a\r\nb\rc\n")
    assert read_text(path, 7) == "a\nb\nc\n"
    with pytest.raises(FileError, match="may have at most"):
        read_text(path, 6)
    path.write_text(json.dumps({"a": [1]}))
    assert read_json(path) == {"a": [1]}


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npy"
    np.save(path, np.ones(4))
    claim = b"(4000000000000,), }"
    path.write_bytes(path.read_bytes().replace(b"(4,), }".ljust(len(claim)), claim))
    with within(LITTLE), pytest.raises(CohortError, match="can't be read as weights"):
        weights(path)


def test_any_header_of_an_array_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npy"
    np.save(path, np.ones(4))
    raw = path.read_bytes()

    @settings(max_examples=80, deadline=None)
    @given(st.dictionaries(st.integers(0, 127), st.binary(min_size=1, max_size=3), min_size=1))
    def read(changes: dict[int, bytes]) -> None:
        data = bytearray(raw)
        for place, value in changes.items():
            data[place : place + len(value)] = value
        path.write_bytes(data)
        with contextlib.suppress(CohortError):
            weights(path)

    read()


# ---------------------------------------------------------------------------------------------
# Tractograms
# ---------------------------------------------------------------------------------------------

MANY = 2**31 - 1


def trk(**fields: object) -> bytes:
    file = io.BytesIO()
    from scripts.tractograms.trk import write_trk

    write_trk(file, [Streamlines.of([np.ones((2, 3))])])
    record = np.frombuffer(file.getvalue()[:1000], nib.streamlines.trk.header_2_dtype)[0].copy()
    for name, value in fields.items():
        record[name] = value
    return record.tobytes() + file.getvalue()[1000:]


def trx(header: dict[str, object], lie: int = 0, **parts: bytes) -> bytes:
    """A zip file; its directory may claim ``lie`` bytes for each part but the header."""
    recorded = {
        "DIMENSIONS": [1, 1, 1], "VOXEL_TO_RASMM": np.eye(4).tolist(), "NB_VERTICES": 2,
        "NB_STREAMLINES": 1, **header,
    }  # fmt: skip
    contents = {
        "positions.3.float32": np.ones(6, "<f4").tobytes(),
        "offsets.uint64": np.array([0, 2], "<u8").tobytes(),
        **{name.replace("__", "/").replace("_dot_", "."): raw for name, raw in parts.items()},
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.json", json.dumps(recorded))
        for name, raw in contents.items():
            archive.writestr(name, raw)
        for one in archive.infolist()[1:]:
            one.file_size = one.file_size or 0
            if lie:
                one.file_size = one.compress_size = lie
    return file.getvalue()


def vtk(body: str) -> bytes:
    return f"# vtk DataFile Version 3.0\nx\nBINARY\nDATASET POLYDATA\n{body}".encode()


CLAIMS = {
    "count.trk": trk(nb_streamlines=MANY),
    "points.trk": trk()[:1000] + np.array([MANY, 0, 0], "<i4").tobytes(),
    "negative.trk": trk()[:1000] + np.array([-5, 0, 0], "<i4").tobytes(),
    "scalars.trk": trk(nb_scalars_per_point=32767),
    "count.trx": trx({"NB_STREAMLINES": MANY}),
    "vertices.trx": trx({"NB_VERTICES": MANY}),
    "lie.trx": trx({"NB_VERTICES": MANY, "NB_STREAMLINES": 1}, lie=12 * MANY),
    "infinite.trx": trx({"NB_VERTICES": float("inf")}),
    "none.trx": trx({"NB_VERTICES": None}),
    "columns.trx": trx({}, positions_dot_2_dot_float32=bytes(16)),
    "no_columns.trx": trx({}, dps__x_dot_0_dot_float32=bytes(4)),
    "points.vtk": vtk(f"POINTS {MANY} float\n") + bytes(100),
    "negative.vtk": vtk("POINTS -1 float\n") + bytes(100),
    "lines.vtk": vtk("POINTS 1 float\n") + bytes(12) + f"\nLINES {MANY} {MANY}\n".encode(),
    "line.vtk": vtk("POINTS 1 float\n") + bytes(12) + f"\nLINES {MANY} 1\n".encode() + bytes(4),
    "fields.vtk": vtk("POINTS 1 float\n") + bytes(12) + f"\nFIELD x {MANY}\n".encode(),
    "ascii.vtk": vtk(f"POINTS {MANY} float\n1 2 3\n").replace(b"BINARY", b"ASCII"),
    "offset.tck": b"mrtrix tracks\ndatatype: Float32LE\nfile: . 99999999999999999999\nEND\n",
    "count.tck": b"mrtrix tracks\ndatatype: Float32LE\ncount: 2147483647\nfile: . 72\nEND\n",
}


@pytest.mark.parametrize("name", CLAIMS)
def test_tractograms_that_claim_the_absurd_take_no_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CLAIMS[name])
    if name == "no_columns.trx":  # what has no columns holds nothing, and is passed over
        assert len(open_tractogram(path).read()) == 1
        return
    with within(LITTLE), pytest.raises(CohortError, match=name) as caught:
        open_tractogram(path).read()
    assert "\n" not in str(caught.value)


def test_a_trx_header_that_unpacks_to_much_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.trx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("header.json", b" " * 100_000_000)
    with within(LITTLE), pytest.raises(CohortError, match="more than 1 MB"):
        open_tractogram(path)


def test_parts_of_a_trx_that_lead_elsewhere_write_nothing(tmp_path: Path) -> None:
    """``..``, absolute names and links are names in the archive alone."""
    path = tmp_path / "in" / "escape.trx"
    path.parent.mkdir()
    write_tractogram(path, Streamlines.of([np.ones((2, 3))]))
    link = zipfile.ZipInfo("groups/link.uint32")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../out.uint32", "/out.uint32", "groups/../../out.uint32", "dps/../../x.txt"):
            archive.writestr(name, np.zeros(1, "<u4").tobytes())
        archive.writestr(link, b"/etc")
    before = sorted(tmp_path.rglob("*"))
    opened = open_tractogram(path)
    assert len(opened.read()) == 1
    assert set(opened.source.groups()) == {"out", "link"}
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/out.uint32").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_of_a_trx_are_refused(method: int, tmp_path: Path) -> None:
    path = tmp_path / "other.trx"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("header.json", "{}")
    with pytest.raises(CohortError, match="has unknown compression"):
        open_tractogram(path)


def test_an_encrypted_trx_is_refused(tmp_path: Path) -> None:
    raw = bytearray(trx({}))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.find(mark)
        while at >= 0:
            raw[at + place] |= 1
            at = raw.find(mark, at + 4)
    path = tmp_path / "secret.trx"
    path.write_bytes(raw)
    with pytest.raises(CohortError, match="encrypted"):
        open_tractogram(path)


@pytest.mark.parametrize("suffix", [".trk", ".tck", ".trx", ".vtk"])
def test_any_damage_of_a_tractogram_is_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"any{suffix}"
    values = {"weight": np.arange(3.0)[:, None]} if suffix != ".tck" else {}
    whole = Streamlines.of([np.full((n, 3), float(n)) for n in (2, 5, 1)], values)
    write_tractogram(path, whole, (4, 4, 4), np.eye(4))
    raw = path.read_bytes()

    @settings(max_examples=80, deadline=None)
    @given(
        changes=st.dictionaries(
            st.integers(0, len(raw) - 1), st.binary(min_size=1, max_size=8), min_size=1, max_size=4
        ),
        kept=st.floats(0.2, 1),
    )
    def read(changes: dict[int, bytes], kept: float) -> None:
        data = bytearray(raw)
        for place, value in changes.items():
            data[place : place + len(value)] = value
        path.write_bytes(data[: max(1, int(kept * len(data)))] if kept < 0.9 else data)
        with within(LITTLE), contextlib.suppress(CohortError):
            opened = open_tractogram(path)
            opened.read()
            opened.source.groups()

    read()


def test_a_pipe_with_a_tractograms_name_does_not_hang(tmp_path: Path) -> None:
    for suffix in (".trk", ".tck", ".trx", ".vtk"):
        path = tmp_path / f"pipe{suffix}"
        os.mkfifo(path)
        with pytest.raises(CohortError, match="is not a file"):
            open_tractogram(path)


def test_a_file_that_the_system_makes_up_is_not_read(tmp_path):
    """/proc/kmsg is a regular file of no size, and a reader of it waits for ever."""
    with pytest.raises(FileError, match="may never end"):
        check_file(Path("/proc/kmsg"))
    with pytest.raises(FileError, match="may never end"):
        read_text(Path("/proc/self/status"))
    (tmp_path / "empty").write_text("")
    assert read_text(tmp_path / "empty") == ""
