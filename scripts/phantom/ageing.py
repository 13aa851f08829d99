"""Covariates with a known effect: age moves and thins tracts, sex has no effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from scripts.phantom.anatomy import FloatArray
from scripts.phantom.deformation import ControlGrid

AGES = (-1.5, -0.75, 0.75, 1.5)
"""Ages at which the true central anatomy is saved, in standard deviations from the mean."""
_YOUNGEST, _OLDEST = 20.0, 80.0


@dataclass(frozen=True)
class People:
    """Ages (years) and sexes of a demo cohort.

    Args:
        age: years, one decimal; those of the training subjects are spread evenly.
        sex: F or M.
        training: number of training subjects among them.
    """

    age: FloatArray
    sex: tuple[str, ...]
    training: int

    @classmethod
    def drawn(cls, training: int, held_out: int, rng: np.random.Generator) -> People:
        """Random people; the training subjects' ages are one in each of equal intervals."""
        place = (rng.permutation(training) + rng.random(training)) / training
        place = np.r_[place, rng.random(held_out)]
        age = np.round(_YOUNGEST + (_OLDEST - _YOUNGEST) * place, 1)
        sex = ["FM"[i % 2] for i in rng.permutation(training)]
        sex += ["FM"[i] for i in rng.integers(0, 2, held_out)]
        return cls(age, tuple(sex), training)

    @property
    def z(self) -> FloatArray:
        """Ages in standard deviations (population) from the mean of the training subjects."""
        training_ages = self.age[: self.training]
        return (self.age - training_ages.mean()) / max(float(training_ages.std()), 1e-9)

    def write(self, path: Path, names: Sequence[str], first: int = 0) -> None:
        """Write ``participants.tsv`` for the first people, one for each of these names."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(zip(names, self.age[first:], self.sex[first:], strict=False))
        lines = [
            "participant_id\tage\tsex",
            *(f"{name}\t{age:g}\t{sex}" for name, age, sex in rows),
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def as_dict(self, effect: float) -> dict[str, Any]:
        """The people as an entry of the truth's record."""
        training_ages = self.age[: self.training]
        return {
            "effect_mm": effect,
            "mean": float(training_ages.mean()),
            "std": float(training_ages.std()),
            "years": self.age.tolist(),
            "sex": list(self.sex),
            "thinned": Ageing.THINNED,
        }


class Ageing:
    """The effect of age: tracts around the ventricles move outwards, the minor forceps gets
    thinner.

    The velocity points away from a centre, ``a (x - x0) / s exp(1/2 - |x - x0|^2 / 2 s^2)``, with
    with its largest length a at distance s; it is integrated over z standard deviations of age.

    Args:
        control: the grid for the integration.
        affine: voxel to world of the full grid.
        effect: a, mm.
    """

    CENTRE: ClassVar = (0.0, -16.0, 22.0)
    WIDTH: ClassVar = 26.0
    LARGEST: ClassVar = 8.0
    """Largest effect, mm, at which the oldest anatomy is still a smooth image of the youngest."""
    THINNED: ClassVar = "forceps_minor"
    LOSS: ClassVar = 0.3
    """Share of its streamlines that the thinned bundle loses per standard deviation."""

    def __init__(self, control: ControlGrid, affine: FloatArray, effect: float) -> None:
        self.control = control
        axes = [np.arange(n) * s for n, s in zip(control.shape, control.step, strict=True)]
        voxel = np.stack(np.meshgrid(*axes, indexing="ij"))
        world = np.tensordot(affine[:3, :3], voxel, axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)
        away = (world - np.reshape(self.CENTRE, (3, 1, 1, 1))) / self.WIDTH
        velocity = effect * away * np.exp((1 - (away**2).sum(0)) / 2)
        self.velocity = velocity / control.spacing.reshape(3, 1, 1, 1)

    def displacements(self, z: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Displacement from the central anatomy to an age, and its inverse; full grid, voxels."""
        there, back = (self.control.integrate(sign * z * self.velocity) for sign in (1, -1))
        return self.control.expand(there), self.control.expand(back)

    @classmethod
    def share(cls, bundle: str, z: float) -> float:
        """Number of streamlines of a bundle relative to the central anatomy."""
        return max(0.1, 1 - cls.LOSS * z) if bundle == cls.THINNED else 1.0


def composed(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Displacement of ``x -> second(first(x))``, both (3, X, Y, Z) in voxels."""
    places = np.stack(np.meshgrid(*[np.arange(n) for n in first.shape[1:]], indexing="ij")) + first
    more = [map_coordinates(part, places, order=1, mode="nearest") for part in second]
    return (first + np.stack(more)).astype(np.float32)
