"""Covariates of the subjects (age, sex, site, ...) as numbers that a model can use."""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scripts.errors import CohortError, ConfigurationError
from scripts.runtime.input_files import FileError, read_text
from scripts.settings.cohort import CohortRequest

__all__ = [
    "Covariate",
    "CovariateCoding",
    "Participants",
    "Values",
    "parse_values",
    "read_participants",
]

Values = Mapping[str, float | str]
"""Covariates of one person by name: numbers, or names of categories."""

_MISSING = {"", "n/a", "na", "nan", "null"}
_IDENTIFIER = "participant_id"
_COMMA = re.compile(r"[+-]?\d+,\d+")
_ALMOST = re.compile(r"\W*(?:\d[\d\s.,;:'’·⋅_+\-−–/]*(?:[^\W\d_]{1,6}\.?|%|\+)?\s*){1,3}")
MEAN = "mean"
"""Stands for values at the mean of the model's cohort."""


@dataclass(frozen=True)
class Covariate:
    """The coding of one covariate.

    A number is standardised, (x - mean) / std with the cohort's mean and standard deviation. Each
    of K categories except the first has a column: 1 for people in the category and 0 for others,
    minus the cohort's share. So all columns are 0 at the cohort's mean.

    Attributes:
        name: of the column in ``participants.tsv``.
        kind: ``number`` or ``category``.
        mean: of a number.
        std: of a number, population.
        low: smallest number in the cohort.
        high: largest number in the cohort.
        categories: names, sorted.
        shares: share of the cohort in each category.
    """

    name: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0
    categories: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of its columns."""
        if self.kind == "number":
            return [self.name]
        return [f"{self.name}={category}" for category in self.categories[1:]]

    def code(self, value: float | str | None) -> list[float]:
        """Its columns for one person; None gives the cohort's mean.

        Raises:
            ConfigurationError: the value isn't a number, or not a category of the cohort.
        """
        if value is None:
            return [0.0] * len(self.columns)
        if self.kind == "number":
            number = _number(value)
            if number is None:
                raise ConfigurationError(f"{self.name} = {value!r}: must be a number")
            return [(number - self.mean) / self.std]
        if str(value) not in self.categories:
            raise ConfigurationError(
                f"{self.name} = {value!r}: unknown category; must be one of the cohort's, "
                f"{', '.join(self.categories)}"
            )
        return [
            float(str(value) == category) - share
            for category, share in zip(self.categories[1:], self.shares[1:], strict=True)
        ]

    def beyond(self, value: float | str | None) -> str | None:
        """A warning for a number outside the cohort's range; None if it is inside."""
        number = None if value is None or self.kind != "number" else _number(value)
        if number is None or self.low <= number <= self.high:
            return None
        return (
            f"{self.name} = {number:g} is outside the cohort's range {self.low:g} to "
            f"{self.high:g}: the template there is an extrapolation"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; only those of its kind."""
        described: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "number":
            return described | {
                "mean": self.mean,
                "std": self.std,
                "low": self.low,
                "high": self.high,
            }
        return described | {"categories": list(self.categories), "shares": list(self.shares)}


@dataclass(frozen=True)
class CovariateCoding:
    """Covariates as the columns of a design matrix, fixed by a cohort.

    Attributes:
        covariates: in the order of the settings.
    """

    covariates: tuple[Covariate, ...]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [column for covariate in self.covariates for column in covariate.columns]

    @property
    def names(self) -> list[str]:
        """Names of the covariates."""
        return [covariate.name for covariate in self.covariates]

    def code(self, values: Values) -> np.ndarray:
        """One person's columns, float32; a missing covariate is set to the cohort's mean.

        Raises:
            ConfigurationError: see `Covariate.code`.
        """
        coded = [x for one in self.covariates for x in one.code(values.get(one.name))]
        return np.array(coded, dtype=np.float32)

    def beyond(self, values: Values) -> list[str]:
        """A warning for each number outside the cohort's range."""
        described = (one.beyond(values.get(one.name)) for one in self.covariates)
        return [sentence for sentence in described if sentence is not None]

    def as_list(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [covariate.as_dict() for covariate in self.covariates]

    @classmethod
    def from_list(cls, described: Iterable[Mapping[str, Any]]) -> CovariateCoding:
        """The inverse of `as_list`."""
        plain: Iterable[dict[str, Any]] = (
            {key: tuple(value) if isinstance(value, list) else value for key, value in one.items()}
            for one in described
        )
        return cls(tuple(Covariate(**one) for one in plain))

    @classmethod
    def of_cohort(cls, people: Sequence[Values], request: CohortRequest) -> CovariateCoding:
        """Compute mean, spread and categories from a cohort.

        Args:
            people: all covariates of all usable subjects.
            request: names the covariates.

        Raises:
            CohortError: a covariate has the same value everywhere, the columns are linearly
                dependent, or there are too few subjects for them.
        """
        made = [
            _category(name, [str(one[name]) for one in people])
            if isinstance(people[0][name], str)
            else _numeric(name, [float(one[name]) for one in people])
            for name in request.covariates
        ]
        coding = cls(tuple(made))
        count = len(coding.columns)
        if len(people) < count + 2:
            raise CohortError(
                f"{len(people)} usable subjects are too few for {request.key('covariates')} = "
                f"{list(request.covariates)}: {count} columns ({', '.join(coding.columns)}) need "
                f"at least {count + 2}"
            )
        design = np.stack([np.r_[1.0, coding.code(one)] for one in people])
        if np.linalg.matrix_rank(design, tol=1e-4) <= count:
            raise CohortError(
                f"the covariates {', '.join(coding.columns)} are linearly dependent in this "
                f"cohort: one of them follows from the others; leave it out of "
                f"{request.option('covariates')}"
            )
        return coding


def _numeric(name: str, numbers: Sequence[float]) -> Covariate:
    low, high = min(numbers), max(numbers)
    if low == high:
        raise CohortError(f"covariate {name} is {low:g} in every subject; leave it out")
    mean, std = float(np.mean(numbers)), float(np.std(numbers))
    return Covariate(name, "number", mean=mean, std=std, low=low, high=high)


def _category(name: str, values: Sequence[str]) -> Covariate:
    categories = tuple(sorted(set(values)))
    if len(categories) == 1:
        raise CohortError(f"covariate {name} is {categories[0]} in every subject; leave it out")
    shares = tuple(values.count(category) / len(values) for category in categories)
    return Covariate(name, "category", categories=categories, shares=shares)


def _number(value: object) -> float | None:
    """A finite number, or None."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in str(value) else None


# ---------------------------------------------------------------------------------------------
# participants.tsv
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Participants:
    """The columns of a dataset's table that were requested.

    Attributes:
        path: the file.
        columns: names of the covariates.
        rows: text of each column by participant.
        categorical_option: the setting that names categories, for messages.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]
    categorical_option: str = "categorical_covariates"

    def knows(self, subject: str) -> bool:
        """Whether a subject is in the table."""
        return self._row(subject) is not None

    def reason_against(self, subject: str) -> str | None:
        """Why a subject can't be used; None if it has all covariates."""
        row = self._row(subject)
        if row is None:
            return f"is not in the table (no {_IDENTIFIER} {subject})"
        missing = [name for name in self.columns if row[name].lower() in _MISSING]
        return f"has no value of {', '.join(missing)}" if missing else None

    def values(
        self, subjects: Sequence[str], categorical: Sequence[str] = ()
    ) -> dict[str, dict[str, float | str]]:
        """Covariates of the subjects that have all of them.

        A column is numeric if the value of each of these subjects is a number and the settings
        don't name it as categorical.

        Raises:
            CohortError: a column mixes numbers with other text, or may be meant as numbers.
        """
        rows = {name: self._row(name) for name in subjects}
        result: dict[str, dict[str, float | str]] = {name: {} for name in subjects}
        for column in self.columns:
            texts = {name: row[column] for name, row in rows.items() if row is not None}
            numbers = {name: _number(text) for name, text in texts.items()}
            others = [name for name, number in numbers.items() if number is None]
            names = column in categorical or len(others) == len(texts)
            if column not in categorical:
                self._ask_about_numbers(column, {name: texts[name] for name in others}, len(texts))
            if not names and others:
                first = others[0]
                raise CohortError(
                    f"{self.path}: {column} of {first} is {texts[first]!r}, which isn't a number, "
                    "but others are; correct it, or name the column in "
                    f"{self.categorical_option}"
                )
            for name, text in texts.items():
                number = numbers[name]
                result[name][column] = text if names or number is None else number
        return result

    def _ask_about_numbers(self, column: str, texts: Mapping[str, str], count: int) -> None:
        """Refuse text that may be meant as numbers; as categories they would mean nothing.

        Raises:
            CohortError: numbers with a decimal comma, or with a unit or other marks and hardly ever
                the same.
        """
        commas = {name: text for name, text in texts.items() if _COMMA.fullmatch(text)}
        almost = {name: text for name, text in texts.items() if _ALMOST.fullmatch(text)}
        if len(set(almost.values())) <= max(2, count // 2):  # field strengths, visits, grades
            almost = {}
        for name, text in (commas or almost).items():
            plain = re.sub(r"[^0-9.+-]", "", text.replace(",", ".").replace("−", "-"))
            how = f"write {plain}" if _number(plain) is not None else "write it like 20.5"
            raise CohortError(
                f"{self.path}: {column} of {name} is {text!r}: a number or a category? For a "
                f"number {how} (a point, no unit) in this column; for a category name "
                f"the column in --{self.categorical_option}"
            )

    def _row(self, subject: str) -> Mapping[str, str] | None:
        # BIDS writes sub-<label> as participant_id; folders and tables often omit the prefix.
        bare = subject.removeprefix("sub-")
        for name in (subject, f"sub-{bare}", bare):
            if name in self.rows:
                return self.rows[name]
        return None


def _cell(text: str) -> str:
    """A cell without blanks around it, and without the quotes that spreadsheets put there."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def read_participants(
    path: str | Path,
    columns: Sequence[str],
    option: str = "participants",
    categorical_option: str = "categorical_covariates",
) -> Participants:
    """Read a BIDS ``participants.tsv``.

    Args:
        path: the file: tab-separated, with a header line that contains ``participant_id``.
        columns: the requested covariates.
        option: the setting that names the file, for messages.
        categorical_option: the setting that names categories.

    Raises:
        CohortError: the table can't be used; the message names the file and the line.
    """
    file = Path(path)
    try:
        text = read_text(file, encoding="utf-8-sig")
    except FileError as error:
        raise CohortError(
            f"participants {file} {error.reason}; name the table with --{option}"
        ) from error
    except UnicodeDecodeError as error:
        raise CohortError(f"participants {file} is not UTF-8 text") from error
    # Splitting by tabs is enough: the format has no quotes.
    lines = (line.split("\t") for line in io.StringIO(text))
    header = [_cell(cell) for cell in next(lines, [])]
    if _IDENTIFIER not in header:
        raise CohortError(
            f"{file}: its first line has no {_IDENTIFIER}; must be tab-separated names, "
            f"got {', '.join(header)[:200] or 'nothing'}"
        )
    for name in columns:
        if header.count(name) != 1:
            close = difflib.get_close_matches(name, header, n=1)
            hint = f"; did you mean {close[0]}?" if close and close[0] != name else ""
            what = "several columns" if name in header else "no column"
            raise CohortError(f"{file} has {what} {name} (columns: {', '.join(header)}){hint}")
    rows: dict[str, dict[str, str]] = {}
    for number, cells in enumerate(lines, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise CohortError(
                f"{file}, line {number}: has {len(cells)} cells, the first line {len(header)}"
            )
        row = {name: _cell(cell) for name, cell in zip(header, cells, strict=True)}
        if row[_IDENTIFIER] in rows:
            raise CohortError(f"{file}, line {number}: {row[_IDENTIFIER]} is listed twice")
        rows[row[_IDENTIFIER]] = {name: row[name] for name in columns}
    return Participants(file, tuple(columns), rows, categorical_option)


# ---------------------------------------------------------------------------------------------
# Chosen values
# ---------------------------------------------------------------------------------------------


def parse_values(
    at: str | Mapping[str, Any] | None, coding: CovariateCoding | None
) -> dict[str, float | str] | None:
    """Parse chosen values, such as ``age=30,sex=F``.

    Args:
        at: text, or a mapping from a configuration; ``mean``: the cohort's mean.
        coding: the model's; None for one without covariates.

    Returns:
        The values; missing ones are at the cohort's mean. None if ``at`` is empty.

    Raises:
        ConfigurationError: the text can't be parsed; the message names the part.
    """
    if at is None:
        return None
    if coding is None:
        raise ConfigurationError(
            f"at = {at!r}: the model was trained without covariates, so its template is the "
            "same everywhere; leave at out"
        )
    if isinstance(at, str):
        text = at.strip()
        pairs = [] if text == MEAN else [part.partition("=") for part in text.split(",")]
        if any(not (name.strip() and mark and value.strip()) for name, mark, value in pairs):
            raise ConfigurationError(
                f"at = {at!r}: must be {MEAN}, or name=value pairs with commas between, such "
                f"as {_example(coding)}"
            )
        given = [(name.strip(), value.strip()) for name, _, value in pairs]
    elif isinstance(at, Mapping):
        given = [(str(name), value) for name, value in at.items()]
    else:
        raise ConfigurationError(f"at = {at!r}: must be text such as {_example(coding)}")
    values: dict[str, float | str] = {}
    known = {covariate.name: covariate for covariate in coding.covariates}
    for name, value in given:
        if name not in known or name in values:
            what = "is given twice" if name in values else "is not a covariate of the model"
            raise ConfigurationError(
                f"at = {at!r}: {name} {what}; its covariates are {', '.join(known)}"
            )
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ConfigurationError(f"at = {at!r}: {name} must be a number or a name")
        try:
            known[name].code(value)
        except ConfigurationError as error:
            raise ConfigurationError(f"at = {at!r}: {error}") from None
        values[name] = float(value) if known[name].kind == "number" else str(value)
    return values


def _example(coding: CovariateCoding) -> str:
    return ",".join(
        f"{one.name}={one.categories[0] if one.categories else f'{one.mean:.0f}'}"
        for one in coding.covariates
    )
