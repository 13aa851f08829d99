"""Guesses how a dataset folder is to be read: layout, normalisation, and the two densities.

For people who have a folder of maps and nothing else. Whatever they set themselves stays as it is.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.cohort.density import waytotal_file
from scripts.cohort.discovery import (
    Candidate,
    derivatives_with_maps,
    find_subjects,
    fitting_layouts,
    outputs_of,
    require_folder,
)
from scripts.cohort.inspection import Inspection, inspect_subject
from scripts.cohort.layouts import LAYOUTS
from scripts.cohort.tractogram_maps import Counting, counting_for
from scripts.cohort.usual_densities import FAINT, PLAIN, UsualDensities, look_like_images
from scripts.errors import CohortError, shown, some_names
from scripts.runtime.file_names import is_image_name, stem_of
from scripts.runtime.input_files import FileError
from scripts.settings.cohort import CohortRequest, SubjectSearch

__all__ = ["Guess", "first_look"]

_LOOKED_AT = 10  # subjects, spread over the cohort
_MOST = 0.8  # of these must have an image before it counts as common to all
_DEPTH = 4  # parts of a path inside a subject's folder
_DENSITY_WORDS = ("density", "tdi", "fdt_paths", "streamlines", "visitation", "tract")


@dataclass(frozen=True)
class Guess:
    """One setting that was guessed.

    Attributes:
        name: of the setting: ``layout``, ``pattern``, ``normalisation``, ``log_offset`` or
            ``presence_value``.
        value: what was guessed.
        reason: why, in a few words.
    """

    name: str
    value: str | float
    reason: str


def first_look(
    dataset_dir: str | Path, request: CohortRequest, given: Collection[str]
) -> tuple[Guess, ...]:
    """Guess the settings that aren't given.

    The layout is the one that finds the most subjects. Maps are divided by their waytotal if each
    has one, by nothing if none exceeds 1, else by their sum, or by their maximum if they are
    images. The two densities are `FAINT` times the density that a streamline meets on average (the
    sum of the squared density over its sum, the median of a few subjects), rounded to 1, 2 or 5
    times a power of ten. In images ``log_offset`` is `PLAIN` times that average: the logarithm is
    for densities, which span decades, and takes contrast from images, which don't.

    Args:
        dataset_dir: the dataset folder.
        request: the settings so far.
        given: names of the settings that the person has given, as in `Guess`.

    Returns:
        The guesses, in the order of the names in `Guess`.

    Raises:
        CohortError: the folder can't be read, or nothing in it is known to be a map.
        ConfigurationError: the folder has tractograms, but no reference is set.
    """
    root = Path(dataset_dir).absolute()
    guesses: list[Guess] = []
    listing = request.search.subjects
    listed = isinstance(listing, str) and listing.lower().endswith((".csv", ".json"))
    if not listed and not {"layout", "pattern"} & set(given):
        where = _layout(root, request.search)
        guesses.append(where)
        named = {"layout": None, "pattern": None, where.name: str(where.value)}
        request = replace(request, search=replace(request.search, **named))  # type: ignore[arg-type]
    candidates = _spread(find_subjects(root, request.search).candidates)
    counting = counting_for(candidates, request, root)
    if "normalisation" not in given:
        how = _normalisation(candidates, request, counting)
        guesses.append(how)
        cohort = request.cohort.model_copy(update={"normalisation": how.value})
        request = replace(request, cohort=cohort)
    if not {"log_offset", "presence_value"} <= set(given):
        guesses += _densities(candidates, request, counting, given)
    return tuple(guesses)


def _spread(candidates: Sequence[Candidate]) -> list[Candidate]:
    """A few of the candidates, evenly spread."""
    step = max(1, math.ceil(len(candidates) / _LOOKED_AT))
    return list(candidates[::step])


# ---------------------------------------------------------------------------------------------
# Where the maps are
# ---------------------------------------------------------------------------------------------


def _layout(root: Path, search: SubjectSearch) -> Guess:
    """The layout that finds the most subjects, the first of several."""
    require_folder(root)
    fitting = fitting_layouts(root, search)
    if fitting:
        best = max(fitting, key=lambda name: fitting[name][0])
        count, pattern = fitting[best]
        return Guess("layout", best, f"{count} subjects have a map at {pattern}")
    return _pattern(root, search, outputs_of(search))


def _pattern(root: Path, search: SubjectSearch, outputs: Collection[str]) -> Guess:
    """The one image that all subjects' folders have, or the one of them named like a density."""
    folders = [
        one for one in sorted(root.iterdir())
        if one.is_dir() and not one.name.startswith(".") and one.name not in outputs
    ]  # fmt: skip
    folders = folders[:: max(1, math.ceil(len(folders) / _LOOKED_AT))]
    counts = Counter(path for folder in folders for path in _images_below(folder))
    enough = max(2, math.ceil(_MOST * len(folders)))
    common = sorted(path for path, count in counts.items() if count >= enough)
    like_density = [path for path in common if _is_like_density(path)]
    choice = like_density if len(like_density) == 1 else common
    option = f"--{search.option('pattern')}"
    if len(choice) == 1:
        count = counts[choice[0]]
        reason = f"{count} of the {len(folders)} folders that were looked into have it"
        return Guess("pattern", choice[0], reason)
    if common:
        several = some_names(common)
        raise CohortError(
            f"dataset folder {root}: no known layout fits, and the subjects' folders have several "
            f"images in common ({several}); name the density map: "
            f"{option} '{{subject}}/...'"
        )
    below = [
        place
        for name in LAYOUTS
        for place in derivatives_with_maps(root, replace(search, layout=name, pattern=None))
    ]
    advice = (
        f"maps lie below derivatives: give --dataset_dir {shown(below[0])}"
        if below
        else f"say where the maps are: {option} '{{subject}}/...'"
    )
    raise CohortError(
        f"dataset folder {root}: no subject found by any known layout ({', '.join(LAYOUTS)}), and "
        f"its folders have no image in common; {advice}"
    )


def _images_below(folder: Path) -> set[str]:
    """Patterns of the images in a subject's folder, its name being ``{subject}``."""
    result = set()
    own_name = re.compile(rf"(?<![A-Za-z0-9]){re.escape(folder.name)}(?![A-Za-z0-9])")
    for place, inner, files in os.walk(folder):
        parts = Path(place).relative_to(folder).parts
        inner[:] = sorted(one for one in inner if not one.startswith("."))
        if len(parts) >= _DEPTH - 1:
            inner.clear()
        for name in files:
            if is_image_name(name) and not name.startswith(".") and not set("{}*?") & set(name):
                path = "/".join(("{subject}", *parts, name))
                result.add(own_name.sub("{subject}", path))
    return result


def _is_like_density(path: str) -> bool:
    return any(word in stem_of(Path(path)).lower() for word in _DENSITY_WORDS)


# ---------------------------------------------------------------------------------------------
# What their values mean
# ---------------------------------------------------------------------------------------------


def _normalisation(
    candidates: Sequence[Candidate], request: CohortRequest, counting: Counting | None
) -> Guess:
    if counting is not None:
        return Guess("normalisation", "waytotal", "of streamlines, whose number is known")
    paths = [one.path for candidate in candidates for one in candidate.maps]
    if paths and all(
        stem_of(path) == "densityNorm" or waytotal_file(path).exists() for path in paths
    ):
        return Guess("normalisation", "waytotal", "every map has a waytotal")
    read = _read(candidates, request, "none", counting)
    highest = [float(one.density.max()) for one in read]
    if highest and max(highest) <= 1:
        return Guess("normalisation", "none", f"no value exceeds 1 (highest {max(highest):g})")
    if counting is None and look_like_images([one.density for one in read]):
        return Guess("normalisation", "max", "the maps look like images: their values are alike")
    return Guess("normalisation", "streamline_density", "the maps have no waytotal")


def _densities(
    candidates: Sequence[Candidate],
    request: CohortRequest,
    counting: Counting | None,
    given: Collection[str],
) -> list[Guess]:
    read = _read(candidates, request, request.cohort.normalisation, counting)
    if not read:  # the job says why
        return []
    usual = UsualDensities.of([one.density for one in read], counted=counting is not None)
    met = f"{FAINT:g} of the density that a streamline meets on average ({usual.typical:.3g})"
    image = f"the maps look like images; {PLAIN:g} times their average value ({usual.typical:.3g})"
    guesses = (
        Guess("log_offset", usual.log_offset, image if usual.images else met),
        Guess("presence_value", usual.presence_value, met),
    )
    return [guess for guess in guesses if guess.name not in given]


def _read(
    candidates: Sequence[Candidate],
    request: CohortRequest,
    normalisation: str,
    counting: Counting | None,
) -> list[Inspection]:
    """The subjects that can be used; the job itself reports the others."""
    cohort = request.cohort.model_copy(update={"normalisation": normalisation})
    read = []
    for candidate in candidates:
        try:
            read.append(inspect_subject(candidate, replace(request, cohort=cohort), counting))
        except FileError:
            continue
    return read
