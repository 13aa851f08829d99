"""Zarr folders from outside, with something in them that their reader must not meet."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.spatial.zarr_folders import check_zarr, check_zarr_array

zarr = pytest.importorskip("zarr")
VALUES = np.arange(4 * 20 * 30, dtype=np.uint8).reshape(4, 20, 30)


@pytest.fixture(params=[2, 3])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An array of either version."""
    path = tmp_path / "a.zarr"
    zarr.create_array(str(path), data=VALUES, chunks=(1, 20, 30), zarr_format=request.param)
    return path


def chunk(folder: Path) -> Path:
    return next(
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name[0] in "0123456789"
    )


def description(folder: Path) -> Path:
    return next(folder / name for name in ("zarr.json", ".zarray") if (folder / name).exists())


def test_what_zarr_wrote_passes(folder: Path) -> None:
    check_zarr(folder)
    check_zarr_array(folder, zarr.open_array(str(folder), mode="r"))


def test_a_link_to_a_file_passes(folder: Path, tmp_path: Path) -> None:
    place = chunk(folder)
    place.rename(tmp_path / "annexed")
    place.symlink_to(tmp_path / "annexed")
    check_zarr(folder)


@pytest.mark.parametrize("what", ["a pipe", "a device", "a broken link", "a link to a folder"])
def test_other_entries_are_named(what: str, folder: Path) -> None:
    place = chunk(folder)
    place.unlink()
    if what == "a pipe":
        os.mkfifo(place)
    else:
        target = {"a device": "/dev/zero", "a broken link": "nowhere"}.get(what, "/")
        place.symlink_to(target)
    with pytest.raises(CohortError, match=str(place)):
        check_zarr(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"shape": [1e400]}', " " * (1 << 24) + "{}"])
def test_impossible_descriptions_are_refused(text: str, folder: Path) -> None:
    description(folder).write_text(text)
    with pytest.raises(CohortError, match=description(folder).name):
        check_zarr(folder)


def test_a_codec_that_runs_code_is_refused(folder: Path) -> None:
    about = json.loads(description(folder).read_text())
    if "filters" in about:
        about["filters"] = [{"id": "vlen-utf8"}, {"id": "pickle"}]
    else:
        about["codecs"].insert(0, {"name": "numcodecs.pickle", "configuration": {}})
    description(folder).write_text(json.dumps(about))
    with pytest.raises(CohortError, match="pickle', which runs code"):
        check_zarr(folder)


def test_attributes_may_say_anything(folder: Path) -> None:
    array = zarr.open_array(str(folder), mode="r+")
    array.attrs["name"] = "pickled cucumbers"
    check_zarr(folder)


def test_a_chunk_that_may_unpack_to_anything_is_refused(folder: Path) -> None:
    array = zarr.open_array(str(folder), mode="r")
    chunk(folder).write_bytes(bytes(1_000_000))
    with pytest.raises(CohortError, match="more than a chunk of 600 bytes is packed to"):
        check_zarr_array(folder, array)


def test_chunks_beyond_memory_are_refused(folder: Path) -> None:
    about = json.loads(description(folder).read_text())
    about["shape"] = [4, 10**8, 10**8]
    if "chunks" in about:
        about["chunks"] = [1, 10**8, 10**8]
    else:
        about["chunk_grid"]["configuration"]["chunk_shape"] = [1, 10**8, 10**8]
    description(folder).write_text(json.dumps(about))
    with pytest.raises(CohortError, match="GB of memory"):
        check_zarr_array(folder, zarr.open_array(str(folder), mode="r"))
