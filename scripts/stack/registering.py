"""The job that registers a stack: sections in, one frame out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from scripts.engines.run_state import RunState
from scripts.networks.precision import open_device
from scripts.runtime.lock import locked_folders
from scripts.runtime.storage import check_writable, publish_folder
from scripts.settings.stack import RegisterStackConfig
from scripts.stack.cropping import CropBox, crop_box
from scripts.stack.measuring import Pair, PairStore, measure_pairs, pairs_of
from scripts.stack.objective import Objective
from scripts.stack.output import OUTPUT_FOLDER, StackOutput, check_apart, check_room
from scripts.stack.pair import PairRegistration, PairResult, Schedule
from scripts.stack.placement import Wander, follow, interpolated, read_placement, wander_of
from scripts.stack.planar import PlanarModel
from scripts.stack.pyramid import SMALLEST_SIDE, usable_levels
from scripts.stack.quality_page import quality_page
from scripts.stack.search import MIRROR
from scripts.stack.solving import MeasuredPair, Solution, solve
from scripts.stack.source import Inspection, Stack, check_sections, inspect, open_stack
from scripts.stack.transforms import PlacedSection, StackTransforms
from scripts.stack.workers import Workers

__all__ = ["StackRegistration"]

logger = logging.getLogger(__name__)

_FAR = 0.02  # of the shorter side: a larger wander is reported


@dataclass(frozen=True)
class _Placed:
    """The transforms of all sections, and what they were derived from.

    Attributes:
        matrices: ``(sections, 3, 3)``, physical.
        statuses: one a section.
        residuals: one a section, pixels; nan where none was measured.
        wander: of the chain, before any placement.
        reference: index of the section whose frame is kept.
    """

    matrices: np.ndarray
    statuses: tuple[str, ...]
    residuals: np.ndarray
    wander: Wander
    reference: int


class StackRegistration:
    """Registers a stack and publishes ``<output_dir>/registered_stack/``, complete or not at all.

    Until it is published, each measured pair is kept in the hidden folder
    ``.registered_stack.unfinished`` beside it. An interrupted run resumes from it and gives the
    same bytes as an uninterrupted one.

    Args:
        settings: of the registration.
        output_dir: destination.

    Raises:
        CohortError: the stack can't be opened.
        ConfigurationError: a setting doesn't fit the stack, a library or the device is missing.
        StorageError: ``output_dir`` can't be written, or is the input.
    """

    def __init__(self, settings: RegisterStackConfig, output_dir: str | Path) -> None:
        open_device(settings.device, settings.key("device"))
        check_writable(output_dir)
        self.settings = settings
        self.output_dir = Path(output_dir)
        self.folder = self.output_dir / OUTPUT_FOLDER
        placement = settings.placement if settings.placement not in ("none", "scanner") else None
        check_apart(self.output_dir, settings.stack, placement)
        self.stack = open_stack(settings, settings.order)
        check_sections(settings, self.stack)
        self.model = PlanarModel(settings.transformation, settings.scaling, settings.shear)

    def run(self) -> Path:
        """Register and publish.

        Returns:
            the published folder.

        Raises:
            CohortError: a section can't be used, or nothing is left by the crop.
            CheckpointError: the unfinished run is of another stack or other settings.
            StorageError: something can't be written; the earlier output stays.
        """
        settings = self.settings
        with (
            locked_folders(self.output_dir),
            Workers(settings.n_workers, settings.scheduler) as workers,
        ):
            inspection = inspect(self.stack, workers, settings.key_path)
            state = RunState(
                self._state_folder, settings, inspection, settings.resume, noun="stack"
            )
            self._say_levels(inspection.stack)
            measured, pairs = self._measure(inspection, state, workers)
            placed = self._place(inspection, measured, pairs)
            transforms = self._transforms(inspection, placed, pairs)
            check_room(self.output_dir, inspection.stack, transforms, settings.formats)
            with publish_folder(self.folder) as staging:
                output = StackOutput(staging, inspection, transforms, settings)
                cuts = output.write(workers, self._attributes(transforms, pairs))
                page = quality_page(transforms, cuts, settings.as_dict())
                (staging / "quality.html").write_text(page, encoding="utf-8")
            shutil.rmtree(self._state_folder, ignore_errors=True)
        logger.info("%d sections registered, in %s", len(self.stack), self.folder)
        return self.folder

    @property
    def _state_folder(self) -> Path:
        return self.output_dir / f".{OUTPUT_FOLDER}.unfinished"

    def _say_levels(self, stack: Stack) -> None:
        reductions = self.settings.reductions()
        used = [reductions[level] for level in usable_levels(stack.shape, reductions)]
        left_out = [reduction for reduction in reductions if reduction not in used]
        if left_out:
            logger.warning(
                "sections of %dx%d pixels: reductions by %s leave less than %d pixels per side and "
                "are left out",
                *stack.shape, ", ".join(map(str, left_out)), SMALLEST_SIDE,
            )  # fmt: skip

    # -- pairs -----------------------------------------------------------------------------

    def _registration(self) -> PairRegistration:
        settings = self.settings
        return PairRegistration(
            self.model,
            Objective(settings.loss, **settings.loss_kwargs),
            Schedule(
                settings.reductions(), settings.epochs(), settings.rates(),
                settings.early_stopping, settings.stop_window, settings.stop_tol,
            ),
            settings.regularisation,
            settings.optimizer,
            settings.search_angle if settings.starts == "search" else None,
            settings.flips,
            settings.init_std,
            settings.seed,
            settings.progress_steps,
        )  # fmt: skip

    def _measure(
        self, inspection: Inspection, state: RunState, workers: Workers
    ) -> tuple[list[int], dict[Pair, PairResult]]:
        """Indices of the sections that were measured, and the pairs between them."""
        settings = self.settings
        sound = [
            index
            for index, facts in enumerate(inspection.facts)
            if not facts.constant and index not in settings.skip
        ]
        blank = [i for i, facts in enumerate(inspection.facts) if facts.constant]
        if blank:
            logger.warning(
                "constant or empty, held at the section before: %s",
                ", ".join(self.stack.describe(index) for index in blank[:10]),
            )
        pairs = pairs_of(sound, settings.neighbours, settings.max_pairs)
        store = PairStore(state.folder / "pairs", settings.key_path)
        results = measure_pairs(
            inspection, pairs, self._registration(), store, workers, settings.device
        )
        return sorted({index for pair in pairs for index in pair}), results

    # -- placing ---------------------------------------------------------------------------

    def _reference(self, candidates: Sequence[int]) -> int:
        """The wanted section, or the measured one next to it."""
        count = len(self.stack)
        wanted = {"first": 0, "middle": count // 2}.get(str(self.settings.reference))
        wanted = int(self.settings.reference) if wanted is None else wanted
        return min(candidates or [wanted], key=lambda index: (abs(index - wanted), index))

    def _place(
        self, inspection: Inspection, measured: list[int], pairs: Mapping[Pair, PairResult]
    ) -> _Placed:
        settings, plane, count = self.settings, inspection.stack.plane, len(self.stack)
        reference = self._reference(measured)
        matrices = np.tile(np.eye(3), (count, 1, 1))
        residuals = np.full(count, np.nan)
        damaged: list[int] = []
        if measured:
            solution, compact = self._solve(measured, pairs, reference, inspection)
            matrices[measured] = solution.matrices
            residuals[measured] = _by_section(solution, compact, len(measured))
            damaged = [measured[k] for k in solution.damaged]
            lost = [measured[k] for k in solution.lost]
            matrices[measured] = interpolated(
                matrices[measured], [measured.index(z) for z in lost], self.model, plane
            )
        skipped = [z for z in range(count) if z in settings.skip]
        held = [z for z in range(count) if z not in measured and z not in skipped]
        sound = [z for z in measured if z not in damaged] or [reference]
        _between(matrices, sound + damaged, skipped, self.model, plane)
        _held(matrices, held)
        wander = wander_of(matrices, self.model, plane, settings.placement_sigma)
        self._say_wander(wander, inspection.stack, damaged)
        matrices = self._followed(matrices, sound, inspection.stack)
        statuses = ["registered"] * count
        for status, those in (
            ("damaged", damaged), ("skipped", skipped), ("held", held), ("reference", [reference]),
        ):  # fmt: skip
            for z in those:
                statuses[z] = status
        return _Placed(matrices, tuple(statuses), residuals, wander, reference)

    def _solve(
        self,
        measured: list[int],
        pairs: Mapping[Pair, PairResult],
        reference: int,
        inspection: Inspection,
    ) -> tuple[Solution, list[MeasuredPair]]:
        place = {section: k for k, section in enumerate(measured)}
        compact = [
            MeasuredPair(
                place[first], place[second], result.matrix, result.mirrored, result.correlation,
                second - first,
            )
            for (first, second), result in pairs.items()
        ]  # fmt: skip
        solution = solve(
            len(measured), compact, place[reference], self.model, inspection.stack.plane
        )
        return solution, compact

    def _followed(self, matrices: np.ndarray, sound: list[int], stack: Stack) -> np.ndarray:
        """The transforms with the slow part of the requested placement."""
        settings, plane = self.settings, stack.plane
        if settings.placement == "none":
            return matrices
        if settings.placement == "scanner":
            known = {
                z: MIRROR if np.linalg.det(matrices[z, :2, :2]) < 0 else np.eye(3) for z in sound
            }
        else:
            known = read_placement(settings.placement, stack.names, plane, stack.unit, self.model)
            known = {z: matrix for z, matrix in known.items() if z in sound} or known
        return follow(matrices, known, self.model, plane, settings.placement_sigma)

    def _say_wander(self, wander: Wander, stack: Stack, damaged: Sequence[int]) -> None:
        for z in damaged:
            logger.warning(
                "%s: damaged: it contradicts its pairs or is unlike its neighbours",
                stack.describe(z),
            )
        logger.info(
            "slow part of the transforms: %.1f pixels r.m.s. from the unregistered sections, "
            "%.1f at most (section %d)", wander.rms, wander.largest, wander.section,
        )  # fmt: skip
        if self.settings.placement == "none" and wander.rms > _FAR * min(stack.shape):
            logger.warning(
                "neighbours agree best where curved anatomy is straightened: if yours is curved, "
                "set %s to a file of placements, or to scanner if the sections were laid with care",
                self.settings.key("placement"),
            )

    # -- what is published -----------------------------------------------------------------

    def _transforms(
        self, inspection: Inspection, placed: _Placed, pairs: Mapping[Pair, PairResult]
    ) -> StackTransforms:
        stack, settings = inspection.stack, self.settings
        plane = stack.plane
        composed = np.stack([plane.pixel_matrix(matrix) for matrix in placed.matrices])
        sections = []
        for z in range(len(stack)):
            result = pairs.get((z - 1, z))
            if z == 0:
                pairwise = np.eye(3)
            elif result is not None:
                pairwise = plane.pixel_matrix(result.matrix)
            else:
                change = placed.matrices[z] @ np.linalg.inv(placed.matrices[z - 1])
                near = np.abs(change - np.eye(3)).max() < 1e-12
                pairwise = plane.pixel_matrix(np.eye(3) if near else change)
            sections.append(
                PlacedSection(
                    z,
                    stack.names[z],
                    placed.statuses[z],
                    pairwise,
                    composed[z],
                    None if result is None else result.loss,
                    () if result is None else result.steps,
                    None if result is None else result.correlation_before,
                    None if result is None else result.correlation,
                    float(placed.residuals[z]),
                )
            )
        crop = CropBox(0, stack.shape[0], 0, stack.shape[1])
        if settings.crop_borders and (pairs or stack.padded):
            crop = crop_box(
                composed, stack.shape, [stack.known_box(one) for one in inspection.facts],
                settings.crop_safety_margin, [stack.describe(z) for z in range(len(stack))],
            )  # fmt: skip
        about = {
            "placement": settings.placement,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "stack": {"path": settings.stack, "array": settings.array,
                      "sha256": inspection.identity()},
            "settings": settings.as_dict(),
            "versions": {name: version(name) for name in ("numpy", "torch", "zarr", "dask")},
        }  # fmt: skip
        return StackTransforms(
            stack.spacing, stack.unit, stack.shape, crop, placed.reference,
            settings.transformation, stack.order, tuple(sections), asdict(placed.wander),
            settings.axis, about,
        )  # fmt: skip

    def _attributes(
        self, transforms: StackTransforms, pairs: Mapping[Pair, PairResult]
    ) -> dict[str, Any]:
        """Of the zarr's level 0; the same run writes the same bytes."""
        crop = transforms.crop
        return {
            "spacing": list(transforms.spacing),
            "unit": transforms.unit,
            "pairwise_transforms": [one.pairwise.tolist() for one in transforms.sections],
            "composed_transforms": [one.composed.tolist() for one in transforms.sections],
            "registration_log": [
                {
                    "pair_index": number,
                    "slice_indices": list(pair),
                    "final_loss": result.loss,
                    "num_steps_taken": list(result.steps),
                }
                for number, (pair, result) in enumerate(pairs.items())
            ],
            "crop_box": [crop.top, crop.bottom, crop.left, crop.right],
            "processing": {
                key: value
                for key, value in self.settings.as_dict().items()
                if key not in ("n_workers", "scheduler", "progress_steps", "resume", "device")
            },
        }


def _by_section(solution: Solution, pairs: Sequence[MeasuredPair], count: int) -> np.ndarray:
    """Disagreement of each section's pairs with the solution: weighted r.m.s., pixels."""
    sums, weights = np.zeros(count), np.zeros(count)
    for pair, weight, residual in zip(pairs, solution.weights, solution.residuals, strict=True):
        for section in (pair.first, pair.second):
            sums[section] += weight * residual**2
            weights[section] += weight
    return np.sqrt(sums / np.maximum(weights, 1e-12))


def _between(
    matrices: np.ndarray, known: Sequence[int], wanted: Sequence[int], model: PlanarModel,
    plane: Any,
) -> None:  # fmt: skip
    """Place sections between those that are known, in place."""
    those = sorted({*known, *wanted})
    matrices[those] = interpolated(matrices[those], [those.index(z) for z in wanted], model, plane)


def _held(matrices: np.ndarray, held: Sequence[int]) -> None:
    """Give sections the transform of the one before, in place; the first ones the next one's."""
    for z in sorted(held):
        if z > 0:
            matrices[z] = matrices[z - 1]
    others = [z for z in range(len(matrices)) if z not in held]
    for z in [z for z in held if others and z < others[0]]:
        matrices[z] = matrices[others[0]]
