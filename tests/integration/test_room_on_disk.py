"""Every job asks for the room that it needs before it begins; without it nothing is left."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.density import write_map_of
from scripts.applications.warp_images import ImageWarper
from scripts.engines.handlers import LossHistory, TrainingCheckpoint
from scripts.errors import StorageError
from scripts.evaluation.report import publish_evaluation
from scripts.phantom import write_demo_cohort
from scripts.registration.pair_output import pairs_with_room
from scripts.registration.refine_pairs import PairRefiner
from scripts.settings.image_pairs import load_estimate_affine
from scripts.settings.refine import load_refine
from scripts.settings.warp import load_warp
from scripts.spatial.image_files import plausible_shape
from scripts.spatial.volumes import voxels_of
from scripts.tractograms import Streamlines
from scripts.tractograms.writing import write_tractogram

SHAPE = (24, 20, 16)
VOXELS = 24 * 20 * 16


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Two images, an affine and a tractogram."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    found = {}
    for name in ("fixed", "moving"):
        found[name] = folder / f"{name}.nii.gz"
        # Noise, which no packing makes small.
        values = rng.random(SHAPE, dtype=np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), found[name])
    found["affine"] = folder / "affine.txt"
    found["affine"].write_text(
        "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    found["tractogram"] = folder / "one.tck"
    write_tractogram(found["tractogram"], Streamlines.of([np.full((2, 3), 5.0)]))
    return found


def warp(images: dict[str, Path], out: Path) -> None:
    block = {
        "subjects": ["s"], "image": str(images["moving"]), "reference": str(images["fixed"]),
        "transforms": [str(images["affine"])],
    }  # fmt: skip
    ImageWarper(load_warp(block), out).run()


def refine(images: dict[str, Path], out: Path) -> None:
    block = {
        "fixed": str(images["fixed"]), "moving": [str(images["moving"])], "mode": "elastic",
        "iterations": 1, "levels": [4], "verify_jacobian": False,
    }  # fmt: skip
    PairRefiner(load_refine(block), out).run()


def estimate(images: dict[str, Path], out: Path) -> None:
    block = {"fixed": str(images["fixed"]), "moving": str(images["moving"])}
    pairs_with_room(load_estimate_affine(block), out)


def density(images: dict[str, Path], out: Path) -> None:
    out.parent.mkdir(exist_ok=True)
    options = argparse.Namespace(
        output=out.with_suffix(".nii.gz"), reference=images["fixed"], weights=[], ends=False,
        tractograms=[images["tractogram"]],
    )  # fmt: skip
    write_map_of(options)


def demo(images: dict[str, Path], out: Path) -> None:
    write_demo_cohort(out, subjects=1, held_out=0, shape=(16, 16, 16), streamlines=5)


def evaluation(images: dict[str, Path], out: Path) -> None:
    row = {"subject": "s", "correlation": 0.5}
    names = (
        "correlation_of_average", "soft_dice", "soft_dice_of_average", "hausdorff_mm",
        "smallest_jacobian", "folded_share", "displacement_rms_voxels",
        "inverse_consistency_voxels",
    )  # fmt: skip
    from scripts.evaluation import report

    whole = {name: row.get(name, 0.5) for name in report.LABELS} | row
    publish_evaluation(out, [whole | dict.fromkeys(names, 0.5)], {})


JOBS: dict[str, tuple[Callable[[dict[str, Path], Path], None], int]] = {
    "warp": (warp, 4 * VOXELS),
    "refine": (refine, 4 * 8 * VOXELS),
    "estimate-affine": (estimate, 4 * VOXELS),
    "density": (density, 4 * VOXELS),
    "demo": (demo, 4 * 7 * 16**3),
    "evaluate": (evaluation, 500),
}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("job", JOBS)
def test_a_job_without_room_ends_before_it_begins(
    job: str, images: dict[str, Path], disk: Callable[[int], None], tmp_path: Path
) -> None:
    run, least = JOBS[job]
    out = tmp_path / "out" / job
    disk(least - 1)
    with pytest.raises(StorageError, match=r"are needed \(.*are free"):
        run(images, out)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "in"]
    assert [path.name for path in left if not path.name.startswith(".tract_atlas")] == []


@pytest.mark.parametrize("job", [job for job in JOBS if job != "estimate-affine"])
def test_as_much_is_asked_for_as_is_written(
    job: str, images: dict[str, Path], disk: Callable[[int], None], tmp_path: Path
) -> None:
    run, _ = JOBS[job]
    before = size(tmp_path)
    disk(1 << 50)
    run(images, tmp_path / "out" / job)
    written = size(tmp_path) - before
    disk(written - 1)
    with pytest.raises(StorageError, match="are needed"):
        run(images, tmp_path / "again" / job)


def test_a_training_without_room_for_its_checkpoint_ends_before_the_first_step(
    disk: Callable[[int], None], tmp_path: Path
) -> None:
    network = torch.nn.Linear(100, 99)  # 9,999 numbers
    state = SimpleNamespace(training=tmp_path / "training.pt", folder=tmp_path)
    optimizer = torch.optim.Adam(network.parameters())
    handler = TrainingCheckpoint(state, network, optimizer, SimpleNamespace(), LossHistory())
    disk(7 * 4 * 9_999 - 1)
    with pytest.raises(StorageError, match="checkpoints"):
        handler.load(SimpleNamespace())
    disk(7 * 4 * 9_999)
    handler.load(SimpleNamespace())
    assert not list(tmp_path.iterdir())


def test_shapes_are_estimates_that_a_file_can_hold(images: dict[str, Path], tmp_path: Path) -> None:
    assert plausible_shape(images["fixed"]) == SHAPE
    assert voxels_of(images["fixed"]) == (VOXELS, 1)
    header = nib.Nifti1Header()
    header.set_data_shape((4000, 4000, 4000))
    path = tmp_path / "claim.nii"
    path.write_bytes(header.binaryblock + bytes(4))
    assert plausible_shape(path) == ()
    assert plausible_shape(tmp_path / "nothing.nii") == ()
    assert plausible_shape(images["affine"]) == ()
    assert voxels_of(path) == (0, 1)
