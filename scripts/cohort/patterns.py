"""Patterns of file names, matched against the files of a folder."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.cohort.layouts import Alternative, alternatives
from scripts.errors import CohortError
from scripts.settings.cohort import SubjectSearch
from scripts.tractograms import is_tractogram

__all__ = ["Rejection"]


LONGEST_NAME = 200  # bytes of a subject's name: output files add up to 50 to it


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
    """A file that matches a pattern; ``run`` distinguishes several of one subject and tract."""

    path: Path
    subject: str
    tract: str | None
    run: str


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

    def __post_init__(self) -> None:
        self.subjects.update(match.subject for match in self.matches)


def scan_alternatives(
    dataset_dir: Path,
    search: SubjectSearch,
    outputs: Collection[str],
    wanted: list[str] | None,
) -> tuple[Scan, str]:
    """Scan for the first alternative that matches a file; the whole cohort uses it."""
    names = None if wanted is None else {same_name(name) for name in wanted}
    tried = alternatives(search)
    seen = Scan()
    for alternative in tried:
        scan = _scan(dataset_dir.absolute(), alternative, outputs, names)
        if scan.matches:
            return scan, str(alternative)
        seen.subjects |= scan.subjects
        seen.unreadable += [one for one in scan.unreadable if one not in seen.unreadable]
    return seen, ", nor at ".join(map(str, tried))


def _scan(
    root: Path, alternative: Alternative, outputs: Collection[str], names: set[str] | None
) -> Scan:
    scan = Scan()
    for pattern in alternative.patterns:
        for match in _walk(root, pattern.split("/"), _Walk(scan, outputs, names)):
            if alternative.without is None or alternative.without not in match.path.name:
                scan.matches.append(match)
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

    def bind(self, bound: re.Match[str]) -> _Walk | None:
        """The walk after a matching entry; None if its subject isn't selected."""
        groups = bound.groupdict()
        subject = groups.pop("subject", None) or self.subject
        tract = groups.pop("tract", None) or self.tract
        if subject is not None and subject != self.subject:
            if subject in self.outputs:
                return None
            if self.names is not None and same_name(subject) not in self.names:
                return None
            self.scan.subjects.add(subject)
        runs = (*self.runs, *(value for value in groups.values() if value is not None))
        return _Walk(self.scan, self.outputs, self.names, subject, tract, runs)


def _walk(
    folder: Path, parts: list[str], walk: _Walk, above: frozenset[str] = frozenset()
) -> Iterator[Match]:
    """Files below ``folder`` that match ``parts``; ``above`` protects ``**`` from link loops."""
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
        elif path.is_dir() or not os.path.lexists(path):  # keep a broken link, to refuse it later
            continue
        further = walk.bind(bound)
        if further is None:
            continue
        if rest:
            yield from _walk(path, rest, further)
        elif further.subject is not None:
            yield Match(path, further.subject, further.tract, "/".join(further.runs))


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


def match_tail(file: Path, search: SubjectSearch) -> Match:
    """Subject, tract and run of a file from the end of its path, else from its BIDS entities."""
    for alternative in alternatives(search):
        for pattern in alternative.patterns:
            parts = pattern.split("/")
            if "**" in parts:  # unclear which of the folders names the subject
                continue
            bound: dict[str, str] = {}
            expression = "/".join([_expression(part, bound) for part in parts])
            match = re.search(rf"(?:^|/){expression}$", file.as_posix())
            if match is not None and (alternative.without or "\0") not in file.name:
                groups = match.groupdict()
                return Match(file, groups["subject"], groups.get("tract"), file.as_posix())
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    stem = file.stem if is_tractogram(file) else stem
    subject = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", stem)
    tract = re.search(r"_bundle-([A-Za-z0-9]+)", stem)
    name = stem if subject is None else subject[0]
    return Match(file, name, tract and tract[1], file.as_posix())
