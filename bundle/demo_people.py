"""Twelve made-up people for the tutorial: streamlines by tract, and an image of FA."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from scripts.phantom.anatomy import ANATOMIES, Bundle
from scripts.phantom.deformation import ControlGrid
from scripts.phantom.demo import DemoCohort
from scripts.phantom.streamlines import VERTEX_STEP, count_streamlines, deform, draw_streamlines
from scripts.runtime.gzip_files import gzip_writer
from scripts.runtime.storage import publish_folder
from scripts.tractograms import Streamlines, write_tractogram

__all__ = ["LOWERED", "LOWERED_BY", "PEOPLE", "TRACTS", "write_demo_people"]

TRACTS = ("arcuate_l", "arcuate_r", "callosal_body", "corticospinal_l", "corticospinal_r")
LOWERED = "arcuate_l"
"""Tract in which the patients' FA is lower."""
LOWERED_BY = 0.1
PEOPLE = DemoCohort(subjects=12, held_out=0, shape=(32, 36, 32), streamlines=60)
"""Small, so that the tutorial takes seconds."""


def write_demo_people(folder: str | Path, people: DemoCohort = PEOPLE) -> str:
    """Write the people into a folder; the last six are patients.

    ``reference.nii.gz`` is the grid, ``participants.tsv`` the groups. Each person has a folder with
    a TRK file for each tract and ``fa.nii.gz``. In patients, FA in one tract is lower by
    `LOWERED_BY`. Equal calls give equal people.

    Args:
        folder: is made; what this function wrote there before is replaced.
        people: number of people, their grid, streamlines of a tract.

    Returns:
        The folder.

    Raises:
        StorageError: the folder holds something else, or can't be written.
    """
    anatomy = [one for one in ANATOMIES[0] if one.name in TRACTS]
    maps, _ = people.counts(ANATOMIES[0], people.generator(1, 0), factor=5)
    velocities = people.velocities(np.asarray(maps.any(0)))
    control = ControlGrid(people.shape, people.voxel)
    rows = ["participant_id\tgroup"]
    with publish_folder(Path(folder)) as staging:
        _save(np.ones(people.shape), people.affine, staging / "reference.nii.gz")
        for index, name in enumerate(people.names):
            patient = index >= len(people.names) // 2
            rows.append(f"{name}\t{'patient' if patient else 'control'}")
            moved = control.expand(control.integrate(velocities[index]))
            rng = people.generator(2, index)
            _write_person(staging / name, people, anatomy, moved, rng, patient)
        (staging / "participants.tsv").write_text("\n".join([*rows, ""]))
    return str(folder)


def _write_person(
    folder: Path,
    people: DemoCohort,
    anatomy: list[Bundle],
    displacement: np.ndarray,
    rng: np.random.Generator,
    patient: bool,
) -> None:
    """One person: streamlines where the displacement takes them, and FA along them."""
    folder.mkdir()
    to_voxels = np.linalg.inv(people.affine)
    fa = np.full(people.shape, 0.15)
    for bundle in anatomy:
        count = round(people.streamlines * bundle.share * rng.uniform(0.85, 1.15))
        points = draw_streamlines(bundle, count, VERTEX_STEP * people.voxel, rng)
        voxels = deform(nib.affines.apply_affine(to_voxels, points), displacement)
        lines = nib.affines.apply_affine(people.affine, voxels).astype(np.float32)
        path = folder / f"{bundle.name}.trk"
        write_tractogram(path, Streamlines.of(list(lines)), people.shape, people.affine)
        share = gaussian_filter(count_streamlines(voxels, people.shape) / count, 0.7)
        height = 0.55 - LOWERED_BY * (patient and bundle.name == LOWERED)
        inside = np.minimum(share / 0.05, 1)
        fa = np.maximum(fa, 0.15 + (height - 0.15) * inside)
    _save(fa + rng.normal(0, 0.02, fa.shape), people.affine, folder / "fa.nii.gz")


def _save(values: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    with gzip_writer(path) as stream:
        image.to_stream(stream)
