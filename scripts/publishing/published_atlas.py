"""A published atlas, learned or averaged, as later jobs find it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.errors import CohortError
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
        folder: where they lie.
        about: what its ``atlas.json`` says.
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
        """Whether it was made of maps as they lie (averaged, barycentre): no field leads to it."""
        return self.about.get("kind") in ("averaged", "barycentre")

    @property
    def training_space(self) -> str:
        """The space that its subjects' maps lay in."""
        return str(self.about["training_space"])

    @property
    def subjects(self) -> list[str]:
        """Names of those it was made of."""
        return [one["subject"] for one in self.about["cohort"]["subjects"]]

    def maps(self, template: int = 1) -> dict[str, Path]:
        """Files of the published maps by name.

        Args:
            template: which of the K of a mixture, from 1 on.

        Raises:
            CohortError: there is none.
        """
        folder = self.folder
        if self.about.get("mixture"):
            folder = self.folder / f"template-{template}"
        found = {name: inside(folder, f"atlas_{name}.nii.gz") for name in BASELINE_MAPS}
        there = {name: path for name, path in found.items() if path.is_file()}
        if "mean" not in there:
            raise CohortError(f"{folder}: holds no atlas_mean.nii.gz, so that there is no atlas")
        return there

    def home(self, subject: str) -> int:
        """Template, from 1 on, that a subject's field leads to."""
        shares = (self.about.get("mixture") or {}).get(subject, [1.0])
        return 1 + shares.index(max(shares))


def open_atlas(folder: str | Path) -> PublishedAtlas:
    """Open a published atlas.

    Raises:
        CohortError: there is none, or its description can't be understood.
    """
    check_named(folder, "atlas_dir")
    path = Path(folder).absolute() / "atlas.json"
    if not os.path.lexists(path):
        raise CohortError(
            f"{path.parent}: there is no atlas (no atlas.json); publish one with `train` or "
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
