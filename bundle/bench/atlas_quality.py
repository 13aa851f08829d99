"""Measures a published atlas on its own cohort: sharpness, agreement, guards.

    python -m bundle.bench.atlas_quality output/learned_atlas

Everything is read from files (the maps, the fields, the subjects' own maps), so that what is
measured is what was published. On the demo cohort the truth is known and is used as well.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from scripts.atlas import field_names, jacobian_determinant, read_field
from scripts.cohort import read_density
from scripts.metrics import (
    centrality,
    core_share,
    entropy_focus_criterion,
    gradient_ratio,
    inflation,
    inverse_consistency,
    log_density_correlation,
    pairwise_correlation,
)
from scripts.metrics.truth import load_truth, score_atlas
from scripts.networks import warp


def subject_density(described: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """A subject's normalised density ``(C, *shape)``, from the files that ``atlas.json`` names."""
    channels = 1 + max(one["channel"] for one in described["maps"])
    density = np.zeros((channels, *shape))
    for one in described["maps"]:
        density[one["channel"]] += read_density(one["path"])[0] / one["divisor"]
    return density


def warped(maps: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Maps ``(C, *shape)`` resampled at ``x + u(x)``."""
    image = torch.as_tensor(maps, dtype=torch.float32)[None]
    return warp(image, torch.as_tensor(displacement, dtype=torch.float32)[None])[0].numpy()


def measure(atlas: Path) -> dict[str, Any]:
    """All figures of one atlas."""
    about = json.loads((atlas / "atlas.json").read_text())
    shape = tuple(about["cohort"]["grid"]["shape"])
    offset = about["log_offset"]
    template = np.asarray(nib.load(atlas / "atlas_mean.nii.gz").dataobj)  # type: ignore[attr-defined]

    native, moved, own, there, back = [], [], [], [], []
    for described in about["cohort"]["subjects"]:
        density = subject_density(described, shape)
        names = field_names(described["subject"])
        to_template, to_subject = (
            read_field(atlas / "fields" / name, spatial_dims=len(shape)) for name in names
        )
        there.append(to_template.astype(np.float32))
        back.append(to_subject.astype(np.float32))
        native.append(density[0].astype(np.float32))
        moved.append(warped(density, to_template)[0])
        carried = warped(template[None], to_subject)[0]
        own.append(log_density_correlation(carried, density[0], offset, density[0] > 0))

    average = np.mean(native, axis=0)
    tract = np.mean(moved, axis=0) > offset / 2
    dets = np.stack([jacobian_determinant(torch.as_tensor(u)).numpy() for u in there])
    jacobians = json.loads((atlas / "jacobian.json").read_text())
    fields = [field for subject in jacobians.values() for field in subject.values()]
    probability = np.asarray(nib.load(atlas / "atlas_prob_threshold.nii.gz").dataobj)  # type: ignore[attr-defined]
    log_template, log_average = (np.log1p(m / offset) for m in (template, average))
    log_native = [np.log1p(m / offset) for m in native]
    result: dict[str, Any] = {
        "subjects": len(native),
        "pairwise_correlation_before": pairwise_correlation(native, offset),
        "pairwise_correlation_after": pairwise_correlation(moved, offset),
        "own_support_correlation": float(np.mean(own)),
        "own_support_correlation_of_average": float(
            np.mean([log_density_correlation(average, m, offset, m > 0) for m in native])
        ),
        "efc": entropy_focus_criterion(template),
        "efc_of_average": entropy_focus_criterion(average),
        "gradient_ratio": gradient_ratio(log_template, log_native),
        "gradient_ratio_of_average": gradient_ratio(log_average, log_native),
        "core_share": core_share(probability),
        "folded_fields": sum(f["corner_share_folded"] > 0 or f["share_folded"] > 0 for f in fields),
        "smallest_jacobian": min(f["min"] for f in fields),
        "smallest_corner_jacobian": min(f["corner_min"] for f in fields),
        "inflation": inflation(dets, tract),
        "mean_displacement_voxels": centrality(there, tract),
        "displacement_voxels": float(
            np.sqrt(np.mean([(u**2).sum(0)[tract].mean() for u in there]))
        ),
        "inverse_consistency_voxels": float(
            np.mean([inverse_consistency(a, b) for a, b in zip(there, back, strict=True)])
        ),
        "negative_voxels": int((template < 0).sum()),
        "background_above_zero": int(((template > 0) & (np.max(moved, axis=0) == 0)).sum()),
    }
    dataset = Path(about["cohort"]["subjects"][0]["maps"][0]["path"])
    demo = next((folder for folder in dataset.parents if (folder / ".truth").is_dir()), None)
    if demo is not None:
        truth = load_truth(demo)
        result["truth"] = score_atlas(truth, there, back, template)
        result["true_warps"] = true_warps(truth)
        still = [np.zeros_like(u) for u in there]
        result["no_registration"] = score_atlas(truth, still, still, average)
    return result


def true_warps(truth: Any) -> dict[str, float]:
    """What the true fields would score: the ceiling that sampling noise leaves."""
    there = [subject.to_template for subject in truth.training]
    back = [subject.to_subject for subject in truth.training]
    maps = [s.bundles.sum(0, keepdims=True) / s.waytotal for s in truth.training]
    mean = np.mean([warped(m, u)[0] for m, u in zip(maps, there, strict=True)], axis=0)
    return score_atlas(truth, there, back, mean)


def main() -> None:
    """Print the figures of an atlas as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("atlas", type=Path, help="the published folder")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.atlas), indent=1))


if __name__ == "__main__":
    main()
