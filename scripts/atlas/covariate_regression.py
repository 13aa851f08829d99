"""Images as a linear function of covariates, voxel by voxel, in one pass over the subjects."""

from __future__ import annotations

import torch

from scripts.losses.box import box_sum, window_size
from scripts.runtime.processes import add_up

__all__ = ["CovariateRegression", "shrunken"]


class CovariateRegression:
    """Weighted least squares of y_i(x) on the columns (1, c_i), subject after subject.

    Minimises ``sum_i J_i(x) |y_i(x) - b_0(x) - sum_j c_ij b_j(x)|^2`` at every point. Memory is
    that of the moments, whatever the number of subjects.

    Args:
        columns: p, number of covariate columns.
        channels: of the images.
        points: number of points.
        weighted: whether each point has its own weights.
        device: of the moments.
    """

    def __init__(
        self,
        columns: int,
        channels: int,
        points: int,
        weighted: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        size = columns + 1
        self.count = 0

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.inner = zeros(points if weighted else 1, size, size)
        self.cross = zeros(points, size, channels)
        self.square = zeros(points)

    def add(
        self, image: torch.Tensor, covariates: torch.Tensor, weight: torch.Tensor | None = None
    ) -> None:
        """Add one subject.

        Args:
            image: ``(C, points)``.
            covariates: coded ``(p,)``.
            weight: ``(points,)``, >= 0; None: 1.
        """
        y = image.T.double()
        row = torch.cat([covariates.new_ones(1), covariates]).to(y)
        w = y.new_ones(1) if weight is None else weight.double()
        self.count += 1
        self.inner += w[:, None, None] * torch.outer(row, row)
        self.cross += (w[:, None] * row)[:, :, None] * y[:, None, :]
        self.square += w * y.square().sum(1)

    def join(self) -> None:
        """Add up the moments of all processes of a run, each with its own subjects."""
        count = torch.tensor([self.count])
        add_up(self.inner, self.cross, self.square, count)
        self.count = int(count)

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The slopes and their uncertainty.

        Returns:
            b_1 ... b_p ``(p, C, points)``, and the variance of each from the residuals, summed over
            channels, ``(p, points)``; both 0 at points without data.
        """
        size = self.inner.shape[-1]
        eye = torch.eye(size, dtype=self.inner.dtype, device=self.inner.device)
        # Points with hardly any weight would be singular; adding 1e-6 of a subject prevents this.
        inverse = torch.linalg.inv(self.inner + 1e-6 * eye)
        coefficients = inverse @ self.cross
        residual = self.square - (coefficients * self.cross).sum((1, 2))
        spread = residual.clamp_min(0) / max(1, self.count - size)
        variance = spread[:, None] * inverse.diagonal(dim1=1, dim2=2)[:, 1:]
        return coefficients[:, 1:].permute(1, 2, 0), variance.T

    def intercept(self, slopes: torch.Tensor) -> torch.Tensor:
        """b_0 ``(C, points)`` for given slopes (shrunken ones, for example)."""
        owed = torch.einsum("nj,jcn->nc", self.inner[:, 0, 1:].expand(len(self.square), -1), slopes)
        weight = self.inner[:, 0, 0].clamp_min(1e-6)
        return ((self.cross[:, 0] - owed) / weight[:, None]).T


def shrunken(slopes: torch.Tensor, variance: torch.Tensor, window: int) -> torch.Tensor:
    """Shrink slopes to the part that exceeds their uncertainty.

    With few subjects a slope is mostly chance where the covariate has no effect. Around each voxel,
    with sums over a window, the factor is the positive part of

        1 - sum var / sum |b|^2

    (James and Stein, 1961; as a filter: Wiener's). It is 1 where the slope is certain and 0 where
    its size is explained by chance.

    Args:
        slopes: ``(p, C, *shape)``.
        variance: ``(p, *shape)``, summed over channels.
        window: side in voxels, odd; only the part of each window inside the image counts.
    """
    length = slopes.square().sum(1, keepdim=True)
    size = window_size(length, window)
    observed, chance = (box_sum(x, window) / size for x in (length, variance[:, None]))
    # Where the whole window is 0 the result is 0, whatever the factor.
    return slopes * (1 - chance / observed.clamp_min(1e-30)).clamp(0, 1)
