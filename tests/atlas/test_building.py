"""Networks for a cohort, and networks from published files, hostile ones included."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.atlas.building import build_network, initial_templates
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_geometry, published_network
from scripts.cohort import Cohort
from scripts.errors import CheckpointError
from scripts.settings.atlas import LearnedAtlasConfig


def publish(network: AtlasNetwork, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.pt"
    torch.save(network.state_dict(), path)
    return path


# -- templates at the start ------------------------------------------------------------------


def test_one_template_starts_at_the_log_of_the_mean() -> None:
    mean = np.random.default_rng(0).random((2, 5, 6)).astype(np.float32)
    start = initial_templates(mean, 1, log_offset=0.01)
    np.testing.assert_allclose(start, np.log1p(mean / 0.01)[None], rtol=1e-6)
    assert start.dtype == np.float32


def two_groups(shape: tuple[int, ...], each: int = 4) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Subjects of two kinds in turns, and their linear densities."""
    rng = np.random.default_rng(1)
    densities = np.zeros((2 * each, 1, *shape))
    for i in range(2 * each):
        place = (slice(3, 9) if i % 2 else slice(shape[0] - 9, shape[0] - 3),)
        block = densities[i, 0][place]
        densities[i, 0][place] = rng.uniform(0.02, 0.04, block.shape)
    logs = np.log1p(densities / 1e-3).astype(np.float32)
    return [{"image": torch.tensor(image)} for image in logs], densities


@pytest.mark.parametrize("shape", [(26, 10), (26, 8, 9), (40, 3, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_templates_start_as_the_means_of_two_groups(shape: tuple[int, ...], seed: int) -> None:
    dataset, densities = two_groups(shape)
    start = initial_templates(densities.mean(0), 2, dataset, 1e-3, seed)
    groups = [np.log1p(densities[g::2].mean(0) / 1e-3) for g in (0, 1)]
    best = min(
        max(np.abs(start[0] - groups[a]).max(), np.abs(start[1] - groups[1 - a]).max())
        for a in (0, 1)
    )
    assert best < 1e-4


def test_more_templates_than_subjects_is_an_error() -> None:
    dataset, densities = two_groups((26, 10), each=1)
    with pytest.raises(CheckpointError, match="3 templates"):
        initial_templates(densities.mean(0), 3, dataset)


@pytest.mark.filterwarnings("ignore:One of the clusters is empty", "ignore:invalid value")
def test_equal_subjects_still_fill_every_cluster() -> None:
    dataset = [{"image": torch.ones(1, 12, 12)} for _ in range(4)]
    start = initial_templates(np.ones((1, 12, 12)), 2, dataset)
    np.testing.assert_allclose(start, 1.0, rtol=1e-5)


def test_the_network_starts_at_the_mean_inside_a_support_around_it(
    make_cohort: Callable[..., Cohort], make_settings: Callable[..., LearnedAtlasConfig]
) -> None:
    cohort = make_cohort(shape=(24, 24, 24))
    network = build_network(cohort, make_settings())
    np.testing.assert_allclose(
        network.template_density()[0].numpy(), cohort.mean_density, rtol=1e-4, atol=1e-8
    )
    present = torch.from_numpy(cohort.mean_density > 0)
    assert network.support[0, 0][present[0]].all()
    places = [torch.nonzero(x[0, 0] > 0) for x in (present[None].float(), network.support)]
    for end, sign in ((places[0].amin(0), -1), (places[0].amax(0), 1)):
        reach = (end + sign * 5).clamp(0, 21)
        result = places[1].amin(0) if sign < 0 else places[1].amax(0)
        assert result.tolist() == reach.tolist()


def test_the_seed_alone_decides_the_start(
    make_cohort: Callable[..., Cohort], make_settings: Callable[..., LearnedAtlasConfig]
) -> None:
    cohort = make_cohort()
    a, b = (build_network(cohort, make_settings(optimizer={"seed": 3})) for _ in range(2))
    c = build_network(cohort, make_settings(optimizer={"seed": 4}))
    weights = [torch.cat([p.flatten() for p in n.unet.parameters()]) for n in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# -- published models ------------------------------------------------------------------------


def test_a_published_network_is_the_network(
    make_network: Callable[..., AtlasNetwork],
    make_cohort: Callable[..., Cohort],
    tmp_path: Path,
) -> None:
    network = make_network(moving=True, model={"int_steps": 3, "field_resolution": 1})
    network.mean_velocity.fill_(0.1)
    again = published_network(publish(network, tmp_path))
    assert not again.training
    assert again.description == network.description
    image = torch.rand(1, 1, *network.shape)
    torch.testing.assert_close(again(image), network.eval()(image), atol=0, rtol=0)

    grid, crop = published_geometry(again)
    cohort = make_cohort()
    assert grid.same_as(cohort.grid) is None
    assert grid.header["sform_code"] == 4
    assert grid.header["qform_code"] == 1
    assert crop == cohort.crop


@pytest.mark.parametrize(("network_epochs", "passes"), [(0, (1,)), (3, (2, 1))])
def test_a_published_network_looks_as_often_as_it_was_taught_to(
    network_epochs: int,
    passes: tuple[int, ...],
    make_network: Callable[..., AtlasNetwork],
    tmp_path: Path,
) -> None:
    network = make_network(
        moving=True, model={"passes": [2, 1]}, refine={"network_epochs": network_epochs}
    )
    assert network.passes == (1,)  # while the template is learned too
    path = publish(network, tmp_path)
    again = published_network(path)
    assert again.passes == passes
    loaded = published_network(publish(make_network(moving=True), tmp_path / "other"))
    loaded.load_state_dict(torch.load(path, weights_only=True))
    assert loaded.passes == passes
    image = torch.rand(1, 1, *network.shape)
    network.passes = passes
    torch.testing.assert_close(again(image), network.eval()(image), atol=0, rtol=0)


class Malice:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_file_is_never_run(how: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "was-run", tmp_path / "model.pt"
    content = {"template": Malice(mark), "described": torch.zeros(1)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"model\.pt: not a checkpoint that can be loaded"):
        published_network(path)
    assert not mark.exists()
    # The file is as bad as it is meant to be:
    if how == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert mark.exists()


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model; train one first"):
        published_network(tmp_path / "model.pt")


def _spoiled(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """A state whose description is changed."""

    def spoil(state: dict[str, Any]) -> dict[str, Any]:
        content = json.loads(bytes(state["described"].numpy()).decode())
        text = json.dumps(change(content)).encode()
        state["described"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return state

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: [1, 2], "contains a list, not a checkpoint"),
        (lambda s: {"weight": torch.zeros(1)}, "contains no atlas model of this bundle"),
        (lambda s: {**s, "described": "text"}, "damaged or foreign"),
        (lambda s: {**s, "described": torch.tensor([255, 254], dtype=torch.uint8)}, "damaged"),
        (lambda s: {**s, "template": torch.zeros(3)}, "damaged or foreign"),
        (lambda s: {**s, "template": torch.zeros(1, 1, 4, 4, 4)}, "damaged or foreign"),
        (lambda s: {k: v for k, v in s.items() if k != "mixture"}, "damaged or foreign"),
        (lambda s: {**s, "more": torch.zeros(1)}, "damaged or foreign"),
        (_spoiled(lambda d: {**d, "format": 99}), "written in format 99"),
        (_spoiled(lambda d: {}), "damaged or foreign"),
        (_spoiled(lambda d: [1]), "damaged or foreign"),
        (_spoiled(lambda d: {"format": 1, "settings": {"model": 3}}), "damaged or foreign"),
    ],
)
def test_foreign_and_damaged_states_are_checkpoint_errors(
    spoil: Callable[[dict[str, Any]], Any],
    message: str,
    make_network: Callable[..., AtlasNetwork],
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.pt"
    torch.save(spoil(dict(make_network().state_dict())), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        published_network(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off", b"\x80\x02."])
def test_garbage_is_a_checkpoint_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint that can be loaded"):
        published_network(path)


def test_a_cut_file_is_a_checkpoint_error(
    make_network: Callable[..., AtlasNetwork], tmp_path: Path
) -> None:
    path = publish(make_network(), tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="not a checkpoint that can be loaded"):
        published_network(path)


def test_a_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        published_network(tmp_path)
