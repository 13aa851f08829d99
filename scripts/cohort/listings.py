"""Lists of subjects: lines of names, a CSV table, MONAI's data list."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from scripts.cohort.patterns import Match, match_tail
from scripts.errors import CohortError
from scripts.runtime.input_files import FileError, read_text, say
from scripts.runtime.plain_data import parse_json
from scripts.settings.cohort import SubjectSearch

__all__ = []


def wanted_names(dataset_dir: Path, subjects: list[str] | str | None) -> list[str] | None:
    """Selected names, from the settings or a text file; None for all."""
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


def read_datalist(file: Path, dataset_dir: Path, search: SubjectSearch) -> list[Match]:
    """MONAI's data list: entries with an ``image``, relative to the dataset folder."""
    try:
        listed = parse_json("\n".join(_read_lines(file)))
    except ValueError as error:
        raise CohortError(f"{file}: is not JSON ({error})") from error
    if isinstance(listed, dict):
        listed = listed.get("training")
    if not isinstance(listed, list):
        raise CohortError(
            f"{file}: must be a list of entries, or a mapping with such a list as 'training'"
        )

    def matches() -> Iterator[tuple[str, Match]]:
        for number, entry in enumerate(listed, start=1):
            values = entry if isinstance(entry, dict) else {}
            image, subject, tract = (values.get(key) for key in ("image", "subject", "tract"))
            if type(subject) is int:
                subject = str(subject)  # numbers are names here
            texts = (value for value in (subject, tract) if value is not None)
            if not isinstance(image, str) or not all(isinstance(v, str) and v for v in texts):
                raise CohortError(
                    f"{file}, entry {number}: must have the path of one map as 'image', and may "
                    f"have texts as 'subject' and 'tract', got {str(entry)[:200]}"
                )
            path = (dataset_dir / image).absolute()
            known = match_tail(path, search)
            match = Match(path, subject or known.subject, tract or known.tract, image)
            yield f"{file}, entry {number}", match

    return _listed_once(file, matches())


def read_csv(file: Path, dataset_dir: Path) -> list[Match]:
    """Rows ``subject,path[,tract]``; paths relative to the dataset folder."""

    def matches() -> Iterator[tuple[str, Match]]:
        for number, row in enumerate(_rows(file), start=1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#") or cells[:2] == ["subject", "path"]:
                continue
            place = f"{file}, line {number}"
            if len(cells) not in (2, 3) or not all(cells):
                raise CohortError(f"{place}: must be subject,path or subject,path,tract")
            tract = cells[2] if len(cells) == 3 else None
            path = (dataset_dir / cells[1]).absolute()
            yield place, Match(path, cells[0], tract, cells[1])

    return _listed_once(file, matches())


def _listed_once(file: Path, listed: Iterable[tuple[str, Match]]) -> list[Match]:
    """The maps of a list with their places: at least one, none twice, tracts for all or none."""
    matches: dict[Path, Match] = {}
    for place, match in listed:
        if match.path in matches:
            raise CohortError(f"{place}: {match.run} is listed twice")
        matches[match.path] = match
    if not matches:
        raise CohortError(f"{file} lists no map")
    if len({match.tract is None for match in matches.values()}) == 2:
        raise CohortError(f"{file}: must have a tract in every row or in none")
    return sorted(matches.values(), key=lambda match: (match.subject, match.run))
