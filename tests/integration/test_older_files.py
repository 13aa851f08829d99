"""Files that people have from before the rebuild: read, and the same numbers found in them.

How they were made: ``tests/data/before_the_rebuild/SOURCE.md``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.affine.inference import estimate_matrix, load_affine_network
from scripts.applications.atlas_to_patient import AtlasCarrier
from scripts.atlas.network import log_density_of
from scripts.atlas.published_model import (
    published_coding,
    published_geometry,
    published_network,
    published_settings,
)
from scripts.elastic.network import load_elastic_network, register_images
from scripts.publishing.provenance import description_hash
from scripts.publishing.verification import verify_atlas
from scripts.settings.applications import AtlasToPatientConfig
from scripts.settings.atlas import LearnedAtlasConfig

OLD = Path(__file__).resolve().parents[1] / "data" / "before_the_rebuild"
MAPS = ("mean", "std", "std_error", "cov", "prob_threshold")

Results = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def results() -> Results:
    """The old code's results for these files."""
    with np.load(OLD / "results.npz") as result:
        return dict(result)


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """A copy of the atlas whose description names the inputs where they lie now."""
    copy = tmp_path / "learned_atlas"
    shutil.copytree(OLD / "learned_atlas", copy)
    about = json.loads((copy / "atlas.json").read_text())
    assert description_hash(about) == about["description_sha256"]
    for subject in about["cohort"]["subjects"]:
        for one in subject["maps"]:
            one["path"] = str(OLD / "cohort" / Path(one["path"]).name)
    about["description_sha256"] = description_hash(about)
    (copy / "atlas.json").write_text(json.dumps(about))
    return copy


def subject_image() -> torch.Tensor:
    """The first subject as the model sees it, ``(1, 1, *box)`` log density."""
    network = published_network(OLD / "models" / "model.pt")
    counts = nib.load(OLD / "cohort" / "sub-1.nii.gz").get_fdata(dtype=np.float32)
    density = published_geometry(network)[1].crop(counts[None] / counts.max())
    return log_density_of(torch.from_numpy(density)[None], network.log_offset)


def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two images with their affines."""
    fixed, moving = (nib.load(OLD / "pairs" / f"sub-{number}.nii.gz") for number in (1, 2))
    return fixed.get_fdata(), fixed.affine, moving.get_fdata(), moving.affine


def agree(found: torch.Tensor, wanted: np.ndarray) -> None:
    """Within 1e-6, in numbers that aren't all near zero."""
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=0, atol=1e-6)


def test_an_older_model_gives_its_fields_and_prediction(results: Results) -> None:
    network, image = published_network(OLD / "models" / "model.pt"), subject_image()
    with torch.no_grad():
        forward, backward = network.displacements(network.velocity(image))
        agree(forward, results["forward"])
        agree(backward, results["inverse"])
        agree(network(image), results["prediction"])


def test_an_older_model_loaded_into_a_kept_network_gives_its_fields(
    make_network: Callable[..., torch.nn.Module], tmp_path: Path, results: Results
) -> None:
    torch.save(make_network(moving=True).state_dict(), tmp_path / "model.pt")
    kept = published_network(tmp_path / "model.pt")
    kept.load_state_dict(torch.load(OLD / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        agree(kept.displacements(kept.velocity(subject_image()))[0], results["forward"])


def test_an_older_model_has_its_settings_and_place() -> None:
    network = published_network(OLD / "models" / "model.pt")
    settings = published_settings(network, LearnedAtlasConfig.load({"device": "cpu"}))
    assert settings.cohort.layout == "flat"
    assert settings.cohort.normalisation == "max"
    assert settings.presence_value == 0.05
    assert settings.model.enc_features == [4, 4]
    assert (settings.optimizer.epochs, settings.optimizer.lr) == (20, 0.01)
    assert settings.refine.network_epochs == 20
    assert published_coding(network) is None
    grid, crop = published_geometry(network)
    image = nib.load(OLD / "cohort" / "sub-1.nii.gz")
    assert grid.shape == image.shape
    np.testing.assert_array_equal(grid.affine, image.affine)
    assert tuple(b - a for a, b in zip(crop.start, crop.stop, strict=True)) == network.shape


def test_an_older_state_dict_has_the_keys_of_today() -> None:
    stored = torch.load(OLD / "models" / "model.pt", weights_only=True)
    assert set(published_network(OLD / "models" / "model.pt").state_dict()) == set(stored)


def test_an_older_atlas_is_verified(atlas: Path) -> None:
    result = verify_atlas(atlas)
    assert not result.failures, result.table()
    agreeing = [check for check in result.checks if check.outcome == "agrees"]
    assert [check.kind for check in agreeing].count("input") == 3
    assert [check.kind for check in agreeing].count("field") == 6
    assert {"description", "file", "divisor", "map"} <= {check.kind for check in agreeing}


def test_a_byte_changed_in_an_older_atlas_is_found(atlas: Path) -> None:
    path = atlas / "atlas_std.nii.gz"
    image = nib.load(path)
    changed = image.get_fdata(dtype=np.float32)
    changed[6, 5, 5] += 0.1
    nib.save(nib.Nifti1Image(changed, image.affine, image.header), path)
    assert {check.kind for check in verify_atlas(atlas).failures} == {"file", "map"}


def test_an_older_atlas_is_carried_to_its_subject(
    atlas: Path, tmp_path: Path, results: Results
) -> None:
    settings = AtlasToPatientConfig.load({"patients": ["sub-1"]})
    AtlasCarrier(atlas, settings, tmp_path / "registered", tmp_path / "out").run()
    folder = tmp_path / "out" / "sub-1" / "atlas_in_patient_space"
    carried = {path.name for path in folder.glob("*.nii.gz")}
    assert carried == {f"atlas_{name}.nii.gz" for name in MAPS}
    for name in ("mean", "prob_threshold"):
        result = nib.load(folder / f"atlas_{name}.nii.gz").get_fdata(dtype=np.float32)
        wanted = results[f"carried_{name}"]
        np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=1e-6)
        assert wanted.any()


def test_an_older_affine_network_gives_its_matrix(results: Results) -> None:
    network = load_affine_network(OLD / "models" / "affine_model.pt")
    result = estimate_matrix(network, *pair())
    np.testing.assert_allclose(result.numpy(), results["affine"], rtol=0, atol=1e-5)  # mm
    assert np.abs(results["affine"] - np.eye(4)).max() > 0.1


def test_an_older_elastic_network_gives_its_field(results: Results) -> None:
    network = load_elastic_network(OLD / "models" / "elastic_model.pt")
    field, moved = register_images(network, *pair())
    agree(field, results["elastic"])
    agree(moved, results["elastic_moved"])
