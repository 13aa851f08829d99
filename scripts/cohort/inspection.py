"""Reads a subject's files once: their content, or the reason for leaving the subject out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scripts.cohort.cohort import DensityMap, Subject
from scripts.cohort.density import (
    CleaningRule,
    DensityError,
    check_density,
    clean_density,
    density_divisor,
    load_density,
)
from scripts.cohort.discovery import (
    Candidate,
)
from scripts.cohort.patterns import Rejection
from scripts.cohort.tractogram_maps import Counting
from scripts.errors import CohortError
from scripts.runtime.input_files import FileError
from scripts.runtime.ordered_map import ordered_map, reading_threads
from scripts.settings.cohort import CohortRequest
from scripts.spatial.grid import CropBox, Grid, StorageOrder

__all__ = ["Inspection", "inspect_subject"]


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of reading a subject's maps.

    Attributes:
        subject: files, channels, divisors, hashes.
        grid: of its first map; the others lie on it as well.
        box: smallest box that holds its support.
        density: float64 ``(C, *box.shape)``, normalised, everything outside the box being 0.
        content: digest of the voxels, equal for copies of one map however they are stored.
        remarks: what isn't wrong but worth a warning.
        is_mask: whether its files hold 0 and 1 alone.
    """

    subject: Subject
    grid: Grid
    box: CropBox
    density: np.ndarray
    content: str
    remarks: tuple[str, ...]
    is_mask: bool = False

    def on_grid_of(self, grid: Grid, tolerance: float) -> Inspection | None:
        """The same on a grid with these voxels in another order; None if the voxels differ."""
        order = self.grid.order_onto(grid, tolerance)
        if order is None:
            return None
        maps = []
        for one in self.subject.maps:
            onto_first = StorageOrder.from_list(one.order) if one.order else None
            whole = order if onto_first is None else onto_first.then(order)
            maps.append(replace(one, order=tuple(whole.as_list())))
        return replace(
            self,
            subject=replace(self.subject, maps=tuple(maps)),
            grid=grid,
            box=order.of_box(self.box, self.grid.shape),
            density=np.ascontiguousarray(order.of_array(self.density)),
        )


def inspect_subject(
    candidate: Candidate, request: CohortRequest, counting: Counting | None = None
) -> Inspection:
    """Read, check and normalise every map of a subject.

    A tract may be empty if another one isn't: its absence is information.

    Args:
        candidate: the subject.
        request: gives the normalisation and the number of channels.
        counting: how tractograms become maps; needed only for tractograms.

    Raises:
        CohortError: the subject can't be used; the message names the file and the reason.
    """
    method, setting = request.cohort.normalisation, request.option("normalisation")
    tolerance = request.cohort.grid_tolerance
    rule = CleaningRule(
        request.cohort.nan, request.cohort.negative, request.option("nan"),
        request.option("negative"),
    )  # fmt: skip
    maps: list[DensityMap] = []
    grid: Grid | None = None
    density: np.ndarray | None = None
    content = hashlib.sha256()
    remarks: list[str] = []
    is_mask = counting is None
    for given in candidate.maps:
        source, counted = given, None
        if counting is not None:
            source, counted = counting.map_of(candidate.name, given)
        loaded = load_density(source.path)
        data, zeros, cleaned = clean_density(source.path, loaded.data, rule)
        order = None
        if grid is None or density is None:
            grid = loaded.grid
            density = np.zeros((request.search.channels, *grid.shape))
        elif (difference := loaded.grid.same_as(grid, tolerance)) is not None:
            turned = loaded.grid.order_onto(grid, tolerance)
            if turned is None:
                raise DensityError(
                    source.path, f"is not on the grid of {candidate.maps[0].path}: {difference}"
                )
            data, order = turned.of_array(data), tuple(turned.as_list())
        check_density(source.path, data, may_be_empty=source.tract is not None)
        empty = not data.any()
        is_mask = is_mask and data.max() == 1 and bool(((data == 0) | (data == 1)).all())
        if empty:
            remarks.append(f"tract {source.tract} is empty and counts as absent")
        divisor = 1.0 if empty else density_divisor(method, source.path, data, setting)
        content.update(f"{source.channel}{data.shape}".encode())
        content.update(np.ascontiguousarray(data).data)
        with np.errstate(over="ignore"):  # what overflows is refused below
            density[source.channel] += data / divisor
        further = () if counted is None else counted.remarks
        remarks += [f"{given.path}: {remark}" for remark in further]
        remarks += [*loaded.remarks, *cleaned]
        maps.append(
            DensityMap(
                source.path, source.channel, divisor, loaded.sha256, counted, order, zeros
            )
        )  # fmt: skip
    if grid is None or density is None:
        raise CohortError(f"subject {candidate.name} has no map")
    high = float(density.max())
    first = candidate.maps[0].path
    if high > float(np.finfo(np.float32).max):
        raise DensityError(first, f"is too large after normalisation ({high:g})")
    if np.float32(high) < np.finfo(np.float32).tiny:
        what = "every tract is empty" if high == 0 else f"at most {high:g} after normalisation"
        raise DensityError(first, f"is empty: {what}")
    box = CropBox.around(np.asarray(density.any(axis=0)))
    subject = Subject(candidate.name, tuple(maps), person=candidate.person)
    # A copy, since a view would keep the whole grid in memory.
    inside = box.crop(density).copy()
    return Inspection(
        subject, grid, box, inside, content.hexdigest(), tuple(remarks), is_mask
    )  # fmt: skip


def inspect_all(
    candidates: Sequence[Candidate], request: CohortRequest, counting: Counting | None
) -> Iterator[tuple[Candidate, Inspection | Rejection]]:
    """Inspect subjects in threads; results come in order, and few are in memory at once."""

    def read(candidate: Candidate) -> Inspection | Rejection:
        return _inspect_or_reject(candidate, request, counting)

    return ordered_map(read, candidates, reading_threads())


def _inspect_or_reject(
    candidate: Candidate, request: CohortRequest, counting: Counting | None
) -> Inspection | Rejection:
    try:
        return inspect_subject(candidate, request, counting)
    except FileError as error:
        return Rejection(candidate.name, str(error.path), error.reason)
