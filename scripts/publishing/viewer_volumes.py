"""Volumes as the viewer of a page contains them: reduced, in 8 bits, compressed."""

from __future__ import annotations

import base64
import gzip
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import nibabel as nib
import numpy as np

from scripts.spatial.grid import CropBox, Grid, StorageOrder

__all__ = ["BUDGET", "Block", "Layer", "ViewedSubject", "ViewerGrid", "WorstSubjects"]

LARGEST_VOLUME = 1_000_000
"""Voxels of a volume that the page contains; a larger one is averaged over blocks of voxels."""
LARGEST_FIELD = 12_000
"""Voxels of a field and its growth that the page contains: they are smooth."""
LARGEST_MISFIT = 120_000
"""Voxels of a local misfit that the page contains: it is a mean over windows."""
BUDGET = 16_000_000
"""Bytes of volumes on a page; what doesn't fit is left out, and the page says so."""
SUBJECTS = 24
"""Most subjects that the page contains."""
_ENDS = ("LR", "PA", "IS")
_LEVEL = 6  # of gzip; 9 saves 2 % and takes three times as long


@dataclass(frozen=True)
class Block:
    """One volume, compressed.

    Attributes:
        data: base64 of gzip of the values in C order.
        shape: of the volume; a field has its components first.
        scale: value = stored number * scale; a signed volume stores number + 128.
        stored: type of the values, little-endian.
    """

    data: str
    shape: tuple[int, ...]
    scale: float
    stored: str = "u1"

    @classmethod
    def of(cls, values: np.ndarray, signed: bool = False) -> Self:
        """The block of ``(*shape)``; values that aren't finite become 0.

        Args:
            values: at least 0 unless signed.
            signed: the values may be negative.
        """
        values = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
        steps = 127 if signed else 255
        scale = float(np.abs(values).max(initial=0)) / steps or 1.0
        stored = np.rint(values / scale) + (128 if signed else 0)
        return cls(_packed(stored.astype(np.uint8)), values.shape, scale)

    @classmethod
    def of_field(cls, field: np.ndarray) -> Self:
        """The block of a displacement ``(d, *shape)``, in 16 bits."""
        field = np.nan_to_num(field, nan=0, posinf=0, neginf=0)
        scale = float(np.abs(field).max(initial=0)) / 32767 or 1.0
        return cls(_packed(np.rint(field / scale).astype("<i2")), field.shape, scale, "<i2")

    @classmethod
    def of_numbers(cls, numbers: np.ndarray) -> Self:
        """The block of whole numbers from 0, in as few bits as they need."""
        largest = int(numbers.max(initial=0))
        stored = next(kind for kind in ("u1", "<u2", "<u4") if largest <= np.iinfo(kind).max)
        return cls(_packed(numbers.astype(stored)), numbers.shape, 1.0, stored)

    def values(self) -> np.ndarray:
        """The numbers that are stored, before the scale."""
        raw = gzip.decompress(base64.b64decode(self.data))
        return np.frombuffer(raw, self.stored).reshape(self.shape)


def _packed(values: np.ndarray) -> str:
    data = gzip.compress(values.tobytes(), _LEVEL, mtime=0)  # the same bytes every time
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Layer:
    """What a person chooses in the viewer.

    Attributes:
        title: shown.
        kind: ``density`` (logarithms of 1 + density / offset), ``percent``, ``plain``, ``share``
            (0 to 1), ``signed`` (natural logarithms), ``field`` (millimetres along the viewer's
            axes) or ``labels`` (0 for none, n for the n-th name).
        whole: the maximum over all tracts, or the field.
        step: voxels of the viewer's grid to one of the blocks.
        tracts: a block for each tract, None for one that was dropped; empty for a cohort without
            tracts.
        names: of labels.
    """

    title: str
    kind: str
    whole: Block
    step: int = 1
    tracts: tuple[Block | None, ...] = ()
    names: tuple[str, ...] = ()

    def without_tracts(self) -> Layer:
        """The same layer, all tracts dropped."""
        return replace(self, tracts=(None,) * len(self.tracts))

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(len(one.data) for one in (self.whole, *self.tracts) if one is not None)


@dataclass(frozen=True)
class ViewerGrid:
    """The voxels that a page shows: those of a box, axes towards right, anterior, superior.

    Attributes:
        box: of the grid that is shown.
        order: of the grid's axes on the page.
        factors: voxels of the grid to one on the page, along the page's axes.
        shape: on the page.
        affine: ``(4, 4)``, voxels of the page to world millimetres (RAS).
        log_offset: of the density, see `scripts.atlas.network`.
    """

    box: CropBox
    order: StorageOrder
    factors: tuple[int, ...]
    shape: tuple[int, ...]
    affine: np.ndarray
    log_offset: float

    @classmethod
    def of(cls, grid: Grid, box: CropBox, log_offset: float, largest: int = LARGEST_VOLUME) -> Self:
        """The voxels of a box of a grid, averaged until there are at most ``largest``."""
        d = len(grid.shape)
        turns = nib.orientations.io_orientation(grid.affine)
        axes = tuple(sorted(range(d), key=lambda axis: turns[axis, 0]))
        order = StorageOrder(axes, tuple(bool(turns[axis, 1] < 0) for axis in axes))
        start = np.eye(4)
        start[:d, 3] = box.start
        turned = order.of_grid(Grid(box.shape, grid.affine @ start, grid.header))
        factors = _factors(turned.shape, turned.spacing, largest)
        inner = np.eye(4)
        for axis, factor in enumerate(factors):
            inner[axis, axis], inner[axis, 3] = factor, (factor - 1) / 2
        shape = tuple(-(-n // f) for n, f in zip(turned.shape, factors, strict=True))
        return cls(box, order, factors, shape, turned.affine @ inner, log_offset)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel of the page, mm."""
        return tuple(float(n) for n in np.linalg.norm(self.affine[:3, : len(self.shape)], axis=0))

    @property
    def ends(self) -> list[str]:
        """Letters of both ends of each axis, as ``LR``."""
        codes = nib.orientations.io_orientation(self.affine)[: len(self.shape), 0]
        return [_ENDS[int(code)] for code in codes]

    @property
    def step(self) -> int:
        """Voxels of the page to one of a field, along each axis."""
        return self._step(LARGEST_FIELD)

    def about(self) -> dict[str, Any]:
        """The grid as the page's script reads it."""
        return {
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "ends": self.ends,
            "affine": self.affine.tolist(),
            "offset": self.log_offset,
        }

    def reduced(self, volume: np.ndarray) -> np.ndarray:
        """``(..., *box.shape)`` in the page's order, averaged over blocks of voxels."""
        return _averaged(self.order.of_array(volume), self.factors)

    # ---------------------------------------------------------------------------------------------

    def density(self, title: str, density: np.ndarray) -> Layer:
        """A layer of linear densities ``(C, *box.shape)``."""
        values = np.log1p(np.maximum(self.reduced(density), 0) / self.log_offset)
        return self._of_tracts(title, "density", values)

    def map(self, title: str, values: np.ndarray, kind: str = "plain") -> Layer:
        """A layer of values ``(C, *box.shape)`` that are at least 0."""
        return self._of_tracts(title, kind, self.reduced(values))

    def field(self, title: str, displacement: np.ndarray) -> Layer:
        """A layer of a displacement ``(d, *box.shape)`` in voxels of the grid."""
        d = len(self.shape)
        turned = self.order.of_array(displacement)[list(self.order.axes)]
        signs = np.where(self.order.flips, -1, 1).reshape(-1, *[1] * d)
        fine = np.array(self.spacing) / self.factors
        millimetres = turned * signs * fine.reshape(-1, *[1] * d)
        small = _averaged(millimetres, [factor * self.step for factor in self.factors])
        return Layer(title, "field", Block.of_field(small), self.step)

    def growth(self, title: str, ratio: np.ndarray) -> Layer:
        """A layer of the logarithm of a ratio of volumes ``(*box.shape)``, 0.001 to 1000."""
        values = np.log(np.clip(self.order.of_array(ratio), 1e-3, 1e3))
        small = _averaged(values, [factor * self.step for factor in self.factors])
        return Layer(title, "signed", Block.of(small, signed=True), self.step)

    def misfit(self, title: str, values: np.ndarray) -> Layer:
        """A layer of a local misfit ``(*box.shape)``, 0 to 1, see `local_misfit`."""
        step = self._step(LARGEST_MISFIT)
        turned = self.order.of_array(values)
        small = _averaged(turned, [factor * step for factor in self.factors])
        return Layer(title, "share", Block.of(small), step)

    def labels(self, title: str, labels: np.ndarray, names: Mapping[int, str]) -> Layer:
        """A layer of labels ``(*box.shape)``, each voxel that of its block's middle.

        Args:
            title: shown.
            labels: whole numbers, 0 for background.
            names: of labels; one without a name is called by its number.
        """
        chosen = self.order.of_array(labels)
        for axis, factor in enumerate(self.factors):
            n = chosen.shape[axis]
            chosen = chosen.take(np.minimum(np.arange(0, n, factor) + factor // 2, n - 1), axis)
        present = np.unique(chosen)
        present = present[present != 0]
        numbers = np.where(chosen == 0, 0, np.searchsorted(present, chosen) + 1)
        called = tuple(names.get(label, str(label)) for label in present.tolist())
        return Layer(title, "labels", Block.of_numbers(numbers), names=called)

    def of_subject(
        self,
        name: str,
        image: np.ndarray,
        before: np.ndarray,
        displacement: np.ndarray,
        ratio: np.ndarray,
        misfit: np.ndarray,
    ) -> dict[str, Layer]:
        """Everything that the page of an atlas has of a subject, by role.

        Args:
            name: of the subject.
            image: density in template space ``(C, *box.shape)``.
            before: density before registration, likewise.
            displacement: ``(d, *box.shape)`` in voxels of the grid.
            ratio: volume of the subject over that of the template ``(*box.shape)``.
            misfit: of the template, 0 to 1, ``(*box.shape)``.
        """
        return {
            "image": self.density(name, image),
            "before": self.density(f"{name} before registration", before),
            "field": self.field(f"displacement of {name}", displacement),
            "growth": self.growth(f"growth of {name}", ratio),
            "misfit": self.misfit(f"local misfit of {name}", misfit),
        }

    def _step(self, largest: int) -> int:
        """Voxels of the page to one of a smooth volume, along each axis."""
        step = 1
        while np.prod([-(-n // step) for n in self.shape]) > largest:
            step += 1
        return step

    def _of_tracts(self, title: str, kind: str, values: np.ndarray) -> Layer:
        parts = tuple(Block.of(one) for one in values) if len(values) > 1 else ()
        return Layer(title, kind, Block.of(values.max(axis=0)), tracts=parts)


def _factors(shape: Sequence[int], spacing: Sequence[float], largest: int) -> tuple[int, ...]:
    """Voxels to average along each axis: the finest axes first, so that voxels become cubes."""
    factors = [1] * len(shape)
    while np.prod([-(-n // f) for n, f in zip(shape, factors, strict=True)]) > largest:
        # An axis of one voxel can't be reduced any further.
        sizes = [
            s * f if n > f else np.inf for n, s, f in zip(shape, spacing, factors, strict=True)
        ]
        finest = min(sizes)
        factors = [f + (size <= 1.01 * finest) for f, size in zip(factors, sizes, strict=True)]
    return tuple(factors)


def _averaged(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Means over blocks of ``factors`` voxels; the last block of an axis may be smaller."""
    values = np.asarray(volume, np.float32)
    for back, factor in enumerate(reversed(factors), start=1):
        if factor == 1:
            continue
        n = values.shape[-back]
        starts = np.arange(0, n, factor)
        counts = np.minimum(factor, n - starts).astype(np.float32)
        values = np.add.reduceat(values, starts, axis=values.ndim - back)
        values /= counts.reshape(-1, *[1] * (back - 1))
    return values


@dataclass(frozen=True)
class ViewedSubject:
    """A subject on the page.

    Attributes:
        name: of the subject.
        order: worst first: folds, then correlation with the template, then place in the cohort.
        layers: by role: ``after`` and ``before`` registration, ``field``, ``growth``.
    """

    name: str
    order: tuple[bool, float, int]
    layers: dict[str, Layer]


@dataclass
class WorstSubjects:
    """The subjects that fit worst, a fixed number of them.

    Attributes:
        size: largest number.
        kept: in no order.
    """

    size: int = SUBJECTS
    kept: list[ViewedSubject] = field(default_factory=list)

    def wants(self, order: tuple[bool, float, int]) -> bool:
        """Whether a subject of this order would be kept."""
        return len(self.kept) < self.size or order < max(one.order for one in self.kept)

    def add(self, subjects: Iterable[ViewedSubject]) -> None:
        """Keep the worst of those there and of these; tracts as long as a page has room."""
        room = BUDGET
        self.kept, candidates = [], [*self.kept, *subjects]
        for one in heapq.nsmallest(self.size, candidates, key=lambda subject: subject.order):
            room -= sum(layer.size for layer in one.layers.values())
            layers = {
                role: layer if room >= 0 else layer.without_tracts()
                for role, layer in one.layers.items()
            }
            self.kept.append(replace(one, layers=layers))

    def sorted(self) -> list[ViewedSubject]:
        """Worst first."""
        return sorted(self.kept, key=lambda one: one.order)
