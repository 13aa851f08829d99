"""Metrics of fields against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.metrics.fields import (
    angular_error,
    field_errors,
    image_likeness,
    label_ancestors,
    label_overlap,
    landmark_errors,
    tissue_mask,
    vector_distance,
)

SHAPE = (12, 15)


def test_distance_and_angle_of_constant_fields():
    true = np.zeros((2, *SHAPE))
    result = true + np.array([3.0, 4.0])[:, None, None]
    assert vector_distance(result, true) == pytest.approx(5)
    assert angular_error(result, true) == pytest.approx(np.degrees(np.arctan(5)))
    assert angular_error(true, true) == 0


def test_errors_in_tissue_count_its_pixels_alone():
    true = np.random.default_rng(0).normal(size=(2, *SHAPE))
    tissue = np.zeros(SHAPE, dtype=bool)
    tissue[4:8, 4:8] = True
    result = true + 2.0 * ~tissue
    errors = field_errors(result, true, tissue)
    assert errors["distance_tissue"] == 0
    assert errors["r2_tissue"] == 1
    share = 1 - tissue.mean()
    assert errors["distance"] == pytest.approx(share * 8**0.5)
    assert errors["r2"] == pytest.approx(
        1 - share * 8 / ((true - true.mean((1, 2), keepdims=True)) ** 2).sum(0).mean()
    )


def test_the_mean_field_explains_nothing():
    true = np.random.default_rng(1).normal(size=(3, 6, 7, 8))
    mean = np.broadcast_to(true.mean((1, 2, 3), keepdims=True), true.shape)
    everywhere = np.ones(true.shape[1:], dtype=bool)
    assert field_errors(mean, true, everywhere)["r2"] == pytest.approx(0)
    still = np.zeros_like(true)
    assert field_errors(still, still, everywhere)["r2"] == 1
    assert field_errors(true, still, everywhere)["r2"] == 0


def test_tissue_is_what_differs_from_the_background_bright_or_dark():
    image = np.zeros(SHAPE)
    image[3:6, 3:9] = 0.8
    np.testing.assert_array_equal(tissue_mask(image), image > 0)
    np.testing.assert_array_equal(tissue_mask(1 - image), image > 0)
    assert tissue_mask(np.ones(SHAPE)).all()


def test_likeness_of_equal_and_of_shifted_images():
    image = np.random.default_rng(2).random((20, 20)).astype(np.float32)
    same = image_likeness(image, image)
    assert same["correlation"] == pytest.approx(1)
    assert same["psnr"] == 99
    assert same["ssim"] == pytest.approx(1, abs=1e-5)
    assert image_likeness(image + 0.1, image)["psnr"] == pytest.approx(20, abs=0.01)
    assert "ssim" not in image_likeness(image[:8], image[:8])


def test_labels_at_a_depth_are_their_ancestors():
    tree = {1: None, 2: 1, 3: 1, 4: 2, 5: 2, 6: None}
    assert label_ancestors(tree, 0) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 6}
    assert label_ancestors(tree, 1) == {1: 1, 2: 2, 3: 3, 4: 2, 5: 2, 6: 6}
    assert label_ancestors(tree, 9) == {n: n for n in tree}
    with pytest.raises(ValueError, match="an ancestor of itself"):
        label_ancestors({1: 2, 2: 1}, 0)


def test_overlap_grows_where_a_depth_joins_confused_labels():
    true = np.zeros((4, 4), int)
    true[:2], true[2:] = 4, 5
    result = np.roll(true, 1, axis=0)
    plain = label_overlap(result, true)
    assert plain["dice"] == pytest.approx(0.5)
    assert plain["iou"] == pytest.approx(1 / 3)
    assert label_overlap(result, true, {4: 2, 5: 2}) == {"dice": 1.0, "iou": 1.0}
    assert label_overlap(np.zeros((2, 2), int), np.zeros((2, 2), int)) == {}


def test_landmarks_are_moved_by_the_field_where_they_lie():
    field = np.zeros((2, *SHAPE))
    field[0], field[1] = 1.0, -2.0
    reference = np.array([[3.0, 4.0], [6.0, 9.0], [np.nan, 1.0]])
    moving = reference + np.array([1.0, -2.0])
    moving[1] += np.array([0.0, 3.0])
    errors = landmark_errors(field, reference, moving)
    assert errors["landmarks"] == pytest.approx(1.5)
    start = (5**0.5 + 2**0.5) / 2
    assert errors["landmarks_start"] == pytest.approx(start)
    assert errors["landmarks_relative"] == pytest.approx(1.5 / np.hypot(*SHAPE))
    assert errors["landmarks_improvement"] == pytest.approx(1 - 1.5 / start)
    assert landmark_errors(field, np.full((1, 2), np.nan), np.zeros((1, 2))) == {}
