"""Gzip by ISA-L where it is installed, else by the standard library.

Writing a displacement field of 145x174x145 voxels (44 MB) costs 1.2 CPU-seconds with zlib's level 1
and 0.10 with ISA-L's, for the same size; reading costs 0.21 and 0.12
(``python -m bundle.bench.compression``). Any tool reads the files of either.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

__all__ = ["DAMAGED_GZIP", "GzipFile", "gzip_writer"]

# What damaged content raises; a truncated file raises EOFError, one that is no gzip OSError.
DAMAGED_GZIP: tuple[type[Exception], ...]
GzipFile: Any
"""Reads a gzip file: `gzip.GzipFile`, or ISA-L's class of the same interface."""
_library: Any
try:
    from isal import igzip, isal_zlib
except ImportError:  # no wheel for this machine
    GzipFile, _library = gzip.GzipFile, gzip
    DAMAGED_GZIP = (EOFError, OSError, zlib.error)
else:
    GzipFile, _library = igzip.IGzipFile, igzip
    # Its stubs call the class an instance.
    DAMAGED_GZIP = (EOFError, OSError, cast(type[Exception], isal_zlib.error), zlib.error)

_LEVEL = 1  # the fastest of both that compresses; nibabel's level as well


@contextmanager
def gzip_writer(path: str | Path) -> Iterator[io.BytesIO]:
    """A stream whose content becomes a compressed file at the end of the block.

    The same content gives the same bytes: neither time nor name is stored. The content is held in
    memory and compressed at once. With ISA-L's streams, the memory of a long registration grew by
    40 kB a subject; at once it stays flat (``python -m bundle.bench.flat_memory``).

    Args:
        path: the file; overwritten. After an error in the block nothing is written.
    """
    stream = io.BytesIO()
    yield stream
    Path(path).write_bytes(_library.compress(stream.getbuffer(), _LEVEL, mtime=0))
