"""The pairs of a stack, measured by workers and kept on disk when they are finished."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from scripts.errors import CheckpointError
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import write_whole
from scripts.stack.pair import PairRegistration, PairResult
from scripts.stack.pyramid import Pyramid
from scripts.stack.source import Inspection, Stack, luminance
from scripts.stack.workers import Workers

__all__ = ["Pair", "PairStore", "measure_pairs", "pairs_of"]

logger = logging.getLogger(__name__)

Pair = tuple[int, int]
_RUN = 8  # sections that one call measures in turn, so that each is read nearly once


def pairs_of(sections: Sequence[int], neighbours: int, most: int | None) -> list[Pair]:
    """Which sections are measured against each other.

    Args:
        sections: indices of those that can be measured.
        neighbours: how many of the following ones each is measured against.
        most: neighbouring pairs to measure, the first ones; None: all.
    """
    if most is not None:
        sections = sections[: most + 1] if most else []
    return [
        (first, second)
        for place, first in enumerate(sections)
        for second in sections[place + 1 : place + 1 + neighbours]
    ]


class PairStore:
    """Measured pairs, one file each, so that an interrupted run resumes.

    Numbers are read back exactly: a resumed run gives the results of an uninterrupted one.

    Args:
        folder: of the files.
        block: of the settings, for messages.
    """

    def __init__(self, folder: Path, block: str) -> None:
        self.folder, self.block = folder, block

    def path(self, pair: Pair) -> Path:
        """The file of a pair."""
        return self.folder / f"{pair[0]:06d}_{pair[1]:06d}.json"

    def write(self, pair: Pair, result: PairResult) -> None:
        """Keep a pair.

        Raises:
            StorageError: the file can't be written.
        """
        with write_whole(self.path(pair)) as staged:
            content = {**asdict(result), "matrix": result.matrix.tolist()}
            staged.write_text(json.dumps(content), encoding="utf-8")

    def read(self, pair: Pair) -> PairResult | None:
        """A pair that was kept; None if it wasn't.

        Raises:
            CheckpointError: its file is damaged.
        """
        path = self.path(pair)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            matrix = np.array(content.pop("matrix"), dtype=np.float64)
            if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
                raise ValueError("no 3x3 matrix")
            return PairResult(matrix=matrix, **{**content, "steps": tuple(content["steps"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: damaged ({error}); discard the unfinished run with "
                f"--{self.block}#resume false"
            ) from error


@dataclass(frozen=True)
class _Run:
    """Pairs that one call measures, in order."""

    stack: Stack
    low: float
    high: float
    pairs: tuple[tuple[int, Pair], ...]
    registration: PairRegistration
    store: PairStore
    device: str


def measure_pairs(
    inspection: Inspection,
    pairs: Sequence[Pair],
    registration: PairRegistration,
    store: PairStore,
    workers: Workers,
    device: str = "cpu",
) -> dict[Pair, PairResult]:
    """Measure all pairs that weren't kept by an interrupted run.

    Args:
        inspection: of the stack.
        pairs: which.
        registration: of a pair.
        store: where they are kept.
        workers: that measure.
        device: where they compute.

    Returns:
        The result of every pair.
    """
    earlier = {pair: kept for pair in pairs if (kept := store.read(pair)) is not None}
    if earlier:
        logger.info("%d of %d pairs were measured before", len(earlier), len(pairs))
    runs = list(_runs(inspection, pairs, earlier, registration, store, device))
    with progress_bar(len(pairs), "pairs", initial=len(earlier)) as bar:
        for results in workers.map(_measure, [(run,) for run in runs]):
            earlier.update(results)
            bar.update(len(results))
    return {pair: earlier[pair] for pair in pairs}


def _runs(
    inspection: Inspection,
    pairs: Sequence[Pair],
    earlier: Mapping[Pair, PairResult],
    registration: PairRegistration,
    store: PairStore,
    device: str,
) -> Iterator[_Run]:
    """Groups of pairs by their first section; the same groups in each run."""
    low, high = _usual_range(inspection)
    groups: dict[int, list[tuple[int, Pair]]] = {}
    for number, pair in enumerate(pairs):
        if pair not in earlier:
            groups.setdefault(pair[0] // _RUN, []).append((number, pair))
    for group in groups.values():
        yield _Run(inspection.stack, low, high, tuple(group), registration, store, device)


def _usual_range(inspection: Inspection) -> tuple[float, float]:
    """What becomes 0 and 1: medians, so that a bright speck of one section doesn't matter."""
    sound = [one for one in inspection.facts if not one.constant]
    if not sound:
        return 0.0, 1.0
    low = float(np.median([one.low for one in sound]))
    high = float(np.median([one.high for one in sound]))
    return (low, high) if high > low else (low, low + 1.0)


def _measure(run: _Run) -> dict[Pair, PairResult]:
    """Measure the pairs of a run; a section is dropped when no further pair needs it."""
    last = {section: k for k, (_, pair) in enumerate(run.pairs) for section in pair}
    pyramids: dict[int, Pyramid] = {}
    results = {}
    for k, (number, pair) in enumerate(run.pairs):
        for section in pair:
            if section not in pyramids:
                values, known = run.stack.section(section)
                grey = (luminance(values) - run.low) / (run.high - run.low)
                pyramids[section] = Pyramid(
                    grey, run.stack.plane, run.registration.schedule.reductions, known, run.device
                )
        results[pair] = run.registration(pyramids[pair[0]], pyramids[pair[1]], number)
        run.store.write(pair, results[pair])
        for section in [one for one in pyramids if last[one] == k]:
            del pyramids[section]
    return results
