import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from scripts.metrics import entropy_focus_criterion, gradient_magnitude, gradient_ratio


def blob(sigma):
    image = np.zeros((24, 24, 24))
    image[12, 12, 12] = 1
    return gaussian_filter(image, sigma, truncate=3)


def test_focus_of_equal_voxels_is_one_and_of_one_voxel_zero():
    assert entropy_focus_criterion(np.full((4, 5, 6), 3.0)) == pytest.approx(1)
    single = np.zeros((4, 5, 6))
    single[1, 2, 3] = 7
    assert entropy_focus_criterion(single) == 0
    assert entropy_focus_criterion(np.zeros((4, 4))) == 0


def test_focus_of_two_equal_voxels_by_hand():
    p = 1 / np.sqrt(2)
    expected = -2 * p * np.log(p) / (np.sqrt(8) * np.log(np.sqrt(8)))
    assert entropy_focus_criterion(np.array([0, 3, 3, 0, 0, 0, 0, 0])) == pytest.approx(expected)


def test_focus_grows_with_blur_and_ignores_scale():
    values = [entropy_focus_criterion(blob(s)) for s in (0.8, 1.5, 3.0)]
    assert values == sorted(values)
    assert entropy_focus_criterion(blob(1.5) * 900) == pytest.approx(values[1])


def test_focus_counts_the_masks_voxels_alone():
    image = np.full((6, 6), 2.0)
    image[:3] = 0
    assert entropy_focus_criterion(image, image > 0) == pytest.approx(1)
    assert entropy_focus_criterion(image) < 1


def test_focus_refuses_negative_values():
    with pytest.raises(ValueError, match=r"least is -1"):
        entropy_focus_criterion([1.0, -1.0])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_gradient_of_a_ramp_is_its_slope_per_millimetre(dimensions):
    ramp = np.stack(np.meshgrid(*[np.arange(6)] * dimensions, indexing="ij"))[-1] * 3.0
    everywhere = np.ones(ramp.shape, bool)
    assert gradient_magnitude(ramp, everywhere) == pytest.approx(3)
    assert gradient_magnitude(ramp, everywhere, 2.0) == pytest.approx(1.5)
    spacings = (1.0,) * (dimensions - 1) + (4.0,)
    assert gradient_magnitude(ramp, everywhere, spacings) == pytest.approx(0.75)


def test_gradient_ratio_is_one_for_a_subject_and_falls_with_blur():
    subject = blob(1.0)
    assert gradient_ratio(subject, [subject, subject]) == pytest.approx(1)
    ratios = [gradient_ratio(blob(s), [subject]) for s in (1.0, 1.5, 2.5)]
    assert ratios == sorted(ratios, reverse=True)


def test_gradient_ratio_looks_inside_a_given_support_alone():
    subject, support = blob(1.0), np.zeros((24, 24, 24), bool)
    support[10:15, 10:15, 10:15] = True
    template = subject.copy()
    template[0] = 100
    assert gradient_ratio(template, [subject], support) == pytest.approx(1)
    assert gradient_ratio(template, [subject]) > 10


def test_gradients_need_a_subject_and_a_matching_support():
    with pytest.raises(ValueError, match="at least one subject"):
        gradient_ratio(blob(1), [])
    with pytest.raises(ValueError, match="differ in shape"):
        gradient_magnitude(blob(1), np.ones((3, 3), bool))
    assert gradient_magnitude(blob(1), np.zeros((24, 24, 24), bool)) == 0
