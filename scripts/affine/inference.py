"""Use of affine networks: building, reading from a checkpoint, estimating a pair's transform."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from scripts.affine.network import AffineNetwork
from scripts.engines.opening import opened
from scripts.errors import CohortError
from scripts.metrics import pearson
from scripts.networks.unwrapping import unwrapped
from scripts.pairwise.images import PairImages, read_image
from scripts.pairwise.network_grid import WorkingGrid, prepared_image
from scripts.pairwise.networks import load_pair_network, pair_description
from scripts.pairwise.pair_writer import PairWriter
from scripts.registration.contrast import similarities
from scripts.registration.images import ReadImage
from scripts.registration.pair_output import write_pair
from scripts.runtime.storage import publish_folder
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.affine import LearnedAffineConfig
from scripts.settings.image_pairs import EstimateAffineConfig
from scripts.spatial.grid import Grid
from scripts.spatial.overlap import grids_apart
from scripts.spatial.transforms import resample

logger = logging.getLogger(__name__)

__all__ = [
    "EstimateWriter",
    "PairOfImages",
    "build_affine_network",
    "estimate_matrix",
    "load_affine_network",
    "open_affine_network",
    "prepared_pair",
    "world_matrix",
]


def build_affine_network(images: PairImages, settings: LearnedAffineConfig) -> AffineNetwork:
    """The network of the settings, initialised with their seed."""
    torch.manual_seed(settings.optimizer.seed)
    return _built(images.grid, settings, pair_description(images, settings))


def _built(
    grid: WorkingGrid, settings: LearnedAffineConfig, description: dict[str, Any]
) -> AffineNetwork:
    model = settings.model
    return AffineNetwork(
        grid,
        settings.family,
        model.kind,
        model.pair,
        model.backbone,
        model.keypoints,
        model.width,
        model.passes,
        model.ridge,
        description,
    )


def load_affine_network(path: str | Path) -> AffineNetwork:
    """Load a published network, ready for use.

    Raises:
        CheckpointError: the file doesn't exist, is damaged, or isn't an affine network.
    """
    return load_pair_network(path, "affine network", "estimator", LearnedAffineConfig, _built)


def prepared_pair(
    network: AffineNetwork,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
) -> torch.Tensor:
    """Two images, on any grids, as input of the network: ``(1, 2, *shape)``.

    Each is resampled to the network's grid about the centre of its volume.

    Raises:
        CohortError: an image is constant or not finite, or its dimensions differ from the
        network's.
    """
    log_share = network.description["settings"]["images"]["log_share"]
    pair = ("fixed", fixed, fixed_affine), ("moving", moving, moving_affine)
    prepared = [prepared_image(network.grid, *image, log_share, "align") for image in pair]
    return torch.cat(prepared)[None]


@torch.no_grad()
def estimate_matrix(
    network: AffineNetwork,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    moving: np.ndarray,
    moving_affine: np.ndarray,
    passes: int | None = None,
) -> torch.Tensor:
    """The network's matrix ``(4, 4)`` float64, from fixed to moving world points (RAS, mm).

    Images ``(*shape)`` may have any two grids; ``passes`` replaces the number used in training.

    Raises:
        CohortError: see `prepared_pair`.
    """
    pair = prepared_pair(network, fixed, fixed_affine, moving, moving_affine)
    device = next(network.parameters()).device
    local = network.cascade(pair.to(device), passes)[-1].matrix[0].cpu()
    return _in_world(network, local, fixed_affine, fixed.shape, moving_affine, moving.shape)


def world_matrix(
    network: AffineNetwork, local: torch.Tensor, fixed: Grid, moving: Grid
) -> torch.Tensor:
    """A matrix of the network's grid ``(4, 4)`` as one between the worlds of the two images."""
    d = len(network.grid.shape)  # a plane's file may have a third axis of one voxel
    return _in_world(network, local, fixed.affine, fixed.shape[:d], moving.affine, moving.shape[:d])


def _in_world(
    network: AffineNetwork,
    local: torch.Tensor,
    fixed_affine: np.ndarray,
    fixed_shape: Sequence[int],
    moving_affine: np.ndarray,
    moving_shape: Sequence[int],
) -> torch.Tensor:
    fixed_place = network.grid.place_of(fixed_affine, fixed_shape)
    moving_place = network.grid.place_of(moving_affine, moving_shape)
    return moving_place @ local @ torch.linalg.inv(fixed_place)


def open_affine_network(
    path: str | Path, settings: EstimateAffineConfig, written: Sequence[str | Path] = ()
) -> AffineNetwork:
    """Load the network in ``<ckpt_dir>/affine_model.pt``; see `opened`.

    Args:
        path: of the network.
        settings: of the job.
        written: folders that the run will write to.

    Raises:
        CheckpointError: see `load_affine_network`.
    """
    network = opened(load_affine_network, path, settings.device, settings.key("device"), written)
    if settings.passes is not None:
        network.passes = settings.passes
    return network


class PairOfImages(Transform):
    """Reads a pair of files and resamples both to the network's grid, as ``image``.

    Args:
        network: as published.
    """

    def __init__(self, network: AffineNetwork) -> None:
        self.network = network

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add ``image (2, *shape)``, fixed and moving.

        Raises:
            CohortError: an image can't be read, is constant, or has other dimensions.
        """
        dims = len(self.network.grid.shape)
        fixed, fixed_grid = read_image([data["fixed"]], dims)
        moving, moving_grid = read_image([data["moving"]], dims)
        pair = prepared_pair(self.network, fixed, fixed_grid.affine, moving, moving_grid.affine)
        return {**data, "image": pair[0]}


class EstimateWriter(PairWriter):
    """Publishes ``<folder>/<moving image's name>/``, completely or not at all.

    Writes both directions as ITK text and 4x4 text, each image on the other's grid, and
    ``estimated.json``.

    Args:
        network: as published.
        folder: destination.
    """

    def __init__(self, network: torch.nn.Module, folder: str | Path) -> None:
        self.network = unwrapped(network, AffineNetwork)
        self.folder = Path(folder)

    def write(self, item: Mapping[str, Any], estimate: torch.Tensor) -> None:
        """Publish one pair, of whose matrix on the network's grid the network found ``(4, 4)``.

        Raises:
            CohortError: the pair is less similar with the matrix than without.
            StorageError: a file can't be written.
        """
        watched = WatchedFiles([item["fixed"], item["moving"]])
        fixed, moving = (ReadImage(item[key]) for key in ("fixed", "moving"))
        local = estimate.cpu().double()
        if grids_apart(fixed.grid, moving.grid):
            logger.warning(
                "%s: shares no space with %s: their grids are apart in the world, and only the "
                "network, which aligns their centres, can register them",
                item["moving"], item["fixed"],
            )  # fmt: skip
        _require_gain(self.network, item, local)
        matrix = world_matrix(self.network, local, fixed.grid, moving.grid).numpy()
        name = item["subject"]
        before = resample(moving.values, moving.grid, [], fixed.grid)
        with publish_folder(self.folder / name) as staging:
            moved = write_pair(staging, name, fixed, moving, matrix)
            if not moved.any():
                raise CohortError(
                    f"{item['moving']}: no part of it is on {item['fixed']} after the network's "
                    "transform; are they images of one kind, as the network was trained on?"
                )
            correlations = {
                "before": pearson(before, fixed.values) or 0.0,
                "after": pearson(moved, fixed.values) or 0.0,
            }
            report = {
                "fixed": item["fixed"],
                "moving": item["moving"],
                "family": self.network.family,
                "passes": self.network.passes,
                "matrix_fixed_to_moving_ras_mm": matrix.tolist(),
                "correlation": correlations,
            }
            (staging / "estimated.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            watched.check()
        logger.log(
            logging.WARNING if correlations["after"] < correlations["before"] else logging.INFO,
            "%s: correlation %.3f before, %.3f after",
            name, correlations["before"], correlations["after"],
        )  # fmt: skip


@torch.no_grad()
def _require_gain(network: AffineNetwork, item: Mapping[str, Any], local: torch.Tensor) -> None:
    """Refuse an estimate that is worse than aligning the centres of the volumes.

    Raises:
        CohortError: with both similarities.
    """
    fixed, moving = torch.as_tensor(item["image"]).cpu()[None].split(1, 1)
    moved = network.moved(moving, local[None])
    before, after = similarities(moving, moved, fixed)
    if not after >= before:
        raise CohortError(
            f"{item['moving']}: the network's estimate makes it less similar to {item['fixed']} "
            f"than no estimate (correlation {after:.3f}, {before:.3f} with the centres of the "
            "volumes aligned), so it isn't written; are they images of one kind, as the "
            "network was trained on? Train it for longer, or use refine"
        )
