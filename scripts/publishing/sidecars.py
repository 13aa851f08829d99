"""Files for BIDS tools beside the images: one JSON per image, and the folder's description.

Keys are those of BIDS derivatives (``Description``, ``Sources``, ``SpatialReference``, ``Units``)
and, for transforms, of its proposal for spatial transforms (BEP 014). A path is a BIDS URI:
``bids::<path>`` inside the folder, ``bids:cohort:<path>`` inside the folder that ``DatasetLinks``
names, or ``file:`` anywhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scripts.runtime.ownership import NAME
from scripts.spatial.fields import field_names

__all__ = [
    "BIDS_VERSION",
    "VERSION",
    "dataset_description",
    "describe_atlas",
    "describe_registration",
    "field_sidecar",
    "is_own_dataset",
    "map_sidecar",
    "sidecar_of",
    "write_json",
]

BIDS_VERSION = "1.10.0"
VERSION = "0.1.0"
"""Version of the bundle, as in configs/metadata.json."""
_COHORT = "cohort"

_MAPS: dict[str, tuple[str, str]] = {
    "mean": ("Mean tract density", "arbitrary"),
    "std": ("Standard deviation (population) of the subjects' tract densities", "arbitrary"),
    "std_error": (
        "Standard deviation of the subjects' tract densities over the root of their number",
        "arbitrary",
    ),
    "cov": (
        "Standard deviation of the subjects' tract densities over their mean; 0 where the mean is "
        "negligible",
        "1",
    ),
    "prob_threshold": ("Share of the subjects whose tract density is above a threshold", "%"),
}


def sidecar_of(image: Path) -> Path:
    """The JSON file of an image ``.nii`` or ``.nii.gz``."""
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON."""
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def describe_atlas(folder: Path, about: dict[str, Any]) -> None:
    """Write the sidecars of all maps and fields in an atlas's folder, and its description.

    Args:
        folder: the folder before it is published.
        about: future content of its ``atlas.json``.
    """
    inputs = {
        subject["subject"]: [Path(one["path"]) for one in subject["maps"]]
        for subject in about["cohort"]["subjects"]
    }
    cohort = _common_folder(path for paths in inputs.values() for path in paths)
    sources = {
        subject: [_uri(path, cohort, _COHORT) for path in paths]
        for subject, paths in inputs.items()
    }
    write_json(
        folder / "dataset_description.json",
        dataset_description(f"Atlas of tract density ({about['kind']})", cohort),
    )
    for image in sorted(folder.rglob("atlas_*.nii.gz")):
        name = image.name.removeprefix("atlas_").removesuffix(".nii.gz")
        if name not in _MAPS:  # of a subject whose name begins like that
            continue
        reference = image.with_name("atlas_mean.nii.gz")
        every = [uri for subject in sources for uri in sources[subject]]
        write_json(
            sidecar_of(image),
            {
                **map_sidecar(name, _uri(reference, folder), every, learned=_learned(about)),
                "NumberOfSubjects": about["n_subjects"],
                **_measured(name, about),
            },
        )
    for subject in inputs:
        place = _template_folder(folder, subject, about)
        template = _uri(place / "atlas_mean.nii.gz", folder)
        for name in field_names(subject):
            image = folder / "fields" / name
            if image.is_file():
                write_json(
                    sidecar_of(image), field_sidecar(subject, name, template, sources[subject])
                )


def describe_registration(
    folder: Path, subject: str, maps: Sequence[Path], normalisation: str
) -> None:
    """Write the sidecars of one registered subject.

    There is no image of the template here, so the subject's warped map defines its grid.

    Args:
        folder: ``<subject>/`` before it is published.
        subject: its name.
        maps: absolute paths of its maps.
        normalisation: what they are divided by.
    """
    sources = [path.as_uri() for path in maps]
    present = [name for name in field_names(subject) if (folder / name).is_file()]
    in_template = f"{subject}_space-template_density.nii.gz"
    template = f"bids::{quote(f'{subject}/{in_template}')}"
    for name in present:
        values = field_sidecar(subject, name, template, sources)
        write_json(sidecar_of(folder / name), {**values, "Sources": sources})
    to_template, to_subject = (
        [f"bids::{quote(f'{subject}/{name}')}"] if name in present else []
        for name in field_names(subject)
    )
    write_json(
        sidecar_of(folder / in_template),
        {
            "Description": "The subject's tract density in template space",
            "Units": "arbitrary",
            "Normalisation": normalisation,
            "SpatialReference": template,
            "Sources": [*sources, *to_template],
        },
    )
    sidecar = map_sidecar("mean", sources[0], [*sources, *to_subject], learned=True)
    sidecar["Description"] += ", in this subject's space"
    write_json(sidecar_of(folder / "atlas_in_patient_space/atlas_mean.nii.gz"), sidecar)


def dataset_description(name: str, cohort: Path | None = None) -> dict[str, Any]:
    """``dataset_description.json`` of a folder of derivatives.

    Args:
        name: a title for people.
        cohort: base folder of ``bids:cohort:`` URIs; None: there are none.
    """
    described: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": NAME, "Version": VERSION}],
    }
    if cohort is not None:
        described["SourceDatasets"] = [{"URL": cohort.as_uri()}]
        described["DatasetLinks"] = {_COHORT: cohort.as_uri()}
    return described


def is_own_dataset(described: Mapping[str, Any]) -> bool:
    """Whether this bundle made the folder's files, by its ``dataset_description.json``."""
    makers = described.get("GeneratedBy")
    return isinstance(makers, list) and any(
        isinstance(one, Mapping) and one.get("Name") == NAME for one in makers
    )


def map_sidecar(
    name: str, reference: str, sources: Sequence[str], learned: bool = False
) -> dict[str, Any]:
    """Sidecar of a map.

    Args:
        name: mean, std, std_error, cov or prob_threshold.
        reference: URI of the image that defines its space.
        sources: URIs of its sources.
        learned: the mean is the learned template, not the sample mean.
    """
    description, units = _MAPS[name]
    if learned and name == "mean":
        description = "Learned template of the subjects' tract density"
    return {
        "Description": description,
        "Units": units,
        "SpatialReference": reference,
        "Sources": list(sources),
    }


def field_sidecar(subject: str, name: str, template: str, maps: Sequence[str]) -> dict[str, Any]:
    """Sidecar of a displacement field.

    Args:
        subject: name of the subject.
        name: of the file, one of `field_names`.
        template: URI of an image on the template's grid.
        maps: URIs of the subject's maps; the first one's grid is the subject's.
    """
    to_template, to_subject = field_names(subject)
    forward = name == to_template
    spaces = ("subject", "template") if forward else ("template", "subject")
    return {
        "Description": (
            f"Resamples images of {spaces[0]} space into {spaces[1]} space; at each point of "
            f"{spaces[1]} space the way to the point of {spaces[0]} space that belongs there"
        ),
        "Type": "displacement field",
        "From": spaces[0],
        "To": spaces[1],
        "Mode": "image",
        "Units": "mm",
        "CoordinateSystem": "LPS",
        "Convention": "ITK",
        "Invertible": True,
        "Inverse": to_subject if forward else to_template,
        "RegistrationSoftware": {"Name": NAME, "Version": VERSION},
        "SpatialReference": template if forward else maps[0],
        "Sources": [template, *maps],
    }


def _learned(about: dict[str, Any]) -> bool:
    return about["kind"] == "learned"


def _measured(name: str, about: dict[str, Any]) -> dict[str, Any]:
    """Entries about the cohort: how densities were computed, and the threshold."""
    measured: dict[str, Any] = {
        "TrainingSpace": about["training_space"],
        "Normalisation": about["normalisation"],
    }
    if about["cohort"]["tracts"]:
        measured["Tracts"] = about["cohort"]["tracts"]  # along the fourth axis
    if name == "prob_threshold":
        measured["Threshold"] = about["presence_value"]
    if name == "cov":
        measured["NegligibleShareOfMaximum"] = about["cov_mean_threshold_pct"]
    return measured


def _template_folder(folder: Path, subject: str, about: dict[str, Any]) -> Path:
    """Folder of the template that a subject's fields lead to."""
    shares = (about.get("mixture") or {}).get(subject)
    if not shares:
        return folder
    return folder / f"template-{1 + shares.index(max(shares))}"


def _common_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _uri(path: Path, base: Path, dataset: str = "") -> str:
    return f"bids:{dataset}:{quote(path.relative_to(base).as_posix())}"
