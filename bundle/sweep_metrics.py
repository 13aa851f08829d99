"""Results of the runs of a sweep: from each job's report to a best run and a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.errors import TrainingError
from scripts.runtime.input_files import FileError, read_json, say
from scripts.runtime.storage import write_whole

__all__ = ["NETWORKS", "best_run", "draw", "metrics_of", "smaller_is_better"]

_FIRST = (
    "label_dice", "distance", "overlap", "correlation", "presence_dice", "correlation_after",
    "log_density_correlation_after", "steps_elastic_loss", "steps_affine_loss", "training_loss",
)  # fmt: skip
"""Metrics in the first columns of the table; the first of them that a job has chooses the run.
Without any of them no run is named, because other numbers needn't say which is better."""

NETWORKS = "models"
"""Folder of a run's networks, with unfinished work and single folds beside them."""
_REPORTS = {
    "result.json", "atlas.json", "evaluation.json", "registration.json", "refined.json",
    "estimated.json", "registered.json", "alignment.json", "predicted.json", "metrics.json",
    "labels.json", "curve.json",
}  # fmt: skip
_NOT_RESULTS = re.compile(
    r"settings|versions|code|cohort|files|kind|format|matrix.*|start|template|subjects|grid"
    r"|n_subjects|iterations|presence_value|log_offset|seed|folds?|passes|sha256|epochs|step"
)
_COST = re.compile(
    r"distance|error|loss|rms|roughness|smoothness|seconds|folded|outliers|inconsistency|left"
    r"|inverse_consistency|efc|move"
)
_MOST_TICKS = 8  # tried values that are each named on the axis
_LAST = 0.1  # share of a curve's last steps that are averaged


def metrics_of(place: Path) -> dict[str, str]:
    """Every number in a run's reports; those of several subjects are averaged.

    Args:
        place: output folder of the run.

    Raises:
        TrainingError: a report can't be read.
    """
    names = sorted(path for path in place.glob("*/**/*.json") if path.name in _REPORTS)
    names = [path for path in names if path.relative_to(place).parts[0] != NETWORKS]
    values_by_name: dict[str, list[float]] = {}
    for path in names:
        try:
            for name, value in _numbers(path.name, read_json(path)):
                values_by_name.setdefault(name, []).append(value)
        except (FileError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise TrainingError(
                f"{path}: is not a report of a job ({say(error)}); delete its folder and start "
                "the sweep again"
            ) from error
    means = {name: f"{sum(values) / len(values):.4g}" for name, values in values_by_name.items()}
    order = sorted(means, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return {name: means[name] for name in order}


def _numbers(file: str, report: Any) -> Iterator[tuple[str, float]]:
    """Names and numbers of one report."""
    if file == "result.json":
        known = report["metrics"] or {f"training_{k}": v for k, v in report["loss"].items()}
        yield from ((str(name), float(value)) for name, value in known.items())
    elif file == "atlas.json":
        training = (report.get("training") or {}).get("losses") or {}
        yield from ((f"training_{name}", float(value)) for name, value in training.items())
        for part in ("fit", "fields"):
            yield from _leaves(report.get(part) or {})
    elif file == "evaluation.json":
        for name, value in report["summary"].items():
            if value is not None:
                yield str(name), float(value["mean"])
    elif file == "curve.json":
        last = report[-max(1, round(_LAST * len(report))) :]
        for name in report[-1]:
            yield f"training_{name}", sum(float(row[name]) for row in last) / len(last)
    else:
        yield from _leaves(report)


def _leaves(report: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Finite numbers in nested mappings, without what a run was given."""
    for key, value in report.items():
        if _NOT_RESULTS.fullmatch(str(key)):
            continue
        name = f"{above}_{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, name)
        elif isinstance(value, int | float) and type(value) is not bool and math.isfinite(value):
            yield name, float(value)


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a cost, by its name.

    Example:
        >>> smaller_is_better("rotation_error"), smaller_is_better("label_dice")
        (True, False)
    """
    return _COST.search(metric) is not None


def best_run(
    rows: Sequence[Mapping[str, str]], varied: Sequence[str], metric: str | None = None
) -> tuple[str, str] | None:
    """The best finished run and the metric that decides; None if nothing can decide.

    Args:
        rows: of the table.
        varied: columns that are not metrics.
        metric: that decides; None: the first of the usual ones that the runs have.

    Raises:
        TrainingError: no run has the metric.
    """
    done = [row for row in rows if row["status"] == "done"]
    known = [
        name
        for name in dict.fromkeys(name for row in done for name in row)
        if name not in ("run", "status", "seconds", *varied)
    ]
    if metric is None:
        metric = next((name for name in _FIRST if name in known), None)
    elif done and metric not in (*known, "seconds"):
        raise TrainingError(
            f"--best {metric}: no run has this metric; must be one of {', '.join(known)}, seconds"
        )
    having = [row for row in done if metric is not None and _has(row, metric)]
    if metric is None or not having:
        return None
    sign = 1 if smaller_is_better(metric) else -1
    return min(having, key=lambda row: sign * float(row[metric]))["run"], metric


def _has(row: Mapping[str, str], metric: str) -> bool:
    return bool(row.get(metric)) and math.isfinite(float(row[metric]))


def draw(
    path: Path, rows: Sequence[Mapping[str, str]], varied: Sequence[str], best: tuple[str, str]
) -> None:
    """Draw the metric against the first varied key, a line for each combination of the others.

    Args:
        path: of the picture, PNG.
        rows: of the table.
        varied: keys that vary.
        best: run and metric, see `best_run`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run, metric = best
    first, *others = varied
    shown = [row for row in rows if row["status"] == "done" and _has(row, metric)]
    ticks = list(dict.fromkeys(row[first] for row in shown))
    try:
        where = {text: float(text) for text in ticks}
    except ValueError:
        where = {text: float(number) for number, text in enumerate(ticks)}
        numeric = False
    else:
        numeric = True
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in shown:
        name = ", ".join(f"{key.split('#')[-1]} {row[key]}" for key in others)
        lines.setdefault(name, []).append((where[row[first]], float(row[metric])))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in lines.items():
        points.sort()
        axes.plot(*zip(*points, strict=True), marker="o", label=name or None)
    chosen = next(row for row in shown if row["run"] == run)
    axes.plot(
        where[chosen[first]], float(chosen[metric]), marker="o", markersize=14, linestyle="none",
        markerfacecolor="none", markeredgecolor="black", label="best",
    )  # fmt: skip
    values = list(where.values())
    if numeric and min(values) > 0 and max(values) / min(values) >= 20:
        axes.set_xscale("log")
    if not numeric or len(values) <= _MOST_TICKS:
        axes.set_xticks(values, list(where))
        axes.minorticks_off()
    axes.set_xlabel(first.replace("$", r"\$"))
    axes.set_ylabel(f"{metric} ({'smaller' if smaller_is_better(metric) else 'larger'} is better)")
    axes.legend()
    with write_whole(path) as staged:
        figure.savefig(staged, format="png", dpi=120)
