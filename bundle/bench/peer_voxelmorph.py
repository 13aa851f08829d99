"""A template by voxelmorph 0.3.4 for `bundle.bench.peers`; runs in the peers' environment.

    python bundle/bench/peer_voxelmorph.py <exchange folder> <steps>

The package no longer has a template class. This is its `VxmPairwise` with an additional template,
trained like its former template scripts: the template warped to the subject, NCC of window 9, the
field's gradient, and the square of the running mean displacement, which keeps the template central.
"""

from __future__ import annotations

import sys
from pathlib import Path

import neurite
import nibabel as nib
import numpy as np
import torch
import voxelmorph

GRADIENT_WEIGHT = 0.5
MEAN_WEIGHT = 1.0
LEARNING_RATE = 1e-3
LEVELS = 5


def padded(image: np.ndarray) -> torch.Tensor:
    """Pad to (1, 1, X, Y, Z) with sizes that the network's pooling divides."""
    lengths = [(-n) % 2**LEVELS for n in image.shape]
    return torch.as_tensor(np.pad(image, [(0, n) for n in lengths]), dtype=torch.float32)[
        None, None
    ]


def gradient_penalty(field: torch.Tensor) -> torch.Tensor:
    """Mean square of the forward differences."""
    return torch.stack([field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean()


def main() -> None:
    """Train, then write `template_log.npy` and the fields."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    names = (folder / "subjects.txt").read_text().split()
    arrays = [
        np.asarray(
            nib.load(folder / "log" / f"{name}.nii.gz").dataobj,  # type: ignore[attr-defined]
            dtype=np.float32,
        )
        for name in names
    ]
    shape = arrays[0].shape
    images = [padded(array) for array in arrays]
    torch.manual_seed(0)
    template = torch.nn.Parameter(torch.stack(images).mean(0))
    network = voxelmorph.nn.models.VxmPairwise(3, 1, 1, integration_steps=7)
    similarity = neurite.nn.modules.NCC(window_size=9)
    optimizer = torch.optim.Adam([*network.parameters(), template], lr=LEARNING_RATE)
    mean = torch.zeros(1, 3, *images[0].shape[2:])
    order = np.random.default_rng(0)
    for step in range(steps):
        image = images[order.integers(len(images))]
        field, warped = network(template, image, return_warped_source=True)
        mean = 0.99 * mean.detach() + 0.01 * field
        loss = (
            -similarity(warped, image).mean()
            + GRADIENT_WEIGHT * gradient_penalty(field)
            + MEAN_WEIGHT * 100 * mean.square().mean()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(step, float(loss), flush=True)
    box = tuple(slice(n) for n in shape)
    np.save(folder / "template_log.npy", template.detach()[0, 0].numpy()[box])
    integrate = network.velocity_field_integrator
    with torch.no_grad():
        for name, image in zip(names, images, strict=True):
            velocity = network(template, image, return_field_type="velocity")
            # Template to subject resamples the template on the subject's grid: `to_subject`.
            for kind, sign in (("to_subject", 1), ("to_template", -1)):
                field = integrate(sign * velocity)[0][(slice(None), *box)]
                np.save(folder / kind / f"{name}.npy", field.numpy())


if __name__ == "__main__":
    main()
