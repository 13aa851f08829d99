"""Gzip by ISA-L where it is installed, else by the standard library.

Writing a displacement field of 145x174x145 voxels (44 MB) costs 1.2 CPU-seconds with zlib's level 1
and 0.09 with ISA-L's, for the same size; reading costs 0.22 and 0.12
(``python -m bundle.bench.compression``). Both write files that any tool reads.
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
try:
    from isal import igzip, isal_zlib
except ImportError:  # no wheel for this machine
    GzipFile = gzip.GzipFile
    DAMAGED_GZIP = (EOFError, OSError, zlib.error)
else:
    GzipFile = igzip.IGzipFile
    # Its stubs call the class an instance.
    DAMAGED_GZIP = (EOFError, OSError, cast(type[Exception], isal_zlib.error), zlib.error)

_LEVEL = 1  # the fastest of both that still halves a map; the same as nibabel's


@contextmanager
def gzip_writer(path: str | Path) -> Iterator[io.BufferedIOBase]:
    """A stream that compresses into a new file.

    The same content gives the same bytes: no time and no name is stored.

    Args:
        path: the file; overwritten.
    """
    with (
        Path(path).open("wb") as file,
        GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as stream,
    ):
        yield stream
