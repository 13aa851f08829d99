"""The verbs of ``python -m bundle``: the bundle's jobs with early checks and short errors.

Torch and monai are imported only when a job starts; help, errors and ``check`` don't need them.
"""

from __future__ import annotations

import argparse
import difflib
import math
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from bundle.ending import (
    EXIT_TERMINATED,
    end_on_sigterm,
    flushed,
    ignore_interruptions,
    interrupt_later,
    lasting,
)
from bundle.jobs import JOBS, TRAININGS, Job
from bundle.places import HOME, INSTALLED, PROGRAM, ROOT
from bundle.tools import EXIT_USAGE, TOOLS, add_tools, run_tool
from scripts.errors import OutOfMemoryError, StorageError, TractAtlasError, shown
from scripts.runtime.error_report import (
    EXIT_INTERRUPTED,
    INTERRUPTED,
    find_interruption,
    find_user_error,
)
from scripts.runtime.memory import warn_near_limit
from scripts.runtime.run_log import escape_records, note

REFINE_STEPS = 50
"""Value of ``register --refine``: learned_atlas#refine#new_subject_iterations."""
OVERRIDES_HELP = """\
overrides:
    --config_file FILE      configuration to use instead of {config}; several
                            are merged, top-level keys of later ones win
    --KEY VALUE             set a value of the configuration, also --KEY=VALUE;
                            # separates levels
"""
REFINE_HELP = f"""\
    --refine [STEPS]        refine each new subject's field by gradient steps (default
                            {REFINE_STEPS}); short for
                            --learned_atlas#refine#new_subject_iterations
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: the words after the program's name; None: from the command line.

    Returns:
        The exit code. User errors are one message on standard error; any other error is raised, so
        that its traceback is shown.
    """
    return _main(argv, last=False)


def run(argv: Sequence[str] | None = None) -> int:
    """`main` as the last action of a process: interruptions after it are ignored."""
    warn_near_limit()
    sys.unraisablehook = interrupt_later
    try:
        code = _main(argv, last=True)
    except KeyboardInterrupt:  # Ctrl-C again, while the first one was reported
        code = EXIT_INTERRUPTED
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ignore_interruptions(quietly=code == OutOfMemoryError.exit_code)
    return flushed(code)


def _main(argv: Sequence[str] | None, last: bool) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, end_on_sigterm)
    escape_records()
    with redirect_stdout(lasting(sys.stdout)), redirect_stderr(lasting(sys.stderr)):
        return _explained(arguments, last)


def _explained(arguments: list[str], last: bool) -> int:
    """Run a verb; show user errors as one message.

    Args:
        arguments: of the command line.
        last: the process ends with it, so that Ctrl-C has nothing more to end after the verb.
    """
    try:
        Path.cwd()
    except OSError as error:
        print(f"error: the working directory can't be entered: {error.strerror}", file=sys.stderr)
        return StorageError.exit_code
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        if last:
            ignore_interruptions(quietly=True)
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        interruption = find_interruption(error)
        if last:
            ignore_interruptions(quietly=interruption is not None)
        explained = find_user_error(error)
        if explained is not None:
            note(str(explained))
            sys.stdout.flush()  # keeps the log on standard output before its error
            print(f"error: {explained}", file=sys.stderr)
            return explained.exit_code
        if isinstance(interruption, KeyboardInterrupt):
            print(f"\n{INTERRUPTED}", file=sys.stderr)
            return EXIT_INTERRUPTED
        if interruption is not None and interruption.code == EXIT_TERMINATED:
            return EXIT_TERMINATED
        raise


def _dispatch(arguments: list[str]) -> int:
    wants_help = any(word in ("-h", "--help") for word in arguments)
    if arguments[:1] == ["sweep"] and not wants_help:
        return _sweep(arguments[1:])
    verb = arguments[0] if arguments else "-"
    if verb not in JOBS and verb not in TOOLS and not verb.startswith("-"):
        print(f"error: {_unknown_verb(verb)}", file=sys.stderr)
        return EXIT_USAGE
    if not arguments or arguments[0] not in JOBS or wants_help:
        # Jobs accept any --key, which argparse can't: for them it only prints the help.
        explained = arguments[0] if wants_help else None
        options = _parser(explained).parse_args(
            [*arguments[:1], "--help"] if wants_help else arguments
        )
        return run_tool(options)

    from bundle.overrides import UsageError

    try:
        return _run_job(JOBS[arguments[0]], arguments[1:])
    except UsageError as error:
        print(f"error: {error}\nsee: {PROGRAM} {arguments[0]} --help", file=sys.stderr)
        return EXIT_USAGE


# ---------------------------------------------------------------------------------------------
# Help, and sweeps
# ---------------------------------------------------------------------------------------------


def _parser(explained: str | None = None) -> argparse.ArgumentParser:
    """The parser; with the keys of one job, whose help is wanted."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Learn, check and use a deformable atlas of tract-density maps.",
        epilog=_exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")
    for name, job in JOBS.items():
        verbs.add_parser(
            name,
            help=job.summary,
            description=f"{job.summary[0].upper()}{job.summary[1:]}.",
            usage=f"{PROGRAM} {name} [--config_file FILE] [--KEY VALUE] ...",
            epilog=OVERRIDES_HELP.format(config=" + ".join(_short(job)))
            + (REFINE_HELP if name == "register" else "")
            + (_keys_help(job) if name == explained else "")
            + _same_command(job),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    add_tools(verbs)
    return parser


def _keys_help(job: Job) -> str:
    from bundle.keys_help import keys_help

    return keys_help([ROOT / name for name in job.files])


def _short(job: Job) -> list[str]:
    """The files of a job, a second one without its folder: the help's lines are short."""
    return [job.config, *(Path(name).name for name in job.files[1:])]


def _same_command(job: Job) -> str:
    if job.run_id is None or INSTALLED:
        return ""
    files = job.config if job.over is None else f'"{job.files}"'
    return (
        "\nthe same without early checks, from the repository's root:\n"
        f"  python -m monai.bundle run {job.run_id} --config_file {files}\n"
    )


def _exit_codes() -> str:
    codes = {0: "done", 1: "an unexpected error, with its traceback"}
    for kind in TractAtlasError.__subclasses__():
        meaning = (kind.__doc__ or "").strip().splitlines()[0]
        meaning = meaning.partition(";")[0].rstrip(".")
        codes[kind.exit_code] = meaning[:1].lower() + meaning[1:]
    codes[EXIT_USAGE] += ", or a mistake in the command line"
    codes[EXIT_INTERRUPTED] = "interrupted (Ctrl-C)"
    codes[EXIT_TERMINATED] = "terminated (SIGTERM)"
    return "exit codes:\n" + "\n".join(f"  {code:3d}  {codes[code]}" for code in sorted(codes))


def _unknown_verb(word: str) -> str:
    close = difflib.get_close_matches(word, [*JOBS, *TOOLS], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{shown(word)!r} is not a verb{hint}\nsee: {PROGRAM} --help"


def _sweep(arguments: Sequence[str]) -> int:
    from bundle.overrides import UsageError
    from bundle.sweep import sweep

    jobs = {name: job for name, job in JOBS.items() if job.run_id is not None}
    verb = arguments[0].replace("_", "-") if arguments else ""
    try:
        if verb not in jobs:
            raise UsageError(f"a sweep needs one of {', '.join(jobs)}, got {verb!r}")
        job = jobs[verb]
        files = [ROOT / name for name in job.files]
        sweep(verb, files, arguments[1:], ROOT, HOME, job.run_id in TRAININGS)
    except UsageError as error:
        print(f"error: {error}\nsee: {PROGRAM} sweep --help", file=sys.stderr)
        return EXIT_USAGE
    return 0


# ---------------------------------------------------------------------------------------------
# Jobs
# ---------------------------------------------------------------------------------------------


def _run_job(job: Job, arguments: Sequence[str]) -> int:
    from bundle.early_values import early_check
    from bundle.folders import check_folders
    from bundle.overrides import (
        UsageError,
        apply_overrides,
        locate_config_files,
        parse_overrides,
        quoted_texts,
        read_config,
    )
    from scripts.settings.monai_command import require_expressions

    require_expressions()
    names, overrides = parse_overrides(arguments)
    if job is JOBS["register"] and "refine" in overrides:
        steps = overrides.pop("refine")
        if isinstance(steps, bool):
            steps = REFINE_STEPS if steps else 0
        overrides.setdefault("learned_atlas#refine#new_subject_iterations", steps)
    files = locate_config_files(names or job.files, ROOT)
    config = read_config(files)
    overrides = {**_places(config), **overrides}
    if job is JOBS["build"] and not names:
        from bundle.guessing import guessed_settings

        overrides = {**overrides, **guessed_settings(config, overrides)}
    passed = quoted_texts(config)
    passed |= apply_overrides(config, overrides)
    check_folders(config, overrides)
    settings = early_check(config)
    if job.run_id is None:
        return _check(config, settings)
    run_id = passed.pop("run_id", job.run_id)
    if run_id not in config:
        raise UsageError(f"{', '.join(str(path) for path in files)}: has no {run_id} to run")
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        # A closed terminal doesn't end the run: its output is lost, the log file continues.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _run_in_monai(run_id, files, {**_shared_files(files), **passed})
    return 0


def _places(config: Mapping[str, Any]) -> dict[str, str]:
    """Overrides where the configuration's "." would be the wrong folder.

    Data, models and output of a clone are in the clone, wherever it is run. Those of an installed
    bundle are in the current folder; only the shipped configurations are in the bundle.
    """
    if INSTALLED:
        jobs = config.get("cross_validation") or {}
        prefix = "$@bundle_root + '/configs/"
        return {
            f"cross_validation#{key}": str(ROOT / "configs" / value.removeprefix(prefix)[:-1])
            for key, value in (jobs.items() if isinstance(jobs, Mapping) else ())
            if isinstance(value, str) and value.startswith(prefix)
        }
    given = config.get("bundle_root")
    elsewhere = Path.cwd() != ROOT
    if elsewhere and isinstance(given, str) and given[:1] not in ("$", "@", "/"):
        return {"bundle_root": str(ROOT)}
    return {}


def _shared_files(files: Sequence[Path]) -> dict[str, str]:
    """Logging and metadata of the bundle for a configuration that has none beside it."""
    names = {"logging_file": "logging.conf", "meta_file": "metadata.json"}
    return {
        argument: str(ROOT / "configs" / name)
        for argument, name in names.items()
        if not (files[0].parent / name).is_file()
    }


def _check(config: Mapping[str, Any], settings: Any) -> int:
    """Print the subjects of the cohort and the rejected ones, as in training."""
    from bundle.early_values import known_path
    from bundle.overrides import UsageError
    from scripts.cohort import read_cohort

    if settings is None:
        raise UsageError("the settings contain an expression that only the job itself can evaluate")
    cohort = read_cohort(known_path(config, "dataset_dir"), settings.cohort_request())
    share = math.prod(cohort.crop.shape) / math.prod(cohort.grid.shape)
    spacing = " x ".join(f"{step:g}" for step in cohort.grid.spacing)
    print(cohort.table())
    print(
        f"grid {_by(cohort.grid.shape)} at {spacing} mm, "
        f"cropped to {_by(cohort.crop.shape)} ({share:.0%} of its voxels)"
    )
    turned = [who.name for who in cohort.subjects if any(one.order for one in who.maps)]
    if turned:
        names = ", ".join(shown(name) for name in turned)
        print(f"stored in another axis order, and reordered exactly: {names}")
    return 0


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)


def _run_in_monai(run_id: str, files: Sequence[Path], overrides: Mapping[str, Any]) -> None:
    arguments = {"run_id": run_id, "config_file": [str(path) for path in files], **overrides}
    if all(path.is_relative_to(ROOT) for path in files):
        # MONAI warns that a configuration can run code; ours came with the program.
        warnings.filterwarnings("ignore", message="parsing config_file")

    from monai.bundle import run

    run(**arguments)
