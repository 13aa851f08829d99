"""The field inside a lesion, with and without a mask, against the field without the lesion.

    python -m bundle.bench.lesion --work output/lesion

Makes the demo cohort (64x72x64 voxels of 2.5 mm) and cuts a ball out of the densities of its
held-out subjects, where they have most. Each is registered three times: whole, with the hole, and
with the hole and a mask of it. Without ``--ckpt_dir`` the subjects are registered to the demo
cohort's template by the network that comes with the bundle; with it, to the model there.
``--refine`` adds instance optimisation. The table has the distance between two displacements inside
the hole: its largest value and its root mean square, in voxels. For the whole subject it is 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from scripts.api import register
from scripts.atlas.template_network import DEMO_TEMPLATE
from scripts.phantom import write_demo_cohort
from scripts.phantom.demo import HELD_OUT, RUN, TRUTH
from scripts.spatial.fields import field_names, read_field


def cut(folder: Path, truth: Path, name: str, radius: float) -> np.ndarray:
    """Write a subject's density whole and with a hole, and the hole's mask; return the mask."""
    run = truth / HELD_OUT / name / RUN
    image: Any = nib.load(run / "fdt_paths.nii.gz")
    density = image.get_fdata() / float((run / "waytotal").read_text())
    # Only where the ball lies inside the anatomy's box.
    blurred = gaussian_filter(density, radius / 2 / float(image.header.get_zooms()[0]))
    centre = np.array(np.unravel_index(blurred.argmax(), density.shape))
    away = np.moveaxis(np.indices(density.shape), 0, -1) - centre
    ball = np.linalg.norm(away * image.header.get_zooms()[:3], axis=-1) < radius
    for kind, values in (
        ("whole", density), ("hole", np.where(ball, 0, density)),
        ("masked", np.where(ball, 0, density)),
    ):  # fmt: skip
        target = folder / f"{name}_{kind}.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), target)
    mask = nib.Nifti1Image(ball.astype(np.uint8), image.affine)
    nib.save(mask, folder / f"{name}_masked_lesion.nii.gz")
    return ball


def compare(registered: Path, name: str, kind: str, ball: np.ndarray) -> dict[str, float]:
    """Distance of a subject's displacement from that of the whole subject, inside the hole."""
    fields = [
        read_field(registered / f"{name}_{one}" / field_names(f"{name}_{one}")[1])
        for one in ("whole", kind)
    ]
    apart = np.linalg.norm(fields[1] - fields[0], axis=0)
    far = np.linalg.norm(fields[0], axis=0)[ball]
    return {
        "largest": float(apart[ball].max()),
        "rms": float(np.sqrt((apart[ball] ** 2).mean())),
        "largest outside": float(apart[~ball].max()),
        "displacement rms": float(np.sqrt((far**2).mean())),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, cut, register, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ckpt_dir", type=Path)
    parser.add_argument("--radius", type=float, default=14.0, help="mm (%(default)s)")
    parser.add_argument("--refine", type=int, default=0, help="iterations (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cohort = options.work / "demo"
    if not cohort.exists():
        write_demo_cohort(cohort)
    truth = cohort / TRUTH
    names = sorted(path.name for path in (truth / HELD_OUT).iterdir())
    maps = options.work / f"maps_{options.radius:g}"
    maps.mkdir(parents=True, exist_ok=True)
    balls = {name: cut(maps, truth, name, options.radius) for name in names}
    settings: dict[str, Any] = {
        "device": "cpu",
        "verify_jacobian": False,
        "cohort": {
            "mask": str((maps / "{subject}_lesion.nii.gz").absolute()),
            "normalisation": "none",
            "layout": "flat",
        },
        "refine": {"new_subject_iterations": options.refine},
    }
    if options.ckpt_dir is not None:
        del settings["cohort"]["normalisation"]
    paths = [maps / f"{name}_{kind}.nii.gz" for name in names for kind in
             ("whole", "hole", "masked")]  # fmt: skip
    template = DEMO_TEMPLATE if options.ckpt_dir is None else None
    registered = register(
        paths, options.ckpt_dir, options.work / "output", settings=settings, template=template
    )
    for kind in ("hole", "masked", "whole"):
        rows = [compare(registered, name, kind, balls[name]) for name in names]
        for name, row in zip(names, rows, strict=True):
            about = json.loads((registered / f"{name}_{kind}/registration.json").read_text())
            print(f"{name} {kind:7}", *(f"{k} {v:.2f}" for k, v in row.items()),
                  f"poor regions {len(about['poor_fit'])}", sep="  ")  # fmt: skip
        mean = {key: float(np.max([row[key] for row in rows])) for key in rows[0]}
        print(f"largest {kind:7}", *(f"{k} {v:.2f}" for k, v in mean.items()), sep="  ")


if __name__ == "__main__":
    main()
