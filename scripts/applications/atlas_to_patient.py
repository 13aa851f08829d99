"""Warps the published maps into the space of a subject or of a new patient."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.applications.subject_fields import subject_field
from scripts.errors import CohortError, ConfigurationError, some_names
from scripts.publishing.atlas_labels import LABELS_FOLDER, MAJORITY, NAMES, probability_name
from scripts.publishing.published_atlas import open_atlas
from scripts.runtime.inside import inside
from scripts.runtime.storage import check_replaceable, check_writable, publish_folder
from scripts.runtime.tables import write_table
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.applications import AtlasToPatientConfig
from scripts.settings.transforms import TransformEntry
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.label_fusion import MostProbable
from scripts.spatial.transform_files import (
    TransformFile,
    read_transform,
    require_fields_cover,
)
from scripts.spatial.transforms import FieldTransform, Transform, places_of, resample
from scripts.spatial.volumes import read_grid, read_volume, write_labels, write_map

__all__ = ["CARRIED_FOLDER", "AtlasCarrier"]

logger = logging.getLogger(__name__)

CARRIED_FOLDER = "atlas_in_patient_space"


@dataclass(frozen=True)
class _Way:
    """Transforms and grid of one patient."""

    patient: str
    template: int
    files: tuple[TransformFile, ...]
    reference: Path | None


class AtlasCarrier:
    """Warps the maps to patients, each into ``<output_dir>/<patient>/atlas_in_patient_space``.

    Of an annotated atlas the labels' probabilities are interpolated, and each voxel gets the most
    probable label: ``atlas_dseg.nii.gz``, with the names in ``atlas_dseg.tsv``.

    All files are checked before anything is written, and each patient's folder appears completely
    or not at all. By default the bundle's fields are used: ``<atlas_dir>/fields`` for the cohort's
    subjects, ``<registered_dir>/<patient>`` for patients that ``register`` registered to the same
    model. An averaging atlas needs none.

    Args:
        atlas_dir: the published folder.
        settings: which patients, and how.
        registered_dir: output folder of ``register``.
        output_dir: holds the patients' folders.

    Raises:
        CohortError: no atlas, an unknown patient, a transform that doesn't exist or can't be read.
        ConfigurationError: an affine_native atlas is requested in template space.
        StorageError: ``output_dir`` can't be written.
    """

    def __init__(
        self,
        atlas_dir: str | Path,
        settings: AtlasToPatientConfig,
        registered_dir: str | Path,
        output_dir: str | Path,
    ) -> None:
        check_writable(output_dir)
        self.atlas = open_atlas(atlas_dir)
        self.settings = settings
        self.registered = Path(registered_dir)
        self.output_dir = Path(output_dir)
        self._check_space()
        self.ways = [self._way(patient) for patient in settings.patients or self.atlas.subjects]
        for way in self.ways:
            inside(self.output_dir, way.patient, kind="folder")  # or it would be written elsewhere
        files = [file.path for way in self.ways for file in way.files]
        references = [way.reference for way in self.ways if way.reference is not None]
        check_replaceable(
            *(self._folder(way.patient) for way in self.ways),
            inputs=[self.atlas.folder, *files, *references],
        )

    def run(self) -> None:
        """Warp the maps to all patients.

        Raises:
            CohortError: a file can't be read, or nothing of the atlas is on a patient's grid.
            StorageError: a folder can't be written.
        """
        for way in self.ways:
            self._carry(way)
        logger.info("atlas warped to %d patients, in %s", len(self.ways), self.output_dir)

    def _folder(self, patient: str) -> Path:
        return self.output_dir / patient / CARRIED_FOLDER

    def _check_space(self) -> None:
        wanted, trained = self.settings.space, self.atlas.training_space
        extra = self.settings.extra_transforms
        if trained == "affine_native" and wanted == "template_native" and not extra:
            raise ConfigurationError(
                "atlas_to_patient.space = 'template_native': the atlas was made from affine_native "
                "maps and isn't in template space; must have "
                "atlas_to_patient#extra_transforms, or be 'affine_native'"
            )
        if trained == "template_native" and (wanted == "affine_native" or extra):
            key = "extra_transforms" if extra else "space"
            given = [entry.path for entry in extra] if extra else wanted
            raise ConfigurationError(
                f"atlas_to_patient.{key} = {given!r}: the atlas is in template space; must be "
                f"{'empty' if extra else 'template_native'}"
            )

    def _way(self, patient: str) -> _Way:
        extra = _files(self.settings.extra_transforms, patient)
        template_field: tuple[TransformFile, ...] = ()
        template = 1
        given = _files(self.settings.transforms, patient)
        if not given:
            template_field, template = self._own_field(patient)
        files = (*given, *extra, *template_field)
        for path in (one for file in files for one in file.files()):
            if not path.is_file():
                raise CohortError(f"patient {patient}: no such transform {path}")
        reference = self.settings.reference
        image = None if reference is None else Path(reference.replace("{patient}", patient))
        if image is not None and not image.is_file():
            raise CohortError(f"patient {patient}: no such reference image {image}")
        if image is None and files and not files[0].is_field:
            raise CohortError(
                f"patient {patient}: the first transform has no grid, being no field; "
                "name an image that has with --atlas_to_patient#reference"
            )
        self.atlas.maps(template)
        return _Way(patient, template, files, image)

    def _own_field(self, patient: str) -> tuple[tuple[TransformFile, ...], int]:
        """The field that maps a patient's points to the template, and the template's name."""
        known = patient in self.atlas.subjects
        if self.atlas.averaged:
            if not known and self.settings.reference is None:
                raise CohortError(
                    f"unknown patient {patient}: not in the atlas's cohort "
                    f"({some_names(self.atlas.subjects, most=10)}); a new one needs an image in "
                    "template space (--atlas_to_patient#reference) or atlas_to_patient#transforms"
                )
            return (), 1
        field, template = subject_field(
            self.atlas, self.registered, patient, "atlas_to_patient#transforms"
        )
        return (TransformFile(field),), template

    def _carry(self, way: _Way) -> None:
        references = [] if way.reference is None else [way.reference]
        files = [*(file.path for file in way.files), *references]
        watched = WatchedFiles([*files, *self.atlas.maps(way.template).values()])
        transforms = [read_transform(file) for file in way.files]
        paths = self.atlas.maps(way.template)
        first = transforms[0] if transforms else None
        wanted: Grid
        if way.reference is not None:
            wanted = read_grid(way.reference)
        elif isinstance(first, FieldTransform):
            wanted = first.grid
        else:
            wanted = read_grid(paths["mean"])
        require_fields_cover(f"patient {way.patient}", transforms, way.files, wanted)
        with publish_folder(self._folder(way.patient)) as staging:
            for name, path in paths.items():
                volume, source = read_volume(path)
                warped = resample(volume, source, transforms, wanted)
                if name == "mean" and not warped.any():
                    raise CohortError(
                        f"patient {way.patient}: nothing of the atlas is on its grid; check that "
                        "the transforms are the right ones, in antsApplyTransforms's order"
                    )
                write_map(staging / path.name, warped, wanted)
            labels = self._carry_labels(way, transforms, wanted, staging)
            description = {**self._description(way, paths, watched), **labels}
            about = json.dumps(description, indent=1) + "\n"
            (staging / "carried.json").write_text(about, encoding="utf-8")
            watched.check()
            self.atlas.check_unchanged()

    def _carry_labels(
        self, way: _Way, transforms: Sequence[Transform], wanted: Grid, staging: Path
    ) -> dict[str, Any]:
        """Write the most probable labels in the patient's space; return their record."""
        maps = self.atlas.label_maps(way.template)
        if not maps:
            return {}
        watched = WatchedFiles(maps.values())
        source = read_grid(next(iter(maps.values())))
        places = places_of(wanted, transforms, source)
        best = MostProbable(places.shape[1:])
        folder = staging / LABELS_FOLDER
        if self.settings.label_probabilities:
            folder.mkdir()
        for label, path in maps.items():
            volume, label_grid = read_volume(path)
            if label_grid.same_as(source) is not None or len(volume) != 1:
                raise CohortError(f"{path}: is not on the grid of the atlas's other labels")
            box = CropBox.around(volume[0] > 0) if volume.any() else CropBox((0, 0, 0), (1, 1, 1))
            share = best.add_at(label, box, box.crop(volume[0]), places)
            if self.settings.label_probabilities:
                write_map(folder / probability_name(label), share[None], wanted)
        write_labels(staging / MAJORITY, best.labels()[None], wanted)
        names = self.atlas.label_names
        with (staging / NAMES).open("w", newline="", encoding="utf-8") as file:
            rows = [{"index": label, "name": names[label]} for label in maps]
            write_table(file, ("index", "name"), rows, tabs=True)
        watched.check()
        return {"labels": {path.name: watched.sha256(path) for path in maps.values()}}

    def _description(
        self, way: _Way, paths: dict[str, Path], watched: WatchedFiles
    ) -> dict[str, Any]:
        """``carried.json``: the origin of these maps."""
        return {
            "patient": way.patient,
            "space": self.settings.space,
            "atlas": {
                "folder": str(self.atlas.folder),
                "kind": "averaged" if self.atlas.averaged else "learned",
                "training_space": self.atlas.training_space,
                "template": way.template,
                "maps": {path.name: watched.sha256(path) for path in paths.values()},
            },
            "transforms": [
                {**file.as_dict(), "sha256": watched.sha256(file.path)} for file in way.files
            ],
            "reference": None if way.reference is None else str(way.reference),
        }


def _files(entries: list[TransformEntry], patient: str) -> tuple[TransformFile, ...]:
    return tuple(TransformFile.of_entry(entry, patient=patient) for entry in entries)
