"""Which folders this bundle may replace: those that contain only files that it published.

A published folder lists its files: an atlas in ``atlas.json``, any other folder in a hidden file,
its mark. A folder with other files is never replaced.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.errors import StorageError, some_names
from scripts.runtime.input_files import FileError, read_json

__all__ = [
    "MARK",
    "NAME",
    "NeededFiles",
    "check_contents",
    "check_earlier_report",
    "write_mark",
]

MARK = ".tract_atlas.json"
"""File of a published folder that lists what was published in it."""
NAME = "tract_density_atlas"
"""Entry ``name`` of each description that this bundle writes."""
_ATLAS = "atlas.json"

# Files that file managers and network file systems create in folders.
_OF_THE_SYSTEM = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.directory|\._.*|\.nfs\w+")

_IMAGES = r"\.(nii\.gz|json)"
# Folders published by versions without marks: report, keys of the report, other files.
_UNMARKED: dict[str, tuple[frozenset[str], re.Pattern[str]]] = {
    "atlas.json": (
        frozenset({"name", "kind", "cohort"}),
        re.compile(
            rf"(template-\d+/)?atlas_\w+{_IMAGES}|fields/[^/]+_xfm{_IMAGES}|jacobian\.json"
            r"|quality\.html|dataset_description\.json"
        ),
    ),
    "registration.json": (
        frozenset({"subject", "maps", "weights"}),
        re.compile(
            rf"[^/]+_xfm{_IMAGES}|[^/]+_space-template_density{_IMAGES}|dataset_description\.json"
            rf"|atlas_in_patient_space/(atlas_\w+{_IMAGES}|carried\.json)"
        ),
    ),
    "carried.json": (frozenset({"patient", "atlas"}), re.compile(rf"atlas_\w+{_IMAGES}")),
    "warped.json": (frozenset({"image", "transforms"}), re.compile(r"[^/]+\.nii(\.gz)?")),
    "refined.json": (frozenset({"fixed", "moving"}), re.compile(r"[^/]+\.(nii\.gz|txt|mat)")),
    "estimated.json": (frozenset({"fixed", "moving"}), re.compile(r"[^/]+\.(nii\.gz|txt|mat)")),
    "registered.json": (frozenset({"fixed", "moving"}), re.compile(r"[^/]+\.(nii\.gz|txt|mat)")),
    "alignment.json": (
        frozenset({"kind", "subjects", "grid"}),
        re.compile(r"template\.nii\.gz|[^/]+/(xfm/)?[^/]+\.(nii(\.gz)?|txt|mat)|.*_?waytotal"),
    ),
    "labels.json": (
        frozenset({"classes", "outliers", "solver"}),
        re.compile(
            r"labels\.png|(labelled|outliers|classes/[^/]+)\.(trk|tck|trx|vtk|npy)"
            r"|[^/]+_\w+\.txt|classes/[^/]+\.txt|density/[^/]+\.nii\.gz"
        ),
    ),
    "evaluation.json": (frozenset({"summary", "subjects"}), re.compile(r"evaluation\.csv")),
    "sweep.json": (
        frozenset({"thresholds", "mean_dice"}),
        re.compile(r"cohort\.csv|sweep\.png|[^/]+/metrics\.json"),
    ),
}


def write_mark(folder: Path) -> None:
    """Write the list of a folder's files into it; an atlas has the list in ``atlas.json``."""
    if not (folder / _ATLAS).is_file():
        listed = {"name": NAME, "published": sorted(_entries(folder))}
        (folder / MARK).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def check_contents(folder: Path) -> None:
    """Check that a folder contains only files that this bundle published there.

    Args:
        folder: will be replaced; may be missing or empty.

    Raises:
        StorageError: naming the other files.
    """
    if not folder.is_dir():
        return
    try:
        published = _published(folder)
        foreign = [name for name in _entries(folder) if published is None or not published(name)]
    except OSError as error:
        raise StorageError(f"{folder}: can't be listed: {error}") from error
    if foreign:
        raise StorageError(
            f"{folder}: would be replaced, but contains {some_names(sorted(foreign))}, which this "
            "bundle did not publish; move that elsewhere, or choose another folder"
        )


def check_earlier_report(path: Path, is_ours: Callable[[Mapping[str, Any]], bool]) -> None:
    """Check that a JSON file that will be replaced is an earlier one of the same kind.

    Args:
        path: of the file; may be missing.
        is_ours: decides from the file's content.

    Raises:
        StorageError: the file is of another kind.
    """
    if os.path.lexists(path) and not is_ours(_mapping(path)):
        raise StorageError(
            f"{path}: would be replaced, but was not written by this bundle; move it elsewhere, or "
            "choose another folder"
        )


class NeededFiles:
    """The files that a job reads or needs later, and all folders above them.

    Folders are compared by path, and by device and inode number. So a folder is recognised under
    each of its names, through links and mounts, and in another spelling if the file system ignores
    case.

    Args:
        paths: files and folders; may be missing.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._by_path: dict[Path, Path] = {}
        self._by_number: dict[tuple[int, int], Path] = {}
        folders: set[Path] = set()  # most files share a few folders
        for given in paths:
            path = Path(given).absolute()
            self._add(path, path)
            if path.parent not in folders:
                folders.add(path.parent)
                self._add(path, path.parent.resolve())
            if path.is_symlink():
                self._add(path, path.resolve())

    def _add(self, needed: Path, end: Path) -> None:
        for above in (end, *end.parents):
            if above in self._by_path:
                break
            self._by_path[above] = needed
            with suppress(OSError):
                status = above.stat()
                self._by_number.setdefault((status.st_dev, status.st_ino), needed)

    def check(self, target: Path) -> None:
        """Check that none of these files is in a folder that will be replaced.

        Args:
            target: absolute path of that folder.

        Raises:
            StorageError: naming the file that is.
        """
        needed = self._by_path.get(target)
        with suppress(OSError):
            status = target.stat()
            needed = needed or self._by_number.get((status.st_dev, status.st_ino))
        if needed is not None:
            raise StorageError(
                f"{target}: would be replaced, but the job reads or needs {needed}, which lies "
                "there; choose another folder for the results"
            )


def _entries(folder: Path, prefix: str = "") -> Iterator[str]:
    """Names of the files below a folder, including links and special files.

    Raises:
        OSError: it can't be read.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(folder / entry.name, f"{name}/")
            elif entry.name != MARK and not _OF_THE_SYSTEM.fullmatch(entry.name):
                yield name


def _published(folder: Path) -> Callable[[str], object] | None:
    """A test of names that were published in a folder; None if the folder has no list."""
    listed = _listed(folder)
    if listed is not None:
        for mark in folder.glob(f"*/{MARK}"):  # a part that was published again by itself
            part = _listed(mark.parent) or ()
            listed |= {f"{mark.parent.name}/{name}" for name in part}
        return listed.__contains__
    for above in folder.parents[:2]:  # a part of a published folder
        whole = _listed(above)
        if whole is not None:
            prefix = f"{folder.relative_to(above).as_posix()}/"
            return {name.removeprefix(prefix) for name in whole}.__contains__
    for report, (keys, others) in _UNMARKED.items():
        if keys <= _mapping(folder / report).keys():
            return re.compile(f"{re.escape(report)}|{others.pattern}").fullmatch
    return None


def _listed(folder: Path) -> set[str] | None:
    """The names in a folder's mark, or in the ``atlas.json`` of an atlas."""
    about = _mapping(folder / MARK)
    if about.get("name") == NAME and isinstance(about.get("published"), list):
        return {name for name in about["published"] if isinstance(name, str)}
    about = _mapping(folder / _ATLAS)
    if about.get("name") == NAME and isinstance(about.get("files"), Mapping):
        return {_ATLAS, *about["files"]}
    return None


def _mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if the file is missing or can't be read."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return {}
        content = read_json(path)
    except (OSError, FileError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
