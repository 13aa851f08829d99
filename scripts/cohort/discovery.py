"""Finds the subjects in a dataset folder and their maps, without reading the maps."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.cohort.layouts import LAYOUTS
from scripts.cohort.listings import read_csv, read_datalist, wanted_names
from scripts.cohort.patterns import (
    Match,
    Rejection,
    Scan,
    match_tail,
    printable,
    same_name,
    scan_alternatives,
    unfit_name,
)
from scripts.cohort.remarks import MOST_NAMES
from scripts.cohort.runs import by_run, check_runs, names_runs
from scripts.errors import CohortError, ConfigurationError, shown, some_names
from scripts.runtime.inside import file_name_key
from scripts.settings.cohort import OUTPUT_FOLDERS, SubjectSearch

__all__ = [
    "Candidate",
    "Discovery",
    "FoundMap",
    "advice_where_maps_are",
    "candidates_from_files",
    "derivatives_with_maps",
    "find_subjects",
    "fitting_layouts",
]

logger = logging.getLogger(__name__)

ONE_BY_ONE = "files named one by one"


@dataclass(frozen=True)
class FoundMap:
    """A density map in the dataset.

    Attributes:
        path: its file.
        channel: the model's channel that it belongs to.
        tract: name of its tract, None for a whole map.
    """

    path: Path
    channel: int
    tract: str | None


@dataclass(frozen=True)
class Candidate:
    """A subject in the dataset; its maps are still unread. Maps of one channel are summed.

    Attributes:
        name: of the subject, or of the image, see `by_run`.
        maps: its files.
        person: whose image it is; empty: that of the subject with this name.
        run: what ``{run}`` stands for, if each run is an image.
    """

    name: str
    maps: tuple[FoundMap, ...]
    person: str = ""
    run: str | None = None


@dataclass(frozen=True)
class Discovery:
    """The content of a dataset folder.

    Attributes:
        candidates: subjects with maps, sorted by name.
        rejected: subjects that were requested or found but can't be used.
        without_map: folders where a subject could be, but without a map.
        pattern: of the layout's alternative in use.
        tracts: name per channel; empty if the only channel is the whole map.
    """

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    without_map: tuple[str, ...]
    pattern: str
    tracts: tuple[str, ...]


def find_subjects(dataset_dir: Path, search: SubjectSearch) -> Discovery:
    """Find subjects and their maps.

    Hidden entries and the folders of earlier outputs are skipped.

    Args:
        dataset_dir: the dataset folder.
        search: which subjects, and where their maps are.

    Raises:
        CohortError: the folder can't be read, or a subject has several unexplained runs.
        ConfigurationError: tracts, channels and the content of the folder don't match.
    """
    require_folder(dataset_dir)
    outputs = outputs_of(search)
    if isinstance(search.subjects, str) and search.subjects.lower().endswith((".csv", ".json")):
        listing = dataset_dir / search.subjects
        if search.subjects.lower().endswith(".csv"):
            scan = Scan(matches=read_csv(listing, dataset_dir))
        else:
            scan = Scan(matches=read_datalist(listing, dataset_dir, search))
        pattern = search.subjects
        wanted = None
    else:
        wanted = wanted_names(dataset_dir, search.subjects)
        scan, pattern = scan_alternatives(dataset_dir, search, outputs, wanted)
        scan.matches = by_run(scan.matches, search)
        if wanted is not None and names_runs(search):
            chosen = {same_name(name) for name in wanted}
            scan.matches = [match for match in scan.matches if chosen & _names(match)]

    left_out = {same_name(name) for name in search.exclude}
    present = scan.subjects | {match.subject for match in scan.matches}
    unknown = left_out - {same_name(name) for name in present}
    if unknown:
        names = ", ".join(sorted(unknown))
        logger.warning("%s names no subject: %s", search.key("exclude"), names)
    matches = [match for match in scan.matches if not left_out & _names(match)]

    rejected = [one for one in scan.unreadable if same_name(one.subject) not in left_out]
    unreadable = {one.subject for one in rejected}
    unfit = _unfit({match.subject for match in matches}, outputs)
    unreadable |= unfit.keys()
    for name, reason in unfit.items():
        rejected.append(Rejection(printable(name), printable(str(dataset_dir)), reason))
    matches = [match for match in matches if match.subject not in unreadable]

    found = {name for match in matches for name in _names(match)}
    known = found | {same_name(name) for name in unreadable} | left_out
    for name in wanted or ():
        if same_name(name) not in known:
            reason = f"no map at {pattern}, but {search.key('subjects')} names it"
            rejected.append(Rejection(name, str(dataset_dir / name), reason))
    without_map = sorted(
        name
        for name in scan.subjects
        if wanted is None and same_name(name) not in known and unfit_name(name, outputs) is None
    )

    tracts = _tracts(matches, search)
    candidates, incomplete = _group(matches, tracts, search)
    if not tracts:
        _tell_of_summed_tracts(candidates)
    return Discovery(
        candidates=candidates,
        rejected=tuple(rejected + incomplete),
        without_map=tuple(without_map),
        pattern=pattern,
        tracts=tracts,
    )


def require_folder(dataset_dir: Path) -> None:
    """Refuse a dataset folder that isn't one.

    Raises:
        CohortError: naming it.
    """
    if not dataset_dir.is_dir():
        what = "is not a folder" if dataset_dir.exists() else "does not exist"
        raise CohortError(f"dataset folder {dataset_dir} {what}")


def outputs_of(search: SubjectSearch) -> frozenset[str]:
    """Names of folders that are never subjects."""
    return OUTPUT_FOLDERS | ({search.output_subdir} if search.output_subdir else set())


def _names(match: Match) -> set[str]:
    """The names of an image for comparisons: the image's, and the person's."""
    person = match.subject if match.person is None else match.person
    return {same_name(match.subject), same_name(person)}


def derivatives_with_maps(root: Path, search: SubjectSearch) -> tuple[Path, ...]:
    """Folders of pipelines in a BIDS dataset's derivatives in which the layout finds maps."""
    derivatives = root / "derivatives"
    try:
        pipelines = sorted(one for one in derivatives.iterdir() if one.is_dir())
    except OSError:
        return ()
    # qsirecon has nested derivatives; maps may also lie there without a pipeline.
    inner = [one for place in pipelines for one in sorted(place.glob("derivatives/*/"))]
    places = [*pipelines, *inner]
    found = [one for place in places for one in _if_maps_lie_in(place, search)]
    return tuple(found) or _if_maps_lie_in(derivatives, search)


def _if_maps_lie_in(folder: Path, search: SubjectSearch) -> tuple[Path, ...]:
    try:
        found = scan_alternatives(folder, search, OUTPUT_FOLDERS, None)[0].matches
    except CohortError:  # a folder that can't be read gives no advice
        return ()
    return (folder,) if found else ()


def fitting_layouts(root: Path, search: SubjectSearch) -> dict[str, tuple[int, str]]:
    """Number of subjects, and the pattern of their maps, for each layout that finds any."""
    outputs, wanted = outputs_of(search), wanted_names(root, search.subjects)
    found = {}
    for name in LAYOUTS:
        tried = replace(search, layout=name, pattern=None)
        scan, pattern = scan_alternatives(root, tried, outputs, wanted)
        if scan.matches:
            found[name] = (len({match.subject for match in scan.matches}), pattern)
    return found


def advice_where_maps_are(
    root: Path, search: SubjectSearch, discovery: Discovery, layouts: Collection[str] = LAYOUTS
) -> str:
    """The end of a message about a folder without subjects: where there might be some.

    Args:
        root: the dataset folder.
        search: that found nothing.
        discovery: its result.
        layouts: those that the job can read.
    """
    below = derivatives_with_maps(root, search)
    if below:
        more = [str(one) for one in below[1:]]
        others = f" (or {some_names(more, MOST_NAMES)})" if more else ""
        return f"; maps lie below derivatives: give --dataset_dir {shown(below[0])}{others}"
    if search.layout is not None and search.inside_subject is None:
        fitting = {
            name: found for name, found in fitting_layouts(root, search).items() if name in layouts
        }
        if fitting:
            layout = max(fitting, key=lambda name: fitting[name][0])
            count, pattern = fitting[layout]
            maps = f"{count} subjects have a file" if count > 1 else "one subject has a file"
            option = "" if search.pattern is None else f" without --{search.option('pattern')}"
            return f"; {maps} at {pattern}: give --{search.option('layout')} {layout}{option}"
    if discovery.without_map:
        return f"; folders without a map: {some_names(discovery.without_map, MOST_NAMES)}"
    return ""


def candidates_from_files(files: Sequence[Path], search: SubjectSearch) -> Discovery:
    """Subjects from files that are listed one by one.

    The name of a file's subject (and tract) comes from its path if a pattern of the layout matches
    the end of the path, else from its file name.

    Args:
        files: paths of density maps.
        search: as for `find_subjects`.

    Raises:
        CohortError: a subject has several unexplained runs.
        ConfigurationError: tracts, channels and the files don't match.
    """
    matches = by_run([match_tail(file.absolute(), search) for file in files], search)
    unfit = _unfit({match.subject for match in matches}, OUTPUT_FOLDERS)
    rejected = [
        Rejection(printable(match.subject), printable(str(match.path)), unfit[match.subject])
        for match in matches
        if match.subject in unfit
    ]
    matches = [match for match in matches if match.subject not in unfit]
    tracts = _tracts(matches, search)
    candidates, incomplete = _group(matches, tracts, search)
    return Discovery(candidates, tuple(rejected + incomplete), (), ONE_BY_ONE, tracts)


def _unfit(names: Collection[str], outputs: Collection[str]) -> dict[str, str]:
    """Names that can't be names of outputs, sorted, with the reason.

    Folders called after two names that differ in case, or in the form of their letters (NFC,
    NFD), alone are one folder on some file systems: neither is taken.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(file_name_key(name), []).append(name)
    result = {}
    for name in sorted(names):
        reason = unfit_name(name, outputs)
        others = [other for other in alike[file_name_key(name)] if other != name]
        if reason is None and others:
            form = same_name(others[0]) == same_name(name)
            what = (
                "the form of its letters (Unicode NFC and NFD)" if form else "upper and lower case"
            )
            reason = (
                f"has a name that differs from that of {others[0]!a} in {what} alone, which "
                "some file systems take for one; rename one of them"
            )
        if reason is not None:
            result[name] = reason
    return result


# ---------------------------------------------------------------------------------------------
# Tracts and runs
# ---------------------------------------------------------------------------------------------


def _tracts(matches: Sequence[Match], search: SubjectSearch) -> tuple[str, ...]:
    """Name per channel; empty if the only channel is the whole map."""
    asked, channels = list(search.tracts), search.channels
    if not matches or (not asked and channels == 1):
        return ()
    present = sorted({match.tract for match in matches if match.tract is not None})
    shown = ", ".join(present) or "none"
    for tract in asked:
        if tract not in present:
            raise ConfigurationError(
                f"{search.key('tracts')} = {asked}: no subject has {tract!r}; "
                f"must be tracts of the dataset ({shown})"
            )
    if not asked and len(present) != channels:
        raise ConfigurationError(
            f"{search.key('channels')} = {channels}: the dataset has {len(present)} tracts "
            f"({shown}); must be their number, or {search.key('tracts')} must name {channels}"
        )
    return tuple(asked or present)


def _group(
    matches: Sequence[Match], tracts: tuple[str, ...], search: SubjectSearch
) -> tuple[tuple[Candidate, ...], list[Rejection]]:
    """Maps by subject and channel; checks that every run is explained."""
    by_subject: dict[str, dict[str | None, list[Match]]] = {}
    folders: dict[str, Path] = {}
    for match in matches:
        folders.setdefault(match.subject, match.path.parent)
        if not tracts or match.tract in tracts:
            by_subject.setdefault(match.subject, {}).setdefault(match.tract, []).append(match)
        else:
            by_subject.setdefault(match.subject, {})
    candidates, incomplete = [], []
    for subject, by_tract in sorted(by_subject.items()):
        for runs in by_tract.values():
            check_runs(subject, runs, search)
        missing = [tract for tract in tracts if tract not in by_tract]
        if missing:
            reason = f"no map of tract {', '.join(missing)}"
            incomplete.append(Rejection(subject, str(folders[subject]), reason))
            continue
        maps = [
            FoundMap(run.path, tracts.index(str(tract)) if tracts else 0, tract)
            for tract, runs in by_tract.items()
            for run in runs
        ]
        maps.sort(key=lambda found: (found.channel, str(found.path)))
        first = next(run for runs in by_tract.values() for run in runs)
        image = None if first.person is None else first.image
        candidates.append(Candidate(subject, tuple(maps), first.person or "", image))
    return tuple(candidates), incomplete


def _tell_of_summed_tracts(candidates: Sequence[Candidate]) -> None:
    """Sum single tracts into a whole map; warn about subjects with fewer tracts than others."""
    tracts = [{str(one.tract) for one in who.maps if one.tract is not None} for who in candidates]
    every: set[str] = set().union(*tracts)
    if every:
        logger.info("no tracts are selected: %s are summed into one map", ", ".join(sorted(every)))
    for who, its in zip(candidates, tracts, strict=True):
        if its != every:
            lacking = ", ".join(sorted(every - its))
            logger.warning("subject %s has no map of tract %s", who.name, lacking)
