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

__all__ = ["DAMAGED_GZIP", "GZIP_START", "GzipFile", "gzip_parts", "gzip_writer"]

# What damaged content raises; a truncated file raises EOFError, one that isn't gzip OSError.
DAMAGED_GZIP: tuple[type[Exception], ...]
_zlib: Any
GzipFile: Any
"""Reads a gzip file: `gzip.GzipFile`, or ISA-L's class of the same interface."""
_library: Any
try:
    from isal import igzip, isal_zlib
except ImportError:  # no wheel for this machine
    GzipFile, _library, _zlib = gzip.GzipFile, gzip, zlib
    DAMAGED_GZIP = (EOFError, OSError, zlib.error)
else:
    GzipFile, _library, _zlib = igzip.IGzipFile, igzip, isal_zlib
    # Its stubs call the class an instance.
    DAMAGED_GZIP = (EOFError, OSError, cast(type[Exception], isal_zlib.error), zlib.error)

GZIP_START = b"\x1f\x8b"
"""First bytes of a packed file, whatever its name is."""
_GZIP = 31  # zlib's name for a window of 32 kB with the header of a gzip file
_LEVEL = 1  # the fastest of both that compresses; nibabel's level as well


@contextmanager
def gzip_writer(path: str | Path) -> Iterator[io.BytesIO]:
    """A stream whose content becomes a compressed file at the end of the block.

    Neither time nor name is stored, so the same content gives the same bytes. (Once in thousands of
    files, ISA-L packed the same content into other bytes; compare contents.) The content is held in
    memory and compressed at once. With ISA-L's streams, the memory of a long registration grew by
    40 kB a subject; at once it stays flat (``python -m bundle.bench.flat_memory``).

    Args:
        path: the file; overwritten. After an error in the block nothing is written.
    """
    stream = io.BytesIO()
    yield stream
    Path(path).write_bytes(_library.compress(stream.getbuffer(), _LEVEL, mtime=0))


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
    packer = _zlib.compressobj(level=_LEVEL, wbits=_GZIP)
    with Path(path).open("wb") as file:

        def append(part: bytes | memoryview) -> None:
            file.write(packer.compress(part))

        yield append
        file.write(packer.flush())
