"""An atlas of streamlines with one class each, from any of its file formats."""

from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.errors import ConfigurationError
from scripts.runtime.file_names import FOREIGN, ending_of, stem_of
from scripts.runtime.input_files import LONGEST_TEXT, FileError, read_json, read_text
from scripts.tractograms import (
    ARRAY,
    Streamlines,
    Tractogram,
    TractogramError,
    is_tractogram,
    open_tractogram,
)

__all__ = ["SegmentedAtlas", "file_names", "read_atlas", "read_streamlines"]

_LONGEST_NAME = 60  # characters of a file's name, 4 bytes each at most; more is put around it


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SegmentedAtlas:
    """Streamlines and their classes.

    Attributes:
        streamlines: RAS mm.
        classes: ``(n,)`` int64, 0 to C - 1, every one present.
        ids: ``(C,)`` number of each class in the atlas, ascending.
        names: of each class.
        unlabelled: number of streamlines left out because they have no class.
    """

    streamlines: Streamlines
    classes: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    unlabelled: int = 0


def read_streamlines(tractogram: Tractogram, per_point: bool = False) -> Streamlines:
    """All streamlines of a tractogram, points as float32, such as aren't finite included."""
    return tractogram.read(finite=False, per_point=per_point)


def read_atlas(
    path: str | Path, labels: str, names: str | None, vtk_space: str = "auto"
) -> SegmentedAtlas:
    """Read an atlas.

    Args:
        path: a tractogram with a class for each streamline, or a folder with one tractogram per
            class.
        labels: see `LabelTransferConfig`.
        names: JSON file, class number to name; None: the number, or in a folder the file's name.
        vtk_space: see `open_tractogram`.

    Raises:
        TractogramError: it can't be read, or doesn't contain the classes.
        ConfigurationError: ``names`` can't be read.
    """
    place = Path(path)
    if place.is_dir() and not is_tractogram(place):
        streamlines, raw, known_names = _read_folder(place, vtk_space)
    else:
        tractogram = open_tractogram(place, vtk_space)
        streamlines = read_streamlines(tractogram)
        raw, known_names = _labels(tractogram, streamlines, labels)
    known_names |= _read_names(names)
    kept = raw >= 0
    if not kept.any():
        raise TractogramError(place, "has no streamline with a class")
    ids, classes = np.unique(raw[kept], return_inverse=True)
    return SegmentedAtlas(
        streamlines if kept.all() else streamlines.take(kept),
        classes.astype(np.int64),
        ids,
        tuple(known_names.get(int(one), str(int(one))) for one in ids),
        int((~kept).sum()),
    )


def file_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """A file name for each class: valid on any system, and unique."""
    result: list[str] = []
    for name in names:
        composed = unicodedata.normalize("NFC", name)
        base = re.sub(r"[^\w.+-]+", "_", composed).strip("._")[:_LONGEST_NAME] or "class"
        safe, number = base, 2
        taken = {"outliers", *(one.casefold() for one in result)}
        while safe.casefold() in taken:
            safe, number = f"{base}_{number}", number + 1
        result.append(safe)
    return tuple(result)


def _read_folder(folder: Path, vtk_space: str) -> tuple[Streamlines, np.ndarray, dict[int, str]]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    files = [path for path in entries if is_tractogram(path) or path.suffix.lower() == ARRAY]
    for path in entries:
        if ending_of(path) in FOREIGN:
            logger.warning("%s: is left out: %s", path, FOREIGN[ending_of(path)])
    if not files:
        raise TractogramError(folder, "contains no tractogram")
    stems = [file.stem if file.suffix.lower() == ARRAY else stem_of(file) for file in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise TractogramError(folder, f"contains {twice} in more than one format")
    parts = [read_streamlines(open_tractogram(file, vtk_space)) for file in files]
    plain = [Streamlines(part.points, part.offsets) for part in parts]
    classes = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Streamlines.join(plain), classes, dict(enumerate(stems))


def _labels(
    tractogram: Tractogram, streamlines: Streamlines, labels: str
) -> tuple[np.ndarray, dict[int, str]]:
    path, count = tractogram.path, len(streamlines)
    if labels in streamlines.data:
        values = streamlines.data[labels]
        if values.shape[1] != 1:
            raise TractogramError(path, f"has {values.shape[1]} values of {labels} per streamline")
        return _whole(path, values[:, 0], labels), {}
    if Path(labels).is_file():
        read = _array if Path(labels).suffix.lower() == ARRAY else _text
        return _whole(path, read(Path(labels), count, path), labels), {}
    groups = tractogram.groups()
    if groups:
        raw = np.full(count, -1, dtype=np.int64)
        for number, (name, members) in enumerate(groups.items()):
            members = np.asarray(members, dtype=np.int64)
            if len(members) and not 0 <= members.min() <= members.max() < count:
                raise TractogramError(path, f"has a group index beyond its {count} streamlines")
            if (raw[members] >= 0).any():
                other = list(groups)[int(raw[members].max())]
                shared = int((raw[members] >= 0).sum())
                raise TractogramError(
                    path,
                    f"has {shared} streamlines in both group {other} and group {name}; a class for "
                    "each is needed: separate the groups, or name a per-streamline value with "
                    "--label_transfer#labels",
                )
            raw[members] = number
        return raw, dict(enumerate(groups))
    known = ", ".join(streamlines.data) or "none"
    raise TractogramError(
        path,
        f"has no per-streamline value {labels} (it has: {known}); name one, or a text file of "
        "whole numbers (or .npy), with --label_transfer#labels",
    )


def _whole(path: Path, values: np.ndarray, what: str) -> np.ndarray:
    if not (np.isfinite(values) & (values == np.round(values))).all():
        first = int(np.argmin(np.isfinite(values) & (values == np.round(values))))
        raise TractogramError(
            path, f"{what} of streamline {first} is {values[first]:g}; must be a whole number"
        )
    return values.astype(np.int64)


def _text(file: Path, count: int, path: Path) -> np.ndarray:
    try:
        values = np.array(read_text(file, LONGEST_TEXT + 64 * count).split(), dtype=np.float64)
    except FileError as error:
        raise TractogramError(error.path, error.reason) from error
    except ValueError as error:
        raise TractogramError(file, f"can't be read: {' '.join(str(error).split())}") from error
    if len(values) != count:
        raise TractogramError(file, f"has {len(values)} numbers, {path} has {count} streamlines")
    return values


def _array(file: Path, count: int, path: Path) -> np.ndarray:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TractogramError(file, f"can't be read: {' '.join(str(error).split())}") from error
    if values.shape not in ((count,), (count, 1)) or values.dtype.kind not in "fiu":
        raise TractogramError(
            file,
            f"is an array {values.shape} of {values.dtype}; must be a whole number for each of the "
            f"{count} streamlines of {path}",
        )
    return np.asarray(values, dtype=np.float64).reshape(count)


def _read_names(names: str | None) -> dict[int, str]:
    if names is None:
        return {}
    try:
        content = read_json(Path(names))
        return {int(number): str(name) for number, name in dict(content).items()}
    except (FileError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"label_transfer.names = {names!r}: must be a JSON file of names by class number "
            f"({' '.join(str(error).split())})"
        ) from error
