"""Checks whether a published atlas matches its description, by recomputing from its files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scripts.cohort import DensityMap, density_divisor, read_density
from scripts.cohort.density import density_on_grid
from scripts.errors import CohortError, VerificationError, shown
from scripts.publishing.description_rules import require_verifiable, verifiable_jacobians
from scripts.publishing.provenance import code_identity, description_hash, versions_here
from scripts.publishing.statistics import DensityStatistics
from scripts.publishing.subject_computation import NEGLIGIBLE_SHARE
from scripts.runtime.input_files import LONGEST_TEXT, FileError, check_file, read_json
from scripts.runtime.inside import entries, inside
from scripts.runtime.storage import file_hash
from scripts.runtime.watched_files import FileStates
from scripts.spatial.fields import field_names, read_field
from scripts.spatial.grid import CropBox
from scripts.spatial.image_files import image_values, open_image_file
from scripts.spatial.jacobian import jacobian_determinant, jacobian_summary
from scripts.spatial.warp import warp

__all__ = ["MAP_TOLERANCE", "Check", "Verification", "verify_atlas"]

MAP_TOLERANCE = 2e-5
"""Largest difference of a resampled density from the published one, as a share of its maximum.

Fields are stored as float32 millimetres and sampled at float32 coordinates: together about
1e-5 of a voxel on a grid of 256, and a density changes by at most its maximum over a voxel.
"""
JACOBIAN_TOLERANCE = 1e-4
"""Largest difference of a determinant from the published one."""
_RELATIVE = 1e-5  # precision of float32 maps and of mixture shares with six decimals

_CONTINUOUS = ("mean", "std", "std_error")
"""Maps that change little where a density does. The others step at a threshold: a density that lies
on it by rounding may fall on either side, so their hash alone is compared."""
_WITHOUT_FIELDS = ("averaged", "barycentre")

Outcome = Literal["agrees", "differs", "missing", "unexpected", "not checked"]

_UNREADABLE = (CohortError, OSError, OverflowError, ValueError)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kind: ``description``, ``code``, ``library``, ``input``, ``divisor``, ``file``, ``field``
            or ``map``.
        name: of the file, or of the subject's part.
        outcome: ``not checked`` is no disagreement: the necessary data were never published.
        detail: the recomputed and the expected value.
    """

    kind: str
    name: str
    outcome: Outcome
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the atlas doesn't match its description."""
        return self.outcome not in ("agrees", "not checked")


@dataclass(frozen=True)
class Verification:
    """All checks of one atlas.

    Attributes:
        folder: of the atlas.
        checks: in the order in which they were made.
    """

    folder: Path
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        """The checks that don't agree."""
        return [check for check in self.checks if check.fails]

    def table(self) -> str:
        """A count of agreeing checks per kind, and all others by name."""
        agreeing = Counter(check.kind for check in self.checks if check.outcome == "agrees")
        rows = [("agrees", kind, f"{count} of them") for kind, count in agreeing.items()]
        rows += [
            (check.outcome, check.kind, shown(": ".join(filter(None, (check.name, check.detail)))))
            for check in self.checks
            if check.outcome != "agrees"
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)

    def require(self) -> None:
        """Raise an error unless everything agrees.

        Raises:
            VerificationError: names the checks that don't agree.
        """
        failed = self.failures
        if failed:
            first = "; ".join(f"{check.kind} {check.name} {check.outcome}" for check in failed[:3])
            more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
            raise VerificationError(
                f"{self.folder}: {len(failed)} of {len(self.checks)} checks fail: {first}{more}"
            )


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
    about = _load(root, "atlas.json")
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
    yield from _numbers(root, about)


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


def _load(root: Path, name: str) -> dict[str, Any]:
    path = root / name
    try:
        result = read_json(inside(root, name))
    except FileError as error:
        raise VerificationError(str(error)) from error
    except ValueError as error:
        raise VerificationError(f"{path}: damaged: {error}") from error
    if not isinstance(result, dict):
        raise VerificationError(f"{path}: damaged: not a JSON object")
    return result


def _same(kind: str, name: str, recorded: str | None, hashed: str) -> Check:
    if recorded == hashed:
        return Check(kind, name, "agrees")
    if recorded is None:
        return Check(kind, name, "missing", "its SHA-256 was never recorded")
    return Check(kind, name, "differs", f"SHA-256 {hashed[:12]}..., recorded {recorded[:12]}...")


# ---------------------------------------------------------------------------------------------
# Hashes
# ---------------------------------------------------------------------------------------------


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
    except _UNREADABLE as error:
        return Check("divisor", name, "missing", str(error))
    if math.isclose(computed, recorded, rel_tol=1e-9):
        return Check("divisor", name, "agrees")
    return Check("divisor", name, "differs", f"{computed:.9g}, recorded {recorded:.9g}")


# ---------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------


class _Recomputed:
    """The statistics of one template's subjects, and why they may not be known.

    Args:
        shape: ``(C, *grid)``.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.statistics = DensityStatistics(shape, presence_value=0.0)
        self.largest = 0.0
        self.unknown: list[str] = []

    def add(self, density: np.ndarray, weight: float) -> None:
        """Add one subject in template space."""
        self.statistics.add(density, weight)
        self.largest = max(self.largest, float(density.max()))


def _numbers(root: Path, about: dict[str, Any]) -> Iterator[Check]:
    """Check Jacobians and maps in one pass over the subjects."""
    settings = about["settings"]
    plain = about["kind"] in _WITHOUT_FIELDS
    names = [subject["subject"] for subject in about["cohort"]["subjects"]]
    if not plain and not settings["save_fields"]:
        yield Check("field", "", "not checked", "the atlas was published without fields")
        yield Check("map", "", "not checked", "statistics are recomputed from fields")
        return
    grid = tuple(about["cohort"]["grid"]["shape"])
    crop = CropBox(*(tuple(about["cohort"]["crop"][end]) for end in ("start", "stop")))
    shape = (settings["model"]["channels"], *grid)
    shares = about.get("mixture") or {name: [1.0] for name in names}
    templates = 1 if plain else settings["model"]["n_templates"]
    gathered = [_Recomputed(shape) for _ in range(templates)]
    if plain:
        yield from _plain_maps(root, about, gathered[0], shape, crop)
        return
    try:
        jacobians = verifiable_jacobians(_load(root, "jacobian.json"))
    except (VerificationError, ValueError) as error:
        jacobians = {}
        yield Check("field", "jacobian.json", "missing", str(error))
    for name in sorted(jacobians.keys() - set(names)):
        yield Check("field", f"jacobian.json: {name}", "unexpected", "no subject of the cohort")
    for subject in about["cohort"]["subjects"]:
        name = subject["subject"]
        weights = shares[name]
        home = int(np.argmax(weights))
        fields = {}
        for file in field_names(name):
            try:
                fields[file] = _field(inside(root, f"fields/{file}"), grid)
            except _UNREADABLE as error:
                detail = str(error) if (root / "fields" / file).exists() else "no such file"
                yield Check("field", f"{name} {_way(file)}", "missing", detail)
            else:
                yield _jacobian_check(name, _way(file), fields[file], jacobians.get(name, {}))
        try:
            density = _density(subject, shape, crop)
            moved = _moved(density, fields[field_names(name)[0]])
        except (*_UNREADABLE, KeyError):
            moved = None  # the input or field has already been reported
        for k, weight in enumerate(weights):
            if weight < NEGLIGIBLE_SHARE and k != home:
                continue
            if moved is None:
                gathered[k].unknown.append(f"inputs or fields of {name} can't be read")
            elif k != home:
                gathered[k].unknown.append(f"the field of {name} to it isn't published")
            else:
                gathered[k].add(moved, weight)
    for k, one in enumerate(gathered):
        folder = root if len(gathered) == 1 else root / f"template-{k + 1}"
        yield from _map_checks(root, folder, one, about)


def _plain_maps(
    root: Path, about: dict[str, Any], gathered: _Recomputed, shape: tuple[int, ...], crop: CropBox
) -> Iterator[Check]:
    """Maps of an unregistered cohort, without fields."""
    for subject in about["cohort"]["subjects"]:
        try:
            gathered.add(_density(subject, shape, crop), 1.0)
        except _UNREADABLE:
            gathered.unknown.append(f"inputs of {subject['subject']} can't be read")
    yield from _map_checks(root, root, gathered, about)


def _way(file: str) -> str:
    """``from-subject_to-template`` or the reverse, from a field's file name."""
    stem = file.removesuffix("_mode-image_xfm.nii.gz")
    return stem[stem.rindex("_from-") + 1 :]


def _field(path: Path, grid: tuple[int, ...]) -> np.ndarray:
    field = read_field(path, spatial_dims=len(grid))
    if field.shape != (len(grid), *grid):
        raise CohortError(f"its shape {field.shape[1:]} isn't the grid's {grid}")
    return field


def _density(subject: dict[str, Any], shape: tuple[int, ...], crop: CropBox) -> np.ndarray:
    """Normalised density ``(C, *grid)`` float32 from the files, 0 outside the box."""
    density = np.zeros(shape)
    for one in map(DensityMap.of_record, subject["maps"]):
        data = density_on_grid(one, read_density(one.path)[0])
        if data.shape != shape[1:]:
            raise CohortError(f"{one.path}: is on another grid than the atlas")
        density[one.channel] += data / one.divisor
    return crop.paste(crop.crop(density), shape[1:]).astype(np.float32)


def _moved(density: np.ndarray, field: np.ndarray) -> np.ndarray:
    image, u = (torch.as_tensor(x, dtype=torch.float32)[None] for x in (density, field))
    return warp(image, u)[0].numpy()


def _jacobian_check(
    subject: str, way: str, field: np.ndarray, recorded: dict[str, dict[str, float]]
) -> Check:
    name = f"{subject} {way}"
    if way not in recorded:
        return Check("field", name, "missing", "jacobian.json has no entry for it")
    u = torch.as_tensor(field)
    summary = jacobian_summary(u)
    near_fold = float((jacobian_determinant(u).abs() <= JACOBIAN_TOLERANCE).double().mean())
    for key, value in summary.items():
        published = float(recorded[way][key])
        reach = JACOBIAN_TOLERANCE * (1 + abs(value))
        if "share" in key:  # only cells that nearly fold may have been counted differently
            reach = near_fold + 1e-9
        if not abs(published - value) <= reach:  # also catches NaN
            return Check("field", name, "differs", f"{key} {value:.6g}, recorded {published:.6g}")
    return Check("field", name, "agrees")


def _map_checks(
    root: Path, folder: Path, recomputed: _Recomputed, about: dict[str, Any]
) -> Iterator[Check]:
    learned = about["kind"] != "averaged"  # or transported: the mean isn't the subjects' mean
    wanted = about["settings"]["emit_baseline_maps"]
    emitted = [name for name in _CONTINUOUS if name in wanted and not (learned and name == "mean")]
    if recomputed.statistics.subjects == 0 and not recomputed.unknown:
        return  # a template without subjects has no maps
    labels = {name: str((folder / f"atlas_{name}.nii.gz").relative_to(root)) for name in emitted}
    if recomputed.unknown:
        for name in emitted:
            yield Check("map", labels[name], "not checked", recomputed.unknown[0])
        return
    shape = recomputed.statistics.sample_mean.shape
    maps = recomputed.statistics.maps()
    for name in emitted:
        try:
            values = _map(inside(root, labels[name]), shape)
        except _UNREADABLE as error:
            detail = str(error) if (root / labels[name]).exists() else "no such file"
            yield Check("map", labels[name], "missing", detail)
            continue
        expected = maps[name].astype(np.float64)
        reach = MAP_TOLERANCE * recomputed.largest + _RELATIVE * np.abs(expected)
        wrong = ~(np.abs(values - expected) <= reach)  # nor is NaN near anything
        if wrong.any():
            voxel = tuple(int(i) for i in np.argwhere(wrong)[0][1:])
            detail = f"{int(wrong.sum())} voxels differ from fields and inputs, first {voxel}"
            yield Check("map", labels[name], "differs", detail)
        else:
            yield Check("map", labels[name], "agrees")


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A published map, ``(C, *grid)`` float64."""
    values = image_values(path, open_image_file(path).image)
    if shape[0] > 1:
        values = np.moveaxis(values, -1, 0)
    return values.reshape(shape)
