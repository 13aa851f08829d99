"""CPU-seconds of what lists subjects, for a cohort and one ten times as large: nothing quadratic.

    python -m bundle.bench.growth --subjects 5000

Finding subjects on disk, tables, covariates, folds, the quality page and the checks of an atlas's
description, each for ``--subjects`` and for ten times as many. A ratio near 10 is linear.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.cohort import CovariateCoding, Rejection, find_subjects, read_participants
from scripts.cohort.cohort import DensityMap, Subject, subjects_table
from scripts.evaluation.folds import cut
from scripts.publishing.atlas_checks import Check, Verification
from scripts.publishing.quality_page import _left_out, _subject_table
from scripts.settings.atlas import LearnedAtlasConfig


def names(count: int) -> list[str]:
    """Of ``count`` subjects."""
    return [f"sub-{number:06d}" for number in range(count)]


def works(root: Path, count: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed, by name, for a cohort of ``count`` subjects below ``root``."""
    settings = LearnedAtlasConfig.load({})
    request = settings.cohort_request()
    whole, tracts = root / "flat", root / "tracts"
    whole.mkdir()
    for number, name in enumerate(names(count)):
        (whole / f"{name}.nii.gz").touch()
        folder = tracts / name / "tractseg_output" / "bundle_segmentations"
        folder.mkdir(parents=True)
        (folder / "CST.nii.gz").touch()
        if number % 2:
            (folder / "AF.nii.gz").touch()
    flat = replace(request.search, layout="flat")
    yield "find: one map each", lambda: find_subjects(whole, flat)
    half = tuple(names(count)[::2])
    yield "find: half excluded", lambda: find_subjects(whole, replace(flat, exclude=half))
    yield "find: half named", lambda: find_subjects(whole, replace(flat, subjects=list(half)))
    both = replace(request.search, layout="tractseg", tracts=("AF", "CST"), channels=2)
    yield "find: a tract is missing in half", lambda: find_subjects(tracts, both)

    subjects = [
        Subject(name, (DensityMap(whole / f"{name}.nii.gz", 0, 1.0, "0" * 64),))
        for name in names(count)
    ]
    rejected = [Rejection(one.name, str(whole), "is empty") for one in subjects]
    yield "table", lambda: subjects_table(subjects, rejected, names(count), "{subject}.nii.gz")

    table = root / "participants.tsv"
    rows = (f"{name}\t{number % 70}\t{'MF'[number % 2]}" for number, name in enumerate(half))
    table.write_text("\n".join(["participant_id\tage\tsex", *rows]) + "\n")
    described = replace(request, covariates=("age", "sex"))

    def covariates() -> None:
        people = read_participants(table, ("age", "sex"), "participants", "categorical")
        known = people.values(list(half), ())
        coding = CovariateCoding.of_cohort(list(known.values()), described)
        for values in known.values():
            coding.code(values)

    yield "covariates", covariates
    yield "folds", lambda: cut(names(count), 5, 0)

    measured = [
        {
            "subject": one.name, "loss": 0.5, "overlap": 0.8, "correlation": 0.9,
            "smallest_jacobian": 0.3, "displacement": 1.5,
        }
        for one in subjects
    ]  # fmt: skip
    left_out = {"rejected": [vars(one) for one in rejected], "without_map": names(count)}
    yield "quality page: rows", lambda: (_subject_table(measured), _left_out(left_out))
    checks = [Check("file", name, "differs", "") for name in names(count)]
    yield "verify: table", lambda: Verification(root, tuple(checks)).table()


def main() -> None:
    """Print the table as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=5000, help="(%(default)s)")
    subjects = parser.parse_args().subjects
    logging.disable(logging.WARNING)
    spent: dict[str, list[float]] = {}
    for count in (subjects, 10 * subjects):
        with tempfile.TemporaryDirectory() as folder:
            for name, work in works(Path(folder), count):
                start = time.process_time()
                work()
                spent.setdefault(name, []).append(time.process_time() - start)
    for name, (few, many) in spent.items():
        row = {"work": name, "seconds": [round(few, 3), round(many, 3)]}
        print(json.dumps({**row, "ratio": round(many / max(few, 1e-9), 1)}))


if __name__ == "__main__":
    main()
