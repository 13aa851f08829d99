"""Writes the demo cohort, with its truth in a hidden folder beside the subjects."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scripts.errors import StorageError
from scripts.phantom.ageing import AGES, Ageing, People, composed
from scripts.phantom.anatomy import ANATOMIES, Bundle, FloatArray
from scripts.phantom.deformation import ControlGrid
from scripts.phantom.streamlines import VERTEX_STEP, count_streamlines, deform, draw_streamlines
from scripts.runtime.gzip_files import gzip_writer
from scripts.runtime.storage import check_writable, staging_beside

FIELD_OF_VIEW = 160.0
"""Extent of the first axis in mm: other shapes sample the same head with other voxels."""
CENTRE = (0.0, -16.0, 16.0)
"""World coordinates of the volume's centre, mm."""
RMS_DISPLACEMENT = 9.0
"""Root mean square of the training subjects' velocity inside the tracts, mm."""
CENTRAL_FACTOR = 20
"""Streamlines of the central anatomy relative to a subject."""
RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
TRUTH = ".truth"
HELD_OUT = "held_out"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoCohort:
    """The parameters of a demo cohort; equal ones give bit-identical files.

    Args:
        subjects: number of training subjects; their velocities sum to zero.
        held_out: number of further subjects from the same people, not used for training.
        seed: the only source of randomness.
        shape: voxels per axis.
        spacing: voxel size in mm; None keeps the field of view of the default shape.
        streamlines: streamlines drawn per bundle of share 1.
        anatomies: 1, or 2 for a mixture: every second subject has the second anatomy. (Centring
            then applies to all training subjects together, not to each anatomy.)
        age_effect: 0: age has no effect. Above 0, subjects have an age and a sex, listed in
            ``participants.tsv``. Their anatomy moves with age, by that many mm per standard
            deviation where it moves most, and a bundle loses streamlines (see `Ageing`). Sex has no
            effect. The training subjects' other differences are made independent of age.
    """

    subjects: int = 12
    held_out: int = 4
    seed: int = 0
    shape: tuple[int, int, int] = (64, 72, 64)
    spacing: float | None = None
    streamlines: int = 120
    anatomies: int = 1
    age_effect: float = 0.0

    def __post_init__(self) -> None:
        if self.subjects < 1 or self.held_out < 0:
            raise ValueError(
                f"a demo cohort needs subjects >= 1 and held_out >= 0, "
                f"got {self.subjects} and {self.held_out}"
            )
        if len(self.shape) != 3 or min(self.shape) < 16:
            raise ValueError(f"shape needs three axes of at least 16 voxels, got {self.shape}")
        if self.spacing is not None and not self.spacing > 0:
            raise ValueError(f"spacing must be > 0 mm, got {self.spacing}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if self.streamlines < 1:
            raise ValueError(f"streamlines must be at least 1, got {self.streamlines}")
        if not 1 <= self.anatomies <= len(ANATOMIES):
            raise ValueError(f"anatomies must be 1 to {len(ANATOMIES)}, got {self.anatomies}")
        if not 0 <= self.age_effect <= Ageing.LARGEST:
            raise ValueError(
                f"age_effect must be 0 to {Ageing.LARGEST:g} mm, got {self.age_effect}"
            )
        if self.age_effect and (self.subjects < 3 or self.anatomies > 1):
            raise ValueError("an age_effect needs at least 3 subjects and one anatomy")

    @property
    def voxel(self) -> float:
        """Voxel size, mm."""
        return self.spacing if self.spacing is not None else FIELD_OF_VIEW / self.shape[0]

    @property
    def affine(self) -> FloatArray:
        """Voxel to world (RAS, mm), 4 x 4."""
        affine = np.diag([self.voxel] * 3 + [1.0])
        affine[:3, 3] = np.array(CENTRE) - self.voxel * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def names(self) -> list[str]:
        """Names of all subjects, the training subjects first."""
        return [f"sub-{index + 1:02d}" for index in range(self.subjects + self.held_out)]

    @property
    def bundles(self) -> list[str]:
        """Names of all bundles, in the order of the truth's channels."""
        present = ANATOMIES[: self.anatomies]
        return list(dict.fromkeys(bundle.name for anatomy in present for bundle in anatomy))

    @property
    def people(self) -> People:
        """Ages and sexes of all subjects, the training subjects first."""
        return People.drawn(self.subjects, self.held_out, self.generator(3, 0))

    def generator(self, purpose: int, index: int) -> np.random.Generator:
        """An independent random stream for one purpose and one subject."""
        return np.random.default_rng([self.seed, purpose, index])

    def velocities(self, support: NDArray[np.bool_]) -> FloatArray:
        """Velocities (subjects, 3, x, y, z) on the control grid, in its voxels.

        Args:
            support: where the central anatomy has tracts, full grid.
        """
        control = ControlGrid(self.shape, self.voxel)
        field = np.stack([control.noise(self.generator(0, i)) for i in range(len(self.names))])
        if self.subjects > 1:
            # Held-out subjects aren't centred: they are scaled to the variance that centring
            # leaves.
            field[: self.subjects] -= field[: self.subjects].mean(0)
            field[self.subjects :] *= np.sqrt(1 - 1 / self.subjects)
        if self.age_effect:
            # Otherwise chance correlations with age in a small cohort would be part of its truth.
            z = self.people.z[: self.subjects]
            slope = np.tensordot(z, field[: self.subjects], axes=1) / (z @ z)
            field[: self.subjects] -= z[:, None, None, None, None] * slope
        inside = control.sample(support.astype(np.float32)) > 0.25
        rms = np.sqrt((field[: self.subjects] ** 2).sum(1)[:, inside].mean())
        return field * RMS_DISPLACEMENT / rms / control.spacing.reshape(3, 1, 1, 1)

    def counts(
        self,
        anatomy: Sequence[Bundle],
        rng: np.random.Generator,
        displacement: NDArray[np.float32] | None = None,
        factor: int = 1,
        z: float = 0.0,
    ) -> tuple[NDArray[np.float32], int]:
        """Streamlines per voxel and bundle (bundles, X, Y, Z), and the number drawn."""
        world_to_voxel = np.linalg.inv(self.affine)
        maps = np.zeros((len(self.bundles), *self.shape), np.float32)
        total = 0
        for bundle in anatomy:
            spread = 1.0 if displacement is None else rng.uniform(0.85, 1.15)
            share = bundle.share * (Ageing.share(bundle.name, z) if self.age_effect else 1)
            count = max(1, round(self.streamlines * share * spread))
            for _ in range(factor):
                points = draw_streamlines(bundle, count, VERTEX_STEP * self.voxel, rng)
                points = points @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3]
                if displacement is not None:
                    points = deform(points, displacement)
                maps[self.bundles.index(bundle.name)] += count_streamlines(points, self.shape)
                total += count
        return maps, total

    def write(self, folder: Path) -> None:
        """Write the cohort into an existing, empty folder."""
        truth = folder / TRUTH
        support = np.zeros(self.shape, bool)
        for index, anatomy in enumerate(ANATOMIES[: self.anatomies]):
            maps, total = self.counts(anatomy, self.generator(1, index), factor=CENTRAL_FACTOR)
            support |= maps.any(0)
            self._save(maps.sum(0) / total, truth / f"central_{index + 1}.nii.gz")
            self._save(maps, truth / f"central_{index + 1}_bundles.nii.gz")

        control = ControlGrid(self.shape, self.voxel)
        velocities = self.velocities(support)
        ageing = Ageing(control, self.affine, self.age_effect) if self.age_effect else None
        people = self.people
        waytotals = {}
        for index, name in enumerate(self.names):
            to_subject = control.expand(control.integrate(velocities[index]))
            to_template = control.expand(control.integrate(-velocities[index]))
            anatomy = ANATOMIES[index % self.anatomies]
            z = 0.0
            if ageing is not None:
                z = float(people.z[index])
                to_aged, to_young = ageing.displacements(z)
                to_subject = composed(to_aged, to_subject)
                to_template = composed(to_template, to_young)
            maps, total = self.counts(anatomy, self.generator(2, index), to_subject, z=z)
            waytotals[name] = total

            held_out = index >= self.subjects
            run = (truth / HELD_OUT if held_out else folder) / name / RUN
            self._save(maps.sum(0), run / "fdt_paths.nii.gz")
            (run / "waytotal").write_text(f"{total}\n")
            folder_of_subject = truth / "subjects" / name
            self._save(maps, folder_of_subject / "bundles.nii.gz")
            self._save(to_subject, folder_of_subject / "template_to_subject.nii.gz")
            self._save(to_template, folder_of_subject / "subject_to_template.nii.gz")

        if ageing is not None:
            mine, others = self.names[: self.subjects], self.names[self.subjects :]
            people.write(folder / "participants.tsv", mine)
            if others:
                people.write(truth / HELD_OUT / "participants.tsv", others, self.subjects)
            for z in AGES:
                to_aged, _ = ageing.displacements(z)
                maps, total = self.counts(
                    ANATOMIES[0], self.generator(1, 0), to_aged, CENTRAL_FACTOR, z
                )
                self._save(maps.sum(0) / total, truth / f"central_age_{z:+g}.nii.gz")
        record = {
            "seed": self.seed,
            "shape": self.shape,
            "spacing_mm": self.voxel,
            "training": self.names[: self.subjects],
            "held_out": self.names[self.subjects :],
            "bundles": self.bundles,
            "anatomies": self.anatomies,
            "anatomy": {name: i % self.anatomies for i, name in enumerate(self.names)},
            "streamlines": self.streamlines,
            "waytotal": waytotals,
            **({"age": people.as_dict(self.age_effect)} if ageing is not None else {}),
            "versions": {package: version(package) for package in ("numpy", "scipy", "nibabel")},
        }
        (truth / "truth.json").write_text(json.dumps(record, indent=2) + "\n")

    def _save(self, data: NDArray[np.float32], path: Path) -> None:
        """Save (X, Y, Z), or (C, X, Y, Z) with the channels last, as float32."""
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = np.moveaxis(data, 0, -1) if data.ndim == 4 else data
        image = nib.Nifti1Image(volume.astype(np.float32), self.affine)
        image.set_sform(self.affine, code="mni")
        image.set_qform(self.affine, code="mni")
        image.header.set_xyzt_units("mm")
        with gzip_writer(path) as stream:
            image.to_stream(stream)


def write_demo_cohort(
    folder: str | Path,
    subjects: int = 12,
    held_out: int = 4,
    seed: int = 0,
    shape: tuple[int, int, int] = (64, 72, 64),
    spacing: float | None = None,
    streamlines: int = 120,
    anatomies: int = 1,
    age_effect: float = 0.0,
) -> str:
    """Write a demo cohort as a new dataset folder in the probtrackx2 layout.

    The folder appears completely or not at all. The arguments are those of :class:`DemoCohort`.

    Returns:
        The folder.

    Raises:
        StorageError: the folder exists and isn't empty, or can't be written.
        ValueError: an argument is out of range.
    """
    x, y, z = shape  # a config may pass a list
    cohort = DemoCohort(
        subjects, held_out, seed, (x, y, z), spacing, streamlines, anatomies, age_effect
    )
    target = Path(folder)
    if _holds_something(target):
        raise StorageError(f"{target}: not empty; choose an empty folder for the demo cohort")
    check_writable(target.parent)
    try:
        with staging_beside(target) as staging:
            made = staging / "cohort"
            made.mkdir()
            cohort.write(made)
            made.replace(target)
    except OSError as error:
        raise StorageError(f"{target}: the demo cohort can't be written ({error})") from error
    return str(folder)


def ensure_demo_cohort(folder: str | Path, needed: bool = True, **options: Any) -> str:
    """Make the demo cohort unless the folder already contains something.

    Args:
        folder: dataset folder.
        needed: False makes nothing, for a run whose subjects come from elsewhere.
        options: passed to :func:`write_demo_cohort` if the cohort is made.

    Returns:
        The folder, so that a config can use the call as its ``dataset_dir``.
    """
    target = Path(folder)
    if not needed or _holds_something(target):
        return str(folder)
    logger.info("making the demo cohort in %s", target)
    try:
        return write_demo_cohort(target, **options)
    except StorageError:
        # Another process may have made the same cohort in the meantime, which is just as good.
        if _holds_something(target):
            return str(folder)
        raise


def _holds_something(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
