"""The verbs that don't read a configuration: their arguments and actions."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bundle.places import (
    ARCHIVE,
    DEMO_FOLDER,
    DEMO_PEOPLE_FOLDER,
    DEMO_STACK_FOLDER,
    LABEL_ENVIRONMENT,
    MODELS_FOLDER,
    PROGRAM,
    ROOT,
    SETTINGS_PAGE,
)

__all__ = ["EXIT_USAGE", "TOOLS", "add_tools", "run_tool"]

EXIT_USAGE = 2
TOOLS = ("demo", "density", "label-check", "pack", "settings-docs", "sweep", "verify")
"""Verbs that don't read a configuration."""


def _path(text: str) -> Path:
    """A path as typed; ``~`` is the home folder, which shells don't put in after ``=``."""
    from scripts.settings.values import to_path

    return Path(to_path(text))


def add_tools(verbs: Any) -> None:
    """Add one parser per verb to argparse's subparsers."""
    demo = _verb(verbs, "demo", "make the demo cohort; trains nothing")
    demo.add_argument(
        "--folder",
        type=_path,
        help=f"folder to write to ({DEMO_FOLDER}; with --stack {DEMO_STACK_FOLDER}; with "
        f"--streamlines {DEMO_PEOPLE_FOLDER})",
    )
    demo.add_argument(
        "--streamlines",
        action="store_true",
        help="make twelve people with streamlines and FA instead, as in docs/tutorial.md",
    )
    demo.add_argument(
        "--stack",
        action="store_true",
        help="make a stack of serial sections with known transforms instead",
    )
    demo.add_argument(
        "--age_effect",
        type=float,
        metavar="MM",
        help="make a new cohort whose anatomy depends on age (in participants.tsv) instead: it "
        "moves by this many mm per standard deviation of age",
    )
    demo.add_argument(
        "--subjects",
        type=int,
        default=12,
        help="number of subjects, with --age_effect (%(default)s)",
    )
    demo.add_argument(
        "--size",
        type=int,
        default=64,
        help="voxels from left to right, with --age_effect (%(default)s)",
    )
    density = _verb(
        verbs,
        "density",
        "count streamlines per voxel: the density map of one or several tractograms",
    )
    density.add_argument(
        "tractograms",
        type=_path,
        nargs="+",
        metavar="TRACTOGRAM",
        help=".trk, .tck, .trx, .vtk or .fib, compressed with gzip or not",
    )
    density.add_argument(
        "--vtk_space",
        choices=("auto", "ras", "lps"),
        default="auto",
        help="world coordinates of the points in VTK files: auto takes the space in the title, "
        "else LPS for .fib and RAS for .vtk; dipy writes .vtk in lps (%(default)s)",
    )
    density.add_argument(
        "--reference", type=_path, required=True, help="image whose grid the map gets"
    )
    density.add_argument(
        "--output", type=_path, required=True, help="the map to write, .nii or .nii.gz"
    )
    density.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="weights of the streamlines, one source per tractogram: a text or .npy file with a "
        "number per streamline (tcksift2), or the name of a per-streamline value in the tractogram",
    )
    density.add_argument(
        "--ends", action="store_true", help="count only the voxels where streamlines begin and end"
    )
    pack = _verb(verbs, "pack", "write the archive for the model zoo")
    pack.add_argument(
        "--ckpt_dir", type=_path, default=MODELS_FOLDER, help="folder of model.pt (%(default)s)"
    )
    pack.add_argument(
        "--output", type=_path, default=Path(ARCHIVE), help="the zip file (%(default)s)"
    )
    pack.add_argument(
        "--data_source", help="what the model was trained on, for the archive's metadata"
    )
    pack.add_argument(
        "--list",
        action="store_true",
        help="list the files of the archive and what is left out of the model; write nothing",
    )
    label = _verb(
        verbs, "label-check", "run a packed bundle under MONAI Label and report the result"
    )
    label.add_argument(
        "--environment",
        type=_path,
        default=LABEL_ENVIRONMENT,
        help="environment of MONAI Label, made on first use (%(default)s)",
    )
    label.add_argument(
        "--work",
        type=_path,
        help="empty folder in which everything is kept (default: a temporary one, removed)",
    )
    label.add_argument(
        "--archive",
        type=_path,
        help="archive made by pack, with --studies (default: that of a tiny atlas, trained first)",
    )
    label.add_argument("--studies", type=_path, help="folder of maps that fit the archive's atlas")
    docs = _verb(verbs, "settings-docs", "write docs/settings.md from the schema")
    docs.add_argument(
        "--check", action="store_true", help="write nothing; fail if the page is out of date"
    )
    verbs.add_parser(
        "sweep",
        help="run a job for several values of its settings and make one table",
        usage=f"{PROGRAM} sweep JOB --KEY VALUE,VALUE ... [--KEY VALUE] ...\n"
        "           [--config_file FILE] [--best METRIC]",
        description="Run JOB (such as train-affine) for every combination of the values that are "
        "separated by commas, each in a separate folder in <output_dir>/sweep. The table is "
        "printed and written to results.csv there, with a plot, results.png. The best run is "
        "named, by the column --best or else by the first metric that the job reports. To resume "
        "an interrupted sweep, run it again.",
    )
    verify = _verb(
        verbs, "verify", "recompute the content of a published atlas and report differences"
    )
    verify.add_argument("atlas", type=_path, help="the published folder, with its atlas.json")


def _verb(verbs: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """A parser whose help begins with the line that the list of verbs has."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    return parser


def run_tool(options: argparse.Namespace) -> int:
    """Run a parsed verb; returns the exit code."""
    if options.verb == "demo":
        if options.stack:
            return _demo_stack(options.folder or DEMO_STACK_FOLDER)
        if options.streamlines:
            return _demo_people(options.folder or DEMO_PEOPLE_FOLDER)
        folder = options.folder or DEMO_FOLDER
        return _demo(folder, options.age_effect, options.subjects, options.size)
    if options.verb == "density":
        from bundle.density import write_map_of

        print(write_map_of(options))
        return 0
    if options.verb == "verify":
        from scripts.publishing.verification import verify_atlas

        verification = verify_atlas(options.atlas)
        print(verification.table())
        verification.require()
        return 0
    if options.verb == "label-check":
        return _check_label(options)
    if options.verb == "pack":
        return _pack(options)
    return _write_settings_page(SETTINGS_PAGE, options.check)


def _demo(folder: Path, age_effect: float | None, subjects: int, size: int) -> int:
    from scripts.phantom import ensure_demo_cohort, write_demo_cohort

    if age_effect is None:
        print(ensure_demo_cohort(folder))
        return 0
    try:
        shape = (size, size * 9 // 8, size)
        print(write_demo_cohort(folder, subjects=subjects, shape=shape, age_effect=age_effect))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0


def _demo_people(folder: Path) -> int:
    from bundle.demo_people import write_demo_people

    print(write_demo_people(folder))
    return 0


def _demo_stack(folder: Path) -> int:
    from scripts.stack.demo import write_demo_stack

    print(write_demo_stack(folder))
    return 0


def _pack(options: argparse.Namespace) -> int:
    from bundle.packing import LARGE, pack, packed

    source = options.data_source
    if options.list:
        print(packed(ROOT, options.ckpt_dir, source).table())
        return 0
    for name, size in pack(ROOT, options.ckpt_dir, options.output, source).items():
        if size > LARGE:
            print(
                f"note: {name} has {size / 1e6:.0f} MB; the zoo wants files of more than "
                f"{LARGE / 1e6:.0f} MB listed with their address in a large_files.yml",
                file=sys.stderr,
            )
    print(options.output)
    return 0


def _check_label(options: argparse.Namespace) -> int:
    from bundle.monai_label.check import label_check
    from bundle.monai_label.environment import LabelCheckError

    try:
        with contextlib.ExitStack() as stack:
            work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            given = (options.archive, options.studies)
            results = label_check(ROOT, options.environment, work, *given)
    except LabelCheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=1))
    return 0


def _write_settings_page(path: Path, check: bool) -> int:
    from bundle.settings_docs import settings_page

    page = settings_page()
    if not check:
        path.write_text(page, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == page:
        return 0
    print(
        f"error: {path} differs from the schema; update it with {PROGRAM} settings-docs",
        file=sys.stderr,
    )
    return 1
