"""CPU-seconds of what lists subjects, for cohorts of growing size: nothing quadratic.

    python -m bundle.bench.growth --subjects 1000 10000 50000

Finding subjects on disk or by lists, the checks of what a run would replace, tables, covariates,
folds, the quality page, an atlas's description with its sidecars, its checks, and the table of an
evaluation. "growth" divides the cost of a subject in the largest cohort by that in the second
largest: 1 is linear, the ratio of the sizes quadratic.
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
from scripts.engines.opening import check_earlier_files
from scripts.evaluation.folds import cut
from scripts.evaluation.report import publish_evaluation, table
from scripts.publishing.atlas_checks import Check, Verification
from scripts.publishing.description import as_json
from scripts.publishing.description_rules import opened_description
from scripts.publishing.quality_page import quality_page
from scripts.publishing.sidecars import describe_atlas
from scripts.runtime.storage import check_replaceable
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import field_names


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
    listed = root / "subjects.csv"
    lines = [f"{name},flat/{name}.nii.gz" for name in names(count)]
    listed.write_text("\n".join(["subject,path", *lines]) + "\n")
    by_list = replace(flat, subjects="subjects.csv")
    yield "find: listed in a CSV file", lambda: find_subjects(root, by_list)
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

    files = [one.maps[0].path for one in subjects]
    replaced = [root / "output" / name for name in names(count)]
    yield "check: one folder is replaced", lambda: check_replaceable(root / "atlas", inputs=files)
    yield "check: a folder each is replaced", lambda: check_replaceable(*replaced, inputs=files)
    yield "check: a run's state", lambda: check_earlier_files([root / "run_state"], files)

    participants = root / "participants.tsv"
    rows = (f"{name}\t{number % 70}\t{'MF'[number % 2]}" for number, name in enumerate(half))
    participants.write_text("\n".join(["participant_id\tage\tsex", *rows]) + "\n")
    described = replace(request, covariates=("age", "sex"))

    def covariates() -> None:
        people = read_participants(participants, ("age", "sex"), "participants", "categorical")
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
    cohort = {
        "subjects": [{"subject": one.name, "maps": [one.maps[0].as_dict()]} for one in subjects],
        "rejected": [vars(one) for one in rejected],
        "without_map": names(count),
        "pattern": "{subject}.nii.gz",
    }
    about: dict[str, Any] = {
        "name": "tract_density_atlas", "kind": "learned", "created": "", "n_subjects": count,
        "training_space": "template_native", "normalisation": "none", "cohort": cohort,
        "settings": {}, "versions": {},
        "fields": {
            "smallest_jacobian": 0.3, "folded": 0, "mean_displacement_rms_voxels": 0.0,
            "displacement_rms_voxels": 1.0,
        },
    }  # fmt: skip
    yield "quality page", lambda: quality_page(about, {}, {}, measured, {}, [])
    atlas = root / "atlas"
    (atlas / "fields").mkdir(parents=True)
    for one in subjects:
        for name in field_names(one.name):
            (atlas / "fields" / name).touch()
    yield "sidecars of two fields each", lambda: describe_atlas(atlas, about)

    def description() -> None:
        (atlas / "atlas.json").write_text(as_json(about), encoding="utf-8")
        opened_description(atlas)

    yield "description, written and read", description
    yield "evaluation: table", lambda: table(measured)
    yield "evaluation: files", lambda: publish_evaluation(root / "evaluation", measured, {})
    checks = [Check("file", name, "differs", "") for name in names(count)]
    yield "verify: table", lambda: Verification(root, tuple(checks)).table()


def main() -> None:
    """Print the table as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--subjects", type=int, nargs="+", default=[1000, 10_000, 50_000], help="(%(default)s)"
    )
    counts = sorted(parser.parse_args().subjects)
    logging.disable(logging.WARNING)
    spent: dict[str, list[float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            for name, work in works(Path(folder), count):
                start = time.process_time()
                work()
                spent.setdefault(name, []).append(time.process_time() - start)
    for name, seconds in spent.items():
        row: dict[str, Any] = {"work": name, "seconds": [round(one, 3) for one in seconds]}
        if len(counts) > 1:
            each = [one / count for one, count in zip(seconds, counts, strict=True)]
            row["growth"] = round(each[-1] / max(each[-2], 1e-9), 2)
        print(json.dumps(row))


if __name__ == "__main__":
    main()
