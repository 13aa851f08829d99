"""Compressed files: readable by the standard library, the same bytes each time."""

import gzip
import importlib
import io
import random
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


@pytest.mark.parametrize(
    "sizes", [[], [0], [3], [16], [17], [3, 0, 12, 1, 40000], [15, 2], [16, 5]]
)
def test_parts_of_any_size_are_one_content(library, tmp_path: Path, sizes: list[int]):
    path, content = tmp_path / "parts.gz", bytes(range(256)) * 200
    with library.gzip_parts(path) as append:
        start = 0
        for size in sizes:
            append(memoryview(content)[start : start + size])
            start += size
    assert gzip.decompress(path.read_bytes()) == content[:start]


def test_bytes_do_not_depend_on_where_the_packer_lies_in_memory(library):
    # Long without a match, then zeros between noise: ISA-L skips, and then looks up places in its
    # table that nothing but the first bytes of the stream has filled. ISA-L alone gave 5
    # different files for 600 packers at different addresses.
    noise = random.Random(1)
    parts = [b"\x5c\x01" + bytes(6) + b"\x09\x08\x07\x06", _noise(noise, 8008)]
    for _ in range(900):
        parts += [bytes(4), _noise(noise, 30)]
    content = b"".join(parts)
    kept, packed = [], set()
    for _ in range(600):
        stream = io.BytesIO()
        packer = library.GzipPacker(stream.write)
        kept.append(packer)
        packer.append(content)
        packer.end()
        packed.add(stream.getvalue())
    assert len(packed) == 1


def _noise(generator: random.Random, size: int) -> bytes:
    return bytes(generator.randrange(1, 256) for _ in range(size))


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
