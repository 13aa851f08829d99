"""Known layouts of a dataset folder, as path patterns.

A pattern is a path relative to the dataset folder. ``{subject}`` stands for a subject's name,
``{tract}`` for a tract's name, ``{run}`` for one of several runs of a subject. ``*`` and ``?``
match inside a part of the path; a part ``**`` matches any number of folders. After ``-`` (a BIDS
entity), a placeholder that isn't at the end of the name ends at the next ``_``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from scripts.errors import ConfigurationError
from scripts.settings.cohort import SubjectSearch
from scripts.tractograms import SUFFIXES

__all__ = ["LAYOUTS", "Alternative", "alternatives", "drop_tract"]


@dataclass(frozen=True)
class Alternative:
    """Patterns that are used together; a cohort uses one alternative.

    Attributes:
        patterns: a map that matches any of them is a subject's.
        without: files with this text in their name are none of them.
        any_ending: whether a pattern's ending stands for that of any image, or any tractogram.
    """

    patterns: tuple[str, ...]
    without: str | None = None
    any_ending: bool = False

    @property
    def names_tracts(self) -> bool:
        """Whether each map is of a single tract."""
        return all("{tract}" in pattern for pattern in self.patterns)

    def __str__(self) -> str:
        return " or ".join(self.patterns)


_WARPED = "warped_streamlines/fdt_paths.nii.gz"
_BIDS_SUFFIXES = ("density", "tdi", "dwimap")


def _tractograms(path: str, without: str | None = None) -> Alternative:
    return Alternative(tuple(path + suffix for suffix in SUFFIXES), without)


LAYOUTS: dict[str, tuple[Alternative, ...]] = {
    "probtrackx2": (
        Alternative((f"{{subject}}/tractography/probtrackx2/{{run}}/{_WARPED}",)),
        Alternative((f"{{subject}}/tractography/mrtrix3/{{run}}/{_WARPED}",)),
        Alternative(("{subject}/fdt_paths.nii.gz",)),
        Alternative((f"{{subject}}/tractography/probtrackx2/{{tract}}/{_WARPED}",)),
        Alternative(("{subject}/{tract}/fdt_paths.nii.gz",)),
    ),
    "mrtrix3": (
        Alternative((f"{{subject}}/tractography/mrtrix3/{{run}}/{_WARPED}",)),
        Alternative(("{subject}/tractography/mrtrix3/{run}/warped_streamlines/tdi.nii.gz",)),
        Alternative((f"{{subject}}/tractography/mrtrix3/{{tract}}/{_WARPED}",)),
        Alternative(("{subject}/tractography/mrtrix3/{tract}/warped_streamlines/tdi.nii.gz",)),
    ),
    "xtract": tuple(
        Alternative((f"{{subject}}/tracts/{{tract}}/{name}.nii.gz",))
        for name in ("densityNorm", "density", "sum_density")
    ),
    "tractseg": (
        Alternative(("{subject}/tractseg_output/dm_regression/{tract}.nii.gz",)),
        Alternative(("{subject}/tractseg_output/bundle_segmentations/{tract}.nii.gz",)),
    ),
    "bids": (
        # A `dwimap` without a bundle can be any map (FA, ADC), so it isn't taken for a density.
        *(
            Alternative((f"{{subject}}/**/dwi/*_{suffix}.nii.gz",), without="_bundle-")
            for suffix in _BIDS_SUFFIXES[:2]
        ),
        *(
            Alternative((f"{{subject}}/**/dwi/*_bundle-{{tract}}*_{suffix}.nii.gz",))
            for suffix in _BIDS_SUFFIXES
        ),
    ),
    "flat": (Alternative(("{subject}.nii.gz", "{subject}.nii")),),
    "streamlines": (
        _tractograms("{subject}"),
        _tractograms("{subject}/**/dwi/*_tractography", without="_bundle-"),
        _tractograms("{subject}/**/dwi/*_bundle-{tract}*_tractography"),
        # QSIRecon names tractograms `streamlines`; pyAFQ has a folder of bundles.
        _tractograms("{subject}/**/dwi/*_streamlines", without="_bundle-"),
        _tractograms("{subject}/**/dwi/*_bundle-{tract}*_streamlines"),
        _tractograms("{subject}/**/bundles/*_desc-{tract}_tractography"),
        _tractograms("{subject}/tractseg_output/TOM_trackings/{tract}"),
        _tractograms("{subject}/{tract}"),
    ),
}


def alternatives(search: SubjectSearch) -> tuple[Alternative, ...]:
    """The alternatives to try for a cohort, in order.

    If no tract is selected, whole maps come before maps of single tracts. If tracts are selected,
    or the model has several channels, only maps of single tracts are tried.

    Args:
        search: gives pattern, layout, tracts and channels.

    Raises:
        ConfigurationError: tracts are selected but no pattern has ``{tract}``.
    """
    wants_tracts = bool(search.tracts) or search.channels > 1
    result: tuple[Alternative, ...]
    if search.inside_subject is not None:
        relpath, key = search.inside_subject, search.key("inside_subject")
        whole = relpath if wants_tracts else drop_tract(relpath, key, search.key("tracts"))
        result = (Alternative((f"{{subject}}/{whole}",)),)
        source = f"{key} = {relpath!r}"
    elif search.pattern is not None:
        result = (Alternative((search.pattern,)),)
        source = f"{search.key('pattern')} = {search.pattern!r}"
    elif search.layout is not None:
        result = tuple(replace(one, any_ending=True) for one in LAYOUTS[search.layout])
        source = f"{search.key('layout')} = {search.layout!r}"
    else:
        raise ConfigurationError(f"{search.key('pattern')} = None: must be a path with {{subject}}")
    if wants_tracts:
        result = tuple(one for one in result if one.names_tracts)
        if not result:
            raise ConfigurationError(
                f"{source}: must contain {{tract}}, because {_wanted(search)} selects single tracts"
            )
        return result
    return tuple(sorted(result, key=lambda one: one.names_tracts))  # stable


def drop_tract(relpath: str, key: str = "path", tracts_key: str = "tracts") -> str:
    """The path of the whole map: without ``{tract}`` and the separator beside it.

    Args:
        relpath: path inside a subject's folder.
        key: of the setting that contains it, for messages.
        tracts_key: of the setting that names tracts.

    Example:
        >>> drop_tract("dwi/{tract}/tdi.nii.gz")
        'dwi/tdi.nii.gz'
        >>> drop_tract("dwi/sub_bundle-{tract}_tdi.nii.gz")
        'dwi/sub_tdi.nii.gz'

    Raises:
        ConfigurationError: without the tract the file has no name.
    """
    parts = []
    for part in relpath.split("/"):
        if part == "{tract}":
            continue
        # A BIDS entity is removed with its key; otherwise one of the separators beside it is.
        part = re.sub(r"(^|_)[A-Za-z0-9]+-\{tract\}(_|(?=\.)|$)", _joint, part)
        part = re.sub(r"(^|[_-])\{tract\}([_-]|(?=\.)|$)", _joint, part)
        part = part.replace("{tract}", "")
        if part:
            parts.append(part)
    whole = "/".join(parts)
    if not parts or parts[-1].startswith("."):
        raise ConfigurationError(
            f"{key} = {relpath!r}: the file name consists of the tract only, so there is no whole "
            f"map; must be used with {tracts_key}"
        )
    return whole


def _joint(match: re.Match[str]) -> str:
    return match[1] if match[1] and match[2] else ""


def _wanted(search: SubjectSearch) -> str:
    if search.tracts:
        return f"{search.key('tracts')} = {list(search.tracts)}"
    return f"{search.key('channels')} = {search.channels}"
