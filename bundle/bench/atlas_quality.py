"""Measures a published atlas on its cohort: sharpness, agreement, guards.

    python -m bundle.bench.atlas_quality output/learned_atlas
    python -m bundle.bench.atlas_quality output/learned_atlas --labels '{subject}/label.nii.gz'

Everything is read from files (the maps, the fields, the subjects' maps), so that the published
result is measured. On the demo cohort the known truth is used as well. With ``--labels`` the
subjects' label maps are compared in template space, nearest voxel, mean Dice over labels and pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import map_coordinates

from scripts.cohort import Cohort, DensityMap, read_density
from scripts.cohort.density import density_on_grid
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
from scripts.phantom.scores import score_atlas
from scripts.phantom.truth import load_truth
from scripts.spatial.fields import field_names, read_field
from scripts.spatial.jacobian import jacobian_determinant, smallest_corner_determinant
from scripts.spatial.warp import warp


def subject_density(described: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """A subject's normalised density ``(C, *shape)``, from the files that ``atlas.json`` names."""
    channels = 1 + max(one["channel"] for one in described["maps"])
    density = np.zeros((channels, *shape))
    for one in map(DensityMap.of_record, described["maps"]):
        density[one.channel] += density_on_grid(one, read_density(one.path)[0]) / one.divisor
    return density


def cohort_densities(cohort: Cohort) -> list[np.ndarray]:
    """Each subject's normalised density (X, Y, Z) on the full grid, float32; of one channel."""
    result = []
    for subject in cohort.subjects:
        described = {"maps": [{**vars(one), "path": str(one.path)} for one in subject.maps]}
        result.append(subject_density(described, cohort.grid.shape)[0].astype(np.float32))
    return result


def warped(maps: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Maps ``(C, *shape)`` resampled at ``x + u(x)``."""
    image = torch.as_tensor(maps, dtype=torch.float32)[None]
    return warp(image, torch.as_tensor(displacement, dtype=torch.float32)[None])[0].numpy()


@dataclass(frozen=True)
class Build:
    """An atlas of a cohort, from any software.

    Args:
        template: density (X, Y, Z).
        native: each subject's density (X, Y, Z) in its native space, as float32.
        to_template: each subject's displacement (3, X, Y, Z) in voxels on the template grid, which
            resamples the subject into template space.
        to_subject: the reverse, on the subject grid.
        offset: density that counts as small.
        presence: density above which a tract is present.
    """

    template: np.ndarray
    native: list[np.ndarray]
    to_template: list[np.ndarray]
    to_subject: list[np.ndarray]
    offset: float
    presence: float


def read_build(atlas: Path) -> Build:
    """A published atlas of ours, from its files."""
    about = json.loads((atlas / "atlas.json").read_text())
    shape = tuple(about["cohort"]["grid"]["shape"])
    template = np.asarray(nib.load(atlas / "atlas_mean.nii.gz").dataobj)  # type: ignore[attr-defined]
    native, there, back = [], [], []
    for described in about["cohort"]["subjects"]:
        native.append(subject_density(described, shape)[0].astype(np.float32))
        fields = [
            read_field(atlas / "fields" / name, spatial_dims=len(shape)).astype(np.float32)
            for name in field_names(described["subject"])
        ]
        there.append(fields[0])
        back.append(fields[1])
    presence = about["presence_value"]
    return Build(template, native, there, back, about["log_offset"], presence)


def anywhere(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Where any of the maps is above 0."""
    result: np.ndarray = np.any([m > 0 for m in maps], axis=0)
    return result


def score(build: Build) -> dict[str, Any]:
    """Measures that need no truth: agreement, sharpness, guards."""
    native, template, offset = build.native, build.template, build.offset
    moved, in_support = [], []
    for density, there, back in zip(native, build.to_template, build.to_subject, strict=True):
        # Resampling even at the grid's points would leave rounding errors around the support.
        moved.append(warped(density[None], there)[0] if there.any() else density)
        in_subject = warped(template[None], back)[0]
        in_support.append(log_density_correlation(in_subject.clip(0), density, offset, density > 0))
    average = np.mean(native, axis=0)
    tract = np.mean(moved, axis=0) > offset / 2
    fields = [torch.as_tensor(u) for u in (*build.to_template, *build.to_subject)]
    dets = [jacobian_determinant(u).numpy() for u in fields]
    corners = [smallest_corner_determinant(u).numpy() for u in fields]
    ours = np.stack(dets[: len(native)])
    regular = tract & (ours > 0).all(0)  # inflation is defined where no field folds
    there = np.stack(build.to_template)
    sharp = template.clip(0)
    log_template, log_average = (np.log1p(m / offset) for m in (sharp, average))
    log_native = [np.log1p(m / offset) for m in native]
    probability = 100 * np.mean([m > build.presence for m in moved], axis=0)
    return {
        "subjects": len(native),
        "pairwise_correlation_before": pairwise_correlation(native, offset),
        "pairwise_correlation_after": pairwise_correlation(moved, offset),
        # Over all voxels where any subject has density, so agreement on zeros counts as well.
        "cohort_correlation_before": pairwise_correlation(native, offset, anywhere(native)),
        "cohort_correlation_after": pairwise_correlation(moved, offset, anywhere(moved)),
        "own_support_correlation": float(np.mean(in_support)),
        "own_support_correlation_of_average": float(
            np.mean([log_density_correlation(average, m, offset, m > 0) for m in native])
        ),
        "efc": entropy_focus_criterion(sharp),
        "efc_of_average": entropy_focus_criterion(average),
        "gradient_ratio": gradient_ratio(log_template, log_native),
        "gradient_ratio_of_average": gradient_ratio(log_average, log_native),
        "core_share": core_share(probability),
        "folded_fields": sum(
            bool((d <= 0).any() or (c <= 0).any()) for d, c in zip(dets, corners, strict=True)
        ),
        "folded_percent": float(100 * np.mean([(d <= 0).mean() for d in dets])),
        "smallest_jacobian": float(min(d.min() for d in dets)),
        "first_percentile_jacobian": float(np.percentile(ours[:, tract], 1)),
        "smallest_corner_jacobian": float(min(c.min() for c in corners)),
        "inflation": inflation(ours, regular),
        "mean_displacement_voxels": centrality(there, tract),
        "displacement_voxels": float(np.sqrt((there**2).sum(1)[:, tract].mean())),
        "inverse_consistency_voxels": float(
            np.mean(
                [
                    inverse_consistency(a, b)
                    for a, b in zip(build.to_template, build.to_subject, strict=True)
                ]
            )
        ),
        "negative_voxels": int((template < 0).sum()),
        "background_above_zero": int(((template > 0) & (np.max(moved, axis=0) == 0)).sum()),
    }


def label_dice(maps: Sequence[np.ndarray]) -> float:
    """Mean Dice over the labels that both contain, and over all pairs."""
    result = []
    for one, other in itertools.combinations(maps, 2):
        size = 1 + int(max(one.max(), other.max()))
        ours, theirs = (np.bincount(m.ravel(), minlength=size) for m in (one, other))
        shared = np.bincount(one[one == other].ravel(), minlength=size)
        both = (ours > 0) & (theirs > 0)
        both[0] = False
        result.append(float((2 * shared[both] / (ours + theirs)[both]).mean()))
    return float(np.mean(result))


def in_template(labels: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """A label map (X, Y, Z) at ``x + u(x)``, nearest voxel; 0 outside."""
    points = np.indices(labels.shape) + displacement
    result: np.ndarray = map_coordinates(labels, points, order=0, mode="constant", cval=0)
    return result


def read_labels(dataset: Path, pattern: str, name: str) -> np.ndarray:
    """A subject's label map."""
    image = nib.load(dataset / pattern.format(subject=name))
    return np.asarray(image.dataobj).astype(np.int32)  # type: ignore[attr-defined]


def dataset_of(about: dict[str, Any]) -> Path:
    """The dataset folder of an atlas, from its ``atlas.json``: what contains the first subject."""
    first = about["cohort"]["subjects"][0]
    path = Path(first["maps"][0]["path"])
    return next((one.parent for one in path.parents if one.name == first["subject"]), path.parent)


def measure(atlas: Path, labels: str | None = None) -> dict[str, Any]:
    """All figures of one published atlas of ours.

    Args:
        atlas: the published folder.
        labels: path pattern of label maps in the dataset folder, or None.
    """
    build = read_build(atlas)
    result = score(build)
    about = json.loads((atlas / "atlas.json").read_text())
    if labels is not None:
        folder = dataset_of(about)
        maps = [read_labels(folder, labels, s["subject"]) for s in about["cohort"]["subjects"]]
        moved = [in_template(m, u) for m, u in zip(maps, build.to_template, strict=True)]
        result["label_dice_before"] = label_dice(maps)
        result["label_dice"] = label_dice(moved)
    dataset = Path(about["cohort"]["subjects"][0]["maps"][0]["path"])
    demo = next((folder for folder in dataset.parents if (folder / ".truth").is_dir()), None)
    if demo is not None:
        truth = load_truth(demo)
        result["truth"] = score_atlas(truth, build.to_template, build.to_subject, build.template)
        result["true_warps"] = true_warps(truth)
        still = [np.zeros_like(u) for u in build.to_template]
        average = np.mean(build.native, axis=0)
        result["no_registration"] = score_atlas(truth, still, still, average)
    return result


def true_warps(truth: Any) -> dict[str, float]:
    """Score of the true fields: the ceiling due to sampling noise."""
    there = [subject.to_template for subject in truth.training]
    back = [subject.to_subject for subject in truth.training]
    maps = [s.bundles.sum(0, keepdims=True) / s.waytotal for s in truth.training]
    mean = np.mean([warped(m, u)[0] for m, u in zip(maps, there, strict=True)], axis=0)
    return score_atlas(truth, there, back, mean)


def main() -> None:
    """Print the figures of an atlas as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("atlas", type=Path, help="the published folder")
    parser.add_argument("--labels", help="such as '{subject}/label.nii.gz'")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.atlas, arguments.labels), indent=1))


if __name__ == "__main__":
    main()
