"""Checks whether a published atlas matches its description, by recomputing from its files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.cohort import DensityMap, density_divisor, read_density
from scripts.cohort.density import density_on_grid
from scripts.errors import VerificationError
from scripts.publishing.atlas_checks import UNREADABLE, Check, Verification, read_published
from scripts.publishing.description_rules import require_verifiable
from scripts.publishing.provenance import code_identity, description_hash, versions_here
from scripts.publishing.recomputed_maps import number_checks
from scripts.runtime.input_files import LONGEST_TEXT, FileError, check_file
from scripts.runtime.inside import entries
from scripts.runtime.storage import file_hash
from scripts.runtime.watched_files import FileStates

__all__ = ["verify_atlas"]


def verify_atlas(folder: str | Path) -> Verification:
    """Recompute everything that can be recomputed of a published atlas.

    Hashes of the inputs and of the published files, the divisors, each field's Jacobian, and
    ``std`` and ``std_error`` (of plain averages also ``mean``) from inputs and fields. The learned
    template (``mean``), ``cov`` and ``prob_threshold`` have their hash alone. One subject is in
    memory at a time.

    A hash shows that a file is unchanged, not who published it. If somebody replaces a file
    together with its hash, the recomputed numbers still reveal it.

    Args:
        folder: ``<output_dir>/<output_subdir>``.

    Raises:
        VerificationError: there is no atlas, its description is invalid, or it changed meanwhile.
    """
    root = Path(folder)
    path = root / "atlas.json"
    read = FileStates()
    read.add(path)
    about = read_published(root, "atlas.json", "; give the folder of a published atlas")
    try:
        require_verifiable(path, about)
    except FileError as error:
        raise VerificationError(str(error)) from error
    except ValueError as error:
        raise VerificationError(
            f"{path}: not the description of an atlas that this version can check: {error}"
        ) from error
    result = Verification(root, tuple(_checks(root, about, read)))
    changed = read.changed()
    if changed is not None:
        raise VerificationError(
            f"{changed}: changed while it was checked; verify again when no other program writes "
            "to it"
        )
    return result


def _checks(root: Path, about: dict[str, Any], read: FileStates) -> Iterator[Check]:
    recorded = about.get("description_sha256")
    yield _same("description", "atlas.json", recorded, description_hash(about))
    yield from _maker_checks(about)
    longest = _longest_file(about)
    yield from _file_checks(root, about.get("files") or {}, longest, read)
    for subject in about["cohort"]["subjects"]:
        for one in subject["maps"]:
            read.add(Path(one["path"]))
        yield from _input_checks(subject, about["normalisation"], longest)
    yield from number_checks(root, about)


def _maker_checks(about: dict[str, Any]) -> Iterator[Check]:
    """Compare code and libraries with those of the atlas; differences aren't failures."""
    made, running = about.get("code"), code_identity()
    if made is None:
        yield Check("code", "", "not checked", "was not recorded")
    elif made == running:
        yield Check("code", "", "agrees")
    else:
        detail = (
            f"made by version {made['version']} ({made['sha256'][:12]}...), recomputed by "
            f"{running['version']} ({running['sha256'][:12]}...)"
        )
        yield Check("code", "", "not checked", detail)
    libraries = about.get("versions") or {}
    ours = versions_here(*(name for name in libraries if name != "python"))
    for name, version in libraries.items():
        if version == ours[name]:
            yield Check("library", name, "agrees")
        else:
            detail = f"{version} when it was made, {ours[name]} here"
            yield Check("library", name, "not checked", detail)


def _same(kind: str, name: str, recorded: str | None, hashed: str) -> Check:
    if recorded == hashed:
        return Check(kind, name, "agrees")
    if recorded is None:
        return Check(kind, name, "missing", "its SHA-256 was never recorded")
    return Check(kind, name, "differs", f"SHA-256 {hashed[:12]}..., recorded {recorded[:12]}...")


def _longest_file(about: dict[str, Any]) -> int:
    """Bytes that no file of an atlas exceeds: all values of a field or a map, and text."""
    voxels = math.prod(about["cohort"]["grid"]["shape"])
    return 16 * voxels * max(3, about["settings"]["model"]["channels"]) + LONGEST_TEXT


def _file_checks(
    root: Path, recorded: dict[str, str], longest: int, read: FileStates
) -> Iterator[Check]:
    """Everything that lies in the folder: what was published, and whatever was added."""
    try:
        present = {one.name: one for one in entries(root)}
    except FileError as error:
        raise VerificationError(str(error)) from error
    present.pop("atlas.json", None)  # its hash is stored separately
    for name in sorted(recorded.keys() | present.keys()):
        if name not in present:
            yield Check("file", name, "missing")
        elif present[name].what != "file":
            detail = f"is a {present[name].what}; what is published is files alone"
            yield Check("file", name, "differs" if name in recorded else "unexpected", detail)
        elif name not in recorded:
            yield Check("file", name, "unexpected", "wasn't published with this atlas")
        else:
            read.add(present[name].path)
            yield _hashed("file", name, present[name].path, recorded[name], longest)


def _hashed(kind: str, name: str, path: Path, recorded: str, longest: int) -> Check:
    trouble = _trouble(path, longest)
    if trouble is not None:
        return Check(kind, name, "missing", trouble)
    try:
        return _same(kind, name, recorded, file_hash(path))
    except OSError as error:
        return Check(kind, name, "missing", f"can't be read: {error.strerror}")


def _trouble(path: Path, longest: int) -> str | None:
    """Why a file isn't read: a pipe would be waited for, a device has no end. None: it can be."""
    if not os.path.lexists(path):
        return "no such file"
    try:
        size = check_file(path).st_size
    except FileError as error:
        return error.reason
    if size == 0:  # also what the system makes up as it is read, which may never end
        return "is empty"
    if size > longest:
        return f"has {size / 1e9:.1f} GB, more than any file of such an atlas"
    return None


def _input_checks(subject: dict[str, Any], normalisation: str, longest: int) -> Iterator[Check]:
    for one in subject["maps"]:
        path = Path(one["path"])
        yield _hashed("input", f"{subject['subject']} {path}", path, one["sha256"], longest)
        if _trouble(path, longest) is None:
            yield _divisor_check(subject["subject"], DensityMap.of_record(one), normalisation)


def _divisor_check(subject: str, one: DensityMap, normalisation: str) -> Check:
    path, recorded = one.path, one.divisor
    name = f"{normalisation} of {subject} {path.name}"
    try:
        data = density_on_grid(one, read_density(path)[0])
        computed = density_divisor(normalisation, path, data)
    except UNREADABLE as error:
        return Check("divisor", name, "missing", str(error))
    if math.isclose(computed, recorded, rel_tol=1e-9):
        return Check("divisor", name, "agrees")
    return Check("divisor", name, "differs", f"{computed:.9g}, recorded {recorded:.9g}")
