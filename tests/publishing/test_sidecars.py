"""JSON beside the images, as BIDS derivatives have it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from scripts.cohort import Cohort
from scripts.publishing.sidecars import (
    VERSION,
    dataset_description,
    describe_atlas,
    describe_registration,
    sidecar_of,
)
from scripts.spatial.fields import field_names
from scripts.spatial.grid import Grid
from scripts.spatial.volumes import write_map

ROOT = Path(__file__).resolve().parents[2]
MAPS = ("mean", "std", "std_error", "cov", "prob_threshold")


def about(cohort: Cohort, **changes: Any) -> dict[str, Any]:
    """What ``atlas.json`` says of a cohort, as far as sidecars need it."""
    return {
        "kind": "learned",
        "training_space": "template_native",
        "normalisation": cohort.normalisation,
        "presence_value": 0.02,
        "cov_mean_threshold_pct": 0.01,
        "n_subjects": len(cohort.subjects),
        "cohort": cohort.as_dict(),
        "mixture": None,
        **changes,
    }


def uris(values: Any) -> Iterator[str]:
    """Every URI in a sidecar."""
    if isinstance(values, dict):
        for value in values.values():
            yield from uris(value)
    elif isinstance(values, list):
        for value in values:
            yield from uris(value)
    elif isinstance(values, str) and values.startswith(("bids:", "file:")):
        yield values


def located(uri: str, folder: Path) -> Path:
    """Where a URI of a file in `folder` leads."""
    if uri.startswith("file:"):
        return Path(unquote(urlparse(uri).path))
    _, dataset, path = uri.split(":", 2)
    base = folder
    if dataset:
        described = json.loads((folder / "dataset_description.json").read_text())
        base = located(described["DatasetLinks"][dataset], folder)
    return base / unquote(path)


@pytest.fixture
def atlas(make_cohort: Callable[..., Cohort], tmp_path: Path) -> tuple[Path, Cohort]:
    """A folder with maps and fields, and its cohort."""
    cohort = make_cohort(3)
    folder = tmp_path / "learned_atlas"
    (folder / "fields").mkdir(parents=True)
    for name in MAPS:
        (folder / f"atlas_{name}.nii.gz").touch()
    for subject in cohort.subjects[:2]:
        for name in field_names(subject.name):
            (folder / "fields" / name).touch()
    return folder, cohort


def test_every_image_gets_a_sidecar_whose_paths_lead_somewhere(
    atlas: tuple[Path, Cohort],
) -> None:
    folder, cohort = atlas
    describe_atlas(folder, about(cohort))
    images = list(folder.rglob("*.nii.gz"))
    assert len(images) == 5 + 4
    for image in images:
        content = json.loads(sidecar_of(image).read_text())
        assert {"Description", "Units", "SpatialReference", "Sources"} <= set(content)
        result = list(uris(content))
        assert len(result) == len(content["Sources"]) + 1
        for uri in result:
            assert located(uri, folder).is_file(), uri
    assert len(list(folder.rglob("*.json"))) == len(images) + 1


def test_maps_say_what_their_values_are(atlas: tuple[Path, Cohort]) -> None:
    folder, cohort = atlas
    describe_atlas(folder, about(cohort))
    content = {name: json.loads((folder / f"atlas_{name}.json").read_text()) for name in MAPS}
    assert content["mean"]["Description"].startswith("Learned template")
    assert content["prob_threshold"]["Units"] == "%"
    assert content["prob_threshold"]["Threshold"] == 0.02
    assert content["std"]["Units"] == "arbitrary"
    for sidecar in content.values():
        assert sidecar["SpatialReference"] == "bids::atlas_mean.nii.gz"
        assert sidecar["NumberOfSubjects"] == 3
        assert len(sidecar["Sources"]) == 3
    describe_atlas(folder, about(cohort, kind="averaged"))
    assert json.loads((folder / "atlas_mean.json").read_text())["Description"].startswith("Mean")


def test_fields_say_which_way_they_lead_and_on_which_grid(atlas: tuple[Path, Cohort]) -> None:
    folder, cohort = atlas
    describe_atlas(folder, about(cohort))
    subject = cohort.subjects[0]
    to_template, to_subject = (
        json.loads(sidecar_of(folder / "fields" / name).read_text())
        for name in field_names(subject.name)
    )
    assert (to_template["From"], to_template["To"]) == ("subject", "template")
    assert (to_subject["From"], to_subject["To"]) == ("template", "subject")
    assert to_template["SpatialReference"] == "bids::atlas_mean.nii.gz"
    assert located(to_subject["SpatialReference"], folder) == subject.maps[0].path
    for transform, other in ((to_template, to_subject), (to_subject, to_template)):
        assert (transform["Units"], transform["CoordinateSystem"], transform["Mode"]) == (
            "mm",
            "LPS",
            "image",
        )
        assert transform["RegistrationSoftware"]["Version"] == VERSION
        assert (folder / "fields" / transform["Inverse"]).is_file()
        assert transform["Inverse"] != other["Inverse"]


def test_fields_of_a_mixture_lead_to_their_own_template(atlas: tuple[Path, Cohort]) -> None:
    folder, cohort = atlas
    for k in (1, 2):
        (folder / f"template-{k}").mkdir()
        (folder / "atlas_mean.nii.gz").rename(folder / f"template-{k}" / "atlas_mean.nii.gz")
        (folder / "atlas_mean.nii.gz").touch()
    (folder / "atlas_mean.nii.gz").unlink()
    names = [subject.name for subject in cohort.subjects]
    shares = {names[0]: [0.1, 0.9], names[1]: [0.8, 0.2], names[2]: [0.5, 0.5]}
    describe_atlas(folder, about(cohort, mixture=shares))
    for name, k in zip(names[:2], (2, 1), strict=True):
        content = json.loads(sidecar_of(folder / "fields" / field_names(name)[0]).read_text())
        assert content["SpatialReference"] == f"bids::template-{k}/atlas_mean.nii.gz"
    own = json.loads((folder / "template-2" / "atlas_mean.json").read_text())
    assert own["SpatialReference"] == "bids::template-2/atlas_mean.nii.gz"


def test_names_that_no_uri_holds_as_they_are(
    make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    subject, folder = "Fräulein 7%", tmp_path / "Fräulein 7%"
    (folder / "atlas_in_patient_space").mkdir(parents=True)
    source = tmp_path / "a b#c" / "map.nii.gz"
    source.parent.mkdir()
    images = [
        source,
        folder / f"{subject}_space-template_density.nii.gz",
        folder / "atlas_in_patient_space/atlas_mean.nii.gz",
        *(folder / name for name in field_names(subject)),
    ]
    for image in images:
        write_map(image, np.zeros((1, 2, 3, 4)), make_grid((2, 3, 4)))
    describe_registration(folder, subject, [source], "max")
    for image in images[1:]:
        for uri in uris(json.loads(sidecar_of(image).read_text())):
            assert located(uri, tmp_path).is_file(), uri


def test_without_fields_none_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "sub-1"
    (folder / "atlas_in_patient_space").mkdir(parents=True)
    describe_registration(folder, "sub-1", [tmp_path / "map.nii.gz"], "none")
    assert len(list(folder.rglob("*.json"))) == 2
    content = json.loads((folder / "sub-1_space-template_density.json").read_text())
    assert content["Sources"] == [(tmp_path / "map.nii.gz").as_uri()]


def test_the_folder_describes_itself_as_a_derivative() -> None:
    described = dataset_description("An atlas", Path("/data/my cohort"))
    assert {"Name", "BIDSVersion"} <= set(described)  # BIDS's own required ones
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"]
    assert described["DatasetLinks"] == {"cohort": "file:///data/my%20cohort"}


def test_the_version_is_the_bundles() -> None:
    metadata = json.loads((ROOT / "configs/metadata.json").read_text())
    assert metadata["version"] == VERSION
