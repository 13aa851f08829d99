"""A conditional template learned from a cohort whose anatomy is known to change with age."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from atlas_training import Interrupted
from monai.bundle import ConfigParser

from scripts.applications.atlas_to_patient import AtlasCarrier
from scripts.atlas.building import build_network
from scripts.atlas.cohort_refinement import CohortRefinement
from scripts.atlas.components import atlas_loss, cohort_refinement, cohort_transforms, train_dataset
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_network
from scripts.atlas.registration import fields_of
from scripts.cohort import Cohort, read_cohort
from scripts.errors import CohortError, ConfigurationError
from scripts.metrics import log_density_correlation
from scripts.phantom import Truth, load_truth, write_demo_cohort
from scripts.publishing.components import cohort_publisher
from scripts.publishing.verification import verify_atlas
from scripts.runtime.error_report import find_user_error
from scripts.settings.applications import AtlasToPatientConfig
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.warp import warp

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (24, 27, 24)
OFFSET = 1e-3


def settings(*covariates: str, initial: str | None = None) -> LearnedAtlasConfig:
    rounds = {"rounds": 3} if initial is None else {"network_rounds": 2, "rounds": 1}
    return LearnedAtlasConfig.load(
        {
            "device": "cpu",
            "presence_value": 1e-3,
            "model": {
                "enc_features": [4, 4],
                "dec_features": [4, 4, 4],
                "covariates": list(covariates),
                "initial": initial,
            },
            "loss": {"log_offset": OFFSET, "smoothness_weight": 0.7},
            "cohort": {"margin": 2},
            "refine": {**rounds, "iterations": 8},
        }
    )


@dataclass
class Fitted:
    """A cohort's template, fitted by refinement alone from velocities of zero."""

    cohort: Cohort
    config: LearnedAtlasConfig
    network: AtlasNetwork
    velocities: CohortRefinement

    def at(self, z: float | None) -> np.ndarray:
        """The template at an age, on the whole grid."""
        point = None if z is None else torch.tensor([[z]])
        with torch.no_grad():
            density = self.network.template_density(point)[0].numpy()
        return self.cohort.crop.paste(density, SHAPE)[0]


def fitted(dataset: Path, work: Path, *covariates: str, initial: str | None = None) -> Fitted:
    config = settings(*covariates, initial=initial)
    cohort = read_cohort(dataset, config.cohort_request())
    transform = cohort_transforms(cohort, config)
    data = train_dataset(cohort.datalist(), transform, config, work / "cache")
    network = build_network(cohort, config, data)
    loss = atlas_loss(cohort.grid.spacing, config)
    result = cohort_refinement(network, data, loss, work / "refinement", config, cohort)
    result.run()
    return Fitted(cohort, config, network, result)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ageing") / "demo"
    write_demo_cohort(folder, subjects=8, held_out=2, shape=SHAPE, streamlines=60, age_effect=6.0)
    return folder


@pytest.fixture(scope="module")
def truth(dataset: Path) -> Truth:
    return load_truth(dataset)


@pytest.fixture(scope="module")
def conditional(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(dataset, tmp_path_factory.mktemp("conditional"), "age")


@pytest.fixture(scope="module")
def unconditional(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(dataset, tmp_path_factory.mktemp("unconditional"))


def likeness(found: np.ndarray, true: np.ndarray) -> float:
    return log_density_correlation(found, true, OFFSET)


@pytest.mark.parametrize(("z", "margin"), [(-1.5, 0.04), (-0.75, 0.01), (0.75, 0.01), (1.5, 0.04)])
def test_at_every_age_it_is_nearer_to_the_truth_than_one_template_for_all(
    z: float, margin: float, truth: Truth, conditional: Fitted, unconditional: Fitted
) -> None:
    plain = likeness(unconditional.at(None), truth.aged[z])
    assert likeness(conditional.at(z), truth.aged[z]) > plain + margin
    # And it is the right age: the opposite one is farther from the truth than the middle.
    assert likeness(conditional.at(-z), truth.aged[z]) < plain


def test_the_network_that_ships_finds_what_age_does(
    dataset: Path, truth: Truth, unconditional: Fitted, tmp_path: Path
) -> None:
    """Two rounds of it alone and one of optimisation, where the others have three of these."""
    result = fitted(dataset, tmp_path, "age", initial="shipped")
    for z in (-1.5, 1.5):
        plain = likeness(unconditional.at(None), truth.aged[z])
        assert likeness(result.at(z), truth.aged[z]) > plain + 0.04
        assert likeness(result.at(-z), truth.aged[z]) < plain


def test_the_change_from_young_to_old_has_the_true_sign_and_no_more_than_the_true_size(
    truth: Truth, conditional: Fitted
) -> None:
    change, true = (
        np.log1p(old / OFFSET) - np.log1p(young / OFFSET)
        for old, young in (
            (conditional.at(1.5), conditional.at(-1.5)),
            (truth.aged[1.5], truth.aged[-1.5]),
        )
    )
    where = (change != 0) | (true != 0)
    a, b = true[where], change[where]
    assert np.corrcoef(a, b)[0, 1] > 0.6
    assert 0.25 < (a @ b) / (a @ a) < 1.1


def test_age_explains_subjects_that_one_template_does_not(
    conditional: Fitted, unconditional: Fitted
) -> None:
    assert conditional.velocities.history[0] == pytest.approx(unconditional.velocities.history[0])
    assert conditional.velocities.history[-1] < unconditional.velocities.history[-1]


def test_mean_velocity_is_zero_and_the_networks_mean_is_the_refined_one(
    conditional: Fitted,
) -> None:
    count = len(conditional.cohort.subjects)
    velocities = torch.cat([conditional.velocities.velocity(i) for i in range(count)])
    assert velocities.abs().max() > 0.5
    assert velocities.mean(0).abs().max() < 1e-5


def test_a_model_file_gives_the_same_template(conditional: Fitted, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(conditional.network.state_dict(), path)
    again = published_network(path)
    point = torch.tensor([[0.8]])
    assert torch.equal(again.template_density(point), conditional.network.template_density(point))
    assert again.description["covariates"][0]["name"] == "age"


@torch.no_grad()
def test_fields_to_a_chosen_age_are_each_others_inverse_and_lead_there(
    conditional: Fitted,
) -> None:
    network, crop = conditional.network, conditional.cohort.crop
    velocity = conditional.velocities.velocity(0)
    towards = network.covariate_velocity(torch.tensor([[1.0]]))
    result = fields_of(network, velocity, crop, SHAPE, towards)
    assert not result.folds
    forward, backward = result.to_template, result.to_subject
    error = (forward + warp(backward, forward, padding_mode="border"))[..., 4:-4, 4:-4, 4:-4]
    assert float(error.square().sum(1).mean().sqrt()) < 0.1
    # T(c) warped by its fields equals T warped by the subject's velocity.
    point = torch.tensor([[1.0]])
    whole = torch.zeros(1, 1, *SHAPE)
    crop.crop(whole)[...] = network.template_density(point)
    carried = crop.crop(warp(whole, backward))
    direct = network.predict(velocity, torch.zeros(1, dtype=torch.long), point)
    assert likeness(carried.numpy(), direct.numpy()) > 0.97


def test_an_atlas_at_a_chosen_age_is_published_beside_the_means_and_verifies(
    conditional: Fitted, tmp_path: Path
) -> None:
    config, cohort = conditional.config, conditional.cohort
    network, velocities = conditional.network, conditional.velocities
    folders = [
        cohort_publisher(network, cohort, config, velocities, tmp_path, at=at).publish()
        for at in (None, {"age": 30})
    ]
    assert [folder.name for folder in folders] == ["learned_atlas", "learned_atlas_at_age=30"]
    maps = [np.asarray(nib.load(f / "atlas_mean.nii.gz").dataobj) for f in folders]
    np.testing.assert_allclose(maps[0], conditional.at(None), rtol=1e-5, atol=1e-9)
    assert cohort.coding is not None
    young = conditional.at(float(cohort.coding.code({"age": 30})[0]))
    np.testing.assert_allclose(maps[1], young, rtol=1e-5, atol=1e-9)
    assert np.abs(maps[1] - maps[0]).max() > 1e-3
    for folder, at in zip(folders, (None, {"age": 30.0}), strict=True):
        verify_atlas(folder).require()
        about = json.loads((folder / "atlas.json").read_text())
        assert about["covariates"]["at"] == at
        (age,) = about["covariates"]["coding"]
        assert age == cohort.coding.covariates[0].as_dict()
        assert all("age" in one["covariates"] for one in about["cohort"]["subjects"])


# -- through the configurations --------------------------------------------------------------


@pytest.fixture(scope="module")
def models(conditional: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ckpt_dir with the conditional model."""
    folder = tmp_path_factory.mktemp("models")
    torch.save(conditional.network.state_dict(), folder / "model.pt")
    return folder


def run_config(name: str, run_id: str, **values: Any) -> None:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / f"{name}.yaml"))
    parser.update({"bundle_root": str(ROOT), "learned_atlas#device": "cpu", **values})
    try:
        parser.get_parsed_content(run_id)
    except RuntimeError as error:  # as `report_errors_in_one_line` shows it
        raise find_user_error(error) or error from None


def test_new_subjects_bring_their_covariates_or_are_given_some(
    dataset: Path, models: Path, truth: Truth, tmp_path: Path
) -> None:
    folders = {"ckpt_dir": str(models), "dataset_dir": str(dataset / ".truth" / "held_out")}
    reports = {}
    for at in (None, "age=30", "mean"):
        output = tmp_path / str(at)
        run_config("inference", "registering", **folders, output_dir=str(output), at=at)
        for one in truth.held_out:
            folder = output / "registered" / one.name
            reports[at, one.name] = json.loads((folder / "registration.json").read_text())
    years = truth.record["age"]["years"][-2:]
    for one, age in zip(truth.held_out, years, strict=True):
        assert reports[None, one.name]["covariates"] == {"age": age}
        assert reports["age=30", one.name]["covariates"] == {"age": 30.0}
        assert reports["mean", one.name]["covariates"] == {}
        before = [
            reports[at, one.name]["log_density_correlation"]["before"] for at in (None, "mean")
        ]
        assert before[0] != before[1]


def test_fields_of_new_subjects_carry_the_means_atlas_and_no_other(
    dataset: Path, models: Path, truth: Truth, conditional: Fitted, tmp_path: Path
) -> None:
    folders = {"ckpt_dir": str(models), "dataset_dir": str(dataset / ".truth" / "held_out")}
    run_config("inference", "registering", **folders, output_dir=str(tmp_path))
    made = (conditional.network, conditional.cohort, conditional.config, conditional.velocities)
    name = truth.held_out[0].name
    asked = AtlasToPatientConfig.load({"patients": [name]})
    for at in (None, {"age": 30}):
        atlas = cohort_publisher(*made, tmp_path, at=at).publish()
        if at is None:
            AtlasCarrier(atlas, asked, tmp_path / "registered", tmp_path / "carried").run()
            assert (tmp_path / "carried" / name).is_dir()
        else:
            with pytest.raises(CohortError, match=r"template of the cohort's mean.*'age': 30"):
                AtlasCarrier(atlas, asked, tmp_path / "registered", tmp_path / "carried")


def test_new_subjects_without_covariates_are_an_error(
    dataset: Path, models: Path, truth: Truth, tmp_path: Path
) -> None:
    one = next((truth.held_out[0].path).rglob("fdt_paths.nii.gz"))
    folders = {"ckpt_dir": str(models), "output_dir": str(tmp_path / "output")}
    with pytest.raises(CohortError, match=r"participants.tsv can't be read"):
        run_config("inference", "registering", **folders, input=str(one))
    with pytest.raises(ConfigurationError, match="sex is not a covariate of the model"):
        run_config("inference", "registering", **folders, input=str(one), at="sex=F")
    assert not (tmp_path / "output" / "registered").exists()


def test_an_export_at_chosen_values_has_the_template_of_these_values(
    dataset: Path, models: Path, conditional: Fitted, tmp_path: Path, caplog: Any
) -> None:
    folders = {
        "ckpt_dir": str(models), "dataset_dir": str(dataset), "output_dir": str(tmp_path),
        "learned_atlas#verify_jacobian": False,
    }  # fmt: skip
    run_config("export", "exporting", **folders, at="age=95")
    assert "age = 95 is outside the cohort's range" in caplog.text
    result = np.asarray(nib.load(tmp_path / "learned_atlas_at_age=95/atlas_mean.nii.gz").dataobj)
    assert conditional.cohort.coding is not None
    expected = conditional.at(float(conditional.cohort.coding.code({"age": 95})[0]))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-9)
    with pytest.raises(ConfigurationError, match="age = 'old': must be a number"):
        run_config("export", "exporting", **folders, at="age=old")
    assert [p.name for p in tmp_path.glob("learned_atlas*")] == ["learned_atlas_at_age=95"]


# -- interruptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("readings", [9, 14, 20, 26])
def test_a_cut_conditional_refinement_resumes_to_the_same_result_bit_for_bit(
    readings: int, make_training: Callable[..., Any], tmp_path: Path
) -> None:
    design = np.array([[-1.2], [-0.4], [0.4], [1.2]], dtype=np.float32)

    def begun(name: str) -> CohortRefinement:
        training = make_training(made_of={"spread": 2.0})
        network = AtlasNetwork(
            training.network.template.detach(),
            enc_features=[4, 4],
            dec_features=[4, 4, 4],
            covariates=1,
        )
        state = {k: v for k, v in training.network.state_dict().items() if k != "described"}
        network.load_state_dict(state, strict=False)
        network.set_support(training.network.support)
        return CohortRefinement(
            network, training.dataset, training.loss, tmp_path / name,
            rounds=2, iterations=2, design=design,
        )  # fmt: skip

    unbroken = begun("unbroken")
    unbroken.run()
    assert unbroken.network.density_slopes.abs().max() > 0
    cut = begun("broken")
    cut.dataset = Interrupted(cut.dataset, readings)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = begun("broken")
    resumed.run()
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name
