"""Checks that recompute the numbers of a published atlas: Jacobians of its fields, and its maps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.atlas.network import NEGLIGIBLE_SHARE
from scripts.cohort import DensityMap, read_density
from scripts.cohort.density import density_on_grid
from scripts.errors import CohortError, VerificationError
from scripts.publishing.atlas_checks import UNREADABLE, Check, read_published
from scripts.publishing.description_rules import verifiable_jacobians
from scripts.publishing.statistics import DensityStatistics
from scripts.runtime.inside import inside
from scripts.spatial.fields import field_names, read_field
from scripts.spatial.grid import CropBox
from scripts.spatial.image_files import image_values, open_image_file
from scripts.spatial.jacobian import jacobian_determinant, jacobian_summary
from scripts.spatial.warp import warp

__all__ = ["JACOBIAN_TOLERANCE", "MAP_TOLERANCE", "number_checks"]

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


def number_checks(root: Path, about: dict[str, Any]) -> Iterator[Check]:
    """Yield the checks of all fields and maps, in one pass over the subjects.

    Args:
        root: the atlas's folder.
        about: its description, whose rules were checked (`require_verifiable`).
    """
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
        jacobians = verifiable_jacobians(read_published(root, "jacobian.json"))
    except (VerificationError, ValueError) as error:
        jacobians = {}
        yield Check("field", "jacobian.json", "missing", str(error))
    for name in sorted(jacobians.keys() - set(names)):
        yield Check("field", f"jacobian.json: {name}", "unexpected", "no subject of the cohort")
    for subject in about["cohort"]["subjects"]:
        name = subject["subject"]
        weights = shares[name]
        assigned = int(np.argmax(weights))
        fields = {}
        for file in field_names(name):
            try:
                fields[file] = _field(inside(root, f"fields/{file}"), grid)
            except UNREADABLE as error:
                detail = str(error) if (root / "fields" / file).exists() else "no such file"
                yield Check("field", f"{name} {_way(file)}", "missing", detail)
            else:
                yield _jacobian_check(name, _way(file), fields[file], jacobians.get(name, {}))
        try:
            density = _density(subject, shape, crop)
            moved = _moved(density, fields[field_names(name)[0]])
        except (*UNREADABLE, KeyError):
            moved = None  # the input or field has already been reported
        for k, weight in enumerate(weights):
            if weight < NEGLIGIBLE_SHARE and k != assigned:
                continue
            if moved is None:
                gathered[k].unknown.append(f"inputs or fields of {name} can't be read")
            elif k != assigned:
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
        except UNREADABLE:
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
        except UNREADABLE as error:
            detail = str(error) if (root / labels[name]).exists() else "no such file"
            yield Check("map", labels[name], "missing", detail)
            continue
        expected = maps[name].astype(np.float64)
        reach = MAP_TOLERANCE * recomputed.largest + _RELATIVE * np.abs(expected)
        wrong = ~(np.abs(values - expected) <= reach)  # NaN counts as different
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
