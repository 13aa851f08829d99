"""What `build` guesses becomes overrides, and what the person has given is left alone."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from bundle.guessing import guessed_settings
from bundle.overrides import read_config
from bundle.places import ROOT


@pytest.fixture(scope="module")
def config() -> dict:
    return read_config([ROOT / "configs/train.yaml", ROOT / "configs/build.yaml"])


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    density = np.zeros((6, 7, 8), np.float32)
    density[2:4, 2:5, 3:6] = 20
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(density, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_the_demo_is_not_guessed(config) -> None:
    assert guessed_settings(config, {}) == {}


def test_guesses_are_overrides_and_are_printed(config, cohort, capsys) -> None:
    guessed = guessed_settings(config, {"dataset_dir": str(cohort)})
    assert guessed["learned_atlas#cohort#layout"] == "flat"
    printed = capsys.readouterr().out
    for key, value in guessed.items():
        assert f"--{key} {value}    (" in printed
    assert "learned_atlas#cohort#layout" not in config  # the configuration is left as it was


@pytest.mark.parametrize(
    "given",
    [
        {"learned_atlas#cohort#layout": "flat", "learned_atlas#loss#log_offset": 3.0},
        {
            "learned_atlas#cohort": {"layout": "flat", "normalisation": "max"},
            "learned_atlas#loss": {"log_offset": 3.0},
        },
    ],
)
def test_what_is_given_is_not_guessed(config, cohort, given) -> None:
    guessed = guessed_settings(config, {"dataset_dir": str(cohort), **given})
    assert not set(guessed) & {"learned_atlas#cohort#layout", "learned_atlas#loss#log_offset"}
    assert "learned_atlas#presence_value" in guessed
