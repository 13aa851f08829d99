"""Affine alignment of a native cohort to its mean space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from scripts.metrics import pearson
from scripts.registration.affine import AffineRefinement, start_in_family
from scripts.registration.align_state import Found, KeptTransforms
from scripts.registration.group_mean import group_mean, log_of
from scripts.registration.images import WorldImage, spacing_of
from scripts.spatial.affine_parameters import Frame
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.transforms import AffineTransform

__all__ = [
    "Alignment",
    "CommonGrid",
    "MeanAlignment",
    "common_grid",
    "mean_image",
    "transform_of",
]

_PRESENT = 0.02  # of an image's maximum: the common grid must contain voxels above it


@dataclass(frozen=True, eq=False)
class CommonGrid:
    """The grid of the aligned images.

    Attributes:
        affine: ``(4, 4)``, voxel to RAS mm.
        shape: voxels along each axis.
    """

    affine: np.ndarray
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Result of an alignment.

    Attributes:
        matrices: ``(N, 4, 4)`` float64, from common point to subject's point, RAS mm.
        template: the mean of the aligned images, ``(C, *grid.shape)``.
        grid: of the template.
        correlation: of each subject's aligned image with the template.
        residual: largest entry of the mean of the transforms' logarithms: 0 if the cohort's mean
            transform is the identity.
        history: mean loss of each round.
    """

    matrices: np.ndarray
    template: np.ndarray
    grid: CommonGrid
    correlation: list[float]
    residual: float
    history: list[float]


class MeanAlignment:
    """Aligns a cohort to its mean image, computes the mean again and centres it, in rounds.

    First all subjects are registered rigidly, from several starts at the coarsest level, to the
    subject of median size. That subject has no further influence: from then on the target is the
    mean of all. After each round the transforms M_i become ``M_i m^-1`` with m their group mean
    (`group_mean`), so the mean transform is the identity and the space doesn't depend on any single
    subject.

    Args:
        refinement: registration of one subject to the template.
        rounds: number of times the mean is computed again.
        spacing: of the common grid, mm; None: the cohort's median.
        margin: voxels around the support of the images.
        kept: results of an interrupted run, and storage for this one.
    """

    def __init__(
        self,
        refinement: AffineRefinement,
        rounds: int = 3,
        spacing: float | None = None,
        margin: int = 5,
        kept: KeptTransforms | None = None,
    ) -> None:
        self.refinement = refinement
        self.kept = KeptTransforms() if kept is None else kept
        self.rounds = rounds
        self.spacing = spacing
        self.margin = margin

    def __call__(self, images: Sequence[WorldImage], bar: tqdm | None = None) -> Alignment:
        """Align.

        Args:
            images: one per subject, each on its grid.
            bar: progress bar; advances by one per subject and round, `steps` in all.

        Raises:
            ValueError: the transforms are too far apart to have a mean.
        """
        matrices = self._first(images, bar)
        history = []
        for number in range(1, self.rounds + 1):
            matrices = centred(matrices)
            grid = common_grid(images, matrices, self.spacing, self.margin)
            template = WorldImage(mean_image(images, matrices, grid), grid.affine)
            refinements, losses = [], []
            for index, (image, matrix) in enumerate(zip(images, matrices, strict=True)):
                refine = partial(self._refined, template, image, matrix)
                refined, loss = self.kept(number, index, refine)
                refinements.append(refined)
                losses.append(loss)
                if bar is not None:
                    bar.update()
            matrices = np.stack(refinements)
            history.append(float(np.mean(losses)))
        matrices = centred(matrices)
        grid = common_grid(images, matrices, self.spacing, self.margin)
        mean = mean_image(images, matrices, grid)
        return Alignment(
            matrices, mean[0].cpu().numpy(), grid,
            [correlation(image, matrix, mean, grid) for image, matrix in zip(
                images, matrices, strict=True)],
            mean_log(matrices), history,
        )  # fmt: skip

    def steps(self, count: int) -> int:
        """Number of steps of the progress bar for ``count`` subjects."""
        return count * (self.rounds + 1)

    def _first(self, images: Sequence[WorldImage], bar: tqdm | None) -> np.ndarray:
        """Register all subjects to the one of median size, rigidly and coarsely."""
        sizes = [float(image.values.double().abs().sum() * np.prod(image.spacing)) for image in
                 images]  # fmt: skip
        middle = int(np.argsort(sizes)[len(sizes) // 2])
        coarse = AffineRefinement(
            "rigid", self.refinement.starts, self.refinement.levels[:1], self.refinement.iterations,
            self.refinement.window, self.refinement.tolerance, "correlation",
        )  # fmt: skip
        matrices = []
        for index, image in enumerate(images):
            matrix = np.eye(4)
            if index != middle:
                matrix, _ = self.kept(
                    0, index, partial(transform_of, coarse, images[middle], image)
                )
            matrices.append(matrix)
            if bar is not None:
                bar.update()
        return np.stack(matrices)

    def _refined(self, template: WorldImage, image: WorldImage, matrix: np.ndarray) -> Found:
        """Continue from the subject's transform; the other starts were tried in the first round."""
        local = AffineRefinement(
            self.refinement.family, (), self.refinement.levels, self.refinement.iterations,
            self.refinement.window, self.refinement.tolerance, self.refinement.similarity,
            self.refinement.correlation_window,
        )  # fmt: skip
        start = torch.from_numpy(matrix)
        if not start_in_family(start, local.family, template):
            # Centring by scales along other axes than the grid's leaves the transform model.
            start = nearest_rigid(start)
        return transform_of(local, template, image, start)


def transform_of(
    refine: AffineRefinement,
    fixed: WorldImage,
    moving: WorldImage,
    start: torch.Tensor | None = None,
) -> Found:
    """Register a pair; return its matrix and its loss."""
    result = refine(fixed, moving, start)
    # In C order, as when read from a file: sums depend on the order in their last bit.
    return np.ascontiguousarray(result.matrix.cpu().numpy()), result.loss


def nearest_rigid(matrix: torch.Tensor) -> torch.Tensor:
    """The rotation nearest to a matrix's linear part (Kabsch), with its translation, ``(4, 4)``."""
    left, _, right = torch.linalg.svd(matrix[:3, :3])
    turn = left @ torch.diag(torch.tensor([1.0, 1.0, 1.0]).to(matrix)) @ right
    if float(torch.linalg.det(turn)) < 0:
        turn = left @ torch.diag(torch.tensor([1.0, 1.0, -1.0]).to(matrix)) @ right
    result = matrix.clone()
    result[:3, :3] = turn
    return result


def centred(matrices: np.ndarray) -> np.ndarray:
    """``M_i m^-1`` with m the group mean: the mean of the result is the identity."""
    return matrices @ np.linalg.inv(group_mean(matrices))


def mean_log(matrices: np.ndarray) -> float:
    """Largest entry of the mean logarithm: 0 if the mean transform is the identity."""
    return float(np.abs(np.mean([log_of(matrix) for matrix in matrices], axis=0)).max())


def common_grid(
    images: Sequence[WorldImage], matrices: np.ndarray, spacing: float | None, margin: int
) -> CommonGrid:
    """A grid of cubic voxels along the cohort's mean axes that contains the support of all images.

    Args:
        images: one per subject.
        matrices: ``(N, 4, 4)``, from common point to subject's point.
        spacing: mm; None: the median over the images of the geometric mean of their voxel sizes.
        margin: number of voxels around it.
    """
    d = len(images[0].shape)
    if spacing is None:
        sides = [np.exp(np.log(spacing_of(image.affine, d)).mean()) for image in images]
        spacing = float(np.median(sides))
    linear = _mean_axes(images)
    corners = []
    for image, matrix in zip(images, matrices, strict=True):
        strength = image.values[0].abs().amax(0)
        held = (strength > _PRESENT * strength.amax()).nonzero().cpu().numpy()
        low, high = held.min(0) - 0.5, held.max(0) + 0.5
        ends = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(d, -1)
        world = image.affine[:3, :d] @ ends + image.affine[:3, 3:]
        corners.append(linear.T @ (~AffineTransform(matrix)).apply(world))
    box = np.concatenate(corners, axis=1)
    low, high = box.min(1), box.max(1)
    shape = np.ceil((high - low)[:d] / spacing).astype(int) + 2 * margin
    middle = (low + high) / 2
    affine = np.eye(4)
    affine[:3, :3] = linear * spacing
    origin = middle.copy()
    origin[:d] -= (shape - 1) / 2 * spacing
    affine[:3, 3] = linear @ origin
    return CommonGrid(affine, tuple(int(n) for n in shape))


def _mean_axes(images: Sequence[WorldImage]) -> np.ndarray:
    """Orthonormal axes nearest to those of all images, with signs and order of the first's."""
    first = Frame.of_grid(images[0].affine, images[0].shape).axes.numpy()
    if len(images[0].shape) == 2:
        return first
    total = np.zeros((3, 3))
    for image in images:
        axes = Frame.of_grid(image.affine, image.shape).axes.numpy()
        agreement = first.T @ axes
        for column in range(3):
            match = int(np.abs(agreement[column]).argmax())
            total[:, column] += np.sign(agreement[column, match]) * axes[:, match]
    left, _, right = np.linalg.svd(total)
    return left @ right


def mean_image(
    images: Sequence[WorldImage], matrices: np.ndarray, grid: CommonGrid
) -> torch.Tensor:
    """Mean of the images on the common grid, ``(1, C, *shape)``.

    An image doesn't count where it is unknown.
    """
    total: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    for image, matrix in zip(images, matrices, strict=True):
        moved = _on_grid(image.values, image, matrix, grid)
        inside = torch.ones_like(moved[:, :1])
        if image.inside is not None:
            inside = _on_grid(image.inside, image, matrix, grid)
        total = moved if total is None else total + moved
        weight = inside if weight is None else weight + inside
    assert total is not None and weight is not None
    return total / weight.clamp_min(1.0)


def correlation(
    image: WorldImage, matrix: np.ndarray, mean: torch.Tensor, grid: CommonGrid
) -> float:
    """Pearson's correlation of an aligned image with the mean, where either is above 0."""
    moved = _on_grid(image.values, image, matrix, grid)[0]
    other = mean[0]
    either = (moved != 0) | (other > _PRESENT * other.amax())
    return pearson(moved[either].cpu(), other[either].cpu()) or 0.0


def _on_grid(
    values: torch.Tensor, image: WorldImage, matrix: np.ndarray, grid: CommonGrid
) -> torch.Tensor:
    return resample_by_matrix(
        values, image.affine, torch.from_numpy(matrix).to(values.device), grid.affine, grid.shape
    )
