"""Label Dice by leave-one-out against the same by hand."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.cohort.subject_images import find_subject_images
from scripts.evaluation.label_overlap import LabelOverlap, label_dice

SHAPE = (12, 8, 7)


def shifted(velocity: torch.Tensor) -> SimpleNamespace:
    """Fields of a shift along the first axis."""
    forward = torch.zeros(1, 3, *SHAPE)
    forward[:, 0] = velocity[0, 0].mean()
    return SimpleNamespace(to_subject=forward, to_template=-forward)


@pytest.fixture
def overlap(make_grid, tmp_path):
    """Subjects whose box of label 5 lies shifted, and one without labels."""
    moves = {"a": 1.0, "b": -2.0, "c": 0.0}
    for name, move in moves.items():
        labels = np.zeros(SHAPE, dtype=np.uint8)
        start = 5 - int(move)
        labels[start : start + 3, 2:6, 2:5] = 5
        if name == "c":
            labels[start, 2:6, 2:5] = 9
        nib.save(nib.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])), tmp_path / f"{name}.nii.gz")
    images = find_subject_images(
        "{subject}.nii.gz", tmp_path, [*moves, "d"], make_grid(SHAPE), "key", 0.01
    )
    made = LabelOverlap(images, 1, shifted)
    for name, move in {**moves, "d": 0.0}.items():
        velocity = torch.full((1, 3, 2, 2, 2), move)
        made.add(name, 0, velocity, shifted(velocity))
    return made


def test_each_subject_is_compared_with_the_others_only(overlap):
    scores = overlap.finish()
    assert sorted(scores) == ["a", "b", "c"]  # d has no labels
    # a: b has label 5 at all of its voxels, c at two slices of three: the third is a tie between
    # 5 and 9, and the smallest label wins.
    assert scores["a"] == {5: 1.0}
    assert scores["b"] == {5: 1.0}
    # c: the others say 5 on three slices, c has 5 on two and 9 on one.
    assert scores["c"] == pytest.approx({5: 2 * 2 / (2 + 3), 9: 0.0})


def test_a_subject_alone_has_no_score(make_grid, tmp_path, caplog):
    labels = np.ones(SHAPE, dtype=np.uint8)
    nib.save(nib.Nifti1Image(labels, np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii.gz")
    images = find_subject_images("{subject}.nii.gz", tmp_path, ["a"], make_grid(SHAPE), "key", 0.01)
    made = LabelOverlap(images, 1, shifted)
    still = torch.zeros(1, 3, 2, 2, 2)
    made.add("a", 0, still, shifted(still))
    assert made.finish() == {}
    assert "no other subject has labels" in caplog.text


def test_dice_of_each_label_but_background():
    assert label_dice(np.array([0, 2, 3, 3]), np.array([0, 2, 2, 4])) == {
        2: pytest.approx(2 / 3), 4: 0.0,
    }  # fmt: skip
