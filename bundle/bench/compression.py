"""Cost of gzip for a displacement field: ISA-L compared with zlib, in one process.

    python -m bundle.bench.compression --shape 145 174 145

Prints CPU-seconds to write and to read and the size of each, for a smooth random field.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from scripts.runtime.gzip_files import GzipPacker


def smooth_field(shape: tuple[int, ...]) -> bytes:
    """Bytes of a float32 field ``(*shape, 3)`` in millimetres, as smooth as a registration's."""
    rng = np.random.default_rng(0)
    parts = [gaussian_filter(rng.standard_normal(shape), 8) * 30 for _ in range(3)]
    return np.stack(parts, axis=-1).astype(np.float32).tobytes()


def cpu_seconds(work: Callable[[], bytes]) -> tuple[float, bytes]:
    """CPU-seconds of the fastest of three runs, and its result."""
    best, result = float("inf"), b""
    for _ in range(3):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def packed_as_written(content: bytes) -> bytes:
    """A content as the bundle writes it: by ISA-L, the same bytes in every process."""
    parts: list[bytes] = []
    packer = GzipPacker(parts.append)
    packer.append(content)
    packer.end()
    return b"".join(parts)


def main() -> None:
    """Print a line for each library."""
    from isal import igzip

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(145, 174, 145))
    content = smooth_field(tuple(parser.parse_args().shape))
    print(f"{'':12}{'write':>8}{'read':>8}  megabytes of {len(content) / 1e6:.1f}")
    libraries: dict[str, tuple[Callable[[bytes], bytes], Any]] = {
        "zlib": (partial(gzip.compress, compresslevel=1), gzip),
        "ISA-L": (partial(igzip.compress, compresslevel=1), igzip),
        "as written": (packed_as_written, igzip),
    }
    for name, (compress, library) in libraries.items():
        written, packed = cpu_seconds(partial(compress, content))
        read, unpacked = cpu_seconds(partial(library.decompress, packed))
        if unpacked != content:
            raise SystemExit(f"{name} does not return what it was given")
        print(f"{name:12}{written:8.3f}{read:8.3f}  {len(packed) / 1e6:.1f}")


if __name__ == "__main__":
    main()
