"""Compressed files: readable by the standard library, the same bytes each time."""

import gzip
import importlib
import sys
from pathlib import Path

import pytest

from scripts.runtime import gzip_files

CONTENT = b"streamlines " * 5000


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    """The module with ISA-L, and as it is on a machine that has no wheel of it."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    yield importlib.reload(gzip_files)
    monkeypatch.undo()
    importlib.reload(gzip_files)


def test_what_is_written_is_read_by_the_standard_library_and_back(library, tmp_path: Path):
    path = tmp_path / "a.gz"
    with library.gzip_writer(path) as stream:
        stream.write(CONTENT)
    assert gzip.decompress(path.read_bytes()) == CONTENT
    other = tmp_path / "b.gz"
    other.write_bytes(gzip.compress(CONTENT))
    with library.GzipFile(other) as stream:
        assert stream.read() == CONTENT


def test_neither_name_nor_time_is_stored(library, tmp_path: Path):
    for name in ("a.gz", "another name.gz"):
        with library.gzip_writer(tmp_path / name) as stream:
            stream.write(CONTENT)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "another name.gz").read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "none of it"])
def test_damage_raises_what_the_module_names(library, tmp_path: Path, damage: str):
    packed = bytearray(gzip.compress(CONTENT))
    if damage == "truncated":
        del packed[len(packed) // 2 :]
    elif damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
    else:
        packed = bytearray(b"no gzip at all")
    path = tmp_path / "a.gz"
    path.write_bytes(packed)
    with pytest.raises(library.DAMAGED_GZIP), library.GzipFile(path) as stream:
        stream.read()
