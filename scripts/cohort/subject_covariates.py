"""Covariates of the subjects that are read: who has all of them, and whether they can be coded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.cohort.cohort import Subject
from scripts.cohort.covariates import CovariateCoding, Values, read_participants
from scripts.cohort.discovery import Discovery
from scripts.cohort.patterns import Rejection
from scripts.errors import CohortError, ConfigurationError
from scripts.settings.cohort import CohortRequest

__all__ = ["check_coded", "split_by_covariates", "with_covariates"]

logger = logging.getLogger(__name__)


def split_by_covariates(
    discovery: Discovery, root: Path, request: CohortRequest
) -> tuple[Discovery, Mapping[str, Values]]:
    """Split subjects into those with all covariates and those left out, with the reason."""
    if not request.covariates:
        return discovery, {}
    people = read_participants(
        root / request.cohort.participants,
        request.covariates,
        request.option("participants"),
        request.option("categorical_covariates"),
    )
    usable, rejected = [], list(discovery.rejected)
    rows: dict[str, str] = {}  # by image: the name in the table, the image's or the person's
    for candidate in discovery.candidates:
        name = candidate.name
        if candidate.person and not people.knows(name):
            name = candidate.person
        rows[candidate.name] = name
        reason = people.reason_against(name)
        if reason is None:
            usable.append(candidate)
        else:
            rejected.append(Rejection(candidate.name, str(people.path), reason))
    of_rows = people.values(
        list(dict.fromkeys(rows[one.name] for one in usable)), request.categorical_covariates
    )
    known = {one.name: of_rows[rows[one.name]] for one in usable}
    return replace(discovery, candidates=tuple(usable), rejected=tuple(rejected)), known


def with_covariates(
    subjects: Sequence[Subject], known: Mapping[str, Values]
) -> tuple[Subject, ...]:
    return tuple(replace(one, covariates=tuple(known[one.name].items())) for one in subjects)


def check_coded(subjects: Sequence[Subject], coding: CovariateCoding) -> None:
    """Check that every subject can be coded; warn about values outside the coding's range.

    Raises:
        CohortError: a value can't be coded; the message names subject, covariate and value.
    """
    for subject in subjects:
        values = dict(subject.covariates)
        try:
            coding.code(values)
        except ConfigurationError as error:
            raise CohortError(f"subject {subject.name}: {error}") from None
        for sentence in coding.beyond(values):
            logger.warning("subject %s: %s", subject.name, sentence)
