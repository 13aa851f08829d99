"""Checkpoints of networks of pairs: they are read again as what they are, and as nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.affine.inference import build_affine_network, load_affine_network
from scripts.elastic.network import build_elastic_network, load_elastic_network
from scripts.errors import CheckpointError
from scripts.networks.described import DescribedNetwork
from scripts.pairwise.images import ImageSubject, PairImages
from scripts.pairwise.network_grid import WorkingGrid
from scripts.settings.affine import LearnedAffineConfig
from scripts.settings.elastic import LearnedElasticConfig

SMALL = {"images": {"shape": [16, 16]}, "device": "cpu"}
LOADERS = {"affine": load_affine_network, "elastic": load_elastic_network}


def network(kind: str) -> DescribedNetwork:
    subjects = tuple(ImageSubject(f"s{n}", (f"s{n}.nii",), (0,), str(n)) for n in range(4))
    images = PairImages(subjects, (), WorkingGrid((16, 16), 2.0), "{subject}.nii", 4, 0)
    if kind == "affine":
        return build_affine_network(images, LearnedAffineConfig.load({**SMALL, "folds": 4}))
    settings = LearnedElasticConfig.load({**SMALL, "folds": 4, "model": {"enc_features": [4, 4],
        "dec_features": [4, 4]}})  # fmt: skip
    return build_elastic_network(images, settings, [1, 2])


@pytest.mark.parametrize("kind", LOADERS)
def test_a_checkpoint_gives_the_network_back(kind: str, tmp_path: Path) -> None:
    made = network(kind)
    torch.save(made.state_dict(), tmp_path / "model.pt")
    result = LOADERS[kind](tmp_path / "model.pt")
    assert type(result) is type(made)
    assert result.description == made.description
    assert result.description["grid"] == {"shape": [16, 16], "spacing": 2.0}
    assert len(result.description["trained_on"]) == 3  # the fold is held out
    assert result.description.get("labels") == ([1, 2] if kind == "elastic" else None)
    pair = torch.rand(1, 2, 16, 16)
    with torch.no_grad():
        assert torch.equal(result(pair), made.eval()(pair))


@pytest.mark.parametrize(("kind", "other"), [("affine", "elastic"), ("elastic", "affine")])
def test_the_other_kinds_checkpoint_is_refused(kind: str, other: str, tmp_path: Path) -> None:
    torch.save(network(other).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=f"contains no {kind} network of this bundle"):
        LOADERS[kind](tmp_path / "model.pt")


@pytest.mark.parametrize("kind", LOADERS)
def test_a_description_that_lacks_a_part_is_refused(kind: str, tmp_path: Path) -> None:
    made = network(kind)
    description = made.description
    del description["grid"]["spacing"]
    state = {**made.state_dict(), "described": DescribedNetwork(description).described}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="its description lacks 'spacing'"):
        LOADERS[kind](tmp_path / "model.pt")
