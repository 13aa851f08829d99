"""Data lists that MONAI's tools hand over in place of a dataset folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.atlas.components import open_cohort
from scripts.atlas.held_out import HeldOutSubjects
from scripts.atlas.network import AtlasNetwork
from scripts.cohort import Cohort
from scripts.errors import CohortError
from scripts.settings.atlas import LearnedAtlasConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def flat(make_cohort: Callable[..., Cohort], tmp_path: Path) -> list[dict[str, str]]:
    """Six maps in one folder, with labels that nothing reads, as MONAI Label lists them."""
    make_cohort(6)
    maps = sorted((tmp_path / "maps").glob("*.nii.gz"))
    return [{"image": str(path), "label": str(path.with_name("no label"))} for path in maps]


@pytest.fixture
def settings(make_settings: Callable[..., LearnedAtlasConfig]) -> LearnedAtlasConfig:
    return make_settings(min_subjects=4, cohort={"layout": "flat", "margin": 0})


def test_the_cohort_is_the_list(
    flat: list[dict[str, str]], settings: LearnedAtlasConfig, tmp_path: Path
) -> None:
    result = open_cohort("nowhere", settings, data=flat[:5])
    assert [str(one.maps[0].path) for one in result.subjects] == [
        item["image"] for item in flat[:5]
    ]
    whole = open_cohort(tmp_path / "maps", settings)
    assert result.identity() != whole.identity()
    assert open_cohort("nowhere", settings, data=flat).identity() == whole.identity()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "0 usable subjects|no subject found in the list of 0 maps"),
        ([{"label": "x"}], "train#dataset#data names None as an image"),
        ([{"image": ["a", "b"]}], r"names \['a', 'b'\] as an image"),
        ([{"image": "missing.nii.gz"}], "0 usable subjects in the list of 1 maps"),
    ],
)
def test_what_is_no_list_of_maps(
    data: list[dict[str, str]], message: str, settings: LearnedAtlasConfig
) -> None:
    with pytest.raises(CohortError, match=message):
        open_cohort("nowhere", settings, data=data)


def test_train_yaml_takes_a_list_and_makes_no_demo_cohort(
    flat: list[dict[str, str]], tmp_path: Path
) -> None:
    """With the overrides that MONAI Label gives; `$` expressions and references are resolved."""
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs/train.yaml"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(tmp_path),
        device="cpu",
        **{
            "train#dataset#data": flat[:5],
            "train#trainer#max_epochs": 1,
            "validate#dataset#data": flat[5:],
            "learned_atlas#device": "cpu",
            "learned_atlas#cohort#layout": "flat",
            "learned_atlas#cohort#normalisation": "none",
        },
    )
    workflow.initialize()
    assert not workflow.check_properties()
    cohort = workflow.parser.get_parsed_content("cohort")
    assert len(cohort.subjects) == len(workflow.train_dataset) == 5
    held_out = workflow.parser.get_parsed_content("validate#subjects")
    assert [str(path) for path in held_out.files] == [flat[5]["image"]]
    assert not (tmp_path / "data").exists()


def test_held_out_subjects_are_reported_with_their_fit(
    flat: list[dict[str, str]],
    settings: LearnedAtlasConfig,
    make_network: Callable[..., AtlasNetwork],
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = make_network(moving=True)
    with caplog.at_level(logging.INFO):
        result = HeldOutSubjects(network, settings, flat[:2]).run()
    assert list(result) == ["sub-1_0", "sub-2_0"]
    for name, (before, after) in result.items():
        assert -1 <= before <= 1
        assert -1 <= after <= 1
        assert before != after
        assert f"held-out subject {name}" in caplog.text


def test_a_template_that_stands_still_fits_as_before(
    flat: list[dict[str, str]],
    settings: LearnedAtlasConfig,
    make_network: Callable[..., AtlasNetwork],
) -> None:
    network = make_network()
    with torch.no_grad():
        for weight in network.unet.parameters():
            weight.zero_()
    for before, after in HeldOutSubjects(network, settings, flat[:2]).run().values():
        assert after == pytest.approx(before, abs=1e-6)


def test_none_held_out_is_nothing_to_do(
    settings: LearnedAtlasConfig, make_network: Callable[..., AtlasNetwork]
) -> None:
    assert HeldOutSubjects(make_network(), settings, None).run() == {}
    assert HeldOutSubjects(make_network(), settings, []).run() == {}


def test_a_held_out_subject_on_another_grid_ends_nothing(
    settings: LearnedAtlasConfig,
    make_network: Callable[..., AtlasNetwork],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "sub-9.nii.gz")
    data = [{"image": str(tmp_path / "sub-9.nii.gz")}]
    assert HeldOutSubjects(make_network(), settings, data).run() == {}
    assert "not on the atlas's grid" in caplog.text
