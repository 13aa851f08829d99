"""Runs one job for several values of its settings, and makes one table of the results.

    python -m bundle sweep train_affine --fold 0,1 --learned_affine#family rigid,affine
    python -m bundle sweep refine --fixed a.nii.gz --moving b.nii.gz --refine#mode affine,joint

A value with commas is a list of values to try; one in brackets is a single value. Every combination
runs as a separate job, in a separate folder below ``<output_dir>/sweep``.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.early_values import early_check, known_path
from bundle.overrides import (
    UsageError,
    apply_overrides,
    locate_config_files,
    parse_overrides,
    read_config,
)
from bundle.sweep_metrics import NETWORKS, best_run, draw, metrics_of
from scripts.errors import ConfigurationError, StorageError, TrainingError, shown
from scripts.runtime.input_files import FileError, read_json, read_text
from scripts.runtime.lock import locked_folders
from scripts.runtime.storage import write_whole
from scripts.runtime.tables import write_table

__all__ = ["SweepRun", "planned_runs", "sweep", "table_of"]

RECORD = "sweep_run.json"
PICTURE = "results.png"


@dataclass(frozen=True)
class SweepRun:
    """One combination.

    Attributes:
        name: of its folder, made from the varied values.
        varied: values of the varied keys.
        overrides: every override, as text for the command line.
    """

    name: str
    varied: dict[str, str]
    overrides: dict[str, str]


def planned_runs(overrides: Mapping[str, Any]) -> list[SweepRun]:
    """All combinations of the values that were given as lists with commas.

    Args:
        overrides: as `parse_overrides` reads them: a list with commas is a tuple.

    Raises:
        UsageError: no value varies, a value is given twice, or two runs would share a name.
    """
    varying = {key: value for key, value in overrides.items() if isinstance(value, tuple)}
    if not varying:
        raise UsageError("no setting varies: give a key several values, such as --fold 0,1")
    for key, values in varying.items():
        if len({_text(value) for value in values}) < len(values):
            raise UsageError(f"--{key} names a value twice")
    lasts = [key.split("#")[-1] for key in varying]
    short = {
        key: key.replace("#", ".") if lasts.count(last) > 1 else last
        for key, last in zip(varying, lasts, strict=True)
    }
    runs = []
    for values in itertools.product(*varying.values()):
        varied = {key: _text(value) for key, value in zip(varying, values, strict=True)}
        name = "_".join(f"{short[key]}-{value}" for key, value in varied.items())
        every = {key: varied.get(key) or _text(value) for key, value in overrides.items()}
        runs.append(SweepRun(re.sub(r"[^\w.+=-]+", "-", name), varied, every))
    if len({run.name for run in runs}) < len(runs):
        raise UsageError("two runs would share a folder: their values differ only in punctuation")
    return runs


def _text(value: Any) -> str:
    """A parsed value as it would be typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else repr(value)


def sweep(
    verb: str,
    config_files: Sequence[Path],
    arguments: Sequence[str],
    root: Path,
    home: Path | None = None,
    trains: bool = True,
) -> None:
    """Run all combinations that aren't finished; write table and picture, name the best run.

    A failed run is reported, and the others still run. When started again, a sweep continues:
    finished runs are only read, an unfinished one resumes from its checkpoint.

    Args:
        verb: of the job.
        config_files: its configuration, unless ``--config_file`` gives others.
        arguments: overrides, some with several values.
        root: of the bundle.
        home: default folder of the output; None: the root.
        trains: whether the job writes a network, so that each run needs a ckpt_dir.

    Raises:
        ConfigurationError: the settings of every run break a rule.
        UsageError: see `planned_runs`; or a key isn't in the configuration.
        StorageError: another sweep is using the folder.
        TrainingError: runs failed.
    """
    names, overrides = parse_overrides(arguments, several=True)
    best = overrides.pop("best", None)
    if best is not None and not isinstance(best, str):
        raise UsageError(f"--best = {best!r}: must be the name of one metric")
    runs = planned_runs(overrides)
    files = locate_config_files(names, root) if names else list(config_files)
    config = read_config(files)
    separate = _own_folders(config, trains)
    if set(separate) & {key for run in runs for key in run.varied}:
        raise UsageError(f"{' and '.join(separate)} can't vary: every run has separate folders")
    _require_one_to_run(config, runs)
    apply_overrides(config, dict(runs[0].overrides))
    if config.get("bundle_root") in (None, "."):
        config["bundle_root"] = str(home or root)
    place = known_path(config, next(iter(separate)))
    folder = Path(place if "output_dir" in separate else Path(place).parent).absolute() / "sweep"
    job = _SweptJob(verb, separate, files if names else (), root)
    with locked_folders(folder):
        _check_earlier(folder)
        rows = _all_runs(job, runs, folder)
        print(table_of(rows))
        best_row = best_run(rows, list(runs[0].varied), best)
        if best_row is not None:
            draw(folder / PICTURE, rows, list(runs[0].varied), best_row)
            print(f"best by {best_row[1]}: {best_row[0]}, in {folder / best_row[0]}")
        elif any(row["status"] == "done" for row in rows):
            print("no best run is named: choose a column of the table with --best")
    failed = [row["run"] for row in rows if row["status"] != "done"]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; all runs are in "
            f"{folder / 'results.csv'}, the output of each is in its log.txt there"
        )


def _require_one_to_run(config: Mapping[str, Any], runs: Sequence[SweepRun]) -> None:
    """Report an unknown key, or settings that no run could use, before the first run.

    Raises:
        UsageError: a key isn't in the configuration.
        ConfigurationError: the settings of every run break a rule; the first run's message.
    """
    first: ConfigurationError | None = None
    for run in runs:
        trial = copy.deepcopy(dict(config))
        words = [f"--{key}={value}" for key, value in run.overrides.items()]
        apply_overrides(trial, parse_overrides(words)[1])
        try:
            early_check(trial)
        except ConfigurationError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


@dataclass(frozen=True)
class _SweptJob:
    """The common parts of all runs.

    Attributes:
        verb: of the job.
        run_folders: keys of the folders that are separate for each run, with their place below its
            folder.
        files: configurations that replace the job's; empty: the job's.
        root: of the bundle.
    """

    verb: str
    run_folders: Mapping[str, str]
    files: Sequence[Path]
    root: Path

    def record(self, run: SweepRun) -> dict[str, Any]:
        """What a run was made from."""
        if not self.files:
            return {"overrides": run.overrides}
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files]
        return {"overrides": run.overrides, "config": digests}


def _own_folders(config: Mapping[str, Any], trains: bool) -> dict[str, str]:
    """The keys of a job's folders, and where they lie below a run's."""
    result = {}
    if "output_dir" in config:
        result["output_dir"] = ""
    elif "output" in config:
        result["output"] = "output"
    else:
        raise UsageError("the configuration has no output_dir, so runs can't be kept separate")
    if trains and "ckpt_dir" in config:
        result["ckpt_dir"] = NETWORKS
    return result


def _check_earlier(folder: Path) -> None:
    """Make sure that the table, which is replaced, is that of an earlier sweep.

    Raises:
        StorageError: it is another file.
    """
    table = folder / "results.csv"
    if not os.path.lexists(table):
        return
    try:
        first = read_text(table).partition("\n")[0]
    except (FileError, UnicodeDecodeError):
        first = ""
    if not first.startswith("run,status,"):
        raise StorageError(
            f"{table}: would be replaced, but is not a sweep's table; move it elsewhere, or choose "
            "another --output_dir"
        )


def _all_runs(job: _SweptJob, runs: Sequence[SweepRun], folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for number, run in enumerate(runs, start=1):
        place = folder / run.name
        record = _record(place)
        wanted = job.record(run)
        done = record is not None and {key: record.get(key) for key in wanted} == wanted
        if done and record is not None:
            status, seconds = "done", float(record["seconds"])
        else:
            print(f"[{number}/{len(runs)}] {run.name}", flush=True)
            status, seconds = _run(job, run, place)
        metrics = metrics_of(place) if status == "done" else {}
        rows.append(
            {"run": run.name, "status": status, **run.varied, **metrics,
             "seconds": f"{seconds:.0f}"}
        )  # fmt: skip
        shown = ", ".join(f"{name} {value}" for name, value in list(metrics.items())[:3])
        earlier = " before" if done else ""
        print(f"[{number}/{len(runs)}] {run.name}: {status}{earlier}{', ' if shown else ''}{shown}")
        _write_table(folder / "results.csv", rows)  # after each run, also for a stopped sweep
    return rows


def _run(job: _SweptJob, run: SweepRun, place: Path) -> tuple[str, float]:
    """Run a separate process; return its status and its time."""
    place.mkdir(parents=True, exist_ok=True)
    folders = {key: str(place / below) for key, below in job.run_folders.items()}
    words = [f"--config_file={path}" for path in job.files]
    words += [f"--{key}={value}" for key, value in {**run.overrides, **folders}.items()]
    start = time.monotonic()
    log = place / "log.txt"
    try:
        log.unlink(missing_ok=True)  # a link there would lead the output elsewhere
        with log.open("x", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, str(job.root / "bundle"), job.verb, *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            try:
                code = process.wait()
            except BaseException:  # the sweep is stopped: also stop the run, which saves its state
                process.terminate()
                process.wait()
                raise
    except OSError as error:
        raise StorageError(f"{log}: can't be written: {error}") from error
    seconds = time.monotonic() - start
    if code != 0:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if line.startswith("error: ")), "")
        if reason:
            print(f"  {shown(reason)}")
        return f"failed ({code})", seconds
    with write_whole(place / RECORD) as path:
        path.write_text(json.dumps({**job.record(run), "seconds": round(seconds, 1)}))
    return "done", seconds


def _record(place: Path) -> dict[str, Any] | None:
    try:
        content = read_json(place / RECORD)
    except (FileError, ValueError):
        return None
    return (
        content if isinstance(content, dict) and {"overrides", "seconds"} <= set(content) else None
    )


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [name for name in names if name != "seconds"] + ["seconds"]


def _write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with write_whole(path) as staged, staged.open("w", newline="", encoding="utf-8") as file:
        write_table(file, _columns(rows), rows)


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as lines of text in columns."""
    columns = [name for name in _columns(rows) if name != "run"]
    lines = [
        [shown(cell) for cell in line]
        for line in (columns, *([row.get(name, "") for name in columns] for row in rows))
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
