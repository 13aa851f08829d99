"""The refinement job: registers images to one fixed image, one by one."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.errors import CohortError, ConfigurationError
from scripts.networks.precision import open_device
from scripts.registration.affine import AffineRefinement, AffineResult, start_in_family
from scripts.registration.contrast import ContrastMatch, matches_better
from scripts.registration.deformable import ElasticRefinement, ElasticResult
from scripts.registration.field_gain import NOTHING_IN_COMMON, FieldFinder
from scripts.registration.images import ReadImage, WorldImage, known_of_both
from scripts.registration.moved import moved_by
from scripts.registration.pair_output import (
    PairFields,
    check_pair_folders,
    require_no_fold,
    write_pair,
)
from scripts.registration.start_field import StartField, advice_if_folded, read_start_field
from scripts.runtime.lock import locked_folders
from scripts.runtime.ownership import NAME
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import check_writable, publish_folder
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.image_pairs import image_name
from scripts.settings.refine import NETWORK, RefineConfig
from scripts.spatial.overlap import grids_apart
from scripts.spatial.transform_files import read_start
from scripts.spatial.transforms import AffineTransform

__all__ = ["REFINED_FOLDER", "PairRefiner"]

logger = logging.getLogger(__name__)

REFINED_FOLDER = "refined"
_ADVICE = "raise refine#smoothness_weight, or publish it with refine#verify_jacobian false"


class PairRefiner:
    """Registers each moving image to the fixed one; writes ``<output_dir>/refined/<name>/``.

    Writes affine files in both directions (ITK text, 4x4 text), with a velocity also both fields on
    the fixed grid, ``moving_in_fixed.nii.gz``, ``fixed_in_moving.nii.gz`` and ``refined.json``.
    Each image is interpolated once. `antsApplyTransforms` warps moving to fixed with ``-t <field>
    -t <affine from-moving_to-fixed>``, and back with ``-t <affine from-fixed_to-moving> -t <inverse
    field>``.

    Args:
        settings: of the refinement.
        output_dir: destination.
        network: that ``refine#elastic_start`` names, see `scripts.elastic.refine_start`.

    Raises:
        CohortError: an image or a start can't be read.
        ConfigurationError: the machine doesn't have the device, or a start isn't in the transform
        model.
        StorageError: ``output_dir`` can't be written.
    """

    def __init__(
        self,
        settings: RefineConfig,
        output_dir: str | Path,
        network: FieldFinder | None = None,
    ) -> None:
        self.settings = settings
        self.output_dir = Path(output_dir)
        self.device = open_device(settings.device, settings.key("device"))
        check_writable(output_dir)
        self.moving = [Path(path) for path in settings.moving]
        self.masks = self._moving_masks()
        fixed_mask = settings.fixed_mask
        self.watched = WatchedFiles([settings.fixed, *([fixed_mask] if fixed_mask else ())])
        self.fixed = self._read(settings.fixed, fixed_mask)
        self.starts = [self._start(path) for path in self.moving]
        self.network = network
        if settings.starts_from_network and network is None:
            raise ConfigurationError(
                f"refine.elastic_start = {settings.elastic_start!r}: the configuration opens no "
                "network for the refiner; must have its `elastic_start` as in configs/refine.yaml"
            )
        check_pair_folders(
            self.output_dir / REFINED_FOLDER,
            [image_name(path) for path in self.moving],
            settings.fixed,
            settings.moving,
            None if settings.start is None else settings.start.path,
            None if settings.elastic_start == NETWORK else settings.elastic_start,
        )

    def _moving_masks(self) -> dict[Path, Path]:
        """The masks that exist, by moving image.

        Raises:
            CohortError: there is none.
        """
        pattern = self.settings.moving_mask
        if pattern is None:
            return {}
        named = {path: Path(pattern.replace("{subject}", image_name(path))) for path in self.moving}
        result = {path: mask for path, mask in named.items() if mask.is_file()}
        missing = [image_name(path) for path in named if path not in result]
        if not result:
            raise CohortError(
                f"refine.moving_mask = {pattern!r}: no moving image has such a file (there is no "
                f"{named[self.moving[0]]})"
            )
        if missing:
            logger.warning("refine.moving_mask: no file for %s", ", ".join(missing))
        return result

    def run(self) -> None:
        """Refine and publish each pair.

        Raises:
            CohortError: an image can't be read, or differs from the fixed one in its dimensions.
            FoldingError: a field folds, with verify_jacobian; that pair isn't published.
            StorageError: a file can't be written.
        """
        with (
            locked_folders(self.output_dir),
            progress_bar(len(self.moving), "refinement") as bar,
        ):
            for path, start in zip(self.moving, self.starts, strict=True):
                self._refine(path, start)
                bar.update()

    # -- one pair --------------------------------------------------------------------------

    def _refine(self, path: Path, start: torch.Tensor | None) -> None:
        settings, fixed = self.settings, self.fixed
        mask = self.masks.get(path)
        watched = WatchedFiles([path, *([] if mask is None else [mask])])
        moving = self._read(path, mask)
        if moving.spatial_dims != fixed.spatial_dims:
            raise CohortError(
                f"{path}: has {moving.spatial_dims} dimensions, and {settings.fixed} has "
                f"{fixed.spatial_dims}; both must have as many"
            )
        if len(moving.values) != len(fixed.values):
            raise CohortError(
                f"{path}: has {len(moving.values)} volumes, and {settings.fixed} has "
                f"{len(fixed.values)}; both must have as many"
            )
        self._check_together(path, moving, start)
        begun = time.process_time()
        affine: AffineResult | None = None
        elastic: ElasticResult | None = None
        matrix = start
        if settings.mode != "elastic":
            affine = AffineRefinement.of(settings)(fixed.image, moving.image, start)
            matrix = affine.matrix
        if settings.mode != "affine":
            family = settings.family if settings.mode == "joint" else None
            field = self._field(path, moving, matrix)
            shown = self._compared(moving, matrix, field)
            elastic = ElasticRefinement.of(settings, family)(fixed.image, shown, matrix, field)
            matrix = elastic.matrix
            if settings.verify_jacobian:
                named = settings.elastic_start
                advice = advice_if_folded(field, "refine#elastic_start", named, _ADVICE)
                require_no_fold(path, elastic.jacobian, advice)
        assert matrix is not None
        last = elastic or affine
        assert last is not None
        if last.loss > NOTHING_IN_COMMON:
            logger.warning(
                "%s: has nothing in common with %s after the registration (loss %.3f; 1 means no "
                "correlation at all): the result is probably wrong; check that both show the same, "
                "in the same units, and give refine#start or other refine#starts",
                path, settings.fixed, last.loss,
            )  # fmt: skip
        seconds = time.process_time() - begun
        self._write(path, watched, moving, matrix.cpu().numpy(), affine, elastic, seconds)

    def _field(
        self, path: Path, moving: ReadImage, matrix: torch.Tensor | None
    ) -> StartField | None:
        """What the velocity starts from: a file's field, or that of a network."""
        named = self.settings.elastic_start
        if named is None:
            return None
        if self.network is None:
            file = named.replace("{name}", image_name(path))
            return read_start_field(file, self.settings.elastic_start_kind, self.fixed)
        field, gain = self.network(self.fixed.image, moving.image, matrix)
        if gain.helps:
            logger.info(
                "%s: the network improves the local correlation from %.3f to %.3f",
                path, 1 - gain.start_loss, 1 - gain.loss,
            )  # fmt: skip
        else:
            logger.warning(
                "%s: the network would not improve the local correlation (%.3f), so the elastic "
                "part starts without it", path, 1 - gain.start_loss,
            )  # fmt: skip
        return field

    def _compared(
        self, moving: ReadImage, matrix: torch.Tensor | None, field: StartField | None
    ) -> WorldImage:
        """The moving image in the contrast that it is compared in."""
        contrast, fixed, image = self.settings.contrast, self.fixed.image, moving.image
        if contrast == "same":
            return image
        given = torch.eye(4, dtype=torch.float64) if matrix is None else matrix
        move = None if field is None else field.forward
        moved, seen = moved_by(given.to(self.device)[None], fixed, image, move)
        weight = known_of_both(seen, fixed.inside)
        values = []
        for channel in range(moved.shape[1]):
            pair = moved[:, channel : channel + 1], fixed.values[:, channel : channel + 1]
            matched = image.values[:, channel : channel + 1]
            if contrast == "other" or matches_better(*pair, weight):
                matched = ContrastMatch.between(*pair, weight)(matched)
            values.append(matched)
        return WorldImage(torch.cat(values, 1), image.affine, image.inside)

    def _check_together(self, path: Path, moving: ReadImage, start: torch.Tensor | None) -> None:
        """Say that images share no space; refuse them where nothing brings them together.

        Raises:
            CohortError: they start apart and would stay so.
        """
        settings = self.settings
        given = None if start is None else AffineTransform(start.cpu().numpy())
        if not grids_apart(self.fixed.grid, moving.grid, given):
            return
        problem = f"{path}: shares no space with {settings.fixed}"
        if given is not None and settings.start is not None:
            raise CohortError(
                f"{problem} after the start {settings.start.path}; does it lead the other way? See "
                "refine#start"
            )
        if settings.mode == "elastic" or set(settings.starts) <= {"identity"}:
            raise CohortError(
                f"{problem}: their grids are apart in the world; give refine#start, or refine#mode "
                "joint with centre among refine#starts"
            )
        logger.warning(
            "%s: their grids are apart in the world; only their contents (refine#starts %s) bring "
            "them together", problem, ", ".join(settings.starts),
        )  # fmt: skip

    def _write(
        self,
        path: Path,
        watched: WatchedFiles,
        moving: ReadImage,
        matrix: np.ndarray,
        affine: AffineResult | None,
        elastic: ElasticResult | None,
        seconds: float,
    ) -> None:
        name = image_name(path)
        fields = None if elastic is None else PairFields(elastic.displacement, elastic.inverse)
        with publish_folder(self.output_dir / REFINED_FOLDER / name) as staging:
            write_pair(staging, name, self.fixed, moving, matrix, fields)
            description = self._description(path, watched, matrix, affine, elastic, seconds)
            about = json.dumps(description, indent=1)
            (staging / "refined.json").write_text(about + "\n", encoding="utf-8")
            watched.check()
            self.watched.check()

    def _description(
        self,
        path: Path,
        watched: WatchedFiles,
        matrix: np.ndarray,
        affine: AffineResult | None,
        elastic: ElasticResult | None,
        seconds: float,
    ) -> dict[str, Any]:
        steps: dict[str, Any] = {}
        for kind, result in (("affine", affine), ("elastic", elastic)):
            if result is not None:
                steps[kind] = {
                    "start_loss": result.start_loss, "loss": result.loss, "levels": result.levels,
                }  # fmt: skip
        if elastic is not None:
            steps["elastic"]["jacobian"] = elastic.jacobian
        return {
            "name": NAME,
            "kind": "refinement",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fixed": {
                "path": str(self.settings.fixed),
                "sha256": self.watched.sha256(self.settings.fixed),
            },
            "moving": {"path": str(path), "sha256": watched.sha256(path)},
            "masks": {
                name: {"path": str(mask), "sha256": files.sha256(mask)}
                for name, mask, files in (
                    ("fixed", self.settings.fixed_mask, self.watched),
                    ("moving", self.masks.get(path), watched),
                )
                if mask is not None
            },
            "matrix": matrix.tolist(),
            "steps": steps,
            "cpu_seconds": round(seconds, 2),
            "settings": self.settings.as_dict(),
            "versions": {one: version(one) for one in ("nibabel", "numpy", "torch")},
        }

    # -- reading ---------------------------------------------------------------------------

    def _read(self, path: str | Path, mask: str | Path | None = None) -> ReadImage:
        settings = self.settings
        return ReadImage(path, settings.log_offset, settings.background, self.device, mask)

    def _start(self, moving: Path) -> torch.Tensor | None:
        """The start's matrix, read before any work begins."""
        if self.settings.start is None:
            return None
        path = self.settings.start.path.replace("{name}", image_name(moving))
        affine = read_start(
            self.settings.start, moving, self.settings.fixed, name=image_name(moving)
        )
        matrix = torch.from_numpy(affine.matrix)
        needs_family = self.settings.mode != "elastic"
        if needs_family and not start_in_family(matrix, self.settings.family, self.fixed.image):
            raise ConfigurationError(
                f"refine.start = {path!r}: is not a {self.settings.family} transform on the fixed "
                "image's grid; must come with a refine#family that contains it"
            )
        return matrix
