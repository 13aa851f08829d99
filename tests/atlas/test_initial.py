"""What a cohort's network starts from: random weights, a network of pairs, another atlas's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.atlas.building import build_network
from scripts.atlas.components import open_cohort
from scripts.atlas.export_model import exported_program, traced_program
from scripts.atlas.initial import open_initial
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_network
from scripts.cohort import Cohort
from scripts.errors import CheckpointError, ConfigurationError
from scripts.networks.described import weights_identity
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.shipped.network import PairNetwork
from scripts.shipped.weights import load_pair_network, save_pair_network

Cohorts = Callable[..., Cohort]
Settings = Callable[..., LearnedAtlasConfig]


def written(path: Path, inputs: str = "forces") -> Path:
    """A small network of pairs whose fields are not near zero."""
    network = PairNetwork((4, 6), (6, 4, 4), passes=(2, 1, 1), seed=3, inputs=inputs)
    torch.manual_seed(0)
    torch.nn.init.normal_(network.unet.field.weight, std=0.03)
    save_pair_network(network, path)
    return path


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    return written(tmp_path / "pairs.pt")


def image_of(network: AtlasNetwork, shift: int = 1) -> torch.Tensor:
    return network.template.detach()[:1].roll(shift, 2)


def test_a_network_of_pairs_brings_weights_features_inputs_and_passes(
    pair_file: Path, make_cohort: Cohorts, make_settings: Settings, tmp_path: Path
) -> None:
    settings = make_settings(model={"initial": str(pair_file)})
    network = build_network(make_cohort(), settings).eval()
    given = torch.load(pair_file, weights_only=True)
    assert network.unet.arguments["enc_features"] == [4, 6]
    assert network.unet.arguments["in_channels"] == 13
    assert network.passes == (2, 1, 1)
    for name, value in network.unet.state_dict().items():
        assert torch.equal(value, given[f"unet.{name}"])
    # Published and read again it is the same network.
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    again = published_network(path)
    assert again.passes == network.passes
    assert again.description["initial"]["name"] == "pairs.pt"
    velocity = network.velocity(image_of(network))
    assert torch.equal(again.velocity(image_of(network)), velocity)
    assert float(velocity.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("inputs", ["pair", "copies", "forces", "costs"])
def test_the_atlas_network_finds_what_the_network_of_pairs_does(
    inputs: str, make_cohort: Cohorts, make_settings: Settings, tmp_path: Path
) -> None:
    pair_file = written(tmp_path / "pairs.pt", inputs)
    network = build_network(
        make_cohort(), make_settings(model={"initial": str(pair_file), "int_steps": 7})
    ).eval()
    image = image_of(network)
    result = load_pair_network(pair_file)(network.template.detach(), image)[-1]
    torch.testing.assert_close(network.velocity(image).detach(), result.detach())
    torch.save(network.state_dict(), tmp_path / "model.pt")
    again = published_network(tmp_path / "model.pt")
    assert torch.equal(again.velocity(image), network.velocity(image))
    assert float(result.detach().abs().max()) > 1e-3


def test_a_published_model_can_be_the_start_of_another(
    pair_file: Path, make_cohort: Cohorts, make_settings: Settings, tmp_path: Path
) -> None:
    for number, initial in enumerate((str(pair_file), None)):
        first = build_network(make_cohort(), make_settings(model={"initial": initial}))
        path = tmp_path / f"model-{number}.pt"
        torch.save(first.state_dict(), path)
        second = build_network(
            make_cohort(spread=2.0),
            make_settings(model={"initial": str(path)}, optimizer={"seed": 9}),
        )
        assert weights_identity(second.unet) == weights_identity(first.unet)
        assert (second.inputs is None) == (initial is None)


def test_several_channels_are_registered_by_their_sum(
    pair_file: Path, make_cohort: Cohorts, make_settings: Settings
) -> None:
    initial = {"initial": str(pair_file)}
    cohort = make_cohort(channels=2)
    network = build_network(cohort, make_settings(model={"channels": 2, **initial})).eval()
    assert network.unet.arguments["in_channels"] == 13
    image = image_of(network)
    swapped = image.flip(1)
    with torch.no_grad():
        result = network.velocity(image)
        network.template.copy_(network.template.flip(1))
        torch.testing.assert_close(network.velocity(swapped), result, atol=1e-5, rtol=0)
    assert float(result.abs().max()) > 1e-3


def test_what_doesnt_fit_is_refused(
    pair_file: Path, make_cohort: Cohorts, make_settings: Settings, tmp_path: Path
) -> None:
    def start(dims: int = 3, **model: object) -> None:
        open_initial(make_settings(model=model), dims)

    with pytest.raises(ConfigurationError, match="the cohort's maps are planes"):
        start(2, initial=str(pair_file))
    with pytest.raises(ConfigurationError, match="learned_atlas#model#field_resolution 2"):
        start(initial=str(pair_file), field_resolution=1)
    with pytest.raises(CheckpointError, match="there is no such file"):
        start(initial=str(tmp_path / "none.pt"))
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match="contains no atlas model of this bundle"):
        start(initial=str(other))
    plain = build_network(make_cohort(), make_settings())
    torch.save(plain.state_dict(), other)
    with pytest.raises(ConfigurationError, match="registers 1 channels at once"):
        start(initial=str(other), channels=3)


def test_passes_that_are_asked_for_go_before_the_networks_own(
    pair_file: Path, make_settings: Settings
) -> None:
    asked = make_settings(model={"initial": str(pair_file), "passes": [4, 1]})
    assert open_initial(asked, 3).passes == [4, 1]
    assert open_initial(make_settings(), 3).passes == [2, 1, 1]


def test_a_given_network_is_trained_on(pair_file: Path, make_training: Callable[..., Any]) -> None:
    """Each pass gets a gradient, and the template one from the loss alone."""
    training = make_training(made_of={"spread": 2.0}, model={"initial": str(pair_file)})
    network = training.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    training.trainer().run()
    after = network.state_dict()
    for name in ("unet.encoder.0.0.weight", "unet.field.weight", "template"):
        assert torch.isfinite(after[name]).all()
        assert not torch.equal(after[name], before[name])


def test_a_network_that_sees_forces_is_a_program_too(
    pair_file: Path, make_cohort: Cohorts, make_settings: Settings
) -> None:
    network = build_network(make_cohort(), make_settings(model={"initial": str(pair_file)})).eval()
    image = image_of(network)
    expected = network(image)
    for program in (traced_program(network), exported_program(network).module()):
        torch.testing.assert_close(program(image), expected, atol=1e-5, rtol=0)


def test_planes_are_refused_before_the_run_begins(make_settings: Settings, tmp_path: Path) -> None:
    """A run that is noted as begun would refuse what the message advises."""
    folder = tmp_path / "data"
    folder.mkdir()
    plane = np.pad(np.ones((4, 5, 1), np.float32), ((4, 4), (4, 4), (0, 0)))
    for number in range(5):
        nib.save(nib.Nifti1Image(plane * (1 + number), np.eye(4)), folder / f"s{number}.nii.gz")
    settings = make_settings(
        model={"initial": "shipped"}, cohort={"layout": "flat", "normalisation": "none"}
    )
    written = [tmp_path / "output", tmp_path / "models"]
    with pytest.raises(ConfigurationError, match="learned_atlas#model#initial null"):
        open_cohort(folder, settings, written)
    assert not any(path.is_dir() and any(path.iterdir()) for path in written)
