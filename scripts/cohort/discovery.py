"""Which subjects a dataset folder holds, and where their maps are; nothing is read yet."""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.cohort.layouts import Alternative, alternatives
from scripts.errors import CohortError, ConfigurationError
from scripts.outside import FileError, read_text, say
from scripts.settings import LearnedAtlasConfig
from scripts.tractograms import is_tractogram

__all__ = [
    "Candidate",
    "Discovery",
    "FoundMap",
    "Rejection",
    "are_left_and_right",
    "candidates_from_files",
    "find_subjects",
]

logger = logging.getLogger(__name__)

LONGEST_NAME = 200  # bytes of a subject's name: files are named after it, with up to 50 more
ONE_BY_ONE = "files named one by one"
OUTPUT_FOLDERS = frozenset(
    {
        "atlas",
        "atlas_in_patient_space",
        "barycentre",
        "cross_validation",
        "evaluation",
        "learned_atlas",
        "registered",
        "tract_similarity",
    }
)


@dataclass(frozen=True)
class Rejection:
    """A subject that is left out.

    Attributes:
        subject: its name.
        path: the file or folder at fault.
        reason: what is wrong with it.
    """

    subject: str
    path: str
    reason: str


@dataclass(frozen=True)
class FoundMap:
    """A density map that was found.

    Attributes:
        path: its file.
        channel: of the model that it belongs to.
        tract: its tract's name, None for a whole map.
    """

    path: Path
    channel: int
    tract: str | None


@dataclass(frozen=True)
class Candidate:
    """A subject as found, its maps not read yet; maps of one channel are to be summed."""

    name: str
    maps: tuple[FoundMap, ...]


@dataclass(frozen=True)
class Discovery:
    """What a dataset folder holds.

    Attributes:
        candidates: subjects with maps, by name.
        rejected: subjects that were asked for, or found, and can't be used.
        without_map: folders where a subject could be but no map is.
        pattern: that of the layout's alternative in use.
        tracts: name per channel; empty when the one channel is the whole map.
    """

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    without_map: tuple[str, ...]
    pattern: str
    tracts: tuple[str, ...]


@dataclass(frozen=True)
class _Match:
    """A file that fits a pattern; ``run`` tells several of one subject and tract apart."""

    path: Path
    subject: str
    tract: str | None
    run: str


def find_subjects(dataset_dir: Path, config: LearnedAtlasConfig) -> Discovery:
    """Look for subjects and their maps.

    Hidden entries and folders of earlier outputs are passed over.

    Args:
        dataset_dir: the dataset folder.
        config: its cohort section, training space, channels and output folder are read.

    Raises:
        CohortError: the folder can't be read, or a subject has several unexplained runs.
        ConfigurationError: tracts, channels and what the folder holds don't go together.
    """
    if not dataset_dir.is_dir():
        what = "is not a folder" if dataset_dir.exists() else "does not exist"
        raise CohortError(f"dataset folder {dataset_dir} {what}")
    cohort = config.cohort
    outputs = OUTPUT_FOLDERS | {config.output_subdir}
    if isinstance(cohort.subjects, str) and cohort.subjects.lower().endswith((".csv", ".json")):
        listing = dataset_dir / cohort.subjects
        if cohort.subjects.lower().endswith(".csv"):
            scan = _Scan(matches=_read_csv(listing, dataset_dir))
        else:
            scan = _Scan(matches=_read_datalist(listing, dataset_dir, config))
        pattern = cohort.subjects
        wanted = None
    else:
        wanted = _wanted_names(dataset_dir, cohort.subjects)
        scan, pattern = _scan_alternatives(dataset_dir, config, outputs, wanted)

    left_out = {_same_name(name) for name in cohort.exclude}
    unknown = left_out - {_same_name(name) for name in scan.subjects}
    if unknown:
        logger.warning(
            "learned_atlas.cohort.exclude names no subject: %s", ", ".join(sorted(unknown))
        )
    matches = [match for match in scan.matches if _same_name(match.subject) not in left_out]

    rejected = [one for one in scan.unreadable if _same_name(one.subject) not in left_out]
    unreadable = {one.subject for one in rejected}
    for name in sorted({match.subject for match in matches}):
        reason = _unfit_name(name, outputs)
        if reason is not None:
            unreadable.add(name)
            rejected.append(Rejection(_printable(name), _printable(str(dataset_dir)), reason))
    matches = [match for match in matches if match.subject not in unreadable]

    found = {_same_name(match.subject) for match in matches}
    known = found | {_same_name(name) for name in unreadable} | left_out
    for name in wanted or ():
        if _same_name(name) not in known:
            rejected.append(Rejection(name, str(dataset_dir / name), f"no map at {pattern}"))
    without_map = sorted(
        name
        for name in scan.subjects
        if wanted is None and _same_name(name) not in known and _unfit_name(name, outputs) is None
    )

    tracts = _tracts(matches, config)
    candidates, incomplete = _group(matches, tracts)
    if not tracts:
        _tell_of_summed_tracts(candidates)
    return Discovery(
        candidates=candidates,
        rejected=tuple(rejected + incomplete),
        without_map=tuple(without_map),
        pattern=pattern,
        tracts=tracts,
    )


def candidates_from_files(files: Sequence[Path], config: LearnedAtlasConfig) -> Discovery:
    """Subjects of files that are named one by one.

    The name of a file's subject (and tract) is read off its path where a pattern of the layout
    fits the end of it, else the file's own name is taken.

    Args:
        files: paths of density maps.
        config: as for `find_subjects`.

    Raises:
        CohortError: a subject has several unexplained runs.
        ConfigurationError: tracts, channels and the files don't go together.
    """
    matches = [_match_tail(file.absolute(), config) for file in files]
    tracts = _tracts(matches, config)
    candidates, incomplete = _group(matches, tracts)
    return Discovery(candidates, tuple(incomplete), (), ONE_BY_ONE, tracts)


# ---------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------


def _wanted_names(dataset_dir: Path, subjects: list[str] | str | None) -> list[str] | None:
    """Names asked for, from the settings or a text file; None for all."""
    if not isinstance(subjects, str):
        return subjects
    lines = (line.strip() for line in _read_lines(dataset_dir / subjects))
    names = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise CohortError(f"{dataset_dir / subjects} names no subject")
    return names


def _read_lines(file: Path) -> list[str]:
    try:
        return read_text(file, encoding="utf-8-sig").splitlines()
    except FileError as error:
        raise CohortError(f"list of subjects {file} {error.reason}") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"list of subjects {file} is not UTF-8 text") from error


def _rows(file: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(_read_lines(file))
    except csv.Error as error:
        raise CohortError(f"list of subjects {file} can't be read: {say(error)}") from error


def _read_datalist(file: Path, dataset_dir: Path, config: LearnedAtlasConfig) -> list[_Match]:
    """MONAI's data list: entries with an ``image``, relative to the dataset folder."""
    try:
        listed = json.loads("\n".join(_read_lines(file)))
    except (ValueError, RecursionError) as error:
        raise CohortError(f"{file}: is not JSON ({error})") from error
    if isinstance(listed, dict):
        listed = listed.get("training")
    if not isinstance(listed, list):
        raise CohortError(
            f"{file}: must be a list of entries, or a mapping with such a list as 'training'"
        )

    def matches() -> Iterator[tuple[str, _Match]]:
        for number, entry in enumerate(listed, start=1):
            values = entry if isinstance(entry, dict) else {}
            image, subject, tract = (values.get(key) for key in ("image", "subject", "tract"))
            said = (value for value in (subject, tract) if value is not None)
            if not isinstance(image, str) or not all(isinstance(v, str) and v for v in said):
                raise CohortError(
                    f"{file}, entry {number}: must have the path of one map as 'image', and may "
                    f"have texts as 'subject' and 'tract', got {str(entry)[:200]}"
                )
            path = (dataset_dir / image).absolute()
            told = _match_tail(path, config)
            match = _Match(path, subject or told.subject, tract or told.tract, image)
            yield f"{file}, entry {number}", match

    return _listed_once(file, matches())


def _read_csv(file: Path, dataset_dir: Path) -> list[_Match]:
    """Rows ``subject,path[,tract]``; paths relative to the dataset folder."""

    def matches() -> Iterator[tuple[str, _Match]]:
        for number, row in enumerate(_rows(file), start=1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#") or cells[:2] == ["subject", "path"]:
                continue
            place = f"{file}, line {number}"
            if len(cells) not in (2, 3) or not all(cells):
                raise CohortError(f"{place}: must be subject,path or subject,path,tract")
            tract = cells[2] if len(cells) == 3 else None
            path = (dataset_dir / cells[1]).absolute()
            yield place, _Match(path, cells[0], tract, cells[1])

    return _listed_once(file, matches())


def _listed_once(file: Path, listed: Iterable[tuple[str, _Match]]) -> list[_Match]:
    """A list's maps, each with its place: at least one, none twice, tracts for all or none."""
    matches: dict[Path, _Match] = {}
    for place, match in listed:
        if match.path in matches:
            raise CohortError(f"{place}: {match.run} was listed before")
        matches[match.path] = match
    if not matches:
        raise CohortError(f"{file} lists no map")
    if len({match.tract is None for match in matches.values()}) == 2:
        raise CohortError(f"{file}: either every row has a tract or none")
    return sorted(matches.values(), key=lambda match: (match.subject, match.run))


def _same_name(name: str) -> str:
    # macOS stores decomposed letters where the same name in a text file is composed.
    return unicodedata.normalize("NFC", name)


def _unfit_name(name: str, outputs: Collection[str]) -> str | None:
    """Why ``name`` can't be a subject's: outputs carry it as a part of their file names."""
    if name in outputs:
        return "has the name of an output folder"
    if _printable(name) != name:
        return "has a name that is not valid UTF-8"
    if re.search(r"[/\\\x00-\x1f\x7f]", name) or name.startswith("."):
        return "has a name that is no file name"
    if len(name.encode("utf-8")) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME} bytes, too long to name files after it"
    return None


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


# ---------------------------------------------------------------------------------------------
# Walking a pattern
# ---------------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """Files that fit one alternative, and the subjects that it could have been."""

    matches: list[_Match] = field(default_factory=list)
    subjects: set[str] = field(default_factory=set)
    unreadable: list[Rejection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.subjects.update(match.subject for match in self.matches)


def _scan_alternatives(
    dataset_dir: Path,
    config: LearnedAtlasConfig,
    outputs: Collection[str],
    wanted: list[str] | None,
) -> tuple[_Scan, str]:
    """Scan for the first alternative that fits a file; it holds for the whole cohort."""
    names = None if wanted is None else {_same_name(name) for name in wanted}
    tried = alternatives(config)
    seen = _Scan()
    for alternative in tried:
        scan = _scan(dataset_dir.absolute(), alternative, outputs, names)
        if scan.matches:
            return scan, str(alternative)
        seen.subjects |= scan.subjects
        seen.unreadable += [one for one in scan.unreadable if one not in seen.unreadable]
    return seen, ", nor at ".join(map(str, tried))


def _scan(
    root: Path, alternative: Alternative, outputs: Collection[str], names: set[str] | None
) -> _Scan:
    scan = _Scan()
    for pattern in alternative.patterns:
        for match in _walk(root, pattern.split("/"), _Walk(scan, outputs, names)):
            if alternative.without is None or alternative.without not in match.path.name:
                scan.matches.append(match)
    scan.matches.sort(key=lambda match: (match.subject, match.tract or "", str(match.path)))
    return scan


@dataclass(frozen=True)
class _Walk:
    """What a walk has bound so far, and what it reports to."""

    scan: _Scan
    outputs: Collection[str]
    names: set[str] | None
    subject: str | None = None
    tract: str | None = None
    runs: tuple[str, ...] = ()

    def bind(self, bound: re.Match[str]) -> _Walk | None:
        """The walk after an entry that fits; None when its subject isn't wanted."""
        groups = bound.groupdict()
        subject = groups.pop("subject", None) or self.subject
        tract = groups.pop("tract", None) or self.tract
        if subject is not None and subject != self.subject:
            if subject in self.outputs:
                return None
            if self.names is not None and _same_name(subject) not in self.names:
                return None
            self.scan.subjects.add(subject)
        runs = (*self.runs, *(value for value in groups.values() if value is not None))
        return _Walk(self.scan, self.outputs, self.names, subject, tract, runs)


def _walk(
    folder: Path, parts: list[str], walk: _Walk, above: frozenset[str] = frozenset()
) -> Iterator[_Match]:
    """Files below ``folder`` that fit ``parts``; ``above`` guards ``**`` against link loops."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        here = os.path.realpath(folder)
        if here in above:
            return
        yield from _walk(folder, rest, walk)
        for name in _entries(folder, walk):
            if not name.startswith(".") and name not in walk.outputs and (folder / name).is_dir():
                deeper = _Walk(
                    walk.scan,
                    walk.outputs,
                    walk.names,
                    walk.subject,
                    walk.tract,
                    (*walk.runs, name),
                )
                yield from _walk(folder / name, parts, deeper, above | {here})
        return

    for name in _entries(folder, walk) if re.search(r"[{*?]", part) else [part]:
        bound = _regex(part, walk.subject, walk.tract).fullmatch(name)
        if bound is None or (name.startswith(".") and not part.startswith(".")):
            continue
        path = folder / name
        if rest:
            if (name in walk.outputs and name != part) or not path.is_dir():
                continue
        elif path.is_dir() or not os.path.lexists(path):  # a broken link is found, then refused
            continue
        further = walk.bind(bound)
        if further is None:
            continue
        if rest:
            yield from _walk(path, rest, further)
        elif further.subject is not None:
            yield _Match(path, further.subject, further.tract, "/".join(further.runs))


def _entries(folder: Path, walk: _Walk) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        if walk.subject is None:
            raise CohortError(f"folder {folder} can't be read: {error.strerror}") from error
        reason = f"can't be read: {error.strerror}"
        walk.scan.unreadable.append(Rejection(walk.subject, str(folder), reason))
        return []


@functools.lru_cache(maxsize=4096)
def _regex(part: str, subject: str | None, tract: str | None) -> re.Pattern[str]:
    """Regular expression of one part of a pattern, with what is bound already put in."""
    values = {"subject": subject, "tract": tract}
    return re.compile(
        _expression(part, {name: re.escape(value) for name, value in values.items() if value})
    )


def _expression(part: str, bound: dict[str, str]) -> str:
    """Regular expression of one part; ``bound`` has those of its placeholders known so far.

    A placeholder met for the first time becomes a group, and a reference to it in ``bound``.
    """
    expression = ""
    pieces = re.split(r"(\{\w+\}|\*|\?)", part)
    for index, piece in enumerate(pieces):
        name = piece[1:-1] if piece.startswith("{") else ""
        if piece in ("*", "?"):
            group = f"wild{len(bound)}"  # as unique as the number of groups before it
            bound[group] = ""
            expression += f"(?P<{group}>[^/]{piece.replace('?', '')})"
        elif name in bound:
            expression += bound[name]
        elif name:
            # The value of a BIDS entity ends at the next underscore.
            before, after = "".join(pieces[:index]), "".join(pieces[index + 1 :])
            entity = before.endswith("-") and re.search(r"[_*]", after)
            expression += f"(?P<{name}>[^/{'_' if entity else ''}]+)"
            bound[name] = f"(?P={name})"
        else:
            expression += re.escape(piece)
    return expression


def _match_tail(file: Path, config: LearnedAtlasConfig) -> _Match:
    """Subject, tract and run of a file by the end of its path, else by its BIDS entities."""
    for alternative in alternatives(config):
        for pattern in alternative.patterns:
            parts = pattern.split("/")
            if "**" in parts:  # which of the folders is the subject's can't be told
                continue
            bound: dict[str, str] = {}
            expression = "/".join([_expression(part, bound) for part in parts])
            match = re.search(rf"(?:^|/){expression}$", file.as_posix())
            if match is not None and (alternative.without or "\0") not in file.name:
                groups = match.groupdict()
                return _Match(file, groups["subject"], groups.get("tract"), file.as_posix())
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    stem = file.stem if is_tractogram(file) else stem
    subject = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", stem)
    tract = re.search(r"_bundle-([A-Za-z0-9]+)", stem)
    name = stem if subject is None else subject[0]
    return _Match(file, name, tract and tract[1], file.as_posix())


# ---------------------------------------------------------------------------------------------
# Tracts and runs
# ---------------------------------------------------------------------------------------------


def _tracts(matches: Sequence[_Match], config: LearnedAtlasConfig) -> tuple[str, ...]:
    """Name per channel; empty when the one channel is the whole map."""
    asked, channels = config.cohort.tracts, config.model.channels
    if not matches or (not asked and channels == 1):
        return ()
    present = sorted({match.tract for match in matches if match.tract is not None})
    shown = ", ".join(present) or "none"
    for tract in asked:
        if tract not in present:
            raise ConfigurationError(
                f"learned_atlas.cohort.tracts = {asked}: {tract!r} is found in no subject; "
                f"must be out of the dataset's tracts ({shown})"
            )
    if not asked and len(present) != channels:
        raise ConfigurationError(
            f"learned_atlas.model.channels = {channels}: the dataset has {len(present)} tracts "
            f"({shown}); must be as many, or learned_atlas.cohort.tracts must name {channels}"
        )
    return tuple(asked or present)


def _group(
    matches: Sequence[_Match], tracts: tuple[str, ...]
) -> tuple[tuple[Candidate, ...], list[Rejection]]:
    """Maps by subject and channel, every run accounted for."""
    by_subject: dict[str, dict[str | None, list[_Match]]] = {}
    for match in matches:
        if not tracts or match.tract in tracts:
            by_subject.setdefault(match.subject, {}).setdefault(match.tract, []).append(match)
        else:
            by_subject.setdefault(match.subject, {})
    candidates, incomplete = [], []
    for subject, by_tract in sorted(by_subject.items()):
        for runs in by_tract.values():
            _check_runs(subject, runs)
        missing = [tract for tract in tracts if tract not in by_tract]
        if missing:
            reason = f"no map of tract {', '.join(missing)}"
            incomplete.append(Rejection(subject, str(_folder(matches, subject)), reason))
            continue
        maps = [
            FoundMap(run.path, tracts.index(str(tract)) if tracts else 0, tract)
            for tract, runs in by_tract.items()
            for run in runs
        ]
        maps.sort(key=lambda found: (found.channel, str(found.path)))
        candidates.append(Candidate(subject, tuple(maps)))
    return tuple(candidates), incomplete


def _tell_of_summed_tracts(candidates: Sequence[Candidate]) -> None:
    """Single tracts stand in for a whole map: a subject with others than the rest is told."""
    tracts = [{str(one.tract) for one in who.maps if one.tract is not None} for who in candidates]
    every: set[str] = set().union(*tracts)
    if every:
        logger.info("no tract is asked for: %s are summed into one map", ", ".join(sorted(every)))
    for who, its in zip(candidates, tracts, strict=True):
        if its != every:
            lacking = ", ".join(sorted(every - its))
            logger.warning("subject %s has no map of tract %s", who.name, lacking)


def _folder(matches: Sequence[_Match], subject: str) -> Path:
    return next(match.path.parent for match in matches if match.subject == subject)


def _check_runs(subject: str, runs: Sequence[_Match]) -> None:
    """One run, or a left and a right one; anything else might count a tract twice."""
    if len(runs) == 1 or (len(runs) == 2 and are_left_and_right(runs[0].run, runs[1].run)):
        return
    paths = " and ".join(str(run.path) for run in runs)
    of_tract = f" of tract {runs[0].tract}" if runs[0].tract is not None else ""
    raise CohortError(
        f"subject {subject} has {len(runs)} runs{of_tract} that are not a left and a right one: "
        f"{paths}; keep one of them, or name the one to use in learned_atlas#cohort#pattern (or "
        "put {tract} there if each is of another tract)"
    )


_LEFT, _RIGHT = ("left", "l", "lh"), ("right", "r", "rh")


def are_left_and_right(one: str, other: str) -> bool:
    """Whether two names differ by their side alone: left/right, l/r or lh/rh.

    Example:
        >>> are_left_and_right("cst_left", "cst_right")
        True
        >>> are_left_and_right("run-1", "run-2")
        False
    """
    # Separators are kept, so that they have to agree as well.
    ones, others = (re.split(r"([^a-z0-9]+)", name.lower()) for name in (one, other))
    if len(ones) != len(others):
        return False
    differing = [(a, b) for a, b in zip(ones, others, strict=True) if a != b]
    if not differing:
        return False
    return all(_is_left_of(a, b) for a, b in differing) or all(
        _is_left_of(b, a) for a, b in differing
    )


def _is_left_of(a: str, b: str) -> bool:
    if "left" in a and a.replace("left", "right", 1) == b:
        return True
    return any((a, b) == pair for pair in zip(_LEFT, _RIGHT, strict=True))
