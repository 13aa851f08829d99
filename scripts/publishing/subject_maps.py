"""Maps of each subject in template space, and 4-D files of all subjects for group statistics."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from scripts.atlas.registration import Registration
from scripts.publishing.sidecars import sidecar_of, write_json
from scripts.runtime.inside import file_name_key
from scripts.runtime.tables import write_table
from scripts.spatial.grid import Grid
from scripts.spatial.image_files import image_labels, image_values, open_image_file
from scripts.spatial.jacobian import jacobian_determinant
from scripts.spatial.transforms import take_nearest
from scripts.spatial.volume_series import label_type, write_channel_series
from scripts.spatial.volumes import write_labels, write_map

__all__ = [
    "GROUP_FOLDER",
    "KINDS",
    "WARPED_FOLDER",
    "SubjectMaps",
    "labels_in_template",
    "log_jacobian",
    "map_name",
    "write_group",
]

logger = logging.getLogger(__name__)

WARPED_FOLDER, GROUP_FOLDER = "warped", "group"
KINDS = ("density", "logjacobian", "dseg")
"""Suffixes of the maps' names; dseg is BIDS's for label maps."""
_ABOUT: dict[str, dict[str, str]] = {
    "density": {
        "Description": "Tract density in template space; interpolated, not multiplied by the "
        "Jacobian determinant",
        "Units": "arbitrary",
    },
    "logjacobian": {
        "Description": "Natural logarithm of the Jacobian determinant of the map from the template "
        "to the subject: the subject's local volume over the template's",
        "Units": "1",
    },
    "dseg": {"Description": "The subject's labels in template space (nearest voxel)"},
}


def map_name(subject: str, kind: str) -> str:
    """File name of a subject's map in template space.

    Example:
        >>> map_name("sub-01", "logjacobian")
        'sub-01_space-template_logjacobian.nii.gz'
    """
    return f"{subject}_space-template_{kind}.nii.gz"


def log_jacobian(to_template: torch.Tensor) -> np.ndarray:
    """Logarithm of the subject's local volume over the template's, on the template's grid.

    The field maps template points to subject points: a determinant of 2 means that the subject's
    tissue takes twice the volume. NaN where the field folds.

    Args:
        to_template: ``(d, *grid)`` in voxels, see `Registration.to_template`.

    Returns:
        ``(*grid)`` float32.
    """
    determinant = jacobian_determinant(to_template)
    return determinant.where(determinant > 0, torch.nan).log().cpu().numpy().astype(np.float32)


def labels_in_template(labels: np.ndarray, to_template: torch.Tensor) -> np.ndarray:
    """A subject's labels on the template's grid by the nearest voxel, in their type.

    Args:
        labels: ``(*grid)`` whole numbers on the subject's grid.
        to_template: ``(d, *grid)`` in voxels.
    """
    moves = to_template.double().cpu().numpy()
    places = np.indices(labels.shape).reshape(labels.ndim, -1) + moves.reshape(labels.ndim, -1)
    return take_nearest(labels[None], places)[0].reshape(labels.shape)


@dataclass(frozen=True)
class SubjectMaps:
    """Which maps of each subject are written.

    Attributes:
        grid: of the template.
        warped: densities and labels.
        jacobians: log-Jacobians.
    """

    grid: Grid
    warped: bool
    jacobians: bool

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return self.warped or self.jacobians

    def of(
        self, registration: Registration, density: np.ndarray, labels: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """The maps of one subject, by kind.

        Args:
            registration: its fields.
            density: its density in template space, ``(C, *grid)``.
            labels: its labels in its space, ``(*grid)``; None: it has none.
        """
        maps: dict[str, np.ndarray] = {}
        if self.warped:
            maps["density"] = density
            if labels is not None:
                maps["dseg"] = labels_in_template(labels, registration.to_template[0])
        if self.jacobians:
            maps["logjacobian"] = log_jacobian(registration.to_template[0])
        return maps

    def write(
        self, folder: Path, subject: str, maps: Mapping[str, np.ndarray], reference: str
    ) -> None:
        """Write one subject's maps, with their sidecars.

        Args:
            folder: destination; must exist.
            subject: name of the subject.
            maps: see `of`.
            reference: BIDS URI of an image on the template's grid.
        """
        for kind, values in maps.items():
            path = folder / map_name(subject, kind)
            if kind == "dseg":
                solid = values.astype(label_type(int(np.abs(values).max(initial=0))))
                write_labels(path, solid.reshape((1, *self.grid.shape, 1)[:4]), self.grid)
            else:
                write_map(path, values if kind == "density" else values[None], self.grid)
            folded = int(np.isnan(values).sum()) if kind == "logjacobian" else 0
            if folded:
                logger.warning(
                    "subject %s: the field folds at %d voxels, where its log-Jacobian is NaN",
                    subject,
                    folded,
                )
            write_json(sidecar_of(path), {**_ABOUT[kind], "SpatialReference": reference})


def write_group(
    folder: Path,
    files: Mapping[str, Mapping[str, Path]],
    grid: Grid,
    tracts: Sequence[str] = (),
    assigned: Mapping[str, int] | None = None,
) -> None:
    """Write a 4-D file of each kind of map, and ``subjects.tsv`` with each subject's volume.

    The subjects' files are read again one by one, so memory is that of one subject. With several
    tracts there is one 4-D density for each, and with several templates one file for each.

    Args:
        folder: destination; must exist.
        files: by subject, in the order of the volumes: the files by kind.
        grid: of the template.
        tracts: names of the density's channels.
        assigned: index, from 1, of each subject's template; None: there is only one.
    """
    templates = {name: 1 if assigned is None else assigned[name] for name in files}
    rows = {name: {"participant_id": name, "template": str(templates[name])} for name in files}
    for kind in KINDS:
        parts = _parts_of(tracts) if kind == "density" else [("", None)]
        for template in sorted(set(templates.values())):
            present = [name for name, maps in files.items()
                     if kind in maps and templates[name] == template]  # fmt: skip
            if not present:
                continue
            for volume, name in enumerate(present):
                rows[name][kind] = str(volume)
            space = "space-template" if assigned is None else f"space-template-{template}"
            paths = [folder / f"{space}{entity}_{kind}.nii.gz" for entity, _ in parts]
            _write_kind(paths, [files[name][kind] for name in present], kind, grid)
            for path, (_, tract) in zip(paths, parts, strict=True):
                about: dict[str, Any] = {**_ABOUT[kind], "Subjects": present}
                write_json(sidecar_of(path), about if tract is None else {**about, "Tract": tract})
    columns = ["participant_id", *(["template"] if assigned is not None else []), *KINDS]
    with (folder / "subjects.tsv").open("w", newline="", encoding="utf-8") as file:
        write_table(file, columns, rows.values(), restval="n/a", tabs=True)


def _parts_of(tracts: Sequence[str]) -> list[tuple[str, str | None]]:
    """For each channel a part of a file's name and the tract's name."""
    if not tracts:
        return [("", None)]
    names = [re.sub(r"[^\w.+=,@()-]", "-", tract) for tract in tracts]
    if len({file_name_key(name) for name in names}) < len(names):
        names = [str(number) for number in range(1, len(tracts) + 1)]
    return [(f"_tract-{name}", tract) for name, tract in zip(names, tracts, strict=True)]


def _write_kind(paths: Sequence[Path], sources: Sequence[Path], kind: str, grid: Grid) -> None:
    """A 4-D file per channel from one source a volume, which is read when it is written."""
    dtype = np.dtype(np.float32)
    if kind == "dseg":  # each file has the type that its labels need, see `SubjectMaps.write`
        types = [nib.Nifti1Image.from_filename(one).get_data_dtype() for one in sources]
        dtype = max(types, key=lambda one: one.itemsize)
    volumes = (_channels(one, kind) for one in sources)
    write_channel_series(paths, volumes, len(sources), grid, dtype)


def _channels(path: Path, kind: str) -> np.ndarray:
    """A map ``(C, *shape)`` that was just written; a log-Jacobian may be NaN."""
    image = open_image_file(path).image
    values = (image_labels if kind == "dseg" else image_values)(path, image)
    return np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None]
