"""Words and arrays of a legacy VTK file, binary or text, one after another."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from scripts.runtime.input_files import check_fits
from scripts.tractograms.streamlines import TractogramError

__all__ = ["BinaryWords", "TextWords"]


class BinaryWords:
    """Words and arrays of a binary file; arrays are memory-mapped, big-endian."""

    def __init__(self, file: Path, path: Path, start: int) -> None:
        self.file = file
        self.path = path
        self.size = file.stat().st_size
        self.at = start

    def raw_line(self) -> str | None:
        """The next line, blank or not; None at the end."""
        with self.file.open("rb") as stream:
            stream.seek(self.at)
            raw = stream.readline(4096)
            self.at = stream.tell()
        return raw.decode("latin-1").strip() if raw else None

    def line(self) -> str | None:
        """The next line that isn't blank; None at the end."""
        with self.file.open("rb") as stream:
            stream.seek(self.at)
            while raw := stream.readline(4096):
                self.at = stream.tell()
                if raw.strip():
                    return raw.decode("latin-1").strip()
        return None

    def array(self, dtype: str, length: int) -> np.ndarray:
        """The next values."""
        kind = np.dtype(f">{dtype}")
        if length < 0:
            raise TractogramError(self.path, "can't be read: a negative number of values")
        if self.at + length * kind.itemsize > self.size:
            raise TractogramError(self.path, "can't be read: truncated")
        if not length:
            return np.zeros(0, kind)
        result = np.memmap(self.file, kind, "r", self.at, (length,))
        self.at += length * kind.itemsize
        return result

    def skip_strings(self, count: int) -> None:
        """Skip strings; the length of each precedes it, in 1, 2, 4 or 8 bytes."""
        with self.file.open("rb") as stream:
            stream.seek(self.at)
            for _ in range(count):
                first = stream.read(1)
                if not first:
                    raise TractogramError(self.path, "can't be read: truncated")
                size = {3: 1, 2: 2, 1: 4, 0: 8}[first[0] >> 6]
                number = int.from_bytes(first + stream.read(size - 1), "big")
                stream.seek(number & ((1 << (8 * size - 2)) - 1), io.SEEK_CUR)
            self.at = stream.tell()
        if self.at > self.size:
            raise TractogramError(self.path, "can't be read: truncated")

    def skip_bits(self, count: int) -> None:
        """Skip packed bits."""
        self.array("u1", (count + 7) // 8)


class TextWords:
    """Words and arrays of a text file."""

    def __init__(self, file: Path, path: Path, start: int) -> None:
        self.path = path
        check_fits(path, 2 * file.stat().st_size)
        self.raw = file.read_bytes()
        self.at = start

    def raw_line(self) -> str | None:
        """The next line, blank or not; None at the end."""
        if self.at >= len(self.raw):
            return None
        end = self.raw.find(b"\n", self.at)
        end = len(self.raw) if end < 0 else end
        text = self.raw[self.at : end].decode("latin-1").strip()
        self.at = end + 1
        return text

    def line(self) -> str | None:
        """The next line that isn't blank; None at the end."""
        while self.at < len(self.raw):
            end = self.raw.find(b"\n", self.at)
            end = len(self.raw) if end < 0 else end
            text = self.raw[self.at : end].decode("latin-1").strip()
            self.at = end + 1
            if text:
                return text
        return None

    def array(self, dtype: str, length: int) -> np.ndarray:
        """The next values, possibly over several lines."""
        kind = np.dtype(dtype)
        if length < 0:
            raise TractogramError(self.path, "can't be read: a negative number of values")
        parts: list[np.ndarray] = []
        missing = length
        while missing > 0:
            line = self.line()
            if line is None:
                raise TractogramError(self.path, "can't be read: truncated")
            words = np.array(line.split(), dtype=kind)
            parts.append(words)
            missing -= len(words)
        if missing < 0:
            raise TractogramError(self.path, "can't be read: more values than declared")
        return np.concatenate(parts) if parts else np.zeros(0, kind)

    def skip_strings(self, count: int) -> None:
        """Skip strings, one per line; an empty string is a blank line."""
        for _ in range(count):
            if self.raw_line() is None:
                raise TractogramError(self.path, "can't be read: truncated")

    def skip_bits(self, count: int) -> None:
        """Skip bits, written as numbers."""
        self.array("i4", count)
