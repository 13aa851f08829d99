"""Reads the truth about a demo cohort: for tests and benchmarks, never for training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from scripts.errors import CohortError
from scripts.phantom.ageing import AGES
from scripts.phantom.demo import HELD_OUT, TRUTH

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class SubjectTruth:
    """One subject's truth, arrays on the full grid.

    Args:
        name: the subject.
        held_out: whether it is excluded from training.
        anatomy: index of its central anatomy.
        path: its folder in the probtrackx2 layout.
        waytotal: number of streamlines drawn.
        bundles: streamline counts (bundles, X, Y, Z) in the subject's space.
        to_template: displacement (3, X, Y, Z) in voxels on the template grid; template point x
            corresponds to x + u(x) in the subject, so it resamples the subject into template space.
        to_subject: displacement on the subject grid; subject point y corresponds to y + v(y) in the
            template.
    """

    name: str
    held_out: bool
    anatomy: int
    path: Path
    waytotal: int
    bundles: Volume
    to_template: Volume
    to_subject: Volume


@dataclass(frozen=True)
class Truth:
    """The truth about a demo cohort.

    Args:
        affine: voxel to world (RAS, mm), 4 x 4.
        bundle_names: names of the channels of all bundle maps.
        central: density (share of the streamlines) of each central anatomy, (anatomies, X, Y, Z).
        central_bundles: counts per bundle, (anatomies, bundles, X, Y, Z).
        training: training subjects.
        held_out: subjects excluded from training.
        record: ``truth.json``.
        aged: central density (X, Y, Z) by age in standard deviations from the training subjects'
            mean; empty if age has no effect.
    """

    affine: NDArray[np.float64]
    bundle_names: tuple[str, ...]
    central: Volume
    central_bundles: Volume
    training: tuple[SubjectTruth, ...]
    held_out: tuple[SubjectTruth, ...]
    record: dict[str, Any]
    aged: dict[float, Volume] = field(default_factory=dict)

    def age(self, z: float) -> float:
        """The age in years, z standard deviations from the training subjects' mean."""
        about = self.record["age"]
        return float(about["mean"] + z * about["std"])


def load_truth(folder: str | Path) -> Truth:
    """Read the truth of the demo cohort in ``folder``.

    Raises:
        CohortError: the folder isn't a demo cohort.
    """
    root = Path(folder)
    truth = root / TRUTH
    try:
        record = json.loads((truth / "truth.json").read_text())
    except OSError as error:
        raise CohortError(
            f"{root}: not a demo cohort, its truth can't be read ({error})"
        ) from error

    anatomies = range(1, record["anatomies"] + 1)
    affine = nib.Nifti1Image.from_filename(truth / "central_1.nii.gz").affine
    central = np.stack([_read(truth / f"central_{i}.nii.gz") for i in anatomies])
    parts = np.stack([_read(truth / f"central_{i}_bundles.nii.gz") for i in anatomies])

    def subject(name: str, held_out: bool) -> SubjectTruth:
        folder = truth / "subjects" / name
        return SubjectTruth(
            name=name,
            held_out=held_out,
            anatomy=record["anatomy"][name],
            path=(truth / HELD_OUT if held_out else root) / name,
            waytotal=record["waytotal"][name],
            bundles=_read(folder / "bundles.nii.gz"),
            to_template=_read(folder / "template_to_subject.nii.gz"),
            to_subject=_read(folder / "subject_to_template.nii.gz"),
        )

    return Truth(
        affine=affine,
        bundle_names=tuple(record["bundles"]),
        central=central,
        central_bundles=parts,
        training=tuple(subject(name, False) for name in record["training"]),
        held_out=tuple(subject(name, True) for name in record["held_out"]),
        record=record,
        aged={
            z: _read(truth / f"central_age_{z:+g}.nii.gz")
            for z in (AGES if "age" in record else ())
        },
    )


def _read(path: Path) -> Volume:
    """A saved volume as float32, channels first."""
    data = np.asarray(nib.Nifti1Image.from_filename(path).dataobj, dtype=np.float32)
    return np.ascontiguousarray(np.moveaxis(data, -1, 0)) if data.ndim == 4 else data
