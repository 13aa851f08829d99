"""Guesses settings from a dataset folder: how it is read, and what suits densities or images.

For people who have a folder of maps and nothing else. Whatever they set themselves stays as it is.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scripts.cohort.density import density_divisor, waytotal_file
from scripts.cohort.discovery import (
    Candidate,
    derivatives_with_maps,
    find_subjects,
    fitting_layouts,
    outputs_of,
    require_folder,
)
from scripts.cohort.inspection import inspect_subject
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
_OF_IMAGES = {"velocity_smoothing": 2.0, "smoothness_weight": 0.5}
_BY_VALUES = {"log_offset", "presence_value", *_OF_IMAGES}
"""Names of the guesses that the maps' values decide."""
_DENSITY_WORDS = ("density", "tdi", "fdt_paths", "streamlines", "visitation", "tract")


@dataclass(frozen=True)
class Guess:
    """One setting that was guessed.

    Attributes:
        name: of the setting: ``layout``, ``pattern``, ``normalisation``, ``log_offset``,
            ``presence_value``, ``velocity_smoothing`` or ``smoothness_weight``.
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
    for densities, which span decades, and takes contrast from images, which don't. Images show
    finer structure than densities, so their deformations are less smooth.

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
    look = _Look(candidates, request, counting_for(candidates, request, root))
    if "normalisation" not in given:
        how = _normalisation(look)
        guesses.append(how)
        normalisation = str(how.value)
    else:
        normalisation = request.cohort.normalisation
    if _BY_VALUES - set(given):
        guesses += _by_values(look, normalisation, given)
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


class _Look:
    """The maps of a few subjects, read once where one reading is enough.

    Args:
        candidates: the subjects.
        request: how their maps are read.
        counting: of tractograms; None: the maps are images.
    """

    def __init__(
        self, candidates: Sequence[Candidate], request: CohortRequest, counting: Counting | None
    ) -> None:
        self.candidates = candidates
        self.request = request
        self.counted = counting is not None
        self._counting = counting
        self._plain: list[tuple[Path, np.ndarray]] | None = None

    def densities(self, normalisation: str) -> list[np.ndarray]:
        """Densities of the subjects that can be used; the job itself reports the others."""
        single = all(len(candidate.maps) == 1 for candidate in self.candidates)
        if self._plain is None or (normalisation != "none" and not single):
            read = self._inspect(normalisation)
            if normalisation == "none":
                self._plain = read
            return [density for _, density in read]
        divided = []
        for path, density in self._plain:
            with suppress(FileError):
                divided.append(density / density_divisor(normalisation, path, density))
        return divided

    def _inspect(self, normalisation: str) -> list[tuple[Path, np.ndarray]]:
        """Path of the first map, and density, of each subject."""
        cohort = self.request.cohort.model_copy(update={"normalisation": normalisation})
        request = replace(self.request, cohort=cohort)
        read = []
        for candidate in self.candidates:
            with suppress(FileError):
                density = inspect_subject(candidate, request, self._counting).density
                read.append((candidate.maps[0].path, density))
        return read


def _normalisation(look: _Look) -> Guess:
    if look.counted:
        return Guess("normalisation", "waytotal", "of streamlines, whose number is known")
    paths = [one.path for candidate in look.candidates for one in candidate.maps]
    if paths and all(
        stem_of(path) == "densityNorm" or waytotal_file(path).exists() for path in paths
    ):
        return Guess("normalisation", "waytotal", "every map has a waytotal")
    read = look.densities("none")
    highest = [float(one.max()) for one in read]
    if highest and max(highest) <= 1:
        return Guess("normalisation", "none", f"no value exceeds 1 (highest {max(highest):g})")
    if look_like_images(read):
        return Guess("normalisation", "max", "the maps look like images: their values are alike")
    return Guess("normalisation", "streamline_density", "the maps have no waytotal")


def _by_values(look: _Look, normalisation: str, given: Collection[str]) -> list[Guess]:
    read = look.densities(normalisation)
    if not read:  # the job says why
        return []
    usual = UsualDensities.of(read, counted=look.counted)
    met = f"{FAINT:g} of the density that a streamline meets on average ({usual.typical:.3g})"
    image = f"the maps look like images; {PLAIN:g} times their average value ({usual.typical:.3g})"
    guesses = [
        Guess("log_offset", usual.log_offset, image if usual.images else met),
        Guess("presence_value", usual.presence_value, met),
    ]
    if usual.images:
        finer = "the maps look like images, which show finer structure than densities"
        guesses += [Guess(name, value, finer) for name, value in _OF_IMAGES.items()]
    return [guess for guess in guesses if guess.name not in given]
