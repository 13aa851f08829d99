"""Weights of streamlines: from a file beside the tractogram, or from the tractogram itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from scripts.errors import ConfigurationError
from scripts.runtime.input_files import FileError, check_file, read_text, say
from scripts.tractograms.reading import Tractogram
from scripts.tractograms.streamlines import Streamlines, TractogramError

__all__ = ["Weights", "open_weights"]

_LONGEST = 1 << 28  # bytes of a text: about 25 million weights
# Exceptions that NumPy raises on damaged arrays, whose headers are Python literals.
_MALFORMED = (
    ArithmeticError, EOFError, LookupError, MemoryError, OSError, RecursionError, SyntaxError,
    TokenError, TypeError, ValueError,
)  # fmt: skip
_FILES = (".txt", ".csv", ".npy")


@dataclass(frozen=True, eq=False)
class Weights:
    """One weight per streamline.

    Attributes:
        path: of the file that contains them.
        values: all of them; None if they are the per-streamline value ``name`` of the tractogram.
        name: of the per-streamline value in the tractogram.
    """

    path: Path
    values: np.ndarray | None
    name: str = ""

    def of(self, chunk: Streamlines, start: int) -> np.ndarray:
        """Weights of some streamlines; ``start`` is the index of the first."""
        if self.values is None:
            return _checked(self.path, chunk.data[self.name][:, 0].astype(np.float64), start)
        if start + len(chunk) > len(self.values):
            raise TractogramError(
                self.path, f"contains {len(self.values)} weights, fewer than the streamlines"
            )
        return self.values[start : start + len(chunk)]

    def check_all_used(self, count: int) -> None:
        """Refuse a file with more weights than streamlines."""
        if self.values is not None and len(self.values) != count:
            raise TractogramError(
                self.path, f"contains {len(self.values)} weights for {count} streamlines"
            )


def open_weights(source: str, tractogram: Tractogram) -> Weights:
    """Find the weights of a tractogram.

    Args:
        source: a text file (numbers between blanks or lines, as MRtrix' ``tcksift2`` writes), an
            ``.npy`` file, or the name of a per-streamline value in the tractogram.
        tractogram: an opened tractogram.

    Raises:
        TractogramError: the file isn't one number per streamline, finite and not negative.
        ConfigurationError: it is neither a file nor a per-streamline value of the tractogram.
    """
    if source in tractogram.names:
        return Weights(tractogram.path, None, source)
    path = Path(source)
    if path.suffix.lower() not in _FILES:
        known = ", ".join(tractogram.names) or "none"
        raise ConfigurationError(
            f"weights = {source!r}: must be a file ({', '.join(_FILES)}) or a per-streamline value "
            f"of {tractogram.path} (it has {known})"
        )
    try:
        if path.suffix.lower() == ".npy":
            check_file(path)
            # Memory-mapped, so that a damaged header can't cause a large allocation.
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
                raise ValueError("contains no array of real numbers")
        else:
            lines = read_text(path, _LONGEST).splitlines()
            text = " ".join(line for line in lines if not line.startswith("#"))
            values = np.array(text.replace(",", " ").split(), dtype=np.float64)
        values = np.squeeze(np.asarray(values, dtype=np.float64))
    except FileError as error:
        raise TractogramError(error.path, error.reason) from error
    except _MALFORMED as error:
        raise TractogramError(path, f"can't be read as weights: {say(error)}") from error
    if values.ndim > 1:
        raise TractogramError(path, f"has shape {values.shape}, not one weight per streamline")
    return Weights(path, _checked(path, np.atleast_1d(values), 0))


def _checked(path: Path, values: np.ndarray, start: int) -> np.ndarray:
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        first = int(bad.argmax())
        raise TractogramError(
            path,
            f"has weight {values[first]:g} for streamline {start + first} (counted from 0); must "
            "be a finite number >= 0",
        )
    return values
