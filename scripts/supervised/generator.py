"""Random displacements whose inverse is known, and pairs made of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_gradient_magnitude

from scripts.networks.integration import VelocityIntegration
from scripts.settings.make_pairs import MakePairsConfig, MakePairsElasticConfig
from scripts.spatial.jacobian import jacobian_determinant, smallest_corner_determinant
from scripts.supervised.layers import (
    CentredAffine,
    compose_displacements,
    interior,
    warp_image,
)

__all__ = ["Displacements", "MadePair", "PairGenerator", "folded_voxels", "inverse_error"]

logger = logging.getLogger(__name__)

_STEPS = 7  # squarings: .01 px off at 20 px
_MARGIN = 2  # pixels at the border where a field is extrapolated and not judged
_EDGE_WIDTH = 1.5  # pixels, of the gradient that edges are found by


@dataclass(frozen=True, eq=False)
class Displacements:
    """A displacement and its inverse, each ``(1, d, *shape)`` float32 pixels."""

    forward: torch.Tensor
    inverse: torch.Tensor


@dataclass(frozen=True, eq=False)
class MadePair:
    """A pair that was made.

    Attributes:
        moving: ``(*shape)`` uint8.
        field: ``(d, *shape)`` float32, ``reference(x) = moving(x + field(x))``.
        inverse: back.
        changed: False where no displacement passed the checks and the pair was left unchanged.
    """

    moving: np.ndarray
    field: np.ndarray
    inverse: np.ndarray
    changed: bool


def inverse_error(pair: Displacements) -> float:
    """Largest error of the inverse over the points of the interior, pixels."""
    worst = 0.0
    for first, second in ((pair.forward, pair.inverse), (pair.inverse, pair.forward)):
        left = compose_displacements(second, first).square().sum(1).sqrt()
        inside = left[interior(first, _MARGIN)]
        worst = max(worst, float(inside.max()) if inside.numel() else 0.0)
    return worst


def folded_voxels(displacement: torch.Tensor) -> int:
    """Voxels or cells of ``(d, *shape)`` with det J <= 0, by the stricter of both schemes."""
    central = int((jacobian_determinant(displacement) <= 0).sum())
    return max(central, int((smallest_corner_determinant(displacement) <= 0).sum()))


class PairGenerator:
    """Makes pairs: a random affine after the exponential of a smooth random velocity.

    The map from the reference to the moving image is ``x -> A(x + e(x))``, e the flow of a velocity
    v. Its inverse is known: ``y -> A^-1 y + f(A^-1 y)`` with f the flow of -v, and A is evaluated
    exactly. A velocity that is anchored fades to 0 at the border, so that f is 0 beyond it.

    A pair depends on the seed and its number alone.

    Args:
        settings: of the job.
        shape: of the images.
    """

    def __init__(self, settings: MakePairsConfig, shape: Sequence[int]) -> None:
        self.settings = settings
        self.shape = tuple(shape)
        self.integration = VelocityIntegration(_STEPS)

    def __call__(
        self,
        number: int,
        moving: np.ndarray,
        field: np.ndarray | None = None,
        inverse: np.ndarray | None = None,
    ) -> MadePair:
        """The pair of a number.

        Args:
            number: of the pair.
            moving: the image to be deformed, ``(*shape)`` uint8.
            field: displacement from its reference; None: it is aligned.
            inverse: the field back.
        """
        for trial in range(self.settings.trials):
            rng = np.random.default_rng([self.settings.seed, number, trial])
            from_registered = field is None or rng.random() < self.settings.start_registered
            image = torch.from_numpy(moving.astype(np.float32))[None, None]
            drawn = self.draw(rng, moving)
            if field is None or inverse is None:
                whole = drawn
            elif from_registered:
                image = warp_image(image, torch.from_numpy(field)[None])
                whole = drawn
            else:
                before, back = (torch.from_numpy(one)[None] for one in (field, inverse))
                whole = Displacements(
                    compose_displacements(drawn.forward, before),
                    compose_displacements(back, drawn.inverse),
                )
            if self._sound(whole):
                # The new moving image, sampled through the inverse: M'(y) = image(y + w(y)).
                made = warp_image(image, drawn.inverse)[0, 0]
                values = made.round().clamp(0, 255).to(torch.uint8).numpy()
                return MadePair(
                    values, whole.forward[0].numpy(), whole.inverse[0].numpy(), changed=True
                )
        if field is None or inverse is None:
            field = inverse = np.zeros((len(self.shape), *self.shape), np.float32)
        return MadePair(moving, field, inverse, changed=False)

    def _sound(self, pair: Displacements) -> bool:
        """Whether a displacement has an accurate inverse, is not too large and doesn't fold."""
        sizes = torch.tensor(self.shape, dtype=torch.float32).view(1, -1, *[1] * len(self.shape))
        for one in (pair.forward, pair.inverse):
            if not bool(torch.isfinite(one).all()) or bool((one.abs() > sizes).any()):
                return False
            if folded_voxels(one[0]) > self.settings.max_folds:
                return False
        return inverse_error(pair) < self.settings.tolerance

    def draw(self, rng: np.random.Generator, image: np.ndarray) -> Displacements:
        """A random displacement.

        Args:
            rng: of the pair.
            image: whose edges `edge_stretching` uses.
        """
        affine = self._affine(rng)
        back = affine.inverse()
        if self.settings.elastic.kind == "none":
            return Displacements(affine.displacement(self.shape), back.displacement(self.shape))
        velocity = self._velocity(rng, image)
        flow, reverse = self.integration.both(velocity, self.shape)
        return Displacements(affine.after(flow), back.before(reverse))

    def _affine(self, rng: np.random.Generator) -> CentredAffine:
        """Rotation, scales and shears about the centre, then a translation."""
        ranges, d = self.settings.affine, len(self.shape)
        share = rng.uniform(-1, 1, size=(4, 3))
        moved = rng.random() < ranges.probability
        matrix = np.eye(d)
        for number, (i, j) in enumerate([(0, 1)] if d == 2 else [(0, 1), (0, 2), (1, 2)]):
            angle = math.radians(ranges.rotation) * share[0, number]
            turn = np.eye(d)
            turn[i, i] = turn[j, j] = math.cos(angle)
            turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
            shear = np.eye(d)
            shear[i, j] = ranges.shear * share[1, number]
            matrix = matrix @ shear
        matrix = matrix @ np.diag(1 + ranges.scale * share[2, :d])
        linear = torch.from_numpy(matrix - np.eye(d)).float() * float(moved)
        shift = torch.from_numpy(ranges.translation * share[3, :d]).float() * float(moved)
        return CentredAffine(linear[None], shift[None])

    def _velocity(self, rng: np.random.Generator, image: np.ndarray) -> torch.Tensor:
        """A smooth velocity ``(1, d, *shape)`` of random size."""
        settings = self.settings.elastic
        if settings.kind == "noise":
            field = self._noise(rng, settings.width)
        else:
            field = self._bumps(rng, image, settings)
        field = field * self._fade(settings.anchor)
        rms = math.sqrt(float((field.astype(np.float64) ** 2).sum(0).mean()))
        size = settings.rms * rng.uniform()
        return torch.from_numpy((field * (size / max(rms, 1e-12))).astype(np.float32))[None]

    def _noise(self, rng: np.random.Generator, width: float) -> np.ndarray:
        """White noise smoothed by a Gaussian: bumps on a lattice of half its width."""
        step = max(1.0, width / 2)
        lines = [np.arange(-3 * width, n - 1 + 3 * width + step, step) for n in self.shape]
        field = rng.standard_normal((len(self.shape), *map(len, lines)), dtype=np.float32)
        for axis, (n, line) in enumerate(zip(self.shape, lines, strict=True)):
            bumps = np.exp(-(((np.arange(n)[:, None] - line) / width) ** 2) / 2)
            turned = np.tensordot(bumps.astype(np.float32), field, axes=(1, axis + 1))
            field = np.moveaxis(turned, 0, axis + 1)
        return field

    def _bumps(
        self, rng: np.random.Generator, image: np.ndarray, settings: MakePairsElasticConfig
    ) -> np.ndarray:
        """Gaussian bumps of random direction at points of the image or of its edges."""
        d = len(self.shape)
        if settings.kind == "edge_stretching":
            edges = gaussian_gradient_magnitude(image.astype(np.float32), _EDGE_WIDTH)
            places = np.argwhere(edges > np.quantile(edges, 0.9))
            if not len(places):
                places = np.argwhere(np.ones(self.shape, dtype=bool))
            centres = places[rng.integers(len(places), size=settings.points)].astype(float)
        else:
            centres = rng.uniform(0, 1, (settings.points, d)) * (np.array(self.shape) - 1)
        directions = rng.standard_normal((settings.points, d))
        field = np.zeros((d, *self.shape), np.float32)
        for centre, direction in zip(centres, directions, strict=True):
            bump = np.ones(self.shape, np.float32)
            for axis, n in enumerate(self.shape):
                line = np.exp(-(((np.arange(n) - centre[axis]) / settings.width) ** 2) / 2)
                bump = bump * line.astype(np.float32).reshape([-1, *[1] * (d - 1 - axis)])
            field += direction.astype(np.float32).reshape([d, *[1] * d]) * bump
        return field

    def _fade(self, anchor: float) -> np.ndarray:
        """1 inside, falling to 0 at the border over a share of the image."""
        fade = np.ones(self.shape, np.float32)
        for axis, n in enumerate(self.shape):
            if anchor > 0:
                far = np.minimum(np.arange(n), np.arange(n)[::-1]) / (anchor * (n - 1))
                line = np.sin(np.pi / 2 * np.clip(far, 0, 1)) ** 2
                fade = fade * line.astype(np.float32).reshape([-1, *[1] * (fade.ndim - 1 - axis)])
        return fade
