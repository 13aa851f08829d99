"""Patterns of file names, matched against the files of a folder."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scripts.cohort.layouts import Alternative, alternatives
from scripts.errors import CohortError
from scripts.runtime.file_names import (
    FOREIGN_IMAGES,
    FOREIGN_TRACTOGRAMS,
    IMAGES,
    TRACTOGRAMS,
    ending_of,
    stem_of,
)
from scripts.settings.cohort import SubjectSearch

__all__ = ["Rejection"]


_KINDS = (IMAGES, TRACTOGRAMS)
LONGEST_NAME = 200  # bytes of a subject's name: files are named after it, with up to 50 more


@dataclass(frozen=True)
class Rejection:
    """A subject that is left out.

    Attributes:
        subject: its name.
        path: the file or folder that causes it.
        reason: what is wrong with it.
    """

    subject: str
    path: str
    reason: str


@dataclass(frozen=True)
class Match:
    """A file that matches a pattern.

    Attributes:
        path: of the file.
        subject: name of its subject, or of its image, see `by_run`.
        tract: name of its tract; None for a whole map.
        run: distinguishes several files of one subject and tract.
        image: what ``{run}`` stands for; None without it.
        person: whose image it is, if that isn't ``subject``.
    """

    path: Path
    subject: str
    tract: str | None
    run: str
    image: str | None = None
    person: str | None = None


def same_name(name: str) -> str:
    # macOS stores decomposed letters, while the same name in a text file is composed.
    return unicodedata.normalize("NFC", name)


def unfit_name(name: str, outputs: Collection[str]) -> str | None:
    """Why ``name`` can't be the name of a subject, which becomes part of file names."""
    if name in outputs:
        return "has the name of an output folder"
    if printable(name) != name:
        return "has a name that is not valid UTF-8"
    if re.search(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]", name) or name.startswith("."):
        return "has a name that can't be a file name"
    if len(name.encode("utf-8")) > LONGEST_NAME:
        return (
            f"has a name of more than {LONGEST_NAME} bytes, too long for the names of output files"
        )
    return None


def printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass
class Scan:
    """Files that match one alternative, and folders that could have been subjects."""

    matches: list[Match] = field(default_factory=list)
    subjects: set[str] = field(default_factory=set)
    unreadable: list[Rejection] = field(default_factory=list)
    foreign: list[Rejection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.subjects.update(match.subject for match in self.matches)


def scan_alternatives(
    dataset_dir: Path,
    search: SubjectSearch,
    outputs: Collection[str],
    wanted: list[str] | None,
) -> tuple[Scan, str]:
    """Scan for the first alternative that matches a file; the whole cohort uses it."""
    names = None if wanted is None else _with_persons({same_name(name) for name in wanted})
    tried = alternatives(search)
    total = Scan()
    for alternative in tried:
        scan = _scan(dataset_dir.absolute(), alternative, outputs, names)
        if scan.matches:
            return scan, str(alternative)
        total.subjects |= scan.subjects
        total.unreadable += [one for one in scan.unreadable if one not in total.unreadable]
    return total, ", nor at ".join(map(str, tried))


def _with_persons(names: set[str]) -> set[str]:
    """Names, and what may be the person's part of one: ``p01`` of the image ``p01_t2``."""
    return names | {name[: at.start()] for name in names for at in re.finditer("_", name)}


def _scan(
    root: Path, alternative: Alternative, outputs: Collection[str], names: set[str] | None
) -> Scan:
    scan = Scan()
    seen: set[Path] = set()
    for pattern in alternative.patterns:
        walk = _Walk(scan, outputs, names, any_ending=alternative.any_ending)
        for match in _walk(root, pattern.split("/"), walk):
            if alternative.without is not None and alternative.without in match.path.name:
                continue
            if match.path not in seen:  # by a pattern that differs in its ending
                seen.add(match.path)
                scan.matches.append(match)
    usable = {match.subject for match in scan.matches}
    foreign = {one.subject: one for one in reversed(scan.foreign) if one.subject not in usable}
    scan.unreadable += foreign.values()
    scan.matches.sort(key=lambda match: (match.subject, match.tract or "", str(match.path)))
    return scan


@dataclass(frozen=True)
class _Walk:
    """What the walk has matched so far, and where it reports to."""

    scan: Scan
    outputs: Collection[str]
    names: set[str] | None
    subject: str | None = None
    tract: str | None = None
    runs: tuple[str, ...] = ()
    image: str | None = None
    any_ending: bool = False

    def bind(self, bound: re.Match[str], is_folder: bool = True) -> _Walk | None:
        """The walk after an entry that fits; None when its subject isn't wanted."""
        groups = bound.groupdict()
        subject = groups.pop("subject", None) or self.subject
        tract = groups.pop("tract", None) or self.tract
        if subject is not None and subject != self.subject:
            if is_folder and subject in self.outputs:
                return None  # a file with such a name is reported
            if self.names is not None and same_name(subject) not in self.names:
                return None
            self.scan.subjects.add(subject)
        runs = (*self.runs, *(value for value in groups.values() if value is not None))
        image = groups.get("run") or self.image
        return replace(self, subject=subject, tract=tract, runs=runs, image=image)


def _walk(
    folder: Path, parts: list[str], walk: _Walk, above: frozenset[str] = frozenset()
) -> Iterator[Match]:
    """Files below ``folder`` that match ``parts``; ``above`` protects ``**`` from link loops."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        real = os.path.realpath(folder)
        if real in above:
            return
        yield from _walk(folder, rest, walk)
        for name in _entries(folder, walk):
            if not name.startswith(".") and name not in walk.outputs and (folder / name).is_dir():
                deeper = replace(walk, runs=(*walk.runs, name))
                yield from _walk(folder / name, parts, deeper, above | {real})
        return

    listed = bool(re.search(r"[{*?]", part)) or (not rest and bool(ending_of(part)))
    entries = _entries(folder, walk) if listed else [part]
    for name in entries:
        bound, foreign = _bound(part, name, walk, bool(rest), entries)
        if bound is None or (name.startswith(".") and not part.startswith(".")):
            continue
        path = folder / name
        if rest:
            if (name in walk.outputs and name != part) or not path.is_dir():
                continue
        elif path.is_dir():
            if ending_of(name) != ".trx":
                continue
            foreign = "a TRX folder; pack it as one .trx file (zip without compression)"
        elif not os.path.lexists(path):  # a broken link is kept, to refuse it later
            continue
        further = walk.bind(bound, is_folder=bool(rest))
        if further is None:
            continue
        if foreign and further.subject is not None:
            reason = f"is {foreign}"
            walk.scan.foreign.append(Rejection(further.subject, str(path), reason))
            continue
        if rest:
            yield from _walk(path, rest, further)
        elif further.subject is not None:
            runs = "/".join(further.runs)
            yield Match(path, further.subject, further.tract, runs, further.image)


def _bound(
    part: str, name: str, walk: _Walk, is_folder: bool, entries: Sequence[str]
) -> tuple[re.Match[str] | None, str]:
    """How an entry fits a part of a pattern, and whose file it is if it can't be read here.

    The ending of a file may be written in any case; see also `Alternative.any_ending`.
    """
    ending = "" if is_folder else ending_of(part)
    if not ending:
        return _regex(part, walk.subject, walk.tract).fullmatch(name), ""
    file_ending = ending_of(name)
    kinds = IMAGES if ending in IMAGES else TRACTOGRAMS
    others = FOREIGN_IMAGES if ending in IMAGES else FOREIGN_TRACTOGRAMS
    foreign = others.get(file_ending, "") if walk.any_ending else ""
    fits = file_ending == ending or (walk.any_ending and (file_ending in kinds or bool(foreign)))
    if not fits or (file_ending != ending and _is_header_of_a_pair(name, file_ending, entries)):
        return None, ""
    stem = _regex(part[: len(part) - len(ending)], walk.subject, walk.tract)
    return stem.fullmatch(name[: len(name) - len(file_ending)]), foreign


def _is_header_of_a_pair(name: str, ending: str, entries: Sequence[str]) -> bool:
    """Whether a file is the header of another one beside it, which stands for both."""
    if not ending.startswith(".hdr"):
        return False
    stem = name[: len(name) - len(ending)]
    return any(one[: len(stem)] == stem and ending_of(one).startswith(".img") for one in entries)


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
    """Regular expression of one part of a pattern, with the known placeholders filled in."""
    values = {"subject": subject, "tract": tract}
    return re.compile(
        _expression(part, {name: re.escape(value) for name, value in values.items() if value})
    )


def _expression(part: str, bound: dict[str, str]) -> str:
    """Regular expression of one part; ``bound`` contains the placeholders known so far.

    A new placeholder becomes a group, and a reference to it is added to ``bound``.
    """
    expression = ""
    pieces = re.split(r"(\{\w+\}|\*|\?)", part)
    for index, piece in enumerate(pieces):
        name = piece[1:-1] if piece.startswith("{") else ""
        if piece in ("*", "?"):
            group = f"wild{len(bound)}"  # unique, because every group adds an entry
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


def subject_in(part: str, name: str) -> str | None:
    """The subject that a name contains by one part of a pattern; None if it doesn't fit.

    Example:
        >>> subject_in("{subject}_{run}", "p01_t2")
        'p01'
    """
    fits = _regex(part, None, None).fullmatch(name)
    return None if fits is None else fits["subject"]


def match_tail(file: Path, search: SubjectSearch) -> Match:
    """Subject, tract and run of a file from the end of its path, else from its BIDS entities."""
    for alternative in alternatives(search):
        for pattern in alternative.patterns:
            parts = pattern.split("/")
            if "**" in parts:  # unclear which of the folders names the subject
                continue
            ending, file_ending = ending_of(parts[-1]), ending_of(file)
            same = file_ending == ending or (
                alternative.any_ending and any({ending, file_ending} <= {*kind} for kind in _KINDS)
            )
            if not same:
                continue
            parts[-1] = parts[-1][: len(parts[-1]) - len(ending)]
            bound: dict[str, str] = {}
            expression = "/".join([_expression(part, bound) for part in parts])
            path = file.as_posix()
            match = re.search(rf"(?:^|/){expression}$", path[: len(path) - len(file_ending)])
            if match is not None and (alternative.without or "\0") not in file.name:
                groups = match.groupdict()
                return Match(
                    file, groups["subject"], groups.get("tract"), file.as_posix(),
                    groups.get("run"),
                )  # fmt: skip
    stem = stem_of(file)
    subject = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", stem)
    tract = re.search(r"_bundle-([A-Za-z0-9]+)", stem)
    name = stem if subject is None else subject[0]
    return Match(file, name, tract and tract[1], file.as_posix())
