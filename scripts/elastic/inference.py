"""The job that registers pairs of images across contrasts with an elastic network."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import Transform

from scripts.elastic.registrar import PairRegistrar
from scripts.elastic.shipped import ShippedElasticNetwork
from scripts.elastic.trained import load_trained_network
from scripts.engines.opening import opened
from scripts.errors import CohortError
from scripts.networks.unwrapping import unwrapped
from scripts.pairwise.pair_writer import PairWriter
from scripts.registration.images import ReadImage, WorldImage
from scripts.registration.moved import moved_by
from scripts.registration.network_field import pair_network
from scripts.registration.pair_output import PairFields, require_no_fold, write_pair
from scripts.registration.start_field import StartField, advice_if_folded, read_start_field
from scripts.runtime.ownership import NAME
from scripts.runtime.storage import publish_folder
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.image_pairs import RegisterElasticConfig
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.overlap import grids_apart
from scripts.spatial.transform_files import read_start
from scripts.spatial.transforms import AffineTransform

__all__ = ["PairInOneWorld", "RegisteredPairWriter", "VelocityInferer", "open_elastic_network"]

logger = logging.getLogger(__name__)

_ADVICE = (
    "improve the initial alignment with register_elastic#start, or publish it with "
    "register_elastic#verify_jacobian false"
)


def open_elastic_network(
    path: str | Path, settings: RegisterElasticConfig, written: Sequence[str | Path] = ()
) -> PairRegistrar:
    """The network of the settings: a trained one's file, or the one that ships; see `opened`.

    Args:
        path: of the trained network.
        settings: of the job.
        written: folders that the run will write to.

    Raises:
        CheckpointError: see `load_elastic_network`.
    """

    trained = settings.network == "trained" or (
        settings.network == "auto" and os.path.lexists(path)
    )

    def load(file: str | Path) -> PairRegistrar:
        if trained:
            return load_trained_network(file, settings.contrast)
        logger.info("by the pretrained registration network")
        return ShippedElasticNetwork(pair_network(), settings.contrast)

    return opened(load, path, settings.device, settings.key("device"), written)


class PairInOneWorld(Transform):
    """Reads a pair of files and its affine start; adds both images on the network's grid as
    ``image``.

    Args:
        network: as published.
        settings: of the job.
    """

    def __init__(self, network: PairRegistrar, settings: RegisterElasticConfig) -> None:
        self.network = network
        self.settings = settings

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add ``image (2, *shape)``, fixed and moving, and ``matrix (4, 4)``, the start.

        Raises:
            CohortError: an image or the start can't be read, an image is constant, has several
                channels, or has other dimensions than the network.
        """
        fixed, moving = (self._read(data[key]) for key in ("fixed", "moving"))
        matrix = np.eye(4)
        if self.settings.start is not None:
            matrix = read_start(
                self.settings.start, data["moving"], data["fixed"], name=data["subject"]
            ).matrix
        given = None if self.settings.start is None else AffineTransform(matrix)
        if grids_apart(fixed.grid, moving.grid, given):
            start = (
                ""
                if self.settings.start is None
                else f" after the start {self.settings.start.path}"
            )
            raise CohortError(
                f"{data['moving']}: shares no space with {data['fixed']}{start}: their grids lie "
                "apart in the world; bring them together by register_elastic#start, such as the "
                "affine that estimate-affine or refine finds"
            )
        shown, onto = moving.image, matrix
        field = _start_field(self.settings, data["subject"], fixed)
        if field is not None:
            # Warped by the start: the network's field is applied before it.
            values, _ = moved_by(torch.from_numpy(matrix)[None], fixed.image, shown, field.forward)
            shown, onto = WorldImage(values, fixed.image.affine), np.eye(4)
        pair = self.network.shown(fixed.image, shown, self.settings.log_share, onto)
        return {**data, "image": pair, "matrix": matrix}

    def _read(self, path: str) -> ReadImage:
        image = ReadImage(path)
        dims = self.network.spatial_dims
        if image.spatial_dims != dims:
            raise CohortError(f"{path}: has {image.spatial_dims} dimensions, the network {dims}")
        if len(image.values) != 1:
            raise CohortError(f"{path}: has {len(image.values)} channels; must have one")
        return image


def _start_field(settings: RegisterElasticConfig, name: str, fixed: ReadImage) -> StartField | None:
    """The field that follows the network's, if the settings name one."""
    if settings.elastic_start is None:
        return None
    path = settings.elastic_start.replace("{name}", name)
    return read_start_field(path, settings.elastic_start_kind, fixed)


def _registrar(network: torch.nn.Module) -> PairRegistrar:
    # mypy takes no abstract class for a type, because one might construct it.
    return unwrapped(network, PairRegistrar)  # type: ignore[type-abstract]


class VelocityInferer(Inferer):
    """An inferer that returns an elastic network's velocities; both directions follow from them."""

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *_: Any, **__: Any
    ) -> torch.Tensor:
        """Velocities ``(B, d, *reduced)`` of pairs ``(B, 2, *shape)``."""
        assert isinstance(network, torch.nn.Module)
        return _registrar(network).velocity(inputs)


class RegisteredPairWriter(PairWriter):
    """Publishes ``<folder>/<moving image's name>/``, completely or not at all.

    Writes both fields on the fixed grid, the affine start, each image on the other's grid, and
    ``registered.json``, named and composed as by a refinement.

    Args:
        network: as published.
        settings: of the job.
        folder: destination.
    """

    def __init__(
        self, network: torch.nn.Module, settings: RegisterElasticConfig, folder: str | Path
    ) -> None:
        self.network = _registrar(network)
        self.settings = settings
        self.folder = Path(folder)

    @torch.no_grad()
    def write(self, item: Mapping[str, Any], velocity: torch.Tensor) -> None:
        """Publish one pair, whose velocity ``(d, *reduced)`` the network found.

        Raises:
            FoldingError: a field folds, with verify_jacobian; that pair isn't published.
            StorageError: a file can't be written.
        """
        watched = WatchedFiles([item["fixed"], item["moving"]])
        fixed, moving = (ReadImage(item[key]) for key in ("fixed", "moving"))
        added = self.network.fields_of(velocity[None].cpu(), fixed.image)
        forward, inverse = added.forward, added.inverse
        field = _start_field(self.settings, item["subject"], fixed)
        if field is not None:
            forward, inverse = field.after(forward), field.inverse_before(inverse)
        jacobian = {
            "displacement": jacobian_summary(forward[0]),
            "inverse": jacobian_summary(inverse[0]),
        }
        if self.settings.verify_jacobian:
            named = self.settings.elastic_start
            advice = advice_if_folded(field, "register_elastic#elastic_start", named, _ADVICE)
            require_no_fold(item["moving"], jacobian, advice)
        name, matrix = item["subject"], np.asarray(item["matrix"], dtype=np.float64)
        axes = torch.from_numpy(fixed.grid.affine[:3, : fixed.spatial_dims])
        moves = torch.einsum("ij,bj...->bi...", axes, forward.double())
        report = {
            "name": NAME,
            "kind": "elastic registration",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fixed": {"path": item["fixed"], "sha256": watched.sha256(item["fixed"])},
            "moving": {"path": item["moving"], "sha256": watched.sha256(item["moving"])},
            "start": matrix.tolist(),
            "displacement_rms_mm": float(moves.square().sum(1).mean().sqrt()),
            "jacobian": jacobian,
            "settings": self.settings.as_dict(),
            "versions": {one: version(one) for one in ("monai", "nibabel", "numpy", "torch")},
        }
        with publish_folder(self.folder / name) as staging:
            write_pair(staging, name, fixed, moving, matrix, PairFields(forward, inverse))
            (staging / "registered.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            watched.check()
        smallest = min(one["corner_min"] for one in jacobian.values())
        logger.info(
            "%s: moved by %.2f mm r.m.s., smallest Jacobian determinant %.2f",
            name, report["displacement_rms_mm"], smallest,
        )  # fmt: skip
