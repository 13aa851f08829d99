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

from scripts.affine.affine_network import AffineNetwork, bare_affine_network
from scripts.affine.estimation import load_affine_network, prepared_pair, world_matrix
from scripts.affine.files import write_affine_files
from scripts.affine.resampling import resample_by_matrix
from scripts.affine.training_images import read_image
from scripts.atlas.maps import write_map
from scripts.atlas.transforms import voxels_of
from scripts.engines.components import reserved
from scripts.errors import ConfigurationError, StorageError, report_errors_in_one_line
from scripts.networks.precision import open_device
from scripts.storage import check_space, publish_folder

__all__ = ["EstimateWriter", "PairOfImages", "list_pairs", "open_affine_network"]

logger = logging.getLogger(__name__)


def open_affine_network(
    path: str | Path, device: str, passes: int | None = None, written: Sequence[str | Path] = ()
) -> AffineNetwork:
    """A published network, after what can be known beforehand of the run's end.

    From here on user errors are shown in one line.

    Args:
        path: ``<ckpt_dir>/affine_model.pt``.
        device: cpu, cuda or cuda:N.
        passes: of the cascade, in place of the trained number.
        written: folders that the run will write to; locked while the result is in use.

    Raises:
        ConfigurationError: the machine lacks the device, or ``passes`` is below 1.
        CheckpointError: see `load_affine_network`.
        StorageError: a folder can't be written, or another run is at work there.
    """
    report_errors_in_one_line()
    open_device(device)
    if passes is not None and (isinstance(passes, bool) or not isinstance(passes, int)):
        raise ConfigurationError(f"passes = {passes!r}: must be null or an integer >= 1")
    if passes is not None and passes < 1:
        raise ConfigurationError(f"passes = {passes}: a cascade has at least 1 pass")
    with reserved(written) as users:
        network = load_affine_network(path)
        users.append(network)
    if passes is not None:
        network.passes = passes
    return network


def list_pairs(
    fixed: str | None,
    moving: str | Sequence[str] | None,
    written: str | Path | None = None,
) -> list[dict[str, str]]:
    """One dictionary a pair: ``subject`` (the moving file's name), ``fixed``, ``moving``.

    Args:
        fixed: the image that the others are brought to.
        moving: one image, or several.
        written: folder that must have room for all that are brought there; None: not asked.

    Raises:
        StorageError: it hasn't.
        ConfigurationError: an image isn't given, or two moving ones have one name.
    """
    given = [moving] if isinstance(moving, str) else list(moving or [])
    if not fixed or not given:
        raise ConfigurationError("fixed and moving name no images; give --fixed and --moving")
    names = [Path(path).name.removesuffix(".gz").removesuffix(".nii") for path in given]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigurationError(f"moving: several images are called {', '.join(sorted(twice))}")
    if written is not None:
        check_space({Path(written): {"images": 4 * voxels_of(fixed)[0] * len(given)}})
    return [
        {"subject": name, "fixed": str(fixed), "moving": str(path)}
        for name, path in zip(names, given, strict=True)
    ]


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

    Both directions as ITK text and 4x4 text, ``moving_in_fixed.nii.gz`` and ``estimated.json``.

    Args:
        network: as published.
        folder: where to.
    """

    def __init__(self, network: torch.nn.Module, folder: str | Path) -> None:
        self.network = bare_affine_network(network)
        self.folder = Path(folder)

    def attach(self, engine: Engine) -> None:
        """Write after each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the pairs of the last iteration."""
        items: Any = engine.state.batch
        found: Any = engine.state.output
        for item, output in zip(items, found, strict=True):
            self._write(item, torch.as_tensor(output["pred"]).cpu().double())

    def _write(self, item: Mapping[str, Any], local: torch.Tensor) -> None:
        fixed, fixed_grid = read_image([item["fixed"]])
        moving, moving_grid = read_image([item["moving"]])
        matrix = world_matrix(self.network, local, fixed_grid, moving_grid)
        moved = resample_by_matrix(
            torch.from_numpy(moving.astype(np.float32))[None, None],
            moving_grid.affine,
            matrix[None],
            fixed_grid.affine,
            fixed_grid.shape,
        )[0].numpy()
        name = item["subject"]
        report = {
            "fixed": item["fixed"],
            "moving": item["moving"],
            "family": self.network.family,
            "passes": self.network.passes,
            "matrix_fixed_to_moving_ras_mm": matrix.tolist(),
            "correlation": {
                "before": _correlation(
                    resample_by_matrix(
                        torch.from_numpy(moving.astype(np.float32))[None, None],
                        moving_grid.affine,
                        torch.eye(4, dtype=torch.float64)[None],
                        fixed_grid.affine,
                        fixed_grid.shape,
                    )[0, 0].numpy(),
                    fixed,
                ),
                "after": _correlation(moved[0], fixed),
            },
        }
        try:
            with publish_folder(self.folder / name) as staging:
                write_affine_files(
                    staging, name, "moving", "fixed", matrix.numpy(), len(fixed_grid.shape)
                )
                write_map(staging / "moving_in_fixed.nii.gz", moved, fixed_grid)
                (staging / "estimated.json").write_text(json.dumps(report, indent=1) + "\n")
        except OSError as error:
            raise StorageError(f"{self.folder / name}: can't be written: {error}") from error
        logger.info(
            "%s: correlation %.3f before, %.3f after",
            name,
            report["correlation"]["before"],
            report["correlation"]["after"],
        )


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 where one of the two is constant."""
    if not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
