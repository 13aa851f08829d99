"""The alignment job: from a native cohort to aligned maps and their transforms."""

from __future__ import annotations

import json
import logging
import shutil
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from scripts.cohort import waytotal_file
from scripts.engines.run_state import RunState, check_earlier_run
from scripts.errors import CohortError, some_names
from scripts.networks.precision import open_device
from scripts.registration.affine import AffineRefinement
from scripts.registration.align_state import AlignedFiles, KeptTransforms
from scripts.registration.images import ReadImage
from scripts.registration.mean_alignment import (
    Alignment,
    CommonGrid,
    MeanAlignment,
    correlation,
    transform_of,
)
from scripts.registration.native_subjects import NativeFile, NativeSubject, find_native_subjects
from scripts.runtime.lock import locked_folders
from scripts.runtime.ownership import NAME
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import check_replaceable, check_writable, publish_folder
from scripts.runtime.watched_files import WatchedFiles, changed
from scripts.settings.align import AlignConfig
from scripts.spatial.grid import Grid
from scripts.spatial.overlap import grids_apart
from scripts.spatial.resampling import labels_by_matrix, resample_by_matrix
from scripts.spatial.transform_files import transform_names, write_affine_files
from scripts.spatial.volumes import (
    read_labels,
    read_volume,
    write_labels,
    write_map,
    written_name,
)

__all__ = ["CohortAligner"]

logger = logging.getLogger(__name__)

TEMPLATE = "template.nii.gz"
_ODD = 5.0  # a correlation this many median absolute deviations below the median is reported


class CohortAligner:
    """Aligns a native cohort to one affine space and publishes it as a dataset folder.

    ``<output_dir>/<output_subdir>/`` contains ``template.nii.gz`` (the mean of the aligned images),
    ``alignment.json``, and for each subject its images under their names, interpolated once,
    ``template_in_native.nii.gz`` on the subject's grid, and ``xfm/`` with the transform in both
    directions, as ITK text and as 4x4 text.

    Until then the transforms are kept in the hidden folder ``.<output_subdir>.unfinished`` beside
    it. A stopped run continues from there, with bit-identical results.

    Args:
        dataset_dir: the native cohort.
        settings: of the alignment.
        output_dir: destination.

    Raises:
        CohortError: too few usable subjects, or a target that can't be read.
        ConfigurationError: the machine doesn't have the device.
        StorageError: ``output_dir`` can't be written, or another run is using it.
    """

    def __init__(
        self, dataset_dir: str | Path, settings: AlignConfig, output_dir: str | Path
    ) -> None:
        device = open_device(settings.device, settings.key("device"))
        check_writable(output_dir)
        self.settings = settings
        self.output_dir = Path(output_dir)
        self.folder = self.output_dir / settings.output_subdir
        self.target = None
        if settings.target is not None:
            self.target = ReadImage(
                settings.target, settings.log_offset, settings.background, device
            )
        target = [] if settings.target is None else [settings.target]
        check_replaceable(self.folder, inputs=[dataset_dir, *target])
        check_earlier_run(self._state_folder)
        self.subjects, self.rejected = find_native_subjects(dataset_dir, settings, device)
        files = [file.path for subject in self.subjects for file in subject.files]
        check_replaceable(self.folder, inputs=files)
        self._check_together()

    def run(self) -> Path:
        """Align and publish.

        Returns:
            The published folder.

        Raises:
            CohortError: the cohort's transforms have no mean.
            CheckpointError: there is an unfinished run of other images or settings.
            StorageError: a file can't be written; earlier results stay.
        """
        with locked_folders(self.output_dir):
            watched = self._watched()
            kept = self._open_state()
            alignment = self._to_target(kept) if self.target else self._to_mean(kept)
            self._warn_of_odd_ones(alignment)
            with publish_folder(self.folder) as staging:
                self._write(staging, alignment, watched)
                watched.check()
            shutil.rmtree(self._state_folder, ignore_errors=True)
        logger.info("%d subjects aligned, in %s", len(self.subjects), self.folder)
        return self.folder

    def _check_together(self) -> None:
        """Say which subjects share no space with the target.

        Raises:
            CohortError: none of the initialisations brings them together.
        """
        if self.target is None:
            return
        grid = self.target.grid
        apart = [one.name for one in self.subjects if grids_apart(grid, one.read.grid)]
        if not apart:
            return
        problem = (
            f"subjects {some_names(apart)} share no space with {self.target.path}: their grids lie"
        )
        starts = self.settings.starts
        if set(starts) <= {"identity"}:
            raise CohortError(f"{problem} apart in the world; name centre among align#starts")
        logger.warning(
            "%s apart in the world; only their contents (align#starts %s) bring them together",
            problem, ", ".join(starts),
        )  # fmt: skip

    # -- an unfinished run -----------------------------------------------------------------

    @property
    def _state_folder(self) -> Path:
        return self.output_dir / f".{self.settings.output_subdir}.unfinished"

    def _open_state(self) -> KeptTransforms:
        """Reopen an interrupted run of the same images and settings; else make an empty folder."""
        files = AlignedFiles(
            [(subject.name, subject.read.path) for subject in self.subjects],
            None if self.target is None else self.target.path,
        )
        state = RunState(self._state_folder, self.settings, files, self.settings.resume)
        return KeptTransforms(state.folder)

    # -- estimation ------------------------------------------------------------------------

    def _to_mean(self, kept: KeptTransforms) -> Alignment:
        settings = self.settings
        aligner = MeanAlignment(
            AffineRefinement.of(settings), settings.rounds, settings.spacing, settings.margin, kept
        )
        images = [subject.read.image for subject in self.subjects]
        with progress_bar(aligner.steps(len(images)), "alignment") as bar:
            try:
                return aligner(images, bar)
            except ValueError as error:
                # A user would have to change settings, which an unfinished run doesn't allow.
                shutil.rmtree(self._state_folder, ignore_errors=True)
                raise CohortError(
                    f"the cohort can't be centred: {error}; perhaps a subject was aligned the "
                    "wrong way round, which align#starts '[identity, centre]' prevents"
                ) from error

    def _to_target(self, kept: KeptTransforms) -> Alignment:
        assert self.target is not None
        target, refine = self.target.image, AffineRefinement.of(self.settings)
        if target.values.shape[1] != self.subjects[0].read.image.values.shape[1]:
            raise CohortError(f"{self.target.path}: has another number of channels")
        if self.target.spatial_dims != self.subjects[0].read.spatial_dims:
            raise CohortError(f"{self.target.path}: must be a plane, like the subjects")
        grid = CommonGrid(target.affine, target.shape)
        matrices, losses, agreement = [], [], []
        with progress_bar(len(self.subjects), "alignment") as bar:
            for index, subject in enumerate(self.subjects):
                image = subject.read.image
                matrix, loss = kept(0, index, partial(transform_of, refine, target, image))
                matrices.append(matrix)
                losses.append(loss)
                agreement.append(correlation(image, matrix, target.values, grid))
                bar.update()
        return Alignment(
            np.stack(matrices), target.values[0].cpu().numpy(), grid, agreement,
            float("nan"), [float(np.mean(losses))],
        )  # fmt: skip

    def _warn_of_odd_ones(self, alignment: Alignment) -> None:
        values = np.array(alignment.correlation)
        spread = float(np.median(np.abs(values - np.median(values))))
        low = float(np.median(values)) - _ODD * max(spread, 0.01)
        for subject, value in zip(self.subjects, values, strict=True):
            if value < low:
                logger.warning(
                    "subject %s: correlation with the template is %.2f, the cohort's median %.2f; "
                    "it may be misaligned, please check (align#starts with search tries more)",
                    subject.name, value, float(np.median(values)),
                )  # fmt: skip

    # -- writing ---------------------------------------------------------------------------

    def _watched(self) -> WatchedFiles:
        """The images, as they were read to be compared.

        Raises:
            CohortError: one was changed since.
        """
        read = [subject.read for subject in self.subjects]
        read += [] if self.target is None else [self.target]
        others = [file.path for subject in self.subjects for file in subject.files]
        watched = WatchedFiles([*(one.path for one in read), *others])
        for one in read:
            if watched.sha256(one.path) != one.sha256:
                raise changed(one.path)
        return watched

    def _write(self, staging: Path, alignment: Alignment, watched: WatchedFiles) -> None:
        common = self._common_grid(alignment.grid)
        template = alignment.template
        if self.target is not None:
            values, target_grid = self.target.values, self.target.grid
            write_map(staging / TEMPLATE, values, target_grid)
        else:
            values = self._as_in_files(template)
            write_map(staging / TEMPLATE, self._solid(values), common)
        with progress_bar(len(self.subjects), "writing") as bar:
            for subject, matrix in zip(self.subjects, alignment.matrices, strict=True):
                self._write_subject(staging / subject.name, subject, matrix, alignment.grid, common)
                self._write_template(staging / subject.name, subject, matrix, alignment)
                bar.update()
        about = json.dumps(self._description(alignment, watched), indent=1) + "\n"
        (staging / "alignment.json").write_text(about, encoding="utf-8")

    def _write_subject(
        self, folder: Path, subject: NativeSubject, matrix: np.ndarray, grid: CommonGrid,
        common: Grid,
    ) -> None:  # fmt: skip
        for file in subject.files:
            path = (folder / file.name).with_name(written_name(file.path))
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.labels:
                labels, file_grid = read_labels(file.path)
                flat = labels[..., 0] if len(grid.shape) == 2 else labels
                propagated = labels_by_matrix(
                    flat, file_grid.affine, matrix, grid.affine, grid.shape
                )
                write_labels(path, self._solid(propagated), common)
            else:
                volume, file_grid = read_volume(file.path)
                write_map(path, self._solid(_resampled(volume, file_grid, matrix, grid)), common)
            _copy_waytotal(file, path)
        (folder / "xfm").mkdir()
        write_affine_files(
            folder / "xfm", subject.name, "native", "aligned", matrix, len(grid.shape)
        )

    def _write_template(
        self, folder: Path, subject: NativeSubject, matrix: np.ndarray, alignment: Alignment
    ) -> None:
        native = subject.read.grid
        source = torch.as_tensor(self._as_in_files(alignment.template), dtype=torch.float32)[None]
        back = torch.from_numpy(np.linalg.inv(matrix))
        shape = native.shape[: subject.read.spatial_dims]
        warped = resample_by_matrix(source, alignment.grid.affine, back, native.affine, shape)
        write_map(folder / "template_in_native.nii.gz", self._solid(warped[0].numpy()), native)

    def _as_in_files(self, template: np.ndarray) -> np.ndarray:
        offset = self.settings.log_offset
        return template if offset is None else np.expm1(template) * offset

    @staticmethod
    def _solid(values: np.ndarray) -> np.ndarray:
        """``(C, X, Y, Z)``; planes have Z = 1."""
        return values[..., None] if values.ndim == 3 else values

    @staticmethod
    def _common_grid(grid: CommonGrid) -> Grid:
        header = nib.Nifti1Header()
        header["sform_code"], header["qform_code"] = 2, 2  # aligned
        header.set_xyzt_units(xyz="mm")
        return Grid((*grid.shape, 1)[:3], grid.affine, header)

    def _description(self, alignment: Alignment, watched: WatchedFiles) -> dict[str, Any]:
        """``alignment.json``: the origin of these images."""
        return {
            "name": NAME,
            "kind": "alignment",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": self.settings.as_dict(),
            "target": None if self.target is None else
            {"path": str(self.target.path), "sha256": watched.sha256(self.target.path)},
            "grid": {"shape": list(alignment.grid.shape), "affine": alignment.grid.affine.tolist()},
            "mean_log_residual": None if self.target else alignment.residual,
            "loss_by_round": alignment.history,
            "subjects": [
                {
                    "subject": subject.name,
                    "correlation": round(value, 4),
                    "matrix": matrix.tolist(),
                    "transforms": list(transform_names(subject.name, "native", "aligned"))
                    + list(transform_names(subject.name, "aligned", "native")),
                    "images": [
                        {"path": str(file.path), "name": file.name, "labels": file.labels,
                         "sha256": watched.sha256(file.path)}
                        for file in subject.files
                    ],
                }
                for subject, matrix, value in zip(
                    self.subjects, alignment.matrices, alignment.correlation, strict=True
                )
            ],
            "rejected": [
                {"subject": one.subject, "path": one.path, "reason": one.reason}
                for one in self.rejected
            ],
            "versions": {name: version(name) for name in ("nibabel", "numpy", "scipy", "torch")},
        }  # fmt: skip


def _resampled(
    volume: np.ndarray, source_grid: Grid, matrix: np.ndarray, grid: CommonGrid
) -> np.ndarray:
    """``(C, X, Y, Z)`` on its grid to ``(C, *grid.shape)``, interpolated once."""
    flat = volume[..., 0] if len(grid.shape) == 2 else volume
    source = torch.as_tensor(np.ascontiguousarray(flat), dtype=torch.float32)[None]
    moved = resample_by_matrix(
        source, source_grid.affine, torch.from_numpy(matrix), grid.affine, grid.shape
    )
    return moved[0].numpy()


def _copy_waytotal(file: NativeFile, path: Path) -> None:
    """Copy a map's waytotal with it, so that training can divide by it."""
    waytotal = waytotal_file(file.path)
    if not file.labels and waytotal.is_file():
        shutil.copyfile(waytotal, path.with_name(waytotal.name))
