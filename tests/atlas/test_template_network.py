"""A map in place of a trained model: its scale, its box, the atlas beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.atlas import template_network as room
from scripts.atlas.published_components import open_network
from scripts.atlas.published_model import published_geometry, published_settings
from scripts.atlas.template_network import template_network
from scripts.errors import CheckpointError, CohortError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.shipped.network import PairNetwork
from scripts.shipped.weights import save_pair_network


def asked(tmp_path: Path, **changes: Any) -> LearnedAtlasConfig:
    """A job's settings with a small network in place of the shipped one."""
    small = tmp_path / "small.pt"
    if not small.exists():
        save_pair_network(PairNetwork((4, 4), (4, 4, 4), passes=(2, 1), seed=0), small)
    model = {"initial": str(small), **changes.pop("model", {})}
    return LearnedAtlasConfig.load({"device": "cpu", "model": model, **changes})


def written(path: Path, scale: float = 1.0) -> np.ndarray:
    values = np.zeros((20, 22, 18), np.float32)
    values[6:14, 7:15, 5:12] = scale * np.random.default_rng(0).random((8, 8, 7))
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.5, 1.0])), path)
    return values


def test_a_foreign_map_is_divided_by_its_maximum(tmp_path: Path) -> None:
    values = written(tmp_path / "map.nii.gz", scale=700)
    settings = asked(tmp_path, cohort={"margin": 3})
    network = template_network(tmp_path / "map.nii.gz", settings)
    grid, crop = published_geometry(network)
    assert grid.shape == values.shape
    assert grid.spacing == pytest.approx((2, 2, 2.5))
    assert (crop.start, crop.stop) == ((3, 4, 2), (17, 18, 15))
    expected = torch.from_numpy(np.ascontiguousarray(crop.crop(values) / values.max()))
    torch.testing.assert_close(network.template_density()[0, 0], expected)
    assert published_settings(network, settings).cohort.normalisation == "max"
    assert network.passes == (2, 1)


def test_the_job_may_ask_for_another_scale(tmp_path: Path) -> None:
    values = written(tmp_path / "map.nii.gz")
    for method, divisor in (("none", 1.0), ("streamline_density", float(values.sum()))):
        settings = asked(tmp_path, cohort={"normalisation": method}, loss={"log_offset": 1e-4})
        network = template_network(tmp_path / "map.nii.gz", settings)
        assert network.log_offset == 1e-4
        assert float(network.template_density().max()) == pytest.approx(values.max() / divisor)


def test_a_published_map_brings_what_its_atlas_says(tmp_path: Path) -> None:
    values = written(tmp_path / "atlas_mean.nii.gz", scale=0.02)
    about = {"log_offset": 2e-3, "normalisation": "waytotal", "presence_value": 0.004}
    (tmp_path / "atlas.json").write_text(json.dumps(about))
    settings = asked(tmp_path)
    network = template_network(tmp_path / "atlas_mean.nii.gz", settings)
    assert float(network.template_density().max()) == pytest.approx(values.max(), rel=1e-5)
    result = published_settings(network, settings)
    assert (result.cohort.normalisation, result.presence_value) == ("waytotal", 0.004)
    assert result.loss.log_offset == network.log_offset == 2e-3
    (tmp_path / "atlas.json").write_text('{"log_offset": 1}')
    with pytest.raises(CheckpointError, match="doesn't describe the atlas"):
        template_network(tmp_path / "atlas_mean.nii.gz", settings)


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.nii.gz"
    for values, message in (
        (np.zeros((5, 5, 5), np.float32), "is empty"),
        (np.full((5, 5, 5), -1, np.float32), "negative density"),
        (np.full((5, 5, 5, 2), 1, np.float32), "has shape"),
    ):
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
        with pytest.raises(CohortError, match=message):
            template_network(path, asked(tmp_path))
    written(path)
    with pytest.raises(ConfigurationError, match=r"n_templates = 2: must be 1"):
        template_network(path, asked(tmp_path, model={"n_templates": 2}))


def test_before_anything_was_trained_the_demo_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "demo.nii.gz")
    monkeypatch.setattr(
        "scripts.atlas.published_components.DEMO_TEMPLATE", tmp_path / "demo.nii.gz"
    )
    own = tmp_path / "models" / "model.pt"
    network = open_network(own, asked(tmp_path), untrained=own)
    grid, crop = published_geometry(network)
    assert grid.shape == crop.shape == (20, 22, 18)  # as configs/metadata.json tells the demo's
    assert "nothing was trained yet" in caplog.text
    with pytest.raises(CheckpointError, match="no such model"):
        open_network(tmp_path / "other" / "model.pt", asked(tmp_path), untrained=own)
    own.parent.mkdir()
    own.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        open_network(own, asked(tmp_path), untrained=own)


def test_the_demo_template_ships_with_what_its_atlas_says() -> None:
    network = template_network(room.DEMO_TEMPLATE, LearnedAtlasConfig.load({"device": "cpu"}))
    assert published_geometry(network)[0].shape == (64, 72, 64)
    assert network.description["normalisation"] == "waytotal"
    assert room.DEMO_TEMPLATE.stat().st_size < 1_000_000
