"""Compares the barycentre atlas with the plain average of the same cohort, and draws both.

    python -m bundle average && python -m bundle barycentre
    python -m bundle.bench.barycentre output docs/pictures/average_and_barycentre.png

On the demo cohort the known central anatomy is used as well. If geomloss and pykeops are installed
(``pip install geomloss==0.3.1 pykeops==2.3``), the solver is compared with its `ImagesBarycenter`
on an image, because that doesn't accept volumes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bundle.bench.atlas_quality import subject_density
from bundle.bench.picture import draw_rows
from scripts.baselines.wasserstein import wasserstein_barycentre
from scripts.metrics import entropy_focus_criterion, gradient_ratio, log_density_correlation


def measure(output: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], float]:
    """Figures of both atlases in an output folder, what to draw, and the density offset."""
    folders = {"average": output / "atlas", "barycentre": output / "barycentre"}
    about = json.loads((folders["barycentre"] / "atlas.json").read_text())
    offset = float(about["presence_value"])
    shape = tuple(about["cohort"]["grid"]["shape"])
    described = about["cohort"]["subjects"]
    subjects = [subject_density(one, shape)[0] for one in described]
    logs = [np.log1p(one / offset) for one in subjects]
    means = {
        name: np.asarray(nib.load(folder / "atlas_mean.nii.gz").dataobj)  # type: ignore[attr-defined]
        for name, folder in folders.items()
    }
    dataset = Path(described[0]["maps"][0]["path"])
    central = [folder / ".truth" / "central_1.nii.gz" for folder in dataset.parents]
    truth = next((path for path in central if path.is_file()), None)
    figures: dict[str, Any] = {"subjects": len(subjects), "transport": about["transport"]}
    for name, mean in means.items():
        in_support = [log_density_correlation(mean, one, offset, one > 0) for one in subjects]
        figures[name] = {
            "own_support_correlation": float(np.mean(in_support)),
            "efc": entropy_focus_criterion(mean),
            "gradient_ratio": gradient_ratio(np.log1p(mean / offset), logs),
            "mass": float(mean.sum()),
            "volume_present": int((mean > offset).sum()),
        }
        if truth is not None:
            known = np.asarray(nib.load(truth).dataobj)  # type: ignore[attr-defined]
            union = (known > offset) | (mean > offset)
            figures[name]["correlation_with_truth"] = log_density_correlation(
                mean, known, offset, union
            )
    figures["volume_present_in_a_subject"] = float(np.mean([(m > offset).sum() for m in subjects]))
    return figures, {f"one subject ({described[0]['subject']})": subjects[0], **means}, offset


def against_geomloss() -> dict[str, float]:
    """Share of mass by which two solvers differ from the closed form, and their times."""
    from geomloss import ImagesBarycenter

    n = 64
    at = torch.arange(n, dtype=torch.float64)

    def blob(x: float, y: float) -> torch.Tensor:
        result = torch.exp(-((at[:, None] - x) ** 2 + (at - y) ** 2) / (2 * 3.0**2))
        return result / result.sum()

    maps, expected = [blob(20, 25), blob(40, 31), blob(30, 40)], blob(30, 32)
    start = time.process_time()
    ours, _ = wasserstein_barycentre(maps, (1, 1), 1.0)
    middle = time.process_time()
    stacked = torch.stack(maps).float()[None]
    theirs = ImagesBarycenter(stacked, torch.full((1, 3), 1 / 3), blur=1 / n)[0, 0]
    end = time.process_time()

    def error(estimate: torch.Tensor) -> float:
        return float((estimate / estimate.sum() - expected).abs().sum() / 2)

    return {
        "ours_error": error(ours),
        "geomloss_error": error(theirs),
        "ours_cpu_s": middle - start,
        "geomloss_cpu_s": end - middle,
    }


def main() -> None:
    """Print the figures as JSON and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="contains the folders atlas and barycentre")
    parser.add_argument("target", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    figures, rows, offset = measure(arguments.output)
    brightest = max(float(volume.max()) for volume in rows.values())
    draw_rows(rows, offset, arguments.target, brightest, dpi=80)
    try:
        figures["image"] = against_geomloss()
    except ImportError:  # raised by geomloss if KeOps is missing
        figures["image"] = "geomloss or pykeops is not installed"
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
