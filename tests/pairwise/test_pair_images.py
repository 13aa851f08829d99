"""Images as the affine networks see them; folds; the whole configuration, run and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from affine_blobs import blobs, write_blobs
from monai.bundle import ConfigWorkflow

from scripts.affine.inference import load_affine_network
from scripts.errors import CheckpointError, CohortError
from scripts.pairwise.images import read_image, read_pair_images
from scripts.pairwise.network_grid import WorkingGrid, between_0_and_1
from scripts.runtime.error_report import find_user_error
from scripts.settings.affine import LearnedAffineConfig

ROOT = Path(__file__).resolve().parents[2]


def config(**changes: Any) -> LearnedAffineConfig:
    images = {"layout": "flat", "shape": [16, 16, 16], **changes.pop("images", {})}
    return LearnedAffineConfig.load({"device": "cpu", "folds": 3, "images": images, **changes})


def test_folds_are_by_subject_and_cover_everyone_once(tmp_path):
    write_blobs(tmp_path, 7, shape=(6, 6, 6))
    measured: list[str] = []
    for fold in range(3):
        images = read_pair_images(tmp_path, config(fold=fold))
        train = {item["subject"] for item in images.training()}
        held_out = {item["subject"] for item in images.held_out()}
        assert not train & held_out
        assert len(train | held_out) == 7
        assert 2 <= len(held_out) <= 3
        measured += held_out
    assert len(measured) == len(set(measured)) == 7
    everyone = read_pair_images(tmp_path, config(fold=None))
    assert len(everyone.training()) == 7
    assert everyone.held_out() == []


def test_images_of_a_person_are_in_one_fold(tmp_path):
    write_blobs(tmp_path, 9, shape=(6, 6, 6))
    for number in range(9):
        name = f"p{number // 2}_{'ab'[number % 2]}.nii.gz"
        (tmp_path / f"sub-{number + 1}.nii.gz").rename(tmp_path / name)
    flat = {"pattern": "{subject}_{run}.nii.gz"}
    for fold in range(3):
        images = read_pair_images(tmp_path, config(fold=fold, images=flat))
        sides = [
            {item["subject"] for item in one} for one in (images.training(), images.held_out())
        ]
        assert sorted(sides[0] | sides[1]) == sorted(f"p{n // 2}_{'ab'[n % 2]}" for n in range(9))
        people = [{name.partition("_")[0] for name in side} for side in sides]
        assert not people[0] & people[1]
        assert all(len(item["image"]) == 1 for item in images.training())
    assert {one.person for one in images.subjects} == {f"p{n}" for n in range(5)}


def test_fewer_people_than_folds_are_an_error_however_many_images_they_have(tmp_path):
    for person in ("p1", "p2"):
        for run in ("t1", "t2", "flair"):
            write_blobs(tmp_path / person / run, 1, shape=(6, 6, 6))
    runs = {"pattern": "{subject}/{run}/sub-1.nii.gz"}
    with pytest.raises(
        CohortError, match=r"6 usable images .* of 2 subjects, fewer than .*folds = 3"
    ):
        read_pair_images(tmp_path, config(images=runs, folds=3))
    assert len(read_pair_images(tmp_path, config(images=runs, folds=2)).held_out()) == 3


def write_labels(folder: Path, subjects: int = 4) -> Path:
    """Images below images/, their labels (bright voxels) below masks/, as people store them."""
    write_blobs(folder / "images", subjects, shape=(8, 8, 8))
    (folder / "masks").mkdir()
    for path in sorted((folder / "images").iterdir()):
        image = nib.load(path)
        labels = np.digitize(image.get_fdata(), (0.2, 0.5)).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, image.affine), folder / "masks" / f"seg_{path.name}")
    return folder


PATTERNS = {"pattern": "images/{subject}.nii.gz", "labels": "masks/seg_{subject}.nii.gz"}


def test_label_maps_go_with_their_images_and_faults_are_reported(tmp_path):
    write_labels(tmp_path)
    images = read_pair_images(tmp_path, config(images=PATTERNS, folds=2))
    assert all(one.labels.endswith(f"masks/seg_{one.name}.nii.gz") for one in images.subjects)
    assert all(one.paths == one.image for one in images.subjects)
    (tmp_path / "masks" / "seg_sub-1.nii.gz").unlink()
    other = nib.load(tmp_path / "masks" / "seg_sub-2.nii.gz")
    values = np.asarray(other.dataobj)
    nib.save(nib.Nifti1Image(values / 2.0, other.affine), tmp_path / "masks" / "seg_sub-2.nii.gz")
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "masks" / "seg_sub-4.nii.gz")
    with pytest.raises(CohortError) as caught:
        read_pair_images(tmp_path, config(images=PATTERNS, folds=2))
    message = str(caught.value)
    assert "sub-1: " in message and "has no label map at masks/seg_{subject}.nii.gz" in message
    assert "seg_sub-2.nii.gz: is not a label map" in message
    assert "seg_sub-4.nii.gz: is not on the grid of its image" in message
    with pytest.raises(CohortError, match=r"sub-1: .*masks/seg_sub-1\.nii\.gz"):
        images.check_unchanged()


def test_the_grid_holds_every_image_and_oblique_ones_too(tmp_path):
    write_blobs(tmp_path, 3, shape=(10, 10, 10))
    plain = read_pair_images(tmp_path, config()).grid
    assert plain.spacing == pytest.approx(11 * 2.5 / 16, rel=1e-2)
    turned = np.eye(4)
    turned[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2) * 3
    turned[2, 2] = 3
    nib.save(nib.Nifti1Image(blobs((10, 10, 4), 9), turned), tmp_path / "z.nii.gz")
    oblique = read_pair_images(tmp_path, config()).grid
    assert oblique.spacing == pytest.approx(10 * 3 * np.sqrt(2) / 16, rel=1e-2)


def test_an_image_keeps_its_shape_in_millimetres_whatever_its_grid():
    """One ball, sampled on two grids of other voxels and another origin, looks the same."""
    grid = WorkingGrid((20, 20, 20), 2.0)
    seen = []
    for spacing, shape, flip in (((1, 1, 1), (40, 40, 40), 1), ((2, 1, 4), (20, 40, 10), -1)):
        affine = np.diag([flip * spacing[0], spacing[1], spacing[2], 1.0])
        affine[:3, 3] = (30, -5, 12)
        centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        away = index @ affine[:3, :3].T + affine[:3, 3] - centre - (4, 0, 0)
        ball = np.exp(-(away**2).sum(-1) / (2 * 6**2))
        seen.append(grid.of_image(ball, affine)[0])
    assert float((seen[0] - seen[1]).abs().max()) < 0.08
    assert np.unravel_index(int(seen[0].argmax()), grid.shape)[0] > 10


@pytest.mark.parametrize("log_share", [None, 1e-2])
def test_intensities_lie_between_0_and_1_and_scale_does_not_matter(log_share):
    data = blobs((12, 12, 12), 1)
    one, other = between_0_and_1(data, log_share), between_0_and_1(1e4 * data, log_share)
    assert one.min() == 0 and one.max() == 1
    np.testing.assert_allclose(one, other, atol=1e-5)
    single = np.zeros((12, 12, 12))
    single[6, 6, 6] = 5
    assert between_0_and_1(single, log_share).max() == 1


def save(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), path)
    return path


def test_images_without_sense_are_refused_with_their_file(tmp_path):
    with pytest.raises(CohortError, match=r"a\.nii: is constant \(2 everywhere\)"):
        read_image([save(tmp_path / "a.nii", np.full((5, 5, 5), 2))])
    broken = blobs((5, 5, 5), 1)
    broken[0, 0, 0] = np.inf
    with pytest.raises(CohortError, match=r"b\.nii: is not finite in 1 voxels"):
        read_image([save(tmp_path / "b.nii", broken)])
    first, second = (save(tmp_path / f"{n}.nii", blobs((n, 5, 5), 1)) for n in (5, 6))
    with pytest.raises(CohortError, match=r"6\.nii: is not on the grid of .*5\.nii: shape"):
        read_image([first, second])
    with pytest.raises(CohortError, match=r"5\.nii: has 3 dimensions, .* has 2"):
        read_image([first], dims=2)


def test_a_subject_that_cannot_be_used_is_left_out_and_too_few_are_an_error(tmp_path):
    write_blobs(tmp_path, 3, shape=(6, 6, 6))
    save(tmp_path / "flat.nii.gz", np.ones((6, 6, 6)))
    images = read_pair_images(tmp_path, config())
    assert [one.subject for one in images.rejected] == ["flat"]
    with pytest.raises(CohortError, match=r"3 usable images .* learned_affine.folds = 5"):
        read_pair_images(tmp_path, config(folds=5))
    with pytest.raises(CohortError, match=r"min_subjects = 4.*\n  flat: .*is constant"):
        read_pair_images(tmp_path, config(min_subjects=4))


def test_a_folder_of_another_layout_is_reported_by_a_layout_that_these_networks_read(tmp_path):
    write_blobs(tmp_path, 3, shape=(6, 6, 6))
    for name in "abcde":
        (tmp_path / f"{name}.trk").touch()
    wrong = config(images={"layout": "xtract"})
    with pytest.raises(CohortError, match=r"; 3 .* give --learned_affine#images#layout flat \(see"):
        read_pair_images(tmp_path, wrong)


# --- the configuration --------------------------------------------------------------------------

TINY = {
    "learned_affine#device": "cpu",
    "learned_affine#folds": 2,
    "learned_affine#images#layout": "flat",
    "learned_affine#images#shape": [16, 16, 16],
    "learned_affine#model": {"width": 0.125, "kind": "parameters"},
    "learned_affine#optimizer": {
        "epochs": 2,
        "pairs_per_subject": 1,
        "batch_size": 2,
        "schedule": "plateau",
        "schedule_epochs": 1,
    },
}


def workflow(dataset: Path, place: Path, **more: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(
        config_file=str(ROOT / "configs/train_affine.yaml"),
        meta_file=str(ROOT / "configs/metadata.json"),
        logging_file=str(ROOT / "configs/logging.conf"),
        run_id="training",
        workflow_type="train",
        bundle_root=str(ROOT),
        dataset_dir=str(dataset),
        output_dir=str(place / "output"),
        ckpt_dir=str(place / "models"),
        **{**TINY, **more},
    )
    made.initialize()
    return made


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_affine_network(place / "models/affine_model.pt").state_dict()


def test_training_resumes_to_the_same_result_bit_for_bit(tmp_path):
    dataset = write_blobs(tmp_path / "data", 4, shape=(8, 8, 8))
    whole = workflow(dataset, tmp_path / "whole")
    assert whole.check_properties() in (None, [])
    whole.run()
    report = json.loads((tmp_path / "whole/output/affine/result.json").read_text())
    assert set(report["held_out"]) | set(report["trained_on"]) == {f"sub-{n}" for n in range(1, 5)}
    assert report["metrics"]["pairs"] == 2 * 4
    assert report["metrics"]["distance"] > 0

    broken = workflow(dataset, tmp_path / "broken")
    trainer = broken.parser.get_parsed_content("train#trainer")
    length = trainer.state.epoch_length

    def stop(engine: Any) -> None:
        if engine.state.iteration == length + 1:
            raise KeyboardInterrupt

    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    del broken, trainer

    other = {"learned_affine#family": "rigid"}
    with pytest.raises(RuntimeError) as caught:
        workflow(dataset, tmp_path / "broken", **other).run()
    refusal = find_user_error(caught.value)
    assert isinstance(refusal, CheckpointError)
    assert "learned_affine.family was 'affine', now 'rigid'" in str(refusal)
    assert "--learned_affine#resume false" in str(refusal)
    del caught, refusal

    workflow(dataset, tmp_path / "broken").run()
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("content", [b"rubbish", None])
def test_a_file_that_is_no_affine_network_is_refused(tmp_path, content):
    path = tmp_path / "affine_model.pt"
    if content is None:
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"affine_model\.pt"):
        load_affine_network(path)
