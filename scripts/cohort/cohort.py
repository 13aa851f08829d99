"""The cohort: subjects that were read, checked and found to share one grid."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from scripts.cohort.covariates import CovariateCoding, Values, read_participants
from scripts.cohort.density import (
    DensityError,
    check_density,
    density_divisor,
    load_density,
    waytotal_file,
)
from scripts.cohort.discovery import (
    ONE_BY_ONE,
    Candidate,
    Discovery,
    Rejection,
    candidates_from_files,
    find_subjects,
)
from scripts.cohort.grid import CropBox, Grid
from scripts.cohort.streamlines import CountedMap, Counting, counting_for
from scripts.errors import CohortError, ConfigurationError
from scripts.outside import FileError
from scripts.settings import LearnedAtlasConfig
from scripts.tractograms import is_tractogram

__all__ = [
    "Cohort",
    "DensityMap",
    "Inspection",
    "NewSubjects",
    "Progress",
    "Subject",
    "inspect_subject",
    "read_cohort",
    "read_new_subjects",
]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with the number of subjects done, their total and the name of the last one."""

_SCALE_RATIO = 50  # between sums of normalised maps: beyond it counts were mixed with densities


@dataclass(frozen=True)
class DensityMap:
    """A file of a subject.

    Attributes:
        path: absolute.
        channel: of the model that it belongs to.
        divisor: its density is the file's values over this.
        sha256: of the file's bytes.
        counted: the tractogram that it was counted from, None for a map that was found as such.
    """

    path: Path
    channel: int
    divisor: float
    sha256: str
    counted: CountedMap | None = None

    @property
    def origin(self) -> str:
        """What a person put there: the tractogram, or else the map."""
        return str(self.path) if self.counted is None else self.counted.tractogram

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; of the tractogram only where there is one."""
        values = {**asdict(self), "path": str(self.path)}
        if self.counted is None:
            del values["counted"]
        return values


@dataclass(frozen=True)
class Subject:
    """A usable subject; the density of a channel is the sum of its maps over their divisors.

    Attributes:
        name: of the subject.
        maps: its files.
        covariates: name and value of each covariate that the settings ask for.
    """

    name: str
    maps: tuple[DensityMap, ...]
    covariates: tuple[tuple[str, float | str], ...] = ()

    def item(self, coding: CovariateCoding | None = None) -> dict[str, Any]:
        """The subject as dictionary transforms take it: lists, one entry per map.

        With a coding, ``covariates`` as well, one number per column.
        """
        item: dict[str, Any] = {
            "subject": self.name,
            "image": [str(one.path) for one in self.maps],
            "divisor": [one.divisor for one in self.maps],
            "channel": [one.channel for one in self.maps],
        }
        if coding is not None:
            item["covariates"] = coding.code(dict(self.covariates))
        return item


@dataclass(frozen=True, eq=False)
class Inspection:
    """What reading a subject's maps told.

    Attributes:
        subject: files, channels, divisors, hashes.
        grid: of its first map; the others lie on it as well.
        box: smallest box that holds its support.
        density: float64 ``(C, *box.shape)``, normalised, everything outside the box being 0.
        content: digest of the voxels, equal for copies of one map however they are stored.
        remarks: what isn't wrong but worth a warning.
    """

    subject: Subject
    grid: Grid
    box: CropBox
    density: np.ndarray
    content: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Subjects that share one grid, and their mean.

    Attributes:
        subjects: usable ones, by name.
        rejected: those left out, with reasons.
        grid: the first subject's, which every other lies on.
        crop: box around the support of all subjects, margin included.
        mean_density: float32 ``(C, *crop.shape)``, mean of the normalised densities.
        normalisation: the one method in use.
        pattern: that of the layout in use.
        tracts: name per channel; empty when the one channel is the whole map.
        sums: per subject, the sum of its normalised density.
        without_map: folders of the dataset that hold no map.
        coding: of the subjects' covariates; None where the settings ask for none.
    """

    subjects: tuple[Subject, ...]
    rejected: tuple[Rejection, ...]
    grid: Grid
    crop: CropBox
    mean_density: np.ndarray
    normalisation: str
    pattern: str
    tracts: tuple[str, ...] = ()
    sums: tuple[float, ...] = ()
    without_map: tuple[str, ...] = ()
    coding: CovariateCoding | None = None

    def datalist(self) -> list[dict[str, Any]]:
        """One dictionary per subject, see `Subject.item`."""
        return [subject.item(self.coding) for subject in self.subjects]

    def design(self) -> np.ndarray | None:
        """Coded covariates ``(N, columns)`` float32, in the subjects' order."""
        if self.coding is None:
            return None
        return np.stack([self.coding.code(dict(one.covariates)) for one in self.subjects])

    def table(self) -> str:
        """Subjects found and left out, with reasons, as lines of text."""
        return _table(self.subjects, self.rejected, self.without_map, self.pattern)

    def identity(self) -> str:
        """SHA-256 over what training depends on; the same wherever the dataset lies."""
        maps = [
            [subject.name, one.channel, one.divisor.hex(), one.sha256]
            for subject in self.subjects
            for one in subject.maps
        ]
        said: list[Any] = [self.normalisation, self.tracts, maps]
        if self.coding is not None:
            said.append([[one.name, one.covariates] for one in self.subjects])
        text = json.dumps(said, ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Everything but the mean as plain JSON values."""
        return {
            "identity": self.identity(),
            "normalisation": self.normalisation,
            "pattern": self.pattern,
            "tracts": list(self.tracts),
            "grid": self.grid.as_dict(),
            "crop": {"start": list(self.crop.start), "stop": list(self.crop.stop)},
            "subjects": [
                {
                    "subject": subject.name,
                    "maps": [one.as_dict() for one in subject.maps],
                    **({"covariates": dict(subject.covariates)} if subject.covariates else {}),
                }
                for subject in self.subjects
            ],
            "rejected": [asdict(rejection) for rejection in self.rejected],
            "without_map": list(self.without_map),
        }


@dataclass(frozen=True, eq=False)
class NewSubjects:
    """Subjects that an existing atlas is brought to; checked against its grid."""

    subjects: tuple[Subject, ...]
    rejected: tuple[Rejection, ...] = field(default=())
    coding: CovariateCoding | None = None

    def datalist(self) -> list[dict[str, Any]]:
        """As `Cohort.datalist`."""
        return [subject.item(self.coding) for subject in self.subjects]


def read_cohort(
    dataset_dir: str | Path,
    config: LearnedAtlasConfig,
    progress: Progress | None = None,
    files: Sequence[Path] | None = None,
    coding: CovariateCoding | None = None,
) -> Cohort:
    """Find, read and check a cohort in one pass.

    Every map is read once; memory doesn't grow with the number of subjects. Subjects that can't
    be used are left out with their reason.

    Args:
        dataset_dir: the dataset folder.
        config: its cohort section, training space, channels and ``min_subjects`` are read.
        progress: called after each subject.
        files: the maps one by one, in place of the folder.
        coding: of a model whose covariates these subjects have; None: the cohort fixes its own.

    Returns:
        The cohort; the same whatever the order in which files happen to be read.

    Raises:
        CohortError: no or too few usable subjects, subjects on different grids, or several
            unexplained runs of one subject.
        ConfigurationError: tracts, channels and the dataset don't go together.
    """
    root = Path(dataset_dir).absolute()
    source = f"dataset folder {root}" if files is None else f"the list of {len(files)} maps"
    found = find_subjects(root, config) if files is None else candidates_from_files(files, config)
    if not found.candidates and not found.rejected:
        folders = f"; folders without a map: {_some(found.without_map)}"
        raise CohortError(
            f"no subject found in {source}: no map at {found.pattern}"
            f"{folders if found.without_map else ''} (see learned_atlas#cohort#layout and "
            "learned_atlas#cohort#pattern)"
        )
    pool = _Pool()
    found, known = _with_covariates(found, root, config)
    rejected = list(found.rejected)
    counting = counting_for(found.candidates, config, root)
    for done, (candidate, result) in enumerate(
        _inspect_all(found.candidates, config, counting), start=1
    ):
        if isinstance(result, Rejection):
            rejected.append(result)
        else:
            pool.add(result)
        if progress is not None:
            progress(done, len(found.candidates), candidate.name)

    subjects = tuple(pool.subjects)
    left_out = tuple(sorted(rejected, key=lambda one: one.subject))
    table = _table(subjects, left_out, found.without_map, found.pattern)
    if len(subjects) < config.min_subjects or pool.grid is None or pool.box is None:
        raise CohortError(
            f"{len(subjects)} usable subjects in {source}, fewer than "
            f"learned_atlas.min_subjects = {config.min_subjects}\n{table}"
        )
    for rejection in left_out:
        logger.warning(
            "subject %s is left out: %s: %s", rejection.subject, rejection.path, rejection.reason
        )
    if found.without_map:
        logger.warning("folders without a map: %s", _some(found.without_map))
    pool.warn(config)
    if config.model.covariates:
        subjects = _described(subjects, known)
        people = [dict(subject.covariates) for subject in subjects]
        coding = coding or CovariateCoding.of_cohort(people, config)
        _check_coded(subjects, coding)
    crop = pool.box.grown(config.cohort.margin, pool.grid.shape)
    mean = pool.box.within(crop).paste(pool.total / len(subjects), crop.shape)
    logger.info("cohort of %d subjects, %d left out", len(subjects), len(left_out))
    return Cohort(
        subjects=subjects,
        rejected=left_out,
        grid=pool.grid,
        crop=crop,
        mean_density=mean.astype(np.float32),
        normalisation=config.cohort.normalisation,
        pattern=found.pattern,
        tracts=found.tracts,
        sums=tuple(pool.sums),
        without_map=found.without_map,
        coding=coding,
    )


def _with_covariates(
    found: Discovery, root: Path, config: LearnedAtlasConfig
) -> tuple[Discovery, Mapping[str, Values]]:
    """Subjects whose covariates are known, and these; the others are left out with the reason."""
    if not config.model.covariates:
        return found, {}
    people = read_participants(root / config.cohort.participants, config.model.covariates)
    usable, rejected = [], list(found.rejected)
    for candidate in found.candidates:
        reason = people.reason_against(candidate.name)
        if reason is None:
            usable.append(candidate)
        else:
            rejected.append(Rejection(candidate.name, str(people.path), reason))
    names = [candidate.name for candidate in usable]
    known = people.values(names, config.model.categorical_covariates)
    return replace(found, candidates=tuple(usable), rejected=tuple(rejected)), known


def _described(subjects: Sequence[Subject], known: Mapping[str, Values]) -> tuple[Subject, ...]:
    return tuple(replace(one, covariates=tuple(known[one.name].items())) for one in subjects)


def _check_coded(subjects: Sequence[Subject], coding: CovariateCoding) -> None:
    """Every subject can be coded; says who is far from what the coding was made of.

    Raises:
        CohortError: naming subject, covariate and value.
    """
    for subject in subjects:
        values = dict(subject.covariates)
        try:
            coding.code(values)
        except ConfigurationError as error:
            raise CohortError(f"subject {subject.name}: {error}") from None
        for sentence in coding.beyond(values):
            logger.warning("subject %s: %s", subject.name, sentence)


def read_new_subjects(
    source: str | Path | Sequence[str | Path],
    config: LearnedAtlasConfig,
    grid: Grid,
    crop: CropBox,
    coding: CovariateCoding | None = None,
    at: Values | None = None,
) -> NewSubjects:
    """Read and check subjects that an existing atlas is to be brought to.

    Args:
        source: a dataset folder, one file (``.nii``, ``.nii.gz`` or a tractogram) or several;
            tractograms are counted on the atlas's grid.
        config: as for `read_cohort`; ``min_subjects`` doesn't apply.
        grid: the atlas's.
        crop: the atlas's; a warning tells which share of a density lies outside of it.
        coding: of the atlas's covariates; None if it has none.
        at: covariates of all these subjects; None: they are looked up in the participants' table
            (for files named one by one relative to the current folder).

    Raises:
        CohortError: no subject can be used, or one lies on another grid and
            ``learned_atlas.cohort.resample`` is false.
    """
    found = _find_new(source, config)
    known: Mapping[str, Values] = {}
    if coding is not None and at is None:
        root = Path() if found.pattern == ONE_BY_ONE else Path(str(source))
        found, known = _with_covariates(found, root, config)
    elif at is not None:
        known = {candidate.name: at for candidate in found.candidates}
    subjects: list[Subject] = []
    rejected = list(found.rejected)
    folder = Path(source).absolute() if _is_folder(source) else None
    counting = counting_for(found.candidates, config, folder, grid)
    for _, result in _inspect_all(found.candidates, config, counting):
        if isinstance(result, Rejection):
            rejected.append(result)
            continue
        path = result.subject.maps[0].path
        difference = result.grid.same_as(grid)
        if difference is not None and not config.cohort.resample:
            raise CohortError(
                f"subject {result.subject.name} ({path}) is not on the atlas's grid: {difference}; "
                "a map must have the atlas's shape and affine, or be resampled with "
                "--learned_atlas#cohort#resample true"
            )
        if difference is None:
            _warn_outside(result, crop)
        for remark in result.remarks:
            logger.warning("subject %s: %s", result.subject.name, remark)
        subjects.append(result.subject)
    if not subjects:
        table = _table((), tuple(rejected), found.without_map, found.pattern)
        raise CohortError(f"no usable subject\n{table}")
    for rejection in rejected:
        logger.warning(
            "subject %s is left out: %s: %s", rejection.subject, rejection.path, rejection.reason
        )
    described = tuple(subjects)
    if coding is not None:
        described = _described(subjects, known)
        _check_coded(described, coding)
    return NewSubjects(described, tuple(rejected), coding)


def _find_new(
    source: str | Path | Sequence[str | Path],
    config: LearnedAtlasConfig,
) -> Discovery:
    if isinstance(source, str | Path):
        if _is_folder(source):
            return find_subjects(Path(source).absolute(), config)
        source = [source]
    return candidates_from_files([Path(path) for path in source], config)


def _is_folder(source: str | Path | Sequence[str | Path]) -> TypeGuard[str | Path]:
    """Whether it stands for a dataset folder; what is named like a map is one."""
    if not isinstance(source, str | Path):
        return False
    return not (Path(source).name.endswith((".nii", ".nii.gz")) or is_tractogram(source))


def _warn_outside(result: Inspection, crop: CropBox) -> None:
    inner = CropBox(
        tuple(map(max, result.box.start, crop.start)), tuple(map(min, result.box.stop, crop.stop))
    )
    if inner == result.box:
        return
    whole = float(result.density.sum())
    apart = any(size <= 0 for size in inner.shape)
    inside = 0.0 if apart else float(inner.within(result.box).crop(result.density).sum())
    logger.warning(
        "subject %s has %.2g %% of its density outside the atlas's box; it is cut off",
        result.subject.name,
        100 * (1 - inside / whole),
    )


# ---------------------------------------------------------------------------------------------
# One subject
# ---------------------------------------------------------------------------------------------


def inspect_subject(
    candidate: Candidate, config: LearnedAtlasConfig, counting: Counting | None = None
) -> Inspection:
    """Read and check every map of a subject, and normalise them.

    A tract may be empty as long as another one isn't: its absence counts.

    Args:
        candidate: the subject as found.
        config: normalisation and number of channels are read.
        counting: how tractograms become maps; needed if it has any.

    Raises:
        CohortError: the subject can't be used; the message names the file and the reason.
    """
    method = config.cohort.normalisation
    maps: list[DensityMap] = []
    grid: Grid | None = None
    density: np.ndarray | None = None
    content = hashlib.sha256()
    remarks: list[str] = []
    for given in candidate.maps:
        found, counted = given, None
        if counting is not None:
            found, counted = counting.map_of(candidate.name, given)
        loaded = load_density(found.path)
        if grid is None or density is None:
            grid = loaded.grid
            density = np.zeros((config.model.channels, *grid.shape))
        elif (difference := loaded.grid.same_as(grid)) is not None:
            raise DensityError(
                found.path, f"is not on the grid of {candidate.maps[0].path}: {difference}"
            )
        check_density(found.path, loaded.data, may_be_empty=found.tract is not None)
        empty = not loaded.data.any()
        if empty:
            remarks.append(f"tract {found.tract} is empty and counts as absent")
        divisor = 1.0 if empty else density_divisor(method, found.path, loaded.data)
        content.update(f"{found.channel}{loaded.data.shape}".encode())
        content.update(np.ascontiguousarray(loaded.data).data)
        with np.errstate(over="ignore"):  # what overflows is refused below
            density[found.channel] += loaded.data / divisor
        further = () if counted is None else counted.remarks
        remarks += [f"{given.path}: {remark}" for remark in (*loaded.remarks, *further)]
        maps.append(DensityMap(found.path, found.channel, divisor, loaded.sha256, counted))
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
    subject = Subject(candidate.name, tuple(maps))
    # A copy, since a view would keep the whole grid alive.
    inside = box.crop(density).copy()
    return Inspection(subject, grid, box, inside, content.hexdigest(), tuple(remarks))


def _inspect_all(
    candidates: Sequence[Candidate], config: LearnedAtlasConfig, counting: Counting | None
) -> Iterator[tuple[Candidate, Inspection | Rejection]]:
    """Inspect subjects in threads; results come in order, few are alive at once."""
    workers = _readers()
    with ThreadPoolExecutor(workers) as executor:
        ahead: deque[tuple[Candidate, Future[Inspection | Rejection]]] = deque()
        try:
            for candidate in candidates:
                ahead.append(
                    (candidate, executor.submit(_inspect_or_reject, candidate, config, counting))
                )
                if len(ahead) > workers:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _inspect_or_reject(
    candidate: Candidate, config: LearnedAtlasConfig, counting: Counting | None
) -> Inspection | Rejection:
    try:
        return inspect_subject(candidate, config, counting)
    except FileError as error:
        return Rejection(candidate.name, str(error.path), error.reason)


def _readers() -> int:
    """Threads that read: decompression runs outside Python's lock, so a few of them pay."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(4, usable or 1)


# ---------------------------------------------------------------------------------------------
# All subjects
# ---------------------------------------------------------------------------------------------


class _Pool:
    """Running sum over subjects, on the box around the supports seen so far."""

    def __init__(self) -> None:
        self.subjects: list[Subject] = []
        self.sums: list[float] = []
        self.remarks: list[str] = []
        self.contents: dict[str, list[str]] = {}
        self.grid: Grid | None = None
        self.box: CropBox | None = None
        self.total = np.zeros(0)

    def add(self, inspection: Inspection) -> None:
        """Take a subject in.

        Raises:
            CohortError: it lies on another grid than the first one.
        """
        name = inspection.subject.name
        if self.grid is None or self.box is None:
            self.grid, self.box = inspection.grid, inspection.box
            self.total = np.zeros_like(inspection.density)
        difference = inspection.grid.same_as(self.grid)
        if difference is not None:
            first, other = self.subjects[0], inspection.subject
            raise CohortError(
                f"subjects {other.name} ({other.maps[0].path}) and {first.name} "
                f"({first.maps[0].path}) lie on different grids: {difference}; all subjects must "
                "share shape and affine, and nothing is resampled silently"
            )
        union = self.box.union(inspection.box)
        if union != self.box:
            self.total = self.box.within(union).paste(self.total, union.shape)
            self.box = union
        inspection.box.within(union).crop(self.total)[...] += inspection.density
        self.subjects.append(inspection.subject)
        self.sums.append(float(inspection.density.sum()))
        self.remarks += [f"subject {name}: {remark}" for remark in inspection.remarks]
        self.contents.setdefault(inspection.content, []).append(name)

    def warn(self, config: LearnedAtlasConfig) -> None:
        """Log what doesn't stop the run but may spoil the atlas.

        Raises:
            CohortError: two subjects were divided by one and the same waytotal file.
        """
        for remark in self.remarks:
            logger.warning("%s", remark)
        for names in self.contents.values():
            if len(names) > 1:
                logger.warning(
                    "subjects %s have the same density, voxel by voxel: is one of them a copy?",
                    " and ".join(names),
                )
        low, high = int(np.argmin(self.sums)), int(np.argmax(self.sums))
        ratio = self.sums[high] / self.sums[low]
        if ratio > _SCALE_RATIO:
            logger.warning(
                "the density of subject %s sums to %.4g, %.0f times as much as subject %s's "
                "(%.4g): were counts mixed with densities?",
                self.subjects[high].name,
                self.sums[high],
                ratio,
                self.subjects[low].name,
                self.sums[low],
            )
        if config.cohort.normalisation == "waytotal":
            _check_waytotals(self.subjects)


def _check_waytotals(subjects: Iterable[Subject]) -> None:
    users: dict[Path, str] = {}
    for subject in subjects:
        for one in subject.maps:
            if one.path.name.startswith("densityNorm."):
                continue
            file = waytotal_file(one.path)
            if users.setdefault(file, subject.name) != subject.name:
                raise CohortError(
                    f"{file} can't be the waytotal of both subject {users[file]} and subject "
                    f"{subject.name}; maps that share a folder need <map>_waytotal files"
                )


def _table(
    subjects: Sequence[Subject],
    rejected: Sequence[Rejection],
    without_map: Sequence[str],
    pattern: str,
) -> str:
    lines = [f"{len(subjects)} subjects found, {len(rejected)} rejected (maps at {pattern})"]
    rows = [(one.name, "found", ", ".join(part.origin for part in one.maps)) for one in subjects]
    rows += [(one.subject, "rejected", f"{one.path}: {one.reason}") for one in rejected]
    width = max((len(name) for name, _, _ in rows), default=0)
    lines += [f"  {name:<{width}}  {status:<8}  {text}" for name, status, text in sorted(rows)]
    if without_map:
        lines.append(f"  folders without a map: {_some(without_map)}")
    return "\n".join(lines)


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
