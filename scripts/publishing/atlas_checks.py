"""The outcome of a check of a published atlas, and the table of all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scripts.errors import CohortError, VerificationError, shown
from scripts.runtime.input_files import FileError, read_json
from scripts.runtime.inside import inside

__all__ = ["UNREADABLE", "Check", "Outcome", "Verification", "read_published"]

Outcome = Literal["agrees", "differs", "missing", "unexpected", "not checked"]
UNREADABLE = (CohortError, OSError, OverflowError, ValueError)
"""Exceptions that reading a file of an atlas or of its cohort may raise."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kind: ``description``, ``code``, ``library``, ``input``, ``divisor``, ``file``, ``field``
            or ``map``.
        name: of the file, or of the subject's part.
        outcome: ``not checked`` is not a disagreement: the necessary data were never published.
        detail: the recomputed and the expected value.
    """

    kind: str
    name: str
    outcome: Outcome
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the atlas doesn't match its description."""
        return self.outcome not in ("agrees", "not checked")


@dataclass(frozen=True)
class Verification:
    """All checks of one atlas.

    Attributes:
        folder: of the atlas.
        checks: in the order in which they were made.
    """

    folder: Path
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        """The checks that don't agree."""
        return [check for check in self.checks if check.fails]

    def table(self) -> str:
        """A count of agreeing checks per kind, and all others by name."""
        agreeing = Counter(check.kind for check in self.checks if check.outcome == "agrees")
        rows = [("agrees", kind, f"{count} of them") for kind, count in agreeing.items()]
        rows += [
            (check.outcome, check.kind, shown(": ".join(filter(None, (check.name, check.detail)))))
            for check in self.checks
            if check.outcome != "agrees"
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)

    def require(self) -> None:
        """Raise an error unless everything agrees.

        Raises:
            VerificationError: names the checks that don't agree.
        """
        failed = self.failures
        if failed:
            first = "; ".join(f"{check.kind} {check.name} {check.outcome}" for check in failed[:3])
            more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
            raise VerificationError(
                f"{self.folder}: {len(failed)} of {len(self.checks)} checks fail: {first}{more}"
            )


def read_published(root: Path, name: str, advice: str = "") -> dict[str, Any]:
    """The JSON object of a file of the atlas.

    Args:
        root: the published folder.
        name: of the file.
        advice: end of the message if the file can't be read.

    Raises:
        VerificationError: it can't be read, or isn't a JSON object.
    """
    path = root / name
    try:
        result = read_json(inside(root, name))
    except FileError as error:
        raise VerificationError(f"{error}{advice}") from error
    except ValueError as error:
        raise VerificationError(f"{path}: damaged: {error}") from error
    if not isinstance(result, dict):
        raise VerificationError(f"{path}: damaged: not a JSON object")
    return result
