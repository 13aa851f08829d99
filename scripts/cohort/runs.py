"""Several runs of a subject: two sides of one map, or images of one person."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from scripts.cohort.patterns import Match
from scripts.errors import CohortError, some_names
from scripts.settings.cohort import SubjectSearch

__all__ = ["are_left_and_right", "by_run", "check_runs", "names_runs", "warn_of_one_person"]

logger = logging.getLogger(__name__)


def names_runs(search: SubjectSearch) -> bool:
    """Whether the user's pattern has ``{run}``, so that each run may be an image."""
    pattern = search.inside_subject if search.inside_subject is not None else search.pattern
    return pattern is not None and "{run}" in pattern


def by_run(matches: Sequence[Match], search: SubjectSearch) -> list[Match]:
    """Name images ``{subject}_{run}`` if a subject has several that are not a left and a right one.

    They then count as images of one person, and a split never divides them. The decision is the
    same for all subjects, so that names don't depend on how many runs a subject has.

    Args:
        matches: of a user's pattern.
        search: says how the user writes the settings; ``runs_apart`` decides beforehand.

    Raises:
        CohortError: images of two persons would have the same name.
    """
    if not names_runs(search):
        return list(matches)
    apart = search.runs_apart
    if apart is None:
        groups: dict[tuple[str, str | None], list[Match]] = {}
        for match in matches:
            groups.setdefault((match.subject, match.tract), []).append(match)
        apart = any(len(runs) > 1 and not _are_sides(runs) for runs in groups.values())
    if not apart:
        return list(matches)
    renamed = [
        match  # of a file that is named otherwise
        if match.image is None
        else replace(match, subject=f"{match.subject}_{match.image}", person=match.subject)
        for match in matches
    ]
    persons: dict[str, Match] = {}
    for match in renamed:
        first = persons.setdefault(match.subject, match)
        if first.person != match.person:
            raise CohortError(
                f"{first.path} and {match.path} would both be image {match.subject} of "
                f"{search.option('pattern')}; rename one of them"
            )
    people = sorted({match.person or match.subject for match in renamed})
    if len(people) < len(persons):
        logger.info(
            "%d images of %d subjects (%s): each run is an image, named {subject}_{run}",
            len(persons), len(people), some_names(people, most=10),
        )  # fmt: skip
    return sorted(renamed, key=lambda one: (one.subject, one.tract or "", str(one.path)))


def check_runs(subject: str, runs: Sequence[Match], search: SubjectSearch) -> None:
    """Accept one run, or a left and a right one; others might count a tract twice.

    Raises:
        CohortError: naming the files.
    """
    if len(runs) == 1 or _are_sides(runs):
        return
    paths = " and ".join(str(run.path) for run in runs)
    of_tract = f" of tract {runs[0].tract}" if runs[0].tract is not None else ""
    raise CohortError(
        f"subject {subject} has {len(runs)} runs{of_tract} that are not a left and a right one: "
        f"{paths}; keep one of them, or name the one to use in {search.option('pattern')} (put "
        "{run} there if each is a separate image, {tract} if each is a different tract)"
    )


def warn_of_one_person(names: Sequence[str], option: str) -> None:
    """Warn before a split of subjects whose names look like several images of one person.

    That is so if names that are equal up to the last ``_`` or ``-`` go on alike for several of
    them: ``p01_t1``, ``p01_t2``, ``p02_t1``, ``p02_t2``.

    Args:
        names: of the subjects to be split.
        option: of the setting that would say who is one person.
    """
    images: dict[str, list[str]] = {}
    for name in names:
        last = max(name.rfind("_"), name.rfind("-")) + 1
        images.setdefault(name[:last], []).append(name[last:])
    several = {person: found for person, found in images.items() if len(found) > 1}
    alike = Counter(image for found in images.values() for image in found)
    if len(several) < 2 or not all(
        any(alike[image] > 1 for image in found) for found in several.values()
    ):
        return
    person, found = next(iter(several.items()))
    logger.warning(
        "%s look like images of one person, and the split may divide them; name the person in "
        "%s, such as {subject}_{run}",
        some_names([person + image for image in found]), option,
    )  # fmt: skip


def _are_sides(runs: Sequence[Match]) -> bool:
    return len(runs) == 2 and are_left_and_right(runs[0].run, runs[1].run)


_LEFT, _RIGHT = ("left", "l", "lh"), ("right", "r", "rh")


def are_left_and_right(one: str, other: str) -> bool:
    """Whether two names differ only by their side: left/right, l/r or lh/rh.

    Example:
        >>> are_left_and_right("cst_left", "cst_right")
        True
        >>> are_left_and_right("run-1", "run-2")
        False
    """
    # Keep the separators, so that they have to match as well.
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
