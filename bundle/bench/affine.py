"""Measures affine alignment: known transforms, capture range, label overlap, compared with ANTs.

    python -m bundle.bench.affine recovery <folder>
    python -m bundle.bench.affine capture <folder>
    python -m bundle.bench.affine pairs <folder> --dataset_dir <cohort> \\
        --image '{subject}/t2_native.nii.gz' --labels '{subject}/label_native.nii.gz' --count 6 \\
        [--peers Affine SyN] [--models models/affine_model.pt ...]
    python -m bundle.bench.affine cohort <folder> --aligned <output>/aligned \\
        --labels label_native.nii.gz --atlas <output>/learned_atlas [--reference <image>]
    python -m bundle.bench.affine carried <folder> --aligned <output>/aligned \\
        --labels label_native.nii.gz --atlas <output>/learned_atlas --new <folder>

Each part writes its figures as JSON and as a Markdown table into the folder. Times are CPU-seconds.
`recovery` and `capture` use a subject of the demo cohort. `pairs` can also run antspyx's
registrations and affine networks, the networks on subjects that they weren't trained on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.bench.affine_networks import named_networks, trained_on
from scripts.affine.inference import estimate_matrix
from scripts.affine.network import AffineNetwork
from scripts.registration.affine import AffineRefinement
from scripts.registration.deformable import ElasticRefinement
from scripts.registration.images import ReadImage, WorldImage
from scripts.spatial.affine_parameters import Frame, matrix_of, parameter_count
from scripts.spatial.fields import field_names
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.transform_files import TransformFile, read_transform
from scripts.spatial.transforms import AffineTransform, resample
from scripts.spatial.volumes import read_grid, read_volume

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "data" / "demo"
STARTS = {
    "identity": ("identity",),
    "identity, centre, axes": ("identity", "centre", "axes"),
    "all, with search": ("identity", "centre", "axes", "search"),
}


# ---------------------------------------------------------------------------------------------
# Known transforms
# ---------------------------------------------------------------------------------------------


def demo_map() -> WorldImage:
    """The first subject's tract density, streamline counts."""
    from scripts.phantom import ensure_demo_cohort

    folder = Path(ensure_demo_cohort(DEMO))
    path = sorted(folder.glob("*/tractography/probtrackx2/*/warped_streamlines/fdt_paths.nii.gz"))
    volume, grid = read_volume(path[0])
    return WorldImage(torch.as_tensor(volume, dtype=torch.float32)[None], grid.affine)


def pair_apart(
    counts: WorldImage,
    degrees: float,
    millimetres: float,
    rng: np.random.Generator,
    family: str = "rigid",
) -> tuple[WorldImage, WorldImage, np.ndarray]:
    """A map and a transformed copy of it, both with new counting noise; the true matrix.

    The rotation has a random axis, the translation a random direction.
    """  # fmt: skip
    frame = Frame.of_grid(counts.affine, counts.shape)
    axis, direction = rng.normal(size=(2, 3))
    axis, direction = axis / np.linalg.norm(axis), direction / np.linalg.norm(direction)
    turn = _about(axis, math.radians(degrees))
    parameters = torch.zeros(1, parameter_count(family), dtype=torch.float64)
    if parameters.shape[1] > 6:
        parameters[0, 6:] = torch.as_tensor(rng.uniform(-0.1, 0.1, parameters.shape[1] - 6))
    rest = matrix_of(parameters, family, frame)[0].numpy()
    centre = frame.centre.numpy()
    rigid = np.eye(4)
    rigid[:3, :3] = turn
    rigid[:3, 3] = centre - turn @ centre + direction * millimetres
    truth = rigid @ rest
    # moving(truth x) = fixed(x): the moving image is the map resampled through the inverse.
    away = torch.from_numpy(np.linalg.inv(truth))[None]
    moved = resample_by_matrix(counts.values, counts.affine, away, counts.affine, counts.shape)
    noisy = [rng.poisson(image.numpy()).astype(np.float32) for image in (counts.values, moved)]
    fixed, moving = (WorldImage(torch.from_numpy(np.log1p(one)), counts.affine) for one in noisy)
    return fixed, moving, truth


def _about(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def errors(estimate: np.ndarray, truth: np.ndarray, image: WorldImage) -> tuple[float, float]:
    """Degrees between the rotations nearest to both, and mm between the images of the centre."""
    turns = []
    for matrix in (estimate, truth):
        left, _, right = np.linalg.svd(matrix[:3, :3])
        turns.append(left @ right)
    cosine = (np.trace(turns[0].T @ turns[1]) - 1) / 2
    centre = Frame.of_grid(image.affine, image.shape).centre.numpy()
    moved = (estimate - truth)[:3, :3] @ centre + (estimate - truth)[:3, 3]
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), float(np.linalg.norm(moved))


def recovery(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Known transforms of 30 degrees and 20 mm, for each transform model."""
    counts, rng = demo_map(), np.random.default_rng(0)
    rows = []
    for family in ("rigid", "rigid_isotropic", "rigid_anisotropic", "affine"):
        estimate = []
        for _ in range(repeats):
            fixed, moving, truth = pair_apart(counts, 30, 20, rng, family)
            begun = time.process_time()
            result = AffineRefinement(family)(fixed, moving)
            spent = time.process_time() - begun
            estimate.append((*errors(result.matrix.numpy(), truth, fixed), spent))
        turned, moved, spent_all = (np.array(one) for one in zip(*estimate, strict=True))
        rows.append(
            {
                "family": family, "pairs": repeats,
                "rotation error, degrees, mean": turned.mean(), "greatest": turned.max(),
                "translation error, mm, mean": moved.mean(), "greatest, mm": moved.max(),
                "CPU-seconds a pair": spent_all.mean(),
            }
        )  # fmt: skip
    return rows


def capture(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Share of pairs that the coarsest level brings within 5 degrees and 5 mm, by distance.

    From there the finer level reaches the accuracy that `recovery` measures.
    """
    counts, rng = demo_map(), np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    cases = [(float(angle), 0.0) for angle in (15, 30, 45, 60, 90, 135, 180)]
    cases += [(0.0, float(shift)) for shift in (10, 20, 40, 60)] + [(30.0, 20.0)]
    for angle, shift in cases:
        pairs = [pair_apart(counts, angle, shift, rng) for _ in range(repeats)]
        row: dict[str, Any] = {"rotation": angle, "translation, mm": shift}
        for name, starts in STARTS.items():
            refine = AffineRefinement("rigid", starts, (4,), 60, similarity="correlation")
            good = []
            for fixed, moving, truth in pairs:
                turned, moved = errors(refine(fixed, moving).matrix.numpy(), truth, fixed)
                good.append(turned < 5 and moved < 5)
            row[name] = float(np.mean(good))
        rows.append(row)
        print(row, flush=True)
    draw_capture(rows, folder / "capture.png")
    return rows


def draw_capture(rows: list[dict[str, Any]], path: Path) -> None:
    """Success by rotation and by translation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for name, width in zip(STARTS, (6, 3, 1), strict=True):  # keeps equal curves visible
        style: dict[str, Any] = {"linewidth": width, "markersize": 4 + width}
        turned = [row for row in rows if row["translation, mm"] == 0]
        moved = [row for row in rows if row["rotation"] == 0]
        axes[0].plot(
            [r["rotation"] for r in turned], [r[name] for r in turned], "o-", label=name, **style
        )
        axes[1].plot([r["translation, mm"] for r in moved], [r[name] for r in moved], "o-", **style)
    axes[0].set(xlabel="rotation, degrees", ylabel="share within 5 degrees and 5 mm")
    axes[1].set(xlabel="translation, mm")
    axes[0].legend(title="starts", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------
# Real pairs
# ---------------------------------------------------------------------------------------------


def label_dice(first: np.ndarray, second: np.ndarray) -> float:
    """Mean Dice over the labels that either map contains."""
    both = np.stack([first.ravel(), second.ravel()]).astype(np.int64)
    count = int(both.max()) + 1
    sizes = [np.bincount(one, minlength=count) for one in both]
    common = np.bincount(both[0][both[0] == both[1]], minlength=count)
    present = (sizes[0] + sizes[1])[1:] > 0
    return float((2 * common[1:] / np.maximum(sizes[0] + sizes[1], 1)[1:])[present].mean())


def pairs(
    folder: Path,
    dataset_dir: Path,
    image: str,
    labels: str,
    count: int,
    background: str,
    peers: Sequence[str],
    networks: Mapping[str, AffineNetwork] | None = None,
) -> list[dict[str, Any]]:
    """Pairs of real subjects: Dice of propagated labels, with CPU-seconds."""
    pattern = image.replace("{subject}", "*")
    names = sorted(p.relative_to(dataset_dir).parts[0] for p in dataset_dir.glob(pattern))
    names = [name for name in names if name not in trained_on(networks or {})]
    chosen = names[:: max(1, len(names) // (count + 1))][: count + 1]
    couples = list(itertools.pairwise(chosen))[:count]
    methods: dict[str, Callable[..., np.ndarray]] = {}
    methods["unregistered"] = _as_they_lie
    methods["refinement, affine"] = partial(_ours, elastic=False)
    methods["refinement, affine then joint"] = partial(_ours, elastic=True)
    for name, network in (networks or {}).items():
        methods[f"{name} network"] = partial(_by_network, network=network, refine=False)
        methods[f"{name} network, then refinement"] = partial(
            _by_network, network=network, refine=True
        )
    for kind in peers:
        methods[f"antspyx {kind}"] = partial(_ants, kind=kind)
    rows = []
    for name, method in methods.items():
        scores, spent = [], []
        for first, second in couples:
            paths = [dataset_dir / image.replace("{subject}", one) for one in (first, second)]
            maps = [dataset_dir / labels.replace("{subject}", one) for one in (first, second)]
            read = [ReadImage(path, None, background) for path in paths]
            wanted, _ = read_volume(maps[0])
            begun = time.process_time()
            carried = method(paths[0], paths[1], read[0], read[1], maps[1])
            spent.append(time.process_time() - begun)
            scores.append(label_dice(wanted[0], carried))
        rows.append(
            {"method": name, "pairs": len(couples), "label Dice": float(np.mean(scores)),
             "least": float(np.min(scores)), "CPU-seconds a pair": float(np.mean(spent))}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _as_they_lie(
    _f: Path, _m: Path, fixed: ReadImage, _moving: ReadImage, labels: Path
) -> np.ndarray:
    volume, source = read_volume(labels)
    return resample(volume, source, [], fixed.grid, order=0)[0]


def _ours(
    _f: Path, _m: Path, fixed: ReadImage, moving: ReadImage, labels: Path, elastic: bool
) -> np.ndarray:
    result = AffineRefinement()(fixed.image, moving.image)
    matrix, displacement = result.matrix, None
    if elastic:
        joint = ElasticRefinement(family="affine")(fixed.image, moving.image, matrix)
        matrix, displacement = joint.matrix, joint.displacement
    volume, grid = read_volume(labels)
    source = torch.as_tensor(volume, dtype=torch.float32)[None]
    return resample_by_matrix(
        source, grid.affine, matrix[None], fixed.image.affine, fixed.image.shape,
        mode="nearest", displacement=displacement,
    )[0, 0].numpy()  # fmt: skip


def _by_network(
    _f: Path,
    _m: Path,
    fixed: ReadImage,
    moving: ReadImage,
    labels: Path,
    network: AffineNetwork,
    refine: bool,
) -> np.ndarray:
    matrix = estimate_matrix(
        network, fixed.values[0], fixed.grid.affine, moving.values[0], moving.grid.affine
    )
    if refine:
        # Only from the estimate: this measures the network as an initialisation.
        matrix = AffineRefinement(starts=())(fixed.image, moving.image, matrix).matrix
    volume, source = read_volume(labels)
    chain = [AffineTransform(matrix.numpy())]
    return resample(volume, source, chain, fixed.grid, order=0)[0]


def _ants(
    first: Path, second: Path, _fixed: ReadImage, _moving: ReadImage, labels: Path, kind: str
) -> np.ndarray:
    import ants  # type: ignore[import-not-found,unused-ignore]

    fixed, moving = ants.image_read(str(first)), ants.image_read(str(second))
    result = ants.registration(fixed, moving, type_of_transform=kind)
    carried = ants.apply_transforms(
        fixed, ants.image_read(str(labels)), result["fwdtransforms"],
        interpolator="nearestNeighbor",
    )  # fmt: skip
    return carried.numpy()


# ---------------------------------------------------------------------------------------------
# A cohort
# ---------------------------------------------------------------------------------------------


def cohort(
    folder: Path, aligned: Path, labels: str, atlas: Path | None, reference: Path | None
) -> list[dict[str, Any]]:
    """Label Dice over all pairs of a cohort: native, aligned, and in the atlas's space.

    Native labels are resampled to either space on the reference's grid with one interpolation; to
    the atlas's space through the composition of field and affine.
    """
    about = json.loads((aligned / "alignment.json").read_text(encoding="utf-8"))
    spaces: dict[str, list[np.ndarray]] = {"native": [], "aligned": [], "atlas": []}
    for one in about["subjects"]:
        name = one["subject"]
        path = next(Path(i["path"]) for i in one["images"] if i["name"] == labels)
        native, source = read_volume(path)
        spaces["native"].append(native[0])
        affine = TransformFile(aligned / name / "xfm" / one["transforms"][0])
        chain = [read_transform(affine)]
        wanted = read_grid(reference or aligned / "template.nii.gz")
        spaces["aligned"].append(resample(native, source, chain, wanted, order=0)[0])
        if atlas is not None:
            field = TransformFile(atlas / "fields" / field_names(name)[0])
            chain.insert(0, read_transform(field))
            spaces["atlas"].append(resample(native, source, chain, wanted, order=0)[0])
    rows = []
    for space, maps in spaces.items():
        same = len({one.shape for one in maps}) == 1
        if not maps or not same:
            continue
        scores = [label_dice(a, b) for a, b in itertools.combinations(maps, 2)]
        rows.append(
            {"space": space, "subjects": len(maps), "pairs": len(scores),
             "label Dice": float(np.mean(scores)), "least": float(np.min(scores))}
        )  # fmt: skip
    return rows


def carried(
    folder: Path, aligned: Path, labels: str, atlas: Path, new: Path
) -> list[dict[str, Any]]:
    """Labels of a cohort, propagated to the native images of new subjects through the atlas.

    They are interpolated once. The new subjects were aligned to the cohort's template and
    registered to the atlas, into ``new/aligned`` and ``new/registered``; their labels are beside
    their images.
    """
    cohort_of, new_ones = (
        json.loads((one / "alignment.json").read_text(encoding="utf-8"))["subjects"]
        for one in (aligned, new / "aligned")
    )
    rows = []
    for one in new_ones:
        name = one["subject"]
        labels_of_subject, wanted = read_volume(Path(one["images"][0]["path"]).with_name(labels))
        way = [
            new / "aligned" / name / "xfm" / one["transforms"][2],
            new / "registered" / name / field_names(name)[1],
        ]
        scores: dict[str, list[float]] = {"unregistered": [], "affine": [], "through the atlas": []}
        for other in cohort_of:
            subject = other["subject"]
            path = next(Path(i["path"]) for i in other["images"] if i["name"] == labels)
            native, source = read_volume(path)
            affine = aligned / subject / "xfm" / other["transforms"][0]
            field = atlas / "fields" / field_names(subject)[0]
            for method, files in (
                ("unregistered", []),
                ("affine", [way[0], affine]),
                ("through the atlas", [*way, field, affine]),
            ):
                chain = [read_transform(TransformFile(file)) for file in files]
                moved = resample(native, source, chain, wanted, order=0)[0]
                scores[method].append(label_dice(labels_of_subject[0], moved))
        rows += [
            {"new subject": name, "labels": method, "of": len(values),
             "label Dice": float(np.mean(values)), "least": float(np.min(values))}
            for method, values in scores.items()
        ]  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("recovery", "capture", "pairs", "cohort", "carried"))
    parser.add_argument("folder", type=Path, help="destination of the figures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dataset_dir", type=Path)
    parser.add_argument("--image", default="{subject}/t2_native.nii.gz")
    parser.add_argument("--labels", default="{subject}/label_native.nii.gz")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--background", choices=("zero", "unknown"), default="zero")
    parser.add_argument("--peers", nargs="*", default=[], help="antspyx's types: Affine SyN")
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="affine networks")
    parser.add_argument("--aligned", type=Path)
    parser.add_argument("--atlas", type=Path)
    parser.add_argument("--new", type=Path, help="folder of the new subjects' results")
    parser.add_argument("--reference", type=Path, help="grid for the comparison of labels")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.part == "recovery":
        rows = recovery(given.folder, given.repeats)
    elif given.part == "capture":
        rows = capture(given.folder, given.repeats)
    elif given.part == "pairs":
        rows = pairs(
            given.folder, given.dataset_dir, given.image, given.labels, given.count,
            given.background, given.peers, named_networks(given.models),
        )  # fmt: skip
    elif given.part == "carried":
        rows = carried(given.folder, given.aligned, given.labels, given.atlas, given.new)
    else:
        rows = cohort(given.folder, given.aligned, given.labels, given.atlas, given.reference)
    about = {"part": given.part, "threads": os.environ.get("OMP_NUM_THREADS"), "rows": rows}
    (given.folder / f"{given.part}.json").write_text(json.dumps(about, indent=1) + "\n")
    (given.folder / f"{given.part}.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
