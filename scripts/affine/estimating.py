"""The job that asks an affine network about pairs of images, and writes what it says."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import Transform

from scripts.affine.affine_network import AffineNetwork
from scripts.affine.estimation import load_affine_network, prepared_pair, world_matrix
from scripts.affine.image_pairs import EstimateAffineConfig
from scripts.affine.pair_files import write_pair
from scripts.affine.reading import ReadImage
from scripts.affine.training_images import read_image
from scripts.atlas.transforms import resample
from scripts.engines.components import opened
from scripts.networks.wrapping import unwrapped
from scripts.storage import publish_folder

__all__ = ["EstimateWriter", "PairOfImages", "open_affine_network"]

logger = logging.getLogger(__name__)


def open_affine_network(
    path: str | Path, settings: EstimateAffineConfig, written: Sequence[str | Path] = ()
) -> AffineNetwork:
    """The network in ``<ckpt_dir>/affine_model.pt``; see `opened`.

    Args:
        path: of the network.
        settings: of the job.
        written: folders that the run will write to.

    Raises:
        CheckpointError: see `load_affine_network`.
    """
    network = opened(load_affine_network, path, settings.device, written)
    if settings.passes is not None:
        network.passes = settings.passes
    return network


class PairOfImages(Transform):
    """Reads a pair of files and brings each onto the network's grid, as ``image``.

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


class EstimateWriter:
    """Publishes ``<folder>/<moving image's name>/``, whole or not at all.

    Both directions as ITK text and 4x4 text, each image on the other's grid, ``estimated.json``.

    Args:
        network: as published.
        folder: where to.
    """

    def __init__(self, network: torch.nn.Module, folder: str | Path) -> None:
        self.network = unwrapped(network, AffineNetwork)
        self.folder = Path(folder)

    def attach(self, engine: Engine) -> None:
        """Write after each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the pairs of the last iteration.

        Raises:
            StorageError: something can't be written.
        """
        items: Any = engine.state.batch
        found: Any = engine.state.output
        for item, output in zip(items, found, strict=True):
            self._write(item, torch.as_tensor(output["pred"]).cpu().double())

    def _write(self, item: Mapping[str, Any], local: torch.Tensor) -> None:
        fixed, moving = (ReadImage(item[key]) for key in ("fixed", "moving"))
        matrix = world_matrix(self.network, local, fixed.grid, moving.grid).numpy()
        name = item["subject"]
        before = resample(moving.values, moving.grid, [], fixed.grid)
        with publish_folder(self.folder / name) as staging:
            moved = write_pair(staging, name, fixed, moving, matrix)
            correlations = {
                "before": _correlation(before, fixed.values),
                "after": _correlation(moved, fixed.values),
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
        logger.info(
            "%s: correlation %.3f before, %.3f after",
            name, correlations["before"], correlations["after"],
        )  # fmt: skip


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 where one of the two is constant."""
    if not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
