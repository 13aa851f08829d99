"""Label Dice through the atlas: labels of all others fused, against one other person's labels.

    python -m bundle.bench.labels --dataset <folder> --pattern '{subject}/tdi.nii.gz' \
        --labels '{subject}/label.nii.gz' --work output/labels --subjects 10
    python -m bundle.bench.labels --cost

The first makes an atlas of the subjects by the network that comes with the bundle, as ``build``
does, and then compares each subject's labels with those of the others in its space: fused by
probability (leave-one-out), one other person at a time (pairwise, mean over all pairs), and fused
without registration. Mean Dice over labels and subjects. ``--cost`` measures time and memory a
subject of the maps in template space and of the fusion at 145x174x145 voxels and 136 labels, with
one thread. There the labels are scattered all over the grid in cubes of 12 voxels, which is the
most difficult case, and ten subjects are fused, each with another field.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from bundle.bench.job_cost import Cost
from scripts.api import learn_atlas
from scripts.evaluation.label_overlap import label_dice
from scripts.publishing.subject_maps import SubjectMaps, labels_in_template, log_jacobian
from scripts.spatial.fields import field_names, read_field
from scripts.spatial.grid import Grid
from scripts.spatial.label_fusion import LabelSums, label_shares
from scripts.spatial.transforms import take_nearest
from scripts.spatial.volumes import read_labels

FULL = (145, 174, 145)
SUBJECTS = 10  # that are fused to measure the cost


def build(options: argparse.Namespace) -> Path:
    """An atlas of the subjects by the shipped network; made once."""
    atlas: Path = options.work / "learned_atlas"
    if atlas.is_dir():
        return atlas
    names = sorted(path.name for path in options.dataset.iterdir() if path.is_dir())
    names = [
        one for one in names
        if (options.dataset / options.labels.replace("{subject}", one)).is_file()
    ][: options.subjects]  # fmt: skip
    settings: dict[str, Any] = {
        "device": "cpu",
        "min_subjects": 2,
        "verify_jacobian": False,
        "presence_value": 0.05,
        "cohort": {
            "pattern": options.pattern, "normalisation": "max", "subjects": names,
            "labels": options.labels,
        },
        "model": {"initial": "shipped"},
        "loss": {"log_offset": 0.01},
        "optimizer": {"epochs": 0},
        "refine": {
            "network_rounds": 3, "rounds": options.rounds, "iterations": 8, "final_lr": 0.02,
            "network_epochs": 0,
        },
    }  # fmt: skip
    return learn_atlas(options.dataset, options.work, settings=settings)


def score(options: argparse.Namespace) -> dict[str, float]:
    """Mean Dice of the three ways."""
    atlas = build(options)
    suffix = "_from-subject_to-template_mode-image_xfm.nii.gz"
    names = sorted(path.name.removesuffix(suffix) for path in (atlas / "fields").glob(f"*{suffix}"))
    labels: dict[str, np.ndarray] = {}
    inward: dict[str, np.ndarray] = {}
    outward: dict[str, np.ndarray] = {}
    for name in names:
        labels[name] = read_labels(options.dataset / options.labels.replace("{subject}", name))[0][
            0
        ]
        labels[name] = np.rint(labels[name]).astype(np.int64)
        inward[name], outward[name] = (
            read_field(atlas / "fields" / one) for one in field_names(name)
        )
    shape = labels[names[0]].shape
    index = np.indices(shape).astype(np.float64)
    sums, still = LabelSums(shape), LabelSums(shape)
    zero = np.zeros((3, *shape))
    for name in names:
        sums.add(label_shares(labels[name], inward[name]))
        still.add(label_shares(labels[name], zero))
    result: dict[str, list[float]] = {"fused": [], "pairwise": [], "unregistered, fused": []}
    for name in names:
        subject_labels = labels[name]
        places = index + outward[name]
        for key, total, field, at in (
            ("fused", sums, inward[name], places), ("unregistered, fused", still, zero, index),
        ):  # fmt: skip
            shares = label_shares(subject_labels, field)
            total.add(shares, sign=-1)
            result[key] += [
                float(np.mean(list(label_dice(total.majority_at(at), subject_labels).values())))
            ]
            total.add(shares)
        for other in names:
            if other == name:
                continue
            way = [map_coordinates(u, places, order=1, mode="nearest") for u in inward[other]]
            moved = (places + np.stack(way)).reshape(3, -1)
            propagated = take_nearest(labels[other][None], moved)[0].reshape(shape)
            result["pairwise"] += [
                float(np.mean(list(label_dice(propagated, subject_labels).values())))
            ]
    return {"subjects": float(len(names)), **{k: float(np.mean(v)) for k, v in result.items()}}


def cost() -> dict[str, float]:
    """Seconds of each part at full size, and peak memory of the process."""
    made = np.random.default_rng(0)
    coarse = made.integers(0, 137, [-(-n // 12) for n in FULL])
    labels = np.kron(coarse, np.ones((12, 12, 12), dtype=int))[tuple(slice(n) for n in FULL)]
    field = np.stack([gaussian_filter(made.normal(size=FULL), 8) for _ in range(3)])
    field *= 4 / field.std()
    measured = Cost()
    measured.memory("before")
    _write_maps(labels, field, measured)
    measured.memory("with maps")
    sums = LabelSums(FULL)
    for number in range(SUBJECTS):
        name = "one subject" if number == 0 else "nine more"
        bent = field * np.cos(number)
        shares = measured.time(f"shares of 136 labels, {name}", partial(label_shares, labels, bent))
        measured.time(f"add them, {name}", partial(sums.add, shares))
        if number == 0:
            measured.memory("with the sums of one subject")
    measured.memory("with the sums of ten")
    measured.time("most probable labels", sums.majority)
    places = np.indices(FULL) + field
    measured.time("most probable labels in a subject's space", lambda: sums.majority_at(places))
    measured.memory("at the end")
    return {
        **{f"{name}, CPU-s": seconds for name, seconds in measured.seconds.items()},
        **{f"memory {when}, GiB": gib for when, gib in measured.gib.items()},
    }


def _write_maps(labels: np.ndarray, field: np.ndarray, measured: Cost) -> None:
    """The three maps of a subject in template space."""
    density = np.random.default_rng(1).random((1, *FULL), dtype=np.float32)
    grid = Grid(FULL, np.eye(4), nib.Nifti1Header())
    moves = torch.from_numpy(field).float()
    growth = measured.time("log-Jacobian", lambda: log_jacobian(moves))
    warped = measured.time("labels by the nearest voxel", lambda: labels_in_template(labels, moves))
    maps = {"density": density, "logjacobian": growth, "dseg": warped}
    with tempfile.TemporaryDirectory() as folder:
        writer = SubjectMaps(grid, warped=True, jacobians=True)
        measured.time("write three maps", lambda: writer.write(Path(folder), "a", maps, "bids::a"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--pattern", help="path of the maps, with {subject}")
    parser.add_argument("--labels", help="path of the labels, with {subject}")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2, help="of instance optimisation")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, value in (cost() if options.cost else score(options)).items():
        print(f"{name:55} {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
