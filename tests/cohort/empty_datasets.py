"""Dataset folders of empty files, and what is found in them."""

from pathlib import Path

from scripts.cohort import find_subjects
from scripts.settings.atlas import LearnedAtlasConfig


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def find(root: Path, **values):
    return find_subjects(root, LearnedAtlasConfig.load(values).subject_search())


def names(found) -> list[str]:
    return [candidate.name for candidate in found.candidates]


def files(found, root: Path) -> list[str]:
    return [str(one.path.relative_to(root)) for who in found.candidates for one in who.maps]


FDT = "tractography/probtrackx2/{run}/warped_streamlines/fdt_paths.nii.gz"


def fdt(subject: str, run: str = "whole", method: str = "probtrackx2") -> str:
    return f"{subject}/{FDT}".replace("{run}", run).replace("probtrackx2", method)
