"""Images of random shapes, as an acquisition might show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scripts.shipped.noise import Lengths, smooth, smooth_noise

__all__ = ["RandomShapes"]


class RandomShapes:
    """A label map of random shapes, each with its brightness, mostly inside a rough ellipsoid.

    Args:
        rng: where it comes from.
        shape: of the grid.
        size: of a voxel along each axis, relative to their geometric mean.
    """

    def __init__(self, rng: np.random.Generator, shape: Sequence[int], size: Lengths) -> None:
        count = int(np.exp(rng.uniform(np.log(8), np.log(40))))
        sigma = rng.uniform(2.5, 8)
        widths = [sigma / s for s in size]
        best = torch.full(tuple(shape), -torch.inf)
        labels = torch.zeros(tuple(shape), dtype=torch.int64)
        # One at a time: the largest so far is all that is kept.
        for label in range(count):
            noise = smooth_noise(rng, 1, shape, widths)[0]
            labels[noise > best] = label
            torch.maximum(best, noise, out=best)
        contrast = rng.uniform(0.2, 1.0)
        values = 1 - contrast * rng.random(count).astype(np.float32)
        if rng.random() < 0.35:  # as a part cut out of a larger image
            self.clean = torch.from_numpy(values)[labels]
            return
        rough = 0.12 * smooth_noise(rng, 1, shape, [7 / s for s in size])[0]
        axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
        reach = rng.uniform(0.75, 1.25, 3)
        radius = sum((axis / r) ** 2 for axis, r in zip(axes, reach, strict=True))
        inside = torch.as_tensor(radius).sqrt() + rough < 0.95
        self.clean = torch.from_numpy(values)[labels] * inside

    def acquired(
        self, clean: torch.Tensor, rng: np.random.Generator, size: Lengths
    ) -> torch.Tensor:
        """An acquisition of a (moved) clean image: with its gain, bias, blur and noise.

        Args:
            clean: ``(X, Y, Z)``.
            rng: where they come from.
            size: see the class.

        Returns:
            ``(X, Y, Z)``, not negative, most of it below 1.
        """
        shape = clean.shape
        blur = rng.uniform(0.3, 0.9)
        image = smooth(clean[None], [blur / s for s in size])[0]
        bias = 0.25 * rng.random() * smooth_noise(rng, 1, shape, [20 / s for s in size])[0]
        image = image * bias.exp()
        noise = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
        dirty = rng.random() < 0.5  # whether the background is as noisy as the tissue
        noise = noise * (0.04 * rng.random())
        image = image + (noise if dirty else noise * (image > 0.02))
        image = image.clamp_min(0)
        return image / torch.quantile(image.flatten()[::7], 0.999).clamp_min(1e-3)
