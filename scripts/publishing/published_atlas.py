"""A published atlas, learned or averaged, as input of later jobs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.errors import CohortError
from scripts.publishing.atlas_labels import LABELS_FOLDER, probability_name
from scripts.publishing.description_rules import opened_description
from scripts.runtime.input_files import check_file, check_fits, check_named
from scripts.runtime.inside import inside
from scripts.runtime.storage import file_hash
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.atlas import BASELINE_MAPS

__all__ = ["PublishedAtlas", "open_atlas", "sha256_of"]


@dataclass(frozen=True, eq=False)
class PublishedAtlas:
    """Maps, fields and description in one folder.

    Attributes:
        folder: of the files.
        about: content of its ``atlas.json``.
        description: the bytes of that file, which differ with every publication.
    """

    folder: Path
    about: dict[str, Any]
    description: WatchedFiles | None = None

    def check_unchanged(self) -> None:
        """Make sure that no other atlas was published in its place since it was opened.

        Raises:
            CohortError: there was.
        """
        if self.description is not None:
            self.description.check()

    @property
    def averaged(self) -> bool:
        """Whether it was made from unregistered maps (averaged, barycentre): it has no fields."""
        return self.about.get("kind") in ("averaged", "barycentre")

    @property
    def training_space(self) -> str:
        """The space of its subjects' maps."""
        return str(self.about["training_space"])

    @property
    def subjects(self) -> list[str]:
        """Names of its subjects."""
        return [one["subject"] for one in self.about["cohort"]["subjects"]]

    def maps(self, template: int = 1) -> dict[str, Path]:
        """Files of the published maps by name.

        Args:
            template: index in a mixture, from 1.

        Raises:
            CohortError: there are no maps.
        """
        folder = self._folder_of(template)
        paths = {name: inside(folder, f"atlas_{name}.nii.gz") for name in BASELINE_MAPS}
        present = {name: path for name, path in paths.items() if path.is_file()}
        if "mean" not in present:
            raise CohortError(f"{folder}: not an atlas (atlas_mean.nii.gz is missing)")
        return present

    def label_maps(self, template: int = 1) -> dict[int, Path]:
        """Probability map of each label, ascending; empty if the atlas isn't annotated.

        Args:
            template: index in a mixture, from 1.
        """
        folder = self._folder_of(template)
        paths = {
            index: inside(folder, f"{LABELS_FOLDER}/{probability_name(index)}")
            for index in sorted(self.label_names)
        }
        return {index: path for index, path in paths.items() if path.is_file()}

    @property
    def label_names(self) -> dict[int, str]:
        """Name of each label."""
        return {int(one["index"]): str(one["name"]) for one in self.about.get("labels") or ()}

    def _folder_of(self, template: int) -> Path:
        """Folder of a template's maps."""
        return self.folder / f"template-{template}" if self.about.get("mixture") else self.folder

    def assigned_template(self, subject: str) -> int:
        """Index, from 1, of the template that a subject's field leads to."""
        shares = (self.about.get("mixture") or {}).get(subject, [1.0])
        return 1 + shares.index(max(shares))


def open_atlas(folder: str | Path) -> PublishedAtlas:
    """Open a published atlas.

    Raises:
        CohortError: there is none, or its description is invalid.
    """
    check_named(folder, "atlas_dir")
    path = Path(folder).absolute() / "atlas.json"
    if not os.path.lexists(path):
        raise CohortError(
            f"{path.parent}: not an atlas (atlas.json is missing); publish one with `train` or "
            "`average`, or name its folder with --atlas_dir"
        )
    try:
        description = WatchedFiles([path])
        about = opened_description(path.parent)
        description.check()
        return PublishedAtlas(path.parent, about, description)
    except ValueError as error:
        raise CohortError(f"{path}: is not the description of an atlas: {error}") from error


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes.

    Raises:
        FileError: it isn't a file that fits into memory; descriptions name any path.
    """
    check_fits(path, check_file(path).st_size)
    return file_hash(path)
