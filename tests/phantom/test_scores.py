"""Scores against a truth that is simple enough to know the answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.phantom.scores import landmark_scatter, score_atlas
from scripts.phantom.truth import SubjectTruth, Truth

SHAPE = (24, 20, 20)
SHIFTS = (-3.0, 0.0, 3.0)


def field(shift, shape=SHAPE):
    return np.stack([np.full(shape, s, np.float32) for s in (shift, 0, 0)])


def tubes():
    counts = np.zeros((2, *SHAPE), np.float32)
    counts[0, 8:12, 4:16, 6:9] = 5
    counts[1, 11:14, 5:15, 12:15] = 8
    return counts


@pytest.fixture
def truth():
    """Three subjects that are the central anatomy moved along x by whole voxels."""
    subjects = tuple(
        SubjectTruth(
            name=f"sub-{i}",
            held_out=False,
            anatomy=0,
            path=Path(f"sub-{i}"),
            waytotal=20,
            bundles=np.roll(tubes(), int(shift), axis=1),
            to_template=field(shift),
            to_subject=field(-shift),
        )
        for i, shift in enumerate(SHIFTS)
    )
    central = tubes()[None]
    return Truth(
        affine=np.eye(4),
        bundle_names=("one", "two"),
        central=central.sum(1) / 20,
        central_bundles=central,
        training=subjects,
        held_out=(),
        record={},
    )


def fields(shifts=SHIFTS, common=0.0):
    return [field(s + common) for s in shifts], [field(-s - common) for s in shifts]


def test_true_displacements_score_perfectly(truth):
    scores = score_atlas(truth, *fields(), template=truth.central[0])
    assert scores == pytest.approx(
        {"pair_dice": 1, "bridge_dice": 1, "vol": 1, "tre": 0, "shift": 0, "r_to_truth": 1}
    )


def test_no_registration_scatters_by_the_subjects_own_shifts(truth):
    scores = score_atlas(truth, *fields((0, 0, 0)))
    assert scores["tre"] == pytest.approx(np.sqrt(6))
    assert scores["shift"] == pytest.approx(0)
    assert scores["vol"] == pytest.approx(1)
    # tube 4 wide: overlaps 1, 1 and 0 of 4; tube 3 wide: none
    assert scores["pair_dice"] == pytest.approx((0.25 + 0.25) / 3 / 2)
    assert "r_to_truth" not in scores


def test_bridge_is_a_majority_of_the_other_subjects(truth):
    """The middle subject is reached by neither neighbour alone: one vote of two isn't > 0.5."""
    scores = score_atlas(truth, *fields((0, 0, 0)))
    assert scores["bridge_dice"] == pytest.approx(0)


def test_a_common_shift_costs_shift_alone(truth):
    scores = score_atlas(truth, *fields(common=2.0))
    assert scores["shift"] == pytest.approx(2)
    assert scores["tre"] == pytest.approx(0, abs=1e-6)
    assert scores["pair_dice"] == scores["bridge_dice"] == pytest.approx(1)


def test_a_wrong_way_back_costs_bridge_alone(truth):
    forward, backward = fields()
    scores = score_atlas(truth, forward, [-field for field in backward])
    assert scores["pair_dice"] == pytest.approx(1)
    assert scores["bridge_dice"] < 0.5


def test_swollen_tracts_show_in_vol(truth):
    """Fields that halve x about the tubes' middle make every tube twice as wide in the template."""
    x = np.arange(SHAPE[0], dtype=np.float32).reshape(-1, 1, 1)
    swelling = field(0)
    swelling[0] = -(x - 11) / 2 * np.ones(SHAPE, np.float32)
    still = [replace(subject, bundles=tubes()) for subject in truth.training]
    scores = score_atlas(truth, [swelling] * 3, [field(0)] * 3, subjects=still)
    assert 1.7 < scores["vol"] < 2.7


def test_the_templates_correlation_falls_with_a_misplaced_template(truth):
    template = np.roll(truth.central[0], 1, axis=0)
    assert score_atlas(truth, *fields(), template=template)["r_to_truth"] < 0.9


def test_subjects_of_another_anatomy_are_left_out(truth):
    other = replace(truth.training[2], anatomy=1)
    mixed = replace(truth, training=(*truth.training[:2], other))
    assert score_atlas(mixed, *fields(SHIFTS[:2]))["pair_dice"] == pytest.approx(1)
    with pytest.raises(ValueError, match="3 fields for 2 subjects"):
        score_atlas(mixed, *fields())


def test_one_subject_is_too_few(truth):
    with pytest.raises(ValueError, match="at least 2 subjects, got 1"):
        score_atlas(truth, *fields(SHIFTS[:1]), subjects=truth.training[:1])


def test_landmarks_are_followed_through_the_subject(truth):
    support = truth.central[0] > 0
    tre, shift = landmark_scatter(truth.training, fields((-2.0, 0.0, 2.0))[0], support)
    assert tre == pytest.approx(np.sqrt(2 / 3), abs=1e-6)
    assert shift == pytest.approx(0, abs=1e-6)


def test_fields_of_another_shape_are_named(truth):
    forward, backward = fields()
    backward[1] = field(0, (24, 20, 19))
    with pytest.raises(ValueError, match=r"to_subject of sub-1 has shape \(3, 24, 20, 19\)"):
        score_atlas(truth, forward, backward)
