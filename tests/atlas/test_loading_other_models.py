"""A network into which a tool loads the weights of another cohort's atlas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts.atlas.building import build_network
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_geometry, published_network
from scripts.cohort import Cohort
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.shipped.network import PairNetwork
from scripts.shipped.weights import save_pair_network

Make = Callable[..., AtlasNetwork]


@pytest.fixture
def pair(
    make_cohort: Callable[..., Cohort], make_settings: Callable[..., LearnedAtlasConfig]
) -> Make:
    """Networks of cohorts that differ in subjects and in the grid's shape."""

    def make(shape: tuple[int, ...], spread: float = 1.0, **changes: object) -> AtlasNetwork:
        network = build_network(make_cohort(shape=shape, spread=spread), make_settings(**changes))
        torch.manual_seed(len(shape) + shape[0])
        for weight in network.unet.parameters():
            torch.nn.init.normal_(weight)
        return network

    return make


def test_training_starts_from_the_unet_of_another_cohort_with_its_own_template(pair: Make) -> None:
    own, theirs = pair((14, 12, 13)), pair((16, 12, 15), spread=2.0)
    theirs.mean_velocity.fill_(3)
    template, described = own.template.detach().clone(), own.description
    own.load_state_dict(theirs.state_dict(), strict=False)
    for name, weight in own.unet.state_dict().items():
        assert torch.equal(weight, theirs.unet.state_dict()[name])
    assert torch.equal(own.input_scale, theirs.input_scale)
    assert torch.equal(own.template, template)
    assert own.description == described
    assert not own.mean_velocity.any()
    assert own.eval()(own.template.detach()[0][None]).shape == (1, 1, *own.shape)


def test_a_unet_that_is_built_otherwise_is_left(
    pair: Make, caplog: pytest.LogCaptureFixture
) -> None:
    own = pair((14, 12, 13))
    theirs = pair((16, 12, 15), model={"enc_features": [6, 6]})
    before = {name: value.clone() for name, value in own.state_dict().items()}
    own.load_state_dict(theirs.state_dict(), strict=False)
    assert "the architecture of the given model's U-Net differs" in caplog.text
    for name, value in own.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_of_the_same_cohort_everything_is_taken_but_the_runs_description(pair: Make) -> None:
    own = pair((14, 12, 13), presence_value=0.5)
    theirs = pair((14, 12, 13), presence_value=0.0625)  # a longer text, too
    assert own.description["cohort"] == theirs.description["cohort"]
    with torch.no_grad():
        theirs.template += 1
    own.load_state_dict(theirs.state_dict())
    assert torch.equal(own.template, theirs.template)
    assert own.description["settings"]["presence_value"] == 0.5


def test_a_published_network_becomes_the_model_that_is_loaded_into_it(
    pair: Make, tmp_path: Path
) -> None:
    """As a server does it that keeps its network over a training."""
    old, new = pair((14, 12, 13)), pair((16, 12, 15), spread=2.0)
    torch.save(old.state_dict(), tmp_path / "model.pt")
    kept = published_network(tmp_path / "model.pt")
    image = torch.rand(1, 1, *new.shape)
    kept.load_state_dict(new.state_dict(), strict=False)
    assert kept.description == new.description
    assert kept.shape == new.shape
    assert published_geometry(kept)[0].shape == (16, 12, 15)
    assert not kept.training
    with torch.no_grad():
        assert torch.equal(kept(image), new.eval()(image))


def test_a_kept_network_takes_every_part_of_the_other_and_keeps_its_hooks(
    pair: Make, tmp_path: Path
) -> None:
    old = pair((14, 12, 13))
    new = pair((16, 12, 15), model={"enc_features": [6, 6], "int_steps": 0}, loss={"log_offset": 1})
    paths = {}
    for name, network in (("old", old), ("new", new)):
        paths[name] = tmp_path / f"{name}.pt"
        torch.save(network.state_dict(), paths[name])
    kept, wanted = published_network(paths["old"]).train(), published_network(paths["new"])
    called = []
    kept.register_forward_hook(lambda *_: called.append(True))
    kept.load_state_dict(torch.load(paths["new"], weights_only=True))
    assert kept.training and kept.unet.training

    plain = {name: value for name, value in vars(wanted).items() if not name.startswith("_")}
    assert {"shape", "log_offset", "passes"} <= set(plain)
    for name, value in plain.items():
        assert name == "training" or getattr(kept, name) == value, name
    assert list(dict(kept.named_modules())) == list(dict(wanted.named_modules()))
    state = kept.state_dict()
    assert list(state) == list(wanted.state_dict())
    for name, value in wanted.state_dict().items():
        assert torch.equal(state[name], value), name
    kept.eval()(torch.rand(1, 1, *new.shape))
    assert called


def test_a_kept_network_becomes_one_of_other_inputs_and_back(pair: Make, tmp_path: Path) -> None:
    """As when a cohort's own network is replaced by one that starts as the shipped one."""
    start = PairNetwork((4, 4), (4, 4, 4), passes=(2, 1), seed=0)
    save_pair_network(start, tmp_path / "pairs.pt")
    plain = pair((14, 12, 13))
    forces = pair((16, 12, 15), model={"initial": str(tmp_path / "pairs.pt")})
    torch.save(plain.state_dict(), tmp_path / "model.pt")
    kept = published_network(tmp_path / "model.pt")
    for new in (forces, plain):
        kept.load_state_dict(new.state_dict())
        image = torch.rand(1, 1, *new.shape)
        assert (kept.inputs is None) == (new is plain)
        with torch.no_grad():
            assert torch.equal(kept(image), new.eval()(image))


@pytest.mark.parametrize("spoilt", ["mixture", "unet.field.weight"])
def test_a_kept_network_stays_as_it_is_where_weights_dont_fit_what_they_say(
    spoilt: str, pair: Make, tmp_path: Path
) -> None:
    torch.save(pair((14, 12, 13)).state_dict(), tmp_path / "model.pt")
    kept = published_network(tmp_path / "model.pt")
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    state = pair((16, 12, 15), spread=2.0).state_dict()
    del state[spoilt]
    with pytest.raises(RuntimeError, match=spoilt):
        kept.load_state_dict(state)
    assert kept.shape == tuple(before["template"].shape[2:])
    for name, value in kept.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_of_something_else_are_refused(pair: Make) -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        pair((14, 12, 13)).load_state_dict({"weight": torch.zeros(1)})
