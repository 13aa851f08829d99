"""Gzip by ISA-L where it is installed, else by the standard library.

Writing a displacement field of 145x174x145 voxels (44 MB) costs 1.2 CPU-seconds with zlib's level 1
and 0.10 with ISA-L's, for the same size; reading costs 0.21 and 0.12
(``python -m bundle.bench.compression``). Any tool reads the files of either.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

__all__ = ["DAMAGED_GZIP", "GZIP_START", "GzipFile", "GzipPacker", "gzip_parts", "gzip_writer"]

# What damaged content raises; a truncated file raises EOFError, one that isn't gzip OSError.
DAMAGED_GZIP: tuple[type[Exception], ...]
_zlib: Any
GzipFile: Any
"""Reads a gzip file: `gzip.GzipFile`, or ISA-L's class of the same interface."""
try:
    from isal import igzip, isal_zlib
except ImportError:  # no wheel for this machine
    GzipFile, _zlib = gzip.GzipFile, zlib
    DAMAGED_GZIP = (EOFError, OSError, zlib.error)
else:
    GzipFile, _zlib = igzip.IGzipFile, isal_zlib
    # Its stubs call the class an instance.
    DAMAGED_GZIP = (EOFError, OSError, cast(type[Exception], isal_zlib.error), zlib.error)

GZIP_START = b"\x1f\x8b"
"""First bytes of a packed file, whatever its name is."""
_GZIP = 31  # zlib's name for a window of 32 kB with the header of a gzip file
_LEVEL = 1  # the fastest of both that compresses; nibabel's level as well


_FIRST = 16
"""Bytes of a stream that are packed apart from the others, see `GzipPacker`."""


class GzipPacker:
    """Packs a content given in parts as one gzip member.

    Neither time nor name is stored, so the same content in the same parts gives the same bytes, in
    every process. ISA-L alone doesn't ensure that: at the first byte of a stream, the code of its
    fast levels (``isal_deflate_icf_body``) puts a position into its table of earlier strings at a
    place that depends on the address of its state. Of 14,000 times that one map was packed, 10 then
    gave another match and other bytes. The code for the bytes before a flush is right. The first
    bytes are therefore flushed; this costs 8 bytes.

    Args:
        write: takes the bytes of the file, in order.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._packer = _zlib.compressobj(level=_LEVEL, wbits=_GZIP)
        self._first = bytearray()

    def append(self, part: bytes | memoryview) -> None:
        """Pack the next part; some of it may be written later."""
        missing = _FIRST - len(self._first)
        if missing:
            part = memoryview(part).cast("B")
            self._first += part[:missing]
            if len(self._first) < _FIRST:
                return
            self._write(self._packer.compress(self._first))
            self._write(self._packer.flush(zlib.Z_SYNC_FLUSH))
            part = part[missing:]
        self._write(self._packer.compress(part))

    def end(self) -> None:
        """Write what is left."""
        if len(self._first) < _FIRST:
            self._write(self._packer.compress(self._first))
        self._write(self._packer.flush())


@contextmanager
def gzip_writer(path: str | Path) -> Iterator[io.BytesIO]:
    """A stream whose content becomes a compressed file at the end of the block.

    The same content gives the same bytes. The content is held in memory and compressed at once.
    With ISA-L's class for files, the memory of a long registration grew by 40 kB a subject; at once
    it stays flat (``python -m bundle.bench.flat_memory``).

    Args:
        path: the file; overwritten. After an error in the block nothing is written.
    """
    stream = io.BytesIO()
    yield stream
    with Path(path).open("wb") as file:
        packer = GzipPacker(file.write)
        packer.append(stream.getbuffer())
        packer.end()


@contextmanager
def gzip_parts(path: str | Path) -> Iterator[Callable[[bytes | memoryview], None]]:
    """A function that appends to a compressed file, so that memory is that of one part.

    The file is one gzip member: some readers, such as browsers, read only the first member. The
    same content in the same parts gives the same bytes.

    Args:
        path: the file; overwritten.

    Example:
        >>> with gzip_parts(folder / "parts.gz") as append:
        ...     append(b"one, ")
        ...     append(b"two")
        >>> gzip.decompress((folder / "parts.gz").read_bytes())
        b'one, two'
    """
    with Path(path).open("wb") as file:
        packer = GzipPacker(file.write)
        yield packer.append
        packer.end()
